"""The form that reproduces itself: from a primitive cell to the form of its symmetrised crystal.

A crystal is symmetrised (``symmetry.py``), first where it is exact, then within ``symprec``, described (``forms.py``)
and rounded, until the decoded crystal has the form it came from. What decides close to the tolerance or to a rounding
boundary decides alike for every description of a crystal, and for its mirror image.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .errors import SymmetryError
from .forms import Form, canonical_form, form_cell, form_crystal, is_fixed, mirror_image
from .grid import ANGLE_UNIT, COORDINATE_GRID, LENGTH_UNIT
from .operations import is_sohncke, primitive_operations
from .reduction import Cell, primitive_cell
from .symmetry import StandardCrystal, exact_crystal, has_no_more_symmetry, symmetrize

__all__ = ["TIGHT", "Scheme", "fixed_point"]

# First pass: only what is symmetric to the last digit. It lies between the rounding errors of data with six decimals
# (below 21 angstrom) and of data with five (above 2.1 angstrom), so that it cuts through neither.
TIGHT = 7e-6  # angstrom
# Between passes a crystal is kept on a grid this much finer than that of the text: fine enough to lose nothing,
# coarse enough that every description of one crystal continues from the same bits.
_FINE = 10_000
_ROUNDS = 20
_HALF = 0.52  # of a grid step: rounding boundaries lie a little off the middle


class Scheme(NamedTuple):
    """What decides within the tolerance.

    Attributes:
        symprec: angstrom.
        detector: a name in :data:`~.symmetry.DETECTORS`.
    """

    symprec: float
    detector: str


def _encode(form: Form, scheme: Scheme, wide: bool) -> tuple[Form, bool]:
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


def fixed_point(cell: Cell, scheme: Scheme) -> Form:
    """Describe until the decoded crystal has the description it came from.

    Rounding to the grid can bring a crystal that was just outside ``symprec`` of a higher symmetry, or of another
    reduced basis, just inside. Where forms come round in a circle, the smallest of the circle is taken.

    Args:
        cell: primitive within :data:`TIGHT`.

    Raises:
        SymmetryError: no consistent description was found.
    """
    seen: list[Form] = []
    form, certain = _describe(cell, scheme)
    while not certain and form not in seen:
        seen.append(form)
        form, certain = _describe(primitive_cell(form_cell(form), TIGHT), scheme)
    return form if certain else min(seen[seen.index(form) :], key=_key)


def _describe(cell: Cell, scheme: Scheme) -> tuple[Form, bool]:
    """A form of a primitive cell, and whether it is certain that its decoded crystal has that form, too.

    The search starts from what is symmetric to the last digit: its result is the same for every description, so that
    every later decision, however close to the tolerance, falls the same way for all of them.
    """
    exact, nothing_more = exact_crystal(cell, TIGHT, scheme.symprec)
    chiral = is_sohncke(exact.number)
    fine = _fine_forms(exact, wide=False) if chiral else ()
    if chiral:
        # The search at 2 symprec can miss in one basis what it finds in another: in low symmetry it is asked again on
        # the grid where every description has the same bits, of the hand that is the same for crystal and mirror image.
        form = min(fine, key=_key)
        nothing_more = has_no_more_symmetry(form_cell(form), form_crystal(form), scheme.symprec)
    if nothing_more:  # most crystals: symprec finds no more symmetry than is exact
        # Chiral ones are rounded in the way of _settle: at the edge of 2 symprec another description may go there.
        form = _round_evenly(fine) if chiral else canonical_form(exact, 1)
        if _survives_rounding(form, scheme.symprec):
            return form, True
    settled = _settle(fine or _fine_forms(exact, wide=False), scheme)
    if settled is not None:
        return settled
    # Rounding makes ever other bases the shortest, and the lattice would creep away.
    wide = _settle(_fine_forms(exact, wide=True), scheme, wide=True)
    if wide is None:
        raise SymmetryError("no basis of this lattice survives rounding; try another symprec")
    return _settle((wide[0],), scheme) or wide


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


def _settle(forms: tuple[Form, ...], scheme: Scheme, wide: bool = False) -> tuple[Form, bool] | None:
    """The form in which encoding ends, the smallest of a circle, or None where it does not end soon.

    The second value is that of :func:`_describe`. Starts from :func:`_fine_forms` or from one rounded form.
    """
    seen: list[Form] = []
    for _ in range(_ROUNDS):
        form, nothing_more = _encode_evenly(forms, scheme, wide)
        if nothing_more and not wide and _survives_rounding(form, scheme.symprec):
            return form, True
        if form in seen:
            return min(seen[seen.index(form) :], key=_key), False
        seen.append(form)
        forms = (form,)
    return None


def _encode_evenly(forms: tuple[Form, ...], scheme: Scheme, wide: bool) -> tuple[Form, bool]:
    """Encode so that the mirror image of a crystal gets the mirror image of its form.

    At the edge of the tolerance a detector can decide one way on a crystal and another way on its mirror image. Both
    are asked, the higher symmetry counts, and where they agree, the smaller of the two is the one that is rounded.
    """
    if is_sohncke(forms[0].number) and len(forms) == 1:
        # Rounding may have brought out symmetry that the form does not state.
        cell = primitive_cell(form_cell(forms[0]), TIGHT)
        forms = _fine_forms(exact_crystal(cell, TIGHT, TIGHT)[0], wide)
    if len(forms) == 1:
        return _encode(forms[0], scheme, wide)
    encoded = [_encode(member, scheme, wide) for member in forms]
    achiral = [found for found in encoded if not is_sohncke(found[0].number)]
    if achiral:
        return min(achiral, key=lambda found: (_asymmetry(found[0]), _key(found[0])))
    best = min((0, 1), key=lambda member: (_asymmetry(encoded[member][0]), _key(forms[member])))
    chosen = form_crystal(encoded[best][0])
    # Described anew for both hands: what rounding made of one of them, its mirror image must get, too.
    form = canonical_form(mirror_image(chosen) if best else chosen, 1, wide)
    return form, encoded[0][1] and encoded[1][1]


def _round_evenly(forms: tuple[Form, ...]) -> Form:
    """Round a chiral crystal as :func:`_encode_evenly` does where there is no more symmetry to be found."""
    best = min((0, 1), key=lambda member: _key(forms[member]))
    rounded = canonical_form(form_crystal(forms[best]), 1)
    return canonical_form(mirror_image(form_crystal(rounded)), 1) if best else rounded


def _fine_forms(crystal: StandardCrystal, wide: bool) -> tuple[Form, ...]:
    """A crystal on the fine grid, and with a chiral one its mirror image, each from what is not rounded.

    So the two are bit for bit those of the mirror image, in the other order. (On the grid of the text, circles of two
    forms would look like fixed points.)
    """
    form = canonical_form(crystal, _FINE, wide)
    return (form, canonical_form(mirror_image(crystal), _FINE, wide)) if is_sohncke(crystal.number) else (form,)


def _asymmetry(form: Form) -> tuple[int, int]:
    """Smaller for more symmetry: atoms in the primitive cell, then the fewest operations."""
    return form.n_atoms, -len(primitive_operations(form.number)[0])


def _key(form: Form) -> tuple[object, ...]:
    return form.number, form.lattice, form.sites
