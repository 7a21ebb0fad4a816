"""Coverage as in CDVAE: how many reference crystals are near a sample, and how many samples are near a reference.

A crystal is described by the mean over its sites of 61 local order parameters (coordination numbers and motifs,
Zimmermann and Jain, RSC Adv. 10, 6063, 2020) and by 132 Magpie statistics of its elements (Ward et al., npj Comput.
Mater. 2, 16028, 2016), standardised with CDVAE's constants (cdvae/common/constants.py of its repository). The elements'
data are files of the package matminer, which has to be installed for them, but is not imported.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Mat2SeqError
from . import pool
from .crystals import read_structure
from .schema import Figure, share
from .store import Store, packages_fingerprint

if TYPE_CHECKING:
    from pymatgen.core import Structure

__all__ = ["CoverageCutoffs", "composition_fingerprint", "coverage", "covered", "structure_fingerprint"]

_Floats = NDArray[np.float64]

#: Order parameters of each coordination number, beside the weight of that number itself.
_MOTIFS: dict[int, tuple[str, ...]] = {
    1: ("sgl_bd",),
    2: ("L-shaped", "water-like", "bent 120 degrees", "bent 150 degrees", "linear"),
    3: ("trigonal planar", "trigonal non-coplanar", "T-shaped"),
    4: ("square co-planar", "tetrahedral", "rectangular see-saw-like", "see-saw-like", "trigonal pyramidal"),
    5: ("pentagonal planar", "square pyramidal", "trigonal bipyramidal"),
    6: ("hexagonal planar", "octahedral", "pentagonal pyramidal"),
    7: ("hexagonal pyramidal", "pentagonal bipyramidal"),
    8: ("body-centered cubic", "hexagonal bipyramidal"),
    9: ("q2", "q4", "q6"),
    10: ("q2", "q4", "q6"),
    11: ("q2", "q4", "q6"),
    12: ("cuboctahedral", "q2", "q4", "q6"),
}
_MAX_COORDINATION = 24

#: Goes up with every change of this module, or of how a text is read, that changes a structure's fingerprint.
_COVERAGE_VERSION = 1

_PROPERTIES = (
    *("Number", "MendeleevNumber", "AtomicWeight", "MeltingT", "Column", "Row", "CovalentRadius", "Electronegativity"),
    *("NsValence", "NpValence", "NdValence", "NfValence", "NValence"),
    *("NsUnfilled", "NpUnfilled", "NdUnfilled", "NfUnfilled", "NUnfilled"),
    *("GSvolume_pa", "GSbandgap", "GSmagmom", "SpaceGroupNumber"),
)


@dataclass(frozen=True)
class CoverageCutoffs:
    """Distances up to which crystals are near each other; both must be kept."""

    structure: float = 0.4
    composition: float = 10.0


@cache
def _order_parameters() -> dict[int, list[Any]]:
    from pymatgen.analysis.local_env import LocalStructOrderParams, cn_opt_params

    found: dict[int, list[Any]] = {}
    for number, names in _MOTIFS.items():
        found[number] = []
        for name in names:
            described: list[Any] = cn_opt_params.get(number, {}).get(name, [name])
            parameters = described[1] if len(described) > 1 else None
            found[number].append(LocalStructOrderParams([described[0]], parameters=[parameters]))
    return found


@cache
def _neighbours() -> Any:
    from pymatgen.analysis.local_env import CrystalNN

    return CrystalNN()


def _site_fingerprint(structure: Structure, index: int) -> list[float]:
    data = _neighbours().get_nn_data(structure, index)
    values: list[float] = []
    for number in range(1, _MAX_COORDINATION + 1):
        weight = float(data.cn_weights.get(number, 0))
        values.append(weight)
        for parameter in _order_parameters().get(number, []):
            if weight == 0:
                values.append(0.0)
                continue
            sites = [structure[index], *(info["site"] for info in data.cn_nninfo[number])]
            found = parameter.get_order_parameters(sites, 0, indices_neighs=list(range(1, len(sites))))[0]
            values.append(weight * float(found or 0))
    return values


def structure_fingerprint(structure: Structure) -> _Floats:
    """Mean of the 61 local order parameters over the sites, shape (61,)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CrystalNN advises oxidation states
        sites = [_site_fingerprint(structure, index) for index in range(len(structure))]
    mean: _Floats = np.mean(np.array(sites), axis=0)
    return mean


@cache
def _element_data() -> _Floats:
    """Magpie's properties of the elements, shape (elements, properties), row 0 for hydrogen.

    Raises:
        Mat2SeqError: matminer is not installed.
    """
    spec = find_spec("matminer")
    if spec is None or not spec.submodule_search_locations:
        raise Mat2SeqError("coverage needs the element data of matminer: pip install matminer")
    folder = Path(spec.submodule_search_locations[0]) / "utils" / "data_files" / "magpie_elementdata"
    columns = []
    for name in _PROPERTIES:
        words = (folder / f"{name}.table").read_text(encoding="utf-8").splitlines()[:103]
        columns.append([_number(word) for word in words] + [np.nan] * (103 - len(words)))
    return np.array(columns).T


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:  # "Missing"
        return float("nan")


