"""One run per output: a lock on the journal beside it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from batchpredict.data.locations import is_stream, write_failed
from batchpredict.errors import OutputNotCreatable, TryAgain

_POLL_SECONDS = 0.1
# `check_unlocked` of another run has a lock for an instant; that must not end this one.
_PATIENCE_SECONDS = 0.2


@dataclass(frozen=True)
class Held:
    """A lock that this process has. `path`: the locked file, kept or removed by its holder."""

    path: Path
    descriptor: int

    def empty(self) -> None:
        """Cut the file to nothing. Raises OutputWriteFailed."""
        self._do(partial(os.ftruncate, self.descriptor, 0))

    def remove(self) -> None:
        """Remove the file; the lock ends with the descriptor. Raises OutputWriteFailed."""
        self._do(partial(self.path.unlink, missing_ok=True))

    def _do(self, act: Callable[[], None]) -> None:
        try:
            act()
        except OSError as error:
            raise write_failed(str(self.path), error) from error


def journal_path(output: str) -> Path:
    """Where the journal of an output lies: beside the file that is replaced, hidden."""
    final = Path(os.path.realpath(output))
    return final.with_name(f".{final.name}.journal")


@contextmanager
def lock_output(output: str, wait: float = 0.0) -> Iterator[Held | None]:
    """Hold the lock of an output; None for a stream, which has nothing beside it.

    The kernel ends a lock with its process, so none is ever stale. Raises TryAgain where another
    run has it for longer than `wait` seconds, OutputNotCreatable.
    """
    if is_stream(output):
        yield None
        return
    path = journal_path(output)
    descriptor = _locked(path, output, _deadline(wait))
    try:
        yield Held(path, descriptor)
    finally:
        os.close(descriptor)


def check_unlocked(output: str, wait: float = 0.0) -> None:
    """Raise TryAgain where another run has the lock of an output for longer than `wait` seconds."""
    path = journal_path(output)
    if is_stream(output) or not path.exists():
        return
    deadline = _deadline(wait)
    with _opened(path, output, os.O_RDWR) as descriptor:
        while descriptor is not None and not _try(descriptor, path, output):
            _wait(output, deadline)


def _deadline(wait: float) -> float:
    return time.monotonic() + max(wait, _PATIENCE_SECONDS)


def _locked(path: Path, output: str, deadline: float) -> int:
    """A descriptor of the file that has this name now, locked."""
    while True:
        with _opened(path, output, os.O_RDWR | os.O_CREAT) as descriptor:
            if (
                descriptor is not None
                and _try(descriptor, path, output)
                and _still_named(path, descriptor)
            ):
                return os.dup(descriptor)
        _wait(output, deadline)


@contextmanager
def _opened(path: Path, output: str, flags: int) -> Iterator[int | None]:
    """A descriptor; None where the file vanished meanwhile."""
    try:
        # Until something is committed there is nothing in it; then it is as private as a draft.
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        if flags & os.O_CREAT:
            raise _unusable(output, path, "created: no such directory") from None
        yield None
        return
    except OSError as error:
        raise _unusable(output, path, f"created: {(error.strerror or '').lower()}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _unusable(output: str, path: Path, reason: str) -> OutputNotCreatable:
    return OutputNotCreatable(
        f"{output}: its journal {path} cannot be {reason}; choose another place with "
        "--output_file or --output_dir"
    )


def _try(descriptor: int, path: Path, output: str) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a file system without locks
        raise _unusable(output, path, f"locked: {(error.strerror or '').lower()}") from error
    return True


def _still_named(path: Path, descriptor: int) -> bool:
    """Whether the locked file is the one that has the name: its last holder may have removed it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _wait(output: str, deadline: float) -> None:
    if time.monotonic() >= deadline:
        raise TryAgain(
            f"{output}: another run is writing it; try again when that one has ended, or wait for "
            "it with --lock_wait=SECONDS"
        )
    time.sleep(_POLL_SECONDS)
