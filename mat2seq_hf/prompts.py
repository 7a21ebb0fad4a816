"""Which formulas and space groups fulfil what is asked of the generator.

A :class:`Prompt` is the question, a :class:`Plan` what follows from it: the space groups, elements and counts that are
still possible. A plan is only made of prompts that some crystal can fulfil; all others raise an error that says why.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from .cif_reading import gemmi
from .elements import ELEMENTS, ORDER
from .errors import FormulaError, PromptError
from .feasibility import can_extend, fits, smallest_cell
from .operations import crystal_system
from .vocabulary import (
    CRYSTAL_SYSTEMS,
    END_OF_FIELDS,
    FIELDS,
    MAX_ATOMS,
    NUMERIC_FIELDS,
    UNKNOWN_VALUE,
    group_word,
    tokenize,
)
from .wishes import Prompt, formula_text
from .wyckoff import SYMBOLS, space_group_number

__all__ = ["Plan", "make_plan", "parse_formula", "prompt_for_model", "reduced"]

_FORMULA_PART = re.compile(r"([A-Z][a-z]?)(\d*)|(\()|(\))(\d*)|(\s+)")


def parse_formula(text: str) -> dict[str, int]:
    """Atoms of each element in a formula, brackets included.

    Raises:
        FormulaError: an unknown element, a count of zero, a fraction, or something that is no formula.

    Example:
        >>> parse_formula("Ca(OH)2")
        {'Ca': 1, 'O': 2, 'H': 2}
    """
    text = formula_text(text)
    stack: list[dict[str, int]] = [{}]
    position = 0
    while position < len(text):
        match = _FORMULA_PART.match(text, position)
        if match is None:
            raise FormulaError(f"formula {text!r}: cannot read {text[position:]!r}; write for instance 'BaTiO3'")
        position = match.end()
        element, count, opens, closes, factor, _ = match.groups()
        if element is not None:
            if element not in ORDER:
                raise FormulaError(f"formula {text!r}: {element!r} is not an element")
            stack[-1][element] = stack[-1].get(element, 0) + _whole(count, text)
        elif opens:
            stack.append({})
        elif closes:
            if len(stack) == 1:
                raise FormulaError(f"formula {text!r}: a ')' without '('")
            times = _whole(factor, text)
            for inner, number in stack.pop().items():
                stack[-1][inner] = stack[-1].get(inner, 0) + number * times
    if len(stack) > 1:
        raise FormulaError(f"formula {text!r}: a '(' is not closed")
    if not stack[0]:
        raise FormulaError("the formula is empty; write for instance 'BaTiO3'")
    return stack[0]


def _whole(digits: str, text: str) -> int:
    count = int(digits[:9] or 1)  # longer ones are refused anyway, and int() has a limit of its own
    if digits.startswith("0"):
        hint = "write whole numbers" if "." in text else "is it the letter O, for oxygen?"
        raise FormulaError(f"formula {text!r}: a count cannot begin with 0; {hint}")
    if not 1 <= count <= MAX_ATOMS:
        raise FormulaError(f"formula {text!r}: {digits} is not a count from 1 to {MAX_ATOMS}")
    return count


@dataclass(frozen=True)
class Plan:
    """The formulas and space groups that fulfil a prompt.

    Attributes:
        prompt: what was asked.
        prefix: token ids of the prefix fields; a pair is a range of numbers in hundredths.
        groups: space groups that may be used, ascending.
        ranks: ranks of the elements that must occur, ascending, or None for any.
        ratio: counts in one formula unit, in the order of ``ranks``, or None if no formula is asked.
        units: possible numbers of formula units, ascending.
        low, high: least and largest number of atoms in the primitive cell.
    """

    prompt: Prompt
    prefix: tuple[int | tuple[int, int], ...]
    groups: tuple[int, ...]
    ranks: tuple[int, ...] | None
    ratio: tuple[int, ...] | None
    units: tuple[int, ...]
    low: int
    high: int

    def next_counts(self, rank: int, counts: tuple[int, ...]) -> tuple[int, ...]:
        """Counts that the element of this rank can have after the elements before it got ``counts``."""
        if self.ratio is not None:
            if counts:
                return (self.ratio[len(counts)] * (counts[0] // self.ratio[0]),)
            return tuple(self.ratio[0] * units for units in self.units)
        left = self.high - sum(counts)
        more = 0 if self.ranks is None else len(self.ranks) - len(counts) - 1
        is_last = more == 0 if self.ranks is not None else rank == len(ELEMENTS) - 1
        low = self.low - sum(counts)
        return tuple(
            count
            for count in range(1, left - more + 1)
            if self._extends((*counts, count), more, max(low - count, 0), 0 if is_last else left - count)
        )

    def next_ranks(self, ranks: tuple[int, ...], counts: tuple[int, ...]) -> tuple[int, ...]:
        """Ranks of the elements that can follow in the formula."""
        if self.ranks is not None:
            return self.ranks[len(ranks) : len(ranks) + 1]
        done = sum(counts)
        if not self._extends(counts, 1, self.low - done, self.high - done):
            return ()
        return tuple(range(ranks[-1] + 1 if ranks else 0, len(ELEMENTS)))

    def open_groups(self, counts: tuple[int, ...]) -> tuple[int, ...]:
        """Space groups that can hold a formula, if it is complete."""
        if not self.low <= sum(counts) <= self.high or (self.ranks is not None and len(counts) < len(self.ranks)):
            return ()
        return _groups_that_fit(self.groups, tuple(sorted(counts)))

    def _extends(self, counts: tuple[int, ...], elements: int, low: int, high: int) -> bool:
        if max(low, elements) > high:  # no number of atoms: nothing to ask each of the groups
            return False
        return any(can_extend(number, tuple(sorted(counts)), elements, low, high) for number in self.groups)


@lru_cache(maxsize=1 << 14)
def _groups_that_fit(groups: tuple[int, ...], counts: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(number for number in groups if fits(number, counts))


def _in_range(value: int, name: str, low: int, high: int) -> None:
    if not low <= value <= high:
        raise PromptError(f"{name} must be a whole number from {low} to {high}, not {value}")


def reduced(counts: Mapping[str, int]) -> dict[str, Any]:
    """The fields of a prompt that ask for these atoms in the primitive cell: formula and formula units.

    Example:
        >>> reduced({"Si": 3, "O": 6})
        {'formula': 'Si1O2', 'formula_units': 3}
    """
    units = math.gcd(*counts.values())
    words = (f"{element}{count // units}" for element, count in counts.items())
    return {"formula": "".join(words), "formula_units": units}


def _groups(prompt: Prompt) -> tuple[int, ...]:
    system, asked = prompt.crystal_system, prompt.space_group
    if system is not None and system not in CRYSTAL_SYSTEMS:
        raise PromptError(f"unknown crystal system {system!r}; there are {', '.join(CRYSTAL_SYSTEMS)}")
    groups = tuple(number for number in range(1, 231) if system in (None, crystal_system(number)))
    if asked is None:
        return groups
    number = space_group_number(asked) if isinstance(asked, str) else asked
    if number is None:
        raise PromptError(
            f"unknown space group {asked!r}{_similar(str(asked))}; write a number or a short symbol such as 'Fm-3m', "
            "'P2_1/c'"
        )
    _in_range(number, "the number of a space group", 1, 230)
    if number not in groups:
        raise PromptError(f"space group {_name(number)} is {crystal_system(number)}, not {system}")
    return (number,)


def _similar(symbol: str) -> str:
    """What may have been meant: another setting, an old name, subscripts without ``_``, other case, blanks."""
    plain = {known.replace("_", "").lower(): number for number, known in enumerate(SYMBOLS, start=1)}
    if number := plain.get(re.sub(r"[_\s]", "", symbol).lower()):
        return f" (did you mean {SYMBOLS[number - 1]!r}?)"
    setting = gemmi.find_spacegroup_by_name(symbol.replace("_", "")) if gemmi else None
    if setting is None:
        return ""
    return f" (another setting or name of {SYMBOLS[setting.number - 1]!r}, number {setting.number})"


def _name(number: int) -> str:
    return f"{number} ({SYMBOLS[number - 1]})"


def _elements(prompt: Prompt, formula: dict[str, int] | None) -> tuple[int, ...] | None:
    asked = None if prompt.elements is None else set(prompt.elements)
    if asked is not None and not asked:
        raise PromptError("elements is empty; leave it out to allow any element")
    for symbol in asked or ():
        if symbol not in ORDER:
            raise PromptError(f"{symbol!r} is not an element")
    if formula is not None and asked not in (None, set(formula)):
        raise PromptError(f"the formula {prompt.formula} does not consist of the elements {sorted(asked or ())}")
    symbols = formula if formula is not None else asked
    return None if symbols is None else tuple(sorted(ORDER[symbol] for symbol in symbols))


def _atom_range(prompt: Prompt, max_atoms: int) -> tuple[int, int]:
    for name in ("n_atoms", "max_atoms", "formula_units"):
        if getattr(prompt, name) is not None:
            _in_range(getattr(prompt, name), name, 1, MAX_ATOMS)
    high = prompt.max_atoms if prompt.max_atoms is not None else max_atoms
    if prompt.n_atoms is None:
        return 1, high
    if prompt.max_atoms is not None and prompt.n_atoms > prompt.max_atoms:
        raise PromptError(f"{prompt.n_atoms} atoms are asked for, and at most {prompt.max_atoms}")
    return prompt.n_atoms, prompt.n_atoms


def _hundredths(name: str, value: float) -> int:
    """A property value on the grid of the prefix fields."""
    if abs(round(value, 2)) >= 100:
        raise PromptError(f"{name} must lie between -99.99 and 99.99, not {value!r}")
    return round(round(value, 2) * 100)


def _field_value(name: str, value: float | tuple[float, ...] | None) -> list[int | tuple[int, int]]:
    """Tokens of a property's value, or its range."""
    if name not in NUMERIC_FIELDS:
        raise PromptError(f"unknown property {name!r}; there are {', '.join(NUMERIC_FIELDS)}")
    if value is None:
        return list(tokenize(UNKNOWN_VALUE))
    if not isinstance(value, tuple):
        return list(tokenize(f"{_hundredths(name, value) / 100 + 0.0:+.2f}"))
    if len(value) != 2:
        raise PromptError(f"a range of {name} is a pair (low, high), not {value!r}")
    low, high = (_hundredths(name, end) for end in value)
    if low > high:
        raise PromptError(f"the range of {name} is empty: {value[0]} is larger than {value[1]}")
    return [(low, high)] if low < high else _field_value(name, value[0])


