"""Inputs: open, decompress, count, hash, and notice what changes."""

from __future__ import annotations

import hashlib
import io
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from batchpredict import s3
from batchpredict.data.copies import Copy, add, keep_copy, kept_copy, new_copy
from batchpredict.data.local_files import LocalFile
from batchpredict.data.locations import DAMAGED, DECOMPRESS, STDIO, compression_of
from batchpredict.data.objects import StoredObject
from batchpredict.errors import InputInvalid, TryAgain
from batchpredict.signals import check_signals

_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Mark:
    """How far an input was read: stored bytes, and their sha256 in hexadecimal."""

    position: int
    sha256: str


class InputDiffers(TryAgain):
    """An input's bytes are not those that a mark of an earlier run was made of."""


class Origin(Protocol):
    """Where the stored bytes of an input lie. Raises InputMissing, Unavailable.

    `size`, `modified_ns`, `etag`: as they were when this was made; None where unknown (a pipe has
    none of them, a file no `etag`). `path`: where a library can open it; None where none can.
    `rereadable`: `open` may be called again.
    """

    name: str
    path: Path | None
    size: int | None
    modified_ns: int | None
    etag: str | None
    rereadable: bool

    def open(self, at: int = 0) -> io.RawIOBase:
        """The bytes from `at` on. Reading raises TryAgain where they are others by now."""
        ...

    def fingerprint(self) -> str:
        """A short text that is another one where the bytes are others; of rereadable ones."""
        ...

    def check_unchanged(self, opened: io.RawIOBase | None) -> None:
        """Raise TryAgain where the input is not what it was when this was made.

        That is the one that was `opened`, and one that has its name now.
        """
        ...


class _CountedInput(io.RawIOBase):
    """The bytes of an input as stored, counted and hashed while they are read once, in order.

    `expected`: marks to be met on the way, ascending; reading stops for an instant at each.
    """

    def __init__(self, name: str, inner: io.RawIOBase, expected: Sequence[Mark] = ()) -> None:
        self._name = name
        self.inner = inner
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
        count = cast(int, self.inner.readinto(view))
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
            self.inner.close()
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


