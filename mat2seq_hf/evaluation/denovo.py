"""Free generation: validity, uniqueness, novelty, and how samples are distributed beside a reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..sequence import scheme_fingerprint
from . import pool
from .coverage import CoverageCutoffs, coverage
from .crystals import Examined, counts_of, examine_all, examine_references, kinds_of_reasons
from .novelty import uniqueness_and_novelty
from .ranges import check_ranges
from .schema import Figure, digest, plain, share
from .sources import Reference, SampleText
from .validity import WITHOUT_SMACT, smact_installed

__all__ = ["DenovoSettings", "evaluate_denovo"]


@dataclass(frozen=True)
class DenovoSettings:
    """How samples are judged.

    Attributes:
        symprec: tolerance of space groups, angstrom.
        structure_cutoff, composition_cutoff: coverage, CDVAE's for MP-20; 0.2 and 4 for Perov-5 and Carbon-24.
        coverage: whether to compute coverage (it takes about 0.3 s a crystal of MP-20).
        processes: how many at once.
        timeout: seconds for one crystal.
        progress: show progress bars.
    """

    symprec: float = 0.1
    structure_cutoff: float = 0.4
    composition_cutoff: float = 10.0
    coverage: bool = True
    processes: int = 1
    timeout: float = 60.0
    progress: bool = True

    def __post_init__(self) -> None:
        check_ranges(
            self, above_0=["symprec", "structure_cutoff", "composition_cutoff", "timeout"], from_1=["processes"]
        )


def evaluate_denovo(
    texts: Sequence[SampleText],
    references: Sequence[Reference] | None = None,
    train: str | Path | None = None,
    settings: DenovoSettings | None = None,
    cache: Path | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Judge samples on their own, against each other, a training corpus, and a reference such as a test split.

    Shares are of all samples; unreadable ones are invalid, not unique and not novel. Distances are between the valid
    samples and the reference.

    Args:
        texts: see :func:`.sources.read_samples`.
        references: for distances and coverage; None leaves them out.
        train: corpus for novelty, see :func:`.novelty.read_corpus`; None leaves it out.
        settings: see :class:`DenovoSettings`.
        cache: file that keeps the fingerprints of coverage; it can serve many runs.

    Returns:
        counts, figures, reasons, tables and notes of the report, and the rows of per_sample.parquet.

    Example:
        >>> report, rows = evaluate_denovo(read_samples(["out/"]), train="prepared/mp_20/train")
    """
    settings = settings or DenovoSettings()
    options = pool.options(settings)
    samples = examine_all(
        [text.cif for text in texts], symprec=settings.symprec, canonical=True, label="reading samples", **options
    )
    verdicts = uniqueness_and_novelty(samples, train, **options)
    notes = [*verdicts.notes, *([] if smact_installed() else [WITHOUT_SMACT])]
    rows = [
        {
            **sample.row(text),
            "density": sample.density,
            "canonical_text": sample.canonical_text,
            "unique": verdicts.unique[place],
            "novel": verdicts.novel[place],
            "outcome": verdicts.outcomes[place],
        }
        for place, (text, sample) in enumerate(zip(texts, samples, strict=True))
    ]
    figures = _figures(rows)
    tables: dict[str, list[dict[str, Any]]] = {"space_groups": _space_groups(samples, None)}
    reference_counts = {"references": len(references or ())}
    if references:
        others = examine_references(
            [reference.cif for reference in references], symprec=settings.symprec, label="reading reference", **options
        )
        reference_counts["unreadable_references"] = sum(not other.readable for other in others)
        figures |= _distances(samples, others)
        tables["space_groups"] = _space_groups(samples, others)
        if settings.coverage:
            cutoffs = CoverageCutoffs(settings.structure_cutoff, settings.composition_cutoff)
            cifs = [reference.cif for reference in references]
            more, note = coverage([text.cif for text in texts], cifs, cutoffs, cache, **options)
            figures |= more
            notes.append(note)
    report = {
        "settings": asdict(settings),
        "scheme": scheme_fingerprint(),
        "ids": verdicts.ids | ({"references": digest(reference.id for reference in references)} if references else {}),
        "counts": counts_of(texts, samples) | reference_counts | verdicts.counts,
        "figures": figures,
        "reasons": kinds_of_reasons(rows),
        "tables": tables,
        "notes": notes,
    }
    return report, rows


def _figures(rows: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    figures = {name: share(row[name] for row in rows) for name in ("readable", "valid_structure")}
    if smact_installed():
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
    return {name: plain(value, len(valid)) for name, value in values.items()}


def _space_groups(samples: Sequence[Examined], references: Sequence[Examined] | None) -> list[dict[str, Any]]:
    """The most frequent space groups of the crystals whose distance is measured: valid samples, readable references."""
    found = Counter(sample.space_group for sample in samples if sample.valid)
    other = Counter(item.space_group for item in references or () if item.readable)
    table = []
    for number, count in found.most_common(15):
        if number is None:  # not found; it counts among all
            continue
        row: dict[str, Any] = {"space group": number, "valid samples (%)": round(100 * count / sum(found.values()), 2)}
        if references is not None:
            row["reference (%)"] = round(100 * other[number] / max(sum(other.values()), 1), 2)
        table.append(row)
    return table
