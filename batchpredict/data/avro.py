"""Avro object container files (Avro 1.11 specification).

Records travel as the bytes they are encoded in, so that schema, union branches, logical types and
every bit of a value come back; only what a model reads or another format needs is decoded.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, cast

import fastavro
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchpredict.data.avro_columns import (
    UNDECODABLE,
    Cells,
    Decoder,
    decoder,
    gather,
    parsed_field,
)
from batchpredict.data.avro_container import (
    MOST_BLOCK_BYTES,
    BlockWriter,
    Damaged,
    Header,
    Positioned,
    block_counts,
    read_blocks,
    read_header,
)
from batchpredict.data.avro_encode import encode
from batchpredict.data.avro_schema import (
    RecordSchema,
    SchemaInvalid,
    arrow_type,
    fields_of,
    parse,
)
from batchpredict.data.avro_walk import Walker
from batchpredict.data.conversion import plain_json
from batchpredict.data.joining import concatenated
from batchpredict.data.records import (
    BLOCK_BYTES,
    WHOLE,
    Dialect,
    Layout,
    Part,
    Reader,
    Records,
    Reject,
    Selection,
    Shard,
    Source,
    Writer,
)
from batchpredict.errors import InputInvalid

Int64 = npt.NDArray[np.int64]
# Bound a block of records that take no bytes at all, or few and have many fields.
_MOST_ROWS = 1 << 16
_MOST_CELLS = 1 << 22
# Avro blocks joined: they may hold nothing.
_MOST_EXTENTS = 1 << 12


def open_reader(
    source: Source,
    dialect: Dialect,
    survey: bool | Sequence[str],  # noqa: ARG001
) -> Reader:
    """A reader of one file or pipe; `survey` is nothing to it, the schema names every column."""
    return AvroReader(source, dialect)


def open_writer(sink: BinaryIO, layout: Layout) -> Writer:
    """A writer that keeps the origin's schema, metadata and codec unless `carry` is "value"."""
    return AvroWriter(sink, layout)


def shards(source: Source, dialect: Dialect) -> Iterator[Shard]:
    """See FormatModule.shards: from the headers of the blocks, which take reading the file.

    Where a block is damaged, the shard it is in or begins is the last one: its reader tells.
    """
    if not source.rereadable or source.compression:
        yield WHOLE
        return
    yield from AvroReader(source, dialect).shards()


def join(parts: Sequence[Part]) -> Iterator[bytes | memoryview]:
    """See FormatModule.join."""
    return concatenated(parts)


@dataclass(frozen=True)
class _Joined:
    """The data of one or several Avro blocks. `extents`: where each ends, and its row count.

    `breaks`: it begins a shard other than the first one.
    """

    data: bytes
    extents: tuple[tuple[int, int], ...]
    breaks: bool


@dataclass(frozen=True)
class _Piece:
    """Consecutive records. `marks`: one line per record, see Walker. `first`: row number.

    `breaks`: see Records.
    """

    data: bytes
    start: int
    marks: Int64
    first: int
    breaks: tuple[int, ...] = ()

    @property
    def ends(self) -> Int64:
        return cast(Int64, np.ascontiguousarray(self.marks[:, -1]))

    def cells(self, column: int) -> Cells:
        ends = np.ascontiguousarray(self.marks[:, column])
        if column:
            return Cells(self.data, np.ascontiguousarray(self.marks[:, column - 1]), ends)
        return Cells(self.data, np.concatenate([[self.start], self.ends[:-1]]), ends)

    def raw(self) -> pa.BinaryArray:
        # Relative to the first record: a block may be larger than 32-bit offsets reach.
        offsets = np.concatenate([[self.start], self.ends]) - self.start
        window = memoryview(self.data)[self.start : int(self.ends[-1])]
        buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(window)]
        return pa.Array.from_buffers(pa.binary(), len(self.marks), buffers)


