"""What a model is fed with, counted in a sample of the rows; profile.py says which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batchpredict.model.contracts import Encoder, Prepared
from batchpredict.run.profile import (
    BLOCK_ROWS,
    LOG_LIMIT,
    MOST_COLUMNS,
    SAMPLE,
    Column,
    parts_of_sum,
)

Numbers = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint32]

# Multiples of the golden ratio's fraction spread evenly over every period, so that none in the
# input meets the sample's.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# Whose rows' numbers are kept at a time.
_GROUPS = 64
# Of inputs that are looked at together.
_BLOCK_VALUES = 1 << 16
# Bins that are kept before those of the same values are added up.
_MOST_BINS = 1 << 15
# A float32 is its bin's leading bits, the lowest of which are at _LOW_BITS, and what is below.
_LOW_BITS = np.uint32(21)
_BELOW = np.uint32((1 << 21) - 1)
_WIDTH = 1 << 11
_NEGATIVE = _WIDTH >> 1


@dataclass(frozen=True)
class _Bins:
    """By bin, the bins of a column one after the other: an array each.

    `ids`: place of the column times _WIDTH, and the leading bits of the values. `rows` and `lows`,
    the sum of the bits below: with their weights. `least`, `most`: bits of the values that are
    nearest to 0 and farthest from it.
    """

    ids: Numbers
    rows: Numbers
    lows: Numbers
    least: Bits
    most: Bits


class InputProfile:
    """Counts by column and bin, and sums of the bits below a bin's border, which together give the
    exact sum of the values, in whatever order they come.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._sample = _Sample()
        self._units: dict[str, str] = {}
        self._block: list[npt.NDArray[np.float32]] = []
        self._filled, self._weight = 0, 1
        self._bins: list[_Bins] = []
        self.sampled = self.squares = 0

    def add(self, numbers: Numbers, prepared: Prepared, indices: Numbers) -> None:
        """`numbers`: of the rows at `indices`, in the input, ascending; at least one."""
        first, last = int(numbers[0]), int(numbers[-1])
        for begin, end, weight in SAMPLE:
            if first <= end and last > begin:
                self._take(
                    prepared, indices[self._sample.among(numbers, begin, end, weight)], weight
                )

    def _take(self, prepared: Prepared, rows: Numbers, weight: int) -> None:
        if not len(rows):
            return
        self.sampled += len(rows)
        self.squares += len(rows) * weight**2
        if weight != self._weight or self._filled >= _BLOCK_VALUES:
            self._count()
            self._weight = weight
        measured = self._encoder.measured(prepared, rows, MOST_COLUMNS)
        self._units = measured.units
        self._block.append(measured.values)
        self._filled += measured.values.size

    def _count(self) -> None:
        """Empty the block."""
        if self._filled:
            self._bins.append(_binned(np.concatenate(self._block, axis=1), self._weight))
            self._block, self._filled = [], 0
        if len(self._bins) > 1 and sum(len(bins.ids) for bins in self._bins) > _MOST_BINS:
            self._bins = [_added_up(self._bins)]

    def columns(self) -> dict[str, Column]:
        """By name, in the encoder's order."""
        self._count()
        if not self._bins:
            return {}
        if len(self._bins) > 1:
            self._bins = [_added_up(self._bins)]
        (bins,) = self._bins
        ends = np.searchsorted(bins.ids, np.arange(1, len(self._units) + 1) * _WIDTH).tolist()
        found, begin = {}, 0
        counted = list(_told(bins))
        for (name, unit), end in zip(self._units.items(), ends, strict=True):
            found[name] = _column(unit, counted[begin:end])
            begin = end
        return found


