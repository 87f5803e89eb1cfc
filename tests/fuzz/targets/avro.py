"""Avro container files: damaged in their schema, their records, their framing, or anywhere."""

from __future__ import annotations

import bz2
import json
import lzma
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchpredict.data.records import Dialect
from tests.fuzz import inputs
from tests.fuzz.harness import Target
from tests.fuzz.inputs import chance, few, varint
from tests.fuzz.reading import Input, read

_PRIMITIVES = ("null", "boolean", "int", "long", "float", "double", "bytes", "string")
_LOGICAL = (
    {"type": "int", "logicalType": "date"},
    {"type": "int", "logicalType": "time-millis"},
    {"type": "long", "logicalType": "time-micros"},
    {"type": "long", "logicalType": "timestamp-micros"},
    {"type": "long", "logicalType": "local-timestamp-nanos"},
    {"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 2},
    {"type": "bytes", "logicalType": "decimal", "precision": 60, "scale": 5},
    {"type": "string", "logicalType": "uuid"},
)
_TOKENS = (
    b"\x00", b"\x01", b"\x02", b"\x03", b"\xff" * 9 + b"\x01", b"\xff" * 12, b"\x80" * 9 + b"\x00",
    b"\xfe\xff\xff\xff\x0f", b"\xff\xff\xff\xff\x0f", b"\x80\x80\x80\x80\x40", b"Obj\x01", b"\x02a",
    b"\x06\xff\xfe\xfd", b"\x02" * 500, b"\x02" * 5000, b"\x01\x00", b"\x7f" * 20, b"\0" * 300,
)  # fmt: skip
_SCHEMA_TOKENS = (
    b'"null"', b'"string"', b'"int"', b'"R0"', b'"R1"', b'"R9"', b"{", b"}", b"[", b"]", b",", b":",
    b'"type":', b'"name":', b'"fields":[]', b'"items":', b'"values":', b'"symbols":[]', b'"size":',
    b"0", b"-1", b"1", b"2147483648", b"99999999999999999999", b"1e400", b"1.5", b"true", b"null",
    b'""', b'"\\ud800"', b'"\\u0000"', b'"\\n"', b'"a.b.c"', b'"\\u001b[2J"',
    b'"logicalType":"decimal"',
    b'"precision":', b'"scale":', b'{"type":"array","items":' * 60, b'{"type":' * 300, b"[" * 900,
    b'{"type":"map","values":"null"}', b'{"type":"array","items":"null"}', b'"namespace":"n",',
    b'{"type":"fixed","name":"F","size":', b'{"type":"record","name":"E","fields":[]}',
    b"\xff", b" ",
)  # fmt: skip


class _Schemas:
    """Random schemas. Named types are defined where they first occur."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.named: dict[str, Any] = {}

    def record(self, depth: int) -> dict[str, Any]:
        name = f"R{len(self.named)}"
        node: dict[str, Any] = {"type": "record", "name": name, "fields": []}
        self.named[name] = node
        for number in range(few(self._rng, 7) + (depth == 0)):
            node["fields"].append({"name": f"f{number}", "type": self.node(depth + 1)})
        return node

    def node(self, depth: int) -> Any:
        rng = self._rng
        kind = rng.random()
        if depth > 4 or kind < 0.35:
            return rng.choice(_PRIMITIVES)
        if kind < 0.45:
            return dict(rng.choice(_LOGICAL))
        if kind < 0.6:
            return ["null", self.node(depth + 1)][:: rng.choice((1, -1))]
        if kind < 0.67:
            return [self.node(depth + 1) for _ in range(few(rng, 4))]
        if kind < 0.75:
            return {"type": "array", "items": self.node(depth + 1)}
        if kind < 0.8:
            return {"type": "map", "values": self.node(depth + 1)}
        if kind < 0.86:
            return self.record(depth)
        if kind < 0.92 and self.named:
            return ["null", rng.choice(list(self.named))]  # it may be one this node is in
        return self._flat()

    def _flat(self) -> dict[str, Any]:
        rng = self._rng
        name = f"R{len(self.named)}"
        node: dict[str, Any] = {"name": name, "type": "enum", "symbols": list("abc"[: few(rng, 4)])}
        if chance(rng, 0.6):
            node = {"name": name, "type": "fixed", "size": rng.choice((0, 1, 4, 16))}
            if chance(rng, 0.4):
                node |= {"logicalType": "decimal", "precision": 5, "scale": 1}
        self.named[name] = node
        return node


class _Values:
    """Random encodings of a type, most of them right."""

    def __init__(self, rng: random.Random, named: dict[str, Any]) -> None:
        self._rng = rng
        self._named = named
        self._left = 3000  # values; a type may contain itself many times

    def encoded(self, node: Any, depth: int = 0) -> bytes:
        rng = self._rng
        self._left -= 1
        if depth > 60 or self._left < 0:
            return b"\0"
        if isinstance(node, list):
            branch = rng.randrange(len(node)) if node else 0
            if chance(rng, 0.002):
                return varint(len(node))
            return varint(branch) + (self.encoded(node[branch], depth + 1) if node else b"")
        if isinstance(node, str) and node in self._named:
            return self.encoded(self._named[node], depth + 1)
        kind = node if isinstance(node, str) else node["type"]
        if kind == "record":
            return b"".join([self.encoded(f["type"], depth + 1) for f in node["fields"]])
        if kind in ("array", "map"):
            return self._items(node, depth)
        if kind == "fixed":
            return rng.randbytes(node["size"])
        if kind == "enum":
            return varint(few(rng, len(node["symbols"])) if chance(rng, 0.98) else 5)
        return self._primitive(kind)

    def _items(self, node: dict[str, Any], depth: int) -> bytes:
        rng = self._rng
        parts = []
        for _ in range(few(rng, 3)):
            count = 1 + few(rng, 5)
            items = b""
            for _ in range(count):
                key = self._primitive("string") if "values" in node else b""
                items += key + self.encoded(node.get("items", node.get("values")), depth + 1)
            if chance(rng, 0.3):
                parts.append(varint(-count) + varint(len(items)) + items)
            elif chance(rng, 0.005):
                parts.append(varint(rng.choice((1 << 20, 1 << 40, 1 << 62))) + items)
            else:
                parts.append(varint(count) + items)
        return b"".join(parts) + b"\0"

    def _primitive(self, kind: str) -> bytes:
        rng = self._rng
        if kind == "null":
            return b""
        if kind == "boolean":
            return rng.choice((b"\0", b"\1", b"\1", b"\2"))
        if kind in ("int", "long"):
            bits = rng.choice((7, 15, 31, 32, 62, 63, 64) if chance(rng, 0.05) else (7, 30))
            return varint(rng.choice((1, -1)) * rng.randrange(1 << bits))
        if kind == "float":
            return struct.pack("<f", rng.choice((0.5, float("nan"), -1e30)))
        if kind == "double":
            return struct.pack("<d", rng.choice((0.5, float("inf"), -1e300)))
        text = inputs.word(rng).encode()
        if kind == "bytes" or chance(rng, 0.01):
            text = rng.randbytes(few(rng, 40))
        return varint(len(text)) + text


def _deflate(data: bytes) -> bytes:
    return zlib.compress(data, 1, -15)


def _snappy(data: bytes) -> bytes:
    packed: bytes = pa.compress(data, codec="snappy", asbytes=True)
    return packed + zlib.crc32(data).to_bytes(4, "big")


_CODECS: dict[str, Callable[[bytes], bytes]] = {
    "null": lambda data: data,
    "deflate": _deflate,
    "snappy": _snappy,
    "bzip2": lambda data: bz2.compress(data, 1),
    "xz": lambda data: lzma.compress(data, preset=0),
    "zstandard": inputs.COMPRESS[".zst"],
}


def container(
    schema: bytes, blocks: list[tuple[int, bytes]], codec: str = "null", *, counted: bool = False
) -> bytes:
    """A file of blocks of a row count and the encoded rows. `counted`: metadata with its size."""
    sync = b"0123456789abcdef"
    entries = {b"avro.schema": schema, b"avro.codec": codec.encode()}
    pairs = b"".join(varint(len(k)) + k + varint(len(v)) + v for k, v in entries.items())
    count = varint(-len(entries)) + varint(len(pairs)) if counted else varint(len(entries))
    result = b"Obj\x01" + count + pairs + b"\0" + sync
    for rows, data in blocks:
        stored = _CODECS[codec](data)
        result += varint(rows) + varint(len(stored)) + stored + sync
    return result


class _Avro:
    def case(self, rng: random.Random) -> Input:
        schemas = _Schemas(rng)
        top = schemas.record(0)
        schema = json.dumps(top).encode()
        if chance(rng, 0.15):
            schema = inputs.mutated(rng, schema, _SCHEMA_TOKENS, 3)
        values = _Values(rng, schemas.named)
        blocks = []
        for _ in range(1 + few(rng, 4)):
            count = 1 + few(rng, 30)
            data = b"".join([values.encoded(top) for _ in range(count)])
            if chance(rng, 0.15):
                data = inputs.mutated(rng, data, _TOKENS, 3)
            if chance(rng, 0.03):
                count = rng.choice((0, -1, -count, 1 << 31, 1 << 62, 1 << 63, count + 1))
            if chance(rng, 0.002):
                data += b"\0" * (1 << rng.randint(20, 25))
            blocks.append((count, data))
        codec = "null" if chance(rng, 0.6) else rng.choice(list(_CODECS))
        data = container(schema, blocks, codec, counted=chance(rng, 0.1))
        if chance(rng, 0.15):
            data = inputs.mutated(rng, data, _TOKENS)
        limit = rng.choice((16 << 20, 16 << 20, 16 << 20, 1, 10, 100))
        dialect = Dialect(max_record_bytes=limit)
        pieces = rng.choice((0, 0, 0, 0, 1, 2, 5))
        return Input("avro", data, dialect, pieces=pieces, choices=rng.getrandbits(32))

    def check(self, case: Input, directory: Path) -> None:
        read(case, directory)


TARGETS: dict[str, Target] = {"avro": _Avro()}
