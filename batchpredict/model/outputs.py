"""Raw outputs of a graph to prediction columns: which output is the task's own, and how it reads.

What decides, first that applies:

1. The manifest's `output`, `task`, `activation`, `labels`, `threshold`.
2. An output of class labels (text, or whole numbers and "label" in its name, as skl2onnx and
   onnxmltools write) is the prediction; the floats or ZipMap beside it are its scores, taken as
   they are. ZipMap alone is the prediction of its highest score.
3. The output named `logits`, else `probabilities` and the like, else the only one of floats
   that has one or two dimensions, is the task's own. Other outputs come with `--outputs`.
4. Task: `problem_type` of config.json; an output named as an embedding is one; one column of a
   text model, or named logit or prob, is binary, one column of any other is a regression;
   several columns are single label.
5. Activation: none if the output's name holds "prob" or its node is a Softmax or Sigmoid;
   else softmax for single label, sigmoid for binary in one column and for multi-label.
6. Labels: manifest, `id2label`, the graph's own classes (ZipMap, classifier nodes), "0", "1", ….
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchpredict.errors import ConfigInvalid, UsageError
from batchpredict.model.contracts import Fault, Tensor
from batchpredict.model.decoding import Decoder, vectors
from batchpredict.model.manifest import nearest
from batchpredict.model.package import ModelPackage
from batchpredict.model.session import Session
from batchpredict.model.tasks import resolve_task

_ARROW = {"float16": "float32", "float32": "float32", "float64": "float64", "bool": "bool",
          "string": "string"}  # fmt: skip


@dataclass(frozen=True)
class HeadOptions:
    """`scores`: "top", "all" or "none". `threshold`: None leaves it to the model.

    `outputs`: further outputs of the graph. `prefix`: put before every column's name.
    """

    scores: str = "top"
    threshold: float | None = None
    outputs: tuple[str, ...] = ()
    prefix: str = ""


@dataclass(frozen=True)
class TaskHead:
    """Prediction columns of one task, then the further outputs asked for.

    `task`, `labels`, `activation`, `threshold` (None where it plays no part): as resolved, for
    inspect. `classes`: keys of ZipMap's maps by output, in the order of the columns made of them.
    """

    task: str
    decoder: Decoder
    activation: str
    threshold: float | None
    score_is_probability: bool
    options: HeadOptions
    extras: tuple[Tensor, ...]
    classes: tuple[str, ...] | None

    @property
    def labels(self) -> tuple[str, ...]:
        return self.decoder.labels

    @property
    def fetch(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.decoder.fetch, *(tensor.name for tensor in self.extras))))

    @property
    def schema(self) -> pa.Schema:
        prefix = self.options.prefix
        fields = [pa.field(f"{prefix}prediction", self.decoder.kind)]
        if self._has_score:
            fields.append(pa.field(f"{prefix}score", pa.float32()))
        if self._has_scores:
            fields += [pa.field(f"{prefix}score_{label}", pa.float32()) for label in self.labels]
        fields += [pa.field(prefix + tensor.name, _extra_kind(tensor)) for tensor in self.extras]
        return pa.schema(fields)

    @property
    def _has_score(self) -> bool:
        return self.decoder.scored and self.options.scores != "none" and self.task != "multi_label"

    @property
    def _has_scores(self) -> bool:
        return self.decoder.scored and self.options.scores == "all"

    def tensors(self, raw: Sequence[Any], rows: int) -> list[npt.NDArray[Any]]:
        """One array per fetched output, first dimension `rows`. Raises ConfigInvalid if not."""
        arrays = []
        for name, value in zip(self.fetch, raw, strict=True):
            array = self._maps(value) if isinstance(value, list) else np.asarray(value)
            if array.ndim == 0 or array.shape[0] != rows:
                raise ConfigInvalid(
                    f"output {name}: shape {list(array.shape)} for {rows} rows;"
                    " export the model with a dynamic batch axis on its outputs"
                )
            arrays.append(array)
        return arrays

    def _maps(self, maps: list[dict[Any, float]]) -> npt.NDArray[Any]:
        """ZipMap's list of {class: score} as [rows, classes]."""
        keys = list(maps[0]) if maps else []
        # int keys come as int, and as text in `classes`.
        by_text = {str(key): key for key in keys}
        order = [by_text[name] for name in self.classes or sorted(by_text) if name in by_text]
        if len(order) != len(keys) or (self.classes and len(self.classes) != len(keys)):
            raise ConfigInvalid(
                f"the model's classes are {list(by_text)}, not {list(self.classes or ())}"
            )
        table = [[row[key] for key in order] for row in maps]
        return np.asarray(table, np.float32).reshape(len(maps), len(order))

    def columns(
        self, tensors: Sequence[npt.NDArray[Any]]
    ) -> tuple[pa.RecordBatch, tuple[Fault, ...]]:
        """Columns of `schema`; null in the task's own columns of rows that have a fault."""
        return self.decoded(tensors)[:2]

    def decoded(
        self, tensors: Sequence[npt.NDArray[Any]]
    ) -> tuple[pa.RecordBatch, tuple[Fault, ...], npt.NDArray[np.int64] | None]:
        """`columns`, and the places of the predictions among `labels`, as in Decoded."""
        by_name = dict(zip(self.fetch, tensors, strict=True))
        decoded = self.decoder.decode([by_name[name] for name in self.decoder.fetch])
        arrays = [decoded.prediction]
        if self._has_score and decoded.score is not None:
            arrays.append(_float32(decoded.score))
        if self._has_scores and decoded.scores is not None:
            # Transposed copies: a column of a [rows, labels] array is not contiguous.
            arrays += [_float32(column) for column in decoded.scores.T.copy()]
        bad = np.flatnonzero(~decoded.finite)
        if len(bad):
            finite = pa.array(decoded.finite)
            arrays = [_nulled(array, finite) for array in arrays]
        arrays += [_extra(tensor, by_name[tensor.name]) for tensor in self.extras]
        faults = tuple(
            Fault(row, "not_finite", "the model's score is not a finite number")
            for row in bad.tolist()
        )
        added = pa.RecordBatch.from_arrays(arrays, schema=self.schema)
        return added, faults, decoded.places


