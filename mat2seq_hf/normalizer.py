"""Every setting in which a symmetrised crystal can be described: normalizers and choices of basis.

A space group G in its standard setting leaves freedom: each (W, w) with ``(W, w) G (W, w)^-1 = G`` maps the crystal to
another description in the same setting. Those with det W = +1 keep the handedness. Modulo G itself they are finitely
many (International Tables A, chapter 3.5, lists them as Euclidean and affine normalizers), except that

- along polar axes w is arbitrary (the canonical form fixes it by an atom), and
- triclinic and monoclinic groups admit infinitely many W; only those that give the shortest basis are kept.

They are computed here from the operations alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

from .operations import centring_vectors, group_operations, polar_axes
from .reduction import minkowski_basis
from .wyckoff import WyckoffPosition, wyckoff_positions

__all__ = ["Settings", "locate", "settings"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Relative width of the shell of shortest bases and of the sign rule: far above rounding errors of floats, below any
# difference that is written, and no short decimal, so that data with few digits do not fall on its edge.
_SHELL = 2.7182818e-9
# Where rounding never lets the shortest bases settle, those this much longer compete, too: more than rounding changes.
_WIDE = 2.7182818e-3
_LOCATE = 1e-6


@dataclass(frozen=True)
class Settings:
    """Changes of description ``x' = W x + w`` that keep the standard setting.

    Attributes:
        rotations: W, whole numbers, det +1, shape (s, 3, 3).
        inverses: W^-1, whole numbers, shape (s, 3, 3).
        translations: w, fractions, zero along polar axes, shape (s, 3).
        letters: index of the Wyckoff letter that a position has afterwards, by that of before, shape (s, letters).
    """

    rotations: Floats
    inverses: Floats
    translations: Floats
    letters: Integers

    def __len__(self) -> int:
        return len(self.rotations)

    def __getitem__(self, rows: list[int]) -> Settings:
        return Settings(self.rotations[rows], self.inverses[rows], self.translations[rows], self.letters[rows])


def locate(position: WyckoffPosition, images: Floats) -> NDArray[np.bool_]:
    """Which points lie on the first triplet of a Wyckoff position (modulo lattice vectors of the conventional cell).

    Args:
        images: fractional coordinates, shape (..., 3).
    """
    if position.freedom == 3:
        return np.ones(images.shape[:-1], dtype=np.bool_)
    matrix, shift = position.deviation
    rest = images @ matrix.T + shift
    return np.asarray((np.abs(rest - np.rint(rest)) < _LOCATE).all(axis=-1))


def _proper_matrices(number: int) -> list[Integers]:
    """Proper rotations of the holohedry that can normalize a group with number >= 16 (all orders of axes included)."""
    if 143 <= number <= 194:
        six = np.array([[1, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=np.int64)
        two = np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1]], dtype=np.int64)
        powers = [np.linalg.matrix_power(six, power) for power in range(6)]
        return powers + [power @ two for power in powers]
    found = []
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        matrix = np.zeros((3, 3), dtype=np.int64)
        matrix[range(3), order] = signs
        if round(float(np.linalg.det(matrix))) == 1:
            found.append(matrix)
    return found


def _inverse(matrix: Integers) -> Integers:
    return np.rint(np.linalg.inv(matrix)).astype(np.int64)


@lru_cache(maxsize=230)
def _trial_translations(number: int) -> Integers:
    """Trial translations in 1/24, zero along polar axes: multiples of 1/12 on hexagonal axes, of 1/8 elsewhere.

    Finer grids (all multiples of 1/24) give no further translations for any of the 230 groups.
    """
    step = 2 if 143 <= number <= 194 else 3
    free = [range(1) if axis in polar_axes(number) else range(0, 24, step) for axis in range(3)]
    return np.array(list(product(*free)), dtype=np.int64)


@lru_cache(maxsize=230)
def _generators(number: int) -> tuple[tuple[Integers, Integers], ...]:
    """A few operations whose rotations generate the point group: what holds for them holds for the group."""
    chosen: list[tuple[Integers, Integers]] = []
    known = {np.eye(3, dtype=np.int64).tobytes()}
    for rotation, translation in zip(*group_operations(number), strict=True):
        if rotation.tobytes() in known:
            continue
        chosen.append((rotation, translation))
        fresh = [np.eye(3, dtype=np.int64)]
        known = {fresh[0].tobytes()}
        while fresh:
            products = [matrix @ generator for matrix in fresh for generator, _ in chosen]
            fresh = []
            for matrix in products:
                if matrix.tobytes() not in known:
                    known.add(matrix.tobytes())
                    fresh.append(matrix)
    return tuple(chosen)


@lru_cache(maxsize=230)
def _group_table(number: int) -> dict[bytes, set[tuple[int, ...]]]:
    """Translations (1/24) of the group's operations by rotation part."""
    table: dict[bytes, set[tuple[int, ...]]] = {}
    for rotation, translation in zip(*group_operations(number), strict=True):
        table.setdefault(rotation.tobytes(), set()).add(tuple(translation.tolist()))
    return table