class _Sample:
    """Which rows of the input are looked at.

    Their numbers are kept for many blocks, as by the next window the caches have forgotten all
    that it takes to find them.
    """

    def __init__(self) -> None:
        self._stretch = (0, 0)
        self._numbers = np.empty(0, np.int64)

    def among(self, numbers: Numbers, begin: int, end: int, weight: int) -> Numbers | slice:
        """Of the rows above `begin`, up to `end`, those that one in `weight` is: places among
        `numbers`.
        """
        first, last = int(numbers[0]), int(numbers[-1])
        if weight == 1:
            if first > begin and last <= end:
                return slice(None)
            return slice(*numbers.searchsorted((begin, end), "right").tolist())
        wanted = self._between(max(first, begin + 1), min(last, end), weight)
        if last - first + 1 == len(numbers):  # no row is left out
            return wanted - first
        places = np.minimum(np.searchsorted(numbers, wanted), len(numbers) - 1)
        return np.asarray(places[numbers[places] == wanted])

    def _between(self, first: int, last: int, weight: int) -> Numbers:
        rows = BLOCK_ROWS * weight * _GROUPS
        parts = []
        for number in range((first - 1) // rows, (last - 1) // rows + 1):
            if self._stretch != (weight, number):
                self._stretch, self._numbers = (weight, number), _stretch(weight, number)
            begin, end = self._numbers.searchsorted((first, last + 1)).tolist()
            parts.append(self._numbers[begin:end])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _stretch(weight: int, number: int) -> Numbers:
    """Rows of one block in each of _GROUPS groups of `weight`."""
    groups = np.arange(number * _GROUPS, (number + 1) * _GROUPS)
    within = (groups.view(np.uint64) * _GOLDEN >> np.uint64(32)) * np.uint64(weight)
    blocks = groups * weight + (within >> np.uint64(32)).view(np.int64)
    return (blocks[:, None] * BLOCK_ROWS + np.arange(1, BLOCK_ROWS + 1)).ravel()


def _binned(values: npt.NDArray[np.float32], weight: int) -> _Bins:
    """`values`: [columns, rows]; they are overwritten."""
    bits = values.view(np.uint32)
    bits.sort(axis=1)
    keys = bits >> _LOW_BITS
    begins = np.empty(bits.shape, bool)
    begins[:, 0] = True
    np.not_equal(keys[:, 1:], keys[:, :-1], out=begins[:, 1:])
    at = np.flatnonzero(begins)
    ends = np.append(at[1:], bits.size)
    rows = ends - at
    bits = bits.ravel()
    return _Bins(
        at // values.shape[1] * _WIDTH + keys.ravel()[at],
        rows * weight,
        np.add.reduceat(bits & _BELOW, at, dtype=np.int64) * weight,
        bits[at],
        bits[ends - 1],
    )


def _added_up(parts: Sequence[_Bins]) -> _Bins:
    ids = np.concatenate([part.ids for part in parts])
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    at = np.flatnonzero(np.diff(ids, prepend=-1))
    return _Bins(
        ids[at],
        np.add.reduceat(np.concatenate([part.rows for part in parts])[order], at),
        np.add.reduceat(np.concatenate([part.lows for part in parts])[order], at),
        np.minimum.reduceat(np.concatenate([part.least for part in parts])[order], at),
        np.maximum.reduceat(np.concatenate([part.most for part in parts])[order], at),
    )


# Key in the scale `log`, rows, part of the sum, least and most value.
_Told = tuple[int, int, int, float, float]


def _told(bins: _Bins) -> Iterator[_Told]:
    leading = bins.ids & (_WIDTH - 1)
    keys = np.where(leading < _NEGATIVE, leading, _NEGATIVE - leading)
    # Around 0 is one bin, in which negative values are below its border.
    lows = np.where(leading == _NEGATIVE, -bins.lows, bins.lows)
    near, far = bins.least.view(np.float32), bins.most.view(np.float32)
    return zip(
        keys.tolist(),
        bins.rows.tolist(),
        parts_of_sum(keys, bins.rows, lows),
        near.tolist(),
        far.tolist(),
        strict=True,
    )


def _column(unit: str, bins: Sequence[_Told]) -> Column:
    histogram: dict[int, int] = {}
    nulls = total = 0
    finite: list[float] = []
    for key, rows, part, near, far in bins:
        if -LOG_LIMIT < key < LOG_LIMIT:
            total += part
            finite += (near, far)
        elif abs(key) > LOG_LIMIT:
            nulls += rows
            continue
        histogram[key] = histogram.get(key, 0) + rows
    return Column(
        unit,
        nulls,
        # Of zeros the one without a sign, whichever came first.
        min(finite) + 0.0 if finite else None,
        max(finite) + 0.0 if finite else None,
        total,
        histogram,
    )
