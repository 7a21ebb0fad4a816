"""Formulas of crystals: as a CIF states them, reduced, or computed."""

from __future__ import annotations

import re
import warnings

from ..errors import Mat2SeqError
from .crystals import read_structure

__all__ = ["formula_of", "formula_of_cif", "reduced_formula"]

_SUM = re.compile(r"^_chemical_formula_sum\s+(['\"]?)(?P<formula>[^'\"\n]+)\1\s*$", re.MULTILINE)
_WORDS = re.compile(r"([A-Z][a-z]?\d*\s*)+")


def reduced_formula(formula: str) -> str | None:
    """Reduced formula of ``"Ba1 Ti1 O3"`` as pymatgen writes it, or None if it is none."""
    from pymatgen.core import Composition

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # noble gases have no electronegativity, by which elements are put in order
            return str(Composition(formula.replace(" ", "")).reduced_formula)
    except ValueError:
        return None


def formula_of_cif(cif: str) -> str | None:
    """The formula that a CIF states, such as ``"Ba1 Ti1 O3"``, without reading the rest."""
    found = _SUM.search(cif)
    return found["formula"].strip() if found and _WORDS.fullmatch(found["formula"].strip()) else None


def formula_of(text: str) -> str | None:
    """The formula that a CIF states, else that of the crystal; None for what is no crystal."""
    if (stated := formula_of_cif(text)) is not None:
        return stated
    try:
        return str(read_structure(text).composition.formula)
    except Mat2SeqError:
        return None
