"""Cut prepared rows into batches."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def plan(
    candidates: Indices, lengths: npt.NDArray[np.int64] | None, rows: int, tokens: int
) -> list[Indices]:
    """Batches of the rows at `candidates`, each of them in exactly one.

    With `lengths` (tokens per row, of all rows): longest first, so that the last batches are
    short and callers end together; each batch holds at most `rows` rows and at most `tokens`
    padded tokens, but two rows however long (a batch of one is run as two, see scorer). Without:
    in order, `rows` rows each. The same input gives the same batches.
    """
    if lengths is None:
        return [candidates[i : i + rows] for i in range(0, len(candidates), rows)]
    ordered = candidates[np.argsort(-lengths[candidates], kind="stable")]
    batches = []
    start = 0
    while start < len(ordered):
        longest = max(1, int(lengths[ordered[start]]))
        size = min(rows, max(2, tokens // longest))
        batches.append(ordered[start : start + size])
        start += size
    return batches
