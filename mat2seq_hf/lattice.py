"""Lattice parameters: as integers, as vectors, and what each crystal system ties."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .errors import DecodeError
from .grid import ANGLE_UNIT, LENGTH_UNIT, nearest

__all__ = ["lattice_integers", "lattice_rule", "lattice_vectors", "tied_lattice"]

Floats = NDArray[np.float64]

_PAIRS = ((1, 2), (0, 2), (0, 1))  # the axes between which alpha, beta and gamma lie


def tied_lattice(number: int, lattice: tuple[int, ...], factor: int = 1) -> tuple[int, ...]:
    """Lattice parameters with the ties of the crystal system: what must be equal, 90 or 120 degree becomes so.

    Args:
        lattice: a, b, c, alpha, beta, gamma in units of 1e-4 / factor angstrom and 1e-2 / factor degree.
    """
    a, b, c, _, beta, _ = lattice
    right = 9000 * factor
    if number <= 2:
        return lattice
    if number <= 15:
        return a, b, c, right, beta, right
    if number <= 74:
        return a, b, c, right, right, right
    if number <= 142:
        return a, a, c, right, right, right
    if number <= 194:
        return a, a, c, right, right, 12000 * factor
    return a, a, a, right, right, right


def lattice_rule(number: int) -> str:
    """What the crystal system of a space group asks of the lattice parameters, in words."""
    for last, rule in (
        (2, "nothing"),
        (15, "alpha = gamma = 90"),
        (74, "all angles 90"),
        (142, "a = b and all angles 90"),
        (194, "a = b, alpha = beta = 90, gamma = 120"),
    ):
        if number <= last:
            return rule
    return "a = b = c and all angles 90"


def lattice_integers(number: int, metric: Floats, factor: int = 1) -> tuple[int, ...]:
    """a, b, c, alpha, beta, gamma of a metric tensor (square angstrom) as integers, ties exact."""
    # Plain floats: six numbers are too few for arrays to pay.
    rows = metric.tolist()
    lengths = [math.sqrt(rows[axis][axis]) for axis in range(3)]
    values = [nearest(length, LENGTH_UNIT / factor) for length in lengths]
    if number >= 16:  # all angles are tied
        return tied_lattice(number, (*values, 0, 0, 0), factor)
    for i, j in _PAIRS:
        cosine = min(1.0, max(-1.0, rows[i][j] / (lengths[i] * lengths[j])))
        values.append(nearest(math.degrees(math.acos(cosine)), ANGLE_UNIT / factor))
    return tied_lattice(number, tuple(values), factor)


def lattice_vectors(lattice: tuple[float, ...]) -> Floats:
    """Basis vectors as rows (angstrom): a in the xz plane, c along z; lengths in angstrom, angles in degree.

    Raises:
        DecodeError: three angles that no cell has.
    """
    a, b, c = lattice[:3]
    # Right angles are exact: cos(90 degree) in floats is 6e-17.
    cos_alpha, cos_beta, cos_gamma = (0.0 if angle == 90.0 else math.cos(math.radians(angle)) for angle in lattice[3:])
    square = 1 - cos_alpha**2 - cos_beta**2 - cos_gamma**2 + 2 * cos_alpha * cos_beta * cos_gamma
    if square < 1e-8:
        raise DecodeError(f"no cell has the angles {lattice[3]}, {lattice[4]}, {lattice[5]} degree")
    sin_alpha, sin_beta = math.sqrt(1 - cos_alpha**2), math.sqrt(1 - cos_beta**2)
    y = (cos_gamma - cos_alpha * cos_beta) / sin_beta
    return np.array(
        [
            [a * sin_beta, 0.0, a * cos_beta],
            [b * y, b * math.sqrt(max(sin_alpha**2 - y**2, 0.0)), b * cos_alpha],
            [0.0, 0.0, c],
        ]
    )
