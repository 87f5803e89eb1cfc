"""Cut prepared rows into batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from batchpredict.run.receipt import Batches

Indices = npt.NDArray[np.int64]


def plan(
    candidates: Indices, lengths: npt.NDArray[np.int64] | None, rows: int, tokens: int
) -> list[Indices]:
    """Batches of the rows at `candidates`, each of them in exactly one.

    With `lengths` (padded tokens per row, of all rows): longest first, so that callers end
    together, and rows of one length only, because a score must not depend on a row's neighbours.
    At most `rows` rows and at most `tokens` padded tokens, but two rows however long (a batch of
    one is run as two, see scorer). Without: in order, `rows` rows each. The same input gives the
    same batches.
    """
    if lengths is None:
        return _cut(candidates, rows)
    ordered = candidates[np.argsort(-lengths[candidates], kind="stable")]
    borders = np.flatnonzero(np.diff(lengths[ordered])) + 1
    batches = []
    for equal in np.split(ordered, borders):
        length = max(1, int(lengths[equal[0]])) if len(equal) else 1
        batches += _cut(equal, min(rows, max(2, tokens // length)))
    return batches


def tally_of(
    batches: Sequence[Indices],
    lengths: npt.NDArray[np.int64] | None,
    tokens: npt.NDArray[np.int64] | None,
) -> Batches:
    """`lengths`, `tokens`: of all rows, with and without padding; None where rows have none."""
    rows = sum(map(len, batches))
    if lengths is None or tokens is None or not rows:
        return Batches(len(batches), rows)
    padded = sum(max(2, len(batch)) * int(lengths[batch[0]]) for batch in batches)
    return Batches(len(batches), rows, int(tokens[np.concatenate(batches)].sum()), padded)


def _cut(indices: Indices, rows: int) -> list[Indices]:
    return [indices[start : start + rows] for start in range(0, len(indices), rows)]
