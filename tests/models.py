"""Tiny ONNX graphs and tokenizers for the tests, written into a folder of the caller's.

Text graphs look each token up in a table of one row per id and sum the rows of real tokens, so
that what a text scores can be told by hand: the score of class k of a text is the number of its
tokens that weigh on k.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

OPSETS = (("", 17), ("ai.onnx.ml", 3))
WORDS = ("good", "bad", "fine", "poor", "so", "very", "query", ":")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
VOCABULARY = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
PAD, UNK, CLS, SEP = range(4)

TYPES = {
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64,
    "bool": TensorProto.BOOL,
    "string": TensorProto.STRING,
}

Shape = Sequence[int | str | None]


def value(name: str, dtype: str, shape: Shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TYPES[dtype], list(shape))


def tensor(name: str, values: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values), name)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[onnx.TensorProto] = (),
    *,
    opsets: Sequence[tuple[str, int]] = OPSETS,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "tiny", list(inputs), list(outputs), list(weights))
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid(*opset) for opset in opsets], ir_version=8
    )
    if metadata:
        helper.set_model_props(made, dict(metadata))
    return made


def write(
    directory: Path,
    graph: onnx.ModelProto | bytes,
    *,
    name: str = "model.onnx",
    manifest: str | None = None,
    **documents: Any,
) -> Path:
    """A model directory. `documents`: JSON files by their name without .json."""
    directory.mkdir(parents=True, exist_ok=True)
    data = graph if isinstance(graph, bytes) else graph.SerializeToString()
    (directory / name).write_bytes(data)
    if manifest is not None:
        (directory / "batchpredict.toml").write_text(manifest)
    for stem, document in documents.items():
        (directory / f"{stem}.json").write_text(json.dumps(document))
    return directory


# --- text


def tokenizer(
    words: Sequence[str] = WORDS, *, unknown: bool = True, special: bool = True
) -> Tokenizer:
    """Words at spaces; [CLS] text [SEP], pairs with type ids 0 and 1."""
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *words))}
    made = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]" if unknown else None))
    if not unknown:
        made = Tokenizer(WordLevel({w: i for w, i in vocabulary.items() if w != "[UNK]"}))
    made.pre_tokenizer = Whitespace()
    if special:
        made.post_processor = TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0",
            pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
            special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
        )
    return made


def token_weights(classes: int, words: Sequence[str] = WORDS) -> np.ndarray:
    """[tokens, classes]: good, fine weigh on the last class, bad, poor on the first; specials 0."""
    table = np.zeros((len(SPECIAL) + len(words), classes), np.float32)
    for word, index in VOCABULARY.items():
        if word in ("good", "fine"):
            table[index, -1] = 1
        if word in ("bad", "poor"):
            table[index, 0] += -1 if classes == 1 else 1
    return table


def text_graph(
    classes: int = 2,
    *,
    inputs: Sequence[str] = ("input_ids", "attention_mask"),
    dtype: str = "int64",
    output: str = "logits",
    table: np.ndarray | None = None,
    shape: Shape = ("batch", "tokens"),
    opset: int = 17,
) -> onnx.ModelProto:
    """Sums the weights of real tokens; token_type_ids and position_ids add themselves.

    With token_type_ids a token of the second text weighs 100 more on every class, and with
    position_ids each token its position / 1000.
    """
    table = token_weights(classes) if table is None else table
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["looked_up"])]
    at = "looked_up"
    weights = [tensor("table", table), tensor("last", np.array([-1])), tensor("one", np.array([1]))]
    for name, factor in (("token_type_ids", 100), ("position_ids", 0.001)):
        if name in inputs:
            weights.append(tensor(f"{name}_factor", np.float32(factor)))
            nodes += [
                helper.make_node("Cast", [name], [f"{name}_float"], to=TensorProto.FLOAT),
                helper.make_node("Mul", [f"{name}_float", f"{name}_factor"], [f"{name}_scaled"]),
                helper.make_node("Unsqueeze", [f"{name}_scaled", "last"], [f"{name}_wide"]),
                helper.make_node("Add", [at, f"{name}_wide"], [f"{name}_added"]),
            ]
            at = f"{name}_added"
    if "attention_mask" in inputs:
        nodes += [
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["mask_wide"]),
            helper.make_node("Mul", [at, "mask_wide"], ["masked"]),
        ]
        at = "masked"
    nodes.append(helper.make_node("ReduceSum", [at, "one"], [output], keepdims=0))
    return model(
        nodes,
        [value(name, dtype, shape) for name in inputs],
        [value(output, "float32", [shape[0], table.shape[1]])],
        weights,
        opsets=[("", opset), ("ai.onnx.ml", 3)],
    )


def write_text_model(
    directory: Path,
    graph: onnx.ModelProto | None = None,
    *,
    manifest: str | None = None,
    tokens: Tokenizer | None = None,
    **documents: Any,
) -> Path:
    """A text model with labels neg and pos, unless `config` says otherwise."""
    documents.setdefault("config", {"id2label": {"0": "neg", "1": "pos"}, "pad_token_id": PAD})
    documents = {name: document for name, document in documents.items() if document is not None}
    write(directory, graph or text_graph(), manifest=manifest, **documents)
    (tokens or tokenizer()).save(str(directory / "tokenizer.json"))
    return directory


def token_embedding_graph() -> onnx.ModelProto:
    """last_hidden_state [batch, tokens, 4] and nothing pooled."""
    return model(
        [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])],
        [value("input_ids", "int64", ("batch", "tokens"))],
        [value("last_hidden_state", "float32", ("batch", "tokens", 4))],
        [tensor("table", token_weights(4))],
    )


# --- columns


def matrix_graph(
    width: int | str | None = 3,
    *,
    name: str = "features",
    output: str = "variable",
    batch: int | str | None = "N",
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """Sum of the columns; the regression that scikit-learn's names say."""
    return model(
        [helper.make_node("ReduceSum", [name, "one"], [output], keepdims=1)],
        [value(name, "float32", (batch, width))],
        [value(output, "float32", (batch, 1))],
        [tensor("one", np.array([1]))],
        metadata=metadata,
    )


