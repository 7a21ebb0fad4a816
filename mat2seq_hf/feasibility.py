"""Which Wyckoff positions can still hold the atoms of a formula: exact answers by memoised counting.

Counts are atoms of the PRIMITIVE cell; a Wyckoff position of multiplicity m holds m / (lattice points of the
conventional cell) of them. A position without a free coordinate ("fixed") can be used once in a crystal; all other
positions any number of times. Where only amounts matter, what is left of the fixed positions is a vector: how many
unused ones there are of each size, see :class:`_Sizes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from .operations import points_per_primitive
from .vocabulary import MAX_ATOMS
from .wyckoff import wyckoff_positions

__all__ = ["can_extend", "fits", "next_letters", "smallest_cell", "trailing_sites"]

_Counts = tuple[int, ...]
_Vector = tuple[int, ...]


@dataclass(frozen=True)
class _Sizes:
    """Sizes of the Wyckoff positions of one space group, letter a first.

    Attributes:
        sizes: atoms of the primitive cell that one orbit holds, for each letter.
        is_free: whether the position has a free coordinate, for each letter.
        fixed_sizes: the distinct sizes of fixed positions: what the entries of a vector count.
        all_fixed: the vector with every fixed position unused.
        free_sums: bit n of ``free_sums[letter]`` says that orbits of free positions from this letter on can hold
            exactly n atoms.
    """

    sizes: tuple[int, ...]
    is_free: tuple[bool, ...]
    fixed_sizes: tuple[int, ...]
    all_fixed: _Vector
    free_sums: tuple[int, ...]


@lru_cache(maxsize=1 << 16)
def _unused(number: int, used: int, first: int) -> _Vector:
    """Vector of the fixed positions from letter ``first`` on that are not in the bit set ``used``."""
    group = _sizes(number)
    counts = dict.fromkeys(group.fixed_sizes, 0)
    for letter in range(first, len(group.sizes)):
        if not group.is_free[letter] and not used >> letter & 1:
            counts[group.sizes[letter]] += 1
    return tuple(counts.values())


def _sums(sizes: set[int]) -> int:
    """Bit n of the result: n is a sum of the sizes, each any number of times, n <= MAX_ATOMS."""
    bits, everything = 1, (1 << (MAX_ATOMS + 1)) - 1
    for size in sizes:
        step = size
        while step <= MAX_ATOMS:  # one, two, four ... more orbits of this size: doubling reaches every number
            bits |= bits << step & everything
            step *= 2
    return bits


@lru_cache(maxsize=230)
def _sizes(number: int) -> _Sizes:
    positions = wyckoff_positions(number)
    points = points_per_primitive(number)
    sizes = tuple(p.multiplicity // points for p in positions)
    is_free = tuple(p.freedom > 0 for p in positions)
    fixed_sizes = tuple(sorted({size for size, free in zip(sizes, is_free, strict=True) if not free}))
    all_fixed = tuple(
        sum(1 for size, free in zip(sizes, is_free, strict=True) if not free and size == wanted)
        for wanted in fixed_sizes
    )
    free_sums = tuple(
        _sums({size for size, free in zip(sizes[first:], is_free[first:], strict=True) if free})
        for first in range(len(sizes) + 1)
    )
    return _Sizes(sizes, is_free, fixed_sizes, all_fixed, free_sums)


def _selections(left: _Vector, sizes: tuple[int, ...], count: int) -> Iterator[tuple[_Vector, int]]:
    """Every number of fixed positions of each size, at most ``left``, that hold ``n <= count`` atoms, with n."""
    if not left:
        yield (), 0
        return
    for taken in range(min(left[0], count // sizes[0]) + 1):
        held = taken * sizes[0]
        for others, rest in _selections(left[1:], sizes[1:], count - held):
            yield (taken, *others), held + rest


@lru_cache(maxsize=1 << 18)
def _placements(number: int, left: _Vector, counts: _Counts) -> frozenset[_Vector]:
    """Vectors of what can be left of the fixed positions once every element of ``counts`` is placed."""
    if not counts:
        return frozenset((left,))
    group = _sizes(number)
    found: set[_Vector] = set()
    for taken, held in _selections(left, group.fixed_sizes, counts[0]):
        if group.free_sums[0] >> (counts[0] - held) & 1:
            remaining = tuple(a - b for a, b in zip(left, taken, strict=True))
            found |= _placements(number, remaining, counts[1:])
    return frozenset(found)


@lru_cache(maxsize=1 << 18)
def _fits(number: int, left: _Vector, counts: _Counts) -> bool:
    if not counts:
        return True
    group = _sizes(number)
    return any(
        group.free_sums[0] >> (counts[0] - held) & 1
        and _fits(number, tuple(a - b for a, b in zip(left, taken, strict=True)), counts[1:])
        for taken, held in _selections(left, group.fixed_sizes, counts[0])
    )


def fits(number: int, counts: _Counts) -> bool:
    """Whether a crystal of space group ``number`` can hold ``counts[i]`` atoms of the i-th element.

    Example:
        >>> fits(221, (1, 1, 3)), fits(225, (1, 1, 3))
        (True, False)
    """
    return _fits(number, _sizes(number).all_fixed, tuple(sorted(counts)))


@lru_cache(maxsize=1 << 16)
def _most_orbits(number: int, left: _Vector, atoms: int) -> int:
    """The largest number of orbits that together hold exactly ``atoms`` atoms, -1 if none do."""
    group = _sizes(number)
    free = {size for size, is_free in zip(group.sizes, group.is_free, strict=True) if is_free}
    unreachable = -(MAX_ATOMS + 1)
    best = [0] + [unreachable] * atoms
    for size in free:
        for total in range(size, atoms + 1):
            best[total] = max(best[total], best[total - size] + 1)
    for size, times in zip(group.fixed_sizes, left, strict=True):
        for _ in range(times):
            for total in range(atoms, size - 1, -1):
                best[total] = max(best[total], best[total - size] + 1)
    return max(best[atoms], -1)


@lru_cache(maxsize=1 << 16)
def can_extend(number: int, counts: _Counts, elements: int, low: int, high: int) -> bool:
    """Whether ``counts`` and at least ``elements`` more elements, of ``low`` to ``high`` atoms together, fit.

    Distinct elements need distinct orbits and further orbits can go to any of them, so the question for the elements
    to come is only how many orbits hold that many atoms.
    """
    if number == 1:  # P1 holds anything
        return max(low, elements) <= high
    group = _sizes(number)
    vectors = _placements(number, group.all_fixed, tuple(sorted(counts)))
    return any(
        _most_orbits(number, left, atoms) >= max(elements, 0)
        for atoms in range(max(low, elements), high + 1)
        for left in vectors
    )


def smallest_cell(number: int, elements: int) -> int:
    """Least number of atoms in a primitive cell of this space group that has that many elements.

    Example:
        >>> smallest_cell(225, 5)
        16
    """
    group = _sizes(number)
    free = [size for size, is_free in zip(group.sizes, group.is_free, strict=True) if is_free]
    fixed = [size for size, is_free in zip(group.sizes, group.is_free, strict=True) if not is_free]
    return sum(sorted(fixed + [min(free)] * elements)[:elements])


@lru_cache(maxsize=1 << 18)
def _completes(number: int, count: int, first: int, used: int, later: _Counts) -> bool:
    """Whether ``count`` more atoms go on letters from ``first`` on and the ``later`` elements on what is then left."""
    group = _sizes(number)
    here, everywhere = _unused(number, used, first), _unused(number, used, 0)
    return any(
        group.free_sums[first] >> (count - held) & 1
        and _fits(number, tuple(a - b for a, b in zip(everywhere, taken, strict=True)), later)
        for taken, held in _selections(here, group.fixed_sizes, count)
    )


@lru_cache(maxsize=1 << 18)
def next_letters(number: int, count: int, first: int, used: int, later: _Counts) -> tuple[int, ...]:
    """Letters (as indices) that the next orbit of the current element can take so that the end stays in reach.

    Args:
        number: space group.
        count: atoms of the current element still to be placed, at least 1.
        first: the least letter allowed: orbits of an element stand in the order of their letters.
        used: bit set of the letters of fixed positions that are taken.
        later: counts of the elements to come, in any order.
    """
    group = _sizes(number)
    later = tuple(sorted(later))
    others_free = all(group.free_sums[0] >> n & 1 for n in later)
    found = []
    for letter in range(first, len(group.sizes)):
        left = count - group.sizes[letter]
        if left < 0 or (not group.is_free[letter] and used >> letter & 1):
            continue
        free = group.is_free[letter]
        after = letter if free else letter + 1
        all_free = others_free and group.free_sums[after] >> left & 1  # nothing fixed is needed: no search
        if all_free or _completes(number, left, after, used if free else used | 1 << letter, later):
            found.append(letter)
    return tuple(found)


@lru_cache(maxsize=1 << 18)
def trailing_sites(number: int, count: int, letter: int, used: int, later: _Counts) -> int:
    """How many of the ``count`` atoms left must at least go on further orbits of the free position ``letter``.

    The result is a number of orbits. They have to stand in ascending order, so their coordinates need room.
    """
    group = _sizes(number)
    later = tuple(sorted(later))
    for orbits in range(count // group.sizes[letter] + 1):
        if _completes(number, count - orbits * group.sizes[letter], letter + 1, used, later):
            return orbits
    raise AssertionError(f"{count} atoms cannot be placed from letter {letter} of group {number}")
