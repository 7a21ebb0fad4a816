"""Symmetry operations of the 230 space groups in the standard settings of ITA, as exact integers.

Operations act on fractional coordinates of the conventional cell, ``x -> R x + t``, with t in units of 1/24.
Source: the database of spglib, one Hall number for each type (see ``tables.py``).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import spglib
from numpy.typing import NDArray

from .grid import COORDINATE_GRID
from .tables import ROWS

__all__ = [
    "centring_vectors",
    "crystal_system",
    "expand_orbit",
    "expand_orbits",
    "group_operations",
    "inverted_group",
    "is_sohncke",
    "points_per_primitive",
    "polar_axes",
    "primitive_basis",
    "primitive_coordinates",
    "primitive_operations",
]

Integers = NDArray[np.int64]

# Rows: primitive basis vectors in terms of the conventional ones (right-handed), by centring letter of the symbol.
_PRIMITIVE_BASES = {
    "P": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "A": ((1, 0, 0), (0, 1 / 2, -1 / 2), (0, 1 / 2, 1 / 2)),
    "C": ((1 / 2, 1 / 2, 0), (-1 / 2, 1 / 2, 0), (0, 0, 1)),
    "I": ((-1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (1 / 2, 1 / 2, -1 / 2)),
    "F": ((0, 1 / 2, 1 / 2), (1 / 2, 0, 1 / 2), (1 / 2, 1 / 2, 0)),
    "R": ((2 / 3, 1 / 3, 1 / 3), (-1 / 3, 1 / 3, 1 / 3), (-1 / 3, -2 / 3, 1 / 3)),
}


def _frozen(array: Integers) -> Integers:
    array.setflags(write=False)
    return array


@lru_cache(maxsize=230)
def group_operations(number: int) -> tuple[Integers, Integers]:
    """Operations of the conventional cell, centring included.

    Returns:
        rotations, shape (n, 3, 3), and translations in units of 1/24 from 0 to 23, shape (n, 3). The identity is
        the first operation.
    """
    database = spglib.get_symmetry_from_database(ROWS[number - 1][1])
    rotations = np.array(database["rotations"], dtype=np.int64)
    translations = np.rint(np.array(database["translations"]) * 24).astype(np.int64) % 24
    return _frozen(rotations), _frozen(translations)


@lru_cache(maxsize=230)
def centring_vectors(number: int) -> Integers:
    """Lattice translations inside the conventional cell in units of 1/24, zero first, shape (1, 2, 3 or 4, 3)."""
    rotations, translations = group_operations(number)
    pure = translations[(rotations == np.eye(3, dtype=np.int64)).all(axis=(1, 2))]
    return _frozen(pure[np.lexsort(pure.T[::-1])])


def points_per_primitive(number: int) -> int:
    """Lattice points in a conventional cell: 1 (P), 2 (A, C, I), 3 (R, hexagonal axes) or 4 (F)."""
    return len(centring_vectors(number))


@lru_cache(maxsize=230)
def primitive_basis(number: int) -> NDArray[np.float64]:
    """Primitive basis vectors in terms of the conventional ones, one a row, shape (3, 3); its inverse is integer."""
    basis = np.array(_PRIMITIVE_BASES[ROWS[number - 1][0][0]], dtype=np.float64)
    basis.setflags(write=False)
    return basis


@lru_cache(maxsize=230)
def polar_axes(number: int) -> tuple[int, ...]:
    """Axes (0, 1, 2) along which every operation leaves a point's coordinate free: the origin floats along them."""
    rotations, _ = group_operations(number)
    mean = rotations.mean(axis=0)
    return tuple(axis for axis in range(3) if mean[axis, axis] == 1.0)


@lru_cache(maxsize=230)
def is_sohncke(number: int) -> bool:
    """Whether a group has proper operations only (65 of 230 have): its crystals differ from their mirror images."""
    rotations, _ = group_operations(number)
    return bool((np.linalg.det(rotations) > 0).all())