def lookup_graph() -> onnx.ModelProto:
    """x + 100 for x of 0 to 9; any other number fails in the session."""
    return model(
        [
            helper.make_node("Cast", ["x"], ["row"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "row"], ["variable"]),
        ],
        [value("x", "float32", ("N", 1))],
        [value("variable", "float32", ("N", 1))],
        [tensor("table", np.arange(10, dtype=np.float32) + 100)],
    )


def echo_graph(columns: Mapping[str, str], *, flat: bool = False) -> onnx.ModelProto:
    """One input per column, by name and dtype; each comes back as `<name>_out`."""
    shape: Shape = ("N",) if flat else ("N", 1)
    return model(
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in columns],
        [value(name, dtype, shape) for name, dtype in columns.items()],
        [value(f"{name}_out", dtype, shape) for name, dtype in columns.items()],
    )


def logits_graph(
    width: int = 2, *, output: str = "logits", dtype: str = "float32", flat: bool = False
) -> onnx.ModelProto:
    """`logits` [N, width] as the columns of `features` are, so that tests choose them."""
    shape: Shape = ("N",) if flat else ("N", width)
    return model(
        [helper.make_node("Identity", ["features"], [output])],
        [value("features", dtype, shape)],
        [value(output, dtype, shape)],
    )


def activated_graph(operator: str, width: int, *, output: str = "output") -> onnx.ModelProto:
    """Softmax or Sigmoid inside the graph."""
    return model(
        [helper.make_node(operator, ["features"], [output])],
        [value("features", "float32", ("N", width))],
        [value(output, "float32", ("N", width))],
    )


def two_heads_graph() -> onnx.ModelProto:
    """`logits` [N, 2], `topic` [N, 3], `embedding` [N, 2], `length` [N], `tokens` [N, 1, 2]."""
    nodes = [
        helper.make_node("Identity", ["features"], ["logits"]),
        helper.make_node("Concat", ["features", "first"], ["topic"], axis=1),
        helper.make_node("Slice", ["features", "zero", "one", "one"], ["first"]),
        helper.make_node("Neg", ["features"], ["embedding"]),
        helper.make_node("ReduceSum", ["features", "one"], ["length"], keepdims=0),
        helper.make_node("Unsqueeze", ["features", "one"], ["tokens"]),
    ]
    nodes[1], nodes[2] = nodes[2], nodes[1]
    return model(
        nodes,
        [value("features", "float32", ("N", 2))],
        [
            value("logits", "float32", ("N", 2)),
            value("topic", "float32", ("N", 3)),
            value("embedding", "float32", ("N", 2)),
            value("length", "float32", ("N",)),
            value("tokens", "float32", ("N", 1, 2)),
        ],
        [tensor("zero", np.array([0])), tensor("one", np.array([1]))],
    )


