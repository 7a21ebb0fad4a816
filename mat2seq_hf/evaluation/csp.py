"""Structure prediction: do samples match the crystals whose compositions they were asked for?"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, count
from typing import Any

from ..errors import Mat2SeqError
from . import pool
from .crystals import Examined, counts_of, examine_all, examine_references, kinds_of_reasons
from .matching import Matcher
from .ranges import check_ranges
from .reduced_cell import ReducedCrystal
from .schema import Figure, clustered_mean, clustered_share, digest, mean, share
from .sources import Reference, SampleText, assign_prompts
from .validity import WITHOUT_SMACT, smact_installed

__all__ = ["CspSettings", "any_of", "evaluate_csp"]

_Groups = dict[str, list[int]]


@dataclass(frozen=True)
class CspSettings:
    """How samples are compared.

    Attributes:
        ltol, stol, angle_tol: of StructureMatcher.
        samples: k, the samples of each prompt that count, by their numbers; None counts as many as the prompt with most
            has. Missing ones are misses.
        symprec: tolerance of the space groups of both sides, angstrom; None leaves them out.
        reference_first: whether the matcher is given the reference crystal before the sample. Some verdicts depend on
            the order; CDVAE and what followed it give the sample first.
        polymorphs: match samples to every reference crystal of their formula, too (METRe).
        processes: how many at once.
        timeout: seconds for one comparison.
        progress: show progress bars.
    """

    ltol: float = 0.3
    stol: float = 0.5
    angle_tol: float = 10.0
    samples: int | None = None
    symprec: float | None = 0.1
    reference_first: bool = False
    polymorphs: bool = True
    processes: int = 1
    timeout: float = 60.0
    progress: bool = True

    def __post_init__(self) -> None:
        check_ranges(self, above_0=["ltol", "stol", "angle_tol", "symprec", "timeout"], from_1=["samples", "processes"])


def _compare(
    pairs: Sequence[tuple[Examined, Examined]], settings: CspSettings, label: str
) -> tuple[list[float | None], list[str]]:
    """RMS distance and outcome of each pair; equal crystals are the same object and compared once."""
    matcher = Matcher(settings.ltol, settings.stol, settings.angle_tol)
    wanted: dict[tuple[int, int], tuple[ReducedCrystal, ReducedCrystal]] = {}
    keys: list[tuple[int, int] | None] = []
    for truth, sample in pairs:
        if truth.reduced is None or sample.reduced is None or truth.reduced.content != sample.reduced.content:
            keys.append(None)
            continue
        key = (id(truth), id(sample))
        both = (sample.reduced, truth.reduced)
        wanted[key] = both[::-1] if settings.reference_first else both
        keys.append(key)
    outcomes = pool.run(
        matcher.rms_of_pair,
        list(wanted.values()),
        label=label,
        **pool.options(settings),
    )
    by_key = dict(zip(wanted, outcomes, strict=True))
    found = [by_key[key] if key is not None else pool.Outcome(None) for key in keys]
    return [outcome.value for outcome in found], [outcome.kind for outcome in found]


def evaluate_csp(
    samples: Sequence[SampleText], references: Sequence[Reference], settings: CspSettings | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Compare every sample with the crystal whose id is its prompt.

    Args:
        samples: see :func:`.sources.read_samples`; those of other prompts, and beyond k, are left out and counted.
        references: crystals by id, see :func:`.sources.read_references`.
        settings: see :class:`CspSettings`.

    Returns:
        counts, figures, reasons, tables and notes of the report, and the rows of per_sample.parquet.

    Raises:
        Mat2SeqError: no sample belongs to a reference crystal, or none is among the first k.

    Example:
        >>> report, rows = evaluate_csp(read_samples(["samples.parquet"]), read_references("val.parquet"))
        >>> report["figures"]["match_1"]["value"]  # doctest: +SKIP
        0.603
    """
    settings = settings or CspSettings()
    answers = assign_prompts(samples, {reference.id for reference in references})
    texts, k, numbering = _first_k(answers, settings.samples)
    left_out = {
        "samples_of_other_prompts": len(samples) - len(answers),
        "samples_beyond_k": len(answers) - len(texts),
    }
    options = {"symprec": settings.symprec} | pool.options(settings)
    truths = dict(
        zip(
            [reference.id for reference in references],
            examine_references([reference.cif for reference in references], label="reading references", **options),
            strict=True,
        )
    )
    examined = examine_all([text.cif for text in texts], label="reading samples", **options)
    pairs = [(truths[text.prompt_id], sample) for text, sample in zip(texts, examined, strict=True)]
    distances, outcomes = _compare(pairs, settings, "matching")
    rows = [
        _row(text, truth, sample, rms, outcome)
        for text, (truth, sample), rms, outcome in zip(texts, pairs, distances, outcomes, strict=True)
    ]
    groups: _Groups = {name: [] for name in truths}
    for place, text in enumerate(texts):
        groups[text.prompt_id].append(place)
    figures = _figures(rows, groups, k, settings)
    tables = {"match_by_samples": _curve(rows, groups, k)}
    polymorph_counts: dict[str, int] = {}
    if settings.polymorphs:
        more, polymorph_counts = _polymorphs(truths, texts, examined, distances, settings)
        figures |= more
    report = {
        "settings": {**asdict(settings), "samples": k},
        "ids": {"references": digest(truths)},
        "counts": {
            "references": len(truths),
            **counts_of(texts, examined, outcomes),
            "samples_missing": k * len(groups) - len(rows),
            **left_out,
            "unreadable_references": sum(truth.reduced is None for truth in truths.values()),
            **polymorph_counts,
        },
        "figures": figures,
        "reasons": kinds_of_reasons(rows),
        "tables": tables,
        "notes": [*_notes(truths, k, polymorphs=settings.polymorphs), *numbering],
    }
    return report, rows