def _conditions(prompt: Prompt) -> list[str]:
    """Prefix fields that a prompt writes because of ``condition``."""
    names = ("space_group", "crystal_system", "elements", "n_atoms")
    return [name for name in names if prompt.condition and getattr(prompt, name) is not None]


def _prefix(
    prompt: Prompt, ranks: tuple[int, ...] | None, groups: tuple[int, ...]
) -> tuple[int | tuple[int, int], ...]:
    values: dict[str, Sequence[int | tuple[int, int]]] = {}
    values |= {name: _field_value(name, value) for name, value in prompt.properties}
    words = {
        "space_group": group_word(groups[0]),
        "crystal_system": str(prompt.crystal_system),
        "elements": " ".join(ELEMENTS[rank] for rank in ranks or ()),
    }
    for name in _conditions(prompt):
        # a number stands in one word with its field
        values[name] = [*tokenize(f"n_atoms={prompt.n_atoms}")][1:] if name == "n_atoms" else [*tokenize(words[name])]
    if not values:
        return ()
    parts = [part for name in FIELDS if name in values for part in (*tokenize(f"{name}="), *values[name])]
    return (*parts, *tokenize(END_OF_FIELDS))


def _formula_plan(prompt: Prompt, plan: Plan, formula: dict[str, int]) -> Plan:
    """The plan of a prompt with a formula: its numbers of formula units."""
    divisor = math.gcd(*formula.values())
    ratio = tuple(formula[ELEMENTS[rank]] // divisor for rank in plan.ranks or ())
    atoms = sum(ratio)
    asked = [prompt.formula_units] if prompt.formula_units is not None else range(1, MAX_ATOMS + 1)
    sizes = [units for units in asked if plan.low <= units * atoms <= plan.high]
    if not sizes:
        wanted = f"{plan.low}" if plan.low == plan.high else f"{plan.low} to {plan.high}"
        units = "any number of" if prompt.formula_units is None else str(prompt.formula_units)
        raise PromptError(
            f"{prompt.formula} has {atoms} atoms in a formula unit, so {units} formula units do not give "
            f"a primitive cell of {wanted} atoms"
        )
    fitting = tuple(
        units for units in sizes if any(fits(g, tuple(sorted(n * units for n in ratio))) for g in plan.groups)
    )
    if not fitting:
        raise PromptError(
            f"{_where(plan.groups)} hold {' or '.join(map(str, sizes[:9]))}{' ...' * (len(sizes) > 9)} formula "
            f"units of {prompt.formula} in a primitive cell: the multiplicities of its Wyckoff positions do not add up"
        )
    return Plan(prompt, plan.prefix, plan.groups, plan.ranks, ratio, fitting, plan.low, plan.high)


def _where(groups: tuple[int, ...]) -> str:
    """Who cannot hold something, up to the verb."""
    if len(groups) == 1:
        return f"space group {_name(groups[0])} cannot"
    return "no space group can" if len(groups) == len(SYMBOLS) else "none of the space groups asked for can"


@lru_cache(maxsize=1 << 14)
def make_plan(prompt: Prompt, max_atoms: int = MAX_ATOMS) -> Plan:
    """Check a prompt and work out what fulfils it.

    Args:
        prompt: what is asked.
        max_atoms: largest primitive cell where the prompt sets no limit.

    Raises:
        FormulaError: the formula cannot be read.
        PromptError: an unknown name, a value out of range, or wishes that contradict each other.
    """
    formula = None if prompt.formula is None else parse_formula(prompt.formula)
    if prompt.formula_units is not None and formula is None:
        raise PromptError("formula_units needs a formula")
    groups = _groups(prompt)
    ranks = _elements(prompt, formula)
    low, high = _atom_range(prompt, max_atoms)
    plan = Plan(prompt, _prefix(prompt, ranks, groups), groups, ranks, None, (), low, high)
    if formula is not None:
        return _formula_plan(prompt, plan, formula)
    kinds = 1 if ranks is None else len(ranks)
    if not plan._extends((), kinds, low, high):
        least = min(smallest_cell(number, kinds) for number in groups)
        raise PromptError(
            f"{_where(groups)} hold {kinds} element(s) in a primitive cell of "
            f"{low if low == high else f'at most {high}'} atoms; the smallest such cell has {least}"
        )
    return plan


def prompt_for_model(prompt: Prompt, record: Mapping[str, Any]) -> Prompt:
    """Check that some crystal can fulfil a prompt, and that a model was trained for it.

    Args:
        prompt: what is asked.
        record: ``config.mat2seq`` of the model: the prefix ``fields`` it was trained with and its largest cells,
            ``max_atoms``.

    Returns:
        the prompt; where it does not speak of the size of the cell, with the limit ``max_atoms`` of the model, unless
        no crystal is that small; with ``condition``, a formula and a model that knows ``elements``, with its elements.

    Raises:
        FormulaError, PromptError: it cannot be fulfilled, or has prefix fields that the model has never seen: it would
            answer at random.
    """
    trained = record.get("fields", ())
    if prompt.condition and prompt.formula is not None and prompt.elements is None and "elements" in trained:
        prompt = replace(prompt, elements=tuple(parse_formula(prompt.formula)))
    wanted = [*(name for name, _ in prompt.properties), *_conditions(prompt)]
    if unknown := [name for name in wanted if name not in trained]:
        raise PromptError(
            f"the model was not trained with the prefix field {', '.join(unknown)} "
            f"(it knows {', '.join(trained) or 'none'}); leave it out or use a model that was"
        )
    make_plan(prompt)
    limit = record.get("max_atoms")
    if limit is None or (prompt.max_atoms, prompt.n_atoms, prompt.formula_units) != (None, None, None):
        return prompt
    smaller = replace(prompt, max_atoms=int(limit))
    try:
        make_plan(smaller)
    except PromptError:
        return prompt
    return smaller
