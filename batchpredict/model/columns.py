"""Columns as readers hand them over, seen as texts."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_SHOWN_CHARACTERS = 40


@dataclass(frozen=True)
class JsonValues:
    """A column of JSON values: `texts`, string [rows], null where the value is null.

    A JSON string is its content, any other value its JSON text. `is_string`, `is_nested` (object
    or array), `is_broken` (a string that is no Unicode text: lone surrogates), bool [rows].
    """

    texts: pa.Array
    is_string: npt.NDArray[np.bool_]
    is_nested: npt.NDArray[np.bool_]
    is_broken: npt.NDArray[np.bool_]


def is_json(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.JsonType)


def is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def plain(column: pa.Array) -> pa.Array:
    """Dictionaries (Parquet categories) as their values; every kind of string as `string`."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.string()) if is_text(column.type) else column


def flags(mask: pa.Array) -> npt.NDArray[np.bool_]:
    """A boolean array as NumPy, null as False."""
    return np.asarray(mask.fill_null(False).to_numpy(zero_copy_only=False), np.bool_)


def json_values(column: pa.Array) -> JsonValues:
    """`column`: arrow.json."""
    texts = column.storage.cast(pa.string())
    if _are_digits(texts):
        nowhere = np.zeros(len(texts), np.bool_)
        return JsonValues(texts, nowhere, nowhere, nowhere)
    texts = pc.ascii_trim_whitespace(texts)
    first = pc.utf8_slice_codeunits(texts, 0, 1)
    is_string = pc.equal(first, '"')
    content = pc.utf8_slice_codeunits(texts, 1, -1)
    texts = pc.if_else(pc.equal(texts, "null"), pa.scalar(None, pa.string()), texts)
    texts = pc.if_else(is_string, content, texts)
    escaped = flags(pc.and_(is_string, pc.match_substring(texts, "\\")))
    is_broken = np.zeros(len(texts), np.bool_)
    if escaped.any():
        texts, is_broken = _unescaped(texts, escaped)
    nested = pc.is_in(first, value_set=pa.array(["{", "["]))
    return JsonValues(texts, flags(is_string), flags(nested), is_broken)


def _are_digits(texts: pa.Array) -> bool:
    """Whether these JSON texts are numbers without a letter but `e`, as most columns are."""
    _, offsets, data = texts.buffers()
    if not len(texts) or data is None:
        return True
    first, last = np.frombuffer(offsets, np.int32)[[texts.offset, texts.offset + len(texts)]]
    return not data[int(first) : int(last)].to_pybytes().translate(None, b"0123456789+-.eE")


def _unescaped(
    texts: pa.Array, escaped: npt.NDArray[np.bool_]
) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    is_broken = np.zeros(len(texts), np.bool_)
    contents = []
    for index in np.flatnonzero(escaped).tolist():
        content = json.loads(f'"{texts[index].as_py()}"', strict=False)
        if any("\ud800" <= character <= "\udfff" for character in content):
            is_broken[index] = True
            content = ""
        contents.append(content)
    return pc.replace_with_mask(
        texts, pa.array(escaped), pa.array(contents, pa.string())
    ), is_broken


def shown(value: object) -> str:
    """A value as it is named in a message, cut to a few characters."""
    text = str(value)
    cut = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
    return json.dumps(cut, ensure_ascii=False)
