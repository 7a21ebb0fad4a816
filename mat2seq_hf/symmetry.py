"""From a cell to its symmetrised crystal in the ITA standard setting.

A detector (spglib or moyopy) only says which space group there is and where its axes and origin lie. Positions and
metric are then averaged over the whole group with its exact operations. The average is the same whichever atom the
detector started from and wherever within the tolerance it put the origin, which a detector's own idealised positions
are not.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# spglib's C code writes to stderr whenever a search fails; here a failed search is tried again at a smaller tolerance.
os.environ.setdefault("SPGLIB_WARNING", "OFF")

import moyopy
import spglib
from numpy.typing import NDArray

from .operations import (
    group_operations,
    points_per_primitive,
    primitive_basis,
    primitive_coordinates,
    primitive_operations,
)
from .reduction import Cell, minkowski_basis, primitive_cell
from .tables import ROWS

# It reports translations that the cell's basis lacks; here the next search takes care of those.
logging.getLogger("moyo").setLevel(logging.ERROR)

__all__ = ["DETECTORS", "StandardCrystal", "exact_crystal", "has_no_more_symmetry", "symmetrize"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# A detector's origin may be off by about its tolerance, and each of two atoms as well.
_REACH = 6.0
_SHRINK = 0.7
_ATTEMPTS = 20
# Where a search this much looser finds no more symmetry than is exact, none is looked for at symprec.
_LOOSER = 2.0
# Adding a short vector a to a long one, c, changes its length by a^2 / 2c. Where that is within the tolerance a sheared
# lattice passes for the lattice itself, and moyopy (0.21) can look for the end of such a group for ever.
_SHEAR = 0.5


@dataclass(frozen=True)
class StandardCrystal:
    """A crystal with exact symmetry in the conventional cell of the ITA standard setting.

    Attributes:
        number: space group, 1 to 230.
        metric: metric tensor of the conventional cell, square angstrom, shape (3, 3).
        points: one representative of each orbit, fractional coordinates, shape (k, 3).
        numbers: atomic number of each orbit, shape (k,).
        multiplicities: points of each orbit in the conventional cell, shape (k,).
        letters: index of each orbit's Wyckoff letter, shape (k,), where it is known already.
    """

    number: int
    metric: Floats
    points: Floats
    numbers: Integers
    multiplicities: Integers
    letters: Integers | None

    @property
    def n_atoms(self) -> int:
        """Atoms in the primitive cell."""
        return int(self.multiplicities.sum()) // points_per_primitive(self.number)


@dataclass(frozen=True)
class _Finding:
    """What a detector says of a primitive cell.

    Attributes:
        number: space group.
        basis: columns are the conventional vectors in the cell's basis, 3 x 3.
        origin: ``x_standard = basis^-1 @ (x - origin)``.
        orbits: for each atom the index of an equivalent one, the same for a whole orbit.
        tolerance: that was really used; detectors lower it where a search fails.
    """

    number: int
    basis: list[list[float]]
    origin: list[float]
    orbits: list[int]
    tolerance: float


@lru_cache(maxsize=230)
def _origin_change(number: int) -> Floats:
    """Shift s from the frame of spglib's default setting to the standard one, ``x_standard = x + s``.

    The two differ for the 24 groups with two origin choices; s is found by comparing their operations.
    """
    hall = next(hall for hall in range(1, 531) if spglib.get_spacegroup_type(hall).number == number)
    if hall == ROWS[number - 1][1]:
        return np.zeros(3)
    rotations, translations = group_operations(number)
    wanted = {(r.tobytes(), t.tobytes()) for r, t in zip(rotations, translations, strict=True)}
    database = spglib.get_symmetry_from_database(hall)
    origin_rotations = np.array(database["rotations"], dtype=np.int64)
    origin_translations = np.rint(np.array(database["translations"]) * 24).astype(np.int64)
    for shift in np.ndindex(8, 8, 8):
        step = 3 * np.array(shift, dtype=np.int64)
        moved = (origin_translations + step - origin_rotations @ step) % 24
        if all((r.tobytes(), t.tobytes()) in wanted for r, t in zip(origin_rotations, moved, strict=True)):
            return np.array(step / 24.0)
    raise AssertionError(f"no shift relates the origin choices of space group {number}")


def _ask_spglib(cell: Cell, tolerance: float) -> _Finding | None:
    dataset = spglib.get_symmetry_dataset((cell.lattice, cell.positions, cell.numbers), tolerance)
    if dataset is None:
        return None
    basis = np.linalg.inv(dataset.transformation_matrix)
    origin = -basis @ (dataset.origin_shift + _origin_change(dataset.number))
    orbits = dataset.crystallographic_orbits.tolist()
    return _Finding(dataset.number, basis.tolist(), origin.tolist(), orbits, tolerance)


def _may_shear(lattice: Floats, tolerance: float) -> bool:
    """Whether the longest reduced vector is as long within ``tolerance`` (angstrom) when the shortest one is added."""
    _, middle, longest = sorted(np.linalg.norm(lattice, axis=1).tolist())
    thinnest = abs(_determinant(lattice.tolist())) / (middle * longest)  # no lattice vector is shorter
    if tolerance * longest <= _SHEAR * thinnest**2:  # most cells
        return False
    shortest, _, longest = sorted(np.linalg.norm(minkowski_basis(lattice) @ lattice, axis=1).tolist())
    return bool(tolerance * longest > _SHEAR * shortest**2)


def _ask_moyopy(cell: Cell, tolerance: float) -> _Finding | None:
    if _may_shear(cell.lattice, tolerance):
        return _ask_spglib(cell, tolerance)
    crystal = moyopy.Cell(cell.lattice.tolist(), cell.positions.tolist(), cell.numbers.tolist())
    try:
        found = moyopy.MoyoDataset(crystal, symprec=tolerance, setting=moyopy.Setting.standard(), rotate_basis=False)
    except ValueError:  # no consistent group at this tolerance
        return None
    return _Finding(found.number, found.std_linear, found.std_origin_shift, found.orbits, found.symprec)


_Detector = Callable[[Cell, float], _Finding | None]

#: Who decides within the tolerance; both know the 230 groups and differ only in what they count as near enough.
DETECTORS: dict[str, _Detector] = {"spglib": _ask_spglib, "moyopy": _ask_moyopy}
# Where symmetry is exact all detectors agree, and the fastest one is asked.
_ask_fast = _ask_moyopy


def _determinant(rows: list[list[float]]) -> float:
    (a, b, c), (d, e, f), (g, h, i) = rows
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


@lru_cache(maxsize=230)
def _averaging(number: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Of a group's primitive operations: rotations, their inverses, translations; the average over metrics, (9, 9)."""
    rotations, translations = primitive_operations(number)
    inverses = np.rint(np.linalg.inv(rotations))
    _, first = np.unique(group_operations(number)[0].reshape(-1, 9), axis=0, return_index=True)
    conventional = group_operations(number)[0][np.sort(first)].astype(np.float64)
    average = np.einsum("gji,gkl->iljk", conventional, conventional).reshape(9, 9) / len(conventional)
    return rotations.astype(np.float64), inverses, translations / 24.0, average


