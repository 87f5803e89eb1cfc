"""Rows with the same model input: which row is inferred for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]

# Odd, so that no bit of a key is lost; from NumPy's own generator, the same in every run.
_MULTIPLIERS = np.random.default_rng(0).integers(1 << 62, 1 << 63, 64, np.uint64) | np.uint64(1)


def first_equal(keys: Sequence[npt.NDArray[np.unsignedinteger]]) -> Rows:
    """For each row the first row that every key says is equal; itself where there is none.

    `keys`: arrays [rows] of bits, by which rows are equal or not; at least one.
    """
    rows = len(keys[0])
    digests = np.zeros(rows, np.uint64)
    for number, key in enumerate(keys):
        # Doubles of small whole numbers end in zeros, which multiplying keeps.
        mixed = key ^ (key >> np.uint64(32)) if key.itemsize == 8 else key
        digests += mixed * _MULTIPLIERS[number % len(_MULTIPLIERS)]
        if number >= len(_MULTIPLIERS):
            digests ^= digests >> np.uint64(29)
    first = np.arange(rows)
    ordered = np.sort(digests)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(repeated):
        return first
    # Most windows have few such rows, and only these are grouped.
    repeated = np.unique(repeated)
    groups = np.minimum(np.searchsorted(repeated, digests), len(repeated) - 1)
    candidates = np.flatnonzero(repeated[groups] == digests)
    leaders = np.full(len(repeated), rows)
    np.minimum.at(leaders, groups[candidates], candidates)
    first[candidates] = leaders[groups[candidates]]
    later = candidates[first[candidates] != candidates]
    # Different rows may have one digest; then the later one is a row of its own.
    same = np.ones(len(later), bool)
    for key in keys:
        same &= key[later] == key[first[later]]
    first[later[~same]] = later[~same]
    return first


def first_seen(rows: Rows, keys: Iterable[object], total: int) -> Rows:
    """The same for hashable keys of the rows numbered `rows`, of `total`."""
    first = np.arange(total)
    seen: dict[object, int] = {}
    first[rows] = [seen.setdefault(key, row) for row, key in zip(rows.tolist(), keys, strict=True)]
    return first
