"""Encode Arrow arrays as fields of Avro records."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import fastavro
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from batchpredict.data.arrow_types import (
    cast_to,
    is_bytes,
    is_list,
    is_string,
    value_type,
    values_of,
)
from batchpredict.data.avro_columns import parsed_field
from batchpredict.data.avro_schema import RecordSchema, avro_type, legal_names
from batchpredict.data.conversion import as_text
from batchpredict.data.respelled import Unfit, avro_value

_LONGEST_VARINT = 10
_VALUE_BRANCH, _NULL_BRANCH = 2, 0  # of ["null", T], as zigzag


def encode(array: pa.Array) -> pa.BinaryArray:
    """Each value as a field of the type `avro_schema.fields_of` declares for the array's type."""
    kind = value_type(array.type)
    node = avro_type(kind, "Row")
    if node is None:
        return _prefixed(as_text(array).cast(pa.binary()))
    array = values_of(array)
    if node == "null":
        return pa.array([b""] * len(array), pa.binary())
    if pt.is_nested(kind):
        return _nested(array, node)
    if is_string(kind) or is_bytes(kind):
        return _prefixed(_plain(array).cast(pa.binary()))
    if pt.is_decimal(kind) or pt.is_uint64(kind):
        return _prefixed(_unscaled(_plain(array)))
    if pt.is_boolean(kind):
        return _fixed_width(array.cast(pa.uint8()), array.is_null())
    if pt.is_floating(kind):
        return _fixed_width(_plain(array), array.is_null())
    return _numbers(_plain(array))


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """What Avro stores for values of a type: numbers for dates and times, one layout of each."""
    kind = value_type(kind)
    if pt.is_struct(kind):
        return pa.struct([(field.name, _plain_type(field.type)) for field in kind])
    if pt.is_map(kind):
        return pa.map_(pa.string(), _plain_type(kind.item_type))
    if is_list(kind):
        return pa.large_list(_plain_type(kind.value_type))
    if is_string(kind):
        return pa.string()
    if is_bytes(kind):
        return pa.binary()
    if pt.is_null(kind):  # in a list or map: see cast_to
        return pa.int32()
    if pt.is_uint64(kind):
        return pa.decimal128(20, 0)
    if pt.is_float16(kind):
        return pa.float32()
    if pt.is_date(kind) or pt.is_time32(kind):
        return pa.int32()
    return pa.int64() if pt.is_temporal(kind) else kind


def _ticks_type(kind: pa.DataType) -> pa.DataType:
    """The unit in which Avro counts: Avro has no seconds, and counts dates in days."""
    kind = value_type(kind)
    if pt.is_struct(kind):
        return pa.struct([(field.name, _ticks_type(field.type)) for field in kind])
    if pt.is_map(kind):
        return pa.map_(kind.key_type, _ticks_type(kind.item_type))
    if is_list(kind):
        return pa.large_list(_ticks_type(kind.value_type))
    if pt.is_date64(kind):
        return pa.date32()
    if pt.is_null(kind):
        return pa.int32()
    if pt.is_timestamp(kind) and kind.unit == "s":
        return pa.timestamp("ms", kind.tz)
    return pa.time32("ms") if pt.is_time32(kind) else kind


def _plain(array: pa.Array) -> pa.Array:
    if pt.is_list_view(array.type) or pt.is_large_list_view(array.type):
        # Not by a cast: pyarrow 26 loses items when it casts a list view.
        lengths = pc.list_value_length(array).fill_null(0).to_numpy()
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())
        array = pa.LargeListArray.from_arrays(offsets, array.flatten(), mask=array.is_null())
    return cast_to(cast_to(array, _ticks_type(array.type)), _plain_type(array.type))


def _cut(matrix: npt.NDArray[np.uint8], sizes: npt.NDArray[np.int64]) -> pa.BinaryArray:
    """The first `sizes[i]` bytes of each row."""
    offsets = np.zeros(len(sizes) + 1, np.int32)
    np.cumsum(sizes, out=offsets[1:])
    data = matrix[np.arange(matrix.shape[1]) < sizes[:, None]]
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data.tobytes())]
    return pa.Array.from_buffers(pa.binary(), len(sizes), buffers)


