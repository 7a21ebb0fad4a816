"""Laws of the script for a short lease of a GPU, and of what a killed run leaves."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
from runs import SCRIPT, small_model, write_crystals
from transformers import AutoModelForCausalLM

from mat2seq_hf.errors import Mat2SeqError
from mat2seq_hf.training.checkpoints import last_complete_checkpoint, weights_folder
from mat2seq_hf.training.config import parse_config
from mat2seq_hf.training.trainer import train

LEASE = SCRIPT.with_name("train_and_sample.py")


@pytest.fixture
def script() -> ModuleType:
    """scripts/train_and_sample.py as a module."""
    spec = importlib.util.spec_from_file_location("train_and_sample", LEASE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _make(folder: Path, weights: bytes, *splits: str) -> Path:
    """What the script makes of some weights: a model folder, and samples of these splits."""
    (folder / "model" / "custom_generate").mkdir(parents=True)
    (folder / "model" / "model-00001.safetensors").write_bytes(weights)
    (folder / "model" / "config.json").write_bytes(weights)
    (folder / "model" / "custom_generate" / "generate.py").write_text("pass\n")
    for split in splits:
        (folder / f"samples_{split}" / "parts").mkdir(parents=True)
        (folder / f"samples_{split}" / "samples.parquet").write_bytes(weights)
    return folder


def _packed(out: Path) -> dict[str, bytes]:
    with tarfile.open(out / "rest.tar.gz") as archive:
        found = {member.name: archive.extractfile(member) for member in archive.getmembers()}
        return {name: file.read() for name, file in found.items() if file is not None}


def test_what_is_taken_away_is_whole_and_of_one_model(script: ModuleType, tmp_path: Path) -> None:
    record, out = tmp_path / "run_record.json", tmp_path / "out"
    record.write_text("{}")
    script.pack([record, tmp_path / "curves.png"], _make(tmp_path / "a", b"first", "val", "test"), out)
    assert set(_packed(out)) == {
        "model/config.json",
        "model/custom_generate/generate.py",
        "run/run_record.json",
        "samples_val/samples.parquet",
        "samples_test/samples.parquet",
    }
    (out / "model-00002.safetensors").write_bytes(b"first")  # the earlier model had more files
    script.pack([record], _make(tmp_path / "b", b"second", "test"), out)
    assert {path.name: path.read_bytes() for path in out.glob("*.safetensors")} == {
        "model-00001.safetensors": b"second"
    }
    packed = _packed(out)
    assert packed["samples_test/samples.parquet"] == packed["model/config.json"] == b"second"
    assert "samples_val/samples.parquet" not in packed
    assert not list(out.glob(".*"))


def test_other_weights_or_other_sampling_never_share_a_folder(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("hashlib.file_digest", raising=False)  # as in Python 3.10
    for name, weights in (("a", b"first"), ("b", b"second"), ("c", b"first")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    a, b, c = (script.fingerprint(tmp_path / name) for name in "abc")
    assert a == c != b
    common = ["--recipe=mp_20_tiny", f"--prepared={tmp_path}", f"--output={tmp_path}"]
    names = [
        script.samples_name(script.parse_arguments([*common, *more]), split)
        for split in ("val", "test")
        for more in ([], ["--rows=64"], ["--top-k=64"], ["--temperature=0.7"], ["--prompts=20", "--samples=20"])
    ]
    assert names[0] == "samples_val"
    assert script.parse_arguments(common).name == "mp_20_tiny"
    assert script.parse_arguments([f"--recipe={tmp_path / 'mine.yaml'}", *common[1:]]).name == "mine"
    assert len(set(names)) == len(names)


def test_the_weights_of_a_killed_run_are_those_it_would_have_ended_with(
    run_arguments: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(Mat2SeqError, match="neither a model nor a complete checkpoint"):
        weights_folder(run)
    arguments = [*run_arguments, f"--output_dir={run}", "--learning_rate=0.01"]
    record = train(parse_config([*arguments, "--max_steps=8"]))
    assert weights_folder(run) == run
    ended = AutoModelForCausalLM.from_pretrained(run).state_dict()
    config = json.loads((run / "config.json").read_text())
    for path in run.iterdir():  # as if killed while evaluating for the last time
        if path.is_file():
            path.unlink()
    best = weights_folder(run.rename(tmp_path / "taken"))
    assert best == tmp_path / "taken" / f"checkpoint-{record['best_checkpoint_step']}"
    found = AutoModelForCausalLM.from_pretrained(best).state_dict()
    assert all(torch.equal(tensor, ended[name]) for name, tensor in found.items())
    (tmp_path / "taken" / "config.json").write_text(json.dumps(config))  # of an earlier end, with fewer steps
    (tmp_path / "taken" / "trainer_state.json").write_text('{"global_step": 4}')
    assert weights_folder(tmp_path / "taken") == best
    assert last_complete_checkpoint(tmp_path / "taken") == str(tmp_path / "taken" / "checkpoint-8")


def test_the_weights_of_a_killed_run_that_keeps_its_last_ones_are_the_last_ones(
    run_arguments: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = [*run_arguments, f"--output_dir={run}", "--max_steps=8", "--resume_from_checkpoint=auto"]
    arguments += ["--learning_rate=0.01", "--greater_is_better=true"]  # which calls the first checkpoint the best
    last = [*arguments, "--load_best_model_at_end=false"]
    train(parse_config(last))

    def kill() -> None:
        for name in ("run_record.json", "trainer_state.json", "config.json", "model.safetensors"):
            (run / name).unlink()

    kill()
    state = json.loads((run / "checkpoint-8" / "trainer_state.json").read_text())
    assert state["best_global_step"] == 4
    assert weights_folder(run) == run / "checkpoint-8"
    train(parse_config(arguments))  # the best ones, after all
    kill()
    assert weights_folder(run) == run / "checkpoint-4"
    train(parse_config(last))
    kill()
    assert weights_folder(run) == run / "checkpoint-8"
    (run / "run_identity.json").unlink()  # of an earlier version
    assert weights_folder(run) == run / "checkpoint-4"


@pytest.mark.slow
def test_a_lease_in_parts_leaves_one_model_with_all_its_samples(tmp_path: Path) -> None:
    prepared, run = tmp_path / "prepared", tmp_path / "runs" / "mp_20_tiny"
    prepared.mkdir()
    for split in ("train", "val", "test"):
        write_crystals(prepared / split)
    small_model().save_pretrained(tmp_path / "start")
    command = [sys.executable, str(LEASE), "--recipe=mp_20_tiny", f"--prepared={prepared}", f"--runs={run.parent}"]
    command += [f"--output={tmp_path / 'out'}", "--prompts=2", "--rows=4"]
    more = [
        "--",
        f"--init_from={tmp_path / 'start'}",
        "--use_cpu",
        "--row_length=64",
        "--save_steps=4",
        "--eval_steps=4",
    ]
    more += ["--report_to=none"]
    out = tmp_path / "out" / "mp_20_tiny"
    for options in (["--minutes=0.02", *more], ["--minutes=0.04", *more], ["--minutes=0", "--splits", "test"]):
        subprocess.run([*command, *options], check=True)
        packed = _packed(out)
        assert {"run/run_record.json", "run/log.txt", "model/custom_generate/generate.py"} <= set(packed)
    assert {name.split("/")[0] for name in packed} >= {"samples_val_prompts_2_rows_4", "samples_test_prompts_2_rows_4"}
    for path in run.iterdir():
        if path.is_file():
            path.unlink()
    subprocess.run([*command, "--minutes=0"], check=True)
    assert "run/run_record.json" not in _packed(out)
    assert "run/trainer_state.json" in _packed(out)
