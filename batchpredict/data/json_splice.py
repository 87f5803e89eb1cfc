"""Members added to JSON Lines, whole columns at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from batchpredict.data import conversion
from batchpredict.data.arrow_types import is_string, values_of
from batchpredict.data.json_numbers import Int64s
from batchpredict.data.jsontext import BLANK

_Bytes = npt.NDArray[np.uint8]

# Arrow addresses a column's bytes with 31 bits; windows are far smaller but for huge records.
_LARGEST = 1 << 28
# With the members added; one Arrow array of bytes holds less than 2 GiB.
_LARGEST_JOINED = 1 << 30
# White space at the end of a record, or before its closing brace, that is stepped over.
_MOST_BLANKS = 8

_IS_BLANK = np.zeros(256, np.bool_)
_IS_BLANK[list(BLANK.encode())] = True


def json_texts(array: pa.Array) -> pa.Array:
    """As `conversion.as_json`, as a column (`string`)."""
    array = values_of(array)
    kind = array.type
    if pt.is_integer(kind) or pt.is_boolean(kind):
        texts = array.cast(pa.string())
    elif pt.is_floating(kind) and not pt.is_float16(kind):
        finite = pc.all(pc.is_finite(array)).as_py() is not False
        texts = array.cast(pa.string()) if finite else _one_by_one(array)
    elif is_string(kind) and _spells_itself(array := array.cast(pa.string())):
        texts = pc.binary_join_element_wise('"', array, '"', "")
    else:
        texts = _one_by_one(array)
    return texts.fill_null("null")


def _one_by_one(array: pa.Array) -> pa.StringArray:
    return pa.array(conversion.as_json(array), pa.string())


def _spells_itself(array: pa.StringArray) -> bool:
    """Whether nothing in these strings is escaped in JSON."""
    data = _bytes_of(array)[1]
    return not ((data < ord(" ")) | (data == ord('"')) | (data == ord("\\"))).any()


def _bytes_of(array: pa.Array) -> tuple[Int64s, _Bytes]:
    """Offsets [rows + 1] of a binary or string array into the bytes that follow, and these."""
    _, offsets, data = array.buffers()
    borders = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
    if data is None:
        return borders.astype(np.int64), np.empty(0, np.uint8)
    size = int(borders[-1] - borders[0])
    return borders.astype(np.int64) - borders[0], np.frombuffer(
        data, np.uint8, size, int(borders[0])
    )


def spliced(
    raw: pa.Array, names: Sequence[str], columns: Sequence[pa.Array]
) -> list[memoryview] | None:
    """The lines of `raw` with members added to each record; None where one needs more care:
    an empty object, more white space than usual, a line that is not the last without its end.

    `raw`: binary, records with their line ends. `names`: one or more.
    """
    if not len(raw) or raw.nbytes > _LARGEST:
        return None
    borders, data = _bytes_of(raw)
    at = _insertion_points(data, borders)
    if at is None:
        return None
    keys = [f", {json.dumps(name, ensure_ascii=False)}: ".encode() for name in names]
    texts = [json_texts(column) for column in columns]
    size = raw.nbytes + len(raw) * sum(map(len, keys)) + sum(text.nbytes for text in texts)
    # Arrow makes chunks of texts that one array cannot hold.
    if size > _LARGEST_JOINED or any(isinstance(text, pa.ChunkedArray) for text in texts):
        return None
    # Each stretch is the end of one record and the beginning of the next; they need no copy.
    begins = np.concatenate((borders[:1], at)).astype(np.int32)
    stretches = pa.Array.from_buffers(
        pa.binary(), len(raw), [None, pa.py_buffer(begins), pa.py_buffer(data)]
    )
    parts: list[pa.Array | bytes] = [stretches]
    for key, text in zip(keys, texts, strict=True):
        parts += [key, text.cast(pa.binary())]
    lines = _bytes_of(pc.binary_join_element_wise(*parts, b""))[1]
    return [lines.data, data[at[-1] :].data]


def _insertion_points(data: _Bytes, borders: Int64s) -> Int64s | None:
    """Where in each record the last member's value ends."""
    if (data[borders[1:-1] - 1] != ord("\n")).any():
        return None
    at = _without_blanks(data, borders[1:])
    if (data[at - 1] != ord("}")).any():
        return None
    at = _without_blanks(data, at - 1)
    before = data[at - 1]
    return None if (_IS_BLANK[before] | (before == ord("{"))).any() else at


def _without_blanks(data: _Bytes, ends: Int64s) -> Int64s:
    for _ in range(_MOST_BLANKS):
        blank = _IS_BLANK[data[ends - 1]]
        if not blank.any():
            break
        ends = ends - blank
    return ends
