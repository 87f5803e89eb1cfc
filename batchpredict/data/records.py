"""Records: a block of consecutive rows of one input, on their way from a reader to a writer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Carry = Literal["record", "cell", "value"]

# Readers hand on blocks of about this many bytes of decompressed input.
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Dialect:
    """How a text file is spelled; nothing here is guessed from the file.

    `json_array`: one JSON array rather than JSON Lines.
    """

    delimiter: str = ","
    encoding: str = "utf-8"
    header: bool = True
    json_array: bool = False
    max_record_bytes: int = 16 << 20


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
    decompressed input, int64; None where the format cannot tell.
    """

    columns: pa.RecordBatch
    kept: pa.RecordBatch
    raw: pa.Array
    rows: npt.NDArray[np.int64]
    lines: npt.NDArray[np.int64] | None
    weight: npt.NDArray[np.int64]
    rejects: tuple[Reject, ...] = ()
    offsets: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.rows)


class Source(Protocol):
    """An input that can be opened; see sources.py."""

    name: str
    rereadable: bool
    compression: str

    def open(self) -> BinaryIO:
        """Decompressed bytes from the start."""
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

    def records(self, selection: Selection) -> Iterator[Records]:
        """The rows, in order, in blocks of about BLOCK_BYTES. Raises InputInvalid."""
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


class Writer(Protocol):
    """Writes rows in the order it is given them; `close` ends the format, not the sink."""

    def write(self, records: Records, added: pa.RecordBatch) -> None:
        """Append `len(records)` rows; `added` has as many."""
        ...

    def close(self) -> None: ...


class FormatModule(Protocol):
    """What every format module of this package offers."""

    def open_reader(self, source: Source, dialect: Dialect, survey: bool) -> Reader:
        """`survey`: the caller needs every column's name, even if that takes a pass."""
        ...

    def open_writer(self, sink: BinaryIO, layout: Layout) -> Writer:
        """A writer into `sink`, which it does not close."""
        ...


def take(records: Records, indices: npt.NDArray[np.int64]) -> Records:
    """The rows at `indices`, with no rejects."""
    index = pa.array(indices)
    return Records(
        columns=records.columns.take(index),
        kept=records.kept.take(index),
        raw=records.raw.take(index),
        rows=records.rows[indices],
        lines=None if records.lines is None else records.lines[indices],
        weight=records.weight[indices],
        offsets=None if records.offsets is None else records.offsets[indices],
    )
