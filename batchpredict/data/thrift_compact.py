"""Thrift's compact protocol, in which Parquet's footers are written, without their meaning.

Reference: thrift-compact-protocol.md of Apache Thrift. A struct is its fields in their order, each
(id, type, value); a list is (type of its elements, elements). What is read is written back to the
same bytes, provided it was spelled as Thrift spells it: short forms wherever there are some.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
_MOST_DEPTH = 64
_LONGEST_VARINT = 10
_DOUBLE_BYTES = 8


@dataclass
class Field:
    """`value`: int (of type BYTE to I64), bytes (DOUBLE as stored, BINARY), bool, List, Struct."""

    id: int
    type: int
    value: Any


@dataclass
class List:
    """`type`: of each of `elements`; a bool is TRUE or FALSE there, too."""

    type: int
    elements: list[Any]


class Struct:
    """The fields of a struct, which may be looked up and replaced by their ids."""

    def __init__(self, fields: list[Field]) -> None:
        self.fields = fields

    def get(self, id: int) -> Any:
        """The value of a field, None where it is missing."""
        return next((field.value for field in self.fields if field.id == id), None)

    def put(self, id: int, value: Any) -> None:
        """Replace the value of a field that is there."""
        next(field for field in self.fields if field.id == id).value = value


class Malformed(ValueError):
    """Bytes that are no struct of the compact protocol."""


class _Input:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def take(self, size: int) -> bytes:
        taken = self._data[self.position : self.position + size]
        if len(taken) != size:
            raise Malformed("it ends early")
        self.position += size
        return taken

    def varint(self) -> int:
        number = 0
        begin = self.position
        for index, byte in enumerate(self._data[begin : begin + _LONGEST_VARINT]):
            number |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                self.position = begin + index + 1
                return number
        raise Malformed("a number has no end")

    def zigzag(self) -> int:
        number = self.varint()
        return (number >> 1) ^ -(number & 1)

    def value(self, kind: int, depth: int) -> Any:
        if kind in (TRUE, FALSE):
            return kind == TRUE
        if kind == BYTE:
            return self.take(1)[0]
        if kind in (I16, I32, I64):
            return self.zigzag()
        if kind == DOUBLE:
            return self.take(_DOUBLE_BYTES)
        if kind == BINARY:
            return self.take(self.varint())
        if depth == _MOST_DEPTH:
            raise Malformed("it is nested too deeply")
        if kind in (LIST, SET):
            return self.list(depth + 1)
        if kind == STRUCT:
            return self.struct(depth + 1)
        raise Malformed(f"type {kind} is not known")

    def list(self, depth: int) -> List:
        head = self.take(1)[0]
        size, kind = head >> 4, head & 0x0F
        if size == 0x0F:
            size = self.varint()
        if kind in (TRUE, FALSE):
            return List(kind, [self.take(1)[0] == TRUE for _ in range(size)])
        return List(kind, [self.value(kind, depth) for _ in range(size)])

    def struct(self, depth: int) -> Struct:
        fields = []
        last = 0
        while head := self.take(1)[0]:
            last = last + (head >> 4) if head >> 4 else self.zigzag()
            kind = head & 0x0F
            fields.append(Field(last, kind, self.value(kind, depth)))
        return Struct(fields)


def parse(data: bytes) -> tuple[Struct, int]:
    """The struct at the begin of `data`, and its length in bytes. Raises Malformed."""
    source = _Input(data)
    return source.struct(0), source.position


def varint(number: int) -> bytes:
    """An unsigned number."""
    result = bytearray()
    while number > 0x7F:
        result.append(number & 0x7F | 0x80)
        number >>= 7
    result.append(number)
    return bytes(result)


def _zigzag(number: int) -> bytes:
    return varint((number << 1) ^ (number >> 63))


def list_head(kind: int, size: int) -> bytes:
    """What precedes the `size` elements of a list."""
    return bytes([size << 4 | kind]) if size < 0x0F else bytes([0xF0 | kind]) + varint(size)


def spelled(struct: Struct) -> bytes:
    """A struct as bytes; any inside of it may be bytes already."""
    result = bytearray()
    last = 0
    for field in struct.fields:
        kind = (TRUE if field.value else FALSE) if field.type in (TRUE, FALSE) else field.type
        if 0 < field.id - last <= 0x0F:
            result.append((field.id - last) << 4 | kind)
        else:
            result += bytes([kind]) + _zigzag(field.id)
        last = field.id
        if kind not in (TRUE, FALSE):
            result += _value(kind, field.value)
    result.append(0)
    return bytes(result)


def _value(kind: int, value: Any) -> bytes:
    if kind == BYTE:
        return bytes([value])
    if kind in (I16, I32, I64):
        return _zigzag(value)
    if kind == DOUBLE:
        return bytes(value)
    if kind == BINARY:
        return varint(len(value)) + bytes(value)
    if kind == STRUCT:
        return spelled(value) if isinstance(value, Struct) else cast(bytes, value)
    head = list_head(value.type, len(value.elements))
    if value.type in (TRUE, FALSE):
        return head + bytes(TRUE if element else FALSE for element in value.elements)
    return head + b"".join(_value(value.type, element) for element in value.elements)
