"""Reading what users give: pymatgen structures, ase atoms, CIF and POSCAR text; and refusing what is no crystal."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .elements import ATOMIC_NUMBERS, SYMBOL_OF
from .errors import CrystalError
from .reduction import Cell

__all__ = ["MIN_DISTANCE", "check_distances", "is_atoms", "is_cif", "read_cell"]

#: Atoms nearer to each other than this (angstrom) are one atom entered twice, or disorder.
MIN_DISTANCE = 0.25

_MAX_FRACTION = 1e6
_NEIGHBOURS = np.array([[i, j, k] for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)], dtype=np.float64)


def is_atoms(crystal: object) -> bool:
    """Whether an object is an ``ase.Atoms`` (or a subclass, such as pymatgen's MSONAtoms), without importing ase."""
    return any(base.__name__ == "Atoms" and base.__module__.startswith("ase") for base in type(crystal).__mro__)


def is_cif(text: str) -> bool:
    """Whether a text is a CIF (it names a cell length)."""
    return "_cell_length_a" in text


def _build(lattice: Any, positions: Any, symbols: list[str]) -> Cell:
    lattice = np.array(lattice, dtype=np.float64).reshape(3, 3)
    positions = np.array(positions, dtype=np.float64).reshape(-1, 3)
    if not len(symbols):
        raise CrystalError("the crystal has no atoms; give a cell with at least one site")
    if not np.isfinite(lattice).all():
        raise CrystalError(f"the lattice has non-finite numbers: {lattice.tolist()}; mend the cell vectors")
    for index, (symbol, position) in enumerate(zip(symbols, positions, strict=True)):
        place = f"site {index} ({symbol})"
        if symbol not in ATOMIC_NUMBERS:
            raise CrystalError(f"{place}: {symbol!r} is not a chemical element; replace it by one of the 118 symbols")
        if not np.isfinite(position).all():
            raise CrystalError(f"{place}: non-finite coordinates {position.tolist()}; mend or remove the site")
        if np.abs(position).max() > _MAX_FRACTION:
            raise CrystalError(f"{place}: coordinates {position.tolist()} lie more than {_MAX_FRACTION:g} cells away")
    lengths = np.linalg.norm(lattice, axis=1)
    volume = float(np.linalg.det(lattice))
    if abs(volume) < 1e-6 * max(float(np.prod(lengths)), 1e-300) or lengths.min() < 1e-3:
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
        (first, occupancy), *others = site.species.items()
        if others or abs(occupancy - 1.0) > 1e-8:
            raise CrystalError(
                f"site {index} ({site.species_string}) is disordered; order the structure first, "
                "for instance with pymatgen's OrderDisorderedStructureTransformation"
            )
        symbol = getattr(first, "symbol", str(first))
        symbols.append("H" if symbol in ("D", "T") else symbol)
    return _build(structure.lattice.matrix, structure.frac_coords, symbols)


def _from_atoms(atoms: Any) -> Cell:
    if not all(atoms.pbc):
        raise CrystalError(f"the atoms are periodic along {list(map(bool, atoms.pbc))} only; set atoms.pbc = True")
    if abs(atoms.cell.volume) < 1e-12:
        raise CrystalError("the atoms have no cell of finite volume; set atoms.cell to three independent vectors")
    symbols = [SYMBOL_OF.get(int(number), f"Z={number}") for number in atoms.numbers]
    return _build(atoms.cell.array, atoms.get_scaled_positions(wrap=False), symbols)


def _from_text(text: str) -> Cell:
    from pymatgen.io.cif import CifParser
    from pymatgen.io.vasp.inputs import Poscar

    kind = "CIF" if is_cif(text) else "POSCAR"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both parsers warn about rounding and defaults that are checked here
        try:
            if kind == "CIF":
                structure = CifParser.from_str(text).parse_structures(primitive=False, check_occu=True)[0]
            else:
                structure = Poscar.from_str(text).structure
        except Exception as error:  # the parsers raise nearly every type on broken text
            start = " ".join(text.split())[:60]
            raise CrystalError(
                f"the text is no crystal: read as {kind} it fails with {type(error).__name__}: {error}; "
                f"it starts with {start!r}. Give CIF text, POSCAR text or a structure"
            ) from error
    return _from_structure(structure)


def read_cell(crystal: Any) -> Cell:
    """A right-handed :class:`Cell` with checked elements, coordinates and lattice.

    Args:
        crystal: pymatgen ``Structure``, ``ase.Atoms``, CIF text or POSCAR text. Oxidation states, isotopes, site
            properties and magnetic moments are left aside.

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
    if hasattr(crystal, "lattice") and hasattr(crystal, "frac_coords"):
        return _from_structure(crystal)
    raise CrystalError(
        f"{type(crystal).__module__}.{type(crystal).__qualname__} is no periodic crystal; "
        "give a pymatgen Structure, ase Atoms, CIF text or POSCAR text"
    )


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


def check_distances(cell: Cell) -> None:
    """Raise :class:`CrystalError` where two atoms are nearer than :data:`MIN_DISTANCE`; the basis must be reduced."""
    distance, first, second = minimal_distance(cell.lattice, cell.positions)
    if distance < MIN_DISTANCE:
        names = [f"site {cell.labels[i]} ({SYMBOL_OF[int(cell.numbers[i])]})" for i in (first, second)]
        raise CrystalError(
            f"{names[0]} and {names[1]} overlap: {distance:.4f} angstrom apart, less than {MIN_DISTANCE}; "
            "remove one of them, or order the structure if this is disorder"
        )
