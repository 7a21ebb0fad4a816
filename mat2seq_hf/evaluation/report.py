"""Reports for people: Markdown and plots, rendered from report.json, and several reports side by side."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Mat2SeqError
from .schema import LABELS, Figure, format_figure, is_share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["compare_table", "different_settings", "markdown_cell", "plot_comparison", "plot_report", "render_markdown"]

_TITLES = {
    "csp": "Structure prediction",
    "denovo": "De novo generation",
    "stability": "Stability",
    "conditional": "Generation with an asked property",
    "descriptions": "Uniqueness of descriptions",
    "efficiency": "Efficiency",
    "literature": "Compounds from the literature",
}


def markdown_cell(value: Any) -> str:
    """A value as it can stand in a table of Markdown."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return lines + ["| " + " | ".join(markdown_cell(row.get(name, "")) for name in names) + " |" for row in rows]


def render_markdown(report: Mapping[str, Any], plot: str | None = None) -> str:
    """The report as Markdown.

    Args:
        report: see :mod:`.schema`.
        plot: file name of a picture beside it.
    """
    lines = [f"# {_TITLES.get(report['task'], report['task'])}: {report['name']}", ""]
    lines += [f"- {kind}: {names}" for kind, names in report["inputs"].items() if names]
    lines += ["", "| figure | value (95 % interval) | n |", "|---|---|---|"]
    for name, figure in report["figures"].items():
        lines.append(f"| {markdown_cell(LABELS.get(name, name))} | {format_figure(name, figure)} | {figure['n']} |")
    lines += ["", *(f"{note}\n" for note in report["notes"])]
    if plot:
        lines += [f"![figures]({plot})", ""]
    counts = {name.replace("_", " "): count for name, count in report["counts"].items()}
    lines += ["## Counts", "", "| what | how many |", "|---|---|", *(f"| {n} | {c:,} |" for n, c in counts.items()), ""]
    if report["reasons"]:
        lines += ["## Why samples are unreadable or invalid", "", "| reason | samples |", "|---|---|"]
        lines += [*(f"| {markdown_cell(reason)} | {count:,} |" for reason, count in report["reasons"].items()), ""]
    for name, rows in report["tables"].items():
        if rows:
            lines += [f"## {name.replace('_', ' ').capitalize()}", "", *_table(rows), ""]
    settings = ", ".join(f"{name} {value}" for name, value in report["settings"].items() if value is not None)
    versions = ", ".join(f"{name} {value}" for name, value in report["versions"].items())
    lines += [
        "## How",
        "",
        f"- settings: {settings}",
        *([f"- canonical form: {report['scheme']}"] if "scheme" in report else []),
        f"- versions: {versions}",
        "",
        "```bash",
        report["command"],
        "```",
    ]
    return "\n".join(lines) + "\n"


def _plots_possible() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def _plot_curve(axes: Axes, rows: Sequence[Mapping[str, float]]) -> None:
    axes.plot([row["samples"] for row in rows], [100 * row["match"] for row in rows], marker="o", markersize=3)
    axes.set_xlabel("samples")
    axes.set_ylabel("match rate, any of the samples (%)")
    axes.set_ylim(0, 100)


def _plot_histogram(axes: Axes, values: Sequence[float], label: str) -> None:
    axes.hist(values, bins=40)
    axes.set_xlabel(label)
    axes.set_ylabel("samples")


def _bars(axes: Axes, places: Sequence[Any], figures: Sequence[Figure], **options: Any) -> None:
    """Bars of shares with their intervals."""
    values = [100 * (figure["value"] or 0) for figure in figures]
    below, above = (
        [
            0.0 if (end := figure[side]) is None else max(0.0, sign * (value - 100 * end))
            for value, figure in zip(values, figures, strict=True)
        ]
        for sign, side in ((1, "low"), (-1, "high"))
    )
    axes.barh(places, values, xerr=[below, above], **options)
    axes.set_xlim(0, 105)
    axes.set_xlabel("%")


def _shares(report: Mapping[str, Any]) -> dict[str, Figure]:
    return {n: f for n, f in report["figures"].items() if is_share(n) and f["value"] is not None}


