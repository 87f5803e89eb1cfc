"""JSON Lines and JSON arrays."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import BinaryIO, Protocol, cast

import pyarrow as pa

from batchpredict.data import conversion
from batchpredict.data.joining import concatenated
from batchpredict.data.json_shards import json_shards
from batchpredict.data.json_splice import spliced
from batchpredict.data.jsonreader import JsonReader
from batchpredict.data.jsontext import BLANK
from batchpredict.data.records import Dialect, Layout, Part, Records, Shard, Source, Writer

_BLANK_BYTES = BLANK.encode()
_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")


def open_reader(source: Source, dialect: Dialect, survey: bool | Sequence[str]) -> JsonReader:
    """Reads as far as is needed to know the columns on offer."""
    return JsonReader(source, dialect, survey)


def shards(source: Source, dialect: Dialect) -> Iterator[Shard]:
    """See FormatModule.shards."""
    return json_shards(source, dialect)


def open_writer(sink: BinaryIO, layout: Layout) -> Writer:
    """Writes what `layout.dialect` says, whichever of the two forms the origin has."""
    rows = _Splicing(layout) if layout.carry == "record" else _Building(layout)
    return _ArrayWriter(sink, rows) if layout.dialect.json_array else _LinesWriter(sink, rows)


def join(parts: Sequence[Part]) -> Iterator[bytes | memoryview]:
    """See FormatModule.join. The parts of an array are not compressed."""
    # Lines begin with the first row.
    return concatenated(parts, b"," if parts[0].begin else b"")


class _Rows(Protocol):
    def __call__(self, records: Records, added: pa.RecordBatch) -> list[bytes]:
        """Each row's object, with the line end it is to have among lines, if any."""
        ...


def _members(
    names: Sequence[str], columns: Iterable[Sequence[str | None]]
) -> list[list[str | None]]:
    """Columns of JSON texts as columns of members; a row may lack one."""
    members = []
    for name, texts in zip(names, columns, strict=True):
        prefix = f"{json.dumps(name, ensure_ascii=False)}: "
        members.append([None if text is None else prefix + text for text in texts])
    return members


class _Splicing:
    """Puts the added members into each record's own text."""

    def __init__(self, layout: Layout) -> None:
        self._names = layout.added.names
        from_array = isinstance(layout.origin, JsonReader) and layout.origin.json_array
        self._line_end = b"\n" if from_array else b""

    def lines(self, records: Records, added: pa.RecordBatch) -> list[memoryview] | None:
        """All rows at once as lines, in pieces; None where they are to be made one by one."""
        if not self._names or self._line_end:
            return None
        return spliced(records.raw, self._names, added.columns)

    def __call__(self, records: Records, added: pa.RecordBatch) -> list[bytes]:
        raws = records.raw.to_pylist()
        if not self._names:
            return [raw + self._line_end for raw in raws]
        members = _members(self._names, map(conversion.as_json, added.columns))
        rows = []
        for raw, row in zip(raws, zip(*members, strict=True), strict=True):
            head = raw.rstrip(_BLANK_BYTES)[:-1].rstrip(_BLANK_BYTES)
            comma = "" if head.endswith(b"{") else ", "
            new = (comma + ", ".join(row)).encode()
            rows.append(head + new + raw[len(head) :] + self._line_end)
        return rows


class _Building:
    """Makes each row's object from its columns."""

    def __init__(self, layout: Layout) -> None:
        self._names = (*layout.kept.names, *layout.added.names)
        self._as_spelled = layout.carry == "cell"

    def __call__(self, records: Records, added: pa.RecordBatch) -> list[bytes]:
        if not self._names:
            return [b"{}\n"] * len(records)
        kept = map(self._texts, records.kept.columns)
        members = _members(self._names, chain(kept, map(conversion.as_json, added.columns)))
        return [
            ("{" + ", ".join(member for member in row if member is not None) + "}\n").encode()
            for row in zip(*members, strict=True)
        ]

    def _texts(self, column: pa.Array) -> Sequence[str | None]:
        if self._as_spelled:
            return cast(list[str | None], column.cast(pa.string()).to_pylist())
        return conversion.as_json(column)


class _LinesWriter:
    def __init__(self, sink: BinaryIO, rows: _Rows) -> None:
        self._sink = sink
        self._rows = rows
        self._owes_line_end = False

    def write(self, records: Records, added: pa.RecordBatch) -> None:
        """See Writer.write. The line end that the input's last record lacks is owed until more
        follows.
        """
        lines = self._rows.lines(records, added) if isinstance(self._rows, _Splicing) else None
        if lines is not None:
            if self._owes_line_end:
                self._sink.write(b"\n")
            for piece in lines:
                self._sink.write(piece)
            self._owes_line_end = lines[-1][-1] != ord("\n")
            return
        for row in self._rows(records, added):
            if self._owes_line_end:
                self._sink.write(b"\n")
            # An array's elements may span lines; only white space can hold their line ends.
            many_lines = row.find(b"\n", 0, -1) >= 0
            self._sink.write(row[:-1].translate(_ONE_LINE) + row[-1:] if many_lines else row)
            self._owes_line_end = not row.endswith(b"\n")

    def cut(self) -> None:
        """Nothing is held back but an owed line end, which only more rows make due."""

    def close(self) -> None:
        pass


class _ArrayWriter:
    """What is written first is no part of the first row; see `join`."""

    def __init__(self, sink: BinaryIO, rows: _Rows) -> None:
        self._sink = sink
        self._rows = rows
        self._started = False
        sink.write(b"[")

    def write(self, records: Records, added: pa.RecordBatch) -> None:
        rows = [row.rstrip(_BLANK_BYTES) for row in self._rows(records, added)]
        if rows:
            self._sink.write(b",\n" if self._started else b"\n")
            self._sink.write(b",\n".join(rows))
            self._started = True

    def cut(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        self._sink.write(b"\n]\n" if self._started else b"]\n")
