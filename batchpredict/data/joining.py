"""Parts of one output joined to the output that one writer would have written.

Stored bytes are copied as they are, nothing is decompressed or parsed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import closing

from batchpredict.data.records import Part
from batchpredict.data.sources import origin_of
from batchpredict.errors import TryAgain

_READ_BYTES = 1 << 20
# Of a part behind its rows. A damaged size must not ask for all memory at once.
_MOST_TAIL_BYTES = 1 << 30


class StoredPart:
    """A part that is read in order, from its byte `at` on. Raises InputMissing, TryAgain."""

    def __init__(self, part: Part, at: int) -> None:
        self._part = part
        self._position = at
        self._origin = origin_of(part.name)
        if self._origin.size != part.size:
            raise TryAgain(
                f"{part.name}: has {self._origin.size} bytes, not the {part.size} written; run "
                "again"
            )
        self._raw: io.RawIOBase = self._origin.open(at)

    def up_to(self, end: int) -> Iterator[memoryview]:
        """The bytes up to `end`, each piece good until the next one is asked for."""
        buffer = memoryview(bytearray(min(_READ_BYTES, max(0, end - self._position))))
        while self._position < end:
            count = self._raw.readinto(buffer[: end - self._position])
            if not count:
                raise TryAgain(f"{self._part.name}: ends early; run again")
            self._position += count
            yield buffer[:count]

    def rest(self) -> bytes:
        """What follows."""
        if self._part.size - self._position > _MOST_TAIL_BYTES:
            raise TryAgain(f"{self._part.name}: is no part of an output; run again")
        return b"".join(map(bytes, self.up_to(self._part.size)))

    def close(self) -> None:
        """Raises TryAgain where it is not what it was when it was opened."""
        try:
            self._origin.check_unchanged(self._raw)
        finally:
            self._raw.close()


def concatenated(parts: Sequence[Part], between: bytes = b"") -> Iterator[bytes | memoryview]:
    """Parts whose rows can follow each other as they are; see FormatModule.join.

    `between`: what a writer puts before rows that are not its first.
    """
    yield from _pieces(parts[0], 0, parts[0].begin)
    some = [part for part in parts if part.end > part.begin]
    for number, part in enumerate(some):
        if number and between:
            yield between
        yield from _pieces(part, part.begin, part.end)
    # That of a part without rows may be another one.
    last = (some or parts)[-1]
    yield from _pieces(last, last.end, last.size)


def _pieces(part: Part, begin: int, end: int) -> Iterator[memoryview]:
    if begin < end:
        with closing(StoredPart(part, begin)) as stored:
            yield from stored.up_to(end)
