"""Stages that run side by side: threads, bounded queues, callers of the session, stage times."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from batchpredict.run.receipt import Batches
from batchpredict.signals import check_signals

T = TypeVar("T")

# How often a stage that waits looks whether it shall stop.
_POLL_SECONDS = 0.1
_JOIN_SECONDS = 1.0


@dataclass
class StageTimes:
    """Seconds each stage worked, summed over its threads; waiting is not counted.

    `cpu_seconds`: of them, those the stage's own threads had a core. `first_row_seconds`: from
    the start of this process to the end of the first batch; None before it. `batches`: those that
    were planned so far.
    """

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    cpu_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    first_row_seconds: float | None = None
    batches: Batches = field(default_factory=Batches)
    _begin: float = field(default_factory=time.perf_counter)
    _begin_cpu: float = field(default_factory=time.process_time)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def elapsed(self) -> float:
        """Seconds since this was made."""
        return time.perf_counter() - self._begin

    def elapsed_cpu(self) -> float:
        """CPU seconds of the whole process since this was made."""
        return time.process_time() - self._begin_cpu

    def mark_row(self) -> None:
        """Told after each batch; the first one counts."""
        if self.first_row_seconds is None:
            self.first_row_seconds = time.clock_gettime(time.CLOCK_BOOTTIME) - _process_start()

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to `stage`."""
        begin, cpu = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            elapsed, used = time.perf_counter() - begin, time.thread_time() - cpu
            with self._lock:
                self.seconds[stage] += elapsed
                self.cpu_seconds[stage] += used

    def each(self, stage: str, items: Iterator[T]) -> Generator[T]:
        """`items`, the time it takes to get each added to `stage`."""
        while True:
            with self.measure(stage):
                item = next(items, _END)
            if isinstance(item, _End):
                return
            yield item


def _process_start() -> float:
    """Of this process, in seconds of CLOCK_BOOTTIME (proc(5): starttime, in clock ticks)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


class Callers:
    """Threads that work off batches in the order they are handed in."""

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, "caller")
        self._open: set[Future[Any]] = set()
        self._lock = threading.Lock()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Have a thread do it."""
        future = self._pool.submit(work)
        with self._lock:
            self._open.add(future)
        future.add_done_callback(self._close)
        return future

    def _close(self, future: Future[Any]) -> None:
        with self._lock:
            self._open.discard(future)

    @staticmethod
    def result(future: Future[T]) -> T:
        """What the work has given, once it is done; raises what it has raised, or a signal."""
        while not future.done():
            wait([future], _POLL_SECONDS)
            check_signals()
        return future.result()

    def stop(self, patience: float) -> None:
        """Begin no more work, and wait so many seconds for what was begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            begun = list(self._open)
        wait(begun, patience)


class _End:
    """No more items."""


_END = _End()


@dataclass(frozen=True)
class _Failure:
    error: BaseException


def _next(items: queue.Queue[T]) -> T:
    """The next one, when it comes; raises what a signal has asked for."""
    while True:
        with suppress(queue.Empty):
            return items.get(timeout=_POLL_SECONDS)
        check_signals()


def ahead(items: Iterator[T], depth: int, name: str) -> Generator[T]:
    """`items`, made by a thread of their own at most `depth` ahead of the consumer.

    An exception in `items` reaches the consumer with its traceback, in its turn. When the
    consumer closes this generator the thread stops after the item it is at.
    """
    done: queue.Queue[T | _End | _Failure] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: T | _End | _Failure) -> bool:
        while not stopped.is_set():
            try:
                done.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        last: _End | _Failure = _END
        try:
            for item in items:
                if not put(item):
                    break
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, not swallowed
            last = _Failure(error)
        finally:
            if isinstance(items, Generator):
                items.close()
        put(last)

    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    try:
        while not isinstance(item := _next(done), _End):
            if isinstance(item, _Failure):
                raise item.error
            yield item
    finally:
        stopped.set()
        # A thread that waits for a pipe's next byte does not end; it is a daemon.
        thread.join(timeout=_JOIN_SECONDS)
