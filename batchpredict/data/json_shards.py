"""Where the shards of JSON Lines begin, found without parsing them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from batchpredict.data.bits import Bits, Int64s, behind, bits_of, count, last_place, places, up_to
from batchpredict.data.jsonreader import begin, longest
from batchpredict.data.jsontext import BLANK
from batchpredict.data.records import WHOLE, Dialect, Shard, Source
from batchpredict.data.shards import Tally

_BLANK_BYTES = BLANK.encode()
_LF, _SPACE = 10, 32


def json_shards(source: Source, dialect: Dialect) -> Iterator[Shard]:
    """See FormatModule.shards."""
    if not source.rereadable or source.compression:
        yield WHOLE
        return
    chunks, line, is_array = begin(source, dialect.json_array)
    if is_array:
        yield WHOLE
        return
    tally = Tally(dialect.shard_bytes, chunks.position - chunks.bom, line)
    yield from _line_shards(chunks, tally, longest(dialect))


class _Line:
    """A line whose end is not in sight yet."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.begin()

    def begin(self) -> None:
        self.size = 0
        self._blank = True

    def add(self, data: bytes) -> None:
        self.size += len(data)
        self._blank = self._blank and not data.strip(_BLANK_BYTES)

    @property
    def is_row(self) -> bool:
        """As the reader sees it: a blank line is one where it is too long."""
        return not self._blank or self.size > self._limit


def _line_shards(chunks: Iterable[bytes], tally: Tally, limit: int) -> Iterator[Shard]:
    """The shards of the lines in `chunks`. `tally`: at their begin."""
    held = _Line(limit)
    for chunk in chunks:
        line_feeds = bits_of(np.frombuffer(chunk, np.uint8) == _LF)
        last = last_place(line_feeds)
        if last < 0:
            held.add(chunk)
            tally.skip(0, 0, len(chunk))
            continue
        first = chunk.index(b"\n")
        held.add(chunk[:first])
        begins = up_to(behind(line_feeds, first=False), last)
        blanks = _blanks(chunk, begins, limit)
        rows = count(begins) - len(blanks) + held.is_row
        if tally.is_within(last):
            tally.skip(rows, count(line_feeds), len(chunk))
        else:
            starts = np.setdiff1d(places(begins), blanks, assume_unique=True)
            if held.is_row:
                starts = np.concatenate(([first - held.size], starts))
            yield from tally.add(starts, places(line_feeds), len(chunk))
        held.begin()
        held.add(chunk[last + 1 :])
    if held.size and held.is_row:
        yield from tally.add(np.array([-held.size]), np.empty(0, np.int64), 0)
    yield tally.end()


def _blanks(chunk: bytes, begins: Bits, limit: int) -> Int64s:
    """Where lines begin that are no rows."""
    perhaps = begins & bits_of(np.frombuffer(chunk, np.uint8) <= _SPACE)
    if not perhaps.any():
        return np.empty(0, np.int64)
    found = []
    for start in places(perhaps).tolist():
        end = chunk.index(b"\n", start)
        if end - start <= limit and not chunk[start:end].strip(_BLANK_BYTES):
            found.append(start)
    return np.array(found, np.int64)
