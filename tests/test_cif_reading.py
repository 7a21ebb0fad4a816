"""Plain CIFs are read without pymatgen, and both readers find the same crystal."""

from __future__ import annotations

import warnings
from itertools import pairwise, product

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter
from synthetic import random_crystal

from mat2seq_hf import canonicalize, cif_text
from mat2seq_hf.cif_reading import read_plain_cif
from mat2seq_hf.cif_symmetry import with_operations
from mat2seq_hf.corpora.texts import is_disordered
from mat2seq_hf.errors import CrystalError, Mat2SeqError
from mat2seq_hf.evaluation.crystals import read_structure


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
        cif(sites="Mg1 Mg2 0 0 0 1\nO1 O2 0.3333 0.6667 0.25 1"),
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


NAMED = """data_test
_cell_length_a {a}
_cell_length_b {a}
_cell_length_c {c}
_cell_angle_alpha {alpha}
_cell_angle_beta {alpha}
_cell_angle_gamma {gamma}
{group}
loop_
 _atom_site_label
 _atom_site_fract_x
 _atom_site_fract_y
 _atom_site_fract_z
{sites}
"""


def named(group: str, sites: str, a: float = 5.43, c: float = 5.43, alpha: float = 90, gamma: float = 90) -> str:
    return NAMED.format(a=a, c=c, alpha=alpha, gamma=gamma, group=group, sites=sites)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (named("_space_group_name_H-M_alt 'F d -3 m :2'", "Si1 0.125 0.125 0.125"), "Si2 [Fd-3m]"),
        (named("_space_group_name_H-M_alt 'F d -3 m :1'", "Si1 0 0 0"), "Si2 [Fd-3m]"),
        (named("_symmetry_space_group_name_H-M 'F d -3 m S'", "Si1 0 0 0"), "Si2 [Fd-3m]"),
        (named("_symmetry_space_group_name_H-M 'F d -3 m Z'", "Si1 0.125 0.125 0.125"), "Si2 [Fd-3m]"),
        (named("_symmetry_space_group_name_Hall '-F 4 2 3'", "Na1 0 0 0\nCl1 .5 .5 .5"), "Na1 Cl1 [Fm-3m]"),
        (named("_space_group_name_Hall '-F 4 2 3'", "Na1 0 0 0\nCl1 .5 .5 .5"), "Na1 Cl1 [Fm-3m]"),
        (named("_symmetry_space_group_name_H-M 'f m 3 m'", "Na1 0 0 0\nCl1 .5 .5 .5"), "Na1 Cl1 [Fm-3m]"),
        (named("_symmetry_space_group_name_H-M 'R -3 m'", "Na1 0 0 0", 5, 5, 50, 50), "Na1 [R-3m]"),
        (named("_symmetry_space_group_name_H-M 'R -3 m'", "Na1 0 0 0", 4, 15, 90, 120), "Na1 [R-3m]"),
        (named("_symmetry_space_group_name_H-M 'R -3 m :H'", "Na1 0 0 0", 4, 15, 90, 120), "Na1 [R-3m]"),
    ],
)
def test_a_group_that_is_only_named_is_applied(text: str, expected: str) -> None:
    assert canonicalize(text).text.startswith(expected + " ")


def test_a_group_that_is_only_named_and_not_known_is_refused() -> None:
    text = named("_symmetry_space_group_name_H-M 'F 4/m -3 2/m'", "Na1 0 0 0\nCl1 .5 .5 .5")
    with pytest.raises(CrystalError, match="'F 4/m -3 2/m', but neither this name nor a list"):
        canonicalize(text)


SPINEL = "Mg1 .125 .125 .125\nAl1 .5 .5 .5\nO1 .2624 .2624 .2624"
SALT = "Na1 .1 .2 .3\nCl1 .6 .3 .1"


def monoclinic(group: str, angles: str) -> str:
    alpha, beta, gamma = angles.split()
    text = named(group, SALT).replace("angle_alpha 90", f"angle_alpha {alpha}")
    text = text.replace("angle_beta 90", f"angle_beta {beta}").replace("angle_gamma 90", f"angle_gamma {gamma}")
    return text.replace("length_b 5.43", "length_b 6.5").replace("length_c 5.43", "length_c 7.5")


def for_pymatgen(text: str) -> str:
    """The same crystal in a file that is not plain: an empty site is not whole."""
    text = text.replace("fract_z\n", "fract_z\n _atom_site_occupancy\n")
    head, _, sites = text.partition("occupancy\n")
    return head + "occupancy\n" + "".join(f"{site} 1\n" for site in sites.splitlines()) + "F9 .77 .01 .43 0\n"


