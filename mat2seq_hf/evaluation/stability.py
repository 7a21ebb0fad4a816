"""Stability of generated crystals by a machine-learned potential, and S.U.N.: stable, unique and novel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..sequence import scheme_fingerprint
from . import pool
from .crystals import Examined, counts_of, examine_all, kinds_of_reasons, read_structure
from .hull import Hull, read_corpus_by_system
from .matching import Matcher
from .novelty import Verdicts, uniqueness_and_novelty
from .potential import CHGNET, RelaxSettings, load_calculator, potential_name, relax
from .ranges import check_ranges
from .schema import Figure, mean, share
from .sources import SampleText
from .store import Store

__all__ = ["StabilitySettings", "evaluate_stability"]

_WIDE = Matcher(ltol=0.5, stol=1.0, angle_tol=20.0)  # how far relaxation went, even if it went far


@dataclass(frozen=True)
class StabilitySettings:
    """How crystals are relaxed and judged.

    Attributes:
        calculator, fmax, steps: see :class:`.potential.RelaxSettings`.
        metastable: energy above the hull (eV/atom) up to which a crystal counts as metastable.
        processes: relaxations at once.
        timeout: seconds for one crystal (to read it, relax it, or compute its energy) or one comparison.
        progress: show progress bars.
    """

    calculator: str = CHGNET
    fmax: float = 0.1
    steps: int = 200
    metastable: float = 0.1
    processes: int = 1
    timeout: float = 600.0
    progress: bool = True

    def __post_init__(self) -> None:
        check_ranges(self, above_0=["fmax", "timeout"], from_0=["metastable"], from_1=["steps", "processes"])


def _relax_all(
    samples: Sequence[Examined], texts: Sequence[SampleText], store: Store, settings: StabilitySettings
) -> list[tuple[dict[str, Any] | None, str]]:
    """Relaxed crystal (or None) and outcome of each sample; what the store has is not computed again."""
    how = RelaxSettings(settings.calculator, settings.fmax, settings.steps)
    name = potential_name(settings.calculator)
    keys = [
        Store.key("relax", name, repr(how.fmax), str(how.steps), text.cif or "") if sample.valid_structure else None
        for sample, text in zip(samples, texts, strict=True)
    ]
    known = {key: (store.get(key) or {}).get("relaxed") for key in keys if key}
    missing = list({key: text.cif for key, text in zip(keys, texts, strict=True) if key and not known[key]}.items())
    failed: dict[str, str] = {}

    def keep(index: int, outcome: pool.Outcome) -> None:
        key = missing[index][0]
        if outcome.value is None:
            failed[key] = outcome.kind
        else:
            known[key] = asdict(outcome.value)
            store.keep(key, {"relaxed": known[key]})

    pool.run(
        partial(relax, settings=how),
        [cif for _, cif in missing],
        label="relaxing",
        heavy=True,
        collect=keep,
        **pool.options(settings),
    )
    return [
        (known[key], failed.get(key, "ok")) if key else (None, "not relaxed: not a valid structure") for key in keys
    ]


def evaluate_stability(
    texts: Sequence[SampleText],
    corpus: str | Path,
    train: str | Path | None,
    cache: str | Path,
    settings: StabilitySettings | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Relax samples, and compare their energies with the hull of a corpus; started again, it goes on where it was.

    Args:
        texts: see :func:`.sources.read_samples`.
        corpus: crystals of the hull, see :func:`~..corpora.sources.read_rows`.
        train: corpus for novelty, see :func:`.novelty.read_corpus`.
        cache: folder that keeps relaxations and single points; it can serve many runs. Those of another calculator than
            CHGNet are known by its name: where the calculator was changed, take a new folder.
        settings: see :class:`StabilitySettings`.

    Returns:
        counts, figures, reasons, tables and notes of the report, and the rows of per_sample.parquet.

    Raises:
        Mat2SeqError: the potential is not installed, or the corpus cannot be read.
    """
    settings = settings or StabilitySettings()
    load_calculator(settings.calculator)  # what is missing shows now, not after an hour
    options = pool.options(settings)
    systems, unreadable, corpus_ids = read_corpus_by_system(corpus)
    samples = examine_all([text.cif for text in texts], label="reading samples", **options)
    relaxed = _relax_all(samples, texts, Store(Path(cache) / "relaxations.jsonl"), settings)
    after = examine_all(
        [item["cif"] if item else None for item, _ in relaxed], canonical=True, label="reading relaxed", **options
    )
    relaxed, after = _still_valid(relaxed, after)
    hull = Hull(systems, Store(Path(cache) / "single_points.jsonl"), settings.calculator, **options)
    compositions = [read_structure(item["cif"]).composition if item else None for item, _ in relaxed]
    on_hull = hull.prepare({frozenset(e.symbol for e in c.elements) for c in compositions if c is not None})
    above = [
        hull.above(composition, item["energy_per_atom"]) if item is not None and composition is not None else None
        for (item, _), composition in zip(relaxed, compositions, strict=True)
    ]
    verdicts = _most_stable_first(after, above, train, options)
    moved = pool.run(
        _WIDE.rms_of_pair,
        [(sample.reduced, found.reduced) for sample, found in zip(samples, after, strict=True)],
        label="comparing with relaxed",
        **options,
    )
    rows = []
    for number, (text, sample) in enumerate(zip(texts, samples, strict=True)):
        item, outcome = relaxed[number]
        rows.append(
            {
                **sample.row(text),
                "unique": verdicts.unique[number],
                "novel": verdicts.novel[number],
                "converged": bool(item and item["converged"]),
                "steps": item["steps"] if item else None,
                "energy_per_atom": item["energy_per_atom"] if item else None,
                "e_above_hull": above[number],
                "relaxation_rms": moved[number].value,
                "relaxed_cif": item["cif"] if item else None,
                "outcome": verdicts.outcomes[number] if outcome == "ok" else outcome,
            }
        )
    name = potential_name(settings.calculator)
    notes = [
        *verdicts.notes,
        f"The hull is that of {name} over {on_hull:,} crystals, as they are in the corpus; it is not DFT's hull.",
        "Phases that the corpus lacks are missing from the hull: an incomplete corpus makes samples look stable.",
        "The samples are relaxed with the potential and the corpus is not, which favours the samples slightly.",
        "Unique and novel are judged after relaxation; without a valid structure before and after it none is stable.",
        "Of equal crystals the one of least energy above the hull is the unique one.",
        f"Metastable: at most {settings.metastable:g} eV/atom above the hull.",
    ]
    if hull.failures or unreadable:
        notes.append(
            f"{hull.failures:,} crystals of the hull have no energy and {unreadable:,} of the corpus cannot be read: "
            "without them samples may look more stable than they are."
        )
    report = {
        "settings": asdict(settings),
        "scheme": scheme_fingerprint(),
        "ids": verdicts.ids | {"corpus": corpus_ids},
        "counts": counts_of(texts, samples)
        | _counts(rows)
        | verdicts.counts
        | {"crystals_of_the_hull": on_hull, "failed_single_points": hull.failures}
        | {"unreadable_in_corpus": unreadable},
        "figures": _figures(rows, settings.metastable),
        "reasons": kinds_of_reasons(rows),
        "tables": {},
        "notes": notes,
    }
    return report, rows


