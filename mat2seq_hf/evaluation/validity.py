"""Is a composition charge-neutral? By smact, as in CDVAE."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from ..samples import can_be_neutral

__all__ = ["WITHOUT_SMACT", "charge_neutral", "smact_installed"]

#: For reports.
WITHOUT_SMACT = "smact is not installed: compositions were not judged, and what is called valid may be charged."


def smact_installed() -> bool:
    """Whether compositions can be judged (``pip install 'mat2seq-hf[evaluate]'``)."""
    return find_spec("smact") is not None


def charge_neutral(composition: Any) -> bool | None:
    """Whether oxidation states exist that make a composition neutral with the anions the more electronegative.

    The rule is CDVAE's, see :func:`~..samples.can_be_neutral`: a pure element is valid, an alloy of metals is, any
    other composition needs one combination of the oxidation states of smact's list of 2014 (the one that CDVAE's
    version of smact used) that is neutral and passes Pauling's test. Compounds of elements that smact lacks have none.

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
    return can_be_neutral((element.symbol, round(count)) for element, count in composition.items())
