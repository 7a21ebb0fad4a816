"""A crystal's text as every task needs it: read, judged, reduced. Never raises for what a file may hold."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np

from ..canonical import canonicalize
from ..cell import VALID_DISTANCE, is_cif, read_cell
from ..cif_reading import read_plain_cif
from ..cif_symmetry import with_operations
from ..corpora.texts import crystal_of
from ..elements import SYMBOL_OF
from ..errors import Mat2SeqError
from . import pool
from .reduced_cell import ReducedCrystal, reduce_crystal
from .sources import SampleText
from .validity import charge_neutral

if TYPE_CHECKING:
    from pymatgen.core import Composition, Structure

__all__ = [
    "Examined",
    "composition_prompt",
    "counts_of",
    "examine",
    "examine_all",
    "examine_references",
    "kinds_of_reasons",
    "read_structure",
]

_GRAMS = 1.66053907  # g/cm^3 of one atomic mass unit in a cubic angstrom
_MIN_VOLUME = 0.1  # cubic angstrom, as in CDVAE
_MAX_SITES = 1000
_MAX_CHARACTERS = 1_000_000  # a thousand sites take a tenth of it; what is longer can fill the memory


@dataclass(frozen=True)
class Examined:
    """What is known of one crystal.

    Attributes:
        reason: why it could not be read or is not valid, else None.
        readable: whether it is an ordered crystal.
        formula: reduced formula.
        n_atoms: in the cell given.
        space_group: number at the tolerance asked for, None where it was not found or not asked for.
        min_distance: between two different atoms of the cell, angstrom; None for a single atom.
        valid_structure: no two atoms within 0.5 angstrom and a volume above 0.1 cubic angstrom.
        valid_composition: charge-neutral by smact; None where smact is not installed.
        density: g/cm^3.
        elements: atomic numbers of the elements, ascending.
        canonical_text: canonical sequence, None where there is none or it was not asked for.
        reduced: the cell that is matched, None if it could not be reduced.
    """

    reason: str | None = None
    readable: bool = False
    formula: str | None = None
    n_atoms: int | None = None
    space_group: int | None = None
    min_distance: float | None = None
    valid_structure: bool = False
    valid_composition: bool | None = None
    density: float | None = None
    elements: tuple[int, ...] = ()
    canonical_text: str | None = None
    reduced: ReducedCrystal | None = None

    @property
    def valid(self) -> bool:
        """Structure and, where it could be judged, composition."""
        return self.readable and self.valid_structure and self.valid_composition is not False

    def row(self, text: SampleText) -> dict[str, Any]:
        """The columns that every per_sample.parquet has, of the sample with this text."""
        names = ("readable", "formula", "n_atoms", "space_group", "min_distance", "valid_structure")
        return {
            "prompt_id": text.prompt_id,
            "sample_index": max(text.index, 0),
            "source": text.source,
            "reason": text.reason or self.reason if text.cif is None else self.reason,
            **{name: getattr(self, name) for name in (*names, "valid_composition", "valid")},
        }


def read_structure(text: str) -> Structure:
    """The crystal of a text, ordered, without oxidation states; of a CIF the first one.

    Args:
        text: CIF, POSCAR or JSON, see :func:`~..corpora.texts.crystal_of`.

    Raises:
        Mat2SeqError: it is no ordered crystal of at most 1,000 atoms with finite numbers.
    """
    if len(text) > _MAX_CHARACTERS:
        raise Mat2SeqError(f"a text of {len(text)} characters; up to {_MAX_CHARACTERS} are read")
    crystal = crystal_of(text)
    if isinstance(crystal, str) and is_cif(crystal):
        structure = _read_fast(crystal) or _checked(_read_cif(crystal))  # what is read fast needs no check
    else:
        structure = _checked(_read_other(crystal))
    if not 0 < len(structure) <= _MAX_SITES:
        raise Mat2SeqError(f"{len(structure)} sites; 1 to {_MAX_SITES} are evaluated")
    return structure


def _checked(structure: Structure) -> Structure:
    """The crystal without oxidation states, if it is one of whole atoms with finite numbers."""
    from pymatgen.core import Element

    if not structure.is_ordered:
        raise Mat2SeqError("partially occupied sites")
    if not (np.isfinite(structure.lattice.matrix).all() and np.isfinite(structure.frac_coords).all()):
        raise Mat2SeqError("numbers that are not finite")
    if not all(Element.is_valid_symbol(site.specie.symbol) for site in structure):  # a dummy has a symbol, too
        raise Mat2SeqError("species that are no elements")
    structure.remove_oxidation_states()
    return structure


def composition_prompt(structure: Structure) -> dict[str, Any]:
    """The fields of a prompt for the composition of a crystal's primitive cell (at 1e-4 angstrom), and nothing else."""
    composition = structure.get_primitive_structure(tolerance=1e-4).composition
    # not pymatgen's reduced formula, which is O2 for a cell of one O, and Li2O2 for one of LiO
    units = gcd(*map(round, composition.values()))
    return {"formula": (composition / units).formula.replace(" ", ""), "formula_units": units}


