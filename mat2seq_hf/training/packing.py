"""Which crystals share a micro-batch, so that few tokens are padding and no crystal is cut.

A plan depends on the lengths alone; an epoch shuffles which crystal of a length takes which place. So every epoch has
the same number of micro-batches of the same shapes, which exact resuming and compiled kernels both need.

- ``bucketed``: rows of one crystal, crystals of (nearly) equal length in a micro-batch. Needs no mask, and attention
  costs the crystal's length squared: fastest on a CPU.
- ``packed``: rows of fixed length filled with several crystals each. Fixed shapes: for GPUs.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import Mat2SeqError

__all__ = ["BATCHINGS", "BatchPlan", "bucket_lengths", "pack_lengths"]

BATCHINGS = ("bucketed", "packed")


def pack_lengths(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Pack items into rows by best-fit decreasing: each item goes where it leaves the least room.

    Args:
        lengths: of the items, descending; none above ``row_length``.
        row_length: room in a row.

    Returns:
        the rows, each a list of positions in ``lengths``.

    Example:
        >>> pack_lengths([6, 5, 4, 3], 10)
        [[0, 2], [1, 3]]
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (room left, row), ascending
    for position, length in enumerate(lengths):
        where = bisect_left(room, (length, -1))
        if where == len(room):
            rows.append([position])
            insort(room, (row_length - length, len(rows) - 1))
        else:
            left, row = room.pop(where)
            rows[row].append(position)
            insort(room, (left - length, row))
    return rows


def bucket_lengths(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Cut a descending list of lengths into runs whose padded size is at most ``batch_tokens`` (at least one item).

    Example:
        >>> bucket_lengths([6, 5, 4, 3], 12)
        [[0, 1], [2, 3]]
    """
    runs: list[list[int]] = []
    for position, _ in enumerate(lengths):
        if runs and lengths[runs[-1][0]] * (len(runs[-1]) + 1) <= batch_tokens:
            runs[-1].append(position)
        else:
            runs.append([position])
    return runs


class BatchPlan:
    """Micro-batches of an epoch, each a list of rows, each row a list of crystals.

    Args:
        lengths: tokens of each crystal, begin and end included.
        batch_tokens: tokens of a micro-batch, padding included.
        batching: ``"bucketed"`` or ``"packed"``.
        row_length: tokens of a packed row.
        seed: of the shuffling.

    Raises:
        Mat2SeqError: unknown ``batching``, or a crystal is longer than a row.

    Example:
        >>> plan = BatchPlan([3, 5, 4], batch_tokens=8, batching="packed", row_length=8)
        >>> sorted(len(row) for batch in plan.epoch(0) for row in batch)
        [1, 2]
    """

    def __init__(
        self, lengths: ArrayLike, *, batch_tokens: int, batching: str = "bucketed", row_length: int = 512, seed: int = 0
    ) -> None:
        if batching not in BATCHINGS:
            raise Mat2SeqError(f"batching {batching!r} is not one of {', '.join(BATCHINGS)}")
        self.lengths: NDArray[np.int64] = np.asarray(lengths, dtype=np.int64)
        if len(self.lengths) and int(self.lengths.max()) > row_length:
            raise Mat2SeqError(f"a crystal of {self.lengths.max()} tokens does not fit in a row of {row_length}")
        self.seed = seed
        self.batching = batching
        descending = np.sort(self.lengths)[::-1].tolist()
        if batching == "packed":
            self._rows = pack_lengths(descending, row_length)
            self._per_batch = max(1, min(batch_tokens // row_length, len(self._rows)))
        else:
            self._rows = bucket_lengths(descending, batch_tokens)
            self._per_batch = 1

    @property
    def rows_per_batch(self) -> int:
        """Rows of a packed micro-batch; the last one of an epoch may have fewer."""
        return self._per_batch

    def __len__(self) -> int:
        return math.ceil(len(self._rows) / self._per_batch)

    def epoch(self, number: int) -> list[list[list[int]]]:
        """Micro-batches of epoch ``number``: a function of the lengths, the seed and the number alone."""
        generator = np.random.default_rng([self.seed, number])
        order = np.lexsort((generator.random(len(self.lengths)), -self.lengths))
        rows = [order[self._rows[row]].tolist() for row in generator.permutation(len(self._rows))]
        if self.batching == "bucketed":
            return [[[crystal] for crystal in run] for run in rows]
        return [rows[start : start + self._per_batch] for start in range(0, len(rows), self._per_batch)]
