"""The pipeline answers every kind of prompt with crystals that were asked for, and repeats itself under a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pymatgen.core import Structure
from transformers import AutoModelForCausalLM, GenerationConfig, GPT2LMHeadModel
from transformers import pipeline as make_pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset

from mat2seq_hf import CanonicalCrystal, CrystalGenerationPipeline, Prompt, build_tokenizer, canonicalize, gpt2_config
from mat2seq_hf.errors import FormulaError, PromptError, SchemeMismatchError
from mat2seq_hf.generation import load_pipeline
from mat2seq_hf.grammar import Grammar
from mat2seq_hf.publishing import save_model_folder
from mat2seq_hf.ranking import consensus_order, prototype
from mat2seq_hf.registration import DEFAULT_MODEL, TASK
from mat2seq_hf.samples import Sample, describe_sample
from mat2seq_hf.vocabulary import TOKEN_IDS, tokenize

KEYS = {
    *("structure", "cif", "text", "canonical_text", "formula", "space_group"),
    *("log_prob", "log_prob_raw", "finished", "valid", "reason"),
    *("min_distance", "volume_per_atom", "charge_neutral", "duplicate_of"),
}
SMALL = {"max_atoms": 10}  # a model that has learnt nothing likes cells of hundreds of atoms
EOS = TOKEN_IDS["</s>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(gpt2_config("tiny", n_embd=32, n_layer=2, n_head=2, n_positions=192))
    return save_model_folder(model, build_tokenizer(), tmp_path_factory.mktemp("model"), with_code=False)


@pytest.fixture(scope="module")
def pipe(folder: Path) -> CrystalGenerationPipeline:
    made: Any = make_pipeline
    pipe = made(TASK, model=str(folder), device="cpu")
    assert isinstance(pipe, CrystalGenerationPipeline)
    return pipe


def texts(samples: list[Sample]) -> list[str]:
    return [sample["text"] for sample in samples]


def test_the_task_is_known_and_its_model_lies_in_the_package() -> None:
    _, task, _ = PIPELINE_REGISTRY.check_task(TASK)
    assert task["impl"] is CrystalGenerationPipeline
    assert task["default"]["model"][0] == str(DEFAULT_MODEL)
    assert DEFAULT_MODEL.is_absolute()
    assert DEFAULT_MODEL.name == "default_model"


def test_a_model_folder_without_code_holds_no_python(folder: Path) -> None:
    assert (folder / "model.safetensors").is_file()
    assert not list(folder.glob("*.py"))
    assert "auto_map" not in (folder / "tokenizer_config.json").read_text()


def test_a_formula_gives_crystals_of_that_formula(pipe: CrystalGenerationPipeline) -> None:
    samples = pipe("BaTiO3", num_return_sequences=4, seed=0, **SMALL)
    assert len(samples) == 4
    for sample in samples:
        assert set(sample) == KEYS
        assert sample["finished"]
        assert isinstance(sample["structure"], Structure)
        assert sample["structure"].composition.reduced_formula == "BaTiO3"
        assert sample["formula"] in ("Ba1 Ti1 O3", "Ba2 Ti2 O6")
        assert sample["text"].startswith(f"{sample['formula']} [{sample['space_group']}]")
        assert canonicalize(sample["cif"]).text == sample["canonical_text"]
        assert sample["valid"] == (sample["reason"] is None)
        assert sample["log_prob_raw"] < sample["log_prob"] < 0


def test_wishes_are_fulfilled(pipe: CrystalGenerationPipeline) -> None:
    (sample,) = pipe("NaCl", formula_units=2, space_group="P2_1/c", seed=0)
    assert (sample["formula"], sample["space_group"]) == ("Na2 Cl2", "P2_1/c")
    (sample,) = pipe({"formula": "TiO2"}, formula_units=2, space_group="136", seed=0)
    assert (sample["formula"], sample["space_group"]) == ("Ti2 O4", "P4_2/mnm")
    (sample,) = pipe(elements=["O", "Li"], n_atoms=3, crystal_system="hexagonal", seed=0)
    assert sample["formula"] in ("Li1 O2", "Li2 O1")
    (sample,) = pipe(max_atoms=3, seed=0)
    assert sample["structure"] is not None
    assert len(sample["structure"]) <= 3


def test_lists_give_lists_and_iterators_give_iterators(pipe: CrystalGenerationPipeline) -> None:
    prompts = ["NaCl", Prompt("BaTiO3"), {"formula": "NaCl"}]
    answers = pipe(prompts, num_return_sequences=2, seed=3, **SMALL)
    assert [[sample["structure"].composition.reduced_formula for sample in answer] for answer in answers] == [
        ["NaCl"] * 2,
        ["BaTiO3"] * 2,
        ["NaCl"] * 2,
    ]
    lazy = pipe(iter(prompts), num_return_sequences=2, seed=3, **SMALL)
    assert isinstance(lazy, Iterator) or not isinstance(lazy, list)
    assert [texts(answer) for answer in lazy] == [texts(answer) for answer in answers]
    assert pipe([]) == []


def test_a_dataset_with_only_items_and_a_length_is_a_list(pipe: CrystalGenerationPipeline) -> None:
    rows = KeyDataset([{"formula": "NaCl"}, {"formula": "KCl"}], "formula")  # type: ignore[arg-type]
    answers = pipe(rows, seed=3, n_atoms=2)
    assert [texts(answer) for answer in answers] == [texts(one) for one in pipe(["NaCl", "KCl"], seed=3, n_atoms=2)]


def test_seeded_runs_repeat_and_others_differ(pipe: CrystalGenerationPipeline) -> None:
    first = pipe(["NaCl", "NaCl"], seed=5, **SMALL)
    torch.manual_seed(1)
    again = pipe(["NaCl", "NaCl"], seed=5, **SMALL)
    assert [texts(answer) for answer in first] == [texts(answer) for answer in again]
    assert [answer[0]["log_prob"] for answer in first] == [answer[0]["log_prob"] for answer in again]
    assert texts(first[0]) != texts(first[1])  # the same prompt twice is two draws
    before = torch.get_rng_state()
    assert texts(pipe("NaCl", seed=6, **SMALL)) != texts(first[0])
    assert torch.equal(torch.get_rng_state(), before)  # the caller's own random numbers go on undisturbed
    assert texts(pipe("NaCl", **SMALL)) != texts(pipe("NaCl", **SMALL))


def test_prompts_of_different_length_can_share_a_batch(pipe: CrystalGenerationPipeline) -> None:
    prompts = [Prompt("NaCl", n_atoms=2), Prompt("TiO2", formula_units=2, space_group=136), Prompt(max_atoms=3)]
    alone = [pipe(prompt, do_sample=False)[0] for prompt in prompts]
    together = [answer[0] for answer in pipe(prompts, do_sample=False, batch_size=3)]
    assert texts(together) == texts(alone)
    for one, other in zip(alone, together, strict=True):
        assert one["log_prob"] == pytest.approx(other["log_prob"], abs=1e-3)


def test_log_probabilities_are_those_of_the_model(pipe: CrystalGenerationPipeline) -> None:
    prompt = Prompt("NaCl", max_atoms=4)
    (sample,) = pipe(prompt, seed=2, temperature=0.5, top_k=3)
    ids = [1, *tokenize(sample["text"]), EOS]
    with torch.no_grad():
        scores = pipe.model(torch.tensor([ids])).logits[0].double()
    grammar = Grammar()
    given = 1 + len(grammar.forced_prefix(prompt))
    state = grammar.read(ids[1:given], grammar.initial(prompt))
    raw = masked = 0.0
    for place in range(given, len(ids)):
        row = scores[place - 1]
        allowed = torch.tensor(grammar.allowed(state))
        raw += float(row[ids[place]] - row.logsumexp(0))
        masked += float(row[ids[place]] - row[allowed].logsumexp(0))
        state = grammar.advance(state, ids[place])
    assert sample["log_prob_raw"] == pytest.approx(raw, abs=1e-3)
    assert sample["log_prob"] == pytest.approx(masked, abs=1e-3)


def test_generation_settings_come_from_the_model_and_can_be_overridden(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.do_sample = True
    model.generation_config.top_k = 1
    pipe = CrystalGenerationPipeline(model=model, tokenizer=build_tokenizer(), device="cpu")
    greedy = texts(pipe("NaCl", do_sample=False, n_atoms=4))
    assert texts(pipe("NaCl", num_return_sequences=3, n_atoms=4)) == greedy * 3
    assert len(set(texts(pipe("NaCl", num_return_sequences=3, n_atoms=4, top_k=50, seed=0)))) == 3


def test_samples_that_are_cut_off_say_so(pipe: CrystalGenerationPipeline) -> None:
    (sample,) = pipe("NaCl", n_atoms=10, max_new_tokens=6, seed=0)
    assert not sample["finished"]
    assert not sample["valid"]
    assert sample["structure"] is None
    assert "cut off at 11 tokens" in (sample["reason"] or "")


@pytest.mark.parametrize(
    ("asked", "wishes", "error", "message"),
    [
        ("Xx2", {}, FormulaError, "'Xx' is not an element"),
        ("", {}, FormulaError, "empty"),
        ("BaTiO3", {"n_atoms": 3}, PromptError, "5 atoms in a formula unit"),
        ("NaCl", {"space_group": "P9"}, PromptError, "unknown space group 'P9'"),
        ("NaCl", {"band_gap": 1.0}, PromptError, "not trained with the prefix field band_gap"),
        ("NaCl", {"space_group": 225, "condition": True}, PromptError, "prefix field space_group"),
        ({"formula": "NaCl", "band_gap": 1.0}, {}, PromptError, "not trained with the prefix field band_gap"),
        ("NaCl", {"band_gap": {1, 2}}, PromptError, "band_gap must be a number"),
        ({"formula": "KCl", "properties": 3}, {}, PromptError, "properties must be a dict"),
        ({"elements": 5}, {}, PromptError, "elements must be a list"),
        ({"formula": ["CsCl"]}, {}, FormulaError, "a formula is text"),
        ({"formla": "NaCl"}, {}, PromptError, "unknown field 'formla'"),
        ({"formula": 5}, {}, FormulaError, "a formula is text"),
        ("NaCl", {"seed": 1 << 60}, PromptError, "seed must be"),
        ("NaCl", {"temperature": 0}, PromptError, "temperature must be"),
        ("NaCl", {"top_k": 1.5}, PromptError, "top_k must be"),
        ("NaCl", {"top_p": 0.0}, PromptError, "top_p must be"),
        ("NaCl", {"max_new_tokens": 0}, PromptError, "max_new_tokens must be"),
        ("NaCl", {"generation_config": GenerationConfig(do_sample=True, temperature=0.0)}, PromptError, "temperature"),
        ("NaCl", {"generation_config": GenerationConfig(do_sample=True, top_k=-1)}, PromptError, "top_k must be"),
        ("NaCl", {"num_return_sequences": 0}, PromptError, "num_return_sequences must be"),
        (3, {}, PromptError, "not int"),
        (["NaCl", 3], {}, PromptError, "not int"),
        (["NaCl", "Xx2"], {}, FormulaError, "'Xx' is not an element"),
    ],
)
def test_impossible_prompts_are_refused_before_sampling(
    pipe: CrystalGenerationPipeline, asked: Any, wishes: dict[str, Any], error: type[Exception], message: str
) -> None:
    sampled = []
    hook = pipe.model.register_forward_pre_hook(lambda *_: sampled.append(1))
    with pytest.raises(error, match=message):
        pipe(asked, **wishes)
    hook.remove()
    assert not sampled


def test_trained_prefix_fields_reach_the_text(pipe: CrystalGenerationPipeline) -> None:
    record = pipe.model.config.mat2seq
    pipe.model.config.mat2seq = {**record, "fields": ["band_gap"]}
    (sample,) = pipe("NaCl", band_gap=1.1, n_atoms=2, seed=0)
    pipe.model.config.mat2seq = record
    assert sample["text"].startswith("band_gap= +1.10 | Na1 Cl1 [")
    assert sample["formula"] == "Na1 Cl1"


def test_cells_are_no_larger_than_in_training_unless_asked(folder: Path) -> None:
    made: Any = make_pipeline
    pipe = made(TASK, model=str(folder), device="cpu")
    pipe.model.config.mat2seq = {**pipe.model.config.mat2seq, "max_atoms": 10}
    sizes = [len(sample["structure"]) for sample in pipe("NaCl", num_return_sequences=4, seed=0) if sample["finished"]]
    assert sizes
    assert max(sizes) <= 10
    assert pipe.prompt("NaCl").max_atoms == 10
    assert pipe.prompt("NaCl", max_atoms=30).max_atoms == 30
    assert pipe.prompt("NaCl", formula_units=9).max_atoms is None
    assert pipe.prompt("Na7Cl7O7").max_atoms == 10
    assert pipe.prompt("Na7Cl8O9").max_atoms is None  # one formula unit is larger already


def test_model_and_tokenizer_of_different_schemes_are_refused(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(SchemeMismatchError, match=r"symprec=0\.01.*symprec=0\.1"):
        CrystalGenerationPipeline(model=model, tokenizer=build_tokenizer(symprec=0.1), device="cpu")
    with pytest.raises(SchemeMismatchError, match=r"symprec=0\.01.*symprec=0\.1"):
        save_model_folder(model, build_tokenizer(symprec=0.1), folder / "other")


def test_half_precision_is_raised_on_a_cpu(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    pipe = CrystalGenerationPipeline(model=model, tokenizer=build_tokenizer(), device="cpu")
    assert pipe.model.dtype == torch.float32


def judge(text: str, prompt: Prompt, *, end: bool = True) -> Sample:
    ids = [0, 1, *tokenize(text), *([EOS, 0] if end else [])]
    return describe_sample(ids, prompt, log_prob=-1.0, log_prob_raw=-2.0)


def test_samples_are_judged_independently_of_the_grammar() -> None:
    salt = "Na1 Cl1 [Fm-3m] 5.6402 5.6402 5.6402 90 90 90 Na 4a 0 0 0 Cl 4b 1/2 1/2 1/2"
    asked = Prompt("NaCl", n_atoms=2, space_group=225)
    good = judge(salt, asked)
    assert (good["valid"], good["reason"], good["text"]) == (True, None, salt)
    assert good["canonical_text"] == salt
    for prompt, reason in (
        (Prompt("KCl"), "elements"),
        (Prompt("Na2Cl"), "is not the formula"),
        (Prompt("NaCl", formula_units=2), "is not the formula"),
        (Prompt(n_atoms=4), "2 atoms in the primitive cell"),
        (replace(asked, space_group=221, n_atoms=None), "space group Fm-3m"),
    ):
        sample = judge(salt, prompt)
        assert not sample["valid"]
        assert reason in (sample["reason"] or "")
        assert sample["structure"] is not None
    flat = judge("Na1 [P1] 1.0000 1.0000 5.0000 90 90 10.00 Na 1a 0 0 0", Prompt("Na"))
    assert flat["reason"] is not None
    assert "site 0 (Na) and site 0 (Na) are 0.174 angstrom apart" in flat["reason"]
    near = judge("Na1 Cl1 [P1] 4.0000 5.0000 6.0000 80.00 85.00 95.00 Na 1a 0 0 0 Cl 1a 0.0500 0 0", Prompt("NaCl"))
    assert near["reason"] is not None
    assert "0.200 angstrom apart" in near["reason"]
    open_end = judge(salt, asked, end=False)
    assert (open_end["valid"], open_end["finished"]) == (False, False)
    assert "before the end token" in (open_end["reason"] or "")
    broken = judge(salt.replace("4b", "3c"), asked)
    assert broken["finished"]
    assert broken["structure"] is None
    assert "3c" in (broken["reason"] or "")


def test_of_several_candidates_the_best_come_first(pipe: CrystalGenerationPipeline) -> None:
    every = pipe("BaTiO3", num_return_sequences=12, seed=1, **SMALL)
    best = pipe("BaTiO3", num_return_sequences=9, num_candidates=12, seed=1, **SMALL)
    kinds = [prototype(CanonicalCrystal.from_text(sample["text"])) if sample["valid"] else None for sample in every]
    assert None in kinds
    assert len({*kinds}) > 2
    order = consensus_order(kinds, [sample["log_prob"] for sample in every])
    assert [sample["text"] for sample in best] == [every[index]["text"] for index in order[:9]]
    with pytest.raises(PromptError, match="num_candidates must be a whole number of at least 3, not 2"):
        pipe("BaTiO3", num_return_sequences=3, num_candidates=2)


def test_the_same_crystal_drawn_again_is_marked_and_not_left_out(pipe: CrystalGenerationPipeline) -> None:
    salt = {"space_group": 225, "formula_units": 1, "top_k": 1}
    first, *others = pipe("NaCl", num_return_sequences=3, seed=0, **salt)
    assert first["duplicate_of"] is None
    assert [sample["duplicate_of"] for sample in others] == [0, 0]
    assert all(sample["volume_per_atom"] > 0 and sample["min_distance"] > 0 for sample in (first, *others))


def test_settings_for_many_samples_come_from_the_generation_config(pipe: CrystalGenerationPipeline) -> None:
    config = pipe.model.generation_config
    of_candidates = {"num_candidates": 6, "temperature": 0.4, "top_k": 7}
    several = [{"samples": 3, "temperature": 1.3, "top_k": 3}, {"samples": 30, "temperature": 2.0, "top_k": 90}]
    config.mat2seq = {"any_of": several, "best": of_candidates}
    try:
        many = pipe("NaCl", num_return_sequences=3, seed=2, **SMALL)
        few = pipe("NaCl", num_return_sequences=1, seed=2, **SMALL)
        more = pipe("NaCl", num_return_sequences=12, seed=2, **SMALL)
        own = pipe("NaCl", num_return_sequences=3, seed=2, temperature=1.0, top_k=50, **SMALL)
        best = pipe("NaCl", num_candidates=4, seed=2, **SMALL)
    finally:
        del config.mat2seq
    named = pipe("NaCl", num_return_sequences=3, seed=2, temperature=1.3, top_k=3, **SMALL)
    plain = pipe("NaCl", num_return_sequences=1, seed=2, **SMALL)
    hot = pipe("NaCl", num_return_sequences=12, seed=2, temperature=2.0, top_k=90, **SMALL)
    same = pipe("NaCl", num_candidates=4, seed=2, temperature=0.4, top_k=7, **SMALL)
    texts = [[sample["text"] for sample in answer] for answer in (many, few, own, named, plain, best, same)]
    assert texts[0] == texts[3]
    assert texts[1] == texts[4]
    assert texts[2] != texts[0]
    assert texts[5] == texts[6]
    assert [sample["text"] for sample in more] == [sample["text"] for sample in hot]


def test_settings_of_the_caller_win_over_searched_ones_wherever_they_are_given(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    searched = {"any_of": [{"samples": 5, "temperature": 0.7, "top_k": 9}], "best": {"temperature": 0.2, "top_k": 8}}
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.1, top_k=7, mat2seq=searched)

    def drawn(call: dict[str, Any], wanted: int = 5, candidates: bool = False, **constructor: Any) -> tuple[Any, Any]:
        pipe = CrystalGenerationPipeline(model=model, tokenizer=build_tokenizer(), device="cpu", **constructor)
        settings = pipe.sampling_settings(wanted, candidates=candidates, **call)
        return settings.temperature, settings.top_k

    own = GenerationConfig(do_sample=True, temperature=1.4, top_k=3)
    assert drawn({}) == (0.7, 9)
    assert drawn({}, temperature=1.3) == (1.3, 9)
    assert drawn({"top_k": 40}, candidates=True) == (0.2, 40)
    assert drawn({"temperature": None, "do_sample": True}, temperature=None) == (0.7, 9)
    assert drawn({"top_k": 40}, temperature=1.3) == (1.3, 40)
    assert drawn({}, generation_config=own) == (1.4, 3)
    assert drawn({"generation_config": own}, temperature=1.3) == (1.4, 3)
    assert drawn({}, wanted=1) == (0.1, 7)


def test_settings_that_change_nothing_leave_the_samples_as_they_are(pipe: CrystalGenerationPipeline) -> None:
    neutral: dict[str, Any] = {"num_beams": 1, "repetition_penalty": 1.0, "length_penalty": 1, "typical_p": 1.0}
    neutral |= {
        "no_repeat_ngram_size": 0,
        "min_p": 0.0,
        "min_length": 0,
        "epsilon_cutoff": 0.0,
        "early_stopping": False,
    }
    plain = {"temperature": 0.9, "top_k": 10}
    expected = texts(pipe("NaCl", seed=1, **plain, **SMALL))
    assert pipe.sampling_settings(**neutral) == pipe.sampling_settings()
    assert texts(pipe("NaCl", seed=1, **plain, **neutral, **SMALL)) == expected
    stated = GenerationConfig(do_sample=True, **plain, **neutral)
    assert texts(pipe("NaCl", seed=1, generation_config=stated, **SMALL)) == expected
    for setting in ({"num_beams": 2}, {"repetition_penalty": 1.1}):
        with pytest.raises(PromptError, match="only plain sampling goes at scale"):
            pipe.sampling_settings(**setting)


def test_a_generation_config_changed_by_hand_holds_for_all_numbers_of_samples(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    several = [{"samples": 1, "temperature": 0.1, "top_k": 7}, {"samples": 5, "temperature": 0.7, "top_k": 9}]
    searched = {"any_of": several, "best": {"temperature": 0.2, "top_k": 8}}
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.1, top_k=7, mat2seq=searched)
    pipe = CrystalGenerationPipeline(model=model, tokenizer=build_tokenizer(), device="cpu")

    def drawn(wanted: int, candidates: bool = False) -> tuple[float, int]:
        settings = pipe.sampling_settings(wanted, candidates=candidates)
        return settings.temperature, settings.top_k

    assert [drawn(1), drawn(6), drawn(6, candidates=True)] == [(0.1, 7), (0.7, 9), (0.2, 8)]
    model.generation_config.temperature = 1.2
    assert [drawn(1), drawn(6), drawn(6, candidates=True)] == [(1.2, 7), (1.2, 9), (1.2, 8)]


def test_the_number_of_samples_is_taken_from_wherever_it_is_given(pipe: CrystalGenerationPipeline) -> None:
    three = {"num_return_sequences": 3}
    made = CrystalGenerationPipeline(model=pipe.model, tokenizer=pipe.tokenizer, device="cpu", **three)
    config = GenerationConfig(do_sample=True, num_return_sequences=2)
    ask: dict[str, Any] = {"n_atoms": 2, "seed": 0}
    assert [len(made("NaCl", **ask)), len(made("NaCl", num_return_sequences=None, **ask))] == [3, 3]
    assert len(made("NaCl", num_return_sequences=1, **ask)) == 1
    assert len(pipe("NaCl", generation_config=config, **ask)) == 2
    with pytest.raises(PromptError, match="num_candidates must be a whole number of at least 3, not 2"):
        made("NaCl", num_candidates=2, **ask)


@pytest.mark.parametrize("config", [{"temperature": 0.9, "top_k": 10}, {"top_k": 50, "max_new_tokens": 30}])
def test_a_generation_config_is_sampled_like_its_values_whatever_the_batch(
    pipe: CrystalGenerationPipeline, config: dict[str, Any]
) -> None:
    expected = [texts(answer) for answer in pipe(["NaCl", "KCl"], seed=1, **config, **SMALL)]
    for size in (1, 2):
        given = GenerationConfig(do_sample=True, **config)
        answers = pipe(["NaCl", "KCl"], seed=1, generation_config=given, batch_size=size, **SMALL)
        assert [texts(answer) for answer in answers] == expected


@pytest.mark.parametrize("beams", [{}, {"num_beams": 2}])
def test_a_seed_of_numpy_is_that_number(pipe: CrystalGenerationPipeline, beams: dict[str, int]) -> None:
    expected = pipe("NaCl", n_atoms=2, seed=3000, **beams)
    for seed in (np.int16(3000), np.int64(3000), torch.tensor(3000)):
        assert texts(pipe("NaCl", n_atoms=2, seed=seed, **beams)) == texts(expected)


def test_a_compiled_model_gives_the_same_crystals(folder: Path, pipe: CrystalGenerationPipeline) -> None:
    compiled: Any = torch.compile(AutoModelForCausalLM.from_pretrained(folder), backend="eager")
    of_compiled = CrystalGenerationPipeline(model=compiled, tokenizer=pipe.tokenizer)
    for settings in ({}, {"num_beams": 2}):
        assert texts(of_compiled("NaCl", n_atoms=2, seed=0, **settings)) == texts(
            pipe("NaCl", n_atoms=2, seed=0, **settings)
        )


def test_settings_of_numpy_and_a_dict_of_outputs_are_taken(pipe: CrystalGenerationPipeline) -> None:
    plain = pipe("NaCl", n_atoms=4, seed=0, temperature=0.5, top_k=8)
    assert texts(pipe("NaCl", n_atoms=np.int64(4), seed=0, temperature=np.float32(0.5), top_k=np.int64(8))) == texts(
        plain
    )
    beams = {"n_atoms": 2, "num_beams": 2, "do_sample": False}
    assert texts(pipe("NaCl", return_dict_in_generate=True, **beams)) == texts(pipe("NaCl", **beams))


def test_progress_counts_every_sequence(pipe: CrystalGenerationPipeline) -> None:
    counts: list[int] = []
    pipe(["NaCl", "KCl"], num_return_sequences=2, num_candidates=3, n_atoms=2, progress=counts.append)
    pipe("NaCl", num_beams=2, do_sample=False, n_atoms=2, num_return_sequences=2, progress=counts.append)
    assert sum(counts) == 2 * 3 + 2


def test_a_saved_pipeline_is_loaded_again(pipe: CrystalGenerationPipeline, tmp_path: Path) -> None:
    pipe.model.config.custom_pipelines = {TASK: {"impl": "left by an older version"}}
    pipe.save_pretrained(tmp_path)
    assert "custom_pipelines" not in (tmp_path / "config.json").read_text()
    assert (tmp_path / "pipeline.py").is_file()
    again = load_pipeline(str(tmp_path), device="cpu")
    assert isinstance(again, CrystalGenerationPipeline)
    assert texts(again("NaCl", n_atoms=4, seed=0)) == texts(pipe("NaCl", n_atoms=4, seed=0))
