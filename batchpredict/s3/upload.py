"""Objects of any size, from files and from streams."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from batchpredict.errors import InputInvalid, InputMissing, Unavailable
from batchpredict.s3.addresses import Address
from batchpredict.s3.calls import Calls
from batchpredict.s3.crew import Crew
from batchpredict.s3.multipart import MOST_PARTS, PART, Multipart

_THREADS = 4
_IN_FLIGHT = 4 * PART  # bytes, or one part
# Of a stream: 140 GiB in parts of one size, as some stores want them, then up to S3's 5 TiB limit.
_SMALL_PARTS = 9000
_LARGE_PART = 512 << 20
Watch = Callable[[int], None]
Write = Callable[..., str]


class Parts:
    """What several threads upload of one multipart upload, in bounded memory."""

    def __init__(self, calls: Calls, address: Address) -> None:
        self.multipart = Multipart(calls, address)
        self._crew = Crew(_THREADS)
        self._waiting = 0  # bytes
        self._stored = 0

    def give(self, number: int, size: int, content: Callable[[], bytes | bytearray]) -> None:
        """Have part `number` uploaded; wait while there is no room for it."""
        self._crew.wait(lambda: not self._waiting or self._waiting + size <= _IN_FLIGHT)
        with self._crew.changed:
            self._waiting += size
        self._crew.give(lambda: self._put(number, size, content))

    def _put(self, number: int, size: int, content: Callable[[], bytes | bytearray]) -> None:
        self.multipart.put(number, content())
        with self._crew.changed:
            self._waiting -= size
            self._stored += size

    def stored(self) -> int:
        """Bytes since the last call."""
        with self._crew.changed:
            stored, self._stored = self._stored, 0
        return stored

    def wait(self, most: float | None = None) -> bool:
        """Whether all that was given is stored."""
        self._crew.wait(lambda: not self._waiting, most)
        return not self._waiting

    def stop(self) -> None:
        self._crew.stop()

    def abort(self) -> None:
        """Raises Unavailable."""
        self._crew.stop()
        self.multipart.abort()


class Upload:
    """A stream that becomes an object when it is published. Not for several threads.

    `id` is None as long as all fits one part; `noted` gets it before any part is sent. Raises
    Unavailable from any method.
    """

    def __init__(
        self, calls: Calls, address: Address, write: Write, noted: Callable[[str], None]
    ) -> None:
        self._calls = calls
        self.address = address
        self._write = write
        self._noted = noted
        self._buffer = bytearray()
        self._parts: Parts | None = None
        self._number = 0
        self._finished = False

    @property
    def id(self) -> str | None:
        return self._parts.multipart.id if self._parts else None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        size = len(view)
        while view:
            room = self._part_size() - len(self._buffer)
            self._buffer += view[:room]
            view = view[room:]
            if view:  # the last part may fill to its end, and be the only one
                self._send()
        return size

    def _part_size(self) -> int:
        return PART if self._number < _SMALL_PARTS else _LARGE_PART

    def _send(self) -> None:
        if self._parts is None:
            self._parts = Parts(self._calls, self.address)
            self._noted(self._parts.multipart.id)
        content, self._buffer = self._buffer, bytearray()
        self._number += 1
        self._parts.give(self._number, len(content), lambda: content)

    def finish(self) -> None:
        """Store what there is, visible to nobody yet; what fits one part is kept for `publish`."""
        if self._parts and not self._finished:
            if self._buffer:
                self._send()
            self._parts.wait()
            self._parts.stop()
        self._finished = True

    def publish(self, *, absent: bool = False) -> str:
        """The ETag of the object, which is there from now on. Refused if `absent` and it was."""
        self.finish()
        if self._parts is None:
            return self._write(self.address, bytes(self._buffer), absent=absent)
        etag = self._parts.multipart.complete(absent)
        self._parts = None
        return etag

    def abort(self) -> None:
        """Leave nothing; harmless after `publish`."""
        parts, self._parts = self._parts, None
        self._buffer = bytearray()
        if parts:
            parts.abort()


def upload_parts(calls: Calls, file: int, address: Address, watch: Watch, absent: bool) -> str:
    """From a file that is open and has more than one part."""
    size = os.fstat(file).st_size
    part = max(PART, -(-size // MOST_PARTS))
    parts = Parts(calls, address)
    try:
        for number, begin in enumerate(range(0, size, part), 1):
            length = min(part, size - begin)
            parts.give(number, length, partial(_read, file, length, begin, address))
            watch(parts.stored())
        while not parts.wait(0.1):
            watch(parts.stored())
        watch(parts.stored())
        parts.stop()
        return parts.multipart.complete(absent)
    except BaseException:
        # What went wrong first says more; the store's own rules remove what then stays.
        with contextlib.suppress(Unavailable):
            parts.abort()
        raise


def _read(file: int, length: int, begin: int, address: Address) -> bytes:
    content = os.pread(file, length, begin)
    while 0 < len(content) < length:  # the kernel reads 2 GiB at most
        content += os.pread(file, length - len(content), begin + len(content)) or b""
    if len(content) != length:
        raise InputInvalid(f"the file became shorter while it was uploaded to {address.url}")
    return content


def open_file(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputMissing(f"{path}: cannot be read: {reason}") from error
