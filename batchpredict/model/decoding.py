"""From the arrays of a graph's own task to prediction, score and scores per label.

Every decoder works row by row in float64, so that a row's result does not depend on its
neighbours, and gives float32 scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchpredict.errors import ConfigInvalid

Floats = npt.NDArray[np.float64]

_LABEL = pa.string()
_LABELS = pa.list_(pa.string())
_VECTOR = pa.list_(pa.float32())


@dataclass(frozen=True)
class Decoded:
    """`prediction` and `score` [rows]; `scores` [rows, labels]; `score`, `scores` may be None.

    `finite`: bool [rows], False where the model gave no finite number. `places`: int64 [rows], of
    each prediction among the decoder's labels; None where they are not known or not one a row.
    """

    prediction: pa.Array
    score: Floats | None
    scores: Floats | None
    finite: npt.NDArray[np.bool_]
    places: npt.NDArray[np.int64] | None = None


class Decoder(Protocol):
    """One task. `fetch`: outputs it reads, in order. `kind`: type of its predictions.

    `labels`: names of its classes, in order; empty where it has none. `scored`: it has scores.
    """

    @property
    def fetch(self) -> tuple[str, ...]: ...

    @property
    def kind(self) -> pa.DataType: ...

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def scored(self) -> bool: ...

    def decode(self, tensors: Sequence[npt.NDArray[Any]]) -> Decoded: ...


def activated(values: npt.NDArray[Any], activation: str) -> Floats:
    """softmax over the last axis, sigmoid, or none; float64."""
    numbers = values.astype(np.float64)
    # NaN and infinities are found afterwards, row by row.
    with np.errstate(all="ignore"):
        if activation == "softmax":
            numbers = np.exp(numbers - numbers.max(axis=-1, keepdims=True))
            return np.asarray(numbers / numbers.sum(axis=-1, keepdims=True))
        if activation == "sigmoid":
            # exp of a negative number only: no overflow on either side.
            small = np.exp(-np.abs(numbers))
            return np.asarray(np.where(numbers >= 0, 1 / (1 + small), small / (1 + small)))
    return numbers


def _flat(name: str, tensor: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[rows] from [rows] or [rows, 1]."""
    if tensor.ndim == 2 and tensor.shape[1] == 1:
        return tensor[:, 0]
    if tensor.ndim != 1:
        raise ConfigInvalid(f"output {name}: shape {list(tensor.shape)} is not one value per row")
    return tensor


def _wide(name: str, tensor: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    if tensor.ndim != 2 or tensor.shape[1] != count:
        raise ConfigInvalid(
            f"output {name}: shape {list(tensor.shape)} is not [rows, {count}], one value per label"
        )
    return tensor


def _pick(labels: tuple[str, ...], index: npt.NDArray[np.int64]) -> pa.Array:
    return pa.array(labels, pa.string()).take(pa.array(index))


def _at(scores: Floats, index: npt.NDArray[np.int64]) -> Floats:
    return np.asarray(np.take_along_axis(scores, index[:, None], axis=1)[:, 0])


def _finite(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    finite = np.isfinite(values)
    return np.asarray(finite.all(axis=1) if finite.ndim == 2 else finite)


@dataclass(frozen=True)
class SingleLabel:
    """[rows, labels]: the label with the highest score; the first of equals.

    `threshold`: with two labels, the second one is predicted from this score on.
    """

    output: str
    labels: tuple[str, ...]
    activation: str
    threshold: float | None = None
    kind: pa.DataType = _LABEL
    scored: bool = True

    @property
    def fetch(self) -> tuple[str, ...]:
        return (self.output,)

    def decode(self, tensors: Sequence[npt.NDArray[Any]]) -> Decoded:
        raw = _wide(self.output, tensors[0], len(self.labels))
        scores = activated(raw, self.activation)
        if self.threshold is None:
            index = scores.argmax(axis=1)
        else:
            index = (scores[:, 1] >= self.threshold).astype(np.int64)
        prediction = _pick(self.labels, index)
        return Decoded(prediction, _at(scores, index), scores, _finite(scores), index)


@dataclass(frozen=True)
class OneLogit:
    """[rows] or [rows, 1]: the score of the second of two labels."""

    output: str
    labels: tuple[str, ...]
    activation: str
    threshold: float
    kind: pa.DataType = _LABEL
    scored: bool = True

    @property
    def fetch(self) -> tuple[str, ...]:
        return (self.output,)

    def decode(self, tensors: Sequence[npt.NDArray[Any]]) -> Decoded:
        positive = activated(_flat(self.output, tensors[0]), self.activation)
        index = (positive >= self.threshold).astype(np.int64)
        scores = np.stack([1 - positive, positive], axis=1)
        prediction = _pick(self.labels, index)
        return Decoded(prediction, _at(scores, index), scores, _finite(positive), index)


@dataclass(frozen=True)
class MultiLabel:
    """[rows, labels]: every label whose score reaches the threshold, in label order."""

    output: str
    labels: tuple[str, ...]
    activation: str
    threshold: float
    kind: pa.DataType = _LABELS
    scored: bool = True

    @property
    def fetch(self) -> tuple[str, ...]:
        return (self.output,)

    def decode(self, tensors: Sequence[npt.NDArray[Any]]) -> Decoded:
        raw = _wide(self.output, tensors[0], len(self.labels))
        scores = activated(raw, self.activation)
        chosen = scores >= self.threshold
        offsets = np.concatenate([[0], np.cumsum(chosen.sum(axis=1))]).astype(np.int32)
        prediction = pa.ListArray.from_arrays(
            pa.array(offsets), _pick(self.labels, np.nonzero(chosen)[1])
        )
        return Decoded(prediction, None, scores, _finite(scores))


@dataclass(frozen=True)
class Number:
    """[rows] or [rows, 1]: a regression."""

    output: str
    kind: pa.DataType
    activation: str = "none"
    labels: tuple[str, ...] = ()
    scored: bool = False

    @property
    def fetch(self) -> tuple[str, ...]:
        return (self.output,)

    def decode(self, tensors: Sequence[npt.NDArray[Any]]) -> Decoded:
        values = _flat(self.output, tensors[0])
        if self.activation != "none":
            values = activated(values, self.activation)
        return Decoded(pa.array(values).cast(self.kind), None, None, _finite(values))


@dataclass(frozen=True)
class Vector:
    """[rows, D]: an embedding, or several numbers."""

    output: str
    kind: pa.DataType = _VECTOR
    labels: tuple[str, ...] = ()
    scored: bool = False

    @property
    def fetch(self) -> tuple[str, ...]:
        return (self.output,)

    def decode(self, tensors: Sequence[npt.NDArray[Any]]) -> Decoded:
        with np.errstate(over="ignore"):
            values = np.asarray(tensors[0], np.float32)
        if values.ndim != 2:
            raise ConfigInvalid(f"output {self.output}: {values.ndim} dimensions, not [rows, D]")
        return Decoded(vectors(values), None, None, _finite(values))


def vectors(values: npt.NDArray[np.float32]) -> pa.Array:
    """[rows, D] as list<float32>."""
    rows, width = values.shape
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * width)
    return pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1)))


