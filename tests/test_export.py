"""Exporting a model keeps what was found out about it, and leaves nothing of another one."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import torch
from transformers import GenerationConfig, GPT2LMHeadModel

from mat2seq_hf import build_tokenizer, gpt2_config
from mat2seq_hf.publishing import save_model_folder

SCRIPT = Path(__file__).parent.parent / "scripts" / "export_model.py"
REPORT = Path(__file__).parent.parent / "results" / "mp_20_val_1000x1"


def export(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments), "--max-atoms", "20"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_settings_stay_and_what_belongs_to_another_model_goes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(gpt2_config("tiny", n_embd=16, n_layer=1, n_head=2, n_positions=64))
    searched = {"any_of": [{"samples": 20, "temperature": 0.9, "top_k": 40}]}
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.8, top_k=7, mat2seq=searched)
    model.config.use_cache = False  # as the Trainer leaves it
    source = save_model_folder(model, build_tokenizer(), tmp_path / "source", with_code=False)
    output = tmp_path / "output"
    output.mkdir()
    for name in ("README.md", "model.safetensors.index.json", "weights.sha256"):
        (output / name).write_text("of another model")
    assert export(source, "-o", output).returncode == 0
    kept = json.loads((output / "generation_config.json").read_text())
    assert (kept["temperature"], kept["top_k"], kept["mat2seq"]) == (0.8, 7, searched)
    assert json.loads((output / "config.json").read_text())["use_cache"]
    assert not (output / "README.md").exists()
    assert not (output / "model.safetensors.index.json").exists()
    assert not (output / "weights.sha256").exists()
    assert (output / "pipeline.py").is_file()
    said = export(source, "-o", output, "--top-k", 9).stdout
    assert "left out: the settings that were searched for several samples" in said
    kept = json.loads((output / "generation_config.json").read_text())
    assert (kept["temperature"], kept["top_k"], "mat2seq" in kept) == (0.8, 9, False)
    assert export(source, "-o", output, "--plain").returncode == 0
    assert not [*output.rglob("*.py")]
    digest = hashlib.sha256((output / "model.safetensors").read_bytes()).hexdigest()
    assert (output / "weights.sha256").read_text() == f"{digest}  model.safetensors\n"


def test_a_model_of_something_else_is_refused(tmp_path: Path) -> None:
    shape = gpt2_config("tiny", n_embd=16, n_layer=1, n_head=2, n_positions=64)
    del shape.mat2seq
    GPT2LMHeadModel(shape).save_pretrained(tmp_path / "source")
    done = export(tmp_path / "source", "-o", tmp_path / "output")
    assert done.returncode == 1
    assert "source is no model for crystal sequences" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "output").exists()


def test_nothing_is_written_where_something_is_wrong(tmp_path: Path) -> None:
    model = GPT2LMHeadModel(gpt2_config("tiny", n_embd=16, n_layer=1, n_head=2, n_positions=64))
    source = save_model_folder(model, build_tokenizer(), tmp_path / "source", with_code=False)
    for wrong, said in (
        (["--temperature", 0], "temperature must be"),
        (["--top-k", -1], "top_k must be"),
        (["--shard-mb", 0], "--shard-mb must be from 1"),
        (["--report", tmp_path / "nosuch"], "nosuch"),
        (["--report", REPORT], "run_record.json is not there, and a card needs it"),
        (["--report", REPORT, "--record", REPORT / "report.md"], "report.md is no record of a run"),
    ):
        done = export(source, "-o", tmp_path / "output", *wrong)
        assert done.returncode == 1
        assert said in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "output").exists()
