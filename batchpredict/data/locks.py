"""One run per output: a lock on its journal.

The journal of a file lies beside it; that of an object is a file of this machine, whose runs alone
exclude each other (see object_drafts.py).
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from batchpredict import s3
from batchpredict.data.drafts import write_failed
from batchpredict.data.locations import is_stream
from batchpredict.data.permissions import keep_access
from batchpredict.data.storage import reason_at
from batchpredict.data.uploads import make_place, object_state
from batchpredict.errors import OutputNotCreatable, TryAgain
from batchpredict.signals import check_signals

_POLL_SECONDS = 0.1
# `is_locked` takes a lock for an instant, shared; one that is shared for longer is of no look.
_LOOK_SECONDS, _LOOK_POLL_SECONDS = 5.0, 0.005


@dataclass(frozen=True)
class Held:
    """A lock that this process has. `path`: the locked file, kept or removed by its holder."""

    path: Path
    descriptor: int

    def empty(self) -> None:
        """Cut the file to nothing. Raises OutputWriteFailed."""
        try:
            os.ftruncate(self.descriptor, 0)
        except OSError as error:
            raise write_failed(str(self.path), error) from error

    def remove(self) -> None:
        """Remove the file; the lock ends with the descriptor. Raises OSError.

        Not one of the same name that another run has made since.
        """
        if _still_named(self.path, self.descriptor):
            self.path.unlink(missing_ok=True)


def journal_path(output: str) -> Path:
    """Where the journal of an output lies: beside the file that is replaced, hidden.

    Raises OutputNotCreatable, UsageError of an object.
    """
    if s3.is_url(output):
        return object_state(output, ".journal")
    return Path(hidden_beside(os.path.realpath(output))[0])


def notes_path(output: str) -> Path:
    """Where the rows of an output in flight are noted."""
    return journal_path(output).with_suffix(".inflight")


def hidden_beside(real: str) -> tuple[str, str]:
    """The journal and the notes of an output that is no object. `real`: its real path."""
    directory, name = os.path.split(real)
    stem = os.path.join(directory, f".{name}")  # noqa: PTH118
    return f"{stem}.journal", f"{stem}.inflight"


@contextmanager
def lock_output(output: str, wait: float = 0.0) -> Iterator[Held | None]:
    """Hold the lock of an output; None for a stream, which has nothing beside it.

    The kernel ends a lock with its process, so none is ever stale. Raises TryAgain where another
    run has it for longer than `wait` seconds, OutputNotCreatable, OutputWriteFailed.
    """
    if is_stream(output):
        yield None
        return
    path = journal_path(output)
    if s3.is_url(output):
        make_place(path)
    descriptor = _locked(path, output, wait)
    try:
        yield Held(path, descriptor)
    finally:
        _close(path, descriptor)


def is_locked(descriptor: int) -> bool:
    """Whether another process has the lock of the journal that is open here, for reading or more.

    Where the file system has no locks, nobody has. Raises OSError.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        return False
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def _locked(path: Path, output: str, wait: float) -> int:
    """A descriptor of the file that has this name now, locked."""
    begin = time.monotonic()
    while True:
        descriptor = _opened(path, output)
        try:
            locked = _try(descriptor, path, output, fcntl.LOCK_EX)
            if locked and _still_named(path, descriptor):
                _protect(descriptor, path, output)
                return os.dup(descriptor)
            looked_at = not locked and _try(descriptor, path, output, fcntl.LOCK_SH)
        finally:
            _close(path, descriptor)
        if looked_at:
            _pause(output, begin + max(wait, _LOOK_SECONDS), _LOOK_POLL_SECONDS)
        elif not locked:
            _pause(output, begin + wait, _POLL_SECONDS)


def _close(path: Path, descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError as error:  # a network file system that could not take the last of it
        raise write_failed(str(path), error) from error


def _opened(path: Path, output: str) -> int:
    # There will be scores in it: it shows no more than an output that it is to replace.
    replaces = s3.is_url(output) or Path(os.path.realpath(output)).exists()
    try:
        mode = 0o600 if replaces else 0o666
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    except OSError as error:
        raise _unusable(output, path, f"created: {reason_at(path, error)}") from error


def _unusable(output: str, path: Path, reason: str) -> OutputNotCreatable:
    option = "XDG_STATE_HOME" if s3.is_url(output) else "--output_file or --output_dir"
    return OutputNotCreatable(
        f"{output}: its journal {path} cannot be {reason}; choose another place with {option}"
    )


def _protect(descriptor: int, path: Path, output: str) -> None:
    if s3.is_url(output):
        return
    try:
        if not os.fstat(descriptor).st_size:
            keep_access(Path(os.path.realpath(output)), descriptor)
    except OSError as error:
        raise _unusable(output, path, f"protected: {reason_at(path, error)}") from error


def _try(descriptor: int, path: Path, output: str, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a file system without locks
        raise _unusable(output, path, f"locked: {reason_at(path, error)}") from error
    return True


def _still_named(path: Path, descriptor: int) -> bool:
    """Whether the locked file is the one that has the name: its last holder may have removed it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _pause(output: str, deadline: float, seconds: float) -> None:
    if time.monotonic() >= deadline:
        raise TryAgain(
            f"{output}: another run is writing it; try again when that one has ended, or wait for "
            "it with --lock_wait=SECONDS"
        )
    check_signals()
    time.sleep(seconds)
