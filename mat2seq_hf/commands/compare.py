"""``mat2seq compare``: several reports side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import Mat2SeqError
from .files import console

__all__ = ["EXAMPLES", "SUMMARY", "add_arguments", "run"]

SUMMARY = "reports of `mat2seq evaluate` side by side, as a table and a plot"
EXAMPLES = """examples:
  mat2seq compare results/ours results/theirs
  mat2seq compare results/* --names small large --markdown table.md --plot plot.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("reports", nargs="+", metavar="REPORT", help="report.json files or their folders")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="headings, one for each report")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table here, too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the shares (PNG, PDF or SVG)")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from rich.markup import escape
    from rich.table import Table

    from ..evaluation.report import compare_table, different_settings, markdown_cell, plot_comparison
    from ..evaluation.schema import load_report

    reports = [load_report(path) for path in args.reports]
    if args.names is not None:
        if len(args.names) != len(reports):
            raise Mat2SeqError(f"{len(args.names)} names for {len(reports)} reports")
        for report, name in zip(reports, args.names, strict=True):
            report["name"] = name
    head, *body = compare_table(reports)
    table = Table(*map(escape, head))
    for row in body:
        table.add_row(*map(escape, row))
    out = console(width=200)
    out.print(table)
    differences = [f"different {line}" for line in different_settings(reports)]
    for line in differences:
        out.print(line, highlight=False, markup=False)
    if args.markdown is not None:
        rows = ["| " + " | ".join(map(markdown_cell, row)) + " |" for row in (head, *body)]
        rows.insert(1, "|" + "---|" * len(head))
        notes = [f"\n{line}" for line in differences]
        args.markdown.write_text("\n".join([*rows, *notes]) + "\n", encoding="utf-8")
    if args.plot is not None and not plot_comparison(reports, args.plot):
        raise Mat2SeqError("plots need matplotlib: pip install 'mat2seq-hf[evaluate]'")
    return 0
