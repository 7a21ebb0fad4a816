"""Cards say what their facts say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

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
    record = facts["record"]
    record["settings"]["output_dir"] = "/home/someone/runs"
    record["data"]["train"]["folder"] = "/home/someone/data"
    assert "/home" not in json.dumps(public_record(record))
