"""Drawing samples under the grammar, faster than ``model.generate`` does it.

The loop differs from ``generate`` in four ways. Rows that have ended leave the batch. Forced tokens are appended
without asking the model, and several of them go through it in one call where that pays. Log-probabilities are summed up
on the way, so nothing is computed twice. And each row has random numbers of its own, so that a sample depends on the
seed, the number of its prompt, its own number and the settings only, not on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from .automaton import Rows
from .constraints import MaskTable
from .errors import PromptError
from .grammar import Grammar
from .reader import Reader, context_length
from .sampling_settings import SamplingSettings
from .vocabulary import BOS, END_OF_FIELDS, FIELDS, PAD, TOKEN_IDS
from .wishes import Prompt

__all__ = ["Drawn", "draw_samples", "in_float64", "row_keys"]

Integers = NDArray[np.int64]

_BOS, _PAD, _END_OF_FIELDS = (TOKEN_IDS[token] for token in (BOS, PAD, END_OF_FIELDS))
_FIELDS = [TOKEN_IDS[f"{name}="] for name in FIELDS]
_FEW_ROWS = 8  # up to so many rows a call of the model costs little more for several tokens than for one
_WIDTH = 16  # most forced tokens in one call then


@dataclass(frozen=True)
class Drawn:
    """One sample.

    Attributes:
        ids: token ids from ``<s>`` on, up to ``</s>`` if it is finished.
        given: how many of them are the prompt.
        finished: whether the end was reached before the length limit.
        log_prob: natural logarithm of the probability of what follows the prompt at temperature 1, renormalised at each
            token over what the grammar allows.
        log_prob_raw: the same as the model gives it.
    """

    ids: list[int]
    given: int
    finished: bool
    log_prob: float
    log_prob_raw: float


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of 64-bit integers whose bits look random (the finaliser of splitmix64; Steele et al. 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def row_keys(seed: int, prompts: Sequence[int], samples: Sequence[int]) -> NDArray[np.uint64]:
    """Key of each row's random numbers, from the seed, the number of its prompt and the number of the sample.

    Example:
        >>> len(set(row_keys(0, [0, 0, 1], [0, 1, 0]).tolist()))
        3
    """
    keys = np.full(len(prompts), index(seed) % 2**64, dtype=np.uint64)  # one of numpy would overflow
    with np.errstate(over="ignore"):
        for numbers in (prompts, samples):
            keys = _mix(keys) ^ np.array([number % 2**64 for number in numbers], dtype=np.uint64)
        return _mix(keys)


def _uniform(keys: NDArray[np.uint64], counters: Integers) -> NDArray[np.float64]:
    """One number in [0, 1) for each key and counter."""
    with np.errstate(over="ignore"):
        bits = _mix(keys ^ _mix(counters.astype(np.uint64)))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def in_float64(values: torch.Tensor) -> torch.Tensor:
    """The same values in float64; on the CPU where their device has no such type (GPUs of Apple)."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def _choose(
    logits: torch.Tensor, biases: torch.Tensor, settings: SamplingSettings, uniform: NDArray[np.float64]
) -> torch.Tensor:
    """A legal token for each row, shape (rows,)."""
    legal = (logits + biases) / settings.temperature
    width = legal.shape[-1]
    count = min(settings.top_k or width, width)
    if count < width or settings.top_p < 1.0:
        values, tokens = legal.topk(count, dim=-1)
    else:
        values, tokens = legal, None
    shares = in_float64(values).softmax(-1)
    if settings.top_p < 1.0:
        shares = shares * (shares.cumsum(-1) - shares < settings.top_p)
    sums = shares.cumsum(-1)
    target = torch.from_numpy(uniform).to(sums.device)[:, None] * sums[:, -1:]
    # the first token whose sum exceeds the target; its own share is then above zero
    places = torch.searchsorted(sums, target, right=True).clamp_(max=sums.shape[-1] - 1).to(legal.device)
    return (places if tokens is None else tokens.gather(1, places))[:, 0]


