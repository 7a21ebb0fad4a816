"""Other ways to write a crystal, to measure what the canonical form and the tokens are worth (scripts/ablations.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, PreTrainedModel

from ..canonical import CanonicalCrystal
from ..forms import axis_order
from ..grammar import Grammar
from ..grid import COORDINATE_GRID
from ..lattice import lattice_integers, lattice_vectors
from ..normalizer import locate, settings
from ..operations import group_operations, polar_axes
from ..sequence import Description, SiteDescription, format_text, parse_text
from ..vocabulary import BOS, EOS, PAD, TOKEN_IDS, TOKENS
from ..wishes import Prompt
from ..wyckoff import LETTERS, WyckoffPosition, wyckoff_positions

__all__ = ["digit_spelling", "draw_spelled", "random_description", "spell"]

Integers = NDArray[np.int64]
_Spelling = Mapping[int, tuple[int, ...]]

# Marks that the vocabulary keeps for later stand for "." and "0." where digits are single tokens.
_POINT, _ZERO_POINT = TOKEN_IDS["property_1="], TOKEN_IDS["property_2="]


def random_description(text: str, rng: np.random.Generator) -> str:
    """Another text of the same crystal in the standard setting of its space group: one that is not canonical.

    Axes and origin are a random choice of those that the affine normalizer allows (along polar axes, of those that put
    a first site at 0), and each orbit is represented by a random one of its points. Sites keep the order that the
    grammar wants, so that it reads this text as it reads the canonical one.

    Example:
        >>> text = "Na1 Cl1 [Fm-3m] 5.6402 5.6402 5.6402 90 90 90 Na 4a 0 0 0 Cl 4b 1/2 1/2 1/2"
        >>> random_description(text, np.random.default_rng(2))[-29:]
        'Na 4b 1/2 1/2 1/2 Cl 4a 0 0 0'
    """
    crystal, description = CanonicalCrystal.from_text(text), parse_text(text)
    number = description.number
    vectors = lattice_vectors(crystal.lattice)
    choices = settings(number, vectors @ vectors.T)
    chosen = int(rng.integers(len(choices)))
    basis = choices.inverses[chosen]
    a, b, c, alpha, beta, gamma = lattice_integers(number, basis.T @ (vectors @ vectors.T) @ basis)
    elements = [symbol for symbol, _ in description.formula]
    keys, images = [], []
    for site in description.sites:
        letter = int(choices.letters[chosen][LETTERS.index(site.wyckoff[-1])])
        operations, shifts = group_operations(number)
        moved = operations @ (np.array(site.coords) / COORDINATE_GRID) + shifts / 24.0
        moved = moved @ choices.rotations[chosen].T + choices.translations[chosen]
        on_triplet = moved[locate(wyckoff_positions(number)[letter], moved)]
        keys.append((elements.index(site.element), letter))
        images.append(on_triplet[rng.integers(len(on_triplet))])
    first = rng.choice([index for index, key in enumerate(keys) if key == min(keys)])
    origin = np.zeros(3)
    origin[list(polar_axes(number))] = images[first][list(polar_axes(number))]
    sites = []
    for (rank, letter), image in zip(keys, images, strict=True):
        position = wyckoff_positions(number)[letter]
        point = _on_grid(position, image - origin)
        order = tuple(point[axis] for axis in axis_order(number))
        sites.append((rank, letter, order, SiteDescription(elements[rank], position.name, point)))
    sites.sort(key=lambda site: site[:3])
    return format_text(
        Description(number, (a, b, c, alpha, beta, gamma), tuple(site[3] for site in sites), description.formula)
    )


def _on_grid(position: WyckoffPosition, image: NDArray[np.float64]) -> tuple[int, int, int]:
    """A point of the position's first triplet in units of the grid."""
    parameters = np.zeros(3, dtype=np.int64)
    for parameter, axis, sign in position.pivots:
        parameters[parameter] = np.rint(sign * (image[axis] - position.offset[axis]) * COORDINATE_GRID)
    row = position.matrix @ parameters + np.array(position.shift24) * (COORDINATE_GRID // 24)
    x, y, z = (row % COORDINATE_GRID).tolist()
    return x, y, z


@cache
def digit_spelling() -> dict[int, tuple[int, ...]]:
    """Tokens of numbers as single digits: ``5. ##64 ##02`` becomes ``5 . 6 4 0 2``; other tokens are left out."""
    digits = [TOKEN_IDS[f"##{digit}"] for digit in range(10)]

    def spelled(number: str) -> tuple[int, ...]:
        return tuple(digits[int(digit)] for digit in number)

    spelling: dict[int, tuple[int, ...]] = {}
    for index, token in enumerate(TOKENS):
        if token.startswith("##") and len(token) == 4:
            spelling[index] = spelled(token[2:])
        elif token.startswith("0.") and len(token) == 4:
            spelling[index] = (_ZERO_POINT, *spelled(token[2:]))
        elif token.endswith(".") and token[:-1].isdigit():
            spelling[index] = (*spelled(token[:-1]), _POINT)
    return spelling


def spell(ids: Sequence[int], spelling: _Spelling) -> list[int]:
    """A sequence with each token spelled out.

    Example:
        >>> len(spell(tokenize("5.6402"), digit_spelling()))
        6
    """
    return [part for token in ids for part in spelling.get(token, (token,))]


class _Row:
    """One sequence that is being drawn: where the grammar is, what is to be written without asking, what is begun."""

    def __init__(self, prompt: Prompt, grammar: Grammar, spelling: _Spelling) -> None:
        self.grammar, self.spelling = grammar, spelling
        self.state = grammar.initial(prompt)
        self.tokens: list[int] = []
        self.begun: tuple[int, ...] = ()
        self.queue: list[int] = []
        self._follow()

    def _follow(self) -> None:
        """Append what must follow."""
        forced, self.state = self.grammar.forced_run(self.state)
        self.tokens += forced
        self.queue += spell(forced, self.spelling)
        self.open = {}
        for token in self.grammar.allowed(self.state).tolist():
            self.open[self.spelling.get(token, (token,))] = token

    @property
    def done(self) -> bool:
        return not self.open

    def choices(self) -> list[int]:
        """Parts that can follow."""
        place = len(self.begun)
        return sorted({parts[place] for parts in self.open if parts[:place] == self.begun})

    def take(self, part: int) -> None:
        self.begun += (part,)
        if (token := self.open.get(self.begun)) is not None:
            self.tokens.append(token)
            self.begun = ()
            self.state = self.grammar.advance(self.state, token)
            self._follow()


@torch.inference_mode()
def draw_spelled(
    model: PreTrainedModel, prompts: Sequence[Prompt], spelling: _Spelling, temperature: float, seed: int
) -> list[list[int]]:
    """A sample for each prompt from a model whose tokens are spelled out, under the grammar.

    Returns:
        token ids of the usual vocabulary, without ``<s>``; not ended by ``</s>`` where the model cannot read on.
    """
    grammar, generator = Grammar(), torch.Generator().manual_seed(seed)
    rows = [_Row(prompt, grammar, spelling) for prompt in prompts]
    cache_ = DynamicCache(config=model.config)
    current = [TOKEN_IDS[BOS]] * len(rows)
    limit = int(model.config.max_position_embeddings)
    for _ in range(limit - 1):
        output = model(input_ids=torch.tensor(current)[:, None], past_key_values=cache_, use_cache=True)
        logits = output.logits[:, -1].float() / temperature
        mask = torch.full_like(logits, -torch.inf)
        for index, row in enumerate(rows):
            mask[index, row.queue[:1] or row.choices() or [TOKEN_IDS[PAD]]] = 0.0
        drawn = torch.multinomial((logits + mask).softmax(-1), 1, generator=generator)[:, 0].tolist()
        for row, part in zip(rows, drawn, strict=True):
            if row.queue:
                row.queue.pop(0)
            elif not row.done:
                row.take(part)
        current = drawn
        if all(row.done and not row.queue for row in rows):
            break
    return [row.tokens if not row.queue else [t for t in row.tokens if t != TOKEN_IDS[EOS]] for row in rows]
