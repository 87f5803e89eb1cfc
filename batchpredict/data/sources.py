"""Inputs: open, decompress, count, hash, and notice what changes."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from batchpredict.data.locations import DAMAGED, DECOMPRESS, STDIO, compression_of
from batchpredict.data.storage import reason, unreadable
from batchpredict.errors import InputInvalid, InputMissing, TryAgain
from batchpredict.signals import check_signals

_READ_BYTES = 1 << 20
# Of each end of an input: an appended, truncated or replaced file differs there.
FINGERPRINT_BYTES = 64 << 10


@dataclass(frozen=True)
class _Identity:
    device: int
    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> _Identity:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class Mark:
    """How far an input was read: stored bytes, and their sha256 in hexadecimal."""

    position: int
    sha256: str


class InputDiffers(TryAgain):
    """An input's bytes are not those that a mark of an earlier run was made of."""


class _RawInput(io.RawIOBase):
    """The bytes of an input as stored, counted and hashed while they are read once, in order.

    `expected`: marks to be met on the way, ascending; reading stops for an instant at each.
    """

    def __init__(self, name: str, descriptor: int, expected: Sequence[Mark] = ()) -> None:
        self._name = name
        self.descriptor = descriptor
        self.position = 0
        self.digest = hashlib.sha256()
        self.reached = (0, self.digest.copy())
        self.expected = deque(expected)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.closed:  # by now the descriptor's number may be another file's
            raise ValueError("read from an input that was closed")
        view = memoryview(buffer)
        if self.expected:
            view = view[: self.expected[0].position - self.position]
        try:
            count = os.readv(self.descriptor, [view])
        except OSError as error:
            raise unreadable(self._name, error) from error
        self.digest.update(view[:count])
        self.position += count
        if self.expected and (not count or self.position == self.expected[0].position):
            self._compare(self.expected.popleft())
        self.reached = (self.position, self.digest.copy())
        return count

    def _compare(self, mark: Mark) -> None:
        if Mark(self.position, self.digest.hexdigest()) != mark:
            raise InputDiffers(
                f"{self._name}: its first {mark.position} bytes are not those scored before"
            )

    def close(self) -> None:
        if not self.closed:
            os.close(self.descriptor)
        super().close()


class _Decompressed(io.RawIOBase):
    """Decompressed bytes; damage below becomes InputInvalid with the file's name."""

    def __init__(self, name: str, inner: Any, compression: str) -> None:
        self._name = name
        self._inner = inner
        self._compression = compression

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        try:
            return cast(bytes, self._inner.read(size))
        except DAMAGED as error:
            kind = self._compression.removeprefix(".")
            raise InputInvalid(
                f"{self._name}: the {kind} data is truncated or damaged ({error}); "
                "fetch the file again"
            ) from error

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
        super().close()


