"""What a sampled sequence is: the crystal it stands for, and whether it is one that was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from itertools import accumulate
from math import gcd
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from .canonical import CanonicalCrystal
from .cell import VALID_DISTANCE, minimal_distance
from .cif import cif_text
from .elements import ORDER
from .errors import DecodeError, Mat2SeqError
from .prompts import Plan, make_plan
from .reduction import minkowski_basis
from .vocabulary import EOS, TOKEN_IDS
from .wishes import Prompt

if TYPE_CHECKING:
    from pymatgen.core import Structure

__all__ = [
    "Sample",
    "can_be_neutral",
    "closest_sites",
    "describe_sample",
    "is_charge_neutral",
    "mark_duplicates",
]


class Sample(TypedDict):
    """One answer of the generator.

    Attributes:
        structure: primitive cell; None if the text is no crystal, as are cif, canonical_text, formula, space_group.
        cif: CIF text with the stated symmetry.
        text: the sequence as sampled, prompt included.
        canonical_text: the sequence of the crystal after canonicalising it again; equal for equal crystals. None also
            for what cannot be canonicalised, such as overlapping atoms.
        formula: of the primitive cell, such as ``"Ba1 Ti1 O3"``.
        space_group: as stated in the text, such as ``"Pm-3m"``.
        log_prob: natural logarithm of the probability of what follows the prompt, at temperature 1, renormalised over
            what the grammar allows.
        log_prob_raw: the same without the grammar.
        finished: whether the sequence was ended.
        valid: finished, a crystal, the asked one, and all interatomic distances above 0.5 angstrom.
        reason: why it is not valid, else None.
        min_distance: shortest interatomic distance in angstrom, images of an atom included.
        volume_per_atom: in cubic angstrom.
        charge_neutral: whether smact finds oxidation states that add up to zero and fit the electronegativities; None
            if smact is not installed or knows nothing of an element.
        duplicate_of: number of an earlier sample of the same answer that is the same crystal (equal canonical_text),
            None if there is none. Nothing is left out for it.
    """

    structure: Structure | None
    cif: str | None
    text: str
    canonical_text: str | None
    formula: str | None
    space_group: str | None
    log_prob: float
    log_prob_raw: float
    finished: bool
    valid: bool
    reason: str | None
    min_distance: float | None
    volume_per_atom: float | None
    charge_neutral: bool | None
    duplicate_of: int | None


def describe_sample(
    ids: Sequence[int], prompt: Prompt, *, log_prob: float, log_prob_raw: float, symprec: float = 0.01
) -> Sample:
    """Read a sampled sequence and judge it. Never raises for what a model may have written.

    Args:
        ids: token ids, shape (n,), prompt included; padding and ``<s>`` in front are skipped.
        prompt: what was asked.
        log_prob, log_prob_raw: see :class:`Sample`.
        symprec: tolerance in angstrom for the canonical text.
    """
    from .tokenizer import text_of_tokens  # here, because evaluations need this module in processes without torch

    sample = Sample(
        structure=None,
        cif=None,
        text="",
        canonical_text=None,
        formula=None,
        space_group=None,
        log_prob=log_prob,
        log_prob_raw=log_prob_raw,
        finished=TOKEN_IDS[EOS] in ids,
        valid=False,
        reason=None,
        min_distance=None,
        volume_per_atom=None,
        charge_neutral=None,
        duplicate_of=None,
    )
    try:
        sample["text"] = text_of_tokens(ids)
        crystal = CanonicalCrystal.from_text(sample["text"])
        structure = crystal.to_structure()
    except DecodeError as error:
        sample["reason"] = str(error) if sample["finished"] else f"cut off at {len(ids)} tokens: {error}"
        return sample
    sample["structure"], sample["cif"] = structure, cif_text(crystal)
    sample["formula"], sample["space_group"] = crystal.formula, crystal.space_group
    with suppress(Mat2SeqError):
        sample["canonical_text"] = crystal.canonical(symprec).text
    sample["charge_neutral"] = is_charge_neutral(tuple(crystal.composition.items()))
    sample["volume_per_atom"] = structure.volume / len(structure)
    distance, *pair = closest_sites(structure)
    sample["min_distance"] = distance
    complaint = _mismatch(make_plan(prompt), crystal) or _too_close(structure, distance, pair)
    if not sample["finished"]:
        complaint = f"cut off at {len(ids)} tokens, before the end token"
    sample["valid"], sample["reason"] = complaint is None, complaint
    return sample


def _mismatch(plan: Plan, crystal: CanonicalCrystal) -> str | None:
    """How a crystal differs from what was asked, independent of the grammar that should have prevented it."""
    counts = crystal.composition
    atoms = sum(counts.values())
    if crystal.space_group_number not in plan.groups:
        return f"the space group {crystal.space_group} was not asked for"
    if plan.ranks is not None and tuple(ORDER[element] for element in counts) != plan.ranks:
        return f"the elements of {crystal.formula} are not the ones asked for"
    if plan.ratio is not None and tuple(counts.values()) not in {
        tuple(count * units for count in plan.ratio) for units in plan.units
    }:
        return f"{crystal.formula} is not the formula asked for"
    if not plan.low <= atoms <= plan.high:
        return f"{atoms} atoms in the primitive cell, asked for {plan.low} to {plan.high}"
    return None


def closest_sites(structure: Structure) -> tuple[float, int, int]:
    """Shortest interatomic distance in angstrom, and the two sites."""
    basis = minkowski_basis(structure.lattice.matrix)
    positions = structure.frac_coords @ np.linalg.inv(basis)
    distance, first, second = minimal_distance(basis @ structure.lattice.matrix, positions)
    return float(distance), int(first), int(second)


def _too_close(structure: Structure, distance: float, pair: Sequence[int]) -> str | None:
    if distance > VALID_DISTANCE:
        return None
    names = [f"site {site} ({structure[site].specie})" for site in pair]
    return f"{names[0]} and {names[1]} are {distance:.3f} angstrom apart, more than {VALID_DISTANCE} is needed"


def _smact() -> Any:
    """The package, by its name: transformers demands what a copied file imports of everyone who loads a model."""
    return import_module("smact")


@cache
def _ions(symbol: str) -> tuple[float | None, tuple[int, ...]] | None:
    """Pauling electronegativity and oxidation states (smact's list of 2014) of an element; None if smact lacks it."""
    try:
        element = _smact().Element(symbol)
    except (KeyError, NameError, TypeError):
        return None
    return element.pauling_eneg, tuple(element.oxidation_states_smact14 or ())


def can_be_neutral(composition: Iterable[tuple[str, int]]) -> bool:
    """Whether a composition is a pure element, an alloy of metals, or neutral with the anions the more electronegative.

    The rule is CDVAE's, and the verdict that of ``smact_validity`` with the oxidation states of smact's list of 2014:
    all atoms of an element have the same one, and each cation is less electronegative than each anion. smact tries all
    combinations, of which eight elements can have millions; here the time does not depend on their number.

    Args:
        composition: symbols and counts, each symbol once.

    Returns:
        False also for compounds of elements that smact has no electronegativity or oxidation state of.

    Raises:
        ImportError: smact is not installed.

    Example:
        >>> can_be_neutral([("Na", 1), ("Cl", 1)])
        True
    """
    counts, metals = dict(composition), _smact().metals
    if len(counts) == 1 or counts.keys() <= set(metals):
        return True
    units = gcd(*counts.values())
    ordered: list[tuple[float, tuple[int, ...]]] = []
    for symbol, count in counts.items():
        electronegativity, states = _ions(symbol) or (None, ())
        if electronegativity is None or not states:
            return False
        ordered.append((electronegativity, tuple(state * (count // units) for state in states)))
    ordered.sort()
    charges = [states for _, states in ordered]
    # number k: the charges that the k least electronegative elements can have together if none of them is an anion,
    # and the (negative) charges of the others if none of them is a cation
    cations = list(accumulate(charges, _sums, initial=1))
    anions = list(accumulate([[-charge for charge in states] for states in reversed(charges)], _sums, initial=1))[::-1]
    return any(
        cations[k] & anions[k]
        for k in range(len(ordered) + 1)
        if k in (0, len(ordered)) or ordered[k - 1][0] < ordered[k][0]  # equal ones are cations or anions together
    )


def _sums(reached: int, charges: Iterable[int]) -> int:
    """Sums of one of the reached charges and one of these, negative ones left out; bit n of a set stands for n."""
    found = 0
    for charge in charges:
        if charge >= 0:
            found |= reached << charge
    return found


def is_charge_neutral(composition: tuple[tuple[str, int], ...]) -> bool | None:
    """Whether smact finds a composition plausible, see :func:`can_be_neutral`.

    Args:
        composition: symbols and counts.

    Returns:
        None if smact is not installed (``pip install mat2seq-hf[evaluate]``) or lacks an element, pure or not.

    Example:
        >>> is_charge_neutral((("Na", 1), ("Cl", 1)))
        True
    """
    try:
        if any(_ions(symbol) is None for symbol, _ in composition):
            return None
        return can_be_neutral(composition)
    except ImportError:
        return None


def mark_duplicates(samples: list[Sample]) -> list[Sample]:
    """The samples, with ``duplicate_of`` filled in."""
    first: dict[str, int] = {}
    for number, sample in enumerate(samples):
        text = sample["canonical_text"]
        if text is not None and first.setdefault(text, number) != number:
            sample["duplicate_of"] = first[text]
    return samples
