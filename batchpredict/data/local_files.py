"""Inputs that are local files or streams: opened, and watched for changes."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from batchpredict.data.locations import STDIO
from batchpredict.data.storage import reason, unreadable
from batchpredict.errors import InputMissing, TryAgain

# Of each end of an input: an appended, truncated or replaced file differs there.
FINGERPRINT_BYTES = 64 << 10


@dataclass(frozen=True)
class _Identity:
    device: int
    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> _Identity:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class _OpenFile(io.RawIOBase):
    """A descriptor that is read."""

    def __init__(self, name: str, descriptor: int) -> None:
        self._name = name
        self.descriptor = descriptor

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return os.readv(self.descriptor, [buffer])
        except OSError as error:
            raise unreadable(self._name, error) from error

    def close(self) -> None:
        if not self.closed:
            os.close(self.descriptor)
        super().close()


class LocalFile:
    """A local file or standard input. Obeys the Origin protocol."""

    etag: str | None = None

    def __init__(self, name: str) -> None:
        self.name = name
        self._file = None if name == STDIO else Path(name)
        status = self._status()
        self.rereadable = stat.S_ISREG(status.st_mode) and self._file is not None
        self.path = self._file if self.rereadable else None
        self.size = status.st_size if self.rereadable else None
        self.modified_ns = status.st_mtime_ns if self.rereadable else None
        self._identity = _Identity.of(status)

    def _status(self) -> os.stat_result:
        try:
            status = os.fstat(0) if self._file is None else self._file.stat()
        except OSError as error:
            raise InputMissing(f"{self.name}: {reason(error)}; check the path") from error
        if stat.S_ISDIR(status.st_mode):
            raise InputMissing(f"{self.name}: is a directory, not a file")
        return status

    def open(self, at: int = 0) -> _OpenFile:
        try:
            descriptor = os.dup(0) if self._file is None else os.open(self._file, os.O_RDONLY)
        except OSError as error:
            raise InputMissing(f"{self.name}: {reason(error)}; check the path") from error
        opened = _OpenFile(self.name, descriptor)
        try:
            self.check_unchanged(opened)
            if at:
                os.lseek(descriptor, at, os.SEEK_SET)
        except BaseException:
            opened.close()
            raise
        return opened

    def fingerprint(self) -> str:
        """The sha256 of the first and last FINGERPRINT_BYTES, in hexadecimal."""
        try:
            with cast(Path, self.path).open("rb") as file:
                begin = file.read(FINGERPRINT_BYTES)
                file.seek(max(0, (self.size or 0) - FINGERPRINT_BYTES))
                return hashlib.sha256(begin + file.read(FINGERPRINT_BYTES)).hexdigest()
        except OSError as error:
            raise InputMissing(f"{self.name}: {reason(error)}; check the path") from error

    def check_unchanged(self, opened: io.RawIOBase | None) -> None:
        if self.rereadable and self._identities(opened) != {self._identity}:
            raise TryAgain(f"{self.name}: changed while it was read; run again when it is complete")

    def _identities(self, opened: io.RawIOBase | None) -> set[_Identity]:
        found = set()
        try:
            if isinstance(opened, _OpenFile) and not opened.closed:
                found.add(_Identity.of(os.fstat(opened.descriptor)))
            found.add(_Identity.of(cast(Path, self.path).stat()))
        except FileNotFoundError:  # what is still open was removed, but is as it was
            return found
        except OSError as error:
            raise unreadable(self.name, error) from error
        return found
