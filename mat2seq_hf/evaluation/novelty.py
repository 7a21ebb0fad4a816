"""Which samples are new: among themselves, and against a training corpus.

Equal canonical sequences are equal crystals; where sequences differ, StructureMatcher decides with its own defaults
(ltol 0.2, stol 0.3, angle_tol 5), which are stricter than those of structure prediction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..canonical import CanonicalCrystal
from ..cif import cif_text
from ..corpora.duplicates import read_columns
from ..corpora.schema import check_schemes, check_whole, is_prepared, scheme_of
from ..corpora.sources import read_rows
from ..errors import Mat2SeqError
from ..sequence import scheme_fingerprint
from . import pool
from .crystals import Examined, read_structure
from .formulas import formula_of_cif, reduced_formula
from .matching import Matcher
from .reduced_cell import ReducedCrystal, reduce_crystal
from .schema import digest

__all__ = [
    "NOVELTY_MATCHER",
    "Corpus",
    "Marks",
    "Verdicts",
    "mark_novel",
    "mark_unique",
    "read_corpus",
    "uniqueness_and_novelty",
]

#: StructureMatcher's own defaults.
NOVELTY_MATCHER = Matcher(ltol=0.2, stol=0.3, angle_tol=5.0)


@dataclass(frozen=True)
class Corpus:
    """What samples are compared with: all canonical sequences that are known, and crystals by their content.

    Attributes:
        name: for the report.
        size: crystals in it.
        unreadable: those of them that could not be read, and with which nothing was compared.
        texts: canonical sequences; empty for a corpus that was not prepared.
        crystals: matchable crystals of the formulas that were asked for, by their atoms.
        digest: fingerprint of the ids of all its crystals, see :func:`.schema.digest`.
    """

    name: str
    size: int
    unreadable: int
    texts: frozenset[str]
    crystals: Mapping[tuple[int, ...], Sequence[ReducedCrystal]]
    digest: str = ""


class _Wanted:
    """Whether a formula is among those that are compared; each is looked at once."""

    def __init__(self, formulas: Iterable[str]) -> None:
        self._formulas = frozenset(formulas)
        self._known: dict[str, bool] = {}

    def __contains__(self, formula: str) -> bool:
        if formula not in self._known:
            self._known[formula] = reduced_formula(formula) in self._formulas
        return self._known[formula]


def _formula_of_text(text: str) -> str:
    """The words before the space group of a canonical sequence."""
    return text.partition(" [")[0]


def _sequences(folder: Path) -> Iterator[tuple[str, str]]:
    """Canonical sequences of a prepared corpus, each after its id."""
    check_whole([folder])
    check_schemes({str(folder): scheme_of(folder), "the canonical form of samples": scheme_fingerprint()})
    for table in read_columns(folder, ["id", "text"]):
        yield from zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)


def _reduced(text: str, formulas: frozenset[str]) -> ReducedCrystal | None:
    """The cell that is matched, None for a crystal of another formula."""
    structure = read_structure(text)
    return reduce_crystal(structure) if structure.composition.reduced_formula in formulas else None


def read_corpus(
    path: str | Path, formulas: Iterable[str], *, processes: int = 1, timeout: float = 60.0, progress: bool = True
) -> Corpus:
    """A corpus, of which only the crystals of some formulas are read in full.

    Args:
        path: a prepared corpus (folder of part-*.parquet), or what :func:`~..corpora.sources.read_rows` reads. Texts
            that state no formula, such as POSCAR and JSON, are all read in full.
        formulas: reduced formulas of the samples.
        processes, timeout, progress: see :func:`.pool.run`.

    Raises:
        SchemeMismatchError: it was prepared with another canonical form than the samples get.
        Mat2SeqError: the corpus cannot be read, is empty, or none of its crystals can be read.
    """
    formulas = frozenset(formulas)
    wanted = _Wanted(formulas)
    ids: list[str] = []
    known: list[str] = []
    asked: list[str] = []
    problems: list[str] = []
    if is_prepared(path):
        for name, text in _sequences(Path(path)):
            ids.append(name)
            known.append(text)
        asked = [cif_text(CanonicalCrystal.from_text(text)) for text in known if _formula_of_text(text) in wanted]
    else:
        for row in read_rows([path]):
            ids.append(row.id)
            if row.problem:
                problems.append(row.problem)
            elif (formula := formula_of_cif(row.text)) is None or formula in wanted:
                asked.append(row.text)
    size = len(ids)
    if not size:
        raise Mat2SeqError(f"no crystals in {path}")
    crystals: dict[tuple[int, ...], list[ReducedCrystal]] = defaultdict(list)
    outcomes = pool.run(
        partial(_reduced, formulas=formulas),
        asked,
        label="reading corpus",
        processes=processes,
        timeout=timeout,
        progress=progress,
    )
    for outcome in outcomes:
        if outcome.kind != "ok":
            problems.append(outcome.kind)
        elif outcome.value is not None:
            crystals[outcome.value.content].append(outcome.value)
    if len(problems) == size:
        raise Mat2SeqError(
            f"none of the {size} crystals in {path} can be read, so that everything would look new: {problems[0]}"
        )
    return Corpus(Path(path).name, size, len(problems), frozenset(known), crystals, digest(ids))


@dataclass(frozen=True)
class Marks:
    """A verdict on each sample, and the comparisons that gave none.

    Attributes:
        verdicts: one for each sample.
        cut_off: what became of comparisons that did not end, such as ``"timeout"``, with the places of their samples;
            they count as no match.
    """

    verdicts: list[bool]
    cut_off: list[tuple[int, str]] = field(default_factory=list)


class _Rounds:
    """Comparisons in rounds, each pair within the time limit; what did not end is kept with the place of its sample."""

    def __init__(self, matcher: Matcher, processes: int = 1, timeout: float = 60.0) -> None:
        self._function = matcher.rms_of_pair
        self._pool = pool.Pool(processes=processes, timeout=timeout)
        self.cut_off: list[tuple[int, str]] = []

    def close(self) -> None:
        """End the processes."""
        self._pool.close()

    def matching(self, pairs: Sequence[tuple[int, ReducedCrystal, ReducedCrystal]]) -> set[int]:
        """Places of the samples that match; each pair is the sample's place, a known crystal, and the sample."""
        outcomes = self._pool.run(self._function, [(known, sample) for _, known, sample in pairs], progress=False)
        for (place, _, _), outcome in zip(pairs, outcomes, strict=True):
            if outcome.kind != "ok":
                self.cut_off.append((place, outcome.kind))
        return {place for (place, _, _), outcome in zip(pairs, outcomes, strict=True) if outcome.value is not None}


