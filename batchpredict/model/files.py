"""Which files a model may consist of: one rule for all that is read of it.

A model directory may come from strangers. What leaves the directory by a link or a path, what is
no regular file (a FIFO would never end) and what is far too large is refused before it is opened.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from batchpredict.errors import ConfigInvalid, Unavailable

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_member(directory: Path, name: str, most: int | None) -> None:
    """`directory`: resolved. `most`: bytes it may have; None where nothing limits it.

    Raises Unavailable (not there, not permitted), ConfigInvalid (breaks the rule).
    """
    path = directory / name
    try:
        real = Path(os.path.realpath(path, strict=True))
        status = real.stat()
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise Unavailable(f"{path}: {reason}; check the files of the model") from error
    if not any(real.is_relative_to(home) for home in _homes(directory)):
        raise ConfigInvalid(
            f"{path}: links to {real}, which is outside of the model's directory;"
            " copy the file into it or give the directory it is in"
        )
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "special")
        raise ConfigInvalid(f"{path}: is {kind}, not a file; copy the model again")
    if most is not None and status.st_size > most:
        raise ConfigInvalid(
            f"{path}: has {status.st_size:,} bytes, such a file has at most {most:,};"
            " export or copy it again"
        )


def read_small(path: Path, most: int) -> bytes:
    """A file of ours, which something may have replaced. Raises OSError, ValueError (no file of at
    most `most` bytes)."""
    # A FIFO without a writer would wait for one.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            raise ValueError("is no small file")
        return file.read(most)


def _homes(directory: Path) -> Iterator[Path]:
    """Where links of a model may end: in it, or where Hugging Face's cache keeps its contents.

    There models--X/snapshots/COMMIT/model.onnx is a link to models--X/blobs/SHA256.
    """
    yield directory
    for parent in directory.parents:
        if parent.name == "snapshots":
            yield parent.parent / "blobs"  # not resolved: a link in its place leads outside
            return
