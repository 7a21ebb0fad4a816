"""Reading what is named on the command line, and naming what is written."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from ..canonical import CanonicalCrystal

__all__ = ["console", "crystal_file_name", "lines", "read", "reason"]


def read(name: str, errors: str = "strict") -> str:
    """Text of a file; ``-`` is standard input. What becomes of bytes that are no UTF-8, see :meth:`bytes.decode`."""
    if name != "-":
        return Path(name).read_text(encoding="utf-8-sig", errors=errors)
    # the encoding of sys.stdin is that of the system
    return io.TextIOWrapper(io.BytesIO(sys.stdin.buffer.read()), encoding="utf-8-sig", errors=errors).read()


def reason(error: Exception) -> str:
    """What went wrong, without the name of the file."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "is not a text file (UTF-8)" if isinstance(error, UnicodeDecodeError) else str(error)


def console(width: int) -> Console:
    """Standard output; what is no terminal, such as a file, has no width to fit into and gets this one."""
    from rich.console import Console

    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=width)


def lines(name: str) -> list[tuple[str, str]]:
    """Place and text of every line of a file that is not empty.

    Raises:
        OSError, UnicodeDecodeError: it cannot be read.
    """
    return [(f"{name}:{number}", line) for number, line in enumerate(read(name).splitlines(), start=1) if line.strip()]


def crystal_file_name(crystal: CanonicalCrystal, index: int, suffix: str) -> str:
    """Formula of the primitive cell, space group, index; the slash of P2_1/c is no part of a file name."""
    formula = "".join(f"{element}{count if count > 1 else ''}" for element, count in crystal.composition.items())
    return f"{formula}_{crystal.space_group.replace('/', '-')}_{index}.{suffix}"
