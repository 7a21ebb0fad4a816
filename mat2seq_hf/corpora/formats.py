"""Rows of crystals from single files: CIF, POSCAR, JSON, extended XYZ, tables and ASE databases.

A reader takes an open file and a label, yields one :class:`InputRow` a crystal, and never stops at a bad one: what
cannot be read is a row with a ``problem``. Nothing in a file is executed, imported or unpickled.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..cell import read_cell
from ..errors import CrystalError, Mat2SeqError
from .csv_reading import MAX_TEXT, csv_records, text_lines
from .texts import json_text

__all__ = [
    "ID_COLUMNS",
    "READERS",
    "InputRow",
    "cif_blocks",
    "database_rows",
    "group_rows",
    "plain_name",
    "reader_of",
    "stem_of",
    "table_rows",
]

#: Columns that name a row, the first of them that is there.
ID_COLUMNS = ("material_id", "id", "_id")
_STRUCTURE_COLUMNS = ("cif", "structure", "poscar")
_PLAIN_COLUMNS = ("lattice", "numbers", "frac_coords")
_MAX_WHOLE = 2**30  # bytes of a JSON file, and of a parquet file in an archive, which are read whole


@dataclass(frozen=True)
class InputRow:
    """One crystal of the input.

    Attributes:
        id: name; the file's where it has no other.
        text: CIF, POSCAR or JSON, see :func:`~.texts.crystal_of`.
        source: file and row.
        properties: JSON object of the numbers, strings and truth values that stand beside the crystal.
        problem: why the row could not be read; empty for most.
    """

    id: str
    text: str
    source: str
    properties: str = "{}"
    problem: str = ""

    def __post_init__(self) -> None:
        for name in ("id", "text", "source", "properties", "problem"):
            value: str = getattr(self, name)
            if not value.isascii():  # half a surrogate pair, as JSON can hold, is no UTF-8 and fits into no file
                object.__setattr__(self, name, value.encode("utf-8", "replace").decode())


def _problem(label: str, error: Exception | str) -> InputRow:
    said = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return InputRow(stem_of(label), "", label, problem=said)


def plain_name(label: str) -> str:
    """Name of a file without folders and without ``.gz``, in the letters it is written in."""
    name = PurePosixPath(label).name
    return name[:-3] if name.lower().endswith(".gz") else name


def stem_of(label: str) -> str:
    """Name of a file without folders and suffixes: ``"a/mp-1.cif.gz"`` gives ``"mp-1"``."""
    return PurePosixPath(plain_name(label)).stem


def _bytes(stream: BinaryIO, limit: int) -> bytes:
    data = stream.read(limit + 1)
    if len(data) > limit:
        raise Mat2SeqError(f"the file is larger than {limit // 2**20} MiB")
    return data


def _text(stream: BinaryIO, limit: int = MAX_TEXT) -> str:
    return _bytes(stream, limit).decode("utf-8-sig", errors="replace")


def _scalars(row: Mapping[str, Any]) -> str:
    """JSON of the columns that are numbers, strings or truth values; without index columns and missing values."""
    kept = {
        name: value
        for name, value in sorted(row.items())
        if isinstance(value, (str, int, float))
        and not (isinstance(value, float) and not math.isfinite(value))
        and name
        and not name.startswith(("Unnamed: ", "__index_level_"))
    }
    return json.dumps(kept)


def cif_blocks(text: str) -> list[tuple[str, str]]:
    """Name and text of each data block of a CIF that holds a crystal; one pair with the whole text if it is just one.

    Lines within text fields (between lines that start with ``;``) start no block.
    """
    if text.count("_cell_length_a") < 2:
        return [("", text)]
    blocks: list[tuple[str, list[str]]] = []
    within = False
    for line in text.splitlines(keepends=True):
        within ^= line.startswith(";")
        if not within and line[:5].lower() == "data_":
            blocks.append((line[5:].split()[0] if line[5:].split() else str(len(blocks)), []))
        if blocks:
            blocks[-1][1].append(line)
    crystals = [(name, "".join(lines)) for name, lines in blocks]
    crystals = [(name, block) for name, block in crystals if "_cell_length_a" in block and "_atom_site_" in block]
    return crystals if len(crystals) > 1 else [("", text)]


def _cif_rows(stream: BinaryIO, label: str) -> Iterator[InputRow]:
    for name, block in cif_blocks(_text(stream)):
        if name:
            yield InputRow(f"{stem_of(label)}:{name}", block, f"{label}:{name}")
        else:
            yield InputRow(stem_of(label), block, label)


def _poscar_rows(stream: BinaryIO, label: str) -> Iterator[InputRow]:
    yield InputRow(stem_of(label), _text(stream), label)


def _document_row(data: Any, name: str, source: str) -> InputRow:
    """A row from a JSON document: a structure itself, or one with ``structure`` or ``cif`` and other entries."""
    if not isinstance(data, dict):
        return InputRow(name, "", source, problem=f"a JSON {type(data).__name__} where an object is expected")
    row = dict(data)
    for key in ID_COLUMNS:
        if isinstance(row.get(key), (str, int)):
            name = str(row.pop(key))
            break
    for key in _STRUCTURE_COLUMNS:
        if isinstance(crystal := row.pop(key, None), (str, dict)):
            return InputRow(name, crystal if isinstance(crystal, str) else json.dumps(crystal), source, _scalars(row))
    return InputRow(name, json.dumps(data), source)


def _is_frame(data: Mapping[str, Any]) -> bool:
    return isinstance(data.get("data"), list) and isinstance(data.get("columns"), list)


def _json_rows(stream: BinaryIO, label: str) -> Iterator[InputRow]:
    data = json.loads(_text(stream, _MAX_WHOLE))
    if isinstance(data, dict) and isinstance(data.get("ids"), list) and "nextid" in data:
        yield from _ase_json_rows(data, label)
    elif isinstance(data, dict) and _is_frame(data):  # a pandas table, as Matbench publishes
        names = data.get("index") or range(len(data["data"]))
        for number, (name, values) in enumerate(zip(names, data["data"], strict=False)):
            entry = dict(zip(map(str, data["columns"]), values, strict=False)) if isinstance(values, list) else values
            yield _document_row(entry, str(name), f"{label}:{number}")
    elif isinstance(data, dict) and data and not ({"lattice", *_STRUCTURE_COLUMNS} & data.keys()):
        for number, (name, entry) in enumerate(data.items()):
            yield _document_row(entry, name, f"{label}:{number}")
    elif isinstance(data, list):
        for number, entry in enumerate(data):
            yield _document_row(entry, str(number), f"{label}:{number}")
    else:
        yield _document_row(data, stem_of(label), label)


def _json_lines(stream: BinaryIO, label: str) -> Iterator[InputRow]:
    for number, line in enumerate(text_lines(stream)):
        if not line.strip():
            continue
        source = f"{label}:{number}"
        try:
            yield _document_row(json.loads(line), str(number), source)
        except (ValueError, RecursionError) as error:
            yield replace(_problem(source, error), id=str(number))


def _atoms_row(atoms: Any, info: Mapping[str, Any], name: str, source: str) -> InputRow:
    named = next((str(info[key]) for key in ID_COLUMNS if isinstance(info.get(key), (str, int))), name)
    properties = {key: getattr(value, "item", lambda value=value: value)() if _is_scalar(value) else None
                  for key, value in info.items() if key not in ID_COLUMNS}  # fmt: skip
    try:
        read_cell(atoms)
    except CrystalError as error:
        return InputRow(named, "", source, _scalars(properties), f"{type(error).__name__}: {error}")
    text = json_text(atoms.cell.array, atoms.numbers, atoms.get_scaled_positions(wrap=False))
    return InputRow(named, text, source, _scalars(properties))


def _is_scalar(value: Any) -> bool:
    return getattr(value, "ndim", 0) == 0


def _need_ase() -> None:
    try:
        import ase  # noqa: F401
    except ImportError as error:
        raise Mat2SeqError("extended XYZ and ASE databases need ase: pip install 'mat2seq-hf[ase]'") from error


def _xyz_rows(stream: BinaryIO, label: str) -> Iterator[InputRow]:
    _need_ase()
    from ase.io import iread

    with io.TextIOWrapper(stream, "utf-8-sig", errors="replace") as text:
        frames = iread(text, index=":", format="extxyz")
        for number in itertools.count():
            source, name = f"{label}:{number}", f"{stem_of(label)}:{number}"
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    atoms = next(frames, None)
            except Exception as error:  # noqa: BLE001 - the parser raises nearly every type; the row says which
                yield replace(_problem(source, f"{error}; the rest of the file is not read"), id=name)
                return
            if atoms is None:
                return
            yield _atoms_row(atoms, atoms.info, name, source)


def _read_only(path: Path) -> None:
    """Raise unless the file is an ASE database: opening another one with ase would add tables to it."""
    import sqlite3

    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        connection.execute("SELECT id FROM systems LIMIT 1")
    except sqlite3.Error as error:
        raise Mat2SeqError(f"it is no ASE database in SQLite ({error})") from error
    finally:
        connection.close()


def database_rows(path: Path, label: str) -> Iterator[InputRow]:
    """Rows of an ASE database (SQLite); its key-value pairs become properties."""
    _need_ase()
    from ase import Atoms
    from ase.db import connect

    _read_only(path)
    with connect(path, type="db", append=True) as database:
        for row in database.select():
            # plain arrays: toatoms() would make calculators and constraints whose classes the file names
            atoms = Atoms(row.numbers, positions=row.positions, cell=row.cell, pbc=row.pbc)
            yield _atoms_row(atoms, row.key_value_pairs, str(row.id), f"{label}:{row.id}")


def _array(value: Any) -> Any:
    """A list, or an array as ASE writes it to JSON: shape, type, numbers."""
    if isinstance(value, dict) and "__ndarray__" in value:
        shape, kind, numbers = value["__ndarray__"]
        return np.array(numbers, dtype={"int64": np.int64, "bool": np.bool_}.get(kind, np.float64)).reshape(shape)
    return np.array(value)


def _ase_json_rows(data: Mapping[str, Any], label: str) -> Iterator[InputRow]:
    """Rows of an ASE database written as JSON."""
    _need_ase()
    from ase import Atoms

    for name in map(str, data["ids"]):
        source = f"{label}:{name}"
        try:
            entry = data[name]
            cell = (
                entry["cell"]["array"]
                if isinstance(entry["cell"], dict) and "array" in entry["cell"]
                else entry["cell"]
            )
            pbc = _array(entry.get("pbc", True))
            atoms = Atoms(_array(entry["numbers"]), positions=_array(entry["positions"]), cell=_array(cell), pbc=pbc)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            yield replace(_problem(source, error), id=name)
            continue
        yield _atoms_row(atoms, entry.get("key_value_pairs", {}), name, source)


def _table_row(row: dict[str, Any], label: str, number: int, structure: str | None) -> InputRow:
    id_column = next((name for name in ID_COLUMNS if name in row), None)
    name = str(row.pop(id_column) if id_column else number)
    source = f"{label}:{number}"
    if structure is None:
        crystal: Any = {column: row.pop(column, None) for column in _PLAIN_COLUMNS}
        row.pop("text", None)
    else:
        crystal = row.pop(structure, None)
    try:
        if isinstance(crystal, dict):  # plain columns (JSON in a CSV), or pymatgen's dict
            crystal = json.dumps({key: json.loads(value) if isinstance(value, str) and key in _PLAIN_COLUMNS else value
                                  for key, value in crystal.items() if key != "text"})  # fmt: skip
    except ValueError as error:
        return InputRow(name, "", source, _scalars(row), f"{type(error).__name__}: {error}")
    return InputRow(name, crystal or "", source, _scalars(row))


def _structure_column(names: list[str], label: str) -> str | None:
    for name in _STRUCTURE_COLUMNS:
        if name in names:
            return name
    if set(_PLAIN_COLUMNS) <= set(names):
        return None
    raise Mat2SeqError(
        f"{label} has no column 'cif', 'structure' or 'poscar', nor lattice, numbers and frac_coords; "
        f"its columns are {', '.join(names)}"
    )


def table_rows(batch: pa.RecordBatch | pa.Table, label: str, first: int = 0) -> Iterator[InputRow]:
    """Rows of an Arrow table with a structure column; ``first`` is the number of its first row in the file."""
    structure = _structure_column(batch.schema.names, label)
    for number, row in enumerate(batch.to_pylist(), start=first):
        yield _table_row(row, label, number, structure)


def group_rows(path: Path, label: str, group: int, first: int) -> Iterator[InputRow]:
    """Rows of one row group of a parquet file."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1000, row_groups=[group]):
            yield from table_rows(batch, label, first)
            first += len(batch)


