"""From what the user names to tokens: prepared shards are read, raw crystals are prepared first."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers.trainer_pt_utils import torch_distributed_zero_first

from ..corpora.prepare import prepare
from ..corpora.schema import check_whole, is_prepared, shard_paths
from ..errors import Mat2SeqError
from ..sequence import scheme_fingerprint
from .config import TrainConfig
from .data import CorpusFacts, Examples, MicroBatches, TokenCorpus, load_corpus, load_shards
from .packing import BatchPlan
from .prefixes import PrefixDraw
from .streaming import StreamedBatches, group_shards

__all__ = ["RunData", "load_data"]

logger = logging.getLogger(__name__)

_HELD_OUT = 0.1
_GROUP_PRIME = 1_000_003  # groups of a streamed corpus draw prefix fields of their own


@dataclass(frozen=True)
class RunData:
    """Micro-batches to train on, what they are, and the crystals to validate on."""

    batches: MicroBatches | StreamedBatches
    train: CorpusFacts
    validation: TokenCorpus


def _check_sources(config: TrainConfig) -> None:
    """Refuse what no data can be read from, before any is encoded, which may take hours.

    Raises:
        Mat2SeqError: a source is not there or only half prepared, or a streamed run has nothing to validate on.
    """
    if config.streaming and config.eval_data is None:
        raise Mat2SeqError("--streaming needs --eval_data: crystals are not held out of a streamed corpus")
    for source in filter(None, (config.train_data, config.eval_data)):
        if not Path(source).exists():
            raise Mat2SeqError(
                f"{source} does not exist; --train_data and --eval_data are files or folders of crystals"
            )
        if is_prepared(source):
            check_whole([source])


def _prepared(source: str, split: str, config: TrainConfig) -> Path:
    """The folder of shards that ``source`` is, or that is made of it in the output folder.

    Raises:
        Mat2SeqError: it holds no crystal.
    """
    path = Path(source)
    if shard_paths(path):
        return path
    folder = Path(str(config.output_dir)) / "data" / split
    # the first process of all machines, which share the output folder
    with torch_distributed_zero_first(config.process_index if config.world_size > 1 else -1):
        if config.process_index == 0:
            logger.warning("%s is not prepared: encoding its crystals into %s", source, folder)
            report = prepare([path], folder, symprec=config.symprec, num_proc=os.cpu_count() or 1)
            logger.warning(
                "%d crystals read, %d encoded, %d set aside (see rejected.csv there)",
                *(report.read, report.encoded, report.rejected),
            )
            if not report.encoded:
                raise Mat2SeqError(
                    f"none of the {report.read} entries of {source} is a crystal: {folder / 'rejected.csv'} says why"
                )
    return folder


def _examples(corpus: TokenCorpus, config: TrainConfig, group: int = 0) -> Examples:
    seed = config.seed + _GROUP_PRIME * group
    return Examples(corpus, PrefixDraw(corpus.fields, config.prefix_dropout, seed), config.loss_on)


def _plan(lengths: NDArray[np.int64], group: int, config: TrainConfig, row_length: int) -> BatchPlan:
    return BatchPlan(
        lengths,
        batch_tokens=config.batch_tokens,
        batching=config.batching,
        row_length=row_length,
        seed=config.seed + _GROUP_PRIME * group,
    )


def _read_group(paths: Sequence[Path], group: int, config: TrainConfig, limit: int) -> Examples:
    scheme = scheme_fingerprint(config.symprec)
    corpus = load_shards(paths, max_length=limit, scheme=scheme, fields=config.prefix_fields)
    return _examples(corpus, config, group)


def _held_out(corpus: TokenCorpus) -> tuple[TokenCorpus, TokenCorpus]:
    """The corpus without a random tenth of it, and that tenth; the same for the same corpus.

    Crystals that were too long are counted with the first.
    """
    if len(corpus) < 2:
        raise Mat2SeqError("one crystal cannot be trained and validated on: give more crystals, or --eval_data")
    order = np.random.default_rng(0).permutation(len(corpus))
    count = max(1, round(_HELD_OUT * len(corpus)))
    kept = replace(corpus.select(np.sort(order[count:])), too_long=corpus.too_long)
    return kept, corpus.select(np.sort(order[:count]))


def load_data(config: TrainConfig, limit: int) -> RunData:
    """The data of a run.

    Args:
        config: of the run.
        limit: positions of the model. No row is longer; crystals that do not fit in a row are left out whole, and
            counted.

    Raises:
        SchemeMismatchError: a corpus of another canonical form or vocabulary.
        Mat2SeqError: nothing to train or to validate on, or a folder that is only half prepared.
    """
    assert config.train_data is not None  # parse_config has seen to it
    scheme, fields = scheme_fingerprint(config.symprec), config.prefix_fields
    _check_sources(config)
    limit = min(config.row_length, limit)  # the padding of a row takes positions, too
    folder = _prepared(config.train_data, "train", config)
    read = partial(load_corpus, max_length=limit, scheme=scheme, fields=fields)
    validation = None if config.eval_data is None else read(_prepared(config.eval_data, "val", config))
    row_length = limit if config.batching == "packed" else None
    plan = partial(_plan, config=config, row_length=limit)
    if config.streaming:
        assert validation is not None  # as _check_sources has seen to
        groups = group_shards(shard_paths(folder), config.group_crystals)
        streamed = StreamedBatches(
            groups,
            partial(_read_group, config=config, limit=limit),
            plan,
            seed=config.seed,
            row_length=row_length,
        )
        if not len(streamed):
            raise Mat2SeqError(f"{folder} holds no crystal of at most {limit} tokens")
        return RunData(streamed, streamed.facts, validation)
    corpus = read(folder)
    if validation is None:
        corpus, validation = _held_out(corpus)
    examples = _examples(corpus, config)
    return RunData(MicroBatches(examples, plan(examples.lengths, 0), row_length), corpus.facts, validation)
