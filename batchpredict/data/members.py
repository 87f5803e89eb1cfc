"""Compressed outputs of several members (gzip), streams (bzip2, xz), frames (Zstandard).

Every tool that decompresses one of them decompresses several that follow each other.
"""

from __future__ import annotations

import io
from typing import Any, BinaryIO

from batchpredict.data.locations import COMPRESS


class Members(io.BufferedIOBase):
    """Takes what is to be compressed; `cut` ends a member, so what lies before it stands alone.

    There are no empty ones, but the only one of an output without a byte.
    """

    def __init__(self, sink: BinaryIO, compression: str) -> None:
        self._sink = sink
        self._compress = COMPRESS[compression]
        self._member: Any = None
        self._begun = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if size:
            if self._member is None:
                self._begin()
            self._member.write(data)
        return size

    def _begin(self) -> None:
        self._begun = True
        self._member = self._compress(self._sink)

    def flush(self) -> None:
        """Nothing to do: what is compressed is held back to the end of its member."""

    def cut(self) -> None:
        """End the member that is being written, if one is."""
        member, self._member = self._member, None
        if member is not None:
            member.close()

    def close(self) -> None:
        if self.closed:
            return
        try:
            if not self._begun:
                self._begin()
                self._member.write(b"")  # else Zstandard leaves nothing, which is no frame
            self.cut()
        finally:
            super().close()