@cache
def _scaler() -> tuple[_Floats, _Floats]:
    constants = json.loads((Path(__file__).parent / "cdvae_scaler.json").read_text(encoding="utf-8"))
    return np.array(constants["means"]), np.array(constants["deviations"])


def composition_fingerprint(amounts: Mapping[str, float]) -> _Floats:
    """Standardised Magpie statistics of a composition, shape (132,); missing data count as the mean.

    Args:
        amounts: of the elements, by their symbols.

    Raises:
        Mat2SeqError: matminer is not installed, or an element is beyond its data.
    """
    from pymatgen.core import Element

    numbers = [Element(symbol).Z for symbol in amounts]
    if max(numbers) > 103:
        raise Mat2SeqError("elements beyond lawrencium have no Magpie data")
    data = _element_data()[np.array(numbers) - 1]
    weights = np.array(list(amounts.values())) / sum(amounts.values())
    average = weights @ data
    frequent = data[np.isclose(weights, weights.max())].min(axis=0)
    low, high = data.min(axis=0), data.max(axis=0)
    statistics = [low, high, high - low, average, weights @ np.abs(data - average), frequent]
    means, deviations = _scaler()
    scaled: _Floats = np.nan_to_num((np.stack(statistics, axis=1).ravel() - means) / deviations, nan=0.0)
    return scaled


def _described(cif: str) -> dict[str, Any]:
    """What is kept of a crystal: structure fingerprint, and amounts of its elements, which give the other one."""
    structure = read_structure(cif)
    amounts = structure.composition.get_el_amt_dict()
    composition_fingerprint(amounts)  # an element beyond the data shows before the slow part
    return {"structure": structure_fingerprint(structure).tolist(), "amounts": amounts}


def _fingerprints(cifs: Sequence[str], label: str, cache: Path | None, options: dict[str, Any]) -> list[_Floats]:
    """Structure (n, 61) and composition (n, 132) fingerprints of the crystals that have them, in their order."""
    software = packages_fingerprint(f"coverage {_COVERAGE_VERSION}")
    keys = [Store.key(software, cif) for cif in cifs]
    store = Store(cache)
    missing = {key: cif for key, cif in zip(keys, cifs, strict=True) if key not in store}
    places = list(missing)

    def keep(index: int, outcome: pool.Outcome) -> None:
        store.keep(places[index], outcome.value)

    pool.run(_described, list(missing.values()), label=label, collect=keep, **options)
    found = [store.get(key) for key in keys if key in store]
    return [
        np.array([item["structure"] for item in found]),
        np.array([composition_fingerprint(item["amounts"]) for item in found]),
    ]


def covered(
    first: tuple[_Floats, _Floats], second: tuple[_Floats, _Floats], cutoffs: CoverageCutoffs
) -> NDArray[np.bool_]:
    """Which rows of ``first`` have a row of ``second`` near in structure and one near in composition.

    As in CDVAE, these may be different rows.

    Args:
        first, second: structure fingerprints (n, 61) and composition fingerprints (n, 132).
        cutoffs: what near means.
    """
    from scipy.spatial.distance import cdist

    near = np.ones(len(first[0]), dtype=bool)
    for own, other, limit in zip(first, second, (cutoffs.structure, cutoffs.composition), strict=True):
        for start in range(0, len(own), 1000):
            near[start : start + 1000] &= cdist(own[start : start + 1000], other).min(axis=1) <= limit
    return near


def coverage(
    samples: Sequence[str | None],
    references: Sequence[str],
    cutoffs: CoverageCutoffs,
    cache: Path | None = None,
    **options: Any,
) -> tuple[dict[str, Figure], str]:
    """Coverage of CIF texts, and a note on how it was computed or why it was not.

    Samples that have no fingerprint count as not near.

    Args:
        samples, references: CIF texts.
        cutoffs: CDVAE's for MP-20 by default.
        cache: file that keeps fingerprints, so that those of a reference are computed once.
        options: see :func:`.pool.run`.
    """
    try:
        _element_data()
    except Mat2SeqError as error:
        return {}, f"Coverage was left out: {error}."
    found = []
    for label, cifs in (("fingerprints of samples", samples), ("fingerprints of reference", references)):
        fingerprints = _fingerprints([cif for cif in cifs if cif], label, cache, options)
        if not len(fingerprints[0]):
            return {}, f"Coverage was left out: no {label}."
        found.append((fingerprints[0], fingerprints[1]))
    near = covered(found[0], found[1], cutoffs)
    figures = {
        "coverage_recall": share(covered(found[1], found[0], cutoffs).tolist()),
        "coverage_precision": share([*near.tolist(), *[False] * (len(samples) - len(near))]),
    }
    note = (
        f"Coverage: fingerprints and constants of CDVAE, cut-offs {cutoffs.structure:g} and {cutoffs.composition:g}; "
        f"{len(found[0][0])} of {len(samples)} samples and {len(found[1][0])} of {len(references)} references "
        "have them."
    )
    return figures, note
