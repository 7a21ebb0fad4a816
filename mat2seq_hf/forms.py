"""Forms: a symmetrised crystal as integers, and the smallest of all its forms.

A crystal with exact symmetry is described in every setting that its space group's normalizer allows
(``normalizer.py``), with every admissible origin along polar axes, and the lexicographically smallest description is
taken. The set of descriptions depends on the crystal alone, so its minimum does too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .elements import ATOMIC_NUMBERS, ORDER, SYMBOL_OF
from .errors import SymmetryError
from .grid import ANGLE_UNIT, COORDINATE_GRID, LENGTH_UNIT, quantize
from .lattice import lattice_integers, lattice_vectors
from .normalizer import Setting, locate, settings
from .operations import expand_primitive, group_operations, points_per_primitive, polar_axes, primitive_basis
from .reduction import Cell
from .symmetry import StandardCrystal
from .wyckoff import LETTERS, SYMBOLS, WyckoffPosition, wyckoff_positions

__all__ = ["SYMBOL_OF_RANK", "Form", "canonical_form", "form_cell", "unordered"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

SYMBOL_OF_RANK = {rank: symbol for symbol, rank in ORDER.items()}

# (rank of element, index of Wyckoff letter, coordinates with polar axes first)
SiteKey = tuple[int, int, tuple[int, ...]]


@dataclass(frozen=True)
class Form:
    """A description on a grid ``factor`` times finer than that of the text."""

    number: int
    lattice: tuple[int, ...]
    sites: tuple[SiteKey, ...]
    factor: int

    @property
    def n_atoms(self) -> int:
        """Atoms in the primitive cell."""
        positions = wyckoff_positions(self.number)
        total = sum(positions[letter].multiplicity for _, letter, _ in self.sites)
        return total // points_per_primitive(self.number)


def axis_order(number: int) -> list[int]:
    polar = polar_axes(number)
    return [*polar, *(axis for axis in range(3) if axis not in polar)]


def _orbit_images(crystal: StandardCrystal) -> list[Floats]:
    rotations, translations = group_operations(crystal.number)
    return [rotations @ point + translations / 24.0 for point in crystal.points]


def _orbit_letters(crystal: StandardCrystal, orbits: list[Floats]) -> list[str]:
    letters = []
    for images, multiplicity in zip(orbits, crystal.multiplicities, strict=True):
        for position in wyckoff_positions(crystal.number):
            if position.multiplicity == multiplicity and locate(position, images).any():
                letters.append(position.letter)
                break
        else:
            raise SymmetryError(
                f"an orbit of {multiplicity} atoms at {images[0].round(4).tolist()} fits no Wyckoff position of "
                f"{SYMBOLS[crystal.number - 1]}; try a smaller symprec"
            )
    return letters


def _smallest(rows: Integers, usable: NDArray[np.bool_]) -> Integers:
    """Lexicographically smallest usable row, shape (c, n, 3) -> (c, 3)."""
    result = np.empty((len(rows), 3), dtype=np.int64)
    for column in range(3):
        values = np.where(usable, rows[..., column], np.iinfo(np.int64).max)
        result[:, column] = values.min(axis=1)
        usable = usable & (rows[..., column] == result[:, column, None])
    return result


def _representatives(position: WyckoffPosition, images: Floats, order: list[int], factor: int) -> Integers:
    """Smallest representative on the position's first triplet, axes in ``order``, for each description.

    Args:
        images: all images of one orbit in c descriptions, shape (c, n, 3).

    Returns:
        integers in units of 1 / (9600 factor), shape (c, 3), columns in ``order``.
    """
    grid = COORDINATE_GRID * factor
    shift = np.array(position.shift24) * (grid // 24)
    parameters = np.zeros(images.shape, dtype=np.int64)
    for parameter, axis, sign in position.pivots:
        parameters[..., parameter] = quantize(sign * (images[..., axis] - position.offset[axis]), 1.0 / grid)
    rows = (parameters @ position.matrix.T + shift) % grid
    return _smallest(rows[..., order], locate(position, images))


def _polar_shifts(number: int, images: Floats) -> Floats:
    """Shifts along the polar axes that put a point of an orbit at zero there, shape (k, 3)."""
    shifts = np.zeros_like(images)
    polar = list(polar_axes(number))
    shifts[:, polar] = images[:, polar] - np.floor(images[:, polar])
    _, first = np.unique(np.rint(shifts * 1e6).astype(np.int64) % 1_000_000, axis=0, return_index=True)
    return shifts[first]


def _lattices(crystal: StandardCrystal, choices: list[Setting], factor: int) -> list[tuple[int, ...]]:
    """Lattice parameters in each setting."""
    number, metric = crystal.number, crystal.metric
    if number >= 75:  # rotations of the holohedry: they leave the metric
        return [lattice_integers(number, metric, factor)] * len(choices)
    known: dict[bytes, tuple[int, ...]] = {}
    keys = []
    for setting in choices:
        # Orthorhombic axes are exchanged and reversed; reversing one leaves the metric.
        key = (np.abs(setting.rotation) if number >= 16 else setting.rotation).tobytes()
        keys.append(key)
        if key not in known:
            inverse = np.linalg.inv(setting.rotation)
            known[key] = lattice_integers(number, inverse.T @ metric @ inverse, factor)
    return [known[key] for key in keys]


def _conventional(number: int, lattice: tuple[int, ...], right: int) -> bool:
    """Niggli's order and sign rule for triclinic lattices, beta not acute for monoclinic ones."""
    a, b, c, *angles = lattice
    if number >= 3:
        return angles[1] >= right
    return a <= b <= c and (max(angles) <= right or min(angles) >= right)


