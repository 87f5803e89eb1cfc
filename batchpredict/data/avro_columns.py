"""Decode single fields of many encoded Avro records into Arrow arrays."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import fastavro
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt
from fastavro.schema import SchemaParseException

from batchpredict.data.arrow_types import JSON, is_json
from batchpredict.data.avro_container import Damaged
from batchpredict.data.avro_schema import (
    RecordSchema,
    SchemaInvalid,
    arrow_type,
    branches,
    decimal_digits,
    kind_of,
)
from batchpredict.data.conversion import json_text

Int64 = npt.NDArray[np.int64]
_LONGEST_VARINT = 10
_NUMPY = {"boolean": "u1", "float": "<f4", "double": "<f8"}
# Bytes of JSON text one block of rows may become: names of fields come with every value.
_MOST_TEXT = 1 << 29
# What fastavro raises for bytes that its schema does not fit.
UNDECODABLE = (ValueError, TypeError, EOFError, LookupError, OverflowError, RecursionError)


@dataclass(frozen=True)
class Cells:
    """Where the encodings of one field lie in `data`, one per record."""

    data: bytes
    starts: Int64
    ends: Int64

    def bytes_at(self, index: int) -> bytes:
        return self.data[self.starts[index] : self.ends[index]]

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True)
class Decoded:
    """The values of a field. `faults`: by index, the code and the message of each that cannot
    be decoded; the array holds null there."""

    values: pa.Array
    faults: Mapping[int, tuple[str, str]]


# What Arrow raises for values that its type does not fit: numbers and decimals out of range.
UNFIT = (pa.ArrowException, *UNDECODABLE)

Decoder = Callable[[Cells], Decoded]


def gather(cells: Cells, null: npt.NDArray[np.bool_] | None = None) -> pa.BinaryArray:
    """The bytes of each cell as one array; null where `null`."""
    sizes = cells.ends - cells.starts
    if null is not None:
        sizes = np.where(null, 0, sizes)
    offsets = np.zeros(len(cells) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    data = cells.data
    stops = (cells.starts + sizes).tolist()
    joined = b"".join([data[a:b] for a, b in zip(cells.starts.tolist(), stops, strict=True)])
    buffers = [_validity(null), pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(joined)]
    return pa.Array.from_buffers(pa.binary(), len(cells), buffers)


def _validity(null: npt.NDArray[np.bool_] | None) -> pa.Buffer | None:
    if null is None or not null.any():
        return None
    return pa.py_buffer(np.packbits(~null, bitorder="little"))


def read_varints(data: bytes, starts: Int64) -> tuple[Int64, Int64]:
    """The ints or longs at these places, which lie in `data`, and the positions after them.

    One that takes more than ten bytes is read wrongly: its position after is not its end.
    """
    view = np.frombuffer(data, np.uint8)
    number = np.zeros(len(starts), np.uint64)
    after = starts.copy()
    pending = np.arange(len(starts))
    for index in range(_LONGEST_VARINT):
        byte = view[np.minimum(after[pending], len(view) - 1)]
        number[pending] |= (byte & 0x7F).astype(np.uint64) << np.uint64(7 * index)
        after[pending] += 1
        pending = pending[byte > 0x7F]
        if not len(pending):
            break
    negative = (number & np.uint64(1)).astype(bool)
    half = (number >> np.uint64(1)).view(np.int64)
    return np.where(negative, ~half, half), after


def decoder(schema: RecordSchema, name: str, scalars_only: bool) -> tuple[pa.DataType, Decoder]:
    """What decodes a field, and into which type: see `avro_schema.arrow_type`.

    `scalars_only`: nested types as `arrow.json`. Dates, times and decimals are made from their
    underlying value. JSON text shows underlying values, bytes as base64.
    """
    node = next(field["type"] for field in schema.fields if field["name"] == name)
    kind = arrow_type(node, schema.definitions)
    if scalars_only and pt.is_nested(kind):
        kind = JSON
    if is_json(kind) or pt.is_nested(kind):
        return kind, _NestedDecoder(schema, node, kind)
    if pt.is_null(kind):
        return kind, lambda cells: Decoded(pa.nulls(len(cells)), {})
    inner = branches(node)[0]
    while isinstance(inner, str) and inner in schema.definitions:
        inner = schema.definitions[inner]
    return kind, _ScalarDecoder(node, inner, kind)


@dataclass(frozen=True)
class _ScalarDecoder:
    """Decodes `inner`, the one type of `node` that is not null."""

    node: Any
    inner: Any
    kind: pa.DataType

    def __call__(self, cells: Cells) -> Decoded:
        null = np.zeros(len(cells), bool)
        if isinstance(self.node, list) and len(cells):
            branch, after = read_varints(cells.data, cells.starts)
            nulls = [index for index, b in enumerate(self.node) if kind_of(b) == "null"]
            null = np.isin(branch, nulls)
            cells = Cells(cells.data, after, cells.ends)
        kind = kind_of(self.inner)
        if not len(cells) or null.all():
            return Decoded(pa.nulls(len(cells), self.kind), {})
        if kind in _NUMPY:
            return self._fixed_width(cells, null, np.dtype(_NUMPY[kind]))
        if kind in ("int", "long", "enum"):
            return self._numbers(cells, null)
        if kind != "fixed":
            _, after = read_varints(cells.data, np.where(null, 0, cells.starts))
            cells = Cells(cells.data, np.where(null, cells.starts, after), cells.ends)
        if decimal_digits(self.inner):
            return _decimals(cells, null, self.kind)
        array = gather(cells, null)
        return _text(array) if kind == "string" else Decoded(array.cast(self.kind), {})

    def _fixed_width(
        self, cells: Cells, null: npt.NDArray[np.bool_], dtype: np.dtype[Any]
    ) -> Decoded:
        view = np.frombuffer(cells.data, np.uint8)
        starts = np.where(null, 0, cells.starts)
        places = np.minimum(starts[:, None] + np.arange(dtype.itemsize), len(view) - 1)
        values = np.ascontiguousarray(view[places]).view(dtype).reshape(-1)
        if self.kind == pa.bool_():
            values = values.astype(bool)
        return Decoded(pa.array(values, self.kind, mask=null), {})

    def _numbers(self, cells: Cells, null: npt.NDArray[np.bool_]) -> Decoded:
        numbers, after = read_varints(cells.data, np.where(null, 0, cells.starts))
        bad = ~null & (after != cells.ends)
        if kind_of(self.inner) == "enum":
            symbols = pa.array(self.inner["symbols"], pa.string())
            bad |= ~null & ((numbers < 0) | (numbers >= len(symbols)))
            array = symbols.take(pa.array(numbers, mask=null | bad))
        elif kind_of(self.inner) == "int":
            bad |= ~null & (numbers != numbers.astype(np.int32))
            array = pa.array(numbers.astype(np.int32), mask=null | bad)
        else:
            array = pa.array(numbers, mask=null | bad)
        fault = ("bad_type", "the number is out of its type's range")
        faults = {int(index): fault for index in np.flatnonzero(bad)}
        # A view, not a cast: the underlying value stays whatever it means as a date.
        return Decoded(array if array.type == self.kind else array.view(self.kind), faults)


def _text(array: pa.BinaryArray) -> Decoded:
    try:
        return Decoded(array.cast(pa.string()), {})
    except pa.ArrowInvalid:
        return _text_by_row(array)


def _text_by_row(array: pa.BinaryArray) -> Decoded:
    """Some of the texts are not UTF-8: which, and the others."""
    texts: list[str | None] = []
    faults = {}
    for index, value in enumerate(array.to_pylist()):
        text, fault = (None, "") if value is None else _utf8(value)
        texts.append(text)
        if fault:
            faults[index] = ("invalid_utf8", fault)
    return Decoded(pa.array(texts, pa.string()), faults)


def _utf8(value: bytes) -> tuple[str | None, str]:
    try:
        return value.decode(), ""
    except UnicodeDecodeError as error:
        return None, f"the text is not UTF-8: {error.reason} at byte {error.start}"


def _decimals(cells: Cells, null: npt.NDArray[np.bool_], kind: pa.DataType) -> Decoded:
    """Decimals from their two's complement, which may take any number of bytes."""
    width = kind.bit_width // 8
    limit = 10**kind.precision
    result = bytearray()
    faults = {}
    absent = null.copy()
    for index, is_null in enumerate(null.tolist()):
        unscaled = 0 if is_null else int.from_bytes(cells.bytes_at(index), "big", signed=True)
        if abs(unscaled) >= limit:
            faults[index] = ("bad_type", f"the decimal has more than {kind.precision} digits")
            absent[index], unscaled = True, 0
        result += unscaled.to_bytes(width, "little", signed=True)
    buffers = [_validity(absent), pa.py_buffer(bytes(result))]
    return Decoded(pa.Array.from_buffers(kind, len(cells), buffers), faults)


