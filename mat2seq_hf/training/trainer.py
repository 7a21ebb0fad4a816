"""The Trainer for crystal sequences, and the run around it."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForCausalLM, GPT2LMHeadModel, PreTrainedModel, Trainer, set_seed
from transformers.trainer_utils import SaveStrategy

from ..errors import Mat2SeqError, SchemeMismatchError
from ..presets import gpt2_config
from ..sequence import scheme_fingerprint
from .config import TrainConfig
from .data import Examples, MicroBatches, TokenCorpus, load_corpus
from .metrics import bits_per_structure, unigram_bits_per_structure
from .packing import BatchPlan
from .prefixes import PrefixDraw, check_fields
from .record import plot_curves, run_record
from .schedule import StopAtBudget, TimeBudgetSchedule

__all__ = ["CrystalTrainer", "last_complete_checkpoint", "train"]

logger = logging.getLogger(__name__)


def _only(items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return items[0]


class CrystalTrainer(Trainer):
    """A Trainer whose data are micro-batches of whole crystals and whose measure is bits per structure.

    Args:
        model: a causal language model.
        config: of the run.
        train: crystals to train on.
        validation: crystals to evaluate on during the run.
    """

    def __init__(
        self, model: PreTrainedModel, config: TrainConfig, train: TokenCorpus, validation: TokenCorpus
    ) -> None:
        self.config = config
        self._started = time.monotonic()
        self._earlier_seconds: float | None = None
        self.validation = validation
        packed = config.batching == "packed"
        examples = Examples(train, PrefixDraw(train.fields, config.prefix_dropout, config.seed), config.loss_on)
        plan = BatchPlan(
            examples.lengths,
            batch_tokens=config.batch_tokens,
            batching=config.batching,
            row_length=config.row_length,
            seed=config.seed,
        )
        self.batches = MicroBatches(examples, plan, config.row_length if packed else None)
        super().__init__(model=model, args=config, train_dataset=self.batches, eval_dataset=[], data_collator=_only)
        # the labels are counted over a whole optimizer step: accumulating gradients changes no weight of any token
        self.model_accepts_loss_kwargs = True
        self.add_callback(StopAtBudget())

    def get_train_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """Micro-batches in the plan's order; accelerate deals them out to the processes and sets the epoch."""
        loader = DataLoader(self.batches, batch_size=1, shuffle=False, collate_fn=_only)
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

            self.optimizer = Muon(parameter_groups(cast("torch.nn.Module", self.model), self.config))
            return self.optimizer
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """By the clock if there is a time budget, by steps otherwise."""
        if self.config.time_budget_minutes is not None and self.lr_scheduler is None:
            chosen = optimizer or self.optimizer
            schedule = TimeBudgetSchedule(
                cast("torch.optim.Optimizer", getattr(chosen, "optimizer", chosen)),
                60.0 * self.config.time_budget_minutes,
                self.config.warmup_steps if self.config.warmup_steps < 1 else 0.02,
            )
            self.lr_scheduler = cast("LambdaLR", schedule)  # the Trainer only steps it and saves it
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Bits per structure and loss per token on the validation crystals."""
        model = self.accelerator.unwrap_model(self.model)
        bits = bits_per_structure(model, self.validation)
        tokens = len(self.validation.ids) - len(self.validation)
        metrics = {
            "eval_bits_per_structure": float(bits.mean()),
            "eval_loss": float(bits.sum() * np.log(2) / tokens),
        }
        if self.validation.fields:
            given = bits_per_structure(model, self.validation, given_fields=True)
            metrics["eval_bits_given_fields"] = float(given.mean())
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the seconds of training to each entry, over all restarts (what was lost to a kill is not counted)."""
        if self._earlier_seconds is None:
            self._earlier_seconds = max((entry.get("seconds", 0.0) for entry in self.state.log_history), default=0.0)
        seconds = self._earlier_seconds + time.monotonic() - self._started
        super().log({**logs, "seconds": round(seconds, 1)}, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: walking the modules at each micro-batch costs more than the number is worth."""
        return 0


def last_complete_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint that was written to its end, or None.

    ``trainer_state.json`` is the last file of a checkpoint; one that is missing or cut short marks a run that was
    killed while saving.
    """
    found: list[tuple[int, Path]] = []
    for path in Path(folder).glob("checkpoint-*"):
        try:
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            logger.warning("%s is incomplete and is passed over", path)
            continue
        found.append((int(state["global_step"]), path))
    return str(max(found)[1]) if found else None


def _build_model(config: TrainConfig) -> PreTrainedModel:
    scheme = scheme_fingerprint(config.symprec)
    fields = list(check_fields(config.prefix_fields))
    if config.init_from is None:
        fresh = gpt2_config(config.model_size, dropout=config.dropout, symprec=config.symprec)
        fresh.mat2seq = {**fresh.mat2seq, "fields": fields}
        return GPT2LMHeadModel(fresh)
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout)
    initial = AutoConfig.from_pretrained(config.init_from)
    found = dict(getattr(initial, "mat2seq", None) or {})
    if found.get("scheme") != scheme:
        raise SchemeMismatchError(
            f"model {config.init_from} was trained with scheme {found.get('scheme')!r}, this run is {scheme!r}"
        )
    initial.mat2seq = {**found, "fields": fields}
    initial.update({name: value for name, value in dropout.items() if hasattr(initial, name)})
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(config.init_from, config=initial, dtype=torch.float32)
    return model


