"""What makes two starts parts of one run: data, first weights, and the settings that a checkpoint depends on.

They are written before the first checkpoint. Going on with others would mix two runs, or take the results of one for
those of the other. How long a run is, its learning rates, weight decay and betas, and how often it is looked at may
change.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import SchedulerType

from ..errors import Mat2SeqError
from ..generation.loading import weights_fingerprint
from .config import TrainConfig
from .data import CorpusFacts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["hold_to_identity", "run_identity"]

_FILE = "run_identity.json"
_SETTINGS = (
    *("optimizer", "seed", "batching", "batch_tokens", "row_length", "streaming", "group_crystals"),
    *("prefix_fields", "prefix_dropout", "loss_on", "metric_for_best_model"),
)


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
        **{name: getattr(config, name) for name in _SETTINGS},
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
        _compare(Path(checkpoint).parent / _FILE, identity)
    path = Path(str(config.output_dir)) / _FILE
    if config.process_index == 0 and (checkpoint is None or not path.is_file()):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{_FILE}")
        partial.write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)


def _compare(path: Path, identity: dict[str, Any]) -> None:
    if not path.is_file():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Mat2SeqError(f"{path} is no JSON ({error}): remove it to go on in spite of that") from error
    wanted = json.loads(json.dumps(identity))
    different = [
        f"{name} was {found[name]!r} and is now {wanted[name]!r}"
        for name in wanted
        if name in found and found[name] != wanted[name]
    ]
    if different:
        raise Mat2SeqError(
            f"{path.parent} holds another run: {'; '.join(different)}; go on with the same ones, or give another "
            "--output_dir"
        )
