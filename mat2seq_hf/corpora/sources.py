"""From what users name (files, folders, archives) to a stream of rows, in an order that never changes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from ..errors import Mat2SeqError
from .archives import archive_files, folder_files, is_archive, open_file, warn_left_out, warn_unread
from .databases import database_rows
from .formats import group_rows, reader_of
from .rows import SAMPLE_COLUMNS, InputRow, cut, stem_of
from .schema import METADATA_KEY

__all__ = [
    "Unit",
    "broken_row",
    "is_known",
    "list_units",
    "named_folders",
    "read_rows",
    "said",
    "shards_of",
    "short_names",
    "unit_rows",
]

logger = logging.getLogger(__name__)

_SHARD_BYTES = 2**21
_SHARD_FILES = 128


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


def _is_database(name: str) -> bool:
    return name.lower().endswith(".db")


def is_known(name: str) -> bool:
    """Whether a name is that of a file that can hold crystals."""
    return _is_database(name) or is_archive(name) or reader_of(name) is not None


def short_names(paths: Sequence[Path]) -> list[str]:
    """The shortest endings of the paths that tell them apart."""
    left = {path.absolute().parts for path in paths}
    labels: dict[tuple[str, ...], str] = {}
    count = 1
    while left:
        same = Counter(parts[-count:] for parts in left)  # a path that has a label differs in fewer parts already
        done = {parts for parts in left if same[parts[-count:]] == 1 or count >= len(parts)}
        labels |= {parts: "/".join(parts[-count:]) for parts in done}
        left -= done
        count += 1
    return [labels[path.absolute().parts] for path in paths]


def named_folders(folders: Sequence[str | Path]) -> dict[str, Path]:
    """Folders that are compared, each by the shortest name that tells it from the others.

    Raises:
        Mat2SeqError: two of them are the same.
    """
    paths = [Path(folder) for folder in folders]
    seen: dict[Path, Path] = {}
    for path in paths:
        if (other := seen.setdefault(path.resolve(), path)) is not path:
            same = f"{path} is named twice" if other == path else f"{other} and {path} are the same folder"
            raise Mat2SeqError(f"{same}: give each corpus that is compared once")
    return dict(zip(short_names(paths), paths, strict=True))


def _units_of(path: Path, label: str, strict: bool) -> Iterator[Unit]:
    if path.suffix.lower() != ".parquet":
        yield Unit(str(path), label, strict=strict)
        return
    try:
        metadata = pq.read_metadata(path)
    except Exception as error:  # a broken file: the libraries that read them raise nearly every type
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


def _without(files: list[Path], folder: Path, output: Path | None) -> list[Path]:
    """The files of a folder that are not in ``output``, which an earlier run has written.

    Raises:
        Mat2SeqError: both are the same folder.
    """
    if output is None or not output.resolve().is_relative_to(folder.resolve()):
        return files
    inside = output.resolve().relative_to(folder.resolve())
    if not inside.parts:
        raise Mat2SeqError(f"{folder} is input and output: give another folder for the output")
    return [file for file in files if not file.relative_to(folder).is_relative_to(inside)]


def _is_samples(file: Path) -> bool:
    """Whether a file is the table of all samples that sampling at scale writes."""
    if file.name != "samples.parquet":
        return False
    try:
        return {*SAMPLE_COLUMNS, "cif"} <= {*pq.read_schema(file).names}
    except Exception:  # noqa: BLE001 - a broken file; reading it says so
        return False


def _without_copies(files: list[Path]) -> list[Path]:
    """The files without those that stand beside a table of samples: its parts and CIFs are the same samples."""
    folders = {file.parent: file for file in files if _is_samples(file)}
    if not folders:
        return files
    copies: Counter[Path] = Counter()
    kept = []
    for file in files:
        table = next((folders[folder] for folder in file.parents if folder in folders), file)
        if table == file:
            kept.append(file)
        else:
            copies[table] += 1
    for table, count in copies.items():
        logger.warning("took the samples of %s; left out %d files beside it, which are of the same run", table, count)
    return kept


def _refuse_within(file: Path, output: Path | None) -> None:
    """Refuse a file that stands where a run puts its own.

    Raises:
        Mat2SeqError: the file is in the output folder, or in a folder of shards in it.
    """
    place = file.resolve().parent
    if output is None or not place.is_relative_to(output.resolve()):
        return
    if {*place.relative_to(output.resolve()).parts} <= {"all", "prepared", "rejected"}:
        raise Mat2SeqError(f"{file} is input and lies in the output folder {output}: give another folder")


def _files(path: Path, output: Path | None) -> list[Path]:
    """The files of a folder, or the file itself.

    Raises:
        Mat2SeqError: a file is of no known kind, or the path is the output or a file in it.
    """
    if path.is_dir():
        return _without_copies(_without(folder_files(path), path, output))
    if not is_known(path.name):
        raise Mat2SeqError(
            f"{path.name} is no file of crystals; give CIF, POSCAR, extended XYZ, JSON, CSV, parquet, an ASE "
            "database, or an archive of such files"
        )
    _refuse_within(path, output)
    return [path]


def list_units(inputs: Sequence[str | Path], output: Path | None = None) -> list[Unit]:
    """The parts of files and folders, in the order given and, within a folder, of names.

    Folders are searched to the bottom; files of unknown kinds and hidden ones are left out there, which is logged. Of a
    folder that sampling at scale wrote, samples.parquet is taken alone. A file that is named twice is taken once.

    Args:
        inputs: files, folders and archives.
        output: a folder that is left out where it lies within an input.

    Raises:
        Mat2SeqError: a path does not exist, a file is of no known kind or a shard of a prepared corpus, a table is
            broken, or an input is the output or a file in it.
    """
    paths = [Path(given) for given in inputs]
    units: list[Unit] = []
    skipped: list[str] = []
    again: list[str] = []
    seen: set[Path] = set()
    for path, label in zip(paths, short_names(paths), strict=True):
        if not path.exists():
            raise Mat2SeqError(f"{path} does not exist")
        folder = path if path.is_dir() else path.parent
        place = folder.resolve()
        for file in _files(path, output):
            inside = file.relative_to(folder)
            if place / inside in seen:
                again.append(str(file))
            elif not is_known(file.name):
                skipped.append(file.name)
            elif file == path:
                units += _units_of(path, label, strict=True)
            else:
                name = f"{label}/{inside.as_posix()}".encode("utf-8", "replace").decode()  # names can be any bytes
                units += _units_of(file, name, strict=False)
            seen.add(place / inside)
    warn_left_out(skipped)
    warn_unread(again, "files, which are named twice and read once,", "the inputs")
    return units


def shards_of(units: Sequence[Unit]) -> list[list[Unit]]:
    """The units in lists that are worth a process, a warning and a file of their own: small neighbours are together."""
    shards: list[list[Unit]] = []
    filled = 1.0
    for unit in units:
        path = Path(unit.path)
        large = unit.group >= 0 or is_archive(path.name)
        share = 1.0 if large else max(path.stat().st_size / _SHARD_BYTES, 1 / _SHARD_FILES)
        if filled + share > 1:
            shards.append([])
            filled = 0.0
        shards[-1].append(unit)
        filled += share
    return shards


def said(error: Exception) -> str:
    """What is wrong with a broken file, in one line."""
    return cut(str(error) if isinstance(error, Mat2SeqError) else f"{type(error).__name__}: {error}")


def _archive_rows(path: Path, label: str) -> Iterator[InputRow]:
    """Rows of the files in an archive; a broken file is a row with a problem."""
    skipped: list[str] = []
    packed: list[str] = []
    for name, open_member in archive_files(path):
        reader = reader_of(name)
        if reader is None:
            (packed if is_known(name) else skipped).append(name)
            continue
        try:
            with open_member() as stream:
                yield from reader(stream, f"{label}/{name}")
        except Exception as error:  # noqa: BLE001 - a broken file; the row says what it is
            yield InputRow(stem_of(name), "", f"{label}/{name}", problem=said(error))
    warn_left_out(skipped, label)
    warn_unread(packed, "archives and databases, which are read when they are unpacked first,", label)


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


def broken_row(unit: Unit, number: int, error: Exception) -> InputRow:
    """A row in place of what is left of a unit after ``number`` rows.

    Raises:
        Mat2SeqError: the unit is strict and broken as a whole.
    """
    problem = said(error)
    if unit.strict and number == 0:
        raise Mat2SeqError(f"{unit.path} cannot be read: {problem}") from error
    where = f"{unit.label}:{unit.first + number}" if number else unit.label
    rest = "; the rest of the file is not read" if number else ""
    return InputRow(stem_of(unit.label), "", where, problem=f"{problem}{rest}")


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
    except Exception as error:  # noqa: BLE001 - a broken file, as above
        yield broken_row(unit, number, error)


def read_rows(inputs: Sequence[str | Path], output: Path | None = None) -> Iterator[InputRow]:
    """Crystals of files, folders and archives, one row each, in the order of names.

    CIF (each data block with a crystal), POSCAR and CONTCAR, extended XYZ (each frame), JSON and JSON lines (pymatgen's
    ``as_dict``, documents with ``structure``, lists and tables of them), CSV and parquet with a column ``cif``,
    ``structure`` or ``poscar`` or with ``lattice``, ``numbers`` and ``frac_coords``, ASE databases; each also with
    ``.gz``, and in zip and tar archives, but for databases: SQLite reads files on disk alone. ``material_id`` or ``id``
    names a row, ``prompt_id`` and ``sample_index`` name a sample; other scalar columns become properties.

    Args:
        inputs: the paths.
        output: a folder that is left out where it lies within an input.

    Raises:
        Mat2SeqError: as :func:`list_units`, or a file that is named cannot be read as a whole.

    Example:
        >>> rows = list(read_rows(["mp_20/val.parquet", "my_cifs/"]))  # doctest: +SKIP
    """
    for unit in list_units(inputs, output):
        yield from unit_rows(unit)
