"""From what users name (files, folders, archives) to a stream of rows, in an order that never changes."""

from __future__ import annotations

import gzip
import logging
import sqlite3
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import Mat2SeqError
from .formats import InputRow, database_rows, group_rows, reader_of

__all__ = ["Unit", "list_units", "read_rows", "short_names", "unit_rows"]

logger = logging.getLogger(__name__)

_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
#: What broken files raise when they are opened or read.
_BROKEN = (
    *(OSError, EOFError, ValueError, RecursionError, NotImplementedError),
    *(pa.ArrowException, tarfile.TarError, zipfile.BadZipFile, zlib.error, sqlite3.Error),
)


@dataclass(frozen=True)
class Unit:
    """A part of the input that is read in one go: a file, or one row group of a parquet file.

    Attributes:
        path: where it is.
        label: how rows name it: the file's name, with as many folders as tell it from the others.
        group: row group of a parquet file, else -1.
        first: number of the unit's first row in the file.
        strict: raise what is wrong with the file as a whole, else give it as a row with a problem.
    """

    path: str
    label: str
    group: int = -1
    first: int = 0
    strict: bool = False


def _is_known(name: str) -> bool:
    return name.endswith((".db", *_ARCHIVES)) or reader_of(name) is not None


def short_names(paths: Sequence[Path]) -> list[str]:
    """The shortest endings of the paths that tell them apart."""
    every = {path.absolute().parts for path in paths}
    labels = {}
    for parts in every:
        counts = range(1, len(parts))
        enough = (count for count in counts if sum(other[-count:] == parts[-count:] for other in every) == 1)
        labels[parts] = "/".join(parts[-next(enough, len(parts)) :])
    return [labels[path.absolute().parts] for path in paths]


def _units_of(path: Path, label: str, strict: bool) -> Iterator[Unit]:
    if path.suffix != ".parquet":
        yield Unit(str(path), label, strict=strict)
        return
    try:
        metadata = pq.read_metadata(path)
    except (OSError, pa.ArrowException) as error:
        if strict:
            raise Mat2SeqError(f"{path} cannot be read as a table: {error}") from error
        yield Unit(str(path), label)  # reading it will say the same, in a row
        return
    first = 0
    for group in range(metadata.num_row_groups):
        yield Unit(str(path), label, group, first, strict)
        first += metadata.row_group(group).num_rows


def list_units(inputs: Sequence[str | Path]) -> list[Unit]:
    """The parts of files and folders, in the order given and, within a folder, of names.

    Folders are searched to the bottom; files of unknown kinds and hidden ones are left out there, which is logged.

    Raises:
        Mat2SeqError: a path does not exist, a file is of no known kind, or a table is broken.
    """
    paths = [Path(given) for given in inputs]
    units: list[Unit] = []
    skipped: Counter[str] = Counter()
    for path, label in zip(paths, short_names(paths), strict=True):
        if not path.exists():
            raise Mat2SeqError(f"{path} does not exist")
        if not path.is_dir():
            if not _is_known(path.name):
                raise Mat2SeqError(
                    f"{path.name} is no file of crystals; give CIF, POSCAR, extended XYZ, JSON, CSV, parquet, an ASE "
                    "database, or an archive of such files"
                )
            units += _units_of(path, label, strict=True)
            continue
        for file in sorted(entry for entry in path.rglob("*") if entry.is_file()):
            inside = file.relative_to(path)
            if any(part.startswith(".") for part in inside.parts):
                continue
            if _is_known(file.name):
                name = f"{label}/{inside.as_posix()}".encode("utf-8", "replace").decode()  # names can be any bytes
                units += _units_of(file, name, strict=False)
            else:
                skipped[file.suffix or file.name] += 1
    if skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in skipped.most_common(5))
        logger.warning("left out %d files that hold no crystals: %s", sum(skipped.values()), kinds)
    return units


def _opened(name: str, stream: BinaryIO) -> BinaryIO:
    return cast("BinaryIO", gzip.GzipFile(fileobj=stream)) if name.endswith(".gz") else stream


