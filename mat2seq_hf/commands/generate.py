"""``mat2seq generate``: draw crystals from a model."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PromptError
from .files import crystal_file_name, lines

if TYPE_CHECKING:
    from ..canonical import CanonicalCrystal
    from ..samples import Sample

__all__ = ["EXAMPLES", "SUMMARY", "add_arguments", "run"]

SUMMARY = "draw crystals from a model"
EXAMPLES = """examples:
  mat2seq generate BaTiO3 -n 4 -o out/
  mat2seq generate NaCl LiFePO4 --seed 0 --temperature 0.7 --top-k 10
  mat2seq generate TiO2 --space-group P4_2/mnm --formula-units 2
  mat2seq generate --elements Li Fe P O --max-atoms 28 -n 8
  mat2seq generate --formulas formulas.txt -o out/
  mat2seq generate                          any crystal
"""

_CHUNK = 16  # samples drawn together: the progress bar moves, and a CPU gains nothing from more


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add = parser.add_argument
    add("formula", nargs="*", help="reduced formulas, such as BaTiO3; none: the model chooses")
    add("--formulas", type=Path, metavar="FILE", help="file with one formula a line, in addition")
    add("-n", "--samples", type=int, default=1, help="crystals for each formula (default: 1)")
    add("-o", "--output", type=Path, metavar="FOLDER", help="write CIFs of the valid crystals here")
    add("--all", action="store_true", help="write crystals that are not valid, too")
    add("--temperature", type=float, help="sampling temperature (default: the model's)")
    add("--top-k", type=int, help="draw from the k likeliest tokens (default: the model's)")
    add("--seed", type=int, help="makes the run repeat")
    add("--space-group", help="number or symbol, such as 225 or Fm-3m")
    add("--crystal-system", help="such as cubic")
    add("--formula-units", type=int, help="formula units in the primitive cell")
    add("--elements", nargs="+", metavar="EL", help="exactly these elements, in any counts")
    add("--n-atoms", type=int, help="atoms in the primitive cell")
    add("--max-atoms", type=int, help="at most so many atoms in the primitive cell")
    add("--model", help="folder or Hub name of a model (default: the one in the package)")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from ..generation import load_pipeline

    if args.samples < 1:
        raise PromptError(f"-n must be at least 1, not {args.samples}")
    notes = Console(stderr=True)
    with notes.status("loading the model"):
        pipe = load_pipeline(args.model)
    prompts = [pipe.prompt(asked, **_wishes(args)) for asked in _asked(args)]
    parts = -(-args.samples // _CHUNK)
    size = -(-args.samples // parts)
    settings = {
        name: getattr(args, name) for name in ("temperature", "top_k", "seed") if getattr(args, name) is not None
    }
    drawn = pipe((prompt for prompt in prompts for _ in range(parts)), num_return_sequences=size, **settings)
    rows: list[tuple[Sample, str]] = []
    columns = (TextColumn("sampling"), BarColumn(), MofNCompleteColumn(), TextColumn("crystals"), TimeElapsedColumn())
    with Progress(*columns, console=notes, transient=True) as progress:
        task = progress.add_task("sampling", total=len(prompts) * args.samples)
        for place, samples in enumerate(drawn):
            first = place % parts * size + 1
            kept = samples[: args.samples - first + 1]
            taken = {name for _, name in rows}
            rows += zip(kept, _write(kept, args.output, first, taken, keep_all=args.all), strict=True)
            progress.advance(task, len(kept))
    _print_table(rows, show_files=args.output is not None)
    return 0


def _asked(args: argparse.Namespace) -> list[str | None]:
    formulas: list[str | None] = list(args.formula)
    if args.formulas is not None:
        formulas += [line.strip() for _, line in lines([str(args.formulas)])]
    return formulas or [None]


def _wishes(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of the prompt that were given as options."""
    names = ("formula_units", "elements", "n_atoms", "max_atoms", "space_group", "crystal_system")
    wishes = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if re.fullmatch(r"\d{1,9}", str(wishes.get("space_group", ""))):
        wishes["space_group"] = int(wishes["space_group"])
    return wishes


def _write(
    samples: Sequence[Sample], folder: Path | None, first: int, taken: AbstractSet[str], *, keep_all: bool
) -> list[str]:
    """Write the CIFs of samples and return their names, ``""`` for those that are not written.

    Names in ``taken`` are not used again: two prompts can ask for the same crystals.
    """
    names: list[str] = []
    for index, sample in enumerate(samples, start=first):
        name = ""
        if folder is not None and sample["structure"] is not None and (sample["valid"] or keep_all):
            folder.mkdir(parents=True, exist_ok=True)
            crystal = _crystal(sample["text"])
            name = next(
                n for n in (crystal_file_name(crystal, i, "cif") for i in count(index)) if n not in {*taken, *names}
            )
            (folder / name).write_text(sample["cif"] or "", encoding="utf-8")
        names.append(name)
    return names


def _crystal(text: str) -> CanonicalCrystal:
    from ..canonical import CanonicalCrystal

    return CanonicalCrystal.from_text(text)


def _print_table(rows: Sequence[tuple[Sample, str]], *, show_files: bool) -> None:
    from rich.console import Console
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
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a file has no width to fit into
    console.print(table)
    valid = sum(sample["valid"] for sample, _ in rows)
    console.print(f"{valid} of {len(rows)} valid", highlight=False)
    for row, (sample, _) in enumerate(rows, start=1):
        if not sample["valid"]:
            console.print(f"row {row}: {sample['reason']}", highlight=False, markup=False)
