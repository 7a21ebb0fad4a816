"""Numbered states are the states of the grammar, whatever the table has met before."""

from __future__ import annotations

import random

import numpy as np
import pytest

from mat2seq_hf import automaton
from mat2seq_hf.automaton import Rows, StateTable
from mat2seq_hf.grammar import Grammar
from mat2seq_hf.vocabulary import PAD, TOKEN_IDS, TOKENS
from mat2seq_hf.wishes import Prompt

GRAMMAR = Grammar()
PADDING = TOKEN_IDS[PAD]
PROMPTS = (
    Prompt("BaTiO3", max_atoms=20),
    Prompt("Fe3O4", crystal_system="cubic"),
    Prompt("C", n_atoms=8, space_group=35),
    Prompt("NaCl", crystal_system="triclinic", max_atoms=8),
    Prompt(max_atoms=12),
)


def walk(seed: int) -> int:
    """Walk one row for each prompt to its end, comparing every step with the grammar itself; how many steps."""
    rng = random.Random(seed)
    states = [GRAMMAR.initial(prompt) for prompt in PROMPTS]
    rows = Rows(states)
    steps = 0
    while not rows.done.all():
        numbers, pending = rows.masks(), rows.pending
        tokens = []
        for row, state in enumerate(states):
            allowed = GRAMMAR.allowed(state)
            found = rows.table.masks[numbers[row]]
            assert found.tolist() == (allowed.tolist() or [PADDING])
            assert (pending[row] > 0) <= (len(allowed) == 1)
            tokens.append(int(rng.choice(found.tolist())))
            if len(allowed):
                states[row] = GRAMMAR.advance(state, tokens[-1])
        rows.advance(np.array(tokens))
        steps += 1
    assert all(GRAMMAR.is_final(state) for state in states)
    return steps


def test_every_step_of_a_batch_is_that_of_the_grammar() -> None:
    for seed in range(6):
        assert walk(seed) > 20


def test_a_full_table_is_replaced_and_rows_move_over(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[StateTable] = []

    class Small(StateTable):
        def __init__(self) -> None:
            super().__init__(most_nodes=25)
            made.append(self)

    monkeypatch.setattr(automaton, "StateTable", Small)
    monkeypatch.setattr(automaton._CURRENT, "table", Small())
    for seed in range(3):
        walk(seed)
    assert len(made) > 3


def test_rows_join_those_of_another_table_even_if_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automaton._CURRENT, "table", StateTable())
    rows = Rows([GRAMMAR.initial(prompt) for prompt in PROMPTS])
    before = rows.states()
    changed = np.array([1, 4])
    part = rows.take(changed)
    for word in ("Fe", "Na", "##3"):
        rows.table.most_nodes = 0  # others have filled it
        part.advance(np.where(part.pending > 0, part.forced(1)[:, 0], TOKEN_IDS[word]))
    part.table.most_nodes = 0
    rows.put(changed, part)
    after = rows.states()
    assert rows.table is part.table
    assert [after[row] for row in changed] == part.states()
    assert [after[row] for row in (0, 2, 3)] == [before[row] for row in (0, 2, 3)]


def test_forced_tokens_come_in_one_run_and_can_be_skipped() -> None:
    rows = Rows([GRAMMAR.initial(Prompt("NaCl", formula_units=1)), GRAMMAR.initial(Prompt("C", formula_units=2))])
    assert rows.pending.tolist() == [4, 2]
    names = [[TOKENS[token] for token in run] for run in rows.forced(3)]
    assert names == [["Na", "##1", "Cl"], ["C", "##2", "<pad>"]]
    stepwise = rows.take(np.array([0, 1]))
    for column in range(2):
        stepwise.advance(rows.forced(2)[:, column])
    rows.skip(np.array([2, 2]))
    assert rows.states() == stepwise.states()
    assert rows.take(np.array([1, 0])).states() == rows.states()[::-1]


def test_a_token_that_cannot_follow_ends_its_row_alone() -> None:
    rows = Rows([GRAMMAR.initial(Prompt("NaCl", formula_units=1))] * 3)
    rows.advance(np.array([TOKEN_IDS["Na"], TOKEN_IDS["Cl"], len(TOKENS) + 5]))
    assert rows.done.tolist() == [False, True, True]
