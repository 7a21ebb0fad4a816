"""Compounds from the literature: is what a model proposes for them valid, and is the published structure among it?"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..corpora.sources import read_rows
from ..errors import Mat2SeqError
from . import pool
from .crystals import Examined, counts_of, examine, examine_all, kinds_of_reasons
from .formulas import reduced_formula
from .matching import Matcher
from .ranges import check_ranges
from .schema import Figure, clustered_share, digest, plain, share
from .sources import SampleText
from .validity import WITHOUT_SMACT, smact_installed

__all__ = ["Compound", "LiteratureSettings", "evaluate_literature", "read_compounds"]


@dataclass(frozen=True)
class Compound:
    """A compound by its reduced formula, with its published structure where there is one."""

    formula: str
    truth: Examined | None = None


@dataclass(frozen=True)
class LiteratureSettings:
    """StructureMatcher's tolerances, and how many comparisons at once."""

    ltol: float = 0.3
    stol: float = 0.5
    angle_tol: float = 10.0
    processes: int = 1
    timeout: float = 60.0
    progress: bool = True

    def __post_init__(self) -> None:
        check_ranges(self, above_0=["ltol", "stol", "angle_tol", "timeout"], from_1=["processes"])


def read_compounds(path: str | Path) -> list[Compound]:
    """Compounds of a text file with one formula a line, or of CIFs (a file, folder or table).

    Raises:
        Mat2SeqError: a line is no formula, a CIF cannot be read, or a formula stands there twice.

    Example:
        >>> read_compounds("formulas.txt")  # doctest: +SKIP
        [Compound(formula='Eu2FeGe2S6O'), Compound(formula='Ce6Cd23Te')]
    """
    file = Path(path)
    compounds = []
    if file.suffix == ".txt":
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise Mat2SeqError(f"{file} is not a text file (UTF-8)") from error
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            formula = reduced_formula("".join(line.split()))
            if formula is None:
                raise Mat2SeqError(f"{file.name}:{number}: {line!r} is no formula; each line holds one")
            compounds.append(Compound(formula))
    else:
        for row in read_rows([file]):
            truth = examine(row.text)
            if truth.reduced is None or truth.formula is None:
                raise Mat2SeqError(f"{row.source}: {truth.reason}")
            compounds.append(Compound(truth.formula, truth))
    formulas = [compound.formula for compound in compounds]
    if not formulas:
        raise Mat2SeqError(f"{path} names no compounds")
    if twice := next((formula for formula in formulas if formulas.count(formula) > 1), None):
        raise Mat2SeqError(f"{path} has {twice} more than once")
    return compounds


def _asked(text: SampleText) -> str | None:
    """Reduced formula that a sample was asked to have: its prompt, its prompt's id, or what that begins with.

    Files that ``mat2seq generate NaCl -o out`` writes begin with the formula, such as ``Na4Cl4_Fm-3m_1.cif``.
    """
    prompt = dict(text.facts).get("prompt")
    if isinstance(prompt, str):
        try:
            asked = json.loads(prompt)
        except ValueError:
            asked = prompt
        if isinstance(asked, dict):
            asked = asked.get("formula")
        if isinstance(asked, str) and (formula := reduced_formula(asked)):
            return formula
    return reduced_formula(text.prompt_id) or reduced_formula(text.prompt_id.partition("_")[0])


