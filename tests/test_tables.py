"""The tables of space groups and Wyckoff positions agree with two independent sources, spglib and moyo.

A detector may choose another origin or other axes than ours wherever the group allows it (its normalizer), and letters
permute with that choice. So each letter a detector reports is compared with the letter that our table gives for the
same atom in the detector's own frame.
"""

from __future__ import annotations

from functools import lru_cache

import moyopy
import numpy as np
import pytest
import spglib
from numpy.typing import NDArray
from synthetic import ENANTIOMORPHIC_PAIRS, SOHNCKE

from mat2seq_hf.operations import inverted_group
from mat2seq_hf.tables import ROWS
from mat2seq_hf.wyckoff import LETTERS, SYMBOLS, WyckoffPosition, wyckoff_positions

GROUPS = range(1, 231)
Array = NDArray[np.float64]


@lru_cache(maxsize=230)
def operations(number: int) -> tuple[Array, Array]:
    """spglib's operations of the standard setting: rotations (n, 3, 3) and translations (n, 3)."""
    found = spglib.get_symmetry_from_database(ROWS[number - 1][1])
    assert found is not None
    return found["rotations"].astype(float), found["translations"]


def images(number: int, point: Array) -> Array:
    """The point under every operation of the group, inside the cell, shape (n, 3)."""
    rotations, translations = operations(number)
    inside: Array = (rotations @ point + translations) % 1.0
    return inside


def distance(difference: Array) -> Array:
    """Largest coordinate difference modulo lattice translations, over the last axis."""
    largest: Array = np.abs(difference - np.round(difference)).max(axis=-1)
    return largest


def orbit(number: int, point: Array) -> Array:
    """The distinct images of a point, shape (multiplicity, 3)."""
    kept: list[Array] = []
    for image in images(number, point):
        if not kept or distance(np.array(kept) - image).min() > 1e-6:
            kept.append(image)
    return np.array(kept)


def generic_point(position: WyckoffPosition, rng: np.random.Generator) -> Array:
    point: Array = position.matrix @ rng.uniform(0.03, 0.97, 3) + position.offset
    return point


def lies_on(position: WyckoffPosition, points: Array) -> NDArray[np.bool_]:
    """Which of the points (n, 3) are ``M p + v`` for some p, modulo lattice translations."""
    parameters = np.zeros_like(points)
    for parameter, axis, sign in position.pivots:
        parameters[:, parameter] = sign * (points[:, axis] - position.offset[axis])
    there = parameters @ position.matrix.T + position.offset
    return distance(there - points) < 1e-5


def letter_by_table(number: int, point: Array) -> str:
    """Letter of the most special position of our table that holds an image of the point."""
    points = images(number, point)
    held = [position for position in wyckoff_positions(number) if lies_on(position, points).any()]
    return min(held, key=lambda position: position.multiplicity).letter


def generic_lattice(number: int) -> Array:
    """Row vectors in angstrom of a cell with no more symmetry than the crystal system of the group."""
    a, b, c = 9.1, 10.3, 11.9
    if number >= 195:
        return np.diag([a, a, a])
    if number >= 143:
        return np.array([[a, 0, 0], [-a / 2, a * np.sqrt(3) / 2, 0], [0, 0, c]])
    if number >= 75:
        return np.diag([a, a, c])
    if number >= 16:
        return np.diag([a, b, c])
    if number >= 3:
        return np.array([[a, 0, 0], [0, b, 0], [-2.3, 0, c]])
    return np.array([[a, 0, 0], [-1.7, b, 0], [-2.3, -1.1, c]])


def crystal_on_every_position(number: int) -> tuple[Array, Array, list[int]]:
    """Lattice, points, and the species of each atom, one species for each orbit.

    One orbit on each position, and further general ones: a single general orbit can be more symmetric than its group.
    """
    rng = np.random.default_rng(number)
    positions = wyckoff_positions(number)
    further = 1 if positions[-1].multiplicity > 16 else 3
    points: list[Array] = []
    species: list[int] = []
    for kind, position in enumerate((*positions, *[positions[-1]] * further), start=1):
        atoms = orbit(number, generic_point(position, rng))
        points.extend(atoms)
        species.extend([kind] * len(atoms))
    return generic_lattice(number), np.array(points), species


