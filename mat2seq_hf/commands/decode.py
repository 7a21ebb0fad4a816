"""``mat2seq decode``: crystal files from canonical texts."""

from __future__ import annotations

import argparse
import sys
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Mat2SeqError
from .files import crystal_file_name, lines, reason

if TYPE_CHECKING:
    from ..canonical import CanonicalCrystal

__all__ = ["EXAMPLES", "SUMMARY", "add_arguments", "run"]

SUMMARY = "crystal files from canonical texts"
EXAMPLES = """examples:
  mat2seq decode texts.txt -o out/
  echo 'Na1 Cl1 [Fm-3m] 5.6402 5.6402 5.6402 90 90 90 Na 4a 0 0 0 Cl 4b 1/2 1/2 1/2' | mat2seq decode --format poscar
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("files", nargs="*", default=["-"], metavar="FILE", help="one text a line; -: standard input")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="write files (default: standard output)")
    parser.add_argument("--format", choices=("cif", "poscar"), default="cif", help="file format (default: cif)")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from ..canonical import CanonicalCrystal

    failures, numbers = 0, count(1)
    for name in args.files:
        try:
            texts = lines(name)
        except (OSError, UnicodeDecodeError) as error:
            failures += 1
            print(f"{name}: {reason(error)}", file=sys.stderr)
            continue
        for (place, line), index in zip(texts, numbers, strict=False):
            try:
                crystal = CanonicalCrystal.from_text(line)
                content = _content(crystal, args.format)
            except Mat2SeqError as error:
                failures += 1
                print(f"{place}: {error}", file=sys.stderr)
                continue
            if args.output is None:
                print(content.rstrip("\n"))
            else:
                args.output.mkdir(parents=True, exist_ok=True)
                path = args.output / crystal_file_name(crystal, index, "cif" if args.format == "cif" else "vasp")
                path.write_text(content, encoding="utf-8")
                print(path)
    return 1 if failures else 0


def _content(crystal: CanonicalCrystal, file_format: str) -> str:
    if file_format == "cif":
        from ..cif import cif_text

        return cif_text(crystal)
    from pymatgen.io.vasp import Poscar

    return str(Poscar(crystal.to_structure()).get_str(significant_figures=10))
