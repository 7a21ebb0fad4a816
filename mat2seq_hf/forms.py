"""Forms: a symmetrised crystal as integers, and the smallest of all its forms.

A crystal with exact symmetry is described in every setting that its space group's normalizer allows
(``normalizer.py``), with every admissible origin along polar axes, and the lexicographically smallest description is
taken. The set of descriptions depends on the crystal alone, so its minimum does too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .elements import ATOMIC_NUMBERS, ELEMENTS, ORDER, SYMBOL_OF
from .errors import SymmetryError
from .grid import ANGLE_UNIT, COORDINATE_GRID, LENGTH_UNIT, quantize
from .lattice import lattice_integers, lattice_vectors, tied_lattice
from .normalizer import Settings, locate, settings
from .operations import (
    expand_orbits,
    group_operations,
    inverted_group,
    points_per_primitive,
    polar_axes,
    primitive_basis,
)
from .reduction import Cell
from .symmetry import StandardCrystal
from .wyckoff import SYMBOLS, WyckoffPosition, wyckoff_positions

__all__ = [
    "Form",
    "axis_order",
    "canonical_form",
    "form_cell",
    "form_crystal",
    "is_fixed",
    "mirror_image",
    "rounds_alike",
    "unordered",
]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_RANK_FACTOR = 32  # more than the 27 letters of a group
_CUBE_FITS = 2_000_000  # grids whose third power is an int64
_MIDDLE = 0.02  # of a grid step: rounding boundaries lie nearer to the middle
_SHIFTS = 1e11  # origins nearer than a part in so many are one: the error of floats, far below any grid

# (rank of element, index of Wyckoff letter, coordinates with polar axes first)
_SiteKey = tuple[int, int, tuple[int, ...]]


@dataclass(frozen=True)
class Form:
    """A description on a grid ``factor`` times finer than that of the text."""

    number: int
    lattice: tuple[int, ...]
    sites: tuple[_SiteKey, ...]
    factor: int

    @property
    def n_atoms(self) -> int:
        """Atoms in the primitive cell."""
        positions = wyckoff_positions(self.number)
        total = sum(positions[letter].multiplicity for _, letter, _ in self.sites)
        return total // points_per_primitive(self.number)


@lru_cache(maxsize=230)
def axis_order(number: int) -> tuple[int, ...]:
    """The axes in the order in which coordinates are compared, polar ones first."""
    polar = polar_axes(number)
    return (*polar, *(axis for axis in range(3) if axis not in polar))


def _orbit_images(crystal: StandardCrystal) -> Floats:
    """All images of each orbit's point in the conventional cell, shape (k, n, 3)."""
    rotations, translations = group_operations(crystal.number)
    moved: Floats = crystal.points @ rotations.transpose(0, 2, 1) + (translations / 24.0)[:, None, :]
    return moved.transpose(1, 0, 2)


def _orbit_letters(crystal: StandardCrystal, images: Floats) -> Integers:
    """Index of each orbit's Wyckoff letter, shape (k,)."""
    if crystal.letters is not None:
        return crystal.letters
    letters = np.full(len(images), -1)
    unknown: dict[int, list[int]] = {}
    for orbit, multiplicity in enumerate(crystal.multiplicities.tolist()):
        unknown.setdefault(multiplicity, []).append(orbit)
    for index, position in enumerate(wyckoff_positions(crystal.number)):
        if orbits := unknown.get(position.multiplicity):
            here = set(np.nonzero(locate(position, images[orbits]))[0].tolist())
            letters[[orbit for row, orbit in enumerate(orbits) if row in here]] = index
            unknown[position.multiplicity] = [orbit for row, orbit in enumerate(orbits) if row not in here]
    if (letters < 0).any():
        lost = int((letters < 0).argmax())
        raise SymmetryError(
            f"an orbit of {crystal.multiplicities[lost]} atoms at {images[lost, 0].round(4).tolist()} fits no Wyckoff "
            f"position of {SYMBOLS[crystal.number - 1]}; try a smaller symprec"
        )
    return letters