def _translations(number: int, matrix: Integers) -> Integers:
    """All w (1/24, shape (k, 3)) with which ``matrix`` normalizes the group; empty if there is none."""
    table = _group_table(number)
    inverse = _inverse(matrix)
    centring = {tuple(vector) for vector in centring_vectors(number).tolist()}
    none = np.empty((0, 3), dtype=np.int64)
    if {tuple(vector) for vector in (centring_vectors(number) @ matrix.T % 24).tolist()} != centring:
        return none
    trial = _trial_translations(number)
    for rotation, translation in _generators(number):
        image = matrix @ rotation @ inverse
        wanted = table.get(np.ascontiguousarray(image).tobytes())
        if wanted is None:
            return none
        # (W, w)(R, t)(W, w)^-1 = (W R W^-1, W t + w - W R W^-1 w)
        moved = (matrix @ translation + trial - trial @ image.T) % 24
        codes = moved @ np.array([576, 24, 1])
        allowed = [t[0] * 576 + t[1] * 24 + t[2] for t in wanted]
        trial = trial[np.isin(codes, allowed)]
        if not len(trial):
            return none
    return trial


def _coset_key(number: int, matrix: Integers, translation: Integers) -> tuple[int, ...]:
    """The same for all products with an element of the group (and with polar translations)."""
    rotations, translations = group_operations(number)
    products = matrix @ rotations
    shifts = (translations @ matrix.T + translation) % 24
    shifts[:, list(polar_axes(number))] = 0
    rows = np.hstack([products.reshape(-1, 9), shifts])
    return tuple(rows[np.lexsort(rows.T[::-1])[0]].tolist())


def _letter_map(number: int, matrix: Integers, translation: Floats) -> list[int]:
    rotations, translations = group_operations(number)
    positions = wyckoff_positions(number)
    mapping = []
    for position in positions:
        point = position.matrix @ np.array([0.1357, 0.2712, 0.3891]) + position.offset
        images = rotations @ (matrix @ point + translation) + translations / 24.0
        mapping.append(
            next(
                index
                for index, other in enumerate(positions)
                if other.multiplicity == position.multiplicity
                and other.freedom == position.freedom
                and locate(other, images).any()
            )
        )
    return mapping


def _settings_with(number: int, matrices: list[Integers]) -> Settings:
    found: dict[tuple[int, ...], tuple[Integers, Integers, Floats, list[int]]] = {}
    for matrix in matrices:
        for translation in _translations(number, matrix):
            key = _coset_key(number, matrix, translation)
            if key not in found:
                shift = translation / 24.0
                found[key] = matrix, _inverse(matrix), shift, _letter_map(number, matrix, shift)
    rotations, inverses, translations, letters = zip(*found.values(), strict=True) if found else ((), (), (), ())
    return Settings(
        np.array(rotations, dtype=np.float64).reshape(-1, 3, 3),
        np.array(inverses, dtype=np.float64).reshape(-1, 3, 3),
        np.array(translations, dtype=np.float64).reshape(-1, 3),
        np.array(letters, dtype=np.int64).reshape(len(found), len(wyckoff_positions(number))),
    )


@lru_cache(maxsize=230)
def _finite_settings(number: int) -> Settings:
    return _settings_with(number, _proper_matrices(number))


@dataclass(frozen=True)
class _Changes:
    """Changes of basis that compete for the shortest one.

    Attributes:
        matrices: columns are the new vectors in terms of the old ones, det +1, shape (n, 3, 3).
        vectors: all columns that occur, shape (m, 3).
        columns: indices into ``vectors`` of the columns whose lengths are compared, shape (n, 2 or 3).
    """

    matrices: Integers
    vectors: Integers
    columns: Integers


def _changes(matrices: Integers, compared: list[int]) -> _Changes:
    columns = matrices[:, :, compared].transpose(0, 2, 1)
    vectors, index = np.unique(columns.reshape(-1, 3), axis=0, return_inverse=True)
    return _Changes(matrices, vectors, index.reshape(columns.shape[:2]))


@lru_cache(maxsize=1)
def _unimodular_changes() -> _Changes:
    """All integer matrices with entries -1, 0, 1 and determinant +1."""
    matrices = np.array(list(product((-1, 0, 1), repeat=9)), dtype=np.int64).reshape(-1, 3, 3)
    return _changes(matrices[np.rint(np.linalg.det(matrices)) == 1], [0, 1, 2])


@lru_cache(maxsize=1)
def _small_plane_bases() -> Integers:
    """Changes of the monoclinic a and c axes with entries up to 3 in size, b kept or reversed, determinant +1."""
    matrices = []
    for p, q, r, s in product(range(-3, 4), repeat=4):
        determinant = p * s - q * r
        if abs(determinant) == 1:
            matrices.append([[p, 0, q], [0, determinant, 0], [r, 0, s]])
    return np.array(matrices, dtype=np.int64)


@lru_cache(maxsize=16)
def _standard_parities(number: int) -> list[int]:
    """Which monoclinic changes of basis keep the group's standard operations, as parity codes of the basis.

    Translations of the standard monoclinic groups are multiples of 1/2, their centring included, so that parities
    decide.
    """
    parities = {code: basis for basis, code in zip(_small_plane_bases(), _parity(_small_plane_bases()), strict=True)}
    return [code for code, basis in parities.items() if len(_translations(number, _inverse(basis)))]


