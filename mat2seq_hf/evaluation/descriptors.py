"""A crystal as numbers for the default judge: statistics of its elements, its density, symmetry and distances."""

from __future__ import annotations

import warnings
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .crystals import read_structure
from .store import packages_fingerprint

if TYPE_CHECKING:
    from pymatgen.core import Structure

__all__ = ["DESCRIPTORS_VERSION", "describe", "describe_cif", "descriptors_fingerprint"]

#: Goes up with every change of this module, or of how a text is read, that changes a number: kept ones are then no more
#: taken for those of today.
DESCRIPTORS_VERSION = 1

_PROPERTIES = (
    *("Z", "X", "row", "group", "mendeleev_no", "atomic_mass", "atomic_radius", "average_ionic_radius"),
    *("max_oxidation_state", "min_oxidation_state", "electron_affinity", "ionization_energy", "melting_point"),
)
_BLOCKS = "spdf"
_REACH = 8.0  # angstrom: a neighbour is nearer in all but the emptiest crystals


@cache
def _of_element(symbol: str) -> NDArray[np.float64]:
    """Properties of an element, nan where pymatgen has none, and its block."""
    from pymatgen.core import Element

    element = Element(symbol)
    values = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # noble gases have no electronegativity
        for name in _PROPERTIES:
            try:
                value = getattr(element, name)
                values.append(float(value) if value is not None else np.nan)
            except (TypeError, ValueError, AttributeError):
                values.append(np.nan)
    return np.array([*values, *(float(element.block == block) for block in _BLOCKS)])


def _nearest(structure: Structure) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distance to the nearest neighbour, and the number of neighbours up to 1.25 of it, for each site."""
    centers, _, _, distances = structure.get_neighbor_list(_REACH)
    nearest = np.full(len(structure), _REACH)
    np.minimum.at(nearest, centers, distances)
    close = distances <= 1.25 * nearest[centers]
    return nearest, np.bincount(centers[close], minlength=len(structure)).astype(float)


def describe(structure: Structure) -> NDArray[np.float64]:
    """Numbers of a crystal, always as many, nan where one is not defined.

    Args:
        structure: ordered; the result is the same for every cell of the crystal, up to rounding.
    """
    amounts = structure.composition.get_el_amt_dict()
    data = np.array([_of_element(symbol) for symbol in amounts])
    weights = np.array(list(amounts.values())) / sum(amounts.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column without any value
        known = np.where(np.isnan(data), 0.0, weights[:, None])
        total = known.sum(axis=0)
        mean = np.nansum(data * weights[:, None], axis=0) / np.where(total > 0, total, np.nan)
        spread = np.nansum(np.abs(data - mean) * weights[:, None], axis=0) / np.where(total > 0, total, np.nan)
        low, high = np.nanmin(data, axis=0), np.nanmax(data, axis=0)
    nearest, neighbours = _nearest(structure)
    volume = structure.volume / len(structure)
    whole = [
        len(amounts),
        float(weights.max()),
        float(np.sqrt((weights**2).sum())),
        volume,
        float(structure.density),
        *(float(value) for value in (nearest.mean(), nearest.min(), nearest.max(), nearest.std())),
        float(nearest.mean() / volume ** (1 / 3)),
        *(float(value) for value in (neighbours.mean(), neighbours.min(), neighbours.max())),
    ]
    return np.concatenate([mean, spread, low, high, high - low, np.array(whole)])


def describe_cif(cif: str) -> NDArray[np.float64]:
    """:func:`describe` of a CIF text.

    Raises:
        Mat2SeqError: it is no ordered crystal.
    """
    return describe(read_structure(cif))


def descriptors_fingerprint() -> str:
    """What a crystal's numbers depend on beside its text: this module, the element data, the search for neighbours."""
    return packages_fingerprint(f"descriptors {DESCRIPTORS_VERSION}")
