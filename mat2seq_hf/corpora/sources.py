"""From what users name (files, folders, archives) to a stream of rows, in an order that never changes."""

from __future__ import annotations

import gzip
import logging
import sqlite3
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import Mat2SeqError
from .formats import InputRow, database_rows, group_rows, reader_of, stem_of
from .schema import METADATA_KEY

__all__ = [
    "BROKEN",
    "Unit",
    "archive_files",
    "folder_files",
    "is_archive",
    "list_units",
    "open_file",
    "read_rows",
    "said",
    "short_names",
    "unit_rows",
    "warn_left_out",
]

logger = logging.getLogger(__name__)

_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
#: What broken files raise when they are opened or read; RuntimeError: an encrypted one.
BROKEN = (
    *(RuntimeError, OSError, EOFError, ValueError, NotImplementedError),
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


def is_archive(name: str) -> bool:
    """Whether a name is that of a zip or tar archive."""
    return name.lower().endswith(_ARCHIVES)


def _is_database(name: str) -> bool:
    return name.lower().endswith(".db")


def _is_known(name: str) -> bool:
    return _is_database(name) or is_archive(name) or reader_of(name) is not None


def _is_visible(name: str) -> bool:
    """Whether a file is one that its owner knows of; others are hidden ones and what a Mac adds to archives."""
    parts = [part for part in PurePosixPath(name).parts if part != ".."]  # nothing is unpacked, so it leads nowhere
    return not any(part.startswith((".", "__MACOSX")) for part in parts)


def warn_left_out(names: Sequence[str], place: str = "") -> None:
    """Say how many files of which kinds were left out."""
    if names:
        skipped = Counter(PurePosixPath(name).suffix or PurePosixPath(name).name for name in names)
        kinds = ", ".join(f"{count} {kind}" for kind, count in skipped.most_common(5))
        logger.warning("left out %d files that hold no crystals%s: %s", len(names), place and f" in {place}", kinds)


def folder_files(path: Path) -> list[Path]:
    """The files of a folder and of all folders in it, but hidden ones, in the order of names."""
    files = sorted(entry for entry in path.rglob("*") if entry.is_file())
    return [file for file in files if _is_visible(file.relative_to(path).as_posix())]


def archive_files(path: Path) -> Iterator[tuple[str, Callable[[], BinaryIO]]]:
    """Name of each file of an archive but hidden ones, and a function that opens it; nothing is unpacked to disk.

    A zip archive in the order of names; a tar archive in its own, because a compressed one can only be read from the
    front: each file has to be read before the next is asked for.
    """
    if path.name.lower().endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            for entry in sorted(archive.infolist(), key=lambda info: info.filename):
                if not entry.is_dir() and _is_visible(entry.filename):
                    yield entry.filename, partial(_zip_member, archive, entry)
        return
    with tarfile.open(path, "r:*") as tar:
        for member in tar:
            if member.isfile() and _is_visible(member.name):
                yield member.name, partial(_tar_member, tar, member)


def _zip_member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> BinaryIO:
    return _unpacked(entry.filename, cast("BinaryIO", archive.open(entry)))


def _tar_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> BinaryIO:
    return _unpacked(member.name, cast("BinaryIO", tar.extractfile(member)))  # a regular file: it is never None


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
    if path.suffix.lower() != ".parquet":
        yield Unit(str(path), label, strict=strict)
        return
    try:
        metadata = pq.read_metadata(path)
    except (OSError, pa.ArrowException) as error:
        if strict:
            raise Mat2SeqError(f"{path} cannot be read as a table: {error}") from error
        yield Unit(str(path), label)  # reading it will say the same, in a row
        return
    if METADATA_KEY in (metadata.metadata or {}):
        raise Mat2SeqError(
            f"{path} is a shard that `mat2seq prepare` wrote: it holds sequences, not crystals; give the files it was "
            "prepared from, or its folder where a prepared corpus is asked for"
        )
    first = 0
    for group in range(metadata.num_row_groups):
        yield Unit(str(path), label, group, first, strict)
        first += metadata.row_group(group).num_rows


def list_units(inputs: Sequence[str | Path]) -> list[Unit]:
    """The parts of files and folders, in the order given and, within a folder, of names.

    Folders are searched to the bottom; files of unknown kinds and hidden ones are left out there, which is logged.

    Raises:
        Mat2SeqError: a path does not exist, a file is of no known kind or a shard of a prepared corpus, or a table
            is broken.
    """
    paths = [Path(given) for given in inputs]
    units: list[Unit] = []
    skipped: list[str] = []
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
        for file in folder_files(path):
            if _is_known(file.name):
                inside = file.relative_to(path).as_posix()
                name = f"{label}/{inside}".encode("utf-8", "replace").decode()  # names can be any bytes
                units += _units_of(file, name, strict=False)
            else:
                skipped.append(file.name)
    warn_left_out(skipped)
    return units


def open_file(path: Path) -> BinaryIO:
    """The file, open for reading bytes, unpacked where its name ends in ``.gz``."""
    return cast("BinaryIO", gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb"))


def _unpacked(name: str, stream: BinaryIO) -> BinaryIO:
    return cast("BinaryIO", gzip.GzipFile(fileobj=stream)) if name.lower().endswith(".gz") else stream


def said(error: Exception) -> str:
    """What is wrong with a broken file, in one line."""
    return str(error) if isinstance(error, Mat2SeqError) else f"{type(error).__name__}: {error}"


def _archive_rows(path: Path, label: str) -> Iterator[InputRow]:
    """Rows of the files in an archive; a broken file is a row with a problem."""
    skipped = []
    for name, open_member in archive_files(path):
        reader = reader_of(name)
        if reader is None:
            skipped.append(name)
            continue
        try:
            with open_member() as stream:
                yield from reader(stream, f"{label}/{name}")
        except BROKEN as error:
            yield InputRow(stem_of(name), "", f"{label}/{name}", problem=said(error))
    warn_left_out(skipped, label)


def _open_unit(unit: Unit) -> Iterator[InputRow]:
    path = Path(unit.path)
    if unit.group >= 0:
        yield from group_rows(path, unit.label, unit.group, unit.first)
    elif is_archive(path.name):
        yield from _archive_rows(path, unit.label)
    elif _is_database(path.name):
        yield from database_rows(path, unit.label)
    else:
        reader = reader_of(path.name)
        assert reader is not None  # list_units has looked
        with open_file(path) as stream:
            yield from reader(stream, unit.label)


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
    except BROKEN as error:
        problem = said(error)
        if unit.strict and number == 0:
            raise Mat2SeqError(f"{unit.path} cannot be read: {problem}") from error
        where = f"{unit.label}:{number}" if number else unit.label
        rest = "; the rest of the file is not read" if number else ""
        yield InputRow(stem_of(unit.label), "", where, problem=f"{problem}{rest}")


def read_rows(inputs: Sequence[str | Path]) -> Iterator[InputRow]:
    """Crystals of files, folders and archives, one row each, in the order of names.

    CIF (each data block with a crystal), POSCAR and CONTCAR, extended XYZ (each frame), JSON and JSON lines (pymatgen's
    ``as_dict``, documents with ``structure``, lists and tables of them), CSV and parquet with a column ``cif``,
    ``structure`` or ``poscar`` or with ``lattice``, ``numbers`` and ``frac_coords``, ASE databases; each also with
    ``.gz``, and in zip and tar archives, but for databases: SQLite reads files on disk alone. ``material_id`` or ``id``
    names a row; other scalar columns become properties.

    Raises:
        Mat2SeqError: a path does not exist, is of no known kind, or cannot be read as a whole.

    Example:
        >>> rows = list(read_rows(["mp_20/val.parquet", "my_cifs/"]))  # doctest: +SKIP
    """
    for unit in list_units(inputs):
        yield from unit_rows(unit)
