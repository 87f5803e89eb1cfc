"""JSON as bytes: where each record of a stream begins and ends, and how its values are spelled."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from batchpredict.data.records import BLOCK_BYTES
from batchpredict.errors import InputInvalid

Int64s = npt.NDArray[np.int64]

# JSON's white space; str.strip() without an argument would take off U+2028 and \x85, too.
BLANK = " \t\r\n"
_BLANK_BYTES = BLANK.encode()

# How much is kept of a record that is too large to be read.
CUT_BYTES = 64 << 10

# Python's scanner recurses, and how deep it can depends on its caller's stack; a limit of our
# own, well below, judges the same row the same way everywhere.
MAX_DEPTH = 500

# Numbers become bytes as they are spelled (so no value is bytes otherwise): floats would lose
# `1.10`, int() refuses very long ones.
decode = json.JSONDecoder(
    parse_int=str.encode, parse_float=str.encode, parse_constant=str.encode
).raw_decode

_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")

_QUOTE, _BACKSLASH, _COMMA, _OPEN, _CLOSE = range(1, 6)
_KIND = np.zeros(256, np.uint8)
for _characters, _code in (
    (b'"', _QUOTE),
    (b"\\", _BACKSLASH),
    (b",", _COMMA),
    (b"[{", _OPEN),
    (b"]}", _CLOSE),
):
    _KIND[list(_characters)] = _code
_STEP = np.array([0, 0, 0, 0, 1, -1], np.int64)


class Chunks:
    """The bytes of a stream in pieces of BLOCK_BYTES, without a byte order mark.

    The pieces do not depend on how the stream happens to deliver. `position`: bytes of the
    input before the next piece; given as other than 0, the stream begins there. `bom`: length of
    the byte order mark at the stream's begin.
    """

    def __init__(self, stream: BinaryIO, name: str, position: int = 0) -> None:
        self._stream = stream
        self._back: list[bytes] = []
        self.position = position
        self.bom = 0
        if not position:
            self._begin(name)

    def _begin(self, name: str) -> None:
        head = self._fill(max(BLOCK_BYTES, len(_BOM)))
        if head.startswith(_UTF16_BOMS):
            raise InputInvalid(
                f"{name}:1: this is UTF-16, JSON is read as UTF-8; "
                "convert it: iconv -f UTF-16 -t UTF-8"
            )
        self.position = len(head)
        self.bom = len(_BOM) if head.startswith(_BOM) else 0
        self.put_back(head[self.bom :])

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunk = self._back.pop() if self._back else self._fill(BLOCK_BYTES)
        if not chunk:
            raise StopIteration
        self.position += len(chunk)
        return chunk

    def put_back(self, data: bytes) -> None:
        """Deliver `data` again, before everything else."""
        if data:
            self._back.append(data)
            self.position -= len(data)

    def skip_blank(self) -> tuple[bytes, int, bytes]:
        """Take away white space: the byte behind it, its line, and what was left of it there."""
        line, indent = 1, b""
        for chunk in self:
            rest = chunk.lstrip(_BLANK_BYTES)
            blank = chunk[: len(chunk) - len(rest)]
            line += blank.count(b"\n")
            indent = (indent + blank).rpartition(b"\n")[2][-CUT_BYTES:]
            if rest:
                self.put_back(rest)
                return rest[:1], line, indent
        return b"", line, b""

    def _fill(self, missing: int) -> bytes:
        parts = []
        while missing and (data := self._stream.read(missing)):
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)


@dataclass(frozen=True)
class Block:
    """Consecutive records, each `data[start:end]`.

    `offset`: where `data` begins in the input. `sizes`: bytes of each record up to the border
    that ends it. `lines`: the physical line each starts on. `next_line`: the line after the
    last border. `cut`: the only record is too large and `data` is its beginning. `ended`: False
    where the input ended instead of the last record.
    """

    data: bytes
    offset: int
    starts: Int64s
    ends: Int64s
    sizes: Int64s
    lines: Int64s
    next_line: int
    cut: bool = False
    ended: bool = True


def split(block: Block, rows: int) -> Iterator[Block]:
    """The same records in blocks of at most so many."""
    count = len(block.starts)
    if count <= rows:
        yield block
        return
    for first in range(0, count, rows):
        part = slice(first, first + rows)
        begin, end = int(block.starts[first]), int(block.ends[part][-1])
        yield replace(
            block,
            data=block.data[begin:end],
            offset=block.offset + begin,
            starts=block.starts[part] - begin,
            ends=block.ends[part] - begin,
            sizes=block.sizes[part],
            lines=block.lines[part],
        )


class Borders(Protocol):
    """Where records end. `taken`: bytes of the border that belong to the record."""

    taken: int
    closed: bool

    def find(self, chunk: bytes) -> Int64s:
        """Positions of borders in the next chunk."""
        ...


class LineBorders:
    """Line feeds and nothing else: U+2028, \\x85 or a lone CR are data."""

    taken = 1
    closed = False

    def find(self, chunk: bytes) -> Int64s:
        return _newlines(chunk)


class Structure:
    """Brackets and commas outside strings, found in any chunking without reading a value.

    Bytes from 0x80 on play no part, so it works where the text is not UTF-8.
    """

    def __init__(self) -> None:
        self._in_string = False
        self._escaped = False

    def tokens(self, chunk: bytes) -> tuple[Int64s, npt.NDArray[np.uint8]]:
        """Position and kind of each bracket and comma in the next chunk."""
        kinds = _KIND[np.frombuffer(chunk, np.uint8)]
        at = np.flatnonzero(kinds)
        kind = kinds[at]
        slashes = at[kind == _BACKSLASH]
        if len(slashes) or self._escaped:
            plain = ~self._escaped_positions(slashes, len(chunk))[at]
            at, kind = at[plain], kind[plain]
        quotes = kind == _QUOTE
        inside = (np.cumsum(quotes) + self._in_string) & 1 == 1
        if len(inside):
            self._in_string = bool(inside[-1])
        outside = ~inside & (kind >= _COMMA)
        return at[outside], kind[outside]

    def _escaped_positions(self, slashes: Int64s, size: int) -> npt.NDArray[np.bool_]:
        """Which bytes a backslash stands before; in a run of them it is every second one."""
        if self._escaped:
            slashes = np.concatenate(([-1], slashes))
        index = np.arange(len(slashes))
        begins_run = np.diff(slashes, prepend=-3) != 1
        run_start = np.maximum.accumulate(np.where(begins_run, index, 0))
        escaped = np.zeros(size + 1, np.bool_)
        escaped[slashes[(index - run_start) % 2 == 0] + 1] = True
        self._escaped = bool(escaped[size])
        return escaped[:size]


class ElementBorders:
    """The commas between an array's elements and the bracket that closes it.

    Starts behind the array's `[`. `closed`: the last border found is the closing bracket,
    which is `closed_by`.
    """

    taken = 0

    def __init__(self) -> None:
        self._structure = Structure()
        self._depth = 1
        self.closed = False
        self.closed_by = b""

    def find(self, chunk: bytes) -> Int64s:
        at, kind = self._structure.tokens(chunk)
        if not len(at):
            return at
        depth = self._depth + np.cumsum(_STEP[kind])
        self._depth = int(depth[-1])
        border = (kind == _COMMA) & (depth == 1)
        closing = np.flatnonzero(depth == 0)
        if len(closing):
            self.closed = True
            last = int(closing[0])
            self.closed_by = chunk[at[last] : at[last] + 1]
            border[last] = True
            border[last + 1 :] = False
        found: Int64s = at[border]
        return found


def too_deep(text: str) -> bool:
    """Whether a value nests deeper than MAX_DEPTH. Brackets in strings do not count."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    # Lone surrogates cannot occur in decoded UTF-8, "replace" only spares an impossible error.
    _, kind = Structure().tokens(text.encode(errors="replace"))
    return bool(np.cumsum(_STEP[kind]).max(initial=0) > MAX_DEPTH)


