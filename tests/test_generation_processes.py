"""Sampling on several processes: a run whose processes are killed loses and repeats no prompt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import torch
from transformers import GPT2LMHeadModel

from mat2seq_hf.elements import ELEMENTS
from mat2seq_hf.generation import Job, load_pipeline, merge, read_prompts, run_job
from mat2seq_hf.presets import gpt2_config
from mat2seq_hf.publishing import save_model_folder
from mat2seq_hf.tokenizer import build_tokenizer

SCRIPT = Path(__file__).parent.parent / "scripts" / "generate.py"
FORMULAS = [f"{element}Cl" for element in ELEMENTS if element != "Cl"][:24]


def start(model: Path, prompts: Path, output: Path) -> subprocess.Popen[bytes]:
    """Two processes, started by accelerate in a session of their own."""
    launcher = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    command = [sys.executable, "-m", "accelerate.commands.launch", *launcher.split(), str(SCRIPT)]
    options = ["--prompts", str(prompts), "--model", str(model), "--output", str(output)]
    more = ["--samples", "1", "--rows", "1", "--threads", "1"]
    environment = dict(os.environ) | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen([*command, *options, *more], env=environment, start_new_session=True)


def test_two_processes_that_are_killed_and_started_again_lose_and_repeat_no_prompt(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(gpt2_config("tiny", n_embd=32, n_layer=1, n_head=2))
    folder = save_model_folder(model, build_tokenizer(), tmp_path / "model")
    prompts = tmp_path / "formulas.txt"
    prompts.write_text("\n".join(FORMULAS), encoding="utf-8")
    output = tmp_path / "samples"
    killed = start(folder, prompts, output)
    while len(done := sorted(output.glob("parts/part-*.parquet"))) < 2:
        assert killed.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)  # both processes and their launcher, at whatever they are about
    killed.wait()
    assert not (output / "samples.parquet").is_file(), "the run was complete, so the test shows nothing"
    before = {path.name: path.stat().st_mtime_ns for path in done}
    assert start(folder, prompts, output).wait() == 0
    after = {path.name: path.stat().st_mtime_ns for path in output.glob("parts/part-*.parquet")}
    assert len(after) == len(FORMULAS)
    assert {name: after[name] for name in before} == before, "a finished part was drawn once more"
    table = pd.read_parquet(output / "samples.parquet")
    assert table.prompt_id.tolist() == [str(number) for number in range(1, len(FORMULAS) + 1)]
    pipe = load_pipeline(str(folder), device="cpu")
    asked = read_prompts(prompts)
    list(run_job(pipe, asked, Job(1, rows=1), tmp_path / "alone", model=str(folder)))
    pd.testing.assert_frame_equal(table, pd.read_parquet(merge(tmp_path / "alone", asked)))
