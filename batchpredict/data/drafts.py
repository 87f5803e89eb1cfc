"""Local outputs: written beside their final name, published at once when they are complete."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from batchpredict.data.locations import STDIO, is_stream
from batchpredict.data.members import Members
from batchpredict.data.permissions import create_like
from batchpredict.data.storage import reason, reason_at, remedy
from batchpredict.errors import (
    OutputNotCreatable,
    OutputWriteFailed,
)

_WRITE_BYTES = 1 << 20


@dataclass(frozen=True)
class Published:
    """A complete file or object. `path`: "-" for standard output. `modified_ns`: since the epoch;
    None of a stream and of an object, which has an `etag`.
    """

    path: str
    size: int
    sha256: str
    modified_ns: int | None = None
    etag: str | None = None


class CountedOutput(io.RawIOBase):
    """Stored bytes of an output, counted and hashed; `put` stores them.

    `torn`: a write did not come to its end. Whoever tries again would write bytes twice. `ended`:
    abandoned; what a buffer above still holds goes nowhere.
    """

    def __init__(self, put: Callable[[memoryview], None]) -> None:
        self._put = put
        self._above: Members | io.BufferedWriter | None = None
        self.size = 0
        self.digest = hashlib.sha256()
        self.torn = self.ended = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self.ended:
            return len(view)
        torn, self.torn = self.torn, True
        self._put(view)
        self.torn = torn
        self.digest.update(view)
        self.size += len(view)
        return len(view)

    def through(self, compression: str) -> BinaryIO:
        """Where to write what is to be stored compressed (".gz", …; "": as it is)."""
        if compression:
            self._above = Members(cast(BinaryIO, self), compression)
        else:
            self._above = io.BufferedWriter(self, _WRITE_BYTES)
        return cast(BinaryIO, self._above)

    def cut(self) -> int:
        """Store what the stream above holds, as a member of its own if compressed; the size so far.

        Where that does not come to its end, this is `torn`.
        """
        torn, self.torn = self.torn, True
        if isinstance(self._above, Members):
            self._above.cut()
        elif self._above is not None:
            self._above.flush()
        self.torn = torn
        return self.size


class Draft:
    """A local output being written beside its final name; only `publish` gives it that name.

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
        option: str = "--output_file or --output_dir",
    ) -> None:
        self.name = name
        self._final = None if name == STDIO else Path(os.path.realpath(name))
        self._temporary: Path | None = None
        self._finishing = False
        self._finished: Published | None = None
        self._descriptor = -1
        self._sink = CountedOutput(self._put)
        try:
            self._create()
            self.stream = self._sink.through(compression)
        except OSError as error:
            self.abandon()
            raise not_creatable(name, error, option) from error
        except BaseException:
            self.abandon()
            raise

    def _create(self) -> None:
        if self._final is None:
            self._descriptor = os.dup(1)
            return
        if self._final.is_dir() or is_stream(self.name):
            self._descriptor = os.open(self.name, os.O_WRONLY)
            return
        remove_abandoned(self._final)
        token = secrets.token_hex(4)
        self._temporary = self._final.with_name(f".{self._final.name}.{token}.part")
        self._descriptor = create_like(self._final, self._temporary)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _put(self, data: memoryview) -> None:
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except BrokenPipeError as error:
            raise OutputWriteFailed(
                f"{self.name}: the reader of the pipe has gone; not all rows were delivered"
            ) from error
        except OSError as error:
            raise write_failed(self.name, error) from error

    def cut(self) -> int:
        """See OutputDraft."""
        return self._sink.cut()

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
                os.fsync(self._descriptor)
            # Some networks say only here what they could not store; the lock stays until `publish`.
            os.close(os.dup(self._descriptor))
            modified_ns = os.fstat(self._descriptor).st_mtime_ns if self._temporary else None
        except OSError as error:
            raise write_failed(self.name, error) from error
        digest = self._sink.digest.hexdigest()
        self._finished = Published(self.name, self._sink.size, digest, modified_ns)
        return self._finished

    def publish(self, name: str | None = None) -> Published:
        """Give the finished file its name (or `name`, in the same directory).

        What had that name before stays until this instant. Raises OutputWriteFailed.
        """
        assert self._finished is not None
        if self._temporary is None:
            self._close()
            return self._finished
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
        return self._finished

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
        self._sink.ended = True
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def remove_abandoned(final: Path) -> None:
    """Remove drafts whose writer was killed: the kernel has released their lock."""
    for part in _drafts(final):
        try:
            with part.open("r+b") as file:  # NFS gives an exclusive lock to writers alone
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink(missing_ok=True)
        except (BlockingIOError, FileNotFoundError):  # still being written; published just now
            continue
        except PermissionError:  # another user's, who will remove it
            continue


def _drafts(final: Path) -> list[Path]:
    """Not by glob, which for many outputs in one directory takes longer than scoring them."""
    start, end = f".{final.name}.", ".part"
    try:
        names = os.listdir(final.parent)  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    drafts = (name for name in names if name.startswith(start) and name.endswith(end))
    return [final.parent / name for name in drafts if len(name) == len(start) + 8 + len(end)]


def unpublished(name: str) -> str:
    """What a run that fails has to say of its output."""
    return _remains(name) if is_stream(name) else f"nothing was published, {_remains(name)}"


def _remains(name: str) -> str:
    return "what was written is incomplete" if is_stream(name) else "an old file stays"


def check_creatable(name: str, output_dir: str | None, option: str) -> None:
    """Raise OutputNotCreatable where a local output could not be created now; `option` says
    otherwise.

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
    """Replace a small local file atomically. Raises OutputNotCreatable, OutputWriteFailed.

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
