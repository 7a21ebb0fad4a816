"""Columns and metadata of prepared corpora."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
    "read_shard",
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


def _own_report(path: Path) -> dict[str, Any]:
    """What ``mat2seq prepare`` has written there, empty if there is nothing or something else."""
    try:
        report = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) and {"encoded", "scheme"} <= report.keys() else {}


def _damaged(path: Path, error: Exception) -> Mat2SeqError:
    reason = " ".join(str(error).split())  # Arrow's errors have several lines
    return Mat2SeqError(
        f"{path} is damaged ({reason}); start the same `mat2seq prepare` again, which makes it anew "
        "and keeps the others"
    )


def _footer(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def read_shard(path: Path, columns: Sequence[str]) -> pa.Table:
    """Columns of a shard, whose checksums are compared.

    Raises:
        Mat2SeqError: it is damaged.
    """
    try:
        return pq.read_table(path, columns=list(columns), page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def refuse_foreign_files(folders: Iterable[str | Path]) -> None:
    """Refuse to write where files of others have the names of ours: those of an earlier run are replaced.

    Raises:
        Mat2SeqError: a folder has a ``part-*.parquet`` or a ``report.json`` that ``mat2seq prepare`` did not write.
    """
    places = [Path(folder) for folder in folders]
    for path in (folder / "report.json" for folder in places):
        if path.is_file() and not _own_report(path):
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
    # shards can be damaged, which does not make them files of crystals
    return any(map(_is_shard, shards)) or bool(shards and _own_report(Path(path) / "report.json"))


def _is_shard(path: Path) -> bool:
    try:
        return METADATA_KEY in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowException):  # the same name, but no table
        return False


def check_whole(folders: Iterable[str | Path]) -> None:
    """Refuse prepared folders that are not whole: what is compared with them would be counted too low.

    Raises:
        Mat2SeqError: a folder has shards and no report.json, which is written last, or not the crystals that it counts.
    """
    for folder in map(Path, folders):
        shards = shard_paths(folder)
        if not shards:
            continue
        if not (folder / "report.json").is_file():
            raise Mat2SeqError(
                f"{folder} has no report.json: the run that prepares it has not ended; start the same command again, "
                "which goes on"
            )
        rows = sum(_footer(path).num_rows for path in shards)
        if rows != (expected := _own_report(folder / "report.json").get("encoded", "no number")):
            raise Mat2SeqError(
                f"{folder} holds {rows} crystals, its report.json says {expected}: a shard is missing, or there is one "
                "of another run; start the same `mat2seq prepare` again, which makes what is missing"
            )


def scheme_of(folder: str | Path) -> str:
    """Fingerprint of the canonical form of a prepared corpus.

    Raises:
        SchemeMismatchError: its shards have different ones.
        Mat2SeqError: it is no prepared corpus, or a shard is damaged.
    """
    schemes = set()
    for path in needed_shards(folder):
        metadata = _footer(path).metadata or {}
        try:
            schemes.add(str(json.loads(metadata[METADATA_KEY])["scheme"]))
        except (KeyError, ValueError) as error:
            raise Mat2SeqError(f"{path} is no shard that `mat2seq prepare` wrote; move it away") from error
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
