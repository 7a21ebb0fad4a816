"""Token sets for the next piece of a number, given which numbers are allowed.

A set has a short hashable *key*, so that it is spelled out once (:func:`token_set`) and found again by its key.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from .coordinates import Values
from .grid import COORDINATE_GRID, FRACTIONS, coordinate_word
from .vocabulary import TOKEN_IDS, TOKENS

__all__ = [
    "LENGTHS",
    "PIECES",
    "SIGNED_IDS",
    "Key",
    "angle_key",
    "coordinate_key",
    "lattice_parameter",
    "length_key",
    "number_tokens",
    "remembered",
    "signed_range",
    "token_set",
    "with_head",
]

#: A token id (the only choice), a tuple of token ids, or the name of a family of sets followed by its parameters.
Key = int | tuple[Any, ...]

#: Least and largest length in 1e-4 angstrom.
LENGTHS = (10_000, 4_999_999)

#: Tokens of the whole part of a property, sign included.
SIGNED_IDS = tuple(TOKEN_IDS[f"{sign}{number}."] for sign in "+-" for number in range(100))

_ANGLES = (100, 17_999)  # 1e-2 degree
_ROOM = 100  # how far, in 1e-2 degree, three angles must stay from those of a flat cell
_HEAD = COORDINATE_GRID // 100  # grid points that share their first two decimals
_FRACTIONS = tuple(sorted(FRACTIONS))
_IS_FRACTION = frozenset(_FRACTIONS)
_SPECIAL_ANGLES = {9000: TOKEN_IDS["90"], 12000: TOKEN_IDS["120"]}
PIECES = tuple(TOKEN_IDS[f"##{number:02d}"] for number in range(100))
_WHOLE = {number: TOKEN_IDS[f"{number}."] for number in range(1, 500)}


def _is_alive(values: Values, head: int) -> bool:
    """Whether some allowed value that is written as a decimal has these first two decimals."""
    start, stop = max(values.low, head * _HEAD), min(values.high, head * _HEAD + _HEAD - 1)
    return any(value not in values.bad and value not in _IS_FRACTION for value in range(start, stop + 1))


def with_head(values: Values, head: int) -> Values:
    """The allowed values that have these first two decimals."""
    start, stop = max(values.low, head * _HEAD), min(values.high, head * _HEAD + _HEAD - 1)
    return Values(start, stop, frozenset(value for value in values.bad if start <= value <= stop))


def coordinate_key(values: Values, head: int | None) -> Key:
    """Set of first tokens of the allowed coordinates, or of second ones after ``head``, the first two decimals."""
    low, high, bad = values
    if head is not None:
        return ("tails", *with_head(values, head))
    fractions = tuple(value for value in _FRACTIONS if value in values)
    first, last = low // _HEAD, high // _HEAD
    if not _is_alive(values, first):
        first += 1
    if last > first and not _is_alive(values, last):
        last -= 1
    dead: tuple[int, ...] = ()
    if len(bad) >= _HEAD - 2:  # a full head has 94 decimals at least
        crowded = Counter(value // _HEAD for value in bad)
        dead = tuple(h for h, n in sorted(crowded.items()) if n >= _HEAD - 2 and not _is_alive(values, h))
    return ("heads", first, last, dead, fractions)


def lattice_parameter(system: str, values: tuple[int, ...]) -> int | tuple[int, int]:
    """The next of a, b, c, alpha, beta, gamma, given those before it: its only value, or its range.

    Lengths are in 1e-4 angstrom, angles in 1e-2 degree. Only for a triclinic cell, whose lengths ascend, and for ties
    (a = b) does the answer depend on the values before, not just on their number.
    """
    index = len(values)
    if index < 3:
        if index and (system == "cubic" or (index == 1 and system in ("tetragonal", "trigonal", "hexagonal"))):
            return values[0]
        return (values[-1] if index and system == "triclinic" else LENGTHS[0], LENGTHS[1])
    if system == "triclinic":
        return _triclinic_angle(values[3:])
    if system == "monoclinic" and index == 4:
        return (9000, _ANGLES[1])
    return 12000 if index == 5 and system in ("trigonal", "hexagonal") else 9000


def _triclinic_angle(values: tuple[int, ...]) -> tuple[int, int]:
    """Range in which the cell has a volume: ``|alpha - beta| < gamma < min(alpha + beta, 360 - alpha - beta)``.

    Strictly speaking the grammar keeps ``_ROOM`` from these limits. For beta it is the range that leaves some gamma.
    """
    low, high = _ANGLES[0], 18000 - _ROOM
    if not values:
        return low, high
    alpha = values[0]
    if len(values) == 1:
        return low, min(high, 36000 - _ROOM - low - alpha)
    beta = values[1]
    return max(low, abs(alpha - beta) + _ROOM), min(high, alpha + beta - _ROOM, 36000 - alpha - beta - _ROOM)


def remembered(system: str, values: tuple[int, ...]) -> tuple[int, ...]:
    """Parameters, with 0 for those on which nothing depends any more: other cells then go on in the same state."""
    kept = () if system != "triclinic" else values[3:] if len(values) >= 3 else values[-1:]
    return (0,) * (len(values) - len(kept)) + kept


def length_key(low: int, high: int, whole: int | None, piece: int | None) -> Key:
    """Next token of a length between ``low`` and ``high`` (1e-4 angstrom) after its whole part and first piece."""
    if whole is None:
        return ("whole", low // 10000, high // 10000)
    low, high = max(low, whole * 10000) - whole * 10000, min(high, whole * 10000 + 9999) - whole * 10000
    if piece is None:
        return ("pieces", low // 100, high // 100)
    return ("pieces", max(low, piece * 100) - piece * 100, min(high, piece * 100 + 99) - piece * 100)


def _whole_angle(low: int, high: int, whole: int) -> tuple[int, int]:
    """Hundredths of a degree that can follow ``whole``; 90 and 120 themselves have words of their own."""
    first = 1 if whole * 100 in _SPECIAL_ANGLES else 0
    return max(low - whole * 100, first), min(high - whole * 100, 99)


def angle_key(low: int, high: int, whole: int | None) -> Key:
    """Next token of an angle between ``low`` and ``high`` (1e-2 degree)."""
    if whole is not None:
        return ("pieces", *_whole_angle(low, high, whole))
    return ("angle", low, high)


def signed_range(whole: str) -> tuple[int, int]:
    """Numbers, in hundredths, that begin with a whole part such as ``+2.`` or ``-0.``; zero is always ``+0.00``.

    Example:
        >>> signed_range("+2."), signed_range("-0.")
        ((200, 299), (-99, -1))
    """
    start = int(whole[1:-1]) * 100
    return (start, start + 99) if whole[0] == "+" else (-start - 99, min(-start, -1))


def number_tokens(low: int, high: int, whole: int | None) -> tuple[int, ...]:
    """Next tokens of a property between ``low`` and ``high`` (hundredths), after the token of its whole part."""
    if whole is None:
        ranges = ((token, signed_range(TOKENS[token])) for token in SIGNED_IDS)
        return tuple(token for token, (first, last) in ranges if first <= high and low <= last)
    first, last = signed_range(TOKENS[whole])
    return tuple(PIECES[abs(value) % 100] for value in range(max(first, low), min(last, high) + 1))


def _angles(low: int, high: int) -> tuple[int, ...]:
    special = [token for value, token in _SPECIAL_ANGLES.items() if low <= value <= high]
    wholes = range(low // 100, high // 100 + 1)
    pairs = [(whole, _whole_angle(low, high, whole)) for whole in wholes]
    return (*special, *(_WHOLE[whole] for whole, (start, stop) in pairs if start <= stop))


def _heads(first: int, last: int, dead: tuple[int, ...], fractions: tuple[int, ...]) -> tuple[int, ...]:
    heads = (head for head in range(first, last + 1) if head not in dead)
    return (*(TOKEN_IDS[FRACTIONS[value]] for value in fractions), *(TOKEN_IDS[f"0.{head:02d}"] for head in heads))


def _tails(start: int, stop: int, bad: frozenset[int]) -> tuple[int, ...]:
    values = (value for value in range(start, stop + 1) if value not in bad and value not in _IS_FRACTION)
    return tuple(PIECES[int(coordinate_word(value)[-2:])] for value in values)


def token_set(key: Key) -> tuple[int, ...]:
    """The token ids that a key stands for."""
    if isinstance(key, int):
        return (key,)
    if not key or isinstance(key[0], int):
        return key
    name, *parameters = key
    match name:
        case "heads":
            return _heads(*parameters)
        case "tails":
            return _tails(*parameters)
        case "pieces":
            low, high = parameters
            return PIECES[low : high + 1]
        case "whole":
            low, high = parameters
            return tuple(_WHOLE[number] for number in range(low, high + 1))
        case "angle":
            return _angles(*parameters)
    raise AssertionError(f"unknown family of token sets: {name!r}")
