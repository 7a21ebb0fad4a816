"""Laws of the grammar: whatever it allows can be ended, and what it ends is a crystal of the asked composition."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from pymatgen.core import Structure

from mat2seq_hf import prompts
from mat2seq_hf.canonical import CanonicalCrystal, canonicalize
from mat2seq_hf.coordinates import Need, free_position, next_values
from mat2seq_hf.elements import ELEMENTS
from mat2seq_hf.errors import DecodeError, FormulaError, PromptError, SchemeMismatchError
from mat2seq_hf.feasibility import can_extend, fits, next_letters, smallest_cell
from mat2seq_hf.grammar import Grammar
from mat2seq_hf.operations import crystal_system, expand_orbit, points_per_primitive, polar_axes
from mat2seq_hf.prompts import make_plan, parse_formula
from mat2seq_hf.sequence import parse_text
from mat2seq_hf.state_kinds import State
from mat2seq_hf.vocabulary import CRYSTAL_SYSTEMS, EOS, TOKEN_IDS, TOKENS, tokenize
from mat2seq_hf.wishes import Prompt
from mat2seq_hf.wyckoff import position_by_name, wyckoff_positions

GRAMMAR = Grammar()
END = TOKEN_IDS[EOS]


def text_of(tokens: list[int]) -> str:
    return " ".join(TOKENS[token] for token in tokens if token != END).replace(" ##", "")


def walk(prompt: Prompt, seed: int, greed: float = 0.0) -> list[int]:
    """Random legal tokens up to the end; with ``greed`` mostly the last choice, which leads to the edges of ranges."""
    rng = random.Random(seed)
    state = GRAMMAR.initial(prompt)
    tokens: list[int] = []
    while not GRAMMAR.is_final(state):
        allowed = GRAMMAR.allowed(state)
        assert len(allowed), f"dead end after {text_of(tokens)}"
        tokens.append(int(allowed[-1] if rng.random() < greed else rng.choice(allowed.tolist())))
        state = GRAMMAR.advance(state, tokens[-1])
        assert len(tokens) < 5000
    return tokens


def assert_is_crystal(text: str) -> None:
    """Every law of a legal text: it decodes, no orbit collapses or meets another, order and origin are canonical."""
    crystal = CanonicalCrystal.from_text(text)
    description = parse_text(text)
    number = description.number
    polar = polar_axes(number)
    axes = (*polar, *(axis for axis in range(3) if axis not in polar))
    points: set[tuple[int, ...]] = set()
    keys = []
    held = dict.fromkeys(crystal.composition, 0)
    for site in description.sites:
        position = position_by_name(number, site.wyckoff)
        assert position is not None
        orbit = {tuple(point) for point in expand_orbit(number, np.array(site.coords)).tolist()}
        assert len(orbit) == position.multiplicity, f"the orbit of {site} collapses: {text}"
        assert not orbit & points, f"{site} lies on an earlier site: {text}"
        points |= orbit
        held[site.element] += position.multiplicity // points_per_primitive(number)
        letter = wyckoff_positions(number).index(position)
        keys.append((list(dict(description.formula)).index(site.element), letter, *(site.coords[a] for a in axes)))
    assert held == dict(description.formula), text
    assert keys == sorted(set(keys)), f"sites are not in strictly ascending order: {text}"
    assert all(description.sites[0].coords[axis] == 0 for axis in polar), f"the origin is not fixed: {text}"
    a, b, c, _, beta, _ = description.lattice
    assert number > 2 or a <= b <= c
    assert crystal_system(number) != "monoclinic" or beta >= 9000


def state_after(text: str, prompt: Prompt | None = None) -> State:
    return GRAMMAR.read(tokenize(text), GRAMMAR.initial(prompt))


def next_tokens(text: str, prompt: Prompt | None = None) -> set[str]:
    return {TOKENS[token] for token in GRAMMAR.allowed(state_after(text, prompt))}


@pytest.mark.parametrize("system", CRYSTAL_SYSTEMS)
@pytest.mark.parametrize("greed", [0.0, 0.7])
def test_every_legal_walk_ends_in_a_crystal(system: str, greed: float) -> None:
    for number in range(1, 231):
        if crystal_system(number) == system:
            most = 24 if number < 195 else 48
            assert_is_crystal(text_of(walk(Prompt(space_group=number, max_atoms=most), number, greed)))


@pytest.mark.parametrize("number", [1, 3, 6, 8, 35, 44, 146, 160, 225])
def test_many_sites_of_one_class_find_room_in_ascending_order(number: int) -> None:
    for seed, greed in itertools.product(range(2), (0.5, 0.95)):
        prompt = Prompt("C", n_atoms=24 if number != 225 else 48, space_group=number)
        assert_is_crystal(text_of(walk(prompt, seed, greed)))


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt(),
        Prompt(max_atoms=6),
        Prompt("BaTiO3"),
        Prompt("Ca(OH)2", formula_units=2),
        Prompt("TiO2", crystal_system="tetragonal"),
        Prompt(elements=("Li", "Fe", "P", "O"), max_atoms=30),
        Prompt(elements=("Na", "Cl"), n_atoms=12, space_group="Fm-3m"),
        Prompt(n_atoms=120, space_group=2),
        Prompt(n_atoms=7, crystal_system="cubic"),
    ],
    ids=repr,
)
def test_every_walk_fulfils_its_prompt(prompt: Prompt) -> None:
    for seed in range(4):
        text = text_of(walk(prompt, seed))
        assert_is_crystal(text)
        crystal = CanonicalCrystal.from_text(text)
        counts = crystal.composition
        if prompt.formula is not None:
            asked = parse_formula(prompt.formula)
            units = counts[next(iter(asked))] // asked[next(iter(asked))]
            assert counts == {element: n * units for element, n in asked.items()}
            assert prompt.formula_units in (None, units)
        if prompt.elements is not None:
            assert set(counts) == set(prompt.elements)
        assert prompt.n_atoms in (None, sum(counts.values()))
        assert sum(counts.values()) <= (prompt.max_atoms or 400)
        assert prompt.crystal_system in (None, crystal_system(crystal.space_group_number))
        assert prompt.space_group in (None, crystal.space_group, crystal.space_group_number)


def test_canonical_texts_are_legal(crystals: dict[str, Structure]) -> None:
    for crystal in crystals.values():
        text = canonicalize(crystal).text
        assert GRAMMAR.is_final(GRAMMAR.read([*tokenize(text), END], GRAMMAR.initial())), text


def brute_force_letters(number: int, counts: tuple[int, ...]) -> set[tuple[tuple[int, ...], ...]]:
    """Every way to give each element a non-decreasing row of letters, by plain enumeration."""
    positions = wyckoff_positions(number)
    sizes = [p.multiplicity // points_per_primitive(number) for p in positions]

    def rows(count: int, first: int) -> list[tuple[int, ...]]:
        if count == 0:
            return [()]
        return [
            (letter, *rest)
            for letter in range(first, len(sizes))
            if sizes[letter] <= count
            for rest in rows(count - sizes[letter], letter)
        ]

    ways = set()
    for way in itertools.product(*(rows(count, 0) for count in counts)):
        fixed = [letter for row in way for letter in row if positions[letter].freedom == 0]
        if len(fixed) == len(set(fixed)):
            ways.add(way)
    return ways


@pytest.mark.parametrize(
    ("number", "counts"),
    [(221, (1, 1, 3)), (225, (1, 1, 2)), (225, (1, 1, 1)), (227, (2, 2, 4)), (47, (2, 3)), (62, (4, 8)), (12, (2, 2))],
)
def test_feasibility_equals_plain_enumeration(number: int, counts: tuple[int, ...]) -> None:
    ways = brute_force_letters(number, counts)
    assert fits(number, counts) == bool(ways)
    assert can_extend(number, counts[:-1], 1, counts[-1], counts[-1]) == bool(ways)
    later = counts[1:]
    first = {way[0][0] for way in ways}
    assert set(next_letters(number, counts[0], 0, 0, later)) == first
    free = [p.freedom > 0 for p in wyckoff_positions(number)]
    size = [p.multiplicity // points_per_primitive(number) for p in wyckoff_positions(number)]
    for letter in first:
        left = counts[0] - size[letter]
        if left:
            used = 0 if free[letter] else 1 << letter
            second = {way[0][1] for way in ways if way[0][0] == letter}
            assert set(next_letters(number, left, letter, used, later)) == second


@pytest.mark.parametrize("number", [2, 16, 47, 99, 123, 166, 191, 221, 227])
def test_the_values_left_out_are_exactly_those_where_an_orbit_collapses(number: int) -> None:
    rng = random.Random(number)
    for letter, position in enumerate(wyckoff_positions(number)):
        if position.freedom != 1:
            continue
        free = free_position(number, letter)
        values = next_values(number, letter, Need(None, 0, frozenset(), False), ())
        for value in {rng.randrange(9600) for _ in range(20)} | set(range(0, 9600, 200)):
            point = np.array([free.coordinate(axis, (value,)) for axis in range(3)])
            keeps = len(expand_orbit(number, point)) == position.multiplicity
            assert (value in values) == keeps, (position, value)


PEROVSKITE = "Ba1 Ti1 O3 [Pm-3m] 4.0094 4.0094 4.0094 90 90 90"


def test_tied_and_dependent_numbers_are_forced() -> None:
    state = state_after("Ba1 Ti1 O3 [Pm-3m] 4.0094")
    forced, _ = GRAMMAR.forced_run(state)
    assert text_of(forced) == "4.0094 4.0094 90 90 90 Ba"
    state = state_after(f"{PEROVSKITE} Ba 1b")
    forced, _ = GRAMMAR.forced_run(state)
    assert text_of(forced) == "1/2 1/2 1/2 Ti 1a 0 0 0 O"
    assert next_tokens("H3 [P3m1] 4.0000 4.0000 5.0000 90 90 120 H 1b 1/3 2/3") == {"0"}
    assert next_tokens("H3 [P3m1] 4.0000 4.0000 5.0000 90 90 120 H 3d 0.1000") == {"0.90"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Ba1 Ti1 O3 [Fm-3m]", "5 atoms do not fit"),
        ("Ti1 Ba1", "elements ascend"),
        ("Ba1 Ti1 O3 [P4mm] 4.0000 4.1000", "b = a"),
        ("C1 [P-1] 4.0000 3.9000", "a <= b <= c"),
        ("C1 [P-1] 4.0000 4.0000 4.0000 60.00 60.00 150.00", "no volume"),
        ("Zr4 O8 [P2_1/c] 5.0000 5.0000 5.0000 90 80.00", "beta >= 90"),
        ("Ba1 Ti1 O3 [Pm-3m] 4.0094 4.0094 4.0094 90.00", "90 has its own word"),
        (f"{PEROVSKITE} Ba 1a 0 0 0 Ti 1a", "a fixed position is used once"),
        (f"{PEROVSKITE} Ba 3c", "too large"),
        ("Ba1 Ti1 O3 [P4mm] 4.0000 4.0000 4.1000 90 90 90 Ba 1a 0 0 0.5100", "the origin is free along z"),
        ("O6 [Pm-3m] 4.0000 4.0000 4.0000 90 90 90 O 6e 1/2", "the orbit collapses to 3c"),
        ("O6 [Pm-3m] 4.0000 4.0000 4.0000 90 90 90 O 6e 0.5000", "1/2 has its own word"),
        ("O6 [Pm-3m] 4.0000 4.0000 4.0000 90 90 90 O 6e 0.1038", "no multiple of 1/9600"),
        ("O12 [Pm-3m] 4.0000 4.0000 4.0000 90 90 90 O 6e 0.2000 0 0 O 6e 0.1000", "sites ascend"),
        ("O12 [Pm-3m] 4.0000 4.0000 4.0000 90 90 90 O 6e 0.2000 0 0 O 6e 0.8000", "the same orbit again"),
        ("O6 F6 [Pm-3m] 4.0000 4.0000 4.0000 90 90 90 O 6e 0.2000 0 0 F 6e 0.8000", "another element is there"),
        (f"{PEROVSKITE} Ba 1a 0 0 0 Ti 1b 1/2 1/2 1/2 O 3d 1/2 0 0 O", "nothing is left"),
    ],
)
def test_an_illegal_word_is_refused(text: str, why: str) -> None:
    before, word = text.rsplit(" ", 1)
    state = state_after(before)
    with pytest.raises(DecodeError, match="cannot follow"):
        GRAMMAR.read(tokenize(word), state)


def test_a_site_leaves_room_for_those_that_must_follow() -> None:
    lattice = "[P1] 4.0000 4.0000 4.0000 90 90 90"
    text = f"C3 {lattice} C 1a 0 0 0 C 1a 0.9999 0.9999"
    last = {"##98", "##97"}
    assert "0.99" in next_tokens(text)
    assert last <= next_tokens(f"{text} 0.99")
    assert "##99" not in next_tokens(f"{text} 0.99")
    assert "##99" in next_tokens(f"C2 {lattice} C 1a 0 0 0 C 1a 0.9999 0.9999 0.99")


def test_no_length_or_coordinate_is_split_across_its_pieces() -> None:
    for whole, decimals in itertools.product((1, 42, 499), range(0, 10000, 7)):
        tokens = [TOKENS[token] for token in tokenize(f"{whole}.{decimals:04d}")]
        assert tokens == [f"{whole}.", f"##{decimals // 100:02d}", f"##{decimals % 100:02d}"]


def test_counts_up_to_the_limit_can_be_written() -> None:
    for count in (1, 9, 10, 40, 99, 100, 120, 399, 400):
        assert "[P1]" in next_tokens(f"C{count}")
    with pytest.raises(DecodeError):
        state_after("C401")


def test_wishes_become_prefix_fields_only_when_asked() -> None:
    prompt = Prompt("SiO2", space_group="P3_221", n_atoms=9, properties={"band_gap": 5.7, "e_above_hull": None})
    assert text_of(GRAMMAR.forced_prefix(prompt)).startswith("band_gap= +5.70 e_above_hull= ? | Si3 O6 [P3_221]")
    prompt = Prompt("SiO2", elements=("O", "Si"), space_group="P3_221", n_atoms=9, condition=True)
    start = "space_group= [P3_221] elements= Si O n_atoms=9 | Si3 O6 [P3_221]"
    assert text_of(GRAMMAR.forced_prefix(prompt)).startswith(start)


def test_prefix_fields_of_any_value_are_read() -> None:
    fields = "space_group= ? crystal_system= cubic elements= Ba Ti O n_atoms=120 band_gap= -0.05 property_3= ? |"
    text = f"{fields} {PEROVSKITE} Ba 1b 1/2 1/2 1/2 Ti 1a 0 0 0 O 3d 1/2 0 0"
    for written in (text, text.removeprefix(fields).strip()):
        assert GRAMMAR.is_final(GRAMMAR.read([*tokenize(written), END], GRAMMAR.initial(Prompt(open_prefix=True))))
    with pytest.raises(DecodeError):
        state_after(fields)


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"formula": "BaTiO3", "n_atoms": 3}, "5 atoms in a formula unit"),
        ({"formula": "BaTiO3", "formula_units": 3, "max_atoms": 10}, "3 formula units do not give"),
        ({"formula": "BaTiO3", "formula_units": 1, "space_group": 225}, "multiplicities"),
        ({"formula": "BaTiO3", "elements": ["Ba", "O"]}, "does not consist of"),
        ({"elements": ["Li", "Na", "K", "Rb", "Cs"], "n_atoms": 5, "space_group": 225}, "smallest such cell has 16"),
        ({"elements": ["Xx"]}, "is not an element"),
        ({"elements": "BaTiO3"}, "must be a list"),
        ({"space_group": "Fm3m"}, "unknown space group"),
        ({"space_group": 231}, "from 1 to 230"),
        ({"space_group": 225, "crystal_system": "hexagonal"}, "is cubic, not hexagonal"),
        ({"crystal_system": "rhombic"}, "unknown crystal system"),
        ({"n_atoms": 12, "max_atoms": 10}, "at most 10"),
        ({"n_atoms": 0}, "from 1 to 400"),
        ({"max_atoms": -1}, "from 1 to 400"),
        ({"formula_units": 2}, "needs a formula"),
        ({"properties": {"colour": 1.0}}, "unknown property 'colour'"),
        ({"properties": {"band_gap": float("nan")}}, "must be a number"),
        ({"properties": {"band_gap": 100}}, "between -99.99 and 99.99"),
    ],
)
def test_wishes_that_nothing_fulfils_are_refused_with_the_reason(wishes: dict[str, object], said: str) -> None:
    with pytest.raises(PromptError, match=said):
        GRAMMAR.initial(Prompt(**wishes))  # type: ignore[arg-type]


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.5), (-1.25, -0.75), (-0.05, 0.03), (9.97, 12)])
def test_a_property_asked_for_as_a_range_stays_in_it_and_reaches_its_ends(low: float, high: float) -> None:
    prompt = Prompt("NaCl", formula_units=1, properties={"band_gap": (low, high), "e_above_hull": 0.01})
    found = set()
    for seed in range(60):
        words = text_of(walk(prompt, seed, greed=seed % 3 / 2)).split()
        assert words[0] == "band_gap="
        assert words[2:5] == ["e_above_hull=", "+0.01", "|"]
        assert low <= float(words[1]) <= high
        assert words[1] != "-0.00"
        found.add(float(words[1]))
    assert len(found) > 4


@pytest.mark.parametrize(
    ("meant", "symbol"), [("I41/amd", "I4_1/amd"), ("fm-3m", "Fm-3m"), ("P 63/m m c", "P6_3/mmc"), ("P21/c", "P2_1/c")]
)
def test_a_symbol_that_is_nearly_right_gets_a_suggestion(meant: str, symbol: str) -> None:
    with pytest.raises(PromptError, match=f"did you mean '{symbol}'"):
        GRAMMAR.initial(Prompt("NaCl", space_group=meant))


@pytest.mark.parametrize("formula", ["Xx2", "", "Ba-1", "O0", "Ca(OH", "CaO)2", "H0.5", "barium", "O500"])
def test_an_impossible_formula_is_refused(formula: str) -> None:
    with pytest.raises(FormulaError, match="formula"):
        GRAMMAR.initial(Prompt(formula))


@pytest.mark.parametrize(("formula", "hint"), [("BaTi03", "the letter O"), ("Ba0.5Sr0.5TiO3", "whole numbers")])
def test_a_count_that_begins_with_zero_gets_a_hint(formula: str, hint: str) -> None:
    with pytest.raises(FormulaError, match=hint):
        parse_formula(formula)


def test_the_smallest_cell_is_attained_and_no_smaller_one_exists() -> None:
    for number, elements in itertools.product((1, 62, 194, 225, 227), (1, 3, 6)):
        least = smallest_cell(number, elements)
        assert can_extend(number, (), elements, least, least)
        assert least == 1 or not can_extend(number, (), elements, 1, least - 1)


def test_space_groups_are_asked_only_for_numbers_of_atoms_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int, int]] = []

    def counted(number: int, counts: tuple[int, ...], elements: int, low: int, high: int) -> bool:
        asked.append((elements, low, high))
        return can_extend(number, counts, elements, low, high)

    monkeypatch.setattr(prompts, "can_extend", counted)
    last = len(ELEMENTS) - 1
    for prompt in (Prompt(n_atoms=400), Prompt(elements=("C", ELEMENTS[last]), n_atoms=400)):
        plan = make_plan(prompt)
        assert plan.next_counts(last, (7,)) == (393,)
        assert plan.next_ranks((3, last), (7, 393)) == ()
    assert asked
    assert all(max(elements, low) <= high for elements, low, high in asked)


def test_a_foreign_tokenizer_is_refused() -> None:
    class Foreign:
        def get_vocab(self) -> dict[str, int]:
            return {**TOKEN_IDS, "Ba": TOKEN_IDS["Ti"]}

    with pytest.raises(SchemeMismatchError, match="'Ba'"):
        GRAMMAR.compile(Foreign())


def test_equal_states_have_equal_hashes() -> None:
    first, second = state_after(f"{PEROVSKITE} Ba 1b"), state_after(f"{PEROVSKITE} Ba 1b")
    assert first == second
    assert hash(first) == hash(second)


def test_cells_that_differ_where_nothing_depends_on_it_go_on_in_one_state() -> None:
    assert state_after("Na1 Cl1 [P222] 4.0000 5.1234") == state_after("Na1 Cl1 [P222] 6.5000 3.0000")
    assert state_after("Na1 Cl1 [P4] 4.0000 4.0000 6.0000") == state_after("Na1 Cl1 [P4] 5.0000 5.0000 7.0000")
    triclinic = "Na1 Cl1 [P1] 4.0000 5.0000 6.0000"
    assert state_after(f"{triclinic} 80.00 90") != state_after(f"{triclinic} 81.00 90")
