"""Prepared corpora in memory, and the tensors of a micro-batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ..corpora.schema import METADATA_KEY, shard_paths
from ..errors import Mat2SeqError, SchemeMismatchError
from ..vocabulary import PAD, TOKEN_IDS, TOKENS
from .packing import BatchPlan

__all__ = ["IGNORED", "MicroBatches", "TokenCorpus", "load_corpus", "make_batch"]

IGNORED = -100  # label of a token that has no loss


@dataclass(frozen=True)
class TokenCorpus:
    """Token sequences, each ``<s> ... </s>``.

    Attributes:
        ids: tokens of all crystals in a row, int16.
        offsets: crystal ``i`` is ``ids[offsets[i]:offsets[i + 1]]``; int64, shape (crystals + 1,).
        scheme: fingerprint of the canonical form.
        too_long: crystals that were left out because they have more tokens than the model has positions.
    """

    ids: NDArray[np.int16]
    offsets: NDArray[np.int64]
    scheme: str
    too_long: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[np.int16]:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each crystal."""
        return np.diff(self.offsets)

    @property
    def fingerprint(self) -> str:
        """Hash of all tokens and lengths: equal for equal data."""
        digest = hashlib.sha256(self.ids.tobytes())
        digest.update(self.offsets.tobytes())
        return digest.hexdigest()[:16]

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> TokenCorpus:
        """The crystals ``indices``, in that order."""
        parts = [self[int(index)] for index in indices]
        offsets = np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64)
        ids = np.concatenate(parts) if parts else self.ids[:0]
        return TokenCorpus(ids, offsets, self.scheme, self.too_long)


def load_corpus(folder: str | Path, *, max_length: int, scheme: str) -> TokenCorpus:
    """Read the shards that ``mat2seq prepare`` wrote.

    Args:
        folder: with ``part-*.parquet``.
        max_length: crystals with more tokens are left out whole, and counted.
        scheme: fingerprint that the corpus must have.

    Raises:
        SchemeMismatchError: the corpus was made with another canonical form.
        Mat2SeqError: no shards, no crystals, or token ids that the vocabulary does not have.
    """
    paths = shard_paths(folder)
    if not paths:
        raise Mat2SeqError(f"no part-*.parquet in {folder}: write them with `mat2seq prepare`")
    pieces = []
    for path in paths:
        table = pq.read_table(path, columns=["input_ids"])
        found = json.loads((table.schema.metadata or {}).get(METADATA_KEY, b"{}")).get("scheme")
        if found != scheme:
            raise SchemeMismatchError(
                f"{path} was prepared with scheme {found!r}, this run needs {scheme!r}: prepare the corpus again, "
                "or give the symprec it was prepared with"
            )
        pieces.append(table.column("input_ids"))
    column = pa.chunked_array([chunk for piece in pieces for chunk in piece.chunks], type=pa.list_(pa.int16()))
    ids = column.combine_chunks().flatten().to_numpy().astype(np.int16)
    lengths = np.asarray(column.combine_chunks().value_lengths(), dtype=np.int64)
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < len(TOKENS):
        raise Mat2SeqError(f"{folder} holds token ids {ids.min()} to {ids.max()}, the vocabulary has {len(TOKENS)}")
    corpus = TokenCorpus(ids, np.concatenate(([0], np.cumsum(lengths))), scheme)
    fits = np.flatnonzero(lengths <= max_length)
    if not len(fits):
        raise Mat2SeqError(f"{folder} holds no crystal of at most {max_length} tokens ({len(corpus)} in all)")
    if len(fits) == len(corpus):
        return corpus
    chosen = corpus.select(fits)
    return TokenCorpus(chosen.ids, chosen.offsets, scheme, len(corpus) - len(fits))


def make_batch(
    corpus: TokenCorpus, rows: Sequence[Sequence[int]], row_length: int | None = None
) -> dict[str, torch.Tensor]:
    """Tensors of a micro-batch, each of shape (rows, longest row or ``row_length``), int64.

    ``labels`` are the ids, :data:`IGNORED` at the first token of each crystal and at padding. ``position_ids`` restart
    at each crystal (and at the padding), by which transformers keeps crystals of a row from seeing each other when
    ``use_cache`` is False; they are left out where each row is one crystal, because a causal mask is enough there.
    """
    sequences = [[corpus[index] for index in row] for row in rows]
    width = row_length or max(sum(map(len, row)) for row in sequences)
    shape = (len(rows), width)
    ids = np.full(shape, TOKEN_IDS[PAD], dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    for number, row in enumerate(sequences):
        start = 0
        for sequence in row:
            end = start + len(sequence)
            ids[number, start:end] = sequence
            labels[number, start + 1 : end] = sequence[1:]
            positions[number, start:end] = np.arange(len(sequence))
            start = end
        positions[number, start:] = np.arange(width - start)
    batch = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}
    if any(len(row) > 1 for row in rows) or row_length:
        batch["position_ids"] = torch.from_numpy(positions)
    return batch


class MicroBatches(Dataset[dict[str, torch.Tensor]]):
    """Micro-batches of a corpus as a map-style dataset; ``set_epoch`` (called by accelerate) shuffles them anew."""

    def __init__(self, corpus: TokenCorpus, plan: BatchPlan, row_length: int | None = None) -> None:
        self.corpus = corpus
        self.plan = plan
        self.row_length = row_length
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Take the micro-batches of ``epoch``."""
        self._batches = self.plan.epoch(epoch)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return make_batch(self.corpus, self._batches[index], self.row_length)
