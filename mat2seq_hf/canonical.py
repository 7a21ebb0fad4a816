"""The canonical form: one description for each crystal.

A :class:`CanonicalCrystal` is the form in which a crystal settles (``fixed_point.py``), as numbers and as text.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from .cell import OVERLAP_DISTANCE, check_distances, has_nearer_atoms, read_cell
from .elements import ELEMENTS, ORDER, SYMBOL_OF
from .errors import CrystalError, DecodeError
from .fixed_point import TIGHT, Scheme, fixed_point
from .forms import Form, axis_order, form_cell, unordered
from .grid import ANGLE_UNIT, COORDINATE_GRID, LENGTH_UNIT, MAX_LENGTH
from .lattice import lattice_rule, lattice_vectors, tied_lattice
from .normalizer import locate
from .operations import expand_orbit, points_per_primitive
from .reduction import Cell, primitive_cell
from .sequence import Description, SiteDescription, format_text, formula_words, parse_text
from .symmetry import DETECTORS
from .vocabulary import MAX_ATOMS
from .wyckoff import LETTERS, SYMBOLS, position_by_name, wyckoff_positions

if TYPE_CHECKING:
    from pymatgen.core import Structure

__all__ = ["CanonicalCrystal", "Site", "canonicalize", "check_symprec"]

# Rounding and symmetrising move two atoms by less than this (angstrom) and 4 symprec towards each other.
_ROUNDING = 0.35


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
        composition = tuple(self.composition.items())
        return format_text(Description(self.space_group_number, self._lattice(), sites, composition))

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

    def canonical(self, symprec: float = 0.01, detector: str = "spglib") -> CanonicalCrystal:
        """The canonical form of the crystal this text describes; arguments as of :func:`canonicalize`."""
        return canonicalize(self._cell(), symprec, detector)

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
        """Atoms in the order of the sites."""
        number = self.space_group_number
        axes = axis_order(number)
        sites = []
        for site in self.sites:
            point = _integers(site.coords, 1.0 / COORDINATE_GRID)
            letter = LETTERS.index(site.wyckoff[-1])
            sites.append((ORDER[site.element], letter, tuple(point[axis] for axis in axes)))
        return form_cell(Form(number, self._lattice(), tuple(sites), 1), primitive)

    def _lattice(self) -> tuple[int, int, int, int, int, int]:
        """Lengths and angles in the units of the sequence."""
        return (*_integers(self.lattice[:3], LENGTH_UNIT), *_integers(self.lattice[3:], ANGLE_UNIT))


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


def _from_form(form: Form) -> CanonicalCrystal:
    a, b, c, alpha, beta, gamma = form.lattice
    sites = []
    for rank, letter, coords in form.sites:
        name = wyckoff_positions(form.number)[letter].name
        sites.append(SiteDescription(ELEMENTS[rank], name, unordered(form.number, coords)))
    return _from_description(Description(form.number, (a, b, c, alpha, beta, gamma), tuple(sites), ()))


def _check(description: Description, crystal: CanonicalCrystal) -> None:
    """Raise :class:`DecodeError` unless lattice, orbits and formula agree with the space group."""
    number, symbol = description.number, crystal.space_group
    tied = tied_lattice(number, description.lattice)
    if tied != description.lattice:
        raise DecodeError(f"lattice {crystal.lattice} contradicts {symbol}: {lattice_rule(number)}")
    lattice_vectors(crystal.lattice)
    fixed: set[str] = set()
    for site in description.sites:
        position = position_by_name(number, site.wyckoff)
        assert position is not None  # parse_text has looked it up
        images = expand_orbit(number, np.array(site.coords))
        if len(images) != position.multiplicity or not locate(position, images / COORDINATE_GRID).any():
            raise DecodeError(
                f"{_place(site)}: the point has {len(images)} images in {symbol} and lies on another position"
            )
        if not position.freedom and site.wyckoff in fixed:
            raise DecodeError(f"{_place(site)}: position {site.wyckoff} has a single point set and is occupied already")
        fixed.add(site.wyckoff)
    if tuple(crystal.composition.items()) != tuple(sorted(description.formula, key=lambda item: ORDER[item[0]])):
        words = " ".join(formula_words(description.formula))
        raise DecodeError(f"the sites add up to {crystal.formula}, but the formula says {words}")


def _place(site: SiteDescription) -> str:
    point = " ".join(f"{value / COORDINATE_GRID:.4f}" for value in site.coords)
    return f"site {site.element} {site.wyckoff} {point}"


def _check_size(crystal: CanonicalCrystal) -> None:
    longest = max(crystal.lattice[:3])
    if longest >= MAX_LENGTH - LENGTH_UNIT or min(crystal.lattice[:3]) < 1.0:
        raise CrystalError(f"cell lengths {crystal.lattice[:3]} lie outside 1 to {MAX_LENGTH:g} angstrom")
    atoms = sum(crystal.composition.values())
    if atoms > MAX_ATOMS:
        raise CrystalError(f"the primitive cell has {atoms} atoms; at most {MAX_ATOMS} can be written")


def check_symprec(symprec: Any) -> None:
    """Raise :class:`CrystalError` unless the tolerance is a number from 1e-5 to 0.2 (angstrom)."""
    if isinstance(symprec, bool) or not isinstance(symprec, Real) or not 1e-5 <= float(symprec) <= 0.2:
        raise CrystalError(f"symprec {symprec!r} is no number from 1e-5 to 0.2 (angstrom)")


def canonicalize(crystal: Any, symprec: float = 0.01, detector: str = "spglib") -> CanonicalCrystal:
    """The canonical form of a crystal.

    Every rotation, translation, permutation of atoms, change of basis and supercell of one crystal gives the same
    result; mirror images of chiral crystals give different ones; decoding the text gives the crystal back, and
    encoding that again gives the same text.

    Args:
        crystal: pymatgen ``Structure``, ``ase.Atoms``, CIF text, POSCAR text, or a tuple (lattice, positions, numbers)
            as spglib takes it.
        symprec: tolerance of the symmetry search, angstrom, 1e-5 to 0.2.
        detector: who decides what is symmetric within symprec, ``"spglib"`` or ``"moyopy"`` (faster). They differ in
            crystals that are symmetric neither exactly nor clearly outside symprec.

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
    check_symprec(symprec)
    if detector not in tuple(DETECTORS):  # a list cannot be looked up in a dict
        raise CrystalError(f"detector {detector!r} is none of {', '.join(DETECTORS)}")
    cell = primitive_cell(read_cell(crystal), TIGHT)
    crowded = has_nearer_atoms(cell, OVERLAP_DISTANCE + 4 * symprec + _ROUNDING)
    if crowded:
        check_distances(cell)
    form = fixed_point(cell, Scheme(symprec, detector))
    if crowded:  # what is written must be a crystal, too
        check_distances(primitive_cell(form_cell(form), TIGHT))
    result = _from_form(form)
    _check_size(result)
    return result
