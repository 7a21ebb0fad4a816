"""Checkpoints of a run: which are complete, and what to do when the disk is full."""

from __future__ import annotations

import json
import logging
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import Mat2SeqError

__all__ = ["guarded_saving", "last_complete_checkpoint", "read_state", "remove_incomplete_checkpoints"]

logger = logging.getLogger(__name__)


def read_state(checkpoint: str | Path) -> dict[str, Any] | None:
    """What ``trainer_state.json`` says; None if the checkpoint is incomplete.

    That file is written last; one that is missing or cut short marks a run that was killed while saving. After a power
    failure others may be cut short, too.
    """
    try:
        state = json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(state, dict) or not isinstance(state.get("global_step"), int):
        return None
    return state if all(map(_is_whole, Path(checkpoint).iterdir())) else None


def _is_whole(path: Path) -> bool:
    """Whether a file of weights or of the optimizer has the end that its beginning announces."""
    if path.suffix == ".pt":
        return zipfile.is_zipfile(path)
    if path.suffix != ".safetensors":
        return True
    try:
        with safe_open(path, "pt"):
            return True
    except (OSError, SafetensorError):
        return False


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
    """Delete what a killed or failed saving left: it is of no use and takes up the room of the next one.

    Only what certainly is no checkpoint: one that cannot be read just now stays.
    """
    for path in Path(folder).glob("checkpoint-*"):
        state = path / "trainer_state.json"
        try:
            unusable = path.is_dir() and (not state.is_file() or not _is_json(state.read_text(encoding="utf-8")))
        except OSError:
            continue
        if unusable:
            shutil.rmtree(path, ignore_errors=True)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


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