def classifier_graph(
    classes: Sequence[str] | Sequence[int],
    *,
    zipmap: bool = False,
    transform: str = "SOFTMAX",
) -> onnx.ModelProto:
    """A LinearClassifier as skl2onnx writes it: class k's score is column k of `features`."""
    count = len(classes)
    texts = isinstance(classes[0], str)
    labels: dict[str, Any] = {"classlabels_strings" if texts else "classlabels_ints": list(classes)}
    nodes = [
        helper.make_node(
            "LinearClassifier",
            ["features"],
            ["label", "scores" if zipmap else "probabilities"],
            domain="ai.onnx.ml",
            coefficients=np.eye(count).reshape(-1).tolist(),
            intercepts=[0.0] * count,
            post_transform=transform,
            multi_class=1,
            **labels,
        )
    ]
    key = TensorProto.STRING if texts else TensorProto.INT64
    label = value("label", "string" if texts else "int64", ("N",))
    if zipmap:
        zipped: dict[str, Any] = {
            "classlabels_strings" if texts else "classlabels_int64s": list(classes)
        }
        nodes.append(
            helper.make_node(
                "ZipMap", ["scores"], ["output_probability"], domain="ai.onnx.ml", **zipped
            )
        )
        kind = helper.make_sequence_type_proto(
            helper.make_map_type_proto(key, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
        )
        scores = helper.make_value_info("output_probability", kind)
    else:
        scores = value("probabilities", "float32", ("N", count))
    return model(nodes, [value("features", "float32", ("N", count))], [label, scores])


def decision_graph(classes: Sequence[str]) -> onnx.ModelProto:
    """A binary LinearSVC as skl2onnx writes it: one decision value under "probabilities"."""
    made = classifier_graph(classes, transform="NONE")
    (classifier,) = made.graph.node
    classifier.output[1] = "values"
    second = helper.make_node(
        "ArrayFeatureExtractor", ["values", "last"], ["probabilities"], domain="ai.onnx.ml"
    )
    made.graph.node.append(second)
    made.graph.initializer.append(tensor("last", np.array([1])))
    made.graph.output[1].CopyFrom(value("probabilities", "float32", ("N", 1)))
    return made


def string_graph(*, flat: bool = False, name: str = "text") -> onnx.ModelProto:
    """`label` [N]: the text itself, as a graph that takes strings."""
    nodes = [helper.make_node("Identity", [name], ["label"])]
    if not flat:
        nodes = [helper.make_node("Squeeze", [name, "one"], ["label"])]
    return model(
        nodes,
        [value(name, "string", ("N",) if flat else ("N", 1))],
        [value("label", "string", ("N",))],
        [tensor("one", np.array([1]))],
    )


def locale_graph(locale: str) -> onnx.ModelProto:
    """scikit-learn's StringNormalizer, in a locale."""
    node = helper.make_node(
        "StringNormalizer", ["text"], ["label"], case_change_action="LOWER", locale=locale
    )
    return model([node], [value("text", "string", ("N",))], [value("label", "string", ("N",))])


def external_graph(location: str = "weights.bin") -> tuple[onnx.ModelProto, bytes]:
    """`features` + weights that are in another file, and that file's bytes."""
    data = np.array([10, 20, 30], np.float32).tobytes()
    weights = helper.make_tensor("weights", TensorProto.FLOAT, [3], data, raw=True)
    set_external_data(weights, location)
    weights.ClearField("raw_data")
    made = model(
        [helper.make_node("Add", ["features", "weights"], ["logits"])],
        [value("features", "float32", ("N", 3))],
        [value("logits", "float32", ("N", 3))],
        [weights],
    )
    return made, data


def write_classifier(directory: Path) -> Path:
    """Reads the columns `x` and `y`; labels a and b."""
    manifest = '[inputs.features]\ncolumns = ["x", "y"]\n'
    return write(directory, classifier_graph(["a", "b"]), manifest=manifest)
