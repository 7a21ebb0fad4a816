"""Sampling under the grammar with transformers: a logits processor, and log-probabilities of what was sampled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LogitsProcessor, PreTrainedModel

from .errors import DecodeError, PromptError
from .grammar import Done, Grammar, Prompt, State
from .vocabulary import BOS, EOS, PAD, TOKEN_IDS, TOKENS

__all__ = ["GrammarLogitsProcessor", "LogProb", "MaskTable", "sequence_log_probs"]

_BOS, _EOS, _PAD = TOKEN_IDS[BOS], TOKEN_IDS[EOS], TOKEN_IDS[PAD]
_DONE = Done()


class MaskTable:
    """Biases (0 where a token can follow, -inf elsewhere) for the numbered token sets of a grammar, as one tensor.

    Args:
        grammar: whose ``masks`` are kept.
        width: number of logits of the model; those above the vocabulary are never allowed.
        device, dtype: of the logits.
    """

    def __init__(self, grammar: Grammar, width: int, device: torch.device, dtype: torch.dtype) -> None:
        if width < len(TOKENS):
            raise PromptError(
                f"the model has {width} logits, the vocabulary {len(TOKENS)} tokens: they do not belong together"
            )
        self.grammar = grammar
        self.width = width
        self.rows = torch.empty((0, width), device=device, dtype=dtype)
        self.filled = 0
        self.epoch = -1

    def _fill(self) -> None:
        """Add the rows of the sets that are new since the last call."""
        grammar = self.grammar
        if self.epoch != grammar.epoch:
            self.epoch, self.filled = grammar.epoch, 0
        masks = grammar.masks[self.filled :]
        if not masks:
            return
        fresh = np.full((len(masks), self.width), -np.inf, dtype=np.float32)
        for row, tokens in zip(fresh, masks, strict=True):
            row[tokens if len(tokens) else _PAD] = 0.0  # nothing follows the end but padding
        if len(grammar.masks) > len(self.rows):
            larger = self.rows.new_empty((max(2 * len(self.rows), len(grammar.masks) + 512), self.width))
            larger[: self.filled] = self.rows[: self.filled]
            self.rows = larger
        self.rows[self.filled : len(grammar.masks)] = torch.from_numpy(fresh).to(self.rows)
        self.filled = len(grammar.masks)

    def biases_of(self, states: Sequence[State]) -> torch.Tensor:
        """Biases of the sets that can follow states, shape (len(states), width)."""
        epoch, numbers = -1, list[int]()
        while epoch != self.grammar.epoch:  # a set may be dropped, and all numbered anew, while others are met
            epoch = self.grammar.epoch
            numbers = [self.grammar.mask_id(state) for state in states]
        return self.biases(numbers)

    def biases(self, numbers: Sequence[int]) -> torch.Tensor:
        """Biases of numbered sets, shape (len(numbers), width)."""
        self._fill()
        return self.rows[torch.tensor(numbers, device=self.rows.device)]


class GrammarLogitsProcessor(LogitsProcessor):
    """Masks every token with which a text could not be ended as the prompt asks.

    Works in ``model.generate`` with sampling, greedy and beam search and ``num_return_sequences``; make one for each
    call of ``generate``. Each row must hold ``<s>``, which may be followed by the first tokens of the text.

    Args:
        prompts: one prompt for all rows, or one for each row of ``input_ids`` as given to ``generate``.
        grammar: shared between calls, its token sets are numbered once.

    Raises:
        FormulaError, PromptError: at once, if a prompt cannot be fulfilled.

    Example:
        >>> processor = GrammarLogitsProcessor(Prompt("BaTiO3"))
        >>> start = [[TOKEN_IDS[BOS]] + processor.grammar.forced_prefix(Prompt("BaTiO3"))]
        >>> ids = model.generate(torch.tensor(start), logits_processor=[processor], do_sample=True, max_length=256)
    """

    def __init__(self, prompts: Prompt | Sequence[Prompt], grammar: Grammar | None = None) -> None:
        self.grammar = grammar or Grammar()
        self.prompts = [prompts] if isinstance(prompts, Prompt) else list(prompts)
        self._initial = [self.grammar.initial(prompt) for prompt in self.prompts]
        self._table: MaskTable | None = None
        self._seen = np.empty((0, 0), dtype=np.int64)
        self._states: list[State] = []
        self._numbers: list[int] = []  # of the token set of each state
        self._epoch = -1
        self._open: list[int] = []  # rows that are not finished

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores with -inf for every token that cannot follow, shapes (rows, length) and (rows, vocabulary)."""
        table = self._table
        if table is None or table.rows.device != scores.device or table.rows.dtype != scores.dtype:
            table = self._table = MaskTable(self.grammar, scores.shape[1], scores.device, scores.dtype)
        self._follow(input_ids.cpu().numpy())
        if self._epoch != self.grammar.epoch:  # the grammar has numbered its sets anew
            self._number_all()
        return scores + table.biases(self._numbers)  # type: ignore[return-value]

    def states(self) -> list[State]:
        """State of each row after the last call."""
        return list(self._states)

    def _follow(self, ids: NDArray[np.int64]) -> None:
        """Bring the states up to date: one token on where the rows go on as they were, else wherever they fit."""
        seen = self._seen
        if ids.shape == (seen.shape[0], seen.shape[1] + 1) and np.array_equal(ids[:, :-1], seen):
            self._extend(ids[:, -1].tolist())
        else:
            self._states = self._reordered(ids)
            self._number_all()
        self._seen = ids.copy()

    def _extend(self, tokens: list[int]) -> None:
        """One token on in every row that is not finished."""
        grammar, states, numbers = self.grammar, self._states, self._numbers
        still_open = []
        for row in self._open:
            number = numbers[row] if grammar.epoch == self._epoch else grammar.mask_id(states[row])
            try:
                state = grammar.follow(states[row], number, tokens[row])
            except DecodeError:
                state = _DONE  # see _next
            states[row] = state
            numbers[row] = grammar.mask_id(state)
            if not isinstance(state, Done):
                still_open.append(row)
        self._open = still_open

    def _number_all(self) -> None:
        numbers = list[int]()
        while self._epoch != self.grammar.epoch or not numbers:
            self._epoch = self.grammar.epoch
            numbers = [self.grammar.mask_id(state) for state in self._states]
        self._numbers = numbers
        self._open = [row for row, state in enumerate(self._states) if not isinstance(state, Done)]

    def _next(self, state: State, token: int) -> State:
        if isinstance(state, Done):
            return state
        try:
            return self.grammar.advance(state, token)
        except DecodeError:
            # Only a row whose score is -inf already gets here: beam search keeps such rows while there are fewer legal
            # continuations than beams.
            return _DONE

    def _reordered(self, ids: NDArray[np.int64]) -> list[State]:
        """States of rows that were reordered (beam search) or are new."""
        if len(ids) % len(self.prompts):
            raise PromptError(f"{len(ids)} rows cannot be shared out among {len(self.prompts)} prompts")
        share = len(ids) // len(self.prompts)
        known: dict[tuple[int, bytes], State] = {}
        if len(self._seen) == len(ids):
            known = {(row // share, before.tobytes()): self._states[row] for row, before in enumerate(self._seen)}
        states = []
        for row, tokens in enumerate(ids):
            state = known.get((row // share, tokens[:-1].tobytes()))
            if state is not None:
                states.append(self._next(state, int(tokens[-1])))
            else:
                states.append(self._rescan(self._initial[row // share], tokens.tolist()))
        return states

    def _rescan(self, state: State, tokens: list[int]) -> State:
        if _BOS not in tokens:
            raise PromptError(f"every row must hold the begin token {BOS!r} (id {_BOS}), one is {tokens[:8]}")
        for token in tokens[tokens.index(_BOS) + 1 :]:
            state = self._next(state, token)
        return state


class LogProb(NamedTuple):
    """Natural logarithms of a sequence's probability at temperature 1, its prompt excluded.

    Attributes:
        log_prob: renormalised at each token over what the grammar allows.
        log_prob_raw: as the model gives it.
    """

    log_prob: float
    log_prob_raw: float


def sequence_log_probs(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    prompts: Sequence[Prompt],
    prompt_lengths: Sequence[int],
    *,
    grammar: Grammar | None = None,
    batch_size: int = 32,
) -> list[LogProb]:
    """Log-probability of each sequence, by one forward pass over each batch.

    Args:
        model: a causal language model.
        sequences: token ids from ``<s>`` on; what follows ``</s>`` is left out.
        prompts: the prompt of each sequence.
        prompt_lengths: how many leading tokens of each sequence, ``<s>`` included, were given and do not count.
        grammar: as used for sampling.
        batch_size: sequences in one forward pass.

    Returns:
        one result a sequence. ``log_prob`` is -inf where a sequence does not follow the grammar of its prompt.
    """
    grammar = grammar or Grammar()
    cut = [_until_end(list(sequence)) for sequence in sequences]
    results: list[LogProb | None] = [None] * len(cut)
    by_length = sorted(range(len(cut)), key=lambda index: len(cut[index]))
    for start in range(0, len(by_length), batch_size):
        batch = by_length[start : start + batch_size]
        logits = _logits(model, [cut[index] for index in batch])
        table = MaskTable(grammar, logits.shape[-1], logits.device, logits.dtype)
        for row, index in enumerate(batch):
            first = prompt_lengths[index]
            states = _states_along(grammar, prompts[index], cut[index])
            before = None if states is None else states[first - 1 :]
            results[index] = _log_prob(logits[row, first - 1 : len(cut[index]) - 1], cut[index][first:], table, before)
    return [result for result in results if result is not None]


def _until_end(sequence: list[int]) -> list[int]:
    return sequence[: sequence.index(_EOS) + 1] if _EOS in sequence else sequence


def _states_along(grammar: Grammar, prompt: Prompt, sequence: list[int]) -> list[State] | None:
    """State before each token of a sequence but the first one, ``<s>``; None if a token cannot follow."""
    states = [grammar.initial(prompt)]
    try:
        for token in sequence[1:]:
            states.append(grammar.advance(states[-1], token))
    except DecodeError:
        return None
    return states[:-1]


@torch.no_grad()
def _logits(model: PreTrainedModel, batch: Sequence[Sequence[int]]) -> torch.Tensor:
    """Logits in float32, padded on the right, shape (sequences, length, vocabulary)."""
    longest = max(map(len, batch))
    ids = torch.full((len(batch), longest), _PAD, device=model.device)
    for row, sequence in enumerate(batch):
        ids[row, : len(sequence)] = torch.tensor(sequence)
    lengths = torch.tensor([len(sequence) for sequence in batch], device=model.device)
    mask = torch.arange(longest, device=model.device) < lengths[:, None]
    output: Any = model(input_ids=ids, attention_mask=mask.long())
    return output.logits.float()  # type: ignore[no-any-return]


def _log_prob(logits: torch.Tensor, tokens: list[int], table: MaskTable, states: list[State] | None) -> LogProb:
    chosen = torch.tensor(tokens, device=logits.device)[:, None]
    raw = float(logits.log_softmax(-1).gather(1, chosen).sum())
    if states is None:
        return LogProb(-math.inf, raw)
    allowed = logits + table.biases_of(states)
    return LogProb(float(allowed.log_softmax(-1).gather(1, chosen).sum()), raw)
