"""What makes two starts parts of one run: data, first weights, and the settings that a checkpoint depends on.

They are written before the first checkpoint. Going on with others would mix two runs, or take the results of one for
those of the other. How long a run is, its learning rates, weight decay and betas, and how often it is looked at may
change. What decides by which figure, and of which crystals, the best checkpoint is chosen may not, while one is chosen:
figures of different crystals do not compare.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import SchedulerType

from ..errors import Mat2SeqError
from ..generation.loading import weights_fingerprint
from .checkpoints import IDENTITY, KEEPS_BEST
from .config import TrainConfig
from .data import CorpusFacts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["hold_to_identity", "keep_up_identity", "run_identity"]

_SETTINGS = (
    *("optimizer", "seed", "batching", "batch_tokens", "row_length", "streaming", "group_crystals"),
    *("prefix_fields", "prefix_dropout", "loss_on", "metric_for_best_model"),
)
#: Beside the metric, what the best checkpoint depends on, and what more where the metric is a share of samples.
_FOR_BEST = ("eval_crystals", "greater_is_better")
_FOR_SAMPLES = ("sample_formulas", "sample_temperature", "sample_top_k")


def run_identity(
    config: TrainConfig, model: PreTrainedModel, train: CorpusFacts, validation: CorpusFacts
) -> dict[str, Any]:
    """The identity of a run that begins with ``model``; JSON-serialisable."""
    clock = config.time_budget_minutes is not None
    shapes = weights_fingerprint(model, values=False)
    return {
        "train_data": f"{train.crystals} crystals, fingerprint {train.fingerprint}",
        "eval_data": f"{validation.crystals} crystals, fingerprint {validation.fingerprint}",
        "model": f"{model.config.model_type} of {model.num_parameters()} parameters, {shapes}",
        "init_from": config.init_from and f"weights {weights_fingerprint(model)}",
        "schedule": "time budget" if clock else SchedulerType(config.lr_scheduler_type).value,
        "micro-batches a step": config.gradient_accumulation_steps * config.world_size,
        **{name: getattr(config, name) for name in (*_SETTINGS, *_FOR_BEST, *_FOR_SAMPLES, KEEPS_BEST)},
    }


def hold_to_identity(config: TrainConfig, identity: dict[str, Any], checkpoint: str | None) -> None:
    """Refuse to go on from a checkpoint of another run, and leave the identity in the output folder.

    A checkpoint beside which there is none, of an earlier version, is taken.

    Raises:
        Mat2SeqError: with all that is different.
    """
    if config.process_index:  # with FSDP only the first process may have the weights yet
        identity = {name: value for name, value in identity.items() if name != "init_from"}
    if checkpoint is not None:
        _compare(Path(checkpoint).parent / IDENTITY, identity, _free(config))
    path = Path(str(config.output_dir)) / IDENTITY
    if config.process_index == 0 and (checkpoint is None or not path.is_file()):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, identity)


def keep_up_identity(config: TrainConfig, identity: dict[str, Any]) -> None:
    """Note in the output folder whether the run, which goes on, will end with its best checkpoint.

    That may change, and :func:`~.checkpoints.weights_folder` reads it there. Entries that an earlier version did not
    write are added.
    """
    path = Path(str(config.output_dir)) / IDENTITY
    if config.process_index == 0:
        found = _read(path)
        kept = {**identity, **found, KEEPS_BEST: config.load_best_model_at_end}
        if kept != found:
            _write(path, kept)


def _free(config: TrainConfig) -> set[str]:
    """Entries that need not be those of the beginning."""
    if not config.load_best_model_at_end:
        return {KEEPS_BEST, *_FOR_BEST, *_FOR_SAMPLES}
    return {KEEPS_BEST} if "sample_" in str(config.metric_for_best_model) else {KEEPS_BEST, *_FOR_SAMPLES}


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Mat2SeqError(f"{path} is no JSON ({error}): remove it to go on in spite of that") from error
    return found


def _write(path: Path, identity: dict[str, Any]) -> None:
    partial = path.with_name(f".{IDENTITY}")
    partial.write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def _compare(path: Path, identity: dict[str, Any], free: set[str]) -> None:
    if not path.is_file():
        return
    found = _read(path)
    wanted = json.loads(json.dumps(identity))
    different = [
        f"{name} was {found[name]!r} and is now {wanted[name]!r}"
        for name in wanted
        if name in found and name not in free and found[name] != wanted[name]
    ]
    if different:
        raise Mat2SeqError(
            f"{path.parent} holds another run: {'; '.join(different)}; go on with the same ones, or give another "
            "--output_dir"
        )
