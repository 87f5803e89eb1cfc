"""One bit for each byte of a block: what is looked for in text costs the same however often it is.

Bits of a block are uint64 words, the first byte's is the lowest of the first word. At least one
bit follows those of the block's bytes.
"""

from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.uint64]
Int64s = npt.NDArray[np.int64]

_ONE, _HIGHEST = np.uint64(1), np.uint64(63)
_STEPS = [np.uint64(step) for step in (1, 2, 4, 8, 16, 32)]


def bits_of(flags: npt.NDArray[np.bool_]) -> Bits:
    """`flags`: one per byte."""
    packed = np.packbits(flags, bitorder="little")
    padded = np.zeros((len(flags) // 64 + 1) * 8, np.uint8)
    padded[: len(packed)] = packed
    bits: Bits = padded.view("<u8")
    return bits if sys.byteorder == "little" else bits.astype(np.uint64)


def with_bit(bits: Bits, place: int) -> Bits:
    """A copy that has this bit as well."""
    added = bits.copy()
    added[place // 64] |= _ONE << np.uint64(place % 64)
    return added


def up_to(bits: Bits, place: int) -> Bits:
    """A copy without the bits from this one on."""
    kept = bits.copy()
    kept[place // 64] &= (_ONE << np.uint64(place % 64)) - _ONE
    kept[place // 64 + 1 :] = 0
    return kept


def behind(bits: Bits, first: bool) -> Bits:
    """For each byte what the byte before it has; `first`: what is before the block."""
    moved = bits << _ONE
    moved[1:] |= bits[:-1] >> _HIGHEST
    if first:
        moved[0] |= _ONE
    return moved


def ahead(bits: Bits) -> Bits:
    """For each byte what the byte behind it has."""
    moved = bits >> _ONE
    moved[:-1] |= bits[1:] << _HIGHEST
    return moved


def odd_so_far(bits: Bits) -> Bits:
    """Whether the number of bits up to a byte, and with it, is odd."""
    odd = bits.copy()
    for step in _STEPS:
        odd ^= odd << step
    words = np.bitwise_xor.accumulate(odd >> _HIGHEST)
    odd[1:] ^= np.uint64(0) - words[:-1]
    return odd


def count(bits: Bits) -> int:
    return int(np.bitwise_count(bits).sum())


def places(bits: Bits) -> Int64s:
    """Where the bits are, ascending."""
    little = bits if sys.byteorder == "little" else bits.astype("<u8")
    return np.flatnonzero(np.unpackbits(little.view(np.uint8), bitorder="little"))


def last_place(bits: Bits) -> int:
    """Where the last bit is; -1 where there is none."""
    words = np.flatnonzero(bits)
    return int(words[-1]) * 64 + int(bits[words[-1]]).bit_length() - 1 if len(words) else -1
