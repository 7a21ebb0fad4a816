"""CSV files as people write them: large fields, numbers that are numbers, and bad rows that cost only themselves."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO

from ..errors import Mat2SeqError
from .rows import check_columns

__all__ = ["MAX_TEXT", "as_value", "csv_records", "text_lines"]

#: Bytes of the text of one crystal; a decompressed bomb ends here.
MAX_TEXT = 32 * 2**20

_NUMBER = re.compile(r"\s*[+-]?(?!0\d)(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_MISSING = "nan"  # as programs write it; InF, NaN and Inf can be formulas


def text_lines(stream: BinaryIO, newline: str | None = "") -> Iterator[str]:
    """Lines of a file in UTF-8, with their ends; what is no UTF-8 is replaced.

    Raises:
        Mat2SeqError: a line is longer than :data:`MAX_TEXT`, of which more is not read.
    """
    with io.TextIOWrapper(stream, "utf-8-sig", errors="replace", newline=newline) as text:
        while line := text.readline(MAX_TEXT + 1):
            if len(line) > MAX_TEXT:
                raise Mat2SeqError(f"a line is longer than {MAX_TEXT // 2**20} MiB")
            yield line


def as_value(text: str) -> str | int | float:
    """A number where the text is one as people write it: not ``007``, ``1_2``, ``NaN`` or ``1e999``."""
    if text == _MISSING:
        return math.nan
    if _NUMBER.fullmatch(text):
        for kind in (int, float):
            try:
                value: int | float = kind(text)
            except ValueError:
                continue
            return value if isinstance(value, int) or math.isfinite(value) else text
    return text


def _csv_lines(stream: BinaryIO) -> Iterator[list[str] | str]:
    """The fields of each row; in place of those of a row of one line what is wrong with its quotes.

    Raises:
        Mat2SeqError: quotes are wrong in a row of several lines.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_TEXT))  # a CIF is a large field
    # strict: otherwise a field in which the file ends is whole, and one without its quote goes on in the next row
    reader = csv.reader(text_lines(stream), strict=True)
    while True:
        first = reader.line_num + 1
        try:
            values = next(reader, None)
        except csv.Error as error:
            last = max(first, reader.line_num)
            if last > first:
                raise Mat2SeqError(f"the row of lines {first} to {last}: {error}; mend its quotes") from error
            yield f"line {first}: {error}; mend its quotes"
            continue
        if values is None:
            return
        yield values


def csv_records(
    stream: BinaryIO, texts: Collection[str] | None = ()
) -> tuple[list[str], Iterator[dict[str, Any] | str]]:
    """Column names of a CSV file, and its rows without empty fields; in place of a row what is wrong with it.

    Args:
        stream: open for reading bytes.
        texts: columns that stay as they are written, None: all; in others numbers become numbers.

    Raises:
        Mat2SeqError: a line is too long, two columns have one name, or a row of several lines has a quote too many or
            too few, so that nobody knows where the next one starts.
    """
    lines = _csv_lines(stream)
    names = next(lines, [])
    if isinstance(names, str):
        raise Mat2SeqError(names)
    check_columns(names)
    kept = names if texts is None else texts

    def rows() -> Iterator[dict[str, Any] | str]:
        for values in lines:
            if isinstance(values, str):
                yield values
            elif len(values) == len(names):
                fields = zip(names, values, strict=True)
                yield {name: value if name in kept else as_value(value) for name, value in fields if value}
            elif values:
                yield f"the row has {len(values)} fields, the header {len(names)}; mend its quotes or commas"

    return names, rows()
