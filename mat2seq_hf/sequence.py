"""The text form of a crystal: writing it, reading it, and the scheme it belongs to.

A description here is made of integers alone (see ``grid.py``), so two descriptions are equal or not, never nearly so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .elements import ORDER
from .errors import DecodeError
from .grid import (
    ANGLE_UNIT,
    COORDINATE_GRID,
    LENGTH_UNIT,
    angle_word,
    coordinate_word,
    length_word,
    parse_angle,
    parse_coordinate,
    parse_length,
)
from .vocabulary import END_OF_FIELDS, FIELDS, MAX_ATOMS, UNK, group_word, split_word
from .wyckoff import position_by_name

__all__ = [
    "SCHEME_VERSION",
    "Description",
    "SiteDescription",
    "format_text",
    "formula_words",
    "parse_text",
    "scheme_fingerprint",
]

#: Version of the canonical form and its text. Any change that alters a single sequence raises it.
SCHEME_VERSION = "1"

_FORMULA_WORD = re.compile(r"([A-Z][a-z]?)([1-9][0-9]{0,2})")
_GROUPS = {group_word(number): number for number in range(1, 231)}


def scheme_fingerprint(symprec: float = 0.01, detector: str = "spglib") -> str:
    """One line that names everything a sequence depends on; parts with different ones must not be mixed."""
    return (
        f"mat2seq-{SCHEME_VERSION} symprec={symprec:g} coordinates=1/{COORDINATE_GRID} "
        f"lengths={LENGTH_UNIT:g} angles={ANGLE_UNIT:g} detector={detector}"
    )


@dataclass(frozen=True)
class SiteDescription:
    """One orbit: chemical symbol, Wyckoff position, representative in units of 1/9600."""

    element: str
    wyckoff: str
    coords: tuple[int, int, int]


@dataclass(frozen=True)
class Description:
    """A crystal as integers: lengths in 1e-4 angstrom, angles in 1e-2 degree, coordinates in 1/9600."""

    number: int
    lattice: tuple[int, int, int, int, int, int]
    sites: tuple[SiteDescription, ...]
    formula: tuple[tuple[str, int], ...]


def formula_words(formula: tuple[tuple[str, int], ...]) -> list[str]:
    """Words of a primitive cell's formula: ``(("Ba", 1), ("O", 3)) -> ["Ba1", "O3"]``."""
    return [f"{element}{count}" for element, count in formula]


def format_text(description: Description) -> str:
    """The text of a description, words separated by single spaces."""
    words = formula_words(description.formula)
    words.append(group_word(description.number))
    words += [length_word(value) for value in description.lattice[:3]]
    words += [angle_word(value) for value in description.lattice[3:]]
    for site in description.sites:
        words += [site.element, site.wyckoff, *map(coordinate_word, site.coords)]
    return " ".join(words)


def _drop_fields(words: list[str]) -> list[str]:
    if END_OF_FIELDS not in words:
        if words and _is_field(words[0]):
            raise DecodeError(f"prefix fields are not closed: no {END_OF_FIELDS!r} follows {words[0]!r}")
        return words
    end = words.index(END_OF_FIELDS)
    wrong = [word for place, word in enumerate(words[:end]) if not (_is_field(word) or (place and _is_value(word)))]
    if wrong or not end:
        raise DecodeError(
            f"{wrong[0] if wrong else ''!r} before {END_OF_FIELDS!r} is no prefix field such as 'band_gap= +2.31'; "
            f"there are {', '.join(FIELDS)}"
        )
    return words[end + 1 :]


def _is_field(word: str) -> bool:
    """Whether a word begins a field; its value follows as words, or in the same one as in ``n_atoms=5``."""
    name, sign, _ = word.partition("=")
    return bool(sign) and name in FIELDS and UNK not in split_word(word)


def _is_value(word: str) -> bool:
    return "=" not in word and UNK not in split_word(word)


def _parse_formula(words: list[str]) -> tuple[tuple[tuple[str, int], ...], list[str]]:
    formula: list[tuple[str, int]] = []
    while words and (match := _FORMULA_WORD.fullmatch(words[0])):
        element, count = match[1], int(match[2])
        if element not in ORDER:
            raise DecodeError(f"unknown element {element!r} in the formula word {words[0]!r}")
        if element in dict(formula):
            raise DecodeError(f"{element} occurs twice in the formula {' '.join(formula_words(tuple(formula)))!r}")
        formula.append((element, count))
        words = words[1:]
    if not formula:
        raise DecodeError(f"a text starts with a formula such as 'Ba1 Ti1 O3', not with {words[0] if words else ''!r}")
    if sum(count for _, count in formula) > MAX_ATOMS:
        raise DecodeError(f"the formula has more than {MAX_ATOMS} atoms: {' '.join(formula_words(tuple(formula)))!r}")
    return tuple(formula), words


def _parse_site(number: int, words: list[str]) -> SiteDescription:
    place = f"site {' '.join(words)!r}"
    if len(words) < 5:
        raise DecodeError(f"{place} is cut off: element, Wyckoff position and three coordinates are needed")
    element, name = words[0], words[1]
    if element not in ORDER:
        raise DecodeError(f"{place}: {element!r} is not an element")
    if position_by_name(number, name) is None:
        raise DecodeError(f"{place}: space group {group_word(number)} has no Wyckoff position {name!r}")
    x, y, z = map(parse_coordinate, words[2:5])
    return SiteDescription(element, name, (x, y, z))


def parse_text(text: str) -> Description:
    """Read a text; prefix fields are skipped.

    The words are checked, not yet whether the crystal holds together (see ``CanonicalCrystal.from_text``).

    Raises:
        DecodeError: naming the word that cannot be read.
    """
    formula, words = _parse_formula(_drop_fields(text.split()))
    if not words or words[0] not in _GROUPS:
        raise DecodeError(f"a space group such as '[Pm-3m]' is expected after the formula, not {words[:1]}")
    number, words = _GROUPS[words[0]], words[1:]
    if len(words) < 6:
        raise DecodeError(f"six lattice parameters are expected after {group_word(number)}, found {words}")
    a, b, c = map(parse_length, words[:3])
    alpha, beta, gamma = map(parse_angle, words[3:6])
    words = words[6:]
    sites = tuple(_parse_site(number, words[start : start + 5]) for start in range(0, len(words), 5))
    if not sites:
        raise DecodeError("no sites follow the lattice parameters")
    return Description(number, (a, b, c, alpha, beta, gamma), sites, formula)
