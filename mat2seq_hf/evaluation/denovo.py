"""Free generation: validity, uniqueness, novelty, and how samples are distributed beside a reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .coverage import CoverageCutoffs, coverage
from .crystals import Examined, examine_all
from .csp import kinds_of_reasons
from .novelty import mark_novel, mark_unique, read_corpus
from .schema import Figure, share
from .sources import Reference, SampleText

__all__ = ["DenovoSettings", "counts_of", "evaluate_denovo", "uniqueness_and_novelty"]


@dataclass(frozen=True)
class DenovoSettings:
    """How samples are judged.

    Attributes:
        symprec: tolerance of space groups, angstrom.
        structure_cutoff, composition_cutoff: coverage, CDVAE's for MP-20; 0.2 and 4 for Perov-5 and Carbon-24.
        coverage: whether to compute coverage (it takes about a second for each ten atoms).
        processes: how many at once.
        timeout: seconds for one crystal.
        progress: show progress bars.
    """

    symprec: float = 0.1
    structure_cutoff: float = 0.4
    composition_cutoff: float = 10.0
    coverage: bool = True
    processes: int = 1
    timeout: float = 120.0
    progress: bool = True

    def pool(self) -> dict[str, Any]:
        """Arguments of :func:`.pool.run`."""
        return {"processes": self.processes, "timeout": self.timeout, "progress": self.progress}


def uniqueness_and_novelty(
    samples: Sequence[Examined], train: str | Path | None, **options: Any
) -> tuple[list[bool], list[bool | None], list[str]]:
    """Which samples are unique and novel, and notes on how that was decided; novelty is None without a corpus."""
    unique = mark_unique(samples, **options)
    if train is None:
        return unique, [None] * len(samples), ["No training corpus was given: novelty was not judged."]
    formulas = {sample.formula for sample in samples if sample.formula is not None}
    corpus = read_corpus(train, formulas, **options)
    novel: list[bool | None] = list(mark_novel(samples, corpus, **options))
    note = f"Novelty is against {corpus.size:,} crystals of {corpus.name}: canonical sequence, then StructureMatcher."
    return unique, novel, [note]


def counts_of(texts: Sequence[SampleText], samples: Sequence[Examined]) -> dict[str, int]:
    """How many samples there are and what happened to them."""
    reasons = [sample.reason or "" for sample in samples if not sample.readable]
    return {
        "samples": len(texts),
        "unreadable": len(reasons),
        "timeouts": sum(reason.startswith("timeout") for reason in reasons),
        "crashes": sum(reason.startswith("crash") for reason in reasons),
    }


def evaluate_denovo(
    texts: Sequence[SampleText],
    references: Sequence[Reference] | None = None,
    train: str | Path | None = None,
    settings: DenovoSettings | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Judge samples on their own, against each other, a training corpus, and a reference such as a test split.

    Shares are of all samples; unreadable ones are invalid, not unique and not novel. Distances are between the valid
    samples and the reference.

    Args:
        texts: see :func:`.sources.read_samples`.
        references: for distances and coverage; None leaves them out.
        train: corpus for novelty, see :func:`.novelty.read_corpus`; None leaves it out.
        settings: see :class:`DenovoSettings`.

    Returns:
        counts, figures, reasons, tables and notes of the report, and the rows of per_sample.parquet.

    Example:
        >>> report, rows = evaluate_denovo(read_samples(["out/"]), train="prepared/mp_20/train")
    """
    settings = settings or DenovoSettings()
    options = settings.pool()
    samples = examine_all(
        [text.cif for text in texts], symprec=settings.symprec, canonical=True, label="reading samples", **options
    )
    unique, novel, notes = uniqueness_and_novelty(samples, train, **options)
    rows = [
        {
            "prompt_id": text.prompt_id,
            "sample_index": max(text.index, 0),
            "source": text.source,
            **sample.row(),
            "reason": text.reason if text.cif is None else sample.reason,
            "density": sample.density,
            "canonical_text": sample.canonical_text,
            "unique": first,
            "novel": new,
            "outcome": "ok",
        }
        for text, sample, first, new in zip(texts, samples, unique, novel, strict=True)
    ]
    figures = _figures(rows)
    tables: dict[str, list[dict[str, Any]]] = {"space_groups": _space_groups(samples, None)}
    if references:
        others = examine_all(
            [reference.cif for reference in references], symprec=settings.symprec, label="reading reference", **options
        )
        figures |= _distances(samples, others)
        tables["space_groups"] = _space_groups(samples, others)
        if settings.coverage:
            cutoffs = CoverageCutoffs(settings.structure_cutoff, settings.composition_cutoff)
            more, note = coverage(
                [text.cif for text in texts], [reference.cif for reference in references], cutoffs, **options
            )
            figures |= more
            notes.append(note)
    report = {
        "settings": asdict(settings),
        "counts": counts_of(texts, samples) | {"references": len(references or ())},
        "figures": figures,
        "reasons": kinds_of_reasons(rows),
        "tables": tables,
        "notes": notes,
    }
    return report, rows


def _figures(rows: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    figures = {name: share(row[name] for row in rows) for name in ("readable", "valid_structure")}
    if any(row["valid_composition"] is not None for row in rows):
        figures |= {name: share(row[name] is True for row in rows) for name in ("valid_composition", "valid")}
    figures["unique"] = share(row["unique"] for row in rows)
    if any(row["novel"] is not None for row in rows):
        figures["novel"] = share(row["novel"] for row in rows)
        figures["unique_novel"] = share(row["novel"] and row["unique"] for row in rows)
        figures["valid_unique_novel"] = share(row["valid"] and row["novel"] and row["unique"] for row in rows)
    return figures


def _distances(samples: Sequence[Examined], references: Sequence[Examined]) -> dict[str, Figure]:
    """Wasserstein distances and the total variation of space groups, valid samples against the reference."""
    from scipy.stats import wasserstein_distance

    valid = [sample for sample in samples if sample.valid]
    read = [reference for reference in references if reference.readable]
    if not valid or not read:
        return {}
    density = [[item.density for item in group if item.density is not None] for group in (valid, read)]
    elements = [[len(item.elements) for item in group] for group in (valid, read)]
    counts = [Counter(item.space_group for item in group) for group in (valid, read)]
    frequencies = [{n: c / sum(count.values()) for n, c in count.items()} for count in counts]
    total = sum(abs(frequencies[0].get(n, 0) - frequencies[1].get(n, 0)) for n in {*counts[0], *counts[1]}) / 2
    values = {
        "density_distance": float(wasserstein_distance(*density)),
        "elements_distance": float(wasserstein_distance(*elements)),
        "space_group_distance": total,
    }
    return {name: {"value": value, "low": None, "high": None, "n": len(valid)} for name, value in values.items()}


def _space_groups(samples: Sequence[Examined], references: Sequence[Examined] | None) -> list[dict[str, Any]]:
    """The most frequent space groups."""
    found = Counter(sample.space_group for sample in samples if sample.space_group is not None)
    other = Counter(item.space_group for item in references or () if item.space_group is not None)
    table = []
    for number, count in found.most_common(15):
        row: dict[str, Any] = {"space group": number, "samples (%)": round(100 * count / sum(found.values()), 2)}
        if references is not None:
            row["reference (%)"] = round(100 * other[number] / max(sum(other.values()), 1), 2)
        table.append(row)
    return table
