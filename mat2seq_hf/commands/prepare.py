"""``mat2seq prepare``: encode whole corpora for training."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..corpora.benchmarks import Benchmark
    from ..corpora.prepare import PrepareReport

__all__ = ["EXAMPLES", "SUMMARY", "add_arguments", "run"]

SUMMARY = "encode whole corpora for training"
EXAMPLES = """examples:
  mat2seq prepare mp_20/train.parquet -o prepared/mp_20/train
  mat2seq prepare cifs/ poscars.tar.gz table.csv ase.db -o prepared/mine --num-proc 8
  mat2seq prepare mp_20 --data-dir ../shared/data -o prepared/mp_20      all splits, and what they have in common
  mat2seq prepare data/ --splits -o prepared/mine                        data/train.csv, data/val.csv ...

Beside the shards: rejected.csv (what was set aside, and why), duplicates.parquet, report.json. Killed at any moment,
the same command goes on.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="files, folders and archives of crystals; or the "
        "name of a benchmark corpus (mp_20, mpts_52, perov_5, carbon_24; ./mp_20 is a path)",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where the shards go")
    parser.add_argument("--symprec", type=float, default=0.01, help="symmetry tolerance in angstrom (default: 0.01)")
    parser.add_argument(
        "--on-disorder",
        choices=("error", "set_aside", "order"),
        default="set_aside",
        help="partial occupancy: stop, set aside, or let pymatgen order it (default: set_aside)",
    )
    parser.add_argument(
        "--duplicates",
        choices=("report", "remove"),
        default="report",
        help="list crystals that are there already, or leave them out, too (default: report)",
    )
    parser.add_argument("--splits", action="store_true", help="INPUT is a folder with train, val and test in it")
    parser.add_argument(
        "--against",
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="prepared corpora to compare with: which sequences are in both?",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="FOLDER",
        help="local copies of the benchmark corpora: FOLDER/mp_20/train.parquet or .csv ... (default: download)",
    )
    parser.add_argument("--chunk-size", type=int, default=500, help="crystals a shard (default: 500; millions: 20000)")
    parser.add_argument("--num-proc", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="processor time after which a crystal is set aside (default: 20)"
    )


def _inputs(args: argparse.Namespace, benchmark: Benchmark | None) -> dict[str, list[str]]:
    """Paths by split; the name is empty where there is just one."""
    from ..corpora.benchmarks import find_benchmark
    from ..corpora.load import split_paths

    if benchmark is not None:
        found = find_benchmark(benchmark, args.data_dir)
        for split, path in found.items():
            print(f"{split}: {path}")
        return {split: [str(path)] for split, path in found.items()}
    if not args.splits:
        return {"": args.inputs}
    return split_paths(args.inputs, needed=True, output=args.output)


def _print(name: str, report: PrepareReport, folder: Path) -> None:
    lead = f"{name}: " if name else ""
    removed = f", {report.removed:,} duplicates left out" if report.removed else ""
    listed = f" ({report.duplicates:,} of them repeat an earlier one)" if report.duplicates and not removed else ""
    where = f" (see {folder / 'rejected.csv'})" if report.rejected else ""
    print(
        f"{lead}{report.read:,} crystals read, {report.encoded:,} encoded{listed}{removed}, "
        f"{report.rejected:,} set aside{where}; {report.tokens:,} tokens"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from ..corpora.benchmarks import check_rows, named_benchmark
    from ..corpora.duplicates import leakage
    from ..corpora.encode import EncodeSettings
    from ..corpora.prepare import prepare
    from ..corpora.schema import check_schemes, check_whole, scheme_of
    from ..corpora.sources import named_folders
    from .dedup import print_overlaps

    settings: dict[str, Any] = {
        name: getattr(args, name)
        for name in ("symprec", "on_disorder", "duplicates", "chunk_size", "num_proc", "seconds")
    }
    own = str(EncodeSettings(args.symprec, args.on_disorder).metadata()["scheme"])
    check_whole(args.against)
    check_schemes({"this run": own} | {name: scheme_of(name) for name in args.against})  # not only after hours of work
    source = args.inputs[0] if len(args.inputs) == 1 else ", ".join(args.inputs)
    benchmark = named_benchmark(source, args.data_dir)
    inputs = _inputs(args, benchmark)
    folders = {split: args.output / split if split else args.output for split in inputs}
    compared = named_folders([*folders.values(), *args.against])
    for split, folder in folders.items():
        report = prepare(inputs[split], folder, **settings)
        _print(split, report, folder)
        if benchmark is not None:
            check_rows(benchmark, {split: report.read})
    if len(compared) > 1:
        print_overlaps(leakage(compared))
    return 0
