"""Words for reference crystals that cannot be read where each of them is a task of its own, so that none is a miss."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["none_readable", "note_of_unreadable"]

_SHOWN = 10


def none_readable(reasons: Mapping[str, str]) -> str:
    """Why an evaluation is refused.

    Args:
        reasons: why each crystal cannot be read, by id.
    """
    first = next((f"; the first, {name}: {reason}" for name, reason in reasons.items()), "")
    return f"none of the {len(reasons)} reference crystals can be read{first}"


def note_of_unreadable(reasons: Mapping[str, str]) -> list[str]:
    """A sentence for the report that names the crystals, ten at most; no sentence if there are none.

    Args:
        reasons: why each crystal cannot be read, by id.
    """
    if not reasons:
        return []
    names = list(reasons)
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return [f"Crystals that cannot be read are left out: {shown} (the first: {reasons[names[0]]})."]
