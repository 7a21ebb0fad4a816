"""Sampling under the grammar: an untrained model, too, writes nothing but crystals of the asked composition."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel, LogitsProcessorList

from mat2seq_hf import automaton
from mat2seq_hf.automaton import StateTable
from mat2seq_hf.canonical import CanonicalCrystal
from mat2seq_hf.constraints import GrammarLogitsProcessor, sequence_log_probs
from mat2seq_hf.errors import PromptError
from mat2seq_hf.grammar import Grammar
from mat2seq_hf.presets import gpt2_config
from mat2seq_hf.prompts import parse_formula
from mat2seq_hf.vocabulary import BOS, EOS, PAD, TOKEN_IDS, TOKENS, UNK, tokenize
from mat2seq_hf.wishes import Prompt

BEGIN, END, PADDING = TOKEN_IDS[BOS], TOKEN_IDS[EOS], TOKEN_IDS[PAD]
FORMULAS = ("BaTiO3", "Li2O", "C", "Fe3O4", "NaCl")
PROMPTS = [Prompt(formula, max_atoms=20) for formula in FORMULAS]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(gpt2_config("tiny", n_embd=32, n_layer=1, n_head=2)).eval()


def generate(model: Any, processor: GrammarLogitsProcessor, **settings: Any) -> list[list[int]]:
    """Ids of every row from the begin token to the end token."""
    starts = [[BEGIN, *processor.grammar.forced_prefix(prompt)] for prompt in processor.prompts]
    longest = max(map(len, starts))
    ids = torch.tensor([[PADDING] * (longest - len(start)) + start for start in starts])
    torch.manual_seed(1)
    processors = LogitsProcessorList([processor])
    rows = model.generate(
        ids, attention_mask=(ids != PADDING).long(), logits_processor=processors, max_length=500, **settings
    ).tolist()
    assert all(END in row for row in rows)
    return [row[row.index(BEGIN) : row.index(END) + 1] for row in rows]


def text_of(ids: list[int]) -> str:
    return " ".join(TOKENS[token] for token in ids[1:-1]).replace(" ##", "")


@pytest.mark.parametrize(
    ("settings", "samples"),
    [
        ({"do_sample": True, "num_return_sequences": 6}, 6),
        ({"do_sample": True, "top_k": 5, "temperature": 2.0}, 1),
        ({"do_sample": False}, 1),
        ({"do_sample": False, "num_beams": 4, "num_return_sequences": 2}, 2),
        ({"do_sample": True, "num_beams": 3}, 1),
    ],
    ids=["sampling", "top-k", "greedy", "beams", "sampled beams"],
)
def test_every_sample_of_an_untrained_model_is_a_crystal_of_the_asked_composition(
    model: Any, settings: dict[str, Any], samples: int
) -> None:
    rows = generate(model, GrammarLogitsProcessor(PROMPTS), **settings)
    assert len(rows) == samples * len(PROMPTS)
    for index, row in enumerate(rows):
        crystal = CanonicalCrystal.from_text(text_of(row))
        asked = parse_formula(FORMULAS[index // samples])
        units = {crystal.composition[element] / count for element, count in asked.items()}
        assert crystal.composition.keys() == asked.keys()
        assert len(units) == 1
        assert units.pop().is_integer()


def test_without_the_grammar_the_same_model_writes_no_crystal(model: Any) -> None:
    torch.manual_seed(1)
    rows = model.generate(torch.tensor([[BEGIN]] * 8), do_sample=True, max_length=60).tolist()
    for row in rows:
        with pytest.raises(ValueError, match=r"."):
            CanonicalCrystal.from_text(text_of(row))


class Checked(GrammarLogitsProcessor):
    """Compares the states of every row with a full rescan of that row, at every step."""

    steps = reordered = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        masked = super().__call__(input_ids, scores)
        fresh = GrammarLogitsProcessor(self.prompts, Grammar())
        assert torch.equal(fresh(input_ids, scores), masked)
        assert fresh.states() == self.states()
        self.steps += 1
        return masked

    def _reorder(self, ids: Any) -> None:
        self.reordered += 1
        super()._reorder(ids)


def test_under_beam_search_the_states_are_those_of_a_full_rescan(model: Any) -> None:
    processor = Checked(PROMPTS[:2])
    generate(model, processor, do_sample=False, num_beams=3)
    assert processor.steps > 20
    assert processor.reordered > 0, "beam search did not reorder a row, so the test shows nothing"


def test_a_finished_row_gets_nothing_but_padding() -> None:
    processor = GrammarLogitsProcessor(Prompt("C"))
    text = "C1 [Pm-3m] 4.0000 4.0000 4.0000 90 90 90 C 1a 0 0 0"
    ids = [[BEGIN, *tokenize(text), END, PADDING]]
    scores = processor(torch.tensor(ids), torch.zeros(1, len(TOKENS)))  # type: ignore[arg-type]
    assert scores.isfinite().nonzero().tolist() == [[0, PADDING]]


def test_logits_above_the_vocabulary_are_never_allowed() -> None:
    processor = GrammarLogitsProcessor(Prompt())
    scores = processor(torch.tensor([[BEGIN]]), torch.zeros(1, len(TOKENS) + 11))  # type: ignore[arg-type]
    assert not scores[:, len(TOKENS) :].isfinite().any()
    with pytest.raises(PromptError, match="do not belong together"):
        GrammarLogitsProcessor(Prompt())(torch.tensor([[BEGIN]]), torch.zeros(1, 7))  # type: ignore[arg-type]


class MeetingLock:
    """A lock that two threads must both have come to before either gets it."""

    def __init__(self) -> None:
        self.barrier, self.lock = threading.Barrier(2, timeout=60), threading.Lock()

    def __enter__(self) -> None:
        self.barrier.wait()
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def test_two_threads_that_meet_a_new_set_of_tokens_at_once_mask_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    table = StateTable()
    monkeypatch.setattr(automaton._CURRENT, "table", table)
    processors = [GrammarLogitsProcessor(Prompt()) for _ in range(2)]
    table.lock = MeetingLock()  # type: ignore[assignment]

    def masked(processor: GrammarLogitsProcessor) -> torch.Tensor:
        return processor(torch.tensor([[BEGIN]]), torch.zeros(1, len(TOKENS)))  # type: ignore[arg-type]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(masked, processors)
    allowed = Grammar().allowed(Grammar().initial(Prompt()))
    assert first[0].isfinite().nonzero()[:, 0].tolist() == sorted(allowed.tolist())
    assert torch.equal(first, second)


def test_rows_that_do_not_fit_the_prompts_are_refused() -> None:
    scores = torch.zeros(3, len(TOKENS))
    with pytest.raises(PromptError, match="3 rows cannot be shared out among 2"):
        GrammarLogitsProcessor(PROMPTS[:2])(torch.full((3, 1), BEGIN), scores)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="begin token"):
        GrammarLogitsProcessor(Prompt())(torch.full((3, 1), END), scores)  # type: ignore[arg-type]


def test_log_probabilities_are_those_of_sampling_step_by_step(model: Any) -> None:
    processor = GrammarLogitsProcessor(PROMPTS[0])
    rows = generate(model, processor, do_sample=True, num_return_sequences=3)
    given = len(processor.grammar.forced_prefix(PROMPTS[0])) + 1
    found = sequence_log_probs(model, rows, [PROMPTS[0]] * 3, [given] * 3, batch_size=2)
    for row, result in zip(rows, found, strict=True):
        raw = renormalised = 0.0
        for place in range(given, len(row)):
            ids = torch.tensor([row[:place]])
            with torch.no_grad():
                logits = model(input_ids=ids).logits[:, -1]
            raw += float(logits.log_softmax(-1)[0, row[place]])
            masked = GrammarLogitsProcessor(PROMPTS[0])(ids, logits)  # type: ignore[arg-type]
            renormalised += float(masked.log_softmax(-1)[0, row[place]])
        assert result.log_prob_raw == pytest.approx(raw, abs=1e-3)
        assert result.log_prob == pytest.approx(renormalised, abs=1e-3)
        assert result.log_prob > result.log_prob_raw


def test_the_processor_and_the_grammar_take_a_prompt_in_every_form(model: Any) -> None:
    forms: list[Any] = [Prompt("NaCl", n_atoms=2), {"formula": "NaCl", "n_atoms": 2}]
    assert GrammarLogitsProcessor(forms[1]).prompts == GrammarLogitsProcessor(forms).prompts[1:] == forms[:1]
    assert GrammarLogitsProcessor("NaCl").prompts == [Prompt("NaCl")]
    assert GrammarLogitsProcessor(None).prompts == [Prompt()]
    assert Grammar().forced_prefix(forms[1]) == Grammar().forced_prefix(forms[0]) == tokenize("Na1 Cl1")
    assert text_of(generate(model, GrammarLogitsProcessor(["NaCl"]), do_sample=False)[0]).startswith("Na")


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ([BEGIN, TOKEN_IDS[UNK]], r"row 0 does not begin as Prompt.*after '<s>' token 0: '<unk>' cannot follow"),
        ([PADDING, BEGIN, *tokenize("Na1 Cl1")], r"token 0: 'Na' cannot follow here; expected Ba"),
        ([BEGIN, *tokenize("Ba1 Ti1"), END], r"token 4: '</s>' cannot follow here; expected O; begin with '<s>' and"),
    ],
)
@pytest.mark.parametrize("beams", [1, 2])
def test_a_start_that_the_prompt_forbids_is_refused(model: Any, start: list[int], message: str, beams: int) -> None:
    processor = GrammarLogitsProcessor(Prompt("BaTiO3", formula_units=1))
    settings = {"logits_processor": [processor], "num_beams": beams, "max_length": 60}
    with pytest.raises(PromptError, match=message):
        model.generate(torch.tensor([start]), do_sample=False, **settings)


def test_what_follows_the_end_does_not_count(model: Any) -> None:
    row = [BEGIN, *tokenize("C1 [Pm-3m] 4.0000 4.0000 4.0000 90 90 90 C 1a 0 0 0"), END]
    longer = [*row, PADDING, *row, END]
    first, second = sequence_log_probs(model, [row, longer], [Prompt("C")] * 2, [1, 1])
    assert (second.log_prob, second.log_prob_raw) == pytest.approx((first.log_prob, first.log_prob_raw))
    assert math.isfinite(first.log_prob)


def test_a_sequence_off_the_grammar_has_probability_zero(model: Any) -> None:
    row = [BEGIN, *tokenize("Ti1 Ba1"), END]
    (result,) = sequence_log_probs(model, [row], [Prompt()], [1])
    assert result.log_prob == -math.inf
    assert math.isfinite(result.log_prob_raw)
