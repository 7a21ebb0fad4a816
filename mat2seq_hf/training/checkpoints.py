"""Checkpoints of a run: which are complete, and what to do when the disk is full."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..errors import Mat2SeqError

__all__ = ["guarded_saving", "last_complete_checkpoint", "read_state", "remove_incomplete_checkpoints"]

logger = logging.getLogger(__name__)


def read_state(checkpoint: str | Path) -> dict[str, Any] | None:
    """What ``trainer_state.json`` says; None if the checkpoint is incomplete.

    That file is written last; one that is missing or cut short marks a run that was killed while saving.
    """
    try:
        state = json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) and isinstance(state.get("global_step"), int) else None


def last_complete_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint that was written to its end, or None.

    Example:
        >>> last_complete_checkpoint("runs/mp_20_tiny")  # doctest: +SKIP
        'runs/mp_20_tiny/checkpoint-1200'
    """
    found = []
    for path in Path(folder).glob("checkpoint-*"):
        if (state := read_state(path)) is None:
            logger.warning("%s is incomplete and is passed over", path)
        else:
            found.append((int(state["global_step"]), path))
    return str(max(found)[1]) if found else None


def remove_incomplete_checkpoints(folder: str | Path) -> None:
    """Delete what a killed or failed saving left: it is of no use and takes up the room of the next one."""
    for path in Path(folder).glob("checkpoint-*"):
        if path.is_dir() and read_state(path) is None:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def guarded_saving(folder: str | Path) -> Iterator[None]:
    """Turn a failure to write into a plain message; the incomplete checkpoint goes, earlier ones stay.

    Raises:
        Mat2SeqError: from inside the block, where a file could not be written (a full disk, a quota).
    """
    try:
        yield
    # torch reports a short write as a RuntimeError
    except (OSError, RuntimeError, SafetensorError) as error:
        remove_incomplete_checkpoints(folder)
        last = last_complete_checkpoint(folder)
        free = shutil.disk_usage(folder).free / 1e6 if Path(folder).is_dir() else 0.0
        raise Mat2SeqError(
            f"a checkpoint could not be written to {folder} ({free:.0f} MB are free): {error}. "
            f"{f'{last} is complete' if last else 'No checkpoint is complete yet'}: make room and start the same "
            "command again with --resume_from_checkpoint auto"
        ) from error
