"""Reading what users give: pymatgen structures, ase atoms, CIF and POSCAR text; and refusing what is no crystal."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cif_reading import MAX_SITES, read_plain_cif, without_half_pairs
from .cif_symmetry import check_metric, is_magnetic, stated_group, unknown_group, with_operations
from .elements import ATOMIC_NUMBERS, SYMBOL_OF
from .errors import CrystalError
from .reduction import Cell

__all__ = [
    "OVERLAP_DISTANCE",
    "VALID_DISTANCE",
    "check_distances",
    "has_nearer_atoms",
    "is_atoms",
    "is_cif",
    "minimal_distance",
    "read_cell",
]

#: Atoms nearer to each other than this (angstrom) are one atom entered twice, or disorder.
OVERLAP_DISTANCE = 0.25
#: A generated crystal is valid only if no two atoms are nearer to each other than this (angstrom), as in CDVAE.
VALID_DISTANCE = 0.5
# Off the short decimals, where the last bit of a float would decide.
_LIMIT = OVERLAP_DISTANCE + math.sqrt(2.0) * 1e-6

_MAX_FRACTION = 1e6
_MAX_VECTOR = 1e5  # angstrom; above it floats no longer tell atoms apart, and reduction takes for ever
_ZERO = re.compile(r"0*\.?0*(\(\d+\))?")  # an occupancy
_NEIGHBOURS = np.array([[i, j, k] for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)], dtype=np.float64)


def is_atoms(crystal: object) -> bool:
    """Whether an object is an ``ase.Atoms`` (or a subclass, such as pymatgen's MSONAtoms), without importing ase."""
    return any(base.__name__ == "Atoms" and base.__module__.startswith("ase") for base in type(crystal).__mro__)


def is_cif(text: str) -> bool:
    """Whether a text is a CIF (it names a cell length)."""
    return "_cell_length_a" in text or "_cell_length_a" in text.lower()  # tags may be written in capitals


def _build(lattice: Any, positions: Any, symbols: list[str]) -> Cell:
    lattice = np.array(lattice, dtype=np.float64).reshape(3, 3)
    positions = np.array(positions, dtype=np.float64).reshape(-1, 3)
    if not len(symbols):
        raise CrystalError("the crystal has no atoms; give a cell with at least one site")
    if len(symbols) > MAX_SITES:
        raise CrystalError(f"the cell has {len(symbols)} sites, at most {MAX_SITES} are read; give a smaller cell")
    if not np.isfinite(lattice).all():
        raise CrystalError(f"the lattice has non-finite numbers: {lattice.tolist()}; mend the cell vectors")
    unknown = next((index for index, symbol in enumerate(symbols) if symbol not in ATOMIC_NUMBERS), None)
    if unknown is not None:
        raise CrystalError(
            f"site {unknown} ({symbols[unknown]}): {symbols[unknown]!r} is not a chemical element; "
            "replace it by one of the 118 symbols"
        )
    if not np.abs(positions).max() <= _MAX_FRACTION:
        index = int((~(np.abs(positions) <= _MAX_FRACTION)).any(axis=1).argmax())
        place, position = f"site {index} ({symbols[index]})", positions[index].tolist()
        if not np.isfinite(position).all():
            raise CrystalError(f"{place}: non-finite coordinates {position}; mend or remove the site")
        raise CrystalError(f"{place}: coordinates {position} lie more than {_MAX_FRACTION:g} cells away")
    if np.abs(lattice).max() > _MAX_VECTOR:
        raise CrystalError(f"the cell vectors {lattice.tolist()} are longer than {_MAX_VECTOR:g} angstrom; mend them")
    lengths = np.linalg.norm(lattice, axis=1)
    volume = float(np.linalg.det(lattice))
    if abs(volume) < 1e-9 * max(float(np.prod(lengths)), 1e-300) or lengths.min() < 1e-3:
        raise CrystalError(
            f"the lattice spans no volume ({abs(volume):.3g} cubic angstrom, vectors {lattice.tolist()}); "
            "a crystal needs three independent cell vectors"
        )
    numbers = np.array([ATOMIC_NUMBERS[symbol] for symbol in symbols], dtype=np.int64)
    if volume < 0:  # the same points in space, in a right-handed basis
        lattice, positions = -lattice, -positions
    return Cell(lattice, positions - np.floor(positions), numbers, np.arange(len(symbols)))


def _from_structure(structure: Any) -> Cell:
    if not all(structure.lattice.pbc):
        raise CrystalError(f"the lattice is periodic along {structure.lattice.pbc} only; a crystal needs all three")
    symbols = []
    for index, site in enumerate(structure):
        species = list(site.species.items())
        if len(species) != 1 or abs(species[0][1] - 1.0) > 1e-8:
            raise CrystalError(
                f"site {index} ({site.species_string}) is disordered; order the structure first, "
                "for instance with pymatgen's OrderDisorderedStructureTransformation"
            )
        symbol = getattr(species[0][0], "symbol", str(species[0][0]))
        symbols.append("H" if symbol in ("D", "T") else symbol)
    return _build(structure.lattice.matrix, structure.frac_coords, symbols)


def _from_atoms(atoms: Any) -> Cell:
    if not all(atoms.pbc):
        raise CrystalError(f"the atoms are periodic along {list(map(bool, atoms.pbc))} only; set atoms.pbc = True")
    if abs(atoms.cell.volume) < 1e-12:
        raise CrystalError("the atoms have no cell of finite volume; set atoms.cell to three independent vectors")
    symbols = [SYMBOL_OF.get(int(number), f"Z={number}") for number in atoms.numbers]
    return _build(atoms.cell.array, atoms.get_scaled_positions(wrap=False), symbols)


def _from_arrays(crystal: tuple[Any, ...]) -> Cell:
    if len(crystal) != 3:
        raise CrystalError(f"a tuple of {len(crystal)} is no crystal; give (lattice, positions, numbers)")
    lattice, positions = _floats("lattice", crystal[0]), _floats("positions", crystal[1])
    try:
        symbols = [_symbol(number) for number in crystal[2]]
    except (TypeError, ValueError) as error:
        raise CrystalError(f"the third of a tuple are atomic numbers such as 56, not {crystal[2]!r}") from error
    if lattice.shape != (3, 3) or positions.shape != (len(symbols), 3):
        raise CrystalError(
            f"lattice {lattice.shape}, positions {positions.shape} and {len(symbols)} numbers do not belong "
            "together; shapes (3, 3), (n, 3) and (n,) do"
        )
    return _build(lattice, positions, symbols)


def _floats(name: str, values: Any) -> NDArray[np.float64]:
    """An array of real numbers: numpy alone takes text and truth values for numbers, and drops imaginary parts."""
    try:
        array = np.asarray(values)
        if array.dtype.kind in "iufO":
            return array.astype(np.float64)
    except (TypeError, ValueError):  # rows of different lengths, or something that is no number
        pass
    raise CrystalError(f"the {name} of a tuple are rows of three real numbers each, not {values!r}")


def _symbol(number: Any) -> str:
    value = number.item() if hasattr(number, "item") else number
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole:
        raise TypeError(f"{number!r} is no whole number")
    return SYMBOL_OF.get(int(value), f"Z={number}")


def _from_text(text: str) -> Cell:
    text = without_half_pairs(text.removeprefix("\ufeff"))  # a byte order mark
    kind = "CIF" if is_cif(text) else "POSCAR"
    if kind == "POSCAR" and (line := text.strip()) and line.isprintable():
        raise CrystalError(
            f"one line is neither CIF nor POSCAR text: {line[:60]!r}. If it is a path, give the text of that "
            "file; a canonical text is read by CanonicalCrystal.from_text"
        )
    if kind == "CIF" and (plain := read_plain_cif(text)) is not None:
        return _build(*plain)
    from pymatgen.io.cif import CifParser
    from pymatgen.io.vasp.inputs import Poscar

    listed = with_operations(text) if kind == "CIF" else text
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both parsers warn about rounding and defaults that are checked here
        try:
            if kind == "CIF":
                parser = CifParser.from_str(listed)
                structures = parser.parse_structures(primitive=False, check_occu=True)
                structure = structures[0]
                blocks = [block for block in parser.as_dict().values() if "_atom_site_label" in block]
            else:
                poscar = Poscar.from_str(text)
                structure = poscar.structure
        except Exception as error:  # the parsers raise nearly every type on broken text
            start = " ".join(text.split())[:60]
            raise CrystalError(
                f"the text is no crystal: read as {kind} it fails with {type(error).__name__}: {error}; "
                f"it starts with {start!r}. Give CIF text, POSCAR text or a structure"
            ) from error
    cell = _from_structure(structure)
    if kind == "POSCAR":
        if not poscar.true_names:  # the parser would call them H, He, Li
            raise CrystalError("the POSCAR names no elements; write them in the line above the counts")
        _check_counts(text)
        return cell
    if len(structures) > 1:
        raise CrystalError(f"the CIF holds {len(structures)} structures; give the data blocks one by one")
    if not any(map(is_magnetic, blocks)):
        check_metric(np.array([operation.rotation_matrix for operation in parser.symmetry_operations]), cell.lattice)
    defaulted = any("Defaulting to P1" in warning for warning in getattr(parser, "warnings", ()))
    for block in blocks:
        if defaulted or not is_magnetic(block):
            _check_group(block)
    if len(blocks) == 1:
        _check_sites(blocks[0], structure)
        _check_formula(blocks[0].get("_chemical_formula_sum"), structure)
    return cell


def _check_group(block: Any) -> None:
    """Refuse a CIF that states a group without operations: pymatgen takes it for P1, or guesses the setting."""
    group, listed = stated_group({tag: _column(block, tag) for tag in block})
    if group and not listed:
        unknown_group(group)


def _check_sites(block: Any, structure: Any) -> None:
    """Refuse a CIF with sites that pymatgen drops, such as those labelled OH or Wat."""
    labels, occupancies = (_column(block, f"_atom_site_{name}") for name in ("label", "occupancy"))
    occupied = {label for label, value in zip_longest(labels, occupancies) if not _ZERO.fullmatch(value or "1")}
    lost = sorted(occupied - set(structure.labels))
    if lost:
        raise CrystalError(
            f"the CIF's sites {', '.join(lost)} are not atoms that can be read; name the element of each in "
            "_atom_site_type_symbol and give it coordinates, or remove them"
        )


def _check_counts(text: str) -> None:
    """Refuse a POSCAR with fewer counts than elements, of which pymatgen leaves the last out."""
    symbols, counts = (re.split("[!#]", line)[0].split() for line in text.splitlines()[5:7])
    if not symbols[0].isdecimal() and counts and counts[0].isdecimal() and len(counts) < len(symbols):
        raise CrystalError(f"the POSCAR names the elements {' '.join(symbols)} but counts only {' '.join(counts)}")


def _column(block: Any, tag: str) -> list[str]:
    values = block.get(tag, [])
    return [str(value) for value in values] if isinstance(values, list) else [str(values)]


def _check_formula(formula: Any, structure: Any) -> None:
    """Refuse a CIF whose sites are not what its formula says: one cut off within the sites reads without complaint."""
    from pymatgen.core import Composition

    try:
        stated = Composition(formula).get_el_amt_dict()
    except Exception:  # noqa: BLE001 - no formula, or one that cannot be read: nothing to compare with
        return
    found = structure.composition.get_el_amt_dict()
    ratios = [found.get(element, 0.0) / amount for element, amount in stated.items() if amount]
    if not ratios:
        return
    if not found.keys() <= stated.keys() or max(ratios) > 1.01 * min(ratios):
        raise CrystalError(
            f"the sites of the CIF add up to {structure.composition.formula}, but its formula says {formula}; "
            "the file is cut off or lacks atoms: complete it, or mend its _chemical_formula_sum"
        )


def read_cell(crystal: Any) -> Cell:
    """A right-handed :class:`Cell` with checked elements, coordinates and lattice.

    Args:
        crystal: pymatgen ``Structure``, ``ase.Atoms``, CIF text, POSCAR text, or a tuple as spglib takes it: lattice
            (rows, angstrom, shape (3, 3)), fractional coordinates (n, 3), atomic numbers (n,). Oxidation states,
            isotopes, site properties and magnetic moments are left aside.

    Raises:
        CrystalError: partial occupancy, no or flat lattice, non-finite numbers, unknown element, no atoms, a text
            that is neither CIF nor POSCAR, or an object of another type.
    """
    if isinstance(crystal, Cell):
        return crystal
    if isinstance(crystal, str):
        return _from_text(crystal)
    if is_atoms(crystal):
        return _from_atoms(crystal)
    if isinstance(crystal, tuple):
        return _from_arrays(crystal)
    if hasattr(crystal, "lattice") and hasattr(crystal, "frac_coords"):
        return _from_structure(crystal)
    remedy = "give a pymatgen Structure, ase Atoms, CIF text, POSCAR text or a tuple (lattice, positions, numbers)"
    if isinstance(crystal, PathLike):
        remedy = "give the text of the file, path.read_text()"
    elif hasattr(crystal, "to_structure"):
        remedy = "it has methods canonical() and to_structure()"
    elif isinstance(crystal, Iterable) and not isinstance(crystal, Mapping):
        remedy += "; several crystals are taken one by one, and by the tokenizer as a list"
    raise CrystalError(f"{type(crystal).__module__}.{type(crystal).__qualname__} is no periodic crystal; {remedy}")


def minimal_distance(lattice: NDArray[np.float64], positions: NDArray[np.float64]) -> tuple[float, int, int]:
    """Shortest distance (angstrom) between two atoms, images included, and their indices; reduced lattice."""
    differences = positions[:, None, :] - positions[None, :, :]
    differences -= np.rint(differences)
    best = (np.inf, 0, 0)
    for neighbour in _NEIGHBOURS:
        squares = (((differences + neighbour) @ lattice) ** 2).sum(axis=2)
        if not neighbour.any():
            np.fill_diagonal(squares, np.inf)
        index = int(squares.argmin())
        if squares.flat[index] < best[0]:
            best = (float(squares.flat[index]), index // len(positions), index % len(positions))
    return float(np.sqrt(best[0])), best[1], best[2]


def has_nearer_atoms(cell: Cell, distance: float) -> bool:
    """Whether two atoms are nearer to each other than ``distance`` (angstrom); the basis must be reduced.

    A vector shorter than half the distance of the lattice planes along each axis has fractions below 1/2, so that the
    images nearest by fractions tell; only flatter cells need all neighbours.
    """
    if np.linalg.norm(np.linalg.inv(cell.lattice), axis=0).max() * distance > 0.5:
        return minimal_distance(cell.lattice, cell.positions)[0] < distance
    differences = cell.positions[:, None, :] - cell.positions
    differences -= np.rint(differences)
    near = ((differences @ cell.lattice) ** 2).sum(axis=2) < distance**2
    return int(np.count_nonzero(near)) > len(cell)  # each atom is near itself


def check_distances(cell: Cell) -> None:
    """Raise :class:`CrystalError` where atoms are nearer than :data:`OVERLAP_DISTANCE`; the basis must be reduced."""
    if has_nearer_atoms(cell, _LIMIT):
        distance, first, second = minimal_distance(cell.lattice, cell.positions)
        names = [f"site {cell.labels[i]} ({SYMBOL_OF[int(cell.numbers[i])]})" for i in (first, second)]
        raise CrystalError(
            f"{names[0]} and {names[1]} overlap: {distance:.4f} angstrom apart, less than {OVERLAP_DISTANCE}; "
            "remove one of them, or order the structure if this is disorder"
        )
