"""Inputs in memory for tests of readers and writers."""

from __future__ import annotations

import io
from typing import BinaryIO, cast


class Trickle(io.RawIOBase):
    """Gives at most `step` bytes a read, however many are asked for."""

    def __init__(self, data: bytes, step: int) -> None:
        self._data = io.BytesIO(data)
        self._step = step

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._data.read(self._step if size < 0 else min(size, self._step))


class MemorySource:
    """An input held in memory. Obeys Source."""

    rereadable = True
    compression = ""

    def __init__(self, data: bytes, step: int = 1 << 20, name: str = "memory") -> None:
        self.name = name
        self._data = data
        self._step = step

    def open(self, at: int = 0) -> BinaryIO:
        """The bytes from `at` on."""
        return cast(BinaryIO, Trickle(self._data[at:], self._step))

    def local_path(self) -> None:
        """There is none."""