def _read_cif(cif: str) -> Structure:
    from pymatgen.core import Structure

    listed = with_operations(cif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return Structure.from_str(listed, fmt="cif")
        except Exception as error:  # the parser raises nearly every type for broken files
            raise Mat2SeqError(f"unreadable CIF: {type(error).__name__}: {error}"[:300]) from error


def _read_other(crystal: Any) -> Structure:
    """A POSCAR text, or a structure that came as JSON; checked, as neither pymatgen's reader nor its class does."""
    from pymatgen.core import Structure

    try:
        cell = read_cell(crystal)
    except Mat2SeqError as error:
        if not isinstance(crystal, str):
            raise
        raise Mat2SeqError(f"unreadable CIF or POSCAR: {error}"[:300]) from error
    return Structure(cell.lattice, [SYMBOL_OF[number] for number in cell.numbers.tolist()], cell.positions)


def _read_fast(cif: str) -> Structure | None:
    """What pymatgen reads from a plain CIF, its order of sites included, several times faster; None for other texts."""
    from pymatgen.core import Lattice, Structure

    plain = read_plain_cif(cif)
    if plain is None:
        return None
    matrix, points, symbols = plain
    # pymatgen's own orientation, from the decimals of the file: the matcher's ties depend on the last bit
    lattice = Lattice.from_parameters(*np.round(Lattice(matrix).parameters, 9))
    keys = [_rank(symbol) for symbol in symbols]
    if any(np.isnan(number) for number, _ in keys):  # noble gases: comparisons with nan follow no order of their own
        return Structure(lattice, symbols, points, to_unit_cell=True).get_sorted_structure()
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return Structure(lattice, [_whole_atom(symbols[place]) for place in order], points[order], to_unit_cell=True)


@cache
def _whole_atom(symbol: str) -> Composition:
    """What pymatgen makes of a symbol for each site anew."""
    from pymatgen.core import Composition, Element

    return Composition({Element(symbol): 1})


@cache
def _rank(symbol: str) -> tuple[float, str]:
    """What pymatgen sorts sites by."""
    from pymatgen.core import Element

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(Element(symbol).X), symbol


def _min_distance(structure: Structure) -> float | None:
    if len(structure) < 2:
        return None
    distances = structure.distance_matrix
    return float(distances[~np.eye(len(structure), dtype=bool)].min())


def _space_group(structure: Structure, symprec: float) -> int | None:
    import spglib

    cell = (structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # spglib 2.7 on announces its new error handling
        dataset = spglib.get_symmetry_dataset(cell, symprec=symprec)
    return None if dataset is None else int(dataset.number)


def examine(cif: str, symprec: float | None = None, canonical: bool = False) -> Examined:
    """Read and judge one text.

    Args:
        cif: the text, see :func:`read_structure`.
        symprec: tolerance (angstrom) of the space group; None leaves it out.
        canonical: whether the canonical sequence (at 0.01 angstrom) is wanted.
    """
    try:
        structure = read_structure(cif)
    except Mat2SeqError as error:
        return Examined(str(error))
    volume = float(structure.volume)
    distance = _min_distance(structure)
    composition = structure.composition.reduced_composition
    found = Examined(
        readable=True,
        formula=composition.reduced_formula,
        n_atoms=len(structure),
        min_distance=distance,
        valid_structure=volume >= _MIN_VOLUME and (distance is None or distance >= VALID_DISTANCE),
        valid_composition=charge_neutral(composition),
        density=_GRAMS * float(structure.composition.weight) / volume if volume > 0 else None,
        elements=tuple(sorted({site.specie.Z for site in structure})),
    )
    found = replace(found, reason=_complaint(found, volume))
    if volume < _MIN_VOLUME:
        return found
    try:
        found = replace(found, reduced=reduce_crystal(structure))
    except (ValueError, ArithmeticError, IndexError, np.linalg.LinAlgError) as error:
        return replace(found, reason=f"the cell cannot be reduced: {error}")
    if symprec is not None:
        found = replace(found, space_group=_space_group(structure, symprec))
    if canonical:
        try:
            found = replace(found, canonical_text=canonicalize(structure).text)
        except Mat2SeqError:
            found = replace(found, canonical_text=None)  # overlapping atoms have none; they count as unlike all others
    return found


def _complaint(found: Examined, volume: float) -> str | None:
    if volume < _MIN_VOLUME:
        return f"the cell has a volume of {volume:.2g} cubic angstrom"
    if not found.valid_structure:
        return f"two atoms are {found.min_distance:.3f} angstrom apart"
    return f"{found.formula} is not charge-neutral" if found.valid_composition is False else None


def examine_all(
    cifs: Sequence[str | None],
    *,
    symprec: float | None = None,
    canonical: bool = False,
    processes: int = 1,
    timeout: float = 60.0,
    label: str = "reading",
    progress: bool = True,
) -> list[Examined]:
    """Examine many texts, equal texts once; a timeout or crash is a reason.

    Args:
        cifs: texts; None is a sample without crystal.
        symprec, canonical: see :func:`examine`.
        processes, timeout, label, progress: see :func:`.pool.run`.
    """
    places: dict[str, list[int]] = {}
    for place, cif in enumerate(cifs):
        if cif is not None:
            places.setdefault(hashlib.sha256(cif.encode("utf-8", "replace")).hexdigest(), []).append(place)
    texts = [cifs[where[0]] for where in places.values()]
    outcomes = pool.run(
        partial(examine, symprec=symprec, canonical=canonical),
        texts,
        processes=processes,
        timeout=timeout,
        label=label,
        progress=progress,
    )
    examined = [Examined("no CIF")] * len(cifs)
    for where, outcome in zip(places.values(), outcomes, strict=True):
        for place in where:
            examined[place] = outcome.value if outcome.kind == "ok" else Examined(f"{outcome.kind} while reading")
    return examined


def examine_references(cifs: Sequence[str], **options: Any) -> list[Examined]:
    """:func:`examine_all` of the crystals that samples are compared with.

    Raises:
        Mat2SeqError: none of them can be read.
    """
    examined = examine_all(cifs, **options)
    if examined and not any(item.readable for item in examined):
        raise Mat2SeqError(
            f"none of the {len(examined)} reference crystals can be read; the first: {examined[0].reason}"
        )
    return examined


def counts_of(texts: Sequence[SampleText], samples: Sequence[Examined], outcomes: Iterable[str] = ()) -> dict[str, int]:
    """How many samples there are and what happened to them.

    Args:
        texts: the samples.
        samples: what was read of them.
        outcomes: kinds of :class:`.pool.Outcome` of what was done with them afterwards.
    """
    reasons = [sample.reason or "" for sample in samples if not sample.readable]
    happened = [*reasons, *outcomes]
    return {
        "samples": len(texts),
        "unreadable": len(reasons),
        "timeouts": sum(text.startswith("timeout") for text in happened),
        "crashes": sum(text.startswith("crash") for text in happened),
        "errors": sum(text.startswith("error") for text in happened),
    }


def kinds_of_reasons(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How often each kind of reason occurs, the most frequent first; particulars such as distances are cut off."""

    def kind(reason: str) -> str:
        if "angstrom apart" in reason:
            return "two atoms within 0.5 angstrom"
        if reason.endswith("is not charge-neutral"):
            return "composition is not charge-neutral"
        return ": ".join(reason.split(": ")[:2])[:120].splitlines()[0]

    return dict(Counter(kind(row["reason"]) for row in rows if row["reason"]).most_common(30))