def _smallest(rows: Integers, usable: NDArray[np.bool_], grid: int) -> Integers:
    """Lexicographically smallest usable row, shape (c, n, 3) -> (c, 3); each column fits below ``grid``."""
    if rows.shape[1] == 1:
        return rows[:, 0]
    large = np.iinfo(np.int64).max
    leading = rows[..., 0] * grid + rows[..., 1]
    if grid <= _CUBE_FITS:
        codes = np.where(usable, leading * grid + rows[..., 2], large).min(axis=1)
        first, last = codes // grid, codes % grid
    else:
        leading = np.where(usable, leading, large)
        first = leading.min(axis=1)
        last = np.where(leading == first[:, None], rows[..., 2], large).min(axis=1)
    return np.stack([first // grid, first % grid, last], axis=1)


def _representatives(position: WyckoffPosition, images: Floats, order: tuple[int, ...], factor: int) -> Integers:
    """Smallest representative on the position's first triplet, coordinates in the order ``order``.

    Args:
        images: all images of m orbits, shape (m, n, 3).

    Returns:
        integers in units of 1 / (9600 factor), shape (m, 3).
    """
    grid = COORDINATE_GRID * factor
    axes, signs, columns = position.reading
    parameters = quantize(signs * (images[..., axes] - position.offset[axes]), 1.0 / grid)
    rows = (parameters @ columns.T + np.array(position.shift24) * (grid // 24)) % grid
    return _smallest(rows[..., order], locate(position, images), grid)


def _polar_shifts(number: int, images: Floats) -> Floats:
    """Shifts along the polar axes that put a point of an orbit at zero there, shape (k, 3).

    Only what is equal within the error of floats is one shift. Where points nearly coincide, each of them competes: to
    merge them would let their order decide.
    """
    shifts = np.zeros_like(images)
    polar = list(polar_axes(number))
    shifts[:, polar] = images[:, polar] - np.floor(images[:, polar])
    if len(shifts) == 1:
        return shifts
    columns = (np.rint(shifts * _SHIFTS) % _SHIFTS).T
    order = np.lexsort(columns)
    sorted_columns = columns[:, order]
    new = np.append(True, (sorted_columns[:, 1:] != sorted_columns[:, :-1]).any(axis=0))
    distinct: Floats = shifts[order[new]]
    return distinct


def _lattices(crystal: StandardCrystal, choices: Settings, factor: int) -> list[tuple[int, ...]]:
    """Lattice parameters in each setting."""
    number, metric = crystal.number, crystal.metric
    if number >= 75:  # rotations of the holohedry: they leave the metric
        return [lattice_integers(number, metric, factor)] * len(choices)
    if number >= 16:  # orthorhombic axes are exchanged and reversed
        lengths = lattice_integers(number, metric, factor)
        axes = np.abs(choices.rotations).argmax(axis=2).tolist()
        return [tied_lattice(number, (*(lengths[axis] for axis in row), 0, 0, 0), factor) for row in axes]
    known: dict[bytes, tuple[int, ...]] = {}
    found = []
    for rotation, basis in zip(choices.rotations, choices.inverses, strict=True):
        key = rotation.tobytes()
        if key not in known:
            known[key] = lattice_integers(number, basis.T @ metric @ basis, factor)
        found.append(known[key])
    return found


def _conventional(number: int, lattice: tuple[int, ...], right: int) -> bool:
    """Niggli's order and sign rule for triclinic lattices, beta not acute for monoclinic ones."""
    a, b, c, *angles = lattice
    if number >= 3:
        return angles[1] >= right
    return a <= b <= c and (max(angles) <= right or min(angles) >= right)


def _candidates(
    crystal: StandardCrystal, factor: int, letters: Integers, ranks: Integers, wide: bool
) -> tuple[list[tuple[int, ...]], Settings, Integers]:
    """Lattices, settings and letters of the orbits, shape (c, k), for all descriptions that can be the smallest.

    These have the smallest lattice (``wide``: a conventional one) and the smallest list of Wyckoff letters.
    """
    choices = settings(crystal.number, crystal.metric, wide)
    lattices = _lattices(crystal, choices, factor)
    if crystal.number >= 16 or not wide:
        smallest = min(lattices)
        usable = [row for row, other in enumerate(lattices) if other == smallest]
    else:
        usable = [row for row, other in enumerate(lattices) if _conventional(crystal.number, other, 9000 * factor)]
    indices = choices.letters[usable][:, letters]
    signatures = np.sort(ranks * _RANK_FACTOR + indices, axis=1).tolist()
    best = min(signatures)
    fits = [row for row, signature in enumerate(signatures) if signature == best]
    if len(fits) == len(choices):
        return lattices, choices, indices
    kept = [usable[row] for row in fits]
    return [lattices[row] for row in kept], choices[kept], indices[fits]


def _ahead(keys: Integers, coords: Integers) -> Integers:
    """Descriptions whose first sites are the smallest, in a few cheap rounds that leave little to sort."""
    rows = np.arange(len(keys))
    span = int(coords.max()) + 1
    leading, trailing = keys * span + coords[..., 0], coords[..., 1] * span + coords[..., 2]
    large = np.iinfo(np.int64).max
    for _ in range(_FILTER_ROUNDS):
        first = leading.min(axis=1)
        second = np.where(leading == first[:, None], trailing, large).min(axis=1)
        best = min(zip(first.tolist(), second.tolist(), strict=True))
        kept = (first == best[0]) & (second == best[1])
        rows, leading, trailing = rows[kept], leading[kept], trailing[kept]
        leading[(leading == best[0]) & (trailing == best[1])] = large  # compared
        if len(rows) == 1:
            break
    return rows


_FILTER_ROUNDS = 3
_MANY = 4096  # sites of all descriptions together above which sorting them all takes longer than looking ahead


def _smallest_description(keys: Integers, coords: Integers, lattices: list[tuple[int, ...]]) -> tuple[int, Integers]:
    """Index of the smallest description and the order of its sites.

    Args:
        keys: element and letter of each site, shape (c, k).
        coords: shape (c, k, 3).
        lattices: decide between descriptions with the same sites.
    """
    rows = _ahead(keys, coords) if keys.size > _MANY else np.arange(len(keys))
    coords = coords[rows]
    order = np.lexsort((coords[..., 2], coords[..., 1], coords[..., 0], keys[rows]), axis=-1)
    ordered = coords[np.arange(len(rows))[:, None], order]
    # Bytes of big-endian integers compare as the lists of integers do.
    size = 8 * ordered[0].size
    blob = ordered.astype(">i8").tobytes()
    best = min(range(len(rows)), key=lambda c: (blob[c * size : (c + 1) * size], lattices[rows[c]]))
    return int(rows[best]), order[best]


def canonical_form(crystal: StandardCrystal, factor: int, wide: bool = False) -> Form:
    """The smallest of all descriptions of a symmetrised crystal.

    Args:
        factor: how much finer the grid is than that of the text.
        wide: let bases compete that are as short as the shortest within rounding, and compare sites before lattices.
            A change of basis carries sites from grid point to grid point, so what is chosen survives rounding; lengths
            and angles do not. For triclinic and monoclinic lattices that are nearly of a higher symmetry.
    """
    number, axes = crystal.number, axis_order(crystal.number)
    orbits = _orbit_images(crystal)
    ranks = np.array([ORDER[SYMBOL_OF[z]] for z in crystal.numbers.tolist()])
    found = _candidates(crystal, factor, _orbit_letters(crystal, orbits), ranks, wide)
    lattices, choices, letters = found
    moved = orbits @ choices.rotations[:, None].transpose(0, 1, 3, 2)  # (settings, k, n, 3)
    choice, translations = _origins(number, moved, ranks, choices, letters)
    letters = letters[choice]
    coords = np.empty((*letters.shape, 3), dtype=np.int64)
    for letter in set(letters.ravel().tolist()):
        rows, members = np.nonzero(letters == letter)
        position = wyckoff_positions(number)[letter]
        if position.freedom:
            images = moved[choice[rows], members] + translations[rows, None, :]
            coords[rows, members] = _representatives(position, images, axes, factor)
        else:
            coords[rows, members] = np.array(position.shift24)[list(axes)] * (COORDINATE_GRID // 24 * factor)
    row, order = _smallest_description(ranks * _RANK_FACTOR + letters, coords, [lattices[i] for i in choice])
    sites = zip(
        ranks[order].tolist(), letters[row, order].tolist(), map(tuple, coords[row, order].tolist()), strict=True
    )
    return Form(number, lattices[choice[row]], tuple(sites), factor)


def _origins(
    number: int, moved: Floats, ranks: Integers, choices: Settings, letters: Integers
) -> tuple[Integers, Floats]:
    """The descriptions that compete: index of the setting, shape (c,), and translation, shape (c, 3).

    Along polar axes each point of the first kind of site can be the origin.

    Args:
        moved: images of all orbits, rotated by each setting, shape (s, k, n, 3).
        letters: of the orbits in each setting, shape (s, k).
    """
    if not polar_axes(number):
        return np.arange(len(choices)), choices.translations
    keys = ranks * _RANK_FACTOR + letters
    translations, rows = [], []
    for row, anchors in enumerate(keys == keys.min(axis=1, keepdims=True)):
        images = moved[row, anchors].reshape(-1, 3) + choices.translations[row]
        shifts = _polar_shifts(number, images)
        translations.append(choices.translations[row] - shifts)
        rows += [row] * len(shifts)
    return np.array(rows), np.concatenate(translations)


def unordered(number: int, coords: tuple[int, ...]) -> tuple[int, int, int]:
    """Coordinates back in the order x, y, z."""
    point = [0, 0, 0]
    for axis, value in zip(axis_order(number), coords, strict=True):
        point[axis] = value
    return point[0], point[1], point[2]


def _form_vectors(form: Form) -> Floats:
    # Quotients of integers are the floats nearest to the decimals; products with 1e-4 are not.
    per_length, per_degree = round(form.factor / LENGTH_UNIT), round(form.factor / ANGLE_UNIT)
    a, b, c, alpha, beta, gamma = form.lattice
    lengths = a / per_length, b / per_length, c / per_length
    return lattice_vectors((*lengths, alpha / per_degree, beta / per_degree, gamma / per_degree))


def form_cell(form: Form, primitive: bool = True) -> Cell:
    """The primitive (otherwise conventional) cell that a form describes, atoms in the order of its sites."""
    grid = COORDINATE_GRID * form.factor
    points = np.array([unordered(form.number, coords) for _, _, coords in form.sites])
    orbits = expand_orbits(form.number, points, grid, primitive)
    elements = [ATOMIC_NUMBERS[ELEMENTS[rank]] for rank, _, _ in form.sites]
    numbers = np.repeat(elements, [len(images) for images in orbits])
    positions = np.array([point for images in orbits for point in images]) / grid
    basis = primitive_basis(form.number) if primitive else np.eye(3)
    return Cell(basis @ _form_vectors(form), positions, numbers, np.arange(len(numbers)))


def is_fixed(form: Form) -> bool:
    """Whether rounding cannot have changed which description is the smallest: no coordinate and no basis is free."""
    positions = wyckoff_positions(form.number)
    return form.number >= 16 and not any(positions[letter].freedom for _, letter, _ in form.sites)


def rounds_alike(crystal: StandardCrystal) -> bool:
    """Whether every description of a crystal rounds to the same grid points, so that the smallest stays the smallest.

    Where settings and operations only exchange and reverse axes and shift by multiples of 1/24, two descriptions can
    round differently only where a coordinate lies close to the middle between two grid points.
    """
    number = crystal.number
    if number < 16 or 143 <= number <= 194 or polar_axes(number):
        return False
    return bool((np.abs(crystal.points * COORDINATE_GRID % 1.0 - 0.5) > _MIDDLE).all())


def form_crystal(form: Form) -> StandardCrystal:
    """The symmetrised crystal that a form describes."""
    grid = COORDINATE_GRID * form.factor
    vectors = _form_vectors(form)
    positions = wyckoff_positions(form.number)
    return StandardCrystal(
        form.number,
        vectors @ vectors.T,
        np.array([unordered(form.number, coords) for _, _, coords in form.sites]) / grid,
        np.array([ATOMIC_NUMBERS[ELEMENTS[rank]] for rank, _, _ in form.sites]),
        np.array([positions[letter].multiplicity for _, letter, _ in form.sites]),
        np.array([letter for _, letter, _ in form.sites]),
    )


def mirror_image(crystal: StandardCrystal) -> StandardCrystal:
    """The mirror image of a crystal in a Sohncke group, in the standard setting of its own group.

    Raises:
        ValueError: the group has improper operations.
    """
    number, shift = inverted_group(crystal.number)
    return replace(crystal, number=number, points=shift / 24.0 - crystal.points, letters=None)