class _Unguided:
    """The rows as they would be without prefix fields, for guidance (Ho and Salimans, arXiv 2207.12598).

    What the fields change in the logits of a token is taken ``guidance_scale`` times. Rows without fields, and tokens
    of the fields themselves, are drawn as without guidance.
    """

    def __init__(self, model: PreTrainedModel, fielded: NDArray[np.bool_]) -> None:
        self.fielded = fielded  # rows that have fields
        self.reader = Reader(model, len(fielded))
        self.last: Any = None  # logits after what was read of each row

    def step(self, logits: torch.Tensor, ids: Integers, length: Integers, most: int, scale: float) -> torch.Tensor:
        """Read what the model has read of the rows, but for the fields; it is never behind, having less to read.

        Returns:
            guided logits, shape (rows, vocabulary).
        """
        ends = ids == _END_OF_FIELDS
        unended = self.fielded & ~ends.any(1)  # their fields are being drawn
        start = np.where(self.fielded, ends.argmax(1), 0)
        columns = np.minimum(start[:, None] + np.arange(ids.shape[1]), ids.shape[1] - 1)
        without = np.take_along_axis(ids, columns, axis=1)
        without[:, 0] = _BOS
        known = np.where(unended, 1, length - start)
        new = known > self.reader.fed
        if new.any():
            read = self.reader.read(without, known, most)[:, -1]
            kept = torch.from_numpy(new).to(read.device)[:, None]
            self.last = read if self.last is None else torch.where(kept, read, self.last)
        alone = torch.from_numpy(unended | ~self.fielded).to(logits.device)[:, None]
        return torch.where(alone, logits, torch.lerp(self.last, logits, scale))

    def keep(self, rows: Integers) -> None:
        """Keep these rows."""
        self.fielded = self.fielded[rows]
        self.reader.keep(rows)
        self.last = self.last[torch.from_numpy(rows).to(self.last.device)]


class _Batch:
    """Rows that are sampled together; those that have ended leave. All arrays have one entry or row for each row."""

    def __init__(
        self, model: PreTrainedModel, rows: Rows, keys: NDArray[np.uint64], settings: SamplingSettings
    ) -> None:
        self.rows, self.keys, self.settings = rows, keys, settings
        context = context_length(model.config)
        count = len(rows)
        self.number = np.arange(count)
        self.limit = np.full(count, context)
        self.ids = np.full((count, context), _PAD, dtype=np.int64)
        self.ids[:, 0] = _BOS
        self.length = np.ones(count, dtype=np.int64)  # tokens that are known
        self._append_forced(np.arange(count))
        self.given = self.length.copy()
        self.limit = np.minimum(self.given + (settings.max_new_tokens or context), context)
        self.log_prob = np.zeros(count)
        self.raw = np.zeros(count)
        self.reader = Reader(model, count)
        fielded = np.isin(self.ids[:, 1], _FIELDS)
        guides = settings.guidance_scale != 1.0 and fielded.any()
        self.unguided = _Unguided(model, fielded) if guides else None

    def _append_forced(self, index: Integers) -> None:
        """Append what must follow, as far as there is room."""
        part = self.rows.take(index)
        pending = np.minimum(part.pending, self.limit[index] - self.length[index])
        longest = int(pending.max(initial=0))
        if not longest:
            return
        offsets = np.arange(longest)
        inside = offsets < pending[:, None]
        at = self.length[index][:, None] + offsets
        rows = np.broadcast_to(index[:, None], at.shape)
        self.ids[rows[inside], at[inside]] = part.forced(longest)[inside]
        part.skip(pending)
        self.rows.put(index, part)
        self.length[index] += pending

    def step(self) -> None:
        """One call of the model: it reads tokens it has not read, and rows that it has read in full get a new one."""
        before = self.fed
        most = _WIDTH if len(self.number) <= _FEW_ROWS or not before.any() else 1
        logits = self.reader.read(self.ids, self.length, most)
        # the token that follows each one just read, where it is known and not part of the prompt
        at = self.fed[:, None] - np.arange(logits.shape[1])[::-1]
        known = (at < self.length[:, None]) & (at >= self.given[:, None]) & (at > before[:, None])
        if known.any():
            rows, columns = np.nonzero(known)
            self._count_raw(logits, rows, columns, self.ids[rows, at[rows, columns]])
        ready = (self.fed == self.length) & (self.length < self.limit) & ~self.rows.done
        guided = None
        if self.unguided is not None:
            guided = self.unguided.step(logits[:, -1], self.ids, self.length, most, self.settings.guidance_scale)
        if ready.any():
            self._draw(np.flatnonzero(ready), logits[:, -1], guided)

    @property
    def fed(self) -> Integers:
        """Tokens that the model has read."""
        return self.reader.fed

    def _count_raw(self, logits: torch.Tensor, rows: Integers, columns: Integers, tokens: Integers) -> None:
        steps = logits[torch.from_numpy(rows), torch.from_numpy(columns)]
        chosen = torch.from_numpy(tokens).to(steps.device)[:, None]
        np.add.at(self.raw, rows, (steps.gather(1, chosen)[:, 0] - steps.logsumexp(-1)).cpu().double().numpy())

    def _draw(self, ready: Integers, logits: torch.Tensor, guided: torch.Tensor | None) -> None:
        """A new token for these rows, and what must follow it."""
        places = torch.from_numpy(ready).to(logits.device)
        steps = logits if len(ready) == len(logits) else logits[places]
        part = self.rows.take(ready)
        biases = MaskTable.of(part.table, steps).biases(part.masks())
        uniform = _uniform(self.keys[ready], self.length[ready])
        chosen = _choose(steps if guided is None else guided[places], biases, self.settings, uniform)
        picked = steps.gather(1, chosen[:, None])[:, 0]
        sums = torch.stack([picked - (steps + biases).logsumexp(-1), picked - steps.logsumexp(-1)])
        tokens, (renormalised, raw) = chosen.cpu().numpy(), sums.cpu().double().numpy()
        self.log_prob[ready] += renormalised
        self.raw[ready] += raw
        self.ids[ready, self.length[ready]] = tokens
        self.length[ready] += 1
        part.advance(tokens)
        self.rows.put(ready, part)
        self._append_forced(ready)

    def ended(self) -> NDArray[np.bool_]:
        """Rows that are complete, or as long as they may be, and whose last token but the end is read."""
        full = self.rows.done | (self.length >= self.limit)
        return full & (self.fed >= self.length - 1)

    def leave(self, ended: NDArray[np.bool_]) -> None:
        """Drop rows from the batch."""
        keep = np.flatnonzero(~ended)
        for name in ("number", "limit", "ids", "length", "given", "log_prob", "raw", "keys"):
            setattr(self, name, getattr(self, name)[keep])
        self.rows = self.rows.take(keep)
        self.reader.keep(keep)
        if self.unguided is not None:
            self.unguided.keep(keep)

    def result(self, row: int) -> Drawn:
        """The sample of a row that has ended."""
        return Drawn(
            ids=self.ids[row, : self.length[row]].tolist(),
            given=int(self.given[row]),
            finished=bool(self.rows.done[row]),
            log_prob=float(self.log_prob[row]),
            log_prob_raw=float(self.raw[row]),
        )


