"""States of the grammar: small hashable values that say what is written, as far as that still matters.

A run of tokens without a choice (tied lattice parameters, dependent coordinates, the next element) is a
:class:`Forced` state, so a caller can append it without asking a model. While a number is being written
(:class:`Writing`) the rest of the crystal waits as its context: numbers of different crystals share whatever is worked
out for them.
"""

from __future__ import annotations

from typing import NamedTuple

from .coordinates import Need, Point, Values
from .prompts import Plan

__all__ = [
    "Context",
    "Coordinate",
    "Crystal",
    "Done",
    "Fields",
    "Forced",
    "Formula",
    "Lattice",
    "Number",
    "PartialNumber",
    "Place",
    "Site",
    "State",
    "Writing",
]


class Crystal(NamedTuple):
    """Space group and formula: ranks of the elements and their counts in the primitive cell."""

    number: int
    ranks: tuple[int, ...]
    counts: tuple[int, ...]


class Done(NamedTuple):
    """The text is complete and its end token is written."""


class Forced(NamedTuple):
    """A run of tokens without a choice, and the state after it."""

    tokens: tuple[int, ...]
    then: State


class Fields(NamedTuple):
    """Prefix fields of any value: tokens since the last field began, and the index of that field."""

    plan: Plan
    field: int
    written: tuple[int, ...]


class Formula(NamedTuple):
    """The formula so far; the count of the last element is still to come if there are more ranks than counts.

    ``head`` is the two-digit piece of a count to which a third digit may be added, else 0.
    """

    plan: Plan
    ranks: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    head: int = 0


class Number(NamedTuple):
    """A property of which a range is asked: limits in hundredths, the token of its whole part, the prefix after it."""

    plan: Plan
    low: int
    high: int
    whole: int | None
    rest: tuple[int | tuple[int, int], ...]


class Lattice(NamedTuple):
    """A free lattice parameter between ``low`` and ``high``, its pieces so far, and the parameters before it."""

    system: str
    values: tuple[int, ...]
    low: int
    high: int
    pieces: tuple[int, ...]


class Place(NamedTuple):
    """The Wyckoff position of the next site is to come.

    Attributes:
        crystal: space group and formula.
        element: index of the current element.
        left: its atoms still to be placed, in the primitive cell.
        letter: index of the letter of its last site, -1 if it has none.
        used: bit set of the letters of fixed positions that are taken.
        placed: letter and point of every site on a free position, in order.
    """

    crystal: Crystal
    element: int
    left: int
    letter: int
    used: int
    placed: tuple[tuple[int, Point], ...]


class Coordinate(NamedTuple):
    """A free coordinate: the values allowed, and the first two decimals if they are written."""

    values: Values
    head: int | None


class Site(NamedTuple):
    """A site some of whose coordinates are still to come, and what is known of its point."""

    place: Place  # as it is once the site is written, its point excepted
    need: Need
    known: Point


PartialNumber = Lattice | Coordinate
Context = Crystal | Site


class Writing(NamedTuple):
    """A number is being written.

    What can follow, and what stands written then, is up to ``number`` alone as long as ``context`` stays the same: the
    crystal while lattice parameters are to come, the site while one of its coordinates is.
    """

    number: PartialNumber
    context: Context


State = Done | Forced | Fields | Number | Formula | Writing | Place
