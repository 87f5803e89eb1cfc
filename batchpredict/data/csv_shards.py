"""Where the shards of a CSV file begin, found without looking at cells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batchpredict.data.bits import (
    Bits,
    Int64s,
    ahead,
    behind,
    bits_of,
    count,
    last_place,
    odd_so_far,
    places,
    up_to,
    with_bit,
)
from batchpredict.data.csv_blocks import Piece
from batchpredict.data.csv_cut import Cut, Grammar, cut
from batchpredict.data.csv_reader import CsvReader
from batchpredict.data.records import WHOLE, Dialect, Shard, Source
from batchpredict.data.shards import Tally

_LF, _CR, _QUOTE = 10, 13, 34
_HIGHEST = np.uint64(63)
# What is made of a block stays in a processor's cache.
_BLOCK_BYTES = 1 << 18
_Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Counted:
    """What a `Cut` says of a block without malformed quoting or overlong records, counted.

    `begins`, `line_feeds`: first bytes of rows, and line feeds, among those consumed.
    """

    begins: Bits
    line_feeds: Bits
    rows: int
    lines: int
    consumed: int
    flaws: tuple[()] = ()
    overlong: bool = False


def csv_shards(source: Source, dialect: Dialect) -> Iterator[Shard]:
    """See FormatModule.shards."""
    if not source.rereadable or source.compression:
        yield WHOLE
        return
    reader = CsvReader(source, dialect)
    if reader.encoding != "utf-8":
        yield WHOLE
        return
    header = reader.header
    tally = Tally(dialect.shard_bytes, len(header), 1 + header.count(b"\n"))
    for piece in reader.pieces(counted, _BLOCK_BYTES):
        found, lost_line = piece.found, 1 if piece.skipped else 0
        if isinstance(found, Counted) and tally.is_within(found.consumed):
            tally.skip(found.rows, found.lines, piece.size)
        else:
            yield from tally.add(*_places(piece), piece.size)
            tally.line += lost_line
    yield tally.end()


def _places(piece: Piece[Counted | Cut]) -> tuple[Int64s, Int64s]:
    """Where rows start, and line feeds."""
    found = piece.found
    if isinstance(found, Counted):
        return places(found.begins), places(found.line_feeds)
    flaws = np.array([flaw.start for flaw in found.flaws], np.int64)
    line_feeds = np.flatnonzero(np.frombuffer(piece.block, np.uint8, found.consumed) == _LF)
    return np.sort(np.concatenate((found.starts, flaws))), line_feeds


def counted(block: bytes, grammar: Grammar, final: bool) -> Counted | Cut:
    """What `cut` finds, counted where that can be done."""
    data = np.frombuffer(block, np.uint8)
    line_feeds = bits_of(data == _LF)
    ends = line_feeds
    quotes = bits_of(data == _QUOTE)
    if quotes.any():
        inside = odd_so_far(quotes)
        if _are_regular(data, (quotes, inside, line_feeds), grammar, final):
            ends = line_feeds & ~inside
        elif (quotes & behind(_separators(data, line_feeds, grammar), first=True)).any():
            return cut(block, grammar, final)
    if final and block and block[-1] != _LF:
        ends = with_bit(ends, len(block))
    if len(block) > grammar.max_record_bytes and not _are_short(ends, len(block), grammar):
        return cut(block, grammar, final)
    consumed = min(last_place(ends) + 1, len(block))
    begins = up_to(behind(ends, first=True), consumed)
    begins &= ~_blanks(data, begins, line_feeds)
    line_feeds = up_to(line_feeds, consumed)
    return Counted(begins, line_feeds, count(begins), count(line_feeds), consumed)


def _separators(data: _Bytes, line_feeds: Bits, grammar: Grammar) -> Bits:
    """Behind them a quote opens a cell; where none does, all quotes are data."""
    return bits_of(data == grammar.delimiter) | line_feeds


def _are_regular(
    data: _Bytes, found: tuple[Bits, Bits, Bits], grammar: Grammar, final: bool
) -> bool:
    """Whether all quotes are opening, closing or doubled ones; see csv_cut.

    `found`: quotes, whether a byte is inside them if so, line feeds.
    """
    quotes, inside, line_feeds = found
    if final and inside[-1] >> _HIGHEST:
        return False
    closing = quotes & ~inside
    separators = _separators(data, line_feeds, grammar)
    if (quotes & inside & ~behind(separators | closing, first=True)).any():
        return False
    wrong = closing & ~ahead(with_bit(separators | quotes, len(data)))
    if not wrong.any():
        return True
    # A CR that ends the block may be half of a line end.
    after_cr = line_feeds if final else with_bit(line_feeds, len(data))
    return not (wrong & ~ahead(bits_of(data == _CR) & ahead(after_cr))).any()


def _are_short(ends: Bits, size: int, grammar: Grammar) -> bool:
    """Whether no record is too long, nor what is behind the last end."""
    edges = np.concatenate(([0], np.minimum(places(ends) + 1, size), [size]))
    return bool((np.diff(edges) <= grammar.max_record_bytes).all())


def _blanks(data: _Bytes, begins: Bits, line_feeds: Bits) -> Bits:
    """The records of these that are LF or CRLF and nothing else."""
    blanks = begins & line_feeds
    if (behind(begins, first=False) & line_feeds).any():
        blanks |= begins & bits_of(data == _CR) & ahead(line_feeds)
    return blanks
