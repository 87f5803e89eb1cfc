"""Open inputs, decompress them, and publish outputs atomically."""

from __future__ import annotations

import bz2
import contextlib
import errno
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
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from batchpredict.data.permissions import create_like
from batchpredict.data.storage import reason, reason_at, remedy, unreadable
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
# Of each end of an input: an appended, truncated or replaced file differs there.
FINGERPRINT_BYTES = 64 << 10
# OSError is how bz2 reports damage, too; those of the system are InputMissing by then.
_DAMAGED = (EOFError, zlib.error, lzma.LZMAError, zstd.ZstdError, OSError)

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
        self.reached = (self.position, self.digest.copy())
        if self.expected and (not count or self.position == self.expected[0].position):
            self._compare(self.expected.popleft())
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
        except _DAMAGED as error:
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
            decompressed = _DECOMPRESS[self.compression](cast(BinaryIO, buffered))
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
            pass
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


@dataclass(frozen=True)
class Published:
    """A complete file. `path`: "-" for standard output."""

    path: str
    size: int
    sha256: str


class _Sink(io.RawIOBase):
    """Stored bytes of an output, counted and hashed; system errors get the output's name.

    `torn`: a write did not come to its end. Whoever tries again would write bytes twice.
    """

    def __init__(self, name: str, descriptor: int) -> None:
        self._name = name
        self.descriptor = descriptor
        self.size = 0
        self.digest = hashlib.sha256()
        self.torn = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self.descriptor < 0:  # abandoned: what the buffer above still holds goes nowhere
            return len(view)
        written = 0
        self.torn = True
        while written < len(view):
            try:
                written += os.write(self.descriptor, view[written:])
            except BrokenPipeError as error:
                raise OutputWriteFailed(
                    f"{self._name}: the reader of the pipe has gone; not all rows were delivered"
                ) from error
            except OSError as error:
                raise write_failed(self._name, error) from error
        self.torn = False
        self.digest.update(view)
        self.size += written
        return written


