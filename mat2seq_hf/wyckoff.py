"""Wyckoff positions of the 230 space groups in the standard settings of ITA.

Coordinates are fractions of the conventional cell; constants of the triplets are multiples of 1/24.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from .tables import ROWS

__all__ = [
    "LETTERS",
    "SYMBOLS",
    "WyckoffPosition",
    "parse_positions",
    "position_by_name",
    "space_group_number",
    "wyckoff_positions",
]

#: Wyckoff letters in order; Pmmm has 27 positions, the last one is written "A" (alpha in ITA).
LETTERS = "abcdefghijklmnopqrstuvwxyzA"

#: International short symbols; ``SYMBOLS[number - 1]``.
SYMBOLS: tuple[str, ...] = tuple(row[0] for row in ROWS)

_TERM = re.compile(r"([+-]?)(?:(\d+)/(\d+)|(\d*)([xyz])|(\d+))")


@dataclass(frozen=True)
class WyckoffPosition:
    """One Wyckoff position: the points ``M @ (x, y, z) + v`` of its first ITA coordinate triplet.

    Attributes:
        multiplicity: points in the conventional cell.
        letter: one of :data:`LETTERS`.
        rows: ``M``, integers, shape (3, 3); a column of zeros is a parameter that does not occur.
        shift24: ``v`` in units of 1/24.
    """

    multiplicity: int
    letter: str
    rows: tuple[tuple[int, int, int], ...]
    shift24: tuple[int, int, int]

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        """Multiplicity and letter, such as ``4a``."""
        return f"{self.multiplicity}{self.letter}"

    @cached_property
    def matrix(self) -> NDArray[np.int64]:
        """``M``, shape (3, 3)."""
        return np.array(self.rows, dtype=np.int64)

    @cached_property
    def offset(self) -> NDArray[np.float64]:
        """``v`` as fractions, shape (3,)."""
        return np.array(self.shift24) / 24.0

    @cached_property
    def pivots(self) -> tuple[tuple[int, int, int], ...]:
        """``(parameter, coordinate, sign)`` for each free parameter.

        The coordinate in which the parameter stands alone with factor +1 or -1, so that the parameter can be read
        off a point: ``parameter = sign * (coordinate - v)``.
        """
        found = []
        for parameter in range(3):
            column = [row[parameter] for row in self.rows]
            if not any(column):
                continue
            for axis in range(3):
                alone = all(self.rows[axis][other] == 0 for other in range(3) if other != parameter)
                if alone and abs(column[axis]) == 1:
                    found.append((parameter, axis, column[axis]))
                    break
            else:
                raise AssertionError(f"no coordinate isolates parameter {parameter} of {self.name}")
        return tuple(found)

    @cached_property
    def reading(self) -> tuple[list[int], NDArray[np.int64], NDArray[np.int64]]:
        """:attr:`pivots` as arrays: coordinates, their signs, shape (f,), and the columns of ``M``, shape (3, f)."""
        axes = [axis for _, axis, _ in self.pivots]
        signs = np.array([sign for _, _, sign in self.pivots], dtype=np.int64)
        return axes, signs, self.matrix[:, [parameter for parameter, _, _ in self.pivots]]

    @cached_property
    def deviation(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """``(Q, q)``: a point x is off the triplet by ``Q @ x + q``, shapes (3, 3) and (3,)."""
        read = np.zeros((3, 3))
        for parameter, axis, sign in self.pivots:
            read[parameter, axis] = sign
        projection = self.matrix @ read
        return projection - np.eye(3), self.offset - projection @ self.offset

    @cached_property
    def freedom(self) -> int:
        """Number of free parameters, 0 to 3."""
        return len(self.pivots)


def _parse_triplet(text: str) -> tuple[tuple[tuple[int, int, int], ...], tuple[int, int, int]]:
    rows, shifts = [], []
    for part in text.split(","):
        row, shift = [0, 0, 0], 0
        for sign, numerator, denominator, factor, variable, integer in _TERM.findall(part):
            unit = -1 if sign == "-" else 1
            if variable:
                row["xyz".index(variable)] += unit * int(factor or 1)
            elif numerator:
                shift += unit * int(numerator) * 24 // int(denominator)
            else:
                shift += unit * int(integer) * 24
        rows.append((row[0], row[1], row[2]))
        shifts.append(shift % 24)
    return tuple(rows), (shifts[0], shifts[1], shifts[2])


def parse_positions(text: str) -> tuple[WyckoffPosition, ...]:
    """Read one row of the table, positions from letter a upwards."""
    positions = []
    for word in text.split():
        name, triplet = word.split(":")
        rows, shift24 = _parse_triplet(triplet)
        positions.append(WyckoffPosition(int(name[:-1]), name[-1], rows, shift24))
    return tuple(positions)


@lru_cache(maxsize=230)
def wyckoff_positions(number: int) -> tuple[WyckoffPosition, ...]:
    """All Wyckoff positions of space group ``number`` (1 to 230), from letter a upwards."""
    return parse_positions(ROWS[number - 1][2])


@lru_cache(maxsize=4096)
def position_by_name(number: int, name: str) -> WyckoffPosition | None:
    """The Wyckoff position called ``name`` (such as ``"4a"``) of space group ``number``, or None."""
    for position in wyckoff_positions(number):
        if position.name == name:
            return position
    return None


def space_group_number(symbol: str) -> int | None:
    """Number of an International short symbol such as ``"Fm-3m"``, or None if there is none such."""
    return SYMBOLS.index(symbol) + 1 if symbol in SYMBOLS else None
