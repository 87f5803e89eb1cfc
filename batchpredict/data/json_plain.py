"""Finds the records of a block that follow a template, without parsing them one by one.

A record is taken only where its bytes are proven to be the template's literals and, between
each two, one JSON scalar. Everything else (escapes, arrays, other members, what is malformed)
is left to those who parse records whole, so nothing here decides that a record is wrong.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import numpy as np

from batchpredict.data.json_numbers import Int64s, Mask, are_scalars
from batchpredict.data.json_template import LONGEST_LITERAL, Template, template_of
from batchpredict.data.jsontext import BLANK, Block

# In smaller blocks looking at records one by one is as fast; larger ones are one huge record.
LEAST_ROWS = 32
_LARGEST_BLOCK = 16 << 20

_MOST_TEMPLATES = 8
# How often new templates are looked for in vain before it is given up.
_PATIENCE = 16
# A template shall explain at least one in so many of the records that no other explains.
_WORTHWHILE = 16

# So that positions somewhat outside the block, of records that prove to be others, can be read.
_PAD = LONGEST_LITERAL + 64
_QUOTE = ord('"')
# As far as one step goes.
_MORE_QUOTES = 3
_IS_BLANK = np.zeros(256, np.bool_)
_IS_BLANK[list(BLANK.encode())] = True
# White space behind a record: line ends, and a little more.
_MOST_BLANKS = 4


@dataclass(frozen=True)
class Plain:
    """The records of a block at `index` (ascending), which follow `template`.

    `borders`: int64 [literals, records], where in the block's data each literal begins.
    """

    template: Template
    index: Int64s
    borders: Int64s

    def span(self, name: str) -> tuple[Int64s, Int64s] | None:
        """Where the values of a member are in the block's data; None where it is absent."""
        span = self.template.members.get(name)
        if span is None:
            return None
        return self.borders[span.first] + span.start, self.borders[span.last] + span.end


class Templates:
    """The templates an input was seen to follow, learned on the way.

    `reserved`: a record with a member of one of these names is left to others.
    """

    def __init__(self, reserved: Set[str]) -> None:
        self._reserved = reserved
        self._known: list[Template] = []
        self._patience = _PATIENCE
        self._scratch = _Scratch()

    def find(self, block: Block, limit: int) -> list[Plain]:
        """Records of at most `limit` bytes that follow a template; no record comes twice."""
        if len(block.starts) < LEAST_ROWS or len(block.data) > _LARGEST_BLOCK or block.cut:
            return []
        scan = _Scan(block, self._scratch)
        left = np.flatnonzero(scan.readable & (block.sizes <= limit))
        found: list[Plain] = []
        for template in self._known:
            if len(left):
                left = _moved(scan.match(template, left), left, found)
        self._learn(scan, left, found)
        used = [plain.template for plain in sorted(found, key=lambda plain: -len(plain.index))]
        unused = [template for template in self._known if template not in used]
        self._known = [*used, *unused][:_MOST_TEMPLATES]
        return found

    def _learn(self, scan: _Scan, left: Int64s, found: list[Plain]) -> None:
        """Take records that no template explains for examples of others."""
        for place in (0.0, 0.5, 1.0):
            if len(left) < LEAST_ROWS or not self._patience:
                return
            template = template_of(scan.record(int(left[int(place * (len(left) - 1))])))
            if template is not None and self._reserved.isdisjoint(template.members):
                plain = scan.match(template, left)
                if len(plain.index) * _WORTHWHILE >= len(left):
                    left = _moved(plain, left, found)
                    self._patience = _PATIENCE
                    continue
            self._patience -= 1


def _moved(plain: Plain, left: Int64s, found: list[Plain]) -> Int64s:
    """What is left of `left` when what was found is added to `found`."""
    if not len(plain.index):
        return left
    found.append(plain)
    if len(plain.index) == len(left):
        return left[:0]
    return np.setdiff1d(left, plain.index, assume_unique=True)


class _Scratch:
    """Memory that blocks use one after the other; fresh pages cost more than what is done there.

    `bytes`: a block's data behind _PAD zeros, and _PAD more behind it. `marks`: two masks.
    """

    def __init__(self) -> None:
        self.bytes = np.empty(0, np.uint8)
        self.marks = (np.empty(0, np.bool_), np.empty(0, np.bool_))

    def hold(self, data: bytes) -> None:
        size = len(data) + 3 * _PAD
        if size > len(self.bytes):
            self.bytes = np.zeros(size, np.uint8)
            self.marks = (np.empty(size, np.bool_), np.empty(size, np.bool_))
        end = _PAD + len(data)
        self.bytes[_PAD:end] = np.frombuffer(data, np.uint8)
        self.bytes[end : end + 2 * _PAD] = 0


