"""Which stretches of bytes are a number, true, false or null as JSON spells them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
_Words = npt.NDArray[np.uint64]

# What the standard library's scanner takes.
_SCALAR = r"\A(?:-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|NaN|-?Infinity)\z"
# Longer ones are left to those who look at records one by one.
_LONGEST = 64

_EIGHT, _BYTE = np.uint64(8), np.uint64(0xFF)
_MINUS, _ZERO = np.uint64(ord("-")), np.uint64(ord("0"))
_ZEROS = np.uint64(0x3030303030303030)
_TO_HIGH_BIT = np.uint64(0x7676767676767676)
# The high bits of the first bytes of a word, by their number.
_HIGH_BITS = np.array([int.from_bytes(b"\x80" * n, "little") for n in range(9)], np.uint64)
_NULL, _TRUE, _FALSE = (
    np.uint64(int.from_bytes(word, "little")) for word in (b"null", b"true", b"false")
)
_FOUR_BYTES, _FIVE_BYTES = np.uint64((1 << 32) - 1), np.uint64((1 << 40) - 1)


def are_scalars(data: npt.NDArray[np.uint8], starts: Int64s, ends: Int64s) -> Mask:
    """Which of `data[start:end]` are; False may also be said of very long numbers.

    `data` goes on for 8 bytes behind each start.
    """
    words = np.ndarray(len(data) - 7, "<u8", data, strides=(1,))[starts]
    lengths = ends - starts
    valid = _short_integers(words, lengths)
    rest = np.flatnonzero(~valid)
    if len(rest):
        valid[rest] = _constants(words[rest], lengths[rest])
        rest = rest[~valid[rest]]
    if len(rest):
        readable = (lengths[rest] > 0) & (lengths[rest] <= _LONGEST)
        rest = rest[readable]
        valid[rest] = _spelled(data, starts[rest], ends[rest])
    return valid


def _short_integers(words: _Words, lengths: Int64s) -> Mask:
    """Up to eight bytes, the sign among them: all digits of a word looked at together."""
    short = (lengths - 1).view(np.uint64) < _EIGHT  # below zero it is huge
    first = words & _BYTE
    negative = first == _MINUS
    if negative.any():
        words = words >> (negative.astype(np.uint64) << np.uint64(3))
        lengths = lengths - negative
        first = words & _BYTE
        short &= lengths > 0
    leading_zero = (first == _ZERO) & (lengths > 1)
    # A byte of a digit is now 0 to 9; any other has its high bit here, or gets it below.
    values = words ^ _ZEROS
    others = (values | (values + _TO_HIGH_BIT)) & _HIGH_BITS.take(lengths, mode="clip")
    valid: Mask = (others == 0) & ~leading_zero & short
    return valid


def _constants(words: _Words, lengths: Int64s) -> Mask:
    four = words & _FOUR_BYTES
    is_four = (lengths == 4) & ((four == _NULL) | (four == _TRUE))
    valid: Mask = is_four | ((lengths == 5) & ((words & _FIVE_BYTES) == _FALSE))
    return valid


def _spelled(data: npt.NDArray[np.uint8], starts: Int64s, ends: Int64s) -> Mask:
    order = np.argsort(starts, kind="stable")
    texts = texts_between(pa.py_buffer(data), starts[order], ends[order], pa.binary())
    valid = np.empty(len(starts), np.bool_)
    valid[order] = pc.match_substring_regex(texts, _SCALAR).to_numpy(zero_copy_only=False)
    return valid


def texts_between(
    data: pa.Buffer, starts: Int64s, ends: Int64s, kind: pa.DataType, null: Mask | None = None
) -> pa.Array:
    """`data[start:end]` for stretches that follow each other, None where `null` says so."""
    if not len(starts):
        return pa.array([], kind)
    # Every second value is what lies between two of them.
    offsets = np.empty((len(starts), 2), np.int32)
    offsets[:, 0], offsets[:, 1] = starts, ends
    buffers = [None, pa.py_buffer(offsets), data]
    both = pa.Array.from_buffers(kind, offsets.size - 1, buffers)
    return both.take(pa.array(np.arange(0, offsets.size, 2), mask=null))