def mark_unique(
    samples: Sequence[Examined], *, matcher: Matcher = NOVELTY_MATCHER, progress: bool = True, **options: Any
) -> Marks:
    """For each sample, whether no earlier one is the same crystal; unreadable ones are not unique.

    In each round the first open sample of every composition is unique, and the others are compared with it.

    Args:
        samples: examined with ``canonical=True``.
        matcher: decides where sequences differ.
        progress, options: see :func:`.pool.run`.
    """
    groups: dict[tuple[int, ...], list[tuple[int, ReducedCrystal]]] = defaultdict(list)
    texts: set[str] = set()
    unique = [False] * len(samples)
    for place, sample in enumerate(samples):
        if sample.reduced is None or sample.canonical_text in texts:
            continue
        if sample.canonical_text is not None:
            texts.add(sample.canonical_text)
        unique[place] = True
        groups[sample.reduced.content].append((place, sample.reduced))
    waiting = [group for group in groups.values() if len(group) > 1]
    with (
        closing(_Rounds(matcher, **options)) as rounds,
        tqdm(total=sum(map(len, waiting)), desc="comparing samples", disable=not progress, leave=False, delay=1) as bar,
    ):
        while waiting:
            same = rounds.matching(
                [(place, first, other) for (_, first), *others in waiting for place, other in others]
            )
            for place in same:
                unique[place] = False
            rest = [[item for item in group[1:] if item[0] not in same] for group in waiting]
            bar.update(sum(map(len, waiting)) - sum(len(group) for group in rest if len(group) > 1))
            waiting = [group for group in rest if len(group) > 1]
    return Marks(unique, rounds.cut_off)


