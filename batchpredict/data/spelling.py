"""Single records of an input put together again to a small file in that input's own form."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import pyarrow as pa
import pyarrow.parquet as pq

from batchpredict.data.avro import AvroReader
from batchpredict.data.avro_container import BlockWriter
from batchpredict.data.avro_encode import encode_record
from batchpredict.data.csv_reader import CsvReader
from batchpredict.data.drafts import write_failed
from batchpredict.data.encoding import escape_of
from batchpredict.data.jsonreader import JsonReader
from batchpredict.data.parquet import ParquetReader
from batchpredict.data.records import Reader
from batchpredict.data.rejected import RejectedRow, as_bytes
from batchpredict.data.respelled import Unfit, arrow_struct
from batchpredict.data.sources import source_of
from batchpredict.errors import InputInvalid


class Unmendable(Exception):
    """Why a record cannot stand in the input: the code and the message of its reject."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class NewColumn(InputInvalid):
    """A mended record has a column that there is no place for."""


@dataclass(frozen=True)
class Spelled:
    """A record as it stands in a file, without a line end; `lines`: line feeds in it."""

    data: bytes
    lines: int = 0


@dataclass(frozen=True)
class LineEnds:
    """How records of a text format end; `unended`: the row behind which the input ends at once."""

    line_end: bytes = b"\n"
    unended: int | None = None

    def after(self, row: int) -> bytes:
        return b"" if row == self.unended else self.line_end


class Spelling(Protocol):
    """`first_line`: the physical line of a small file's first record; None without lines."""

    @property
    def first_line(self) -> int | None: ...

    def spelled(self, row: RejectedRow) -> Spelled:
        """Raises Unmendable."""
        ...

    def reader(self, rows: Sequence[int], records: Sequence[bytes]) -> Reader:
        """A reader of a small file of these records. Raises InputInvalid, Unmendable."""
        ...


@dataclass
class _Memory:
    """A small file in memory. Obeys Source."""

    data: bytes
    name = "the record"
    rereadable = True
    compression = ""

    def open(self, at: int = 0) -> BinaryIO:
        return io.BytesIO(self.data[at:])

    def local_path(self) -> None:
        """There is none."""


class CsvSpelling:
    """`origin`: an opened file with the input's columns, dialect and encoding."""

    def __init__(self, origin: CsvReader, ends: LineEnds) -> None:
        self._dialect = replace(origin.dialect, header=True)
        self._encoding = origin.encoding
        self._ends = ends
        cells = (f'"{cell}"' for cell in (n.replace('"', '""') for n in origin.schema.names))
        header = self._dialect.delimiter.join(cells) + "\n"
        self._header = origin.bom + self._encoded(header)
        self.first_line = 1 + header.count("\n")

    def _encoded(self, text: str) -> bytes:
        return text.encode(self._encoding, escape_of(self._encoding))

    def spelled(self, row: RejectedRow) -> Spelled:
        record = row.record
        if isinstance(record, bytes):
            text = record.decode(self._encoding, escape_of(self._encoding))
            return Spelled(record, text.count("\n"))
        if not isinstance(record, str):
            raise Unmendable("malformed_row", '"record" is not the text of a CSV record')
        text = record.removesuffix("\n").removesuffix("\r")
        try:
            return Spelled(self._encoded(text), text.count("\n"))
        except UnicodeEncodeError as error:
            wrong = error.object[error.start : error.end]
            message = f"{wrong!r} cannot be written in {self._encoding}, the input's encoding"
            raise Unmendable("invalid_utf8", message) from error

    def reader(self, rows: Sequence[int], records: Sequence[bytes]) -> Reader:
        ends = {end: self._encoded(end.decode()) for end in map(self._ends.after, rows)}
        lines = (r + ends[self._ends.after(row)] for row, r in zip(rows, records, strict=True))
        return CsvReader(_Memory(self._header + b"".join(lines)), self._dialect)


