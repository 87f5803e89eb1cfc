"""An object into a file, by several connections; a download that was killed continues."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from batchpredict.errors import OutputWriteFailed, Unavailable
from batchpredict.s3.addresses import Stored
from batchpredict.s3.body import Body
from batchpredict.s3.crew import Crew
from batchpredict.signals import check_signals

_PART = 16 << 20
# At both ends parts are small: hashing then begins early and is not far behind at the end.
_SMALL_PART = 2 << 20
_ENDS = 16 << 20
_THREADS = 6
_AT_ONCE = 512 << 10
_HASHED_AT_ONCE = 256 << 10
Watch = Callable[[int], None]
Open = Callable[[Stored, int, int], Body]


def sidecar(path: Path) -> Path:
    """Which parts of `path` are there; a file only while the download is not complete."""
    return path.with_name(path.name + ".parts")


def download(open_body: Open, stored: Stored, path: Path, watch: Watch) -> str:
    """Hex sha256 of what is in `path` then; `watch` gets the bytes there since its last call.

    What an earlier call left of the same object in `path` is not fetched again, but hashed.
    Raises Changed, Unavailable and OutputWriteFailed; what has come so far stays.
    """
    try:
        parts = _Parts(stored, path)
        try:
            digest = _Download(open_body, stored, path, parts).run(watch)
        finally:
            parts.close()
        sidecar(path).unlink(missing_ok=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputWriteFailed(f"{path}: cannot be written: {reason}") from error
    return digest


class _Parts:
    """The sidecar: a line that says of which object, then one with each part's number."""

    def __init__(self, stored: Stored, path: Path) -> None:
        cut = [_SMALL_PART, _ENDS, _PART]
        header: list[Any] = [stored.address.url, stored.etag, stored.size, cut]
        self.spans = _spans(stored.size)
        self.count = len(self.spans)
        self.done = _already(path, header, stored.size, self.count)
        if not self.done:
            sidecar(path).unlink(missing_ok=True)
        flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC
        file = os.open(path, flags, 0o666)
        try:
            os.ftruncate(file, stored.size)
        finally:
            os.close(file)
        self._file = os.open(sidecar(path), flags | os.O_APPEND, 0o666)
        if not self.done:
            os.write(self._file, (json.dumps(header) + "\n").encode())

    def note(self, part: int) -> None:
        os.write(self._file, b"%d\n" % part)

    def close(self) -> None:
        os.close(self._file)


def _spans(size: int) -> list[tuple[int, int]]:
    """Begin and end of each part."""
    spans = []
    begin = 0
    while begin < size:
        rest = size - begin
        small = begin < _ENDS or rest <= _ENDS
        length = min(_SMALL_PART, rest) if small else min(_PART, rest - _ENDS)
        spans.append((begin, begin + length))
        begin += length
    return spans


def _already(path: Path, header: list[Any], size: int, count: int) -> set[int]:
    try:
        first, *rest = sidecar(path).read_text().split("\n")[:-1]
        same = json.loads(first) == header and path.stat().st_size == size
        return {part for line in rest if 0 <= (part := int(line)) < count} if same else set()
    except (FileNotFoundError, ValueError):
        return set()


class _Download:
    def __init__(self, open_body: Open, stored: Stored, path: Path, parts: _Parts) -> None:
        self._open = open_body
        self._stored = stored
        self._path = path
        self._parts = parts
        self._crew = Crew(min(_THREADS, parts.count - len(parts.done)))
        self._bodies: set[Body] = set()
        self._came = sum(end - begin for begin, end in (parts.spans[part] for part in parts.done))

    def run(self, watch: Watch) -> str:
        """The hex sha256 of all; hashed in order, behind the parts that come."""
        digest = hashlib.sha256()
        missing = [part for part in range(self._parts.count) if part not in self._parts.done]
        try:
            for part in missing:
                self._crew.give(partial(self._fetch, part))
            with self._path.open("rb", buffering=0) as file:
                for part in range(self._parts.count):
                    while not self._is_here(part):
                        self._tell(watch)
                    self._hash(file.fileno(), part, digest)
                    self._tell(watch)
        finally:
            self._stop()
        return digest.hexdigest()

    def _is_here(self, part: int) -> bool:
        done = self._parts.done
        self._crew.wait(lambda: part in done, most=0.1)
        return part in done

    def _tell(self, watch: Watch) -> None:
        with self._crew.changed:
            came, self._came = self._came, 0
        watch(came)

    def _hash(self, file: int, part: int, digest: hashlib._Hash) -> None:
        position, end = self._parts.spans[part]
        buffer = memoryview(bytearray(_HASHED_AT_ONCE))  # stays in the processor's cache
        while position < end:
            check_signals()
            view = buffer[: min(len(buffer), end - position)]
            count = os.preadv(file, [view], position)
            if not count:
                raise OutputWriteFailed(f"{self._path}: was cut off by somebody else")
            digest.update(view[:count])
            position += count

    def _fetch(self, part: int) -> None:
        begin, end = self._parts.spans[part]
        body = self._open(self._stored, begin, end)
        with self._crew.changed:
            self._bodies.add(body)
        # A file of its own: a thread that outlives the call must not write into another's.
        file = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            while begin < end and not self._crew.stopped.is_set():
                data = body.take(_AT_ONCE)
                if not data:
                    raise Unavailable(f"{self._stored.address.url}: ends early")
                _write(file, data, begin)
                begin += len(data)
                with self._crew.changed:
                    self._came += len(data)
        finally:
            os.close(file)
            body.close()
            with self._crew.changed:
                self._bodies.discard(body)
        with self._crew.changed:
            if begin == end and not self._crew.stopped.is_set():
                self._parts.note(part)
                self._parts.done.add(part)

    def _stop(self) -> None:
        with self._crew.changed:
            self._crew.stopped.set()
            for body in self._bodies:
                body.interrupt()
        self._crew.stop()


def _write(file: int, data: bytes, position: int) -> None:
    written = os.pwrite(file, data, position)
    while written < len(data):
        written += os.pwrite(file, memoryview(data)[written:], position + written)
