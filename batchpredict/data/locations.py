"""Open inputs, decompress them, and publish outputs atomically."""

from __future__ import annotations

import bz2
import fcntl
import glob
import gzip
import hashlib
import io
import lzma
import os
import secrets
import stat
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from batchpredict.errors import (
    InputInvalid,
    InputMissing,
    OutputNotCreatable,
    OutputWriteFailed,
    TryAgain,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

STDIO = "-"
_READ_BYTES = 1 << 20
_DAMAGED = (EOFError, zlib.error, lzma.LZMAError, zstd.ZstdError, gzip.BadGzipFile)

# What undoes and what makes each compression. No time and no name in a gzip header, so that
# equal content gives equal bytes.
_DECOMPRESS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": zstd.ZstdFile,
}
_COMPRESS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda raw: gzip.GzipFile("", "wb", 6, raw, mtime=0),
    ".bz2": lambda raw: bz2.BZ2File(raw, "wb"),
    ".xz": lambda raw: lzma.LZMAFile(raw, "wb", preset=3),  # noqa: SIM115 - Draft.finish closes it
    ".zst": lambda raw: zstd.ZstdFile(raw, "wb"),
}


def compression_of(name: str) -> str:
    """The compression suffix a file name ends in (".gz", ".bz2", ".xz", ".zst"), or ""."""
    suffix = Path(name).suffix.lower()
    return suffix if suffix in _DECOMPRESS else ""


@dataclass(frozen=True)
class _Identity:
    device: int
    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> _Identity:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class _RawInput(io.RawIOBase):
    """The bytes of an input as stored, counted and hashed while they are read once, in order."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.position = 0
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.closed:  # by now the descriptor's number may be another file's
            raise ValueError("read from an input that was closed")
        count = os.readv(self.descriptor, [buffer])
        self.digest.update(memoryview(buffer)[:count])
        self.position += count
        return count

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
        except _DAMAGED as error:
            kind = self._compression.removeprefix(".")
            raise InputInvalid(
                f"{self._name}: the {kind} data is truncated or damaged ({error}); "
                "fetch the file again"
            ) from error
        except OSError as error:
            if self._compression and error.errno is None:  # bz2 reports damage as OSError
                raise InputInvalid(
                    f"{self._name}: the {self._compression.removeprefix('.')} data is damaged "
                    f"({error}); fetch the file again"
                ) from error
            raise InputInvalid(f"{self._name}: cannot be read: {error}") from error

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
    `size`: stored bytes, None where unknown (a pipe).
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = None if name == STDIO else Path(name)
        self.compression = "" if name == STDIO else compression_of(name)
        self._raw: _RawInput | None = None
        status = self._status()
        self.rereadable = stat.S_ISREG(status.st_mode) and self.path is not None
        self.size = status.st_size if self.rereadable else None
        self._identity = _Identity.of(status)

    def _status(self) -> os.stat_result:
        try:
            status = os.fstat(0) if self.path is None else self.path.stat()
        except OSError as error:
            raise InputMissing(f"{self.name}: {_reason(error)}; check the path") from error
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
        if self._raw is not None:
            self._raw.close()
        try:
            descriptor = os.dup(0) if self.path is None else os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise InputMissing(f"{self.name}: {_reason(error)}; check the path") from error
        self._raw = _RawInput(descriptor)
        self._check_unchanged()
        buffered = io.BufferedReader(self._raw, _READ_BYTES)
        if self.compression and self.size == 0:
            raise InputInvalid(f"{self.name}: is empty, not even compressed; fetch the file again")
        if self.compression:
            decompressed = _DECOMPRESS[self.compression](cast(BinaryIO, buffered))
            return cast(BinaryIO, _Decompressed(self.name, decompressed, self.compression))
        return cast(BinaryIO, _Decompressed(self.name, buffered, ""))

    def finish(self) -> str:
        """The sha256 of the stored bytes, after reading whatever of them is left.

        Raises TryAgain where the file changed since it was opened.
        """
        if self._raw is None or self._raw.closed:
            stream = self.open()  # noqa: F841 - a stream that is let go closes what is below it
        raw = cast(_RawInput, self._raw)
        buffer = bytearray(_READ_BYTES)
        while raw.readinto(buffer):
            pass
        self._check_unchanged()
        if self.size is not None and raw.position != self.size:
            raise TryAgain(f"{self.name}: {raw.position} of {self.size} bytes were read; run again")
        digest = raw.digest.hexdigest()
        raw.close()
        return digest

    def close(self) -> None:
        if self._raw is not None:
            self._raw.close()

    def _check_unchanged(self) -> None:
        raw = cast(_RawInput, self._raw)
        if self.rereadable and _Identity.of(os.fstat(raw.descriptor)) != self._identity:
            raise TryAgain(f"{self.name}: changed while it was read; run again when it is complete")


@dataclass(frozen=True)
class Published:
    """A complete file. `path`: "-" for standard output."""

    path: str
    size: int
    sha256: str


class _Sink(io.RawIOBase):
    """Stored bytes of an output, counted and hashed; system errors get the output's name."""

    def __init__(self, name: str, descriptor: int) -> None:
        self._name = name
        self.descriptor = descriptor
        self.size = 0
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self.descriptor < 0:  # abandoned: what the buffer above still holds goes nowhere
            return len(view)
        written = 0
        while written < len(view):
            try:
                written += os.write(self.descriptor, view[written:])
            except BrokenPipeError as error:
                raise OutputWriteFailed(
                    f"{self._name}: the reader of the pipe has gone; not all rows were delivered"
                ) from error
            except OSError as error:
                raise _write_failed(self._name, error) from error
        self.digest.update(view)
        self.size += written
        return written