def evaluate_literature(
    runs: Sequence[Sequence[SampleText]], compounds: Sequence[Compound], settings: LiteratureSettings | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Validity of the samples for each compound: mean and standard deviation over runs, and matches.

    Args:
        runs: the samples of each run; a sample belongs to the compound of the formula in its prompt, or else of its
            prompt's id, or else of what stands before the first ``_`` of that.
        compounds: see :func:`read_compounds`.
        settings: see :class:`LiteratureSettings`.

    Raises:
        Mat2SeqError: a run has no sample of any of the compounds.
    """
    settings = settings or LiteratureSettings()
    options = pool.options(settings)
    by_formula = {compound.formula: compound for compound in compounds}
    placed: list[tuple[int, str, SampleText]] = []
    for number, run in enumerate(runs):
        own = [(number, formula, text) for text in run if (formula := _asked(text)) in by_formula and formula]
        if not own:
            asked = ", ".join(sorted({text.prompt_id for text in run})[:3])
            raise Mat2SeqError(
                f"run {number + 1} has no samples of {', '.join(list(by_formula)[:3])} ...: its samples are for "
                f"{asked} ...; a sample belongs to the compound of the formula in its prompt, prompt_id or file name"
            )
        placed += own
    samples = examine_all([text.cif for _, _, text in placed], label="reading samples", **options)
    tasks = [
        (sample.reduced, (by_formula[formula].truth or Examined()).reduced)
        for (_, formula, _), sample in zip(placed, samples, strict=True)
    ]
    matcher = Matcher(settings.ltol, settings.stol, settings.angle_tol)
    outcomes = pool.run(matcher.rms_of_pair, tasks, label="matching", **options)
    rows = [
        {
            **sample.row(text),
            "prompt_id": formula,
            "run": number,
            "formula_right": sample.formula == formula,
            "match": outcome.value is not None,
            "rms": outcome.value,
            "outcome": outcome.kind,
        }
        for (number, formula, text), sample, outcome in zip(placed, samples, outcomes, strict=True)
    ]
    figures, missing = _figures(rows, [compound.formula for compound in compounds], len(runs))
    with_truth = [compound.formula for compound in compounds if compound.truth is not None]
    if with_truth:
        matched = {row["prompt_id"] for row in rows if row["match"]}
        figures["matched"] = share(formula in matched for formula in with_truth)
    report = {
        "settings": asdict(settings),
        "ids": {"compounds": digest(by_formula)},
        "counts": {
            "compounds": len(compounds),
            "runs": len(runs),
            "samples_missing": missing,
            "samples_of_other_formulas": sum(len(run) for run in runs) - len(rows),
            **counts_of([text for _, _, text in placed], samples, [outcome.kind for outcome in outcomes]),
        },
        "figures": figures,
        "reasons": kinds_of_reasons(rows),
        "tables": {"compounds": _by_compound(rows, compounds)},
        "notes": [
            "Valid and right: the asked formula, charge-neutral (smact) and no two atoms within 0.5 angstrom.",
            *([] if smact_installed() else [WITHOUT_SMACT]),
            "Intervals are 95 %; they take into account that samples of one compound resemble each other.",
            "In each run every compound has as many samples as the compound with most; missing ones are wrong.",
            "The mean over runs and its standard deviation (n - 1) are of the shares of each run.",
        ],
    }
    return report, rows


def _counts_as_valid(row: dict[str, Any]) -> bool:
    return bool(row["valid"] and row["formula_right"])


def _figures(rows: Sequence[dict[str, Any]], formulas: Sequence[str], n_runs: int) -> tuple[dict[str, Figure], int]:
    """Figures, and how many samples are missing."""
    shares = []
    groups: dict[str, list[bool]] = {formula: [] for formula in formulas}
    absent: dict[str, int] = dict.fromkeys(formulas, 0)
    for number in range(n_runs):
        own: dict[str, list[bool]] = {formula: [] for formula in formulas}
        for row in rows:
            if row["run"] == number:
                own[row["prompt_id"]].append(_counts_as_valid(row))
        asked = max(map(len, own.values()))
        shares.append(sum(map(sum, own.values())) / (asked * len(formulas)))
        for formula, valid in own.items():
            groups[formula] += [*valid, *[False] * (asked - len(valid))]
            absent[formula] += asked - len(valid)

    def by_formula(name: str) -> dict[str, list[bool]]:
        return {formula: [bool(row[name]) for row in rows if row["prompt_id"] == formula] for formula in formulas}

    deviation = statistics.stdev(shares) if n_runs > 1 else None
    figures: dict[str, Figure] = {
        "readable": clustered_share(list(by_formula("readable").values())),
        "formula_right": clustered_share(
            [[*right, *[False] * absent[formula]] for formula, right in by_formula("formula_right").items()]
        ),
        "valid_structure": clustered_share(list(by_formula("valid_structure").values())),
        "valid_and_right": clustered_share(list(groups.values())),
        "valid_mean": plain(statistics.fmean(shares), n_runs),
        "valid_deviation": plain(deviation, n_runs),
    }
    return figures, sum(absent.values())


def _by_compound(rows: Sequence[dict[str, Any]], compounds: Sequence[Compound]) -> list[dict[str, Any]]:
    table = []
    for compound in compounds:
        own = [row for row in rows if row["prompt_id"] == compound.formula]
        distances = [row["rms"] for row in own if row["rms"] is not None]
        best = f"{min(distances):.4f}" if distances else "-"
        table.append(
            {
                "compound": compound.formula,
                "samples": len(own),
                "valid and right": sum(_counts_as_valid(row) for row in own),
                "matched": len(distances) if compound.truth is not None else "no published structure given",
                "best RMS": best,
            }
        )
    return table
