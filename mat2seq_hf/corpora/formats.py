"""Rows of crystals from single files: CIF, POSCAR, JSON and tables; extended XYZ and databases are in databases.py.

A reader takes an open file and a label, yields one :class:`InputRow` a crystal, and never stops at a bad one: what
cannot be read is a row with a ``problem``. Nothing in a file is executed, imported or unpickled.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import Mat2SeqError
from .csv_reading import MAX_TEXT, as_value, csv_records, text_lines
from .databases import json_database_rows, xyz_rows
from .rows import (
    ID_COLUMNS,
    SAMPLE_COLUMNS,
    InputRow,
    check_columns,
    is_property,
    plain_name,
    problem_row,
    scalars,
    stem_of,
)

__all__ = [
    "READERS",
    "cif_blocks",
    "crystal_text",
    "group_rows",
    "property_names",
    "reader_of",
    "table_rows",
]

_STRUCTURE_COLUMNS = ("cif", "structure", "poscar")
_PLAIN_COLUMNS = ("lattice", "numbers", "frac_coords")
_MAX_WHOLE = 2**30  # bytes of a JSON file, and of a parquet file in an archive, which are read whole
_MAX_VALUES = 2**27  # of a JSON file; each takes some 60 bytes of memory, whatever its text takes
_BATCH_BYTES = 2**27  # of rows of a parquet file that are read at once


def _bytes(stream: BinaryIO, limit: int, remedy: str = "") -> bytes:
    data = stream.read(limit + 1)
    if len(data) > limit:
        raise Mat2SeqError(f"the file is larger than {limit // 2**20} MiB{remedy}")
    return data


def _text(stream: BinaryIO, limit: int = MAX_TEXT, remedy: str = "") -> str:
    return _bytes(stream, limit, remedy).decode("utf-8-sig", errors="replace")


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
            return InputRow(name, crystal if isinstance(crystal, str) else json.dumps(crystal), source, scalars(row))
    # the scalars of pymatgen's dict belong to the structure, those beside plain columns do not
    plain = set(_PLAIN_COLUMNS) <= row.keys()
    others = {key: value for key, value in row.items() if plain and key not in (*_PLAIN_COLUMNS, "text")}
    return InputRow(name, json.dumps(data), source, scalars(others))


def _is_frame(data: Mapping[str, Any]) -> bool:
    return isinstance(data.get("data"), list) and isinstance(data.get("columns"), list)


def _json_rows(stream: BinaryIO, label: str) -> Iterator[InputRow]:
    remedy = "; write it as .jsonl, one crystal a line, which may be of any size"
    text = _text(stream, _MAX_WHOLE, remedy)
    if sum(text.count(mark) for mark in ",[{") > _MAX_VALUES:
        raise Mat2SeqError(f"the file holds more than {_MAX_VALUES} values{remedy}")
    data = json.loads(text)
    if isinstance(data, dict) and isinstance(data.get("ids"), list) and "nextid" in data:
        yield from json_database_rows(data, label)
    elif isinstance(data, dict) and _is_frame(data):  # a pandas table, as Matbench publishes
        check_columns(columns := [*map(str, data["columns"])])
        names = data.get("index")
        if not isinstance(names, list) or len(names) != len(data["data"]):  # rows that have no name have a number
            names = list(range(len(data["data"])))
        for number, (name, values) in enumerate(zip(names, data["data"], strict=True)):
            entry = dict(zip(columns, values, strict=False)) if isinstance(values, list) else values
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
            yield replace(problem_row(source, error), id=str(number))


def crystal_text(crystal: Any, keep_text: bool = False) -> str:
    """The text of what stands in the crystal's column: a text, or an object of plain columns or pymatgen's.

    Args:
        crystal: what stands there.
        keep_text: leave the source text among plain columns.

    Raises:
        TypeError, ValueError: it is neither.
    """
    if crystal is None or isinstance(crystal, str):
        return crystal or ""
    if isinstance(crystal, bytes):
        return crystal.decode("utf-8-sig", errors="replace")
    if not isinstance(crystal, dict):
        raise TypeError(f"a {type(crystal).__name__} where a crystal is expected")
    return json.dumps({key: json.loads(value) if isinstance(value, str) and key in _PLAIN_COLUMNS else value
                       for key, value in crystal.items() if keep_text or key != "text"})  # fmt: skip


def _sample_name(row: Mapping[str, Any]) -> str | None:
    """What the CIF of a sample is called, too; None where the row is no sample."""
    parts = [row.get(name) for name in SAMPLE_COLUMNS]
    return None if None in parts else "__".join(map(str, parts))


def _table_row(
    row: dict[str, Any],
    label: str,
    number: int,
    structure: str | None,
    written: Mapping[str, str] | None = None,
    keep_text: bool = False,
) -> InputRow:
    id_column = next((name for name in ID_COLUMNS if name in row), None)
    name = row.pop(id_column) if id_column else _sample_name(row)
    name, source = str(number if name is None else name), f"{label}:{number}"
    if structure is None:
        crystal: Any = {column: row.pop(column, None) for column in _PLAIN_COLUMNS}
        row.pop("text", None)
    else:
        crystal = row.pop(structure, None)
    try:
        text, problem = crystal_text(crystal, keep_text), ""
    except (TypeError, ValueError) as error:
        text, problem = "", f"{type(error).__name__}: {error}"
    return InputRow(name, text, source, scalars(row), problem, json.dumps(written) if written else "{}")


def _structure_column(names: Sequence[str], label: str) -> str | None:
    """The column with texts of crystals; None where plain columns make them.

    Raises:
        Mat2SeqError: there is neither, or two columns have one name.
    """
    check_columns(names)
    for name in _STRUCTURE_COLUMNS:
        if name in names:
            return name
    if set(_PLAIN_COLUMNS) <= set(names):
        return None
    raise Mat2SeqError(
        f"{label} has no column 'cif', 'structure' or 'poscar', nor lattice, numbers and frac_coords; "
        f"its columns are {', '.join(names)}"
    )


def property_names(names: Sequence[str], label: str) -> list[str]:
    """The columns of a table that become properties, where their values are scalars.

    Raises:
        Mat2SeqError: no column holds crystals, or two columns have one name.
    """
    structure = _structure_column(names, label)
    id_column = next((name for name in ID_COLUMNS if name in names), None)
    taken = {id_column, *([structure] if structure else [*_PLAIN_COLUMNS, "text"])}
    return [name for name in names if name not in taken and is_property(name)]


def _is_scalar(kind: pa.DataType) -> bool:
    kinds = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_dictionary)
    return any(check(kind) for check in (*kinds, pa.types.is_string, pa.types.is_large_string))


def table_rows(
    batch: pa.RecordBatch | pa.Table, label: str, first: int = 0, *, keep_text: bool = False
) -> Iterator[InputRow]:
    """Rows of an Arrow table with a structure column.

    Args:
        batch: the table.
        label: of the file.
        first: number of the table's first row in the file.
        keep_text: leave the source texts among plain columns.

    Raises:
        Mat2SeqError: no column holds crystals, or two columns have one name.
    """
    structure = _structure_column(batch.schema.names, label)
    needed = {*ID_COLUMNS, *([structure] if structure else _PLAIN_COLUMNS)}
    # others are no properties, and not all of their values exist in Python, such as the year 10000
    kept = [index for index, field in enumerate(batch.schema) if field.name in needed or _is_scalar(field.type)]
    for number, row in enumerate(batch.select(kept).to_pylist(), start=first):
        yield _table_row(row, label, number, structure, keep_text=keep_text)


def group_rows(path: Path | BinaryIO, label: str, group: int, first: int) -> Iterator[InputRow]:
    """Rows of one row group of a parquet file."""
    with pq.ParquetFile(path) as file:
        # each row can hold all of a group, once where the file names it by a number
        size = _BATCH_BYTES // max(file.metadata.row_group(group).total_byte_size, 1)
        for batch in file.iter_batches(batch_size=min(max(size, 1), 1000), row_groups=[group]):
            yield from table_rows(batch, label, first)
            first += len(batch)


def _parquet_rows(stream: BinaryIO, label: str) -> Iterator[InputRow]:
    data = _bytes(stream, _MAX_WHOLE)
    metadata, first = pq.read_metadata(io.BytesIO(data)), 0
    _structure_column(metadata.schema.to_arrow_schema().names, label)
    for group in range(metadata.num_row_groups):
        yield from group_rows(io.BytesIO(data), label, group, first)
        first += metadata.row_group(group).num_rows


def _csv_rows(stream: BinaryIO, label: str) -> Iterator[InputRow]:
    names, rows = csv_records(stream, texts=None)
    structure = _structure_column(names, label)
    texts = (*_STRUCTURE_COLUMNS, *ID_COLUMNS, *_PLAIN_COLUMNS)
    for number, row in enumerate(rows):
        if isinstance(row, str):
            yield replace(problem_row(f"{label}:{number}", row), id=str(number))
            continue
        values = {name: text if name in texts else as_value(text) for name, text in row.items()}
        written = {name: text for name, text in row.items() if is_property(name) and values[name] != text}
        yield _table_row(values, label, number, structure, written)


_Reader = Callable[[BinaryIO, str], Iterator[InputRow]]

#: Reader of each suffix, of a file that is open for reading bytes.
READERS: dict[str, _Reader] = {
    **dict.fromkeys((".cif", ".mcif"), _cif_rows),
    **dict.fromkeys((".vasp", ".poscar"), _poscar_rows),
    ".json": _json_rows,
    **dict.fromkeys((".jsonl", ".ndjson"), _json_lines),
    **dict.fromkeys((".xyz", ".extxyz"), xyz_rows),
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}


def reader_of(name: str) -> _Reader | None:
    """The reader of a file by its name, with or without ``.gz``; None where it is of no known kind."""
    name = plain_name(name)
    named = _poscar_rows if name.upper().startswith(("POSCAR", "CONTCAR")) else None
    return READERS.get(PurePosixPath(name).suffix.lower(), named)
