"""Which samples are new: among themselves, and against a training corpus.

Equal canonical sequences are equal crystals; where sequences differ, StructureMatcher decides with its own defaults
(ltol 0.2, stol 0.3, angle_tol 5), which are stricter than those of structure prediction.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ..canonical import CanonicalCrystal
from ..cif import cif_text
from ..corpora.prepare import read_rows
from ..corpora.schema import shard_paths
from ..errors import Mat2SeqError
from . import pool
from .crystals import Examined, examine_all
from .matching import Matcher, ReducedCrystal

__all__ = ["NOVELTY_MATCHER", "Corpus", "formula_of_cif", "mark_novel", "mark_unique", "read_corpus", "reduced_formula"]

#: StructureMatcher's own defaults.
NOVELTY_MATCHER = Matcher(ltol=0.2, stol=0.3, angle_tol=5.0)

_SUM = re.compile(r"^_chemical_formula_sum\s+(['\"]?)(?P<formula>[^'\"\n]+)\1\s*$", re.MULTILINE)
_WORDS = re.compile(r"([A-Z][a-z]?\d*\s*)+")


@dataclass(frozen=True)
class Corpus:
    """What samples are compared with: all canonical sequences that are known, and crystals by their content.

    Attributes:
        name: for the report.
        size: crystals in it.
        texts: canonical sequences; empty for a corpus that was not prepared.
        crystals: matchable crystals of the formulas that were asked for, by their atoms.
    """

    name: str
    size: int
    texts: frozenset[str]
    crystals: Mapping[tuple[int, ...], Sequence[ReducedCrystal]]


def reduced_formula(formula: str) -> str | None:
    """Reduced formula of ``"Ba1 Ti1 O3"`` as pymatgen writes it, or None if it is none."""
    from pymatgen.core import Composition

    try:
        return str(Composition(formula.replace(" ", "")).reduced_formula)
    except ValueError:
        return None


def formula_of_cif(cif: str) -> str | None:
    """The formula that a CIF states, such as ``"Ba1 Ti1 O3"``, without reading the rest."""
    found = _SUM.search(cif)
    return found["formula"].strip() if found and _WORDS.fullmatch(found["formula"].strip()) else None


def _formula_of_text(text: str) -> str:
    """The words before the space group of a canonical sequence."""
    return text.partition(" [")[0]


def _candidates(path: Path, wanted: set[str]) -> Iterator[tuple[str | None, str | None]]:
    """Canonical sequence (if prepared) and CIF (if its formula is wanted) of every crystal of a corpus."""
    shards = shard_paths(path) if path.is_dir() else []
    known: dict[str, bool] = {}
    if shards:
        for shard in shards:
            for text in pq.read_table(shard, columns=["text"]).column("text").to_pylist():
                formula = _formula_of_text(text)
                if formula not in known:
                    known[formula] = reduced_formula(formula) in wanted
                yield text, cif_text(CanonicalCrystal.from_text(text)) if known[formula] else None
        return
    for row in read_rows([path]):
        formula = formula_of_cif(row.text) or ""
        if formula not in known:  # without a formula in the file it has to be read
            known[formula] = not formula or reduced_formula(formula) in wanted
        yield None, row.text if known[formula] else None


def read_corpus(
    path: str | Path, formulas: Iterable[str], *, processes: int = 1, timeout: float = 60.0, progress: bool = True
) -> Corpus:
    """A corpus, of which only the crystals of some formulas are read in full.

    Args:
        path: a prepared corpus (folder of part-*.parquet), a table with a column cif, or a folder of CIFs.
        formulas: reduced formulas of the samples.
        processes, timeout, progress: see :func:`.pool.run`.

    Raises:
        Mat2SeqError: the corpus cannot be read or is empty.
    """
    wanted = set(formulas)
    texts: set[str] = set()
    cifs: list[str] = []
    size = 0
    for text, cif in _candidates(Path(path), wanted):
        size += 1
        if text is not None:
            texts.add(text)
        if cif is not None:
            cifs.append(cif)
    if not size:
        raise Mat2SeqError(f"no crystals in {path}")
    options: dict[str, Any] = {"processes": processes, "timeout": timeout, "progress": progress}
    crystals: dict[tuple[int, ...], list[ReducedCrystal]] = defaultdict(list)
    for item in examine_all(cifs, label="reading corpus", **options):
        if item.reduced is not None:
            crystals[item.reduced.content].append(item.reduced)
    return Corpus(Path(path).name, size, frozenset(texts), crystals)


def _first_match(task: tuple[ReducedCrystal, Sequence[ReducedCrystal]], matcher: Matcher) -> int | None:
    """Index of the first of several crystals that matches."""
    crystal, others = task
    return next((index for index, other in enumerate(others) if matcher.rms(other, crystal) is not None), None)


def mark_unique(samples: Sequence[Examined], *, matcher: Matcher = NOVELTY_MATCHER, **options: Any) -> list[bool]:
    """For each sample, whether no earlier one is the same crystal; unreadable ones are not unique.

    Args:
        samples: examined with ``canonical=True``.
        matcher: decides where sequences differ.
        options: see :func:`.pool.run`.
    """
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, sample in enumerate(samples):
        if sample.reduced is not None:
            groups[sample.reduced.content].append(place)
    tasks = [[samples[place] for place in group] for group in groups.values()]
    outcomes = pool.run(partial(_first_of_each, matcher=matcher), tasks, label="comparing samples", **options)
    unique = [False] * len(samples)
    for group, outcome in zip(groups.values(), outcomes, strict=True):
        for place, first in zip(group, outcome.value or [False] * len(group), strict=True):
            unique[place] = first
    return unique


def _first_of_each(group: Sequence[Examined], matcher: Matcher) -> list[bool]:
    """Which of some crystals of one formula come first of their kind."""
    texts: set[str] = set()
    kinds: list[ReducedCrystal] = []
    marks = []
    for sample in group:
        assert sample.reduced is not None
        known = sample.canonical_text is not None and sample.canonical_text in texts
        if not known:
            known = _first_match((sample.reduced, kinds), matcher) is not None
        if not known:
            kinds.append(sample.reduced)
        if sample.canonical_text is not None:
            texts.add(sample.canonical_text)
        marks.append(not known)
    return marks


def mark_novel(
    samples: Sequence[Examined], corpus: Corpus, *, matcher: Matcher = NOVELTY_MATCHER, **options: Any
) -> list[bool]:
    """For each sample, whether the corpus does not have it; unreadable ones are not novel.

    Args:
        samples: examined with ``canonical=True``.
        corpus: read for the formulas of the samples.
        matcher, options: see :func:`mark_unique`.
    """
    novel = [sample.reduced is not None and sample.canonical_text not in corpus.texts for sample in samples]
    open_questions = [place for place, new in enumerate(novel) if new]
    tasks = []
    for place in open_questions:
        reduced = samples[place].reduced
        assert reduced is not None
        tasks.append((reduced, corpus.crystals.get(reduced.content, ())))
    outcomes = pool.run(partial(_first_match, matcher=matcher), tasks, label="comparing with corpus", **options)
    for place, outcome in zip(open_questions, outcomes, strict=True):
        novel[place] = outcome.kind == "ok" and outcome.value is None
    return novel
