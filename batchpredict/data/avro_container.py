"""Avro object container files: header, blocks, codecs (Avro 1.11 specification).

fastavro reads them too, but takes a file cut inside a block's row count for a complete one,
decodes a block cut inside its deflate data, and checks no snappy checksum.
"""

from __future__ import annotations

import bz2
import hashlib
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import numpy as np
import pyarrow as pa

from batchpredict.errors import InputInvalid

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_MAGIC = b"Obj\x01"
_SYNC_BYTES = 16
_READ_BYTES = 1 << 20
_LONGEST_VARINT = 10
# A block is held whole, and so is the header; far below what an honest one takes of memory.
MOST_BLOCK_BYTES = 1 << 28
_MOST_HEADER_BYTES = 1 << 26
# Rows that take no bytes at all (every field is null) could be any number in any file.
_MOST_EMPTY_ROWS = 1 << 22
_MOST_LZMA_BYTES = 1 << 28
# Encoded bytes after which a block is closed; the record that reaches them is its last.
BLOCK_BYTES = 1 << 17


class Damaged(ValueError):
    """Bytes that are not what the specification says stands here."""


def zigzag(number: int) -> bytes:
    """The variable-length encoding of an int or long."""
    number = (number << 1) ^ (number >> 63)
    result = bytearray()
    while number > 0x7F:
        result.append(number & 0x7F | 0x80)
        number >>= 7
    result.append(number)
    return bytes(result)


def _inflate(data: bytes, most: int) -> bytes:
    inflater = zlib.decompressobj(-15)
    result = inflater.decompress(data, most)
    if not inflater.eof and len(result) < most:
        raise Damaged("the deflate data ends early")
    return result


def _deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(6, zlib.DEFLATED, -15)
    return deflater.compress(data) + deflater.flush()


def _unsnap(data: bytes, most: int) -> bytes:
    size, _ = _varint(io.BytesIO(data), signed=False)
    # No snappy element makes more than 64 bytes of 2: a larger claim is damage, not data.
    if size > 32 * len(data) or size > most:
        raise Damaged("the snappy data states an impossible size")
    result = pa.decompress(data[:-4], decompressed_size=size, codec="snappy", asbytes=True)
    if zlib.crc32(result) != int.from_bytes(data[-4:], "big"):
        raise Damaged("the snappy checksum differs")
    return result  # type: ignore[no-any-return]


def _snap(data: bytes) -> bytes:
    compressed: bytes = pa.compress(data, codec="snappy", asbytes=True)
    return compressed + zlib.crc32(data).to_bytes(4, "big")


def _unxz(data: bytes, most: int) -> bytes:
    decoder = lzma.LZMADecompressor(memlimit=_MOST_LZMA_BYTES)
    result = decoder.decompress(data, most)
    if not decoder.eof and len(result) < most:
        raise Damaged("the xz data ends early")
    return result


