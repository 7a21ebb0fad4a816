"""``mat2seq prepare``: encode whole corpora for training."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

__all__ = ["EXAMPLES", "SUMMARY", "add_arguments", "run"]

SUMMARY = "encode whole corpora for training"
EXAMPLES = """examples:
  mat2seq prepare mp_20/train.parquet -o prepared/mp_20/train
  mat2seq prepare folder_of_cifs/ -o prepared/mine --num-proc 8
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="files and folders of crystals")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where the shards go")
    parser.add_argument("--symprec", type=float, default=0.01, help="symmetry tolerance in angstrom (default: 0.01)")
    parser.add_argument("--num-proc", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from ..corpora.prepare import prepare

    print(prepare(args.inputs, args.output, symprec=args.symprec, num_proc=args.num_proc))
    return 0
