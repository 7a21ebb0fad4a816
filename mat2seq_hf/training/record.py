"""What a run leaves behind beside its weights: a record and a picture of its curves."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..sequence import SCHEME_VERSION
from .config import TrainConfig
from .data import TokenCorpus

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerState

__all__ = ["matmul_gflops", "plot_curves", "run_record"]

_PACKAGES = ("mat2seq-hf", "torch", "transformers", "accelerate", "numpy", "spglib")


def matmul_gflops(size: int = 2048, repeats: int = 5) -> float:
    """Billion float32 operations a second of a square matrix product on the CPU, best of ``repeats``."""
    left, right = torch.rand(size, size), torch.rand(size, size)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best / 1e9


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def _hardware() -> dict[str, Any]:
    hardware: dict[str, Any] = {
        "processor": platform.processor() or platform.machine(),
        "platform": platform.platform(),
    }
    hardware["threads"] = torch.get_num_threads()
    if torch.cuda.is_available():
        hardware["gpu"] = torch.cuda.get_device_name()
    return hardware


def _corpus_facts(corpus: TokenCorpus, folder: str | None) -> dict[str, Any]:
    return {
        "folder": folder,
        "fingerprint": corpus.fingerprint,
        "crystals": len(corpus),
        "tokens": len(corpus.ids),
        "too_long": corpus.too_long,
    }


def _throughput(model: PreTrainedModel, tokens: float, seconds: float) -> dict[str, float]:
    """Tokens a second of the whole run, evaluation and waiting included; 6 operations a parameter and token."""
    parameters = sum(parameter.numel() for name, parameter in model.named_parameters() if "wpe" not in name)
    rate = tokens / max(seconds, 1e-9)
    throughput = {"tokens_per_second": rate, "gflops": 6.0 * parameters * rate / 1e9}
    if model.device.type == "cpu":
        throughput["matmul_gflops"] = matmul_gflops()
    return throughput


def run_record(
    config: TrainConfig, state: TrainerState, model: PreTrainedModel, train: TokenCorpus, validation: TokenCorpus
) -> dict[str, Any]:
    """Settings, versions, data, hardware and amount of training of a run; JSON-serialisable but for ``default=str``."""
    seconds = max((entry.get("seconds", 0.0) for entry in state.log_history), default=0.0)
    tokens = float(state.epoch or 0.0) * len(train.ids)
    return {
        "settings": config.to_dict(),  # type: ignore[no-untyped-call]
        "scheme": {"version": SCHEME_VERSION, "fingerprint": train.scheme},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "git_commit": _git_commit(),
        "hardware": _hardware(),
        "data": {
            "train": _corpus_facts(train, config.train_data),
            "validation": _corpus_facts(validation, config.eval_data),
        },
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": state.global_step,
        "epochs": state.epoch,
        "tokens_seen": int(tokens),
        "training_seconds": seconds,
        "best_checkpoint_step": state.best_global_step,
        "best_bits_per_structure": state.best_metric,
        "throughput": _throughput(model, tokens, seconds),
        "log_history": state.log_history,
    }


def plot_curves(history: list[dict[str, Any]], unigram: float, path: Path) -> bool:
    """Draw training loss and validation bits per structure; False where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    loss = [(entry["epoch"], entry["loss"]) for entry in history if "loss" in entry]
    bits = [
        (entry["epoch"], entry["eval_bits_per_structure"]) for entry in history if "eval_bits_per_structure" in entry
    ]
    for axes, points, title in (
        (left, loss, "training loss (nat per token)"),
        (right, bits, "validation bits per structure"),
    ):
        axes.plot([x for x, _ in points], [y for _, y in points])
        axes.set_xlabel("epoch")
        axes.set_title(title)
    right.set_ylim(bottom=0)
    right.text(0.02, 0.02, f"unigram model: {unigram:.0f}", transform=right.transAxes)
    figure.savefig(path, dpi=120)
    return True
