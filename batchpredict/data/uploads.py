"""Uploads in parts that a run has begun, noted on this machine until they are over.

Parts of an upload that is neither completed nor aborted are stored, and paid for, without end. A
note is locked by the process that uploads; the kernel ends the lock with the process, and then the
upload is the next run's to abort.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
from pathlib import Path

from batchpredict import s3
from batchpredict.data.state import make_state_directory, state_directory
from batchpredict.data.storage import reason
from batchpredict.errors import OutputNotCreatable

logger = logging.getLogger(__name__)

_MOST_BYTES = 4096


def object_state(name: str, suffix: str) -> Path:
    """A local file for what is kept of the object `name`. Raises OutputNotCreatable, UsageError."""
    directory = state_directory("journals")
    if directory is None:
        raise OutputNotCreatable(
            f"{name}: its journal has no place: HOME is not set; set it or XDG_STATE_HOME"
        )
    place = f"{s3.endpoint() or ''} {s3.parse(name).url}"
    key = hashlib.sha256(place.encode()).hexdigest()[:32]
    return directory / f"{key}{suffix}"


def make_place(path: Path) -> None:
    """Make the directory that `object_state` names. Raises OutputNotCreatable."""
    try:
        make_state_directory(path.parent)
    except OSError as error:
        raise _not_kept(path, error) from error


def _not_kept(path: Path, error: OSError) -> OutputNotCreatable:
    why = reason(error) if error.errno else "not writable"
    return OutputNotCreatable(
        f"{path}: the state of an object cannot be kept: {why}; set XDG_STATE_HOME to a directory "
        "that can be written"
    )


class UploadNote:
    """Says that this process has begun an upload in parts of the object `name`."""

    def __init__(self, name: str, upload_id: str) -> None:
        path = object_state(name, f".{secrets.token_hex(4)}.upload")
        make_place(path)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(self._descriptor, upload_id.encode())
        except OSError as error:
            raise _not_kept(path, error) from error
        self._path = path

    def close(self, *, over: bool) -> None:
        """Remove the note of an upload that is over; else leave it to the next run."""
        if over:
            with contextlib.suppress(OSError):  # aborting what is over does no harm
                self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def abort_abandoned(name: str) -> None:
    """Abort uploads of the object `name` whose process was killed. Raises Unavailable."""
    pattern = object_state(name, ".????????.upload")
    for note in pattern.parent.glob(pattern.name):
        try:
            with note.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                upload_id = file.read(_MOST_BYTES).decode("ascii", "replace")
                if upload_id:
                    s3.store().abort_stale(s3.parse(name), upload_id)
                note.unlink(missing_ok=True)
        except s3.Denied as error:  # who may not abort may write all the same
            logger.warning(
                "%s; parts that a killed run has uploaded stay, and are paid for: have them "
                "aborted (s3:AbortMultipartUpload)",
                error,
            )
        except (BlockingIOError, FileNotFoundError):  # still being written; over just now
            continue
        except OSError as error:
            raise _not_kept(note, error) from error