NAME = "_symmetry_space_group_name_H-M"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (named(f"{NAME} 'F d -3 m :2'", SPINEL, 8.08, 8.08), "Mg2 Al4 O8 [Fd-3m]"),
        (named(f"{NAME} 'Fd-3mZ'", SPINEL, 8.08, 8.08), "Mg2 Al4 O8 [Fd-3m]"),
        (
            named(f"{NAME} 'F d -3 m'\n_symmetry_space_group_name_Hall '-F 4vw 2vw 3'", SPINEL, 8.08, 8.08),
            "Mg2 Al4 O8 [Fd-3m]",
        ),
        (named(f"{NAME} 'R -3 m'", "Bi1 .234 .234 .234", 4.746, 4.746, 57.23, 57.23), "Bi2 [R-3m]"),
        (named(f"{NAME} 'R -3 m :R'", "Bi1 .234 .234 .234", 4.746, 4.746, 57.23, 57.23), "Bi2 [R-3m]"),
        (
            named("_symmetry_Int_Tables_number 166", "Bi1 .234 .234 .234", 4.746, 4.746, 57.23, 57.23),
            "Bi2 [R-3m]",
        ),
        (named("_symmetry_Int_Tables_number 166", "Bi1 0 0 .234", 4.546, 11.862, 90, 120), "Bi2 [R-3m]"),
        (named("_space_group.IT_number 225", "Na1 0 0 0\nCl1 .5 .5 .5"), "Na1 Cl1 [Fm-3m]"),
        (named(f"{NAME} 'F 4/m -3 2/m'\n_space_group_IT_number 225", "Na1 0 0 0"), "Na1 [Fm-3m]"),
        (monoclinic(f"{NAME} 'P 2/m'", "90 90 100"), "Na4 Cl4 [P2/m]"),
        (monoclinic(f"{NAME} 'P 2/m'", "90 100 90"), "Na4 Cl4 [P2/m]"),
        (monoclinic(f"{NAME} 'P 21/c'", "90 100 90"), "Na4 Cl4 [P2_1/c]"),
        (monoclinic(f"{NAME} 'P2_1/c'", "90 90.02 90"), "Na4 Cl4 [P2_1/c]"),
        (monoclinic(f"{NAME} 'P 21/b'", "90 90 100"), "Na4 Cl4 [P2_1/c]"),
        (monoclinic(f"{NAME} 'P 21/n'", "90 100 90"), "Na4 Cl4 [P2_1/c]"),
        (monoclinic(f"{NAME} 'I 2/a'", "90 100 90"), "Na4 Cl4 [C2/c]"),
        (monoclinic(f"{NAME} 'P 1 21/c 1'", "90 90 90"), "Na4 Cl4 [P2_1/c]"),
        (monoclinic("_space_group_IT_number 14", "90 100 90"), "Na4 Cl4 [P2_1/c]"),
    ],
)
def test_both_readers_take_the_setting_that_name_and_cell_leave(text: str, expected: str) -> None:
    assert canonicalize(text).text.startswith(f"{expected} ")
    assert read_plain_cif(for_pymatgen(text)) is None
    assert canonicalize(for_pymatgen(text)) == canonicalize(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (named(f"{NAME} 'F d -3 m'", "C1 .125 .125 .125", 3.567, 3.567), "can mean 'F d -3 m:1', 'F d -3 m:2'; name"),
        (named(f"{NAME} 'F d 3 m'", SPINEL, 8.08, 8.08), "can mean 'F d -3 m:1', 'F d -3 m:2'"),
        (named("_symmetry_Int_Tables_number 227", SPINEL, 8.08, 8.08), "number 227, which here can mean 'F d -3 m:1'"),
        (named(f"{NAME} 'P n n n'", SALT), "can mean 'P n n n:1', 'P n n n:2'"),
        (monoclinic(f"{NAME} 'P 2/m'", "90 90 90"), "can mean 'P 1 2/m 1', 'P 1 1 2/m', 'P 2/m 1 1'"),
        (monoclinic("_space_group_IT_number 14", "90 90 100"), "can mean 'P 1 1 21/a', 'P 1 1 21/n', 'P 1 1 21/b'"),
        (monoclinic("_space_group_IT_number 14", "90 90 90"), "can mean 'P 1 21/c 1', 'P 1 1 21/a'"),
        (monoclinic(f"{NAME} 'P b x m'\n_space_group_IT_number 62", "90 90 90"), "can mean 'P n m a', 'P m n b'"),
        (monoclinic(f"{NAME} 'P 21/c'", "90 90 100"), "does not go with its cell 5.43 6.5 7.5 90 90 100; mend"),
        (named(f"{NAME} 'R -3 m :R'", "Bi1 0 0 .234", 4.546, 11.862, 90, 120), "does not go with its cell"),
        (named("_space_group_name_Hall '-F 4 2 3'", "Na1 0 0 0", 5, 5.2), "does not go with its cell; mend the oper"),
        (named("_space_group_name_H-M_ref 'F m -3 m'", "Na1 0 0 0"), "names the space group 'F m -3 m', but neither"),
        (cif(ops="x,y,z\ny,x,z\n-x,y,z", formula="?"), "operation 3 of the CIF, with the rotation .* does not go with"),
    ],
)
def test_a_group_that_is_only_named_is_never_guessed(text: str, message: str) -> None:
    plain = text if "_occupancy" in text else for_pymatgen(text)
    for each in (text, plain):
        with pytest.raises(CrystalError, match=message):
            canonicalize(each)
        with pytest.raises(Mat2SeqError, match=message):
            read_structure(each)


