"""Where records and cells of CSV text begin and end.

The grammar is RFC 4180's with these borders: a quote opens a cell only at the cell's start; a
record ends at LF or CRLF outside quotes, a lone CR is data; a line without content is no row.
Malformed quoting (text after a closing quote, a quote that is not closed within the longest
record or by the end) costs the line the quote opened on; reading goes on at the next line.

`cut` looks at whole blocks with NumPy and falls back to `_cut_exactly`, one record at a time,
only where quoting is not regular.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]

_LF, _CR, _QUOTE = 10, 13, 34
# After irregular quoting this many bytes are read record by record before whole blocks are
# tried again: a file full of it then costs a constant factor, not a block's scan per record.
_EXACT_BYTES = 1 << 15


@dataclass(frozen=True, slots=True)
class Flaw:
    """A row that is no record of the right shape, from `start` up to `end` (line end included)."""

    start: int
    end: int
    code: str
    message: str


@dataclass(frozen=True)
class Cut:
    """Records found in a block.

    `starts`, `ends`: int64 [rows], first byte of a record and of the next one's, so the line end
    is included. `cell_ends`: int64 [rows, columns], one behind each cell's last byte.
    `flaws`: what is not among the rows, in order. `consumed`: bytes dealt with.
    `overlong`: the last flaw is a record whose end was not in the block; skip to the next LF.
    """

    starts: Positions
    ends: Positions
    cell_ends: Positions
    flaws: tuple[Flaw, ...]
    consumed: int
    overlong: bool = False


@dataclass(frozen=True)
class Grammar:
    """What `cut` has to know: the delimiter's byte, cells per row, longest record."""

    delimiter: int
    columns: int
    max_record_bytes: int


@dataclass(frozen=True)
class Record:
    """One record cut exactly: its cells' ends, or a flaw; `end` includes the line end."""

    start: int
    end: int
    cell_ends: tuple[int, ...]
    flaw: Flaw | None = None
    overlong: bool = False

    @property
    def blank(self) -> bool:
        return self.cell_ends == (self.start,)


def cut(block: bytes, grammar: Grammar, final: bool) -> Cut:
    """Cut a block that starts at a record's start; `final`: the input ends with it."""
    parts: list[Cut] = []
    position = 0
    while True:
        part = _cut_regular(block, position, grammar, final)
        parts.append(part)
        begun, position = position, part.consumed
        if not _is_irregular(block, position, grammar, final):
            # The quote that stopped it may be data, seen from the record that it is in.
            if position > begun and block.find(b"\n", position) >= 0:
                continue
            break
        part = _cut_exactly(block, position, grammar, final)
        parts.append(part)
        if part.consumed == position or part.overlong:
            break
        position = part.consumed
    return _join(parts)


def cut_begin(block: bytes, grammar: Grammar, final: bool) -> Cut:
    """The first record of a block, and some more; nothing where more input must decide."""
    return _cut_exactly(block, 0, grammar, final)


def _is_irregular(block: bytes, position: int, grammar: Grammar, final: bool) -> bool:
    """Whether what the regular cut left over is a matter for the exact one, not for more input."""
    if position == len(block):
        return False
    if final or len(block) - position > grammar.max_record_bytes:
        return True
    data = np.frombuffer(block, np.uint8, offset=position)
    quotes = _quotes(data, grammar.delimiter)
    return _first_irregular_quote(data, quotes, grammar.delimiter, final) < len(data)


def _quotes(data: npt.NDArray[np.uint8], delimiter: int) -> Positions:
    """Where quotes are, from the first on that opens a cell: those before it are data."""
    quotes = np.flatnonzero(data == _QUOTE)
    for some in (quotes[:1], quotes):  # in most files the first one opens a cell
        before = data[np.maximum(some - 1, 0)]
        opens = np.flatnonzero((some == 0) | (before == delimiter) | (before == _LF))
        if len(opens):
            return quotes[opens[0] :]
    return quotes[:0]


