"""Laws of batching, loss, resuming and bad input of the training."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import SCHEME, SCRIPT, random_sequences, small_corpus, small_model, write_sequences
from safetensors.torch import save_file
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForCausalLM

from mat2seq_hf.errors import Mat2SeqError, SchemeMismatchError
from mat2seq_hf.generation.loading import load_pipeline
from mat2seq_hf.sequence import scheme_fingerprint
from mat2seq_hf.training.checkpoints import last_complete_checkpoint
from mat2seq_hf.training.config import parse_config
from mat2seq_hf.training.data import TokenCorpus, load_corpus, make_batch
from mat2seq_hf.training.metrics import bits_per_structure, unigram_bits_per_structure
from mat2seq_hf.training.packing import BatchPlan, pack_lengths
from mat2seq_hf.training.recipes import recipe_names
from mat2seq_hf.training.schedule import TimeBudgetSchedule, group_settings, take_settings
from mat2seq_hf.training.trainer import train
from mat2seq_hf.vocabulary import TOKENS

# --- batching -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batching", ["bucketed", "packed"])
def test_every_epoch_holds_every_crystal_once_in_batches_of_the_same_shapes(batching: str) -> None:
    lengths = small_corpus(200).lengths
    plan = BatchPlan(lengths, batch_tokens=128, batching=batching, row_length=64)
    shapes = []
    for number in range(3):
        batches = plan.epoch(number)
        assert len(batches) == len(plan)
        assert sorted(crystal for batch in batches for row in batch for crystal in row) == list(range(200))
        assert all(lengths[row].sum() <= 64 for batch in batches for row in batch)
        shapes.append(sorted(tuple(sorted(lengths[row])) for batch in batches for row in batch))
    assert shapes[0] == shapes[1] == shapes[2]


def test_epochs_differ_and_the_same_epoch_repeats() -> None:
    plan = BatchPlan(small_corpus(100).lengths, batch_tokens=128)
    assert plan.epoch(0) != plan.epoch(1)
    assert plan.epoch(1) == BatchPlan(small_corpus(100).lengths, batch_tokens=128).epoch(1)
    assert plan.epoch(1) != BatchPlan(small_corpus(100).lengths, batch_tokens=128, seed=1).epoch(1)


def test_packed_rows_are_nearly_full() -> None:
    lengths = np.sort(np.random.default_rng(0).integers(30, 150, 2000))[::-1].tolist()
    rows = pack_lengths(lengths, 512)
    assert sum(lengths) / (512 * len(rows)) > 0.98


def test_a_crystal_longer_than_a_row_is_an_error_and_not_cut() -> None:
    with pytest.raises(Mat2SeqError, match="65 tokens does not fit in a row of 64"):
        BatchPlan([10, 65], batch_tokens=128, row_length=64)


def test_no_crystal_is_cut_and_only_its_first_token_has_no_label() -> None:
    corpus = small_corpus(30)
    batch = make_batch(corpus, [[0, 1], [2]], row_length=96)
    for row, crystals in ((0, [0, 1]), (1, [2])):
        start = 0
        for crystal in crystals:
            end = start + len(corpus[crystal])
            assert batch["input_ids"][row, start:end].tolist() == corpus[crystal].tolist()
            assert batch["labels"][row, start:end].tolist() == [-100, *corpus[crystal][1:].tolist()]
            assert batch["position_ids"][row, start:end].tolist() == list(range(end - start))
            start = end
        assert set(batch["labels"][row, start:].tolist()) <= {-100}


# --- loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
@pytest.mark.parametrize("batching", ["bucketed", "packed"])
def test_the_loss_of_a_batch_equals_the_loss_of_its_crystals_one_by_one(batching: str, model_type: str) -> None:
    corpus, model = small_corpus(40), small_model(model_type)
    row_length = 64 if batching == "packed" else None
    plan = BatchPlan(corpus.lengths, batch_tokens=256, batching=batching, row_length=64)
    alone = bits_per_structure(model, corpus, batch_tokens=1) * np.log(2)
    for rows in plan.epoch(0):
        batch = make_batch(corpus, rows, row_length)
        count = int((batch["labels"] != -100).sum())
        loss = model(**batch, use_cache=False).loss.item() * count
        assert loss == pytest.approx(alone[[crystal for row in rows for crystal in row]].sum(), rel=1e-5)


def test_a_uniform_model_needs_log2_of_the_vocabulary_for_each_token() -> None:
    corpus, model = small_corpus(5), small_model()
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    assert bits_per_structure(model, corpus) == pytest.approx((corpus.lengths - 1) * np.log2(len(TOKENS)), rel=1e-5)


def test_the_unigram_model_is_the_entropy_of_the_token_frequencies() -> None:
    ids = np.tile(np.array([1, *range(20, 28), 2], dtype=np.int16), 4000)
    corpus = TokenCorpus(ids, np.arange(0, 40001, 10), SCHEME)
    assert unigram_bits_per_structure(corpus.facts, corpus) == pytest.approx(9 * np.log2(9), rel=0.02)


# --- runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("optimizer", "start"), [("adamw", "start"), ("muon", "start_llama")])
def test_a_run_killed_and_resumed_equals_an_uninterrupted_one_bit_for_bit(
    run_arguments: list[str], tmp_path: Path, optimizer: str, start: str
) -> None:
    common = [*run_arguments, f"--optimizer={optimizer}", f"--init_from={tmp_path / start}"]
    train(parse_config([*common, f"--output_dir={tmp_path / 'whole'}"]))
    killed = [*common, f"--output_dir={tmp_path / 'killed'}"]
    process = subprocess.Popen([sys.executable, str(SCRIPT), *killed], stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "killed").glob("checkpoint-*/trainer_state.json")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "run_record.json").exists()
    record = train(parse_config([*killed, "--resume_from_checkpoint=auto"]))
    assert record["steps"] == 40
    weights = [(tmp_path / run / "checkpoint-40" / "model.safetensors").read_bytes() for run in ("whole", "killed")]
    assert weights[0] == weights[1]


def test_a_run_leaves_weights_record_and_results(run_arguments: list[str], tmp_path: Path) -> None:
    record = train(parse_config([*run_arguments, f"--output_dir={tmp_path / 'run'}", "--learning_rate=0.01"]))
    assert record["results"]["bits_per_structure"] < record["results"]["unigram_bits_per_structure"] * 1.1
    stored = json.loads((tmp_path / "run" / "run_record.json").read_text())
    assert stored["scheme"]["fingerprint"] == SCHEME
    assert stored["data"]["train"]["crystals"] == 60
    pipe = load_pipeline(str(tmp_path / "run"))
    assert pipe.tokenizer.scheme == SCHEME
    assert pipe("NaCl", seed=0)[0]["text"].startswith("Na")
    assert not list((tmp_path / "run").glob("*.py"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    corpus = load_corpus(tmp_path / "val", max_length=64, scheme=SCHEME)
    assert bits_per_structure(model, corpus).mean() == pytest.approx(record["results"]["bits_per_structure"], rel=1e-5)


def test_training_in_bits_gets_better_with_both_batchings(run_arguments: list[str], tmp_path: Path) -> None:
    for batching in ("bucketed", "packed"):
        options = [f"--output_dir={tmp_path / batching}", f"--batching={batching}", "--learning_rate=0.01"]
        history = train(parse_config([*run_arguments, *options]))["log_history"]
        bits = [entry["eval_bits_per_structure"] for entry in history if "eval_bits_per_structure" in entry]
        assert min(bits) < 0.9 * bits[0]


def test_a_time_budget_ends_the_run_and_the_used_time_survives_a_restart(
    run_arguments: list[str], tmp_path: Path
) -> None:
    arguments = [a for a in run_arguments if "max_steps" not in a]
    record = train(parse_config([*arguments, f"--output_dir={tmp_path / 'run'}", "--time_budget_minutes=0.02"]))
    assert record["steps"] > 0
    parameter = torch.nn.Parameter(torch.zeros(1))
    schedule = TimeBudgetSchedule(torch.optim.SGD([parameter], lr=1.0), budget=100.0)
    schedule.used = 51.0
    again = TimeBudgetSchedule(torch.optim.SGD([parameter], lr=1.0), budget=200.0)
    again.load_state_dict(schedule.state_dict())
    assert (again.used, again.budget) == (51.0, 200.0)
    assert again.factor() > schedule.factor() == pytest.approx(0.51, abs=0.01)


@pytest.mark.parametrize(("optimizer", "start"), [("adamw", "start"), ("muon", "start_llama")])
def test_a_run_goes_on_with_the_learning_rates_that_are_asked_for_now(
    run_arguments: list[str], tmp_path: Path, optimizer: str, start: str
) -> None:
    common = [*run_arguments, f"--optimizer={optimizer}", f"--init_from={tmp_path / start}", "--save_steps=2"]
    common += ["--eval_steps=2", f"--output_dir={tmp_path / 'run'}", "--resume_from_checkpoint=auto"]
    train(parse_config([*common, "--max_steps=2"]))
    now = ["--learning_rate=1e-5", "--muon_learning_rate=2e-5", "--weight_decay=0.3", "--adam_beta2=0.9"]
    history = train(parse_config([*common, *now, "--max_steps=4", "--logging_steps=1"]))["log_history"]
    assert all(entry["learning_rate"] < 2.1e-5 for entry in history if entry["step"] > 2 and "learning_rate" in entry)
    stored = torch.load(tmp_path / "run" / "checkpoint-4" / "optimizer.pt", weights_only=True)["param_groups"]
    assert {group["initial_lr"] for group in stored} == ({1e-5, 2e-5} if optimizer == "muon" else {1e-5})
    assert {group["weight_decay"] for group in stored} == {0.3, 0.0}
    assert all(group["betas"][1] == 0.9 for group in stored if not group.get("muon"))


@pytest.mark.parametrize("by_clock", [False, True])
def test_a_schedule_goes_on_at_its_place_with_other_rates(by_clock: bool) -> None:
    def begin(rate: float) -> tuple[torch.optim.AdamW, Any]:
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=rate)
        if by_clock:
            return optimizer, TimeBudgetSchedule(optimizer, budget=100.0)
        return optimizer, LambdaLR(optimizer, lambda step: 0.5 + 0.3 / (1 + step))

    optimizer, schedule = begin(0.01)
    for _ in range(3):
        schedule.used = 40.0
        optimizer.step()
        schedule.step()
    for rate in (0.01, 0.002):
        again, resumed = begin(rate)
        asked = group_settings(again)
        again.load_state_dict(optimizer.state_dict())
        resumed.load_state_dict(schedule.state_dict())
        take_settings(again, resumed, asked)
        now, before = again.param_groups[0], optimizer.param_groups[0]
        assert resumed.get_last_lr() == [now["lr"]]
        if rate == before["initial_lr"]:
            resumed_state, state = resumed.state_dict(), schedule.state_dict()
            assert (now, resumed_state) == ({**before, "params": now["params"]}, state)
        else:
            assert now["lr"] == pytest.approx(0.2 * before["lr"])
            again.step()
            resumed.step()
            assert now["lr"] < 0.002


def test_a_slow_first_step_does_not_use_up_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    state: dict[str, object] = {}
    rates = []
    for _ in range(2):  # starts of one run
        schedule = TimeBudgetSchedule(optimizer, budget=360.0)
        schedule.load_state_dict({**schedule.state_dict(), **state})
        for seconds in (45.0, 1.0, 1.0):  # a model is compiled in the first step
            clock[0] += seconds
            optimizer.step()
            schedule.step()
            rates.append(optimizer.param_groups[0]["lr"])
        state = {"used": schedule.used}
    share = 1 / 7.2  # of a warm-up of 0.02 * 360 s
    assert rates == pytest.approx([0.01, share, 2 * share, 2 * share, 3 * share, 4 * share])


def test_a_checkpoint_that_was_cut_short_is_passed_over(tmp_path: Path) -> None:
    for step, state in ((9, '{"global_step": 9}'), (10, '{"global_step": 10}'), (20, '{"global_st')):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
        save_file({}, tmp_path / f"checkpoint-{step}" / "model.safetensors")
    (tmp_path / "checkpoint-30").mkdir()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert last_complete_checkpoint(tmp_path / "nothing") is None


# --- bad input ----------------------------------------------------------------------------------------------------


def test_a_corpus_of_another_scheme_is_refused_naming_both(tmp_path: Path) -> None:
    other = scheme_fingerprint(0.1)
    write_sequences(tmp_path / "train", random_sequences(3), scheme=other)
    with pytest.raises(SchemeMismatchError) as caught:
        load_corpus(tmp_path / "train", max_length=64, scheme=SCHEME)
    assert other in str(caught.value)
    assert SCHEME in str(caught.value)


def test_an_initial_model_of_another_scheme_is_refused(run_arguments: list[str], tmp_path: Path) -> None:
    path = tmp_path / "start" / "config.json"
    config = json.loads(path.read_text())
    config["mat2seq"]["scheme"] = "mat2seq-0"
    path.write_text(json.dumps(config))
    with pytest.raises(SchemeMismatchError, match="mat2seq-0"):
        train(parse_config([*run_arguments, f"--output_dir={tmp_path / 'run'}"]))


def test_too_long_crystals_are_left_out_whole_and_counted(tmp_path: Path) -> None:
    sequences = random_sequences(20)
    folder = write_sequences(tmp_path / "train", sequences)
    corpus = load_corpus(folder, max_length=20, scheme=SCHEME)
    kept = [sequence for sequence in sequences if len(sequence) <= 20]
    assert [corpus[i].tolist() for i in range(len(corpus))] == kept
    assert 0 < corpus.too_long == 20 - len(kept)


@pytest.mark.parametrize("sequences", [[], [[1, 30, 2]] * 2])
def test_a_corpus_without_a_usable_crystal_is_an_error(tmp_path: Path, sequences: list[list[int]]) -> None:
    folder = write_sequences(tmp_path / "train", sequences)
    with pytest.raises(Mat2SeqError, match="no crystal of at most 2 tokens"):
        load_corpus(folder, max_length=2, scheme=SCHEME)


def test_an_empty_folder_and_unknown_token_ids_are_errors(tmp_path: Path) -> None:
    with pytest.raises(Mat2SeqError, match="no part-"):
        load_corpus(tmp_path, max_length=64, scheme=SCHEME)
    folder = write_sequences(tmp_path / "train", [[1, len(TOKENS), 2]])
    with pytest.raises(Mat2SeqError, match="the vocabulary has"):
        load_corpus(folder, max_length=64, scheme=SCHEME)


# --- recipes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", recipe_names())
def test_a_recipe_is_read_and_the_command_line_wins_over_it(recipe: str, tmp_path: Path) -> None:
    arguments = ["--recipe", recipe, "--train_data=a", "--eval_data=b", f"--output_dir={tmp_path}"]
    config = parse_config([*arguments, "--learning_rate=0.5"])
    assert config.learning_rate == 0.5


def test_bad_recipes_and_missing_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(Mat2SeqError, match=r"no recipe 'mp_21'.*mp_20_tiny"):
        parse_config(["--recipe", "mp_21"])
    (tmp_path / "bad.yaml").write_text("learning_rat: 1\n")
    with pytest.raises(Mat2SeqError, match="learning_rat"):
        parse_config(["--recipe", str(tmp_path / "bad.yaml")])
    with pytest.raises(Mat2SeqError, match="--train_data missing"):
        parse_config([])
