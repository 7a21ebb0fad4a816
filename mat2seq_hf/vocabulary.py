"""The vocabulary: every token, and how the words of a text split into tokens.

A text is a row of words separated by single spaces; a word is one token or a head followed by pieces marked ``##``
(the WordPiece convention), for instance ``Ti1 -> Ti ##1``, ``4.0094 -> 4. ##00 ##94``, ``0.1234 -> 0.12 ##34``.
No piece has three digits: WordPiece takes the longest one that fits, and would split ``4.1234`` into ``4. ##123 ##4``.
So counts above 99 are two pieces, ``Ti120 -> Ti ##12 ##0``.
A text, with what each part is called::

    band_gap= +2.31 | Ba1 Ti1 O3 [Pm-3m] 4.0094 4.0094 4.0094 90 90 90 Ba 1a 0 0 0 Ti 1b 1/2 1/2 1/2 O 3c 0 1/2 1/2
    prefix fields --- formula -- group - lattice: a b c alpha beta gamma sites: element, Wyckoff position, x y z

The order of tokens is part of the scheme: ids never change once weights are published. New kinds of fields take the
spare ``property_1=`` to ``property_8=``.
"""

from __future__ import annotations

import re

from .elements import ELEMENTS
from .grid import FRACTIONS
from .wyckoff import LETTERS, SYMBOLS, wyckoff_positions

__all__ = [
    "BOS",
    "CRYSTAL_SYSTEMS",
    "END_OF_FIELDS",
    "EOS",
    "FIELDS",
    "LONGEST_WORD",
    "MAX_ATOMS",
    "NUMERIC_FIELDS",
    "PAD",
    "TOKENS",
    "TOKEN_IDS",
    "UNK",
    "UNKNOWN_VALUE",
    "group_word",
    "split_word",
    "tokenize",
]

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
UNKNOWN_VALUE = "?"
END_OF_FIELDS = "|"
MAX_ATOMS = 400
LONGEST_WORD = 10_000  # characters; above it WordPiece answers <unk> without looking

NUMERIC_FIELDS = (
    "band_gap",
    "formation_energy_per_atom",
    "e_above_hull",
    *(f"property_{number}" for number in range(1, 9)),
)
FIELDS = ("space_group", "crystal_system", "elements", "n_atoms", *NUMERIC_FIELDS)
CRYSTAL_SYSTEMS = ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic")


def group_word(number: int) -> str:
    """Word of a space group: its symbol in brackets, since P1, Pm and Cm are also phosphorus, promethium, curium."""
    return f"[{SYMBOLS[number - 1]}]"


def _wyckoff_names() -> list[str]:
    names = {(p.multiplicity, LETTERS.index(p.letter)) for number in range(1, 231) for p in wyckoff_positions(number)}
    return [f"{multiplicity}{LETTERS[letter]}" for multiplicity, letter in sorted(names)]


TOKENS: tuple[str, ...] = (
    *(PAD, BOS, EOS, UNK, UNKNOWN_VALUE, END_OF_FIELDS),
    *(f"{field}=" for field in FIELDS),
    *CRYSTAL_SYSTEMS,
    *ELEMENTS,
    *(group_word(number) for number in range(1, 231)),
    *_wyckoff_names(),
    *FRACTIONS.values(),
    *(f"0.{number:02d}" for number in range(100)),  # first two decimals of a coordinate
    *(f"##{number:02d}" for number in range(100)),  # any two further decimals; counts 10 to 99
    *(f"##{number}" for number in range(10)),  # counts 1 to 9; last digit of counts above 99
    *("90", "120"),
    *(f"{number}." for number in range(1, 500)),  # whole part of a length or an angle
    *(f"{sign}{number}." for sign in "+-" for number in range(100)),  # whole part of a property
)

TOKEN_IDS: dict[str, int] = {token: index for index, token in enumerate(TOKENS)}

_LONGEST = max(len(token) for token in TOKENS)
_WORD = re.compile(r"[\S\x1c-\x1f]+")  # to Python the four control characters are blanks, to the tokenizer they are not


def split_word(word: str) -> list[str]:
    """Tokens of one word: the longest token that fits, from the left (WordPiece); ``<unk>`` if none does.

    A word of more than ``LONGEST_WORD`` characters is ``<unk>``, too.
    """
    if word in TOKEN_IDS:
        return [word]
    if len(word) > LONGEST_WORD:
        return [UNK]
    tokens: list[str] = []
    start = 0
    while start < len(word):
        for end in range(min(len(word), start + _LONGEST), start, -1):
            piece = word[start:end] if start == 0 else f"##{word[start:end]}"
            if piece in TOKEN_IDS:
                tokens.append(piece)
                start = end
                break
        else:
            return [UNK]
    return tokens


def tokenize(text: str) -> list[int]:
    """Token ids of a text, without begin and end."""
    return [TOKEN_IDS[token] for word in _WORD.findall(text) for token in split_word(word)]
