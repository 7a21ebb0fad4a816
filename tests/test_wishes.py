"""A prompt means the same in whatever form it comes, and what is no prompt is refused by a PromptError."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from pymatgen.core import Composition, Element

from mat2seq_hf.errors import FormulaError, PromptError
from mat2seq_hf.prompts import make_plan, prompt_for_model
from mat2seq_hf.wishes import WISHES, Prompt, read_prompt

GAP = {"band_gap": 1.0}
WRONG: dict[str, list[Any]] = {
    "formula": [["CsCl"], 5, {"Na": 1}, float("nan")],
    "elements": [5, "NaCl", [5], [["Na"]], [None]],
    "properties": [3, "band_gap", ["band_gap"], [1, 2], {5: 1}, {("a",): 1}],
    "band_gap": [{1, 2}, "1", True, [1, "2"], (1, None), float("inf"), 10**400, [[1], 2]],
    "n_atoms": [2.0, "2", True, [2], np.array([2, 4])],
    "space_group": [2.5, [225], True],
    "crystal_system": [5, ["cubic"]],
    "condition": ["yes", 1, []],
}


@pytest.mark.parametrize(
    ("asked", "wishes"),
    [
        ("NaCl", {"band_gap": 1.0}),
        ("NaCl", {"properties": {"band_gap": 1.0}}),
        ({"formula": "NaCl", "band_gap": 1}, {}),
        ({"formula": "NaCl", "properties": [["band_gap", 1]]}, {}),
        ({"formula": "NaCl", "band_gap": 2}, {"band_gap": 1}),
        ({"formula": "KCl", "properties": {"band_gap": 2}}, {"band_gap": 1, "formula": "NaCl"}),
        (Prompt("NaCl"), {"band_gap": np.float32(1)}),
        (Prompt("NaCl", properties=GAP), {}),
        (None, {"formula": "NaCl", "band_gap": np.int64(1)}),
    ],
)
def test_a_property_is_the_same_wish_in_every_spelling(asked: Any, wishes: dict[str, Any]) -> None:
    assert read_prompt(asked, wishes) == Prompt("NaCl", properties=GAP)


@pytest.mark.parametrize("first", [{"properties": GAP}, GAP])
@pytest.mark.parametrize("more", [{"properties": {"e_above_hull": (0, 1)}}, {"e_above_hull": [0, 1]}])
def test_properties_join_those_of_the_prompt(first: dict[str, Any], more: dict[str, Any]) -> None:
    expected = Prompt("NaCl", properties={"band_gap": 1.0, "e_above_hull": (0, 1)})
    assert read_prompt({"formula": "NaCl", **first}, more) == expected
    assert read_prompt(read_prompt("NaCl", first), more) == expected


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({"space_group": "225"}, {"space_group": 225}),
        ({"space_group": np.int64(225)}, {"space_group": 225}),
        ({"n_atoms": np.int32(4)}, {"n_atoms": 4}),
        ({"formula": Composition("Ca(OH)2")}, {"formula": "Ca1 H2 O2"}),
        ({"elements": [Element("Na"), "Cl"]}, {"elements": ("Na", "Cl")}),
        ({"elements": np.array(["Na", "Cl"])}, {"elements": ("Na", "Cl")}),
        ({"properties": {"band_gap": np.float64(1.5)}}, {"properties": (("band_gap", 1.5),)}),
        ({"properties": {"band_gap": [np.int64(1), np.float32(1.5)]}}, {"properties": (("band_gap", (1, 1.5)),)}),
        ({"properties": None, "condition": None}, {"properties": (), "condition": False}),
    ],
)
def test_numbers_and_names_of_other_libraries_become_plain_ones(given: dict[str, Any], plain: dict[str, Any]) -> None:
    prompt = Prompt(**given)
    assert prompt == Prompt(**plain)
    for name, value in plain.items():
        assert getattr(prompt, name) == value
        json.dumps(getattr(prompt, name))
    make_plan(prompt)


def test_a_composition_is_a_formula() -> None:
    assert read_prompt(Composition("NaCl")) == Prompt("Na1 Cl1")
    assert make_plan(read_prompt(Composition("BaTiO3"))).ratio == make_plan(Prompt("BaTiO3")).ratio


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
@pytest.mark.parametrize("as_dict", [True, False])
def test_a_value_of_the_wrong_type_is_refused_by_name(name: str, value: Any, as_dict: bool) -> None:
    wish = {name: value}
    with pytest.raises((PromptError, FormulaError), match=name if name != "properties" else "propert"):
        read_prompt(*((wish, {}) if as_dict else (None, wish)))


def test_every_prompt_can_be_hashed_and_an_unknown_name_is_refused() -> None:
    assert "open_prefix" not in WISHES
    assert hash(Prompt(elements=["Na"], properties={"band_gap": [1, 2]})) == hash(  # type: ignore[arg-type]
        Prompt(elements=("Na",), properties={"band_gap": (1, 2)})
    )
    for asked, wishes in (({"formla": "NaCl"}, {}), ({"open_prefix": True}, {}), ({3: 4}, {}), ("NaCl", {"gap": 1})):
        with pytest.raises(PromptError, match="unknown field"):
            read_prompt(asked, wishes)
    assert read_prompt(Prompt("NaCl", open_prefix=True), {"n_atoms": 2}).open_prefix


def test_a_refusal_names_the_one_space_group_or_says_none() -> None:
    kinds = ("Ba", "Ti", "O", "Sr", "Fe", "Co")
    with pytest.raises(PromptError, match=r"^none of the space groups asked for can hold 6 element\(s\)"):
        make_plan(Prompt(elements=kinds, crystal_system="cubic", n_atoms=6))
    with pytest.raises(PromptError, match=r"^space group 225 \(Fm-3m\) cannot hold 6 element\(s\)"):
        make_plan(Prompt(elements=kinds, space_group=225, n_atoms=6))
    with pytest.raises(PromptError, match=r"^no space group can hold 6 element\(s\) in a primitive cell of 5 atoms"):
        make_plan(Prompt(elements=kinds, n_atoms=5))


def test_a_prompt_writes_only_prefix_fields_that_the_model_knows() -> None:
    asked = Prompt("NaCl", condition=True)
    assert make_plan(prompt_for_model(asked, {})).prefix == ()
    assert make_plan(prompt_for_model(asked, {"fields": ["band_gap"]})).prefix == ()
    named = Prompt("NaCl", elements=("Na", "Cl"), condition=True)
    knowing = {"fields": ["elements"]}
    written = make_plan(prompt_for_model(named, knowing)).prefix
    assert written
    assert make_plan(prompt_for_model(asked, knowing)).prefix == written
    with pytest.raises(PromptError, match="not trained with the prefix field elements"):
        prompt_for_model(named, {"fields": ["band_gap"]})


@pytest.mark.parametrize(
    ("symbol", "said"),
    [
        ("Pbnm", r"another setting or name of 'Pnma', number 62"),
        ("P2_1/n", r"another setting or name of 'P2_1/c', number 14"),
        ("Cmca", r"another setting or name of 'Cmce', number 64"),
        ("fm -3m", r"did you mean 'Fm-3m'\?"),
        ("Pnmm2", r"unknown space group 'Pnmm2'; write"),
    ],
)
def test_hints_for_a_space_group_name_the_same_one(symbol: str, said: str) -> None:
    with pytest.raises(PromptError, match=said):
        make_plan(Prompt("NaCl", space_group=symbol))


def test_the_limits_of_a_model_are_kept_where_they_can_be() -> None:
    record = {"max_atoms": 20, "fields": ["band_gap", "space_group"]}
    assert prompt_for_model(Prompt("NaCl"), record).max_atoms == 20
    assert prompt_for_model(Prompt("Li7La3Zr2O12"), record).max_atoms is None  # one formula unit is larger already
    assert prompt_for_model(Prompt("NaCl", formula_units=1), record).max_atoms is None
    assert prompt_for_model(Prompt("NaCl", space_group=225, condition=True), record).condition
    for refused in (Prompt("NaCl", properties={"e_above_hull": 0}), Prompt("NaCl", n_atoms=2, condition=True)):
        with pytest.raises(PromptError, match="not trained with the prefix field"):
            prompt_for_model(refused, record)