class InputSource:
    """An input, read in order: counted, hashed, decompressed. Obeys the Source protocol.

    `position`: stored bytes read so far. `size`, `modified_ns`, `etag`, `rereadable`: see Origin.
    `keeps_copy`: one that `local_path` makes is there for the next source of the same object.
    """

    def __init__(self, origin: Origin, *, keeps_copy: bool = False) -> None:
        self._keeps_copy = keeps_copy and origin.etag is not None
        self._origin = origin
        self.name = origin.name
        self.size = origin.size
        self.modified_ns = origin.modified_ns
        self.etag = origin.etag
        self.rereadable = origin.rereadable
        self.compression = "" if origin.name == STDIO else compression_of(origin.name)
        self._raw: _CountedInput | None = None
        self._stream: BinaryIO | None = None
        self._copy: BinaryIO | None = None
        self._whole: Mark | None = None
        self._expected: tuple[Mark, ...] = ()
        self._expected_inside = False

    @property
    def position(self) -> int:
        return 0 if self._raw is None else self._raw.position

    def open(self, at: int = 0) -> BinaryIO:
        """Decompressed bytes from the start; raises InputMissing, TryAgain.

        A second call starts again (only where `rereadable`) and ends the first stream. `at`: the
        stored byte to start at, where nothing is compressed; `position` and marks count from it.
        """
        buffered = io.BufferedReader(self._open_raw(at), _READ_BYTES)
        if self.compression and self.size == 0:
            raise InputInvalid(f"{self.name}: is empty, not even compressed; fetch the file again")
        if self.compression:
            decompressed = DECOMPRESS[self.compression](cast(BinaryIO, buffered))
            stream = _Decompressed(self.name, decompressed, self.compression)
        else:
            stream = _Decompressed(self.name, buffered, "")
        # Kept: a forgotten stream closes what `finish` may want to read on.
        self._stream = cast(BinaryIO, stream)
        return self._stream

    def _open_raw(self, at: int = 0) -> _CountedInput:
        if self._raw is not None:
            self._raw.close()
        expected = self._expected if bool(at) == self._expected_inside else ()
        self._raw = _CountedInput(self.name, self._origin.open(at), expected)
        return self._raw

    def local_path(self) -> Path | None:
        """Where the stored bytes can be read in any order; None where they cannot (a pipe).

        What is no local file is fetched into one that has no name and goes with this source.
        Raises OutputNotCreatable, OutputWriteFailed, and what reading does.
        """
        if self._origin.path is not None or not self.rereadable:
            return self._origin.path
        if self._copy is None:
            kept = kept_copy(self.name, self.etag) if self._keeps_copy else None
            copy = kept or self._fetched()
            self._copy, self._whole = copy.file, Mark(self.size or 0, copy.sha256)
            if self._keeps_copy and not kept:
                keep_copy(copy)
        return Path(f"/proc/self/fd/{self._copy.fileno()}")

    def _fetched(self) -> Copy:
        file = new_copy(self.name, self.size or 0)
        try:
            return Copy(self.name, self.etag or "", file, self._read_to_end(file))
        except BaseException:
            file.close()
            raise

    def expect(self, marks: Iterable[Mark], *, inside: bool = False) -> None:
        """Compare with these marks whatever is read from now on; reading raises InputDiffers.

        `inside`: they count from a byte behind the first one, so what is read from the start, such
        as a header, is not compared.
        """
        self._expected_inside = inside
        by_position = {mark.position: mark for mark in marks if mark.position}
        self._expected = tuple(by_position[position] for position in sorted(by_position))

    def mark(self) -> Mark:
        """How far the stored bytes were read: at least to the end of the rows handed on."""
        if self._whole is not None:
            return self._whole
        if self._raw is None:  # a shard of what is not read through `open`
            return Mark(0, hashlib.sha256().hexdigest())
        position, digest = self._raw.reached
        return Mark(position, digest.hexdigest())

    def read_whole(self) -> None:
        """Read and hash the stored bytes now, for a format that is not read through `open`."""
        self.local_path()
        if self._whole is None:
            self._whole = Mark(self.size or 0, self.finish())
            self._raw = None

    def meet_expected(self) -> None:
        """Read on to the last of the marks expected. Raises InputDiffers."""
        buffer = bytearray(_READ_BYTES)
        while self._raw is not None and not self._raw.closed and self._raw.expected:
            self._raw.readinto(buffer)

    def fingerprint(self) -> str:
        """A short text that is another one where the bytes are others. Raises InputMissing."""
        return self._origin.fingerprint()

    def finish(self) -> str:
        """The sha256 of the stored bytes, after reading whatever of them is left.

        Raises TryAgain where the file changed since it was opened, InputDiffers.
        """
        if self._whole is not None:
            self.check_unchanged()
            return self._whole.sha256
        return self._read_to_end()

    def _read_to_end(self, copy: BinaryIO | None = None) -> str:
        raw = self._raw
        if raw is None or raw.closed:
            raw = self._open_raw()
        view = memoryview(bytearray(_READ_BYTES))
        while count := raw.readinto(view):
            check_signals()
            if copy is not None:
                add(copy, view[:count])
        self.check_unchanged()
        if self.size is not None and raw.position != self.size:
            raise TryAgain(f"{self.name}: {raw.position} of {self.size} bytes were read; run again")
        digest = raw.digest.hexdigest()
        raw.close()
        return digest

    def is_of(self, modified_ns: int | None, etag: str | None) -> bool:
        """Whether it was last changed then; what has an ETag is told by that."""
        return self.etag == etag if self.etag else self.modified_ns == modified_ns

    def close(self) -> None:
        if self._raw is not None:
            self._raw.close()
        if self._copy is not None and not self._keeps_copy:
            self._copy.close()

    def check_unchanged(self) -> None:
        """Raise TryAgain where the input is not what it was when this source was made.

        That is the one that is open, and one that has its name now. Raises InputMissing.
        """
        self._origin.check_unchanged(self._raw.inner if self._raw else None)


def origin_of(name: str) -> Origin:
    """Where the bytes of this name lie: a file, "-", an s3:// object. Raises as an Origin does."""
    return StoredObject(name) if s3.is_url(name) else LocalFile(name)


def source_of(name: str, *, keeps_copy: bool = False) -> InputSource:
    """The input of this name: a file, "-", an s3:// object. Raises InputMissing, Unavailable.

    `keeps_copy`: see InputSource.
    """
    return InputSource(origin_of(name), keeps_copy=keeps_copy)
