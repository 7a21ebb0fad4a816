"""A model that was trained with property fields answers prompts with a property, or a range of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pymatgen.core import Composition
from runs import write_report
from transformers import GPT2LMHeadModel

from mat2seq_hf.corpora.schema import METADATA_KEY
from mat2seq_hf.errors import PromptError
from mat2seq_hf.pipeline import CrystalGenerationPipeline
from mat2seq_hf.presets import gpt2_config
from mat2seq_hf.publishing import save_model_folder
from mat2seq_hf.sequence import scheme_fingerprint
from mat2seq_hf.tokenizer import build_tokenizer
from mat2seq_hf.training.data import Examples, load_corpus, make_batch
from mat2seq_hf.training.prefixes import PrefixDraw
from mat2seq_hf.vocabulary import BOS, EOS, TOKEN_IDS, tokenize

FIELDS = ["band_gap", "formation_energy_per_atom"]
#: Two kinds of crystals of one formula: text, band gap in eV, formation energy in eV an atom.
KINDS = (
    ("Na1 Cl1 [Fm-3m] {0} {0} {0} 90 90 90 Na 4a 0 0 0 Cl 4b 1/2 1/2 1/2", 5.0, -2.0),
    ("Na1 Cl1 [Pm-3m] {0} {0} {0} 90 90 90 Na 1a 0 0 0 Cl 1b 1/2 1/2 1/2", 1.0, -0.5),
)


def corpus_of(folder: Path) -> Any:
    """Twelve crystals with both properties, as `mat2seq prepare` writes them."""
    rows = [
        (text.format(f"{4 + 0.1 * step:.4f}"), {"band_gap": gap + 0.1 * step, "formation_energy_per_atom": energy})
        for text, gap, energy in KINDS
        for step in range(6)
    ]
    table = pa.table(
        {
            "text": [text for text, _ in rows],
            "input_ids": pa.array(
                [[TOKEN_IDS[BOS], *tokenize(text), TOKEN_IDS[EOS]] for text, _ in rows], type=pa.list_(pa.int16())
            ),
            "prompt_length": pa.array([1 + len(tokenize("Na1 Cl1"))] * len(rows), type=pa.int16()),
            "properties": [json.dumps(properties) for _, properties in rows],
        }
    ).replace_schema_metadata({METADATA_KEY: json.dumps({"scheme": scheme_fingerprint()})})
    pq.write_table(table, folder / "part-00000.parquet")
    write_report(folder, len(rows))
    return load_corpus(folder, max_length=64, scheme=scheme_fingerprint(), fields=FIELDS)


def trained(folder: Path, loss_on: str) -> CrystalGenerationPipeline:
    corpus = corpus_of(folder)
    examples = Examples(corpus, PrefixDraw(corpus.fields, dropout=0.3, seed=0), loss_on)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(gpt2_config("tiny", dropout=0.0, n_embd=32, n_layer=2, n_head=2, n_positions=64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for epoch in range(300):
        examples.epoch = epoch
        batch = make_batch(examples, [[index] for index in range(len(corpus))])
        optimizer.zero_grad()
        seen = torch.ones_like(batch["input_ids"])
        model(input_ids=batch["input_ids"], attention_mask=seen, labels=batch["labels"]).loss.backward()
        optimizer.step()
    model.config.mat2seq = {**model.config.mat2seq, "fields": FIELDS}
    return CrystalGenerationPipeline(model=model.eval(), tokenizer=build_tokenizer(), device="cpu")


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> CrystalGenerationPipeline:
    """A tiny model that has learnt these crystals, with and without their properties in front."""
    return trained(tmp_path_factory.mktemp("data"), "all")


@pytest.mark.parametrize(
    ("wish", "group"),
    [
        ({"band_gap": 5.2}, "Fm-3m"),
        ({"band_gap": 1.2}, "Pm-3m"),
        ({"formation_energy_per_atom": -2.0}, "Fm-3m"),
        ({"formation_energy_per_atom": -0.5}, "Pm-3m"),
        ({"band_gap": 1.3, "formation_energy_per_atom": -0.5}, "Pm-3m"),
    ],
)
def test_the_property_decides_what_is_drawn(pipe: Any, wish: dict[str, Any], group: str) -> None:
    samples = pipe("NaCl", num_return_sequences=20, seed=0, temperature=1.0, top_k=0, **wish)
    assert all(sample["finished"] and sample["formula"] == "Na1 Cl1" for sample in samples)
    assert sum(sample["space_group"] == group for sample in samples) >= 17
    assert all(f"{name}= {value:+.2f} " in sample["text"] for name, value in wish.items() for sample in samples)


def test_the_value_that_a_range_leaves_open_stays_in_it(pipe: Any) -> None:
    samples = pipe("NaCl", num_return_sequences=20, seed=0, band_gap=(0.95, 1.6), formation_energy_per_atom=(-1, 0))
    gaps, energies = ([float(s["text"].split(f"{name}= ")[1].split()[0]) for s in samples] for name in FIELDS)
    assert 0.95 <= min(gaps) <= max(gaps) <= 1.6
    assert -1 <= min(energies) <= max(energies) <= 0
    assert all(sample["finished"] for sample in samples)


def test_with_a_loss_on_fields_a_range_is_filled_as_the_training_data_are(tmp_path: Path) -> None:
    samples = trained(tmp_path, "everything")("NaCl", num_return_sequences=30, seed=0, top_k=0, band_gap=(0.0, 9.0))
    gaps = [float(sample["text"].split("band_gap= ")[1].split()[0]) for sample in samples]
    seen = [gap for _, lowest, _ in KINDS for gap in (lowest + 0.1 * step for step in range(6))]
    assert sum(min(abs(gap - value) for value in seen) < 0.02 for gap in gaps) >= 24
    assert min(sum(gap < 3 for gap in gaps), sum(gap > 3 for gap in gaps)) >= 5


def test_guidance_makes_a_property_count_for_more(pipe: Any) -> None:
    ask = {"num_return_sequences": 60, "seed": 0, "temperature": 3.0, "top_k": 0, "band_gap": 5.2}
    counts = [
        sum(sample["space_group"] == "Fm-3m" for sample in pipe("NaCl", **ask, guidance_scale=scale))
        for scale in (0.0, 1.0, 4.0)
    ]
    assert counts[0] + 5 < counts[1] < counts[2] - 5
    with pytest.raises(PromptError, match=r"guidance_scale goes with temperature, .* alone"):
        pipe("NaCl", band_gap=5.2, guidance_scale=2.0, num_beams=2)
    with pytest.raises(PromptError, match="guidance_scale must be a number from 0 to 100"):
        pipe("NaCl", band_gap=5.2, guidance_scale=-1)


def test_without_a_property_both_kinds_are_drawn(pipe: Any) -> None:
    samples = pipe("NaCl", num_return_sequences=30, seed=0, temperature=1.0, top_k=0, max_atoms=4)
    groups = [sample["space_group"] for sample in samples]
    assert min(groups.count("Fm-3m"), groups.count("Pm-3m")) >= 3


def test_a_property_that_the_model_was_not_trained_with_is_refused(pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="not trained with the prefix field e_above_hull"):
        pipe("NaCl", e_above_hull=0.1)
    folder = str(save_model_folder(pipe.model, build_tokenizer(), tmp_path / "model"))
    model: Any = GPT2LMHeadModel.from_pretrained(folder)
    ask: dict[str, Any] = {"custom_generate": folder, "trust_remote_code": True, "formula": "NaCl"}
    with pytest.raises(PromptError, match="not trained with the prefix field e_above_hull"):
        model.generate(**ask, properties={"e_above_hull": 0.1})
    ids = build_tokenizer()("Na1 Cl1", return_tensors="pt")["input_ids"]
    for given in ({"inputs": ids}, {"inputs": "NaCl", "formula": None}, {"inputs": ids, "formula": None, "n_atoms": 2}):
        with pytest.raises(PromptError, match="inputs would be overlooked"):
            model.generate(**{**ask, **given})
    with pytest.raises(PromptError, match="empty list"):
        model.generate(**{**ask, "formula": []})
    with pytest.raises(PromptError, match=r"guidance_scale=2\.0 is for the pipeline"):
        model.generate(**ask, properties={"band_gap": 5.0}, guidance_scale=2.0)
    ids = model.generate(**ask, properties={"band_gap": (4.5, 6.0)}, max_atoms=4)[0].tolist()
    assert TOKEN_IDS["[Fm-3m]"] in ids or TOKEN_IDS["[Pm-3m]"] in ids
    assert TOKEN_IDS["band_gap="] in ids


def test_custom_generate_asks_as_the_pipeline_does(pipe: Any, tmp_path: Path) -> None:
    folder = str(save_model_folder(pipe.model, build_tokenizer(), tmp_path / "model"))
    model: Any = GPT2LMHeadModel.from_pretrained(folder)
    model.config.mat2seq = {**model.config.mat2seq, "max_atoms": 2}
    ask: dict[str, Any] = {"custom_generate": folder, "trust_remote_code": True, "do_sample": False}
    pipe = CrystalGenerationPipeline(model=model, tokenizer=build_tokenizer(), device="cpu")
    for formula, wishes in (("NaCl", {"band_gap": 5.2}), ("BaTiO3", {"space_group": "221"}), (Composition("NaCl"), {})):
        (sample,) = pipe(formula, do_sample=False, **wishes)
        (ids,) = model.generate(**ask, formula=formula, **wishes)
        assert build_tokenizer().decode(ids, skip_special_tokens=True) == sample["text"]
    with pytest.raises(PromptError, match="not trained with the prefix field space_group"):
        model.generate(**ask, formula="NaCl", space_group=225, condition=True)
