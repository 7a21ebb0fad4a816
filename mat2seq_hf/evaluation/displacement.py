"""How far decoding moves atoms, measured, and how far it can."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mat2seq_hf.grid import ANGLE_UNIT, COORDINATE_GRID, LENGTH_UNIT
from mat2seq_hf.reduction import minkowski_basis

from .equivalents import Arrays

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from mat2seq_hf.canonical import CanonicalCrystal

__all__ = ["displacement_bound", "maximal_displacement", "superposition"]

_STEPS = np.array([[i, j, k] for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)])


def maximal_displacement(original: Structure, decoded: Structure) -> float:
    """Largest distance (angstrom) between an atom and its partner after the best superposition; nan without one.

    The lattices are superposed as they are (not scaled to equal volume), the origin is the one that makes the mean
    displacement zero.
    """
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher = StructureMatcher(ltol=0.05, stol=0.3, angle_tol=2, scale=False)
    distances = matcher.get_rms_dist(original, decoded)
    if distances is None:
        return float("nan")
    # the matcher's unit is the cube root of the volume of an atom
    return float(distances[1] * (decoded.volume / len(decoded)) ** (1 / 3))


def _superposed_bases(first: NDArray[np.float64], second: NDArray[np.float64], slack: float) -> NDArray[np.int64]:
    """Proper integer matrices T with the lengths and angles of ``T @ first`` near those of ``second``, (t, 3, 3)."""
    vectors = _STEPS @ first
    lengths = np.linalg.norm(vectors, axis=1)
    wanted = np.linalg.norm(second, axis=1)
    i, j, k = np.meshgrid(
        *(np.nonzero(np.abs(lengths - length) <= slack * length)[0] for length in wanted), indexing="ij"
    )
    triples = np.stack([i, j, k], axis=-1).reshape(-1, 3)
    matrices = _STEPS[triples]
    bases = vectors[triples]
    cosines = np.abs(bases @ bases.transpose(0, 2, 1) - second @ second.T) / (wanted[:, None] * wanted)
    fits = (np.rint(np.linalg.det(matrices)) == 1) & (cosines.max(axis=(1, 2)) <= 2 * slack)
    return np.asarray(matrices[fits], dtype=np.int64)


def superposition(first: Arrays, second: Arrays, within: float, slack: float = 0.02) -> float:
    """Largest distance (angstrom) between an atom of one crystal and its partner in the other, properly superposed.

    Rotations and translations only: a crystal and its mirror image are not superposed unless they are congruent. The
    search is independent of the canonical form: all changes of basis between the two reduced cells, and all pairs of
    atoms as common origin, are tried until one is good enough.

    Args:
        first: lattice (rows, angstrom), fractional coordinates (n, 3) and atomic numbers (n,) of a primitive cell.
        second: the same of the other crystal.
        within: angstrom; the search ends with the first superposition at least as good as this.
        slack: relative difference of lengths and angles between the lattices that is allowed.

    Returns:
        nan where there is no superposition at all.
    """
    (lattice, coords, numbers), (other_lattice, other_coords, other_numbers) = map(_reduced, (first, second))
    if sorted(numbers.tolist()) != sorted(other_numbers.tolist()):
        return float("nan")
    values, counts = np.unique(numbers, return_counts=True)
    rare = values[counts.argmin()]
    best = float("inf")
    anchor = other_coords[other_numbers == rare][0]
    for matrix in _superposed_bases(lattice, other_lattice, slack):
        moved = coords @ np.linalg.inv(matrix)
        for start in moved[numbers == rare]:
            best = min(best, _misfit(moved - start + anchor, numbers, other_coords, other_numbers, other_lattice))
            if best <= within:
                return best
    return best if np.isfinite(best) else float("nan")


def _reduced(crystal: Arrays) -> Arrays:
    lattice, coords, numbers = crystal
    if np.linalg.det(lattice) < 0:
        lattice, coords = -lattice, -coords
    basis = minkowski_basis(lattice)
    return basis @ lattice, coords @ np.linalg.inv(basis), np.asarray(numbers)


def _misfit(
    coords: NDArray[np.float64],
    numbers: NDArray[np.int64],
    other_coords: NDArray[np.float64],
    other_numbers: NDArray[np.int64],
    lattice: NDArray[np.float64],
) -> float:
    """Largest distance of nearest like atoms after the mean is taken off; infinite where they are no pairs."""
    differences = coords[:, None, :] - other_coords
    differences -= np.rint(differences)
    squares = ((differences @ lattice) ** 2).sum(axis=2)
    squares[numbers[:, None] != other_numbers] = np.inf
    nearest = squares.argmin(axis=1)
    if len(set(nearest.tolist())) < len(numbers):
        return float("inf")
    rest = differences[np.arange(len(numbers)), nearest]
    return float(np.linalg.norm((rest - rest.mean(axis=0)) @ lattice, axis=1).max())


def displacement_bound(crystal: CanonicalCrystal, symprec: float) -> float:
    """Upper bound (angstrom) of how far an atom may lie from its place in the original crystal.

    Sum of: symmetrisation, at most 2 symprec (an atom and the origin each move by up to symprec); rounding of the
    coordinates, half a grid step along each axis, twice that where a coordinate is tied to another; rounding of
    lengths and angles over one cell diagonal.
    """
    a, b, c = crystal.lattice[:3]
    coordinates = 2 * 0.52 / COORDINATE_GRID * (a + b + c)
    lengths = 3 * 0.52 * LENGTH_UNIT
    angles = 2 * np.radians(0.52 * ANGLE_UNIT) * (a + b + c)
    return float(2 * symprec + coordinates + lengths + angles)
