"""Laws of prefix fields and of what has a loss in training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from runs import TEXTS, small_run, write_crystals, write_report, write_shards
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from mat2seq_hf.errors import Mat2SeqError
from mat2seq_hf.grammar import Grammar
from mat2seq_hf.presets import gpt2_config
from mat2seq_hf.sampling_settings import SamplingSettings
from mat2seq_hf.sequence import scheme_fingerprint
from mat2seq_hf.training.config import parse_config
from mat2seq_hf.training.data import IGNORED, Examples, MicroBatches, TokenCorpus, load_corpus, make_batch
from mat2seq_hf.training.metrics import bits_per_structure, unigram_bits_per_structure
from mat2seq_hf.training.monitor import SampleMonitor
from mat2seq_hf.training.packing import BatchPlan
from mat2seq_hf.training.prefixes import PrefixDraw
from mat2seq_hf.training.sources import load_data
from mat2seq_hf.training.trainer import train
from mat2seq_hf.vocabulary import BOS, PAD, TOKEN_IDS, TOKENS, tokenize

FIELDS = ["band_gap", "space_group", "crystal_system", "elements", "n_atoms"]


def load(folder: Path, fields: list[str] | None = None) -> TokenCorpus:
    return load_corpus(folder, max_length=128, scheme=scheme_fingerprint(), fields=fields or [])


def words(ids: list[int]) -> str:
    return " ".join(TOKENS[token] for token in ids).replace(" ##", "")


def test_all_fields_stand_in_front_in_the_order_of_the_vocabulary(tmp_path: Path) -> None:
    corpus = load(write_crystals(tmp_path / "data"), FIELDS)
    examples = Examples(corpus, PrefixDraw(corpus.fields, 0.0, seed=0))
    found = [words(examples.example(index)[0]) for index in range(3)]
    assert found[0].startswith(
        "<s> space_group= [Fm-3m] crystal_system= cubic elements= Na Cl n_atoms=2 band_gap= +5.00 | Na"
    )
    assert found[1].startswith(
        "<s> space_group= [Pm-3m] crystal_system= cubic elements= Cs Cl n_atoms=2 band_gap= ? | Cs"
    )
    assert found[2].startswith(
        "<s> space_group= [Fd-3m] crystal_system= cubic elements= C n_atoms=2 band_gap= +5.47 | C"
    )
    assert [len(examples.example(index)[0]) for index in range(3)] == examples.lengths.tolist()


@pytest.mark.parametrize("fields", [["band_gap"], ["band_gap", "space_group"], FIELDS])
@pytest.mark.parametrize("dropout", [0.0, 0.25, 0.5, 1.0])
def test_the_dropout_is_the_share_of_crystals_without_any_field(
    tmp_path: Path, fields: list[str], dropout: float
) -> None:
    corpus = load(write_crystals(tmp_path / "data"), fields)
    draw = PrefixDraw(corpus.fields, dropout, seed=3)
    shown = [words(draw.ids(0, epoch)) for epoch in range(2000)]
    assert shown.count("") / len(shown) == pytest.approx(dropout, abs=0.04)
    every = words(draw.prefix(0, list(corpus.fields)))
    assert len(set(shown) - {""}) == (0 if dropout == 1 else 1 if dropout == 0 else 2 ** len(fields) - 1)
    assert (every in shown) == (dropout < 1)


def test_each_crystal_shows_each_subset_of_its_fields_and_often_none(tmp_path: Path) -> None:
    corpus = load(write_crystals(tmp_path / "data"), ["band_gap", "space_group"])
    draw = PrefixDraw(corpus.fields, 0.5, seed=1)
    shown = [words(draw.ids(0, epoch)) for epoch in range(800)]
    assert set(shown) == {
        "",
        "space_group= [Fm-3m] |",
        "band_gap= +5.00 |",
        "space_group= [Fm-3m] band_gap= +5.00 |",
    }
    assert 0.45 < shown.count("") / len(shown) < 0.55
    assert all(shown.count(text) / len(shown) == pytest.approx(1 / 6, abs=0.04) for text in set(shown) - {""})
    assert shown == [words(PrefixDraw(corpus.fields, 0.5, seed=1).ids(0, epoch)) for epoch in range(800)]
    assert shown != [words(PrefixDraw(corpus.fields, 0.5, seed=2).ids(0, epoch)) for epoch in range(800)]


def test_with_a_loss_on_everything_only_the_first_token_has_none(tmp_path: Path) -> None:
    corpus = load(write_crystals(tmp_path / "data"), ["band_gap"])
    examples = Examples(corpus, PrefixDraw(corpus.fields, 0.0, seed=0), "everything")
    batch = make_batch(examples, [[0, 2], [1]], row_length=80)
    kept = batch["labels"] != IGNORED
    starts = batch["input_ids"] == TOKEN_IDS[BOS]
    assert starts.sum(dim=1).tolist() == [2, 1]
    assert (kept == ((batch["input_ids"] != TOKEN_IDS[PAD]) & ~starts)).all()


@pytest.mark.parametrize("loss_on", ["all", "completion"])
def test_what_is_given_has_no_loss_and_all_else_has(tmp_path: Path, loss_on: str) -> None:
    corpus = load(write_crystals(tmp_path / "data"), ["band_gap"])
    examples = Examples(corpus, PrefixDraw(corpus.fields, 0.0, seed=0), loss_on)
    batch = make_batch(examples, [[0, 2], [1]], row_length=80)
    kept = batch["labels"] != IGNORED
    assert (batch["labels"][kept] == batch["input_ids"][kept]).all()
    first = "Na" if loss_on == "all" else "[Fm-3m]"
    row = [TOKENS[token] for token in batch["labels"][0][kept[0]].tolist()]
    assert row[0] == first
    assert row.count("</s>") == 2
    assert not {"band_gap=", "|", "<s>"} & set(row)
    counts = [len(tokenize(text)) + 1 for text in TEXTS]
    if loss_on == "completion":
        counts = [len(tokenize(text[text.index("[") :])) + 1 for text in TEXTS]
    assert kept.sum(dim=1).tolist() == [counts[0] + counts[2], counts[1]]


def test_a_model_that_knows_no_sequence_without_fields_is_asked_with_them(tmp_path: Path) -> None:
    corpus = load(write_crystals(tmp_path / "data"), FIELDS)
    settings = SamplingSettings(top_k=1)
    asked = SampleMonitor(corpus, 3, settings, given_fields=True)
    draw = PrefixDraw(corpus.fields, 0.0, seed=0)
    for index, prompt in enumerate(asked.prompts):
        assert Grammar().forced_prefix(prompt)[: len(draw.ids(index, 0))] == draw.ids(index, 0)
    assert all(not prompt.condition and not prompt.properties for prompt in SampleMonitor(corpus, 3, settings).prompts)


def test_a_run_whose_fields_are_always_given_is_judged_with_them(tmp_path: Path) -> None:
    write_crystals(tmp_path / "data")
    arguments = small_run(tmp_path, 5, 0.0, max_steps=2, save_steps=2, eval_steps=2, row_length=128)
    data = [f"--{split}_data={tmp_path / 'data'}" for split in ("train", "eval")]
    arguments = [a for a in arguments if "init_from" not in a] + [*data, f"--output_dir={tmp_path / 'run'}"]
    record = train(parse_config([*arguments, "--prefix_fields", "elements", "--prefix_dropout=0"]))
    (last,) = (entry for entry in record["log_history"] if "eval_bits_given_fields" in entry)
    results = record["results"]
    assert results["best_checkpoint_by"] == "bits_given_fields"
    assert results["bits_given_fields"] == pytest.approx(last["eval_bits_given_fields"])
    assert results["bits_given_fields"] != results["bits_per_structure"]
    assert record["best_metric"] == {"name": "bits_given_fields", "value": last["eval_bits_given_fields"]}
    assert "best_bits_per_structure" not in record


def test_packed_crystals_with_fields_have_the_losses_of_single_ones(tmp_path: Path) -> None:
    corpus = load(write_crystals(tmp_path / "data"), FIELDS)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(gpt2_config("tiny", dropout=0.0, n_embd=32, n_layer=2, n_head=2, n_positions=128)).eval()
    examples = Examples(corpus, PrefixDraw(corpus.fields, 0.0, seed=0))
    batch = make_batch(examples, [[0, 1, 2]], row_length=128)
    logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="none")
    single = bits_per_structure(model, corpus, given_fields=True) * np.log(2)
    assert losses.sum().item() == pytest.approx(single.sum(), rel=1e-4)
    assert bits_per_structure(model, corpus) != pytest.approx(single / np.log(2), rel=1e-6)


def test_a_corrected_property_is_another_corpus(tmp_path: Path) -> None:
    folders = [write_crystals(tmp_path / "a"), write_crystals(tmp_path / "b", (5.1, None, 5.474))]
    alone = {load(folder).facts.fingerprint for folder in folders}
    assert alone == {"35b7570db5ae831d"}  # as records have it
    with_fields = {load(folder, ["band_gap"]).facts.fingerprint for folder in folders}
    assert len(with_fields | alone) == 3
    assert load(folders[0], ["space_group"]).facts.fingerprint not in with_fields | alone


def test_a_run_that_trains_what_follows_the_formula_is_judged_by_it(tmp_path: Path) -> None:
    write_crystals(tmp_path / "data")
    arguments = small_run(tmp_path, 5, 0.0, max_steps=2, save_steps=2, eval_steps=2, row_length=128)
    data = [f"--{split}_data={tmp_path / 'data'}" for split in ("train", "eval")]
    arguments = [a for a in arguments if "init_from" not in a] + [*data, "--loss_on=completion"]
    corpus = load(tmp_path / "data", ["band_gap"])
    assert corpus.prompt_lengths is not None
    for fields, own in (([], "bits_given_formula"), (["band_gap"], "bits_given_fields_and_formula")):
        run = tmp_path / own
        options = ["--prefix_dropout=0", f"--output_dir={run}", *(["--prefix_fields", *fields] if fields else [])]
        record = train(parse_config([*arguments, *options]))
        results = record["results"]
        model = AutoModelForCausalLM.from_pretrained(run)
        batch = make_batch(Examples(corpus, PrefixDraw(corpus.fields, 0.0, 0) if fields else None, "completion"), [[1]])
        loss = model(**batch).loss.item()
        count = int((batch["labels"] != IGNORED).sum())
        assert count == len(corpus[1]) - corpus.prompt_lengths[1]
        bits = bits_per_structure(model, corpus, given_fields=bool(fields), given_formula=True)
        assert bits[1] == pytest.approx(loss * count / np.log(2), rel=1e-4)
        assert results[own] == pytest.approx(bits.mean(), rel=1e-4)
        assert record["best_metric"] == {"name": own, "value": pytest.approx(bits.mean(), rel=1e-4)}
        (last,) = (entry for entry in record["log_history"] if "eval_loss" in entry)
        tokens = len(corpus.ids) - corpus.prompt_lengths.sum()
        assert last["eval_loss"] == pytest.approx(bits.sum() * np.log(2) / tokens, rel=1e-4)
        assert not any("per_structure" in key or key == "bits_given_fields" for key in (*results, *last))
        whole = unigram_bits_per_structure(corpus.facts, corpus)
        assert 0 < results["unigram_bits_given_formula"] < whole


def test_an_epoch_with_fields_repeats_and_the_next_one_differs(tmp_path: Path) -> None:
    corpus = load(write_crystals(tmp_path / "data"), FIELDS)
    examples = Examples(corpus, PrefixDraw(corpus.fields, 0.3, seed=0))
    plan = BatchPlan(examples.lengths, batch_tokens=256, row_length=128)
    batches = MicroBatches(examples, plan)
    seen = []
    for epoch in (0, 1, 2, 0):
        batches.set_epoch(epoch)
        seen.append(sorted(batches[index]["input_ids"].tolist() for index in range(len(batches))))
    assert seen[0] == seen[3]
    assert seen[0] != seen[1] or seen[0] != seen[2]


def test_crystals_that_are_too_long_with_their_fields_are_left_out_whole(tmp_path: Path) -> None:
    folder = write_crystals(tmp_path / "data")
    whole = load(folder, FIELDS)
    lengths = Examples(whole, PrefixDraw(whole.fields, 0.0, 0)).lengths
    limit = int(lengths.min())
    assert limit > whole.lengths.max()  # the crystals alone would all fit
    corpus = load_corpus(folder, max_length=limit, scheme=scheme_fingerprint(), fields=FIELDS)
    assert corpus.too_long == (lengths > limit).sum() > 0
    assert {len(tokens.lengths) for tokens in corpus.fields.values()} == {3 - corpus.too_long}


def test_a_group_of_a_streamed_corpus_need_not_have_a_property(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gaps: list[tuple[float | None, ...]] = [(None, None, None), (5.0, None, 5.5), (None, None, None)]
    parts = [write_crystals(tmp_path / f"{number}", some) for number, some in enumerate(gaps)]
    folder = write_shards(tmp_path / "data", parts)
    options = ["--use_cpu", "--report_to=none", f"--train_data={folder}", f"--eval_data={folder}", "--row_length=128"]
    options += ["--streaming", "--group_crystals=3", "--prefix_fields", "band_gap", f"--output_dir={tmp_path / 'run'}"]
    assert load_data(parse_config(options), 128).train.crystals == 9
    assert caplog.text.count(f"7 of 9 crystals of {folder} have no band_gap") == 2  # to train and to validate on
    (folder / "part-00001.parquet").unlink()
    write_report(folder, 6)
    options += [f"--eval_data={write_crystals(tmp_path / 'val')}"]
    with pytest.raises(Mat2SeqError, match=r"no crystal of .*data has a number 'band_gap'"):
        load_data(parse_config(options), 128)


def test_bad_fields_are_refused_with_a_reason(tmp_path: Path) -> None:
    folder = write_crystals(tmp_path / "data", (None, None, None))
    with pytest.raises(Mat2SeqError, match=r"no crystal of .* has a number 'band_gap'"):
        load(folder, ["band_gap"])
    with pytest.raises(Mat2SeqError, match="no prefix field colour"):
        load(folder, ["colour"])
    corpus = load(folder, ["space_group"])
    with pytest.raises(Mat2SeqError, match="loss_on 'some' is not one of"):
        Examples(corpus, None, "some")
    with pytest.raises(Mat2SeqError, match=r"prefix_dropout 1\.5"):
        PrefixDraw(corpus.fields, 1.5, 0)