class _NestedDecoder:
    """Decodes value by value with fastavro, into JSON text or a nested Arrow type."""

    def __init__(self, schema: RecordSchema, node: Any, kind: pa.DataType) -> None:
        self._node = node
        self._definitions = schema.definitions
        self._kind = kind
        self._parsed = parsed_field(schema.structure(node))

    def __call__(self, cells: Cells) -> Decoded:
        """Raises Damaged where the values become far more than their bytes."""
        values: list[Any] = []
        faults = {}
        size = 0
        for index in range(len(cells)):
            value, fault = self._value(cells.bytes_at(index))
            values.append(value)
            size += len(value) if isinstance(value, str) else 0
            if size > _MOST_TEXT:
                raise Damaged(f"a block of values takes more than {_MOST_TEXT} characters as JSON")
            if fault:
                faults[index] = ("bad_type", f"the value cannot be decoded: {fault}")
        if is_json(self._kind):
            texts = pa.array(values, pa.string())
            return Decoded(pa.ExtensionArray.from_storage(self._kind, texts), faults)
        return self._nested(values, faults)

    def _nested(self, values: list[Any], faults: dict[int, tuple[str, str]]) -> Decoded:
        try:
            return Decoded(pa.array(values, self._kind), faults)
        except UNFIT:
            pass  # which of them are at fault is found below
        for index, value in enumerate(values):
            try:
                pa.array([value], self._kind)
            except UNFIT as error:
                values[index] = None
                faults[index] = ("bad_type", f"the value cannot be decoded: {_short(error)}")
        return Decoded(pa.array(values, self._kind), faults)

    def _value(self, encoded: bytes) -> tuple[Any, str]:
        """The value, or why there is none."""
        stream = io.BytesIO(encoded)
        try:
            record: Any = fastavro.schemaless_reader(stream, self._parsed, None)
        except UNDECODABLE as error:
            return None, f"{type(error).__name__}: {_short(error)}"
        if stream.tell() != len(encoded):
            return None, "it is longer than what it holds"
        value = record["value"]
        if not is_json(self._kind):
            return _fitted(value, self._node, self._definitions), ""
        return None if value is None else json_text(value), ""


