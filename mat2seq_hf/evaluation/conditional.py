"""Generation with an asked property: how many samples does a judge put where they were asked to be?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Mat2SeqError
from ..sequence import scheme_fingerprint
from . import pool
from .crystals import counts_of, examine_all, kinds_of_reasons
from .judges import Judge, errors_of, load_judge, train_judge
from .novelty import uniqueness_and_novelty
from .ranges import check_ranges
from .schema import Figure, digest, share
from .sources import Reference, SampleText
from .validity import WITHOUT_SMACT, smact_installed

__all__ = ["ConditionalSettings", "evaluate_conditional"]


@dataclass(frozen=True)
class ConditionalSettings:
    """What was asked for and who judges.

    Attributes:
        property: column of the labels.
        below, above: the asked range, in the unit of the labels; None leaves a side open.
        judge: name of a judge, see :func:`.judges.load_judge`; None trains the default one on labels.
        processes, timeout, progress: see :func:`.pool.run`.
    """

    property: str = "band_gap"
    below: float | None = None
    above: float | None = None
    judge: str | None = None
    processes: int = 1
    timeout: float = 60.0
    progress: bool = True

    def __post_init__(self) -> None:
        check_ranges(self, above_0=["timeout"], from_1=["processes"], finite=["below", "above"])
        if self.below is not None and self.above is not None and not self.above < self.below:
            raise Mat2SeqError(f"nothing is above {self.above:g} and below {self.below:g}")

    def inside(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which values lie in the asked range; nan does not."""
        low = -math.inf if self.above is None else self.above
        high = math.inf if self.below is None else self.below
        found: NDArray[np.bool_] = (values > low) & (values < high)
        return found

    def words(self) -> str:
        """The asked range in words."""
        parts = [
            f"above {self.above:g}" if self.above is not None else "",
            f"below {self.below:g}" if self.below is not None else "",
        ]
        return f"{self.property} " + " and ".join(part for part in parts if part)


def evaluate_conditional(
    texts: Sequence[SampleText],
    labelled: Sequence[Reference] | None,
    train: str | Path | None,
    settings: ConditionalSettings,
    cache: Path | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Judge samples that were asked to have a property.

    Args:
        texts: see :func:`.sources.read_samples`.
        labelled: crystals with the property that the generator was not trained on, for the default judge.
        train: corpus for novelty, see :func:`.novelty.read_corpus`.
        settings: see :class:`ConditionalSettings`.
        cache: file that keeps the descriptors of ``labelled``.

    Returns:
        counts, figures, reasons, tables and notes of the report, and the rows of per_sample.parquet.

    Raises:
        Mat2SeqError: there is no such judge, it states its errors in no form that a report has (see
            :mod:`.judges`), or there is nothing to train the default one on.
    """
    options = pool.options(settings)
    judge: Judge
    if settings.judge is not None:
        judge = load_judge(settings.judge)
    else:
        judge = train_judge(labelled or [], settings.property, settings.inside, cache, **options)
    name = getattr(judge, "name", settings.judge)
    errors = errors_of(judge, name)
    samples = examine_all([text.cif for text in texts], canonical=True, label="reading samples", **options)
    verdicts = uniqueness_and_novelty(samples, train, **options)
    predicted = np.full(len(texts), np.nan)
    valid = [place for place, sample in enumerate(samples) if sample.valid_structure]
    if valid:
        predicted[valid] = _judged(judge, name, [texts[place].cif or "" for place in valid])
    judged = int(np.isfinite(predicted).sum())
    success = settings.inside(predicted)
    rows = [
        {
            **sample.row(text),
            "unique": verdicts.unique[place],
            "novel": verdicts.novel[place],
            "predicted": None if math.isnan(predicted[place]) else float(predicted[place]),
            "success": bool(success[place]),
            "outcome": verdicts.outcomes[place],
        }
        for place, (text, sample) in enumerate(zip(texts, samples, strict=True))
    ]
    notes = [
        f"Asked: {settings.words()}. Judge: {name}; it is no measurement, "
        + ("its error stands beside the success rate." if errors else "and it states no error of its own."),
        "Samples without a valid structure are not judged and are no success.",
        f"To {len(valid) - judged:,} samples the judge gives no number: they are no success, either.",
        *verdicts.notes,
        *([] if smact_installed() else [WITHOUT_SMACT]),
    ]
    report = {
        "settings": asdict(settings),
        "scheme": scheme_fingerprint(),
        "ids": verdicts.ids | ({"labels": digest(reference.id for reference in labelled)} if labelled else {}),
        "counts": counts_of(texts, samples) | {"without_judgement": len(valid) - judged} | verdicts.counts,
        "figures": _figures(rows) | errors,
        "reasons": kinds_of_reasons(rows),
        "tables": {},
        "notes": notes,
    }
    return report, rows


def _judged(judge: Judge, name: str | None, cifs: Sequence[str]) -> NDArray[np.float64]:
    """One number for each crystal, nan where the judge gives none that is finite.

    Raises:
        Mat2SeqError: the judge fails, or answers something else.
    """
    try:
        values = np.asarray(judge(cifs), dtype=np.float64)
    except Exception as error:  # a judge can be anybody's code
        raise Mat2SeqError(f"the judge {name} failed: {type(error).__name__}: {error}") from error
    if values.shape != (len(cifs),):
        raise Mat2SeqError(
            f"the judge {name} must give one number for each of {len(cifs)} crystals, not {values.shape}"
        )
    return np.where(np.isfinite(values), values, np.nan)


def _figures(rows: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    figures = {
        "success": share(row["success"] for row in rows),
        "success_valid": share(row["success"] for row in rows if row["valid"]),
        "readable": share(row["readable"] for row in rows),
        "valid_structure": share(row["valid_structure"] for row in rows),
    }
    if smact_installed():
        figures["valid"] = share(row["valid"] for row in rows)
    figures["unique"] = share(row["unique"] for row in rows)
    if any(row["novel"] is not None for row in rows):
        figures["novel"] = share(bool(row["novel"]) for row in rows)
        figures["unique_novel"] = share(bool(row["novel"] and row["unique"]) for row in rows)
    return figures
