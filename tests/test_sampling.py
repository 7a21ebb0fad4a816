"""The sampling loop: rows that end leave, forced tokens are skipped, and neither changes what is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from simulated_mps import SimulatedMps, on_mps
from transformers import BloomConfig, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig

from mat2seq_hf import sampling
from mat2seq_hf.canonical import CanonicalCrystal
from mat2seq_hf.constraints import sequence_log_probs
from mat2seq_hf.errors import Mat2SeqError, PromptError
from mat2seq_hf.grammar import Grammar
from mat2seq_hf.presets import gpt2_config, llama_config
from mat2seq_hf.reader import Reader, context_length
from mat2seq_hf.sampling import draw_samples, row_keys
from mat2seq_hf.sampling_settings import SamplingSettings
from mat2seq_hf.tokenizer import text_of_tokens
from mat2seq_hf.vocabulary import END_OF_FIELDS, EOS, TOKEN_IDS, TOKENS
from mat2seq_hf.wishes import Prompt

PROMPTS = [
    *(Prompt("BaTiO3", max_atoms=10), Prompt("NaCl", space_group=225), Prompt("Li2O", max_atoms=12)),
    *(Prompt("C", n_atoms=4), Prompt(max_atoms=6), Prompt("Fe3O4", crystal_system="cubic", max_atoms=28)),
]
KEYS = row_keys(3, range(6), [0] * 6)


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(gpt2_config("tiny", n_embd=32, n_layer=2, n_head=2)).eval()


def texts(model: Any, prompts: list[Prompt], keys: Any, settings: SamplingSettings | None = None) -> list[str]:
    return [text_of_tokens(sample.ids) for sample in draw_samples(model, prompts, keys, settings)]


def test_a_sample_does_not_depend_on_what_else_is_in_the_batch(model: Any) -> None:
    together = texts(model, PROMPTS, KEYS)
    alone = [texts(model, [prompt], KEYS[i : i + 1])[0] for i, prompt in enumerate(PROMPTS)]
    assert together == alone
    assert texts(model, PROMPTS[::-1], KEYS[::-1]) == together[::-1]
    assert texts(model, PROMPTS, row_keys(4, range(6), [0] * 6)) != together


@pytest.mark.parametrize("width", [1, 2, 64])
def test_skipping_forced_tokens_changes_nothing(model: Any, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = draw_samples(model, PROMPTS, KEYS)
    monkeypatch.setattr(sampling, "_WIDTH", width)
    found = draw_samples(model, PROMPTS, KEYS)
    assert [sample.ids for sample in found] == [sample.ids for sample in expected]
    for first, second in zip(found, expected, strict=True):
        assert first.log_prob == pytest.approx(second.log_prob, abs=1e-3)
        assert first.log_prob_raw == pytest.approx(second.log_prob_raw, abs=1e-3)


def test_log_probabilities_are_those_of_a_pass_over_the_whole_sequence(model: Any) -> None:
    drawn = draw_samples(model, PROMPTS, KEYS)
    expected = sequence_log_probs(model, [s.ids for s in drawn], PROMPTS, [s.given for s in drawn])
    for sample, scores in zip(drawn, expected, strict=True):
        assert sample.finished
        assert sample.log_prob == pytest.approx(scores.log_prob, abs=1e-3)
        assert sample.log_prob_raw == pytest.approx(scores.log_prob_raw, abs=1e-3)


def test_tokens_are_drawn_with_the_probabilities_of_the_model_under_the_grammar(model: Any) -> None:
    prompt = Prompt("NaCl", formula_units=1, crystal_system="cubic")
    grammar = Grammar()
    start = [1, *grammar.forced_prefix(prompt)]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([start])).logits[0, -1]
    allowed = grammar.allowed(grammar.read(start[1:], grammar.initial(prompt)))
    for settings in (SamplingSettings(temperature=0.3), SamplingSettings(top_k=4), SamplingSettings(top_p=0.5)):
        legal = torch.full_like(logits, -torch.inf)
        legal[allowed.tolist()] = logits[allowed.tolist()]
        shares = (legal / settings.temperature).softmax(-1)
        order = shares.argsort(descending=True)
        if settings.top_k:
            shares[order[settings.top_k :]] = 0
        shares[order[1:][shares[order].cumsum(0)[:-1] >= settings.top_p]] = 0
        shares = shares / shares.sum()
        drawn = draw_samples(model, [prompt] * 1500, row_keys(0, [0] * 1500, range(1500)), settings)
        counts = np.bincount([sample.ids[len(start)] for sample in drawn], minlength=len(TOKENS))
        error = np.sqrt(shares.numpy() * 1500) + 1e-9
        assert np.all(counts[shares.numpy() == 0] == 0)
        assert np.all(np.abs(counts - shares.numpy() * 1500) < 5 * error)


def guided_by_hand(model: Any, prompt: Prompt, scale: float) -> list[int]:
    """The likeliest guided token at each step, by two passes over all that stands there."""
    grammar = Grammar()
    state = grammar.initial(prompt)
    ids = [1]
    while ids[-1] != TOKEN_IDS[EOS]:
        end = ids.index(TOKEN_IDS[END_OF_FIELDS]) if TOKEN_IDS[END_OF_FIELDS] in ids else None
        with torch.no_grad():
            with_fields = model(input_ids=torch.tensor([ids])).logits[0, -1]
            without = model(input_ids=torch.tensor([[1, *ids[end + 1 :]]])).logits[0, -1] if end else with_fields
        legal = torch.tensor(grammar.allowed(state))
        guided = without + scale * (with_fields - without)
        token = int(legal[guided[legal].argmax()])
        state = grammar.advance(state, token)
        ids.append(token)
    return ids


@pytest.mark.parametrize("rows", [1, 2])  # few rows, and more than read several tokens at once
@pytest.mark.parametrize("scale", [3.0, 0.0])
def test_guidance_takes_what_fields_change_so_many_times(rows: int, scale: float) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config("tiny", hidden_size=32, num_attention_heads=2, num_hidden_layers=1)).eval()
    model.lm_head.weight.data.mul_(100)  # far from ties
    prompts = [
        *(Prompt("NaCl", properties={"band_gap": 5.0}), Prompt("BaTiO3", max_atoms=10)),
        Prompt("Li2O", max_atoms=6, properties={"band_gap": (1.0, 3.0)}),
        Prompt(max_atoms=3, properties={"band_gap": 0.5}),
        Prompt(max_atoms=4, properties={"band_gap": None, "formation_energy_per_atom": (-2.0, 0.0)}),
    ] * rows
    settings = SamplingSettings(temperature=1e-3, guidance_scale=scale)
    drawn = draw_samples(model, prompts, row_keys(0, range(len(prompts)), [0] * len(prompts)), settings)
    expected = [guided_by_hand(model, prompt, scale) for prompt in prompts]
    assert [sample.ids for sample in drawn] == expected
    plain = draw_samples(model, prompts[:5], KEYS[:5], SamplingSettings(temperature=1e-3))
    same = [first.ids == second.ids for first, second in zip(plain, drawn[:5], strict=True)]
    assert same[1]  # nothing to guide by
    assert not all(same)
    scores = sequence_log_probs(model, [s.ids for s in drawn[:5]], prompts[:5], [s.given for s in drawn[:5]])
    for sample, score in zip(drawn, scores, strict=False):
        assert sample.log_prob == pytest.approx(score.log_prob, abs=0.05)  # the model's own, without guidance


def test_a_sample_that_finds_no_room_is_cut_off_and_says_so(model: Any) -> None:
    (sample,) = draw_samples(model, PROMPTS[:1], KEYS[:1], SamplingSettings(max_new_tokens=7))
    assert not sample.finished
    assert len(sample.ids) == sample.given + 7
    small = GPT2LMHeadModel(gpt2_config("tiny", n_embd=16, n_layer=1, n_head=2, n_positions=8)).eval()
    with pytest.raises(PromptError, match="ask for less"):
        draw_samples(small, [Prompt("LiFePO4", formula_units=4)], KEYS[:1])


def test_other_architectures_are_sampled_alike(model: Any) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS) + 3, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    llama = LlamaForCausalLM(config).eval()
    drawn = draw_samples(llama, PROMPTS, KEYS, SamplingSettings(max_new_tokens=400))
    assert all(sample.finished for sample in drawn)
    for sample in drawn:
        CanonicalCrystal.from_text(text_of_tokens(sample.ids))
    scores = sequence_log_probs(llama, [s.ids for s in drawn], PROMPTS, [s.given for s in drawn])
    assert [s.log_prob for s in drawn] == pytest.approx([s.log_prob for s in scores], abs=1e-3)


def test_a_model_that_forgets_or_does_not_say_what_it_reads_is_refused() -> None:
    assert context_length(llama_config("tiny")) == 512
    with pytest.raises(Mat2SeqError, match="a sliding window of 16 tokens and reads 64"):
        context_length(MistralConfig(max_position_embeddings=64, sliding_window=16))
    assert context_length(MistralConfig(max_position_embeddings=64, sliding_window=64)) == 64
    with pytest.raises(Mat2SeqError, match="the bloom model has no max_position_embeddings"):
        context_length(BloomConfig())


@pytest.mark.parametrize(
    "settings",
    [SamplingSettings(), SamplingSettings(top_k=8), SamplingSettings(top_p=0.9), SamplingSettings(guidance_scale=2.0)],
)
def test_a_device_without_float64_draws_the_same(
    model: Any, settings: SamplingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [*PROMPTS[:3], Prompt("LiF", max_atoms=4, properties={"band_gap": 5.0})]
    expected = draw_samples(model, prompts, KEYS[:4], settings)
    read = Reader.read
    monkeypatch.setattr(Reader, "read", lambda *args: on_mps(read(*args)))
    with SimulatedMps():
        assert draw_samples(model, prompts, KEYS[:4], settings) == expected
