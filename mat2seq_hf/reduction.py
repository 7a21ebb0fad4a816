"""Lattice reduction and the primitive cell.

A :class:`Cell` is the working form of a crystal: a right-handed basis, fractional coordinates, atomic numbers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import NDArray

__all__ = ["Cell", "minkowski_basis", "primitive_cell"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Cell:
    """A periodic crystal.

    Attributes:
        lattice: basis vectors as rows, angstrom, right-handed, shape (3, 3).
        positions: fractional coordinates, shape (n, 3).
        numbers: atomic numbers, shape (n,).
        labels: index of each atom in the user's input, shape (n,).
    """

    lattice: Floats
    positions: Floats
    numbers: Integers
    labels: Integers

    def __len__(self) -> int:
        return len(self.numbers)

    def rebased(self, transform: Floats) -> Cell:
        """The same atoms in the basis ``transform @ lattice`` (rows of ``transform``: new vectors in old ones)."""
        positions = self.positions @ np.linalg.inv(transform)
        return Cell(transform @ self.lattice, positions - np.floor(positions), self.numbers, self.labels)


_Vector = tuple[float, float, float]
_Row = tuple[float, _Vector, _Vector]  # squared length, vector, its coefficients (whole numbers)
_Shift = tuple[Floats, Integers]  # a translation in fractions and the partner of each atom under it
_UNITS: tuple[_Vector, ...] = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
_PLANE = tuple((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1))


def _dot(first: _Vector, second: _Vector) -> float:
    return first[0] * second[0] + first[1] * second[1] + first[2] * second[2]


def _less(first: _Vector, factor: int, second: _Vector) -> _Vector:
    return first[0] - factor * second[0], first[1] - factor * second[1], first[2] - factor * second[2]


def _shorter_third(a: _Vector, b: _Vector, c: _Vector) -> tuple[int, int]:
    """Integers (i, j) that make ``c - i a - j b`` shortest, or (0, 0) where c cannot get shorter."""
    aa, ab, bb, ac, bc = _dot(a, a), _dot(a, b), _dot(b, b), _dot(a, c), _dot(b, c)
    determinant = aa * bb - ab * ab
    u, v = round((ac * bb - bc * ab) / determinant), round((bc * aa - ac * ab) / determinant)
    best, shortest = (0, 0), _dot(c, c) * (1 - 1e-12)
    for i, j in _PLANE:
        vector = _less(_less(c, u + i, a), v + j, b)
        if (length := _dot(vector, vector)) < shortest:
            best, shortest = (u + i, v + j), length
    return best


def minkowski_basis(lattice: Floats) -> Integers:
    """Integer matrix T, det +-1, such that the rows of ``T @ lattice`` are as short as possible and right-handed.

    The greedy algorithm of Semaev (Cryptography and Lattices 2001, LNCS 2146, 181): shorten the longest vector by
    the closest vector of the plane of the other two until that no longer helps. Its result attains the successive
    minima of the lattice. Plain floats: three vectors are too few for arrays to pay.
    """
    rows: list[_Row] = [(_dot(v, v), v, e) for v, e in zip(map(tuple, lattice.tolist()), _UNITS, strict=True)]
    while True:
        (_, a, ea), (_, b, eb), (_, c, ec) = rows = sorted(rows, key=lambda row: row[0])
        if factor := round(_dot(a, b) / _dot(a, a)):
            b, eb = _less(b, factor, a), _less(eb, factor, ea)
            if (length := _dot(b, b)) < rows[1][0] * (1 - 1e-12):
                rows = [rows[0], (length, b, eb), rows[2]]
                continue
        i, j = _shorter_third(a, b, c)
        if not (i or j):
            break
        c, ec = _less(_less(c, i, a), j, b), _less(_less(ec, i, ea), j, eb)
        rows = [rows[0], rows[1], (_dot(c, c), c, ec)]
    transform = np.array([coefficients for _, _, coefficients in rows], dtype=np.int64)
    return transform if np.linalg.det(transform @ lattice) > 0 else -transform


def _wrapped(differences: Floats) -> Floats:
    return differences - np.rint(differences)


def _match(cell: Cell, shift: Floats, limit: float) -> tuple[Integers, Floats] | None:
    """Partner of each atom moved by ``shift`` and the remaining difference (fractions), or None beyond ``limit``."""
    partners = np.empty(len(cell), dtype=np.int64)
    rest = np.empty((len(cell), 3))
    for number in set(cell.numbers.tolist()):
        (members,) = np.nonzero(cell.numbers == number)
        points = cell.positions[members]
        differences = _wrapped((points + shift)[:, None, :] - points[None, :, :])
        distances = ((differences @ cell.lattice) ** 2).sum(axis=2)
        nearest = distances.argmin(axis=1)
        rows = np.arange(len(members))
        if distances[rows, nearest].max() > limit**2 or len(set(nearest.tolist())) < len(members):
            return None
        partners[members] = members[nearest]
        rest[members] = differences[rows, nearest]
    return partners, rest


def _translations(cell: Cell, tolerance: float) -> list[_Shift]:
    """Translations (fractions) that map the crystal onto itself within ``tolerance`` angstrom, with partners.

    Whether one is accepted is judged on its mean over all atoms, so that no atom is special.
    """
    counts = Counter(cell.numbers.tolist())
    (rare,) = np.nonzero(cell.numbers == min(counts, key=lambda number: (counts[number], number)))
    candidates = _wrapped(cell.positions[rare[1:]] - cell.positions[rare[0]])
    if len(rare) > 8:  # a cheap look at a few atoms first: most candidates fail there
        probes = cell.positions[rare[1:4], None, None, :] + candidates[None, :, None, :]
        differences = _wrapped(probes - cell.positions[None, None, rare, :])
        distances = ((differences @ cell.lattice) ** 2).sum(axis=3).min(axis=2).max(axis=0)
        candidates = candidates[distances <= (4 * tolerance) ** 2]
    found = [(np.zeros(3), np.arange(len(cell)))]
    for candidate in candidates:
        known = _wrapped(np.array([shift for shift, _ in found]) - candidate) @ cell.lattice
        if len(found) > 1 and (known**2).sum(axis=1).min() <= tolerance**2:
            continue
        match = _match(cell, candidate, 4 * tolerance)
        if match is None:
            continue
        partners, rest = match
        mean = rest.mean(axis=0)
        if (((rest - mean) @ cell.lattice) ** 2).sum(axis=1).max() <= tolerance**2:
            found = _closed(cell, found, (candidate - mean, partners), tolerance)
    return found


def _closed(cell: Cell, found: list[_Shift], new: _Shift, tolerance: float) -> list[_Shift]:
    """Translations and one more, with those of their sums that hold: a group needs no search for each member."""
    sums, (shift, partners) = list(found), new
    members = {others.tobytes() for _, others in found}
    while partners.tobytes() not in members and len(sums) <= len(cell):
        sums += [(_wrapped(shift + other), partners[others]) for other, others in found]
        shift, partners = _wrapped(shift + new[0]), new[1][partners]
    return [item for item in sums if _holds(cell, *item, tolerance)]


def _holds(cell: Cell, shift: Floats, partners: Integers, tolerance: float) -> bool:
    rest = _wrapped(cell.positions + shift - cell.positions[partners]) @ cell.lattice
    return bool((rest**2).sum(axis=1).max() <= tolerance**2)


def _group_of(cell: Cell, found: list[_Shift], tolerance: float) -> Integers | None:
    """The translations as exact fractions ``steps / order``, or None where they form no group of lattice translations.

    Translations on the edge of the tolerance need not close, and then they are not the fractions that a group of their
    number has.
    """
    order = len(found)
    shifts = np.array([shift for shift, _ in found])
    steps = np.rint(shifts * order).astype(np.int64)
    if (((shifts - steps / order) @ cell.lattice) ** 2).sum(axis=1).max() > tolerance**2:
        return None
    steps = np.asarray(steps % order, dtype=np.int64)
    digits = np.array([order**2, order, 1])
    codes = steps @ digits
    sums = (steps[:, None, :] + steps) % order @ digits
    if len(np.unique(codes)) < order or not np.isin(sums, codes).all():
        return None
    smallest = np.array([partners for _, partners in found]).min(axis=0)
    if (np.bincount(smallest, minlength=len(cell))[smallest] != order).any():
        return None
    return steps


def _integer_basis(vectors: Integers) -> Integers:
    """Basis (rows, triangular) of the integer lattice that ``vectors`` generate (Hermite normal form)."""
    rows = [list(map(int, vector)) for vector in vectors]
    basis = []
    for column in range(3):
        while True:
            rows = [row for row in rows if any(row)]
            live = sorted((row for row in rows if row[column]), key=lambda row: abs(row[column]))
            if len(live) <= 1:
                break
            pivot = live[0]
            for row in live[1:]:
                factor = row[column] // pivot[column]
                row[:] = [value - factor * other for value, other in zip(row, pivot, strict=True)]
        basis.append(live[0])
        rows = [row for row in rows if row is not live[0]]
    return np.array(basis, dtype=np.int64)


def _averaged(cell: Cell, steps: Integers, partners: list[Integers]) -> Cell:
    """The primitive cell under the translations ``steps / order``, each atom the mean of its images."""
    order = len(steps)
    basis = _integer_basis(np.vstack([np.eye(3, dtype=np.int64) * order, steps])) / order
    if np.linalg.det(basis) < 0:
        basis = -basis
    table = np.array(partners)
    keep = np.nonzero(table.min(axis=0) == np.arange(len(cell)))[0]
    moved = cell.positions[table[:, keep]] - steps[:, None, :] / order
    mean = cell.positions[keep] + _wrapped(moved - cell.positions[keep]).mean(axis=0)
    return Cell(cell.lattice, mean, cell.numbers[keep], cell.labels[keep]).rebased(basis)


def primitive_cell(cell: Cell, tolerance: float) -> Cell:
    """Primitive cell in a Minkowski-reduced, right-handed basis.

    Atoms that a lattice translation within ``tolerance`` (angstrom) relates are averaged over all such translations,
    so the result does not depend on the cell or the order of atoms in which the crystal was given.
    """
    cell = cell.rebased(minkowski_basis(cell.lattice).astype(np.float64))
    if gcd(*Counter(cell.numbers.tolist()).values()) == 1:
        return cell
    while True:
        found = _translations(cell, tolerance)
        if len(found) == 1:
            return cell
        steps = _group_of(cell, found, tolerance)
        if steps is not None:
            break
        tolerance *= 0.7  # a smaller one leaves only translations that close
    cell = _averaged(cell, steps, [partners for _, partners in found])
    return cell.rebased(minkowski_basis(cell.lattice).astype(np.float64))