def _candidates(
    crystal: StandardCrystal, factor: int, letters: list[str], ranks: list[int], wide: bool
) -> tuple[list[tuple[int, ...]], list[Setting], list[list[int]]]:
    """Lattices, settings and letters of the orbits for all descriptions that can still be the smallest.

    These have the smallest lattice (``wide``: a conventional one) and the smallest list of Wyckoff letters.
    """
    choices = settings(crystal.number, crystal.metric, wide)
    lattices = _lattices(crystal, choices, factor)
    if crystal.number >= 16 or not wide:
        smallest = min(lattices)
        usable = [other == smallest for other in lattices]
    else:
        usable = [_conventional(crystal.number, other, 9000 * factor) for other in lattices]
    lattices = [other for other, use in zip(lattices, usable, strict=True) if use]
    choices = [setting for setting, use in zip(choices, usable, strict=True) if use]
    indices = [[LETTERS.index(setting.letters[letter]) for letter in letters] for setting in choices]
    signatures = [sorted(zip(ranks, row, strict=True)) for row in indices]
    best = min(signatures)
    kept = [i for i, signature in enumerate(signatures) if signature == best]
    return [lattices[i] for i in kept], [choices[i] for i in kept], [indices[i] for i in kept]


def canonical_form(crystal: StandardCrystal, factor: int, wide: bool = False) -> Form:
    """The smallest of all descriptions of a symmetrised crystal.

    Args:
        factor: how much finer the grid is than that of the text.
        wide: let bases compete that are as short as the shortest within rounding, and compare sites before lattices.
            A change of basis carries sites from grid point to grid point, so what is chosen survives rounding; lengths
            and angles do not. For triclinic and monoclinic lattices that are nearly of a higher symmetry.
    """
    number, order = crystal.number, axis_order(crystal.number)
    orbits = _orbit_images(crystal)
    ranks = [ORDER[SYMBOL_OF[int(z)]] for z in crystal.numbers]
    lattices, choices, indices = _candidates(crystal, factor, _orbit_letters(crystal, orbits), ranks, wide)

    # Each description: rotation and shift, Wyckoff letters of its orbits, lattice.
    maps, columns, bases = [], [], []
    for setting, row, lattice in zip(choices, indices, lattices, strict=True):
        shifts = np.zeros((1, 3))
        if polar_axes(number):
            first = min(zip(ranks, row, strict=True))
            anchors = [orbit for orbit, *key in zip(orbits, ranks, row, strict=True) if tuple(key) == first]
            images = np.concatenate(anchors) @ setting.rotation.T + setting.translation
            shifts = _polar_shifts(number, images)
        for shift in shifts:
            maps.append((setting.rotation, setting.translation - shift))
            columns.append(row)
            bases.append(lattice)
    rotations = np.array([rotation for rotation, _ in maps])
    translations = np.array([translation for _, translation in maps])
    letters = np.array(columns)
    coords = np.empty((len(maps), len(orbits), 3), dtype=np.int64)
    for index, images in enumerate(orbits):
        for letter in np.unique(letters[:, index]):
            (rows,) = np.nonzero(letters[:, index] == letter)
            position = wyckoff_positions(number)[letter]
            moved = images @ rotations[rows].transpose(0, 2, 1) + translations[rows, None, :]
            coords[rows, index] = _representatives(position, moved, order, factor)
    described = (
        (sorted(zip(ranks, letters[row].tolist(), map(tuple, coords[row].tolist()), strict=True)), bases[row])
        for row in range(len(maps))
    )
    sites, lattice = min(described)
    return Form(number, lattice, tuple(sites), factor)


def unordered(number: int, coords: tuple[int, ...]) -> tuple[int, int, int]:
    """Coordinates back in the order x, y, z."""
    point = [0, 0, 0]
    for axis, value in zip(axis_order(number), coords, strict=True):
        point[axis] = value
    return point[0], point[1], point[2]


def form_cell(form: Form) -> Cell:
    """The primitive cell that a form describes, atoms in the order of its sites."""
    grid = COORDINATE_GRID * form.factor
    units = [LENGTH_UNIT / form.factor] * 3 + [ANGLE_UNIT / form.factor] * 3
    vectors = lattice_vectors(tuple(value * unit for value, unit in zip(form.lattice, units, strict=True)))
    points, numbers = [], []
    for rank, _, coords in form.sites:
        images = expand_primitive(form.number, np.array(unordered(form.number, coords)), grid)
        points.append(images)
        numbers += [ATOMIC_NUMBERS[SYMBOL_OF_RANK[rank]]] * len(images)
    positions = np.concatenate(points) / grid
    return Cell(primitive_basis(form.number) @ vectors, positions, np.array(numbers), np.arange(len(numbers)))
