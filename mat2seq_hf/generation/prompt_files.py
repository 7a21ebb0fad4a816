"""Reading many prompts from a file."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from math import isnan
from pathlib import Path
from typing import Any

from ..corpora.csv_reading import as_value
from ..corpora.rows import chosen, is_property
from ..corpora.schema import check_whole, needed_shards, read_shard
from ..errors import Mat2SeqError
from ..prompts import parse_formula, reduced
from ..vocabulary import NUMERIC_FIELDS
from ..wishes import WISHES, Prompt

__all__ = ["Asked", "prompt_json", "property_value", "read_prompts"]

_NAMES = ("prompt_id", "material_id", "id")


@dataclass(frozen=True)
class Asked:
    """A prompt as it was given: its name, and a formula or a dict of :data:`~mat2seq_hf.wishes.WISHES`."""

    prompt_id: str
    prompt: str | dict[str, Any]


def read_prompts(path: str | Path, ids: str | Path | None = None) -> list[Asked]:
    """Prompts of a file.

    Args:
        path: one of

            - a text file with a formula a line (``-`` is standard input),
            - ``.jsonl`` with an object a line: fields of :class:`Prompt` and properties such as ``band_gap``,
            - ``.csv`` or ``.parquet`` with columns named like these. Empty cells are left out, but a row that is empty
              asks for no crystal: its formula is the empty one, which is refused. In ``.csv``, elements are separated
              by blanks, commas or hyphens, and ``1:2`` is a range,
            - a folder that ``mat2seq prepare`` wrote: the formula and size of each crystal, which is the prompt of
              structure prediction.

            A field or column ``prompt_id``, ``material_id`` or ``id`` names the prompt, else its number does.
        ids: text file with one name a line: only these prompts are taken, in its order.

    Raises:
        Mat2SeqError: the file cannot be read, holds nothing, has other columns, names a prompt twice, or lacks one that
            ``ids`` names; the folder is only half prepared.
    """
    path = Path(path)
    if not path.exists() and str(path) != "-":
        raise Mat2SeqError(f"{path} does not exist")
    rows = _rows(path)
    asked = []
    for number, row in enumerate(rows, start=1):
        if isinstance(row, str):
            asked.append(Asked(str(number), row))
            continue
        name = next((str(row[key]) for key in _NAMES if row.get(key) is not None), str(number))
        asked.append(Asked(name, _wishes(row)))
    if not asked:
        raise Mat2SeqError(f"{path} holds no prompts")
    by_name: dict[str, Asked] = {}
    for one in asked:
        if one.prompt_id in by_name:
            raise Mat2SeqError(f"{path}: the prompt id {one.prompt_id!r} occurs twice")
        by_name[one.prompt_id] = one
    return asked if ids is None else chosen(by_name, ids, path)


def _wishes(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row asks for. If it names wishes and all are empty it asks for nothing, which is not: for any crystal."""
    named = {name: value for name, value in row.items() if name not in _NAMES}
    given = {name: value for name, value in named.items() if value is not None or name in NUMERIC_FIELDS}
    return given if given or not named else {"formula": ""}


def _rows(path: Path) -> Iterator[Any]:
    if path.is_dir():
        yield from _prepared(path)
    elif path.suffix.lower() in (".csv", ".parquet"):
        yield from _table(path)
    else:
        try:
            data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()  # sys.stdin decodes as the system
            lines = io.StringIO(data.decode("utf-8-sig"), newline=None)  # JSON may hold what str.splitlines cuts at
        except UnicodeDecodeError as error:
            raise Mat2SeqError(f"{path} is not a text file (UTF-8)") from error
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _json(path, number, line) if path.suffix.lower() == ".jsonl" else line.strip()


