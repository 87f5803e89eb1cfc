"""Which task a graph solves and which of its outputs is the task's own; rules in outputs.py."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from batchpredict.errors import ConfigInvalid, UsageError
from batchpredict.model.contracts import Tensor
from batchpredict.model.decoding import (
    Decoder,
    Labelled,
    MultiLabel,
    Number,
    OneLogit,
    SingleLabel,
    Vector,
)
from batchpredict.model.manifest import FILE_NAME, nearest
from batchpredict.model.package import ModelPackage
from batchpredict.model.session import Session

_FLOATS = ("float16", "float32", "float64")
_SCORES = (*_FLOATS, "sequence(map)")
_PROBLEMS = {
    "single_label_classification": "single_label",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}
# First that exists; names of Hugging Face, skl2onnx and PyTorch examples.
_OWN = ("logits", "probabilities", "output_probability", "probability", "output", "variable")
_EMBEDDINGS = ("sentence_embedding", "embedding", "embeddings", "pooled_output", "pooler_output")
_ACTIVE_NODES = ("Softmax", "Sigmoid")
# Nodes whose scores are decision values unless a post_transform makes them probabilities
# (https://github.com/onnx/onnx/blob/main/docs/Operators-ml.md).
_RAW_NODES = ("Add", "Gemm", "LinearClassifier", "LinearRegressor", "MatMul", "SVMClassifier")


@dataclass(frozen=True)
class Task:
    """A resolved task. `classes`: the order of ZipMap's scores; None where nothing says.

    `probability`: its score is one. `threshold`: None where it plays no part.
    """

    name: str
    decoder: Decoder
    activation: str
    probability: bool
    threshold: float | None = None
    classes: tuple[str, ...] | None = None


def resolve_task(package: ModelPackage, session: Session, threshold: float | None) -> Task:
    """`threshold`: the command line's. Raises UsageError, ConfigInvalid."""
    resolver = _Resolver(package, session, threshold)
    task = resolver.task()
    if task.threshold is None and threshold is not None:
        raise UsageError(
            f"--threshold: {session.graph} is a {task.name} model of {len(task.decoder.labels)}"
            " labels; a threshold is for binary and multi-label models"
        )
    if task.threshold is None and package.manifest.threshold is not None:
        raise ConfigInvalid(
            f"{package.directory / FILE_NAME}: threshold: is for binary and multi-label models,"
            f" this is a {task.name} model of {len(task.decoder.labels)} labels"
        )
    return task


