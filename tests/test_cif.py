"""CIFs state the symmetry of the sequence, and readers find the same crystal in them."""

from __future__ import annotations

import re
import warnings
from typing import Any

import gemmi
import pytest
from pymatgen.core import Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from mat2seq_hf import CanonicalCrystal, CrystalError, canonicalize, cif_text


def test_a_reader_finds_the_crystal_and_its_space_group(crystals: dict[str, Structure]) -> None:
    for name, structure in crystals.items():
        crystal = canonicalize(structure)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pymatgen announces that it takes 0.3333333333 for 1/3
            read = Structure.from_str(cif_text(crystal), fmt="cif", primitive=False)
        assert SpacegroupAnalyzer(read, symprec=1e-4).get_space_group_number() == crystal.space_group_number, name
        assert len(read) == len(crystal.to_structure(primitive=False)), name
        assert canonicalize(cif_text(crystal)).text == crystal.text, name


def test_the_stated_facts_agree_with_the_crystal(crystals: dict[str, Structure]) -> None:
    for name, structure in crystals.items():
        crystal = canonicalize(structure)
        block = gemmi.cif.read_string(cif_text(crystal)).sole_block()
        conventional = crystal.to_structure(primitive=False)
        assert block.find_value("_symmetry_Int_Tables_number") == str(crystal.space_group_number), name
        assert gemmi.cif.as_string(block.find_value("_symmetry_space_group_name_H-M")) == crystal.space_group
        assert abs(float(block.find_value("_cell_volume")) - conventional.volume) < 1e-3
        formula = gemmi.cif.as_string(block.find_value("_chemical_formula_sum"))
        counts = {element: int(count) for element, count in re.findall(r"([A-Z][a-z]?)(\d+)", formula)}
        assert counts == {str(element): int(count) for element, count in conventional.composition.items()}
        units = int(block.find_value("_cell_formula_units_Z"))
        assert units * conventional.composition.reduced_composition.num_atoms == len(conventional)
        operations = [
            gemmi.Op(gemmi.cif.as_string(text)) for text in block.find_values("_space_group_symop_operation_xyz")
        ]
        group = gemmi.find_spacegroup_by_ops(gemmi.GroupOps(operations))
        assert group is not None
        assert group.number == crystal.space_group_number


def test_a_third_is_written_finely_enough_to_stay_special() -> None:
    text = "Zn1 [P6_3/mmc] 3.0000 3.0000 5.0000 90 90 120 Zn 2c 1/3 2/3 1/4".replace("Zn1", "Zn2")
    crystal = CanonicalCrystal.from_text(text)
    assert "Zn1 Zn 2 c 0.3333333333 0.6666666667 0.25 1" in cif_text(crystal)
    assert len(Structure.from_str(cif_text(crystal), fmt="cif")) == 2


@pytest.mark.parametrize("name", ["structure", "text"])
def test_what_is_no_canonical_crystal_is_refused(crystals: dict[str, Structure], name: str) -> None:
    wrong: Any = {"structure": crystals["NaCl"], "text": canonicalize(crystals["NaCl"]).text}[name]
    with pytest.raises(CrystalError, match=f"not {type(wrong).__name__}; canonicalize"):
        cif_text(wrong)