def _json(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise Mat2SeqError(f"{path}:{number} is no JSON: {error}") from error
    if not isinstance(row, dict):
        raise Mat2SeqError(f"{path}:{number}: an object of prompt fields is expected, not {line[:60]}")
    return row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key occurs twice among {', '.join(name for name, _ in pairs)}")
    return found


def _table(path: Path) -> Iterator[dict[str, Any]]:
    try:
        columns, rows = (_csv if path.suffix.lower() == ".csv" else _parquet)(path)
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's errors for broken files are the first two
        raise Mat2SeqError(f"{path} cannot be read as a table: {str(error).splitlines()[0]}") from error
    names = [name for name in columns if is_property(name)]
    known = [name for name in names if name in (*WISHES, *_NAMES)]
    if not set(known) - {*_NAMES}:
        raise Mat2SeqError(f"{path} has none of the columns {', '.join(WISHES)}; it has {', '.join(names)}")
    if len(known) < len(names) or len({*names}) < len(names):
        wrong = [name for place, name in enumerate(names) if name not in known or name in names[:place]]
        raise Mat2SeqError(
            f"{path}: the column {', '.join(map(repr, wrong))} is unknown or there twice, remove it; "
            f"there are {', '.join((*_NAMES, *WISHES))}"
        )
    for row in rows:
        given = {name: row[name] for name in known if row[name] is not None}
        yield given if given.keys() - {*_NAMES} else {**given, "formula": None}


def _csv(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows of a table of text. No word stands for a missing value: NaN is a compound of sodium."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        columns, *cells = [[cell.strip() for cell in line] for line in csv.reader(file, strict=True) if line] or [[]]
    for number, line in enumerate(cells, start=1):
        if len(line) > len(columns):
            raise ValueError(f"row {number} has {len(line)} cells, the head {len(columns)}")
    return columns, [{n: _cell(n, text) for n, text in zip_longest(columns, line, fillvalue="")} for line in cells]


def _cell(name: str, text: str) -> Any:
    """What the text of a cell stands for; text that is nothing of the kind stays, and the prompt is refused for it."""
    if not text or name in (*_NAMES, "formula", "crystal_system"):
        return text or None
    if name == "elements":
        return re.findall(r"\w+", text)
    if name == "condition":
        return {"true": True, "false": False}.get(text.lower(), text)
    value = property_value(text)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def property_value(text: str) -> float | tuple[float, ...] | str:
    """The number or range that a text stands for, or else the text: as in corpora, ``1_5`` is none.

    Example:
        >>> property_value("1.1"), property_value("1:2"), property_value("wide")
        (1.1, (1.0, 2.0), 'wide')
    """
    parts = text.split(":")
    if any(isinstance(as_value(part.strip()), str) for part in parts):
        return text
    numbers = tuple(float(part) for part in parts)
    return numbers[0] if len(numbers) == 1 else numbers


def _parquet(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path).read()
    rows = table.to_pylist()
    return table.column_names, [{name: _plain(value) for name, value in row.items()} for row in rows]


def _plain(value: Any) -> Any:
    """A whole float is an integer, and nan is nothing: both come from columns of numbers with empty cells."""
    if isinstance(value, dict):
        return {name: one for name, one in value.items() if one is not None}  # every row has the keys of all rows
    if not isinstance(value, float):
        return None if value == "" else value
    return None if isnan(value) else int(value) if value.is_integer() else value


def _prepared(path: Path) -> Iterator[dict[str, Any]]:
    shards = needed_shards(path)
    check_whole([path])
    for shard in shards:
        table = read_shard(shard, ["id", "text"])
        for name, text in zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True):
            yield {"id": name, **reduced(parse_formula(text.split(" [")[0].split("| ")[-1]))}


def prompt_json(prompt: Prompt) -> str:
    """The fields of a prompt that are set, as JSON.

    Example:
        >>> prompt_json(Prompt("NaCl", formula_units=1))
        '{"formula": "NaCl", "formula_units": 1}'
    """
    fields = (name for name in WISHES if name not in NUMERIC_FIELDS)
    given = {name: getattr(prompt, name) for name in fields}
    given["properties"] = dict(given["properties"])
    return json.dumps({name: value for name, value in given.items() if value not in (None, {}, False)})
