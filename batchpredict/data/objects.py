"""Inputs that are objects in S3."""

from __future__ import annotations

import io
from pathlib import Path

from batchpredict import s3
from batchpredict.errors import InputMissing, TryAgain


class StoredObject:
    """An object as it is now. Obeys the Origin protocol. Raises InputMissing, Unavailable."""

    path: Path | None = None
    rereadable = True

    def __init__(self, name: str) -> None:
        self.name = name
        try:
            self._stored = s3.store().head(s3.parse(name))
        except s3.Missing as error:
            raise InputMissing(f"{error}; check the name") from error
        self.size: int | None = self._stored.size
        self.modified_ns: int | None = self._stored.modified_ns
        self.etag: str | None = self._stored.etag

    def open(self, at: int = 0) -> io.RawIOBase:
        """The bytes from `at` on; all of this object, or reading raises TryAgain."""
        return s3.store().open(self._stored, at)

    def fingerprint(self) -> str:
        """What the store calls this content."""
        return self._stored.etag

    def check_unchanged(self, opened: io.RawIOBase | None) -> None:  # noqa: ARG002 - it is pinned
        """Raise TryAgain where another object has its name; one that is gone was as it was."""
        try:
            now = s3.store().head(self._stored.address)
        except s3.Missing:
            return
        if now.etag != self._stored.etag:
            raise TryAgain(f"{self.name}: was replaced while it was read; run again")
