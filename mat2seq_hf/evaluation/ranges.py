"""Settings are checked when they are made, so that none is quietly taken for something else."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

from ..errors import Mat2SeqError

__all__ = ["check_ranges"]


def check_ranges(
    settings: Any,
    *,
    above_0: Sequence[str] = (),
    from_0: Sequence[str] = (),
    from_1: Sequence[str] = (),
    finite: Sequence[str] = (),
) -> None:
    """Refuse settings out of range, and numbers that are not finite; None passes.

    Args:
        settings: a dataclass.
        above_0, from_0, from_1, finite: names of those that are above 0, 0 or more, 1 or more, any number.

    Raises:
        Mat2SeqError: it names the setting, its value and the range.

    Example:
        >>> check_ranges(CspSettings(), above_0=["stol"], from_1=["processes"])
    """
    ranges = (
        (above_0, "above 0", operator.gt, 0),
        (from_0, "0 or more", operator.ge, 0),
        (from_1, "1 or more", operator.ge, 1),
        (finite, "a finite number", operator.gt, -math.inf),
    )
    for names, words, inside, bound in ranges:
        for name in names:
            value = getattr(settings, name)
            if value is not None and not (inside(value, bound) and math.isfinite(value)):
                raise Mat2SeqError(f"{name} must be {words}, not {value!r}")
