"""JSON values back into the Arrow and Avro values that `conversion` spelled as such."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from batchpredict.data.arrow_types import is_bytes, is_list, is_string, value_type
from batchpredict.data.avro_schema import PRIMITIVES, full_name, kind_of

_TICKS_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_DURATION = re.compile(r"(-?)PT(\d+)(?:\.(\d+))?S")
_TIME = re.compile(r"(\d\d):(\d\d)(?::(\d\d)(?:\.(\d+))?)?")
_NOT_FINITE = frozenset(("NaN", "Infinity", "-Infinity"))


class Unfit(ValueError):
    """A value that its column's type does not hold; says which and why."""


def arrow_struct(records: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    """Objects, as `conversion.as_json` spells them, as rows of a schema. Raises Unfit.

    Members of other names are refused, those that are absent are null.
    """
    for record in records:
        unknown = [name for name in record if name not in schema.names]
        if unknown:
            raise Unfit(f"there is no column {unknown[0]!r}")
    columns = [
        _column(field.name, [record.get(field.name) for record in records], field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _column(name: str, values: list[Any], kind: pa.DataType) -> pa.Array:
    try:
        return _array(values, kind)
    except (ValueError, TypeError, ArithmeticError, AttributeError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise Unfit(f"column {name!r} ({kind}): {reason}") from error


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pt.is_dictionary(kind):
        return _array(values, kind.value_type).dictionary_encode().cast(kind)
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, _array(values, kind.storage_type))
    if pt.is_temporal(kind) and not (pt.is_duration(kind) or pt.is_interval(kind)):
        return _temporal(values, kind)
    return pa.array([_value(value, kind) for value in values], kind)


def _temporal(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Dates and times from ISO 8601; from ticks where no calendar has the day."""
    width = pa.int32() if kind.bit_width == 32 else pa.int64()
    if pt.is_time(kind):
        return pa.array([None if v is None else _clock(v, kind.unit) for v in values], kind)
    texts = pa.array(values, pa.string())
    try:
        if pt.is_date64(kind):
            return texts.cast(pa.date32()).cast(kind)
        return texts.cast(kind)
    except pa.ArrowInvalid:
        if not all(value is None or re.fullmatch(r"-?\d+", value) for value in values):
            raise
        return pa.array([None if v is None else int(v) for v in values], width).cast(kind)


def _value(value: Any, kind: pa.DataType) -> Any:
    """One value as `pa.array` takes it for a type."""
    kind = value_type(kind)
    if value is None:
        return None
    if pt.is_nested(kind):
        return _nested(value, kind)
    if is_string(kind):
        return _expected(value, str)
    if is_bytes(kind):
        return base64.b64decode(_expected(value, str), validate=True)
    if pt.is_decimal(kind):
        return Decimal(_expected(value, str, int))
    if pt.is_floating(kind):
        return _number(value)
    if pt.is_duration(kind):
        return _ticks(_expected(value, str), kind.unit)
    if pt.is_temporal(kind):
        return _temporal([_expected(value, str)], kind)[0].value
    return _expected(value, bool) if pt.is_boolean(kind) else _expected(value, int)


def _nested(value: Any, kind: pa.DataType) -> Any:
    if pt.is_struct(kind):
        return {f.name: _value(_expected(value, dict).get(f.name), f.type) for f in kind}
    if pt.is_map(kind):
        items = _expected(value, dict).items()
        return [(_key(key, kind.key_type), _value(item, kind.item_type)) for key, item in items]
    if is_list(kind):
        return [_value(item, kind.value_type) for item in _expected(value, list)]
    raise Unfit(f"no value of type {kind} can be made from JSON")


def _key(key: str, kind: pa.DataType) -> Any:
    """A map's key; JSON has texts only."""
    kind = value_type(kind)
    return key if is_string(kind) else pa.array([key]).cast(kind)[0].as_py()


def _expected(value: Any, *types: type) -> Any:
    if type(value) not in types:
        raise Unfit(f"{json.dumps(value, ensure_ascii=False)} is not {types[0].__name__}")
    return value


def _number(value: Any) -> float:
    return float(value if value in _NOT_FINITE else _expected(value, float, int))


def _clock(text: Any, unit: str) -> int:
    """A time of day in ticks."""
    match = _TIME.fullmatch(_expected(text, str))
    if match is None:
        raise Unfit(f"{text!r} is no time such as 12:30:00")
    hours, minutes, seconds, fraction = match.groups()
    whole = int(hours) * 3600 + int(minutes) * 60 + int(seconds or 0)
    return _ticks(f"PT{whole}.{fraction or 0}S", unit)


def _ticks(text: str, unit: str) -> int:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise Unfit(f"{text!r} is no duration such as PT1.5S")
    sign, whole, fraction = match.groups()
    per_second = _TICKS_PER_SECOND[unit]
    digits = len(str(per_second)) - 1
    ticks = int(whole) * per_second + int((fraction or "").ljust(digits, "0")[:digits] or 0)
    return -ticks if sign else ticks


def avro_value(value: Any, node: Any, definitions: Mapping[str, Any]) -> Any:
    """A value, as `conversion.plain_json` spells it, as fastavro takes it for a type of an Avro
    schema. Raises Unfit. Of a union the first branch that holds the value is meant.
    """
    if isinstance(node, str) and node not in PRIMITIVES:
        return avro_value(value, definitions[node], definitions)
    kind = kind_of(node)
    if kind == "union":
        return _of_union(value, node, definitions)
    if isinstance(node, dict) and not isinstance(node["type"], str):
        return avro_value(value, node["type"], definitions)
    if kind in ("record", "error"):
        return _of_record(value, node, definitions)
    if kind == "array":
        items = _expected(value, list)
        return [avro_value(item, node["items"], definitions) for item in items]
    if kind == "map":
        members = _expected(value, dict).items()
        return {key: avro_value(item, node["values"], definitions) for key, item in members}
    if kind == "enum" and value not in node["symbols"]:
        raise Unfit(f"{value!r} is no symbol of {full_name(node)}")
    return _AVRO[kind](value)


def _of_union(value: Any, node: Sequence[Any], definitions: Mapping[str, Any]) -> Any:
    for branch in node:
        # A whole number is a float only where no other branch holds it.
        if type(value) is int and kind_of(branch) in ("float", "double"):
            continue
        try:
            return avro_value(value, branch, definitions)
        except Unfit:
            continue
    floats = [branch for branch in node if kind_of(branch) in ("float", "double")]
    if type(value) is int and floats:
        return float(value)
    raise Unfit(f"{json.dumps(value, ensure_ascii=False)} fits no branch of its union")


def _of_record(value: Any, node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Any:
    members = dict(_expected(value, dict))
    fields = [(field["name"], field["type"]) for field in node["fields"]]
    result = {}
    for name, inner in fields:
        if name not in members:
            raise Unfit(f"field {name!r} is missing")
        try:
            result[name] = avro_value(members.pop(name), inner, definitions)
        except Unfit as error:
            raise Unfit(f"field {name!r}: {error}") from error
    if members:
        raise Unfit(f"there is no field {next(iter(members))!r}")
    return result


def _whole(bits: int) -> Callable[[Any], int]:
    def within(value: Any) -> int:
        if not -(1 << bits - 1) <= _expected(value, int) < 1 << bits - 1:
            raise Unfit(f"{value} is out of range")
        return int(value)

    return within


def _base64(value: Any) -> bytes:
    try:
        return base64.b64decode(_expected(value, str), validate=True)
    except ValueError as error:
        raise Unfit(f"{value!r} is not base64") from error


_AVRO: dict[str, Callable[[Any], Any]] = {
    "null": lambda value: _expected(value, type(None)),
    "boolean": lambda value: _expected(value, bool),
    "int": _whole(32),
    "long": _whole(64),
    "float": _number,
    "double": _number,
    "bytes": _base64,
    "fixed": _base64,
    "string": lambda value: _expected(value, str),
    "enum": lambda value: _expected(value, str),
}
