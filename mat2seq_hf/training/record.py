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

from ..sequence import SCHEME_VERSION, scheme_fingerprint
from .config import TrainConfig
from .data import CorpusFacts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerState

__all__ = ["matmul_gflops", "plot_curves", "run_record"]

_PACKAGES = ("mat2seq-hf", "torch", "transformers", "accelerate", "numpy", "spglib")


_LABELS = {
    "loss": "training",
    "eval_loss": "validation",
    "eval_bits_per_structure": "alone",
    "eval_bits_given_formula": "formula given",
    "eval_bits_given_fields": "fields given",
    "eval_bits_given_fields_and_formula": "fields and formula given",
    "eval_sample_valid": "valid",
    "eval_sample_match": "match",
}


def matmul_gflops() -> float:
    """Billion float32 operations a second of a square matrix product on the CPU, best of five."""
    size = 1024
    left, right = torch.rand(size, size), torch.rand(size, size)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best / 1e9


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(file: Path, *arguments: str) -> str | None:
    """What git says in the folder of a file; None where it refuses, or is not there."""
    command = ["git", "-C", str(file.parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _git_commit(file: Path = Path(__file__)) -> str | None:
    """The commit of a checkout of this package; None where it is installed, in or beside a repository of others."""
    if _git(file, "ls-files", "--error-unmatch", file.name) is None:
        return None
    return _git(file, "rev-parse", "HEAD")


def _hardware() -> dict[str, Any]:
    hardware: dict[str, Any] = {
        "processor": platform.processor() or platform.machine(),
        "platform": platform.platform(),
    }
    hardware["threads"] = torch.get_num_threads()
    if torch.cuda.is_available():
        hardware["gpu"] = torch.cuda.get_device_name()
    return hardware


def _corpus_facts(facts: CorpusFacts, source: str | None) -> dict[str, Any]:
    return {
        "folder": source,
        "fingerprint": facts.fingerprint,
        "crystals": facts.crystals,
        "tokens": facts.tokens,
        "too_long": facts.too_long,
    }


def _best(config: TrainConfig, state: TrainerState) -> dict[str, Any]:
    """The figure of the best checkpoint, by its name."""
    best: dict[str, Any] = {"best_metric": {"name": config.metric_for_best_model, "value": state.best_metric}}
    if config.metric_for_best_model == "bits_per_structure":
        best["best_bits_per_structure"] = state.best_metric
    return best


def _throughput(model: PreTrainedModel, tokens: float, seconds: float) -> dict[str, float]:
    """Tokens a second of the whole run, evaluation and waiting included; 6 operations a parameter and token."""
    parameters = sum(parameter.numel() for name, parameter in model.named_parameters() if "wpe" not in name)
    rate = tokens / max(seconds, 1e-9)
    throughput = {"tokens_per_second": rate, "gflops": 6.0 * parameters * rate / 1e9}
    if model.device.type == "cpu":
        throughput["matmul_gflops"] = matmul_gflops()
    return throughput


def run_record(
    config: TrainConfig, state: TrainerState, model: PreTrainedModel, train: CorpusFacts, validation: CorpusFacts
) -> dict[str, Any]:
    """Settings, versions, data, hardware and amount of training of a run; JSON-serialisable but for ``default=str``."""
    seconds = max((entry.get("seconds", 0.0) for entry in state.log_history), default=0.0)
    tokens = float(state.epoch or 0.0) * train.tokens
    return {
        "settings": config.to_dict(),  # type: ignore[no-untyped-call]
        "scheme": {"version": SCHEME_VERSION, "fingerprint": scheme_fingerprint(config.symprec)},
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
        **_best(config, state),
        "throughput": _throughput(model, tokens, seconds),
        "log_history": state.log_history,
    }


def _points(history: list[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    found = [(entry["epoch"], entry[name]) for entry in history if name in entry and "epoch" in entry]
    return [x for x, _ in found], [y for _, y in found]


def plot_curves(history: list[dict[str, Any]], unigram: float, path: Path) -> bool:
    """Draw training loss, validation bits and, if there are any, what became of samples; False without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    panels: dict[str, tuple[str, ...]] = {
        "loss (nat per token)": ("loss", "eval_loss"),
        "validation bits per structure": tuple(name for name in _LABELS if name.startswith("eval_bits_")),
        "share of samples": ("eval_sample_valid", "eval_sample_match"),
    }
    drawn = {title: [name for name in names if _points(history, name)[0]] for title, names in panels.items()}
    shown = {title: names for title, names in drawn.items() if names} or {"no step was logged": []}
    figure = Figure(figsize=(4 * len(shown), 3.5), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        for name in names:
            axes.plot(*_points(history, name), label=_LABELS[name])
        axes.set_xlabel("epoch")
        axes.set_title(title)
        if len(names) > 1 or names == ["eval_bits_given_formula"]:
            axes.legend()
        if "bits" in title:
            axes.set_ylim(bottom=0)
            axes.text(0.02, 0.02, f"unigram model: {unigram:.0f}", transform=axes.transAxes)
        if "share" in title:
            axes.set_ylim(0, 1)
    figure.savefig(path, dpi=120)
    return True
