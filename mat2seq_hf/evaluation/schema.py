"""What an evaluation writes: report.json, per_sample.parquet, and the columns of samples it reads.

A report is a dict with

- ``format``: :data:`REPORT_FORMAT`; ``task``; ``name``: how the report is called in comparisons;
- ``inputs``, ``settings``, ``versions``, ``command``, ``seconds``: how the figures came about; ``scheme``: the
  fingerprint of the canonical form, where the task uses it;
- ``ids``: fingerprints of the ids of the crystals that samples are compared with, see :func:`digest`, where a task has
  such;
- ``counts``: whole numbers, such as samples read and timeouts;
- ``figures``: name to ``{"value", "low", "high", "n"}``, the 95 % interval and the number of observations;
- ``reasons``: why samples were unreadable or invalid, and how often;
- ``tables``: name to a list of rows (dicts), for what is no single figure;
- ``notes``: sentences that must stand beside the figures.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..cif_reading import without_half_pairs
from ..errors import Mat2SeqError

__all__ = [
    "LABELS",
    "REPORT_FORMAT",
    "Figure",
    "clustered_mean",
    "clustered_share",
    "digest",
    "format_figure",
    "is_figure",
    "is_share",
    "load_report",
    "mean",
    "per_sample_schema",
    "plain",
    "share",
    "versions",
    "write_report",
]

REPORT_FORMAT = 1

Figure = dict[str, float | int | None]

_Z = 1.959964  # two-sided 95 % of the normal distribution

#: What each figure is, in words. Shares are shown as per cent, the others as they are.
LABELS: dict[str, str] = {
    "readable": "share readable as an ordered crystal",
    "valid": "share valid (charge-neutral and no two atoms within 0.5 Å)",
    "valid_structure": "share without two atoms within 0.5 Å",
    "valid_composition": "share of charge-neutral compositions (smact)",
    "formula_right": "share with the right formula",
    "space_group_right": "share with the right space group",
    "match_1": "match rate, 1 sample",
    "match_k": "match rate, any of k samples",
    "rmse_1": "RMSE of the matched, 1 sample, in (V/N)^(1/3)",
    "rmse_k": "RMSE of the matched, best of k samples, in (V/N)^(1/3)",
    "match_1_valid": "match rate, 1 sample, only valid samples count",
    "match_k_valid": "match rate, any of k samples, only valid samples count",
    "rmse_1_valid": "RMSE of the matched, 1 sample, only valid samples count, in (V/N)^(1/3)",
    "rmse_k_valid": "RMSE of the matched, best of k samples, only valid samples count, in (V/N)^(1/3)",
    "crmse_1": "cRMSE, 1 sample (a miss counts stol), in (V/N)^(1/3)",
    "crmse_k": "cRMSE, best of k samples (a miss counts stol), in (V/N)^(1/3)",
    "metre": "METRe: share of reference crystals matched by any sample of their formula",
    "metre_crmse": "cRMSE of METRe (a miss counts stol), in (V/N)^(1/3)",
    "polymorphs": "share of polymorphs matched by any sample of their formula",
    "unique": "share of unique crystals",
    "novel": "share not in the training corpus",
    "unique_novel": "share unique and not in the training corpus",
    "valid_unique_novel": "share valid, unique and not in the training corpus",
    "coverage_recall": "coverage, recall (share of reference crystals near a sample)",
    "coverage_precision": "coverage, precision (share of samples near a reference crystal)",
    "density_distance": "distance of densities (Wasserstein, g/cm³)",
    "elements_distance": "distance of element counts (Wasserstein)",
    "space_group_distance": "distance of space-group frequencies (total variation)",
    "stable": "share stable (on or below the hull)",
    "metastable": "share metastable (within the asked energy of the hull)",
    "sun": "S.U.N.: share stable, unique and novel",
    "msun": "share metastable, unique and novel",
    "converged": "share of relaxations that converged",
    "e_above_hull": "mean energy above the hull (eV/atom)",
    "relaxation_rmse": "mean RMS distance between sample and relaxed crystal, in (V/N)^(1/3)",
    "success": "share of all samples judged to have the asked property",
    "success_valid": "share of valid samples judged to have the asked property",
    "judge_error": "mean absolute error of the judge on held-out crystals (in the unit of the labels)",
    "judge_baseline_error": "the same of the composition mean (in the unit of the labels)",
    "judge_precision": "of held-out crystals the judge puts into the asked range, share that belongs there",
    "judge_recall": "of held-out crystals in the asked range, share the judge puts there",
    "valid_and_right": "share valid and with the right formula (missing samples are neither)",
    "valid_mean": "valid and right, mean over runs",
    "valid_deviation": "valid and right, standard deviation over runs",
    "matched": "share of compounds matched by any sample",
    "parameters": "parameters",
    "seconds_per_prompt": "seconds for one prompt's samples",
    "seconds_per_sample": "seconds a sample",
    "seconds_per_valid": "seconds a valid sample",
}

# Figures with a label that are no shares of a whole.
_PLAIN_NUMBERS = frozenset({
    "rmse_1", "rmse_k", "rmse_1_valid", "rmse_k_valid", "crmse_1", "crmse_k", "metre_crmse", "density_distance",
    "elements_distance", "space_group_distance", "e_above_hull", "relaxation_rmse", "judge_error",
    "judge_baseline_error", "parameters", "seconds_per_prompt", "seconds_per_sample", "seconds_per_valid",
})  # fmt: skip


def is_share(name: str) -> bool:
    """Whether a figure is shown in per cent; figures of somebody's judge, of other names, are plain numbers."""
    return name.startswith("same text: ") or (name in LABELS and name not in _PLAIN_NUMBERS)


