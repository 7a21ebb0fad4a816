"""Laws of what a run is given, and of what it leaves when it cannot go on."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pymatgen.core import Structure
from runs import (
    SCHEME,
    TEXTS,
    random_sequences,
    small_corpus,
    small_model,
    write_crystals,
    write_sequences,
    write_shards,
)
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, TrainingArguments

from mat2seq_hf.corpora.schema import shard_paths
from mat2seq_hf.errors import Mat2SeqError, SchemeMismatchError
from mat2seq_hf.presets import gpt2_config
from mat2seq_hf.sampling_settings import SamplingSettings
from mat2seq_hf.training.checkpoints import last_complete_checkpoint, weights_folder
from mat2seq_hf.training.config import TrainConfig, parse_config
from mat2seq_hf.training.data import Examples, load_corpus
from mat2seq_hf.training.identity import hold_to_identity, run_identity
from mat2seq_hf.training.models import SHIPPED, build_model, keep_largest_cell
from mat2seq_hf.training.monitor import SampleMonitor
from mat2seq_hf.training.muon import parameter_groups
from mat2seq_hf.training.recipes import load_recipe
from mat2seq_hf.training.record import _git_commit
from mat2seq_hf.training.sources import load_data
from mat2seq_hf.training.streaming import StreamedBatches, group_shards
from mat2seq_hf.training.trainer import CrystalTrainer, _mean, train
from mat2seq_hf.vocabulary import BOS, EOS, TOKEN_IDS, TOKENS, tokenize


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- runs that end ------------------------------------------------------------------------------------------------


def test_a_finished_run_started_again_changes_nothing(run_arguments: list[str], tmp_path: Path) -> None:
    arguments = [*run_arguments, f"--output_dir={tmp_path / 'run'}", "--resume_from_checkpoint=auto", "--max_steps=8"]
    record = train(parse_config(arguments))
    before = _bytes(tmp_path / "run")
    again = train(parse_config(arguments))
    assert again["steps"] == record["steps"] == 8
    assert _bytes(tmp_path / "run") == before
    (tmp_path / "run" / "run_record.json").unlink()  # as if killed after the last checkpoint
    late = train(parse_config(arguments))
    assert late["steps"] == 8
    assert late["results"] == record["results"]
    assert _bytes(tmp_path / "run")["model.safetensors"] == before["model.safetensors"]
    longer = train(parse_config([*arguments, "--max_steps=12"]))
    assert longer["steps"] == 12


@pytest.mark.parametrize(("batching", "streaming"), [("bucketed", False), ("packed", True)])
def test_a_run_resumed_in_a_later_epoch_equals_an_uninterrupted_one_bit_for_bit(
    run_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batching: str, streaming: bool
) -> None:
    write_shards(tmp_path / "fields", [write_crystals(tmp_path / f"{number}") for number in range(5)])
    seen: list[torch.Tensor] = []
    trainers: list[CrystalTrainer] = []
    computed = CrystalTrainer.compute_loss

    def compute_loss(
        trainer: CrystalTrainer, model: torch.nn.Module, inputs: dict[str, Any], *more: Any, **n: Any
    ) -> Any:
        trainers.append(trainer)
        seen.append(inputs["input_ids"].clone())
        return computed(trainer, model, inputs, *more, **n)

    monkeypatch.setattr(CrystalTrainer, "compute_loss", compute_loss)
    data = [f"--train_data={tmp_path / 'fields'}", f"--streaming={streaming}", "--group_crystals=6"]
    arguments = [*run_arguments, *data, f"--batching={batching}", "--prefix_fields", "band_gap", "space_group"]
    arguments += [f"--eval_data={tmp_path / 'fields'}", "--batch_tokens=128", "--max_steps=10", "--save_steps=5"]
    arguments += ["--eval_steps=5", "--row_length=64"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    history = train(parse_config([*arguments, f"--output_dir={whole}"]))["log_history"]
    (epoch,) = {entry["epoch"] for entry in history if entry["step"] == 5}
    assert epoch > 1
    assert epoch % 1 > 0.1
    count = len(trainers[0].batches)
    epochs = [[batch.tolist() for batch in seen[start : start + count]] for start in (0, count)]
    assert epochs[0] != epochs[1]  # accelerate has told the data of the second epoch
    shutil.copytree(whole / "checkpoint-5", part / "checkpoint-5")
    train(parse_config([*arguments, f"--output_dir={part}", "--resume_from_checkpoint=auto"]))
    ends = [(run / "checkpoint-10" / "model.safetensors").read_bytes() for run in (whole, part)]
    assert ends[0] == ends[1] != (part / "checkpoint-5" / "model.safetensors").read_bytes()


def test_a_run_whose_time_is_used_up_changes_nothing(run_arguments: list[str], tmp_path: Path) -> None:
    arguments = [a for a in run_arguments if "max_steps" not in a]
    arguments += [f"--output_dir={tmp_path / 'run'}", "--resume_from_checkpoint=auto", "--time_budget_minutes=0.01"]
    steps = train(parse_config(arguments))["steps"]
    before = _bytes(tmp_path / "run")
    assert train(parse_config(arguments))["steps"] == steps
    assert _bytes(tmp_path / "run") == before


def test_a_run_goes_on_with_the_data_weights_and_settings_it_began_with(
    run_arguments: list[str], tmp_path: Path
) -> None:
    arguments = [*run_arguments, f"--output_dir={tmp_path / 'run'}", "--resume_from_checkpoint=auto"]
    arguments += ["--max_steps=4"]
    train(parse_config(arguments))
    before = _bytes(tmp_path / "run")
    other = write_sequences(tmp_path / "other", random_sequences(60, seed=2))
    _saved(tmp_path / "shallow")
    weights = small_model()
    torch.nn.init.zeros_(weights.get_input_embeddings().weight)  # type: ignore[arg-type]
    weights.save_pretrained(tmp_path / "zeros")
    for option, difference in (
        (f"--train_data={other}", r"train_data was '60 crystals, .*' and is now '60 crystals,"),
        (f"--eval_data={other}", r"eval_data was '10 crystals, .*' and is now '60 crystals,"),
        (f"--init_from={tmp_path / 'shallow'}", r"model was 'gpt2 of .*; init_from was "),
        (f"--init_from={tmp_path / 'zeros'}", r"run: init_from was 'weights .*' and is now 'weights "),
        ("--optimizer=muon", "optimizer was 'adamw' and is now 'muon'"),
        ("--time_budget_minutes=1", "schedule was 'cosine' and is now 'time budget'"),
        ("--seed=7", "seed was 42 and is now 7"),
        ("--gradient_accumulation_steps=3", "micro-batches a step was 2 and is now 3"),
        ("--batching=packed", "batching was 'bucketed' and is now 'packed'"),
        ("--metric_for_best_model=loss", "metric_for_best_model was 'bits_per_structure' and is now 'loss'"),
    ):
        for steps in (4, 8):
            with pytest.raises(Mat2SeqError, match=difference):
                train(parse_config([*arguments, option, f"--max_steps={steps}"]))
    assert _bytes(tmp_path / "run") == before
    (tmp_path / "run").rename(tmp_path / "moved")  # neither folders nor their names are part of it
    (tmp_path / "start").rename(tmp_path / "begin")
    moved = [f"--output_dir={tmp_path / 'moved'}", f"--init_from={tmp_path / 'begin'}", "--learning_rate=0.01"]
    assert train(parse_config([*arguments, *moved, "--max_steps=8"]))["steps"] == 8


def test_a_run_does_not_go_on_from_a_checkpoint_beside_later_ones(run_arguments: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [*run_arguments, f"--output_dir={run}"]
    train(parse_config([*arguments, "--max_steps=12"]))
    back = [f"--resume_from_checkpoint={run / 'checkpoint-4'}", "--learning_rate=1e-4", "--max_steps=8"]
    before = _bytes(run)
    later = r"step 4: checkpoint-8, checkpoint-12, trainer_state\.json, run_record\.json; .* another --output_dir"
    with pytest.raises(Mat2SeqError, match=later):
        train(parse_config([*arguments, *back]))
    assert _bytes(run) == before
    assert train(parse_config([*run_arguments, f"--output_dir={tmp_path / 'branch'}", *back]))["steps"] == 8
    for path in (run / "checkpoint-8", run / "checkpoint-12"):
        shutil.rmtree(path)
    with pytest.raises(Mat2SeqError, match=r"step 4: trainer_state\.json, run_record\.json; "):
        train(parse_config([*arguments, *back]))
    for name in ("trainer_state.json", "run_record.json"):
        (run / name).unlink()
    assert train(parse_config([*arguments, *back]))["steps"] == 8
    assert weights_folder(run) == run


_NAMES = ("eval_crystals", "greater_is_better", "sample_formulas", "sample_temperature", "sample_top_k")


@pytest.mark.parametrize(
    ("begun", "held"),
    [
        ([], {"eval_crystals", "greater_is_better"}),
        (["--load_best_model_at_end=false"], set()),
        (["--sample_formulas=2", "--metric_for_best_model=sample_valid"], set(_NAMES)),
    ],
)
def test_what_decides_the_best_checkpoint_stays_while_one_is_chosen(
    tmp_path: Path, begun: list[str], held: set[str]
) -> None:
    run, model, facts = tmp_path / "run", small_model(), small_corpus(3).facts
    (run / "checkpoint-4").mkdir(parents=True)

    def hold(*options: str, checkpoint: str | None = str(run / "checkpoint-4")) -> None:
        config = _config("--train_data=a", f"--output_dir={run}", *begun, *options)
        hold_to_identity(config, run_identity(config, model, facts, facts), checkpoint)

    hold(checkpoint=None)
    hold()
    large = "sample_formulas" in held
    others = ["eval_crystals=7", f"greater_is_better={not large}"]
    others += ["sample_formulas=5", "sample_temperature=0.7", "sample_top_k=3"]
    for name, other in zip(_NAMES, others, strict=True):
        if name in held:
            with pytest.raises(Mat2SeqError, match=f"holds another run: {name} was .* and is now"):
                hold(f"--{other}")
        else:
            hold(f"--{other}")
    stored = json.loads((run / "run_identity.json").read_text())
    for name in (*_NAMES, "load_best_model_at_end"):
        del stored[name]
    (run / "run_identity.json").write_text(json.dumps(stored))  # of an earlier version
    for other in others:
        hold(f"--{other}")


def test_a_folder_with_a_run_is_not_overwritten(run_arguments: list[str], tmp_path: Path) -> None:
    arguments = [*run_arguments, f"--output_dir={tmp_path / 'run'}", "--max_steps=4"]
    train(parse_config(arguments))
    before = _bytes(tmp_path / "run")
    with pytest.raises(Mat2SeqError, match="holds a run already"):
        train(parse_config(arguments))
    assert _bytes(tmp_path / "run") == before


@pytest.mark.parametrize("left", ["run_record.json", "model.safetensors", "model-00001-of-00002.safetensors"])
def test_a_run_without_checkpoints_is_not_overwritten(run_arguments: list[str], tmp_path: Path, left: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / left).write_bytes(b"")
    arguments = [*run_arguments, f"--output_dir={tmp_path / 'run'}"]
    for resume in ([], ["--resume_from_checkpoint=auto"]):
        with pytest.raises(Mat2SeqError, match=r"holds a run already, without a checkpoint .* another --output_dir"):
            train(parse_config([*arguments, *resume]))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {left}


def test_a_run_does_not_go_on_without_its_optimizer(run_arguments: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [*run_arguments, f"--output_dir={run}", "--save_only_model"]
    record = train(parse_config([*arguments, "--max_steps=4"]))
    again = [*arguments, "--resume_from_checkpoint=auto"]
    assert train(parse_config([*again, "--max_steps=4"])) == record  # it is finished
    before = _bytes(run)
    with pytest.raises(Mat2SeqError, match=r"checkpoint-4 was saved without the optimizer .*--init_from"):
        train(parse_config([*again, "--max_steps=8"]))
    with pytest.raises(Mat2SeqError, match=r"run is a run, not a checkpoint: .* --resume_from_checkpoint auto"):
        train(parse_config([*arguments, f"--resume_from_checkpoint={run}", "--max_steps=8"]))
    assert _bytes(run) == before


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_good_one(run_arguments: list[str], tmp_path: Path) -> None:
    arguments = [*run_arguments, f"--output_dir={tmp_path / 'run'}", "--resume_from_checkpoint=auto"]
    train(parse_config([*arguments, "--max_steps=8"]))
    good = _bytes(tmp_path / "run" / "checkpoint-8")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # bytes; the weights are larger
    try:
        with pytest.raises(Mat2SeqError, match=r"could not be written.*checkpoint-8 is complete.*make room"):
            train(parse_config(arguments))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert _bytes(tmp_path / "run" / "checkpoint-8") == good
    assert last_complete_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-8")
    assert not (tmp_path / "run" / "checkpoint-12").exists()
    assert train(parse_config(arguments))["steps"] == 40


def test_an_output_folder_that_is_a_file_is_refused(run_arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(Mat2SeqError, match=r"config\.json is a file"):
        train(parse_config([*run_arguments, f"--output_dir={tmp_path / 'start' / 'config.json'}"]))


def test_an_incomplete_checkpoint_cannot_be_asked_for(run_arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoint-3").mkdir(parents=True)
    asked = f"--resume_from_checkpoint={tmp_path / 'run' / 'checkpoint-3'}"
    with pytest.raises(Mat2SeqError, match="is no complete checkpoint"):
        train(parse_config([*run_arguments, f"--output_dir={tmp_path / 'run'}", asked]))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
@pytest.mark.parametrize("left", [0.0, 0.5])
def test_a_checkpoint_with_a_file_missing_or_cut_short_is_passed_over(tmp_path: Path, name: str, left: float) -> None:
    for step in (4, 8):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"weight": torch.zeros(2)}, folder / "model.safetensors")
        for stored in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            torch.save({"step": step}, folder / stored)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")
    path = tmp_path / "checkpoint-8" / name
    whole = path.read_bytes()
    path.unlink()
    if left:
        path.write_bytes(whole[: int(left * len(whole))])
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")


def test_a_run_with_a_limit_of_steps_and_one_of_time_ends_at_the_first_and_stays(
    run_arguments: list[str], tmp_path: Path
) -> None:
    arguments = [*run_arguments, f"--output_dir={tmp_path / 'run'}", "--resume_from_checkpoint=auto", "--max_steps=4"]
    for _ in range(2):
        assert train(parse_config([*arguments, "--time_budget_minutes=10"]))["steps"] == 4


@pytest.mark.parametrize(
    "option",
    [
        *("--eval_crystals=0", "--sample_temperature=0", "--batch_tokens=-1", "--optimizer=sgd", "--batching=no"),
        *("--time_budget_minutes=0", "--time_budget_minutes=nan", "--gradient_accumulation_steps=0"),
        *("--loss_on=complete", "--prefix_dropout=1.5", "--prefix_dropout=-0.1", "--dropout=1.5", "--dropout=nan"),
    ],
)
def test_impossible_settings_are_named_before_anything_is_read(option: str, tmp_path: Path) -> None:
    with pytest.raises(Mat2SeqError, match=option[2:].split("=", maxsplit=1)[0]):
        _config("--train_data=a", f"--output_dir={tmp_path}", option)


def test_settings_that_do_not_go_together_are_refused_with_a_reason(tmp_path: Path) -> None:
    common = ["--train_data=a", f"--output_dir={tmp_path}"]
    with pytest.raises(Mat2SeqError, match=r"go together: .*multiple of the evaluation steps"):
        _config(*common, "--save_steps=50")
    with pytest.raises(Mat2SeqError, match=r"warmup_steps is 100\.0; with a time budget"):
        _config(*common, "--warmup_steps=100", "--time_budget_minutes=6")
    assert _config(*common, "--warmup_steps=100").warmup_steps == 100


@pytest.mark.parametrize(
    ("options", "metric", "large"),
    [
        ([], "bits_per_structure", False),
        (["--metric_for_best_model=eval_loss"], "loss", False),
        (["--sample_formulas=4", "--metric_for_best_model=eval_sample_valid"], "sample_valid", True),
        (
            ["--sample_formulas=4", "--metric_for_best_model=sample_match", "--greater_is_better=0"],
            "sample_match",
            False,
        ),
        (["--prefix_fields", "band_gap"], "bits_per_structure", False),
        (["--prefix_fields", "band_gap", "--prefix_dropout=0"], "bits_given_fields", False),
        (["--loss_on=completion"], "bits_given_formula", False),
        (
            ["--loss_on=completion", "--prefix_fields", "band_gap", "--prefix_dropout=0"],
            "bits_given_fields_and_formula",
            False,
        ),
    ],
)
def test_the_best_checkpoint_is_chosen_by_what_the_model_is_trained_for(
    tmp_path: Path, options: list[str], metric: str, large: bool
) -> None:
    config = _config("--train_data=a", f"--output_dir={tmp_path}", *options)
    assert (config.metric_for_best_model, config.greater_is_better) == (metric, large)


@pytest.mark.parametrize("metric", ["accuracy", "eval_sample_valid", "bits_given_fields"])
def test_a_figure_that_the_run_does_not_measure_cannot_choose_its_best_checkpoint(tmp_path: Path, metric: str) -> None:
    with pytest.raises(Mat2SeqError, match=r"metric_for_best_model .* is not one of bits_per_structure, loss, which"):
        _config("--train_data=a", f"--output_dir={tmp_path}", f"--metric_for_best_model={metric}")


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ("--per_device_train_batch_size=64", "per_device_train_batch_size 64 .*--batch_tokens"),
        ("--data_seed=7", "data_seed 7 .*--seed"),
        ("--optim=adafactor --optimizer=muon", "optim 'adafactor' .*--optimizer adamw"),
        ("--lr_scheduler_type=constant --time_budget_minutes=1", "lr_scheduler_type 'constant' .*leave out"),
        ("--eval_steps=0.2 --time_budget_minutes=1", "eval_steps is 0.2, a share .*number of steps"),
        ("--logging_steps=0.1 --time_budget_minutes=1", "logging_steps is 0.1, a share"),
        ("--push_to_hub", "push_to_hub would upload the crystals .*export_model.py"),
        ("--recip tiny", "--recip"),
    ],
)
def test_options_without_effect_are_refused_with_a_remedy(tmp_path: Path, options: str, remedy: str) -> None:
    with pytest.raises(Mat2SeqError, match=remedy):
        _config("--train_data=a", f"--output_dir={tmp_path}", *options.split())


def test_options_that_have_an_effect_in_other_company_are_taken(tmp_path: Path) -> None:
    common = ["--train_data=a", f"--output_dir={tmp_path}"]
    for options in (
        ["--optim=adafactor"],
        ["--lr_scheduler_type=constant"],
        ["--eval_steps=0.2", "--save_steps=0.2"],
        ["--eval_steps=0.2", "--save_steps=0.2", "--time_budget_minutes=1", "--max_steps=50"],
        ["--eval_steps=0.2", "--eval_strategy=no", "--time_budget_minutes=1"],
    ):
        assert _config(*common, *options).train_data == "a"


def test_the_recipe_that_is_named_last_is_the_one_that_is_used(tmp_path: Path) -> None:
    common = ["--train_data=a", f"--output_dir={tmp_path}"]
    for recipes in (["--recipe=tiny", "--recipe=small"], ["--recipe", "tiny", "--recipe", "small"]):
        config = _config(*common, *recipes)
        assert (config.recipe, config.model_size) == ("small", "small")


def test_muon_trains_what_is_no_matrix_with_the_epsilon_that_is_asked_for(tmp_path: Path) -> None:
    config = _config("--train_data=a", f"--output_dir={tmp_path}", "--optimizer=muon", "--adam_epsilon=0.1")
    groups = parameter_groups(small_model(), config)
    assert [group["eps"] for group in groups if not group.get("muon")] == [0.1, 0.1]


@pytest.mark.parametrize("name", ["eval_strategy", "save_strategy"])
def test_a_run_without_evaluation_or_checkpoints_needs_no_other_option(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"extends: tiny\nprefix_fields: band_gap\n{name}: no\n")
    common = ["--train_data=a", f"--output_dir={tmp_path}"]
    for config in (_config(*common, f"--{name}=no"), _config("--recipe", str(tmp_path / "mine.yaml"), *common)):
        assert getattr(config, name) == "no"
        assert not config.load_best_model_at_end
    assert config.prefix_fields == ["band_gap"]


@pytest.mark.parametrize(
    ("has", "options", "used"),
    [
        (True, [], True),
        (False, ["--bf16"], True),
        (True, ["--bf16=false"], False),
        (True, ["--fp16"], False),
        (False, [], False),
    ],
)
def test_bf16_is_used_where_the_gpu_has_it_unless_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, has: bool, options: list[str], used: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: has)
    monkeypatch.setattr(TrainingArguments, "__post_init__", lambda _: None)  # it would ask for the GPU itself
    config = parse_config(["--report_to=none", "--train_data=a", f"--output_dir={tmp_path}", *options])
    assert config.bf16 is used


# --- corpora ------------------------------------------------------------------------------------------------------


def test_a_corpus_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = write_crystals(tmp_path / "data")
    (path,) = shard_paths(folder)
    table = pq.read_table(path)
    shifted = [[token + 1 for token in row] for row in table.column("input_ids").to_pylist()]
    place = table.schema.get_field_index("input_ids")
    pq.write_table(table.set_column(place, "input_ids", pa.array(shifted, type=pa.list_(pa.int16()))), path)
    with pytest.raises(SchemeMismatchError, match="tokenized with another vocabulary: 'Na1 Cl1"):
        load_corpus(folder, max_length=128, scheme=SCHEME)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([[1, 30, 2], [1, 50256, 2]], "holds token ids 1 to 50256, the vocabulary has"),
        ([[1, 30, 2], None], "holds a row without token ids"),
        ([[1, 30, 2], [1, None, 2]], ".*or with a missing one"),
    ],
)
def test_token_ids_that_cannot_be_read_are_named(
    tmp_path: Path, rows: list[list[int | None] | None], said: str
) -> None:
    folder = write_sequences(tmp_path / "train", random_sequences(2))
    (path,) = shard_paths(folder)
    ids = pa.table({"input_ids": pa.array(rows, type=pa.list_(pa.int32()))})
    pq.write_table(ids.replace_schema_metadata(pq.read_schema(path).metadata), path)
    with pytest.raises(Mat2SeqError, match=f"train {said}"):
        load_corpus(folder, max_length=64, scheme=SCHEME)


@pytest.mark.parametrize("content", [b"", b"PAR1 no parquet", b"\x00" * 100])
def test_a_broken_shard_is_named(tmp_path: Path, content: bytes) -> None:
    folder = write_sequences(tmp_path / "train", random_sequences(3))
    (folder / "part-00001.parquet").write_bytes(content)
    with pytest.raises(Mat2SeqError, match=r"part-00001\.parquet is damaged"):
        load_corpus(folder, max_length=64, scheme=SCHEME)


def _config(*arguments: str) -> TrainConfig:
    return parse_config(["--use_cpu", "--report_to=none", *arguments])


def test_crystals_are_prepared_and_a_tenth_is_held_out(tmp_path: Path, crystals: dict[str, Structure]) -> None:
    folder = tmp_path / "cifs"
    folder.mkdir()
    for name, structure in crystals.items():
        structure.to(filename=str(folder / f"{name.replace(' ', '_')}.cif"))
    (folder / "broken.cif").write_text("data_nothing\n_cell_length_a 1\n")
    config = _config(f"--train_data={folder}", f"--output_dir={tmp_path / 'run'}")
    data = load_data(config, 512)
    assert (data.train.crystals, len(data.validation)) == (len(crystals) - 1, 1)
    assert (tmp_path / "run" / "data" / "train" / "rejected.csv").read_text().count("broken.cif") == 1
    again = load_data(config, 512)
    assert again.train.fingerprint == data.train.fingerprint


def test_the_first_process_of_a_second_machine_waits_for_the_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cifs").mkdir()
    config = _config(f"--train_data={tmp_path / 'cifs'}", f"--output_dir={tmp_path / 'run'}")
    for name, value in (("world_size", 2), ("process_index", 1), ("local_process_index", 0)):
        monkeypatch.setattr(TrainConfig, name, value)
    prepared = tmp_path / "run" / "data" / "train"
    monkeypatch.setattr(torch.distributed, "barrier", lambda: write_sequences(prepared, random_sequences(20)))
    assert load_data(config, 64).train.crystals == 18  # and a tenth is held out


@pytest.mark.parametrize("given", ["nothing/there", "empty", "broken"])
def test_data_that_are_not_there_are_named(tmp_path: Path, given: str) -> None:
    for name in ("empty", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "a.cif").write_text("data_nothing\n_cell_length_a 1\n")
    with pytest.raises(Mat2SeqError, match=f"{given}.*does not exist|no crystals in .*{given}|none of .*{given}"):
        load_data(_config(f"--train_data={tmp_path / given}", f"--output_dir={tmp_path / 'run'}"), 512)


def test_no_crystal_is_encoded_for_a_run_that_cannot_be(tmp_path: Path, crystals: dict[str, Structure]) -> None:
    (tmp_path / "cifs").mkdir()
    crystals["NaCl"].to(filename=str(tmp_path / "cifs" / "NaCl.cif"))
    half = write_sequences(tmp_path / "half", random_sequences(3))
    (half / "report.json").unlink()
    given = [f"--train_data={tmp_path / 'cifs'}", f"--output_dir={tmp_path / 'run'}"]
    for options, said in (
        ([f"--eval_data={tmp_path / 'absent'}"], "absent does not exist"),
        ([f"--eval_data={half}"], r"half has no report\.json"),
        (["--streaming=true"], "--streaming needs --eval_data"),
    ):
        with pytest.raises(Mat2SeqError, match=said):
            load_data(_config(*given, *options), 64)
    assert not (tmp_path / "run").exists()


def test_half_prepared_crystals_are_not_trained_on(tmp_path: Path) -> None:
    folder = write_sequences(tmp_path / "train", random_sequences(20))
    (folder / "report.json").unlink()  # as `mat2seq prepare` does when it begins
    for streaming in (False, True):
        options = [f"--train_data={folder}", f"--eval_data={folder}", f"--streaming={streaming}"]
        with pytest.raises(Mat2SeqError, match=r"train has no report\.json: .* start the same command again"):
            load_data(_config(*options, f"--output_dir={tmp_path / 'run'}"), 64)
    with pytest.raises(Mat2SeqError, match=r"train has no report\.json"):
        load_corpus(folder, max_length=64, scheme=SCHEME)


def test_crystals_that_are_left_out_are_counted_once(tmp_path: Path) -> None:
    folder = write_sequences(tmp_path / "train", random_sequences(40))
    data = load_data(_config(f"--train_data={folder}", "--row_length=20", f"--output_dir={tmp_path / 'run'}"), 64)
    whole = load_corpus(folder, max_length=20, scheme=SCHEME)
    assert data.train.too_long + data.validation.too_long == whole.too_long > 0


def test_the_error_of_a_mean_is_that_of_a_sample_and_unknown_for_one_crystal() -> None:
    assert _mean("bits", np.array([1.0, 3.0])) == {"bits": 2.0, "bits_standard_error": pytest.approx(1.0)}
    assert _mean("bits", np.array([3.0])) == {"bits": 3.0, "bits_standard_error": None}


def test_the_commit_is_that_of_this_package_and_not_of_a_repository_around_it(tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for name in ("mine.py", "installed.py"):
        (tmp_path / name).write_text("")
    for arguments in (["init", "-q"], ["add", "mine.py"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)
    assert re.fullmatch(r"[0-9a-f]{40,}", str(_git_commit(tmp_path / "mine.py")))
    assert _git_commit(tmp_path / "installed.py") is None


def test_an_empty_validation_split_is_refused(tmp_path: Path) -> None:
    train_data, val = write_sequences(tmp_path / "train", random_sequences(5)), write_sequences(tmp_path / "val", [])
    with pytest.raises(Mat2SeqError, match="val holds no crystal"):
        load_data(_config(f"--train_data={train_data}", f"--eval_data={val}", f"--output_dir={tmp_path}"), 64)
    alone = write_sequences(tmp_path / "one", random_sequences(1))
    with pytest.raises(Mat2SeqError, match="one crystal cannot be trained and validated on"):
        load_data(_config(f"--train_data={alone}", f"--output_dir={tmp_path}"), 64)


# --- streaming ----------------------------------------------------------------------------------------------------


def _shards(folder: Path) -> Path:
    sequences = random_sequences(50)
    parts = [write_sequences(folder / f"{start}", sequences[start : start + 10]) for start in range(0, 50, 10)]
    return write_shards(folder, parts)


def _streamed(folder: Path, val: Path, tmp_path: Path) -> StreamedBatches:
    options = ["--streaming=true", "--group_crystals=20", "--row_length=64", "--batch_tokens=128"]
    data = load_data(_config(f"--train_data={folder}", f"--eval_data={val}", f"--output_dir={tmp_path}", *options), 38)
    assert isinstance(data.batches, StreamedBatches)
    return data.batches


def test_a_streamed_epoch_holds_every_crystal_once_and_too_long_ones_are_counted(tmp_path: Path) -> None:
    folder, val = _shards(tmp_path / "train"), write_sequences(tmp_path / "val", random_sequences(4))
    assert [len(group) for group in group_shards(shard_paths(folder), 20)] == [2, 2, 1]
    streamed = _streamed(folder, val, tmp_path)
    whole = load_corpus(folder, max_length=38, scheme=SCHEME)
    kept = sorted(whole[index].tolist() for index in range(len(whole)))
    assert streamed.facts.too_long == whole.too_long > 0
    assert (streamed.facts.counts == whole.facts.counts).all()
    orders = []
    for epoch in (0, 1, 0):
        streamed.set_epoch(epoch)
        batches = [streamed[index] for index in range(len(streamed))]
        rows = [row[row != 0].tolist() for batch in batches for row in batch["input_ids"]]
        assert sorted(rows) == kept
        orders.append(rows)
        assert streamed[3]["input_ids"].tolist() == batches[3]["input_ids"].tolist()  # from any place
    assert orders[0] == orders[2] != orders[1]


@pytest.mark.parametrize("streaming", [False, True])
def test_no_row_is_longer_than_the_model(tmp_path: Path, streaming: bool) -> None:
    folder, val = _shards(tmp_path / "train"), write_sequences(tmp_path / "val", random_sequences(4))
    options = ["--batching=packed", "--row_length=128", "--batch_tokens=512", f"--streaming={streaming}"]
    data = load_data(_config(f"--train_data={folder}", f"--eval_data={val}", f"--output_dir={tmp_path}", *options), 64)
    batches = [data.batches[index] for index in range(len(data.batches))]
    assert max(int(batch["position_ids"].max()) for batch in batches) < 64
    rows = sum(int((batch["input_ids"] == TOKEN_IDS[BOS]).sum()) for batch in batches)
    assert rows == data.train.crystals == 50


# --- models, recipes ----------------------------------------------------------------------------------------------


def _saved(folder: Path, vocabulary: int = len(TOKENS)) -> Path:
    config = gpt2_config("tiny", n_embd=32, n_layer=1, n_head=2, n_positions=64, vocab_size=vocabulary)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_a_model_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    smaller = _saved(tmp_path / "smaller", 512)
    with pytest.raises(SchemeMismatchError, match=f"vocabulary of 512 tokens, this package one of {len(TOKENS)}"):
        build_model(_config("--train_data=a", f"--init_from={smaller}", f"--output_dir={tmp_path}"))
    renamed = _saved(tmp_path / "renamed")
    vocabulary = {token: index for index, token in enumerate(TOKENS)}
    vocabulary["Na"], vocabulary["Cl"] = vocabulary["Cl"], vocabulary["Na"]
    (renamed / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    with pytest.raises(SchemeMismatchError, match=r"token 'Na' has the id"):
        build_model(_config("--train_data=a", f"--init_from={renamed}", f"--output_dir={tmp_path}"))
    with pytest.raises(Mat2SeqError, match="is no model folder or repository"):
        build_model(_config("--train_data=a", f"--init_from={tmp_path / 'none'}", f"--output_dir={tmp_path}"))


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_dropout_acts_in_every_block_while_training_and_nowhere_else(tmp_path: Path, model_type: str) -> None:
    ids = torch.tensor([random_sequences(1)[0][:12]])
    for source in ("", f"--init_from={tmp_path / 'saved'}"):
        options = ["--train_data=a", f"--output_dir={tmp_path}", f"--model_type={model_type}", *filter(None, [source])]
        torch.manual_seed(0)
        model = build_model(_config(*options, "--dropout=0.2")).train()
        torch.manual_seed(0)
        plain = build_model(_config(*options)).train()
        states = []
        for network in (model, plain):
            output = network(input_ids=ids, output_hidden_states=True)
            states.append([*output.hidden_states, output.logits])
        dropped = (states[0][0] == 0).float().mean()  # of embeddings
        assert 0.15 < dropped < 0.25
        assert (plain(input_ids=ids).logits == states[1][-1]).all()
        assert (model.eval()(input_ids=ids).logits == states[1][-1]).all()
        assert model.config.model_type == model_type
        model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").train()
    assert set(again.state_dict()) == set(plain.state_dict())


def _kin(kind: str, **more: Any) -> PretrainedConfig:
    """A small checkpoint of another architecture."""
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    known = gpt2_config("tiny").to_dict()
    fields = {name: known[name] for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "mat2seq")}
    return AutoConfig.for_model(kind, **fields, **shape, intermediate_size=64, max_position_embeddings=64, **more)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3"])
def test_dropout_of_a_checkpoint_is_that_of_the_run(tmp_path: Path, kind: str) -> None:
    config = _kin(kind)
    config.attention_dropout = 0.1
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "saved")
    options = ["--train_data=a", f"--output_dir={tmp_path}", f"--init_from={tmp_path / 'saved'}"]
    ids = torch.tensor([random_sequences(1)[0][:12]])
    plain = build_model(_config(*options)).train()
    assert torch.equal(plain(input_ids=ids).logits, plain(input_ids=ids).logits)
    dropping = build_model(_config(*options, "--dropout=0.3")).train()
    assert dropping.config.attention_dropout == 0.0
    assert not torch.equal(dropping(input_ids=ids).logits, dropping(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("kind", "shape", "apart"),
    [
        ("qwen3", {}, True),
        ("opt", {"word_embed_proj_dim": 32, "ffn_dim": 64}, False),
        ("lfm2", {"layer_types": ["conv"]}, False),
    ],
)
def test_packed_rows_are_refused_where_crystals_would_see_each_other(
    tmp_path: Path, kind: str, shape: dict[str, Any], apart: bool
) -> None:
    config = _kin(kind, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "saved")
    options = ["--train_data=a", f"--output_dir={tmp_path}", f"--init_from={tmp_path / 'saved'}"]
    assert build_model(_config(*options)).config.model_type == kind
    if apart:
        assert build_model(_config(*options, "--batching=packed")).config.model_type == kind
        return
    with pytest.raises(Mat2SeqError, match=f"see each other in a model of type '{kind}': use --batching bucketed"):
        build_model(_config(*options, "--batching=packed"))


def test_a_model_that_does_not_say_how_much_it_reads_is_named(tmp_path: Path) -> None:
    config = _kin("bloom", n_layer=1, n_head=2)
    del config.max_position_embeddings
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "saved")
    options = ["--train_data=a", f"--output_dir={tmp_path / 'run'}", f"--init_from={tmp_path / 'saved'}"]
    with pytest.raises(Mat2SeqError, match="of the bloom model has no max_position_embeddings: enter there"):
        train(_config(*options))


def test_dropout_is_refused_where_there_is_no_place_for_it(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(_kin("gpt_neox")).save_pretrained(tmp_path / "saved")
    options = ["--train_data=a", f"--output_dir={tmp_path}", f"--init_from={tmp_path / 'saved'}"]
    with pytest.raises(Mat2SeqError, match=r"dropout 0\.3 cannot be put into a model of type 'gpt_neox'"):
        build_model(_config(*options, "--dropout=0.3"))


def test_fields_that_a_run_changes_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = gpt2_config("tiny", n_embd=32, n_layer=1, n_head=2, n_positions=64)
    config.mat2seq = {**config.mat2seq, "fields": ["band_gap"]}
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "saved")
    options = ["--train_data=a", f"--output_dir={tmp_path}", f"--init_from={tmp_path / 'saved'}"]
    assert build_model(_config(*options)).config.mat2seq["fields"] == []
    assert "was trained with the prefix fields band_gap, this run trains with none" in caplog.text
    caplog.clear()
    build_model(_config(*options, "--prefix_fields", "band_gap"))
    assert not caplog.text


def test_a_llama_drops_what_each_block_adds(tmp_path: Path) -> None:
    model = build_model(_config("--train_data=a", f"--output_dir={tmp_path}", "--dropout=0.5")).train()
    seen: dict[str, float] = {}
    for name, module in model.named_modules():
        if name.endswith(("o_proj", "down_proj")):
            module.register_forward_hook(
                lambda _module, _given, output, name=name: seen.update({name: float((output == 0).float().mean())})
            )
    model(input_ids=torch.tensor([[1, 5, 9, 7, 3, 2]]))
    assert len(seen) == 2 * model.config.num_hidden_layers
    assert all(0.4 < share < 0.6 for share in seen.values())


def test_a_model_answers_with_cells_as_large_as_those_it_was_trained_on(
    run_arguments: list[str], tmp_path: Path
) -> None:
    formulas = ("Ti120 O2 [P1]", "Ba1 Ti1 O3 [Pm-3m] 4.0094 Ba 1a 0", "C26 H99 [P-1]", "Na1 [Fm-3m]")
    sequences = [[TOKEN_IDS[BOS], *tokenize(text), TOKEN_IDS[EOS]] for text in formulas]
    corpus = load_corpus(write_sequences(tmp_path / "large", sequences), max_length=64, scheme=SCHEME)
    assert corpus.atoms.tolist() == [122, 5, 125, 1]
    for limit, given, kept in ((None, False, 125), (20, True, 125), (300, True, 300), (None, True, None)):
        source = tmp_path / f"from_{limit}"
        model = small_model()
        if limit is not None:
            model.config.mat2seq = {**model.config.mat2seq, "max_atoms": limit}
        model.save_pretrained(source)
        config = _config("--train_data=a", f"--output_dir={tmp_path}", *([f"--init_from={source}"] if given else []))
        begun = build_model(config)
        keep_largest_cell(begun, corpus.facts.max_atoms)
        assert begun.config.mat2seq.get("max_atoms") == kept
    arguments = [*run_arguments, f"--output_dir={tmp_path / 'run'}", "--max_steps=4"]
    train(parse_config([*arguments, f"--init_from={tmp_path / 'from_20'}", f"--train_data={tmp_path / 'large'}"]))
    assert AutoConfig.from_pretrained(tmp_path / "run").mat2seq["max_atoms"] == 125


def test_samples_of_a_trained_model_match_and_its_random_numbers_are_left_alone(tmp_path: Path) -> None:
    corpus = load_corpus(write_crystals(tmp_path / "data"), max_length=128, scheme=SCHEME)
    model = build_model(_config("--train_data=a", f"--init_from={SHIPPED}", f"--output_dir={tmp_path}")).train()
    monitor = SampleMonitor(corpus, 3, SamplingSettings(top_k=1))
    state = torch.get_rng_state()
    found = monitor.check(model)
    assert found["eval_sample_valid"] == 1.0
    assert (torch.get_rng_state() == state).all()
    assert model.training
    untrained = monitor.check(small_model())
    assert found["eval_sample_match"] > untrained["eval_sample_match"]
    assert len(TEXTS) == len(monitor.prompts)


def test_a_recipe_extends_others_and_its_own_fields_win(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: [small, mp_20]\ndropout: 0.3\n")
    fields = load_recipe(str(tmp_path / "mine.yaml"))
    assert (fields["model_size"], fields["dropout"], fields["row_length"]) == ("small", 0.3, 512)
    assert load_recipe("perov_5_tiny")["model_size"] == "tiny"
    assert load_recipe("carbon_24_large")["num_train_epochs"] == load_recipe("carbon_24")["num_train_epochs"]
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "base.yaml").write_text("extends: ../mine.yaml\nseed: 5\n")
    (tmp_path / "further.yaml").write_text("extends: [more/base.yaml]\n")
    assert load_recipe(str(tmp_path / "further.yaml")) == {**fields, "seed": 5}  # from where the recipe lies
    for ring in (str(tmp_path / "ring.yaml"), "ring.yaml", f"../{tmp_path.name}/ring.yaml"):
        (tmp_path / "ring.yaml").write_text(f"extends: {ring}\n")
        with pytest.raises(Mat2SeqError, match="extends itself"):
            load_recipe(str(tmp_path / "ring.yaml"))
    for text in ("- a\n- b\n", "a: [\n"):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(Mat2SeqError, match=r"bad\.yaml"):
            load_recipe(str(tmp_path / "bad.yaml"))


def test_examples_of_a_fixed_shape_are_padded_with_rows_without_loss(tmp_path: Path) -> None:
    corpus = load_corpus(write_sequences(tmp_path / "train", random_sequences(30)), max_length=64, scheme=SCHEME)
    data = load_data(
        _config(f"--train_data={tmp_path / 'train'}", "--batching=packed", "--row_length=64", "--batch_tokens=256",
                f"--output_dir={tmp_path}"), 64,
    )  # fmt: skip
    shapes = {tuple(data.batches[index]["labels"].shape) for index in range(len(data.batches))}
    assert shapes == {(4, 64)}
    assert Examples(corpus).lengths.sum() == len(corpus.ids)
    assert np.all(corpus.lengths <= 64)