@dataclass
class _Faults:
    """Why rows of a piece cannot be read; the first reason of each counts."""

    by_index: dict[int, tuple[str, str]] = field(default_factory=dict)

    def add(self, column: str, faults: Mapping[int, tuple[str, str]]) -> None:
        for index, (code, message) in faults.items():
            self.by_index.setdefault(index, (code, f"column {column!r}: {message}"))


class AvroReader:
    """Obeys the Reader protocol. The header is read at once, the rows by `records`.

    `declared`: the schema as it stands in the file. `metadata`: the file's.
    """

    complete = True

    def __init__(self, source: Source, dialect: Dialect) -> None:
        self._name = source.name
        self.dialect = dialect
        self._most_bytes = dialect.max_record_bytes
        self._most_block_bytes = max(MOST_BLOCK_BYTES, 2 * self._most_bytes)
        self._stream = Positioned(source.open())
        self._header: Header = read_header(self._stream, source.name)
        try:
            self.avro: RecordSchema = parse(self._header.metadata.get("avro.schema", b""))
        except SchemaInvalid as error:
            raise self._schema_invalid(error) from error
        self.metadata = self._header.metadata
        self.schema = pa.schema(
            [(f["name"], arrow_type(f["type"], self.avro.definitions)) for f in self.avro.fields]
        )
        self.notes: Sequence[str] = ()
        self._structure: Any = None
        self._source = source
        self._begun = False

    def shards(self) -> Iterator[Shard]:
        """See FormatModule.shards."""
        self._go_to(WHOLE)
        shard = Shard(start=self._stream.position, rows=0)
        place = None
        for at, count in block_counts(self._stream, self._header, self._most_block_bytes):
            if count == 0:
                continue
            rows = cast(int, shard.rows)
            if place not in (None, self._place(at)):
                yield shard
                shard, rows = Shard(shard.number + 1, at, shard.row + rows), 0
            place = self._place(at)
            shard = replace(shard, rows=None if count is None else rows + count)
        yield shard

    def _place(self, at: int) -> int:
        """The same for all blocks of a shard."""
        return at // self.dialect.shard_bytes

    def _go_to(self, shard: Shard) -> None:
        if shard.start:
            self._stream = Positioned(self._source.open(shard.start), shard.start)
        elif self._begun:
            self._stream = Positioned(self._source.open())
            read_header(self._stream, self._name)
        self._begun = True

    def records(self, selection: Selection, shard: Shard = WHOLE) -> Iterator[Records]:
        """The rows, in order; see Reader. A pipe can be read once."""
        self._go_to(shard)
        bordered = {*selection.model, *selection.kept}
        try:
            columns = _Columns(self.avro, selection, Walker(self.avro, bordered))
        except SchemaInvalid as error:
            raise self._schema_invalid(error) from error
        for piece in self._pieces(columns.walker, shard):
            try:
                records = self._records(piece, columns)
            except Damaged as error:
                raise InputInvalid(
                    f"{self._name}: rows from {piece.first} on cannot be read: {error}"
                ) from error
            yield records

    def _schema_invalid(self, error: SchemaInvalid) -> InputInvalid:
        return InputInvalid(f"{self._name}: {error}; write the file again with a valid schema")

    def _joined(self, shard: Shard) -> Iterator[_Joined]:
        """Avro blocks, small ones of a shard joined."""
        parts: list[bytes] = []
        extents: list[tuple[int, int]] = []
        size = rows = 0
        place = -1 if shard.number else None
        breaks = False
        limits = (self._most_block_bytes, self.dialect.shard_bytes)
        for block in read_blocks(self._stream, self._header, self._name, *limits):
            if block.count and place not in (None, self._place(block.at)):
                if extents:
                    yield _Joined(b"".join(parts), tuple(extents), breaks)
                    parts, extents, size = [], [], 0
                breaks = True
            place = self._place(block.at) if block.count else place
            parts.append(block.data)
            size += len(block.data)
            rows += block.count
            extents.append((size, block.count))
            # What follows the shard is left alone, it may be damaged.
            if size >= BLOCK_BYTES or len(extents) >= _MOST_EXTENTS or rows == shard.rows:
                yield _Joined(b"".join(parts), tuple(extents), breaks)
                parts, extents, size, breaks = [], [], 0, False
        if extents:
            yield _Joined(b"".join(parts), tuple(extents), breaks)

    def _pieces(self, walker: Walker, shard: Shard) -> Iterator[_Piece]:
        row = shard.row
        most_rows = max(1, min(_MOST_ROWS, _MOST_CELLS // self.avro.cells))
        for joined in self._joined(shard):
            position = start = held = 0
            breaks = (row,) if joined.breaks else ()
            marks: list[Int64] = []
            walker.begin()
            for end, count in joined.extents:
                left = count
                while left:
                    most = min(left, most_rows - held)
                    walked = self._walk(walker, joined.data, (position, most, start, end), row)
                    marks.append(walked)
                    left -= len(walked)
                    held += len(walked)
                    row += len(walked)
                    position = int(walked[-1, -1])
                    if not left:
                        self._check_end(position, end, row)
                    if position - start >= BLOCK_BYTES or held == most_rows:
                        yield _Piece(joined.data, start, np.concatenate(marks), row - held, breaks)
                        start, marks, held, breaks = position, [], 0, ()
                        walker.begin()
                self._check_end(position, end, row)
            if marks:
                yield _Piece(joined.data, start, np.concatenate(marks), row - held, breaks)

    def _check_end(self, position: int, end: int, row: int) -> None:
        if position != end:
            raise self._unreadable(row, "its block is longer than its rows")

    def _walk(
        self, walker: Walker, data: bytes, place: tuple[int, int, int, int], row: int
    ) -> Int64:
        position, most, start, end = place
        try:
            walked = walker.walk(data, position, most, start + BLOCK_BYTES)
        except Damaged as error:
            reason, index = error.args
            raise self._unreadable(row + index, reason) from error
        marks = np.frombuffer(walked, np.int64).reshape(-1, walker.marks_per_record)
        if marks[-1, -1] > end:
            index = int(np.argmax(marks[:, -1] > end))
            raise self._unreadable(row + index, "it ends early")
        return marks

    def _unreadable(self, row: int, reason: str) -> InputInvalid:
        return InputInvalid(
            f"{self._name}: row {row} cannot be read ({reason}), and no row after it can be "
            "found; fetch the file again"
        )

    def _records(self, piece: _Piece, columns: _Columns) -> Records:
        raw = piece.raw()
        weight = np.diff(piece.ends, prepend=piece.start)
        faults = _Faults()
        model = columns.model(piece, faults)
        kept = columns.kept(piece, faults)
        for index in np.flatnonzero(weight > self._most_bytes).tolist():
            message = f"the record has {weight[index]} bytes; see --max_record_bytes"
            faults.by_index[index] = ("too_large", message)
        rows = np.arange(piece.first, piece.first + len(raw), dtype=np.int64)
        if not faults.by_index:
            return Records(model, kept, raw, rows, None, weight, breaks=piece.breaks)
        good = np.ones(len(raw), bool)
        good[list(faults.by_index)] = False
        mask = pa.array(good)
        rejects = tuple(
            Reject(int(rows[i]), None, code, message, self._rejected(raw, i, code))
            for i, (code, message) in sorted(faults.by_index.items())
        )
        kept, model = kept.filter(mask), model.filter(mask)
        return Records(
            model, kept, raw.filter(mask), rows[good], None, weight[good], rejects, None,
            piece.breaks,
        )  # fmt: skip

    def _rejected(self, raw: pa.BinaryArray, index: int, code: str) -> Any:
        return None if code == "too_large" else self.original(raw, index)

    def original(self, raw: pa.Array, index: int) -> bytes | Mapping[str, Any]:
        """The record by its underlying values, bytes as base64; as encoded if it has no such."""
        encoded: bytes = raw[index].as_py()
        try:
            if self._structure is None:
                self._structure = parsed_field(self.avro.structure(self.avro.top))
            record: Any = fastavro.schemaless_reader(io.BytesIO(encoded), self._structure, None)
        except (SchemaInvalid, *UNDECODABLE):
            return encoded
        return cast(dict[str, Any], plain_json(record["value"]))


class _Columns:
    """Makes what a selection asks for from the borders of fields."""

    def __init__(self, schema: RecordSchema, selection: Selection, walker: Walker) -> None:
        self.walker = walker
        self._selection = selection
        self._model = {name: decoder(schema, name, True) for name in selection.model}
        self._kept = (
            {name: decoder(schema, name, False) for name in selection.kept}
            if selection.carry == "value"
            else {}
        )

    def model(self, piece: _Piece, faults: _Faults) -> pa.RecordBatch:
        return self._decoded(piece, self._model, faults)

    def kept(self, piece: _Piece, faults: _Faults) -> pa.RecordBatch:
        if self._selection.carry == "value":
            return self._decoded(piece, self._kept, faults)
        names = self._selection.kept
        return _batch({name: gather(self._cells(piece, name)) for name in names}, piece)

    def _cells(self, piece: _Piece, name: str) -> Cells:
        return piece.cells(self.walker.column[name])

    def _decoded(
        self, piece: _Piece, decoders: Mapping[str, tuple[pa.DataType, Decoder]], faults: _Faults
    ) -> pa.RecordBatch:
        arrays = {}
        for name, (_, decode) in decoders.items():
            decoded = decode(self._cells(piece, name))
            faults.add(name, decoded.faults)
            arrays[name] = decoded.values
        return _batch(arrays, piece)


def _batch(arrays: Mapping[str, pa.Array], piece: _Piece) -> pa.RecordBatch:
    """A batch that knows its length even where it has no columns."""
    length = pa.nulls(len(piece.marks))
    batch = pa.RecordBatch.from_arrays([*arrays.values(), length], [*arrays, ""])
    return batch.select(list(range(len(arrays))))


class AvroWriter:
    """Obeys the Writer protocol. Equal rows give equal bytes however they are cut into calls."""

    def __init__(self, sink: BinaryIO, layout: Layout) -> None:
        self._carry = layout.carry
        origin = layout.origin
        if layout.carry == "value":
            schema: dict[str, Any] = {"type": "record", "name": "Row", "fields": []}
            schema["fields"] = fields_of(pa.schema([*layout.kept, *layout.added]))
            metadata = {"avro.codec": b"deflate"}
        else:
            assert isinstance(origin, AvroReader)  # what carry "record" and "cell" mean
            schema = dict(origin.avro.declared)
            if layout.carry == "cell":
                schema = origin.avro.restricted(layout.kept.names)
            taken = [field["name"] for field in schema["fields"]]
            schema["fields"] = [*schema["fields"], *fields_of(layout.added, taken)]
            metadata = dict(origin.metadata)
        text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
        self._blocks = BlockWriter(sink, {**metadata, "avro.schema": text.encode()})

    def write(self, records: Records, added: pa.RecordBatch) -> None:
        """Append rows; see Writer."""
        parts = [encode(column) for column in added.columns]
        if self._carry == "record":
            parts.insert(0, records.raw)
        elif self._carry == "cell":
            parts[:0] = records.kept.columns
        else:
            parts[:0] = [encode(column) for column in records.kept.columns]
        if not parts:
            parts = [pa.array([b""] * len(records), pa.binary())]
        self._blocks.append(pc.binary_join_element_wise(*parts, b""))

    def cut(self) -> None:
        """See Writer.cut."""
        self._blocks.cut()

    def close(self) -> None:
        """Write the last block."""
        self._blocks.close()