@pytest.mark.parametrize("number", GROUPS)
def test_symbol_and_operations_are_those_of_the_standard_setting(number: int) -> None:
    symbol, hall, _ = ROWS[number - 1]
    kind = spglib.get_spacegroup_type(hall)
    assert kind is not None
    assert (kind.number, kind.international_short) == (number, symbol)
    assert SYMBOLS[number - 1] == symbol
    ours = images(number, np.array([0.1234, 0.3571, 0.7193]))
    standard = moyopy.operations_from_number(number, setting=moyopy.Setting.standard())
    theirs = np.array(standard.rotations) @ np.array([0.1234, 0.3571, 0.7193]) + np.array(standard.translations)
    assert len(theirs) == len(ours)
    assert all(distance(ours - image).min() < 1e-6 for image in theirs)


@pytest.mark.parametrize("number", GROUPS)
def test_every_position_has_the_multiplicity_of_its_orbit(number: int) -> None:
    rng = np.random.default_rng(number)
    positions = wyckoff_positions(number)
    assert "".join(position.letter for position in positions) == LETTERS[: len(positions)]
    assert [p.freedom for p in positions if p.multiplicity == len(operations(number)[0])] == [3]
    assert (positions[-1].rows, positions[-1].shift24) == (((1, 0, 0), (0, 1, 0), (0, 0, 1)), (0, 0, 0))
    for position in positions:
        point = generic_point(position, rng)
        assert len(orbit(number, point)) == position.multiplicity, str(position)
        assert letter_by_table(number, point) == position.letter


@pytest.mark.parametrize("number", GROUPS)
def test_moyo_reports_the_letters_of_the_table(number: int) -> None:
    lattice, points, species = crystal_on_every_position(number)
    cell = moyopy.Cell(lattice.tolist(), points.tolist(), species)
    found = moyopy.MoyoDataset(cell, symprec=1e-4, setting=moyopy.Setting.standard())
    assert found.number == number
    frame = (points - np.array(found.std_origin_shift)) @ np.linalg.inv(np.array(found.std_linear)).T
    for index in np.unique(species, return_index=True)[1]:
        assert found.wyckoffs[index] == letter_by_table(number, frame[index]), f"atom {index} at {points[index]}"


@pytest.mark.parametrize("number", GROUPS)
def test_spglib_reports_the_letters_of_the_table(number: int) -> None:
    lattice, points, species = crystal_on_every_position(number)
    found = spglib.get_symmetry_dataset((lattice, points, species), symprec=1e-4, hall_number=ROWS[number - 1][1])
    assert found is not None
    assert found.number == number
    frame = points @ found.transformation_matrix.T + found.origin_shift
    for index in np.unique(species, return_index=True)[1]:
        assert found.wyckoffs[index] == letter_by_table(number, frame[index]), f"atom {index} at {points[index]}"


def test_65_groups_have_proper_operations_only() -> None:
    assert len(SOHNCKE) == 65
    with pytest.raises(ValueError, match="space group 2 is not a Sohncke group"):
        inverted_group(2)


@pytest.mark.parametrize("number", SOHNCKE)
def test_inversion_makes_each_sohncke_group_itself_or_its_enantiomorph(number: int) -> None:
    other, shift = inverted_group(number)
    assert inverted_group(other)[0] == number
    point = np.array([0.1234, 0.3571, 0.7193])
    theirs = shift / 24.0 - images(number, point)
    ours = images(other, shift / 24.0 - point)
    assert len(theirs) == len(ours)
    assert all(distance(ours - image).min() < 1e-6 for image in theirs)


def test_11_pairs_of_groups_are_enantiomorphic() -> None:
    pairs = {tuple(sorted((number, inverted_group(number)[0]))) for number in SOHNCKE}
    assert len(pairs) == 65 - 11
    assert {pair for pair in pairs if pair[0] != pair[1]} == set(ENANTIOMORPHIC_PAIRS)
