"""Functions of other packages by name: ``"module:function"``."""

from __future__ import annotations

from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any

from ..errors import Mat2SeqError

__all__ = ["load_function"]


def load_function(name: str, *, kind: str, others: str) -> Callable[..., Any]:
    """What ``"module:function"`` names.

    Args:
        name: module and function.
        kind: what it is to be, for the error.
        others: what else could have been named, for the error.

    Raises:
        Mat2SeqError: it cannot be found or is not callable.

    Example:
        >>> load_function("math:sqrt", kind="method", others="'cif'")(4)
        2.0
    """
    try:
        found: Any = resolve_name(name if ":" in name else f"{name}:")  # without a colon it takes other spellings
    except (ImportError, AttributeError, ValueError) as error:
        raise Mat2SeqError(
            f"the {kind} {name!r} cannot be found ({error}); write 'module:function' or {others}"
        ) from error
    if not callable(found):
        raise Mat2SeqError(f"the {kind} {name!r} is not callable")
    function: Callable[..., Any] = found
    return function
