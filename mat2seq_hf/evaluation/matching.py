"""StructureMatcher's verdict and RMS distance, several times faster.

The search is that of ``pymatgen``'s ``StructureMatcher.get_rms_dist`` with primitive cells and scaling, over the same
lattices and translations in the same order, with the same tolerances. What differs: crystals are reduced once
(:mod:`.reduced_cell`) and not once a pair; a pair that cannot match is recognised before the search; and the search
handles all lattices at once.
``tests/test_matching.py`` and ``scripts/benchmark_evaluation.py`` compare it with the plain loop, pair by pair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .reduced_cell import ReducedCrystal

__all__ = ["Matcher"]

_Floats = NDArray[np.float64]

_PERFECT = 1e-5  # StructureMatcher ends its search at the first superposition better than this


@dataclass(frozen=True)
class _Frames:
    """Bases of the first crystal that resemble that of the second.

    Attributes:
        bases: rows are vectors of the first lattice, angstrom, shape (m, 3, 3).
        coords: the first crystal's coordinates in each basis, shape (m, n, 3).
        tolerances: how far partners may be apart along each axis, fractions, shape (m, 3).
    """

    bases: _Floats
    coords: _Floats
    tolerances: _Floats


@dataclass(frozen=True)
class _Mean:
    """Where two crystals are superposed: the lattice with the mean lengths and angles, in a reduced basis.

    It stands in for a ``Lattice`` in ``pbc_shortest_vectors``, which asks for the three names below.
    """

    lll_matrix: _Floats
    into: _Floats
    reach: _Floats
    unit: float
    pbc: tuple[bool, bool, bool] = (True, True, True)

    def get_lll_frac_coords(self, coords: _Floats) -> _Floats:
        """Coordinates in the reduced basis."""
        reduced: _Floats = np.dot(coords, self.into)
        return reduced


@dataclass(frozen=True)
class Matcher:
    """Compares crystals as ``StructureMatcher(ltol, stol, angle_tol)`` does.

    Attributes:
        ltol: relative tolerance of lengths.
        stol: tolerance of sites, in units of (volume / atoms)^(1/3).
        angle_tol: tolerance of angles, degree.

    As with StructureMatcher, verdict and distance depend on which crystal is the first: its bases are compared with the
    reduced cell of the second.

    Example:
        >>> matcher = Matcher()
        >>> matcher.rms(reduce_crystal(sample), reduce_crystal(truth))  # doctest: +SKIP
        0.0123
    """

    ltol: float = 0.3
    stol: float = 0.5
    angle_tol: float = 10.0

    def rms(self, first: ReducedCrystal, second: ReducedCrystal) -> float | None:
        """RMS distance of the atoms in units of (volume / atoms)^(1/3), or None if the crystals do not match."""
        if first.content != second.content or not self._similar_lengths(first, second):
            return None
        ratio = (second.volume / first.volume) ** (1 / 6)
        one, two = first.matrix * ratio, second.matrix / ratio
        places = np.array([np.dot(point, one) for point in first.coords])
        frames = self._frames(one, two, places)
        return None if frames is None else self._search(frames, places, first.numbers, two, second)

    def rms_of_pair(self, pair: tuple[ReducedCrystal | None, ReducedCrystal | None]) -> float | None:
        """:meth:`rms` as a task of :func:`.pool.run`; None where a crystal could not be reduced."""
        first, second = pair
        return None if first is None or second is None else self.rms(first, second)

    def _similar_lengths(self, first: ReducedCrystal, second: ReducedCrystal) -> bool:
        """Whether a basis of the first lattice can be as long as that of the second.

        The vectors of a Niggli cell are the shortest independent ones of its lattice, so that no basis has a shorter
        i-th longest vector. The slack covers the tolerance of the reduction.
        """
        return bool((first.sorted_lengths < second.sorted_lengths * (1 + self.ltol) * 1.001).all())

    def _frames(self, one: _Floats, two: _Floats, places: _Floats) -> _Frames | None:
        """Every basis of ``one`` whose lengths and angles are within the tolerances of ``two``."""
        lengths, angles = _parameters(two[None])
        points = _points_within(one, float(lengths.max()) * (1 + self.ltol))
        vectors = np.dot(points, one)
        distances = np.linalg.norm(vectors, axis=1)
        ratios = distances / lengths[0][:, None]
        a, b, c = (np.flatnonzero((ratio < 1 + self.ltol) & (ratio > 1 / (1 + self.ltol))) for ratio in ratios)
        alpha, beta, gamma = (
            np.abs(_angles(vectors, distances, i, j) - angle) <= self.angle_tol
            for i, j, angle in zip((b, a, a), (c, c, b), angles[0], strict=True)
        )
        found = np.argwhere(gamma[:, :, None] & alpha[None, :, :] & beta[:, None, :])
        chosen = np.stack([a[found[:, 0]], b[found[:, 1]], c[found[:, 2]]], axis=1)
        sizes = np.abs(np.linalg.det(points[chosen])) if len(chosen) else np.zeros(0)
        chosen = chosen[(sizes > 0.5) & (sizes < 1.5)]
        if not len(chosen):
            return None
        bases = vectors[chosen]
        coords = places @ np.linalg.inv(bases)
        own_lengths, own_angles = _parameters(bases)
        means = _lattices((own_lengths + lengths) / 2, (own_angles + angles) / 2)
        unit = (len(places) / np.abs(np.linalg.det(means))) ** (1 / 3)
        return _Frames(bases, coords, 2 * self.stol * np.linalg.norm(np.linalg.inv(means), axis=1) / unit[:, None])

    def _search(
        self, frames: _Frames, places: _Floats, numbers: NDArray[np.int64], two: _Floats, second: ReducedCrystal
    ) -> float | None:
        """Smallest RMS distance over all bases and over all partners of one of the rarest atoms."""
        from pymatgen.core import Lattice
        from pymatgen.util.coord_cython import is_coord_subset_pbc

        mask = (second.numbers[:, None] != numbers[None, :]).astype(np.int64)
        rarest = int(np.argmax(mask.sum(axis=1)))
        partners = np.flatnonzero(mask[rarest] == 0)
        target = np.array(Lattice(two).parameters)
        best: float | None = None
        means: dict[bytes, _Mean] = {}
        for basis, rough, tolerance in zip(frames.bases, frames.coords, frames.tolerances, strict=True):
            shifts = rough[partners] - second.coords[rarest]
            possible = [
                partner
                for partner, shift in zip(partners, shifts, strict=True)
                if is_coord_subset_pbc(second.coords + shift, rough, tolerance, mask)
            ]
            if not possible:
                continue
            lattice = Lattice(basis)
            coords = np.dot(places, lattice.inv_matrix)
            coords -= np.floor(coords)
            parameters = (np.array(lattice.parameters) + target) / 2
            key = parameters.tobytes()
            mean = means[key] if key in means else means.setdefault(key, self._mean(parameters, len(places)))
            for partner in possible:
                rms = _distance(coords, second.coords + (coords[partner] - second.coords[rarest]), mask, mean)
                if best is None or rms < best:
                    best = rms
                    if best < _PERFECT:
                        return best
        return best if best is not None and best < self.stol else None

    def _mean(self, parameters: _Floats, n_atoms: int) -> _Mean:
        from pymatgen.core import Lattice

        lattice = Lattice.from_parameters(*parameters)
        unit = (n_atoms / lattice.volume) ** (1 / 3)
        reduced: _Floats = np.array(lattice.lll_matrix)
        reach: Any = 2 * self.stol * np.linalg.norm(np.linalg.inv(reduced), axis=0) / unit
        into: Any = np.linalg.inv(lattice.lll_mapping)
        return _Mean(reduced, into, reach, unit)


def _distance(coords: _Floats, moved: _Floats, mask: NDArray[np.int64], mean: _Mean) -> float:
    """RMS distance of the cheapest assignment, after taking out the mean displacement.

    Where two assignments cost the same, the last bit decides between them: all that leads here is therefore computed
    by the operations that StructureMatcher uses.
    """
    from pymatgen.util.coord_cython import pbc_shortest_vectors
    from scipy.optimize import linear_sum_assignment

    vectors, squares = pbc_shortest_vectors(mean, moved, coords, mask, return_d2=True, lll_frac_tol=mean.reach)
    rows, columns = linear_sum_assignment(squares)
    chosen = vectors[rows, columns]
    chosen = chosen - chosen.mean(axis=0)
    return math.sqrt(float((chosen * chosen).sum()) / len(chosen)) * mean.unit


def _points_within(basis: _Floats, radius: float) -> _Floats:
    """Integer combinations of the basis up to a length, in the order in which pymatgen lists them; shape (m, 3)."""
    from pymatgen.core import Lattice

    points = Lattice(basis).get_points_in_sphere([[0, 0, 0]], [0, 0, 0], radius, zip_results=False)[0]
    return np.array(points, dtype=np.float64)


def _angles(vectors: _Floats, lengths: _Floats, first: NDArray[np.int64], second: NDArray[np.int64]) -> _Floats:
    """Angles (degree) between two sets of vectors, shape (first, second)."""
    cosines = vectors[first] @ vectors[second].T / lengths[first][:, None] / lengths[second]
    angles: _Floats = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    return angles


def _parameters(bases: _Floats) -> tuple[_Floats, _Floats]:
    """Lengths and angles (degree) of bases of shape (m, 3, 3), each of shape (m, 3)."""
    lengths = np.linalg.norm(bases, axis=2)
    after, last = np.roll(bases, -1, axis=1), np.roll(bases, -2, axis=1)
    cosines = (after * last).sum(axis=2) / (np.roll(lengths, -1, axis=1) * np.roll(lengths, -2, axis=1))
    return lengths, np.degrees(np.arccos(np.clip(cosines, -1, 1)))


def _lattices(lengths: _Floats, angles: _Floats) -> _Floats:
    """Bases with given lengths and angles (degree), c along z, shape (m, 3, 3)."""
    a, b, c = lengths.T
    cosines, sines = np.cos(np.radians(angles)).T, np.sin(np.radians(angles)).T
    star = np.clip((cosines[0] * cosines[1] - cosines[2]) / (sines[0] * sines[1]), -1, 1)
    bases = np.zeros((len(lengths), 3, 3))
    bases[:, 0, 0], bases[:, 0, 2] = a * sines[1], a * cosines[1]
    bases[:, 1, 0], bases[:, 1, 1] = -b * sines[0] * star, b * sines[0] * np.sqrt(1 - star**2)
    bases[:, 1, 2], bases[:, 2, 2] = b * cosines[0], c
    return bases