def line_blocks(chunks: Chunks, limit: int, line: int) -> Iterator[Block]:
    """Lines with their line ends. `line`: the number of the first."""
    return _blocks(chunks, LineBorders(), limit, line)


def element_blocks(chunks: Chunks, limit: int, line: int, name: str) -> Iterator[Block]:
    """Elements of the JSON array that `chunks` begin with, without white space around them.

    Raises InputInvalid where the array itself is broken; elements are not judged.
    """
    chunks.put_back(next(chunks)[1:])
    borders = ElementBorders()
    only = True
    for block in _blocks(chunks, borders, limit, line):
        line = block.next_line
        if not block.ended:
            break
        elements = _without_blanks(block)
        empty = np.flatnonzero(elements.starts == elements.ends)
        only = only and borders.closed and len(elements.starts) == 1
        if not len(empty) or block.cut:
            yield elements
        elif not only:
            raise broken_array(name, int(elements.lines[empty[0]]), "an element is missing")
    if not borders.closed:
        raise broken_array(name, line, "it is not closed, the file may be cut off")
    if borders.closed_by != b"]":
        raise broken_array(name, line, "it is closed by } instead of ]")
    behind, lines, _ = chunks.skip_blank()
    if behind:
        raise broken_array(name, line + lines - 1, "there is text behind its end")


