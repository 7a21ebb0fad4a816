"""Mat2Seq for Hugging Face: crystals as unique, complete token sequences, and models that generate them.

Names are imported when they are first used. Importing the package makes transformers know the tokenizer class and the
task ``crystal-generation``.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from .registration import register

if TYPE_CHECKING:
    from .canonical import CanonicalCrystal, Site, canonicalize
    from .cif import cif_text
    from .corpora.builder import CrystalCorpus
    from .corpora.feature import Crystal
    from .corpora.load import load_crystals
    from .errors import (
        CrystalError,
        DecodeError,
        FormulaError,
        Mat2SeqError,
        PromptError,
        SchemeMismatchError,
        SymmetryError,
    )
    from .grammar import Grammar
    from .pipeline import CrystalGenerationPipeline
    from .presets import gpt2_config, llama_config
    from .sequence import SCHEME_VERSION, scheme_fingerprint
    from .tokenizer import Mat2SeqTokenizer, build_tokenizer
    from .wishes import Prompt

__all__ = [
    "SCHEME_VERSION",
    "CanonicalCrystal",
    "Crystal",
    "CrystalCorpus",
    "CrystalError",
    "CrystalGenerationPipeline",
    "DecodeError",
    "FormulaError",
    "Grammar",
    "Mat2SeqError",
    "Mat2SeqTokenizer",
    "Prompt",
    "PromptError",
    "SchemeMismatchError",
    "Site",
    "SymmetryError",
    "__version__",
    "build_tokenizer",
    "canonicalize",
    "cif_text",
    "gpt2_config",
    "llama_config",
    "load_crystals",
    "scheme_fingerprint",
]

_HOME = {
    "canonical": ("CanonicalCrystal", "Site", "canonicalize"),
    "cif": ("cif_text",),
    "corpora.builder": ("CrystalCorpus",),
    "corpora.feature": ("Crystal",),
    "corpora.load": ("load_crystals",),
    "errors": (
        *("CrystalError", "DecodeError", "FormulaError", "Mat2SeqError", "PromptError"),
        *("SchemeMismatchError", "SymmetryError"),
    ),
    "grammar": ("Grammar",),
    "pipeline": ("CrystalGenerationPipeline",),
    "presets": ("gpt2_config", "llama_config"),
    "sequence": ("SCHEME_VERSION", "scheme_fingerprint"),
    "tokenizer": ("Mat2SeqTokenizer", "build_tokenizer"),
    "wishes": ("Prompt",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

try:
    __version__ = version("mat2seq-hf")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

register()


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
