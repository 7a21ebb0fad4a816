"""Prepared corpora in memory, and the tensors of a micro-batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ..corpora.schema import METADATA_KEY, check_whole, is_prepared, needed_shards, read_shard
from ..errors import Mat2SeqError, SchemeMismatchError
from ..vocabulary import BOS, EOS, PAD, TOKEN_IDS, TOKENS, tokenize
from .packing import BatchPlan
from .prefixes import FieldTokens, PrefixDraw, check_fields, check_values, field_tokens

__all__ = [
    "IGNORED",
    "LOSSES",
    "CorpusFacts",
    "EvenBatches",
    "Examples",
    "MicroBatches",
    "TokenCorpus",
    "load_corpus",
    "load_shards",
    "make_batch",
]

IGNORED = -100  # label of a token that has no loss
#: What has a loss: all after the prefix fields, only what follows the formula, or everything, the fields too.
LOSSES = ("all", "completion", "everything")

_IS_GROUP = np.array([token.startswith("[") for token in TOKENS])
#: Digits of each token that is a piece of a count, else 0, and the count.
_DIGITS = np.array([len(token) - 2 if token.startswith("##") else 0 for token in TOKENS])
_COUNTS = np.array([int(token[2:]) if token.startswith("##") else 0 for token in TOKENS])


@dataclass(frozen=True)
class CorpusFacts:
    """What a run record says of a corpus.

    Attributes:
        fingerprint: hash of all tokens and lengths, and of those of the prefix fields: equal for equal data.
        crystals, tokens: how many.
        too_long: crystals that were left out because they have more tokens than a row or the model holds.
        counts: how often each token is predicted, shape (vocabulary,).
        max_atoms: atoms of the largest primitive cell; 0 where no sequence has a formula.
    """

    fingerprint: str
    crystals: int
    tokens: int
    too_long: int
    counts: NDArray[np.int64]
    max_atoms: int = 0

    def __add__(self, other: CorpusFacts) -> CorpusFacts:
        both = f"{self.fingerprint} {other.fingerprint}"
        return CorpusFacts(
            hashlib.sha256(both.encode()).hexdigest()[:16],
            self.crystals + other.crystals,
            self.tokens + other.tokens,
            self.too_long + other.too_long,
            self.counts + other.counts,
            max(self.max_atoms, other.max_atoms),
        )


@dataclass(frozen=True)
class TokenCorpus:
    """Token sequences, each ``<s> ... </s>``.

    Attributes:
        ids: tokens of all crystals in a row, int16.
        offsets: crystal ``i`` is ``ids[offsets[i]:offsets[i + 1]]``; int64, shape (crystals + 1,).
        scheme: fingerprint of the canonical form.
        too_long: crystals that were left out because they have more tokens than a row or the model holds.
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
    def facts(self) -> CorpusFacts:
        """Size, counts and fingerprint."""
        digest = hashlib.sha256(self.ids.tobytes())
        digest.update(self.offsets.tobytes())
        for name, tokens in self.fields.items():  # a corrected property is another corpus
            for part in (name.encode(), tokens.ids.tobytes(), tokens.offsets.tobytes()):
                digest.update(part)
        counts = np.bincount(self.ids, minlength=len(TOKENS))
        counts -= np.bincount(self.ids[self.offsets[:-1]], minlength=len(TOKENS))  # nothing predicts <s>
        largest = int(self.atoms.max(initial=0))
        return CorpusFacts(digest.hexdigest()[:16], len(self), len(self.ids), self.too_long, counts, largest)

    @property
    def atoms(self) -> NDArray[np.int64]:
        """Atoms in the primitive cell of each crystal, by its formula, shape (crystals,)."""
        if not len(self):
            return np.zeros(0, dtype=np.int64)
        groups = np.concatenate(([0], np.cumsum(_IS_GROUP[self.ids])))
        before = groups[:-1] == np.repeat(groups[self.offsets[:-1]], self.lengths)  # the group follows the formula
        digits = np.where(before, _DIGITS[self.ids], 0)
        # a count above 99 is two pieces, ##12 ##0: the first one counts ten times
        tens = (digits > 0) & np.append(digits[1:] > 0, False)
        values = np.where(digits > 0, _COUNTS[self.ids], 0) * np.where(tens, 10, 1)
        return np.asarray(np.add.reduceat(values, self.offsets[:-1]), dtype=np.int64)

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> TokenCorpus:
        """The crystals ``indices``, in that order. What was left out is counted where all of them are."""
        parts = [self[int(index)] for index in indices]
        offsets = np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64)
        ids = np.concatenate(parts) if parts else self.ids[:0]
        prompts = None if self.prompt_lengths is None else self.prompt_lengths[np.asarray(indices, dtype=np.int64)]
        fields = {name: tokens.select(indices) for name, tokens in self.fields.items()}
        return TokenCorpus(ids, offsets, self.scheme, 0, prompts, fields)


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
        if self.loss_on == "everything":
            return [begin, *prefix, *rest], 1
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
        Mat2SeqError: no shards, or not all of them yet; no crystals, a row without token ids, token ids or fields that
            the vocabulary does not have, or a property that no crystal has.
    """
    paths = needed_shards(folder)
    if is_prepared(folder):  # else the first shard tells what is wrong
        check_whole([folder])
    corpus = load_shards(paths, max_length=max_length, scheme=scheme, fields=fields)
    if not len(corpus):
        raise Mat2SeqError(f"{folder} holds no crystal of at most {max_length} tokens ({corpus.too_long} longer ones)")
    unknown = {name: tokens.unknown for name, tokens in corpus.fields.items()}
    check_values(unknown, len(corpus) + corpus.too_long, str(folder))
    return corpus


def load_shards(paths: Sequence[Path], *, max_length: int, scheme: str, fields: Sequence[str] = ()) -> TokenCorpus:
    """Like :func:`load_corpus`, for some shards; the result may be empty, and no crystal need have a property."""
    names = check_fields(fields)
    tables = [_shard(path, scheme, ["text", "properties"] if names else []) for path in paths]
    table = pa.concat_tables(tables).combine_chunks()
    where = str(paths[0].parent)
    _check_ids(table.column("input_ids"), where)
    column = table.column("input_ids").cast(pa.list_(pa.int16())).combine_chunks()
    ids = column.flatten().to_numpy().astype(np.int16)
    lengths = np.asarray(column.value_lengths(), dtype=np.int64)
    prompts = None
    if "prompt_length" in table.column_names:
        prompts = table.column("prompt_length").to_numpy().astype(np.int64)
    read = {}
    if names and len(lengths):
        texts, properties = (table.column(name).to_pylist() for name in ("text", "properties"))
        read = field_tokens(names, texts, properties)
    corpus = TokenCorpus(ids, np.concatenate(([0], np.cumsum(lengths))), scheme, 0, prompts, read)
    fits = np.flatnonzero(Examples(corpus, PrefixDraw(read, 0.0, 0)).lengths <= max_length)
    if len(fits) == len(corpus):
        return corpus
    return replace(corpus.select(fits), too_long=len(corpus) - len(fits))


def _check_ids(column: pa.ChunkedArray, where: str) -> None:
    ids = pc.list_flatten(column)
    if column.null_count or ids.null_count:
        raise Mat2SeqError(f"{where} holds a row without token ids, or with a missing one: prepare the corpus again")
    if len(ids):
        least, most = pc.min_max(ids).as_py().values()
        if not 0 <= least <= most < len(TOKENS):
            raise Mat2SeqError(
                f"{where} holds token ids {least} to {most}, the vocabulary has {len(TOKENS)}: prepare the corpus again"
            )


def _check_tokenizer(path: Path, columns: Sequence[str]) -> None:
    """Compare the first crystal's ids with what this package's tokenizer makes of its text."""
    if "text" not in columns:
        return
    for batch in pq.ParquetFile(path).iter_batches(batch_size=1, columns=["text", "input_ids"]):
        (row,) = batch.to_pylist()
        if None in row.values():  # said where all ids are read
            return
        if row["input_ids"] != [TOKEN_IDS[BOS], *tokenize(row["text"]), TOKEN_IDS[EOS]]:
            raise SchemeMismatchError(
                f"{path} was tokenized with another vocabulary: {row['text']!r} has other ids here; prepare it again"
            )
        return


def _shard(path: Path, scheme: str, more: list[str]) -> pa.Table:
    try:
        schema = pq.read_schema(path)
        metadata = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))
        missing = [name for name in ("input_ids", *more) if name not in schema.names]
    except (OSError, ValueError) as error:  # pyarrow's errors are both
        raise Mat2SeqError(f"{path} cannot be read ({error}): start the same `mat2seq prepare` again") from error
    if missing:
        raise Mat2SeqError(f"{path} has no column {', '.join(missing)}: prepare the corpus again")
    if metadata.get("scheme") != scheme:
        raise SchemeMismatchError(
            f"{path} was prepared with scheme {metadata.get('scheme')!r}, this run needs {scheme!r}: prepare the "
            "corpus again, or give the symprec it was prepared with"
        )
    _check_tokenizer(path, schema.names)
    wanted = ["input_ids", "prompt_length", *more]
    table = read_shard(path, [name for name in wanted if name in schema.names])
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
    """Micro-batches as a map-style dataset; ``set_epoch`` (called by accelerate) shuffles and draws fields anew.

    Packed ones all have the same shape: the last of an epoch is filled up with rows of padding.
    """

    def __init__(self, examples: Examples, plan: BatchPlan, row_length: int | None = None, epoch: int = 0) -> None:
        self.examples = examples
        self.plan = plan
        self.row_length = row_length
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Take the micro-batches of ``epoch``."""
        self._batches = self.plan.epoch(epoch)
        self.examples.epoch = epoch

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rows = self._batches[index]
        if self.row_length is not None:
            rows = [*rows, *([[]] * (self.plan.rows_per_batch - len(rows)))]
        return make_batch(self.examples, rows, self.row_length)


class EvenBatches(Dataset[dict[str, torch.Tensor]]):
    """Micro-batches, filled up with empty ones (no token has a loss) until ``processes`` divides their number.

    Accelerate would fill up with micro-batches of the epoch's beginning, and those crystals would count twice.
    """

    def __init__(self, batches: Dataset[dict[str, torch.Tensor]], processes: int = 1) -> None:
        self.batches: Any = batches
        self.processes = processes

    def set_epoch(self, epoch: int) -> None:
        """Take the micro-batches of ``epoch``."""
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.batches) // self.processes) * self.processes

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if index < len(self.batches):
            batch: dict[str, torch.Tensor] = self.batches[index]
            return batch
        empty = {name: tensor.clone() for name, tensor in self.batches[len(self.batches) - 1].items()}
        empty["input_ids"].fill_(TOKEN_IDS[PAD])
        empty["labels"].fill_(IGNORED)
        return empty
