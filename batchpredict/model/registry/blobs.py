"""The cache's files by their content: each is fetched once, however many versions have it."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from batchpredict.errors import ConfigInvalid, OutputWriteFailed
from batchpredict.model.registry.cache_locks import trying, waiting
from batchpredict.model.registry.versions import StoredFile

# Writes a file to a path, going on with what is there, and returns its sha256.
Download = Callable[[StoredFile, Path], str]

_SPARE = 1.01
# A download that nobody went on with for so long is not going to be.
_ABANDONED_SECONDS = 7 * 86400.0
_NO_LINKS = (errno.EMLINK, errno.EPERM, errno.EXDEV, errno.ENOTSUP, errno.EACCES)
_READ_ONLY = 0o444


class Blobs:
    """`folder`/<sha256>, and <sha256>.part while it is fetched."""

    def __init__(self, folder: Path, locks: Path) -> None:
        self._folder = folder
        self._locks = locks

    def check_room(self, files: Iterable[StoredFile]) -> None:
        """Raise OutputWriteFailed where those that are not here do not fit on the disk."""
        need = 0
        for sha256, size in {file.sha256: file.size for file in files}.items():
            if not (self._folder / sha256).exists():
                need += max(0, size - _allocated(self._part(sha256)))
        found = os.statvfs(self._folder)
        free = found.f_bavail * found.f_frsize
        # Some networks report nothing.
        if found.f_blocks and need * _SPARE > free:
            raise OutputWriteFailed(
                f"{self._folder}: {need:,} bytes are to be fetched and {free:,} are free; free"
                " some space there (batchpredict models prune) or set XDG_CACHE_HOME to another"
                " folder"
            )

    def place(self, file: StoredFile, path: Path, download: Download) -> None:
        """Give a file's content the name `path` too, fetched if it is not here.

        Raises ConfigInvalid where the store has other bytes, OSError.
        """
        blob = self._folder / file.sha256
        with waiting(self._locks / file.sha256, file.path):
            if not _is_whole(blob, file):
                blob.unlink(missing_ok=True)
                self._fetch(file, blob, download)
            try:
                os.link(blob, path)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                shutil.copyfile(blob, path)
                path.chmod(_READ_ONLY)

    def _fetch(self, file: StoredFile, blob: Path, download: Download) -> None:
        # Not made durable: what a power cut takes away is noticed before it is used.
        part = self._part(file.sha256)
        for _ in range(2):  # what an earlier call has left may be damaged
            digest = download(file, part)
            if digest == file.sha256 and part.stat().st_size == file.size:
                part.chmod(_READ_ONLY)
                part.replace(blob)
                return
            _discard(part)
        raise ConfigInvalid(
            f"{file.path}: the store has other bytes than the manifest says (sha256 {digest}"
            f" instead of {file.sha256}); verify it: batchpredict models verify"
        )

    def take_in(self, part: Path, digest: str) -> None:
        """Make a file that was just fetched, of whatever content, one of ours."""
        with waiting(self._locks / digest, part.name):
            part.chmod(_READ_ONLY)
            part.replace(self._folder / digest)

    def prune(self) -> int:
        """Remove what no version has, and downloads nobody goes on with; bytes that became free."""
        freed = 0
        for path in list(self._folder.iterdir()):
            sha256 = path.name.partition(".")[0]
            with trying(self._locks / sha256) as free:
                if free:
                    freed += _removed_if_unused(path)
        return freed

    def _part(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.part"


def _removed_if_unused(path: Path) -> int:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return 0
    if path.suffix:  # a download, or what belongs to one
        unused = time.time() - status.st_mtime > _ABANDONED_SECONDS
    else:
        unused = status.st_nlink == 1
    if not unused:
        return 0
    path.unlink(missing_ok=True)
    return status.st_blocks * 512


def _discard(part: Path) -> None:
    """Also what the transport keeps beside it."""
    for path in (part, *part.parent.glob(f"{part.name}.*")):
        path.unlink(missing_ok=True)


def _allocated(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def _is_whole(path: Path, file: StoredFile) -> bool:
    return is_regular(path, file.size) and sha256_of(path) == file.sha256


def is_regular(path: Path, size: int) -> bool:
    """Whether it is a file, no link, of this size."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
