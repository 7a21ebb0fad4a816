"""Prepared corpora in memory, and the tensors of a micro-batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from .prefixes import FieldTokens, PrefixDraw, check_fields, field_tokens

__all__ = ["IGNORED", "LOSSES", "Examples", "MicroBatches", "TokenCorpus", "load_corpus", "make_batch"]

IGNORED = -100  # label of a token that has no loss
#: What has a loss: everything after prefix fields, or only what follows the formula.
LOSSES = ("all", "completion")


@dataclass(frozen=True)
class TokenCorpus:
    """Token sequences, each ``<s> ... </s>``.

    Attributes:
        ids: tokens of all crystals in a row, int16.
        offsets: crystal ``i`` is ``ids[offsets[i]:offsets[i + 1]]``; int64, shape (crystals + 1,).
        scheme: fingerprint of the canonical form.
        too_long: crystals that were left out because they have more tokens than the model has positions.
        prompt_lengths: tokens up to the end of each formula, shape (crystals,), where they are known.
        fields: prefix fields, in the order of the vocabulary.
    """

    ids: NDArray[np.int16]
    offsets: NDArray[np.int64]
    scheme: str
    too_long: int = 0
    prompt_lengths: NDArray[np.int64] | None = None
    fields: Mapping[str, FieldTokens] = field(default_factory=dict)

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
        prompts = None if self.prompt_lengths is None else self.prompt_lengths[np.asarray(indices, dtype=np.int64)]
        fields = {name: tokens.select(indices) for name, tokens in self.fields.items()}
        return TokenCorpus(ids, offsets, self.scheme, self.too_long, prompts, fields)


class Examples:
    """What a model is trained on: sequences of a corpus with prefix fields, and how much of each has no loss.

    Args:
        corpus: the crystals.
        prefixes: draws the fields; None: no fields.
        loss_on: one of :data:`LOSSES`.

    Raises:
        Mat2SeqError: unknown ``loss_on``, or a corpus that does not say where its formulas end.
    """

    def __init__(self, corpus: TokenCorpus, prefixes: PrefixDraw | None = None, loss_on: str = "all") -> None:
        if loss_on not in LOSSES:
            raise Mat2SeqError(f"loss_on {loss_on!r} is not one of {', '.join(LOSSES)}")
        if loss_on == "completion" and corpus.prompt_lengths is None:
            raise Mat2SeqError("the corpus has no column prompt_length: prepare it again for loss_on=completion")
        self.corpus = corpus
        self.prefixes = prefixes
        self.loss_on = loss_on
        self.epoch = 0

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Most tokens that each crystal can have, all fields shown."""
        if self.prefixes is None or not self.prefixes.fields:
            return self.corpus.lengths
        fields = np.array([tokens.lengths for tokens in self.prefixes.fields.values()])
        return np.asarray(self.corpus.lengths + fields.sum(axis=0) + 1, dtype=np.int64)

    def example(self, index: int) -> tuple[list[int], int]:
        """Tokens of a crystal in this epoch, and how many of the first ones have no loss."""
        begin, *rest = self.corpus[index].tolist()
        prefix = [] if self.prefixes is None else self.prefixes.ids(index, self.epoch)
        given = 1
        if self.loss_on == "completion":
            assert self.corpus.prompt_lengths is not None
            given = int(self.corpus.prompt_lengths[index])
        return [begin, *prefix, *rest], len(prefix) + given


