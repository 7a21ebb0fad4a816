"""Prefix fields in front of training sequences.

A model conditions on a space group, a band gap and so on if they stand before the formula. In training each crystal
comes with some of its fields, drawn anew in each epoch, and often with none, so that one model answers with any of
them and without. They have no loss unless ``loss_on`` is ``everything``, with which the model also learns their values.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import Mat2SeqError
from ..operations import crystal_system
from ..sequence import Description, parse_text
from ..vocabulary import END_OF_FIELDS, FIELDS, UNKNOWN_VALUE, group_word, tokenize

__all__ = ["FieldTokens", "PrefixDraw", "check_fields", "check_values", "field_tokens"]

logger = logging.getLogger(__name__)

_LARGEST = 100.0  # values from here on have no words


@dataclass(frozen=True)
class FieldTokens:
    """One field of every crystal: ``name= value`` as tokens.

    Attributes:
        ids: of all crystals in a row, int16.
        offsets: crystal ``i`` has ``ids[offsets[i]:offsets[i + 1]]``; shape (crystals + 1,).
        unknown: crystals without a value.
    """

    ids: NDArray[np.int16]
    offsets: NDArray[np.int64]
    unknown: int

    def __getitem__(self, index: int) -> NDArray[np.int16]:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each crystal's field."""
        return np.diff(self.offsets)

    def select(self, indices: Iterable[int]) -> FieldTokens:
        """The field of the crystals ``indices``, in that order."""
        return _joined([self[int(index)].tolist() for index in indices], self.unknown)


def _joined(parts: Sequence[Sequence[int]], unknown: int) -> FieldTokens:
    offsets = np.cumsum([0, *map(len, parts)], dtype=np.int64)
    return FieldTokens(np.array([token for part in parts for token in part], dtype=np.int16), offsets, unknown)


def check_fields(names: Sequence[str]) -> tuple[str, ...]:
    """The fields in the order of the vocabulary.

    Raises:
        Mat2SeqError: a field that the vocabulary does not have.
    """
    if unknown := [name for name in names if name not in FIELDS]:
        raise Mat2SeqError(f"no prefix field {', '.join(unknown)}; there are {', '.join(FIELDS)}")
    return tuple(name for name in FIELDS if name in names)


def _words(name: str, description: Description, properties: Mapping[str, object]) -> str | None:
    """The field as text, or None where the crystal has no value."""
    if name == "space_group":
        return f"{name}= {group_word(description.number)}"
    if name == "crystal_system":
        return f"{name}= {crystal_system(description.number)}"
    if name == "elements":
        return f"{name}= " + " ".join(element for element, _ in description.formula)
    if name == "n_atoms":
        return f"{name}={sum(count for _, count in description.formula)}"
    value = properties.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    rounded = round(value, 2)
    return None if abs(rounded) >= _LARGEST else f"{name}= {rounded + 0.0:+.2f}"


def field_tokens(names: Sequence[str], texts: Sequence[str], properties: Sequence[str]) -> dict[str, FieldTokens]:
    """Tokens of the fields ``names`` for crystals with these texts and properties (JSON objects)."""
    found: dict[str, list[list[int]]] = {name: [] for name in names}
    unknown = dict.fromkeys(names, 0)
    for text, record in zip(texts, properties, strict=True):
        description, values = parse_text(text), json.loads(record or "{}")
        for name in names:
            words = _words(name, description, values)
            unknown[name] += words is None
            found[name].append(tokenize(words if words is not None else f"{name}= {UNKNOWN_VALUE}"))
    return {name: _joined(parts, unknown[name]) for name, parts in found.items()}


def check_values(unknown: Mapping[str, int], crystals: int, where: str) -> None:
    """Say how many of the crystals of a whole corpus have no value of a field.

    Raises:
        Mat2SeqError: a property that no crystal has.
    """
    for name, count in unknown.items():
        if 0 < count == crystals:
            raise Mat2SeqError(f"no crystal of {where} has a number {name!r}: prepare the corpus from a table with it")
        if count:
            logger.warning("%d of %d crystals of %s have no %s: it is unknown there", count, crystals, where, name)


class PrefixDraw:
    """Which fields a crystal shows in an epoch: a function of seed, epoch and crystal alone.

    Args:
        fields: in the order of the vocabulary.
        dropout: probability that a crystal shows none; otherwise it shows some, each choice of one or more of them
            being equally likely. At 0 it always shows all.
        seed: of the draw.
    """

    def __init__(self, fields: Mapping[str, FieldTokens], dropout: float, seed: int) -> None:
        if not 0.0 <= dropout <= 1.0:
            raise Mat2SeqError(f"prefix_dropout {dropout!r} is no probability")
        self.fields = dict(fields)
        self.dropout = dropout
        self.seed = seed

    def ids(self, index: int, epoch: int) -> list[int]:
        """Tokens of the prefix, end of fields included; none where no field is shown."""
        if not self.fields:
            return []
        generator = np.random.default_rng([self.seed, epoch, index])
        if generator.random() < self.dropout:
            return []
        every = 2 ** len(self.fields) - 1
        shown = int(generator.integers(1, every, endpoint=True)) if self.dropout else every  # one bit for each field
        return self.prefix(index, [name for bit, name in enumerate(self.fields) if shown >> bit & 1])

    def prefix(self, index: int, names: Sequence[str]) -> list[int]:
        """Tokens of the fields ``names``, end of fields included."""
        tokens = [token for name in names for token in self.fields[name][index].tolist()]
        return [*tokens, *tokenize(END_OF_FIELDS)] if tokens else []
