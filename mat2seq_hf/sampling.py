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
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from .automaton import Rows
from .constraints import MaskTable
from .errors import Mat2SeqError, PromptError
from .grammar import Grammar
from .sampling_settings import SamplingSettings
from .vocabulary import BOS, PAD, TOKEN_IDS
from .wishes import Prompt

__all__ = ["Drawn", "context_length", "draw_samples", "positions_of", "row_keys"]

Integers = NDArray[np.int64]

_BOS, _PAD = TOKEN_IDS[BOS], TOKEN_IDS[PAD]
_ROOM = 32  # columns by which the key-value cache grows
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


def positions_of(config: PretrainedConfig) -> int:
    """Positions that a model has.

    Raises:
        Mat2SeqError: it does not say so.
    """
    length = getattr(config, "max_position_embeddings", None)
    if length is None:
        raise Mat2SeqError(
            f"the configuration of the {config.model_type} model has no max_position_embeddings: enter there how many "
            "tokens it reads"
        )
    return int(length)


def context_length(config: PretrainedConfig) -> int:
    """Tokens that a model reads.

    Raises:
        Mat2SeqError: it does not say so, or attends to fewer (a sliding window): the cache keeps columns of a batch, in
            which a window would depend on the other rows.
    """
    length, window = positions_of(config), getattr(config, "sliding_window", None)
    if window is not None and window < length:
        raise Mat2SeqError(
            f"the model attends to a sliding window of {window} tokens and reads {length}; sampling needs a "
            "window of all of them: set sliding_window to None, or use a model that was trained without"
        )
    return length


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


class _RoomyLayer(DynamicLayer):
    """Keys and values with room to spare: appending a token copies that token, not everything before it."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.store = [states.new_empty((*states.shape[:2], 0, states.shape[3])) for states in (key_states,) * 2]
        if stop > self.store[0].shape[2]:
            for index, old in enumerate(self.store):
                larger = old.new_empty((*old.shape[:2], stop + _ROOM, old.shape[3]))
                larger[:, :, :start] = old[:, :, :start]
                self.store[index] = larger
        for store, states in zip(self.store, (key_states, value_states), strict=True):
            store[:, :, start:stop] = states
        self.keys, self.values = (store[:, :, :stop] for store in self.store)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows."""
        stop = self.get_seq_length()
        self.store = [store.index_select(0, indices) for store in self.store]
        self.keys, self.values = (store[:, :, :stop] for store in self.store)


def _new_cache(model: PreTrainedModel) -> Cache:
    """A roomy cache; the library's own where a layer does not attend to everything before it."""
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds == {"full_attention"} and getattr(config, "sliding_window", None) is None:
        return Cache(layer_class_to_replicate=_RoomyLayer)
    return DynamicCache(config=config)


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
    shares = values.double().softmax(-1)
    if settings.top_p < 1.0:
        shares = shares * (shares.cumsum(-1) - shares < settings.top_p)
    sums = shares.cumsum(-1)
    target = torch.from_numpy(uniform).to(sums.device)[:, None] * sums[:, -1:]
    # the first token whose sum exceeds the target; its own share is then above zero
    places = torch.searchsorted(sums, target, right=True).clamp_(max=sums.shape[-1] - 1)
    return (places if tokens is None else tokens.gather(1, places))[:, 0]