def resolve_head(package: ModelPackage, session: Session, options: HeadOptions) -> TaskHead:
    """Raises UsageError (an option that has no meaning here), ConfigInvalid (the model)."""
    task = resolve_task(package, session, options.threshold)
    names = [tensor.name for tensor in session.outputs]
    by_name = {tensor.name: tensor for tensor in session.outputs}
    extras = []
    for name in dict.fromkeys(options.outputs):
        if name not in by_name:
            raise UsageError(
                f"--outputs {name}: the model has no such output{nearest(name, names)}"
                f" (it has: {', '.join(names)})"
            )
        _check_extra(session, by_name[name])
        extras.append(by_name[name])
    if options.scores == "all" and task.decoder.scored and not task.decoder.labels:
        raise ConfigInvalid(
            f"{session.graph}: --scores all needs the names of the classes, which the graph does"
            " not give; set `labels` in batchpredict.toml"
        )
    head = TaskHead(
        task.name,
        task.decoder,
        task.activation,
        task.threshold,
        task.probability,
        options,
        tuple(extras),
        task.classes,
    )
    added = head.schema.names
    if twice := sorted({name for name in added if added.count(name) > 1}):
        raise ConfigInvalid(f"{session.graph}: two added columns would be named {', '.join(twice)}")
    return head


def _check_extra(session: Session, tensor: Tensor) -> None:
    if tensor.dtype != "sequence(map)" and (
        len(tensor.shape) > 2 or _wide_text(tensor) or tensor.dtype.startswith(("seq", "opt"))
    ):
        raise UsageError(
            f"--outputs {tensor.name}: {tensor.dtype} {list(tensor.shape)} of {session.graph} is"
            " neither a number or text per row nor a vector of numbers"
        )


def _wide_text(tensor: Tensor) -> bool:
    return tensor.dtype == "string" and _is_vector(tensor)


def _is_vector(tensor: Tensor) -> bool:
    return tensor.dtype == "sequence(map)" or (len(tensor.shape) == 2 and tensor.shape[1] != 1)


def _extra_kind(tensor: Tensor) -> pa.DataType:
    if _is_vector(tensor):
        return pa.list_(pa.float32())
    return pa.type_for_alias(_ARROW.get(tensor.dtype, tensor.dtype))


def _extra(tensor: Tensor, values: npt.NDArray[Any]) -> pa.Array:
    if _is_vector(tensor):
        with np.errstate(over="ignore"):
            return vectors(np.asarray(values, np.float32))
    flat = values[:, 0] if values.ndim == 2 else values
    if flat.dtype == object or flat.dtype.kind == "U":
        return pa.array([str(value) for value in flat.tolist()], pa.string())
    return pa.array(np.ascontiguousarray(flat)).cast(_extra_kind(tensor))


def _float32(values: npt.NDArray[np.float64]) -> pa.Array:
    with np.errstate(over="ignore"):
        return pa.array(values.astype(np.float32))


def _nulled(array: pa.Array, keep: pa.Array) -> pa.Array:
    if pa.types.is_list(array.type):
        # if_else knows no lists in older Arrow.
        index = pc.if_else(keep, pa.array(np.arange(len(array))), pa.scalar(None, pa.int64()))
        return array.take(index)
    return pc.if_else(keep, array, pa.scalar(None, array.type))
