"""The command ``mat2seq``: a parser over the modules of ``commands/``."""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

from .commands import compare, decode, dedup, doctor, encode, evaluate, generate, prepare
from .commands.files import reason
from .errors import Mat2SeqError

__all__ = ["build_parser", "main"]

_COMMANDS = {
    "generate": generate,
    "encode": encode,
    "decode": decode,
    "prepare": prepare,
    "dedup": dedup,
    "evaluate": evaluate,
    "compare": compare,
    "doctor": doctor,
}

_EXAMPLES = """examples:
  mat2seq generate BaTiO3 -n 4 -o out/      four crystals of a formula, as CIFs and as a table
  mat2seq encode quartz.cif POSCAR          canonical text of each file
  mat2seq encode quartz.cif | mat2seq decode -
  mat2seq doctor                            versions, the shipped model, a self test
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line; each command sets ``run``, a function of the parsed arguments."""
    parser = argparse.ArgumentParser(
        prog="mat2seq",
        description="Crystals as unique, complete token sequences, and models that generate them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    parsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in _COMMANDS.items():
        added = parsers.add_parser(
            name,
            help=command.SUMMARY,
            description=f"{command.SUMMARY[0].upper()}{command.SUMMARY[1:]}.",
            epilog=command.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(added)
        added.set_defaults(run=command.run)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"mat2seq-hf {version('mat2seq-hf')}")
        except PackageNotFoundError:
            print("mat2seq-hf, not installed")
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0; 1 if some of several inputs failed; 2 for bad input or wrong usage; 130 if interrupted.
    """
    _never_fail_to_encode()
    args = build_parser().parse_args(arguments)
    try:
        code = int(args.run(args))
        sys.stdout.flush()  # what cannot be written shows here, not as a complaint of the interpreter at its end
    except Mat2SeqError as error:
        print(f"mat2seq: {error}", file=sys.stderr)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and not _is_output_read():  # the reader, such as `head`, has seen enough
            _drop_output()
            return 1
        print(f"mat2seq: {f'{error.filename}: ' if error.filename else ''}{reason(error)}", file=sys.stderr)
        if error.errno == errno.ENOSPC:
            _drop_output()
    except KeyboardInterrupt:
        return 130
    else:
        return code
    return 2


def _is_output_read() -> bool:
    """Whether an end of line can be written: a pipe may have broken that is not standard output."""
    try:
        print(flush=True)
    except OSError:
        return False
    return True


def _never_fail_to_encode() -> None:
    """Write ``?`` for what the code page of a system does not hold, such as Å: results are not to be lost for it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _drop_output() -> None:
    """Nothing more can be written: keep the interpreter from trying at its end."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - closed with the process


if __name__ == "__main__":
    sys.exit(main())
