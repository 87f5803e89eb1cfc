"""What a file system has to say: its free space, and its errors in words."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from batchpredict.errors import InputMissing

# What to do about an error; where nothing is said, another place is the only advice.
_REMEDIES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some of your quota there",
    errno.EFBIG: "raise the limit (ulimit -f) or use a file system that takes larger files",
    errno.EIO: "check the disk (dmesg)",
    errno.EROFS: "mount it writable (dmesg says if an error made it read-only)",
    **dict.fromkeys(
        (
            errno.ESTALE,
            errno.ENOTCONN,
            errno.ENODEV,
            errno.ETIMEDOUT,
            errno.EHOSTDOWN,
            errno.EHOSTUNREACH,
        ),
        "check the mount",
    ),
}
# Errors of a name or of permissions, to which free space has nothing to add.
_OF_NAMES = (
    errno.EACCES,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
)
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True)
class Space:
    """A file system. `free`: bytes this user may still write; `full`: no file can be added."""

    device: int
    mount: str
    free: int
    full: bool

    def __str__(self) -> str:
        inodes = ", but no inode," if self.full else ""
        return f"{amount(self.free)}{inodes} free on {self.mount}"


def space_at(path: Path) -> Space | None:
    """The file system that holds `path`, or would; None where it does not say, or is gone."""
    path = Path(os.path.realpath(path))
    for place in (path, *path.parents):
        try:
            status, found = place.stat(), os.statvfs(place)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:  # the mount has gone, or may not be asked
            return None
        if not found.f_blocks:  # /proc, and networks that do not know
            return None
        mount = next(p for p in (place, *place.parents) if p.is_mount() or p == p.parent)
        full = found.f_files > 0 and found.f_favail == 0
        return Space(status.st_dev, str(mount), found.f_bavail * found.f_frsize, full)
    return None


def amount(count: float) -> str:
    """Bytes as people read them: "12.3 MB"."""
    unit = 0
    while count >= 999.95 and unit < len(_UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.1f} {_UNITS[unit]}" if unit else f"{count:.0f} B"


def reason(error: OSError) -> str:
    """An error in words: "permission denied"."""
    said = os.strerror(error.errno) if error.errno else str(error)
    return " ".join(said.lower().split())


def reason_at(path: Path, error: OSError) -> str:
    """An error in words, with the free space of its file system where it may be the cause."""
    space = None if error.errno in _OF_NAMES else space_at(path)
    return f"{reason(error)} ({space})" if space else reason(error)


def remedy(error: OSError) -> str:
    """What to do about an error beyond choosing another place; "" where there is nothing."""
    return _REMEDIES.get(error.errno or 0, "")


def unreadable(name: str, error: OSError) -> InputMissing:
    """What is raised where an input cannot be read because of its file system."""
    return InputMissing(
        f"{name}: cannot be read: {reason(error)}; {remedy(error) or 'check the path'}"
    )