def broken_array(name: str, line: int, what: str) -> InputInvalid:
    """The whole array cannot be trusted; `what`: a clause about "it"."""
    return InputInvalid(
        f"{name}:{line}: the JSON array is broken: {what}; export the file again, "
        "or as JSON Lines, where a bad row costs only itself"
    )


class _Held:
    """The beginning of a record whose end is not in sight, cut once it is too large.

    `line`, `offset`: where it starts.
    """

    def __init__(self, limit: int, line: int, offset: int) -> None:
        self._most = max(limit, CUT_BYTES)
        self._begin(line, offset)

    def _begin(self, line: int, offset: int) -> None:
        self.line, self.offset = line, offset
        self.data = bytearray()
        self.size = self.newlines = 0

    @property
    def is_cut(self) -> bool:
        return self.size > self._most

    def add(self, chunk: bytes) -> None:
        if not self.is_cut:
            self.data += chunk
        self.size += len(chunk)
        self.newlines += chunk.count(b"\n")
        if self.is_cut:
            del self.data[CUT_BYTES:]

    def end(self, border: bytes) -> Block:
        """The held record alone; the next begins behind `border`, b"" at the input's end."""
        data = bytes(self.data)
        block = Block(
            data=data,
            offset=self.offset,
            starts=np.array([0]),
            ends=np.array([len(data)]),
            sizes=np.array([self.size]),
            lines=np.array([self.line]),
            next_line=self.line + self.newlines + border.count(b"\n"),
            cut=self.is_cut,
            ended=bool(border),
        )
        self._begin(block.next_line, self.offset + self.size + len(border))
        return block

    def end_several(self, chunk: memoryview, at: Int64s, taken: int) -> Block:
        """The held record and those of `chunk`, which ends with the last border in `at`."""
        at = at + self.size
        data = b"".join((self.data, chunk))
        starts = np.concatenate(([0], at[:-1] + 1))
        newlines = at if taken else _newlines(data)  # a border that is taken is a line feed
        block = Block(
            data=data,
            offset=self.offset,
            starts=starts,
            ends=at + taken,
            sizes=at - starts,
            lines=self.line + np.searchsorted(newlines, starts),
            next_line=self.line + len(newlines),
        )
        self._begin(block.next_line, self.offset + len(data))
        return block


def _blocks(chunks: Chunks, borders: Borders, limit: int, line: int) -> Iterator[Block]:
    """Up to the end of `chunks`, or of what `borders` close: the rest is then put back."""
    held = _Held(limit, line, chunks.position)
    for whole_chunk in chunks:
        chunk, at = whole_chunk, borders.find(whole_chunk)
        if len(at) and held.is_cut:
            end = int(at[0])
            held.add(chunk[:end])
            yield held.end(chunk[end : end + 1])
            chunk, at = chunk[end + 1 :], at[1:] - (end + 1)
        if len(at):
            end = int(at[-1]) + 1
            yield held.end_several(memoryview(chunk)[:end], at, borders.taken)
            chunk = chunk[end:]
        if borders.closed:
            chunks.put_back(chunk)
            return
        held.add(chunk)
    if held.size:
        yield held.end(b"")


def _newlines(data: bytes) -> Int64s:
    return np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))


def _without_blanks(block: Block) -> Block:
    """The same elements without the white space around them."""
    starts, ends = [], []
    for start, end in zip(block.starts.tolist(), block.ends.tolist(), strict=True):
        element = block.data[start:end].lstrip(_BLANK_BYTES)
        starts.append(end - len(element))
        ends.append(starts[-1] + len(element.rstrip(_BLANK_BYTES)))
    begins: Int64s = np.array(starts)
    return replace(
        block,
        starts=begins,
        ends=np.array(ends),
        sizes=block.sizes - (begins - block.starts),
        lines=block.lines[0] + np.searchsorted(_newlines(block.data), begins),
    )


def member_texts(text: str) -> dict[str, str]:
    """Each member's value as it is spelled. `text`: a JSON object known to be valid.

    Of members with the same name the last one counts, as in json.loads.
    """
    members: dict[str, str] = {}
    at = _behind_blanks(text, text.index("{") + 1)
    while text[at] != "}":
        name, at = decode(text, at)
        at = _behind_blanks(text, _behind_blanks(text, at) + 1)  # the colon
        _, end = decode(text, at)
        members[name] = text[at:end]
        at = _behind_blanks(text, end)
        if text[at] == ",":
            at = _behind_blanks(text, at + 1)
    return members


_BLANKS = re.compile(f"[{BLANK}]*")


def _behind_blanks(text: str, at: int) -> int:
    return _BLANKS.match(text, at).end()  # type: ignore[union-attr]