class LocalSource:
    """A local file or standard input. Obeys the Source protocol.

    `path`: where it lies; None for standard input. `position`: stored bytes read so far.
    `size`, `modified_ns`: stored bytes, time of last change; None where unknown (a pipe).
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = None if name == STDIO else Path(name)
        self.compression = "" if name == STDIO else compression_of(name)
        self._raw: _RawInput | None = None
        status = self._status()
        self.rereadable = stat.S_ISREG(status.st_mode) and self.path is not None
        self.size = status.st_size if self.rereadable else None
        self.modified_ns = status.st_mtime_ns if self.rereadable else None
        self._identity = _Identity.of(status)
        self._whole: Mark | None = None
        self._expected: tuple[Mark, ...] = ()

    def _status(self) -> os.stat_result:
        try:
            status = os.fstat(0) if self.path is None else self.path.stat()
        except OSError as error:
            raise InputMissing(f"{self.name}: {reason(error)}; check the path") from error
        if stat.S_ISDIR(status.st_mode):
            raise InputMissing(f"{self.name}: is a directory, not a file")
        return status

    @property
    def position(self) -> int:
        return 0 if self._raw is None else self._raw.position

    def open(self) -> BinaryIO:
        """Decompressed bytes from the start; raises InputMissing, TryAgain.

        A second call starts again (only where `rereadable`) and ends the first stream.
        """
        buffered = io.BufferedReader(self._open_raw(), _READ_BYTES)
        if self.compression and self.size == 0:
            raise InputInvalid(f"{self.name}: is empty, not even compressed; fetch the file again")
        if self.compression:
            decompressed = DECOMPRESS[self.compression](cast(BinaryIO, buffered))
            return cast(BinaryIO, _Decompressed(self.name, decompressed, self.compression))
        return cast(BinaryIO, _Decompressed(self.name, buffered, ""))

    def _open_raw(self) -> _RawInput:
        if self._raw is not None:
            self._raw.close()
        try:
            descriptor = os.dup(0) if self.path is None else os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise InputMissing(f"{self.name}: {reason(error)}; check the path") from error
        self._raw = _RawInput(self.name, descriptor, self._expected)
        self.check_unchanged()
        return self._raw

    def expect(self, marks: Iterable[Mark]) -> None:
        """Compare with these marks whatever is read from now on; reading raises InputDiffers."""
        by_position = {mark.position: mark for mark in marks if mark.position}
        self._expected = tuple(by_position[position] for position in sorted(by_position))

    def mark(self) -> Mark:
        """How far the stored bytes were read: at least to the end of the rows handed on."""
        if self._whole is not None:
            return self._whole
        position, digest = cast(_RawInput, self._raw).reached
        return Mark(position, digest.hexdigest())

    def read_whole(self) -> None:
        """Read and hash the stored bytes now, for a format that is not read through `open`."""
        self._whole = Mark(self.size or 0, self.finish())
        self._raw = None

    def meet_expected(self) -> None:
        """Read on to the last of the marks expected. Raises InputDiffers."""
        buffer = bytearray(_READ_BYTES)
        while self._raw is not None and not self._raw.closed and self._raw.expected:
            self._raw.readinto(buffer)

    def fingerprint(self) -> str:
        """The sha256 of the first and last FINGERPRINT_BYTES, in hexadecimal."""
        try:
            with cast(Path, self.path).open("rb") as file:
                begin = file.read(FINGERPRINT_BYTES)
                file.seek(max(0, (self.size or 0) - FINGERPRINT_BYTES))
                return hashlib.sha256(begin + file.read(FINGERPRINT_BYTES)).hexdigest()
        except OSError as error:
            raise InputMissing(f"{self.name}: {reason(error)}; check the path") from error

    def finish(self) -> str:
        """The sha256 of the stored bytes, after reading whatever of them is left.

        Raises TryAgain where the file changed since it was opened, InputDiffers.
        """
        if self._whole is not None:
            self.check_unchanged()
            return self._whole.sha256
        raw = self._raw
        if raw is None or raw.closed:
            raw = self._open_raw()
        buffer = bytearray(_READ_BYTES)
        while raw.readinto(buffer):
            check_signals()
        self.check_unchanged()
        if self.size is not None and raw.position != self.size:
            raise TryAgain(f"{self.name}: {raw.position} of {self.size} bytes were read; run again")
        digest = raw.digest.hexdigest()
        raw.close()
        return digest

    def close(self) -> None:
        if self._raw is not None:
            self._raw.close()

    def check_unchanged(self) -> None:
        """Raise TryAgain where the file is not what it was when this source was made.

        That is the one that is open, and one that has its name now. Raises InputMissing.
        """
        if self.rereadable and self._identities() != {self._identity}:
            raise TryAgain(f"{self.name}: changed while it was read; run again when it is complete")

    def _identities(self) -> set[_Identity]:
        found = set()
        try:
            if self._raw is not None and not self._raw.closed:
                found.add(_Identity.of(os.fstat(self._raw.descriptor)))
            found.add(_Identity.of(cast(Path, self.path).stat()))
        except FileNotFoundError:  # what is still open was removed, but is as it was
            return found
        except OSError as error:
            raise unreadable(self.name, error) from error
        return found
