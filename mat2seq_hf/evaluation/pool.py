"""Many small computations over processes, none of which stops the others: errors, timeouts and crashes are results."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from tqdm import tqdm

__all__ = ["Outcome", "run"]

_IN_PROCESS = 40  # fewer tasks than this are not worth starting processes for


@dataclass(frozen=True)
class Outcome:
    """What became of one task.

    Attributes:
        value: what the function returned, None if it did not return.
        kind: ``"ok"``, ``"timeout"``, ``"crash"`` (the process died) or ``"error: ..."``.
    """

    value: Any
    kind: str = "ok"


class _TimeUp(BaseException):
    """Not an Exception, so that no library catches it on the way."""


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Interrupt the block after a time; without effect where there are no alarms (Windows, other threads)."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise _TimeUp

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _attempt(function: Callable[[Any], Any], task: Any, timeout: float) -> Outcome:
    try:
        with _time_limit(timeout):
            return Outcome(function(task))
    except _TimeUp:
        return Outcome(None, "timeout")
    except Exception as error:  # noqa: BLE001 - one bad crystal must not end an evaluation; its cause is kept
        return Outcome(None, f"error: {type(error).__name__}: {error}"[:500])


def _attempt_all(function: Callable[[Any], Any], tasks: Sequence[Any], timeout: float) -> list[Outcome]:
    return [_attempt(function, task, timeout) for task in tasks]


def run(
    function: Callable[[Any], Any],
    tasks: Sequence[Any],
    *,
    processes: int = 1,
    timeout: float = 60.0,
    label: str = "",
    progress: bool = True,
    heavy: bool = False,
    collect: Callable[[int, Outcome], None] | None = None,
) -> list[Outcome]:
    """Apply a function to every task.

    Args:
        function: importable by other processes.
        tasks: its arguments; they and the results are pickled.
        processes: how many at once; the results do not depend on it.
        timeout: seconds for one task.
        label: beside the progress bar.
        progress: show one.
        heavy: tasks of many seconds each, which are worth processes even if they are few.
        collect: called with index and outcome as soon as a task is done, to keep what a killed run has finished.

    Returns:
        one outcome for each task, in their order.
    """
    with tqdm(total=len(tasks), desc=label, disable=not progress, leave=False, delay=1) as bar:

        def report(index: int, outcome: Outcome) -> None:
            bar.update()
            if collect is not None:
                collect(index, outcome)

        if processes == 1 or len(tasks) < (2 if heavy else _IN_PROCESS):
            done = []
            for index, task in enumerate(tasks):
                done.append(_attempt(function, task, timeout))
                report(index, done[-1])
            return done
        size = 1 if heavy else max(1, min(64, len(tasks) // (8 * processes)))
        return _run_in_processes(function, tasks, processes, timeout, size, report)


def _run_in_processes(
    function: Callable[[Any], Any],
    tasks: Sequence[Any],
    processes: int,
    timeout: float,
    size: int,
    report: Callable[[int, Outcome], None],
) -> list[Outcome]:
    chunks = {first: tasks[first : first + size] for first in range(0, len(tasks), size)}
    done: dict[int, list[Outcome]] = {}
    context = multiprocessing.get_context("spawn")  # forking a process that has threads can hang
    try:
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            waiting = {pool.submit(_attempt_all, function, chunk, timeout): first for first, chunk in chunks.items()}
            try:
                for future in as_completed(waiting):
                    first = waiting[future]
                    done[first] = future.result()
                    for place, outcome in enumerate(done[first], start=first):
                        report(place, outcome)
            except BaseException:  # interrupted: do not wait for what has not begun
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except BrokenProcessPool:  # some task killed its process: go on one by one, to learn which
        for first in [first for first in chunks if first not in done]:
            done[first] = []
            for place, outcome in enumerate(_one_by_one(function, chunks[first], timeout), start=first):
                done[first].append(outcome)
                report(place, outcome)
    return [outcome for first in chunks for outcome in done[first]]


def _one_by_one(function: Callable[[Any], Any], tasks: Sequence[Any], timeout: float) -> Iterator[Outcome]:
    """The same in a process of its own, which is replaced whenever a task kills it."""
    count = 0
    while count < len(tasks):
        try:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                while count < len(tasks):
                    outcome = pool.submit(_attempt, function, tasks[count], timeout).result()
                    count += 1
                    yield outcome
        except BrokenProcessPool:
            count += 1
            yield Outcome(None, "crash")
