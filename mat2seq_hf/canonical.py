"""The canonical form: one description for each crystal.

A crystal is symmetrised (``symmetry.py``), described in every setting that its space group's normalizer allows
(``normalizer.py``) with every admissible origin along polar axes, and the lexicographically smallest description in
integers is taken. The set of descriptions depends on the crystal alone, so its minimum does too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .cell import check_distances, read_cell
from .elements import ATOMIC_NUMBERS, ORDER, SYMBOL_OF
from .errors import CrystalError, DecodeError, SymmetryError
from .grid import ANGLE_UNIT, COORDINATE_GRID, LENGTH_UNIT, MAX_LENGTH, quantize
from .normalizer import Setting, locate, settings
from .operations import (
    expand_orbit,
    expand_primitive,
    group_operations,
    points_per_primitive,
    polar_axes,
    primitive_basis,
)
from .reduction import Cell, primitive_cell
from .sequence import Description, SiteDescription, format_text, formula_words, parse_text
from .symmetry import StandardCrystal, symmetrize
from .vocabulary import MAX_ATOMS
from .wyckoff import LETTERS, SYMBOLS, WyckoffPosition, position_by_name, wyckoff_positions

if TYPE_CHECKING:
    from pymatgen.core import Structure

__all__ = ["CanonicalCrystal", "Site", "canonicalize"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# First pass: only what is symmetric to the last digit. It lies between the rounding errors of data with six decimals
# (below 21 angstrom) and of data with five (above 2.1 angstrom), so that it cuts through neither.
_TIGHT = 7e-6  # angstrom
# Between passes a crystal is kept on a grid this much finer than that of the text: fine enough to lose nothing,
# coarse enough that every description of one crystal continues from the same bits.
_FINE = 10_000
_ROUNDS = 20

# (rank of element, index of Wyckoff letter, coordinates with polar axes first)
_SiteKey = tuple[int, int, tuple[int, ...]]


@dataclass(frozen=True)
class _Form:
    """A description on a grid ``factor`` times finer than that of the text."""

    number: int
    lattice: tuple[int, ...]
    sites: tuple[_SiteKey, ...]
    factor: int


def _axis_order(number: int) -> list[int]:
    polar = polar_axes(number)
    return [*polar, *(axis for axis in range(3) if axis not in polar)]


def _lattice_integers(number: int, metric: Floats, factor: int) -> tuple[int, ...]:
    """a, b, c, alpha, beta, gamma as integers, the ties of the crystal system exact."""
    lengths = np.sqrt(np.diag(metric))
    a, b, c = (int(value) for value in quantize(lengths, LENGTH_UNIT / factor))
    pairs = ((1, 2), (0, 2), (0, 1))
    cosines = np.array([metric[i, j] / (lengths[i] * lengths[j]) for i, j in pairs])
    degrees = np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0)))
    alpha, beta, gamma = (int(value) for value in quantize(degrees, ANGLE_UNIT / factor))
    right = 9000 * factor
    if number <= 2:
        return a, b, c, alpha, beta, gamma
    if number <= 15:
        return a, b, c, right, beta, right
    if number <= 74:
        return a, b, c, right, right, right
    if number <= 142:
        return a, a, c, right, right, right
    if number <= 194:
        return a, a, c, right, right, 12000 * factor
    return a, a, a, right, right, right


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


def _candidates(
    crystal: StandardCrystal, factor: int, letters: list[str], ranks: list[int]
) -> tuple[tuple[int, ...], list[Setting], list[list[int]]]:
    """The smallest lattice, and the settings with it that give the smallest list of Wyckoff letters."""
    lattices: dict[bytes, tuple[int, ...]] = {}
    choices = settings(crystal.number, crystal.metric)
    for setting in choices:
        key = setting.rotation.tobytes()
        if key not in lattices:
            inverse = np.linalg.inv(setting.rotation)
            lattices[key] = _lattice_integers(crystal.number, inverse.T @ crystal.metric @ inverse, factor)
    lattice = min(lattices.values())
    choices = [setting for setting in choices if lattices[setting.rotation.tobytes()] == lattice]
    indices = [[LETTERS.index(setting.letters[letter]) for letter in letters] for setting in choices]
    signatures = [sorted(zip(ranks, row, strict=True)) for row in indices]
    best = min(signatures)
    kept = [i for i, signature in enumerate(signatures) if signature == best]
    return lattice, [choices[i] for i in kept], [indices[i] for i in kept]


def _canonical_form(crystal: StandardCrystal, factor: int) -> _Form:
    """The smallest of all descriptions of a symmetrised crystal."""
    number, order = crystal.number, _axis_order(crystal.number)
    orbits = _orbit_images(crystal)
    ranks = [ORDER[SYMBOL_OF[int(z)]] for z in crystal.numbers]
    lattice, choices, indices = _candidates(crystal, factor, _orbit_letters(crystal, orbits), ranks)

    maps, columns = [], []  # each description: rotation, shift; and the Wyckoff letters of its orbits
    for setting, row in zip(choices, indices, strict=True):
        shifts = np.zeros((1, 3))
        if polar_axes(number):
            first = min(zip(ranks, row, strict=True))
            anchors = [orbit for orbit, *key in zip(orbits, ranks, row, strict=True) if tuple(key) == first]
            images = np.concatenate(anchors) @ setting.rotation.T + setting.translation
            shifts = _polar_shifts(number, images)
        for shift in shifts:
            maps.append((setting.rotation, setting.translation - shift))
            columns.append(row)
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
        sorted(zip(ranks, letters[row].tolist(), map(tuple, coords[row].tolist()), strict=True))
        for row in range(len(maps))
    )
    return _Form(number, lattice, tuple(min(described)), factor)


def _unordered(number: int, coords: tuple[int, ...]) -> tuple[int, int, int]:
    """Coordinates back in the order x, y, z."""
    point = [0, 0, 0]
    for axis, value in zip(_axis_order(number), coords, strict=True):
        point[axis] = value
    return point[0], point[1], point[2]


def _vectors(lattice: tuple[float, ...]) -> Floats:
    """Basis vectors as rows (angstrom): a in the xz plane, c along z; lengths in angstrom, angles in degree.

    Raises:
        DecodeError: three angles that no cell has.
    """
    a, b, c = lattice[:3]
    # Right angles are exact: cos(90 degree) in floats is 6e-17.
    cos_alpha, cos_beta, cos_gamma = (0.0 if angle == 90.0 else np.cos(np.radians(angle)) for angle in lattice[3:])
    square = 1 - cos_alpha**2 - cos_beta**2 - cos_gamma**2 + 2 * cos_alpha * cos_beta * cos_gamma
    if square < 1e-8:
        raise DecodeError(f"no cell has the angles {lattice[3]}, {lattice[4]}, {lattice[5]} degree")
    sin_alpha, sin_beta = np.sqrt(1 - cos_alpha**2), np.sqrt(1 - cos_beta**2)
    y = (cos_gamma - cos_alpha * cos_beta) / sin_beta
    return np.array(
        [
            [a * sin_beta, 0.0, a * cos_beta],
            [b * y, b * np.sqrt(max(sin_alpha**2 - y**2, 0.0)), b * cos_alpha],
            [0.0, 0.0, c],
        ]
    )


def _form_cell(form: _Form) -> Cell:
    """The primitive cell that a form describes, atoms in the order of its sites."""
    grid = COORDINATE_GRID * form.factor
    units = [LENGTH_UNIT / form.factor] * 3 + [ANGLE_UNIT / form.factor] * 3
    vectors = _vectors(tuple(value * unit for value, unit in zip(form.lattice, units, strict=True)))
    points, numbers = [], []
    for rank, _, coords in form.sites:
        images = expand_primitive(form.number, np.array(_unordered(form.number, coords)), grid)
        points.append(images)
        numbers += [ATOMIC_NUMBERS[_BY_RANK[rank]]] * len(images)
    positions = np.concatenate(points) / grid
    return Cell(primitive_basis(form.number) @ vectors, positions, np.array(numbers), np.arange(len(numbers)))


_BY_RANK = {rank: symbol for symbol, rank in ORDER.items()}


def _form_crystal(form: _Form) -> StandardCrystal:
    """The crystal that a form describes; its symmetry is known, nothing is searched."""
    grid = COORDINATE_GRID * form.factor
    units = [LENGTH_UNIT / form.factor] * 3 + [ANGLE_UNIT / form.factor] * 3
    vectors = _vectors(tuple(value * unit for value, unit in zip(form.lattice, units, strict=True)))
    return StandardCrystal(
        form.number,
        vectors @ vectors.T,
        np.array([_unordered(form.number, coords) for _, _, coords in form.sites]) / grid,
        np.array([ATOMIC_NUMBERS[_BY_RANK[rank]] for rank, _, _ in form.sites], dtype=np.int64),
        np.array([wyckoff_positions(form.number)[letter].multiplicity for _, letter, _ in form.sites]),
    )


def _encode(crystal: StandardCrystal, symprec: float) -> _Form:
    """Symmetrise within symprec until group and atom count stand still, then describe.

    Averaging over a group can bring out a higher one, so one search is not enough.
    """
    for _ in range(_ROUNDS):
        following = symmetrize(_form_cell(_canonical_form(crystal, _FINE)), symprec)
        if (following.number, following.n_atoms) == (crystal.number, crystal.n_atoms):
            break
        crystal = following
    return _canonical_form(following, 1)


def _fixed_point(cell: Cell, symprec: float) -> _Form:
    """Encode until the decoded crystal encodes to itself.

    The search starts from what is symmetric to the last digit: its result is the same for every description, so that
    every later decision, however close to the tolerance, falls the same way for all of them.

    Rounding to the grid can bring a crystal that was just outside ``symprec`` of a higher symmetry, or of another
    reduced basis, just inside. Where forms come round in a circle, the smallest of the circle is taken.
    """
    seen: list[_Form] = []
    form = _encode(symmetrize(cell, _TIGHT), symprec)
    while form not in seen:
        seen.append(form)
        form = _encode(_form_crystal(form), symprec)
    circle = seen[seen.index(form) :]
    return min(circle, key=lambda item: (item.number, item.lattice, item.sites))


@dataclass(frozen=True)
class Site:
    """One orbit of a crystal.

    Attributes:
        element: chemical symbol.
        wyckoff: multiplicity (in the conventional cell) and letter of the Wyckoff position, such as ``"4a"``.
        coords: fractional coordinates of the representative in the conventional cell.
    """

    element: str
    wyckoff: str
    coords: tuple[float, float, float]


@dataclass(frozen=True)
class CanonicalCrystal:
    """A crystal in the ITA standard setting of its space group.

    Attributes:
        space_group_number: 1 to 230.
        lattice: a, b, c (angstrom), alpha, beta, gamma (degree) of the conventional cell.
        sites: one for each orbit, in the order of the sequence.
    """

    space_group_number: int
    lattice: tuple[float, float, float, float, float, float]
    sites: tuple[Site, ...]

    @property
    def space_group(self) -> str:
        """International short symbol, such as ``"Fm-3m"``."""
        return SYMBOLS[self.space_group_number - 1]

    @property
    def composition(self) -> dict[str, int]:
        """Atoms of each element in the primitive cell, in the order of the sequence."""
        count = points_per_primitive(self.space_group_number)
        totals: dict[str, int] = {}
        for site in self.sites:
            totals[site.element] = totals.get(site.element, 0) + int(site.wyckoff[:-1])
        return {element: totals[element] // count for element in sorted(totals, key=ORDER.__getitem__)}

    @property
    def formula(self) -> str:
        """Formula of the primitive cell, such as ``"Ba1 Ti1 O3"``."""
        return " ".join(formula_words(tuple(self.composition.items())))

    @cached_property
    def text(self) -> str:
        """The sequence as text."""
        sites = tuple(
            SiteDescription(site.element, site.wyckoff, _integers(site.coords, 1.0 / COORDINATE_GRID))
            for site in self.sites
        )
        lattice = (*_integers(self.lattice[:3], LENGTH_UNIT), *_integers(self.lattice[3:], ANGLE_UNIT))
        return format_text(Description(self.space_group_number, lattice, sites, tuple(self.composition.items())))

    @classmethod
    def from_text(cls, text: str) -> CanonicalCrystal:
        """Read any well-formed text, canonical or not; prefix fields are skipped.

        Raises:
            DecodeError: a word that cannot be read, a site whose orbit is not that of the stated Wyckoff position, an
                atom count that contradicts the formula, or a lattice that contradicts the space group.
        """
        description = parse_text(text)
        crystal = _from_description(description)
        _check(description, crystal)
        return crystal

    def canonical(self, symprec: float = 0.01) -> CanonicalCrystal:
        """The canonical form of the crystal this text describes."""
        return canonicalize(self._cell(), symprec)

    def to_structure(self, primitive: bool = True) -> Structure:
        """The crystal as a pymatgen Structure, symmetry exact to the last bit of the coordinates' grid.

        Args:
            primitive: the primitive cell; otherwise the conventional one.
        """
        from pymatgen.core import Lattice, Structure

        cell = self._cell(primitive)
        symbols = [SYMBOL_OF[int(number)] for number in cell.numbers]
        return Structure(Lattice(cell.lattice), symbols, cell.positions)

    def _cell(self, primitive: bool = True) -> Cell:
        number = self.space_group_number
        vectors = _vectors(self.lattice)
        points, numbers = [], []
        for site in self.sites:
            point = np.array(_integers(site.coords, 1.0 / COORDINATE_GRID))
            images = expand_primitive(number, point) if primitive else expand_orbit(number, point)
            points.append(images)
            numbers += [ATOMIC_NUMBERS[site.element]] * len(images)
        basis = primitive_basis(number) if primitive else np.eye(3)
        positions = np.concatenate(points) / COORDINATE_GRID
        return Cell(basis @ vectors, positions, np.array(numbers), np.arange(len(numbers)))


def _integers(values: tuple[float, ...], unit: float) -> tuple[int, int, int]:
    x, y, z = (round(value / unit) for value in values)
    return x, y, z


def _from_description(description: Description) -> CanonicalCrystal:
    a, b, c, alpha, beta, gamma = description.lattice
    sites = tuple(
        Site(
            site.element,
            site.wyckoff,
            (site.coords[0] / COORDINATE_GRID, site.coords[1] / COORDINATE_GRID, site.coords[2] / COORDINATE_GRID),
        )
        for site in description.sites
    )
    # Quotients of integers are the floats nearest to the decimals; products with 1e-4 are not.
    lattice = (a / 10_000, b / 10_000, c / 10_000, alpha / 100, beta / 100, gamma / 100)
    return CanonicalCrystal(description.number, lattice, sites)


def _from_form(form: _Form) -> CanonicalCrystal:
    a, b, c, alpha, beta, gamma = form.lattice
    sites = []
    for rank, letter, coords in form.sites:
        name = wyckoff_positions(form.number)[letter].name
        sites.append(SiteDescription(_BY_RANK[rank], name, _unordered(form.number, coords)))
    return _from_description(Description(form.number, (a, b, c, alpha, beta, gamma), tuple(sites), ()))


def _check(description: Description, crystal: CanonicalCrystal) -> None:
    """Raise :class:`DecodeError` unless lattice, orbits and formula agree with the space group."""
    number, symbol = description.number, crystal.space_group
    tied = _tied_lattice(number, description.lattice)
    if tied != description.lattice:
        raise DecodeError(f"lattice {crystal.lattice} contradicts {symbol}: {crystal_lattice_rule(number)}")
    _vectors(crystal.lattice)
    fixed: set[str] = set()
    for site in description.sites:
        place = f"site {site.element} {site.wyckoff} {crystal_point(site.coords)}"
        position = position_by_name(number, site.wyckoff)
        assert position is not None  # parse_text has looked it up
        images = expand_orbit(number, np.array(site.coords))
        if len(images) != position.multiplicity or not locate(position, images / COORDINATE_GRID).any():
            raise DecodeError(f"{place}: the point has {len(images)} images in {symbol} and lies on another position")
        if not position.freedom and site.wyckoff in fixed:
            raise DecodeError(f"{place}: position {site.wyckoff} has a single point set and is occupied already")
        fixed.add(site.wyckoff)
    if tuple(crystal.composition.items()) != tuple(sorted(description.formula, key=lambda item: ORDER[item[0]])):
        words = " ".join(formula_words(description.formula))
        raise DecodeError(f"the sites add up to {crystal.formula}, but the formula says {words}")


def crystal_point(coords: tuple[int, int, int]) -> str:
    """Coordinates in units of 1/9600 as decimals, for messages."""
    return " ".join(f"{value / COORDINATE_GRID:.4f}" for value in coords)


def _tied_lattice(number: int, lattice: tuple[int, ...]) -> tuple[int, ...]:
    a, b, c, alpha, beta, gamma = lattice
    if number <= 2:
        return lattice
    if number <= 15:
        return a, b, c, 9000, beta, 9000
    if number <= 74:
        return a, b, c, 9000, 9000, 9000
    if number <= 142:
        return a, a, c, 9000, 9000, 9000
    if number <= 194:
        return a, a, c, 9000, 9000, 12000
    return a, a, a, 9000, 9000, 9000


def crystal_lattice_rule(number: int) -> str:
    """What the crystal system asks of the lattice parameters, in words."""
    for last, rule in ((15, "alpha = gamma = 90"), (74, "all angles 90"), (142, "a = b and all angles 90")):
        if number <= last:
            return rule
    return "a = b, alpha = beta = 90, gamma = 120" if number <= 194 else "a = b = c and all angles 90"


def _check_size(form: _Form, crystal: CanonicalCrystal) -> None:
    longest = max(crystal.lattice[:3])
    if longest >= MAX_LENGTH - LENGTH_UNIT or min(crystal.lattice[:3]) < 1.0:
        raise CrystalError(f"cell lengths {crystal.lattice[:3]} lie outside 1 to {MAX_LENGTH:g} angstrom")
    atoms = sum(crystal.composition.values())
    if atoms > MAX_ATOMS:
        raise CrystalError(f"the primitive cell has {atoms} atoms; at most {MAX_ATOMS} can be written")


def canonicalize(crystal: Any, symprec: float = 0.01) -> CanonicalCrystal:
    """The canonical form of a crystal.

    Every rotation, translation, permutation of atoms, change of basis and supercell of one crystal gives the same
    result; mirror images of chiral crystals give different ones; decoding the text gives the crystal back, and
    encoding that again gives the same text.

    Args:
        crystal: pymatgen ``Structure``, ``ase.Atoms``, CIF text or POSCAR text.
        symprec: tolerance of the symmetry search, angstrom, 1e-5 to 0.2.

    Raises:
        CrystalError: the input is not an ordered crystal, atoms overlap, or it is larger than the vocabulary allows.
        SymmetryError: no consistent space group was found.

    Example:
        >>> from pymatgen.core import Lattice, Structure
        >>> perovskite = Structure(
        ...     Lattice.cubic(4.0), ["Ti", "Ba", "O", "O", "O"],
        ...     [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]],
        ... )
        >>> canonicalize(perovskite).text
        'Ba1 Ti1 O3 [Pm-3m] 4.0000 4.0000 4.0000 90 90 90 Ba 1a 0 0 0 Ti 1b 1/2 1/2 1/2 O 3c 0 1/2 1/2'
    """
    if not 1e-5 <= symprec <= 0.2:
        raise CrystalError(f"symprec {symprec!r} is outside 1e-5 to 0.2 angstrom")
    cell = primitive_cell(read_cell(crystal), _TIGHT)
    check_distances(cell)
    form = _fixed_point(cell, symprec)
    result = _from_form(form)
    _check_size(form, result)
    return result
