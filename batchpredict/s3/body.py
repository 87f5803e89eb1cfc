"""The bytes of an object, whatever happens to the connection they come by."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Callable
from typing import Any

from batchpredict.errors import Unavailable
from batchpredict.s3.addresses import Stored
from batchpredict.s3.faults import Changed, Refused, explained
from batchpredict.signals import check_signals

_MOST_FRUITLESS = 5
_FIRST_PAUSE = 0.1  # seconds; doubles
_MOST_AT_ONCE = 1 << 20

Get = Callable[..., dict[str, Any]]


class Body(io.RawIOBase):
    """Bytes `start` to `end` of one object as it was when `stored` was read.

    A connection that breaks is replaced by one from the byte it broke at, five times in a row at
    most without a byte. Raises Changed and Unavailable.
    """

    def __init__(
        self, get: Get, stored: Stored, start: int, end: int, first: dict[str, Any] | None = None
    ) -> None:
        """`get` is get_object with our errors; `first` its answer of the whole object."""
        super().__init__()
        self.stored = stored
        self._get = get
        self._position, self._end = start, end
        # urllib3's response: botocore's own cannot give what has come when more does not come.
        self._stream: Any = first["Body"].__enter__() if first else None
        self._interrupted = threading.Event()
        self._lock = threading.Lock()  # of `_stream` between its reader and `interrupt`

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self.take(len(view))
        view[: len(data)] = data
        return len(data)

    def take(self, most: int) -> bytes:
        """Up to `most` bytes without a copy, none at the end."""
        fruitless = 0
        want = min(most, self._end - self._position, _MOST_AT_ONCE)
        while want > 0:
            check_signals()
            if self._stream is None:
                self._connect()
            data, problem = self._read(want)
            if data:
                self._position += len(data)
                return data
            self._drop()
            fruitless += 1
            if fruitless > _MOST_FRUITLESS or self._interrupted.is_set():
                raise problem
            time.sleep(_FIRST_PAUSE * 2 ** (fruitless - 1))
        return b""

    def _read(self, want: int) -> tuple[bytes, Exception]:
        """And what to raise if there is nothing."""
        url = self.stored.address.url
        try:
            data = self._stream.read1(want)
        except Exception as error:
            ours = explained(error, url)
            if ours is error:
                raise
            return b"", ours
        return data, Unavailable(f"{url}: the object store breaks off in mid-object; try again")

    def _connect(self) -> None:
        stored, url = self.stored, self.stored.address.url
        span = f"bytes={self._position}-{self._end - 1}"
        try:
            answer = self._get(stored.address, Range=span, IfMatch=stored.etag)
        except Refused:
            raise Changed(f"{url}: was replaced while it was read; try again") from None
        with self._lock:
            self._stream = answer["Body"].__enter__()
        wanted = f"bytes {self._position}-{self._end - 1}/{stored.size}"
        problem: Exception | None = None
        if self._interrupted.is_set():
            problem = Unavailable(f"{url}: interrupted")
        elif answer.get("ETag") != stored.etag:
            problem = Changed(f"{url}: was replaced while it was read; try again")
        elif answer.get("ContentRange") != wanted:
            problem = Unavailable(f"{url}: the object store does not serve ranges of bytes")
        if problem:
            self._drop()
            raise problem

    def _drop(self) -> None:
        with self._lock:
            if self._stream is not None:
                self._stream.close()
            self._stream = None

    def interrupt(self) -> None:
        """From another thread: have a read that waits for bytes fail at once."""
        self._interrupted.set()
        # What has no connection any more is not waiting for bytes.
        with self._lock, contextlib.suppress(RuntimeError, ValueError, OSError):
            if self._stream is not None:
                self._stream.shutdown()

    def close(self) -> None:
        if not self.closed:
            self.interrupt()  # closing waits for whoever reads
            self._drop()
        super().close()