class Draft:
    """An output being written beside its final name; only `publish` gives it that name.

    `stream`: where to write, compressed by `compression`. Standard output and devices are
    written directly, they cannot be published at once. `option` names another place. A file
    that is replaced hands its permissions on; the umask decides of those of a new one. Raises
    OutputNotCreatable, OutputWriteFailed.
    """

    def __init__(
        self,
        name: str,
        compression: str = "",
        *,
        make_parents: bool = False,
        option: str = "--output_file or --output_dir",
    ) -> None:
        self.name = name
        self._final = None if name == STDIO else Path(os.path.realpath(name))
        self._temporary: Path | None = None
        self._finishing = False
        self._finished: Published | None = None
        self._sink = _Sink(name, -1)
        try:
            self._create(make_parents)
            self.stream = self._stream(compression)
        except OSError as error:
            self.abandon()
            raise not_creatable(name, error, option) from error
        except BaseException:
            self.abandon()
            raise

    def _create(self, make_parents: bool) -> None:
        if self._final is None:
            self._sink.descriptor = os.dup(1)
            return
        if self._final.is_dir() or is_stream(self.name):
            self._sink.descriptor = os.open(self.name, os.O_WRONLY)
            return
        if make_parents:
            self._final.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(self._final)
        token = secrets.token_hex(4)
        self._temporary = self._final.with_name(f".{self._final.name}.{token}.part")
        self._sink.descriptor = create_like(self._final, self._temporary)
        fcntl.flock(self._sink.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _stream(self, compression: str) -> BinaryIO:
        if compression:
            return cast(BinaryIO, _COMPRESS[compression](cast(BinaryIO, self._sink)))
        return cast(BinaryIO, io.BufferedWriter(self._sink, _READ_BYTES))

    def finish(self) -> Published:
        """Make every byte durable under the temporary name. Raises OutputWriteFailed.

        What failed once fails again: the system forgets which bytes it could not store.
        """
        if self._finished is not None:
            return self._finished
        if self._finishing or self._sink.torn:
            raise OutputWriteFailed(f"{self.name}: is incomplete; {_remains(self.name)}")
        self._finishing = True
        try:
            self.stream.close()
            if self._temporary is not None:
                os.fsync(self._sink.descriptor)
            # Some networks say only here what they could not store; the lock stays until `publish`.
            os.close(os.dup(self._sink.descriptor))
        except OSError as error:
            raise write_failed(self.name, error) from error
        self._finished = Published(self.name, self._sink.size, self._sink.digest.hexdigest())
        return self._finished

    def publish(self, name: str | None = None) -> None:
        """Give the finished file its name (or `name`, in the same directory).

        What had that name before stays until this instant. Raises OutputWriteFailed.
        """
        assert self._finished is not None
        if self._temporary is None:
            self._close()
            return
        final = Path(name) if name else cast(Path, self._final)
        try:
            self._temporary.replace(final)
        except OSError as error:
            raise write_failed(self.name, error) from error
        self._temporary = None
        try:
            _sync_directory(final.parent)
            self._close()
        except OSError as error:
            raise OutputWriteFailed(
                f"{self.name}: is complete, but a power cut may undo that: "
                f"{reason_at(final, error)}; run the same command again"
            ) from error

    def abandon(self) -> None:
        """Leave nothing behind. Harmless after `publish`."""
        temporary, self._temporary = self._temporary, None
        # What cannot be removed now has no lock any more, so the next run removes it; and the
        # error that led here is the one to be told.
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._close()

    def _close(self) -> None:
        descriptor, self._sink.descriptor = self._sink.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def remove_abandoned(final: Path) -> None:
    """Remove drafts whose writer was killed: the kernel has released their lock."""
    for part in final.parent.glob(f".{glob.escape(final.name)}.????????.part"):
        try:
            with part.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink(missing_ok=True)
        except (BlockingIOError, FileNotFoundError):  # still being written; published just now
            continue
        except PermissionError:  # another user's, who will remove it
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
    return _remains(name) if is_stream(name) else f"nothing was published, {_remains(name)}"


def _remains(name: str) -> str:
    return "what was written is incomplete" if is_stream(name) else "an old file stays"


def check_creatable(name: str, output_dir: str | None, option: str) -> None:
    """Raise OutputNotCreatable where an output could not be created now; `option` says otherwise.

    Directories below `output_dir` are made when they are needed, `output_dir` itself is not.
    """
    target = Path(os.path.realpath(name))
    parent = Path(output_dir).expanduser() if output_dir else target.parent
    if is_stream(name):
        return
    try:
        if target.is_dir():
            wrong = "is a directory"
        elif not parent.is_dir():
            wrong = f"{parent} is no directory"
        elif os.statvfs(parent).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        elif not os.access(parent, os.W_OK | os.X_OK):
            wrong = f"{parent} is not writable"
        else:
            return
    except OSError as error:
        raise not_creatable(name, error, option) from error
    raise OutputNotCreatable(f"{name}: {wrong}; choose another place with {option}")


def write_durably(path: Path, content: bytes, option: str = "") -> None:
    """Replace a small file atomically. Raises OutputNotCreatable, OutputWriteFailed.

    `option` chooses another place for it.
    """
    draft = Draft(str(path), option=option)
    try:
        draft.stream.write(content)
        draft.finish()
        draft.publish()
    finally:
        draft.abandon()


def _sync_directory(directory: Path) -> None:
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except PermissionError:  # it may be written to, not read
        os.sync()
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
        os.sync()  # directories have no fsync here
    finally:
        os.close(descriptor)


def write_failed(name: str, error: OSError) -> OutputWriteFailed:
    """What is raised where the file system takes no more of the output `name`."""
    return OutputWriteFailed(
        f"{name}: cannot be written: {_reason_at(name, error)}; "
        + "".join(f"{todo}; " for todo in [remedy(error)] if todo)
        + _remains(name)
    )


def not_creatable(name: str, error: OSError, option: str) -> OutputNotCreatable:
    """What is raised where the file system lets no file `name` be; `option` names another place."""
    todo = [remedy(error), f"choose another place with {option}" if option else ""]
    advice = " or ".join(filter(None, todo)) or "choose another place"
    return OutputNotCreatable(f"{name}: cannot be created: {_reason_at(name, error)}; {advice}")


def _reason_at(name: str, error: OSError) -> str:
    return reason(error) if is_stream(name) else reason_at(Path(name), error)