@dataclass(frozen=True)
class Labelled:
    """scikit-learn's pair: the predicted class [rows], and a score per class where there is one.

    `classes`: the graph's classes, as text, in the order of the scores; None where nothing says.
    `labels`: their names; empty where `classes` is None. `scores_output`: None where the graph
    gives no scores. `threshold`: with two classes, the second one is predicted from this score on.
    """

    output: str
    scores_output: str | None
    classes: tuple[str, ...] | None
    labels: tuple[str, ...]
    threshold: float | None
    activation: str = "none"
    kind: pa.DataType = _LABEL

    @property
    def scored(self) -> bool:
        return self.scores_output is not None

    @property
    def fetch(self) -> tuple[str, ...]:
        return (self.output,) if self.scores_output is None else (self.output, self.scores_output)

    def decode(self, tensors: Sequence[npt.NDArray[Any]]) -> Decoded:
        given = _texts(_flat(self.output, tensors[0]))
        index = self._index(given)
        prediction = given if index is None else _pick(self.labels, index)
        if self.scores_output is None:
            return Decoded(prediction, None, None, np.ones(len(given), np.bool_), index)
        scores = activated(tensors[1], self.activation)
        if scores.ndim == 1 or scores.shape[1] == 1:
            # A decision value alone: above 0 it speaks for the second class.
            value = _flat(self.scores_output, scores)
            if index is None or len(self.labels) != 2:
                return Decoded(prediction, value, None, _finite(value), index)
            scores = np.stack([-value, value], axis=1)
        if self.classes is not None:
            _wide(self.scores_output, scores, len(self.classes))
        if self.threshold is not None:
            index = (scores[:, 1] >= self.threshold).astype(np.int64)
            prediction = _pick(self.labels, index)
        score = scores.max(axis=1) if index is None else _at(scores, index)
        return Decoded(prediction, score, scores, _finite(scores), index)

    def _index(self, given: pa.Array) -> npt.NDArray[np.int64] | None:
        """Place of each predicted class among the scores; None where the classes are unknown."""
        if self.classes is None:
            return None
        places = pc.index_in(given, value_set=pa.array(self.classes, pa.string()))
        if places.null_count:
            unknown = given.filter(places.is_null())[0].as_py()
            raise ConfigInvalid(
                f"output {self.output}: the model predicts {unknown!r}, which is not among its"
                f" classes {list(self.classes)}; correct `labels` in batchpredict.toml"
            )
        return np.asarray(places.to_numpy(zero_copy_only=False), np.int64)


def _texts(values: npt.NDArray[Any]) -> pa.Array:
    """Class labels as text: 3 for 3, true for True; whole floats as scikit-learn names them."""
    if values.dtype == object:
        try:
            return pa.array(values, pa.string())
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # not all of them are str
            return pa.array([str(value) for value in values.tolist()], pa.string())
    if values.dtype.kind == "U":
        return pa.array(values.tolist(), pa.string())
    return pa.array(values).cast(pa.string())