def _member_rows(name: str, stream: BinaryIO, label: str) -> Iterator[InputRow]:
    """Rows of a file in an archive; a broken one is a row with a problem."""
    reader = reader_of(name)
    assert reader is not None  # the caller has looked
    try:
        yield from reader(_opened(name, stream), f"{label}/{name}")
    except _BROKEN as error:
        yield InputRow(PurePosixPath(name).stem, "", f"{label}/{name}", problem=_said(error))


def _wanted(name: str) -> bool:
    parts = [part for part in PurePosixPath(name).parts if part != ".."]  # nothing is unpacked, so it leads nowhere
    return not any(part.startswith((".", "__MACOSX")) for part in parts) and reader_of(name) is not None


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, Mat2SeqError) else f"{type(error).__name__}: {error}"


def _zip_rows(path: Path, label: str) -> Iterator[InputRow]:
    with zipfile.ZipFile(path) as archive:
        for entry in sorted(archive.infolist(), key=lambda info: info.filename):
            if not entry.is_dir() and _wanted(entry.filename):
                try:
                    with archive.open(entry) as stream:
                        yield from _member_rows(entry.filename, cast("BinaryIO", stream), label)
                except (RuntimeError, *_BROKEN) as error:  # RuntimeError: encrypted
                    yield InputRow(entry.filename, "", f"{label}/{entry.filename}", problem=f"{error}")


def _tar_rows(path: Path, label: str) -> Iterator[InputRow]:
    # in the order of the archive: a compressed one can only be read from the front; nothing is unpacked to disk
    with tarfile.open(path, "r:*") as archive:
        for entry in archive:
            if entry.isfile() and _wanted(entry.name):
                stream = archive.extractfile(entry)
                assert stream is not None  # a regular file
                yield from _member_rows(entry.name, cast("BinaryIO", stream), label)


def _open_unit(unit: Unit) -> Iterator[InputRow]:
    path = Path(unit.path)
    if unit.group >= 0:
        yield from group_rows(path, unit.label, unit.group, unit.first)
    elif path.name.endswith(".zip"):
        yield from _zip_rows(path, unit.label)
    elif path.name.endswith(_ARCHIVES):
        yield from _tar_rows(path, unit.label)
    elif path.suffix == ".db":
        yield from database_rows(path, unit.label)
    else:
        reader = reader_of(path.name)
        assert reader is not None  # list_units has looked
        with path.open("rb") as stream:
            yield from reader(_opened(path.name, cast("BinaryIO", stream)), unit.label)


def unit_rows(unit: Unit) -> Iterator[InputRow]:
    """Rows of one unit.

    Raises:
        Mat2SeqError: the unit is strict and broken as a whole.
    """
    number = 0
    try:
        for row in _open_unit(unit):
            yield row
            number += 1
    except _BROKEN as error:
        said = _said(error)
        if unit.strict and number == 0:
            raise Mat2SeqError(f"{unit.path} cannot be read: {said}") from error
        where = f"{unit.label}:{number}" if number else unit.label
        rest = "; the rest of the file is not read" if number else ""
        yield InputRow(PurePosixPath(unit.label).stem, "", where, problem=f"{said}{rest}")


def read_rows(inputs: Sequence[str | Path]) -> Iterator[InputRow]:
    """Crystals of files, folders and archives, one row each, in the order of names.

    CIF (each data block with a crystal), POSCAR and CONTCAR, extended XYZ (each frame), JSON and JSON lines (pymatgen's
    ``as_dict``, documents with ``structure``, lists and tables of them), CSV and parquet with a column ``cif``,
    ``structure`` or ``poscar`` or with ``lattice``, ``numbers`` and ``frac_coords``, ASE databases; each also with
    ``.gz``, and in zip and tar archives. ``material_id`` or ``id`` names a row; other scalar columns become properties.

    Raises:
        Mat2SeqError: a path does not exist, is of no known kind, or cannot be read as a whole.

    Example:
        >>> rows = list(read_rows(["mp_20/val.parquet", "my_cifs/"]))  # doctest: +SKIP
    """
    for unit in list_units(inputs):
        yield from unit_rows(unit)
