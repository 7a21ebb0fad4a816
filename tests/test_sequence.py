"""The text form: words, numbers, and what is refused."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mat2seq_hf.canonical import CanonicalCrystal
from mat2seq_hf.errors import DecodeError
from mat2seq_hf.grid import (
    COORDINATE_GRID,
    angle_word,
    coordinate_word,
    length_word,
    parse_angle,
    parse_coordinate,
    parse_length,
)
from mat2seq_hf.sequence import parse_text, scheme_fingerprint
from mat2seq_hf.vocabulary import TOKENS, UNK, split_word

PEROVSKITE = "Ba1 Ti1 O3 [Pm-3m] 4.0094 4.0094 4.0094 90 90 90 Ba 1b 1/2 1/2 1/2 Ti 1a 0 0 0 O 3d 1/2 0 0"


def test_every_coordinate_has_one_word_that_reads_back() -> None:
    words = [coordinate_word(value) for value in range(COORDINATE_GRID)]
    assert len(set(words)) == COORDINATE_GRID
    assert [parse_coordinate(word) for word in words] == list(range(COORDINATE_GRID))
    assert max(len(split_word(word)) for word in words) == 2


@given(st.integers(10_000, 4_999_999))
def test_every_length_is_three_tokens_and_reads_back(value: int) -> None:
    assert parse_length(length_word(value)) == value
    assert len(split_word(length_word(value))) == 3
    assert UNK not in split_word(length_word(value))


@given(st.integers(100, 17_999))
def test_every_angle_reads_back(value: int) -> None:
    assert parse_angle(angle_word(value)) == value
    assert len(split_word(angle_word(value))) == (1 if value in (9000, 12000) else 2)


def test_tokens_are_distinct() -> None:
    assert len(set(TOKENS)) == len(TOKENS)


@pytest.mark.parametrize(
    "fields",
    ["band_gap= +2.31", "space_group= [Pm-3m] crystal_system= cubic elements= Ba Ti O n_atoms=5 e_above_hull= ?"],
)
def test_prefix_fields_are_skipped(fields: str) -> None:
    assert CanonicalCrystal.from_text(f"{fields} | {PEROVSKITE}") == CanonicalCrystal.from_text(PEROVSKITE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "starts with a formula"),
        ("nonsense", "starts with a formula"),
        ("band_gap= +2.31 Ba1", "prefix fields are not closed"),
        (
            f"hello | {PEROVSKITE}",
            r"'hello' before '\|' is no prefix field such as 'band_gap= \+2.31'; there are space_",
        ),
        (f"band_gap= high | {PEROVSKITE}", "'high' before"),
        (f"gap= +2.31 | {PEROVSKITE}", "'gap=' before"),
        (f"| {PEROVSKITE}", "'' before"),
        ("Xx2 [Pm-3m]", "unknown element 'Xx'"),
        ("O3 O1 [P1]", "occurs twice"),
        ("Ba1 Ti1 O3", "space group .* expected"),
        ("Ba1 Ti1 O3 [Pm-3m] 4.0094 4.0094", "six lattice parameters"),
        (PEROVSKITE.replace("4.0094", "4.01", 1), "length '4.01'"),
        (PEROVSKITE.replace("90", "90.000", 1), "angle '90.000'"),
        (PEROVSKITE.replace("90", "90.00", 1), "angle '90.00' is not 90, 120 or another number"),
        (PEROVSKITE.replace("4.0094", "4.00९4", 1), "length '4.00९4'"),
        (PEROVSKITE.replace("O3", "O३"), r"space group .* expected"),
        (PEROVSKITE.replace("1b 1/2", "1b 0.5000"), "coordinate '0.5000' is not one of 0, .* or another multiple"),
        (PEROVSKITE.replace("1a 0", "1a 0.0000"), "coordinate '0.0000'"),
        (PEROVSKITE.replace("4.0094", "4.0095", 1), "contradicts Pm-3m"),
        (PEROVSKITE.removesuffix(" 0"), "cut off"),
        (PEROVSKITE.replace("1b", "9z"), "no Wyckoff position '9z'"),
        (PEROVSKITE.replace("1b 1/2 1/2 1/2", "1b 1/2 1/2 1/3"), "lies on another position"),
        (PEROVSKITE.replace("1b 1/2 1/2 1/2", "1a 0 0 0"), "occupied already"),
        (PEROVSKITE.replace("O3", "O4"), "add up to Ba1 Ti1 O3"),
        (PEROVSKITE.replace("1b 1/2", "1b 0.50011"), "coordinate '0.50011'"),
        (PEROVSKITE.replace("1b 1/2", "1b 0.0005"), "coordinate|another position"),
        ("C2 [P1] 2.0000 2.0000 2.0000 20.00 150.00 90 C 1a 0 0 0 C 1a 1/2 1/2 1/2", "no cell has the angles"),
    ],
)
def test_a_broken_text_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        CanonicalCrystal.from_text(text)


@given(st.lists(st.sampled_from(TOKENS), max_size=40))
def test_random_words_decode_or_raise_decode_error(words: list[str]) -> None:
    with suppress(DecodeError):
        CanonicalCrystal.from_text(" ".join(words))


def test_parsing_keeps_the_order_and_the_words_of_a_text() -> None:
    description = parse_text(PEROVSKITE)
    assert description.number == 221
    assert [site.wyckoff for site in description.sites] == ["1b", "1a", "3d"]


def test_the_fingerprint_names_everything_that_changes_a_sequence() -> None:
    assert scheme_fingerprint(0.01) != scheme_fingerprint(0.1)
    assert scheme_fingerprint(0.01, "spglib") != scheme_fingerprint(0.01, "moyopy")