def format_figure(name: str, figure: Figure) -> str:
    """A figure with its interval, such as ``"60.3 % (57.2 to 63.3)"``; ``"-"`` if there is none."""
    value, low, high = figure["value"], figure["low"], figure["high"]
    if value is None:
        return "-"
    if is_share(name):
        interval = "" if low is None or high is None else f" ({100 * low:.1f} to {100 * high:.1f})"
        return f"{100 * value:.1f} %{interval}"
    shown = f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 10 else f"{value:.4f}"
    return shown if low is None or high is None else f"{shown} ({low:.4f} to {high:.4f})"


def plain(value: float | None, n: int) -> Figure:
    """A figure without an interval."""
    return {"value": value, "low": None, "high": None, "n": n}


def share(values: Iterable[bool]) -> Figure:
    """Share of true values with the Wilson interval; value None where there are none."""
    items = [bool(value) for value in values]
    n = len(items)
    if not n:
        return plain(None, 0)
    p = sum(items) / n
    low, high = _wilson(p, n)
    return {"value": p, "low": low, "high": high, "n": n}


def _wilson(p: float, n: float) -> tuple[float, float]:
    """Interval of a share p of n independent observations (Wilson, JASA 22 (1927) 209); never of zero width."""
    middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n * n)) / (1 + _Z**2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def mean(values: Iterable[float]) -> Figure:
    """Mean with its normal interval; value None where there are no values."""
    return clustered_mean([[value] for value in values])


def clustered_mean(groups: Sequence[Sequence[float]]) -> Figure:
    """Mean over all values with an interval for values that come in groups, such as the samples of one prompt.

    Samples of one prompt resemble each other, so that they tell less than as many samples of different prompts: the
    variance is that between groups. Of one group alone there is no interval.
    """
    value, error, n, _ = _of_groups(groups)
    if value is None or error is None:
        return plain(value, n)
    low, high = value - _Z * error, value + _Z * error
    if all(v >= 0 for group in groups for v in group):  # a distance: nothing is below 0
        low = max(low, 0.0)
    return {"value": value, "low": low, "high": high, "n": n}


def clustered_share(groups: Sequence[Sequence[bool]]) -> Figure:
    """Share of true values that come in groups, see :func:`clustered_mean`.

    The interval is Wilson's for as many independent observations as have the variance between groups; where all values
    are the same, for as many as there are groups.
    """
    value, error, n, n_groups = _of_groups(groups)
    if value is None or error is None:
        return plain(value, n)
    spread = value * (1 - value)
    low, high = _wilson(value, min(n, spread / error**2) if spread and error else n_groups)
    return {"value": value, "low": low, "high": high, "n": n}


def _of_groups(groups: Sequence[Sequence[float]]) -> tuple[float | None, float | None, int, int]:
    """Mean over all values, its standard error by the variance between groups, and how many values and groups."""
    kept = [np.asarray(group, dtype=float) for group in groups if len(group)]
    n = sum(len(group) for group in kept)
    if not n:
        return None, None, 0, 0
    value = float(sum(group.sum() for group in kept) / n)
    if len(kept) == 1:
        return value, None, n, 1
    residuals = np.array([float((group - value).sum()) for group in kept])
    error = math.sqrt(float((residuals**2).sum()) * len(kept) / (len(kept) - 1)) / n
    return value, error, n, len(kept)


_BASE = [
    ("prompt_id", pa.string()),
    ("sample_index", pa.int32()),
    ("source", pa.string()),
    ("readable", pa.bool_()),
    ("reason", pa.string()),
    ("formula", pa.string()),
    ("n_atoms", pa.int32()),
    ("space_group", pa.int32()),
    ("min_distance", pa.float64()),
    ("valid_structure", pa.bool_()),
    ("valid_composition", pa.bool_()),
    ("valid", pa.bool_()),
]

_OF_TASK = {
    "csp": [
        ("formula_right", pa.bool_()),
        ("space_group_right", pa.bool_()),
        ("match", pa.bool_()),
        ("rms", pa.float64()),
        ("outcome", pa.string()),
    ],
    "denovo": [
        ("density", pa.float64()),
        ("canonical_text", pa.string()),
        ("unique", pa.bool_()),
        ("novel", pa.bool_()),
        ("outcome", pa.string()),
    ],
    "stability": [
        ("unique", pa.bool_()),
        ("novel", pa.bool_()),
        ("converged", pa.bool_()),
        ("steps", pa.int32()),
        ("energy_per_atom", pa.float64()),
        ("e_above_hull", pa.float64()),
        ("relaxation_rms", pa.float64()),
        ("relaxed_cif", pa.string()),
        ("outcome", pa.string()),
    ],
    "conditional": [
        ("unique", pa.bool_()),
        ("novel", pa.bool_()),
        ("predicted", pa.float64()),
        ("success", pa.bool_()),
        ("outcome", pa.string()),
    ],
    "literature": [
        ("run", pa.int32()),
        ("formula_right", pa.bool_()),
        ("match", pa.bool_()),
        ("rms", pa.float64()),
        ("outcome", pa.string()),
    ],
    "descriptions": [
        ("kind", pa.string()),
        ("method", pa.string()),
        ("same", pa.bool_()),
        ("outcome", pa.string()),
    ],
    "efficiency": [("seconds", pa.float64()), ("outcome", pa.string())],
}


def per_sample_schema(task: str) -> pa.Schema:
    """Columns of per_sample.parquet; ``outcome`` is ok, timeout, crash or error with its cause."""
    return pa.schema(_BASE + _OF_TASK[task])


def versions() -> dict[str, str | None]:
    """Versions of whatever can change a figure."""

    def installed(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    packages = ("mat2seq-hf", "pymatgen", "pymatgen-core", "spglib", "numpy", "scipy", "smact", "chgnet", "matminer")
    found = {name: installed(name) for name in packages}
    return {"python": platform.python_version(), **{name: value for name, value in found.items() if value}}


def write_report(folder: str | Path, report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write report.json and per_sample.parquet, each complete or not at all.

    Returns:
        path of report.json.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    schema = per_sample_schema(report["task"])
    known = [{name: row.get(name) for name in schema.names} for row in rows]
    text = without_half_pairs(json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False))
    # only what can be written as JSON gets here: a table fits to its report
    with (path / "per_sample.tmp").open("wb") as handle:  # arrow itself opens only names in UTF-8
        pq.write_table(pa.Table.from_pylist(known, schema=schema), handle, compression="zstd")
    (path / "per_sample.tmp").replace(path / "per_sample.parquet")
    (path / "report.tmp").write_text(text + "\n", encoding="utf-8")
    (path / "report.tmp").replace(path / "report.json")
    return path / "report.json"


def digest(ids: Iterable[str]) -> str:
    """Twelve digits that tell one choice of crystals from another, whatever their order."""
    return hashlib.sha256("\0".join(sorted(ids)).encode("utf-8", "replace")).hexdigest()[:12]


def load_report(path: str | Path) -> dict[str, Any]:
    """Read a report.json, or the one in a folder.

    Raises:
        Mat2SeqError: it is not there, is no report, or was written by a later version.
    """
    file = Path(path)
    file = file / "report.json" if file.is_dir() else file
    try:
        report: Any = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise Mat2SeqError(f"{file} does not exist: name the folder that `mat2seq evaluate` wrote") from error
    except ValueError as error:
        raise Mat2SeqError(f"{file} is no JSON: {error}") from error
    if not isinstance(report, dict) or not {"format", "task", "name", "figures"} <= report.keys():
        raise Mat2SeqError(f"{file} is no report of `mat2seq evaluate`: format, task, name or figures are missing")
    if report["format"] != REPORT_FORMAT:
        raise Mat2SeqError(f"{file} has format {report['format']!r}, this version reads {REPORT_FORMAT}")
    wrong = [part for part in ("task", "name") if not isinstance(report[part], str)]
    parts = ("figures", "settings", "inputs", "versions", "ids", "counts")
    wrong += [part for part in parts if not isinstance(report.get(part, {}), dict)]
    if not wrong:
        wrong = [f"the figure {name}" for name, figure in report["figures"].items() if not is_figure(figure)]
    if wrong:
        raise Mat2SeqError(f"{file} is no report as `mat2seq evaluate` writes it: {', '.join(wrong)} cannot be read")
    return report


def is_figure(figure: Any) -> bool:
    """Whether this is a :data:`Figure`, with finite numbers or None."""
    if not isinstance(figure, dict) or not {"value", "low", "high", "n"} <= figure.keys():
        return False
    numbers = [figure[name] for name in ("value", "low", "high", "n")]
    return all(number is None or (isinstance(number, (int, float)) and math.isfinite(number)) for number in numbers)
