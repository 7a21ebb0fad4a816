"""Training on more crystals than fit in memory.

The shards of a corpus are put into groups of neighbours. A group is in memory while its micro-batches are trained on;
an epoch takes the groups in random order and shuffles the crystals inside each. The order is a function of lengths,
seed and epoch alone, so that a run resumes exactly, from any process, without reading what it skips.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from .data import CorpusFacts, Examples, MicroBatches
from .packing import BatchPlan
from .prefixes import check_values

__all__ = ["StreamedBatches", "group_shards"]

_IN_MEMORY = 2  # groups: processes of one run are a few micro-batches apart


def group_shards(paths: Sequence[Path], crystals: int) -> list[list[Path]]:
    """Neighbouring shards in groups of at most ``crystals`` rows (at least one shard each).

    Example:
        >>> group_shards(shard_paths("prepared/mp_20/train"), 200_000)  # doctest: +SKIP
    """
    groups: list[list[Path]] = []
    rows = 0
    for path in paths:
        count = pq.read_metadata(path).num_rows
        if groups and rows + count <= crystals:
            groups[-1].append(path)
            rows += count
        else:
            groups.append([path])
            rows = count
    return groups


class StreamedBatches(Dataset[dict[str, torch.Tensor]]):
    """Micro-batches of a corpus that is read group by group; see the module.

    Args:
        groups: shards that are in memory together.
        read: reads the shards of group ``i``.
        plan: makes the plan of the micro-batches of group ``i`` from the lengths of its crystals.
        seed: of the order of the groups.
        row_length: tokens of a packed row; None for buckets.

    Every group is read once at the start, which finds bad shards, and properties that no crystal has, before the first
    step.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Path]],
        read: Callable[[Sequence[Path], int], Examples],
        plan: Callable[[NDArray[np.int64], int], BatchPlan],
        *,
        seed: int = 0,
        row_length: int | None = None,
    ) -> None:
        self.seed = seed
        self.row_length = row_length
        self.plans: list[BatchPlan] = []
        self._read = read
        self._groups = [list(group) for group in groups]
        self.facts = self._scan(plan)
        self.set_epoch(0)

    def _scan(self, plan: Callable[[NDArray[np.int64], int], BatchPlan]) -> CorpusFacts:
        """Lengths, counts and fingerprint of the whole corpus, one group in memory at a time."""
        facts: CorpusFacts | None = None
        unknown: Counter[str] = Counter()
        for number, group in enumerate(self._groups):
            examples = self._read(group, number)
            self.plans.append(plan(examples.lengths, number))
            here = examples.corpus.facts
            facts = here if facts is None else facts + here
            unknown.update({name: tokens.unknown for name, tokens in examples.corpus.fields.items()})
        assert facts is not None  # a corpus has shards
        check_values(unknown, facts.crystals + facts.too_long, str(self._groups[0][0].parent))
        if len(self._groups) == 1:
            return facts
        digest = hashlib.sha256(facts.fingerprint.encode()).hexdigest()[:16]
        return replace(facts, fingerprint=digest)

    def set_epoch(self, epoch: int) -> None:
        """Take the micro-batches of ``epoch``."""
        self.epoch = epoch
        self._order = np.random.default_rng([self.seed, epoch, 1]).permutation(len(self._groups))
        lengths = [len(self.plans[group]) for group in self._order]
        self._starts = np.concatenate(([0], np.cumsum(lengths)))
        self._open: dict[int, MicroBatches] = {}

    def _batches(self, group: int) -> MicroBatches:
        if group not in self._open:
            for old in list(self._open)[: 1 - _IN_MEMORY]:
                del self._open[old]
            examples = self._read(self._groups[group], group)
            self._open[group] = MicroBatches(examples, self.plans[group], self.row_length, self.epoch)
        return self._open[group]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        place = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._batches(int(self._order[place]))[index - int(self._starts[place])]