def _with_branch(
    encoded: npt.NDArray[np.uint8], sizes: npt.NDArray[np.int64], null: pa.BooleanArray
) -> pa.BinaryArray:
    """Encodings of values after the byte that chooses their branch, or the null's byte alone."""
    absent = null.to_numpy(zero_copy_only=False)
    branch = np.where(absent, _NULL_BRANCH, _VALUE_BRANCH).astype(np.uint8)
    matrix = np.concatenate([branch[:, None], encoded], axis=1)
    return _cut(matrix, np.where(absent, 1, 1 + sizes))


def _fixed_width(array: pa.Array, null: pa.BooleanArray) -> pa.BinaryArray:
    values = array.fill_null(0).to_numpy(zero_copy_only=False)
    # Little-endian, whatever the machine is.
    little = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<")))
    encoded = little.view(np.uint8).reshape(len(values), values.dtype.itemsize)
    return _with_branch(encoded, np.full(len(values), values.dtype.itemsize), null)


def _varints(numbers: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint8], Any]:
    rest = ((numbers << 1) ^ (numbers >> 63)).view(np.uint64)
    encoded = np.zeros((len(numbers), _LONGEST_VARINT), np.uint8)
    sizes = np.ones(len(numbers), np.int64)
    for index in range(_LONGEST_VARINT):
        encoded[:, index] = rest & np.uint64(0x7F)
        rest = rest >> np.uint64(7)
        more = rest > 0
        if not more.any():
            break
        encoded[more, index] |= 0x80
        sizes += more
    return encoded, sizes


def _numbers(array: pa.Array) -> pa.BinaryArray:
    numbers = array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    return _with_branch(*_varints(numbers), array.is_null())


def _prefixed(values: pa.BinaryArray) -> pa.BinaryArray:
    """Byte strings after their branch and length."""
    sizes = pc.binary_length(values).cast(pa.int64()).fill_null(0)
    prefix = _with_branch(*_varints(sizes.to_numpy()), values.is_null())
    return pc.binary_join_element_wise(prefix, values.fill_null(b""), b"")


def _unscaled(array: pa.Array) -> pa.BinaryArray:
    """Decimals as two's complement in the fewest bytes."""
    if array.type.bit_width < 128:
        array = array.cast(pa.decimal128(array.type.precision, array.type.scale))
    width = array.type.bit_width // 8
    data = memoryview(array.buffers()[1] or b"")
    result: list[bytes | None] = []
    for index, valid in enumerate(array.is_valid().to_pylist()):
        at = (array.offset + index) * width
        number = int.from_bytes(data[at : at + width], "little", signed=True)
        size = (number if number >= 0 else ~number).bit_length() // 8 + 1
        result.append(number.to_bytes(size, "big", signed=True) if valid else None)
    return pa.array(result, pa.binary())


def _nested(array: pa.Array, node: Any) -> pa.BinaryArray:
    """Value by value, by fastavro."""
    parsed = parsed_field(["null", node])
    result = []
    for value in _plain(array).to_pylist():
        stream = io.BytesIO()
        fastavro.schemaless_writer(stream, parsed, {"value": _renamed(value, array.type)})
        result.append(stream.getvalue())
    return pa.array(result, pa.binary())


def _renamed(value: Any, kind: pa.DataType) -> Any:
    """With the names that Avro allows in records, and maps as dicts."""
    kind = value_type(kind)
    if value is None:
        return None
    if pt.is_struct(kind):
        legal = legal_names(field.name for field in kind)
        return {legal[f.name]: _renamed(value[f.name], f.type) for f in kind}
    if pt.is_map(kind):
        return {key: _renamed(item, kind.item_type) for key, item in value}
    if is_list(kind):
        return [_renamed(item, kind.value_type) for item in value]
    return value


def encode_record(record: Mapping[str, Any], schema: RecordSchema) -> bytes:
    """A row of a file, spelled as in a rejects file, as that file has it. Raises Unfit."""
    parsed = parsed_field(schema.structure(schema.top))
    value = avro_value(record, schema.top, schema.definitions)
    stream = io.BytesIO()
    try:
        fastavro.schemaless_writer(stream, parsed, {"value": value})
    except (ValueError, TypeError, EOFError, LookupError, OverflowError) as error:
        raise Unfit(str(error) or type(error).__name__) from error
    return stream.getvalue()
