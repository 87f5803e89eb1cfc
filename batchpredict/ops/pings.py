"""Health pings as healthchecks.io takes them: when a run starts, and how it ended.

The address is a secret: whoever knows it can report runs that never were. So no message holds any
part of it, and no exception that may is shown.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from typing import Any

from batchpredict import __version__
from batchpredict.errors import UsageError
from batchpredict.ops.watching import Ended
from batchpredict.signals import is_asked

logger = logging.getLogger(__name__)

# What the end of a run may be delayed by: waiting for the ping of the start, so that they arrive
# in order, then for its own.
_START_SECONDS = 3.0
_END_SECONDS = 6.0
_SOCKET_SECONDS = 2.5
_PAUSE_SECONDS = 0.5
# After a signal: the process is ended by force 4.5 s after it, and metrics may have taken 2.5 s.
_HURRY_SECONDS = 1.0
_LOOK_SECONDS = 0.1
_OF_SIGNALS = (130, 143)
_BODY_BYTES = 10_000

_ADDRESS = re.compile(r"(https?://[\w.:\[\]-]+(?:/[^\s?#]*)?)(?:\?([^\s#]*))?", re.ASCII)


class Pings:
    """The pings of one run. `run_id`: 16 hexadecimal digits. Raises UsageError.

    None of them raises, and `end` takes less than 10 seconds.
    """

    def __init__(self, url: str, run_id: str) -> None:
        found = _ADDRESS.fullmatch(url)
        if not found or not url.isascii() or not url.isprintable():
            raise UsageError("--ping_url: must be https://HOST/PATH or http://HOST/PATH")
        self._base = found[1].rstrip("/")
        self._query = "&".join(filter(None, (found[2], f"rid={_uuid(run_id)}")))
        self._start: _Ping | None = None

    def start(self) -> None:
        """Tell that the run begins, and go on meanwhile."""
        self._start = self._begin("start", b"", _START_SECONDS)

    def end(self, ended: Ended) -> None:
        """Tell the exit status, and warn of what could not be told.

        A signal that the run has not heard of ends this soon: the run is over, and its exit status
        holds only if the process ends by itself.
        """
        patience = _Patience(is_patient=ended.exit_code in _OF_SIGNALS)
        if self._start is not None:
            patience.join(self._start, _START_SECONDS)
        last = self._begin(str(ended.exit_code), body_of(ended), _END_SECONDS)
        patience.join(last, _END_SECONDS)
        told = (("start", self._start), ("exit status", last))
        lost = [f"{what} ({ping.failure})" for what, ping in told if ping and ping.failure]
        if lost:
            logger.warning("--ping_url: not told of the run's %s", ", ".join(lost))

    def _begin(self, what: str, body: bytes, seconds: float) -> _Ping:
        ping = _Ping(f"{self._base}/{what}?{self._query}", body, time.monotonic() + seconds)
        ping.start()
        return ping


def body_of(ended: Ended) -> bytes:
    """How the run ended, then what it has said: of that the end, where it is too long."""
    from batchpredict.run.progress import summary

    first = (
        f"batchpredict {__version__}, run {ended.run_id}: {ended.status}, "
        f"exit status {ended.exit_code}, {ended.seconds:.1f} s\n"
    ).encode()
    lines = [*map(summary, ended.published), *ended.messages]
    if ended.exit_code == 0 and not ended.published:
        lines.insert(0, "nothing was scored: no input was there, or all were scored before")
    rest = "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace")
    room = _BODY_BYTES - len(first)
    if len(rest) > room:  # from a whole character on
        rest = rest[-room:].decode(errors="ignore").encode()
    return first + rest


def _uuid(run_id: str) -> str:
    """A UUID (version 8, RFC 9562) that begins with the run's id, but for two marks of its kind."""
    one, two, three, four = run_id[:8], run_id[8:12], run_id[12:15], run_id[15:]
    return f"{one}-{two}-8{three}-8{four}00-000000000000"


class _Patience:
    """Waits for pings; after a signal, unless `is_patient`, for so long in all as it takes to send
    one to a service that answers.
    """

    def __init__(self, *, is_patient: bool) -> None:
        self._is_patient = is_patient
        self._until: float | None = None

    def join(self, ping: _Ping, seconds: float) -> None:
        end = time.monotonic() + seconds
        while ping.is_alive() and (left := self._end(end) - time.monotonic()) > 0:
            ping.join(min(left, _LOOK_SECONDS))

    def _end(self, end: float) -> float:
        if self._until is None and is_asked() and not self._is_patient:
            self._until = time.monotonic() + _HURRY_SECONDS
        return end if self._until is None else min(end, self._until)


class _Ping(threading.Thread):
    """A request, tried until it is answered; in a thread, as looking up a name has no time limit.

    `failure`: None once it is answered. A daemon: the process ends without it.
    """

    def __init__(self, address: str, body: bytes, until: float) -> None:
        super().__init__(name="ping", daemon=True)
        self._address = address
        self._body = body
        self._until = until
        self.failure: str | None = "no answer in time"

    def run(self) -> None:
        while True:
            self.failure, passing = _post(self._address, self._body)
            if not passing or time.monotonic() + _PAUSE_SECONDS > self._until:
                return
            time.sleep(_PAUSE_SECONDS)


def _post(address: str, body: bytes) -> tuple[str | None, bool]:
    """What is wrong, None where nothing is, and whether that may pass."""
    import http.client
    import urllib.error
    import urllib.request

    class Stay(urllib.request.HTTPRedirectHandler):
        """A redirect would give the address to another host, and lose the body."""

        def redirect_request(self, *_: Any) -> None:
            return None

    kind = {
        "Content-Type": "text/plain; charset=utf-8",
        "User-Agent": f"batchpredict/{__version__}",
    }
    try:
        request = urllib.request.Request(address, body, kind, method="POST")
        with urllib.request.build_opener(Stay).open(request, timeout=_SOCKET_SECONDS):
            return None, False
    except urllib.error.HTTPError as error:
        error.close()
        if 300 <= error.code < 400:
            return f"HTTP {error.code}: it leads elsewhere; name that address", False
        return f"HTTP {error.code}", error.code >= 500 or error.code == 429
    except (OSError, http.client.HTTPException) as error:
        return _reason(error), True
    except ValueError:  # no host can be called that: a..b, [::1
        return "not a valid address", False


def _reason(error: Exception) -> str:
    """Why no answer came, without what may hold the address."""
    cause = getattr(error, "reason", error)
    if isinstance(cause, TimeoutError):
        return "no answer in time"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    return type(cause if isinstance(cause, Exception) else error).__name__