def _first_irregular_quote(
    data: npt.NDArray[np.uint8], quotes: Positions, delimiter: int, final: bool
) -> int:
    """Where the first quote stands that is neither opening, closing nor doubled; else len(data).

    By induction from the block's start: while every quote before it is regular, quotes
    alternate between opening and closing, a doubled quote counting as closing and reopening.
    """
    size = len(data)
    if not len(quotes):
        return size
    opening, closing = quotes[0::2], quotes[1::2]
    before = data[np.maximum(opening - 1, 0)]
    opens = (opening == 0) | (before == delimiter) | (before == _LF)
    opens[1:] |= closing[: len(opening) - 1] == opening[1:] - 1
    after = data[np.minimum(closing + 1, size - 1)]
    second = data[np.minimum(closing + 2, size - 1)]
    closes = (after == delimiter) | (after == _LF) | (after == _QUOTE)
    closes |= (after == _CR) & (closing + 2 < size) & (second == _LF)
    closes |= closing + 1 == size
    if not final:
        closes |= (after == _CR) & (closing + 2 == size)
    wrong = np.concatenate([opening[~opens], closing[~closes]])
    return int(wrong.min()) if len(wrong) else size


def _cut_regular(block: bytes, base: int, grammar: Grammar, final: bool) -> Cut:
    """The records up to the first irregular quote, overlong record, or incomplete record."""
    data = np.frombuffer(block, np.uint8, offset=base)
    separators, last = _separators(data, grammar.delimiter, final)
    line_ends = separators[last]
    starts = np.concatenate([[0], line_ends + 1])[:-1]
    ends = np.minimum(line_ends + 1, len(data))
    overlong = np.flatnonzero(ends - starts > grammar.max_record_bytes)
    if len(overlong):
        starts, ends, last = (part[: overlong[0]] for part in (starts, ends, last))
        line_ends = line_ends[: overlong[0]]
    carriage_return = (data[line_ends - 1] == _CR) & (line_ends > starts) & (line_ends < len(data))
    contents = line_ends - carriage_return
    cells = np.diff(last, prepend=-1)
    blank = contents == starts
    good = (cells == grammar.columns) & ~blank
    if good.all():
        cell_ends = separators[: len(last) * grammar.columns].reshape(-1, grammar.columns)
    else:
        first = last[good] - (grammar.columns - 1)
        cell_ends = separators[first[:, None] + np.arange(grammar.columns)]
    cell_ends[:, -1] = contents[good]
    flaws = tuple(
        _wrong_count(base + int(starts[i]), base + int(ends[i]), int(cells[i]), grammar.columns)
        for i in np.flatnonzero(~good & ~blank)
    )
    consumed = base + (int(ends[-1]) if len(ends) else 0)
    cell_ends += base
    return Cut(starts[good] + base, ends[good] + base, cell_ends, flaws, consumed)


def _separators(
    data: npt.NDArray[np.uint8], delimiter: int, final: bool
) -> tuple[Positions, Positions]:
    """Delimiters and line ends outside quotes, and the index of each record's last one.

    At the end of the input a record without a line end gets a separator at len(data).
    """
    separators = np.flatnonzero((data == delimiter) | (data == _LF))
    quotes = _quotes(data, delimiter)
    regular = True
    if len(quotes):
        limit = _first_irregular_quote(data, quotes, delimiter, final)
        regular = limit == len(data) and len(quotes) % 2 == 0
        separators = separators[: np.searchsorted(separators, limit)]
        separators = separators[np.searchsorted(quotes, separators) % 2 == 0]
    last = np.flatnonzero(data[separators] == _LF)
    if final and regular and len(data) and data[-1] != _LF:
        last = np.append(last, len(separators))
        separators = np.append(separators, len(data))
    return separators, last


def _wrong_count(start: int, end: int, cells: int, columns: int) -> Flaw:
    return Flaw(start, end, "malformed_row", _count_message(cells, columns))


@lru_cache  # a file may have millions of such rows
def _count_message(cells: int, columns: int) -> str:
    return f"{cells} cells instead of {columns}"


def _cut_exactly(block: bytes, position: int, grammar: Grammar, final: bool) -> Cut:
    """Records one at a time, for about _EXACT_BYTES; at least one unless more input is needed."""
    begin = position
    good: list[Record] = []
    flaws: list[Flaw] = []
    overlong = False
    while position < len(block) and position - begin < _EXACT_BYTES and not overlong:
        record = next_record(block, position, grammar, final)
        if record is None:
            break
        position = record.end
        overlong = record.overlong
        if record.flaw:
            flaws.append(record.flaw)
        elif len(record.cell_ends) == grammar.columns and not record.blank:
            good.append(record)
        elif not record.blank:
            cells = len(record.cell_ends)
            flaws.append(_wrong_count(record.start, record.end, cells, grammar.columns))
    return Cut(
        np.array([record.start for record in good], np.int64),
        np.array([record.end for record in good], np.int64),
        np.array([record.cell_ends for record in good], np.int64).reshape(-1, grammar.columns),
        tuple(flaws),
        position,
        overlong,
    )