@lru_cache(maxsize=65)
def inverted_group(number: int) -> tuple[int, Integers]:
    """The group that a Sohncke group becomes under ``x -> s - x``, and s.

    It is the group itself or, for 11 pairs such as P4_1 and P4_3, its enantiomorph. Found by comparing operations.

    Returns:
        number of the group, and s in units of 1/24, shape (3,).

    Raises:
        ValueError: the group has improper operations.
    """
    rotations, translations = group_operations(number)
    for other in (number, number + 1, number - 1, number + 2, number - 2, number + 4, number - 4):
        if not (1 <= other <= 230 and is_sohncke(number) and is_sohncke(other)):
            continue
        wanted = {(r.tobytes(), t.tobytes()) for r, t in zip(*group_operations(other), strict=True)}
        for steps in np.ndindex(4, 4, 4):
            shift = 6 * np.array(steps, dtype=np.int64)
            moved = (shift - rotations @ shift - translations) % 24
            if {(r.tobytes(), t.tobytes()) for r, t in zip(rotations, moved, strict=True)} == wanted:
                return other, _frozen(shift)
    raise ValueError(f"space group {number} is not a Sohncke group: its crystals are their own mirror images")


def crystal_system(number: int) -> str:
    """Crystal system of a space group, such as ``"cubic"``."""
    for last, name in (
        (2, "triclinic"),
        (15, "monoclinic"),
        (74, "orthorhombic"),
        (142, "tetragonal"),
        (167, "trigonal"),
        (194, "hexagonal"),
    ):
        if number <= last:
            return name
    return "cubic"


def expand_orbit(number: int, point: Integers) -> Integers:
    """All images of a grid point in one conventional cell, exactly.

    Args:
        number: space group, 1 to 230.
        point: coordinates in units of 1/COORDINATE_GRID, shape (3,).

    Returns:
        distinct points in the same units, 0 <= value < COORDINATE_GRID, shape (multiplicity, 3), in ascending order.
    """
    return np.array(expand_orbits(number, np.array([point]), COORDINATE_GRID, primitive=False)[0], dtype=np.int64)


def expand_orbits(number: int, points: Integers, grid: int, primitive: bool) -> list[list[tuple[int, int, int]]]:
    """All images of each of several grid points, shape (k, 3), as :func:`expand_orbit` gives them.

    Args:
        grid: points are in units of 1/grid; a multiple of 24.
        primitive: in one primitive cell and coordinates of the primitive basis; otherwise in the conventional cell.
    """
    if primitive:
        rotations, translations = primitive_operations(number)
        points = points @ primitive_coordinates(number).T
    else:
        rotations, translations = group_operations(number)
    images = (points @ rotations.transpose(0, 2, 1) + (translations * (grid // 24))[:, None, :]) % grid
    # For a few hundred rows a set is much faster than np.unique with an axis.
    return [sorted(set(map(tuple, orbit))) for orbit in images.transpose(1, 0, 2).tolist()]


@lru_cache(maxsize=230)
def primitive_operations(number: int) -> tuple[Integers, Integers]:
    """One operation for each rotation part, acting on coordinates of the primitive basis.

    Returns:
        rotations, shape (n, 3, 3), and translations in units of 1/24, shape (n, 3).
    """
    rotations, translations = group_operations(number)
    _, first = np.unique(rotations.reshape(-1, 9), axis=0, return_index=True)
    first.sort()
    to_primitive = primitive_coordinates(number)
    moved = to_primitive @ rotations[first] @ primitive_basis(number).T
    return _frozen(np.rint(moved).astype(np.int64)), _frozen(translations[first] @ to_primitive.T % 24)


@lru_cache(maxsize=230)
def primitive_coordinates(number: int) -> Integers:
    """Integer matrix that carries conventional to primitive coordinates, shape (3, 3)."""
    return _frozen(np.rint(np.linalg.inv(primitive_basis(number))).astype(np.int64).T)
