"""Rows for which a variant of a model does not say what the model says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchpredict.model.decoding import Decoded
from batchpredict.ops.candidates import Candidate
from batchpredict.ops.differences import Matched, matched, same_predictions

TOLERANCE = 0.01


@dataclass(frozen=True)
class Changed:
    """A row for which the two do not agree; `row`: its number in the sample, from 1.

    None: of a score where the graph gives none, of labels and numbers where there are vectors, of
    `new` where the variant gave no finite score. `cosine`: of two vectors.
    """

    row: int
    old: str | float | list[str] | None
    old_score: float | None
    new: str | float | list[str] | None
    new_score: float | None
    cosine: float | None = None


def changed_rows(entry: Candidate, base: Candidate) -> list[Changed]:
    """Rows that `base` scored and for which `entry` does not agree, in their order.

    Labels have to be the same. A number may move by TOLERANCE of itself, or of the standard
    deviation of all that `base` gave; the cosine of two embeddings is at least 1 - TOLERANCE.
    """
    pair = matched(entry, base)
    agreeing, cosines = _agreeing(base, pair)
    found = []
    for at in np.flatnonzero(~agreeing).tolist():
        old, old_score = _said(pair.theirs, at, cosines)
        new, new_score = _said(pair.mine, at, cosines)
        cosine = None if cosines is None else float(cosines[at])
        found.append(Changed(int(pair.rows[at]), old, old_score, new, new_score, cosine))
    finite = np.flatnonzero(base.decoded.finite)
    lost = finite[~np.isin(base.rows[finite], pair.rows)].tolist()
    found += [
        Changed(int(base.rows[at]), *_said(base.decoded, at, cosines), None, None) for at in lost
    ]
    return sorted(found, key=lambda changed: changed.row)


def _agreeing(
    base: Candidate, pair: Matched
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64] | None]:
    """Of each row of the pair, and the cosines of embeddings."""
    same = same_predictions(pair)
    if same is not None:
        return same, None
    new, old = _numbers(pair.mine), _numbers(pair.theirs)
    if base.scorer.head.task == "embedding":
        lengths = np.linalg.norm(new, axis=1) * np.linalg.norm(old, axis=1)
        cosines = np.ones(len(old))
        np.divide((new * old).sum(axis=1), lengths, out=cosines, where=lengths > 0)
        return cosines >= 1 - TOLERANCE, cosines
    least = old.std(axis=0, keepdims=True) if len(old) else 0.0
    near = np.abs(new - old) <= TOLERANCE * np.maximum(np.abs(old), least)
    return np.asarray(near.all(axis=1)), None


def _numbers(decoded: Decoded) -> npt.NDArray[np.float64]:
    """Predictions that are numbers or vectors, as [rows, numbers]."""
    values = decoded.prediction
    flat = values.flatten() if pa.types.is_list(values.type) else values
    array = np.asarray(flat.cast(pa.float64()).to_numpy(zero_copy_only=False))
    return array.reshape(len(values), -1) if len(values) else array.reshape(0, 1)


def _said(
    decoded: Decoded, at: int, cosines: npt.NDArray[np.float64] | None
) -> tuple[str | float | list[str] | None, float | None]:
    """A row's prediction and score."""
    value = None if cosines is not None else decoded.prediction[at].as_py()
    return value, None if decoded.score is None else float(decoded.score[at])