def _short(error: BaseException) -> str:
    text = ascii(str(error))[1:-1]
    return text if len(text) <= 200 else f"{text[:200]}..."


def parsed_field(node: Any) -> Any:
    """A type made ready for fastavro, as the only field, `value`, of a record.

    Raises SchemaInvalid: fastavro refuses names that the walk need not look at.
    """
    field = {"name": "value", "type": node}
    try:
        return fastavro.parse_schema({"type": "record", "name": "Value_", "fields": [field]})
    except (*UNDECODABLE, SchemaParseException) as error:
        raise SchemaInvalid(f"fastavro refuses a type in its schema ({_short(error)})") from error


def _fitted(value: Any, node: Any, definitions: Mapping[str, Any]) -> Any:
    """A decoded value as pyarrow takes it for the type of `avro_schema.arrow_type`."""
    if value is None:
        return None
    node = branches(node)[0]
    while isinstance(node, str) and node in definitions:
        node = definitions[node]
    kind = kind_of(node)
    if kind == "array":
        return [_fitted(item, node["items"], definitions) for item in value]
    if kind == "map":
        return [(key, _fitted(item, node["values"], definitions)) for key, item in value.items()]
    if kind in ("record", "error"):
        return {
            field["name"]: _fitted(value[field["name"]], field["type"], definitions)
            for field in node["fields"]
        }
    digits = decimal_digits(node)
    return value if digits is None else _decimal(value, digits)


def _decimal(encoded: bytes, digits: tuple[int, int]) -> Any:
    number = int.from_bytes(encoded, "big", signed=True)
    # Built from digits: arithmetic on Decimal would round to the context's precision.
    return Decimal((number < 0, tuple(map(int, str(abs(number)))), -digits[1]))
