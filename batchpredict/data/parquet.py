"""Parquet files, through pyarrow."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchpredict.data.arrow_types import (
    cast_to,
    holds_text,
    is_string,
    value_type,
    values_of,
    without_views,
)
from batchpredict.data.conversion import as_json, as_text, fits_parquet
from batchpredict.data.parquet_joining import joined
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
from batchpredict.data.storage import unreadable
from batchpredict.errors import InputInvalid, InputMissing, UsageError

# A batch as decoded; larger ones, from well compressed columns, are halved until they fit.
_MOST_BLOCK_BYTES = 8 << 20
_MOST_BLOCK_ROWS = 1 << 13
# A row group is closed by whichever it reaches first; both depend on the rows alone.
_GROUP_ROWS = 1 << 16
_GROUP_BYTES = 64 << 20
_DAMAGE = (pa.ArrowException, OSError, EOFError)
_CODECS = {"UNCOMPRESSED": "none", "LZ4_RAW": "lz4"}
_DEFAULT_CODEC = "snappy"


def open_reader(
    source: Source,
    dialect: Dialect,
    survey: bool | Sequence[str],  # noqa: ARG001
) -> Reader:
    """A reader of one file. Raises UsageError for a pipe, InputInvalid.

    `survey` is nothing to it: the file says everything.
    """
    return ParquetReader(source, dialect)


def open_writer(sink: BinaryIO, layout: Layout) -> Writer:
    """A writer that keeps the origin's schema, metadata and codec unless `carry` is "value"."""
    return ParquetWriter(sink, layout)


def shards(source: Source, dialect: Dialect) -> Iterator[Shard]:
    """See FormatModule.shards: from the footer alone. Raises what opening a reader does."""
    yield from (shard for shard, _ in ParquetReader(source, dialect).shards)


def join(parts: Sequence[Part]) -> Iterator[bytes | memoryview]:
    """See FormatModule.join."""
    return joined(parts)


class _WrongCount(ValueError):
    def __init__(self, groups: range) -> None:
        super().__init__(
            f"row groups {groups[0]} to {groups[-1]} have other rows than the footer says"
        )


