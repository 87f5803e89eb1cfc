"""SIGTERM and SIGINT end the process in order within seconds, a second one at once."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from batchpredict.errors import Terminated

# An orderly end takes no longer; a supervisor kills after 10 s or more.
_MOST_SECONDS = 4.5

# Signals are the process's, and so is this: the exception a signal has asked for and that is not
# raised yet, how many `deferred` there are, and whether another signal is the watcher's business.
_asked: list[BaseException] = []
_deferred = [0]
_watched = threading.Event()


def raise_on_signals() -> None:
    """Have SIGTERM raise Terminated in the main thread, as SIGINT raises KeyboardInterrupt."""
    _asked.clear()
    signal.signal(signal.SIGTERM, _handle)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
        signal.signal(signal.SIGINT, _handle)


def _handle(signum: int, frame: Any) -> None:  # noqa: ARG001
    first = not _asked
    error = KeyboardInterrupt() if signum == signal.SIGINT else Terminated("terminated")
    if first:
        _asked.append(error)
    if (first or not _watched.is_set()) and not _deferred[0]:
        raise error


@contextmanager
def deferred() -> Iterator[None]:
    """In here a signal raises nothing but in `check_signals`.

    An exception that comes out of nowhere crashes a library that has called back into Python.
    """
    _deferred[0] += 1
    try:
        yield
    finally:
        _deferred[0] -= 1


def check_signals() -> None:
    """Raise what a signal has asked for, if one has. Does nothing but in the main thread."""
    if _asked and threading.current_thread() is threading.main_thread():
        raise _asked[0]


def is_asked() -> bool:
    """Whether a signal has asked for the end of this process."""
    return bool(_asked)


def watch_signals() -> None:
    """End this process some seconds after the first signal, or with the second.

    An exception waits for the main thread to leave whatever library it is in; this does not. It
    is safe at any instant, as kill -9 is.
    """
    _watched.set()
    reader, writer = _pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True).start()


def _pipe() -> tuple[int, int]:
    """Without the numbers of standard streams that are closed: what uses those must fail."""
    low = os.pipe()
    reader, writer = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3) for end in low)
    for end in low:
        os.close(end)
    return reader, writer


def _watch(reader: int) -> None:
    first = os.read(reader, 1)[0]
    again = select.select([reader], [], [], _MOST_SECONDS)[0]
    os._exit(128 + (os.read(reader, 1)[0] if again else first))
