"""Text in other encodings travels as UTF-8 and returns as the bytes it came as."""

from __future__ import annotations

import codecs
import io
from typing import Any, BinaryIO, cast

from batchpredict.errors import ConfigInvalid, InputInvalid, UsageError

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16: its first two bytes are UTF-16's
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CHUNK = 1 << 18


def normal_encoding(name: str) -> str:
    """Python's canonical name of a text encoding. Raises UsageError."""
    try:
        info = codecs.lookup(name)
    except LookupError as error:
        raise UsageError(f"--encoding={name}: no such encoding; try utf-8 or latin-1") from error
    if not info._is_text_encoding:
        raise UsageError(f"--encoding={name}: not a text encoding; try utf-8 or latin-1")
    return info.name


def escape_of(encoding: str) -> str:
    """The error handler that carries undecodable bytes through a decode and encode."""
    return "surrogatepass" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"


class DecodedInput(io.RawIOBase):
    """The bytes of a stream as UTF-8, without its byte order mark.

    `encoding`: the one in force; a byte order mark overrules what was asked for. `bom`: the mark.
    Bytes that the encoding cannot decode become invalid UTF-8, so that they cost their row only.
    """

    def __init__(self, name: str, stream: BinaryIO, encoding: str) -> None:
        self._name = name
        self._stream = stream
        start = stream.read(_CHUNK)
        while len(start) < 4 and (more := stream.read(_CHUNK)):
            start += more
        self.bom, self.encoding = next(
            ((bom, found) for bom, found in _BOMS if start.startswith(bom)), (b"", encoding)
        )
        self._start = start[len(self.bom) :]
        escape = escape_of(self.encoding)
        self._decoder = codecs.getincrementaldecoder(self.encoding)(escape)
        self._encoder = codecs.getincrementalencoder(self.encoding)(escape)
        self._undecided = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """About `size` bytes; b"" only at the end. Raises InputInvalid."""
        while True:
            data, self._start = self._start or self._stream.read(max(size, _CHUNK)), b""
            if self.encoding == "utf-8":
                return data
            text = self._decode(data)
            if text or not data:
                return text.encode("utf-8", "surrogatepass")

    def _decode(self, data: bytes) -> str:
        try:
            text = self._decoder.decode(data, final=not data)
            encoded = self._encoder.encode(text)
        except UnicodeError as error:
            raise InputInvalid(
                f"{self._name}: is not {self.encoding}: {error}; name the right --encoding"
            ) from error
        self._undecided += data
        if not self._undecided.startswith(encoded):
            raise InputInvalid(
                f"{self._name}: holds bytes that {self.encoding} does not spell in one way only, "
                "so they could not be written back as they are; convert the file to UTF-8"
            )
        self._undecided = self._undecided[len(encoded) :]
        return text


class EncodedOutput(io.RawIOBase):
    """Takes UTF-8 and writes another encoding."""

    def __init__(self, sink: BinaryIO, encoding: str) -> None:
        self._sink = sink
        self._encoding = encoding

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """`data`: whole characters."""
        text = bytes(data).decode("utf-8", "surrogatepass")
        try:
            self._sink.write(text.encode(self._encoding, escape_of(self._encoding)))
        except UnicodeEncodeError as error:
            raise ConfigInvalid(
                f"{error.object[error.start : error.end]!r} cannot be written in "
                f"{self._encoding}; choose another --output_format or convert the input to UTF-8"
            ) from error
        return len(data)


def encoded(sink: BinaryIO, encoding: str) -> BinaryIO:
    """`sink`, with whatever has to stand between UTF-8 and it."""
    return sink if encoding == "utf-8" else cast(BinaryIO, EncodedOutput(sink, encoding))