class ParquetReader:
    """Obeys the Reader protocol.

    `codec`: what the first column is compressed with. `stored`: the schema as the file states
    it; `schema` is the same but for the layout of texts. `shards`: each with its row groups.
    """

    complete = True

    def __init__(self, source: Source, dialect: Dialect) -> None:
        self._name = source.name
        self.dialect = dialect
        self._path = _seekable(source)
        file = self._open()
        try:
            self._describe(file)
        except (*_DAMAGE, ValueError) as error:  # a name that is not UTF-8
            raise self._invalid(error) from error
        finally:
            file.close()

    def _describe(self, file: pq.ParquetFile) -> None:
        """What the footer says. Raises InputInvalid; what of _DAMAGE, ValueError pyarrow does."""
        metadata = file.metadata
        self.stored: pa.Schema = file.schema_arrow
        self.schema = pa.schema(
            [field.with_type(without_views(field.type)) for field in self.stored],
            self.stored.metadata,
        )
        (name, times) = next(iter(Counter(self.schema.names).most_common(1)), ("", 0))
        if times > 1:
            raise InputInvalid(f"{self._name}: has more than one column named {name!r}; rename one")
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        sizes = [group.total_byte_size for group in groups]
        counts = [group.num_rows for group in groups]
        if min(counts, default=0) < 0:
            raise self._damaged(ValueError("a row group has less than no rows"))
        self.shards = _shards(sizes, counts, self.dialect.shard_bytes)
        self._row_bytes = max(1, sum(sizes) // max(1, metadata.num_rows))
        self.codec = _DEFAULT_CODEC
        if sizes and metadata.num_columns:
            try:
                _read_one(file)
            except _DAMAGE as error:
                raise self._damaged(error) from error
            name = metadata.row_group(0).column(0).compression
            self.codec = _CODECS.get(name, name.lower())
        self.notes: Sequence[str] = _notes(file)

    def _open(self) -> pq.ParquetFile:
        try:
            # Without a buffer size whole column chunks are read into memory. Spark's INT96
            # timestamps count microseconds; as nanoseconds the years 1 and 9999 would overflow.
            return pq.ParquetFile(
                self._path,
                buffer_size=BLOCK_BYTES,
                pre_buffer=False,
                coerce_int96_timestamp_unit="us",
                page_checksum_verification=True,
            )
        except (*_DAMAGE, ValueError) as error:
            raise self._invalid(error) from error

    def _invalid(self, error: Exception) -> InputInvalid | InputMissing:
        if isinstance(error, OSError) and error.errno:
            return unreadable(self._name, error)
        return InputInvalid(
            f"{self._name}: is not a Parquet file, or is truncated ({_line(error)}); check "
            "--input_format or fetch the file again"
        )

    def _damaged(self, error: BaseException) -> InputInvalid | InputMissing:
        if isinstance(error, OSError) and error.errno:
            return unreadable(self._name, error)
        return InputInvalid(
            f"{self._name}: the Parquet data is damaged ({_line(error)}); fetch the file again"
        )

    def records(self, selection: Selection, shard: Shard = WHOLE) -> Iterator[Records]:
        """The rows, in order; see Reader.

        A batch never spans shards: it depends on where reading begins.
        """
        decoded = selection.kept if selection.carry == "value" else ()
        text = [
            name
            for name in dict.fromkeys((*selection.model, *decoded))
            if holds_text(self.schema.field(name).type)
        ]
        for first, breaks, whole in self._batches(shard):
            faults = _not_utf8(whole, text)
            good = np.ones(whole.num_rows, np.bool_)
            good[list(faults)] = False
            batch = whole.filter(pa.array(good)) if faults else whole
            count = batch.num_rows
            values = [values_of(batch.column(name)) for name in selection.model]
            columns = [cast_to(value, without_views(value.type)) for value in values]
            yield Records(
                columns=_batch(columns, list(selection.model), count),
                kept=batch.select(list(selection.kept)),
                raw=batch.to_struct_array(),
                rows=first + np.flatnonzero(good),
                lines=None,
                # Of decoded values: dictionaries make long texts that repeat weigh nothing.
                weight=np.full(count, max(1, batch.nbytes // max(1, count)), np.int64),
                rejects=tuple(
                    Reject(first + index, None, "invalid_utf8", fault, _spelled(whole, index))
                    for index, fault in faults.items()
                ),
                breaks=breaks,
            )

    def _batches(self, begin: Shard) -> Iterator[tuple[int, tuple[int, ...], pa.RecordBatch]]:
        """Batches of one shard each, with the number of the first row and `Records.breaks`."""
        file = self._open()
        try:
            for shard, groups in self.shards[begin.number :]:
                row, left = shard.row, shard.rows or 0
                for batch in self._batches_of(file, groups):
                    left -= batch.num_rows
                    if left < 0:
                        raise self._damaged(_WrongCount(groups))
                    yield row, (row,) if shard.number and row == shard.row else (), batch
                    row += batch.num_rows
                if left:
                    raise self._damaged(_WrongCount(groups))
        except _DAMAGE as error:
            raise self._damaged(error) from error
        finally:
            file.close()

    def _batches_of(self, file: pq.ParquetFile, groups: range) -> Iterator[pa.RecordBatch]:
        rows = min(_MOST_BLOCK_ROWS, max(1, BLOCK_BYTES // self._row_bytes))
        for batch in file.iter_batches(rows, row_groups=groups, use_threads=False):
            yield from _fitting(batch if batch.schema == self.schema else self._cast(batch))

    def _cast(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        columns = [
            column if column.type == field.type else column.cast(field.type)
            for column, field in zip(batch.columns, self.schema, strict=True)
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def original(self, raw: pa.Array, index: int) -> bytes | Mapping[str, Any]:
        """The record as JSON has it: dates and decimals as text, bytes as base64."""
        return _spelled(pa.RecordBatch.from_struct_array(raw.slice(index, 1)), 0)


def _shards(
    sizes: Sequence[int], counts: Sequence[int], shard_bytes: int
) -> list[tuple[Shard, range]]:
    """Each shard with the numbers of its row groups; those without rows belong to any."""
    found: list[tuple[Shard, range]] = []
    start = size = rows = 0
    row = 1
    for number, count in enumerate(counts):
        if not count:
            continue
        start = start if rows else number
        size += sizes[number]
        rows += count
        if size >= shard_bytes:
            found.append((Shard(len(found), start, row, rows=rows), range(start, number + 1)))
            row, size, rows = row + rows, 0, 0
    if rows or not found:
        found.append((Shard(len(found), start, row, rows=rows), range(start, len(counts))))
    return found


def _read_one(file: pq.ParquetFile) -> None:
    """Raise what is wrong with the first column; asked for its codec, pyarrow 26 would abort."""
    path = file.schema.column(0).path
    rows = file.iter_batches(1, row_groups=[0], columns=[path], use_threads=False)
    next(iter(rows), None)


def _seekable(source: Source) -> Path:
    if source.compression:
        raise UsageError(
            f"{source.name}: Parquet is compressed inside and cannot be read through another "
            "compression; decompress it first"
        )
    path = source.local_path()
    if path is None:
        raise UsageError(
            f"{source.name}: Parquet cannot be read from a pipe, its index is at its end; save "
            "it to a file first"
        )
    return path


def _notes(file: pq.ParquetFile) -> tuple[str, ...]:
    columns = (file.schema.column(index) for index in range(len(file.schema)))
    return tuple(
        f"column '{column.path}': INT96 timestamps are read and written in microseconds"
        for column in columns
        if column.physical_type == "INT96"
    )


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if text.isprintable() else ascii(text)


def _not_utf8(batch: pa.RecordBatch, names: Sequence[str]) -> dict[int, str]:
    """Which rows have text that is none, which pyarrow does not look at, and where."""
    faults: dict[int, str] = {}
    for name in names:
        column = batch.column(name)
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            for index in range(len(column)):
                try:
                    as_json(column.slice(index, 1))
                except UnicodeDecodeError:
                    faults.setdefault(index, f"column {name!r}: the text is not UTF-8")
    return dict(sorted(faults.items()))


def _spelled(batch: pa.RecordBatch, index: int) -> dict[str, Any]:
    """A row as JSON has it. Text that is none is base64, as bytes are; inside of nested values
    it takes them along, they become null.
    """
    record: dict[str, Any] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        value = values_of(column.slice(index, 1))
        try:
            text = as_json(value)
        except UnicodeDecodeError:
            text = as_json(value.cast(pa.large_binary())) if is_string(value.type) else ["null"]
        record[name] = json.loads(text[0])
    return record


def _fitting(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    if batch.num_rows < 2 or batch.get_total_buffer_size() <= _MOST_BLOCK_BYTES:
        yield batch
        return
    # Sizes are of whole buffers, so a slice is judged by its share of the rows.
    parts = min(batch.num_rows, -(-batch.get_total_buffer_size() // _MOST_BLOCK_BYTES))
    rows = -(-batch.num_rows // parts)
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def _batch(columns: list[pa.Array], names: list[str], count: int) -> pa.RecordBatch:
    """A batch that knows its length even where it has no columns."""
    batch = pa.RecordBatch.from_arrays([*columns, pa.nulls(count)], [*names, ""])
    return batch.select(list(range(len(names))))


class ParquetWriter:
    """Obeys the Writer protocol. Equal rows give equal bytes however they are cut into calls."""

    def __init__(self, sink: BinaryIO, layout: Layout) -> None:
        self._carry = layout.carry
        codec = _DEFAULT_CODEC
        metadata = None
        kept = pa.schema([_storable(field) for field in layout.kept])
        if layout.carry != "value":
            assert isinstance(layout.origin, ParquetReader)  # what the other carries mean
            codec = layout.origin.codec
            stored = layout.origin.stored
            metadata = stored.metadata
            if layout.carry == "record":
                kept = stored
            else:
                kept = pa.schema([stored.field(name) for name in kept.names])
        self._schema = pa.schema([*kept, *map(_storable, layout.added)], metadata)
        self._writer = pq.ParquetWriter(sink, self._schema, compression=codec)
        self._pending: list[pa.RecordBatch] = []
        self._rows = 0
        self._bytes = 0

    def write(self, records: Records, added: pa.RecordBatch) -> None:
        """Append rows; see Writer."""
        kept = records.kept
        if self._carry == "record":
            kept = pa.RecordBatch.from_struct_array(records.raw)
        columns = [
            _stored(column, field)
            for column, field in zip((*kept.columns, *added.columns), self._schema, strict=True)
        ]
        if not columns:
            return
        batch = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        start = 0
        sizes = np.cumsum(records.weight)
        while start < len(records):
            before = int(sizes[start - 1]) if start else 0
            full = int(np.searchsorted(sizes, before + _GROUP_BYTES - self._bytes)) + 1
            stop = min(full, start + _GROUP_ROWS - self._rows, len(records))
            self._pending.append(batch.slice(start, stop - start))
            self._rows += stop - start
            self._bytes += int(sizes[stop - 1]) - before
            start = stop
            if self._rows == _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
                self._flush()

    def _flush(self) -> None:
        if self._pending:
            # One chunk per column: pages are cut within chunks.
            table = pa.Table.from_batches(self._pending, self._schema)
            table = table.unify_dictionaries().combine_chunks()
            self._writer.write_table(table, row_group_size=_GROUP_ROWS)
        self._pending, self._rows, self._bytes = [], 0, 0

    def cut(self) -> None:
        """See Writer.cut."""
        self._flush()

    def close(self) -> None:
        """Write the last row group and the footer."""
        self._flush()
        self._writer.close()


def _storable(field: pa.Field) -> pa.Field:
    """JSON texts of mixed columns and types that Parquet has no place for become text."""
    kind = value_type(field.type)
    return field if fits_parquet(kind) else field.with_type(pa.string())


def _stored(column: pa.Array, field: pa.Field) -> pa.Array:
    if column.type == field.type:
        return column
    return column.cast(field.type) if without_views(field.type) == column.type else as_text(column)
