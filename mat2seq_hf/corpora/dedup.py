"""Duplicates among anybody's crystals, through the canonical form: each crystal is looked at once."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import Mat2SeqError
from .duplicates import first_of_each, near_groups, read_columns, text_digests
from .encode import write_csv, write_table
from .prepare import input_rows, prepare_rows
from .schema import check_whole, is_prepared

__all__ = ["DedupReport", "dedup", "duplicate_groups"]

_COLUMNS = ("id", "source", "text")


@dataclass(frozen=True)
class DedupReport:
    """What was found.

    Attributes:
        read: crystals in the input.
        distinct: of those that were compared, so many are no repetition of an earlier one.
        duplicates: so many are; ``distinct + duplicates + rejected == read``.
        rejected: crystals that could not be read or encoded.
        groups: largest groups of duplicates first, each as ids in the order of the input.
    """

    read: int
    distinct: int
    duplicates: int
    rejected: int
    groups: list[list[str]]


def duplicate_groups(folder: str | Path, near: float | None = None) -> pa.Table:
    """Rows of a prepared corpus with ``group``, the index of the first row with the same crystal.

    Args:
        folder: written by ``prepare``.
        near: join near-duplicates, too: tolerance in angstrom, see :func:`~.duplicates.near_groups`.
    """
    table = pa.concat_tables(list(read_columns(folder, _COLUMNS)))
    first = first_of_each(text_digests(table.column("text").to_pylist()))
    if near is not None:
        which = np.unique(first)  # near-duplicates of distinct crystals only: equal ones have one text
        near_first = near_groups(table.column("text").take(which).to_pylist(), near)
        first = which[near_first][np.searchsorted(which, first)]
    return table.append_column("group", pa.array(first))


def _write(table: pa.Table, path: Path) -> None:
    write_table(table, path.with_suffix(".parquet"))
    write_csv(table, path.with_suffix(".csv"))


def _columns(path: Path) -> set[str]:
    try:
        if path.suffix == ".parquet":
            return set(pq.read_schema(path).names)
        with path.open(encoding="utf-8", newline="") as lines:
            return set(next(csv.reader(lines), []))
    except (ValueError, csv.Error, pa.ArrowException):
        return set()


def _refuse_foreign_files(output: Path) -> None:
    """Refuse to write where files of others have the names of ours: those of an earlier run are replaced.

    Raises:
        Mat2SeqError: a file has other columns.
    """
    for name, columns in (("duplicates", {*_COLUMNS, "group"}), ("unique", {*_COLUMNS})):
        for path in (output / f"{name}.csv", output / f"{name}.parquet"):
            if path.is_file() and _columns(path) != columns:
                raise Mat2SeqError(
                    f"{path} is none that `mat2seq dedup` wrote and would be replaced; give another folder for the "
                    "output, or move the file away"
                )


def dedup(
    inputs: Sequence[str | Path],
    output: str | Path | None = None,
    *,
    near: float | None = None,
    **settings: Any,
) -> DedupReport:
    """Find crystals that are there more than once, in any cell, origin, orientation and order of atoms.

    Args:
        inputs: files, folders and archives, see :func:`~.sources.read_rows`; or one folder that ``prepare`` wrote.
        output: folder for ``duplicates.csv`` (all members of all groups), ``unique.csv`` (one row a distinct crystal),
            both also as parquet, and for raw crystals ``prepared/`` with the sequences, from which a killed run
            continues.
        near: join near-duplicates, too: tolerance in angstrom, see :func:`~.duplicates.near_groups`.
        settings: of :func:`~.prepare.prepare`, such as ``num_proc`` and ``symprec``.

    Raises:
        Mat2SeqError: as ``prepare``; ``near`` is not positive; a prepared folder is not complete, or comes with other
            inputs or with settings, which it has already; or the output is a prepared folder, or
            has files of others with the names of ours.

    Example:
        >>> dedup(["cifs/"], "deduplicated", near=0.05)  # doctest: +SKIP
        DedupReport(read=5000, distinct=4991, duplicates=9, rejected=0, groups=[['mp-1', 'mp-7'], ...])
    """
    if near is not None and not 0 < near <= 1:
        raise Mat2SeqError(f"near is a tolerance of 0 to 1 angstrom, not {near!r}")
    prepared = [str(path) for path in inputs if is_prepared(path)]
    if prepared and (len(inputs) > 1 or settings):
        raise Mat2SeqError(
            f"{prepared[0]} holds sequences, not crystals: give it alone, without {', '.join(settings) or 'others'}; "
            "or give the files it was prepared from"
        )
    check_whole(prepared)
    if output is not None and is_prepared(output):
        raise Mat2SeqError(
            f"{output} holds a prepared corpus, whose duplicates.parquet would be replaced: give another folder for "
            "the output"
        )
    if output is not None:
        _refuse_foreign_files(Path(output))
    place = tempfile.TemporaryDirectory() if output is None else nullcontext(str(output))
    with place as name:
        folder = Path(name)
        source = Path(prepared[0]) if prepared else folder / "prepared"
        if not prepared:
            prepare_rows(input_rows(inputs, folder), source, **settings)
        rejected = pq.read_metadata(source / "rejected.parquet").num_rows
        table = duplicate_groups(source, near)
        first = table.column("group").to_numpy()
        sizes = np.bincount(first, minlength=len(first))
        repeated = sizes[first] > 1
        members = table.filter(pa.array(repeated))
        if output is not None:
            folder.mkdir(parents=True, exist_ok=True)
            _write(members.sort_by("group"), folder / "duplicates")
            _write(table.filter(pa.array(first == np.arange(len(first)))).drop_columns(["group"]), folder / "unique")
    groups: dict[int, list[str]] = {}
    for group, name in zip(first[repeated].tolist(), members.column("id").to_pylist(), strict=True):
        groups.setdefault(group, []).append(name)
    distinct = int((sizes > 0).sum())
    ranked = sorted(groups.values(), key=len, reverse=True)
    return DedupReport(len(first) + rejected, distinct, len(first) - distinct, rejected, ranked)
