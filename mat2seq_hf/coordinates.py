"""Which coordinates the next site of a sequence may have.

A site on a Wyckoff position with f free parameters is known once f of its coordinates are: the ``axes`` of a
:class:`FreePosition`; all others follow. A *point* is those f numbers, in units of 1/9600, in the order x, y, z in
which they are written. A point is open to a new site unless

- the orbit collapses there: another operation of the group fixes it, which is a set of linear congruences,
- an earlier site, of any element, has it in its orbit,
- it does not come after the last site of the same element and letter (order of comparison: polar axes first),
- sites that must still follow on the same letter would find no room behind it,
- it is the first site of the crystal and not at 0 on a polar axis: that is how the origin is fixed.

The answer for one coordinate takes into account that the others must still be possible: no dead ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .grid import COORDINATE_GRID
from .operations import group_operations, polar_axes
from .wyckoff import wyckoff_positions

__all__ = ["FreePosition", "Need", "Point", "Values", "free_position", "has_room", "next_values", "orbit_points"]

Point = tuple[int, ...]
_Given = dict[int, int]  # entries of a point that are known
_Binding = tuple[bool, bool]  # which conditions bind so far: after the last site, room for more
Integers = NDArray[np.int64]
_NOTHING: frozenset[int] = frozenset()
_TOP = COORDINATE_GRID - 1


class Values(NamedTuple):
    """Allowed numbers of one coordinate: ``low <= value <= high`` without those in ``bad``, in units of 1/9600."""

    low: int
    high: int
    bad: frozenset[int]

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int) and self.low <= value <= self.high and value not in self.bad


class Need(NamedTuple):
    """What a new site on a free position has to respect.

    Attributes:
        after: the last site of the same element and letter, which the new one must follow.
        trailing: how many more sites on this letter must find room behind it.
        taken: points of the orbits of earlier sites on this letter.
        is_first: whether it is the first site of the crystal.
    """

    after: Point | None
    trailing: int
    taken: frozenset[Point]
    is_first: bool


@dataclass(frozen=True)
class _Congruences:
    """Congruences ``known @ point_known + column * value = constant (mod 9600)`` for one unknown value.

    Each group of three has one row whose factor is not zero; the unknown is read off that row, a few values that stand
    ``steps`` apart, and checked in all three.

    Attributes:
        known, column, constant: shapes (s, 3, k), (s, 3), (s, 3).
        pivot: index of the row that the unknown is read off, as a pair of index arrays.
        sign, size: of the factor in that row, shape (s,).
        steps: shape (s, ways).
        always: solutions of the groups that do not depend on what is known; they are not among the others.
    """

    known: Integers
    column: Integers
    constant: Integers
    pivot: tuple[Integers, Integers]
    sign: Integers
    size: Integers
    steps: Integers
    always: frozenset[int] = _NOTHING

    @classmethod
    def of(cls, known: Integers, column: Integers, constant: Integers) -> _Congruences:
        """Of groups in which the unknown occurs."""
        row = np.argmin(np.where(column == 0, COORDINATE_GRID, np.abs(column)), axis=1)
        pivot = (np.arange(len(row)), row)
        size = np.abs(column[pivot])
        steps = np.arange(size.max(initial=0)) * (COORDINATE_GRID // size)[:, None]
        return cls(known, column, constant, pivot, np.sign(column[pivot]), size, steps)

    def solve(self, values: list[int]) -> frozenset[int]:
        """All values of the unknown that satisfy one group of three."""
        if not len(self.size):
            return self.always
        right = self.constant - self.known @ np.array(values, dtype=np.int64)
        base = self.sign * right[self.pivot] % COORDINATE_GRID // self.size
        tries = (base[:, None] + self.steps) % COORDINATE_GRID
        misses = (self.column[:, None, :] * tries[:, :, None] - right[:, None, :]) % COORDINATE_GRID
        found = tries[~misses.any(axis=2)].tolist()
        return self.always.union(found) if found else self.always


@dataclass(frozen=True)
class FreePosition:
    """A Wyckoff position with free coordinates, as an affine map from its points to coordinates.

    Attributes:
        axes: the coordinate axes that a point consists of, ascending.
        order: indices into ``axes`` in the order of comparison (polar axes first).
        polar: for each entry of ``axes`` whether it is polar.
        matrix: integers, shape (3, f), the identity on ``axes``.
        shift: in units of 1/9600, shape (3,): coordinates are ``matrix @ point + shift``.
        maps, offsets: the operations of the group that map the position's first triplet onto itself, as
            ``point -> maps[i] @ point + offsets[i]``, shapes (n, f, f) and (n, f).
        systems, constants: groups of congruences ``systems[i] @ point = constants[i] (mod 9600)``, shapes (s, 3, f)
            and (s, 3): where one holds, the orbit collapses.
    """

    axes: tuple[int, ...]
    order: tuple[int, ...]
    polar: tuple[bool, ...]
    matrix: Integers
    shift: Integers
    maps: Integers
    offsets: Integers
    systems: Integers
    constants: Integers

    @cached_property
    def rows(self) -> tuple[tuple[tuple[int, ...], int], ...]:
        """Row of ``matrix`` and entry of ``shift`` for each axis, as plain integers."""
        return tuple((tuple(row), shift) for row, shift in zip(self.matrix.tolist(), self.shift.tolist(), strict=True))

    @cached_property
    def _selected(self) -> dict[tuple[int, tuple[int, ...]], _Congruences | None]:
        return {}

    def coordinate(self, axis: int, point: Point) -> int:
        """Coordinate of a point along an axis; entries of the point that it does not depend on may be missing."""
        row, shift = self.rows[axis]
        return (sum(a * b for a, b in zip(row, point, strict=False)) + shift) % COORDINATE_GRID

    def collapsed(self, index: int, given: _Given) -> frozenset[int]:
        """Values of entry ``index`` that, with the ``given`` entries, put the orbit on a point of higher symmetry."""
        known = tuple(sorted(given))
        if (index, known) not in self._selected:
            self._selected[index, known] = self._select(index, known)
        chosen = self._selected[index, known]
        return chosen.solve([given[i] for i in known]) if chosen else _NOTHING

    def _select(self, index: int, known: tuple[int, ...]) -> _Congruences | None:
        unknown = [i for i in range(len(self.axes)) if i != index and i not in known]
        uses = (self.systems != 0).any(axis=1)
        chosen = uses[:, index] & ~uses[:, unknown].any(axis=1)
        if not chosen.any():
            return None
        systems, constants = self.systems[chosen], self.constants[chosen]
        coefficients, column = systems[:, :, list(known)], systems[:, :, index]
        depends = coefficients.any(axis=(1, 2))
        fixed = _Congruences.of(coefficients[~depends], column[~depends], constants[~depends])
        others = _Congruences.of(coefficients[depends], column[depends], constants[depends])
        return replace(others, always=fixed.solve([0] * len(known)))


def _collapse(rotations: Integers, shifts: Integers, matrix: Integers, shift: Integers) -> tuple[Integers, Integers]:
    """Congruences under which an operation that moves a generic point of the position leaves it where it is."""
    moves = rotations - np.eye(3, dtype=np.int64)
    systems = moves @ matrix
    constants = -(moves @ shift + shifts) % COORDINATE_GRID
    divisors = np.gcd.reduce(systems, axis=2)  # a row a @ p = c has a solution only if gcd(a, 9600) divides c
    solvable = (constants % np.gcd(divisors, COORDINATE_GRID) == 0).all(axis=1)
    keep = solvable & systems.any(axis=(1, 2))
    both = np.unique(np.concatenate([systems[keep], constants[keep][:, :, None]], axis=2), axis=0)
    return both[:, :, :-1], both[:, :, -1]


@lru_cache(maxsize=4096)
def free_position(number: int, letter: int) -> FreePosition:
    """The position with letter index ``letter`` of space group ``number``; it must have a free coordinate."""
    position = wyckoff_positions(number)[letter]
    unit = COORDINATE_GRID // 24
    pivots = sorted(position.pivots, key=lambda pivot: pivot[1])
    axes = tuple(axis for _, axis, _ in pivots)
    triplet = np.array(position.shift24, dtype=np.int64) * unit
    matrix = np.stack([position.matrix[:, parameter] * sign for parameter, _, sign in pivots], axis=1)
    shift = (triplet - matrix @ triplet[list(axes)]) % COORDINATE_GRID
    rotations, translations = group_operations(number)
    images = rotations @ matrix  # (n, 3, f)
    offsets = (rotations @ shift + translations * unit) % COORDINATE_GRID
    maps, moved = images[:, list(axes), :], offsets[:, list(axes)]
    onto = (matrix @ maps == images).all(axis=(1, 2))
    onto &= ((moved @ matrix.T + shift - offsets) % COORDINATE_GRID == 0).all(axis=1)
    both = np.unique(np.concatenate([maps[onto], moved[onto][:, :, None]], axis=2), axis=0)
    polar = polar_axes(number)
    order = sorted(range(len(axes)), key=lambda i: (axes[i] not in polar, axes[i]))
    systems, constants = _collapse(rotations, translations * unit, matrix, shift)
    return FreePosition(
        axes=axes,
        order=tuple(order),
        polar=tuple(axis in polar for axis in axes),
        matrix=matrix,
        shift=shift,
        maps=both[:, :, :-1],
        offsets=both[:, :, -1],
        systems=systems,
        constants=constants,
    )


@lru_cache(maxsize=1 << 16)
def orbit_points(number: int, letter: int, point: Point) -> frozenset[Point]:
    """Points of the position that belong to the orbit of ``point``, itself included."""
    position = free_position(number, letter)
    images = (position.maps @ np.array(point, dtype=np.int64) + position.offsets) % COORDINATE_GRID
    return frozenset(map(tuple, images.tolist()))


class _Search:
    """Order and room: which values leave a way to complete the point (see :func:`next_values`).

    Two conditions bind a point: it must come after ``need.after``, and ``need.trailing`` more points must find room
    behind it. Both are lexicographic, so they are followed along ``order``: ``after`` binds as long as all entries so
    far equal those of the last site, ``trailing`` as long as all entries so far are the largest open ones.
    Where an entry is neither, thousands of points lie behind: enough for any crystal of at most 400 atoms.
    In the last entry, room is counted. A site takes up at most ``len(maps)`` points, so behind one with ``n`` more to
    come ``n * len(maps)`` open points must be left when its own orbit is taken off. Then the next open point always
    fulfils the same condition for ``n - 1``.
    """

    def __init__(self, position: FreePosition, need: Need) -> None:
        self.position = position
        self.need = need
        self.last = len(position.axes) - 1
        images = len(position.maps)
        self.room = images * need.trailing + images - 1 if need.trailing else 0
        self.binding = (need.after is not None, need.trailing > 0)
        self.budget = 4 * len(position.systems) + len(need.taken)

    def bad(self, index: int, given: _Given) -> frozenset[int]:
        """Values of an entry that are not open given the others: collapsed, or taken where it completes the point."""
        bad = self.position.collapsed(index, given)
        if self.need.taken and len(given) == self.last:
            taken = {p[index] for p in self.need.taken if all(p[i] == v for i, v in given.items())}
            return bad | taken if taken else bad
        return bad

    def bounds(self, level: int, fixed: _Given, binding: _Binding) -> tuple[int, int]:
        """Least and largest value of entry ``order[level]`` under the two conditions; the end points may be tight."""
        index = self.position.order[level]
        follows, crowded = binding
        low, high = 0, _TOP
        if follows and self.need.after is not None:
            low = self.need.after[index] + (1 if level == self.last else 0)
        if crowded:
            bad = self.bad(index, fixed)
            missing = self.room if level == self.last else 0
            while high >= low and (missing or high in bad):
                missing -= high not in bad
                high -= 1
        return low, high

    def allows(self, level: int, fixed: _Given, binding: _Binding, given: _Given, value: int) -> bool:
        """Whether the entry ``order[level]`` can be ``value``."""
        low, high = self.bounds(level, fixed, binding)
        if not low <= value <= high:
            return False
        if level == self.last:
            return True
        index = self.position.order[level]
        still = (binding[0] and value == low, binding[1] and value == high)
        return self.completes(level + 1, {**fixed, index: value}, still, {**given, index: value})

    def completes(self, level: int, fixed: _Given, binding: _Binding, given: _Given) -> bool:
        """Whether the entries from ``order[level]`` on, some of them ``given``, can fulfil the conditions."""
        if not any(binding):
            return True
        index = self.position.order[level]
        if index in given:
            return self.allows(level, fixed, binding, given, given[index])
        return any(True for _ in self.witnesses(level, fixed, binding, given))

    def witnesses(self, level: int, fixed: _Given, binding: _Binding, given: _Given) -> Iterator[int]:
        """Values of the entry ``order[level]``, which is not given, that let the point be completed."""
        low, high = self.bounds(level, fixed, binding)
        bad = self.bad(self.position.order[level], given)
        yield from (value for value in range(low + 1, high) if value not in bad)
        yield from (v for v in sorted({low, high}) if v not in bad and self.allows(level, fixed, binding, given, v))

    def values(self, index: int, given: _Given) -> Values:
        """Values of entry ``index`` after which the point can be completed."""
        bad = self.bad(index, given)
        binding = self.binding
        fixed: _Given = {}
        for level, current in enumerate(self.position.order):
            if not any(binding):
                return Values(0, _TOP, bad)
            low, high = self.bounds(level, fixed, binding)
            if current == index:
                tight = {v for v in (low, high) if not self.allows(level, fixed, binding, given, v)}
                return Values(low, high, bad | tight if tight else bad)
            if current not in given:
                if high - low - 1 > self.budget:
                    return Values(0, _TOP, bad)
                return self._by_witness(index, given, current, self.witnesses(level, fixed, binding, given))
            binding = (binding[0] and given[current] == low, binding[1] and given[current] == high)
            fixed[current] = given[current]
        raise AssertionError(f"entry {index} is already given")

    def _by_witness(self, index: int, given: _Given, other: int, witnesses: Iterable[int]) -> Values:
        """Values of entry ``index`` that go with at least one of a few possible values of the entry ``other``."""
        bad = self.bad(index, given)
        closed = set(range(COORDINATE_GRID)) - bad
        for witness in witnesses:
            low, high, clash = self.values(index, {**given, other: witness})
            closed = {value for value in closed if not low <= value <= high or value in clash}
            if not closed:
                break
        return Values(0, _TOP, bad.union(closed))


def next_values(number: int, letter: int, need: Need, known: Point) -> Values:
    """Values that the next entry of a point may have.

    Args:
        number: space group.
        letter: index of the letter of a position with free coordinates.
        need: what the site has to respect.
        known: the entries that are already written.

    Returns:
        the values from which every site that must follow can still be placed; never empty if
        :func:`has_room` said so before the first coordinate.
    """
    position = free_position(number, letter)
    index = len(known)
    if need.is_first and position.polar[index]:
        return Values(0, 0, _NOTHING)
    return _Search(position, need).values(index, dict(enumerate(known)))


def has_room(number: int, letter: int, need: Need) -> bool:
    """Whether a site can be placed at all: the question before one more site on the letter of the last one."""
    if need.after is None:
        return True
    search = _Search(free_position(number, letter), need)
    return search.completes(0, {}, search.binding, {})
