"""States of the grammar as integers, for many rows at once.

The first row that reaches a state pays for working it out in Python; from then on a step of a whole batch is a handful
of look-ups in integer tables. A run of tokens without a choice belongs to the node it leads to, so that a row inside
such a run costs no new node at all.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .choices import Key, token_set
from .states import Done, Forced, State, next_key, next_state
from .vocabulary import PAD, TOKEN_IDS, TOKENS

__all__ = ["Rows", "StateTable", "current_table"]

Integers = NDArray[np.int64]

_PAD = TOKEN_IDS[PAD]
_WIDTH = len(TOKENS)
_MOST_NODES = 200_000  # about 2 kB each, mostly in the states themselves
_MOST_MASKS = 10_000  # a row of biases takes 6 kB: 60 MB


def _grown(array: NDArray[Any], size: int) -> NDArray[Any]:
    """The array with room for ``size`` rows, at least doubled where it has to grow."""
    if size <= len(array):
        return array
    larger = np.empty((max(size, 2 * len(array)), *array.shape[1:]), dtype=array.dtype)
    larger[: len(array)] = array
    return larger


class StateTable:
    """Numbered states (nodes), the set of tokens that can follow each, and where each token leads.

    A node is a run of forced tokens, often empty, and the state after it. Node 0 is the end: nothing follows it but
    padding. ``masks[mask[node]]`` are the tokens that can follow the run of a node, ascending; the number of a set with
    a single token is that token. Nodes are entered when a row first reaches them, under a lock; a table that is full
    is replaced by an empty one (see :func:`current_table`), and rows move over by themselves.
    """

    def __init__(self, most_nodes: int = _MOST_NODES, most_masks: int = _MOST_MASKS) -> None:
        self.most_nodes = most_nodes
        self.most_masks = most_masks
        self.lock = threading.RLock()
        self.masks: list[Integers] = [np.array([token]) for token in range(_WIDTH)]
        self.ranks = np.full((_WIDTH + 256, _WIDTH), -1, dtype=np.int16)  # place of each token in a set, -1: not in it
        self.ranks[np.arange(_WIDTH), np.arange(_WIDTH)] = 0
        self.states: list[State] = []
        self._resize_nodes(np.empty((4, 4096), dtype=np.int64))
        self.runs = np.empty(1 << 14, dtype=np.int64)
        self.next = np.full(1 << 18, -1, dtype=np.int32)  # successors, -1: not met yet
        self.cache: dict[Any, Any] = {}  # what others derive from the table and want to keep with it
        self._numbers: dict[Key, int] = {}
        self._nodes: dict[State, int] = {}
        self._runs_filled = self._next_filled = 0
        self.node(Done())

    def __len__(self) -> int:
        return len(self.states)

    def _resize_nodes(self, facts: Integers) -> None:
        """Facts about the nodes: number of the set, where successors and run begin, and the length of the run."""
        self._facts = facts
        self.mask, self.base, self.run_start, self.run_length = facts

    @property
    def is_full(self) -> bool:
        """Whether a fresh table should take over."""
        return len(self.states) >= self.most_nodes or len(self.masks) >= self.most_masks

    def node(self, state: State) -> int:
        """Number of a state, which is entered if it is new."""
        known = self._nodes.get(state)
        if known is not None:
            return known
        with self.lock:
            return self._enter(state)

    def follow(self, node: int, token: int) -> int:
        """Node after the run of ``node`` and one more token, which must be in its set."""
        with self.lock:
            place = int(self.base[node]) + int(self.ranks[self.mask[node], token])
            if self.next[place] < 0:
                self.next[place] = self.node(next_state(self.states[node], token))
            return int(self.next[place])

    def _enter(self, state: State) -> int:
        run: list[int] = []
        then = state
        while True:
            if isinstance(then, Forced):
                run += then.tokens
                then = then.then
                continue
            key = next_key(then)
            number = _PAD if isinstance(then, Done) else self._mask(key)
            if isinstance(then, Done) or number >= _WIDTH:
                break
            run.append(number)
            then = next_state(then, number)
        return self._append(state, run, then, number)

    def _append(self, state: State, run: list[int], then: State, mask: int) -> int:
        node, choices = len(self.states), len(self.masks[mask])
        if node == self._facts.shape[1]:
            self._resize_nodes(np.concatenate([self._facts, np.empty_like(self._facts)], axis=1))
        self._facts[:, node] = mask, self._next_filled, self._runs_filled, len(run)
        if self._runs_filled + len(run) >= len(self.runs):
            self.runs = np.concatenate([self.runs, np.empty_like(self.runs)])
        self.runs[self._runs_filled : self._runs_filled + len(run)] = run
        self._runs_filled += len(run)
        if self._next_filled + choices > len(self.next):
            self.next = np.concatenate([self.next, np.full_like(self.next, -1)])
        if isinstance(then, Done):  # nothing but padding follows the end, which is node 0
            self.next[self._next_filled] = 0
        self._next_filled += choices
        self.states.append(then)
        self._nodes[state] = node
        return node

    def _mask(self, key: Key) -> int:
        if isinstance(key, int):
            return key
        number = self._numbers.get(key)
        if number is None:
            tokens = np.array(sorted(token_set(key)), dtype=np.int64)
            number = int(tokens[0]) if len(tokens) == 1 else len(self.masks)
            if len(tokens) > 1:
                if number >= len(self.ranks):
                    filled = len(self.ranks)
                    self.ranks = _grown(self.ranks, number + 1)
                    self.ranks[filled:] = -1
                self.ranks[number, tokens] = np.arange(len(tokens))
                self.masks.append(tokens)
            self._numbers[key] = number
        return number


class _Current:
    """The table in use; one for the whole process, as the states of all grammars are alike."""

    def __init__(self) -> None:
        self.table = StateTable()
        self.lock = threading.Lock()


_CURRENT = _Current()


def current_table() -> StateTable:
    """The table that new rows begin in. Where it is full, an empty one takes its place."""
    with _CURRENT.lock:
        if _CURRENT.table.is_full:
            _CURRENT.table = StateTable()
        return _CURRENT.table


class Rows:
    """Where each of many rows stands in the grammar.

    Args:
        states: the state of each row.

    Attributes:
        table: the table that ``nodes`` refers to.
        nodes: node of each row, shape (rows,).
        places: how many tokens of the node's run are written, shape (rows,).

    Example:
        >>> rows = Rows([Grammar().initial(Prompt("NaCl", formula_units=1))] * 2)
        >>> [TOKENS[token] for token in rows.forced(4)[0]]
        ['Na', '##1', 'Cl', '##1']
    """

    def __init__(self, states: Sequence[State]) -> None:
        self.table = current_table()
        known: dict[int, int] = {}  # rows of one prompt share the object
        for state in states:
            if id(state) not in known:
                known[id(state)] = self.table.node(state)
        self.nodes = np.array([known[id(state)] for state in states], dtype=np.int64)
        self.places = np.zeros(len(states), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.nodes)

    def take(self, index: Integers) -> Rows:
        """The rows with these numbers, in this order, as rows of their own."""
        taken = Rows([])
        taken.table, taken.nodes, taken.places = self.table, self.nodes[index], self.places[index]
        return taken

    def put(self, index: Integers, rows: Rows) -> None:
        """Let these rows stand where ``rows`` do."""
        if self.table is not rows.table:
            self._move()
        self.nodes[index], self.places[index] = rows.nodes, rows.places

    @property
    def pending(self) -> Integers:
        """How many forced tokens each row has before its next choice, shape (rows,)."""
        left: Integers = self.table.run_length[self.nodes] - self.places
        return left

    @property
    def done(self) -> NDArray[np.bool_]:
        """Whether the end token of each row is written, shape (rows,)."""
        at_end: NDArray[np.bool_] = (self.table.mask[self.nodes] == _PAD) & (self.pending == 0)
        return at_end

    def masks(self) -> Integers:
        """Number of the set of tokens that can follow each row, shape (rows,)."""
        table, nodes = self.table, self.nodes
        forced = self.places < table.run_length[nodes]
        tokens = table.runs[np.where(forced, table.run_start[nodes] + self.places, 0)]
        return np.where(forced, tokens, table.mask[nodes])

    def forced(self, width: int) -> Integers:
        """The next forced tokens of each row, padded on the right, shape (rows, width)."""
        offsets = self.places[:, None] + np.arange(width)
        inside = offsets < self.table.run_length[self.nodes][:, None]
        at = np.where(inside, self.table.run_start[self.nodes][:, None] + offsets, 0)
        return np.where(inside, self.table.runs[at], _PAD)

    def skip(self, count: Integers) -> None:
        """Count the next ``count`` forced tokens of each row as written, shape (rows,)."""
        self.places = self.places + count

    def advance(self, tokens: Integers) -> None:
        """One token on in every row, shape (rows,).

        A row whose token cannot follow is ended: beam search keeps such rows, with a score of -inf, while there are
        fewer legal continuations than beams.
        """
        if self.table.is_full:
            self._move()
        table, nodes = self.table, self.nodes
        tokens = np.where((tokens >= 0) & (tokens < _WIDTH), tokens, _PAD)
        forced = self.places < table.run_length[nodes]
        expected = table.runs[np.where(forced, table.run_start[nodes] + self.places, 0)]
        ranks = table.ranks[table.mask[nodes], tokens]
        legal = np.where(forced, expected == tokens, ranks >= 0)
        after = np.where(forced, nodes, table.next[np.where(forced | (ranks < 0), 0, table.base[nodes] + ranks)])
        after[~legal] = 0
        for row in np.flatnonzero(after < 0).tolist():  # states that no row has met before
            after[row] = table.follow(int(nodes[row]), int(tokens[row]))
        self.nodes = after.astype(np.int64)
        self.places = np.where(forced & legal, self.places + 1, 0)

    def states(self) -> list[State]:
        """State of each row."""
        found: list[State] = []
        pairs = zip(self.nodes.tolist(), self.places.tolist(), strict=True)
        for node, place in pairs:
            start, length = int(self.table.run_start[node]), int(self.table.run_length[node])
            run = tuple(self.table.runs[start + place : start + length].tolist())
            found.append(Forced(run, self.table.states[node]) if run else self.table.states[node])
        return found

    def _move(self) -> None:
        """Go on in the table that has taken over."""
        moved = Rows(self.states())
        self.table, self.nodes, self.places = moved.table, moved.nodes, moved.places
