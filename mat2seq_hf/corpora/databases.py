"""What ase reads: frames of extended XYZ, and its databases in SQLite and JSON; plain arrays, none of its classes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..cell import read_cell
from ..errors import CrystalError, Mat2SeqError
from .csv_reading import MAX_TEXT, text_lines
from .rows import ID_COLUMNS, InputRow, problem_row, scalars, stem_of
from .texts import json_text

__all__ = ["database_rows", "json_database_rows", "xyz_rows"]

_RESULTS = ("energy", "free_energy", "magmom")  # of a calculation: the scalars that ase keeps apart


def _need_ase() -> None:
    try:
        import ase  # noqa: F401
    except ImportError as error:
        raise Mat2SeqError("extended XYZ and ASE databases need ase: pip install 'mat2seq-hf[ase]'") from error


def _is_scalar(value: Any) -> bool:
    return getattr(value, "ndim", 0) == 0


def _atoms_row(atoms: Any, info: Any, name: str, source: str, results: Mapping[str, Any]) -> InputRow:
    """A row of ``atoms``; its properties are the scalars of ``info`` and, where these have none, of ``results``."""
    info = info if isinstance(info, Mapping) else {}
    named = next((str(info[key]) for key in ID_COLUMNS if isinstance(info.get(key), (str, int))), name)
    properties = {key: getattr(value, "item", lambda value=value: value)() if _is_scalar(value) else None
                  for key, value in {**results, **info}.items() if key not in ID_COLUMNS}  # fmt: skip
    try:
        read_cell(atoms)
    except CrystalError as error:
        return InputRow(named, "", source, scalars(properties), f"{type(error).__name__}: {error}")
    text = json_text(atoms.cell.array, atoms.numbers, atoms.get_scaled_positions(wrap=False))
    return InputRow(named, text, source, scalars(properties))


def _frames(lines: Iterator[str]) -> Iterator[str]:
    """The text of each frame: a number of atoms, a comment, the atoms, and cell vectors where lines start with VEC.

    Raises:
        Mat2SeqError: a frame does not start with a number, is longer than a crystal may be, or is cut off.
    """
    line = next(lines, "")
    while line:
        if not line.strip():
            line = next(lines, "")
            continue
        if not line.strip().isdecimal():
            raise Mat2SeqError(f"a number of atoms is expected, not {line.strip()[:60]!r}")
        frame, size, count = [line], 0, int(line)
        for read in range(count + 1):
            frame.append(next(lines, ""))
            size += len(frame[-1])
            if not frame[-1]:
                raise Mat2SeqError(
                    f"the file ends within a frame of {count} atoms, of which {max(read - 1, 0)} are there"
                )
            if size > MAX_TEXT:
                raise Mat2SeqError(f"a frame is longer than {MAX_TEXT // 2**20} MiB")
        while (line := next(lines, "")).lstrip().startswith("VEC"):
            frame.append(line)
        yield "".join(frame)


def xyz_rows(stream: BinaryIO, label: str) -> Iterator[InputRow]:
    """Rows of the frames of an extended XYZ file; ``energy`` and other scalar results become properties, too.

    Raises:
        Mat2SeqError: ase is not installed, or the file ends within a frame or goes on with something else.
    """
    _need_ase()
    from ase.io.extxyz import read_xyz

    for number, frame in enumerate(_frames(text_lines(stream, newline=None))):
        source, name = f"{label}:{number}", f"{stem_of(label)}:{number}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                atoms = next(iter(read_xyz(io.StringIO(frame), index=slice(0, 1))))
            results = {} if atoms.calc is None else atoms.calc.results
            row = _atoms_row(atoms, atoms.info, name, source, results)
        except Exception as error:  # noqa: BLE001 - the parser raises nearly every type; the row says which
            row = replace(problem_row(source, error), id=name)
        yield row


def _ids(path: Path) -> list[int]:
    """The rows of an ASE database, read without ase, which would add tables to another one.

    Raises:
        Mat2SeqError: the file is no ASE database.
    """
    import sqlite3

    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        return [number for (number,) in connection.execute("SELECT id FROM systems ORDER BY id")]
    except sqlite3.Error as error:
        raise Mat2SeqError(f"it is no ASE database in SQLite ({error})") from error
    finally:
        connection.close()


def database_rows(path: Path, label: str) -> Iterator[InputRow]:
    """Rows of an ASE database (SQLite); its key-value pairs and scalar results become properties.

    Raises:
        Mat2SeqError: ase is not installed, or the file is no such database.
    """
    _need_ase()
    from ase import Atoms
    from ase.db import connect

    ids = _ids(path)
    with connect(path, type="db", append=True) as database:
        for number in ids:
            name, source = str(number), f"{label}:{number}"
            try:
                row = database.get(id=number)
                # plain arrays: toatoms() would make calculators and constraints whose classes the file names
                atoms = Atoms(row.numbers, positions=row.positions, cell=row.cell, pbc=row.pbc)
                results = {key: row.get(key) for key in _RESULTS}
                found = _atoms_row(atoms, row.key_value_pairs, name, source, results)
            except Exception as error:  # noqa: BLE001 - ase and numpy raise nearly every type on nonsense
                found = replace(problem_row(source, error), id=name)
            yield found


def _array(value: Any) -> Any:
    """A list, or an array as ASE writes it to JSON: shape, type, numbers."""
    if isinstance(value, dict) and "__ndarray__" in value:
        shape, kind, numbers = value["__ndarray__"]
        return np.array(numbers, dtype={"int64": np.int64, "bool": np.bool_}.get(kind, np.float64)).reshape(shape)
    return np.array(value)


def json_database_rows(data: Mapping[str, Any], label: str) -> Iterator[InputRow]:
    """Rows of an ASE database written as JSON.

    Raises:
        Mat2SeqError: ase is not installed.
    """
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
            results = {key: entry.get(key) for key in _RESULTS}
            row = _atoms_row(atoms, entry.get("key_value_pairs"), name, source, results)
        except Exception as error:  # noqa: BLE001 - ase and numpy raise nearly every type on nonsense
            row = replace(problem_row(source, error), id=name)
        yield row
