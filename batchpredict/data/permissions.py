"""Who may read a file that is to replace another: whoever may read that one, and nobody else."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

_ACCESS_LIST = "system.posix_acl_access"
_NO_LIST = (errno.ENODATA, errno.ENOTSUP, errno.ENOSYS)
# Not ours to change; no such user in this container; a file system with permissions of its own.
_REFUSED = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


def create_like(old: Path, new: Path) -> int:
    """Create the file `new`, open for writing, with the access that `old` grants.

    Where there is no `old`, the umask decides, as for every new file. At no instant does anybody
    have more access than in the end. Raises OSError.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    private = old.exists()
    descriptor = os.open(new, flags, 0o600 if private else 0o666)
    if private:
        try:
            keep_access(old, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor


def keep_access(old: Path, descriptor: int) -> None:
    """Give a file that only its owner can open the owner, group, list and bits of `old`.

    What the system does not let us keep grants less than before, never more. Raises OSError;
    harmless where `old` has gone.
    """
    try:
        wanted = old.stat()
    except FileNotFoundError:
        return
    bits = stat.S_IMODE(wanted.st_mode) & 0o777
    if not (_keep_owner(wanted, descriptor) and _keep_list(old, descriptor)):
        bits = bits & ~0o070 | (bits & 0o007) << 3  # the group is another one: as all others
    if stat.S_IMODE(os.fstat(descriptor).st_mode) != bits:
        with _where_allowed():
            os.fchmod(descriptor, bits)


def _keep_owner(wanted: os.stat_result, descriptor: int) -> bool:
    """Whether the group is the old one's; the owner is where we may (root may)."""
    for owner in (wanted.st_uid, -1):
        found = os.fstat(descriptor)
        if found.st_gid == wanted.st_gid and owner in (found.st_uid, -1):
            return True
        with _where_allowed():
            os.fchown(descriptor, owner, wanted.st_gid)
    return os.fstat(descriptor).st_gid == wanted.st_gid


def _keep_list(old: Path, descriptor: int) -> bool:
    """Whether the access control list is the old one's, also where neither has one.

    With a list the bits of the group are its mask, which say nothing of what the group may do.
    """
    listed = _access_list(old)
    if listed != _access_list(descriptor):
        with _where_allowed():
            if listed is None:  # the directory hands one down
                os.removexattr(descriptor, _ACCESS_LIST)
            else:
                os.setxattr(descriptor, _ACCESS_LIST, listed)
    return listed == _access_list(descriptor)


@contextlib.contextmanager
def _where_allowed() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSED:
            raise


def _access_list(file: Path | int) -> bytes | None:
    try:
        return os.getxattr(file, _ACCESS_LIST)
    except OSError as error:
        if error.errno in _NO_LIST:
            return None
        raise
