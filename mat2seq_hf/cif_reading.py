"""Reading plain CIFs fast, with gemmi.

Whatever is not plain (several structures, disorder, magnetism, unusual symbols or operations, coinciding sites, a
formula that the sites contradict) is left to pymatgen, so that both together read what pymatgen alone reads.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .elements import ATOMIC_NUMBERS
from .errors import DecodeError
from .lattice import lattice_vectors

try:
    import gemmi as _gemmi
except ImportError:  # code loaded from a Hub repo reads CIFs with pymatgen alone, slower
    gemmi: Any = None
else:
    gemmi = _gemmi

__all__ = ["read_plain_cif"]

Floats = NDArray[np.float64]

# What pymatgen does with CIFs: coordinates this near to 1/3 and 2/3 (relative) are meant to be these, images of a
# site this near to each other (fractions) are one atom.
_THIRDS = 1e-4
_SAME = 1e-4

_CELL = tuple(
    f"_cell_{name}" for name in ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
)
_OPERATIONS = ("_symmetry_equiv_pos_as_xyz", "_space_group_symop_operation_xyz")
_SPECIAL = re.compile(r"^_(atom_site_(moment|attached_hydrogens|disorder)|.*magn)", re.IGNORECASE)
_LABEL = re.compile(r"([A-Z][a-z]?)\d*")
_OPERATION = re.compile(r"[xyzXYZ+\-, ]*(?:\d/(?:2|3|4|6|8|12)[xyzXYZ+\-, ]*)*")
_AMOUNT = re.compile(r"([A-Z][a-z]?)(\d*\.?\d*)")


def read_plain_cif(text: str) -> tuple[Floats, Floats, list[str]] | None:
    """Lattice (rows, angstrom), fractional coordinates (n, 3) and symbols of a plain CIF; None for any other text."""
    if gemmi is None:
        return None
    try:
        blocks = gemmi.cif.read_string(text)
    except (ValueError, RuntimeError):
        return None
    if len(blocks) != 1 or any(_SPECIAL.match(tag) for tag in _tags(blocks[0])):
        return None
    block = blocks[0]
    lattice, sites, operations = _lattice(block), _sites(block), _operations(block)
    if lattice is None or sites is None or operations is None:
        return None
    symbols, points = sites
    expanded = _expanded(points, *operations)
    if expanded is None:
        return None
    images, sizes = expanded
    symbols = [symbol for symbol, size in zip(symbols, sizes, strict=True) for _ in range(size)]
    if not _agrees(block.find_value("_chemical_formula_sum"), symbols):
        return None
    return lattice, images, symbols


def _tags(block: Any) -> list[str]:
    tags: list[str] = []
    for item in block:
        if item.pair is not None:
            tags.append(item.pair[0])
        elif item.loop is not None:
            tags += item.loop.tags
    return tags


def _lattice(block: Any) -> Floats | None:
    values = [gemmi.cif.as_number(block.find_value(tag) or "?") for tag in _CELL]
    if not np.isfinite(values).all() or min(values) <= 0:
        return None
    try:
        return lattice_vectors(tuple(values))
    except DecodeError:
        return None


def _sites(block: Any) -> tuple[list[str], Floats] | None:
    """Symbol and coordinates of each listed site, or None unless all are whole atoms of plain elements."""
    columns = block.find("_atom_site_", ["fract_x", "fract_y", "fract_z", "?type_symbol", "?label", "?occupancy"])
    if not len(columns) or not columns.has_column(4):
        return None
    name = 3 if columns.has_column(3) else 4
    symbols, points = [], []
    for row in columns:
        label = _LABEL.fullmatch(row.str(name))
        if label is None or label[1] not in ATOMIC_NUMBERS or (name == 3 and label[1] != row.str(3)):
            return None
        if columns.has_column(5) and gemmi.cif.as_number(row[5]) != 1.0:
            return None
        symbols.append(label[1])
        points.append([gemmi.cif.as_number(row[axis]) for axis in range(3)])
    coordinates = np.array(points)
    if not np.isfinite(coordinates).all():
        return None
    for third in (1 / 3, 2 / 3):
        coordinates[np.abs(coordinates / third - 1) <= _THIRDS] = third
    return symbols, coordinates


def _operations(block: Any) -> tuple[Floats, Floats] | None:
    """Rotations (g, 3, 3) and translations (g, 3), or None where they are not listed as plain fractions."""
    texts = next((list(column) for tag in _OPERATIONS if len(column := block.find_values(tag))), [])
    if not texts:
        return None
    rotations, translations = [], []
    for text in texts:
        triplet = gemmi.cif.as_string(text)
        if triplet.count(",") != 2 or not _OPERATION.fullmatch(triplet):
            return None
        try:
            operation = gemmi.Op(triplet)
        except (ValueError, RuntimeError):
            return None
        rotations.append(operation.rot)
        translations.append(operation.tran)
    matrices = np.array(rotations) / gemmi.Op.DEN
    if not np.isclose(np.abs(np.linalg.det(matrices)), 1.0).all():
        return None
    return matrices, np.array(translations) / gemmi.Op.DEN


def _expanded(points: Floats, rotations: Floats, translations: Floats) -> tuple[Floats, list[int]] | None:
    """All atoms and how many each site has, or None where sites coincide or images of one nearly do."""
    images, sizes = [], []
    for point in points:
        moved = rotations @ point + translations
        moved -= np.floor(moved)
        near = _near(moved, moved)
        kept = moved[~np.tril(near, -1).any(axis=1)]
        if (near.sum(axis=1) * len(kept) != len(moved)).any():
            return None
        images.append(kept)
        sizes.append(len(kept))
    atoms = np.concatenate(images)
    return None if np.count_nonzero(_near(atoms, atoms)) > len(atoms) else (atoms, sizes)


def _near(first: Floats, second: Floats) -> NDArray[np.bool_]:
    differences = first[:, None, :] - second
    differences -= np.rint(differences)
    return np.asarray((np.abs(differences) <= _SAME).all(axis=2))


def _agrees(formula: str | None, symbols: list[str]) -> bool:
    """Whether the atoms have the stated proportions, or nothing is stated."""
    words = gemmi.cif.as_string(formula).split() if formula else []
    if not words or words == ["?"]:
        return True
    amounts = [_AMOUNT.fullmatch(word) for word in words]
    stated = {amount[1]: float(amount[2] or 1) for amount in amounts if amount}
    found = Counter(symbols)
    if len(stated) != len(words) or found.keys() != stated.keys() or min(stated.values()) <= 0:
        return False
    ratios = [found[symbol] / stated[symbol] for symbol in stated]
    return max(ratios) <= 1.0001 * min(ratios)