class JsonSpelling:
    """JSON Lines or an array, whichever `origin` is.

    An object in place of a record's text is taken as well; its numbers are spelled anew.
    `surveyed`: no record may have a member that `origin` does not name.
    """

    def __init__(self, name: str, origin: JsonReader, ends: LineEnds, *, surveyed: bool) -> None:
        self._name = name
        self._dialect = origin.dialect
        self._names = frozenset(origin.schema.names) if surveyed else None
        self._ends = ends
        self._is_array = origin.json_array
        self.first_line = 2 if self._is_array else 1

    def spelled(self, row: RejectedRow) -> Spelled:
        record = row.record
        if isinstance(record, Mapping):
            record = json.dumps(record, ensure_ascii=False)
        if record is None:
            raise Unmendable(row.code, row.message)
        data = as_bytes(record).removesuffix(b"\n").removesuffix(b"\r")
        return Spelled(data, data.count(b"\n"))

    def reader(self, rows: Sequence[int], records: Sequence[bytes]) -> Reader:
        if self._is_array:
            data = b"[\n" + b",\n".join(records) + b"\n]\n"
        else:
            ends = map(self._ends.after, rows)
            data = b"".join(r + end for r, end in zip(records, ends, strict=True))
        reader = JsonReader(_Memory(data), self._dialect, self._names is not None)
        new = [name for name in reader.schema.names if name not in (self._names or (name,))]
        if new:
            raise NewColumn(
                f"{self._name}: a mended record has the column {new[0]!r}, which the output does "
                "not have; mend the input and run predict again"
            )
        return reader


class AvroSpelling:
    """`origin`: an opened file with the input's schema."""

    first_line = None

    def __init__(self, origin: AvroReader) -> None:
        self._schema = origin.avro
        self._dialect = origin.dialect
        text = json.dumps(origin.avro.declared)
        self._metadata = {"avro.schema": text.encode(), "avro.codec": b"null"}

    def spelled(self, row: RejectedRow) -> Spelled:
        if isinstance(row.record, bytes):
            return Spelled(row.record)
        if not isinstance(row.record, Mapping):
            raise Unmendable("malformed_row", '"record" is not an object')
        try:
            return Spelled(encode_record(row.record, self._schema))
        except Unfit as error:
            raise Unmendable("bad_type", str(error)) from error

    def reader(self, rows: Sequence[int], records: Sequence[bytes]) -> Reader:  # noqa: ARG002
        stream = io.BytesIO()
        writer = BlockWriter(stream, self._metadata)
        writer.append(pa.array(records, pa.binary()))
        writer.close()
        return AvroReader(_Memory(stream.getvalue()), self._dialect)


class ParquetSpelling:
    """`origin`: an opened file with the input's schema. Parquet is read from `directory`."""

    first_line = None

    def __init__(self, origin: ParquetReader, directory: Path) -> None:
        self._origin = origin
        self._path = directory / "rows.parquet"

    def spelled(self, row: RejectedRow) -> Spelled:
        if not isinstance(row.record, Mapping):
            raise Unmendable("malformed_row", '"record" is not an object')
        return Spelled(json.dumps(row.record).encode())

    def reader(self, rows: Sequence[int], records: Sequence[bytes]) -> Reader:  # noqa: ARG002
        try:
            batch = arrow_struct([json.loads(record) for record in records], self._origin.stored)
        except Unfit as error:
            raise Unmendable("bad_type", str(error)) from error
        try:
            pq.write_table(pa.Table.from_batches([batch]), self._path)
        except OSError as error:
            raise write_failed(str(self._path), error) from error
        return ParquetReader(source_of(str(self._path)), self._origin.dialect)


def spelling_of(
    name: str, origin: Reader, ends: LineEnds, directory: Path, *, surveyed: bool
) -> Spelling:
    """How records of an input that `origin` stands for are spelled. `directory`: for small files.

    `name`: of the input, for messages. `surveyed`: see JsonSpelling.
    """
    if isinstance(origin, CsvReader):
        return CsvSpelling(origin, ends)
    if isinstance(origin, JsonReader):
        return JsonSpelling(name, origin, ends, surveyed=surveyed)
    if isinstance(origin, AvroReader):
        return AvroSpelling(origin)
    return ParquetSpelling(cast(ParquetReader, origin), directory)
