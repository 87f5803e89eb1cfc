"""SIGTERM and SIGINT end the process in order within seconds, a second one at once."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import threading
from typing import Any

from batchpredict.errors import Terminated

# An orderly end takes no longer; a supervisor kills after 10 s or more.
_MOST_SECONDS = 4.5


def terminate_by_exception() -> None:
    """Have SIGTERM raise Terminated in the main thread, as SIGINT raises KeyboardInterrupt."""
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(signum: int, frame: Any) -> None:  # noqa: ARG001
    raise Terminated("terminated")


def watch_signals() -> None:
    """End this process some seconds after the first signal, or with the second.

    An exception waits for the main thread to leave whatever library it is in; this does not. It
    is safe at any instant, as kill -9 is.
    """
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
