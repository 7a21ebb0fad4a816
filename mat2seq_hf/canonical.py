"""The canonical form: one description for each crystal.

A crystal is symmetrised (``symmetry.py``), first where it is exact, then within ``symprec``, and its smallest form is
taken (``forms.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .cell import check_distances, read_cell
from .elements import ORDER, SYMBOL_OF
from .errors import CrystalError, DecodeError, SymmetryError
from .forms import (
    SYMBOL_OF_RANK,
    Form,
    axis_order,
    canonical_form,
    form_cell,
    form_crystal,
    is_fixed,
    mirror_image,
    unordered,
)
from .grid import ANGLE_UNIT, COORDINATE_GRID, LENGTH_UNIT, MAX_LENGTH
from .lattice import lattice_rule, lattice_vectors, tied_lattice
from .normalizer import locate
from .operations import expand_orbit, is_sohncke, points_per_primitive, primitive_operations
from .reduction import Cell, primitive_cell
from .sequence import Description, SiteDescription, format_text, formula_words, parse_text
from .symmetry import DETECTORS, StandardCrystal, exact_crystal, has_no_more_symmetry, symmetrize
from .vocabulary import MAX_ATOMS
from .wyckoff import LETTERS, SYMBOLS, position_by_name, wyckoff_positions

if TYPE_CHECKING:
    from pymatgen.core import Structure

__all__ = ["CanonicalCrystal", "Site", "canonicalize"]

# First pass: only what is symmetric to the last digit. It lies between the rounding errors of data with six decimals
# (below 21 angstrom) and of data with five (above 2.1 angstrom), so that it cuts through neither.
_TIGHT = 7e-6  # angstrom
# Between passes a crystal is kept on a grid this much finer than that of the text: fine enough to lose nothing,
# coarse enough that every description of one crystal continues from the same bits.
_FINE = 10_000
_ROUNDS = 20
_HALF = 0.52  # of a grid step: rounding boundaries lie a little off the middle


class _Scheme(NamedTuple):
    symprec: float  # angstrom
    detector: str


def _encode(form: Form, scheme: _Scheme, wide: bool) -> tuple[Form, bool]:
    """Symmetrise within symprec until group and atom count stand still, then describe.

    Averaging over a group can bring out a higher one, so one search is not enough. The second value says that a search
    at twice symprec finds no more.
    """
    crystal = form_crystal(form)
    for _ in range(_ROUNDS):
        cell = form_cell(form)
        if has_no_more_symmetry(cell, crystal, scheme.symprec):
            return canonical_form(crystal, 1, wide), True
        before = (crystal.number, crystal.n_atoms)
        crystal = symmetrize(cell, scheme.symprec, scheme.detector)
        if (crystal.number, crystal.n_atoms) == before:
            break
        form = canonical_form(crystal, _FINE, wide)
    return canonical_form(crystal, 1, wide), False


def _fixed_point(cell: Cell, scheme: _Scheme) -> Form:
    """Describe until the decoded crystal has the description it came from.

    Rounding to the grid can bring a crystal that was just outside ``symprec`` of a higher symmetry, or of another
    reduced basis, just inside. Where forms come round in a circle, the smallest of the circle is taken.
    """
    seen: list[Form] = []
    form, certain = _describe(cell, scheme)
    while not certain and form not in seen:
        seen.append(form)
        form, certain = _describe(primitive_cell(form_cell(form), _TIGHT), scheme)
    return form if certain else min(seen[seen.index(form) :], key=_key)


def _describe(cell: Cell, scheme: _Scheme) -> tuple[Form, bool]:
    """A form of a primitive cell, and whether it is certain that its decoded crystal has that form, too.

    The search starts from what is symmetric to the last digit: its result is the same for every description, so that
    every later decision, however close to the tolerance, falls the same way for all of them.
    """
    exact, nothing_more = exact_crystal(cell, _TIGHT, scheme.symprec)
    if nothing_more:  # most crystals: symprec finds no more symmetry than is exact
        # Chiral ones are rounded in the way of _settle: at the edge of 2 symprec another description may go there.
        chiral = is_sohncke(exact.number)
        form = _round_evenly(exact) if chiral else canonical_form(exact, 1)
        if _survives_rounding(form, scheme.symprec):
            return form, True
    settled = _settle(canonical_form(exact, _FINE), exact, scheme)
    if settled is not None:
        return settled
    # Rounding makes ever other bases the shortest, and the lattice would creep away.
    wide = _settle(canonical_form(exact, _FINE, wide=True), exact, scheme, wide=True)
    if wide is None:
        raise SymmetryError("no basis of this lattice survives rounding; try another symprec")
    return _settle(wide[0], None, scheme) or wide


def _survives_rounding(form: Form, symprec: float) -> bool:
    """Whether a rounded crystal is its own smallest form and has no more symmetry than before it was rounded."""
    if is_fixed(form):
        return True
    crystal = form_crystal(form)
    if canonical_form(crystal, 1) != form:
        return False
    # How far rounding moves two atoms against each other; only what was within 2 symprec could come within symprec.
    diagonal = float(np.linalg.norm(form.lattice[:3])) * LENGTH_UNIT
    moved = 2 * _HALF * (diagonal / COORDINATE_GRID + LENGTH_UNIT)
    if form.number < 16:
        moved += 2 * _HALF * diagonal * float(np.radians(ANGLE_UNIT))
    return moved < symprec / 2 or has_no_more_symmetry(form_cell(form), crystal, symprec)


def _settle(
    form: Form, crystal: StandardCrystal | None, scheme: _Scheme, wide: bool = False
) -> tuple[Form, bool] | None:
    """The form in which encoding ends, the smallest of a circle, or None where it does not end soon.

    The second value is that of :func:`_describe`.

    Args:
        crystal: that the form describes, where the form is not rounded.
    """
    seen: list[Form] = []
    for _ in range(_ROUNDS):
        form, nothing_more = _encode_evenly(form, crystal, scheme, wide)
        crystal = None
        if nothing_more and not wide and _survives_rounding(form, scheme.symprec):
            return form, True
        if form in seen:
            return min(seen[seen.index(form) :], key=_key), False
        seen.append(form)
    return None


def _encode_evenly(form: Form, crystal: StandardCrystal | None, scheme: _Scheme, wide: bool) -> tuple[Form, bool]:
    """Encode so that the mirror image of a crystal gets the mirror image of its form.

    At the edge of the tolerance a detector can decide one way on a crystal and another way on its mirror image. Both
    are asked, the higher symmetry counts, and where they agree, the smaller of the two is the one that is rounded.
    """
    if not is_sohncke(form.number):
        return _encode(form, scheme, wide)
    if crystal is None:  # rounding may have brought out symmetry that the form does not state
        crystal = exact_crystal(primitive_cell(form_cell(form), _TIGHT), _TIGHT, _TIGHT)[0]
    if not is_sohncke(crystal.number):
        return _encode(canonical_form(crystal, _FINE, wide), scheme, wide)
    pair = _pair(crystal, wide)
    encoded = [_encode(member, scheme, wide) for member in pair]
    achiral = [found for found in encoded if not is_sohncke(found[0].number)]
    if achiral:
        return min(achiral, key=lambda found: (_asymmetry(found[0]), _key(found[0])))
    best = min((0, 1), key=lambda member: (_asymmetry(encoded[member][0]), _key(pair[member])))
    chosen = form_crystal(encoded[best][0])
    # Described anew for both hands: what rounding made of one of them, its mirror image must get, too.
    form = canonical_form(mirror_image(chosen) if best else chosen, 1, wide)
    return form, encoded[0][1] and encoded[1][1]


def _round_evenly(crystal: StandardCrystal) -> Form:
    """Round a chiral crystal as :func:`_encode_evenly` does where there is no more symmetry to be found."""
    pair = _pair(crystal, wide=False)
    best = min((0, 1), key=lambda member: _key(pair[member]))
    rounded = canonical_form(form_crystal(pair[best]), 1)
    return canonical_form(mirror_image(form_crystal(rounded)), 1) if best else rounded


def _pair(crystal: StandardCrystal, wide: bool) -> tuple[Form, Form]:
    """A chiral crystal and its mirror image on the fine grid, each from what is not rounded.

    So this is bit for bit the pair of the mirror image, in the other order. (On the grid of the text, circles of two
    forms would look like fixed points.)
    """
    return canonical_form(crystal, _FINE, wide), canonical_form(mirror_image(crystal), _FINE, wide)


def _asymmetry(form: Form) -> tuple[int, int]:
    """Smaller for more symmetry: atoms in the primitive cell, then the fewest operations."""
    return form.n_atoms, -len(primitive_operations(form.number)[0])


def _key(form: Form) -> tuple[object, ...]:
    return form.number, form.lattice, form.sites


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
        """Atoms in the order of the sites."""
        number = self.space_group_number
        axes = axis_order(number)
        lattice = (*_integers(self.lattice[:3], LENGTH_UNIT), *_integers(self.lattice[3:], ANGLE_UNIT))
        sites = []
        for site in self.sites:
            point = _integers(site.coords, 1.0 / COORDINATE_GRID)
            letter = LETTERS.index(site.wyckoff[-1])
            sites.append((ORDER[site.element], letter, tuple(point[axis] for axis in axes)))
        return form_cell(Form(number, lattice, tuple(sites), 1), primitive)


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
        sites.append(SiteDescription(SYMBOL_OF_RANK[rank], name, unordered(form.number, coords)))
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
        place = f"site {site.element} {site.wyckoff} {_point(site.coords)}"
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


def _point(coords: tuple[int, int, int]) -> str:
    return " ".join(f"{value / COORDINATE_GRID:.4f}" for value in coords)


def _check_size(crystal: CanonicalCrystal) -> None:
    longest = max(crystal.lattice[:3])
    if longest >= MAX_LENGTH - LENGTH_UNIT or min(crystal.lattice[:3]) < 1.0:
        raise CrystalError(f"cell lengths {crystal.lattice[:3]} lie outside 1 to {MAX_LENGTH:g} angstrom")
    atoms = sum(crystal.composition.values())
    if atoms > MAX_ATOMS:
        raise CrystalError(f"the primitive cell has {atoms} atoms; at most {MAX_ATOMS} can be written")


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
    if not 1e-5 <= symprec <= 0.2:
        raise CrystalError(f"symprec {symprec!r} is outside 1e-5 to 0.2 angstrom")
    if detector not in DETECTORS:
        missing = "; install moyopy for it" if detector == "moyopy" else ""
        raise CrystalError(f"detector {detector!r} is none of {', '.join(DETECTORS)}{missing}")
    cell = primitive_cell(read_cell(crystal), _TIGHT)
    check_distances(cell)
    form = _fixed_point(cell, _Scheme(symprec, detector))
    result = _from_form(form)
    _check_size(result)
    return result
