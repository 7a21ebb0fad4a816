"""The tokenizer agrees with the vocabulary, takes every kind of crystal, and gives crystals back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Structure
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.io.vasp import Poscar
from transformers import AutoTokenizer, GPT2Config
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from mat2seq_hf import CanonicalCrystal, Mat2SeqTokenizer, build_tokenizer, canonicalize, scheme_fingerprint
from mat2seq_hf.cif import cif_text
from mat2seq_hf.errors import CrystalError, DecodeError, SchemeMismatchError
from mat2seq_hf.vocabulary import LONGEST_WORD, TOKEN_IDS, TOKENS, tokenize

FIELDS = "space_group= [Pm-3m] crystal_system= ? elements= Ba Ti O n_atoms=135 band_gap= +2.31 |"
PAD, BOS, EOS = 0, 1, 2
pieces = st.sampled_from([token.removeprefix("##") for token in TOKENS])
words = st.lists(st.one_of(pieces, st.text("#<>|?.0129+-BaTi=[]/", max_size=3)), max_size=4).map("".join)


@pytest.fixture(scope="module")
def tokenizer() -> Mat2SeqTokenizer:
    return build_tokenizer()


@pytest.fixture(scope="module")
def texts(crystals: dict[str, Structure]) -> dict[str, str]:
    return {name: canonicalize(structure).text for name, structure in crystals.items()}


@pytest.fixture(scope="module")
def folder(tokenizer: Mat2SeqTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(path)
    return path


def test_ids_are_those_of_the_vocabulary(tokenizer: Mat2SeqTokenizer) -> None:
    assert tokenizer.get_vocab() == TOKEN_IDS
    assert len(tokenizer) == len(TOKENS)
    special = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    assert special == [PAD, BOS, EOS, 3]


@given(text=st.lists(words, max_size=8).map(" ".join))
def test_tokens_of_any_text_are_those_of_the_vocabulary(text: str) -> None:
    assert shared_tokenizer().encode(text) == [BOS, *tokenize(text)]
    assert shared_tokenizer().encode_text(text) == tokenize(text)


@pytest.mark.parametrize("blank", [chr(code) for code in range(0x3001) if chr(code).isspace()])
def test_words_end_at_the_same_blanks(blank: str) -> None:
    text = f"Ba1{blank}Ti1"
    assert tokenize(text) == shared_tokenizer().backend_tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("length", [LONGEST_WORD, LONGEST_WORD + 2])
def test_a_word_that_is_too_long_for_the_tokenizer_is_unknown(length: int) -> None:
    word = "0." + "12" * (length // 2 - 1)
    assert (tokenize(word) == [3]) == (length > LONGEST_WORD)
    assert tokenize(word) == shared_tokenizer().encode(word, add_special_tokens=False)


def shared_tokenizer(_kept: list[Mat2SeqTokenizer] = []) -> Mat2SeqTokenizer:  # noqa: B006 - one for all examples
    if not _kept:
        _kept.append(build_tokenizer())
    return _kept[0]


def test_decoding_gives_the_exact_text_back(tokenizer: Mat2SeqTokenizer, texts: dict[str, str]) -> None:
    for text in [*texts.values(), f"{FIELDS} {texts['BaTiO3']}"]:
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text
        assert tokenizer.unk_token_id not in tokenizer.encode(text)


@pytest.mark.parametrize("name", ["BaTiO3", "quartz", "triclinic"])
def test_every_kind_of_input_gives_the_same_ids(
    tokenizer: Mat2SeqTokenizer, crystals: dict[str, Structure], texts: dict[str, str], name: str
) -> None:
    structure = crystals[name]
    expected = [BOS, *tokenize(texts[name])]
    for crystal in (
        structure,
        AseAtomsAdaptor.get_atoms(structure),
        canonicalize(structure),
        structure.to(fmt="cif"),
        Poscar(structure).get_str(significant_figures=12),
        cif_text(canonicalize(structure)),
        texts[name],
    ):
        assert tokenizer(crystal)["input_ids"] == expected
        assert tokenizer.encode(crystal) == expected
        assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize(crystal)) == expected[1:]


def test_batches_are_padded_on_the_left_and_prompts_stay_open(
    tokenizer: Mat2SeqTokenizer, crystals: dict[str, Structure], texts: dict[str, str]
) -> None:
    batch = tokenizer([crystals["NaCl"], texts["ZrO2"]], padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}  # GPT-2 would add token_type_ids to its embeddings
    short, long = batch["input_ids"].tolist()
    assert long == [BOS, *tokenize(texts["ZrO2"])]
    padding = len(long) - len(tokenize(texts["NaCl"])) - 1
    assert short == [PAD] * padding + [BOS, *tokenize(texts["NaCl"])]
    assert batch["attention_mask"].tolist() == [[0] * padding + [1] * (len(long) - padding), [1] * len(long)]


def test_truncation_keeps_the_beginning(tokenizer: Mat2SeqTokenizer, crystals: dict[str, Structure]) -> None:
    whole = tokenizer(crystals["ZrO2"])["input_ids"]
    assert tokenizer(crystals["ZrO2"], truncation=True, max_length=7)["input_ids"] == whole[:7]


def test_decoded_structures_are_the_encoded_ones(
    tokenizer: Mat2SeqTokenizer, crystals: dict[str, Structure], texts: dict[str, str]
) -> None:
    for name, structure in crystals.items():
        ids = tokenizer.encode(structure)
        assert tokenizer.decode_crystal(ids).text == texts[name]
        decoded = tokenizer.decode_structure(ids)
        assert canonicalize(decoded).text == texts[name]
        assert decoded.composition == structure.get_primitive_structure().composition


def test_the_conventional_cell_is_given_where_it_is_asked_for(
    tokenizer: Mat2SeqTokenizer, crystals: dict[str, Structure]
) -> None:
    ids = tokenizer.encode(crystals["NaCl"])
    cells = [tokenizer.decode_structure(ids), tokenizer.decode_structure(ids, primitive=False)]
    assert [len(cell) for cell in cells] == [2, 8]
    assert cells[1].lattice.parameters == pytest.approx((5.6402, 5.6402, 5.6402, 90, 90, 90))
    assert canonicalize(cells[1]) == canonicalize(cells[0])


def test_decoding_skips_what_stands_before_and_after(tokenizer: Mat2SeqTokenizer, texts: dict[str, str]) -> None:
    ids = tokenize(texts["NaCl"])
    expected = CanonicalCrystal.from_text(texts["NaCl"])
    for framed in (
        ids,
        [BOS, *ids, EOS],
        [PAD, PAD, BOS, *ids, EOS, PAD],
        [BOS, *ids, EOS, *ids],
        np.array([BOS, *ids]),
        torch.tensor([[BOS, *ids, EOS]]),
        [BOS, *tokenize(FIELDS), *ids, EOS],
    ):
        assert tokenizer.decode_crystal(framed) == expected


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "starts with a formula"),
        ([BOS, EOS], "starts with a formula"),
        ([BOS, len(TOKENS)], "outside the vocabulary"),
        ([BOS, -1], "outside the vocabulary"),
        ([[BOS, 5], [BOS, 6]], "row by row"),
        ([BOS, 0.5], "integers"),
    ],
)
def test_ids_that_are_no_crystal_are_refused_by_name(
    tokenizer: Mat2SeqTokenizer, ids: list[object], message: str
) -> None:
    with pytest.raises(DecodeError, match=message):
        tokenizer.decode_structure(ids)


def crystal_or_error(ids: list[int]) -> None:
    try:
        structure = shared_tokenizer().decode_structure(ids)
    except DecodeError:
        return
    assert len(structure) > 0


@given(ids=st.lists(st.integers(-2, len(TOKENS) + 1), max_size=40))
def test_random_ids_are_a_crystal_or_a_decode_error(ids: list[int]) -> None:
    crystal_or_error(ids)


@given(
    place=st.integers(0, 45),
    token=st.integers(0, len(TOKENS) - 1),
    name=st.sampled_from(["NaCl", "ZnO", "triclinic", "LiCoO2"]),
    cut=st.integers(0, 60),
)
def test_a_sequence_with_one_token_changed_is_a_crystal_or_a_decode_error(
    texts: dict[str, str], place: int, token: int, name: str, cut: int
) -> None:
    ids = tokenize(texts[name])
    ids[place % len(ids)] = token
    crystal_or_error(ids)
    crystal_or_error(ids[:cut])


@pytest.mark.parametrize("symprec", [5, "0.01"])
def test_a_tolerance_that_no_crystal_can_have_is_refused_at_once(symprec: Any) -> None:
    with pytest.raises(CrystalError, match=r"symprec .* is no number from 1e-5 to 0\.2 \(angstrom\)"):
        build_tokenizer(symprec)


def test_saving_and_loading_keeps_everything(folder: Path, texts: dict[str, str]) -> None:
    strict = build_tokenizer(symprec=0.1)
    strict.save_pretrained(folder / "loose")
    for path, symprec in ((folder, 0.01), (folder / "loose", 0.1)):
        loaded = AutoTokenizer.from_pretrained(path)
        assert type(loaded) is Mat2SeqTokenizer
        assert loaded.symprec == symprec
        assert loaded.scheme == scheme_fingerprint(symprec)
        assert loaded.padding_side == "left"
        assert loaded.get_vocab() == TOKEN_IDS
        for text in texts.values():
            assert loaded.encode(text) == [BOS, *tokenize(text)]
            assert loaded.decode(loaded.encode(text), skip_special_tokens=True) == text


def test_an_end_token_that_is_asked_for_does_not_cost_the_begin_token(folder: Path, texts: dict[str, str]) -> None:
    ids = tokenize(texts["NaCl"])
    closed = AutoTokenizer.from_pretrained(folder, add_eos_token=True)
    assert closed.encode(texts["NaCl"]) == [BOS, *ids, EOS]
    closed.save_pretrained(folder / "closed")
    assert AutoTokenizer.from_pretrained(folder / "closed").encode(texts["NaCl"]) == [BOS, *ids, EOS]
    bare: Any = AutoTokenizer.from_pretrained(folder, add_bos_token=False)
    assert bare.encode(texts["NaCl"]) == ids
    bare.add_eos_token = True
    assert bare.encode(texts["NaCl"]) == [*ids, EOS]
    bare.add_bos_token = True
    assert bare.encode(texts["NaCl"]) == [BOS, *ids, EOS]
    assert build_tokenizer().add_bos_token


def test_the_plain_class_encodes_text_identically(folder: Path, texts: dict[str, str]) -> None:
    plain = TokenizersBackend.from_pretrained(folder)
    assert type(plain) is TokenizersBackend
    batch = [*texts.values(), f"{FIELDS} {texts['quartz']}", "<s> Xx <s>Ba1"]
    expected = build_tokenizer()(batch, padding=True)
    assert dict(plain(batch, padding=True)) == dict(expected)
    for text in texts.values():
        assert plain.decode(plain.encode(text), skip_special_tokens=True) == text


def test_a_tokenizer_of_another_scheme_reads_no_crystals(
    folder: Path, tmp_path: Path, crystals: dict[str, Structure], texts: dict[str, str]
) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_text((folder / file).read_text())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"scheme": "mat2seq-0"}))
    foreign = Mat2SeqTokenizer.from_pretrained(tmp_path)
    assert foreign.encode(texts["NaCl"]) == [BOS, *tokenize(texts["NaCl"])]
    with pytest.raises(SchemeMismatchError, match=r"'mat2seq-0'.*symprec=0\.01"):
        foreign(crystals["NaCl"])


def test_what_is_no_crystal_is_refused_by_name(tokenizer: Mat2SeqTokenizer) -> None:
    for wrong in ({"a": 1}, 3.5, "several\nlines of\nprose", "_cell_length_a 3"):
        with pytest.raises(CrystalError):
            tokenizer(wrong)


def test_other_gpt2_models_keep_their_tokenizer() -> None:
    found: object = TOKENIZER_MAPPING[GPT2Config]
    assert found is not Mat2SeqTokenizer
