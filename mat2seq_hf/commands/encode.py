"""``mat2seq encode``: canonical text of crystal files."""

from __future__ import annotations

import argparse
import sys

from ..errors import Mat2SeqError
from .files import read, reason

__all__ = ["EXAMPLES", "SUMMARY", "add_arguments", "run"]

SUMMARY = "canonical text of crystal files"
EXAMPLES = """examples:
  mat2seq encode *.cif > texts.txt
  mat2seq encode POSCAR --symprec 0.1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="CIF or POSCAR files; - reads standard input")
    parser.add_argument("--symprec", type=float, default=0.01, help="symmetry tolerance in angstrom (default: 0.01)")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from ..canonical import canonicalize

    failures = 0
    for name in args.files:
        try:
            print(canonicalize(read(name), args.symprec).text)
        except BrokenPipeError:
            raise
        except (Mat2SeqError, OSError, UnicodeDecodeError) as error:
            failures += 1
            print(f"{name}: {reason(error)}", file=sys.stderr)
    return 1 if failures else 0
