"""Writes CSV and TSV: appends cells to records, or writes kept columns."""

from __future__ import annotations

from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from batchpredict.data import conversion
from batchpredict.data.csv_cells import data_of, split_at_contents
from batchpredict.data.csv_reader import CsvReader
from batchpredict.data.encoding import encoded
from batchpredict.data.records import Layout, Records


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
        if not len(records):
            return
        cells = [self._quote(conversion.as_text(column)) for column in added.columns]
        if self._carry == "record":
            content, rest = split_at_contents(records.raw)
            self._sink.write(data_of(self._joined([content, *cells], b"")))
            self._sink.write(rest)
            return
        if self._carry == "cell":
            cells = [*records.kept.columns, *cells]
        else:
            kept = (self._quote(conversion.as_text(column)) for column in records.kept.columns)
            cells = [*kept, *cells]
        if cells:
            self._sink.write(data_of(self._joined(cells, self._line_end)))

    def _joined(self, cells: list[pa.BinaryArray], end: bytes) -> pa.BinaryArray:
        """Cells of a row with delimiters between them, and `end`."""
        parts: list[pa.BinaryArray | bytes] = [cells[0]]
        for cell in cells[1:]:
            parts += [self._delimiter, cell]
        return pc.binary_join_element_wise(*parts, end, b"")

    def _quote(self, text: pa.StringArray) -> pa.BinaryArray:
        """Cells as they are spelled: quotes only where needed, null as the empty cell."""
        cells = pc.fill_null(text, "").cast(pa.binary())
        needed = _needs_quotes(cells, self._delimiter)
        if self._alone:  # an empty line would be no row
            needed = pc.or_(needed, pc.equal(pc.binary_length(cells), 0))
        if not pc.any(needed).as_py():
            return cells
        quote = pa.scalar(b'"', pa.binary())
        doubled = pc.replace_substring(cells, b'"', b'""')
        empty = pa.scalar(b"", pa.binary())
        return pc.if_else(needed, pc.binary_join_element_wise(quote, doubled, quote, empty), cells)

    def cut(self) -> None:
        """See Writer.cut: nothing is held back."""

    def close(self) -> None:
        """See Writer.close."""


def _needs_quotes(cells: pa.BinaryArray, delimiter: bytes) -> pa.BooleanArray:
    data = bytes(data_of(cells))
    if len(data.translate(None, delimiter + b'"\n\r')) == len(data):
        return pa.repeat(pa.scalar(False), len(cells))
    needed = pc.match_substring(cells, delimiter)
    for special in (b'"', b"\n", b"\r"):
        needed = pc.or_(needed, pc.match_substring(cells, special))
    return needed