class Draft:
    """An output being written beside its final name; only `publish` gives it that name.

    `stream`: where to write, compressed by the name's suffix. Standard output and devices are
    written directly, they cannot be published at once.
    """

    def __init__(self, name: str, compression: str = "", *, make_parents: bool = False) -> None:
        self.name = name
        self._final = None if name == STDIO else Path(os.path.realpath(name))
        self._temporary: Path | None = None
        self._sink = _Sink(name, self._create(make_parents))
        raw = cast(BinaryIO, self._sink)
        self.stream: BinaryIO = (
            _COMPRESS[compression](raw)
            if compression
            else cast(BinaryIO, io.BufferedWriter(self._sink, _READ_BYTES))
        )

    def _create(self, make_parents: bool) -> int:
        if self._final is None:
            return os.dup(1)
        try:
            if self._final.is_dir() or is_stream(self.name):
                return os.open(self.name, os.O_WRONLY)
            if make_parents:
                self._final.parent.mkdir(parents=True, exist_ok=True)
            remove_abandoned(self._final)
            token = secrets.token_hex(4)
            self._temporary = self._final.with_name(f".{self._final.name}.{token}.part")
            descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except OSError as error:
            raise OutputNotCreatable(
                f"{self.name}: cannot be created: {_reason(error)}; choose another place with "
                "--output_file or --output_dir"
            ) from error
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor

    def finish(self) -> Published:
        """Make every byte durable under the temporary name. Raises OutputWriteFailed."""
        self.stream.close()
        if self._temporary is not None:
            try:
                os.fsync(self._sink.descriptor)
            except OSError as error:
                raise _write_failed(self.name, error) from error
        return Published(self.name, self._sink.size, self._sink.digest.hexdigest())

    def publish(self, name: str | None = None) -> None:
        """Give the finished file its name (or `name`, in the same directory).

        What had that name before stays until this instant.
        """
        if self._temporary is not None:
            final = Path(name) if name else cast(Path, self._final)
            try:
                self._temporary.replace(final)
                _sync_directory(final.parent)
            except OSError as error:
                raise _write_failed(self.name, error) from error
            self._temporary = None
        self._close()

    def abandon(self) -> None:
        """Leave nothing behind. Harmless after `publish`."""
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
            self._temporary = None
        self._close()

    def _close(self) -> None:
        if self._sink.descriptor >= 0:
            os.close(self._sink.descriptor)
            self._sink.descriptor = -1


def remove_abandoned(final: Path) -> None:
    """Remove drafts whose writer was killed: the kernel has released their lock."""
    for part in final.parent.glob(f".{glob.escape(final.name)}.????????.part"):
        try:
            with part.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink(missing_ok=True)
        except (BlockingIOError, FileNotFoundError):  # still being written; published just now
            continue


def is_stream(name: str) -> bool:
    """Standard output, a device or a pipe: written directly, and nothing lies beside it."""
    try:
        mode = 0 if name == STDIO else Path(name).stat().st_mode
    except OSError:
        return False
    return name == STDIO or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def unpublished(name: str) -> str:
    """What a run that fails has to say of its output."""
    if is_stream(name):
        return "what was written is incomplete"
    return "nothing was published, an old file stays"


def check_creatable(name: str, output_dir: str | None, option: str) -> None:
    """Raise OutputNotCreatable where an output could not be created now; `option` says otherwise.

    Directories below `output_dir` are made when they are needed, `output_dir` itself is not.
    """
    target = Path(os.path.realpath(name))
    parent = Path(output_dir).expanduser() if output_dir else target.parent
    if is_stream(name):
        return
    if target.is_dir():
        reason = "is a directory"
    elif not parent.is_dir():
        reason = f"{parent} is no directory"
    elif not os.access(parent, os.W_OK | os.X_OK):
        reason = f"{parent} is not writable"
    else:
        return
    raise OutputNotCreatable(f"{name}: {reason}; choose another place with {option}")


def write_durably(path: Path, content: bytes) -> None:
    """Replace a small file atomically. Raises OutputNotCreatable, OutputWriteFailed."""
    draft = Draft(str(path))
    try:
        draft.stream.write(content)
        draft.finish()
        draft.publish()
    finally:
        draft.abandon()


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_failed(name: str, error: OSError) -> OutputWriteFailed:
    return OutputWriteFailed(f"{name}: cannot be written: {_reason(error)}; {unpublished(name)}")


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