def plot_report(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Draw the shares and what is distributed; False where matplotlib is not installed."""
    if not _plots_possible():
        return False
    from matplotlib.figure import Figure as Plot

    figure = Plot(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    shares = _shares(report)
    _bars(left, list(shares)[::-1], list(shares.values())[::-1])
    curve = report["tables"].get("match_by_samples", [])
    hull = [row["e_above_hull"] for row in rows if row.get("e_above_hull") is not None]
    if hull:
        _plot_histogram(right, hull, "energy above the hull of the potential (eV/atom)")
    elif len(curve) > 1:
        _plot_curve(right, curve)
    elif distances := [row["rms"] for row in rows if row.get("rms") is not None]:
        _plot_histogram(right, distances, "RMS distance of the matched, (V/N)^(1/3)")
    elif predicted := [row["predicted"] for row in rows if row.get("predicted") is not None]:
        _plot_histogram(right, predicted, f"{report['settings']['property']} by the judge (in the unit of the labels)")
    elif groups := [row["space_group"] for row in rows if row.get("space_group") is not None]:
        _plot_histogram(right, groups, "space-group number")
    else:
        right.remove()
    figure.savefig(path, dpi=120)
    return True


def _headings(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of reports, with their places where two have the same."""
    names = [str(report["name"]) for report in reports]
    return [f"{name} ({n})" if names.count(name) > 1 else name for n, name in enumerate(names, start=1)]


#: Counts that tell what figures are of; others are results.
_SIZES = ("references", "compounds", "runs", "crystals", "prompts", "samples", "samples_missing")


def compare_table(reports: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Rows of a table with the figures of several reports in columns; the first row is the head.

    Raises:
        Mat2SeqError: the reports are of different tasks.
    """
    tasks = {report["task"] for report in reports}
    if len(tasks) > 1:
        raise Mat2SeqError(f"reports of different tasks cannot be compared: {', '.join(sorted(tasks))}")
    names = list(dict.fromkeys(name for report in reports for name in report["figures"]))
    head = ["figure", *_headings(reports)]
    body = [
        [LABELS.get(name, name)]
        + [format_figure(name, report["figures"][name]) if name in report["figures"] else "-" for report in reports]
        for name in names
    ]
    return [head, *body]


def different_settings(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """What reports differ in, in words: settings, inputs, versions, canonical form, crystals, numbers of samples."""
    found = []
    schemes = [report["scheme"] for report in reports if "scheme" in report]
    if len(set(schemes)) > 1:
        found.append("canonical form: " + ", ".join(map(str, schemes)))
    for part in ("settings", "inputs", "versions", "ids", "counts"):
        parts = [report.get(part, {}) for report in reports]
        if part == "ids":
            parts = [ids for ids in parts if ids]  # reports of earlier versions have none
        for name in dict.fromkeys(name for own in parts for name in own):
            # a setting that a report lacks is one that its version did not have
            values = [own.get(name) for own in parts if part != "settings" or name in own]
            expected = name in {"processes", "progress"} or (part, name) == ("inputs", "samples")
            if part == "counts" and name not in _SIZES:
                continue
            if not expected and len({str(value) for value in values}) > 1:
                found.append(f"{part} {name}: " + ", ".join(str(value) for value in values))
    return found


def plot_comparison(reports: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Draw the shares of several reports side by side; False where matplotlib is not installed."""
    if not _plots_possible():
        return False
    from matplotlib.figure import Figure as Plot

    names = list(dict.fromkeys(name for report in reports for name in _shares(report)))[::-1]
    figure = Plot(figsize=(9, 1 + 0.3 * len(names) * max(1.0, len(reports) / 2)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(reports)
    for number, (report, heading) in enumerate(zip(reports, _headings(reports), strict=True)):
        shares = _shares(report)
        shown = [name for name in names if name in shares]
        places = [names.index(name) + 0.4 - (number + 0.5) * height for name in shown]
        _bars(axes, places, [shares[name] for name in shown], height=height, label=heading)
    axes.set_yticks(range(len(names)), names)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
    return True
