"""``mat2seq generate``: draw crystals from a model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Mat2SeqError, PromptError
from .files import console, crystal_file_name

if TYPE_CHECKING:
    from ..canonical import CanonicalCrystal
    from ..generation import Asked
    from ..samples import Sample

__all__ = ["EXAMPLES", "SUMMARY", "add_arguments", "run"]

SUMMARY = "draw crystals from a model"
EXAMPLES = """examples:
  mat2seq generate BaTiO3 -n 4 -o out/
  mat2seq generate NaCl LiFePO4 --seed 0 --temperature 0.7 --top-k 10
  mat2seq generate TiO2 --space-group P4_2/mnm --formula-units 2
  mat2seq generate --elements Li Fe P O --max-atoms 28 -n 8
  mat2seq generate BaTiO3 -n 4 --candidates 20       the 4 best of 20
  mat2seq generate --property band_gap=1.0:2.0 --guidance-scale 2 --model my-model
  mat2seq generate --formulas formulas.txt -n 20 -o out/   at scale, goes on after a kill
  mat2seq generate                          any crystal
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add = parser.add_argument
    add("formula", nargs="*", help="reduced formulas, such as BaTiO3; none: the model chooses")
    add(
        "--formulas",
        type=Path,
        metavar="FILE",
        help="many prompts: a formula a line, .jsonl, .csv or .parquet of prompts, or a prepared folder; with -o the "
        "samples go to FOLDER/samples.parquet and FOLDER/cifs, and a run that was killed goes on",
    )
    add("-n", "--samples", type=int, default=1, help="crystals for each formula (default: 1)")
    add(
        "--candidates",
        type=int,
        metavar="K",
        help="draw K crystals for each formula and keep the best: valid ones that most others agree with",
    )
    add("-o", "--output", type=Path, metavar="FOLDER", help="write CIFs of the valid crystals here")
    add("--all", action="store_true", help="with -o: write crystals that are not valid, too")
    add("--temperature", type=float, help="sampling temperature (default: the model's)")
    add("--top-k", type=int, help="draw from the k likeliest tokens (default: the model's)")
    add(
        "--guidance-scale",
        type=float,
        metavar="G",
        help="take what properties change in the model's answer G times, such as 2 (default: once)",
    )
    add("--seed", type=int, help="makes the run repeat")
    add("--space-group", help="number or symbol, such as 225 or Fm-3m")
    add("--crystal-system", help="such as cubic")
    add("--formula-units", type=int, help="formula units in the primitive cell")
    add("--elements", nargs="+", metavar="EL", help="exactly these elements, in any counts")
    add("--n-atoms", type=int, help="atoms in the primitive cell")
    add("--max-atoms", type=int, help="at most so many atoms in the primitive cell")
    add(
        "--property",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="such as band_gap=1.1, or a range band_gap=1:2; for models that were trained with it",
    )
    add("--model", help="folder or Hub name of a model (default: the one in the package)")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from rich.console import Console

    from ..generation import load_pipeline

    if args.samples < 1:
        raise PromptError(f"-n must be at least 1, not {args.samples}")
    if args.candidates is not None and args.candidates < args.samples:
        raise PromptError(f"--candidates must be at least -n ({args.samples}), not {args.candidates}")
    if args.all and args.output is None:
        raise PromptError("--all says which crystals are written; name a folder for them with -o")
    _check_output(args.output)
    wishes = _wishes(args)
    notes = Console(stderr=True)
    with notes.status("loading the model"):
        pipe = load_pipeline(args.model)
    if args.formulas is not None and args.output is not None:
        return _many(args, pipe, wishes)
    asked = [one.prompt for one in _asked(args)]
    prompts = [pipe.prompt(one, **wishes) for one in asked] or [pipe.prompt(**wishes)]
    rows = _draw(args, pipe, prompts, notes)
    _print_table(rows, show_files=args.output is not None)
    return 0


