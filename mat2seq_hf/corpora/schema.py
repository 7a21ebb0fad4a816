"""Columns and metadata of prepared corpora."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import Mat2SeqError, SchemeMismatchError

__all__ = [
    "DUPLICATES",
    "METADATA_KEY",
    "PREPARED",
    "REJECTED",
    "check_schemes",
    "check_whole",
    "is_prepared",
    "needed_shards",
    "refuse_foreign_files",
    "scheme_of",
    "shard_paths",
]

_SHARD = re.compile(r"part-\d+(-\d+)?\.parquet")

#: Key of the parquet schema metadata whose value is JSON: scheme, scheme_version, symprec, input.
METADATA_KEY = b"mat2seq"

#: One row a crystal. ``input_ids`` is ``<s> ... </s>``, ``prompt_length`` its tokens up to the end of the formula;
#: ``properties`` is a JSON object of the other columns of the input; ``source`` is file name and row.
PREPARED = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("input_ids", pa.list_(pa.int16())),
        ("prompt_length", pa.int16()),
        ("n_tokens", pa.int16()),
        ("properties", pa.string()),
        ("source", pa.string()),
    ]
)

#: One row a crystal that could not be encoded.
REJECTED = pa.schema([("id", pa.string()), ("source", pa.string()), ("reason", pa.string())])

#: One row a crystal whose sequence an earlier row has, and that row.
DUPLICATES = pa.schema([(name, pa.string()) for name in ("id", "source", "first_id", "first_source")])


def shard_paths(folder: str | Path) -> list[Path]:
    """The shards of a prepared corpus, in order."""
    return sorted(Path(folder).glob("part-*.parquet"))


def _is_own_report(path: Path) -> bool:
    try:
        report = json.loads(path.read_bytes())
    except ValueError:
        return False
    return isinstance(report, dict) and {"encoded", "scheme"} <= report.keys()


def refuse_foreign_files(folders: Iterable[str | Path]) -> None:
    """Refuse to write where files of others have the names of ours: those of an earlier run are replaced.

    Raises:
        Mat2SeqError: a folder has a ``part-*.parquet`` or a ``report.json`` that ``mat2seq prepare`` did not write.
    """
    places = [Path(folder) for folder in folders]
    for path in (folder / "report.json" for folder in places):
        if path.is_file() and not _is_own_report(path):
            raise Mat2SeqError(
                f"{path} is no report of `mat2seq prepare` and would be replaced; give another folder for the output, "
                "or move the file away"
            )
    for path in (path for folder in places for path in shard_paths(folder)):
        try:
            own = METADATA_KEY in (pq.read_schema(path).metadata or {})
        except (OSError, pa.ArrowException):  # a shard of a run that was cut off by more than the end of a process
            own = _SHARD.fullmatch(path.name) is not None
        if not own:
            raise Mat2SeqError(
                f"{path} has the name of a shard and is none that `mat2seq prepare` wrote; give another folder for "
                "the output, or move the file away"
            )


def needed_shards(folder: str | Path) -> list[Path]:
    """The shards of what has to be a prepared corpus.

    Raises:
        Mat2SeqError: there are none.
    """
    paths = shard_paths(folder)
    if not paths:
        raise Mat2SeqError(f"no part-*.parquet in {folder}: write them with `mat2seq prepare`")
    return paths


def is_prepared(path: str | Path) -> bool:
    """Whether a path is a folder that ``mat2seq prepare`` wrote."""
    shards = shard_paths(path) if Path(path).is_dir() else []
    try:
        return bool(shards) and METADATA_KEY in (pq.read_schema(shards[0]).metadata or {})
    except (OSError, pa.ArrowException):  # the same name, but no table
        return False


def check_whole(folders: Iterable[str | Path]) -> None:
    """Refuse prepared folders that a killed run has left: what is compared with them would be counted too low.

    Raises:
        Mat2SeqError: a folder has shards and no report.json, which is written last.
    """
    for folder in map(Path, folders):
        if shard_paths(folder) and not (folder / "report.json").is_file():
            raise Mat2SeqError(
                f"{folder} has no report.json: the run that prepares it has not ended; start the same command again, "
                "which goes on"
            )


def scheme_of(folder: str | Path) -> str:
    """Fingerprint of the canonical form of a prepared corpus.

    Raises:
        SchemeMismatchError: its shards have different ones.
        Mat2SeqError: it is no prepared corpus.
    """
    schemes = set()
    for path in needed_shards(folder):
        try:
            schemes.add(str(json.loads((pq.read_schema(path).metadata or {})[METADATA_KEY])["scheme"]))
        except (OSError, KeyError, ValueError) as error:  # pyarrow's errors are OSError and ValueError
            raise Mat2SeqError(f"{path} is no shard that `mat2seq prepare` wrote ({error}); remove it") from error
    if len(schemes) > 1:
        raise SchemeMismatchError(f"{folder} has shards of {' and '.join(sorted(schemes))}; prepare it again")
    return schemes.pop()


def check_schemes(schemes: Mapping[str, str]) -> None:
    """Refuse to compare sequences of different canonical forms, which differ for one and the same crystal.

    Args:
        schemes: fingerprint by the name of the corpus, or of what is compared with it.

    Raises:
        SchemeMismatchError: two differ; it names both.
    """
    (name, scheme), *others = schemes.items()
    for other, its in others:
        if its != scheme:
            raise SchemeMismatchError(
                f"{name} has the scheme {scheme!r}, {other} has {its!r}: their sequences cannot be compared; prepare "
                "both with the same --symprec and version"
            )
