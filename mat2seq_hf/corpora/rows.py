"""One crystal of the input as it was found: what every reader yields."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from ..cif_reading import without_half_pairs
from ..errors import Mat2SeqError

__all__ = [
    "ID_COLUMNS",
    "SAMPLE_COLUMNS",
    "InputRow",
    "check_columns",
    "chosen",
    "chunks",
    "cut",
    "is_property",
    "plain_name",
    "problem_row",
    "scalars",
    "stem_of",
]

_Item = TypeVar("_Item")

_REASON = 1000  # characters

#: Columns that name a row, the first of them that is there.
ID_COLUMNS = ("material_id", "id", "_id")

#: Columns that together name a row of a table of samples, which has none of :data:`ID_COLUMNS`.
SAMPLE_COLUMNS = ("prompt_id", "sample_index")


@dataclass(frozen=True)
class InputRow:
    """One crystal of the input.

    Attributes:
        id: name; the file's where it has no other.
        text: CIF, POSCAR or JSON, see :func:`~.texts.crystal_of`.
        source: file and row.
        properties: JSON object of the numbers, strings and truth values that stand beside the crystal.
        problem: why the row could not be read; empty for most.
        written: JSON object of the numbers of a CSV as they are written, such as ``1.10``.
    """

    id: str
    text: str
    source: str
    properties: str = "{}"
    problem: str = ""
    written: str = "{}"

    def __post_init__(self) -> None:
        for name in ("id", "text", "source", "properties", "problem", "written"):
            # half a surrogate pair, as JSON can hold, is no UTF-8 and fits into no file
            object.__setattr__(self, name, without_half_pairs(getattr(self, name)))
        object.__setattr__(self, "problem", cut(self.problem))


def cut(reason: str) -> str:
    """A reason without its middle where it is long: some errors quote all of a file."""
    return reason if len(reason) <= _REASON else f"{reason[: _REASON // 2]} ... {reason[-_REASON // 2 :]}"


def problem_row(label: str, error: Exception | str) -> InputRow:
    """A row in place of what cannot be read."""
    said = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return InputRow(stem_of(label), "", label, problem=said)


def chunks(rows: Iterable[InputRow], size: int) -> Iterator[list[InputRow]]:
    """The rows in lists of ``size``; the last one may be shorter."""
    rows = iter(rows)
    while chunk := list(islice(rows, size)):
        yield chunk


def plain_name(label: str) -> str:
    """Name of a file without folders and without ``.gz``, in the letters it is written in."""
    name = PurePosixPath(label).name
    return name[:-3] if name.lower().endswith(".gz") else name


def stem_of(label: str) -> str:
    """Name of a file without folders and suffixes: ``"a/mp-1.cif.gz"`` gives ``"mp-1"``."""
    return PurePosixPath(plain_name(label)).stem


def is_property(name: str) -> bool:
    """Whether a column can be a property by its name: it has one, and is no index that pandas wrote."""
    return bool(name) and not name.startswith(("Unnamed: ", "__index_level_"))


def check_columns(names: Sequence[str]) -> None:
    """Refuse a table in which two columns have one name: nobody knows which of them is meant.

    Raises:
        Mat2SeqError: it names the first of them; columns that can be no property may be there twice.
    """
    for place, name in enumerate(names):
        if is_property(name) and name in names[:place]:
            raise Mat2SeqError(f"the column {name!r} is there twice; remove one, or give it another name")


def scalars(row: Mapping[str, Any]) -> str:
    """JSON of the columns that are numbers, strings or truth values; without index columns and missing values.

    JSON escapes what is not ASCII, so that half a surrogate pair has to be replaced before.
    """
    kept = {
        without_half_pairs(name): without_half_pairs(value) if isinstance(value, str) else value
        for name, value in sorted(row.items())
        if isinstance(value, (str, int, float))
        and not (isinstance(value, float) and not math.isfinite(value))
        and is_property(name)
    }
    return json.dumps(kept)


def chosen(items: Mapping[str, _Item], ids: str | Path, source: str | Path) -> list[_Item]:
    """Those of a corpus that a file names, in the order of the file.

    Args:
        items: by id.
        ids: text file with one id a line.
        source: where the items come from, for messages.

    Raises:
        Mat2SeqError: the file is no text, names nothing, or names what is not there.
    """
    try:
        lines = Path(ids).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise Mat2SeqError(f"{ids} does not exist") from error
    except UnicodeDecodeError as error:
        raise Mat2SeqError(f"{ids} is not a text file (UTF-8)") from error
    wanted = list(dict.fromkeys(name for line in lines if (name := line.strip())))
    if missing := [name for name in wanted if name not in items]:
        raise Mat2SeqError(f"{len(missing)} ids of {ids} are not in {source}, such as {missing[0]!r}")
    if not wanted:
        raise Mat2SeqError(f"{ids} names no ids")
    return [items[name] for name in wanted]
