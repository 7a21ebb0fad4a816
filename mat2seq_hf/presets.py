"""Configurations of three sizes for the vocabulary of crystals, as a Llama or as a GPT-2."""

from __future__ import annotations

from typing import Any

from transformers import GPT2Config, LlamaConfig

from .errors import Mat2SeqError
from .sequence import SCHEME_VERSION, scheme_fingerprint
from .vocabulary import BOS, EOS, PAD, TOKEN_IDS, TOKENS

__all__ = ["PRESETS", "gpt2_config", "llama_config"]

# Wide and shallow is faster on a CPU than narrow and deep at equal size. No MP-20 crystal is longer than 200 tokens.
PRESETS: dict[str, dict[str, int]] = {
    "tiny": {"width": 320, "layers": 4, "heads": 5, "positions": 512},
    "small": {"width": 512, "layers": 8, "heads": 8, "positions": 512},
    "large": {"width": 1024, "layers": 16, "heads": 16, "positions": 1024},
}


def _shape(size: str) -> dict[str, int]:
    if size not in PRESETS:
        raise Mat2SeqError(f"model size {size!r} is not one of {', '.join(PRESETS)}")
    return PRESETS[size]


def _common(symprec: float) -> dict[str, Any]:
    """Fields of every architecture: the vocabulary, tied embeddings and the scheme."""
    return {
        "vocab_size": len(TOKENS),
        "bos_token_id": TOKEN_IDS[BOS],
        "eos_token_id": TOKEN_IDS[EOS],
        "pad_token_id": TOKEN_IDS[PAD],
        "tie_word_embeddings": True,
        "mat2seq": {"version": SCHEME_VERSION, "scheme": scheme_fingerprint(symprec)},
    }


def llama_config(size: str = "tiny", *, symprec: float = 0.01, **overrides: Any) -> LlamaConfig:
    """Configuration of a Llama (rotary positions, gated MLP) for crystal sequences.

    Args:
        size: ``"tiny"`` (5.3 million parameters), ``"small"`` (26) or ``"large"`` (204).
        symprec: tolerance (angstrom) of the canonical form the model is for; part of ``config.mat2seq["scheme"]``.
        overrides: any field of :class:`~transformers.LlamaConfig`; it wins over the preset.

    Returns:
        a stock configuration with ``vocab_size``, begin, end and pad ids of :mod:`.vocabulary`, tied embeddings, and
        ``mat2seq``, a dict with the scheme's version and fingerprint.

    Raises:
        Mat2SeqError: ``size`` names no preset.

    Example:
        >>> llama_config("tiny").hidden_size
        320
    """
    shape = _shape(size)
    fields: dict[str, Any] = {
        "hidden_size": shape["width"],
        # 8/3 of the width, in whole blocks of 64: three matrices hold as much as GPT-2's two of four times the width
        "intermediate_size": 64 * round(shape["width"] / 24),
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "max_position_embeddings": shape["positions"],
    }
    return LlamaConfig(**{**_common(symprec), **fields, **overrides})


def gpt2_config(size: str = "tiny", *, dropout: float = 0.1, symprec: float = 0.01, **overrides: Any) -> GPT2Config:
    """Configuration of a GPT-2 for crystal sequences.

    Args:
        size: ``"tiny"`` (5.6 million parameters), ``"small"`` (26) or ``"large"`` (204).
        dropout: probability for residuals, embeddings and attention.
        symprec: tolerance (angstrom) of the canonical form the model is for; part of ``config.mat2seq["scheme"]``.
        overrides: any field of :class:`~transformers.GPT2Config`; it wins over the preset.

    Returns:
        a stock configuration as that of :func:`llama_config`.

    Raises:
        Mat2SeqError: ``size`` names no preset.

    Example:
        >>> gpt2_config("tiny", dropout=0.0).n_embd
        320
    """
    shape = _shape(size)
    fields: dict[str, Any] = {
        "n_embd": shape["width"],
        "n_layer": shape["layers"],
        "n_head": shape["heads"],
        "n_positions": shape["positions"],
        # the same function as GPT-2's "gelu_new", computed in one pass
        "activation_function": "gelu_pytorch_tanh",
        "resid_pdrop": dropout,
        "embd_pdrop": dropout,
        "attn_pdrop": dropout,
    }
    return GPT2Config(**{**_common(symprec), **fields, **overrides})
