"""Many small computations over processes, none of which stops the others: errors, timeouts and crashes are results."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from queue import SimpleQueue
from types import FrameType
from typing import Any

from tqdm import tqdm

from ..corpora.workers import Worker

__all__ = ["Outcome", "Pool", "attempt_all", "options", "run"]

_IN_PROCESS = 40  # fewer tasks than this are not worth starting processes for


def options(settings: Any) -> dict[str, Any]:
    """What the settings of a task say about a :func:`run`: ``processes``, ``timeout`` and ``progress``."""
    return {name: getattr(settings, name) for name in ("processes", "timeout", "progress")}


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


def _attempt(function: Callable[[Any], Any], task: Any, timeout: float | None) -> Outcome:
    try:
        with nullcontext() if timeout is None else _time_limit(timeout):
            return Outcome(function(task))
    except _TimeUp:
        return Outcome(None, "timeout")
    except Exception as error:  # noqa: BLE001 - one bad crystal must not end an evaluation; its cause is kept
        return Outcome(None, f"error: {type(error).__name__}: {error}"[:500])


def attempt_all(
    function: Callable[[Any], Any], tasks: Sequence[Any], doomed: Mapping[int, str], begin: Callable[[int], None]
) -> list[Outcome]:
    """Outcomes of a chunk in a :class:`~mat2seq_hf.corpora.workers.Worker`; ``doomed`` tasks hung or killed it."""
    outcomes = []
    for index, task in enumerate(tasks):
        if index in doomed:
            outcomes.append(Outcome(None, "crash" if doomed[index].startswith("died") else "timeout"))
        else:
            begin(index)
            outcomes.append(_attempt(function, task, None))
    return outcomes


class Pool:
    """Processes that are kept from one :meth:`run` to the next, for work that comes in rounds.

    Args:
        processes: how many at once; the results do not depend on it.
        timeout: seconds for one task: of processor time in a worker, which is killed if it takes more. A few quick
            tasks run in this process, where the wall clock counts and an alarm ends them (as soon as they are in Python
            code).
    """

    def __init__(self, *, processes: int = 1, timeout: float = 60.0) -> None:
        self._timeout = timeout
        self._workers = [Worker(attempt_all, timeout) for _ in range(processes)]  # they start when they get work

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.close()

    def run(
        self,
        function: Callable[[Any], Any],
        tasks: Sequence[Any],
        *,
        label: str = "",
        progress: bool = True,
        heavy: bool = False,
        collect: Callable[[int, Outcome], None] | None = None,
    ) -> list[Outcome]:
        """Apply a function to every task; see :func:`run`."""
        with tqdm(total=len(tasks), desc=label, disable=not progress, leave=False, delay=1) as bar:

            def report(index: int, outcome: Outcome) -> None:
                bar.update()
                if collect is not None:
                    collect(index, outcome)

            if len(tasks) < (2 if heavy else _IN_PROCESS):
                done = []
                for index, task in enumerate(tasks):
                    done.append(_attempt(function, task, self._timeout))
                    report(index, done[-1])
                return done
            size = 1 if heavy else max(1, min(64, len(tasks) // (8 * len(self._workers))))
            return self._spread(function, tasks, size, report)

    def _spread(
        self,
        function: Callable[[Any], Any],
        tasks: Sequence[Any],
        size: int,
        report: Callable[[int, Outcome], None],
    ) -> list[Outcome]:
        """Deal out the tasks to the processes, ``size`` of them at once."""
        chunks = {first: tasks[first : first + size] for first in range(0, len(tasks), size)}
        idle: SimpleQueue[Worker] = SimpleQueue()
        for worker in self._workers[: len(chunks)]:
            idle.put(worker)

        def work(first: int) -> list[Outcome]:
            worker = idle.get()
            try:
                outcomes: list[Outcome] = worker.run(function, chunks[first])
                return outcomes
            finally:
                idle.put(worker)

        done: dict[int, list[Outcome]] = {}
        with ThreadPoolExecutor(idle.qsize()) as pool:
            waiting = {pool.submit(work, first): first for first in chunks}
            try:
                for future in as_completed(waiting):
                    first = waiting[future]
                    done[first] = future.result()
                    for place, outcome in enumerate(done[first], start=first):
                        report(place, outcome)
            except BaseException:  # interrupted: do not wait for what has not begun
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in self._workers:
                    worker.stop()
                raise
        return [outcome for first in chunks for outcome in done[first]]


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
        processes, timeout: see :class:`Pool`.
        label: beside the progress bar.
        progress: show one.
        heavy: tasks of many seconds each, which are worth processes even if they are few.
        collect: called with index and outcome as soon as a task is done, to keep what a killed run has finished.

    Returns:
        one outcome for each task, in their order.
    """
    with closing(Pool(processes=processes, timeout=timeout)) as pool:
        return pool.run(function, tasks, label=label, progress=progress, heavy=heavy, collect=collect)
