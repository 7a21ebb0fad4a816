"""The fast matcher gives what StructureMatcher gives."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from mat2seq_hf.evaluation.matching import Matcher
from mat2seq_hf.evaluation.pool import Outcome, run
from mat2seq_hf.evaluation.reduced_cell import reduce_crystal


def distorted(structure: Structure, rng: np.random.Generator, strain: float, shift: float) -> Structure:
    matrix = structure.lattice.matrix @ (np.eye(3) + strain * rng.normal(size=(3, 3)))
    moves = shift * rng.normal(size=(len(structure), 3)) @ np.linalg.inv(matrix)
    return Structure(Lattice(matrix), structure.species, structure.frac_coords + moves)


def pairs(crystals: dict[str, Structure]) -> list[tuple[Structure, Structure]]:
    """Equal, nearly equal, hardly equal and different crystals, of the same formula and of others."""
    rng = np.random.default_rng(0)
    found = [(first, second) for first in crystals.values() for second in list(crystals.values())[:3]]
    for structure in crystals.values():
        found.append((structure, structure.copy()))
        for strain, shift in ((0.01, 0.05), (0.03, 0.3), (0.1, 0.1), (0.05, 0.8), (0.2, 0.5)):
            found.append((structure, distorted(structure, rng, strain, shift)))
    salts = [
        Structure.from_spacegroup("Pm-3m", Lattice.cubic(3.4), ["Na", "Cl"], [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]),
        Structure.from_spacegroup("F-43m", Lattice.cubic(5.9), ["Na", "Cl"], [[0.0, 0.0, 0.0], [0.25, 0.25, 0.25]]),
        Structure(Lattice.orthorhombic(0.9, 40.0, 2.0), ["Na", "Cl"], [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]),
        Structure(Lattice.orthorhombic(30.0, 30.0, 0.2), ["Na", "Cl"], [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]),
    ]
    return found + [(crystals["NaCl"], salt) for salt in salts] + [(salt, crystals["NaCl"]) for salt in salts]


@pytest.mark.parametrize("tolerances", [(0.3, 0.5, 10.0), (0.2, 0.3, 5.0)])
def test_figures_equal_those_of_structure_matcher(
    crystals: dict[str, Structure], tolerances: tuple[float, float, float]
) -> None:
    plain, fast = StructureMatcher(*tolerances), Matcher(*tolerances)
    matches = 0
    for first, second in pairs(crystals):
        expected = plain.get_rms_dist(first, second)
        found = fast.rms(reduce_crystal(first), reduce_crystal(second))
        assert (found is None) == (expected is None)
        if expected is not None:
            # Where two assignments are equally good, last bits choose, and the rest is a difference of 1e-9.
            assert found == pytest.approx(float(expected[0]), abs=1e-8)
            matches += 1
    assert matches > 30


def test_a_supercell_matches_its_primitive_cell(crystals: dict[str, Structure]) -> None:
    for structure in crystals.values():
        large = structure.copy()
        large.make_supercell([[2, 1, 0], [0, 1, 0], [0, 0, 1]])
        assert Matcher().rms(reduce_crystal(structure), reduce_crystal(large)) == pytest.approx(0, abs=1e-4)


def test_of_equally_rare_elements_the_first_by_symbol_decides_as_in_pymatgen() -> None:
    lattice = Lattice.orthorhombic(5.0, 5.05, 6.0)
    coords = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    rng = np.random.default_rng(0)
    directions = np.array([lattice.matrix[0] - lattice.matrix[1], 2 * lattice.matrix[1]]) / 2
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    shrunk = 0
    for _ in range(60):  # hydrogen is off its translation by just about what the search allows
        moved = coords.copy()
        moved[3] += lattice.get_fractional_coords(rng.choice([-1, 1], 2) * rng.uniform(0.2, 0.249, 2) @ directions)
        structure = Structure(lattice, ["Al", "Al", "H", "H"], moved)
        plain = structure.get_reduced_structure("niggli").get_primitive_structure()
        assert len(reduce_crystal(structure).numbers) == len(plain)
        shrunk += len(plain) == 2
    assert shrunk > 30


def test_reduced_cells_have_the_bits_of_pymatgen(crystals: dict[str, Structure]) -> None:
    rng = np.random.default_rng(0)
    sizes = []
    for structure in crystals.values():
        variants = [structure]
        for amount in (0.0, 0.1, 0.25, 0.35):  # angstrom: images coincide, hardly coincide, do not
            for matrix in (
                [[2, 0, 0], [0, 1, 0], [0, 0, 1]],
                [[1, 1, 0], [-1, 1, 0], [0, 1, 2]],
                [[0, 1, 1], [1, 0, 1], [1, 1, 0]],
            ):
                large = structure.copy()
                large.make_supercell(matrix)
                shifts = rng.normal(size=(len(large), 3))
                shifts *= amount / np.linalg.norm(shifts, axis=1)[:, None]
                coords = large.frac_coords + shifts @ large.lattice.inv_matrix
                variants.append(Structure(large.lattice, large.species, coords))
        for variant in variants:
            plain = variant.get_reduced_structure("niggli").get_primitive_structure()
            found = reduce_crystal(variant)
            assert (found.matrix == plain.lattice.matrix).all()
            assert (found.coords == plain.frac_coords).all()
            assert found.numbers.tolist() == list(plain.atomic_numbers)
            sizes.append(len(variant) // len(plain))
    assert {1, 2, 4} <= set(sizes)


def test_many_equal_atoms_are_compared_in_blocks() -> None:
    metal = Structure(Lattice.cubic(3.0), ["Fe"], [[0.0, 0.0, 0.0]])
    metal.make_supercell([6, 6, 5])  # 180 atoms: 180 x 180 x 180 distances are more than a block
    assert len(reduce_crystal(metal).numbers) == 1


def spoil(task: int) -> int:
    """What a task can do: answer, fail, hang, kill its process."""
    import os

    if task == 3:
        raise ValueError("three")
    if task == 5:
        return sum(range(10**12))  # in C code, which no alarm interrupts
    if task == 7:
        os._exit(1)
    return task * task


def expected(task: int) -> Outcome:
    special = {3: Outcome(None, "error: ValueError: three"), 5: Outcome(None, "timeout"), 7: Outcome(None, "crash")}
    return special.get(task, Outcome(task * task))


def test_errors_timeouts_and_crashes_are_results_of_their_own_task() -> None:
    assert run(spoil, range(60), processes=2, timeout=1.0, progress=False) == [expected(task) for task in range(60)]


def test_a_single_process_gives_the_same_but_for_crashes() -> None:
    tasks = [task for task in range(60) if task != 7]
    assert run(spoil, tasks, processes=1, timeout=0.2, progress=False) == [expected(task) for task in tasks]
