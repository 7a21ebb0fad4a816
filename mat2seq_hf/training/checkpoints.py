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

__all__ = [
    "IDENTITY",
    "KEEPS_BEST",
    "best_checkpoint",
    "can_resume",
    "guarded_saving",
    "holds_a_run",
    "last_complete_checkpoint",
    "later_results",
    "read_state",
    "remove_incomplete_checkpoints",
    "weights_folder",
]

logger = logging.getLogger(__name__)

#: File in the folder of a run that says what it was begun with, and its entry: does it end with the best checkpoint?
IDENTITY, KEEPS_BEST = "run_identity.json", "load_best_model_at_end"
_WEIGHTS = ("model*.safetensors", "pytorch_model*")  # the second: spread over processes by FSDP
#: What exact resuming needs beside weights; all are left out with ``save_only_model``.
_POSITION = ("optimizer*", "scheduler.pt", "rng_state*.pth")


def read_state(checkpoint: str | Path) -> dict[str, Any] | None:
    """What ``trainer_state.json`` says; None if the checkpoint is incomplete.

    That file is written last; one that is missing or cut short marks a run that was killed while saving. After a power
    failure others may be cut short or missing, too.
    """
    folder = Path(checkpoint)
    position = [any(folder.glob(pattern)) for pattern in _POSITION]
    if any(position) and not all(position):
        return None
    return _state_of(folder)


def can_resume(checkpoint: str | Path) -> bool:
    """Whether optimizer, schedule and random numbers lie beside the weights; without them warm-up would begin anew."""
    return all(any(Path(checkpoint).glob(pattern)) for pattern in _POSITION)


def holds_a_run(folder: str | Path) -> bool:
    """Whether a folder holds what the end of a run leaves in it: weights or a record."""
    return any(any(Path(folder).glob(pattern)) for pattern in (*_WEIGHTS, "run_record.json"))


def _state_of(folder: Path) -> dict[str, Any] | None:
    """The state that lies beside weights; None where either is missing, or a file is cut short."""
    try:
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(state, dict) or not isinstance(state.get("global_step"), int):
        return None
    if not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
        return None
    return state if all(map(_is_whole, folder.iterdir())) else None


def _is_whole(path: Path) -> bool:
    """Whether a file of weights, of the optimizer or of random numbers has the end that its beginning announces."""
    if path.suffix in {".pt", ".pth", ".bin"}:
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


def later_results(folder: str | Path, step: int) -> list[Path]:
    """What a run has left in its folder after an optimizer step: complete checkpoints, and the files of its end.

    Example:
        >>> later_results("runs/mp_20_tiny", 1000)  # doctest: +SKIP
        [PosixPath('runs/mp_20_tiny/checkpoint-1200'), PosixPath('runs/mp_20_tiny/run_record.json')]
    """
    place = Path(folder)
    states = {path: read_state(path) for path in place.glob("checkpoint-*")}
    steps = {path: int(state["global_step"]) for path, state in states.items() if state is not None}
    later = sorted((number, path) for path, number in steps.items() if number > step)
    ends = (("trainer_state.json", "global_step"), ("run_record.json", "steps"))
    return [path for _, path in later] + [place / name for name, key in ends if _number(place / name, key) > step]


def _number(path: Path, key: str) -> int:
    """A whole number of a JSON file, or -1 where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, TypeError, KeyError):
        return -1
    return found if isinstance(found, int) else -1


def best_checkpoint(checkpoint: str | Path) -> Path:
    """The best checkpoint of a run when this one was written, or this one where that is not there any more."""
    named = (read_state(checkpoint) or {}).get("best_model_checkpoint")
    best = Path(checkpoint).parent / Path(named or checkpoint).name  # beside it, wherever the run lies now
    return best if read_state(best) is not None else Path(checkpoint)


def weights_folder(run: str | Path) -> Path:
    """Where the weights of a run are: in its folder once it has ended, until then where it would take them from.

    That is its best checkpoint, or the last one if it was started with ``load_best_model_at_end`` off. (Runs of earlier
    versions do not say; the best one is taken.)

    Raises:
        Mat2SeqError: there are none yet.
    """
    folder = Path(run)
    last = last_complete_checkpoint(folder)
    if last is None:
        if not (folder / "config.json").is_file():
            raise Mat2SeqError(f"{folder} holds neither a model nor a complete checkpoint: train first")
        return folder
    ended, saved = _state_of(folder), read_state(last)
    assert saved is not None  # it is complete
    if ended is not None and ended["global_step"] >= saved["global_step"]:
        return folder
    return best_checkpoint(last) if _keeps_best(folder) else Path(last)


def _keeps_best(folder: Path) -> bool:
    try:
        return json.loads((folder / IDENTITY).read_text(encoding="utf-8"))[KEEPS_BEST] is not False
    except (OSError, ValueError, TypeError, KeyError):
        return True


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
