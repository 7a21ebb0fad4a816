"""The grammar of canonical texts: which tokens can follow, so that every text that is begun can be ended.

One table for all: the sampler masks with it, the scorer renormalises with it, and a text can be checked token by token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .choices import Key, token_set
from .errors import DecodeError, SchemeMismatchError
from .prompts import make_plan
from .state_kinds import Done, State
from .states import initial_state, next_key, next_state
from .vocabulary import MAX_ATOMS, TOKEN_IDS, TOKENS
from .wishes import Asked, read_prompt

__all__ = ["Grammar"]


@lru_cache(maxsize=1 << 14)
def _sorted_set(key: Key) -> NDArray[np.int64]:
    tokens = np.array(sorted(token_set(key)), dtype=np.int64)
    tokens.setflags(write=False)  # the caller gets this very array
    return tokens


class _HasVocabulary(Protocol):
    """Any tokenizer."""

    def get_vocab(self) -> Mapping[str, int]:
        """Id of each token."""


class Grammar:
    """The grammar of canonical texts, without begin token, with end token.

    Args:
        max_atoms: largest primitive cell where a prompt sets no limit.

    Example:
        >>> grammar = Grammar()
        >>> state = grammar.initial(Prompt("BaTiO3", formula_units=1, space_group=221))
        >>> [TOKENS[token] for token in grammar.forced_run(state)[0]]
        ['Ba', '##1', 'Ti', '##1', 'O', '##3', '[Pm-3m]']
    """

    def __init__(self, max_atoms: int = MAX_ATOMS) -> None:
        self.max_atoms = max_atoms

    def initial(self, prompt: Asked = None) -> State:
        """State after the begin token.

        Args:
            prompt: a :class:`Prompt`, a formula, a dict of a prompt's fields, or None for any crystal.

        Raises:
            FormulaError: the prompt's formula cannot be read.
            PromptError: nothing can fulfil the prompt; the message says why.
        """
        return initial_state(make_plan(read_prompt(prompt), self.max_atoms))

    def allowed(self, state: State) -> NDArray[np.int64]:
        """Token ids that can follow, ascending; empty only when the text is complete."""
        return _sorted_set(next_key(state))

    def advance(self, state: State, token: int) -> State:
        """State after one more token.

        Raises:
            DecodeError: the token cannot follow.
        """
        key = next_key(state)
        if key != token:
            tokens = _sorted_set(key)
            at = int(tokens.searchsorted(token))
            if at == len(tokens) or tokens[at] != token:
                self._refuse(state, token)
        return next_state(state, token)

    def _refuse(self, state: State, token: int) -> None:
        found = TOKENS[token] if 0 <= token < len(TOKENS) else f"id {token}"
        expected = [TOKENS[choice] for choice in self.allowed(state)]
        shown = " ".join(expected[:12]) + (f" ... ({len(expected)} in all)" if len(expected) > 12 else "")
        raise DecodeError(f"{found!r} cannot follow here; expected {shown or 'nothing, the text is complete'}")

    def is_final(self, state: State) -> bool:
        """Whether the end token is written."""
        return isinstance(state, Done)

    def forced_run(self, state: State) -> tuple[list[int], State]:
        """All tokens that are the only choice from here on, and the state after them."""
        tokens: list[int] = []
        while len(allowed := self.allowed(state)) == 1:
            tokens.append(int(allowed[0]))
            state = next_state(state, tokens[-1])
        return tokens, state

    def forced_prefix(self, prompt: Asked = None) -> list[int]:
        """Tokens that every answer to the prompt begins with, after the begin token."""
        return self.forced_run(self.initial(prompt))[0]

    def read(self, tokens: Iterable[int], state: State) -> State:
        """State after several tokens.

        Raises:
            DecodeError: naming the first token that cannot follow, and its place.
        """
        for place, token in enumerate(tokens):
            try:
                state = self.advance(state, int(token))
            except DecodeError as error:
                raise DecodeError(f"token {place}: {error}") from None
        return state

    def compile(self, tokenizer: _HasVocabulary) -> Grammar:
        """Check that a tokenizer numbers the tokens as the grammar does, and return the grammar.

        Raises:
            SchemeMismatchError: the tokenizer belongs to something else.
        """
        vocabulary = tokenizer.get_vocab()
        for token, number in TOKEN_IDS.items():
            if vocabulary.get(token) != number:
                raise SchemeMismatchError(
                    f"the tokenizer gives {token!r} the id {vocabulary.get(token)}, the grammar {number}; "
                    "load the tokenizer that was saved with the model"
                )
        return self