@pytest.mark.parametrize("operations", ["x,y,w", "x,y,z\n1/5+x,y,z\nx,2z,z", "x;y;z"])
def test_operations_that_are_none_are_refused(operations: str) -> None:
    with pytest.raises(CrystalError, match=r"operation \d of the CIF, with the rotation"):
        canonicalize(cif(ops=operations, formula="?") + f"{NAME} 'P 1'\n")


def test_a_listed_operation_goes_before_a_name_and_an_unknown_value_is_no_list() -> None:
    listed = cif(ops="x,y,z+1/5\nx,y,z\nx,y,z+.4\nx,y,z+.6\nx,y,z+.8", formula="?") + f"{NAME} 'P 6/m m m'\n"
    assert read_plain_cif(listed) is None
    assert canonicalize(listed).text.startswith("Mg1 O1 ")
    assert canonicalize(cif(ops="?") + f"{NAME} 'P 1'\n") == canonicalize(cif())


def test_no_reader_looks_names_up_where_gemmi_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("cif_reading", "cif_symmetry"):
        monkeypatch.setattr(f"mat2seq_hf.{module}.gemmi", None)
    assert canonicalize(cif()).text.startswith("Mg1 O1 ")
    with pytest.raises(
        CrystalError, match=r"names the space group 'F d -3 m', .* install gemmi, which knows the names"
    ):
        canonicalize(named(f"{NAME} 'F d -3 m'", "C1 .125 .125 .125"))
    with pytest.raises(CrystalError, match="operation 2 of the CIF, with the rotation"):
        canonicalize(cif(ops="x,y,z\n-x,y,z", formula="?"))


def test_mixed_sites_are_said_to_be_disordered_whatever_the_name() -> None:
    text = named(f"{NAME} 'F d -3 m'", "Nb1 '0.8Nb + 0.2Zr' 0 0 0").replace(
        "label\n", "label\n _atom_site_type_symbol\n"
    )
    assert with_operations(text).split() == text.split()


def test_operations_that_a_relaxed_cell_keeps_nearly_are_applied() -> None:
    text = cif(ops="x,y,z\ny,x,z", formula="?")
    assert canonicalize(text.replace("length_a 4.0", "length_a 4.01")).text.startswith("Mg1 O2 ")
    with pytest.raises(CrystalError, match="operation 2"):
        canonicalize(text.replace("length_a 4.0", "length_a 4.1"))


def test_repeated_operations_are_one_and_very_many_are_refused() -> None:
    once = cif(ops="x,y,z\n-x,-y,-z", formula="?")
    assert canonicalize(cif(ops="x,y,z\nx,y,z+1\n-x,-y,-z\n-X,-Y,-Z\n" * 2000, formula="?")) == canonicalize(once)
    for numbers in (range(10), range(12)):  # 10/12 is not written plainly
        x, y, z, opposite = ([f"{sign}+{number}/12" for number in numbers] for sign in ("x", "y", "z", "-z"))
        shifts = "\n".join(map(",".join, product(x, y, z + opposite)))
        with pytest.raises(CrystalError, match=r"lists \d{4} symmetry operations, at most 1536 are read; list those"):
            canonicalize(cif(ops=shifts))


@pytest.mark.parametrize(
    ("columns", "zinc", "oxygen"),
    [
        ("", "Zn2+", "O2-"),
        ("", "Zn+2", "O-2"),
        ("", "Zn+", "O-"),
        (" _atom_site_disorder_group\n _atom_site_disorder_assembly\n", "Zn . ?", "O . ."),
    ],
)
def test_charges_and_empty_columns_of_disorder_change_nothing(columns: str, zinc: str, oxygen: str) -> None:
    text = named(f"{NAME} 'P 63 m c'", "Zn1 {} 0.333 0.667 0\nO1 {} 0.333 0.667 0.38", 3.25, 5.2, 90, 120)
    text = text.replace("label\n", "label\n _atom_site_type_symbol\n")
    spelt = text.replace("symbol\n", f"symbol\n{columns}").format(zinc, oxygen)
    assert read_plain_cif(spelt) is not None
    assert canonicalize(spelt) == canonicalize(text.format("Zn", "O"))