def _still_valid(
    relaxed: Sequence[tuple[dict[str, Any] | None, str]], after: Sequence[Examined]
) -> tuple[list[tuple[dict[str, Any] | None, str]], list[Examined]]:
    """Relaxations that ended at a valid structure: in a hole of the potential, atoms overlap at very low energies."""
    kept = [
        (None, f"relaxed: {found.reason}") if item and not found.valid_structure else (item, outcome)
        for (item, outcome), found in zip(relaxed, after, strict=True)
    ]
    return kept, [found if item else Examined(found.reason) for (item, _), found in zip(kept, after, strict=True)]


def _most_stable_first(
    samples: Sequence[Examined], above: Sequence[float | None], train: str | Path | None, options: dict[str, Any]
) -> Verdicts:
    """Verdicts in which of equal crystals the most stable one is the unique one, whatever the order of the samples."""
    energies = [math.inf if energy is None else energy for energy in above]
    order = sorted(range(len(samples)), key=energies.__getitem__)
    found = uniqueness_and_novelty([samples[number] for number in order], train, **options)
    back = sorted(range(len(order)), key=order.__getitem__)
    return replace(
        found,
        unique=[found.unique[place] for place in back],
        novel=[found.novel[place] for place in back],
        outcomes=[found.outcomes[place] for place in back],
    )


def _counts(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    relaxed = [row for row in rows if row["energy_per_atom"] is not None]
    return {
        "relaxed": len(relaxed),
        "without_hull": sum(row["e_above_hull"] is None for row in relaxed),
        "relaxation_timeouts": sum(row["outcome"] == "timeout" for row in rows),
        "not_valid_when_relaxed": sum(row["outcome"].startswith("relaxed: ") for row in rows),
        "relaxation_errors": sum(row["outcome"].startswith(("error", "crash")) for row in rows),
    }


def _figures(rows: Sequence[dict[str, Any]], metastable: float) -> dict[str, Figure]:
    def within(row: dict[str, Any], limit: float) -> bool:
        return row["e_above_hull"] is not None and row["e_above_hull"] <= limit

    figures = {
        "readable": share(row["readable"] for row in rows),
        "valid_structure": share(row["valid_structure"] for row in rows),
        "converged": share(row["converged"] for row in rows if row["energy_per_atom"] is not None),
        "stable": share(within(row, 0.0) for row in rows),
        "metastable": share(within(row, metastable) for row in rows),
        "unique": share(row["unique"] for row in rows),
    }
    if any(row["novel"] is not None for row in rows):
        new = [bool(row["unique"] and row["novel"]) for row in rows]
        figures["novel"] = share(bool(row["novel"]) for row in rows)
        figures["sun"] = share(n and within(row, 0.0) for n, row in zip(new, rows, strict=True))
        figures["msun"] = share(n and within(row, metastable) for n, row in zip(new, rows, strict=True))
    figures["e_above_hull"] = mean(row["e_above_hull"] for row in rows if row["e_above_hull"] is not None)
    figures["relaxation_rmse"] = mean(row["relaxation_rms"] for row in rows if row["relaxation_rms"] is not None)
    return figures
