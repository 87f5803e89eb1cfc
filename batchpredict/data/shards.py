"""Which rows of a text begin a shard: told while it is read, or counted without reading rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from batchpredict.data.records import Shard

Int64s = npt.NDArray[np.int64]


class Breaks:
    """Finds the first rows of shards in one block after the other."""

    def __init__(self, shard_bytes: int) -> None:
        self._shard_bytes = shard_bytes
        self._last: int | None = None

    def among(self, offsets: Int64s, row: int) -> tuple[int, ...]:
        """See Records.breaks. `offsets`: of all rows of the block; `row`: the first one's number.

        The first row of the first block is none.
        """
        if not len(offsets):
            return ()
        first, last = int(offsets[0]) // self._shard_bytes, int(offsets[-1]) // self._shard_bytes
        before, self._last = first if self._last is None else self._last, last
        if before == last:
            return ()
        shards = offsets // self._shard_bytes
        return tuple((row + np.flatnonzero(np.diff(shards, prepend=before))).tolist())


@dataclass
class Tally:
    """Makes shards of rows that are counted block after block.

    `offset`, `line`: of the byte that the next block begins with. `row`: of its first row.
    """

    shard_bytes: int
    offset: int
    line: int
    row: int = 1

    def __post_init__(self) -> None:
        self._open: Shard | None = None
        self._border = 0
        self._number = 0

    def is_within(self, end: int) -> bool:
        """Whether all rows of the next block that start before `end` are the open shard's."""
        return self.offset + end <= self._border

    def skip(self, rows: int, lines: int, size: int) -> None:
        """Count a block that `is_within`."""
        self.row += rows
        self.line += lines
        self.offset += size

    def add(self, starts: Int64s, line_feeds: Int64s, size: int) -> Iterator[Shard]:
        """Count a block; the shards that end with its rows.

        `starts`: where in the block its rows start; the first one may before it, in its line.
        """
        at = 0
        while at < len(starts):
            start = self.offset + int(starts[at])
            if start >= self._border:
                if self._open is not None:
                    yield self._closed(self._open, self.row + at)
                line = self.line + int(np.searchsorted(line_feeds, starts[at]))
                self._open = Shard(self._number, start, self.row + at, line)
                self._border = (start // self.shard_bytes + 1) * self.shard_bytes
            at = int(np.searchsorted(starts, self._border - self.offset))
        self.skip(len(starts), len(line_feeds), size)

    def end(self) -> Shard:
        """The last shard; one without rows where there are none."""
        return self._closed(self._open or Shard(0, self.offset, 1, self.line), self.row)

    def _closed(self, shard: Shard, row: int) -> Shard:
        self._number += 1
        return replace(shard, rows=row - shard.row)
