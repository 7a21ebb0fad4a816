"""How far decoding moves atoms, measured, and how far it can."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..grid import ANGLE_UNIT, COORDINATE_GRID, LENGTH_UNIT
from ..reduction import minkowski_basis
from .equivalents import Arrays

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from ..canonical import CanonicalCrystal

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
    """How far two crystals differ, properly superposed: largest distance (angstrom) of partners, strain included.

    Rotations and translations only: a crystal and its mirror image are not superposed unless they are congruent. The
    search is independent of the canonical form: all changes of basis between the two reduced cells, and all pairs of
    atoms as common origin, are tried until one is good enough. Where one cell has k times the atoms of the other, all
    supercells of k cells of the smaller one are tried.

    Args:
        first: lattice (rows, angstrom), fractional coordinates (n, 3) and atomic numbers (n,).
        second: the same of the other crystal.
        within: angstrom; the search ends with the first superposition at least as good as this.
        slack: relative difference of lengths and angles between the lattices that is allowed.

    Returns:
        The larger of two figures of the best superposition: distance between an atom and its partner in the second
        lattice, and difference between the vectors of the two lattices. nan where there is no superposition at all.
    """
    smaller, larger = sorted((_reduced(first), _reduced(second)), key=lambda crystal: len(crystal[2]))
    factor, rest = divmod(len(larger[2]), len(smaller[2]))
    numbers, other_numbers = np.tile(smaller[2], factor), larger[2]
    if rest or sorted(numbers.tolist()) != sorted(other_numbers.tolist()):
        return float("nan")
    best = float("inf")
    for supercell in _supercells(smaller, factor):
        for moved, strain in _superposed(supercell, larger, slack):
            misfit = _misfit(moved, supercell[2], larger[1], other_numbers, larger[0])
            best = min(best, max(misfit, strain))
            if best <= within:
                return best
    return best if np.isfinite(best) else float("nan")


def _supercells(crystal: Arrays, factor: int) -> Iterator[Arrays]:
    """All lattices of ``factor`` cells, by their Hermite normal forms."""
    if factor == 1:
        yield crystal
        return
    lattice, coords, numbers = crystal
    cells = np.array(list(np.ndindex(factor, factor, factor)))
    for a, b in product(range(1, factor + 1), repeat=2):
        if factor % (a * b):
            continue
        c = factor // (a * b)
        for x, y, z in product(range(b), range(c), range(c)):
            matrix = np.array([[a, x, y], [0, b, z], [0, 0, c]])
            # A cell of the lattice belongs to the supercell where its corner lies in it.
            corners = cells @ np.linalg.inv(matrix)
            corners = np.unique(np.rint((corners % 1.0) * factor) % factor, axis=0) / factor
            inside = (coords @ np.linalg.inv(matrix) + corners[:, None, :]).reshape(-1, 3)
            yield _reduced((matrix @ lattice, inside, np.tile(numbers, factor)))


def _superposed(first: Arrays, second: Arrays, slack: float) -> Iterator[tuple[NDArray[np.float64], float]]:
    """Coordinates of the first crystal in the second lattice, all ways in which they may fit, and the strain of each.

    One atom of the rarest element is put on each of its kind in turn.
    """
    (lattice, coords, numbers), (other_lattice, other_coords, other_numbers) = first, second
    values, counts = np.unique(numbers, return_counts=True)
    rare = values[counts.argmin()]
    anchor = other_coords[other_numbers == rare][0]
    for matrix in _superposed_bases(lattice, other_lattice, slack):
        moved = coords @ np.linalg.inv(matrix)
        strain = _strain(matrix @ lattice, other_lattice)
        for start in moved[numbers == rare]:
            yield moved - start + anchor, strain


def _strain(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Largest difference of two lattices (angstrom), from their metrics: d(|v|^2) = 2 |v| d|v|."""
    metric, other = first @ first.T, second @ second.T
    lengths = np.sqrt(np.diag(other))
    return float((np.abs(metric - other) / (lengths[:, None] + lengths)).max())


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
