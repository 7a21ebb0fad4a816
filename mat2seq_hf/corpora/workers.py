"""Work in processes that may hang or crash: the row that did it is named, and the work goes on without it."""

from __future__ import annotations

import math
import multiprocessing
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

from ..errors import Mat2SeqError

__all__ = ["Worker"]

# The wall clock gets this many times the processor time: on a busy machine the two differ, and a row that does
# neither compute nor end is rare.
_PATIENCE = 10
_START_SECONDS = 120.0

_STOPPED = "the run was stopped; what is finished is kept"


class Worker:
    """A process that runs ``function(*arguments, doomed, begin)``, again and again.

    ``function`` calls ``begin(index)`` before each row that could hang or crash, and leaves out the rows in ``doomed``
    (index: reason). A row that takes more than ``seconds`` of processor time, or kills the process twice, is doomed,
    and the function is called again in a new process. So the function must be repeatable. It calls ``begin(-1)`` before
    it writes, which raises ``ConnectionError`` if the process that started this one has ended.

    Args:
        function: importable by name; its arguments and its result are pickled.
        seconds: processor time of a row.

    Example:
        >>> worker = Worker(encode, 20)  # doctest: +SKIP
        >>> worker.run(rows)  # doctest: +SKIP
    """

    def __init__(self, function: Callable[..., Any], seconds: float) -> None:
        self._function = function
        self._seconds = seconds
        self._process: Any = None
        self._connection: Connection | None = None
        self._stopped = False
        self._changing = threading.RLock()  # stop() comes from another thread, also while a process is being started

    def run(self, *arguments: Any, on_row: Callable[[], None] | None = None) -> Any:
        """The function's result.

        Args:
            arguments: of the function, without the last two.
            on_row: called whenever the function begins a row it has not begun before.

        Raises:
            Mat2SeqError: raised by the function, as anything unexpected in it is; the process dies without having begun
                a row; or the worker has been stopped.
            OSError: raised by the function.
        """
        doomed: dict[int, str] = {}
        deaths: Counter[int] = Counter()
        furthest = -1
        while True:
            process, connection = self._start()
            with suppress(OSError):  # a process that dies before it has them all: what is received says so
                connection.send((arguments, doomed))
            row = -1
            while True:
                kind, content = self._receive(process, connection)
                if kind != "begin":
                    break
                row = content
                if row > furthest:
                    furthest = row
                    if on_row is not None:
                        on_row()
            if kind == "result":
                return content
            if kind == "error":
                raise content
            if self._stopped:
                raise Mat2SeqError(_STOPPED)
            deaths[row] += 1
            if row >= 0 and (kind == "slow" or deaths[row] > 1):
                doomed[row] = content
            elif deaths[row] > 2:
                raise Mat2SeqError(
                    f"a worker process {content}, probably for lack of memory; start again with fewer processes: what "
                    "is finished is kept"
                )

    def close(self) -> None:
        """End the process."""
        with self._changing:
            if self._process is not None:
                assert self._connection is not None  # the two are made together
                self._connection.close()
                self._process.kill()
                self._process.join()
                self._process = self._connection = None

    def stop(self) -> None:
        """End the process, and the call of :meth:`run` that is waiting for it in another thread."""
        self._stopped = True
        self.close()

    def _start(self) -> tuple[Any, Connection]:
        """The process, a new one where there is none that lives, and the connection to it.

        Raises:
            Mat2SeqError: the worker has been stopped.
        """
        with self._changing:
            if self._stopped:
                raise Mat2SeqError(_STOPPED)
            if self._process is None or not self._process.is_alive():
                self.close()
                self._process, self._connection = self._started()
            assert self._connection is not None  # the two are made together
            return self._process, self._connection

    def _started(self) -> tuple[Any, Connection]:
        # Not fork: a copy of a process that has threads can hang. The server of "forkserver" imports once for all.
        context: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
        if sys.platform != "win32":
            context.set_forkserver_preload([self._function.__module__])
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._function, self._seconds), daemon=True)
        with _main_hidden():
            process.start()
        theirs.close()
        return process, ours

    def _receive(self, process: Any, connection: Connection) -> tuple[str, Any]:
        """What the process says next; "slow" or "dead" with a reason where it can say nothing more."""
        try:
            if connection.poll(max(_START_SECONDS, _PATIENCE * self._seconds)):
                kind, content = connection.recv()
                return kind, content
        except (EOFError, OSError):  # OSError: closed by stop()
            process.join()
            code = process.exitcode
            self.close()
            if code == -getattr(signal, "SIGXCPU", 0):
                return "slow", f"took more than {self._seconds:g} s of processor time"
            return "dead", f"died with {signal.Signals(-code).name if code and code < 0 else f'exit code {code}'}"
        self.close()
        return "slow", f"gave no answer within {_PATIENCE * self._seconds:g} s"


_STARTING = threading.Lock()


@contextmanager
def _main_hidden() -> Iterator[None]:
    """Keep a new process from importing the user's script, which costs time and, without a guard, would start anew."""
    with _STARTING:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _allow(seconds: float | None) -> None:
    """Let the kernel end this process after further ``seconds`` of processor time (None: never)."""
    try:
        import resource
    except ImportError:  # Windows: the wall clock alone limits a row
        return
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = hard if seconds is None else math.ceil(time.process_time() + seconds)
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _quiet() -> None:
    """Leave Ctrl-C to the parent, and no core file where a library crashes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _serve(connection: Connection, function: Callable[..., Any], seconds: float) -> None:
    _quiet()

    def begin(index: int) -> None:
        _allow(seconds if index >= 0 else None)
        connection.send(("begin", index))

    while True:
        try:
            arguments, doomed = connection.recv()
        except (EOFError, ConnectionError):  # the parent has ended, or has no more work
            return
        try:
            answer = ("result", function(*arguments, doomed, begin))
        except (Mat2SeqError, OSError) as error:  # bad input, a full disk
            answer = ("error", error)
        except Exception as error:  # noqa: BLE001 - no fault of a row; not every type can be pickled
            answer = ("error", Mat2SeqError(f"unexpected {type(error).__name__}: {error}; what is finished is kept"))
        _allow(None)
        try:
            connection.send(answer)
        except ConnectionError:
            return
