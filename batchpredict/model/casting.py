"""Columns cast to the dtypes of graph inputs, whole columns at a time.

Rows are looked at one by one only after a cast of the whole column failed. What a value is
does not depend on the format it came in: CSV text, JSON text and typed Arrow values agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchpredict.model.columns import flags, is_json, is_text, json_values, plain, shown

DTYPES = frozenset(
    {"float16", "float32", "float64", "int8", "int16", "int32", "int64",
     "uint8", "uint16", "uint32", "uint64", "bool", "string"}
)  # fmt: skip
# From here on neighbouring whole numbers share one float64.
_EXACT = 2.0**53
# What Arrow's parser takes for a number, and a plus sign, which it takes for floats only.
_NUMBER = r"^[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|(?i:inf|infinity|nan))$"
_WHOLE = r"^[+-]?\d+$"

_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Cast:
    """One column as `dtype`; what stands at missing and bad places means nothing.

    `values`: the graph's dtype (texts: object), [rows]. `missing`, `bad`: bool [rows], never
    both. `texts`: the values as they came, for messages. `codes`: of texts, int32 [rows], equal
    where the texts are.
    """

    values: npt.NDArray[Any]
    missing: _Mask
    bad: _Mask
    texts: pa.Array
    codes: npt.NDArray[np.int32] | None = None

    def why(self, row: int, dtype: str) -> str:
        wanted = "text" if dtype == "string" else dtype
        return f"{shown(self.texts[row].as_py())} is not a {wanted} value"


def castable(kind: pa.DataType, dtype: str) -> bool:
    """Whether a column of this type may hold values of `dtype`; floats are no categories."""
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if is_json(kind) or is_text(kind) or types.is_null(kind):
        return True
    if types.is_boolean(kind) or types.is_integer(kind):
        return True
    return dtype != "string" and bool(types.is_floating(kind) or types.is_decimal(kind))


def cast_column(column: pa.Array, dtype: str, missing_values: Sequence[str]) -> Cast:
    """`column`: any type `castable` allows, and arrow.json. `dtype`: one of DTYPES."""
    column = plain(column)
    if is_json(column.type):
        json = json_values(column)
        cast = cast_column(json.texts, dtype, missing_values)
        bad = json.is_nested | json.is_broken
        return replace(cast, bad=cast.bad | bad, missing=cast.missing & ~bad)
    if pa.types.is_null(column.type):
        column = column.cast(pa.string())
    if dtype == "string":
        return _to_string(column, missing_values)
    if is_text(column.type):
        return _from_text(column, dtype, missing_values)
    return _from_typed(column, dtype, missing_values)


def _none(rows: int) -> _Mask:
    return np.zeros(rows, np.bool_)


def _named(texts: pa.Array, missing_values: Sequence[str]) -> _Mask:
    """Null, or one of the texts that mean it."""
    missing = flags(texts.is_null())
    if missing_values:
        missing |= flags(pc.is_in(texts, value_set=pa.array(missing_values, pa.string())))
    return missing


def _to_string(column: pa.Array, missing_values: Sequence[str]) -> Cast:
    texts = column.cast(pa.string())
    # One Python object for equal texts: most columns of texts are categories.
    encoded = texts.dictionary_encode("encode")
    codes = np.asarray(encoded.indices.to_numpy(zero_copy_only=False), np.int32)
    categories = encoded.dictionary
    values = categories.to_numpy(zero_copy_only=False)[codes]
    missing = _named(categories, missing_values)[codes]
    return Cast(values, missing, _none(len(texts)), texts, codes)


def _from_typed(column: pa.Array, dtype: str, missing_values: Sequence[str]) -> Cast:
    missing = flags(column.is_null())
    if missing_values and not pa.types.is_floating(column.type):
        # -999 means "no value" in a typed column as it does in text.
        missing = _named(column.cast(pa.string()), missing_values)
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    filled = column.fill_null(False if pa.types.is_boolean(column.type) else 0)
    numbers = np.asarray(filled.to_numpy(zero_copy_only=False))
    if missing_values and pa.types.is_floating(column.type):
        missing |= np.isin(numbers, _numbers(missing_values))
    values, bad = narrowed(numbers, dtype)
    return Cast(values, missing, bad & ~missing, column)


def _numbers(texts: Sequence[str]) -> list[float]:
    numbers = []
    for text in texts:
        try:
            numbers.append(float(text))
        except ValueError:
            continue
    return numbers


def narrowed(numbers: npt.NDArray[Any], dtype: str) -> tuple[npt.NDArray[Any], _Mask]:
    """Numbers as `dtype`, and where they are not in it: fractions, out of range, not 0 or 1."""
    if numbers.dtype == dtype:
        return numbers, _none(len(numbers))
    with np.errstate(all="ignore"):
        values = numbers.astype(dtype)
        if dtype.startswith("float"):
            return values, np.isinf(values) & ~np.isinf(numbers.astype(np.float64))
        if dtype == "bool":
            return values, (numbers != 0) & (numbers != 1)
        if numbers.dtype.kind == "b":
            return values, _none(len(numbers))
        if numbers.dtype.kind == "f":
            # The limits are compared as floats: 2**63 itself is out of int64's range.
            limits = np.iinfo(dtype)
            inside = (numbers >= float(limits.min)) & (numbers < float(limits.max) + 1)
            return values, ~(inside & (np.floor(numbers) == numbers))
        # Same value after the cast, and same sign: -1 as uint64 comes back as -1.
        return values, (values.astype(numbers.dtype) != numbers) | ((values < 0) != (numbers < 0))


def _from_text(texts: pa.Array, dtype: str, missing_values: Sequence[str]) -> Cast:
    # Most columns are plain numbers or plain numbers and empty cells.
    if dtype == "bool":
        return _bools(texts, missing_values)
    kind = _parsed_as(dtype)
    missing = _named(texts, ("", *missing_values))
    present = texts
    if missing.any():
        present = pc.if_else(pa.array(missing), pa.scalar(None, pa.string()), texts)
    try:
        parsed = pc.cast(present, kind)
    except pa.ArrowInvalid:
        return _doubtful(texts, dtype, missing_values)
    if not dtype.startswith("float") and _any_hexadecimal(present):
        return _doubtful(texts, dtype, missing_values)
    numbers = np.asarray(parsed.fill_null(0).to_numpy(zero_copy_only=False))
    values, bad = narrowed(numbers, dtype)
    if numbers.dtype.kind == "f":
        bad |= _overflown(present, numbers)
    return Cast(values, missing, bad & ~missing, texts)


def _any_hexadecimal(texts: pa.Array) -> bool:
    """Arrow reads 0x10 as a whole number; we do not."""
    _, offsets, content = texts.buffers()
    places = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    if content is None or not len(places):
        return False
    letters = np.frombuffer(content, np.uint8)[places[0] : places[-1]]
    return bool(((letters | 0x20) == ord("x")).any())


def _parsed_as(dtype: str) -> pa.DataType:
    if dtype.startswith("float"):
        return pa.float64()
    return pa.uint64() if dtype == "uint64" else pa.int64()


def _overflown(texts: pa.Array, numbers: npt.NDArray[np.float64]) -> _Mask:
    """1e999 reads as infinity; only "inf" means it."""
    infinite = np.isinf(numbers)
    if infinite.any():
        infinite &= flags(pc.match_substring_regex(texts, r"\d"))
    return np.asarray(infinite, np.bool_)


def _bools(texts: pa.Array, missing_values: Sequence[str]) -> Cast:
    trimmed = pc.ascii_lower(pc.ascii_trim_whitespace(texts))
    missing = _named(texts, missing_values) | flags(pc.equal(trimmed, ""))
    if missing_values:
        missing |= _named(pc.ascii_trim_whitespace(texts), missing_values)
    true = flags(pc.is_in(trimmed, value_set=pa.array(["true", "1", "1.0"])))
    false = flags(pc.is_in(trimmed, value_set=pa.array(["false", "0", "0.0"])))
    return Cast(true, missing, ~(true | false | missing), texts)


def _doubtful(texts: pa.Array, dtype: str, missing_values: Sequence[str]) -> Cast:
    """The slow way: spaces, plus signs, booleans, 3.0 for a whole number, and what is bad."""
    trimmed = pc.ascii_trim_whitespace(texts)
    missing = _named(trimmed, missing_values) | flags(pc.equal(trimmed, ""))
    lower = pc.ascii_lower(trimmed)
    trimmed = pc.if_else(pc.equal(lower, "true"), "1", trimmed)
    trimmed = pc.if_else(pc.equal(lower, "false"), "0", trimmed)
    unsigned = pc.replace_substring_regex(trimmed, r"^\+", "")
    is_number = flags(pc.match_substring_regex(trimmed, _NUMBER)) & ~missing
    is_whole = flags(pc.match_substring_regex(trimmed, _WHOLE)) & is_number
    floats = _parsed(unsigned, is_number, pa.float64())
    values, bad = narrowed(floats, dtype)
    bad |= _overflown(trimmed, floats)
    if not dtype.startswith("float"):
        bad |= np.abs(floats) >= _EXACT
        exact, failed = _wholes(unsigned, is_whole, dtype)
        values = np.where(is_whole, exact, values).astype(dtype)
        bad = np.where(is_whole, failed, bad)
    return Cast(values, missing, (bad | ~is_number) & ~missing, texts)


def _parsed(texts: pa.Array, where: _Mask, kind: pa.DataType) -> npt.NDArray[Any]:
    kept = pc.if_else(pa.array(where), texts, pa.scalar(None, pa.string()))
    return np.asarray(pc.cast(kept, kind).fill_null(0).to_numpy(zero_copy_only=False))


def _wholes(texts: pa.Array, where: _Mask, dtype: str) -> tuple[npt.NDArray[Any], _Mask]:
    """Digits as `dtype`, exactly. Digits beyond 64 bits are bad, and would fail the cast."""
    digits = pc.replace_substring_regex(texts, r"^(-?)0+(\d)", r"\1\2")
    short = flags(pc.less_equal(pc.utf8_length(digits), 18)) & where
    numbers = _parsed(digits, short, pa.int64())
    values, bad = narrowed(numbers, dtype)
    values = values.copy()  # Arrow's own memory is read-only
    for row in np.flatnonzero(where & ~short).tolist():
        number = int(digits[row].as_py())
        limits = np.iinfo(dtype)
        bad[row] = not limits.min <= number <= limits.max
        if not bad[row]:
            values[row] = number
    return values, bad
