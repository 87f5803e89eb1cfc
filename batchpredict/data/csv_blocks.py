"""Blocks of whole CSV records out of a stream, in memory that the longest record bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from batchpredict.data.csv_cut import Cut, Flaw, Grammar, cut_begin
from batchpredict.data.records import BLOCK_BYTES

# The beginning of a record that is too long to be held; the rejects file shows no more of it.
HEAD_BYTES = 1 << 16
# A record that goes on is read in steps that double; blocks are addressed with 32 bits.
_MOST_READ_BYTES = 64 << 20


class _Found(Protocol):
    """What looking at a block has found; see Cut."""

    @property
    def flaws(self) -> Sequence[Flaw]: ...
    @property
    def consumed(self) -> int: ...
    @property
    def overlong(self) -> bool: ...


Found = TypeVar("Found", bound=_Found)
Finder = Callable[[bytes, Grammar, bool], Found]


class Stream(Protocol):
    def read(self, size: int = -1, /) -> bytes:
        """About `size` bytes; b"" only at the end."""
        ...


@dataclass(frozen=True)
class Skipped:
    """A record that is too long to be held. `length`: with the line end.

    `head`: its beginning, a byte more than HEAD_BYTES where it has so many.
    """

    length: int
    head: bytes


@dataclass(frozen=True)
class Piece(Generic[Found]):
    """`found` tells of the first `found.consumed` bytes of `block`.

    `skipped`: the record that the last flaw begins, which goes on behind the block.
    """

    block: bytes
    found: Found
    skipped: Skipped | None

    @property
    def size(self) -> int:
        """Bytes up to the record that the next piece begins with."""
        if self.skipped is None:
            return self.found.consumed
        return self.found.flaws[-1].start + self.skipped.length


def pieces(
    stream: Stream,
    begun: tuple[bytes, bool],
    grammar: Grammar,
    find: Finder[Found],
    step: int | None = None,
) -> Iterator[Piece[Found | Cut]]:
    """All records. `begun`: bytes read already, and whether they are all; they begin with a record.

    `find`: `cut`, or what finds the same borders. `step`: bytes of a block; else BLOCK_BYTES.
    """
    step = step or BLOCK_BYTES
    block, final = begun
    while True:
        # What was read for one long record may hold millions of short ones.
        window = block if len(block) < 2 * step else block[:step]
        found: Found | Cut = find(window, grammar, final and len(window) == len(block))
        if not found.consumed and len(window) < len(block):
            line_end = block.find(b"\n", len(window)) + 1
            window = block[: line_end or len(block)]
            found = find(window, grammar, final and len(window) == len(block))
        if not found.consumed and len(window) < len(block):
            window = block
            found = cut_begin(block, grammar, final)
        skipped, rest = None, block[found.consumed :]
        if found.overlong:
            skipped, rest = _skip(stream, window[found.flaws[-1].start :], block[len(window) :])
        yield Piece(window, found, skipped)
        block = rest
        if len(block) >= step and found.consumed:
            continue
        if final and not block:
            return
        more = stream.read(min(max(len(block), step), _MOST_READ_BYTES))
        block, final = block + more, not more


def _skip(stream: Stream, begin: bytes, rest: bytes) -> tuple[Skipped, bytes]:
    """Read up to the LF that ends a record too long to be held, and what was read beyond it.

    `rest`: read already.
    """
    head, length = begin[: HEAD_BYTES + 1], len(begin)
    while True:
        more, rest = rest or stream.read(BLOCK_BYTES), b""
        end = more.find(b"\n") + 1
        last = end or len(more)
        head += more[: min(last, HEAD_BYTES + 1 - len(head))]
        length += last
        if end or not more:
            return Skipped(length, head), more[end:]