def load_corpus(folder: str | Path, *, max_length: int, scheme: str, fields: Sequence[str] = ()) -> TokenCorpus:
    """Read the shards that ``mat2seq prepare`` wrote.

    Args:
        folder: with ``part-*.parquet``.
        max_length: crystals with more tokens are left out whole, and counted.
        scheme: fingerprint that the corpus must have.
        fields: prefix fields to read.

    Raises:
        SchemeMismatchError: the corpus was made with another canonical form.
        Mat2SeqError: no shards, no crystals, token ids or fields that the vocabulary does not have, or a property
            that no crystal has.
    """
    paths = shard_paths(folder)
    if not paths:
        raise Mat2SeqError(f"no part-*.parquet in {folder}: write them with `mat2seq prepare`")
    names = check_fields(fields)
    tables = [_shard(path, scheme, ["text", "properties"] if names else []) for path in paths]
    table = pa.concat_tables(tables).combine_chunks()
    column = table.column("input_ids").cast(pa.list_(pa.int16())).combine_chunks()
    ids = column.flatten().to_numpy().astype(np.int16)
    lengths = np.asarray(column.value_lengths(), dtype=np.int64)
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < len(TOKENS):
        raise Mat2SeqError(f"{folder} holds token ids {ids.min()} to {ids.max()}, the vocabulary has {len(TOKENS)}")
    prompts = None
    if "prompt_length" in table.column_names:
        prompts = table.column("prompt_length").to_numpy().astype(np.int64)
    read = {}
    if names:
        texts, properties = (table.column(name).to_pylist() for name in ("text", "properties"))
        read = field_tokens(names, texts, properties, str(folder))
    corpus = TokenCorpus(ids, np.concatenate(([0], np.cumsum(lengths))), scheme, 0, prompts, read)
    fits = np.flatnonzero(Examples(corpus, PrefixDraw(read, 0.0, 0)).lengths <= max_length)
    if not len(fits):
        raise Mat2SeqError(f"{folder} holds no crystal of at most {max_length} tokens ({len(corpus)} in all)")
    if len(fits) == len(corpus):
        return corpus
    return replace(corpus.select(fits), too_long=len(corpus) - len(fits))


def _shard(path: Path, scheme: str, more: list[str]) -> pa.Table:
    schema = pq.read_schema(path)
    found = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}")).get("scheme")
    if found != scheme:
        raise SchemeMismatchError(
            f"{path} was prepared with scheme {found!r}, this run needs {scheme!r}: prepare the corpus again, "
            "or give the symprec it was prepared with"
        )
    wanted = ["input_ids", "prompt_length", *more]
    if missing := [name for name in more if name not in schema.names]:
        raise Mat2SeqError(f"{path} has no column {', '.join(missing)}, which prefix fields need: prepare it again")
    table = pq.read_table(path, columns=[name for name in wanted if name in schema.names])
    return table.replace_schema_metadata(None)


def make_batch(
    source: TokenCorpus | Examples, rows: Sequence[Sequence[int]], row_length: int | None = None
) -> dict[str, torch.Tensor]:
    """Tensors of a micro-batch, each of shape (rows, longest row or ``row_length``), int64.

    ``labels`` are the ids, :data:`IGNORED` at the first token of each crystal, at what has no loss and at padding.
    ``position_ids`` restart at each crystal (and at the padding), by which transformers keeps crystals of a row from
    seeing each other when ``use_cache`` is False; they are left out where each row is one crystal, because a causal
    mask is enough there.
    """
    source = source if isinstance(source, Examples) else Examples(source)
    sequences = [[source.example(index) for index in row] for row in rows]
    width = row_length or max(sum(len(ids) for ids, _ in row) for row in sequences)
    shape = (len(rows), width)
    ids = np.full(shape, TOKEN_IDS[PAD], dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    for number, row in enumerate(sequences):
        start = 0
        for sequence, given in row:
            end = start + len(sequence)
            ids[number, start:end] = sequence
            labels[number, start + given : end] = sequence[given:]
            positions[number, start:end] = np.arange(len(sequence))
            start = end
        positions[number, start:] = np.arange(width - start)
    batch = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}
    if any(len(row) > 1 for row in rows) or row_length:
        batch["position_ids"] = torch.from_numpy(positions)
    return batch


class MicroBatches(Dataset[dict[str, torch.Tensor]]):
    """Micro-batches as a map-style dataset; ``set_epoch`` (called by accelerate) shuffles and draws fields anew."""

    def __init__(self, examples: Examples, plan: BatchPlan, row_length: int | None = None) -> None:
        self.examples = examples
        self.plan = plan
        self.row_length = row_length
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Take the micro-batches of ``epoch``."""
        self._batches = self.plan.epoch(epoch)
        self.examples.epoch = epoch

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return make_batch(self.examples, self._batches[index], self.row_length)
