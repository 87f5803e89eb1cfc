"""Reads JSON Lines and JSON arrays."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchpredict.cgroup import effective_cores
from batchpredict.data.json_columns import Columns, Part, PlainPart, WholePart
from batchpredict.data.json_plain import Plain, Templates
from batchpredict.data.json_threads import in_order
from batchpredict.data.jsontext import (
    BLANK,
    CUT_BYTES,
    MAX_DEPTH,
    Block,
    Chunks,
    broken_array,
    decode,
    element_blocks,
    line_blocks,
    split,
    too_deep,
)
from batchpredict.data.records import (
    WHOLE,
    Dialect,
    Records,
    Reject,
    Selection,
    Shard,
    Source,
)
from batchpredict.data.shards import Breaks
from batchpredict.errors import InputInvalid, UsageError

# Blocks are addressed with 32 bits.
_LARGEST_RECORD = 1 << 30

# Of one block: columns that most rows lack take their space nonetheless, as do rejects.
_MOST_CELLS = 1 << 22
_MOST_ROWS = 1 << 16
# Of an input: rows with ever new members would make a table of rows times rows.
_MOST_COLUMNS = 1 << 14

# Rows the columns on offer are taken from where the input is not surveyed, and the most blocks
# that are held to find the first readable one.
_SAMPLE_ROWS = 1000
_SAMPLE_BLOCKS = 16

# More of them wait for each other: much of their work is done under Python's global lock.
_MOST_THREADS = 2

_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

_TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"
_KINDS = {list: "an array", str: "a string", bytes: "a number", bool: "true or false"}

# Overlooks what cannot have moved the end of an array's element: control characters in strings.
_lenient = json.JSONDecoder(
    parse_int=str.encode, parse_float=str.encode, parse_constant=str.encode, strict=False
).raw_decode


@dataclass(frozen=True)
class _Fault:
    code: str
    message: str


@dataclass(frozen=True)
class _Parsed:
    """What was found in a block: readable records, and by place what is wrong with the others.

    `is_row`: bool, one for each place; blank lines are none.
    """

    plain: list[Plain]
    whole: WholePart
    faults: list[tuple[int, _Fault]]
    is_row: npt.NDArray[np.bool_]
    data: bytes

    @property
    def parts(self) -> list[Part]:
        parts: list[Part] = [PlainPart(plain, self.data) for plain in self.plain]
        return parts if parts and not self.whole.places else [*parts, self.whole]

    def names(self, most: int | None) -> list[tuple[str, ...]]:
        """The members of the first `most` readable records; not again where none can be new."""
        first = [(int(plain.index[0]), tuple(plain.template.members)) for plain in self.plain]
        others = zip(self.whole.places, map(tuple, self.whole.objects), strict=True)
        index = np.sort(np.concatenate([part.index for part in self.parts]))
        end = len(self.is_row) if most is None or most >= len(index) else int(index[most])
        return [names for place, names in sorted([*first, *others]) if place < end]


def begin(source: Source, json_array: bool) -> tuple[Chunks, int, bool]:
    """The text from its first record on, that one's line, and whether it is an array.

    `json_array`: it is said to be one. Raises InputInvalid.
    """
    chunks = Chunks(source.open(), source.name)
    if not json_array:
        return chunks, 1, False
    first, line, indent = chunks.skip_blank()
    if first not in (b"[", b"{"):
        raise _no_array(source.name, line, first)
    if first == b"{":
        chunks.put_back(indent)
    return chunks, line, first == b"["


def longest(dialect: Dialect) -> int:
    """Bytes of the longest record that is read."""
    return min(dialect.max_record_bytes, _LARGEST_RECORD)


class JsonReader:
    """Obeys the Reader protocol.

    `json_array`: whether the input is an array, which an input said to be one need not be.
    """

    def __init__(self, source: Source, dialect: Dialect, survey: bool | Sequence[str]) -> None:
        if survey is True and not source.rereadable:
            raise UsageError(
                f"{source.name}: JSON from a pipe cannot be read twice to find all its columns; "
                "name the ones that go to the output with --keep, or write to a file first"
            )
        self.notes: Sequence[str] = ()
        self.json_array = dialect.json_array
        self._reserved: frozenset[str] = frozenset()
        self._source = source
        self._limit = longest(dialect)
        self._opened: Iterator[Block] | None = self._open()
        self.dialect = replace(dialect, json_array=self.json_array)
        if survey is False:
            names = self._sample_names()
        else:
            names = self._all_names() if survey is True else list(survey)
        # No object at all says nothing about columns.
        self.complete = survey is not False and bool(names)
        self.schema = pa.schema([pa.field(name, pa.string()) for name in names])

    def records(self, selection: Selection, shard: Shard = WHOLE) -> Iterator[Records]:
        if shard.is_from_begin:
            blocks, self._opened = self._opened or self._open(), None
        else:
            blocks, self._opened = self._open_at(shard), None
        # Members that must be text; cells travel as they are spelled.
        decoded = (*selection.model, *(selection.kept if selection.carry == "value" else ()))
        self._reserved = frozenset(selection.reserved if selection.carry == "record" else ())
        threads = min(_MOST_THREADS, effective_cores())
        # Templates are learned by each thread; they change what is fast, not what comes out.
        templates: SimpleQueue[Templates] = SimpleQueue()
        for _ in range(threads):
            templates.put(Templates(self._reserved))

        def read(block: Block) -> tuple[Records, npt.NDArray[np.int64]]:
            lent = templates.get()
            try:
                parsed = self._parse(block, decoded, lent)
            finally:
                templates.put(lent)
            starts = block.offset - self._bom + block.starts[parsed.is_row]
            return _records(block, parsed, selection), starts

        columns = len(selection.model) + len(selection.kept)
        most = min(_MOST_ROWS, max(1, _MOST_CELLS // max(1, columns)))
        pieces = chain.from_iterable(split(block, most) for block in blocks)
        rows, breaks = shard.row - 1, Breaks(self.dialect.shard_bytes)
        with closing(in_order(pieces, read, threads)) as read_blocks:
            for records, starts in read_blocks:
                if len(starts):
                    found = breaks.among(starts, rows + 1)
                    yield replace(_behind(records, rows), breaks=found)
                rows += len(starts)

    def original(self, raw: pa.Array, index: int) -> bytes:
        return _without_line_end(raw[index].as_py())

    def _open(self) -> Iterator[Block]:
        name = self._source.name
        chunks, line, is_array = begin(self._source, self.json_array)
        self._bom = chunks.bom
        if is_array:
            return element_blocks(chunks, self._limit, line, name)
        if self.json_array:
            self.json_array = False
            self.notes = (f"{name}: starts with {{ and is read as JSON Lines",)
        return line_blocks(chunks, self._limit, line)

    def _open_at(self, shard: Shard) -> Iterator[Block]:
        position = self._bom + shard.start
        chunks = Chunks(self._source.open(position), self._source.name, position)
        return line_blocks(chunks, self._limit, shard.line)

    def _all_names(self) -> list[str]:
        names = self._names(self._opened or ())
        self._opened = None
        return names

    def _sample_names(self) -> list[str]:
        blocks = self._opened or iter(())
        held: list[Block] = []
        names: list[str] = []
        while not names and len(held) < _SAMPLE_BLOCKS and (block := next(blocks, None)):
            held.append(block)
            names = self._names([block], _SAMPLE_ROWS)
        self._opened = chain(held, blocks)
        return names

    def _names(self, blocks: Iterable[Block], most: int | None = None) -> list[str]:
        names: dict[str, None] = {}
        templates = Templates(frozenset())
        for block in blocks:
            for members in self._parse(block, (), templates).names(most):
                names.update(dict.fromkeys(members))
                if most is None and len(names) > _MOST_COLUMNS:
                    raise InputInvalid(
                        f"{self._source.name}: its rows have more than {_MOST_COLUMNS} different "
                        "members; name the ones that go to the output with --keep"
                    )
        text = [name for name in names if _is_text(name)]
        if len(text) < len(names):
            self.notes = (
                *self.notes,
                f"{self._source.name}: a member whose name is not text "
                "(half of a surrogate pair) is no column",
            )
        return text

    def _parse(self, block: Block, decoded: Sequence[str], templates: Templates) -> _Parsed:
        """`decoded`: members that must be text."""
        plain = templates.find(block, self._limit)
        is_row = np.zeros(len(block.starts), np.bool_)
        for found in plain:
            is_row[found.index] = True
        whole, faults = WholePart([], [], []), []
        others = np.flatnonzero(~is_row)
        if not (decoded and len(others) and _ESCAPED_SURROGATE.search(block.data)):
            decoded = ()
        spans = (others.tolist(), block.starts[others].tolist(), block.ends[others].tolist())
        oversized = set(np.flatnonzero((block.sizes > self._limit) | block.cut).tolist())
        for index, start, end in zip(*spans, strict=True):
            piece = block.data[start:end]
            try:
                text = piece.decode().strip(BLANK)
                value, stop = decode(text)
            except (ValueError, RecursionError):
                text, value, stop = "", None, 0
            if type(value) is not dict or stop != len(text) or index in oversized:
                fault = self._fault(block, index, piece)
                if fault is None:
                    continue
            else:
                fault = _hidden_fault(text, value, decoded, self._reserved)
            is_row[index] = True
            if fault:
                faults.append((index, fault))
                continue
            whole.places.append(index)
            whole.objects.append(value)
            whole.texts.append(text)
        return _Parsed(plain, whole, faults, is_row, block.data)

    def _fault(self, block: Block, index: int, piece: bytes) -> _Fault | None:
        """What is wrong with a record that is no good; None where it is only a blank line.

        Raises InputInvalid where an array's element may not end where it seems to.
        """
        size, line = int(block.sizes[index]), int(block.lines[index])
        if size > self._limit or block.cut:
            return _Fault("too_large", f"{size} bytes, more than --max_record_bytes={self._limit}")
        try:
            text = piece.decode()
        except UnicodeDecodeError as error:
            self._require_borders(piece.decode(errors="replace"), line)
            return _Fault("invalid_utf8", f"byte {error.start + 1} is not UTF-8")
        text = text.rstrip(BLANK)
        start = len(text) - len(text.lstrip(BLANK))
        if start == len(text):
            return None
        if too_deep(text):
            return _Fault("malformed_row", _TOO_DEEP)
        try:
            value, stop = decode(text, start)
        except json.JSONDecodeError as error:
            self._require_borders(text, line)
            return _Fault(
                "malformed_row", f"not valid JSON: {error.msg} at character {error.pos + 1}"
            )
        except RecursionError:
            return _Fault("malformed_row", _TOO_DEEP)
        if stop < len(text):
            self._require_borders(text, line)
            return _Fault("malformed_row", f"not valid JSON: more text at character {stop + 1}")
        return _Fault(
            "malformed_row", f"{_KINDS.get(type(value), 'null')} where an object is expected"
        )

    def _require_borders(self, text: str, line: int) -> None:
        """A fault in a line ends with the line; in an array it may have hidden other rows."""
        if not self.json_array or too_deep(text):
            return
        try:
            _, stop = _lenient(text)
        except json.JSONDecodeError as error:
            line, what = line + error.lineno - 1, error.msg
            stop = error.pos
        else:
            if stop == len(text):
                return
            line, what = line + text.count("\n", 0, stop), "Expecting ',' delimiter"
        raise broken_array(self._source.name, line, f"{what} at character {stop + 1} of an element")


def _hidden_fault(
    text: str, record: dict[str, Any], decoded: Sequence[str], reserved: frozenset[str]
) -> _Fault | None:
    """What is wrong with valid JSON."""
    if not reserved.isdisjoint(record):
        name = next(name for name in record if name in reserved)
        return _Fault(
            "malformed_row", f"it has a member {name!r}, the name of an added column; see --prefix"
        )
    if len(text) > MAX_DEPTH and too_deep(text):
        return _Fault("malformed_row", _TOO_DEEP)
    for name in decoded:
        if isinstance(value := record.get(name), str) and not _is_text(value):
            shown = json.dumps(name, ensure_ascii=not name.isprintable())
            return _Fault(
                "invalid_utf8",
                f"the value of {shown} is not text: it holds half of a surrogate pair",
            )
    return None


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _reject(fault: _Fault, row: int, block: Block, index: int) -> Reject:
    start, end = int(block.starts[index]), int(block.ends[index])
    record = _without_line_end(block.data[start:end])
    long = int(block.sizes[index]) > CUT_BYTES  # not by `record`: a cut one has lost its end
    return Reject(
        row=row,
        line=int(block.lines[index]),
        code=fault.code,
        message=fault.message,
        record=record[:CUT_BYTES] if long else record,
        offset=block.offset + start if long else None,
        length=int(block.sizes[index]) if long else None,
    )


def _without_line_end(line: bytes) -> bytes:
    return line[:-1].removesuffix(b"\r") if line.endswith(b"\n") else line


def _no_array(name: str, line: int, first: bytes) -> InputInvalid:
    if not first:
        return InputInvalid(
            f"{name}:1: it is empty, not even a JSON array without elements, []; "
            "check what exported it"
        )
    return InputInvalid(
        f"{name}:{line}: not a JSON array: it starts with byte {first!r} instead of [; "
        "give its real format with --input_format"
    )


def _behind(records: Records, rows: int) -> Records:
    """The same records behind `rows` others."""
    rejects = tuple(replace(reject, row=reject.row + rows) for reject in records.rejects)
    return replace(records, rows=records.rows + rows, rejects=rejects)


def _records(block: Block, parsed: _Parsed, selection: Selection) -> Records:
    """Rows are numbered from 1 in each block."""
    columns = Columns(parsed.parts)
    index = columns.index
    numbers = np.cumsum(parsed.is_row, dtype=np.int64)
    kept = [columns.kept(name, selection.carry) for name in selection.kept]
    return Records(
        columns=_batch(selection.model, [columns.column(n) for n in selection.model], len(index)),
        kept=_batch(selection.kept, kept, len(index)),
        raw=_raw(block, index),
        rows=numbers[index],
        lines=block.lines[index],
        weight=(block.ends - block.starts)[index],
        rejects=tuple(
            _reject(fault, int(numbers[place]), block, place) for place, fault in parsed.faults
        ),
        offsets=(block.offset + block.starts)[index],
    )


def _batch(names: Sequence[str], arrays: list[pa.Array], rows: int) -> pa.RecordBatch:
    if names:
        return pa.record_batch(arrays, names=list(names))
    return pa.record_batch([pa.nulls(rows)], names=["rows"]).select([])


def _raw(block: Block, index: npt.NDArray[np.int64]) -> pa.Array:
    """The bytes of the records at `index`; no copy where all lines of the block are wanted."""
    if np.array_equal(block.starts[1:], block.ends[:-1]):
        step, offsets = 1, np.concatenate((block.starts[:1], block.ends))
    else:  # every second value is what lies between two records
        step, offsets = 2, np.column_stack((block.starts, block.ends)).ravel()
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(block.data)]
    array = pa.Array.from_buffers(pa.binary(), len(offsets) - 1, buffers)
    return array if len(index) == len(array) else array.take(pa.array(index * step))