class _Batch:
    """Rows that are sampled together; those that have ended leave. All arrays have one entry or row for each row."""

    def __init__(
        self, model: PreTrainedModel, rows: Rows, keys: NDArray[np.uint64], settings: SamplingSettings
    ) -> None:
        self.model, self.rows, self.keys, self.settings = model, rows, keys, settings
        context = context_length(model.config)
        count = len(rows)
        self.number = np.arange(count)
        self.limit = np.full(count, context)
        self.ids = np.full((count, context), _PAD, dtype=np.int64)
        self.ids[:, 0] = _BOS
        self.length = np.ones(count, dtype=np.int64)  # tokens that are known
        self.fed = np.zeros(count, dtype=np.int64)  # tokens that the model has read
        self._append_forced(np.arange(count))
        self.given = self.length.copy()
        self.limit = np.minimum(self.given + (settings.max_new_tokens or context), context)
        self.log_prob = np.zeros(count)
        self.raw = np.zeros(count)
        self.cache = _new_cache(model)
        self.mask = torch.zeros((count, 0), dtype=torch.long, device=model.device)

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
        most = _WIDTH if len(self.number) <= _FEW_ROWS or not self.fed.any() else 1
        first = not self.fed.any()
        counts = self.length - self.fed
        width = int(counts.max()) if first else min(int(counts.max()), most)
        counts = np.minimum(counts, width)
        logits = self._read(counts, width, keep=1 if first else width)
        kept = logits.shape[1]
        before = self.fed
        self.fed = self.fed + counts
        # the token that follows each one just read, where it is known and not part of the prompt
        at = self.fed[:, None] - np.arange(kept)[::-1]
        known = (at < self.length[:, None]) & (at >= self.given[:, None]) & (at > before[:, None])
        if known.any():
            rows, columns = np.nonzero(known)
            self._count_raw(logits, rows, columns, self.ids[rows, at[rows, columns]])
        ready = np.flatnonzero((self.fed == self.length) & (self.length < self.limit) & ~self.rows.done)
        if len(ready):
            self._draw(ready, logits[:, -1])

    def _read(self, counts: Integers, width: int, keep: int) -> torch.Tensor:
        """Logits after the last ``keep`` of the new tokens, shape (rows, keep, vocabulary), aligned on the right."""
        offsets = np.arange(width) - (width - counts[:, None])
        real = offsets >= 0
        positions = np.where(real, self.fed[:, None] + offsets, 0)
        tokens = np.where(real, np.take_along_axis(self.ids, positions, axis=1), _PAD)
        device = self.model.device
        self.mask = torch.cat([self.mask, torch.from_numpy(real.astype(np.int64)).to(device)], dim=1)
        output: Any = self.model(
            input_ids=torch.from_numpy(tokens).to(device),
            attention_mask=self.mask,
            position_ids=torch.from_numpy(positions).to(device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        return output.logits.float()  # type: ignore[no-any-return]

    def _count_raw(self, logits: torch.Tensor, rows: Integers, columns: Integers, tokens: Integers) -> None:
        steps = logits[torch.from_numpy(rows), torch.from_numpy(columns)]
        chosen = torch.from_numpy(tokens).to(steps.device)[:, None]
        np.add.at(self.raw, rows, (steps.gather(1, chosen)[:, 0] - steps.logsumexp(-1)).double().cpu().numpy())

    def _draw(self, ready: Integers, logits: torch.Tensor) -> None:
        """A new token for these rows, and what must follow it."""
        steps = logits if len(ready) == len(logits) else logits[torch.from_numpy(ready).to(logits.device)]
        part = self.rows.take(ready)
        biases = MaskTable.of(part.table, steps).biases(part.masks())
        chosen = _choose(steps, biases, self.settings, _uniform(self.keys[ready], self.length[ready]))
        picked = steps.gather(1, chosen[:, None])[:, 0]
        sums = torch.stack([picked - (steps + biases).logsumexp(-1), picked - steps.logsumexp(-1)])
        tokens, (renormalised, raw) = chosen.cpu().numpy(), sums.double().cpu().numpy()
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
        for name in ("number", "limit", "ids", "length", "fed", "given", "log_prob", "raw", "keys"):
            setattr(self, name, getattr(self, name)[keep])
        self.rows = self.rows.take(keep)
        index = torch.from_numpy(keep).to(self.mask.device)
        self.mask = self.mask.index_select(0, index)
        self.cache.batch_select_indices(index)

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
