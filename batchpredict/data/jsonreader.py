"""Reads JSON Lines and JSON arrays."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

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
    member_texts,
    too_deep,
)
from batchpredict.data.records import (
    Carry,
    Dialect,
    Records,
    Reject,
    Selection,
    Source,
)
from batchpredict.errors import InputInvalid, UsageError

# Blocks are addressed with 32 bits.
_LARGEST_RECORD = 1 << 30

# Rows the columns on offer are taken from where the input is not surveyed, and the most blocks
# that are held to find the first readable one.
_SAMPLE_ROWS = 1000
_SAMPLE_BLOCKS = 16

_JSON = pa.json_(pa.string())
_STRINGS = {str, type(None)}
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
    """A block's readable records, at `index` in it, and what is wrong with the others."""

    index: list[int]
    rows: list[int]
    objects: list[dict[str, Any]]
    texts: list[str]
    rejects: list[Reject]


class JsonReader:
    """Obeys the Reader protocol.

    `json_array`: whether the input is an array, which an input said to be one need not be.
    """

    def __init__(self, source: Source, dialect: Dialect, survey: bool) -> None:
        if survey and not source.rereadable:
            raise UsageError(
                f"{source.name}: JSON from a pipe cannot be read twice to find all its columns; "
                "name the ones that go to the output with --keep, or write to a file first"
            )
        self.notes: Sequence[str] = ()
        self.json_array = dialect.json_array
        self._reserved: frozenset[str] = frozenset()
        self._source = source
        self._limit = min(dialect.max_record_bytes, _LARGEST_RECORD)
        self._opened: Iterator[Block] | None = self._open()
        self.dialect = replace(dialect, json_array=self.json_array)
        names = self._all_names() if survey else self._sample_names()
        self.complete = survey and bool(names)  # no object at all says nothing about columns
        self.schema = pa.schema([pa.field(name, pa.string()) for name in names])

    def records(self, selection: Selection) -> Iterator[Records]:
        blocks, self._opened = self._opened or self._open(), None
        # Members that must be text; cells travel as they are spelled.
        decoded = (*selection.model, *(selection.kept if selection.carry == "value" else ()))
        self._reserved = frozenset(selection.reserved if selection.carry == "record" else ())
        rows = 0
        for block in blocks:
            parsed = self._parse(block, rows, decoded)
            rows += len(parsed.rows) + len(parsed.rejects)
            if parsed.rows or parsed.rejects:
                yield _records(block, parsed, selection)

    def original(self, raw: pa.Array, index: int) -> bytes:
        return _without_line_end(raw[index].as_py())

    def _open(self) -> Iterator[Block]:
        # The stream stays open at its end: the source may want it to compute a digest.
        self._stream = self._source.open()
        name = self._source.name
        chunks = Chunks(self._stream, name)
        line = 1
        if self.json_array:
            first, line, indent = chunks.skip_blank()
            if first == b"[":
                return element_blocks(chunks, self._limit, line, name)
            if first != b"{":
                raise _no_array(name, line, first)
            chunks.put_back(indent)
            self.json_array = False
            self.notes = (f"{name}: starts with {{ and is read as JSON Lines",)
        return line_blocks(chunks, self._limit, line)

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
        for block in blocks:
            for record in self._parse(block, 0, ()).objects[:most]:
                if not record.keys() <= names.keys():
                    names.update(dict.fromkeys(record))
        text = [name for name in names if _is_text(name)]
        if len(text) < len(names):
            self.notes = (
                *self.notes,
                f"{self._source.name}: a member whose name is not text "
                "(half of a surrogate pair) is no column",
            )
        return text

    def _parse(self, block: Block, rows: int, decoded: Sequence[str]) -> _Parsed:
        """The records of `block`, behind `rows` others. `decoded`: members that must be text."""
        parsed = _Parsed([], [], [], [], [])
        oversized = set(np.flatnonzero((block.sizes > self._limit) | block.cut).tolist())
        if not (decoded and _ESCAPED_SURROGATE.search(block.data)):
            decoded = ()
        spans = zip(block.starts.tolist(), block.ends.tolist(), strict=True)
        for index, (start, end) in enumerate(spans):
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
            rows += 1
            if fault:
                parsed.rejects.append(_reject(fault, rows, block, index))
                continue
            parsed.index.append(index)
            parsed.rows.append(rows)
            parsed.objects.append(value)
            parsed.texts.append(text)
        return parsed

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
            return _Fault(
                "invalid_utf8",
                f"the value of {json.dumps(name, ensure_ascii=False)} is not text: "
                "it holds half of a surrogate pair",
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
    long = bool(block.cut) or len(record) > CUT_BYTES
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


def _records(block: Block, parsed: _Parsed, selection: Selection) -> Records:
    index = np.array(parsed.index, np.int64)
    spelling = _Spelling(parsed)
    kept = [spelling.kept(name, selection.carry) for name in selection.kept]
    return Records(
        columns=_batch(selection.model, [spelling.column(n) for n in selection.model], len(index)),
        kept=_batch(selection.kept, kept, len(index)),
        raw=_raw(block, index),
        rows=np.array(parsed.rows, np.int64),
        lines=block.lines[index],
        weight=(block.ends - block.starts)[index],
        rejects=tuple(parsed.rejects),
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


class _Spelling:
    """Columns out of records, with values as they are spelled in the file."""

    def __init__(self, parsed: _Parsed) -> None:
        self._objects = parsed.objects
        self._texts = parsed.texts
        self._members: dict[int, dict[str, str]] = {}

    def column(self, name: str) -> pa.Array:
        """As in Records.columns."""
        values = [record.get(name) for record in self._objects]
        if set(map(type, values)) <= _STRINGS:
            return pa.array(values, pa.string())
        texts = [
            None if value is None else self._text(index, name, value)
            for index, value in enumerate(values)
        ]
        return pa.ExtensionArray.from_storage(_JSON, pa.array(texts, pa.string()))

    def kept(self, name: str, carry: Carry) -> pa.Array:
        """As in Records.kept."""
        if carry == "cell":
            cells = [
                self._text(index, name, record[name]) if name in record else None
                for index, record in enumerate(self._objects)
            ]
            return pa.array(cells, pa.binary())
        values = [record.get(name) for record in self._objects]
        texts = [
            value if type(value) in _STRINGS else self._text(index, name, value)
            for index, value in enumerate(values)
        ]
        return pa.array(texts, pa.string())

    def _text(self, index: int, name: str, value: Any) -> str | bytes:
        """A member's JSON text. Most values show it, only the others need another look."""
        if type(value) is bytes:
            return value
        if value is None:
            return "null"
        if type(value) is bool:
            return "true" if value else "false"
        if type(value) is str and "\\" not in self._texts[index]:
            return f'"{value}"'
        if index not in self._members:
            self._members[index] = member_texts(self._texts[index])
        return self._members[index][name]