def _first_k(answers: Sequence[SampleText], asked: int | None) -> tuple[list[SampleText], int, list[str]]:
    """The samples with numbers below k, k, and a note where the numbers as they are do not tell it.

    Args:
        answers: in the order of prompts and numbers.
        asked: k; None takes the number of samples of the prompt with most. Where their numbers go further (dates,
            seeds, one counter for all prompts), the samples of each prompt are numbered in their order.

    Raises:
        Mat2SeqError: no number is below k.
    """
    if asked is not None:
        texts = [text for text in answers if text.index < asked]
        if not texts:
            raise Mat2SeqError(
                f"no sample is left: {asked} a prompt are asked for, and the numbers of samples begin at "
                f"{min(text.index for text in answers)}; without --samples-per-prompt they are taken in their order"
            )
        return texts, asked, []
    k = max(Counter(text.prompt_id for text in answers).values())
    last = max(text.index for text in answers)
    if last < k:
        return list(answers), k, []
    following: dict[str, count[int]] = defaultdict(count)
    texts = [replace(text, index=next(following[text.prompt_id])) for text in answers]
    note = (
        f"The numbers of samples go up to {last}, and no prompt has more than {k}: they were numbered anew, prompt by "
        "prompt in their order. If more were drawn, --samples-per-prompt tells how many: missing ones are misses then."
    )
    return texts, k, [note]


def _row(text: SampleText, truth: Examined, sample: Examined, rms: float | None, outcome: str) -> dict[str, Any]:
    return {
        **sample.row(text),
        "formula_right": sample.formula is not None and sample.formula == truth.formula,
        "space_group_right": sample.space_group is not None and sample.space_group == truth.space_group,
        "match": rms is not None,
        "rms": rms,
        "outcome": outcome,
    }


def _figures(rows: Sequence[Mapping[str, Any]], groups: _Groups, k: int, settings: CspSettings) -> dict[str, Figure]:
    """All figures of single samples and of the best of k."""
    stol = settings.stol
    judged = smact_installed()
    figures: dict[str, Figure] = {}
    for name in ("readable", "valid_structure", *(["valid_composition", "valid"] if judged else [])):
        figures[name] = clustered_share([[bool(rows[place][name]) for place in group] for group in groups.values()])
    for name in ("formula_right", *(["space_group_right"] if settings.symprec is not None else [])):
        figures[name] = clustered_share(_padded(rows, groups, k, name))
    for suffix in ("", "_valid") if judged else ("",):
        kept = {
            name: [
                rows[place]["rms"] for place in group if rows[place]["match"] and (not suffix or rows[place]["valid"])
            ]
            for name, group in groups.items()
        }
        figures["match_1" + suffix] = clustered_share([[True] * len(r) + [False] * (k - len(r)) for r in kept.values()])
        figures["match_k" + suffix] = share(bool(r) for r in kept.values())
        figures["rmse_1" + suffix] = clustered_mean(list(kept.values()))
        figures["rmse_k" + suffix] = mean(min(r) for r in kept.values() if r)
        if not suffix:
            figures["crmse_1"] = clustered_mean([[*r, *[stol] * (k - len(r))] for r in kept.values()])
            figures["crmse_k"] = mean(min(r) if r else stol for r in kept.values())
    return figures


