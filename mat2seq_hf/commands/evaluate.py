"""``mat2seq evaluate``: judge generated crystals, and write a report that can be compared."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import Mat2SeqError
from .files import console

__all__ = ["EXAMPLES", "SUMMARY", "add_arguments", "run"]

SUMMARY = "judge generated crystals: a table, a summary and a report with plots"
EXAMPLES = """examples:
  mat2seq evaluate csp samples.parquet --reference mp_20/val.parquet -o results/val
  mat2seq evaluate csp their_cifs.tar.gz --reference mp_20/test.parquet --ids experimental.txt -o results/theirs
  mat2seq evaluate denovo out/ --train prepared/mp_20/train --reference mp_20/test.parquet -o results/denovo
  mat2seq evaluate stability out/ --train prepared/mp_20/train --corpus mp_20/train.parquet -o results/stability
  mat2seq evaluate conditional low.parquet --below 0.5 --labels mp_20/val.parquet -o results/low_gap
  mat2seq evaluate literature published/ --runs run1.parquet run2.parquet run3.parquet -o results/literature
  mat2seq evaluate descriptions mp_20/test.parquet --number 500 -o results/descriptions
  mat2seq evaluate efficiency --reference mp_20/val.parquet --prompts 10 -o results/efficiency

mat2seq evaluate TASK --help tells the options of a task; docs/evaluation.md says what each figure is.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the tasks and their options."""
    tasks = parser.add_subparsers(title="tasks", metavar="TASK", required=True, dest="task")
    for name, (summary, declare, _) in _TASKS.items():
        end = "" if summary.endswith("?") else "."
        task = tasks.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}{end}")
        declare(task)
        add = task.add_argument
        add("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where report and table go")
        add("--name", help="heading in comparisons (default: the name of the folder)")
        if name != "efficiency":  # it takes one prompt after the other, as long as that takes
            add("--processes", type=int, default=os.cpu_count() or 1, metavar="N", help="at once (default: all cores)")
            seconds = _SECONDS.get(name, 60.0)
            add("--timeout", type=float, default=seconds, metavar="S",
                help=f"seconds for one comparison or crystal (default: {seconds:g})")  # fmt: skip
        add("--quiet", action="store_true", help="no progress bars")


def run(args: argparse.Namespace) -> int:
    """Run the task, write report.json, per_sample.parquet, report.md and report.png, and print the figures."""
    started = time.perf_counter()
    try:
        args.output.mkdir(parents=True, exist_ok=True)  # before the work, which may take hours
    except (FileExistsError, NotADirectoryError) as error:
        raise Mat2SeqError(f"{args.output} lies at or below a file: -o names the folder of the report") from error
    report, rows = _TASKS[args.task][2](args)
    _write(args, report, rows, time.perf_counter() - started)
    return 0


def _common(args: argparse.Namespace) -> dict[str, Any]:
    """Settings of every task that spreads its work over processes."""
    return {"processes": args.processes, "timeout": args.timeout, "progress": not args.quiet}


def _write(
    args: argparse.Namespace, result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], seconds: float
) -> None:
    from rich.markup import escape
    from rich.table import Table

    from ..cif_reading import without_half_pairs
    from ..evaluation.report import plot_report, render_markdown
    from ..evaluation.schema import LABELS, REPORT_FORMAT, format_figure, versions, write_report

    report = {
        "format": REPORT_FORMAT,
        "task": args.task,
        "name": args.name or args.output.resolve().name,
        "inputs": {kind: _names(getattr(args, kind, None)) for kind in _INPUTS if getattr(args, kind, None)},
        "command": "mat2seq " + shlex.join(["evaluate", *_command(sys.argv[1:])]),
        "seconds": round(seconds, 1),
        "versions": versions(),
        **result,
    }
    write_report(args.output, report, rows)
    plotted = plot_report(report, rows, args.output / "report.png")
    text = without_half_pairs(render_markdown(report, "report.png" if plotted else None))
    (args.output / "report.md").write_text(text, encoding="utf-8")
    table = Table("figure", "value (95 % interval)", "n")
    for name, figure in report["figures"].items():
        table.add_row(escape(LABELS.get(name, name)), format_figure(name, figure), f"{figure['n']:,}")
    out = console(width=160)
    out.print(table)
    for line in (
        *report["notes"],
        *(f"{count:,} {what.replace('_', ' ')}" for what, count in report["counts"].items()),
    ):
        out.print(line, highlight=False, markup=False)
    out.print(without_half_pairs(f"report, table and plot are in {args.output}"), highlight=False, markup=False)


_INPUTS = ("samples", "reference", "ids", "train", "corpus", "labels", "published", "runs", "crystals", "model")


def _names(value: Any) -> str:
    """Names without folders: a report says what was read, not where it lay."""
    values = value if isinstance(value, list) else [value]
    return ", ".join("/".join(Path(item).parts[-2:]) for item in values)


def _command(arguments: Sequence[str]) -> list[str]:
    return list(arguments[1:] if arguments[:1] == ["evaluate"] else arguments)


def _declare_samples(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "samples", nargs="+", metavar="SAMPLES", help="tables with a column cif, CIF files, folders or archives of CIFs"
    )


def _declare_csp(parser: argparse.ArgumentParser) -> None:
    _declare_samples(parser)
    add = parser.add_argument
    add("--reference", required=True, metavar="CORPUS", help="the true crystals: a table with material_id and cif")
    add("--ids", metavar="FILE", help="take only the crystals whose ids stand in this file, one a line")
    add("--samples-per-prompt", type=int, metavar="K",
        help="k: samples numbered from 0 to K - 1 count (default: as many as the prompt with most has)")  # fmt: skip
    add("--ltol", type=float, default=0.3, help="StructureMatcher, lengths (default: 0.3)")
    add("--stol", type=float, default=0.5, help="StructureMatcher, sites (default: 0.5)")
    add("--angle-tol", type=float, default=10.0, help="StructureMatcher, angles in degree (default: 10)")
    add("--symprec", type=float, default=0.1, help="tolerance of space groups in angstrom (default: 0.1)")
    add("--reference-first", action="store_true",
        help="the matcher is given the reference before the sample, the reverse of CDVAE")  # fmt: skip
    add("--no-polymorphs", action="store_true", help="leave METRe out: it compares all crystals of a formula")


def _csp(args: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from ..evaluation.csp import CspSettings, evaluate_csp
    from ..evaluation.sources import read_references, read_samples

    settings = CspSettings(
        ltol=args.ltol,
        stol=args.stol,
        angle_tol=args.angle_tol,
        samples=args.samples_per_prompt,
        symprec=args.symprec,
        reference_first=args.reference_first,
        polymorphs=not args.no_polymorphs,
        **_common(args),
    )
    return evaluate_csp(read_samples(args.samples), read_references(args.reference, args.ids), settings)


def _declare_novelty(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--train", metavar="CORPUS", help="novelty against it: `mat2seq prepare`d folder, table, or CIFs"
    )


def _declare_denovo(parser: argparse.ArgumentParser) -> None:
    _declare_samples(parser)
    _declare_novelty(parser)
    add = parser.add_argument
    add("--reference", metavar="CORPUS", help="distances and coverage against it, such as a test split")
    add("--cutoffs", type=float, nargs=2, default=(0.4, 10.0), metavar=("STRUCTURE", "COMPOSITION"),
        help="coverage (default: 0.4 10, CDVAE's for MP-20; Perov-5 and Carbon-24 have 0.2 4)")  # fmt: skip
    add("--no-coverage", action="store_true", help="leave coverage out: it takes about 0.3 s a crystal of MP-20")
    add("--cache", type=Path, metavar="FILE",
        help="keeps what coverage computes for later evaluations (default: OUTPUT/cache.jsonl)")  # fmt: skip
    add("--symprec", type=float, default=0.1, help="tolerance of space groups in angstrom (default: 0.1)")


def _denovo(args: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from ..evaluation.denovo import DenovoSettings, evaluate_denovo
    from ..evaluation.sources import read_references, read_samples

    settings = DenovoSettings(
        symprec=args.symprec,
        structure_cutoff=args.cutoffs[0],
        composition_cutoff=args.cutoffs[1],
        coverage=not args.no_coverage,
        **_common(args),
    )
    references = read_references(args.reference) if args.reference else None
    cache = args.cache or args.output / "cache.jsonl"
    return evaluate_denovo(read_samples(args.samples), references, args.train, settings, cache)


def _declare_stability(parser: argparse.ArgumentParser) -> None:
    _declare_samples(parser)
    _declare_novelty(parser)
    add = parser.add_argument
    add("--corpus", required=True, metavar="CORPUS", help="crystals of the hull: a table with a column cif, or CIFs")
    add("--calculator", default="chgnet", help="chgnet (default), or module:function that returns an ASE calculator")
    add(
        "--cache",
        type=Path,
        metavar="FOLDER",
        help="keeps relaxations and single points (default: OUTPUT/cache); "
        "a calculator is known by its name: take a new folder for one that was changed",
    )
    add("--fmax", type=float, default=0.1, help="forces in eV/angstrom that count as relaxed (default: 0.1)")
    add("--steps", type=int, default=200, help="steps of relaxation at most (default: 200)")
    add("--metastable", type=float, default=0.1, help="eV/atom above the hull (default: 0.1)")


def _stability(args: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from ..evaluation.sources import read_samples
    from ..evaluation.stability import StabilitySettings, evaluate_stability

    settings = StabilitySettings(
        calculator=args.calculator,
        fmax=args.fmax,
        steps=args.steps,
        metastable=args.metastable,
        **_common(args),
    )
    cache = args.cache or args.output / "cache"
    return evaluate_stability(read_samples(args.samples), args.corpus, args.train, cache, settings)


def _declare_conditional(parser: argparse.ArgumentParser) -> None:
    _declare_samples(parser)
    _declare_novelty(parser)
    add = parser.add_argument
    add("--below", type=float, metavar="VALUE", help="asked: less than this")
    add("--above", type=float, metavar="VALUE", help="asked: more than this")
    add("--property", default="band_gap", help="column of the labels (default: band_gap)")
    add(
        "--labels",
        metavar="CORPUS",
        help="trains the default judge: crystals with labels, which the model has not seen",
    )
    add("--judge", metavar="NAME", help="another judge: an entry point in mat2seq_hf.judges, or module:function")
    add("--cache", type=Path, metavar="FILE", help="keeps the descriptors of the labelled crystals (.npz)")


def _conditional(args: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from ..evaluation.conditional import ConditionalSettings, evaluate_conditional
    from ..evaluation.sources import read_references, read_samples

    if args.below is None and args.above is None:
        raise Mat2SeqError("say what was asked for: --below or --above")
    if (args.labels is None) == (args.judge is None):
        raise Mat2SeqError("give either --labels, for the default judge, or --judge")
    settings = ConditionalSettings(
        property=args.property, below=args.below, above=args.above, judge=args.judge, **_common(args)
    )
    labels = read_references(args.labels) if args.labels else None
    return evaluate_conditional(read_samples(args.samples), labels, args.train, settings, args.cache)


def _declare_literature(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("published", metavar="COMPOUNDS", help="CIFs (file, folder, table), or a .txt file with one formula a line")
    add("--runs", nargs="+", required=True, metavar="SAMPLES", help="samples of each run: tables, folders or archives")
    add("--ltol", type=float, default=0.3, help="StructureMatcher, lengths (default: 0.3)")
    add("--stol", type=float, default=0.5, help="StructureMatcher, sites (default: 0.5)")
    add("--angle-tol", type=float, default=10.0, help="StructureMatcher, angles in degree (default: 10)")


def _literature(args: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from ..evaluation.literature import LiteratureSettings, evaluate_literature, read_compounds
    from ..evaluation.sources import read_samples

    settings = LiteratureSettings(ltol=args.ltol, stol=args.stol, angle_tol=args.angle_tol, **_common(args))
    return evaluate_literature([read_samples([run]) for run in args.runs], read_compounds(args.published), settings)


def _declare_descriptions(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("crystals", metavar="CORPUS", help="a table with a column cif, or a folder of CIFs")
    add("--methods", nargs="+", metavar="NAME", help="mat2seq_hf, symmetrised_cif, cif (default: all), module:function")
    add("--number", type=int, default=500, help="random crystals; 0 takes all (default: 500)")
    add("--equivalents", type=int, default=5, help="descriptions of each kind (default: 5)")
    add("--seed", type=int, default=0, help="of crystals and transformations (default: 0)")


def _descriptions(args: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from ..evaluation.descriptions import METHODS, DescriptionSettings, evaluate_descriptions
    from ..evaluation.sources import read_references

    settings = DescriptionSettings(
        methods=tuple(args.methods or METHODS),
        crystals=args.number or None,
        equivalents=args.equivalents,
        seed=args.seed,
        **_common(args),
    )
    return evaluate_descriptions(read_references(args.crystals), settings)


def _declare_efficiency(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--reference", required=True, metavar="CORPUS", help="crystals whose compositions are asked for")
    add("--prompts", type=int, default=10, help="random crystals of it (default: 10)")
    add("--samples-per-prompt", type=int, default=20, metavar="K", help="drawn together (default: 20)")
    add("--model", help="folder or Hub name of a model (default: the one in the package)")
    add("--threads", type=int, help="of the processor (default: torch's choice)")
    add("--seed", type=int, default=0, help="of crystals and samples (default: 0)")


def _efficiency(args: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from ..evaluation.efficiency import EfficiencySettings, evaluate_efficiency
    from ..evaluation.sources import read_references

    settings = EfficiencySettings(
        args.model, args.samples_per_prompt, args.seed, args.threads, not args.quiet, args.prompts
    )
    return evaluate_efficiency(read_references(args.reference), settings)


_SECONDS = {"stability": 600.0, "descriptions": 300.0}  # tasks whose steps take longer

_Task = tuple[
    str,
    Callable[[argparse.ArgumentParser], None],
    Callable[[argparse.Namespace], tuple[dict[str, Any], list[dict[str, Any]]]],
]

_TASKS: dict[str, _Task] = {
    "csp": ("structure prediction: do samples match the crystals asked for?", _declare_csp, _csp),
    "denovo": ("free generation: validity, uniqueness, novelty, coverage, distributions", _declare_denovo, _denovo),
    "stability": ("relaxation, energy above the hull, and S.U.N., by a potential", _declare_stability, _stability),
    "conditional": ("generation with an asked property: success by a judge", _declare_conditional, _conditional),
    "literature": ("compounds with published structures: validity over several runs", _declare_literature, _literature),
    "descriptions": ("does a text stay the same for other cells of a crystal?", _declare_descriptions, _descriptions),
    "efficiency": ("parameters, time for 20 samples, time for a valid crystal", _declare_efficiency, _efficiency),
}