@torch.inference_mode()
def draw_samples(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    keys: NDArray[np.uint64],
    settings: SamplingSettings | None = None,
    *,
    grammar: Grammar | None = None,
) -> list[Drawn]:
    """Draw one sample for each prompt, all in one batch.

    Args:
        model: a causal language model for this vocabulary with a key-value cache.
        prompts: the prompt of each row; repeat one for several samples.
        keys: of each row's random numbers (see :func:`row_keys`), shape (rows,).
        settings: how tokens are drawn.
        grammar: where the prompts are looked up.

    Returns:
        one sample for each prompt, in order. A sample is the same whatever else is in the batch, unless a rounding
        error of the logits decides.

    Raises:
        FormulaError, PromptError: a prompt cannot be fulfilled, or takes up all the tokens that the model can read.

    Example:
        >>> drawn = draw_samples(model, [Prompt("NaCl")] * 2, row_keys(0, [0, 0], [0, 1]))
        >>> [sample.finished for sample in drawn]
        [True, True]
    """
    grammar, settings = grammar or Grammar(), settings or SamplingSettings()
    initial = {prompt: grammar.initial(prompt) for prompt in dict.fromkeys(prompts)}
    batch = _Batch(model, Rows([initial[prompt] for prompt in prompts]), keys, settings)
    if (batch.given >= batch.limit).any():
        raise PromptError(
            f"a prompt alone takes the {int(batch.limit.min())} tokens that the model reads: ask for less"
        )
    results: dict[int, Drawn] = {}
    while len(batch.number):
        batch.step()
        ended = batch.ended()
        for row in np.flatnonzero(ended).tolist():
            results.setdefault(int(batch.number[row]), batch.result(row))
        # moving the others together costs about as much as one step
        if ended.all() or ended.sum() > len(ended) / 8:
            batch.leave(ended)
    return [results[row] for row in range(len(prompts))]
