"""Which of many samples of a prompt come first: those that other samples agree with."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

from .canonical import CanonicalCrystal
from .cell import VALID_DISTANCE
from .errors import DecodeError
from .samples import closest_sites
from .sampling import Drawn
from .tokenizer import text_of_tokens

__all__ = ["best_of", "consensus_order", "prototype"]


def prototype(crystal: CanonicalCrystal) -> tuple[Hashable, ...]:
    """What two samples must share to agree: the space group, and element and Wyckoff position of each site.

    Example:
        >>> text = "Na1 Cl1 [Fm-3m] 5.6916 5.6916 5.6916 90 90 90 Na 4a 0 0 0 Cl 4b 1/2 1/2 1/2"
        >>> prototype(CanonicalCrystal.from_text(text))
        (225, 'Na 4a', 'Cl 4b')
    """
    return (crystal.space_group_number, *(f"{site.element} {site.wyckoff}" for site in crystal.sites))


def consensus_order(
    prototypes: Sequence[Hashable | None], log_probs: Sequence[float], texts: Sequence[Hashable] | None = None
) -> list[int]:
    """Indices of the samples, the best first.

    The first is the likeliest sample of the most frequent prototype, the second the likeliest of the next one, and so
    on; after the likeliest of each prototype come the second ones. Of prototypes that are equally frequent the one with
    the likelier sample is first. Frequency says more than probability: the probability of a text is mostly that of the
    last digits of its numbers (scripts/search_sampling.py measures both).

    Args:
        prototypes: of each sample; None, which comes last, for what is no valid crystal.
        log_probs: of each sample.
        texts: of each sample; valid ones whose text has come before go behind those whose text has not.

    Example:
        >>> consensus_order(["rutile", "anatase", "anatase", None], [-1.0, -5.0, -4.0, 0.0])
        [2, 0, 1, 3]
    """
    votes = Counter(prototypes)
    seen: Counter[Hashable] = Counter()
    taken: set[Hashable] = set()
    keys = {}
    for index in sorted(range(len(prototypes)), key=lambda index: -log_probs[index]):
        kind = prototypes[index]
        text = index if texts is None else texts[index]
        again = text in taken
        keys[index] = (2, 0, 0) if kind is None else (int(again), seen[kind, again], -votes[kind])
        seen[kind, again] += 1
        taken.add(text)
    return sorted(keys, key=keys.__getitem__)  # stable: what is equal so far stays in the order of probability


def best_of(drawn: Sequence[Drawn], count: int) -> list[Drawn]:
    """The best samples by :func:`consensus_order`; repeated, overlapping and unfinished ones come last."""
    order = consensus_order(
        [_valid_prototype(sample) for sample in drawn],
        [sample.log_prob if sample.finished else -math.inf for sample in drawn],
        [tuple(sample.ids) for sample in drawn],
    )
    return [drawn[index] for index in order[:count]]


def _valid_prototype(sample: Drawn) -> tuple[Hashable, ...] | None:
    if not sample.finished:
        return None
    try:
        crystal = CanonicalCrystal.from_text(text_of_tokens(sample.ids))
        distance, *_ = closest_sites(crystal.to_structure())
    except DecodeError:
        return None
    return prototype(crystal) if distance > VALID_DISTANCE else None
