"""Records: a block of consecutive rows of one input, on their way from a reader to a writer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchpredict.job import SHARD_BYTES

Carry = Literal["record", "cell", "value"]

# Readers hand on blocks of about this many bytes of decompressed input.
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Dialect:
    """How a text file is spelled; nothing here is guessed from the file.

    `json_array`: one JSON array rather than JSON Lines. `shard_bytes`: see Shard.
    """

    delimiter: str = ","
    encoding: str = "utf-8"
    header: bool = True
    json_array: bool = False
    max_record_bytes: int = 16 << 20
    shard_bytes: int = SHARD_BYTES


@dataclass(frozen=True)
class Shard:
    """Consecutive rows of an input, which follow from its bytes and `Dialect.shard_bytes` alone.

    Text: the records that start in the same `shard_bytes` bytes of the decompressed input as
    UTF-8, counted from its begin (behind a byte order mark). Avro: whole blocks, those that start
    in the same `shard_bytes` bytes of the stored file. Parquet: row groups, as many as it takes to
    reach `shard_bytes` (their `total_byte_size`). Shards without rows are not counted.

    `number`: from 0. `start`: where the first row lies: its offset (text), that of its block in
    the stored file (Avro), the number of its row group (Parquet). `row`, `line`: of the first row,
    from 1; lines as in Records, 1 where the format has none. `rows`: how many, unreadable ones
    counted; None: all that follow. `uncounted`: there may be fewer than `rows`.
    """

    number: int = 0
    start: int = 0
    row: int = 1
    line: int = 1
    rows: int | None = None
    uncounted: bool = False

    @property
    def is_from_begin(self) -> bool:
        """Whether it is read as the whole input is: with header, byte order mark, compression."""
        return not self.start and self.row == 1


# An input that cannot be read but from its begin: compressed text, other encodings, a JSON array,
# a pipe.
WHOLE = Shard()


@dataclass(frozen=True)
class Selection:
    """What a reader shall deliver.

    `model`: columns delivered as values in `Records.columns`.
    `kept`: columns delivered in `Records.kept`, in this order; empty when `carry` is "record".
    `carry`: how rows travel to the writer. "record": as they came, in `Records.raw` (writer of
    the same format, every column kept). "cell": `kept` holds each cell as it is spelled in the
    file (writer of the same format, some columns kept). "value": `kept` holds values (writer of
    another format).
    `reserved`: names of the added columns; a record that has one of its own is rejected where
    `carry` is "record", since readers of the output would have to guess which is meant.
    """

    model: tuple[str, ...]
    kept: tuple[str, ...]
    carry: Carry
    reserved: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that is not scored.

    `record`: as it came, bytes (text formats) or an object; where it is too long to be held, its
    beginning, with `offset` and `length` (bytes of the decompressed input).
    """

    row: int
    line: int | None
    code: str
    message: str
    record: bytes | Mapping[str, Any] | None
    offset: int | None = None
    length: int | None = None


@dataclass(frozen=True)
class Records:
    """Consecutive readable rows of one input, in its order.

    `columns`: the columns the model reads. CSV: `string`. JSON: `string` where every value of
    the block is a string or null, else `arrow.json` (each value as its JSON text). Avro and
    Parquet: their own types (Avro values that no Arrow type fits: `arrow.json`).
    `kept`: see Selection. `raw`: the records as they came, `binary` (text formats with their
    line end, Avro as encoded) or `struct` (Parquet).
    `rows`: int64, number of each row, from 1, counting unreadable ones. `lines`: int64, physical
    line each row starts on, from 1; None where the format has no lines.
    `rejects`: rows among these that could not be read, in order; they are in no other field.
    `weight`: bytes of decompressed input per row, int64. `offsets`: where each row starts in the
    decompressed input, int64; None where the format cannot tell. `breaks`: numbers of rows among
    these, ascending, that are the first of a shard other than the first one, readable or not.
    """

    columns: pa.RecordBatch
    kept: pa.RecordBatch
    raw: pa.Array
    rows: npt.NDArray[np.int64]
    lines: npt.NDArray[np.int64] | None
    weight: npt.NDArray[np.int64]
    rejects: tuple[Reject, ...] = ()
    offsets: npt.NDArray[np.int64] | None = None
    breaks: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)