class _Scan:
    """What is to be known of a block's bytes once; positions in it count _PAD before it.

    `readable`: bool [records], False where one may not be UTF-8.
    """

    def __init__(self, block: Block, scratch: _Scratch) -> None:
        scratch.hold(block.data)
        self._bytes = scratch.bytes
        self._starts = block.starts + _PAD
        self._ends = self._without_blanks(block.ends + _PAD)
        end = _PAD + len(block.data)
        # A record that proves to be another may look for quotes behind the block's last one.
        self._bytes[end : end + _MORE_QUOTES] = _QUOTE
        data, (mark, other) = self._bytes[: end + _MORE_QUOTES], scratch.marks
        mark, other = mark[: len(data)], other[: len(data)]
        self._quotes = np.flatnonzero(np.equal(data, _QUOTE, out=mark))
        np.less(data, ord(" "), out=mark)
        mark[:_PAD] = False
        mark |= np.equal(data, ord("\\"), out=other)
        self._special = self._count(np.flatnonzero(mark))
        self.readable = np.ones(len(block.starts), np.bool_)
        if not _is_utf8(block.data):
            self.readable = self._count(np.flatnonzero(data >= 0x80)) == 0

    def record(self, index: int) -> bytes:
        """Without white space behind it."""
        return self._bytes[self._starts[index] : self._ends[index]].tobytes()

    def match(self, template: Template, rows: Int64s) -> Plain:
        """Those of `rows` that follow the template.

        Quotes say where strings end, since there are no backslashes, and where the next literal
        begins. What is proven is that every byte is part of a literal or of one scalar.
        """
        literals = template.literals
        # A record that is too short cannot follow it. This also bounds what `_has` copies by the
        # size of the block, however long a literal and however many short records there are.
        least = sum(map(len, literals)) + len(literals) - 1
        rows = rows[self._ends[rows] - self._starts[rows] >= least]
        borders = np.empty((len(literals), len(rows)), np.int64)
        borders[0] = self._starts[rows]
        quote = np.searchsorted(self._quotes, borders[0])
        # Control characters are in the literals, so none is in a string.
        sound = self._special[rows] == sum(map(_count_special, literals))
        for place, literal in enumerate(literals[:-1]):
            sound &= self._has(literal, borders[place])
            if not sound.any():
                return Plain(template, rows[:0], borders[:, :0])
            value, end = borders[place] + len(literal), borders[place + 1]
            strings = self._bytes.take(value) == _QUOTE
            quote += literal.count(b'"')
            closing = quote + 1
            quote += strings * 2
            if place + 2 < len(literals):
                first = literals[place + 1].index(b'"')
                np.subtract(self._quotes.take(quote, mode="clip"), first, out=end)
            else:
                np.subtract(self._ends[rows], len(literals[-1]), out=end)
            sound &= self._are_values(value, end, strings, closing)
        sound &= self._has(literals[-1], borders[-1])
        if not sound.all():
            borders, rows = borders[:, sound], rows[sound]
        borders -= _PAD
        return Plain(template, rows, borders)

    def _has(self, literal: bytes, at: Int64s) -> Mask:
        """Compared as words: NumPy compares texts byte by byte."""
        count = -(-len(literal) // 8)
        size = 8 * count
        texts = np.ndarray(len(self._bytes) - size + 1, f"V{size}", self._bytes, strides=(1,))
        words = texts[at].view("<u8").reshape(len(at), count)
        wanted = np.frombuffer(literal.ljust(size, b"\0"), "<u8")
        # What lies behind the literal in its last word is moved out.
        behind = np.uint64(8 * (size - len(literal)))
        different = (words[:, -1] ^ wanted[-1]) << behind
        for place in range(count - 1):
            different |= words[:, place] ^ wanted[place]
        found: Mask = different == 0
        return found

    def _are_values(self, starts: Int64s, ends: Int64s, strings: Mask, closing: Int64s) -> Mask:
        """Whether each stretch is one scalar. `strings`: which begin with a quote; `closing`:
        the number of the next quote behind it.
        """
        if not strings.any():
            return are_scalars(self._bytes, starts, ends)
        valid: Mask = self._quotes.take(closing, mode="clip") + 1 == ends
        others = np.flatnonzero(~strings)
        if len(others):
            valid[others] = are_scalars(self._bytes, starts[others], ends[others])
        return valid

    def _without_blanks(self, ends: Int64s) -> Int64s:
        for _ in range(_MOST_BLANKS):
            blank = _IS_BLANK.take(self._bytes.take(ends - 1))
            if not blank.any():
                break
            ends = ends - blank
        return ends

    def _count(self, positions: Int64s) -> Int64s:
        """How many of the positions are in each record."""
        until = np.searchsorted(positions, self._ends)
        return until - np.searchsorted(positions, self._starts)


def _count_special(literal: bytes) -> int:
    return sum(byte < ord(" ") for byte in literal)


def _is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
