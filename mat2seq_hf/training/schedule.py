"""Learning rates: by the clock, for runs that must end at a given time on a shared machine, and of runs that go on."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["StopAtBudget", "TimeBudgetSchedule", "group_settings", "take_settings", "used_seconds"]

logger = logging.getLogger(__name__)

#: What a group of parameters is asked to be trained with, beside the rate of the moment.
_ASKED = ("initial_lr", "weight_decay", "betas", "eps")
_FLOOR = 0.02  # share of the peak at which the cosine ends


class TimeBudgetSchedule(LRScheduler):
    """Warm-up, then a cosine, over the share of ``budget`` seconds that training has used.

    The used time is part of the state, so a run that is killed and resumed goes on where it was; time between the two
    does not count, and the budget may be given anew. Nor does the first step after each start count: a model is
    compiled in it, which would skip the warm-up. With several processes the clock of the first one counts.
    """

    def __init__(self, optimizer: Optimizer, budget: float, warmup: float = 0.02) -> None:
        self.budget = budget
        self.warmup = warmup
        self.used = 0.0
        self._mark: float | None = None
        super().__init__(optimizer)
        self._mark = None  # torch's constructor calls step()

    @property
    def progress(self) -> float:
        """Share of the budget that is used, 0 to 1."""
        return min(1.0, self.used / self.budget)

    def factor(self) -> float:
        """Share of the peak learning rate at the present progress."""
        if self.progress < self.warmup:
            return max(0.01, self.progress / self.warmup)
        phase = (self.progress - self.warmup) / (1.0 - self.warmup)
        return _FLOOR + (1.0 - _FLOOR) * 0.5 * (1.0 + math.cos(math.pi * phase))

    def get_lr(self) -> list[float | torch.Tensor]:
        """Learning rate of each parameter group."""
        return [rate * self.factor() for rate in self.base_lrs]

    def step(self, epoch: int | None = None) -> None:
        """Count the time since the last step and set the learning rates."""
        now = time.monotonic()
        self.used += 0.0 if self._mark is None else now - self._mark
        self._mark = now
        if torch.distributed.is_initialized():
            used = [self.used]
            torch.distributed.broadcast_object_list(used, src=0)
            self.used = used[0]
        super().step(epoch)

    def state_dict(self) -> dict[str, Any]:
        """State without the clock's reading, the budget and the warm-up, which are the running process's own."""
        state: dict[str, Any] = super().state_dict()
        return {key: value for key, value in state.items() if key not in ("_mark", "budget", "warmup")}


def group_settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Peak learning rate, weight decay, betas and epsilon of each group of parameters."""
    return [{name: group[name] for name in _ASKED if name in group} for group in optimizer.param_groups]


def take_settings(optimizer: Optimizer, schedule: LRScheduler, asked: Sequence[dict[str, Any]]) -> None:
    """Train on with these settings, at the place of the schedule where it is.

    The states of a checkpoint bring back those it was trained with. Where nothing is different nothing changes, bit by
    bit.

    Example:
        >>> asked = group_settings(optimizer)  # doctest: +SKIP
        >>> optimizer.load_state_dict(stored)  # doctest: +SKIP
        >>> take_settings(optimizer, schedule, asked)  # doctest: +SKIP
    """
    for group, settings in zip(optimizer.param_groups, asked, strict=True):
        group.update(settings)
    if not isinstance(schedule, LambdaLR | TimeBudgetSchedule):
        logger.warning("%s goes on with the learning rates of the checkpoint", type(schedule).__name__)
        return
    schedule.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
    if isinstance(schedule, LambdaLR):
        factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
        rates = [rate * factor for rate, factor in zip(schedule.base_lrs, factors, strict=True)]
    else:
        rates = schedule.get_lr()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates


def used_seconds(checkpoint: str | Path) -> float:
    """Seconds of its budget that the run of a checkpoint had used; 0 where it had none."""
    path = Path(checkpoint) / "scheduler.pt"
    state = torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else {}
    return float(state.get("used", 0.0))


class StopAtBudget(TrainerCallback):
    """Evaluate, save and stop when the budget is used up."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Called by the Trainer after each optimizer step."""
        schedule = kwargs.get("lr_scheduler")
        schedule = getattr(schedule, "scheduler", schedule)
        if isinstance(schedule, TimeBudgetSchedule) and schedule.progress >= 1.0:
            control.should_evaluate = control.should_save = control.should_training_stop = True
