"""Bits per structure: how many bits a model needs to name a crystal.

The sum of ``-log2 p`` over all tokens after ``<s>``, ``</s>`` included. Unlike the loss per token it can be compared
between ways of splitting the same text into tokens. For a model that has learned no formula only what follows the
formula is counted.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from ..sampling import in_float64
from .data import CorpusFacts, Examples, TokenCorpus, make_batch
from .packing import BatchPlan
from .prefixes import PrefixDraw

__all__ = ["bits_per_structure", "unigram_bits_per_structure"]


@torch.inference_mode()
def bits_per_structure(
    model: PreTrainedModel,
    corpus: TokenCorpus,
    batch_tokens: int = 8192,
    *,
    given_fields: bool = False,
    given_formula: bool = False,
) -> NDArray[np.float64]:
    """Bits of each crystal under ``model``, shape (crystals,), in the order of the corpus.

    With ``given_fields`` all prefix fields of the corpus stand in front; their own tokens are not counted. With
    ``given_formula`` those of the formula are not counted, either. The model is put into evaluation mode and back.
    Example: ``bits_per_structure(model, corpus).mean()``.

    Raises:
        Mat2SeqError: ``given_formula`` for a corpus that does not say where its formulas end.
    """
    bits = np.zeros(len(corpus))
    was_training = model.training
    model.eval()
    prefixes = PrefixDraw(corpus.fields, 0.0, 0) if given_fields else None
    examples = Examples(corpus, prefixes, "completion" if given_formula else "all")
    plan = BatchPlan(examples.lengths, batch_tokens=batch_tokens, row_length=max(1, int(examples.lengths.max())))
    for rows in plan.epoch(0):
        batch = make_batch(examples, rows)
        ids = batch["input_ids"].to(model.device)
        labels = batch["labels"][:, 1:].to(model.device)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        bits[[row[0] for row in rows]] = in_float64(losses).sum(dim=1).cpu().numpy() / math.log(2)
    model.train(was_training)
    return bits


def unigram_bits_per_structure(train: CorpusFacts, corpus: TokenCorpus, *, given_formula: bool = False) -> float:
    """Mean bits of the crystals of ``corpus`` when tokens are independent, with the frequencies of ``train`` (+1).

    With ``given_formula`` those of the formula are not counted; the frequencies are those of all tokens.

    Raises:
        Mat2SeqError: ``given_formula`` for a corpus that does not say where its formulas end.
    """
    counts = train.counts.astype(np.float64)
    bits = -np.log2((counts + 1.0) / (counts + 1.0).sum())
    examples = Examples(corpus, None, "completion" if given_formula else "all")
    counted = [bits[ids[given:]].sum() for ids, given in map(examples.example, range(len(corpus)))]
    return float(np.mean(counted))
