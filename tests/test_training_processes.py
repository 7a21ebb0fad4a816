"""Laws of the optimizer step: several processes, accumulated gradients and compiled kernels change nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from pymatgen.core import Structure
from runs import SCRIPT, small_corpus, small_model, small_run

from mat2seq_hf.training.config import parse_config
from mat2seq_hf.training.data import IGNORED, EvenBatches, Examples, MicroBatches
from mat2seq_hf.training.metrics import bits_per_structure
from mat2seq_hf.training.packing import BatchPlan
from mat2seq_hf.training.trainer import train

LAUNCH = SCRIPT.parent / "launch"


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Arguments of a run of 210 steps whose epochs have an odd number of micro-batches."""
    steps = {"max_steps": 210, "logging_steps": 1, "eval_steps": 210, "save_steps": 210}
    return small_run(tmp_path, 49, 0.0, batching="packed", learning_rate=0.002, **steps)


def _losses(history: list[dict[str, float]]) -> np.ndarray:
    return np.array([entry["loss"] for entry in history if "loss" in entry])


def test_two_processes_have_the_losses_of_one(arguments: list[str], tmp_path: Path) -> None:
    one = train(parse_config([*arguments, f"--output_dir={tmp_path / 'one'}"]))
    assert one["steps"] == 210
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(SCRIPT)]
    two = [*arguments, "--gradient_accumulation_steps=1", f"--output_dir={tmp_path / 'two'}"]
    done = subprocess.run([*command, *two], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "two" / "run_record.json").read_text())
    losses = _losses(one["log_history"]), _losses(record["log_history"])
    assert len(losses[0]) == len(losses[1]) == 210
    assert losses[0][-20:].mean() < 0.9 * losses[0][:20].mean()
    difference = np.abs(losses[0] - losses[1]).max()
    print(f"largest difference of the losses of 210 steps: {difference:.1e}")
    assert difference < 1e-5
    assert record["results"]["bits_per_structure"] == pytest.approx(one["results"]["bits_per_structure"], rel=1e-5)


@pytest.mark.slow
def test_the_first_processes_of_two_machines_prepare_crystals_once(
    tmp_path: Path, crystals: dict[str, Structure]
) -> None:
    (tmp_path / "cifs").mkdir()
    for name in list(crystals)[:3]:
        crystals[name].to(filename=str(tmp_path / "cifs" / f"{name.replace(' ', '_')}.cif"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = (
        "import sys\nfrom mat2seq_hf.training.config import parse_config\n"
        "from mat2seq_hf.training.sources import load_data\n"
        "print(load_data(parse_config(sys.argv[1:]), 512).train.fingerprint)"
    )
    options = ["--use_cpu", "--report_to=none", f"--train_data={tmp_path / 'cifs'}", f"--output_dir={tmp_path / 'run'}"]
    common = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, *options],
            env={**os.environ, **common, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    (first, errors), (second, more_errors) = (process.communicate(timeout=300) for process in started)
    assert first == second != "", errors + more_errors
    assert "is not prepared" in errors
    assert "is not prepared" not in more_errors


def test_accumulated_gradients_have_the_losses_of_one_large_batch(arguments: list[str], tmp_path: Path) -> None:
    common = [*arguments, "--max_steps=20", "--eval_steps=20", "--save_steps=20"]
    large = [*common, "--batch_tokens=128", "--gradient_accumulation_steps=1", f"--output_dir={tmp_path / 'large'}"]
    histories = [train(parse_config(a))["log_history"] for a in ([*common, f"--output_dir={tmp_path / 'run'}"], large)]
    assert _losses(histories[0]) == pytest.approx(_losses(histories[1]), abs=1e-5)


def test_micro_batches_are_filled_up_with_empty_ones_and_every_crystal_counts_once() -> None:
    corpus = small_corpus(49)
    plan = BatchPlan(corpus.lengths, batch_tokens=128, batching="packed", row_length=64)
    batches = MicroBatches(Examples(corpus), plan, 64)
    even = EvenBatches(batches, 4)
    assert len(even) % 4 == 0
    assert len(even) > len(batches)
    whole = [even[index] for index in range(len(even))]
    assert {tuple(batch["input_ids"].shape) for batch in whole} == {(2, 64)}
    labels = torch.cat([batch["labels"].flatten() for batch in whole])
    counted = np.bincount(labels[labels != IGNORED].numpy(), minlength=len(corpus.facts.counts))
    assert (counted == corpus.facts.counts).all()


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_compiled_model_keeps_packed_crystals_apart(model_type: str) -> None:
    corpus, model = small_corpus(40), small_model(model_type)
    alone = bits_per_structure(model, corpus, batch_tokens=1) * np.log(2)
    plan = BatchPlan(corpus.lengths, batch_tokens=256, batching="packed", row_length=64)
    batches = MicroBatches(Examples(corpus), plan, 64)
    compiled = torch.compile(model, backend="eager")  # traced as for any backend, run as it is
    for index, rows in enumerate(plan.epoch(0)):
        batch = batches[index]
        loss = compiled(**batch, use_cache=False).loss.item() * int((batch["labels"] != IGNORED).sum())
        assert loss == pytest.approx(alone[[crystal for row in rows for crystal in row]].sum(), rel=1e-5)


def _of_launcher(*arguments: str | Path) -> dict[str, str]:
    """Environment that `accelerate launch` hands to the processes it starts."""
    args = launch_command_parser().parse_args([*map(str, arguments), str(SCRIPT)])
    args, *_ = _validate_launch_command(args)
    return {key: value for key, value in prepare_multi_gpu_env(args).items() if os.environ.get(key) != value}


@pytest.mark.parametrize("name", sorted(path.name for path in LAUNCH.glob("*.yaml")))
def test_a_launch_file_is_one_that_accelerate_reads(name: str) -> None:
    config = load_config_from_file(str(LAUNCH / name))
    assert str(config.distributed_type).endswith("FSDP" if name == "fsdp.yaml" else "MULTI_GPU")
    assert config.num_processes % config.num_machines == 0


def test_the_launcher_understands_every_option_of_the_launch_files() -> None:
    environment = _of_launcher("--config_file", LAUNCH / "fsdp.yaml")
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    assert environment["FSDP_VERSION"] == "2"
    assert environment["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"
    assert "FSDP_TRANSFORMER_CLS_TO_WRAP" not in environment  # the model says which of its layers
    assert environment["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"
