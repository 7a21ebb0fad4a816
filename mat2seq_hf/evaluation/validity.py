"""Is a composition charge-neutral? By smact, as in CDVAE."""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec
from typing import Any

__all__ = ["WITHOUT_SMACT", "charge_neutral", "smact_installed"]

#: For reports.
WITHOUT_SMACT = "smact is not installed: compositions were not judged, and what is called valid may be charged."


def smact_installed() -> bool:
    """Whether compositions can be judged (``pip install 'mat2seq-hf[evaluate]'``)."""
    return find_spec("smact") is not None


def charge_neutral(composition: Any) -> bool | None:
    """Whether oxidation states exist that make a composition neutral with the anions the more electronegative.

    The rule is CDVAE's: a pure element is valid, an alloy of metals is, any other composition needs one combination of
    the oxidation states of smact's list of 2014 (the one that CDVAE's version of smact used) that is neutral and passes
    Pauling's test.

    Args:
        composition: pymatgen Composition.

    Returns:
        None where smact is not installed.

    Example:
        >>> charge_neutral(Composition("NaCl"))  # doctest: +SKIP
        True
    """
    if not smact_installed():
        return None
    reduced = composition.reduced_composition
    return _charge_neutral(tuple(sorted((element.symbol, round(count)) for element, count in reduced.items())))


@cache
def _charge_neutral(counts: tuple[tuple[str, int], ...]) -> bool:
    from pymatgen.core import Composition

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # noble gases have no electronegativity
        from smact.screening import smact_validity

        try:
            return bool(smact_validity(Composition(dict(counts)), oxidation_states_set="smact14"))
        except (KeyError, NameError, TypeError):  # an element that smact has no data for
            return False