# At most so many bytes: a few stored ones can stand for any number.
_DECODE: dict[str, Callable[[bytes, int], bytes]] = {
    "null": lambda data, _: data,
    "deflate": _inflate,
    "bzip2": lambda data, most: bz2.BZ2File(io.BytesIO(data)).read(most),
    "snappy": _unsnap,
    "xz": _unxz,
    "zstandard": lambda data, most: zstd.ZstdFile(io.BytesIO(data)).read(most),
}
_ENCODE: dict[str, Callable[[bytes], bytes]] = {
    "null": lambda data: data,
    "deflate": _deflate,
    "bzip2": bz2.compress,
    "snappy": _snap,
    "xz": lambda data: lzma.compress(data, preset=3),
    "zstandard": lambda data: zstd.compress(data),
}
_DAMAGE = (
    Damaged, EOFError, OSError, ValueError, pa.ArrowException, zlib.error, lzma.LZMAError,
    zstd.ZstdError,
)  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What precedes the blocks of a file."""

    metadata: Mapping[str, bytes]
    sync: bytes

    @property
    def codec(self) -> str:
        return self.metadata.get("avro.codec", b"null").decode("utf-8", "replace")


@dataclass(frozen=True)
class Block:
    """The decompressed records of one block, which starts `at` this byte of the file."""

    count: int
    data: bytes
    at: int


class Positioned:
    """A stream that knows how far it was read; it was opened at the byte `position`."""

    def __init__(self, stream: BinaryIO, position: int = 0) -> None:
        self._stream = stream
        self.position = position

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.position += len(data)
        return data


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def _varint(stream: _Readable, signed: bool = True) -> tuple[int, int]:
    """A number and the count of bytes it takes. Raises Damaged, EOFError (nothing left)."""
    number = 0
    for index in range(_LONGEST_VARINT):
        byte = stream.read(1)
        if not byte:
            raise EOFError if index == 0 else Damaged("it ends early")
        number |= (byte[0] & 0x7F) << (7 * index)
        if byte[0] < 0x80:
            return ((number >> 1) ^ -(number & 1) if signed else number), index + 1
    raise Damaged("a length is not a number")


def _exactly(stream: _Readable, size: int) -> bytes:
    """`size` bytes. A damaged size must not make us ask for all memory at once."""
    if size < 0:
        raise Damaged("a length is negative")
    parts = []
    while size:
        part = stream.read(min(size, _READ_BYTES))
        if not part:
            raise Damaged("it ends early")
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_header(stream: _Readable, name: str) -> Header:
    """Read up to the first block. Raises InputInvalid."""
    try:
        magic = _exactly(stream, len(_MAGIC))
    except Damaged:
        magic = b""
    if magic != _MAGIC:
        raise InputInvalid(f"{name}: is not an Avro file; check --input_format")
    metadata = {}
    left = _MOST_HEADER_BYTES
    try:
        while count := _varint(stream)[0]:
            if count < 0:
                _varint(stream)
            for _ in range(abs(count)):
                key, value = _header_text(stream, left), _header_text(stream, left)
                metadata[key.decode()] = value
                left -= len(key) + len(value) + 1
        header = Header(metadata, _exactly(stream, _SYNC_BYTES))
    except (Damaged, EOFError, UnicodeDecodeError) as error:
        raise InputInvalid(
            f"{name}: the Avro header is truncated or damaged; fetch the file again"
        ) from error
    if header.codec not in _DECODE:
        raise InputInvalid(
            f"{name}: Avro codec {header.codec[:40]!r} is not known; rewrite the file with one of "
            f"{', '.join(_DECODE)}"
        )
    return header


def _header_text(stream: _Readable, left: int) -> bytes:
    size, _ = _varint(stream)
    if size > left:
        raise Damaged("the header is too large")
    return _exactly(stream, size)


def read_blocks(
    stream: Positioned, header: Header, name: str, most: int, shard_bytes: int
) -> Iterator[Block]:
    """The blocks after the header, one in memory at a time. Raises InputInvalid.

    `most`: bytes a block may have, decompressed. A file cut exactly between two blocks cannot be
    told from a complete one.
    """
    empty = place = 0
    while True:
        at = stream.position
        if at // shard_bytes != place:  # who reads a shard alone knows of no others
            empty, place = 0, at // shard_bytes
        try:
            try:
                count, _ = _varint(stream)
            except EOFError:
                return
            data = _block_data(stream, header, count, most)
            empty += max(0, count - len(data))
            if empty > _MOST_EMPTY_ROWS:
                raise Damaged(f"it states {count} rows in {len(data)} bytes")
        except InputInvalid:
            raise
        except _DAMAGE as error:
            reason = str(error) or "it ends early"
            raise InputInvalid(
                f"{name}: the Avro block at byte {at} is truncated or damaged ({reason}); "
                "fetch the file again"
            ) from error
        yield Block(count, data, at)


def block_counts(stream: Positioned, header: Header, most: int) -> Iterator[tuple[int, int | None]]:
    """Where each block starts and how many rows it states, without decompressing those.

    The last one has None where reading it would fail as far as can be seen so.
    """
    while True:
        at = stream.position
        try:
            try:
                count, _ = _varint(stream)
            except EOFError:
                return
            if count:
                _stored(stream, header, count, most)
            elif _block_data(stream, header, count, most):
                raise Damaged("it is longer than its rows")
        except _DAMAGE:
            yield at, None
            return
        yield at, count


def _stored(stream: Positioned, header: Header, count: int, most: int) -> bytes:
    if count < 0:
        raise Damaged("its row count is negative")
    size, _ = _varint(stream)
    if size > most:
        raise Damaged(f"it states a size of {size} bytes, more than {most}")
    stored = _exactly(stream, size)
    if _exactly(stream, _SYNC_BYTES) != header.sync:
        raise Damaged("its sync marker is missing")
    return stored


def _block_data(stream: Positioned, header: Header, count: int, most: int) -> bytes:
    stored = _stored(stream, header, count, most)
    data = _DECODE[header.codec](stored, most + 1)
    if len(data) > most:
        raise Damaged(f"it unpacks to more than {most} bytes")
    return data


class BlockWriter:
    """Writes a container of records that are encoded already.

    Equal records under an equal schema give equal bytes however they are handed over: blocks
    are cut by their own size, and the sync marker comes from the schema.
    """

    def __init__(self, sink: BinaryIO, metadata: Mapping[str, bytes]) -> None:
        self._sink = sink
        self._sync = hashlib.sha256(b"batchpredict" + metadata["avro.schema"]).digest()[
            :_SYNC_BYTES
        ]
        self._encode = _ENCODE[metadata.get("avro.codec", b"null").decode()]
        self._pending = bytearray()
        self._count = 0
        sink.write(_MAGIC + zigzag(len(metadata)))
        for key, value in metadata.items():
            sink.write(zigzag(len(key.encode())) + key.encode() + zigzag(len(value)) + value)
        sink.write(zigzag(0) + self._sync)

    def append(self, records: pa.BinaryArray) -> None:
        """Add encoded records, none of them null."""
        if not len(records):
            return
        _, offset_buffer, data_buffer = records.buffers()
        first = records.offset
        offsets = np.frombuffer(offset_buffer, np.int32)[first : first + len(records) + 1]
        data = memoryview(data_buffer or b"")
        start = 0
        while start < len(records):
            full = int(offsets[start]) + BLOCK_BYTES - len(self._pending)
            stop = min(int(np.searchsorted(offsets, full)), len(records))
            self._pending += data[offsets[start] : offsets[stop]]
            self._count += stop - start
            start = stop
            if len(self._pending) >= BLOCK_BYTES:
                self.cut()

    def cut(self) -> None:
        """Write what is pending, as a block."""
        if self._count:
            stored = self._encode(bytes(self._pending))
            self._sink.write(zigzag(self._count) + zigzag(len(stored)))
            self._sink.write(stored)
            self._sink.write(self._sync)
        self._pending.clear()
        self._count = 0

    def close(self) -> None:
        """Write what is pending; the sink stays open."""
        self.cut()
