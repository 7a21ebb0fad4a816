"""Errors that name the place, the value and the remedy.

Every error the package raises for bad input is a :class:`Mat2SeqError`, which is also a :class:`ValueError`.
"""

from __future__ import annotations

__all__ = [
    "CrystalError",
    "DecodeError",
    "FormulaError",
    "Mat2SeqError",
    "PromptError",
    "SchemeMismatchError",
    "SymmetryError",
]


class Mat2SeqError(ValueError):
    """Base class of every error raised for bad input."""


class CrystalError(Mat2SeqError):
    """The input is not an ordered, periodic crystal that can be encoded."""


class SymmetryError(Mat2SeqError):
    """The symmetry search found no consistent space group for the crystal."""


class FormulaError(Mat2SeqError):
    """A chemical formula cannot be read or cannot exist."""


class DecodeError(Mat2SeqError):
    """A sequence is not a crystal."""


class PromptError(Mat2SeqError):
    """What was asked of the generator cannot be fulfilled."""


class SchemeMismatchError(Mat2SeqError):
    """Two parts (tokenizer, model, data) were made with different canonical forms."""