@pytest.mark.parametrize("third", ["0.33 0.67", "0.333 0.667", "0.3333 0.6667", "-0.333 0.333"])
def test_few_decimals_leave_an_atom_on_its_special_position(third: str) -> None:
    text = named("_symmetry_space_group_name_H-M 'P 63 m c'", f"Zn1 {third} 0\nO1 {third} 0.38", 3.25, 5.2, 90, 120)
    assert canonicalize(text).text == (
        "Zn2 O2 [P6_3mc] 3.2500 3.2500 5.2000 90 90 120 Zn 2b 1/3 2/3 0 O 2b 1/3 2/3 0.3800"
    )


def test_twice_a_rounded_coordinate_is_still_twice_it() -> None:
    text = named("_symmetry_space_group_name_H-M 'P 6/m m m'", "Zn1 0.1234 0.2469 0", 5, 9, 90, 120)
    assert canonicalize(text).text.startswith("Zn6 [P6/mmm] ")


def test_an_occupancy_that_is_not_given_is_one_and_a_byte_order_mark_is_no_harm() -> None:
    expected = canonicalize(cif())
    assert canonicalize(cif(sites="Mg1 Mg 0 0 0 .\nO1 O 0.3333 0.6667 0.25 ?")) == expected
    assert canonicalize("\ufeff" + cif()) == expected
    assert canonicalize(cif(sites="Mg1 Mg 0 0 0 1\nO1 O 0.3333 0.6667 0.25 1\nF1 F 0 0 0.5 0")) == expected


def test_a_text_with_two_structures_or_with_a_lost_site_is_refused() -> None:
    with pytest.raises(CrystalError, match="holds 2 structures"):
        canonicalize(cif() + "\n" + cif(a="4.5").replace("data_test", "data_other"))
    group = "_symmetry_space_group_name_H-M 'P 1'"
    with pytest.raises(CrystalError, match="sites OH1 are not atoms"):
        canonicalize(named(group, "Na1 0 0 0\nOH1 0.5 0.5 0.5"))
    with pytest.raises(CrystalError, match=r"the sites of the CIF add up to Mg1, but its formula says Mg O"):
        canonicalize("data_global\n_publ_author x\n" + cif(sites="Mg1 Mg 0 0 0 1"))


@pytest.mark.parametrize("spoil", ["", "_atom_site_disorder_group", "Na1+", "0.00005", "two blocks", "no group"])
def test_a_small_text_of_a_large_cell_is_refused_before_it_is_expanded(
    spoil: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = np.random.default_rng(0).random((2100 if spoil == "no group" else 200, 3))
    sites = "\n".join(f"Na{index} {x:.6f} {y:.6f} {z:.6f}" for index, (x, y, z) in enumerate(points))
    text = named("" if spoil == "no group" else "_symmetry_space_group_name_H-M 'F m -3 m'", sites, 4.0, 4.0)
    if spoil == "two blocks":
        text += named("", "Na1 0 0 0").replace("data_", "data_other")
    elif spoil == "Na1+":
        text = text.replace("Na0 ", "Na0+ ")
    elif spoil == "no group":
        text = text.replace("Na0 ", "D0 ")
    elif spoil.startswith("_"):
        text += f"{spoil} 1\n"
    elif spoil:  # images of which it is unclear whether they are one atom
        text += f"Na999 {spoil} 0.3 0.4\n"
    for module in ("pymatgen.io.cif.CifParser.from_str", "pymatgen.core.Structure.from_str"):
        monkeypatch.setattr(module, None)
    with pytest.raises(CrystalError, match=r"the cell has at least 2\d{3} sites, at most 2000 are read"):
        canonicalize(text)
    with pytest.raises(Mat2SeqError, match="at most 2000 are read"):
        read_structure(text)
    assert not is_disordered(text)


def test_a_large_text_of_few_places_is_read() -> None:
    sites = "\n".join(f"{element}{index} 0 0 0 {index}" for index, element in enumerate(["Na", "K"] * 150))
    text = named("_symmetry_space_group_name_H-M 'F m -3 m'", sites).replace(
        "fract_z\n", "fract_z\n _atom_site_occupancy\n"
    )
    assert read_plain_cif(text) is None


def test_half_a_surrogate_pair_is_no_harm() -> None:
    assert canonicalize(cif() + "# M\udcfcller\n") == canonicalize(cif())
    with pytest.raises(CrystalError, match=r"starts with .data_x # M\?ller _cell"):
        canonicalize("data_x\n# M\udcfcller\n_cell_length_a")
