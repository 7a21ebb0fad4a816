"""States of the grammar as integers, for many rows at once.

The first row that reaches a state pays for working it out in Python; from then on a step of a whole batch is a handful
of look-ups in integer tables. A run of tokens without a choice belongs to the node it leads to, so that a row inside
such a run costs no new node at all. And a number that is being written is a node of its own, whatever crystal it is
for: crystals of formulas that were never seen before share the digits of their numbers.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .choices import Key, token_set
from .state_kinds import Context, Done, Forced, PartialNumber, State, Writing
from .states import next_key, next_state, number_key
from .vocabulary import PAD, TOKEN_IDS, TOKENS

__all__ = ["Rows", "StateTable", "current_table"]

Integers = NDArray[np.int64]

_PAD = TOKEN_IDS[PAD]
_WIDTH = len(TOKENS)
_MOST_NODES = 200_000  # about 2 kB each, mostly in the states themselves
_NONE, _SAME = 0, -1  # no context; the context that was there before
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
    a single token is that token.

    Where the state is a number that is being written, the node stands for the number alone. What it is a number of is
    its context, numbered separately. As long as a token leaves the context as it is, it leads to the same node in
    every context; where the number ends, the next node belongs to node, token and context together.

    Nodes are entered when a row first reaches them, under a lock; a table that is full is replaced by an empty one (see
    :func:`current_table`), and rows move over by themselves.
    """

    def __init__(self, most_nodes: int = _MOST_NODES, most_masks: int = _MOST_MASKS) -> None:
        self.most_nodes = most_nodes
        self.most_masks = most_masks
        self.lock = threading.RLock()
        self.masks: list[Integers] = [np.array([token]) for token in range(_WIDTH)]
        self.ranks = np.full((_WIDTH + 256, _WIDTH), -1, dtype=np.int16)  # place of each token in a set, -1: not in it
        self.ranks[np.arange(_WIDTH), np.arange(_WIDTH)] = 0
        self.contexts: list[Context | None] = [None]
        self._kinds: list[State | PartialNumber] = []  # state after the run of each node, without its context
        self._resize_nodes(np.empty((4, 4096), dtype=np.int64))
        self.runs = np.empty(1 << 14, dtype=np.int64)
        self.next = np.full(1 << 18, -1, dtype=np.int32)  # successors, -1: not met yet, or a question of the context
        self.next_context = np.full(1 << 18, _SAME, dtype=np.int32)
        self.cache: dict[Any, Any] = {}  # what others derive from the table and want to keep with it
        self._numbers: dict[Key, int] = {}
        self._sets: dict[PartialNumber, int] = {}
        self._nodes: dict[tuple[tuple[int, ...], State | PartialNumber], int] = {}
        self._context_numbers: dict[Context, int] = {}
        self._known: dict[State, tuple[int, int]] = {}
        self._ends: dict[tuple[int, int], tuple[int, int]] = {}  # successors that depend on the context, too
        self._runs_filled = self._next_filled = 0
        self.node(Done())

    def __len__(self) -> int:
        return len(self._kinds)

    def _resize_nodes(self, facts: Integers) -> None:
        """Facts about the nodes: number of the set, where successors and run begin, and the length of the run."""
        self._facts = facts
        self.mask, self.base, self.run_start, self.run_length = facts

    @property
    def is_full(self) -> bool:
        """Whether a fresh table should take over."""
        return len(self) + len(self._ends) >= self.most_nodes or len(self.masks) >= self.most_masks

    def node(self, state: State) -> tuple[int, int]:
        """Numbers of a state's node and context, which are entered if they are new."""
        known = self._known.get(state)
        if known is None:
            with self.lock:
                known = self._known[state] = self._enter(state)
        return known

    def state(self, node: int, context: int) -> State:
        """State after the run of a node."""
        kind, of = self._kinds[node], self.contexts[context]
        return kind if of is None else Writing(kind, of)  # type: ignore[return-value, arg-type]

    def follow(self, node: int, context: int, token: int) -> tuple[int, int]:
        """Node and context after the run of ``node`` and one more token, which must be in its set."""
        place = int(self.base[node]) + int(self.ranks[self.mask[node], token])
        known = self._ends.get((place, context))
        if known is None:
            with self.lock:
                known = self._enter(next_state(self.state(node, context), token))
                if context == _NONE or known[1] == context:
                    self.next_context[place] = known[1] if context == _NONE else _SAME
                    self.next[place] = known[0]
                else:
                    self._ends[place, context] = known
        return known

    def _enter(self, state: State) -> tuple[int, int]:
        run: list[int] = []
        while True:
            if isinstance(state, Forced):
                run += state.tokens
                state = state.then
                continue
            number = self._mask(state)
            if isinstance(state, Done) or number >= _WIDTH:
                break
            run.append(number)
            state = next_state(state, number)
        kind: State | PartialNumber = state
        context = _NONE
        if isinstance(state, Writing):
            kind = state.number
            context = self._context_numbers.setdefault(state.context, len(self.contexts))
            if context == len(self.contexts):
                self.contexts.append(state.context)
        key = (tuple(run), kind)
        node = self._nodes.get(key)
        return self._append(*key, number) if node is None else node, context

    def _append(self, run: tuple[int, ...], kind: State | PartialNumber, mask: int) -> int:
        node, choices = len(self._kinds), len(self.masks[mask])
        if node == self._facts.shape[1]:
            self._resize_nodes(np.concatenate([self._facts, np.empty_like(self._facts)], axis=1))
        self._facts[:, node] = mask, self._next_filled, self._runs_filled, len(run)
        if self._runs_filled + len(run) >= len(self.runs):
            self.runs = np.concatenate([self.runs, np.empty_like(self.runs)])
        self.runs[self._runs_filled : self._runs_filled + len(run)] = run
        self._runs_filled += len(run)
        if self._next_filled + choices > len(self.next):
            self.next_context = np.concatenate([self.next_context, np.full_like(self.next, _SAME)])
            self.next = np.concatenate([self.next, np.full_like(self.next, -1)])
        if isinstance(kind, Done):  # nothing but padding follows the end, which is node 0
            self.next[self._next_filled] = 0
        self._next_filled += choices
        self._kinds.append(kind)
        self._nodes[run, kind] = node
        return node

    def _mask(self, state: State) -> int:
        """Number of the set of tokens that can follow; of a forced one it is the token itself."""
        if isinstance(state, Done):
            return _PAD
        if not isinstance(state, Writing):
            return self._numbered(next_key(state))
        number = self._sets.get(state.number)
        if number is None:
            number = self._sets[state.number] = self._numbered(number_key(state.number))
        return number

    def _numbered(self, key: Key) -> int:
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
        table: where they are numbered; the current one by default.

    Attributes:
        table: the table that ``nodes`` refers to.
        nodes: node of each row, shape (rows,).
        contexts: what the number that a row is writing belongs to, shape (rows,).
        places: how many tokens of the node's run are written, shape (rows,).

    Example:
        >>> rows = Rows([Grammar().initial(Prompt("NaCl", formula_units=1))] * 2)
        >>> [TOKENS[token] for token in rows.forced(4)[0]]
        ['Na', '##1', 'Cl', '##1']
    """

    def __init__(self, states: Sequence[State], table: StateTable | None = None) -> None:
        self.table = current_table() if table is None else table
        known: dict[int, tuple[int, int]] = {}  # rows of one prompt share the object
        for state in states:
            if id(state) not in known:
                known[id(state)] = self.table.node(state)
        numbers = np.array([known[id(state)] for state in states], dtype=np.int64).reshape(-1, 2)
        self.nodes, self.contexts = numbers.T.copy()
        self.places = np.zeros(len(states), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.nodes)

    def take(self, index: Integers) -> Rows:
        """The rows with these numbers, in this order, as rows of their own."""
        taken = Rows([], self.table)
        taken.nodes, taken.places, taken.contexts = self.nodes[index], self.places[index], self.contexts[index]
        return taken

    def put(self, index: Integers, rows: Rows) -> None:
        """Let these rows stand where ``rows`` do."""
        if self.table is not rows.table:
            self._move(rows.table)
        self.nodes[index], self.places[index], self.contexts[index] = rows.nodes, rows.places, rows.contexts

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
            self._move(current_table())
        table, nodes = self.table, self.nodes
        tokens = np.where((tokens >= 0) & (tokens < _WIDTH), tokens, _PAD)
        forced = self.places < table.run_length[nodes]
        expected = table.runs[np.where(forced, table.run_start[nodes] + self.places, 0)]
        ranks = table.ranks[table.mask[nodes], tokens]
        legal = np.where(forced, expected == tokens, ranks >= 0)
        stays = forced | (ranks < 0)
        at = np.where(stays, 0, table.base[nodes] + ranks)
        after = np.where(forced, nodes, table.next[at])
        contexts = table.next_context[at]
        contexts = np.where(stays | (contexts == _SAME), self.contexts, contexts)
        after[~legal] = contexts[~legal] = 0
        new = np.flatnonzero(after < 0)  # states that no row has met before, and ends of numbers
        if len(new):
            triples = zip(nodes[new].tolist(), self.contexts[new].tolist(), tokens[new].tolist(), strict=True)
            after[new], contexts[new] = zip(*(table.follow(*triple) for triple in triples), strict=True)
        self.nodes, self.contexts = after.astype(np.int64), contexts.astype(np.int64)
        self.places = np.where(forced & legal, self.places + 1, 0)

    def states(self) -> list[State]:
        """State of each row."""
        found: list[State] = []
        for node, place, context in zip(*(a.tolist() for a in (self.nodes, self.places, self.contexts)), strict=True):
            start, length = int(self.table.run_start[node]), int(self.table.run_length[node])
            run = tuple(self.table.runs[start + place : start + length].tolist())
            state = self.table.state(node, context)
            found.append(Forced(run, state) if run else state)
        return found

    def _move(self, table: StateTable) -> None:
        """Go on in another table."""
        moved = Rows(self.states(), table)
        self.table, self.nodes, self.places, self.contexts = moved.table, moved.nodes, moved.places, moved.contexts
