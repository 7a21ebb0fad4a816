"""Cards say what their facts say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from mat2seq_hf.evaluation.schema import LABELS
from mat2seq_hf.publishing.cards import public_record, render_model_card
from mat2seq_hf.registration import DEFAULT_MODEL
from mat2seq_hf.sequence import scheme_fingerprint

CARDS = sorted((Path(__file__).parent.parent / "model_cards").glob("*.json"))


@pytest.mark.parametrize("facts", CARDS, ids=lambda path: path.stem)
def test_each_card_is_what_its_facts_render_to(facts: Path) -> None:
    rendered = str(render_model_card(**json.loads(facts.read_text(encoding="utf-8"))))
    assert facts.with_suffix(".md").read_text(encoding="utf-8") == rendered


def test_the_shipped_model_has_its_card_and_fits_the_scheme() -> None:
    card = ModelCard.load(DEFAULT_MODEL / "README.md")
    assert "crystal-generation" in card.data.tags
    config = json.loads((DEFAULT_MODEL / "config.json").read_text(encoding="utf-8"))
    assert config["mat2seq"]["scheme"] == scheme_fingerprint()
    assert scheme_fingerprint() in card.text
    assert (DEFAULT_MODEL / "model.safetensors").stat().st_size < 25e6
    assert any(card.content == path.with_suffix(".md").read_text(encoding="utf-8") for path in CARDS)


def test_a_public_record_holds_no_paths() -> None:
    (facts,) = [json.loads(path.read_text(encoding="utf-8")) for path in CARDS if path.stem == "mp_20_tiny"]
    record = facts["runs"][0]
    record["settings"] |= {"output_dir": "/home/someone/runs", "init_from": "/home/someone/start"}
    record["data"]["train"]["folder"] = "/home/someone/data"
    public = public_record(record)
    assert "/home" not in json.dumps(public)
    assert public["settings"]["init_from"] == "`start`"


@pytest.mark.parametrize(
    ("settings", "names", "text"),
    [
        ({"prefix_dropout": 0.5}, ["bits_per_structure"], "1.0 +- 0.5 bits per structure (unig"),
        (
            {"prefix_dropout": 0.15},
            ["bits_per_structure", "bits_given_fields"],
            "1.0 +- 0.5 bits per structure, 2.0 +- 0.5 bits per structure given the prefix fields (unig",
        ),
        (
            {"prefix_dropout": 0},
            ["bits_per_structure", "bits_given_fields"],
            "2.0 +- 0.5 bits per structure given the prefix fields (unig",
        ),
        ({"prefix_dropout": 0}, ["bits_given_formula"], "1.0 +- 0.5 bits per structure given the formula (unig"),
        (
            {"prefix_dropout": 0},
            ["bits_given_formula", "bits_given_fields_and_formula"],
            "2.0 +- 0.5 bits per structure given the prefix fields and the formula (unig",
        ),
    ],
)
def test_a_card_quotes_the_bits_of_what_the_model_knows(
    settings: dict[str, float], names: list[str], text: str
) -> None:
    (facts,) = [json.loads(path.read_text(encoding="utf-8")) for path in CARDS if path.stem == "mp_20_tiny"]
    run = facts["runs"][-1]
    run["settings"] |= settings
    run["results"] = {name: 1.0 + place for place, name in enumerate(names)}
    run["results"] |= {f"{name}_standard_error": 0.5 for name in names} | {f"unigram_{names[0]}": 9.0}
    assert f"{run['data']['validation']['crystals']:,} crystals: {text}" in str(render_model_card(**facts))
    run["results"] |= {f"{name}_standard_error": None for name in names}  # of a single crystal
    assert f"crystals: {text.replace(' +- 0.5', '')}" in str(render_model_card(**facts))


def test_a_card_of_another_model_says_what_that_one_is() -> None:
    (facts,) = [json.loads(path.read_text(encoding="utf-8")) for path in CARDS if path.stem == "mp_20_tiny"]
    run = facts["runs"][0]
    facts |= {"name": "org/mine", "title": "Mine", "corpus": "my oxides"}
    facts["model"] = {"architecture": "LlamaForCausalLM", "max_atoms": None, "fields": ["band_gap"]}
    facts["runs"] = [run, {**run, "hardware": {"threads": 8, "gpu": "NVIDIA H100"}, "command": "second command"}]
    conditioned = {**run["settings"], "prefix_fields": ["band_gap"], "prefix_dropout": 0.4}
    facts["runs"].append({**run, "settings": conditioned, "begin": "from the mean of both"})
    many = {**facts["reports"][0], "name": "val, 20 each", "sampling": "draw 20"}
    many["settings"] = {**many["settings"], "samples": 20}
    facts["reports"] = [facts["reports"][0], many]
    card = str(render_model_card(**facts))
    assert 'model="org/mine"' in card
    assert "crystals of my oxides" in card
    assert "LlamaForCausalLM" in card
    assert "MP-20 training" not in card
    assert "It takes band_gap" in card
    assert "then, from these weights" in card
    assert "on NVIDIA H100" in card
    (last,) = [line for line in card.splitlines() if line.startswith("- from the mean of both: ")]
    assert last.endswith("; band_gap before 60 % of the formulas")
    assert card.index("second command") < card.index("draw 20")
    any_of_k = next(line for line in card.splitlines() if line.startswith(f"| {LABELS['match_k']} |"))
    assert any_of_k.split("|")[2].strip() == ""  # the first report has one sample of each
    assert "%" in any_of_k.split("|")[3]