def _parquet_rows(stream: BinaryIO, label: str) -> Iterator[InputRow]:
    yield from table_rows(pq.read_table(io.BytesIO(_bytes(stream, _MAX_WHOLE))), label)


def _csv_rows(stream: BinaryIO, label: str) -> Iterator[InputRow]:
    names, rows = csv_records(stream, (*_STRUCTURE_COLUMNS, *ID_COLUMNS, *_PLAIN_COLUMNS))
    structure = _structure_column(names, label)
    for number, row in enumerate(rows):
        if isinstance(row, str):
            yield replace(_problem(f"{label}:{number}", row), id=str(number))
        else:
            yield _table_row(row, label, number, structure)


_Reader = Callable[[BinaryIO, str], Iterator[InputRow]]

#: Reader of each suffix, of a file that is open for reading bytes.
READERS: dict[str, _Reader] = {
    **dict.fromkeys((".cif", ".mcif"), _cif_rows),
    **dict.fromkeys((".vasp", ".poscar"), _poscar_rows),
    ".json": _json_rows,
    **dict.fromkeys((".jsonl", ".ndjson"), _json_lines),
    **dict.fromkeys((".xyz", ".extxyz"), _xyz_rows),
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}


def reader_of(name: str) -> _Reader | None:
    """The reader of a file by its name, with or without ``.gz``; None where it is of no known kind."""
    name = plain_name(name)
    if name.upper().startswith(("POSCAR", "CONTCAR")):
        return _poscar_rows
    return READERS.get(PurePosixPath(name).suffix.lower())