def _parity(bases: Integers) -> list[int]:
    codes = (bases % 2).reshape(-1, 9) @ (1 << np.arange(9))
    return [int(code) for code in codes]


@lru_cache(maxsize=256)
def _plane_changes(number: int, parity: tuple[int, ...]) -> _Changes:
    """Small changes of a basis of this parity (nine entries, 0 or 1) that lead to a standard one."""
    small = _small_plane_bases()
    bases = np.array(parity, dtype=np.int64).reshape(3, 3) @ small
    return _changes(small[np.isin(_parity(bases), _standard_parities(number))], [0, 2])


def _gauss_plane(metric: Floats) -> Integers:
    """Shortest basis (columns) of the a, c plane of a monoclinic metric, b kept, determinant +1."""
    # Plain floats: two vectors are too few for arrays to pay.
    (aa, _, ac), _, (_, _, cc) = metric.tolist()
    a, c = (1, 0), (0, 1)
    while True:
        if aa > cc:
            a, c, aa, cc, ac = c, (-a[0], -a[1]), cc, aa, -ac
        factor = round(ac / aa)
        shorter = cc - 2 * factor * ac + factor * factor * aa
        if shorter >= cc * (1 - 1e-12):
            break
        c, cc, ac = (c[0] - factor * a[0], c[1] - factor * a[1]), shorter, ac - factor * aa
    return np.array([[a[0], 0, c[0]], [0, 1, 0], [a[1], 0, c[1]]], dtype=np.int64)


def _cosines_agree(metrics: Floats) -> NDArray[np.bool_]:
    """Niggli's sign rule: the three angles are all acute or all at least 90 degree."""
    lengths = np.sqrt(np.einsum("nii->ni", metrics))
    cosines = np.stack([metrics[:, 1, 2], metrics[:, 0, 2], metrics[:, 0, 1]], axis=1)
    cosines = cosines / (np.prod(lengths, axis=1, keepdims=True) / lengths)
    return np.asarray((cosines > -_SHELL).all(axis=1) | (cosines < _SHELL).all(axis=1))


def _shortest(start: Integers, changes: _Changes, metric: Floats, wide: bool) -> tuple[Integers, Floats]:
    """The shortest bases that ``changes`` make of the basis ``start`` (columns), and their metrics."""
    inner = start.T @ metric @ start
    squares = ((changes.vectors @ inner) * changes.vectors).sum(axis=1)
    totals = squares[changes.columns].sum(axis=1)
    chosen = changes.matrices[totals <= totals.min() * (1 + (_WIDE if wide else _SHELL))]
    return np.asarray(start @ chosen, dtype=np.int64), chosen.transpose(0, 2, 1) @ inner @ chosen


def _triclinic_bases(metric: Floats, wide: bool) -> Integers:
    start = minkowski_basis(np.asarray(np.linalg.cholesky(metric), dtype=np.float64)).T
    bases, metrics = _shortest(start, _unimodular_changes(), metric, wide)
    if wide:
        return bases
    lengths = np.einsum("nii->ni", metrics)
    ascending = (lengths[:, :2] <= lengths[:, 1:] * (1 + _SHELL)).all(axis=1)
    return np.asarray(bases[ascending & _cosines_agree(metrics)], dtype=np.int64)


def _monoclinic_bases(number: int, metric: Floats, wide: bool) -> Integers:
    start = _gauss_plane(metric)
    changes = _plane_changes(number, tuple((start % 2).ravel().tolist()))
    bases, metrics = _shortest(start, changes, metric, wide)
    if wide:
        return bases
    cosines = metrics[:, 0, 2] / np.sqrt(metrics[:, 0, 0] * metrics[:, 2, 2])
    return np.asarray(bases[cosines < _SHELL], dtype=np.int64)


@lru_cache(maxsize=4096)
def _settings_of(number: int, inverse_basis: tuple[int, ...]) -> Settings:
    return _settings_with(number, [np.array(inverse_basis, dtype=np.int64).reshape(3, 3)])


def settings(number: int, metric: Floats, wide: bool = False) -> Settings:
    """All descriptions of a crystal of space group ``number`` among which the canonical one is chosen.

    The set depends on the group and, for triclinic and monoclinic ones, on the metric tensor (square angstrom, shape
    (3, 3), of any basis that gives the standard setting); never on the description that was given.
    """
    if number >= 16:
        return _finite_settings(number)
    bases = _triclinic_bases(metric, wide) if number <= 2 else _monoclinic_bases(number, metric, wide)
    found = [_settings_of(number, tuple(_inverse(basis).ravel().tolist())) for basis in bases]
    return found[0] if len(found) == 1 else _joined(found)


def _joined(parts: list[Settings]) -> Settings:
    return Settings(
        np.concatenate([part.rotations for part in parts]),
        np.concatenate([part.inverses for part in parts]),
        np.concatenate([part.translations for part in parts]),
        np.concatenate([part.letters for part in parts]),
    )
