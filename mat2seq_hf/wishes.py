"""What is asked of the generator, in whatever form it comes: a :class:`Prompt`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from operator import index
from typing import Any, TypeAlias

from .errors import FormulaError, PromptError
from .vocabulary import NUMERIC_FIELDS

__all__ = ["WISHES", "Asked", "Prompt", "formula_text", "read_prompt"]


@dataclass(frozen=True)
class Prompt:
    """What is asked for; everything is optional and can be combined.

    Attributes:
        formula: a formula such as ``"BaTiO3"`` or ``"Ca(OH)2"``, or a Composition of pymatgen, taken as a reduced one:
            the primitive cell holds a whole number of formula units.
        formula_units: how many of them.
        elements: exactly these elements, in any counts.
        n_atoms: atoms in the primitive cell.
        max_atoms: at most so many atoms in the primitive cell.
        space_group: number, or International short symbol such as ``"Fm-3m"``.
        crystal_system: such as ``"cubic"``.
        properties: value of a numeric field, a range ``(low, high)`` in which the model chooses, or None for unknown;
            they become prefix fields, which only a model that was trained with them understands.
        condition: whether the space group, crystal system, elements and number of atoms that are asked for also become
            prefix fields, and the elements of a formula for a model that was trained with them. The grammar enforces
            all of them in any case.
        open_prefix: accept any well-formed prefix fields in front, as when texts are scored. They are not compared
            with what follows.

    Raises:
        FormulaError, PromptError: a field is of the wrong type. Whether a crystal can fulfil the prompt is not asked.

    Example:
        >>> Prompt("BaTiO3", space_group="P4mm", properties={"band_gap": 2.31})
        Prompt(formula='BaTiO3', space_group='P4mm', properties=(('band_gap', 2.31),))
    """

    formula: str | None = None
    formula_units: int | None = None
    elements: tuple[str, ...] | None = None
    n_atoms: int | None = None
    max_atoms: int | None = None
    space_group: int | str | None = None
    crystal_system: str | None = None
    properties: Any = field(default=())
    condition: bool = False
    open_prefix: bool = False

    def __post_init__(self) -> None:
        for name, read in _READERS.items():
            value = getattr(self, name)
            object.__setattr__(self, name, _ABSENT.get(name) if value is None else read(name, value))

    def __repr__(self) -> str:
        asked = [f"{name}={value!r}" for name, value in vars(self).items() if value not in (None, (), False)]
        return f"Prompt({', '.join(asked)})"


def formula_text(value: object, name: str = "formula") -> str:
    """A formula as text.

    Raises:
        FormulaError: it is neither text nor a Composition of pymatgen.
    """
    text = getattr(value, "formula", value)
    if not isinstance(text, str):
        raise FormulaError(f"a {name} is text such as 'BaTiO3', not {value!r}")
    return text


def _formula(name: str, value: object) -> str:
    return formula_text(value, name)


def _whole_number(name: str, value: Any) -> int:
    with suppress(TypeError):
        if not isinstance(value, bool):
            return index(value)
    raise PromptError(f"{name} must be a whole number, not {value!r}")


def _elements(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, Iterable) and not isinstance(value, str):
        # An Element of pymatgen has a symbol.
        symbols: tuple[Any, ...] = tuple(getattr(one, "symbol", one) for one in value)
        if all(isinstance(symbol, str) for symbol in symbols):
            return symbols
    raise PromptError(f"{name} must be a list of symbols such as ['Ba', 'Ti', 'O'], not {value!r}")


def _space_group(name: str, value: object) -> int | str:
    if not isinstance(value, str):
        return _whole_number(name, value)
    return int(value) if re.fullmatch(r"[0-9]{1,9}", value) else value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise PromptError(f"{name} must be text, not {value!r}")
    return value


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise PromptError(f"{name} must be True or False, not {value!r}")
    return value


def _properties(name: str, value: Any) -> tuple[tuple[str, Any], ...]:
    try:
        pairs = dict(value)
    except (TypeError, ValueError):
        raise PromptError(f"{name} must be a dict such as {{'band_gap': 1.1}}, not {value!r}") from None
    return tuple(sorted((_text("the name of a property", key), _property(key, one)) for key, one in pairs.items()))


def _property(name: str, value: object) -> float | tuple[float, ...] | None:
    if value is None:
        return None
    return tuple(_number(name, end) for end in value) if isinstance(value, (list, tuple)) else _number(name, value)


def _number(name: str, value: Any) -> float:
    with suppress(OverflowError):  # whole numbers that no float can hold
        if not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value):
            return int(value) if isinstance(value, Integral) else float(value)
    raise PromptError(f"{name} must be a number, a range (low, high), or None for unknown, not {value!r}")


#: Forms in which a prompt can come; a Composition of pymatgen is a Mapping.
Asked: TypeAlias = Prompt | str | Mapping[str, Any] | None

#: How each field is read. What is kept can be hashed, compared and written as JSON.
_READERS: dict[str, Callable[[str, Any], object]] = {
    "formula": _formula,
    "formula_units": _whole_number,
    "elements": _elements,
    "n_atoms": _whole_number,
    "max_atoms": _whole_number,
    "space_group": _space_group,
    "crystal_system": _text,
    "properties": _properties,
    "condition": _flag,
    "open_prefix": _flag,
}
_ABSENT = {"properties": (), "condition": False, "open_prefix": False}

#: What a caller can ask for by name: the fields of :class:`Prompt`, and properties.
WISHES = (*(one.name for one in fields(Prompt) if one.name != "open_prefix"), *NUMERIC_FIELDS)


def read_prompt(asked: Any = None, wishes: Mapping[str, Any] | None = None) -> Prompt:
    """The prompt for an input and further wishes, which come before what the input says of the same thing.

    Args:
        asked: a formula, a :class:`Prompt`, a dict of :data:`WISHES`, or None.
        wishes: some of :data:`WISHES`. A property, named directly or in ``properties``, joins the other properties.

    Raises:
        FormulaError, PromptError: a name is unknown, or a value of the wrong type.

    Example:
        >>> read_prompt({"formula": "NaCl", "band_gap": 5.0}, {"e_above_hull": 0})
        Prompt(formula='NaCl', properties=(('band_gap', 5.0), ('e_above_hull', 0)))
    """
    if isinstance(asked, Prompt) and not wishes:
        return asked
    if isinstance(asked, Prompt):
        given: Mapping[str, Any] = vars(asked)
    elif asked is None or isinstance(getattr(asked, "formula", asked), str):
        given = {"formula": asked}
    elif isinstance(asked, Mapping):
        given = asked
    else:
        raise PromptError(f"a prompt is a formula, a Prompt, a dict or None, not {type(asked).__name__}: {asked!r}")
    every = {**given, **(wishes or {})}
    if unknown := every.keys() - {*WISHES} - (vars(asked).keys() if isinstance(asked, Prompt) else set()):
        names = ", ".join(sorted(map(repr, unknown)))
        raise PromptError(f"unknown field {names} in the prompt {every}; there are {', '.join(WISHES)}")
    properties: dict[str, Any] = {}
    for part in (given, wishes or {}):
        properties |= _properties("properties", part.get("properties") or ())
        properties |= {name: part[name] for name in NUMERIC_FIELDS if name in part}
    plain = {name: value for name, value in every.items() if name not in NUMERIC_FIELDS}
    return Prompt(**{**plain, "properties": properties})