class Source(Protocol):
    """An input that can be opened; see sources.py."""

    name: str
    rereadable: bool
    compression: str

    def open(self, at: int = 0) -> BinaryIO:
        """Decompressed bytes from the start; from `at` on, where nothing is compressed."""
        ...

    def local_path(self) -> Path | None:
        """A file with the stored bytes, to be read in any order; None where there can be none."""
        ...


class Reader(Protocol):
    """An opened input.

    `schema`: the columns on offer, with the types `Records.kept` has under carry "value".
    `complete`: False where rows may hold columns that `schema` does not name (JSON that was
    not surveyed). `notes`: remarks for the log. `dialect`: how the input turned out to be
    spelled.
    """

    schema: pa.Schema
    complete: bool
    notes: Sequence[str]
    dialect: Dialect

    def records(self, selection: Selection, shard: Shard = WHOLE) -> Iterator[Records]:
        """The rows, in order, in blocks of about BLOCK_BYTES. Raises InputInvalid.

        From the first row of `shard` on, and beyond its last one: who needs no more stops asking.
        """
        ...

    def original(self, raw: pa.Array, index: int) -> bytes | Mapping[str, Any]:
        """A record as it came, for the rejects file, from `Records.raw`."""
        ...


@dataclass(frozen=True)
class Layout:
    """What a writer writes: `kept` columns (or whole records) and the `added` ones.

    `origin`: the reader, where `carry` is "record" or "cell": it knows the header, the dialect,
    the schema that are to be kept. `dialect`: for text.
    """

    carry: Carry
    kept: pa.Schema
    added: pa.Schema
    origin: Reader | None
    dialect: Dialect


@dataclass(frozen=True)
class Part:
    """A complete output, all parts of one with the same writer: `name` is a file or object.

    Its rows are its stored bytes from `begin` up to `end`: what precedes the first row and what
    follows the last lies outside, compressed by itself if at all. `size`: of the whole.
    """

    name: str
    begin: int
    end: int
    size: int


class Writer(Protocol):
    """Writes rows in the order it is given them; `close` ends the format, not the sink."""

    def write(self, records: Records, added: pa.RecordBatch) -> None:
        """Append `len(records)` rows; `added` has as many."""
        ...

    def cut(self) -> None:
        """Write what is held back. Rows that follow share no block or row group with it."""
        ...

    def close(self) -> None: ...


class FormatModule(Protocol):
    """What every format module of this package offers."""

    def open_reader(self, source: Source, dialect: Dialect, survey: bool | Sequence[str]) -> Reader:
        """`survey`: the caller needs every column's name, even if that takes a pass; or these are
        the names that an earlier one of the same input has found.
        """
        ...

    def shards(self, source: Source, dialect: Dialect) -> Iterator[Shard]:
        """The shards of an input in order, at least one, found in one pass, each when it is found.

        WHOLE alone where there is no other way. Raises what reading does.
        """
        ...

    def join(self, parts: Sequence[Part]) -> Iterator[bytes | memoryview]:
        """The stored bytes of one output that has the rows of all parts, in order.

        The same that a writer gives that is cut where a part ends.
        """
        ...

    def open_writer(self, sink: BinaryIO, layout: Layout) -> Writer:
        """A writer into `sink`, which it does not close."""
        ...


def take(records: Records, indices: npt.NDArray[np.int64]) -> Records:
    """The rows at `indices`, with no rejects; `breaks` stay."""
    index = pa.array(indices)
    return Records(
        columns=records.columns.take(index),
        kept=records.kept.take(index),
        raw=records.raw.take(index),
        rows=records.rows[indices],
        lines=None if records.lines is None else records.lines[indices],
        weight=records.weight[indices],
        offsets=None if records.offsets is None else records.offsets[indices],
        breaks=records.breaks,
    )