_QUOTED = re.compile(rb'"[^"]*+(?:""[^"]*+)*+"')


def next_record(block: bytes, start: int, grammar: Grammar, final: bool) -> Record | None:
    """The record at `start`, any number of cells; None where more input must decide."""
    limit = min(len(block), start + grammar.max_record_bytes)
    decided = limit < len(block) or final  # nothing behind `limit` can change the outcome
    cell_ends: list[int] = []
    position = start
    while True:
        opened = position
        if position < limit and block[position] == _QUOTE:
            match = _QUOTED.match(block, position, limit)
            if match is None:
                lost = (start, opened, "a quote is not closed")
                return _lost_line(block, lost, grammar, final) if decided else None
            position = match.end()
            if position < limit and not _ends_cell(block, position, grammar.delimiter):
                if position + 1 == len(block) and block[position] == _CR and not final:
                    return None
                lost = (start, opened, "there is text after a closing quote")
                return _lost_line(block, lost, grammar, final)
        else:
            position = _plain_end(block, position, limit, grammar.delimiter)
        if position == limit:
            if limit < len(block):
                return _overlong(block, start, grammar, final)
            return Record(start, position, (*cell_ends, position)) if final else None
        if block[position] != grammar.delimiter:
            return _ended(block, start, (opened, position), cell_ends)
        cell_ends.append(position)
        position += 1


def _ends_cell(block: bytes, position: int, delimiter: int) -> bool:
    return block[position] in (delimiter, _LF) or block[position : position + 2] == b"\r\n"


def _ended(block: bytes, start: int, last: tuple[int, int], cell_ends: list[int]) -> Record:
    """The record whose last cell is `last` (begin, end), where LF or, behind a quote, CRLF is."""
    opened, position = last
    end = position + (1 if block[position] == _LF else 2)
    if block[position] == _LF and position > opened and block[position - 1] == _CR:
        position -= 1
    return Record(start, end, (*cell_ends, position))


def _plain_end(block: bytes, position: int, limit: int, delimiter: int) -> int:
    """Where an unquoted cell ends: at the delimiter, at LF, or at `limit`."""
    end = block.find(b"\n", position, limit)
    end = limit if end < 0 else end
    found = block.find(delimiter.to_bytes(1, "big"), position, end)
    return end if found < 0 else found


def _lost_line(
    block: bytes, lost: tuple[int, int, str], grammar: Grammar, final: bool
) -> Record | None:
    """Only the line the quote opened on is lost, and what the record had before it."""
    start, opened, message = lost
    found = block.find(b"\n", opened)
    overlong = found < 0 and len(block) - start > grammar.max_record_bytes and not final
    if found < 0 and not final and not overlong:
        return None
    end = len(block) if found < 0 else found + 1
    message = f"{message} (opened at byte {opened - start + 1} of the record)"
    return Record(start, end, (), Flaw(start, end, "malformed_row", message), overlong)


def _overlong(block: bytes, start: int, grammar: Grammar, final: bool) -> Record:
    """A record longer than allowed ends at the next LF behind the limit, whatever the quotes."""
    found = block.find(b"\n", start + grammar.max_record_bytes - 1)
    message = f"the record is longer than --max_record_bytes={grammar.max_record_bytes}"
    end = len(block) if found < 0 else found + 1
    flaw = Flaw(start, end, "too_large", message)
    return Record(start, end, (), flaw, overlong=found < 0 and not final)


def _join(parts: list[Cut]) -> Cut:
    if len(parts) == 1:
        return parts[0]
    return Cut(
        np.concatenate([part.starts for part in parts]),
        np.concatenate([part.ends for part in parts]),
        np.concatenate([part.cell_ends for part in parts]),
        tuple(flaw for part in parts for flaw in part.flaws),
        parts[-1].consumed,
        parts[-1].overlong,
    )
