"""Reads CSV and TSV: records keep their bytes, cells are strings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from batchpredict.data.csv_blocks import HEAD_BYTES, Finder, Found, Piece, pieces
from batchpredict.data.csv_cells import as_string, cell_array, slices
from batchpredict.data.csv_cut import Cut, Flaw, Grammar, Positions, cut, next_record
from batchpredict.data.encoding import DecodedInput, escape_of
from batchpredict.data.records import (
    BLOCK_BYTES,
    WHOLE,
    Dialect,
    Records,
    Reject,
    Selection,
    Shard,
    Source,
)
from batchpredict.data.shards import Breaks
from batchpredict.errors import InputInvalid

# Every block costs time and memory for each of them, however few rows it has.
_MOST_COLUMNS = 1 << 17
# How gzip, bzip2, xz, zstandard and zip files begin.
_MAGIC = (b"\x1f\x8b", b"BZh91AY&SY", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")


@dataclass
class _Place:
    """Where in the input the next block starts: byte (decompressed), physical line, row."""

    offset: int
    line: int
    row: int


class CsvReader:
    """An opened CSV file. Obeys Reader.

    `header`: its bytes with line end (empty without a header), as UTF-8. `line_end`: the header's.
    `encoding`, `bom`: what a writer needs to spell the file as it was.
    """

    complete = True

    def __init__(self, source: Source, dialect: Dialect) -> None:
        self._name = source.name
        self._source = source
        self.dialect = dialect
        self._stream = DecodedInput(source.name, source.open(), dialect.encoding)
        self.encoding, self.bom = self._stream.encoding, self._stream.bom
        self._grammar = Grammar(ord(dialect.delimiter), 1, dialect.max_record_bytes)
        self.header, names, self._rest, self._exhausted = self._read_header()
        self.line_end = b"\r\n" if self.header.endswith(b"\r\n") else b"\n"
        self._grammar = Grammar(ord(dialect.delimiter), len(names), dialect.max_record_bytes)
        self.schema = pa.schema([(name, pa.string()) for name in names])
        self.notes: Sequence[str] = tuple(self._remarks(names))

    def _read_header(self) -> tuple[bytes, list[str], bytes, bool]:
        """The header's bytes, the column names, bytes read beyond it, whether those are all."""
        block, final, position = b"", False, 0
        while True:
            self._check_width(block, position)
            undecided = position == len(block)
            record = None if undecided else next_record(block, position, self._grammar, final)
            if record and record.blank:
                position = record.end
            elif record or final:
                break
            else:
                more = self._stream.read(max(len(block), BLOCK_BYTES))
                block, final = block + more, not more
        self._check_encoding(block[: record.end] if record else block)
        if record is None:
            raise InputInvalid(f"{self._name}: is empty, not even a header; check the export")
        if record.flaw:
            line = 1 + block.count(b"\n", 0, position)
            raise InputInvalid(
                f"{self._name}:{line}: the header is malformed: {record.flaw.message}; mend it, "
                "or check --delimiter"
            )
        begins = np.array([position, *(end + 1 for end in record.cell_ends[:-1])], np.int64)
        cells = cell_array(block, begins, np.array(record.cell_ends, np.int64), unquote=True)
        if not self.dialect.header:
            return b"", [str(i + 1) for i in range(len(cells))], block, final
        names = self._names(cells)
        return block[: record.end], names, block[record.end :], final

    def _check_width(self, block: bytes, position: int) -> None:
        line_end = block.find(b"\n", position)
        line_end = len(block) if line_end < 0 else line_end
        if block.count(self.dialect.delimiter.encode(), position, line_end) >= _MOST_COLUMNS:
            raise InputInvalid(
                f"{self._name}: has more than {_MOST_COLUMNS} columns; check --delimiter"
            )

    def _check_encoding(self, header: bytes) -> None:
        if header.startswith(_MAGIC):
            raise InputInvalid(
                f"{self._name}: is compressed; give it the suffix of its compression "
                "(.gz, .bz2, .xz, .zst), or unpack it"
            )
        if b"\0" in header:
            raise InputInvalid(
                f"{self._name}:1: the header has NUL bytes; if the file is UTF-16, pass "
                "--encoding=utf-16-le"
            )

    def _names(self, cells: pa.BinaryArray) -> list[str]:
        try:
            names = cells.cast(pa.string()).to_pylist()
        except pa.ArrowInvalid as error:
            raise InputInvalid(
                f"{self._name}:1: the header is not {self.encoding}; pass --encoding "
                "(for example latin-1)"
            ) from error
        first: dict[str, int] = {}
        for number, name in enumerate(names, 1):
            if "\r" in name:
                raise InputInvalid(
                    f"{self._name}:1: lines end with a lone CR; convert them, "
                    "for example with: tr '\\r' '\\n'"
                )
            if first.setdefault(name, number) != number:
                raise InputInvalid(
                    f"{self._name}:1: column {_short(name)} appears twice (columns "
                    f"{first[name]} and {number}); rename one of them"
                )
        return list(names)

    def _remarks(self, names: list[str]) -> Iterator[str]:
        others = [c for c in ",;\t|" if c != self.dialect.delimiter and c in names[0]]
        if len(names) == 1 and others:
            yield (
                f"{self._name}: the only column is named {_short(names[0])}; "
                f"is the delimiter {others[0]!r}? Then pass --delimiter"
            )

    def records(self, selection: Selection, shard: Shard = WHOLE) -> Iterator[Records]:
        """See Reader.records. Cells are never null; offsets count bytes of UTF-8 text."""
        if shard.is_from_begin:
            place = _Place(len(self.header), 1 + self.header.count(b"\n"), 1)
            found = self.pieces(cut)
        else:
            place = _Place(shard.start, shard.line, shard.row)
            stream = self._source.open(len(self.bom) + shard.start)
            found = pieces(stream, (b"", False), self._grammar, cut)
        breaks = Breaks(self.dialect.shard_bytes)
        for piece in found:
            yield self._records(piece, place, selection, breaks)

    def pieces(self, find: Finder[Found], step: int | None = None) -> Iterator[Piece[Found | Cut]]:
        """What is behind the header, once; see csv_blocks."""
        begun, self._rest = (self._rest, self._exhausted), b""
        return pieces(self._stream, begun, self._grammar, find, step)

    def _records(
        self, piece: Piece[Cut], place: _Place, selection: Selection, breaks: Breaks
    ) -> Records:
        block = piece.block[: piece.found.consumed]
        found = _without_invalid_utf8(block, piece.found)
        begins = np.array([flaw.start for flaw in found.flaws], np.int64)
        line_feeds = np.flatnonzero(np.frombuffer(block, np.uint8) == 10)
        rank = np.searchsorted(begins, found.starts) if len(begins) else 0
        rows = place.row + np.arange(len(found.starts)) + rank
        if np.array_equal(found.ends - 1, line_feeds):  # a record is a line, throughout
            lines = place.line + np.arange(len(line_feeds))
        else:
            lines = place.line + np.searchsorted(line_feeds, found.starts)
        starts = np.sort(np.concatenate((found.starts, begins))) if len(begins) else found.starts
        records = Records(
            columns=self._columns(block, found, selection.model, "value"),
            kept=self._columns(block, found, selection.kept, selection.carry),
            raw=slices(block, found.starts, found.ends),
            rows=rows,
            lines=lines,
            weight=found.ends - found.starts,
            rejects=self._rejects(piece, found, line_feeds, place),
            offsets=found.starts + place.offset,
            breaks=breaks.among(starts + place.offset, place.row),
        )
        place.row += len(starts)
        place.line += len(line_feeds) + (1 if piece.skipped else 0)
        place.offset += piece.size
        return records

    def _rejects(
        self, piece: Piece[Cut], found: Cut, line_feeds: Positions, place: _Place
    ) -> tuple[Reject, ...]:
        """`found`: with the flaws of the piece and perhaps others; `place`: of the piece."""
        begins = np.array([flaw.start for flaw in found.flaws], np.int64)
        rows = place.row + np.arange(len(begins)) + np.searchsorted(found.starts, begins)
        lines = place.line + np.searchsorted(line_feeds, begins)
        rejects = []
        for number, (flaw, row, line) in enumerate(zip(found.flaws, rows, lines, strict=True), 1):
            begin = piece.block[flaw.start : min(flaw.end, flaw.start + HEAD_BYTES + 1)]
            length = flaw.end - flaw.start
            if piece.skipped and number == len(begins):
                begin, length = piece.skipped.head, piece.skipped.length
            record, offset = self._as_came(_head(begin)), place.offset + flaw.start
            rejects.append(
                Reject(int(row), int(line), flaw.code, flaw.message, record, offset, length)
            )
        return tuple(rejects)

    def _columns(
        self, block: bytes, found: Cut, names: tuple[str, ...], carry: str
    ) -> pa.RecordBatch:
        arrays = []
        for name in names:
            index = self.schema.get_field_index(name)
            ends = found.cell_ends[:, index]
            begins = found.cell_ends[:, index - 1] + 1 if index else found.starts
            cells = cell_array(block, begins, ends, unquote=carry == "value")
            arrays.append(as_string(cells) if carry == "value" else cells)
        struct = (
            pa.StructArray.from_arrays(arrays, names=list(names))
            if arrays
            else pa.StructArray.from_buffers(pa.struct([]), len(found.starts), [None])
        )
        return pa.RecordBatch.from_struct_array(struct)

    def original(self, raw: pa.Array, index: int) -> bytes:
        """See Reader.original: the record's bytes without the line end."""
        return self._as_came(raw[index].as_py())

    def _as_came(self, record: bytes) -> bytes:
        record = record.removesuffix(b"\n").removesuffix(b"\r")
        try:
            record.decode()
        except UnicodeDecodeError:
            if self.encoding != "utf-8":
                text = record.decode("utf-8", "surrogatepass")
                return text.encode(self.encoding, escape_of(self.encoding))
        return record


def _head(record: bytes) -> bytes:
    """What a reject shows of a record, whole characters."""
    end = min(len(record), HEAD_BYTES)
    while 0 < end < len(record) and record[end] & 0xC0 == 0x80:
        end -= 1
    return record[:end]


def _short(name: str) -> str:
    return repr(name if len(name) <= 100 else f"{name[:100]}...")


def _without_invalid_utf8(block: bytes, found: Cut) -> Cut:
    """Turn rows that are not UTF-8 into flaws."""
    if _is_utf8(block):
        return found
    raw = slices(block, found.starts, found.ends)
    invalid = np.array([not _is_utf8(record) for record in raw.to_pylist()], bool)
    flaws = [
        Flaw(int(start), int(end), "invalid_utf8", "the record is not in the file's encoding")
        for start, end in zip(found.starts[invalid], found.ends[invalid], strict=True)
    ]
    return Cut(
        found.starts[~invalid],
        found.ends[~invalid],
        found.cell_ends[~invalid],
        tuple(sorted((*found.flaws, *flaws), key=lambda flaw: flaw.start)),
        found.consumed,
    )


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
