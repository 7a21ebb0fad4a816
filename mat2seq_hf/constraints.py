"""Sampling under the grammar with transformers: a logits processor, and log-probabilities of what was sampled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LogitsProcessor, PreTrainedModel

from .automaton import Rows, StateTable
from .errors import DecodeError, PromptError
from .grammar import Grammar
from .state_kinds import State
from .vocabulary import BOS, EOS, PAD, TOKEN_IDS, TOKENS
from .wishes import Asked, Prompt, read_prompt

__all__ = ["GrammarLogitsProcessor", "LogProb", "MaskTable", "sequence_log_probs", "until_end"]

_BOS, _EOS, _PAD = TOKEN_IDS[BOS], TOKEN_IDS[EOS], TOKEN_IDS[PAD]


class MaskTable:
    """Biases (0 where a token can follow, -inf elsewhere) for the numbered token sets of a table, as one tensor.

    Args:
        table: whose ``masks`` are kept.
        width: number of logits of the model; those above the vocabulary are never allowed.
        device, dtype: of the logits.

    Raises:
        PromptError: the model has fewer logits than the vocabulary has tokens.
    """

    def __init__(self, table: StateTable, width: int, device: torch.device, dtype: torch.dtype) -> None:
        if width < len(TOKENS):
            raise PromptError(
                f"the model has {width} logits, the vocabulary {len(TOKENS)} tokens: they do not belong together"
            )
        self.table = table
        with torch.inference_mode(mode=False):
            self.rows = torch.empty((0, width), device=device, dtype=dtype)
        self.filled = 0

    @classmethod
    def of(cls, table: StateTable, logits: torch.Tensor) -> MaskTable:
        """The one mask table for logits of this kind, kept with the table."""
        key = (cls, logits.shape[-1], logits.device, logits.dtype)
        with table.lock:
            if key not in table.cache:
                table.cache[key] = cls(table, logits.shape[-1], logits.device, logits.dtype)
            return table.cache[key]  # type: ignore[no-any-return]

    def _fill(self) -> None:
        """Add the rows of the sets that are new since the last call."""
        masks = self.table.masks[self.filled :]
        if not masks:  # another thread was faster
            return
        fresh = torch.full((len(masks), self.rows.shape[1]), -math.inf, dtype=self.rows.dtype)
        at = np.repeat(np.arange(len(masks)), [len(tokens) for tokens in masks])
        fresh[torch.from_numpy(at), torch.from_numpy(np.concatenate(masks))] = 0.0
        count = self.filled + len(masks)
        if count > len(self.rows):
            larger = self.rows.new_empty((max(2 * len(self.rows), count + 512), self.rows.shape[1]))
            larger[: self.filled] = self.rows[: self.filled]
            self.rows = larger
        self.rows[self.filled : count] = fresh.to(self.rows.device)
        self.filled = count

    def biases(self, numbers: NDArray[np.int64]) -> torch.Tensor:
        """Biases of numbered sets, shape (len(numbers), width)."""
        if self.filled < len(self.table.masks):
            # a caller's inference mode would leave tensors that no one outside it could add to
            with self.table.lock, torch.inference_mode(mode=False), torch.no_grad():
                self._fill()
        return self.rows.index_select(0, torch.from_numpy(numbers).to(self.rows.device))


class GrammarLogitsProcessor(LogitsProcessor):
    """Masks every token with which a text could not be ended as the prompt asks.

    Works in ``model.generate`` with sampling, greedy and beam search and ``num_return_sequences``; make one for each
    call of ``generate``. Each row must hold ``<s>``, which may be followed by the first tokens of the text.

    Args:
        prompts: one prompt for all rows, or one for each row of ``input_ids`` as given to ``generate``: a
            :class:`Prompt`, a formula, a dict of a prompt's fields, or None for any crystal.
        grammar: where the prompts are looked up.

    Raises:
        FormulaError, PromptError: at once, if a prompt cannot be fulfilled; when ``generate`` begins, if a row does not
            begin as its prompt asks.

    Example:
        >>> processor = GrammarLogitsProcessor("BaTiO3")
        >>> start = [[TOKEN_IDS[BOS]] + processor.grammar.forced_prefix("BaTiO3")]
        >>> ids = model.generate(torch.tensor(start), logits_processor=[processor], do_sample=True, max_length=256)
    """

    def __init__(self, prompts: Asked | Sequence[Asked], grammar: Grammar | None = None) -> None:
        self.grammar = grammar or Grammar()
        if prompts is None or isinstance(prompts, (str, Mapping, Prompt)):
            prompts = [prompts]
        self.prompts = [read_prompt(prompt) for prompt in prompts]
        self._initial = [self.grammar.initial(prompt) for prompt in self.prompts]
        self._seen = np.empty((0, 0), dtype=np.int64)
        self._rows = Rows([])

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores with -inf for every token that cannot follow, shapes (rows, length) and (rows, vocabulary)."""
        ids = input_ids.cpu().numpy()
        begins = not self._seen.size
        self._follow(ids)
        if begins:
            self._check_start(ids)
        biases = MaskTable.of(self._rows.table, scores).biases(self._rows.masks())
        return scores + biases  # type: ignore[return-value]

    def states(self) -> list[State]:
        """State of each row after the last call."""
        return self._rows.states()

    def _follow(self, ids: NDArray[np.int64]) -> None:
        """Bring the rows up to date: one token on where they go on as they were, else wherever they fit."""
        seen = self._seen
        if ids.shape != (seen.shape[0], seen.shape[1] + 1):
            self._rows = self._scan(ids)
        else:
            if not np.array_equal(ids[:, :-1], seen):
                self._reorder(ids)
            self._rows.advance(ids[:, -1])
        self._seen = ids.copy()

    def _check_start(self, ids: NDArray[np.int64]) -> None:
        """Refuse rows that are ended before anything is drawn, because their tokens cannot follow the prompt."""
        share = self._share(len(ids))
        for row in np.flatnonzero(self._rows.done).tolist():
            tokens = until_end(ids[row].tolist())
            try:
                self.grammar.read(tokens[tokens.index(_BOS) + 1 :], self._initial[row // share])
            except DecodeError as error:
                raise PromptError(
                    f"row {row} does not begin as {self.prompts[row // share]} asks, after {BOS!r} {error}; "
                    f"begin with {BOS!r} and grammar.forced_prefix(prompt)"
                ) from error

    def _share(self, rows: int) -> int:
        if rows % len(self.prompts):
            raise PromptError(f"{rows} rows cannot be shared out among {len(self.prompts)} prompts")
        return rows // len(self.prompts)

    def _reorder(self, ids: NDArray[np.int64]) -> None:
        """Beam search puts rows where others of the same prompt were, without saying so."""
        share = self._share(len(ids))
        known = {(row // share, before.tobytes()): row for row, before in enumerate(self._seen)}
        sources = [known.get((row // share, tokens.tobytes()), -1) for row, tokens in enumerate(ids[:, :-1])]
        self._rows = self._scan(ids[:, :-1]) if min(sources) < 0 else self._rows.take(np.array(sources))

    def _scan(self, ids: NDArray[np.int64]) -> Rows:
        """Rows that are read from their begin token on."""
        share = self._share(len(ids))
        begins = ids == _BOS
        if not begins.any(axis=1).all():
            row = ids[int(np.argmin(begins.any(axis=1)))].tolist()
            raise PromptError(f"every row must hold the begin token {BOS!r} (id {_BOS}), one is {row[:8]}")
        starts = begins.argmax(axis=1) + 1
        rows = Rows([self._initial[row // share] for row in range(len(ids))])
        for column in range(int(starts.min()), ids.shape[1]):
            inside = np.flatnonzero(starts <= column)
            part = rows.take(inside)
            part.advance(ids[inside, column])
            rows.put(inside, part)
        return rows


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
    cut = [until_end(list(sequence)) for sequence in sequences]
    results: list[LogProb | None] = [None] * len(cut)
    by_length = sorted(range(len(cut)), key=lambda index: len(cut[index]))
    for start in range(0, len(by_length), batch_size):
        batch = by_length[start : start + batch_size]
        logits = _logits(model, [cut[index] for index in batch])
        for row, index in enumerate(batch):
            first, tokens = prompt_lengths[index], cut[index]
            steps = logits[row, first - 1 : len(tokens) - 1]
            biases = _biases_along(grammar.initial(prompts[index]), tokens, first, steps)
            results[index] = _log_prob(steps, tokens[first:], biases)
    return [result for result in results if result is not None]


def until_end(sequence: list[int]) -> list[int]:
    """A sequence of ids without what follows its first ``</s>``."""
    return sequence[: sequence.index(_EOS) + 1] if _EOS in sequence else sequence


def _biases_along(state: State, sequence: list[int], first: int, logits: torch.Tensor) -> torch.Tensor | None:
    """Biases for each token from number ``first`` on, shape (tokens, width); None if a token cannot follow."""
    rows = Rows([state])
    table = rows.table
    numbers: list[int] = []
    for token in sequence[1:]:
        numbers += rows.masks().tolist()
        if token not in rows.table.masks[numbers[-1]]:
            return None
        rows.advance(np.array([token]))
    if rows.table is not table:  # it was full, and another one numbers the sets anew
        return _biases_along(state, sequence, first, logits)
    return MaskTable.of(rows.table, logits).biases(np.array(numbers[first - 1 :]))


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


def _log_prob(logits: torch.Tensor, tokens: list[int], biases: torch.Tensor | None) -> LogProb:
    chosen = torch.tensor(tokens, device=logits.device)[:, None]
    raw = float(logits.log_softmax(-1).gather(1, chosen).sum())
    if biases is None:
        return LogProb(-math.inf, raw)
    return LogProb(float((logits + biases).log_softmax(-1).gather(1, chosen).sum()), raw)