def _averaged_orbits(
    cell: Cell, number: int, orbits: list[int], reach: float
) -> tuple[Integers, Floats, Integers] | None:
    """Each orbit's first atom, its averaged position and the orbit's size.

    None where the operations do not carry the orbits onto themselves within ``reach`` (angstrom).
    """
    rotations, inverses, translations, _ = _averaging(number)
    firsts = np.array([orbits.index(name) for name in sorted(set(orbits))])
    images = cell.positions[firsts] @ rotations.transpose(0, 2, 1) + translations[:, None, :]  # (g, k, 3)
    differences = images[:, :, None, :] - cell.positions
    differences -= np.rint(differences)
    squares = ((differences @ cell.lattice) ** 2).sum(axis=3)
    squares[:, cell.numbers[firsts][:, None] != cell.numbers] = np.inf
    nearest = squares.argmin(axis=2)
    if squares.min(axis=2).max() > reach**2:
        return None
    n, k = len(cell), len(firsts)
    visits = np.bincount((nearest + n * np.arange(k)).ravel(), minlength=k * n).reshape(k, n)
    reached = visits > 0
    sizes = reached.sum(axis=1)
    if (visits * sizes[:, None] != len(rotations))[reached].any() or (reached.sum(axis=0) != 1).any():
        return None
    # g x_i - x_j, carried back by the rotation of g: how far atom j says that atom i is from its perfect place
    rest = differences[np.arange(len(rotations))[:, None], np.arange(k), nearest]
    offsets = (rest[:, :, None, :] @ inverses.transpose(0, 2, 1)[:, None])[:, :, 0, :]
    mean = offsets.mean(axis=0)
    return firsts, cell.positions[firsts] - mean, sizes


