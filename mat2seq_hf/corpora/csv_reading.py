"""CSV files as people write them: large fields, numbers that are numbers, and bad rows that cost only themselves."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO

__all__ = ["MAX_TEXT", "csv_records", "text_lines"]

#: Bytes of the text of one crystal; a decompressed bomb ends here.
MAX_TEXT = 32 * 2**20

_LEADING_ZERO = re.compile(r"\s*[+-]?0\d")


def text_lines(stream: BinaryIO) -> Iterator[str]:
    """Lines of a file in UTF-8, with their ends; what is no UTF-8 is replaced."""
    with io.TextIOWrapper(stream, "utf-8-sig", errors="replace", newline="") as text:
        yield from text


def _value(text: str) -> str | int | float:
    """A number where the text is one as people write it: not ``007``, and not ``1_2``, which Python takes for 12."""
    if "_" in text or not text.isascii() or _LEADING_ZERO.match(text):
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def csv_records(stream: BinaryIO, texts: Collection[str] = ()) -> tuple[list[str], Iterator[dict[str, Any] | str]]:
    """Column names of a CSV file, and its rows without empty fields; in place of a row what is wrong with it.

    Args:
        stream: open for reading bytes.
        texts: columns that stay as they are written; in others numbers become numbers.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_TEXT))  # a CIF is a large field
    lines = csv.reader(text_lines(stream))
    names = next(lines, [])

    def rows() -> Iterator[dict[str, Any] | str]:
        for values in lines:
            if len(values) == len(names):
                fields = zip(names, values, strict=True)
                yield {name: value if name in texts else _value(value) for name, value in fields if value}
            elif values:
                yield f"the row has {len(values)} fields, the header {len(names)}; mend its quotes or commas"

    return names, rows()
