"""The form that reproduces itself: from a primitive cell to the form of its symmetrised crystal.

A crystal is symmetrised (``symmetry.py``), first where it is exact, then within ``symprec``, described (``forms.py``)
and rounded, until the decoded crystal has the form it came from. What decides close to the tolerance or to a rounding
boundary decides alike for every description of a crystal, and for its mirror image.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .errors import SymmetryError
from .forms import Form, canonical_form, form_cell, form_crystal, is_fixed, mirror_image, rounds_alike
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
_CUBIC = 195  # the first cubic space group


class Scheme(NamedTuple):
    """What decides within the tolerance.

    Attributes:
        symprec: angstrom.
        detector: a name in :data:`~.symmetry.DETECTORS`.
    """

    symprec: float
    detector: str


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
    exact = exact_crystal(cell, TIGHT)
    form, fine = _round_exact(exact)
    # What is symmetric within symprec is still so within twice symprec after rounding: then the rounded form can tell.
    asked = _rounding(form) < scheme.symprec
    complete = asked and _is_complete(form, scheme.symprec)
    if complete and ((not fine and rounds_alike(exact)) or _is_smallest(form)):  # most crystals
        return form, True
    settled = _settle(fine or _fine_forms(exact, wide=False), scheme, incomplete=asked and not complete)
    if settled is not None:
        return settled
    # Rounding makes ever other bases the shortest, and the lattice would creep away.
    wide = _settle(_fine_forms(exact, wide=True), scheme, wide=True)
    if wide is None:
        raise SymmetryError("no basis of this lattice survives rounding; try another symprec")
    return _settle((wide[0],), scheme) or wide


def _round_exact(exact: StandardCrystal) -> tuple[Form, tuple[Form, ...]]:
    """The rounded form of a crystal, and of a chiral one the :func:`_fine_forms` it comes from."""
    if not is_sohncke(exact.number):
        return canonical_form(exact, 1), ()
    fine = _fine_forms(exact, wide=False)
    best = min((0, 1), key=lambda hand: _key(fine[hand]))
    rounded = canonical_form(form_crystal(fine[best]), 1)
    return (canonical_form(mirror_image(form_crystal(rounded)), 1) if best else rounded), fine


def _rounding(form: Form) -> float:
    """How far rounding can move two atoms against each other, angstrom."""
    diagonal = float(np.linalg.norm(form.lattice[:3])) * LENGTH_UNIT
    angles = diagonal * float(np.radians(ANGLE_UNIT)) if form.number < 16 else 0.0
    return 2 * _HALF * (diagonal / COORDINATE_GRID + LENGTH_UNIT + angles)


def _is_complete(form: Form, symprec: float) -> bool:
    """Whether a search at twice symprec finds no more symmetry in a rounded crystal.

    The search can miss in one basis what it finds in another: it is asked where every description of a crystal has
    the same bits, and of the hand that is the same for a chiral crystal and its mirror image.
    """
    if form.number >= _CUBIC and is_fixed(form):  # nothing is free that could be near to something else
        return True
    if is_sohncke(form.number):
        form = min(form, canonical_form(mirror_image(form_crystal(form)), 1), key=_key)
    return has_no_more_symmetry(form_cell(form), form.number, symprec)


def _is_smallest(form: Form) -> bool:
    """Whether a rounded form is the smallest of its decoded crystal."""
    return is_fixed(form) or canonical_form(form_crystal(form), 1) == form


def _settle(
    forms: tuple[Form, ...], scheme: Scheme, wide: bool = False, incomplete: bool = False
) -> tuple[Form, bool] | None:
    """The form in which encoding ends, the smallest of a circle, or None where it does not end soon.

    The second value is that of :func:`_describe`.

    Args:
        forms: from :func:`_fine_forms`, or one rounded form.
        incomplete: a search has said that there is more symmetry.
    """
    seen: list[Form] = []
    for _ in range(_ROUNDS):
        form, complete = _encode_evenly(forms, scheme, wide, incomplete)
        if complete and _is_smallest(form):
            return form, True
        if form in seen:
            break
        seen.append(form)
        forms, incomplete = (form,), not wide and not complete
    else:
        return None
    if seen[-1] != form:
        return min(seen[seen.index(form) :], key=_key), False
    # It encodes to itself; so does its decoded crystal, if that has no exact symmetry that the form does not state.
    return form, not wide and _round_exact(_decoded(form))[0] == form


def _decoded(form: Form) -> StandardCrystal:
    """The crystal that a form describes, with all symmetry that it has to the last digit."""
    return exact_crystal(primitive_cell(form_cell(form), TIGHT), TIGHT)


def _encode_evenly(forms: tuple[Form, ...], scheme: Scheme, wide: bool, incomplete: bool) -> tuple[Form, bool]:
    """Encode so that the mirror image of a crystal gets the mirror image of its form.

    At the edge of the tolerance a detector can decide one way on a crystal and another way on its mirror image, and a
    rounding boundary lies otherwise: of the two hands the smaller one is encoded first, and the other one only where
    the search may have missed something. Then the higher symmetry counts.
    """
    if is_sohncke(forms[0].number) and len(forms) == 1:
        # Rounding may have brought out symmetry that the form does not state.
        forms = _fine_forms(_decoded(forms[0]), wide)
    hands = sorted(range(len(forms)), key=lambda hand: _key(forms[hand]))
    found = []
    for hand in hands:
        form, complete = _encode(forms[hand], scheme, wide, incomplete, mirror=hand == 1)
        if complete:
            return form, True
        found.append((is_sohncke(form.number), _asymmetry(form), form))
    if all(chiral for chiral, _, _ in found):
        return min(found, key=lambda item: item[1])[2], False
    return min(found, key=lambda item: (*item[:2], _key(item[2])))[2], False


def _encode(form: Form, scheme: Scheme, wide: bool, incomplete: bool, mirror: bool) -> tuple[Form, bool]:
    """Symmetrise within symprec until group and atom count stand still, then round.

    Averaging over a group can bring out a higher one, so one search is not enough.

    Returns:
        the rounded form, and whether it is complete (never asked where ``wide``).
    """
    crystal = form_crystal(form)
    for _ in range(_ROUNDS):
        cell = form_cell(form)
        if not incomplete and has_no_more_symmetry(cell, crystal.number, scheme.symprec):
            break
        incomplete = False
        before = (crystal.number, crystal.n_atoms)
        crystal = symmetrize(cell, scheme.symprec, scheme.detector)
        if (crystal.number, crystal.n_atoms) == before:
            break
        rounded = _round(crystal, wide, mirror)
        if not wide and _is_complete(rounded, scheme.symprec):
            return rounded, True
        form = canonical_form(crystal, _FINE, wide)
    rounded = _round(crystal, wide, mirror)
    return rounded, not wide and _is_complete(rounded, scheme.symprec)


def _round(crystal: StandardCrystal, wide: bool, mirror: bool) -> Form:
    """The rounded form of a crystal; ``mirror``: of the mirror image of a chiral one."""
    form = canonical_form(crystal, 1, wide)
    if not is_sohncke(form.number):
        return form
    # Described anew for both hands: what rounding made of one of them, its mirror image must get, too.
    rounded = form_crystal(form)
    return canonical_form(mirror_image(rounded) if mirror else rounded, 1, wide)


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