def _standardize(cell: Cell, found: _Finding, reach: float) -> StandardCrystal | None:
    """Average ``cell`` (primitive) over the space group that was found; None where that does not fit."""
    number = found.number
    exact = np.array(found.basis)
    basis = np.rint(exact)
    count = points_per_primitive(number)
    if round(_determinant(found.basis)) != count or np.abs(basis - exact).max() > 1e-2:
        return None
    conventional = basis.T @ cell.lattice
    primitive = primitive_basis(number)
    positions = (cell.positions - found.origin) @ np.linalg.inv(basis).T @ primitive_coordinates(number).T
    standard = Cell(primitive @ conventional, positions, cell.numbers, cell.labels)
    averaged = _averaged_orbits(standard, number, found.orbits, reach)
    if averaged is None:
        return None
    firsts, points, sizes = averaged
    metric = (_averaging(number)[3] @ (conventional @ conventional.T).ravel()).reshape(3, 3)
    return StandardCrystal(number, metric, points @ primitive, cell.numbers[firsts], sizes * count, None)


def symmetrize(cell: Cell, symprec: float, detector: str = "spglib") -> StandardCrystal:
    """Space group within ``symprec`` (angstrom) and the crystal averaged over it.

    Where the detector's answer does not fit the crystal (it can fail at loose tolerances), the tolerance shrinks by
    0.7 and the search runs again; P1 fits always, so there is always an answer.
    """
    return _symmetrize(cell, primitive_cell(cell, symprec), symprec, DETECTORS[detector])


def _symmetrize(cell: Cell, primitive: Cell, symprec: float, ask: _Detector) -> StandardCrystal:
    tolerance = symprec
    for _ in range(_ATTEMPTS):
        found = ask(primitive, tolerance)
        crystal = None if found is None else _standardize(primitive, found, _REACH * tolerance)
        if crystal is not None:
            return crystal
        tolerance *= _SHRINK
        primitive = primitive_cell(cell, tolerance)
    trivial = _Finding(1, np.eye(3).tolist(), [0.0, 0.0, 0.0], list(range(len(primitive))), tolerance)
    crystal = _standardize(primitive, trivial, tolerance)
    assert crystal is not None
    return crystal


def exact_crystal(cell: Cell, tight: float) -> StandardCrystal:
    """A cell that is primitive within ``tight`` (angstrom), symmetrised where it is exact."""
    return _symmetrize(cell, cell, tight, _ask_fast)


def has_no_more_symmetry(cell: Cell, number: int, symprec: float) -> bool:
    """Whether a search at twice ``symprec`` (angstrom) in a primitive cell finds just its space group ``number``."""
    found = _ask_fast(cell, _LOOSER * symprec)
    if found is None or found.tolerance != _LOOSER * symprec or found.number != number:
        return False
    return round(_determinant(found.basis)) == points_per_primitive(number)
