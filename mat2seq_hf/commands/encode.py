"""``mat2seq encode``: canonical text of crystals."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from ..errors import Mat2SeqError
from .files import read, reason

__all__ = ["EXAMPLES", "SUMMARY", "add_arguments", "run"]

SUMMARY = "canonical text of crystals"
EXAMPLES = """examples:
  mat2seq encode *.cif > texts.txt
  mat2seq encode POSCAR --symprec 0.1
  mat2seq encode cifs/ more.zip table.csv       each crystal in them, in the order of names
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "files", nargs="+", metavar="PATH", help="files, folders and archives of crystals; - reads standard input"
    )
    parser.add_argument("--symprec", type=float, default=0.01, help="symmetry tolerance in angstrom (default: 0.01)")


def _crystals(name: str) -> Iterator[tuple[str, str, str]]:
    """Place, text and what is wrong (or nothing) of every crystal of a path; a file of unknown kind is read as text."""
    from ..corpora.formats import reader_of
    from ..corpora.sources import list_units, unit_rows

    path = Path(name)
    if name == "-" or (path.is_file() and reader_of(name) in (None, reader_of("x.cif"), reader_of("x.vasp"))):
        if not path.name.lower().endswith((".db", ".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz")):
            yield from ((name + tail, text, "") for tail, text in _blocks(read(name, errors="replace")))
            return
    elif not path.exists():
        read(name)  # says what is wrong as the system does
    for unit in list_units([path]):
        for row in unit_rows(unit):
            yield row.source if path.is_dir() else f"{name}{row.source.removeprefix(path.name)}", row.text, row.problem


def _blocks(text: str) -> list[tuple[str, str]]:
    from ..corpora.formats import cif_blocks

    return [(f":{name}" if name else "", block) for name, block in cif_blocks(text)]


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from ..canonical import canonicalize
    from ..corpora.texts import crystal_of

    failures = 0
    for name in args.files:
        empty = True
        try:
            for place, text, problem in _crystals(name):
                empty = False
                try:
                    line = "" if problem else canonicalize(crystal_of(text), args.symprec).text
                except Mat2SeqError as error:
                    line, problem = "", str(error)  # noqa: PLW2901 - what was wrong from the start, or is now
                if line:
                    print(line)
                else:
                    failures += 1
                    print(f"{place}: {problem}", file=sys.stderr)
            if empty:
                raise Mat2SeqError("holds no crystals")  # noqa: TRY301 - said as what else is wrong with a path
        except BrokenPipeError:
            raise
        except (Mat2SeqError, OSError, UnicodeDecodeError) as error:
            failures += 1
            print(f"{name}: {reason(error)}", file=sys.stderr)
    return 1 if failures else 0
