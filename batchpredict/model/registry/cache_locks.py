"""Locks of the cache. They save work; that nothing wrong is used never depends on them, as some
network file systems lack locks or grant them to everybody."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from batchpredict.signals import check_signals

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


@contextmanager
def waiting(path: Path, what: str) -> Iterator[None]:
    """Hold the lock of `path`, which is made, once nobody else has it. Raises OSError."""
    told = False
    while True:
        descriptor = _try_lock(path)
        if descriptor is not None:
            break
        if not told:
            logger.info("another process is fetching %s; waiting for it", what)
            told = True
        check_signals()
        time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def trying(path: Path) -> Iterator[bool]:
    """Whether the lock of `path` was free; then it is held, and the file goes with it."""
    descriptor = _try_lock(path)
    if descriptor is None:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o600)
        if not lock(descriptor, fcntl.LOCK_EX):
            os.close(descriptor)
            return None
        if is_still(path, descriptor):
            return descriptor
        os.close(descriptor)  # its last holder has removed it


def lock(descriptor: int, kind: int) -> bool:
    """Lock an open file if nobody else has; also True where there are no locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def is_still(path: Path, descriptor: int) -> bool:
    """Whether the open file is the one that has the name."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
