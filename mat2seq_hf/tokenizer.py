"""The tokenizer: crystals and canonical text to token ids, and back.

A saved tokenizer is complete in its ``tokenizer.json``: without this package transformers loads it as a plain
tokenizer that encodes canonical text to the same ids. With it (or with ``trust_remote_code=True``) it takes and
gives crystals as well.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsIndex, SupportsInt, cast

from pymatgen.core import Structure
from tokenizers import Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers.tokenization_utils_base import BatchEncoding
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from .canonical import CanonicalCrystal, canonicalize, check_symprec
from .errors import DecodeError, SchemeMismatchError
from .sequence import scheme_fingerprint
from .vocabulary import BOS, EOS, LONGEST_WORD, PAD, TOKEN_IDS, TOKENS, UNK, tokenize

__all__ = ["CLASS_BESIDE_CODE", "Mat2SeqTokenizer", "build_tokenizer", "text_of_tokens", "without_code"]

#: What a folder with code says its tokenizer is. AutoTokenizer loads a folder with code that it is not trusted to run
#: only if transformers knows the class, or a tokenizer for the architecture: GPT-2 has one, Llama has none. It takes
#: off one "Fast" first; with this package what is left is registered as the full tokenizer, without it another one
#: goes, and the plain tokenizer is left.
CLASS_BESIDE_CODE = "TokenizersBackendFastFast"

_BEGIN = frozenset((TOKEN_IDS[PAD], TOKEN_IDS[BOS]))
_END = TOKEN_IDS[EOS]


def text_of_tokens(ids: Sequence[int]) -> str:
    """Canonical text of a sequence of token ids.

    Leading ``<pad>`` and ``<s>`` are skipped, and whatever follows the first ``</s>``.

    Args:
        ids: token ids, shape (n,).

    Raises:
        DecodeError: an id lies outside the vocabulary.

    Example:
        >>> text_of_tokens([1, *tokenize("Ba1 Ti1 O3"), 2, 0])
        'Ba1 Ti1 O3'
    """
    start = next((place for place, token in enumerate(ids) if token not in _BEGIN), len(ids))
    words: list[str] = []
    for place, token in enumerate(ids[start:], start=start):
        if token == _END:
            break
        if not 0 <= token < len(TOKENS):
            raise DecodeError(f"token {place} is {token}, outside the vocabulary of {len(TOKENS)} tokens")
        piece = TOKENS[token]
        if piece.startswith("##") and words:
            words[-1] += piece[2:]
        else:
            words.append(piece)
    return " ".join(words)


class Mat2SeqTokenizer(TokenizersBackend):
    """Tokenizer whose inputs are crystals or canonical text; see :func:`build_tokenizer`.

    ``tokenizer(x)``, ``tokenizer.encode(x)`` and ``tokenizer.tokenize(x)`` take a pymatgen Structure, ase Atoms, a
    :class:`CanonicalCrystal`, CIF text, POSCAR text or (any part of) a canonical text, alone or in a list, with the
    usual arguments of transformers for padding, truncation and tensors. ``<s>`` is put in front and ``</s>`` is not
    appended, so that a prompt stays open; padding is on the left. To train, load it with ``add_eos_token=True`` or
    append ``eos_token_id``: words are separated by blanks, so ``text + "</s>"`` ends in an unknown one.

    It has no ``__init__`` of its own: only then does transformers restore the whole ``tokenizer.json``. Its settings
    (``symprec`` in angstrom, ``scheme``) are init arguments kept in ``tokenizer_config.json``.

    Example:
        >>> tokenizer = build_tokenizer()
        >>> ids = tokenizer(structure)["input_ids"]
        >>> tokenizer.decode_structure(ids).composition.reduced_formula
        'BaTiO3'
    """

    @property
    def symprec(self) -> float:
        """Symmetry tolerance in angstrom with which crystals are encoded."""
        return float(self.init_kwargs.get("symprec", 0.01))

    @property
    def scheme(self) -> str:
        """Fingerprint of the canonical form for which the tokenizer was made."""
        return str(self.init_kwargs.get("scheme", ""))

    @property
    def add_bos_token(self) -> bool:
        """Whether ``<s>`` is put in front: unless set to False. To transformers what is not said would be False."""
        return bool(self.init_kwargs.get("add_bos_token", True))

    @add_bos_token.setter
    def add_bos_token(self, value: bool) -> None:
        self.init_kwargs["add_bos_token"] = value
        self.update_post_processor()  # type: ignore[no-untyped-call]

    def canonical_text(self, crystal: Any) -> str:
        """Canonical text of one crystal; one line of text is taken to be canonical and returned as it is.

        Raises:
            CrystalError, SymmetryError: see :func:`canonicalize`.
            SchemeMismatchError: the tokenizer was made for another canonical form than the code has.
        """
        if isinstance(crystal, str) and "\n" not in crystal.strip() and "_cell_length_a" not in crystal:
            return crystal
        self._check_scheme()
        if isinstance(crystal, CanonicalCrystal):
            return crystal.text
        return canonicalize(crystal, symprec=self.symprec).text

    def _check_scheme(self) -> None:
        expected = scheme_fingerprint(self.symprec)
        if self.scheme != expected:
            raise SchemeMismatchError(
                f"tokenizer was made for the scheme {self.scheme!r}, the code makes {expected!r}: "
                "use the version of mat2seq-hf that made the tokenizer, or build_tokenizer()"
            )

    def _texts(self, text: Any) -> Any:
        """Canonical text in place of each crystal; lists and tuples (but no Structure, a Sequence) are batches."""
        if text is None:
            return None
        if isinstance(text, (list, tuple)):
            return [self._texts(item) for item in text]
        return self.canonical_text(text)

    def __call__(self, text: Any = None, *args: Any, **kwargs: Any) -> BatchEncoding:
        """Encode one crystal or text, or a list of them; arguments as in ``TokenizersBackend.__call__``."""
        return cast("BatchEncoding", super().__call__(self._texts(text), *args, **kwargs))

    def encode(self, text: Any, *args: Any, **kwargs: Any) -> list[int]:
        """Token ids of one crystal or text, with ``<s>`` in front; arguments as in ``TokenizersBackend.encode``."""
        return cast("list[int]", super().encode(self._texts(text), *args, **kwargs))

    def tokenize(self, text: Any, *args: Any, **kwargs: Any) -> list[str]:
        """Tokens of one crystal or text as strings."""
        return super().tokenize(self._texts(text), *args, **kwargs)

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a canonical text, without ``<s>`` and ``</s>``: the fast route for whole corpora.

        Example:
            >>> tokenizer.encode_text("Ba1 Ti1 O3") == tokenizer.encode("Ba1 Ti1 O3", add_special_tokens=False)
            True
        """
        return tokenize(text)

    def _save_pretrained(
        self, save_directory: Any, file_names: tuple[str, ...], *args: Any, **kwargs: Any
    ) -> tuple[str, ...]:
        """Called by ``save_pretrained`` when it has written the settings, before it uploads anything."""
        settings = Path(file_names[0])
        written = json.loads(settings.read_text(encoding="utf-8"))
        if "auto_map" in written:
            text = json.dumps({**written, "tokenizer_class": CLASS_BESIDE_CODE}, indent=2, sort_keys=True)
            settings.write_text(text + "\n", encoding="utf-8")
        return super()._save_pretrained(save_directory, file_names, *args, **kwargs)

    def decode_crystal(self, ids: Any) -> CanonicalCrystal:
        """Crystal of one sequence of token ids.

        Args:
            ids: list, array or tensor of integers, shape (n,) or (1, n). Leading ``<pad>`` and ``<s>`` are skipped,
                as is everything after the first ``</s>``.

        Raises:
            DecodeError: the sequence is no crystal; the message says where and why.
        """
        return CanonicalCrystal.from_text(text_of_tokens(_integers(ids)))

    def decode_structure(self, ids: Any, primitive: bool = True) -> Structure:
        """Structure of one sequence of token ids, in the primitive (or conventional) cell; see `decode_crystal`.

        Raises:
            DecodeError: the sequence is no crystal; the message says where and why.
        """
        return self.decode_crystal(ids).to_structure(primitive=primitive)


