"""What the text of an input tells that its rejects file does not."""

from __future__ import annotations

from collections.abc import Iterator

from batchpredict.data.csv_reader import CsvReader
from batchpredict.data.encoding import DecodedInput
from batchpredict.data.records import Reader
from batchpredict.data.rejected import RejectedRow
from batchpredict.data.sources import InputSource

_READ_BYTES = 1 << 20


def _pieces(source: InputSource, reader: Reader) -> Iterator[bytes]:
    """The text that offsets of `reader`'s records count, in UTF-8, from the start."""
    stream = source.open()
    if isinstance(reader, CsvReader):
        decoded = DecodedInput(source.name, stream, reader.encoding)
        while data := decoded.read(_READ_BYTES):
            yield data
        return
    while data := stream.read(_READ_BYTES):
        yield data


def first_line_end(source: InputSource, reader: Reader) -> bytes:
    """How the first line ends; LF where no line does."""
    before = b""
    for piece in _pieces(source, reader):
        at = piece.find(b"\n")
        if at >= 0:
            return b"\r\n" if (before + piece[:at]).endswith(b"\r") else b"\n"
        before = piece[-1:]
    return b"\n"


def ends_with_line_feed(source: InputSource, reader: Reader) -> bool:
    """Whether the last line has its end."""
    last = b"\n"
    for piece in _pieces(source, reader):
        last = piece[-1:]
    return last == b"\n"


class Recall:
    """Gives the whole of records that were cut, from the input; ask in the order of rows.

    `source` None: there is none that could be asked.
    """

    def __init__(self, source: InputSource | None, reader: Reader) -> None:
        self._source = source
        self._reader = reader
        self._text: Iterator[bytes] | None = None
        self._piece = b""
        self._begin = 0

    def __call__(self, row: RejectedRow) -> str | None:
        """The record's text; None where it cannot be had or is too long for the job."""
        if self._source is None or row.offset is None or row.length is None:
            return None
        if row.length > self._reader.dialect.max_record_bytes:
            return None
        if self._text is None:
            self._text = _pieces(self._source, self._reader)
        parts, missing = [], row.length
        self._skip_to(row.offset)
        while missing and self._piece:
            parts.append(self._piece[:missing])
            missing -= len(parts[-1])
            self._skip_to(self._begin + len(parts[-1]))
        record = b"".join(parts)
        try:
            return record.removesuffix(b"\n").removesuffix(b"\r").decode()
        except UnicodeDecodeError:
            return None

    def _skip_to(self, offset: int) -> None:
        """Have the piece begin at `offset`; empty at the end of the input."""
        assert self._text is not None
        while offset >= self._begin + len(self._piece):
            self._begin += len(self._piece)
            self._piece = next(self._text, b"")
            if not self._piece:
                return
        self._piece = self._piece[offset - self._begin :]
        self._begin = offset
