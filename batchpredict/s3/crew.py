"""Threads for parts of a transfer, or many calls: one waits for them and gets the first error."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable

from batchpredict.signals import check_signals

_TICK = 0.1  # seconds until the one who waits looks at signals again
_PATIENCE = 2.0  # seconds for a part that is under way when all is given up
_CALLERS = 8
_MOST_GIVEN = 64  # calls that are held at a time: there may be a hundred thousand


class Crew:
    """Daemon threads: a process that gives up must not wait for a store that is silent.

    `changed` is notified after every task; hold it to read or write what tasks share.
    `unfinished`: tasks that were given and have not ended.
    """

    def __init__(self, threads: int) -> None:
        self.changed = threading.Condition()
        self.stopped = threading.Event()
        self.unfinished = 0
        self._tasks: deque[Callable[[], object]] = deque()
        self._error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._work, name="s3", daemon=True) for _ in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self._tasks or self.stopped.is_set())
                if self.stopped.is_set():
                    return
                task = self._tasks.popleft()
            try:
                task()
            except BaseException as error:  # noqa: BLE001 - raised by `wait`
                with self.changed:
                    self._error = self._error or error
                    self._tasks.clear()
            del task  # it may hold a part
            with self.changed:
                self.unfinished -= 1
                self.changed.notify_all()

    def give(self, task: Callable[[], object]) -> None:
        with self.changed:
            self._tasks.append(task)
            self.unfinished += 1
            self.changed.notify_all()

    def wait(self, until: Callable[[], bool], most: float | None = None) -> None:
        """Return when `until()`, called with `changed` held, or after `most` seconds.

        Raises the first error of a task, and what a signal has asked for.
        """
        left = most
        while True:
            check_signals()
            with self.changed:
                if self._error:
                    raise self._error
                if until() or (left is not None and left <= 0):
                    return
                self.changed.wait(_TICK)
            if left is not None:
                left -= _TICK

    def stop(self) -> None:
        """Begin no more tasks; wait a little for those under way."""
        with self.changed:
            self.stopped.set()
            self._tasks.clear()
            self.changed.notify_all()
        for thread in self._threads:
            thread.join(_PATIENCE / len(self._threads))


def call_all(calls: Iterable[Callable[[], object]]) -> None:
    """Make calls, several at a time, in no order.

    Raises the first error and begins no more then; those under way may still take effect.
    """
    crew = Crew(_CALLERS)
    try:
        for call in calls:
            crew.wait(lambda: crew.unfinished < _MOST_GIVEN)
            crew.give(call)
        crew.wait(lambda: not crew.unfinished)
    finally:
        crew.stop()
