"""Plain CIFs are read without pymatgen, and both readers find the same crystal."""

from __future__ import annotations

import warnings
from itertools import pairwise

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter
from synthetic import random_crystal

from mat2seq_hf import canonicalize, cif_text
from mat2seq_hf.cif_reading import read_plain_cif


def by_pymatgen(text: str) -> Structure:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Structure.from_str(text, fmt="cif", primitive=False)


def assert_same_atoms(text: str) -> None:
    """The readers agree atom by atom; the order is their own."""
    plain = read_plain_cif(text)
    assert plain is not None
    lattice, coords, symbols = plain
    expected = by_pymatgen(text)
    assert Lattice(lattice).parameters == pytest.approx(expected.lattice.parameters)
    assert sorted(symbols) == sorted(site.specie.symbol for site in expected)
    free = set(range(len(expected)))
    for symbol, point in zip(symbols, coords, strict=True):
        differences = (expected.frac_coords - point + 0.5) % 1 - 0.5
        partner = next(
            index
            for index in free
            if expected[index].specie.symbol == symbol and np.abs(differences[index]).max() < 1e-6
        )
        free.remove(partner)
    assert not free


@pytest.mark.parametrize("number", range(1, 231, 9))
def test_operations_of_the_file_are_applied(number: int) -> None:
    crystal = canonicalize(random_crystal(number, np.random.default_rng(number)))
    text = cif_text(crystal)
    assert_same_atoms(text)
    assert canonicalize(text) == crystal


def test_files_of_pymatgen_are_plain(crystals: dict[str, Structure]) -> None:
    for structure in crystals.values():
        assert_same_atoms(str(CifWriter(structure)))
        assert_same_atoms(str(CifWriter(structure, symprec=0.01)))


CIF = """data_test
_cell_length_a {a}
_cell_length_b 4.0
_cell_length_c 5.0
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 120
_chemical_formula_sum '{formula}'
loop_
 _symmetry_equiv_pos_as_xyz
 {operations}
loop_
 _atom_site_label
 _atom_site_type_symbol
 _atom_site_fract_x
 _atom_site_fract_y
 _atom_site_fract_z
 _atom_site_occupancy
{sites}
"""


def cif(
    sites: str = "Mg1 Mg 0 0 0 1\nO1 O 0.3333 0.6667 0.25(3) 1",
    a: str = "4.0",
    formula: str = "Mg O",
    ops: str = "x,y,z",
) -> str:
    return CIF.format(a=a, formula=formula, operations=ops, sites=sites)


def test_uncertainties_and_rounded_thirds_are_understood() -> None:
    plain = read_plain_cif(cif(a="4.0(1)"))
    assert plain is not None
    assert plain[0].shape == (3, 3)
    assert plain[1][1].tolist() == [1 / 3, 2 / 3, 0.25]
    assert plain[2] == ["Mg", "O"]
    assert_same_atoms(cif(a="4.0(1)"))


@pytest.mark.parametrize(
    "text",
    [
        cif(sites="Mg1 Mg 0 0 0 0.5\nO1 O 0.3333 0.6667 0.25 1"),
        cif(sites="Mg1 Mg 0 0 0 1\nO1 O 0 0 0.00001 1"),
        cif(sites="Mg1 Mg2+ 0 0 0 1\nO1 O2- 0.3333 0.6667 0.25 1"),
        cif(sites="D1 D 0 0 0 1\nO1 O 0.3333 0.6667 0.25 1", formula="D O"),
        cif(sites="Mg1 Mg ? 0 0 1\nO1 O 0.3333 0.6667 0.25 1"),
        cif(formula="Mg2 O"),
        cif(formula="Mg O Fe"),
        cif(ops="x,y,z+0.25"),
        cif(ops="x,y,w"),
        cif(ops="x+x,y,z"),
        cif(a="?"),
        cif(a="-4"),
        cif() + "\n" + cif().replace("data_test", "data_other"),
        cif().replace("_atom_site_occupancy", "_atom_site_disorder_group"),
        cif().replace("_chemical_formula_sum", "_space_group_magn.number_BNS"),
        "this is no CIF",
        "",
    ],
)
def test_what_is_not_plain_is_left_to_pymatgen(text: str) -> None:
    assert read_plain_cif(text) is None


def test_a_file_cut_off_anywhere_is_never_another_crystal(crystals: dict[str, Structure]) -> None:
    whole = str(CifWriter(crystals["CaTiO3"]))
    lines = whole.splitlines(keepends=True)
    cuts = ["".join(lines[:count]) for count in range(len(lines))]
    readable = [plain for cut in cuts if (plain := read_plain_cif(cut)) is not None]
    assert all(len(plain[2]) == len(crystals["CaTiO3"]) for plain in readable)
    assert all(first[1].tolist() == second[1].tolist() for first, second in pairwise(readable))