def _set_threads(config: TrainConfig) -> None:
    # accelerate launch sets OMP_NUM_THREADS to 1 on a CPU unless it is told otherwise
    torch.set_num_threads(config.cpu_threads or max(1, (os.cpu_count() or 1) // max(1, config.world_size)))


def _checkpoint_to_resume(config: TrainConfig) -> str | None:
    if config.resume_from_checkpoint == "auto":
        return last_complete_checkpoint(str(config.output_dir))
    return config.resume_from_checkpoint


def train(config: TrainConfig) -> dict[str, Any]:
    """Train a model, evaluate it on all validation crystals, and leave weights, record and curves in ``output_dir``.

    Returns:
        the run record, as written to ``run_record.json``.

    Raises:
        SchemeMismatchError: data or initial weights of another canonical form.
        Mat2SeqError: empty data.
    """
    _set_threads(config)
    set_seed(config.seed)
    model = _build_model(config)
    limit = min(config.row_length, int(model.config.max_position_embeddings))
    if config.train_data is None or config.eval_data is None:
        raise Mat2SeqError("train_data and eval_data are needed: folders written by `mat2seq prepare`")
    scheme = scheme_fingerprint(config.symprec)
    fields = config.prefix_fields
    training = load_corpus(config.train_data, max_length=limit, scheme=scheme, fields=fields)
    validation = load_corpus(config.eval_data, max_length=limit, scheme=scheme, fields=fields)
    chosen = np.random.default_rng(0).permutation(len(validation))[: config.eval_crystals]
    unigram = unigram_bits_per_structure(training, validation)
    logger.warning(
        "%d crystals, %d tokens to train on (%d too long), %d to validate on (%d too long); unigram %.1f bits",
        *(len(training), len(training.ids), training.too_long, len(validation), validation.too_long, unigram),
    )
    if config.time_budget_minutes is not None:
        config.num_train_epochs = 1_000_000  # the clock ends the run
    if config.save_strategy == SaveStrategy.NO:
        config.load_best_model_at_end = False
    trainer = CrystalTrainer(model, config, training, validation.select(np.sort(chosen)))
    result = trainer.train(resume_from_checkpoint=_checkpoint_to_resume(config))
    trainer.save_model()
    trainer.save_state()
    if not trainer.is_world_process_zero():
        return {}
    model = trainer.accelerator.unwrap_model(trainer.model)
    bits = bits_per_structure(model, validation)
    record = run_record(config, trainer.state, model, training, validation)
    record["results"] = {
        "bits_per_structure": float(bits.mean()),
        "bits_per_structure_standard_error": float(bits.std() / np.sqrt(len(bits))),
        "unigram_bits_per_structure": unigram,
        "train_loss": result.training_loss,
    }
    folder = Path(str(config.output_dir))
    (folder / "run_record.json").write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")
    plot_curves(trainer.state.log_history, unigram, folder / "curves.png")
    return record