def _check_output(folder: Path | None) -> None:
    """Refuse a folder that cannot be made, before any work."""
    for path in () if folder is None else (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise Mat2SeqError(f"-o {folder}: {path} is a file; name a folder")


def _settings(args: argparse.Namespace, *more: str) -> dict[str, Any]:
    names = ("temperature", "top_k", "guidance_scale", *more)
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _draw(args: argparse.Namespace, pipe: Any, prompts: Sequence[Any], notes: Any) -> list[tuple[Sample, str]]:
    """Samples of a few prompts, with a progress bar, and the names of the files they are written to."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    settings = _settings(args, "seed")
    if args.candidates:
        settings["num_candidates"] = args.candidates
    rows: list[tuple[Sample, str]] = []
    columns = (TextColumn("sampling"), BarColumn(), MofNCompleteColumn(), TextColumn("crystals"), TimeElapsedColumn())
    with Progress(*columns, console=notes, transient=True) as bar:
        task = bar.add_task("sampling", total=len(prompts) * max(args.samples, args.candidates or 0))
        settings["progress"] = partial(bar.advance, task)
        for samples in pipe(iter(prompts), num_return_sequences=args.samples, **settings):
            taken = {name.lower() for _, name in rows}
            rows += zip(samples, _write(samples, args.output, taken, keep_all=args.all), strict=True)
    return rows


def _many(args: argparse.Namespace, pipe: Any, wishes: dict[str, Any]) -> int:
    """A file of prompts: samples.parquet and CIFs, in parts that a killed run does not lose."""
    from tqdm import tqdm

    from ..generation import Job, merge, run_job, summary, write_cifs

    if args.all:
        raise PromptError("--all does not go with --formulas and -o: samples.parquet holds every sample anyway")
    asked = _asked(args)
    job = Job(
        args.samples,
        args.candidates,
        args.seed or 0,
        settings=tuple(_settings(args).items()),
        wishes=tuple(wishes.items()),
    )
    model = args.model or "the model in the package"
    with tqdm(total=len(asked) * args.samples, unit="sample") as bar:
        for prompts in run_job(pipe, asked, job, args.output, model=model):
            bar.update(prompts * args.samples)
    write_cifs(merge(args.output, asked), args.output / "cifs")
    print(summary(args.output))
    return 1 if (args.output / "rejected.parquet").is_file() else 0


def _asked(args: argparse.Namespace) -> list[Asked]:
    """The prompts of the file, and those that were named."""
    from ..generation import Asked, read_prompts

    prompts = [] if args.formulas is None else read_prompts(args.formulas)
    return [*prompts, *(Asked(f"argument {i}", formula) for i, formula in enumerate(args.formula, start=1))]


def _wishes(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of the prompt that were given as options."""
    names = ("formula_units", "elements", "n_atoms", "max_atoms", "space_group", "crystal_system")
    wishes = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.property:
        pairs = [*map(_property, args.property)]
        wishes["properties"] = dict(pairs)
        if len(wishes["properties"]) < len(pairs):
            raise PromptError(f"--property names a property twice: {' '.join(args.property)}")
    return wishes


def _property(text: str) -> tuple[str, Any]:
    """Name and value of ``band_gap=1.1``, or name and range of ``band_gap=1:2``."""
    from ..generation import property_value

    name, separator, value = text.partition("=")
    if not separator:
        raise PromptError(f"--property {text!r}: write for instance band_gap=1.1 or band_gap=1:2")
    return name, property_value(value)


def _write(samples: Sequence[Sample], folder: Path | None, taken: AbstractSet[str], *, keep_all: bool) -> list[str]:
    """Write the CIFs of samples and return their names, ``""`` for those that are not written.

    Names in ``taken``, which are in small letters, are not used again: two prompts can ask for the same crystals, and
    not every file system tells CO from Co.
    """
    names: list[str] = []
    for index, sample in enumerate(samples, start=1):
        name = ""
        if folder is not None and sample["structure"] is not None and (sample["valid"] or keep_all):
            folder.mkdir(parents=True, exist_ok=True)
            crystal = _crystal(sample["text"])
            used = {*taken, *(name.lower() for name in names)}
            name = next(
                n for n in (crystal_file_name(crystal, i, "cif") for i in count(index)) if n.lower() not in used
            )
            (folder / name).write_text(sample["cif"] or "", encoding="utf-8")
        names.append(name)
    return names


def _crystal(text: str) -> CanonicalCrystal:
    from ..canonical import CanonicalCrystal

    return CanonicalCrystal.from_text(text)


def _print_table(rows: Sequence[tuple[Sample, str]], *, show_files: bool) -> None:
    from rich.table import Table

    table = Table("formula", "space group")
    for name in ("a, b, c (Å)", "density (g/cm³)", "log-probability"):
        table.add_column(name, justify="right")
    table.add_column("valid")
    if show_files:
        table.add_column("file", overflow="fold")
    for sample, name in rows:
        lengths = density = ""
        if sample["structure"] is not None:
            lengths = "  ".join(f"{length:.4f}" for length in _crystal(sample["text"]).lattice[:3])
            density = f"{float(sample['structure'].density):.3f}"
        cells = [sample["formula"] or "", sample["space_group"] or "", lengths, density, f"{sample['log_prob']:.2f}"]
        table.add_row(*cells, "yes" if sample["valid"] else "no", *([name] if show_files else []))
    out = console(width=200)
    out.print(table)
    valid = sum(sample["valid"] for sample, _ in rows)
    out.print(f"{valid} of {len(rows)} valid", highlight=False)
    for row, (sample, _) in enumerate(rows, start=1):
        if not sample["valid"]:
            out.print(f"row {row}: {sample['reason']}", highlight=False, markup=False)
