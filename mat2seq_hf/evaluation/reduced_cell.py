"""The cell that StructureMatcher compares: Niggli-reduced, then primitive at 0.25 angstrom.

The search for a smaller cell is that of ``pymatgen``'s ``Structure.get_primitive_structure``: the same sublattices in
the same order with the same tolerances, so that the last bits are the same, too. It works on arrays, and a sublattice
whose first vectors are no translations of the crystal is never written out. Niggli cells are pymatgen's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pymatgen.core import Lattice, Structure

__all__ = ["ReducedCrystal", "reduce_crystal"]

_Floats = NDArray[np.float64]
_Integers = NDArray[np.int64]

_TOLERANCE = 0.25  # angstrom, with which StructureMatcher looks for smaller cells
_SLACK = 1.0001  # of a check that may only err on the side of the full search
_BLOCK = 1_000_000  # distances held at once


@dataclass(frozen=True)
class ReducedCrystal:
    """The primitive Niggli cell that StructureMatcher compares.

    Attributes:
        matrix: rows are the basis vectors, angstrom, shape (3, 3).
        coords: fractional coordinates, shape (n, 3).
        numbers: atomic numbers, shape (n,).
    """

    matrix: _Floats
    coords: _Floats
    numbers: _Integers

    @cached_property
    def volume(self) -> float:
        """Of the cell, cubic angstrom."""
        return float(abs(np.dot(np.cross(self.matrix[0], self.matrix[1]), self.matrix[2])))

    @cached_property
    def sorted_lengths(self) -> _Floats:
        """Lengths of the basis vectors, ascending, of the cell scaled to unit volume."""
        lengths: _Floats = np.sort(np.linalg.norm(self.matrix, axis=1)) / self.volume ** (1 / 3)
        return lengths

    @cached_property
    def content(self) -> tuple[int, ...]:
        """Atomic numbers in ascending order."""
        return tuple(np.sort(self.numbers).tolist())


def reduce_crystal(structure: Structure) -> ReducedCrystal:
    """The cell that StructureMatcher compares: Niggli-reduced, then primitive at 0.25 angstrom.

    Args:
        structure: ordered, elements without oxidation states.

    Raises:
        ValueError: the cell cannot be reduced (it is degenerate).
    """
    # By symbol, as in pymatgen: of equally rare elements the first one decides which translations are tried.
    symbols, species = np.unique([site.species_string for site in structure], return_inverse=True)
    numbers = dict(zip(species.tolist(), structure.atomic_numbers, strict=True))
    lattice, coords = _niggli(structure.lattice, structure.frac_coords)
    lattice, coords, species = _primitive(lattice, coords, species)
    of_symbol = np.array([numbers[place] for place in range(len(symbols))], dtype=np.int64)
    return ReducedCrystal(np.array(lattice.matrix), coords, of_symbol[species])


def _niggli(lattice: Lattice, coords: _Floats) -> tuple[Lattice, _Floats]:
    reduced = lattice.get_niggli_reduced_lattice()
    if reduced == lattice:
        return lattice, coords
    # point by point, as pymatgen does: a product of matrices differs in the last bit
    return reduced, np.array([np.dot(np.dot(point, lattice.matrix), reduced.inv_matrix) for point in coords]) % 1


def _primitive(lattice: Lattice, coords: _Floats, species: _Integers) -> tuple[Lattice, _Floats, _Integers]:
    """The crystal itself if it has no smaller cell, else the smallest one, reduced."""
    from pymatgen.core import Lattice

    smaller = _smaller(lattice.matrix, coords, species)
    if smaller is None:
        return lattice, coords, species
    lattice, coords, species = _primitive(Lattice(smaller[0]), *smaller[1:])
    return *_niggli(lattice, coords), species


def _smaller(matrix: _Floats, coords: _Floats, species: _Integers) -> tuple[_Floats, _Floats, _Integers] | None:
    """The first smaller cell that holds the crystal within the tolerance, positions averaged; None if there is none.

    A smaller cell needs a translation that brings every atom near another of its element, and such a translation
    leads from the first atom of the rarest element to another one of it.
    """
    counts = np.bincount(species)
    units = math.gcd(*counts.tolist())
    if units == 1:
        return None
    groups = [coords[species == kind] for kind in range(len(counts))]
    tolerances = _TOLERANCE / np.sqrt(np.sum(matrix**2, axis=1))
    shifts = groups[int(np.argmin(counts))]
    shifts = shifts - shifts[0]
    for group in sorted(groups, key=len):
        # both vectors are approximate: twice the tolerance along each axis
        shifts = shifts[_are_translations(shifts, group, 2 * tolerances * _SLACK)]
    # In very short cells a vector of the smaller lattice can be taken for zero.
    if len(shifts) == 1 and (tolerances * units < 1).all():
        return None

    def is_shift(vectors: _Floats) -> NDArray[np.bool_]:
        apart = vectors[:, None, :] - shifts
        near: NDArray[np.bool_] = np.all(np.abs(apart - np.round(apart)) < tolerances, axis=-1)
        return np.asarray(near.any(axis=-1))

    # Atoms that are neighbours in the given cell are not two images of one.
    separate = [_separate(group, 2 * tolerances) for group in groups]
    for size, sublattice in _sublattices(units, is_shift):
        basis = np.dot(np.linalg.inv(sublattice), matrix)
        limits = _TOLERANCE / np.sqrt(np.sum(basis**2, axis=1))
        merged = []
        for group, apart in zip(groups, separate, strict=True):
            means = _merge(np.dot(group, sublattice), apart, size, limits)
            if means is None:
                break
            merged.append(means)
        else:
            kinds = np.repeat(np.arange(len(counts)), [len(means) for means in merged])
            return basis, np.concatenate(merged), kinds
    return None


def _are_translations(shifts: _Floats, group: _Floats, limits: _Floats) -> NDArray[np.bool_]:
    """Whether each shift brings each atom of a group near one of them; `limits` along each axis, fractions."""
    kept = np.ones(len(shifts), dtype=bool)
    step = max(1, _BLOCK // (len(shifts) * len(group)))
    for start in range(0, len(group), step):
        tried = np.flatnonzero(kept)
        near = np.ones((len(tried), len(group), len(group[start : start + step])), dtype=bool)
        for along, shift, limit in zip(group.T, shifts[tried].T, limits, strict=True):
            apart = along[None, :, None] - along[None, None, start : start + step] - shift[:, None, None]
            near &= np.abs(apart - np.round(apart)) <= limit
        kept[tried] = np.all(np.any(near, axis=1), axis=1)
    return kept


def _separate(group: _Floats, limits: _Floats) -> NDArray[np.bool_]:
    """Which atoms are farther from each other than `limits` along an axis, or the same."""
    apart = group[None, :, :] - group[:, None, :]
    apart = np.abs(apart - np.round(apart))
    separate: NDArray[np.bool_] = np.any(apart > limits, axis=-1)
    np.fill_diagonal(separate, True)
    return separate


def _sublattices(
    units: int, is_shift: Callable[[_Floats], NDArray[np.bool_]]
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Cells of which the given one is a supercell of 2 to `units` cells: its matrix in Hermite normal form.

    Each row of the inverse is a vector of the smaller lattice; those of which `is_shift` refuses one are left out.

    Yields:
        The number of smaller cells in the given one, and the matrix (3, 3).
    """
    for size in _divisors(units)[1:]:
        for a in _divisors(size):
            for e in _divisors(size // a):
                g = size // a // e
                if not is_shift(np.array([[0, 0, 1 / g]]))[0]:
                    continue
                f = np.arange(e)
                f = f[is_shift(np.stack([0 * f, 0 * f + 1 / e, -f / (e * g)], axis=1))]
                if not len(f):
                    continue
                b, c, f = (axis.ravel() for axis in np.meshgrid(np.arange(a), np.arange(a), f, indexing="ij"))
                rows = np.stack([0 * b + 1 / a, -b / (a * e), (b * f - c * e) / (a * e * g)], axis=1)
                for place in np.flatnonzero(is_shift(rows)):
                    yield size, np.array([[a, b[place], c[place]], [0, e, f[place]], [0, 0, g]])


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _merge(coords: _Floats, separate: NDArray[np.bool_], size: int, limits: _Floats) -> _Floats | None:
    """Positions in the smaller cell, each the mean of `size` atoms that coincide there; None if they do not.

    Args:
        coords: of the atoms of one element in the smaller cell's basis, shape (n, 3).
        separate: which of them may be images of one atom, shape (n, n).
        size: number of images of each atom.
        limits: how far images may be apart along each axis, fractions, shape (3,).
    """
    apart = coords[None, :, :] - coords[:, None, :]
    images = np.all(np.abs(apart - np.round(apart)) < limits, axis=-1) & separate
    if not np.all(np.sum(images, axis=0) == size):
        return None
    members = np.nonzero(images)[1].reshape(-1, size)
    if not images[members[:, :, None], members[:, None, :]].all():
        return None
    members = members[members[:, 0] == np.arange(len(members))]
    wrapped = coords % 1
    means: _Floats = wrapped[members[:, 0]]
    for place in range(1, size):
        offsets = wrapped[members[:, place]] - means
        means += (offsets - np.round(offsets)) / (place + 1)
    return means
