"""GPT-2 configurations of three sizes for the vocabulary of crystals."""

from __future__ import annotations

from typing import Any

from transformers import GPT2Config

from .errors import Mat2SeqError
from .sequence import SCHEME_VERSION, scheme_fingerprint
from .vocabulary import BOS, EOS, PAD, TOKEN_IDS, TOKENS

__all__ = ["PRESETS", "gpt2_config"]

# Wide and shallow is faster on a CPU than narrow and deep at equal size. No MP-20 crystal is longer than 200 tokens.
PRESETS: dict[str, dict[str, int]] = {
    "tiny": {"n_embd": 320, "n_layer": 4, "n_head": 5, "n_positions": 512},
    "small": {"n_embd": 512, "n_layer": 8, "n_head": 8, "n_positions": 512},
    "large": {"n_embd": 1024, "n_layer": 16, "n_head": 16, "n_positions": 1024},
}


def gpt2_config(size: str = "tiny", *, dropout: float = 0.1, symprec: float = 0.01, **overrides: Any) -> GPT2Config:
    """Configuration of a GPT-2 for crystal sequences.

    Args:
        size: ``"tiny"`` (5.7 million parameters), ``"small"`` (26) or ``"large"`` (204).
        dropout: probability for residuals, embeddings and attention.
        symprec: tolerance (angstrom) of the canonical form the model is for; part of ``config.mat2seq["scheme"]``.
        overrides: any field of :class:`~transformers.GPT2Config`; it wins over the preset.

    Returns:
        a stock configuration with ``vocab_size``, begin, end and pad ids of :mod:`.vocabulary`, tied embeddings, and
        ``mat2seq``, a dict with the scheme's version and fingerprint.

    Raises:
        Mat2SeqError: ``size`` names no preset.

    Example:
        >>> gpt2_config("tiny", dropout=0.0).n_embd
        320
    """
    if size not in PRESETS:
        raise Mat2SeqError(f"model size {size!r} is not one of {', '.join(PRESETS)}")
    fields: dict[str, Any] = {
        **PRESETS[size],
        "vocab_size": len(TOKENS),
        "bos_token_id": TOKEN_IDS[BOS],
        "eos_token_id": TOKEN_IDS[EOS],
        "pad_token_id": TOKEN_IDS[PAD],
        # the same function as GPT-2's "gelu_new", computed in one pass
        "activation_function": "gelu_pytorch_tanh",
        "resid_pdrop": dropout,
        "embd_pdrop": dropout,
        "attn_pdrop": dropout,
        "mat2seq": {"version": SCHEME_VERSION, "scheme": scheme_fingerprint(symprec)},
    }
    return GPT2Config(**{**fields, **overrides})