def _padded(rows: Sequence[Mapping[str, Any]], groups: _Groups, k: int, name: str) -> list[list[bool]]:
    """Values of each prompt, False for samples that are missing."""
    return [[bool(rows[place][name]) for place in group] + [False] * (k - len(group)) for group in groups.values()]


def any_of(successes: int, samples: int, chosen: int) -> float:
    """Probability that of ``chosen`` samples, drawn without replacement from all, at least one is a success.

    Example:
        >>> any_of(1, 4, 2)
        0.5
    """
    return 1.0 - math.comb(samples - successes, chosen) / math.comb(samples, chosen)


def _curve(rows: Sequence[Mapping[str, Any]], groups: _Groups, k: int) -> list[dict[str, float]]:
    """Match rate for 1 to k samples, each estimated from all k."""
    hits = [sum(bool(rows[place]["match"]) for place in group) for group in groups.values()]
    table = []
    for j in range(1, k + 1):
        chances = {h: any_of(h, k, j) for h in set(hits)}
        table.append({"samples": j, "match": sum(chances[h] for h in hits) / len(hits)})
    return table


def _polymorphs(
    truths: Mapping[str, Examined],
    texts: Sequence[SampleText],
    examined: Sequence[Examined],
    distances: Sequence[float | None],
    settings: CspSettings,
) -> tuple[dict[str, Figure], dict[str, int]]:
    """METRe: every reference crystal against all samples of its formula, whatever prompt they answered."""
    same: dict[str, list[str]] = defaultdict(list)
    for name, truth in truths.items():
        if truth.formula is not None:
            same[truth.formula].append(name)
    best: dict[str, float] = {}
    pairs: list[tuple[Examined, Examined]] = []
    owners: list[str] = []
    for text, sample, rms in zip(texts, examined, distances, strict=True):
        if rms is not None:
            best[text.prompt_id] = min(rms, best.get(text.prompt_id, math.inf))
        for name in same.get(sample.formula or "", ()):
            if name != text.prompt_id:
                owners.append(name)
                pairs.append((truths[name], sample))
    others, outcomes = _compare(pairs, settings, "matching polymorphs")
    for name, rms in zip(owners, others, strict=True):
        if rms is not None:
            best[name] = min(rms, best.get(name, math.inf))
    shared = [name for group in same.values() if len(group) > 1 for name in group]
    figures = {
        "metre": share(name in best for name in truths),
        "metre_crmse": mean(best.get(name, settings.stol) for name in truths),
        "polymorphs": share(name in best for name in shared),
    }
    counts = {"polymorphs": len(shared), "polymorph_pairs": len(pairs)}
    failed = Counter(outcome.split(":", maxsplit=1)[0] for outcome in outcomes if outcome != "ok")
    return figures, counts | {f"polymorph_{kind}s": count for kind, count in failed.items()}


def _notes(truths: Mapping[str, Examined], k: int, *, polymorphs: bool) -> list[str]:
    notes = [
        "No sample is picked: the rate of 1 sample is the mean over all samples, and missing samples are misses.",
        "Intervals are 95 %; those over samples take into account that samples of one prompt resemble each other.",
    ]
    if not smact_installed():
        notes.append(f"{WITHOUT_SMACT} There are no figures with the filter.")
    else:
        judged = share(chain.from_iterable([truth.valid] for truth in truths.values()))["value"]
        notes.append(
            f"With the filter, invalid samples are misses; {100 * (judged or 0):.1f} % of the references are valid."
        )
    if k > 1:
        notes.append(f"k is {k}.")
    if k > 1 and polymorphs:
        notes.append("METRe and polymorphs use all samples of all prompts of a formula.")
    return notes
