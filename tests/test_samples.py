"""Charges of compositions: the verdict is that of trying all combinations of oxidation states, however many."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from itertools import product
from math import prod

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Composition

from mat2seq_hf.corpora.load import SAMPLE_CORPUS
from mat2seq_hf.elements import ELEMENTS, SYMBOL_OF
from mat2seq_hf.evaluation.validity import charge_neutral
from mat2seq_hf.samples import can_be_neutral, is_charge_neutral

smact = pytest.importorskip("smact")
from smact.screening import pauling_test, smact_validity

Counts = tuple[tuple[str, int], ...]


def states_of(symbol: str) -> list[int]:
    return smact.Element(symbol).oxidation_states_smact14 or []


def by_trying(counts: Counts) -> bool:
    """The rule as it is written down: every combination of oxidation states, one after the other."""
    symbols = [symbol for symbol, _ in counts]
    if len(symbols) == 1 or all(symbol in smact.metals for symbol in symbols):
        return True
    electronegativities = [smact.Element(symbol).pauling_eneg for symbol in symbols]
    return any(
        sum(state * count for state, (_, count) in zip(states, counts, strict=True)) == 0
        and pauling_test(states, electronegativities)
        for states in product(*map(states_of, symbols))
    )


def random_counts(rng: np.random.Generator) -> Counts:
    """Up to five elements, some of them without an electronegativity or without oxidation states."""
    known = ELEMENTS[: ELEMENTS.index("Rf")]
    salts = ("O", "S", "F", "Cl", "N", "H", "C", "P", "Se", "Na", "Ca", "Fe", "Ti", "Pd", "Ru", "Rh", "Os", "Ir")
    drawn = rng.choice(salts if rng.random() < 0.7 else known, rng.integers(1, 6), replace=False).tolist()
    return tuple((symbol, int(rng.integers(1, 9))) for symbol in drawn)


def test_the_verdict_is_that_of_trying_every_combination() -> None:
    rng = np.random.default_rng(0)
    drawn = [random_counts(rng) for _ in range(600)]
    drawn = [counts for counts in drawn if prod(max(len(states_of(symbol)), 1) for symbol, _ in counts) < 3000]
    verdicts = [can_be_neutral(counts) for counts in drawn]
    assert len(drawn) > 300
    assert 50 < sum(verdicts) < len(verdicts) - 50
    assert verdicts == [by_trying(counts) for counts in drawn]
    for counts, verdict in zip(drawn[:150], verdicts, strict=False):
        words = "".join(f"{symbol}{count}" for symbol, count in counts)
        assert smact_validity(words, oxidation_states_set="smact14") is verdict
        assert charge_neutral(Composition(words)) is is_charge_neutral(counts) is verdict


def test_the_verdict_on_known_crystals_is_that_of_trying_every_combination() -> None:
    crystals = pd.read_parquet(SAMPLE_CORPUS)["structure"]
    corpus = [tuple((SYMBOL_OF[z], n) for z, n in Counter(item["numbers"].tolist()).items()) for item in crystals]
    assert len(corpus) > 300
    assert [can_be_neutral(counts) for counts in corpus] == [by_trying(counts) for counts in corpus]


def test_of_two_equal_electronegativities_none_is_the_anion() -> None:
    for first, second in (("C", "Se"), ("H", "Pd"), ("Si", "Bi")):
        assert smact.Element(first).pauling_eneg == smact.Element(second).pauling_eneg
        for counts in product(range(1, 9), repeat=2):
            alone = tuple(zip((first, second), counts, strict=True))
            for composition in (alone, (*alone, ("O", 1)), (*alone, ("Na", 1))):
                assert can_be_neutral(composition) is by_trying(composition)


@pytest.mark.parametrize(
    ("formula", "neutral"),
    [
        ("Ru1 Os1 Ir1 Re1 Mo1 S1 N1 C1", True),  # 33 million combinations
        ("Ru1 Os1 Ir1 Re1 Mo1 Rh1 Pt1 W1 Mn1 He1", False),
        ("Ru1 Os1 Ir1 Re1 Mo1 Rh1 Pt1 W1 F300", False),  # more than they can give away together
    ],
)
def test_the_time_does_not_depend_on_the_number_of_combinations(formula: str, neutral: bool) -> None:
    composition = Composition(formula)
    counts = tuple((element.symbol, int(count)) for element, count in composition.items())
    assert prod(max(len(states_of(symbol)), 1) for symbol, _ in counts) > 10**7
    start = time.process_time()
    assert is_charge_neutral(counts) is charge_neutral(composition) is neutral
    assert time.process_time() - start < 10


def test_elements_without_data() -> None:
    """A sample says that nothing is known; an evaluation counts a compound as not neutral, an element as valid."""
    compound, pure = (("Rf", 1), ("O", 2)), (("Rf", 3),)
    assert is_charge_neutral(compound) is is_charge_neutral(pure) is None
    assert charge_neutral(Composition("RfO2")) is False
    assert charge_neutral(Composition("Rf3")) is True
    assert is_charge_neutral((("He", 1), ("O", 1))) is False
    assert is_charge_neutral((("He", 2),)) is True


def test_reading_samples_for_an_evaluation_needs_no_torch() -> None:
    code = "import sys, mat2seq_hf.evaluation.csp; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