def mark_novel(
    samples: Sequence[Examined],
    corpus: Corpus,
    *,
    matcher: Matcher = NOVELTY_MATCHER,
    progress: bool = True,
    **options: Any,
) -> Marks:
    """For each sample, whether the corpus does not have it; unreadable ones are not novel.

    In each round every open sample is compared with the next crystal of its composition.

    Args:
        samples: examined with ``canonical=True``.
        corpus: read for the formulas of the samples.
        matcher, progress, options: see :func:`mark_unique`.
    """
    novel = [sample.reduced is not None and sample.canonical_text not in corpus.texts for sample in samples]
    waiting: list[tuple[int, ReducedCrystal, Sequence[ReducedCrystal]]] = []
    for place, sample in enumerate(samples):
        if novel[place] and sample.reduced is not None:
            waiting.append((place, sample.reduced, corpus.crystals.get(sample.reduced.content, ())))
    with (
        closing(_Rounds(matcher, **options)) as rounds,
        tqdm(total=len(waiting), desc="comparing with corpus", disable=not progress, leave=False, delay=1) as bar,
    ):
        for turn in count():
            left = [item for item in waiting if novel[item[0]] and turn < len(item[2])]
            bar.update(len(waiting) - len(left))
            waiting = left
            if not waiting:
                break
            for place in rounds.matching([(place, others[turn], sample) for place, sample, others in waiting]):
                novel[place] = False
    return Marks(novel, rounds.cut_off)


@dataclass(frozen=True)
class Verdicts:
    """Which samples are unique and novel, and how that was decided.

    Attributes:
        unique, novel: of each sample; novelty is None without a corpus.
        outcomes: of each sample, ``"ok"`` or what became of a comparison that did not end, such as
            ``"comparison: timeout"``.
        counts: for the report.
        notes: for the report.
        ids: fingerprint of the corpus, for the report.
    """

    unique: list[bool]
    novel: list[bool | None]
    outcomes: list[str]
    counts: dict[str, int]
    notes: list[str]
    ids: dict[str, str]


def uniqueness_and_novelty(samples: Sequence[Examined], train: str | Path | None, **options: Any) -> Verdicts:
    """Compare samples with each other and with a corpus.

    Raises:
        Mat2SeqError: see :func:`.novelty.read_corpus`.
    """
    formulas = {sample.formula for sample in samples if sample.formula is not None}
    corpus = None if train is None else read_corpus(train, formulas, **options)  # first: what is wrong shows at once
    unique = mark_unique(samples, **options)
    cut_off = list(unique.cut_off)
    counts: dict[str, int] = {}
    ids = {} if corpus is None else {"train": corpus.digest}
    novel: list[bool | None] = [None] * len(samples)
    if corpus is None:
        notes = ["No training corpus was given: novelty was not judged."]
    else:
        found = mark_novel(samples, corpus, **options)
        novel = list(found.verdicts)
        cut_off += found.cut_off
        counts["unreadable_in_training_corpus"] = corpus.unreadable
        size = f"{corpus.size - corpus.unreadable:,}"
        notes = [f"Novelty is against {size} crystals of {corpus.name}: canonical sequence, then StructureMatcher."]
        if corpus.unreadable:
            notes.append(
                f"{corpus.unreadable:,} crystals of {corpus.name} could not be read: samples that equal one of them "
                "count as novel."
            )
    outcomes = ["ok"] * len(samples)
    for place, kind in cut_off:
        outcomes[place] = f"comparison: {kind}"
    counts["comparison_timeouts"] = sum(kind == "timeout" for _, kind in cut_off)
    counts["comparison_errors"] = len(cut_off) - counts["comparison_timeouts"]
    if cut_off:
        notes.append(
            f"{len(cut_off):,} comparisons of two crystals did not end and count as no match, so that too many samples "
            "may count as unique or novel; --timeout gives them more time."
        )
    return Verdicts(unique.verdicts, novel, outcomes, counts, notes, ids)
