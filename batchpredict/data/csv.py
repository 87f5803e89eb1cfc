"""CSV and TSV: records keep their bytes, cells are strings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchpredict.data import conversion
from batchpredict.data.csv_cut import Cut, Flaw, Grammar, Positions, cut, next_record
from batchpredict.data.encoding import DecodedInput, encoded, escape_of
from batchpredict.data.records import (
    BLOCK_BYTES,
    Dialect,
    Layout,
    Records,
    Reject,
    Selection,
    Source,
)
from batchpredict.errors import InputInvalid

# The beginning of a record that is too long to be held; the rejects file shows no more of it.
_HEAD_BYTES = 1 << 16
# How gzip, bzip2, xz, zstandard and zip files begin.
_MAGIC = (b"\x1f\x8b", b"BZh91AY&SY", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")


def open_reader(source: Source, dialect: Dialect, survey: bool) -> CsvReader:  # noqa: ARG001
    """Reads the header. Raises InputInvalid."""
    return CsvReader(source, dialect)


def open_writer(sink: BinaryIO, layout: Layout) -> CsvWriter:
    """Writes the header at once."""
    return CsvWriter(sink, layout)


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
        cells = _cells(block, begins, np.array(record.cell_ends, np.int64), unquote=True)
        if not self.dialect.header:
            return b"", [str(i + 1) for i in range(len(cells))], block, final
        names = self._names(cells)
        return block[: record.end], names, block[record.end :], final

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
        for number, name in enumerate(names, 1):
            if "\r" in name:
                raise InputInvalid(
                    f"{self._name}:1: lines end with a lone CR; convert them, "
                    "for example with: tr '\\r' '\\n'"
                )
            if names.index(name) != number - 1:
                raise InputInvalid(
                    f"{self._name}:1: column {name!r} appears twice (columns "
                    f"{names.index(name) + 1} and {number}); rename one of them"
                )
        return list(names)

    def _remarks(self, names: list[str]) -> Iterator[str]:
        others = [c for c in ",;\t|" if c != self.dialect.delimiter and c in names[0]]
        if len(names) == 1 and others:
            yield (
                f"{self._name}: the only column is named {names[0]!r}; "
                f"is the delimiter {others[0]!r}? Then pass --delimiter"
            )

    def records(self, selection: Selection) -> Iterator[Records]:
        """See Reader.records. Cells are never null; offsets count bytes of UTF-8 text."""
        place = _Place(len(self.header), 1 + self.header.count(b"\n"), 1)
        block, final = self._rest, self._exhausted
        self._rest = b""
        while True:
            found = cut(block, self._grammar, final)
            skipped = self._skip_overlong(block, found) if found.overlong else None
            yield self._records(block[: found.consumed], found, place, selection, skipped)
            block = block[found.consumed :] if skipped is None else skipped.rest
            if final:
                return
            more = self._stream.read(max(len(block), BLOCK_BYTES))
            block, final = block + more, not more

    def _skip_overlong(self, block: bytes, found: Cut) -> _Skipped:
        """Read up to the LF that ends a record too long to be held."""
        length = len(block) - found.flaws[-1].start
        while True:
            more = self._stream.read(BLOCK_BYTES)
            end = more.find(b"\n") + 1
            if end or not more:
                return _Skipped(length + end, more[end:])
            length += len(more)

    def _records(
        self,
        block: bytes,
        found: Cut,
        place: _Place,
        selection: Selection,
        skipped: _Skipped | None,
    ) -> Records:
        found = _without_invalid_utf8(block, found)
        begins = np.array([flaw.start for flaw in found.flaws], np.int64)
        line_feeds = np.flatnonzero(np.frombuffer(block, np.uint8) == 10)
        rank = np.searchsorted(begins, found.starts)
        rows = place.row + np.arange(len(found.starts)) + rank
        lines = place.line + np.searchsorted(line_feeds, found.starts)
        flaw_rows = place.row + np.arange(len(begins)) + np.searchsorted(found.starts, begins)
        flaw_lines = place.line + np.searchsorted(line_feeds, begins)
        rejects = [
            self._reject(block, flaw, int(row), int(line), place.offset)
            for flaw, row, line in zip(found.flaws, flaw_rows, flaw_lines, strict=True)
        ]
        if skipped:
            last = rejects[-1]
            rejects[-1] = Reject(
                last.row,
                last.line,
                last.code,
                last.message,
                last.record,
                last.offset,
                skipped.length,
            )
        records = Records(
            columns=self._columns(block, found, selection.model, "value"),
            kept=self._columns(block, found, selection.kept, selection.carry),
            raw=_slices(block, found.starts, found.ends),
            rows=rows,
            lines=lines,
            weight=found.ends - found.starts,
            rejects=tuple(rejects),
            offsets=found.starts + place.offset,
        )
        place.row += len(rows) + len(rejects)
        place.line += len(line_feeds) + (1 if skipped else 0)
        place.offset += len(block) if skipped is None else found.flaws[-1].start + skipped.length
        return records

    def _reject(self, block: bytes, flaw: Flaw, row: int, line: int, offset: int) -> Reject:
        record = self._as_came(block[flaw.start : min(flaw.end, flaw.start + _HEAD_BYTES)])
        return Reject(
            row, line, flaw.code, flaw.message, record, offset + flaw.start, flaw.end - flaw.start
        )

    def _columns(
        self, block: bytes, found: Cut, names: tuple[str, ...], carry: str
    ) -> pa.RecordBatch:
        arrays = []
        for name in names:
            index = self.schema.get_field_index(name)
            ends = found.cell_ends[:, index]
            begins = found.cell_ends[:, index - 1] + 1 if index else found.starts
            cells = _cells(block, begins, ends, unquote=carry == "value")
            arrays.append(_as_string(cells) if carry == "value" else cells)
        struct = (
            pa.StructArray.from_arrays(arrays, names=list(names))
            if arrays
            else (pa.array([{}] * len(found.starts), pa.struct([])))
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


@dataclass(frozen=True)
class _Skipped:
    """`length`: bytes of the record that was skipped; `rest`: bytes read beyond it."""

    length: int
    rest: bytes


def _without_invalid_utf8(block: bytes, found: Cut) -> Cut:
    """Turn rows that are not UTF-8 into flaws."""
    if _is_utf8(block):
        return found
    raw = _slices(block, found.starts, found.ends)
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


def _slices(block: bytes | pa.Buffer, starts: Positions, ends: Positions) -> pa.BinaryArray:
    """The bytes between each start and end, as one binary array; no copy where they touch."""
    if len(starts) and (starts[1:] == ends[:-1]).all():
        bounds = np.append(starts, ends[-1]).astype(np.int32)
        return _binary(bounds, pa.py_buffer(block))
    lengths = ends - starts
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    source = np.repeat(starts - bounds[:-1], lengths) + np.arange(bounds[-1])
    gathered = np.frombuffer(block, np.uint8)[source]
    return _binary(bounds.astype(np.int32), pa.py_buffer(gathered))


def _binary(bounds: npt.NDArray[np.int32], data: pa.Buffer) -> pa.BinaryArray:
    return pa.BinaryArray.from_buffers(
        pa.binary(), len(bounds) - 1, [None, pa.py_buffer(bounds), data]
    )


def _as_string(cells: pa.BinaryArray) -> pa.StringArray:
    """The same bytes as strings; they are known to be UTF-8."""
    return pa.StringArray.from_buffers(len(cells), *cells.buffers()[1:])


def _cells(
    block: bytes | pa.Buffer, begins: Positions, ends: Positions, *, unquote: bool
) -> pa.BinaryArray:
    if not unquote:
        return _slices(block, begins, ends)
    data = np.frombuffer(block, np.uint8)
    quoted = (begins < ends) & (data[np.minimum(begins, len(data) - 1)] == ord('"'))
    cells = _slices(block, begins + quoted, ends - quoted)
    doubled = pc.match_substring(cells, b'""')
    if not quoted.any() or not pc.any(doubled).as_py():
        return cells
    single = pc.replace_substring(cells, b'""', b'"')
    return pc.if_else(pc.and_(doubled, pa.array(quoted)), single, cells)


class CsvWriter:
    """Appends the added cells to each record, or writes kept columns. Obeys Writer."""

    def __init__(self, sink: BinaryIO, layout: Layout) -> None:
        self._carry = layout.carry
        origin = layout.origin if isinstance(layout.origin, CsvReader) else None
        self._delimiter = layout.dialect.delimiter.encode()
        self._line_end = origin.line_end if origin else b"\n"
        self._sink = encoded(sink, origin.encoding if origin else "utf-8")
        self._alone = layout.carry != "record" and len(layout.kept) + len(layout.added) == 1
        if origin:
            sink.write(origin.bom)
        header = self._header(layout, origin)
        if header and layout.dialect.header:
            self._sink.write(header)

    def _header(self, layout: Layout, origin: CsvReader | None) -> bytes:
        names = layout.added.names
        if layout.carry != "record":
            names = [*layout.kept.names, *names]
        added = self._delimiter.join(self._quote(pa.array(names, pa.string())).to_pylist())
        if layout.carry != "record" or origin is None:
            return added + self._line_end
        content = origin.header.removesuffix(b"\n")
        content = content.removesuffix(b"\r") if origin.header.endswith(b"\r\n") else content
        line_end = origin.header[len(content) :]
        return content + (self._delimiter + added if names else b"") + line_end

    def write(self, records: Records, added: pa.RecordBatch) -> None:
        """See Writer.write."""
        cells = [self._quote(conversion.as_text(column)) for column in added.columns]
        if self._carry == "record":
            content, line_ends = _split_line_ends(records.raw)
            cells.insert(0, content)
        elif self._carry == "cell":
            cells = [*records.kept.columns, *cells]
        else:
            kept = (self._quote(conversion.as_text(column)) for column in records.kept.columns)
            cells = [*kept, *cells]
        if self._carry != "record":
            line_ends = pa.scalar(self._line_end, pa.binary())
        if not cells or not len(records):
            return
        joined = pc.binary_join_element_wise(*cells, pa.scalar(self._delimiter, pa.binary()))
        lines = pc.binary_join_element_wise(joined, line_ends, pa.scalar(b"", pa.binary()))
        self._sink.write(_data(lines))

    def _quote(self, text: pa.StringArray) -> pa.BinaryArray:
        """Cells as they are spelled: quotes only where needed, null as the empty cell."""
        cells = pc.fill_null(text, "").cast(pa.binary())
        if self._alone:  # an empty line would be no row
            cells = pc.if_else(pc.equal(pc.binary_length(cells), 0), b'""', cells)
            needed = pc.and_(_needs_quotes(cells, self._delimiter), pc.not_equal(cells, b'""'))
        else:
            needed = _needs_quotes(cells, self._delimiter)
        if not pc.any(needed).as_py():
            return cells
        quote = pa.scalar(b'"', pa.binary())
        doubled = pc.replace_substring(cells, b'"', b'""')
        empty = pa.scalar(b"", pa.binary())
        return pc.if_else(needed, pc.binary_join_element_wise(quote, doubled, quote, empty), cells)

    def close(self) -> None:
        """See Writer.close."""


def _needs_quotes(cells: pa.BinaryArray, delimiter: bytes) -> pa.BooleanArray:
    needed = pc.match_substring(cells, delimiter)
    for special in (b'"', b"\n", b"\r"):
        needed = pc.or_(needed, pc.match_substring(cells, special))
    return needed


def _data(array: pa.BinaryArray) -> memoryview:
    """All bytes of a binary array, one after the other."""
    _, bounds, data = array.buffers()
    positions = np.frombuffer(bounds, np.int32)[array.offset : array.offset + len(array) + 1]
    return memoryview(data)[positions[0] : positions[-1]]


def _split_line_ends(raw: pa.BinaryArray) -> tuple[pa.BinaryArray, pa.BinaryArray]:
    """Records without their line ends, and these (LF, CRLF, or nothing at the end of a file)."""
    _, bounds, buffer = raw.buffers()
    positions = np.frombuffer(bounds, np.int32)[raw.offset : raw.offset + len(raw) + 1]
    edges = positions.astype(np.int64)
    data = np.frombuffer(buffer, np.uint8)
    starts, ends = edges[:-1], edges[1:]
    line_feed = data[ends - 1] == 10
    carriage_return = line_feed & (ends - starts > 1) & (data[ends - 2] == 13)
    contents = ends - line_feed - carriage_return
    return _slices(buffer, starts, contents), _slices(buffer, contents, ends)
