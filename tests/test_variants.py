"""Laws of the other ways to write a crystal that the ablations compare with."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from runs import TEXTS, small_model
from synthetic import random_crystal

from mat2seq_hf.canonical import CanonicalCrystal, canonicalize
from mat2seq_hf.grammar import Grammar
from mat2seq_hf.tokenizer import text_of_tokens
from mat2seq_hf.training import variants
from mat2seq_hf.training.config import TrainConfig
from mat2seq_hf.training.muon import Muon, parameter_groups
from mat2seq_hf.training.variants import digit_spelling, draw_spelled, random_description, spell
from mat2seq_hf.vocabulary import EOS, TOKEN_IDS, TOKENS, tokenize
from mat2seq_hf.wishes import Prompt


@pytest.mark.parametrize("number", [5, 9, 33, 62, 99, 141, 152, 167, 186, 198, 225])
def test_a_random_description_is_the_same_crystal_and_the_grammar_reads_it(number: int) -> None:
    rng = np.random.default_rng(number)
    text = canonicalize(random_crystal(number, rng, special=2)).text
    others = {random_description(text, rng) for _ in range(6)}
    for other in others:
        assert CanonicalCrystal.from_text(other).canonical().text == text
        Grammar().read([*tokenize(other), TOKEN_IDS[EOS]], Grammar().initial(Prompt()))
    assert others - {text}


def test_digits_spell_numbers_and_nothing_else() -> None:
    for text in TEXTS:
        whole = spell(tokenize(text), digit_spelling())
        assert len(whole) > len(tokenize(text))
        written = "".join(TOKENS[i].removeprefix("##") for i in whole)
        plain = written.replace("property_1=", ".").replace("property_2=", "0.")
        assert plain == "".join(TOKENS[i].removeprefix("##") for i in tokenize(text))
        assert max(len(TOKENS[i].removeprefix("##")) for i in set(whole) - set(tokenize(text))) <= len("property_1=")


@pytest.mark.parametrize("spelled", [False, True])
def test_samples_of_any_spelling_are_crystals_of_the_asked_formula(spelled: bool) -> None:
    spelling = digit_spelling() if spelled else {}
    prompts = [Prompt("NaCl", formula_units=1), Prompt("BaTiO3", space_group="P4mm", formula_units=1)]
    # low enough a temperature that a random model ends within its 64 positions
    drawn = draw_spelled(small_model().eval(), prompts, spelling, 1.0, seed=0)
    texts = [text_of_tokens(ids) for ids in drawn]
    assert texts[0].startswith("Na1 Cl1 [")
    assert texts[1].startswith("Ba1 Ti1 O3 [P4mm]")
    for ids, text in zip(drawn, texts, strict=True):
        if ids[-1] == TOKEN_IDS[EOS]:
            CanonicalCrystal.from_text(text)
    assert [text_of_tokens(ids) for ids in draw_spelled(small_model().eval(), prompts, spelling, 1.0, seed=0)] == texts


def test_muon_takes_the_matrices_of_a_llama_too(tmp_path: object) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(shape)
    config = TrainConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    groups = parameter_groups(model, config)
    assert {len(group["params"]) for group in groups if group.get("transposed")} == {7}  # q k v o gate up down
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    weight = model.model.layers[0].mlp.up_proj.weight
    before = weight.detach().clone()
    model(input_ids=torch.tensor([[1, 5, 9, 2]]), labels=torch.tensor([[1, 5, 9, 2]])).loss.backward()
    optimizer = Muon(groups)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    optimizer.step()
    singular = torch.linalg.svdvals(weight.detach() - before) / optimizer.param_groups[0]["lr"]
    assert 0.5 < singular[0] / (24 / 16) ** 0.5 < 1.5  # as long a step as a matrix stored the other way round takes


def test_the_example_of_a_random_description_gives_what_it_shows() -> None:
    (example,) = doctest.DocTestFinder(recurse=False).find(random_description, globs=vars(variants).copy())
    assert doctest.DocTestRunner().run(example) == (0, 2)
