"""How far the predictions of two models lie apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchpredict.model.decoding import Decoded
from batchpredict.ops.candidates import Candidate


@dataclass(frozen=True)
class Matched:
    """`rows` for which both have finite scores, ascending; `mine`, `theirs`: in their order."""

    rows: npt.NDArray[np.int64]
    mine: Decoded
    theirs: Decoded


@dataclass(frozen=True)
class Difference:
    """`same_prediction`: share of rows, None where predictions are no labels.

    `largest`, `mean`: absolute, over the scores of all labels, or over the numbers of a regression
    or embedding; None where the graph gives no numbers.
    """

    same_prediction: float | None
    largest: float | None
    mean: float | None


def matched(entry: Candidate, base: Candidate) -> Matched:
    """The last passes of two candidates, row by row."""
    rows, ours, theirs = np.intersect1d(
        entry.rows[entry.decoded.finite], base.rows[base.decoded.finite], return_indices=True
    )
    return Matched(rows, _at(entry.decoded, ours), _at(base.decoded, theirs))


def difference(pair: Matched) -> Difference:
    """Over all rows of the pair."""
    values, expected = _numbers(pair.mine), _numbers(pair.theirs)
    largest = mean = None
    if values is not None and expected is not None and values.size:
        apart = np.abs(values - expected)
        largest, mean = float(apart.max()), float(apart.mean())
    same = same_predictions(pair)
    share = None if same is None or not len(same) else float(same.mean())
    return Difference(share, largest, mean)


def same_predictions(pair: Matched) -> npt.NDArray[np.bool_] | None:
    """Of each row; None where predictions are numbers rather than labels."""
    ours, theirs = pair.mine.prediction, pair.theirs.prediction
    inner = ours.type.value_type if pa.types.is_list(ours.type) else ours.type
    if pa.types.is_floating(inner):
        return None
    if pa.types.is_list(ours.type):  # lists of labels, which Arrow cannot compare
        pairs = zip(ours.to_pylist(), theirs.to_pylist(), strict=True)
        return np.array([one == other for one, other in pairs], np.bool_)
    return np.asarray(pc.equal(ours, theirs).to_numpy(zero_copy_only=False), np.bool_)


def _at(decoded: Decoded, places: npt.NDArray[np.int64]) -> Decoded:
    """Its finite rows at `places`."""
    kept = np.flatnonzero(decoded.finite)[places]
    return Decoded(
        decoded.prediction.take(pa.array(kept)),
        None if decoded.score is None else decoded.score[kept],
        None if decoded.scores is None else decoded.scores[kept],
        decoded.finite[kept],
    )


def _numbers(decoded: Decoded) -> npt.NDArray[np.float64] | None:
    if decoded.scores is not None:
        return decoded.scores
    if decoded.score is not None:
        return decoded.score
    values = decoded.prediction
    if pa.types.is_list(values.type):
        values = values.flatten()
    if not pa.types.is_floating(values.type):
        return None
    return np.asarray(values.cast(pa.float64()).to_numpy(zero_copy_only=False))
