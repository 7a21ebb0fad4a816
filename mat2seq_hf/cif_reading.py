"""Reading plain CIFs fast, with gemmi.

Whatever is not plain (several structures, disorder, magnetism, unusual symbols or operations, coinciding sites, a
formula that the sites contradict) is left to pymatgen, with the operations from the same place (``cif_symmetry.py``).
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cif_symmetry import (
    CELL_TAGS,
    cif_lattice,
    cif_operations,
    cif_string,
    cif_tags,
    gemmi,
    is_magnetic,
    without_half_pairs,
)
from .elements import ATOMIC_NUMBERS
from .errors import CrystalError

__all__ = ["CELL_TAGS", "MAX_SITES", "gemmi", "read_plain_cif", "without_half_pairs"]

Floats = NDArray[np.float64]

# What pymatgen does with CIFs: coordinates this near to 1/3 and 2/3 (relative) are meant to be these, images of a
# site this near to each other (fractions) are one atom.
_THIRDS = 1e-4
_SAME = 1e-4
# Images of a site on a special position differ by this many units of the last decimal of its coordinates.
_LAST_DECIMALS = 2.0

#: Sites of a cell that are read: all pairs are compared, once for each translation; more would take minutes and
#: gigabytes.
MAX_SITES = 2000

_SPECIAL = re.compile(r"^_(atom_site_(moment|attached_hydrogens|disorder)|.*magn)", re.IGNORECASE)
# An element with its charge (Fe3+, Fe+3); in labels a number may stand in its place.
_TYPE = re.compile(r"([A-Z][a-z]?)([1-9]?[+-]|[+-][1-9])?")
_LABEL = re.compile(r"([A-Z][a-z]?)\d*[+-]?\d*")
_AMOUNT = re.compile(r"([A-Z][a-z]?)(\d*\.?\d*)")


def read_plain_cif(text: str) -> tuple[Floats, Floats, list[str]] | None:
    """Lattice (rows, angstrom), fractional coordinates (n, 3) and symbols of a plain CIF; None for any other text.

    Raises:
        CrystalError: the cell has more than :data:`MAX_SITES` sites, of whatever kind, or its operations are not to be
            had (see :func:`cif_operations`); pymatgen is not asked then.
    """
    if gemmi is None:
        return None
    try:
        blocks = gemmi.cif.read_string(without_half_pairs(text))
    except (ValueError, RuntimeError):
        return None
    plain = _plain(blocks[0]) if len(blocks) == 1 else None
    if plain is None:
        for block in blocks:
            _refuse_large(block)
    return plain


def _plain(block: Any) -> tuple[Floats, Floats, list[str]] | None:
    tags = cif_tags(block)
    if any(_SPECIAL.match(tag) and not all(map(gemmi.cif.is_null, block.find_values(tag))) for tag in tags):
        return None
    lattice, sites = cif_lattice(block), _sites(block)
    if lattice is None or sites is None or (operations := cif_operations(block, tags, lattice)) is None:
        return None
    symbols, points, same = sites
    expanded = _expanded(points, *operations, same)
    if expanded is None:
        return None
    images, sizes = expanded
    symbols = [symbol for symbol, size in zip(symbols, sizes, strict=True) for _ in range(size)]
    if not _agrees(cif_string(block, "_chemical_formula_sum"), symbols):
        return None
    return lattice, images, symbols


def _refuse_large(block: Any) -> None:
    columns = block.find("_atom_site_", ["fract_x", "fract_y", "fract_z"])
    points = np.array([[gemmi.cif.as_number(value) for value in row] for row in columns]).reshape(-1, 3)
    points = points[np.isfinite(points).all(axis=1)]
    if not len(points):
        return
    tags = cif_tags(block)
    found = None if is_magnetic(tags) else cif_operations(block, tags, cif_lattice(block))
    rotations, translations = found or (np.eye(3)[None], np.zeros((1, 3)))
    if len(points) * len(rotations) > MAX_SITES:
        # atoms that share a place are one site
        _, kept = np.unique(np.round((points - np.floor(points)) / _SAME), axis=0, return_index=True)
        total = 0
        for point in points[np.sort(kept)]:
            moved = rotations @ point + translations
            total += int(np.count_nonzero(~np.tril(_near(moved, moved, _SAME), -1).any(axis=1)))
            _check_sites(total)


def _check_sites(count: int) -> None:
    if count > MAX_SITES:
        raise CrystalError(f"the cell has at least {count} sites, at most {MAX_SITES} are read; give a smaller cell")


def _sites(block: Any) -> tuple[list[str], Floats, float] | None:
    """Symbol and coordinates of each listed site, and how near its images are one atom (fractions).

    None unless all are whole atoms of plain elements.
    """
    columns = block.find("_atom_site_", ["fract_x", "fract_y", "fract_z", "?type_symbol", "?label", "?occupancy"])
    if not len(columns) or not columns.has_column(4):
        return None
    name = 3 if columns.has_column(3) else 4
    symbols, points = [], []
    for row in columns:
        label = (_TYPE if name == 3 else _LABEL).fullmatch(row.str(name))
        if label is None or label[1] not in ATOMIC_NUMBERS:
            return None
        if columns.has_column(5) and not gemmi.cif.is_null(row[5]) and gemmi.cif.as_number(row[5]) != 1.0:
            return None
        symbols.append(label[1])
        points.append([gemmi.cif.as_number(row[axis]) for axis in range(3)])
    coordinates = np.array(points)
    if not np.isfinite(coordinates).all():
        return None
    decimals = max(len(row[axis].split("(")[0].partition(".")[2]) for row in columns for axis in range(3))
    same = max(_SAME, _LAST_DECIMALS * 10.0 ** -max(decimals, 2))
    for third in (1 / 3, 2 / 3):
        coordinates[np.abs(coordinates / third - 1) <= _THIRDS] = third
    return symbols, coordinates, same


def _expanded(points: Floats, rotations: Floats, translations: Floats, same: float) -> tuple[Floats, list[int]] | None:
    """All atoms and how many each site has, or None where sites coincide or it is unclear which images do.

    Args:
        same: fractions; images of a site as near as this are one atom. Those that differ by more than few-decimal
            thirds do are averaged, which puts the atom on its special position.

    Raises:
        CrystalError: there are too many.
    """
    images, sizes, total = [], [], 0
    for point in points:
        moved = rotations @ point + translations
        moved -= np.floor(moved)
        near = _near(moved, moved, _SAME)
        if same > _SAME and (wide := _near(moved, moved, same)).sum() > near.sum():
            differences = moved - moved[:, None]
            differences -= np.rint(differences)
            near, moved = wide, moved + (differences * wide[..., None]).sum(axis=1) / wide.sum(axis=1)[:, None]
            moved -= np.floor(moved)
        kept = moved[~np.tril(near, -1).any(axis=1)]
        if (near.sum(axis=1) * len(kept) != len(moved)).any():
            return None
        images.append(kept)
        sizes.append(len(kept))
        total += len(kept)
        _check_sites(total)  # before all pairs of them are compared
    atoms = np.concatenate(images)
    return None if np.count_nonzero(_near(atoms, atoms, _SAME)) > len(atoms) else (atoms, sizes)


def _near(first: Floats, second: Floats, same: float) -> NDArray[np.bool_]:
    near = np.ones((len(first), len(second)), dtype=bool)
    for one, other in zip(first.T, second.T, strict=True):  # axis by axis: numpy is slow along an axis of length 3
        differences = one[:, None] - other
        differences -= np.rint(differences)
        near &= np.abs(differences, out=differences) <= same
    return near


def _agrees(formula: str, symbols: list[str]) -> bool:
    """Whether the atoms have the stated proportions, or nothing is stated."""
    words = formula.split()
    if not words or words == ["?"]:
        return True
    amounts = [_AMOUNT.fullmatch(word) for word in words]
    stated = {amount[1]: float(amount[2] or 1) for amount in amounts if amount}
    found = Counter(symbols)
    if len(stated) != len(words) or found.keys() != stated.keys() or min(stated.values()) <= 0:
        return False
    ratios = [found[symbol] / stated[symbol] for symbol in stated]
    return max(ratios) <= 1.0001 * min(ratios)
