"""From a cell to its symmetrised crystal in the ITA standard setting.

The detector (spglib) only says which space group there is and where its axes and origin lie. Positions and metric are
then averaged over the whole group with its exact operations. The average is the same whichever atom the detector
started from and wherever within the tolerance it put the origin, which a detector's own idealised positions are not.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# spglib's C code writes to stderr whenever a search fails; here a failed search is tried again at a smaller tolerance.
os.environ.setdefault("SPGLIB_WARNING", "OFF")

import spglib
from numpy.typing import NDArray

from .operations import group_operations, points_per_primitive, primitive_basis, primitive_operations
from .reduction import Cell, primitive_cell
from .tables import ROWS

__all__ = ["StandardCrystal", "symmetrize"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# A detector's origin may be off by about its tolerance, and each of two atoms as well.
_REACH = 6.0
_SHRINK = 0.7
_ATTEMPTS = 20


@dataclass(frozen=True)
class StandardCrystal:
    """A crystal with exact symmetry in the conventional cell of the ITA standard setting.

    Attributes:
        number: space group, 1 to 230.
        metric: metric tensor of the conventional cell, square angstrom, shape (3, 3).
        points: one representative of each orbit, fractional coordinates, shape (k, 3).
        numbers: atomic number of each orbit, shape (k,).
        multiplicities: points of each orbit in the conventional cell, shape (k,).
    """

    number: int
    metric: Floats
    points: Floats
    numbers: Integers
    multiplicities: Integers

    @property
    def n_atoms(self) -> int:
        """Atoms in the primitive cell."""
        return int(self.multiplicities.sum()) // points_per_primitive(self.number)


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


def _orbits(
    cell: Cell, rotations: Integers, translations: Floats, reach: float
) -> list[tuple[int, Floats, int]] | None:
    """First atom, averaged position and number of atoms of each orbit, or None where the operations do not fit."""
    inverses = np.rint(np.linalg.inv(rotations)).astype(np.int64)
    free = np.ones(len(cell), dtype=bool)
    found = []
    for atom in range(len(cell)):
        if not free[atom]:
            continue
        (members,) = np.nonzero(free & (cell.numbers == cell.numbers[atom]))
        images = rotations @ cell.positions[atom] + translations
        differences = images[:, None, :] - cell.positions[None, members, :]
        differences -= np.rint(differences)
        distances = ((differences @ cell.lattice) ** 2).sum(axis=2)
        nearest = distances.argmin(axis=1)
        rows = np.arange(len(images))
        if distances[rows, nearest].max() > reach**2:
            return None
        # x_j - g x_i, carried back by the rotation of g: how far each image is from the perfect place of atom i
        offsets = np.einsum("gij,gj->gi", inverses, differences[rows, nearest])
        reached, visits = np.unique(nearest, return_counts=True)
        if (visits * len(reached) != len(rotations)).any():
            return None
        orbit = members[reached]
        free[orbit] = False
        found.append((atom, cell.positions[atom] - offsets.mean(axis=0), len(orbit)))
    return found


def _standardize(cell: Cell, number: int, transform: Floats, shift: Floats, reach: float) -> StandardCrystal | None:
    """Average ``cell`` (primitive) over space group ``number``; None where that does not fit.

    ``x_standard = transform @ x + shift`` carries the cell's coordinates to the standard setting.
    """
    basis = np.rint(np.linalg.inv(transform)).astype(np.int64)  # columns: conventional vectors in the cell's basis
    count = points_per_primitive(number)
    if round(float(np.linalg.det(basis))) != count or np.abs(basis @ transform - np.eye(3)).max() > 1e-2:
        return None
    conventional = basis.T @ cell.lattice
    positions = cell.positions @ np.linalg.inv(basis).T + shift
    primitive = primitive_basis(number)
    to_primitive = np.linalg.inv(primitive)
    rotations, translations = primitive_operations(number)
    standard = Cell(primitive @ conventional, positions @ to_primitive, cell.numbers, cell.labels)
    orbits = _orbits(standard, rotations, translations / 24.0, reach)
    if orbits is None:
        return None
    conventional_rotations, _ = group_operations(number)
    metric = conventional @ conventional.T
    metric = np.einsum("gji,jk,gkl->il", conventional_rotations, metric, conventional_rotations) / len(
        conventional_rotations
    )
    return StandardCrystal(
        number,
        metric,
        np.array([position for _, position, _ in orbits]) @ primitive,
        np.array([cell.numbers[atom] for atom, _, _ in orbits], dtype=np.int64),
        np.array([size * count for _, _, size in orbits], dtype=np.int64),
    )


def symmetrize(cell: Cell, symprec: float) -> StandardCrystal:
    """Space group within ``symprec`` (angstrom) and the crystal averaged over it.

    Where the detector's answer does not fit the crystal (it can fail at loose tolerances), the tolerance shrinks by
    0.7 and the search runs again; P1 fits always, so there is always an answer.
    """
    tolerance = symprec
    for _ in range(_ATTEMPTS):
        primitive = primitive_cell(cell, tolerance)
        dataset = spglib.get_symmetry_dataset((primitive.lattice, primitive.positions, primitive.numbers), tolerance)
        if dataset is not None:
            shift = dataset.origin_shift + _origin_change(dataset.number)
            crystal = _standardize(primitive, dataset.number, dataset.transformation_matrix, shift, _REACH * tolerance)
            if crystal is not None:
                return crystal
        tolerance *= _SHRINK
    primitive = primitive_cell(cell, tolerance)
    crystal = _standardize(primitive, 1, np.eye(3), np.zeros(3), tolerance)
    assert crystal is not None
    return crystal