# Saved folders then carry this module and its siblings, and trust_remote_code works without the package.
Mat2SeqTokenizer.register_for_auto_class("AutoTokenizer")  # type: ignore[no-untyped-call]


def _integers(ids: Any) -> list[int]:
    values = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    if not all(isinstance(value, SupportsInt) and isinstance(value, SupportsIndex) for value in values):
        raise DecodeError("token ids must be one sequence of integers, shape (n,); decode a batch row by row")
    return [int(value) for value in values]


def build_tokenizer(symprec: float = 0.01) -> Mat2SeqTokenizer:
    """The tokenizer of the current scheme.

    Ids are those of :data:`vocabulary.TOKEN_IDS`, tokens of a text those of :func:`vocabulary.tokenize`, and
    ``decode`` gives a canonical text back exactly.

    Args:
        symprec: symmetry tolerance in angstrom with which crystals are encoded, 1e-5 to 0.2.

    Raises:
        CrystalError: another tolerance.

    Example:
        >>> build_tokenizer().decode(build_tokenizer().encode("Ba1 Ti1 O3"), skip_special_tokens=True)
        'Ba1 Ti1 O3'
    """
    check_symprec(symprec)
    backend = Tokenizer(
        WordPiece(
            vocab=dict(TOKEN_IDS),
            unk_token=UNK,
            continuing_subword_prefix="##",
            max_input_chars_per_word=LONGEST_WORD,
        )
    )
    backend.pre_tokenizer = WhitespaceSplit()
    backend.decoder = WordPieceDecoder(prefix="##", cleanup=False)
    backend.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, TOKEN_IDS[BOS])])
    return Mat2SeqTokenizer(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # the words of the text alone decide: "<s>Ba1" is one unknown word
        symprec=symprec,
        scheme=scheme_fingerprint(symprec),
    )


def without_code(tokenizer: Mat2SeqTokenizer) -> Mat2SeqTokenizer:
    """A copy whose ``save_pretrained`` writes its settings alone, for folders that are read with this package.

    Example:
        >>> without_code(build_tokenizer()).save_pretrained("runs/mine")  # doctest: +SKIP
    """
    plain: Any = copy.copy(tokenizer)
    plain._auto_class = None
    plain.init_kwargs = {name: value for name, value in tokenizer.init_kwargs.items() if name != "auto_map"}
    plain_tokenizer: Mat2SeqTokenizer = plain
    return plain_tokenizer
