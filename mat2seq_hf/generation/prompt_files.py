"""Reading many prompts from a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from math import gcd
from pathlib import Path
from typing import Any

from ..errors import Mat2SeqError
from ..prompts import Prompt, parse_formula

__all__ = ["Asked", "prompt_json", "read_prompts"]

_FIELDS = tuple(field.name for field in fields(Prompt) if field.name != "open_prefix")
_NAMES = ("prompt_id", "material_id", "id")


@dataclass(frozen=True)
class Asked:
    """A prompt as it was given: its name, and a formula or a dict of the fields of :class:`Prompt`."""

    prompt_id: str
    prompt: str | dict[str, Any]


def read_prompts(path: str | Path) -> list[Asked]:
    """Prompts of a file.

    Args:
        path: one of

            - a text file with a formula a line,
            - ``.jsonl`` with an object of :class:`Prompt` fields a line,
            - ``.csv`` or ``.parquet`` with columns named like these fields (empty cells are left out),
            - a folder that ``mat2seq prepare`` wrote: the formula and size of each crystal, which is the prompt of
              structure prediction.

            A field or column ``prompt_id``, ``material_id`` or ``id`` names the prompt, else its number does.

    Raises:
        Mat2SeqError: the file cannot be read, holds nothing, or names a prompt twice.
    """
    path = Path(path)
    if not path.exists():
        raise Mat2SeqError(f"{path} does not exist")
    rows = _rows(path)
    asked = []
    for number, row in enumerate(rows, start=1):
        if isinstance(row, str):
            asked.append(Asked(str(number), row))
            continue
        name = next((str(row[key]) for key in _NAMES if row.get(key) is not None), str(number))
        asked.append(Asked(name, {key: value for key, value in row.items() if key not in _NAMES}))
    if not asked:
        raise Mat2SeqError(f"{path} holds no prompts")
    names: set[str] = set()
    for one in asked:
        if one.prompt_id in names:
            raise Mat2SeqError(f"{path}: the prompt id {one.prompt_id!r} occurs twice")
        names.add(one.prompt_id)
    return asked


def _rows(path: Path) -> Iterator[Any]:
    if path.is_dir():
        yield from _prepared(path)
    elif path.suffix in (".csv", ".parquet"):
        yield from _table(path)
    else:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise Mat2SeqError(f"{path} is not a text file (UTF-8)") from error
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _json(path, number, line) if path.suffix == ".jsonl" else line.strip()


def _json(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise Mat2SeqError(f"{path}:{number} is no JSON: {error}") from error
    if not isinstance(row, dict):
        raise Mat2SeqError(f"{path}:{number}: an object of prompt fields is expected, not {line[:60]}")
    return row


def _table(path: Path) -> Iterator[dict[str, Any]]:
    import pandas as pd

    try:
        table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors for broken files are both
        raise Mat2SeqError(f"{path} cannot be read as a table: {str(error).splitlines()[0]}") from error
    known = [name for name in table.columns if name in (*_FIELDS, *_NAMES)]
    if not set(known) - set(_NAMES):
        raise Mat2SeqError(f"{path} has none of the columns {', '.join(_FIELDS)}; it has {', '.join(table.columns)}")
    for row in table[known].to_dict("records"):
        yield {str(name): _plain(value) for name, value in row.items() if not _is_empty(value)}


def _is_empty(value: Any) -> bool:
    return value is None or value != value or value == ""  # noqa: PLR0124 - nan differs from itself


def _plain(value: Any) -> Any:
    """A number or text as json knows it; a whole float, from a column with empty cells, is an integer."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _prepared(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    shards = sorted(path.glob("part-*.parquet"))
    if not shards:
        raise Mat2SeqError(f"{path} holds no shards (part-*.parquet); give a folder that `mat2seq prepare` wrote")
    for shard in shards:
        table = pq.read_table(shard, columns=["id", "text"])
        for name, text in zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True):
            yield {"id": name, **_reduced(text.split(" [")[0].split("| ")[-1])}


def _reduced(formula: str) -> dict[str, Any]:
    counts = parse_formula(formula)
    units = gcd(*counts.values())
    words = (f"{element}{count // units}" for element, count in counts.items())
    return {"formula": "".join(words), "formula_units": units}


def prompt_json(prompt: Prompt | Mapping[str, Any]) -> str:
    """The fields of a prompt that are set, as JSON.

    Example:
        >>> prompt_json(Prompt("NaCl", formula_units=1))
        '{"formula": "NaCl", "formula_units": 1}'
    """
    given = dict(prompt) if isinstance(prompt, Mapping) else {name: getattr(prompt, name) for name in _FIELDS}
    if given.get("properties"):
        given["properties"] = dict(given["properties"])
    return json.dumps({name: value for name, value in given.items() if value not in (None, (), False)})
