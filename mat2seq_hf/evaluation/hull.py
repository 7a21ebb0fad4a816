"""The convex hull of a potential: single points of a corpus, computed when a chemical system is first asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..corpora.sources import read_rows
from ..errors import Mat2SeqError
from . import pool
from .crystals import read_structure
from .formulas import formula_of
from .potential import CHGNET, potential_name, single_point, single_points
from .schema import digest
from .store import Store

if TYPE_CHECKING:
    from pymatgen.core import Composition

__all__ = ["Hull", "read_corpus_by_system"]

_BATCH = 64  # crystals between two entries in the store


def _elements(text: str) -> frozenset[str] | None:
    """Elements of a crystal, by the formula that its CIF states where it does; None if it cannot be read."""
    from pymatgen.core import Composition

    formula = formula_of(text)
    if formula is None:
        return None
    try:
        return frozenset(element.symbol for element in Composition(formula.replace(" ", "")).elements)
    except (ValueError, AttributeError):
        return None


def read_corpus_by_system(path: str | Path) -> tuple[dict[frozenset[str], list[str]], int, str]:
    """Texts of the crystals of a corpus by their elements, how many of its crystals cannot be read, and a fingerprint.

    The fingerprint is that of their ids, see :func:`.schema.digest`.

    Raises:
        Mat2SeqError: the corpus cannot be read, or none of its crystals can.
    """
    systems: dict[frozenset[str], list[str]] = {}
    unreadable = 0
    ids = []
    for row in read_rows([path]):
        ids.append(row.id)
        elements = None if row.problem else _elements(row.text)
        if elements is None:
            unreadable += 1
        else:
            systems.setdefault(elements, []).append(row.text)
    if not systems:
        raise Mat2SeqError(f"none of the {unreadable} crystals in {path} can be read, which the hull needs")
    return systems, unreadable, digest(ids)


@dataclass(frozen=True)
class _Phases:
    """Crystals of a chemical system: atomic fractions of its elements, shape (n, elements), and eV/atom, shape (n,)."""

    fractions: NDArray[np.float64]
    energies: NDArray[np.float64]

    def lowest(self, target: NDArray[np.float64]) -> float:
        """Least energy (eV/atom) of a mixture of phases with the atomic fractions ``target``: the hull at this point.

        A linear program (Akbarzadeh, Ozolins and Wolverton, Adv. Mater. 19 (2007) 3233) needs no facets, whose number
        grows so fast with the elements that a hull of twelve takes hours.
        """
        from scipy.optimize import linprog

        return float(linprog(self.energies, A_eq=self.fractions.T, b_eq=target, method="highs").fun)


class Hull:
    """Energies above the hull of a corpus, all with the same potential.

    Args:
        corpus: texts by elements, see :func:`read_corpus_by_system`.
        store: keeps single points from run to run.
        calculator: see :class:`.potential.RelaxSettings`.
        options: see :func:`.pool.run`.
    """

    def __init__(
        self,
        corpus: Mapping[frozenset[str], Sequence[str]],
        store: Store,
        calculator: str = CHGNET,
        **options: Any,
    ) -> None:
        self._corpus, self._store, self._calculator, self._options = corpus, store, calculator, options
        self._phases: dict[frozenset[str], _Phases | None] = {}
        #: crystals of the corpus whose single point failed
        self.failures = 0

    def _key(self, cif: str) -> str:
        return Store.key("single point", potential_name(self._calculator), cif)

    def prepare(self, systems: Iterable[frozenset[str]]) -> int:
        """Compute the single points that these chemical systems need and the store lacks.

        Returns:
            number of crystals of the corpus in these systems.
        """
        wanted = list(systems)
        cifs = [cif for own, group in self._corpus.items() if any(own <= system for system in wanted) for cif in group]
        missing = [cif for cif in cifs if self._key(cif) not in self._store]
        if self._calculator == CHGNET:
            self._in_batches(missing)
        else:

            def keep(index: int, outcome: pool.Outcome) -> None:
                self._store.keep(self._key(missing[index]), outcome.value)

            tasks = [(cif, self._calculator) for cif in missing]
            pool.run(_single_point, tasks, label="single points of the corpus", collect=keep, **self._options)
        self.failures = sum(self._key(cif) not in self._store for cif in cifs)
        return len(cifs)

    def _in_batches(self, cifs: Sequence[str]) -> None:
        progress = self._options.get("progress", True)
        with tqdm(total=len(cifs), desc="single points of the corpus", disable=not progress, delay=1) as bar:
            for start in range(0, len(cifs), _BATCH):
                batch = cifs[start : start + _BATCH]
                try:
                    energies: list[float | None] = list(single_points(batch))
                except Exception:  # noqa: BLE001 - one odd crystal spoils its batch: take them one by one
                    timeout = float(self._options.get("timeout", 60.0))
                    tasks = [(cif, self._calculator) for cif in batch]
                    energies = [
                        outcome.value for outcome in pool.run(_single_point, tasks, timeout=timeout, progress=False)
                    ]
                for cif, energy in zip(batch, energies, strict=True):
                    self._store.keep(self._key(cif), energy)
                bar.update(len(batch))

    def _system_phases(self, system: frozenset[str]) -> _Phases | None:
        """Phases of a system, None where the corpus lacks one of its elements."""
        if system not in self._phases:
            elements = sorted(system)
            fractions, energies = [], []
            for own, cifs in self._corpus.items():
                for cif in cifs if own <= system else ():
                    energy = self._store.get(self._key(cif))
                    composition = read_structure(cif).composition if energy is not None else None
                    # what a formula states is not always what the crystal is
                    if composition is not None and {e.symbol for e in composition.elements} <= system:
                        fractions.append([composition.get_atomic_fraction(symbol) for symbol in elements])
                        energies.append(energy)
            shares = np.array(fractions).reshape(-1, len(elements))
            complete = bool((shares == 1).any(axis=0).all())
            self._phases[system] = _Phases(shares, np.array(energies, dtype=float)) if complete else None
        return self._phases[system]

    def above(self, composition: Composition, energy_per_atom: float) -> float | None:
        """Energy above the hull (eV/atom), negative below it; None where the hull lacks an element.

        Call :meth:`prepare` for its chemical system first.
        """
        symbols = sorted(element.symbol for element in composition.elements)
        phases = self._system_phases(frozenset(symbols))
        if phases is None:
            return None
        return energy_per_atom - phases.lowest(np.array([composition.get_atomic_fraction(s) for s in symbols]))


def _single_point(task: tuple[str, str]) -> float:
    return single_point(*task)
