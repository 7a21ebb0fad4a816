"""The Trainer for crystal sequences, and the run around it."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainerState, set_seed

from ..errors import Mat2SeqError
from ..reader import positions_of
from ..sampling_settings import SamplingSettings
from ..tokenizer import build_tokenizer, without_code
from .checkpoints import (
    best_checkpoint,
    can_resume,
    guarded_saving,
    holds_a_run,
    last_complete_checkpoint,
    later_results,
    read_state,
    remove_incomplete_checkpoints,
)
from .config import TrainConfig
from .data import EvenBatches, MicroBatches, TokenCorpus
from .identity import hold_to_identity, keep_up_identity, run_identity
from .metrics import bits_per_structure, unigram_bits_per_structure
from .models import build_model, keep_largest_cell
from .monitor import SampleMonitor
from .record import plot_curves, run_record
from .schedule import StopAtBudget, TimeBudgetSchedule, group_settings, take_settings, used_seconds
from .sources import RunData, load_data
from .streaming import StreamedBatches

__all__ = ["CrystalTrainer", "train"]

logger = logging.getLogger(__name__)


def _only(items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return items[0]


class CrystalTrainer(Trainer):
    """A Trainer whose data are micro-batches of whole crystals and whose measure is bits per structure.

    Args:
        model: a causal language model.
        config: of the run.
        batches: micro-batches to train on.
        validation: crystals to evaluate on during the run.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: TrainConfig,
        batches: MicroBatches | StreamedBatches,
        validation: TokenCorpus,
    ) -> None:
        self.config = config
        self._started = time.monotonic()
        self._earlier_seconds: float | None = None
        self.validation = validation
        self.batches = EvenBatches(batches, config.world_size)
        super().__init__(model=model, args=config, train_dataset=self.batches, eval_dataset=[], data_collator=_only)
        # the labels are counted over a whole optimizer step: accumulating gradients changes no weight of any token
        self.model_accepts_loss_kwargs = True
        self.add_callback(StopAtBudget())
        self.monitor: SampleMonitor | None = None
        if config.sample_formulas:
            settings = SamplingSettings(config.sample_temperature, config.sample_top_k)
            self.monitor = SampleMonitor(
                validation, config.sample_formulas, settings, config.symprec, given_fields=config.fields_always_given
            )

    @property
    def planned_steps(self) -> int:
        """Optimizer steps of the whole run."""
        at_most: int = self.config.max_steps
        if at_most > 0:
            return at_most
        an_epoch: int = math.ceil(len(self.batches) / self.config.world_size / self.config.gradient_accumulation_steps)
        epochs: float = self.config.num_train_epochs
        planned: int = math.ceil(epochs * an_epoch)
        return planned

    @property
    def plain_model(self) -> PreTrainedModel:
        """The model without what compiles it or spreads it over processes."""
        return cast("PreTrainedModel", self.accelerator.unwrap_model(self.model, keep_torch_compile=False))

    def get_train_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """Micro-batches in the plan's order; accelerate deals them out to the processes and sets the epoch."""
        loader = DataLoader(
            self.batches,
            batch_size=1,
            shuffle=False,
            collate_fn=_only,
            num_workers=self.config.dataloader_num_workers,
            pin_memory=torch.cuda.is_available() and not self.config.use_cpu,
        )
        prepared: DataLoader[dict[str, torch.Tensor]] = self.accelerator.prepare(loader)
        return prepared

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Mean loss over the labels of the optimizer step; without a cache, or packed crystals would see each other."""
        return super().compute_loss(model, {**inputs, "use_cache": False}, return_outputs, num_items_in_batch)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW, or Muon with AdamW, by ``config.optimizer``."""
        if self.config.optimizer == "muon" and self.optimizer is None:
            from .muon import Muon, parameter_groups

            if self.is_fsdp_enabled:
                raise Mat2SeqError("muon needs whole matrices, which FSDP cuts: train with --optimizer adamw")
            self.optimizer = Muon(parameter_groups(self.plain_model, self.config))
            return self.optimizer
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """By the clock if there is a time budget, by steps otherwise."""
        if self.config.time_budget_minutes is not None and self.lr_scheduler is None:
            chosen = optimizer or self.optimizer
            schedule = TimeBudgetSchedule(
                cast("torch.optim.Optimizer", getattr(chosen, "optimizer", chosen)),
                60.0 * self.config.time_budget_minutes,
                self.config.warmup_steps,
            )
            self.lr_scheduler = cast("LambdaLR", schedule)  # the Trainer only steps it and saves it
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        optimizer = cast("torch.optim.Optimizer", self.optimizer)
        schedule = cast("LRScheduler", getattr(self.lr_scheduler, "scheduler", self.lr_scheduler))
        asked = group_settings(optimizer)
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            take_settings(optimizer, schedule, asked)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Bits and loss per token of what the model is trained for, on validation crystals, and the fate of samples."""
        model = self.plain_model
        found = _bits(model, self.config, self.validation)
        tokens = _counted_tokens(self.config, self.validation)
        metrics = {"eval_loss": float(found[self.config.own_bits_name].sum() * np.log(2) / tokens)}
        metrics |= {f"eval_{name}": float(bits.mean()) for name, bits in found.items()}
        if self.monitor is not None:
            metrics |= self.monitor.check(model)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        with guarded_saving(str(self.config.output_dir)):
            super()._save_checkpoint(model, trial)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        tied = set(self.plain_model._tied_weights_keys or ())  # not stored: the embeddings are the output layer
        load_result.missing_keys[:] = [key for key in load_result.missing_keys if key not in tied]
        super()._issue_warnings_after_load(load_result)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the seconds of training to each entry, over all restarts (what was lost to a kill is not counted)."""
        if self._earlier_seconds is None:
            self._earlier_seconds = max((entry.get("seconds", 0.0) for entry in self.state.log_history), default=0.0)
        seconds = self._earlier_seconds + time.monotonic() - self._started
        super().log({**logs, "seconds": round(seconds, 1)}, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: walking the modules at each micro-batch costs more than the number is worth."""
        return 0


def _bits(model: PreTrainedModel, config: TrainConfig, corpus: TokenCorpus) -> dict[str, NDArray[np.float64]]:
    """Bits of each crystal, without prefix fields and, if there are any, given these, by their names."""
    return {
        name: bits_per_structure(model, corpus, given_fields=place > 0, given_formula=config.given_formula)
        for place, name in enumerate(config.bits_names)
    }


def _counted_tokens(config: TrainConfig, corpus: TokenCorpus) -> int:
    """Tokens whose bits are counted."""
    given = len(corpus)  # the first of each
    if config.given_formula:
        assert corpus.prompt_lengths is not None  # its unigram bits have been counted
        given = int(corpus.prompt_lengths.sum())
    return len(corpus.ids) - given


def _set_threads(config: TrainConfig) -> None:
    # accelerate launch sets OMP_NUM_THREADS to 1 on a CPU unless it is told otherwise
    torch.set_num_threads(config.cpu_threads or max(1, (os.cpu_count() or 1) // max(1, config.world_size)))


def _checkpoint_to_resume(config: TrainConfig) -> str | None:
    """The checkpoint to go on from.

    Raises:
        Mat2SeqError: the one that was asked for is incomplete or none, or the folder holds what a run made after it;
            the folder holds a run that would be overwritten, or it is no folder.
    """
    wanted, folder = config.resume_from_checkpoint, Path(str(config.output_dir))
    if folder.exists() and not folder.is_dir():
        raise Mat2SeqError(f"--output_dir {folder} is a file")
    last = last_complete_checkpoint(folder)
    if wanted not in (None, "auto"):
        if holds_a_run(wanted) and not can_resume(wanted) and not Path(wanted).name.startswith("checkpoint-"):
            raise Mat2SeqError(
                f"{wanted} is a run, not a checkpoint: --output_dir {wanted} --resume_from_checkpoint auto goes on "
                f"with it, --init_from {wanted} and another --output_dir begin a new run with its weights"
            )
        if (state := read_state(wanted)) is None:
            raise Mat2SeqError(f"{wanted} is no complete checkpoint; --resume_from_checkpoint auto takes the last one")
        _refuse_later_results(folder, str(wanted), int(state["global_step"]))
        return str(wanted)
    if last is None and holds_a_run(folder):
        raise Mat2SeqError(
            f"{folder} holds a run already, without a checkpoint to go on from: give another --output_dir "
            f"(and --init_from {folder} to begin with its weights), or remove it"
        )
    if wanted is None and last is not None:
        raise Mat2SeqError(
            f"{folder} holds a run already ({last}): go on with --resume_from_checkpoint auto, or give another "
            "--output_dir"
        )
    return last


def _refuse_later_results(folder: Path, wanted: str, step: int) -> None:
    # whatever looks for the last checkpoint, or for the end of the run, would take those of the abandoned branch
    if later := later_results(folder, step):
        raise Mat2SeqError(
            f"{folder} holds what a run made after step {step}: {', '.join(path.name for path in later)}; it would be "
            f"taken for the work of the run that goes on from {wanted}: remove it or move it away, or give another "
            "--output_dir"
        )


def _is_finished(trainer: CrystalTrainer, checkpoint: str) -> bool:
    """Whether the run that left this checkpoint has nothing more to do."""
    budget = trainer.config.time_budget_minutes
    if budget is not None and used_seconds(checkpoint) >= 60.0 * budget:
        return True
    return int((read_state(checkpoint) or {})["global_step"]) >= trainer.planned_steps


def _mean(name: str, bits: NDArray[np.float64]) -> dict[str, float | None]:
    error = float(bits.std(ddof=1) / np.sqrt(len(bits))) if len(bits) > 1 else None  # of one crystal it is not known
    return {name: float(bits.mean()), f"{name}_standard_error": error}


def _finish(trainer: CrystalTrainer, data: RunData, unigram: float) -> dict[str, Any]:
    """Write weights, record and curves, and return the record."""
    config, folder = trainer.config, Path(str(trainer.config.output_dir))
    with guarded_saving(folder):
        trainer.save_model()
        trainer.save_state()
        if trainer.is_world_process_zero():
            without_code(build_tokenizer(config.symprec)).save_pretrained(folder)
    model = trainer.plain_model
    # by all processes, each of which may hold a part of the model
    found = _bits(model, config, data.validation)
    record = run_record(config, trainer.state, model, data.train, data.validation.facts)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    record["results"] = {
        **{key: value for name, bits in found.items() for key, value in _mean(name, bits).items()},
        f"unigram_{config.bits_names[0]}": unigram,
        "last_train_loss": losses[-1] if losses else None,
        "best_checkpoint_by": config.metric_for_best_model if config.load_best_model_at_end else None,
    }
    if trainer.is_world_process_zero():
        plot_curves(trainer.state.log_history, unigram, folder / "curves.png")
        (folder / "run_record.json").write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")
    return record if trainer.is_world_process_zero() else {}


def _adopt(trainer: CrystalTrainer, checkpoint: str) -> None:
    """Take over the state of a finished run, and the weights that it would have ended with."""
    trainer.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    source = best_checkpoint(checkpoint) if trainer.config.load_best_model_at_end else Path(checkpoint)
    weights = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).state_dict()
    trainer.plain_model.load_state_dict(weights)


def train(config: TrainConfig) -> dict[str, Any]:
    """Train a model, evaluate it on all validation crystals, and leave weights, record and curves in ``output_dir``.

    A finished run that is started again with ``resume_from_checkpoint="auto"`` trains no step and changes no file; only
    a record that is missing is written.

    Returns:
        the run record, as written to ``run_record.json``; empty on all processes but the first.

    Raises:
        SchemeMismatchError: data or initial weights of another canonical form or vocabulary.
        Mat2SeqError: empty data, a folder that holds another run, one with other data, first weights or settings, a
            checkpoint that cannot be written.
    """
    _set_threads(config)
    set_seed(config.seed)
    checkpoint = _checkpoint_to_resume(config)
    model = build_model(config)
    data = load_data(config, positions_of(model.config))
    keep_largest_cell(model, data.train.max_atoms)
    unigram = unigram_bits_per_structure(data.train, data.validation, given_formula=config.given_formula)
    logger.warning(
        "%d crystals, %d tokens to train on (%d too long), %d to validate on (%d too long); unigram %.1f bits",
        *(data.train.crystals, data.train.tokens, data.train.too_long),
        *(len(data.validation), data.validation.too_long, unigram),
    )
    identity = run_identity(config, model, data.train, data.validation.facts)
    hold_to_identity(config, identity, checkpoint)
    if config.time_budget_minutes is not None:
        config.num_train_epochs = 1_000_000  # the clock ends the run
    chosen = np.random.default_rng(0).permutation(len(data.validation))[: config.eval_crystals]
    trainer = CrystalTrainer(model, config, data.batches, data.validation.select(np.sort(chosen)))
    if checkpoint is not None and _is_finished(trainer, checkpoint):
        return _finished_before(trainer, data, unigram, checkpoint, identity)
    if trainer.is_world_process_zero():
        remove_incomplete_checkpoints(str(config.output_dir))
    if checkpoint is not None and not can_resume(checkpoint):
        raise Mat2SeqError(
            f"{checkpoint} was saved without the optimizer (--save_only_model), and no run can go on from it: begin a "
            f"new one with --init_from {checkpoint} and another --output_dir"
        )
    keep_up_identity(config, identity)
    trainer.train(resume_from_checkpoint=checkpoint)
    return _finish(trainer, data, unigram)


def _finished_before(
    trainer: CrystalTrainer, data: RunData, unigram: float, checkpoint: str, identity: dict[str, Any]
) -> dict[str, Any]:
    """The record of a run that has nothing more to do."""
    path = Path(str(trainer.config.output_dir)) / "run_record.json"
    logger.warning(
        "the run is finished (%s): nothing is trained; more epochs or another --output_dir go on", checkpoint
    )
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        stored = {}
    if stored.get("steps") == int((read_state(checkpoint) or {})["global_step"]):
        return stored
    keep_up_identity(trainer.config, identity)
    _adopt(trainer, checkpoint)  # it was killed after its last checkpoint
    return _finish(trainer, data, unigram)
