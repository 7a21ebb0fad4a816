"""The mean of models' weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from mat2seq_hf import build_tokenizer, gpt2_config
from mat2seq_hf.publishing import save_model_folder

SCRIPT = Path(__file__).parent.parent / "scripts" / "average_models.py"


def save(folder: Path, seed: int, n_embd: int = 16, symprec: float = 0.01, fields: tuple[str, ...] = ()) -> Path:
    torch.manual_seed(seed)
    config = gpt2_config("tiny", symprec=symprec, n_embd=n_embd, n_layer=1, n_head=2, n_positions=64)
    config.mat2seq = {**config.mat2seq, "fields": [*fields]}
    return save_model_folder(GPT2LMHeadModel(config), build_tokenizer(symprec), folder, with_code=False)


def average(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_weight_is_the_mean(tmp_path: Path) -> None:
    folders = [save(tmp_path / "0", 0), save(tmp_path / "1", 1, fields=("band_gap",)), save(tmp_path / "2", 2)]
    done = average(*folders, "-o", tmp_path / "mean")
    assert done.returncode == 0, done.stderr
    models = [AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in folders]
    mean = AutoModelForCausalLM.from_pretrained(tmp_path / "mean")
    for name, value in mean.state_dict().items():
        torch.testing.assert_close(value, torch.stack([weights[name] for weights in models]).mean(0))
    assert mean.config.mat2seq["fields"] == ["band_gap"]
    assert (tmp_path / "mean" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_embd": 32}, "another architecture"),
        ({"symprec": 0.1}, "another canonical form"),
        (None, "a mean needs two models or more"),
    ],
)
def test_what_has_no_mean_is_refused(tmp_path: Path, changes: dict[str, float] | None, said: str) -> None:
    folders = [save(tmp_path / "0", 0)]
    if changes is not None:
        folders.append(save(tmp_path / "1", 1, **changes))  # type: ignore[arg-type]
    done = average(*folders, "-o", tmp_path / "mean")
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]
    assert not (tmp_path / "mean").exists()
