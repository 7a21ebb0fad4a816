"""Numbers on integer grids, and their words.

Everything that is compared or written is an integer on a fixed grid:

- fractional coordinates in units of 1/9600. 9600 is divisible by 24, so every constant and every translation of the
  230 space groups lies on the grid exactly: 1/3 is 3200, and a symmetry operation maps grid points to grid points.
  Neighbouring grid points are 1.04e-4 apart, so four decimals name each point without ambiguity.
- lengths in units of 1e-4 angstrom, angles in units of 1e-2 degree.
"""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import DecodeError

__all__ = [
    "ANGLE_UNIT",
    "COORDINATE_GRID",
    "FRACTIONS",
    "LENGTH_UNIT",
    "MAX_LENGTH",
    "angle_word",
    "coordinate_word",
    "length_word",
    "nearest",
    "parse_angle",
    "parse_coordinate",
    "parse_length",
    "quantize",
]

COORDINATE_GRID = 9600  # points in a unit cell along each axis
LENGTH_UNIT = 1e-4  # angstrom
ANGLE_UNIT = 1e-2  # degree
MAX_LENGTH = 500.0  # angstrom

#: Coordinates with a word of their own: the constants that occur in the Wyckoff positions of the 230 groups.
FRACTIONS: dict[int, str] = {
    int(COORDINATE_GRID * n / d): (f"{n}/{d}" if n else "0")
    for n, d in ((0, 1), (1, 8), (1, 6), (1, 4), (1, 3), (3, 8), (1, 2), (5, 8), (2, 3), (3, 4), (5, 6), (7, 8))
}

# Data written with few decimals would otherwise lie on rounding boundaries (3.12345 between two lengths of four
# decimals), where the last bit of a float decides. An irrational part of a quantum moves the boundary off them.
_ROUNDING = 0.5 + math.sqrt(2.0) / 100.0

_LENGTH = re.compile(r"[1-9][0-9]{0,2}\.[0-9]{4}")
_ANGLE = re.compile(r"[1-9][0-9]{0,2}\.[0-9]{2}")


def quantize(values: ArrayLike, unit: float) -> NDArray[np.int64]:
    """Nearest multiples of ``unit`` as integers, with the rounding boundary moved off short decimals."""
    return np.floor(np.asarray(values, dtype=np.float64) / unit + _ROUNDING).astype(np.int64)


def nearest(value: float, unit: float) -> int:
    """:func:`quantize` for a single number, where an array would take longer to make."""
    return math.floor(value / unit + _ROUNDING)


def _decimal(value: int) -> str:
    return f"{value / COORDINATE_GRID:.4f}"


_WORDS = tuple(FRACTIONS.get(value) or _decimal(value) for value in range(COORDINATE_GRID))
_VALUES = {word: value for value, word in enumerate(_WORDS)}


def coordinate_word(value: int) -> str:
    """Word of a coordinate given in units of 1/9600, 0 <= value < 9600: ``3200 -> "1/3"``, ``1185 -> "0.1234"``."""
    return _WORDS[value]


def parse_coordinate(word: str) -> int:
    """Inverse of :func:`coordinate_word`; any other word raises :class:`DecodeError`."""
    value = _VALUES.get(word)
    if value is None:
        raise DecodeError(
            f"coordinate {word!r} is not one of {', '.join(FRACTIONS.values())} or another multiple of "
            "1/9600 written with four decimals, such as 0.1234"
        )
    return value


def length_word(value: int) -> str:
    """Word of a length in units of 1e-4 angstrom: ``40094 -> "4.0094"``."""
    return f"{value // 10000}.{value % 10000:04d}"


def parse_length(word: str) -> int:
    """Inverse of :func:`length_word`; lengths run from 1 to below 500 angstrom."""
    if not _LENGTH.fullmatch(word) or not 10000 <= (value := int(word.replace(".", ""))) < MAX_LENGTH / LENGTH_UNIT:
        raise DecodeError(f"length {word!r} is not a number from 1.0000 to 499.9999 (angstrom) with four decimals")
    return value


def angle_word(value: int) -> str:
    """Word of an angle in units of 1e-2 degree: ``9000 -> "90"``, ``10134 -> "101.34"``."""
    if value in (9000, 12000):
        return str(value // 100)
    return f"{value // 100}.{value % 100:02d}"


def parse_angle(word: str) -> int:
    """Inverse of :func:`angle_word`; angles lie between 1 and 179.99 degree."""
    if word in ("90", "120"):
        return int(word) * 100
    value = int(word.replace(".", "")) if _ANGLE.fullmatch(word) else 0
    if not 100 <= value < 18000 or angle_word(value) != word:
        raise DecodeError(
            f"angle {word!r} is not 90, 120 or another number from 1.00 to 179.99 (degree) with two decimals"
        )
    return value
