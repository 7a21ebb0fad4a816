"""``mat2seq dedup``: find crystals that are there more than once."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Mat2SeqError

if TYPE_CHECKING:
    from ..corpora.duplicates import Overlap

__all__ = ["EXAMPLES", "SUMMARY", "add_arguments", "print_overlaps", "run"]

SUMMARY = "find crystals that are there more than once"
EXAMPLES = """examples:
  mat2seq dedup cifs/ more.zip table.csv -o deduplicated/    duplicates.csv and unique.csv
  mat2seq dedup cifs/ --near 0.1                             near-duplicates, too: within 0.1 angstrom
  mat2seq dedup prepared/mp_20/train                         of crystals that are prepared already
  mat2seq dedup prepared/mp_20/train prepared/mp_20/test     what prepared splits have in common

Two crystals are the same if their canonical sequences are: cell, origin, orientation, order of atoms and supercell
make no difference, mirror images do. Each crystal is looked at once, so the time grows with their number.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="PATH",
        help="files, folders and archives of crystals, or folders that `mat2seq prepare` wrote",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="write duplicates.csv and unique.csv there")
    parser.add_argument(
        "--near",
        type=float,
        metavar="ANGSTROM",
        help="join near-duplicates: same formula, space "
        "group and Wyckoff positions, lattice and coordinates within this tolerance",
    )
    parser.add_argument(
        "--symprec",
        type=float,
        help="symmetry tolerance in angstrom (default: 0.01; with --near the same as that, at most 0.2)",
    )
    parser.add_argument("--num-proc", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument("--show", type=int, default=5, metavar="N", help="groups to print (default: 5)")


def print_overlaps(overlaps: list[Overlap]) -> None:
    """Print what prepared corpora have in common, as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("first", "second", title="shared canonical sequences")
    for name in ("sequences", "crystals of the first", "crystals of the second"):
        table.add_column(name, justify="right")
    for pair in overlaps:
        numbers = (pair.sequences, pair.rows_of_first, pair.rows_of_second)
        table.add_row(pair.first, pair.second, *(f"{number:,}" for number in numbers))
    Console().print(table)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from ..corpora.dedup import dedup
    from ..corpora.duplicates import leakage
    from ..corpora.schema import is_prepared
    from ..corpora.sources import named_folders

    if args.show < 0 or args.num_proc < 1:
        raise Mat2SeqError(f"--show is at least 0 and --num-proc at least 1, not {args.show} and {args.num_proc}")
    prepared = list(map(is_prepared, args.inputs))
    if len(args.inputs) > 1 and all(prepared):
        if args.output is not None or args.near is not None or args.symprec is not None:
            raise Mat2SeqError(
                "several prepared folders are compared as they are, without --output, --near and --symprec; give one "
                "of them alone, or the files they were prepared from"
            )
        print_overlaps(leakage(named_folders(args.inputs)))
        return 0
    # crystals that differ by the tolerance show the same symmetry only if the search allows for as much
    settings: dict[str, Any] = {} if args.symprec is None else {"symprec": args.symprec}
    if not any(prepared):
        settings = {"symprec": min(max(args.near or 0.0, 0.01), 0.2), "num_proc": args.num_proc} | settings
    found = dedup(args.inputs, args.output, near=args.near, **settings)
    print(
        f"{found.read:,} crystals: {found.distinct:,} distinct, {found.duplicates:,} duplicates in "
        f"{len(found.groups):,} groups, {found.rejected:,} set aside"
    )
    for group in found.groups[: args.show]:
        print(f"  {len(group)} times: {', '.join(group[:6])}{' ...' if len(group) > 6 else ''}")
    if args.output is not None:
        print(f"written: {args.output / 'duplicates.csv'}, {args.output / 'unique.csv'}")
    return 0
