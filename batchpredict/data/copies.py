"""Local copies of inputs that lie elsewhere, for formats that are not read from start to end."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from batchpredict.data.storage import amount, reason, reason_at, remedy, space_at
from batchpredict.errors import OutputNotCreatable, OutputWriteFailed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Copy:
    """All bytes of the object `name` as it was when it had this ETag."""

    name: str
    etag: str
    file: BinaryIO
    sha256: str


# The process's last one that was kept: who has read one shard of an object reads another.
_kept: list[Copy] = []


def kept_copy(name: str, etag: str | None) -> Copy | None:
    """The copy of this object, if it is the one kept. Another one goes, to make room."""
    if _kept and (_kept[0].name, _kept[0].etag) != (name, etag):
        _kept.pop().file.close()
    return _kept[0] if _kept else None


def keep_copy(copy: Copy) -> None:
    """Keep it, and no other, until `kept_copy` is asked for another one or the process ends."""
    assert not _kept
    _kept.append(copy)


def new_copy(name: str, size: int) -> BinaryIO:
    """An empty file for the `size` bytes of the input `name`. It has no name: it goes when it is
    closed, and with the process.

    Raises OutputNotCreatable, also where there is not room enough.
    """
    try:
        directory = Path(tempfile.gettempdir())
        space = space_at(directory)
        if space is not None and size > space.free:
            raise OutputNotCreatable(
                f"{name}: its copy, for a format that is not read from start to end, needs "
                f"{amount(size)}, {space}; name another directory with TMPDIR"
            )
        copy = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - the caller closes it
    except OSError as error:
        raise OutputNotCreatable(
            f"{name}: no temporary file can be made for its copy: {reason(error)}; name another "
            "directory with TMPDIR"
        ) from error
    logger.info("%s: fetching %s into %s", name, amount(size), directory)
    return cast(BinaryIO, copy)


def add(copy: BinaryIO, data: memoryview) -> None:
    """Append to a copy. Raises OutputWriteFailed."""
    try:
        while data:
            data = data[copy.write(data) :]
    except OSError as error:
        directory = Path(tempfile.gettempdir())
        raise OutputWriteFailed(
            f"{directory}: takes no more of a copy of the input: {reason_at(directory, error)}; "
            f"{remedy(error) or 'check the disk'}, or name another directory with TMPDIR"
        ) from error