@dataclass(frozen=True)
class _Resolver:
    package: ModelPackage
    session: Session
    asked_threshold: float | None

    def task(self) -> Task:
        label = self._label_output()
        if label is not None:
            return self._labelled(label)
        output = self._own_output()
        name = self._task_name(output)
        if name == "embedding":
            self._check_embedding(output)
            return Task(name, Vector(output.name), "none", False)
        if name == "regression":
            return self._regression(output)
        if name == "multi_label":
            return self._multi_label(output)
        if _width(output) == 1:
            return self._one_logit(output)
        return self._single_label(output, name)

    # --- which output

    def _wrong(self, key: str, what: str) -> ConfigInvalid:
        return ConfigInvalid(f"{self.package.directory / FILE_NAME}: {key}: {what}")

    def _named(self) -> Tensor | None:
        """The output the manifest names."""
        name = self.package.manifest.output
        if name is None:
            return None
        for tensor in self.session.outputs:
            if tensor.name == name:
                return tensor
        names = [tensor.name for tensor in self.session.outputs]
        near = nearest(name, names)
        raise self._wrong("output", f"no output {name!r}{near} (the graph has: {', '.join(names)})")

    def _label_output(self) -> Tensor | None:
        named = self._named()
        if self.package.manifest.task in ("regression", "embedding", "multi_label"):
            return None
        candidates = (named,) if named is not None else self.session.outputs
        for tensor in candidates:
            whole = tensor.dtype in ("int64", "int32", "bool")
            said = "label" in tensor.name.lower() or named is not None
            if (tensor.dtype == "string" or (whole and said)) and _width(tensor) == 1:
                return tensor
        return None

    def _own_output(self) -> Tensor:
        named = self._named()
        if named is not None:
            return named
        usable = [tensor for tensor in self.session.outputs if tensor.dtype in _SCORES]
        by_name = {tensor.name.lower(): tensor for tensor in usable}
        for name in _OWN:
            if name in by_name:
                return by_name[name]
        flat = [tensor for tensor in usable if len(tensor.shape) <= 2]
        if self.package.manifest.task == "embedding" or len(flat) > 1:
            for name in _EMBEDDINGS:
                if name in by_name:
                    return by_name[name]
        if len(flat) == 1:
            return flat[0]
        outputs = ", ".join(f"{t.name} {t.dtype} {list(t.shape)}" for t in self.session.outputs)
        if usable and not flat:
            self._check_embedding(usable[0])
        raise ConfigInvalid(
            f"{self.session.graph}: which output is the prediction? It has {outputs};"
            f" set `output` in {FILE_NAME}"
        )

    def _check_embedding(self, output: Tensor) -> None:
        if len(output.shape) > 2:
            raise ConfigInvalid(
                f"{self.session.graph}: output {output.name} {list(output.shape)} has a vector per"
                " token, not per row; export the model with its pooling"
                " (sentence-transformers, task feature-extraction)"
            )

    # --- which task

    def _task_name(self, output: Tensor) -> str:
        manifest = self.package.manifest
        if manifest.task is not None:
            return manifest.task
        if len(output.shape) > 2:
            self._check_embedding(output)
        problem = self.package.problem_type
        if problem is not None and output.dtype != "sequence(map)":
            if problem not in _PROBLEMS:
                path = self.package.directory / "config.json"
                known = ", ".join(_PROBLEMS)
                raise ConfigInvalid(f"{path}: problem_type: {problem!r} is not one of {known}")
            return _PROBLEMS[problem]
        lower = output.name.lower()
        if lower in _EMBEDDINGS or "embed" in lower:
            return "embedding"
        if _width(output) != 1:
            return "single_label"
        said = any(part in lower for part in ("logit", "prob")) or len(self._declared() or ()) == 2
        is_text = any(tensor.name == "input_ids" for tensor in self.session.inputs)
        return "binary" if is_text or said or self._is_active(output) else "regression"

    def _is_active(self, output: Tensor) -> bool:
        return self.package.graph_file.producer(output.name) in _ACTIVE_NODES

    def _activation(self, output: Tensor, usual: str) -> tuple[str, bool]:
        """The activation still to apply, and whether its result is a probability."""
        said = self.package.manifest.activation
        done = self._is_active(output) or "prob" in output.name.lower()
        if output.dtype == "sequence(map)":
            done = True
        activation = said or ("none" if done else usual)
        return activation, activation != "none" or (done and not self._is_raw(output))

    def _is_raw(self, output: Tensor) -> bool:
        """Decision values under a name that says probabilities, as skl2onnx writes LinearSVC."""
        operator, _, transform = self.package.graph_file.producer(output.name).partition(":")
        return operator in _RAW_NODES and transform in ("", "NONE")

    # --- labels

    def _declared(self) -> tuple[str, ...] | None:
        """Names from the manifest or config.json; a single one (num_labels=1) names nothing."""
        labels = self.package.labels
        return labels if labels is not None and len(labels) > 1 else None

    def _graph_classes(self, count: int | None) -> tuple[str, ...] | None:
        """The classes the graph's nodes name, if they agree; ZipMap's before others'."""
        found = self.package.graph_file.classes
        for kinds in (("ZipMap",), None):
            fitting = {
                tuple(map(str, classes))
                for operator, classes in found
                if (kinds is None or operator in kinds) and count in (None, len(classes))
            }
            if len(fitting) == 1:
                return next(iter(fitting))
        return None

    def _labels(self, output: Tensor, count: int | None) -> tuple[str, ...]:
        """Names for `count` columns of an output; the label of each column, in order."""
        declared = self._declared()
        if declared is not None:
            if count is not None and len(declared) != count:
                raise ConfigInvalid(
                    f"{self.session.graph}: output {output.name} has {count} columns,"
                    f" {len(declared)} labels are declared: {', '.join(declared)}"
                )
            return declared
        known = self._graph_classes(count)
        if known is not None:
            return known
        if count is None:
            raise ConfigInvalid(
                f"{self.session.graph}: output {output.name} does not say how many labels it has;"
                f" set `labels` in {FILE_NAME}"
            )
        return tuple(map(str, range(count)))

    def _threshold(self) -> float | None:
        asked = self.asked_threshold
        return asked if asked is not None else self.package.manifest.threshold

    # --- tasks

    def _regression(self, output: Tensor) -> Task:
        activation = self.package.manifest.activation or "none"
        if _width(output) != 1:
            return Task("regression", Vector(output.name), "none", False)
        kind = pa.float64() if output.dtype == "float64" else pa.float32()
        return Task("regression", Number(output.name, kind, activation), activation, False)

    def _multi_label(self, output: Tensor) -> Task:
        activation, probability = self._activation(output, "sigmoid")
        threshold = self._threshold()
        threshold = 0.5 if threshold is None else threshold
        labels = self._labels(output, _width(output))
        decoder = MultiLabel(output.name, labels, activation, threshold)
        return Task("multi_label", decoder, activation, probability, threshold)

    def _one_logit(self, output: Tensor) -> Task:
        activation, probability = self._activation(output, "sigmoid")
        threshold = self._threshold()
        threshold = 0.5 if threshold is None else threshold
        decoder = OneLogit(output.name, self._labels(output, 2), activation, threshold)
        return Task("binary", decoder, activation, probability, threshold)

    def _single_label(self, output: Tensor, name: str) -> Task:
        activation, probability = self._activation(output, "softmax")
        labels = self._labels(output, _width(output))
        classes = self._graph_classes(len(labels)) if output.dtype == "sequence(map)" else None
        threshold = self._threshold()
        if len(labels) != 2:
            if name == "binary":
                raise self._wrong(
                    "task", f"binary, but output {output.name} has {len(labels)} labels"
                )
            threshold = None
        elif name == "binary" and threshold is None:
            threshold = 0.5
        decoder = SingleLabel(output.name, labels, activation, threshold)
        shown = "binary" if len(labels) == 2 and name == "binary" else "single_label"
        return Task(shown, decoder, activation, probability, threshold, classes)

    def _labelled(self, label: Tensor) -> Task:
        scores = self._scores_beside(label)
        if scores is None:
            classes = self._graph_classes(None)
            decoder = Labelled(label.name, None, classes, self._names(label, classes) or (), None)
            return Task("single_label", decoder, "none", False)
        count = _width(scores) if _width(scores) != 1 else None
        classes = self._classes_of(label, count)
        names = self._names(label, classes) or ()
        threshold = self._threshold() if len(names) == 2 and _width(scores) != 1 else None
        activation = self.package.manifest.activation or "none"
        raw = self._is_raw(scores) or _width(scores) == 1
        probability = activation != "none" or (
            not raw and ("prob" in scores.name.lower() or scores.dtype == "sequence(map)")
        )
        decoder = Labelled(label.name, scores.name, classes, names, threshold, activation)
        return Task("single_label", decoder, activation, probability, threshold, classes)

    def _scores_beside(self, label: Tensor) -> Tensor | None:
        """The float output that belongs to a label output."""
        found = [
            tensor
            for tensor in self.session.outputs
            if tensor.name != label.name and tensor.dtype in _SCORES and len(tensor.shape) <= 2
        ]
        likely = [t for t in found if "prob" in t.name.lower() or t.dtype == "sequence(map)"]
        parts = ("score", "decision", "logit")
        likely += [t for t in found if any(part in t.name.lower() for part in parts)]
        if likely:
            return likely[0]
        return found[0] if len(found) == 1 else None

    def _classes_of(self, label: Tensor, count: int | None) -> tuple[str, ...] | None:
        known = self._graph_classes(count)
        if known is not None:
            return known
        if label.dtype == "string":
            return self._declared() if count in (None, len(self._declared() or ())) else None
        declared = self._declared()
        if count is None:
            count = len(declared) if declared is not None else None
        # Whole numbers of nothing known: 0, 1, …, as classifiers number them.
        return None if count is None else tuple(map(str, range(count)))

    def _names(self, label: Tensor, classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Names of `classes`: whole numbers may have others declared, texts are names."""
        declared = self._declared()
        if classes is None or declared is None or set(declared) == set(classes):
            return classes
        if len(declared) != len(classes):
            raise ConfigInvalid(
                f"{self.session.graph}: the graph has {len(classes)} classes"
                f" ({', '.join(classes)}), {len(declared)} labels are declared:"
                f" {', '.join(declared)}"
            )
        if label.dtype == "string":
            raise ConfigInvalid(
                f"{self.session.graph}: the graph's classes are {', '.join(classes)},"
                f" the declared labels {', '.join(declared)}"
            )
        return declared


def _width(tensor: Tensor) -> int | None:
    """Columns of an output; None where the graph does not say."""
    if len(tensor.shape) == 1:
        return None if tensor.dtype == "sequence(map)" else 1
    size = tensor.shape[1] if len(tensor.shape) == 2 else None
    return size if isinstance(size, int) else None
