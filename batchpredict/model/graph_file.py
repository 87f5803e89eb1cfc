"""What an .onnx file says of itself, read from its bytes without loading weights.

Field numbers are those of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from batchpredict.errors import ConfigInvalid, Unavailable
from batchpredict.model.protobuf import Fields, TooManyFields, Truncated, signed, text

# Tensors of this many bytes hold weights, not the names of classes.
_MOST_CLASS_BYTES = 1 << 16
_INT64 = 7

# Operators of ONNX and of onnxruntime that hold or make integers in the place of floats.
_QUANTISED = frozenset(
    {"ConvInteger", "DequantizeLinear", "GatherBlockQuantized", "MatMulBnb4", "MatMulFpQ4",
     "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits", "QAttention", "QGemm", "QMoE",
     "QEmbedLayerNormalization", "QuantizeLinear"}
)  # fmt: skip
_QUANTISED_FAMILIES = ("DynamicQuantize", "QLinear", "QOrdered")

# onnx.proto: TensorProto.DataType of weights: floats, and the integers that stand for them.
_WEIGHTS = frozenset({1, 2, 3, 10, 11, 16})
# Operators whose vector is as long as the rows they make; others' are scales of blocks.
_BIASED = frozenset({"Add", "Gemm"})

_HAND_ON = ("ArrayFeatureExtractor", "Cast", "Identity", "Reshape", "ZipMap")
# So many of them one after the other; nodes of a broken graph may go round in a loop.
_MOST_HANDS = 50

# In every tensor whose values are in another file.
_LOCATION = re.compile(b"location")
# In the place of a path onnxruntime's own marker of an address in its memory.
_ADDRESS = "_ORT_MEM_ADDR_"
# Of a name in a message.
_MOST_SHOWN = 200

_Classes = tuple[str, ...] | tuple[int, ...]


@dataclass(frozen=True)
class GraphFile:
    """Facts of one graph.

    `opsets`: (domain, version), the ONNX domain spelled "ai.onnx". `external`: locations of
    external data, relative to the file's folder. `classes`: (operator or "initializer", class
    labels in order), from classifier nodes and initializers named "classes…" (skl2onnx).
    `producers`: (output of the graph, operator that makes its values, as "Softmax" or
    "LinearClassifier:NONE" with its post_transform), operators that only hand values on left out.
    `operators`: names of all, those of subgraphs and functions too, sorted. `width`: the most
    values that a node makes of one row or token, as far as weights and n-grams tell; at least 1.
    `inputs`: names of what a caller has to feed.
    """

    opsets: tuple[tuple[str, int], ...]
    external: tuple[str, ...]
    classes: tuple[tuple[str, _Classes], ...]
    producers: tuple[tuple[str, str], ...]
    operators: tuple[str, ...]
    width: int
    inputs: tuple[str, ...]

    @property
    def quantised(self) -> tuple[str, ...]:
        """Those of its operators that show it is quantised already."""
        return tuple(
            name
            for name in self.operators
            if name in _QUANTISED or name.startswith(_QUANTISED_FAMILIES)
        )

    def producer(self, output: str) -> str:
        return dict(self.producers).get(output, "")


def read_graph_file(path: Path) -> GraphFile:
    """Raises Unavailable if it cannot be read, ConfigInvalid if it is no complete ONNX model."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
            if not start:
                raise ConfigInvalid(f"{path}: the file is empty; copy the model again")
            if start.startswith(b"version https://git-lfs"):
                raise ConfigInvalid(f"{path}: a Git LFS pointer, not the model; run `git lfs pull`")
            # Closed with its last view: an error's traceback may still hold some.
            return _read(path, memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error


def _read(path: Path, view: memoryview) -> GraphFile:
    walk = _Walk()
    try:
        walk.model(view)
    except TooManyFields:
        how = "larger than any model in use; export it again"
        raise ConfigInvalid(f"{path}: has too many nodes and values to be read, {how}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, Truncated) and walk.seen:
            how = "the copy is truncated, make it again"
            raise ConfigInvalid(f"{path}: ends before the graph does; {how}") from None
        raise ConfigInvalid(f"{path}: not an ONNX model; give an .onnx file") from None
    if not walk.graphs or not walk.opsets:
        raise ConfigInvalid(f"{path}: not an ONNX model (it holds no graph); give an .onnx file")
    for location in walk.external:
        pure = PurePosixPath(location)
        strange = "\\" in location or not location or _ADDRESS in location
        if strange or pure.is_absolute() or ".." in pure.parts:
            raise ConfigInvalid(
                f"{path}: external data at {location[:_MOST_SHOWN]!r} is outside the model's"
                " folder; save the model again with relative locations"
            )
    if "EPContext" in walk.operators:
        raise ConfigInvalid(
            f"{path}: holds a graph compiled for one device (EPContext), which reads files of its"
            " own; give the model it was made from"
        )
    return GraphFile(
        tuple(sorted(walk.opsets.items())),
        tuple(sorted(walk.external)),
        tuple(walk.classes),
        tuple((name, walk.origin(name)) for name in walk.outputs),
        tuple(sorted(walk.operators)),
        max(1, walk.width, *(walk.vectors.get(name, 1) for name in walk.biases)),
        tuple(name for name in walk.inputs if name not in walk.weights),
    )


@dataclass
class _Walk:
    """Collects while it goes down a ModelProto."""

    fields: Fields = field(default_factory=Fields)
    seen: bool = False
    graphs: int = 0
    opsets: dict[str, int] = field(default_factory=dict)
    external: set[str] = field(default_factory=set)
    classes: list[tuple[str, _Classes]] = field(default_factory=list)
    produced: dict[str, tuple[str, str]] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    operators: set[str] = field(default_factory=set)
    width: int = 0
    vectors: dict[str, int] = field(default_factory=dict)
    biases: set[str] = field(default_factory=set)
    weights: set[str] = field(default_factory=set)
    inputs: list[str] = field(default_factory=list)

    def model(self, view: memoryview) -> None:
        for number, value in self.fields.of(view):
            if number == 1 and isinstance(value, int):  # ir_version comes first
                self.seen = True
            elif number == 7 and not isinstance(value, int):
                self.graphs += 1
                self.graph(value, top=True)
            elif number == 8 and not isinstance(value, int):
                self.opset(value)
            elif number == 25 and not isinstance(value, int):  # functions
                for part, node in self.fields.messages(value, 7, 11):
                    if part == 7:
                        self.node(node)
                    else:
                        self.attribute(node)

    def opset(self, view: memoryview) -> None:
        parts = dict(self.fields.of(view))
        domain = text(parts[1]) if 1 in parts else ""
        version = parts.get(2, 0)
        if isinstance(version, int):
            self.opsets[domain or "ai.onnx"] = signed(version)

    def graph(self, view: memoryview, *, top: bool = False) -> None:
        for number, value in self.fields.messages(view, 1, 5, 11, 12, 15):
            if number == 1:
                self.node(value)
            elif number == 5:
                self.tensor(value)
            elif number == 15:
                self.sparse(value)
            elif number == 11 and top:
                self.inputs += [text(name) for _, name in self.fields.messages(value, 1)]
            elif top:
                self.outputs += [text(name) for _, name in self.fields.messages(value, 1)]

    def node(self, view: memoryview) -> None:
        operator, transform = "", ""
        inputs: list[str] = []
        outputs: list[str] = []
        classes: list[_Classes] = []
        for number, value in self.fields.messages(view, 1, 2, 4, 5):
            if number == 1:
                inputs.append(text(value))
            elif number == 2:
                outputs.append(text(value))
            elif number == 4:
                operator = text(value)
            else:
                found, transform_found = self.attribute(value)
                if transform in ("", "NONE"):
                    transform = transform_found or transform
                classes += found
        self.operators.add(operator)
        if operator in _BIASED:
            self.biases |= set(inputs)
        self.classes += [(operator, found) for found in classes]
        for name in outputs:
            made_by = f"{operator}:{transform}" if transform else operator
            self.produced[name] = (made_by, inputs[0] if inputs else "")

    def origin(self, name: str) -> str:
        """The operator that makes the values of a tensor, past those that hand them on."""
        made_by, source = self.produced.get(name, ("", ""))
        for _ in range(_MOST_HANDS):
            if made_by not in _HAND_ON:
                break
            made_by, source = self.produced.get(source, ("", ""))
        return made_by

    def attribute(self, view: memoryview) -> tuple[list[_Classes], str]:
        """Class labels and post_transform, if it is one of these attributes."""
        name, transform = "", ""
        hides: bool | None = None
        classes: list[_Classes] = []
        for number, value in self.fields.of(view):
            if number == 1:
                name = text(value)
                if name.startswith("classlabels"):
                    classes = self.class_attribute(view)
                elif name == "prob_a":  # SVMClassifier's own step from values to probabilities
                    transform = "LOGISTIC"
            elif number == 4 and name == "post_transform":
                transform = text(value)
            elif number == 8 and name == "ngram_indexes":  # a TfIdfVectorizer counts each of them
                self.width = max(self.width, 1 + max(self.fields.packed(value), default=0))
            elif number in (7, 8, 9):
                # Lists of numbers or texts: a tree ensemble has millions, and an attribute that
                # holds them holds no tensors, unless it was made to hide one.
                if hides is None:
                    hides = _LOCATION.search(view) is not None
                if not hides:
                    break
            elif not isinstance(value, int):
                self.attribute_value(number, value)
        return classes, transform

    def attribute_value(self, number: int, value: memoryview) -> None:
        if number in (5, 10):
            self.tensor(value)
        elif number in (6, 11):
            self.graph(value)
        elif number in (22, 23):
            self.sparse(value)

    def sparse(self, view: memoryview) -> None:
        for _, tensor in self.fields.messages(view, 1, 2):
            self.tensor(tensor)

    def tensor(self, view: memoryview) -> None:
        texts: list[str] = []
        numbers: list[int] = []
        dims: list[int] = []
        name, kind = "", 0
        small = len(view) < _MOST_CLASS_BYTES
        for number, value in self.fields.of(view):
            if number == 13 and not isinstance(value, int):
                entry = {key: text(item) for key, item in self.fields.of(value)}
                if entry.get(1) == "location":
                    self.external.add(entry.get(2, ""))
            elif number == 1:
                dims += self.fields.packed(value)
            elif number == 2 and isinstance(value, int):
                kind = value
            elif number == 8:
                name = text(value)
            elif small and number == 6 and not isinstance(value, int):
                texts.append(bytes(value).decode(errors="replace"))
            elif small and number == 7 and kind == _INT64:
                numbers += self.fields.packed(value)
            elif small and number == 9 and kind == _INT64 and not isinstance(value, int):
                numbers += [n for (n,) in struct.iter_unpack("<q", value[: len(value) // 8 * 8])]
        self.weight(name, kind, dims)
        if name.startswith("classes") and (texts or numbers):
            self.classes.append(("initializer", tuple(texts) if texts else tuple(numbers)))

    def weight(self, name: str, kind: int, dims: list[int]) -> None:
        self.weights.add(name)
        if kind not in _WEIGHTS or not dims:
            return
        if len(dims) == 1:
            self.vectors[name] = dims[0]
        else:
            self.width = max(self.width, dims[-1])

    def class_attribute(self, view: memoryview) -> list[_Classes]:
        texts: list[str] = []
        numbers: list[int] = []
        for number, value in self.fields.of(view):
            if number == 9:
                texts.append(text(value))
            elif number == 8:
                numbers += self.fields.packed(value)
        if texts:
            return [tuple(texts)]
        return [tuple(numbers)] if numbers else []
