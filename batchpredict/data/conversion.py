"""Values of any Arrow type as text or JSON, and what a change of format loses."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from batchpredict.data import avro_schema
from batchpredict.data.arrow_types import (
    children,
    is_bytes,
    is_json,
    is_string,
    value_type,
    values_of,
)

_quoted: Callable[[str], str] = json.JSONEncoder(ensure_ascii=False).encode
_NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
_TICKS_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
# How Arrow spells a date or time that no calendar or clock shows.
_OUT_OF_RANGE = "<value out of range: "
_OFFSET = r"([+-]\d\d)(\d\d)$"


def as_text(array: pa.Array) -> pa.StringArray:
    """Each value as text for a CSV cell; null stays null.

    Floats are the shortest decimal that reads back in their own type, dates and times ISO 8601
    (a number of ticks where the calendar has no such day), bytes base64, nested values JSON.
    A JSON string is decoded and a JSON null is null.
    """
    array = values_of(array)
    kind = array.type
    if is_json(kind):
        return _text_of_json(array.storage)
    if pt.is_nested(kind):
        present = array.is_valid()
        return pc.if_else(present, pa.array(as_json(array), pa.string()), None)
    if is_bytes(kind):
        return _mapped(array, lambda value: base64.b64encode(value).decode("ascii"))
    if pt.is_float16(kind):
        return _floats_named(pa.array(_half_texts(array), pa.string()))
    if pt.is_floating(kind):
        text = array.cast(pa.string())
        all_finite = not pc.any(pc.invert(pc.is_finite(array))).as_py()
        return text if all_finite else _floats_named(text)
    if pt.is_temporal(kind) and not pt.is_duration(kind):
        return _temporal_text(array)
    if pt.is_duration(kind):
        return _duration_text(array)
    text = array.cast(pa.string())
    return _decimals_in_full(array, text) if pt.is_decimal(kind) else text


def _mapped(array: pa.Array, text_of: Callable[[Any], str]) -> pa.StringArray:
    return pa.array(
        [None if value is None else text_of(value) for value in array.to_pylist()], pa.string()
    )


def _half_texts(array: pa.Array) -> list[str | None]:
    return [None if value is None else str(np.float16(value)) for value in array.to_pylist()]


def _floats_named(text: pa.StringArray) -> pa.StringArray:
    for arrow_name, name in _NOT_FINITE.items():
        text = pc.if_else(pc.equal(text, arrow_name), name, text)
    return text


def _decimals_in_full(array: pa.Array, text: pa.StringArray) -> pa.StringArray:
    """Without the exponent Arrow writes for very small values and negative scales."""
    if not pc.any(pc.match_substring(text, "E")).as_py():
        return text
    return _mapped(array, lambda value: format(value, "f"))


def _temporal_text(array: pa.Array) -> pa.StringArray:
    if pt.is_interval(array.type):
        return _mapped(array, _interval_text)
    try:
        text = array.cast(pa.string())
    except pa.ArrowInvalid:
        if getattr(array.type, "tz", None) in (None, "UTC"):
            raise
        # A zone that this machine does not know: the instants are the same in another.
        return _temporal_text(array.cast(pa.timestamp(array.type.unit, "UTC")))
    if pc.any(pc.starts_with(text, _OUT_OF_RANGE)).as_py():
        ticks = array.cast(pa.int32() if array.type.bit_width == 32 else pa.int64())
        text = pc.if_else(pc.starts_with(text, _OUT_OF_RANGE), ticks.cast(pa.string()), text)
    if not pt.is_timestamp(array.type):
        return text
    text = pc.replace_substring(text, " ", "T", max_replacements=1)
    if array.type.tz is not None:
        text = pc.replace_substring_regex(text, _OFFSET, r"\1:\2")
    return text


def _interval_text(value: pa.MonthDayNano) -> str:
    sign = "-" if value.nanoseconds < 0 else ""
    whole, part = divmod(abs(value.nanoseconds), 10**9)
    return f"P{value.months}M{value.days}DT{sign}{whole}.{part:09d}S"


def _duration_text(array: pa.Array) -> pa.StringArray:
    per_second = _TICKS_PER_SECOND[array.type.unit]
    digits = len(str(per_second)) - 1

    def text_of(ticks: int) -> str:
        whole, part = divmod(abs(ticks), per_second)
        fraction = f".{part:0{digits}d}" if digits else ""
        return f"{'-' if ticks < 0 else ''}PT{whole}{fraction}S"

    return _mapped(array.cast(pa.int64()), text_of)


def _text_of_json(texts: pa.Array) -> pa.StringArray:
    def text_of(text: str | None) -> str | None:
        if text is None or text == "null":
            return None
        return str(json.loads(text)) if text.startswith('"') else text

    return pa.array([text_of(text) for text in texts.to_pylist()], pa.string())


def as_json(array: pa.Array) -> list[str]:
    """Each value as JSON text; null is `null`.

    Floats that are not finite are strings, so are decimals, dates, times and bytes (base64).
    """
    array = values_of(array)
    kind = array.type
    if is_json(kind):
        return _filled(array.storage.to_pylist())
    if is_string(kind):
        return ["null" if value is None else _quoted(value) for value in array.to_pylist()]
    if pt.is_integer(kind) or pt.is_boolean(kind):
        return _filled(array.cast(pa.string()).to_pylist())
    if pt.is_floating(kind):
        text = as_text(array)
        named = pc.is_in(text, pa.array(list(_NOT_FINITE.values())))
        quoted = pc.binary_join_element_wise('"', text, '"', "")
        return _filled(pc.if_else(named, quoted, text).to_pylist())
    if pt.is_nested(kind):
        return _nested_json(array)
    return ["null" if value is None else f'"{value}"' for value in as_text(array).to_pylist()]


def _filled(texts: Iterable[str | None]) -> list[str]:
    return ["null" if text is None else text for text in texts]


def _nested_json(array: pa.Array) -> list[str]:
    kind = array.type
    if pt.is_struct(kind):
        return _struct_json(array)
    if pt.is_union(kind):
        return [as_json(_one(value.value))[0] for value in array]
    if pt.is_map(kind):
        offsets = array.offsets.to_numpy()
        first, last = int(offsets[0]), int(offsets[-1])
        names = _filled(as_text(array.keys.slice(first, last - first)).to_pylist())
        values = as_json(array.items.slice(first, last - first))
        members = [f"{_quoted(n)}:{v}" for n, v in zip(names, values, strict=True)]
        return _grouped(array, offsets - first, members, "{}")
    # Not by casting to one kind of list: pyarrow 26 loses items when it casts a list view.
    lengths = pc.list_value_length(array).fill_null(0).to_numpy()
    borders = np.concatenate([[0], np.cumsum(lengths)])
    return _grouped(array, borders, as_json(array.flatten()), "[]")


def _one(scalar: pa.Scalar) -> pa.Array:
    return pa.repeat(scalar, 1)


def _grouped(
    array: pa.Array, borders: npt.NDArray[Any], members: list[str], brackets: str
) -> list[str]:
    """The members between each two borders as one text; `null` where the array has null."""
    places = itertools.pairwise(borders.tolist())
    present = array.is_valid().to_pylist()
    return [
        f"{brackets[0]}{','.join(members[start:stop])}{brackets[1]}" if valid else "null"
        for (start, stop), valid in zip(places, present, strict=True)
    ]


def _struct_json(array: pa.StructArray) -> list[str]:
    names = [_quoted(field.name) for field in array.type]
    present = array.is_valid().to_pylist()
    if not names:
        return ["{}" if valid else "null" for valid in present]
    rows = zip(*(as_json(child) for child in array.flatten()), strict=True)
    return [
        "{" + ",".join(f"{n}:{v}" for n, v in zip(names, row, strict=True)) + "}"
        if valid
        else "null"
        for row, valid in zip(rows, present, strict=True)
    ]


def plain_json(value: Any) -> Any:
    """A Python value in which everything is JSON: bytes as base64, NaN and infinities by name."""
    if isinstance(value, dict):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, float) and not np.isfinite(value):
        return _NOT_FINITE[str(value)]
    return value


def json_text(value: Any) -> str:
    """The JSON text of a Python value, compact; see `plain_json`."""
    return json.dumps(plain_json(value), ensure_ascii=False, separators=(",", ":"))


def losses(schema: pa.Schema, target: str) -> list[str]:
    """One line per column that cannot be kept as it is in format `target`.

    That every value is text in CSV is no loss, nor is a wider type that holds every value.
    """
    if target == "avro":
        return avro_schema.losses(schema)
    remark = {
        "csv": _lost_in_text,
        "tsv": _lost_in_text,
        "json": _lost_in_json,
        "jsonl": _lost_in_json,
        "parquet": _lost_in_parquet,
    }[target]
    lines = ((field.name, remark(value_type(field.type))) for field in schema)
    return [f"column '{name}': {line}" for name, line in lines if line]


def _lost_in_text(kind: pa.DataType) -> str:
    if is_bytes(kind):
        return "bytes are written as base64"
    if is_json(kind):
        return "values that are not text are written as JSON text"
    return "nested values are written as JSON text" if pt.is_nested(kind) else ""


def _lost_in_json(kind: pa.DataType) -> str:
    if is_bytes(kind):
        return "bytes are written as base64 text"
    if pt.is_decimal(kind):
        return "decimals are written as text"
    if pt.is_temporal(kind):
        return "dates and times are written as ISO 8601 text"
    inner = {_lost_in_json(value_type(child)) for child in children(kind)} - {""}
    return ", ".join(sorted(inner))


def _lost_in_parquet(kind: pa.DataType) -> str:
    if is_json(kind):
        return "values that are not text are written as JSON text"
    return "" if fits_parquet(kind) else "values are written as text"


def fits_parquet(kind: pa.DataType) -> bool:
    """Whether Parquet has a place for values of this type."""
    if is_json(kind) or pt.is_interval(kind) or pt.is_union(kind):
        return False
    if pt.is_struct(kind) and kind.num_fields == 0:
        return False
    return all(fits_parquet(value_type(child)) for child in children(kind))
