"""Model directories: graphs, manifests, Hugging Face's files, tokenizers, stored tunings."""

from __future__ import annotations

import base64
import json
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import numpy as np
import onnx
import pyarrow as pa
from onnx import TensorProto, helper

from batchpredict.errors import ConfigInvalid
from batchpredict.job import Job
from batchpredict.model.binding import bind
from batchpredict.model.contracts import Feeds, Tensor
from batchpredict.model.graph_file import read_graph_file
from batchpredict.model.manifest import Template
from batchpredict.model.outputs import HeadOptions, resolve_head
from batchpredict.model.package import read_package
from batchpredict.model.session import InferenceFailed, Session, open_session
from batchpredict.model.text import open_text_encoder
from batchpredict.run import tuned
from batchpredict.run.planning import plan_of
from tests import models
from tests.fuzz import inputs
from tests.fuzz.harness import Target
from tests.fuzz.inputs import chance, few

# Where protobuf's numbers have their edges, and ONNX's own.
_NUMBERS = (
    0, 1, 2, 7, 8, 16, -1, -2, 127, 128, 255, 1 << 16, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 32,
    1 << 40, (1 << 62) - 1, (1 << 63) - 1, -(1 << 63),
)  # fmt: skip
_TEXTS = (
    "", "a", "logits", "input_ids", "attention_mask", "label", "features", "table", "out", "batch",
    "classes", "location", "weights.bin", "../weights.bin", "/etc/hostname", "a\0b", "a\nb",
    "\x1b[31m",
    "x" * 300, "é", "*/_ORT_MEM_ADDR_/*", "./weights.bin", "sub/../weights.bin", "offset", "length",
    "post_transform", "classlabels_strings", "prob_a", "ngram_indexes", "Add", "Identity", "Loop",
    "Softmax", "If", "Constant", "com.microsoft", "ai.onnx.ml",
)  # fmt: skip
_TOKENS = (
    b"\x08\x08", b"\x3a\x00", b"\x42\x02\x10\x11", b"\x0a\x08location\x12\x05../xx",
    b"\xff" * 9 + b"\x01",
    b"\xff\xff\xff\xff\x0f", b"\x0a", b"\x12", b"\x2a", b"\x3b", b"\x3c", b"\x6a\x0c", b"\x62",
    b"\x52",
    b"\x80" * 10, b"\x7a\x00", b"\xca\x01\x04", b"\x32\x02\x32\x00", b"\x70\x01",
)  # fmt: skip


@dataclass(frozen=True)
class Files:
    """A model directory by file name. `data`: of the file that the case is about."""

    files: dict[str, bytes] = field(repr=False)
    about: str

    @property
    def data(self) -> bytes:
        return self.files[self.about]

    def write(self, directory: Path) -> None:
        for name, data in self.files.items():
            (directory / name).write_bytes(data)


def stand_in(graph: onnx.ModelProto) -> Session:
    """What the product asks of a session, without one; token ids beyond 100 fail."""
    kinds = {int(number): name for name, number in models.TYPES.items()}

    def tensors(values: Sequence[onnx.ValueInfoProto]) -> tuple[Tensor, ...]:
        return tuple(
            Tensor(
                v.name,
                kinds[v.type.tensor_type.elem_type],
                tuple(d.dim_param or d.dim_value or None for d in v.type.tensor_type.shape.dim),
            )
            for v in values
        )

    def run(fetch: Sequence[str], feeds: Feeds) -> list[Any]:
        if any(array.dtype.kind == "i" and array.max(initial=0) > 100 for array in feeds.values()):
            raise InferenceFailed("beyond the table")
        return [np.zeros((len(next(iter(feeds.values()))), 2), np.float32) for _ in fetch]

    made = SimpleNamespace(
        inputs=tensors(graph.graph.input),
        outputs=tensors(graph.graph.output),
        metadata={},
        graph="model.onnx",
        provider="CPUExecutionProvider",
        precision="model",
        run=run,
    )
    return cast(Session, made)


# --- graphs


@cache
def _graphs() -> tuple[onnx.ModelProto, ...]:
    external, _ = models.external_graph()
    hidden = helper.make_tensor("hidden", TensorProto.FLOAT, [1], [0.5])
    constant = helper.make_node("Constant", [], ["out"], value=hidden)
    branch = helper.make_graph([constant], "b", [], [models.value("out", "float32", (1,))])
    node = helper.make_node("If", ["on"], ["logits"], then_branch=branch, else_branch=branch)
    condition = models.model(
        [node], [models.value("on", "bool", ())], [models.value("logits", "float32", (1,))]
    )
    sparse = models.matrix_graph(3)
    sparse.graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            helper.make_tensor("values", TensorProto.FLOAT, [1], [1.0]),
            helper.make_tensor("indices", TensorProto.INT64, [1], [1]),
            [3],
        )
    )
    function = models.matrix_graph(3)
    function.functions.append(
        helper.make_function(
            "own", "f", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])],
            [helper.make_opsetid("", 17)],
        )
    )  # fmt: skip
    function.opset_import.append(helper.make_opsetid("own", 1))
    return (
        models.text_graph(), models.text_graph(3), models.logits_graph(), models.matrix_graph(3),
        models.classifier_graph(["b", "a"], zipmap=True), models.classifier_graph([1, 2]),
        external, condition, sparse, function, models.echo_graph({"a": "string", "b": "int64"}),
    )  # fmt: skip


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for inner in value if descriptor.is_repeated else [value]:
                yield from _messages(inner)


def _twist(rng: random.Random, graph: onnx.ModelProto) -> None:
    """Change a field of one of its messages into what no exporter writes."""
    message = rng.choice(list(_messages(graph)))
    descriptor = rng.choice(message.DESCRIPTOR.fields)
    name = descriptor.name
    if descriptor.message_type is not None:
        _twist_message(rng, message, name, descriptor.is_repeated)
        return
    value = _value(rng, descriptor.type)
    if value is None:
        return
    if descriptor.is_repeated:
        listed = getattr(message, name)
        if listed and chance(rng, 0.3):
            del listed[rng.randrange(len(listed)) :]
        if listed and chance(rng, 0.5):
            listed[rng.randrange(len(listed))] = value
        else:
            listed.extend([value] * (1 + few(rng, 3) * few(rng, 200)))
    elif chance(rng, 0.15):
        message.ClearField(name)
    else:
        setattr(message, name, value)


def _twist_message(rng: random.Random, message: Any, name: str, repeated: bool) -> None:
    if not repeated:
        getattr(message, name).SetInParent()
        if chance(rng, 0.2):
            message.ClearField(name)
        return
    listed = getattr(message, name)
    if listed and chance(rng, 0.5):
        listed.append(rng.choice(listed))
    elif listed and chance(rng, 0.4):
        del listed[rng.randrange(len(listed))]
    else:
        entry = listed.add()
        if name == "external_data":
            entry.key, entry.value = rng.choice(("location", "offset", "x")), rng.choice(_TEXTS)
            message.data_location = TensorProto.EXTERNAL


def _value(rng: random.Random, kind: int) -> Any:
    if kind == 9:
        return rng.choice(_TEXTS)
    if kind == 12:
        return rng.choice((b"", b"\xff", rng.randbytes(few(rng, 40)), *map(str.encode, _TEXTS)))
    if kind in (1, 2):
        return rng.choice((0.0, -1.0, float("nan"), 1e30))
    if kind in (3, 4):
        number = rng.choice(_NUMBERS)
        return number if kind == 3 else number % (1 << 64)
    if kind in (5, 13):
        return rng.randrange(40)
    if kind == 14:
        return 1  # Python refuses those that are no member
    return None


def _nested(rng: random.Random, data: bytes) -> bytes:
    """Graphs in attributes of nodes of graphs, deeper than a stack."""
    inner = data
    for _ in range(rng.choice((1, 3, 30, 40, 200, 1000))):
        attribute = _field(1, b"g") + _field(6, inner)
        inner = _field(1, _field(4, b"If") + _field(5, attribute))
        if len(inner) > inputs.LARGEST:
            break
    return b"\x08\x08" + _field(7, inner) + _field(8, b"\x10\x11")


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    result = bytearray()
    while number > 0x7F:
        result.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*result, number])


def _graph_bytes(rng: random.Random, damage: float) -> bytes:
    graph = onnx.ModelProto()
    graph.CopyFrom(rng.choice(_graphs()))
    for _ in range(few(rng, 6)):
        _twist(rng, graph)
    data = graph.SerializeToString()
    if chance(rng, 0.02):
        data = _nested(rng, graph.graph.SerializeToString())
    if chance(rng, 0.1):  # merged by readers of protocol buffers
        data += rng.choice(_graphs()).SerializeToString()
    if chance(rng, damage):
        data = inputs.mutated(rng, data, _TOKENS)
    return data[: inputs.LARGEST]


class _Graph:
    """The walker alone, and whether it sees every file that the graph would have read."""

    def case(self, rng: random.Random) -> Files:
        return Files({"model.onnx": _graph_bytes(rng, 0.5)}, "model.onnx")

    def check(self, case: Files, directory: Path) -> None:
        case.write(directory)
        facts = read_graph_file(directory / "model.onnx")
        facts.producer("logits")
        missed = set(_locations(case.data)) - set(facts.external)
        if missed:
            raise AssertionError(f"external data not seen: {missed}")


def _locations(data: bytes) -> Iterator[str]:
    """Of external data, as protobuf's own reader finds it."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception:  # noqa: BLE001 - protobuf's DecodeError; the package has no types
        return
    model.ClearField("training_info")
    for message in _messages(model):
        if isinstance(message, TensorProto):
            for entry in message.external_data:
                if entry.key == "location":
                    yield entry.value


class _Opened:
    """The whole way to a session: a crash here is onnxruntime's."""

    def case(self, rng: random.Random) -> Files:
        files = {"model.onnx": _graph_bytes(rng, 0.2), "weights.bin": rng.randbytes(few(rng, 300))}
        return Files(files, "model.onnx")

    def check(self, case: Files, directory: Path) -> None:
        case.write(directory)
        package = read_package(directory)
        session = open_session(package)
        resolve_head(package, session, HeadOptions())
        feeds = {tensor.name: _zeros(tensor) for tensor in session.inputs}
        with suppress(InferenceFailed):
            session.run([tensor.name for tensor in session.outputs], feeds)
        bind(package, session, pa.schema([]), False, {})


def _zeros(tensor: Tensor) -> Any:
    shape = [min(size, 64) if isinstance(size, int) else 2 for size in tensor.shape][:6]
    dtype = object if tensor.dtype == "string" else tensor.dtype
    return np.zeros(shape, dtype if tensor.dtype in models.TYPES else "float32")


# --- manifests

_TOML_VALUES = (
    "1", "-1", "0", "1.5", "nan", "-inf", "true", '"a"', '""', '"{a}"', '"{a} {b}"', '"{"',
    '"{a!r}"',
    '"{a:{b}}"', "[]", '["a", "b"]', '["a", "a"]', "[1, 2]", '[["a"]]', "{}", "{ a = 1 }",
    '{ a = "x" }',
    "1979-05-27", "1979-05-27T07:32:00Z", "07:32:00", "0x" + "f" * 40, "0x" + "f" * 5000, "9" * 25,
    "'''x'''", '"""\n\n"""', '"\\u0000"', '"\\u2028"', '"\\u001b[31m"',
    '"' + "x" * 500 + '"',
    "[" * 30 + "]" * 30, '"single_label"', '"binary"', '"nan"',
    '"reject"',
    "1e400", "[{ row = { a = 1 }, score = 1 }]", '[{ row = { a = 1979-05-27 }, prediction = "x" }]',
    "[{ row = { a = 0x" + "f" * 5000 + " }, score = 0x" + "f" * 400 + " }]", "0x7fffffffffffffff",
)  # fmt: skip
_TOML_ENDS = ("9" * 5000, "[" * 3000, "{a=" * 3000, "0x" + "f" * 5000, '"{"')
_TOML_KEYS = (
    "name", "version", "task", "labels", "activation", "threshold", "output", "text", "text_pair",
    "max_length", "truncate", "missing_values", "inputs", "golden", "inputs.features", "row",
    "inputs.features.columns", "inputs.features.fill", "inputs.features.missing", "a", '"\\u0007"',
    "labls",
    ".".join("abcdefghijklmno"), ".".join("a" * 17), ".".join("a" * 900), "'' ", '"a.b"',
    "prediction",
    "score", "columns", "fill",
)  # fmt: skip
_TOML_HEADS = (
    "[inputs]", "[inputs.features]", "[inputs.a]", "[[golden]]", "[golden.row]", "[a]", "[[a]]",
    "[a.b.c]",
    "[inputs.features.columns]", "[[inputs.features]]",
)  # fmt: skip
_TOML_TOKENS = (
    b"=", b"[", b"]", b"[[", b"]]", b"{", b"}", b'"', b'"""', b"'", b"'''", b"\n", b"#", b".",
    b",", b"\\",
    b"\\u0000", b"\\UD8000000", b"\xff", b"\xed\xa0\x80", b"\0", b"\r", b"1_0", b"0x", b"_", b"+",
    b"a.", b"a." * 40,
    b"[[golden]]\n", b"\xef\xbb\xbf", b'a = "', b"[" * 2000, b"9" * 4400,
)  # fmt: skip
_WORDY = (
    'name = "n"\nlabels = ["neg", "pos"]\ntext = "query: {text}"\nmax_length = 12\n'
    '[inputs.features]\ncolumns = ["a", "b", "c"]\nfill = 1\n'
    '[[golden]]\nrow = { text = "fine", n = 1.5 }\nprediction = "pos"\nscore = 1\n'
)


def _toml_value(rng: random.Random) -> str:
    return rng.choice(_TOML_ENDS if chance(rng, 0.03) else _TOML_VALUES)


def _toml(rng: random.Random) -> bytes:
    if chance(rng, 0.2):
        data = _WORDY.encode()
    else:
        lines = [
            rng.choice(_TOML_HEADS)
            if chance(rng, 0.2)
            else f"{rng.choice(_TOML_KEYS)} = {_toml_value(rng)}"
            for _ in range(1 + few(rng, 12))
        ]
        data = "\n".join(lines).encode()
    return inputs.mutated(rng, data, _TOML_TOKENS) if chance(rng, 0.4) else data


class _ManifestTarget:
    """A manifest, and what is made of it for a graph of numbers."""

    def case(self, rng: random.Random) -> Files:
        files = {"model.onnx": _matrix().SerializeToString(), "batchpredict.toml": _toml(rng)}
        return Files(files, "batchpredict.toml")

    def check(self, case: Files, directory: Path) -> None:
        case.write(directory)
        package = read_package(directory)
        for golden in package.manifest.golden:
            json.dumps(golden.row)
        session = stand_in(_matrix())
        resolve_head(package, session, HeadOptions("all"))
        offered = pa.schema([(name, pa.float64()) for name in "abc"])
        encoder = bind(package, session, offered, True, {})
        columns = pa.RecordBatch.from_pydict({name: [1.0, None] for name in encoder.columns})
        encoder.feeds(encoder.prepare(columns), np.arange(1))


@cache
def _matrix() -> onnx.ModelProto:
    return models.matrix_graph(3)


# --- Hugging Face's files

# No reader gets past these.
_JSON_ENDS = (
    '"\\ud800"', "9" * 5000, "[" * 5000, '{"a":' * 5000, '{"0":"\\udfff","1":"b"}',
)  # fmt: skip
_KEYS = {
    "config.json": (
        "id2label", "problem_type", "pad_token_id", "vocab_size", "max_position_embeddings",
        "model_type",
        "num_attention_heads", "n_heads", "x",
    ),
    "config_sentence_transformers.json": ("prompts", "default_prompt_name"),
    "sentence_bert_config.json": ("max_seq_length",),
    "special_tokens_map.json": ("pad_token",),
    "tokenizer_config.json": ("model_max_length", "pad_token"),
}  # fmt: skip
_JSON_VALUES = (
    "0", "1", "2", "12", "-1", "512", "1e30", "1e400", "NaN", "-Infinity", "1.5", "true", "null",
    '""', '"a"',
    '"roberta"', '"query"', '"[PAD]"', '"\\u0000\\u001b"', '{"0":"a","1":"b"}',
    '{"0":"a"}',
    '{"1":"a"}', '{"0":"a","1":"a"}', '{"0":["a"],"1":null}', '{"0":"\\udfff","1":"b"}',
    '{"a":"b"}',
    '{"content":"[PAD]"}', '{"content":3}', '{"query":"q: "}', '{"query":3}', "[]", "{}", "[1]",
    "9" * 30,
    "9" * 4000, "-" + "9" * 400, "2147483648", "4294967295", "9223372036854775808",
    "1e18",
    "[" * 500 + "]" * 500, '"' + "x" * 5000 + '"',
    '{"' + "9" * 5000 + '":"a"}',
    '{"0":' + "[" * 400 + "]" * 400 + ',"1":"b"}', '"multi_label_classification"', '"regression"',
)  # fmt: skip


def _json_value(rng: random.Random) -> str:
    return rng.choice(_JSON_ENDS if chance(rng, 0.02) else _JSON_VALUES)


def _document(rng: random.Random, name: str) -> bytes:
    entries = [f'"{rng.choice(_KEYS[name])}":{_json_value(rng)}' for _ in range(1 + few(rng, 7))]
    data = ("{" + ",".join(entries) + "}").encode()
    return inputs.mutated(rng, data, inputs.JSON_TOKENS, 3) if chance(rng, 0.2) else data


def _any_json(rng: random.Random, value: Any, depth: int = 0) -> Any:
    """`value` with some of its parts exchanged, left out or made absurd."""
    if chance(rng, 0.01):
        return rng.choice(_ODD)
    if isinstance(value, dict):
        kept = {k: _any_json(rng, v, depth + 1) for k, v in value.items() if not chance(rng, 0.01)}
        if chance(rng, 0.01):
            kept[rng.choice(("type", "id", "x", "max_length"))] = rng.choice(_ODD)
        return kept
    if isinstance(value, list):
        return [_any_json(rng, item, depth + 1) for item in value]
    return value


_ODD: tuple[Any, ...] = (
    None, True, 0, 1, -1, 3, 128, 255, 256, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 64) - 1,
    1 << 64, 0.5,
    "", "a", "[PAD]", "é", "(", "(a+)+$", "\\", [], {}, [0], ["a"], [["a", 1]], {"String": "a"},
    {"Regex": "("}, {"Regex": "(?=a)*"}, {"Fixed": 1 << 40}, "BatchLongest", "Right", "OnlySecond",
)  # fmt: skip


# As sentencepiece stores it: the length of a double-array trie, the trie, texts ended by zeros.
_TRIE = b"".join(i.to_bytes(4, "little") for i in range(0, 256 * 800, 800))
_CHARSMAP = base64.b64encode(len(_TRIE).to_bytes(4, "little") + _TRIE + b"a\0b\0").decode()


@cache
def _tokenizers() -> tuple[Any, ...]:
    """tokenizer.json of every kind of model, with most kinds of parts."""
    words = {w: i for i, w in enumerate((*models.SPECIAL, *models.WORDS, "a", "b", "ab", "##b"))}
    base = json.loads(models.tokenizer().to_str())
    parts: dict[str, list[Any]] = {
        "model": [
            base["model"],
            {"type": "BPE", "vocab": words, "merges": [["a", "b"]], "unk_token": "[UNK]",
             "continuing_subword_prefix": "", "fuse_unk": False, "byte_fallback": True},
            {"type": "Unigram", "unk_id": 1, "byte_fallback": False,
             "vocab": [[w, -float(i)] for w, i in words.items()]},
            {"type": "WordPiece", "vocab": words, "unk_token": "[UNK]",
             "continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
        ],
        "normalizer": [
            None, {"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"},
            {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, {"type": "Prepend",
             "prepend": "_"}]},
            {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
             "strip_accents": None, "lowercase": True},
            {"type": "Precompiled", "precompiled_charsmap": _CHARSMAP},
        ],
        "pre_tokenizer": [
            base["pre_tokenizer"], {"type": "ByteLevel", "add_prefix_space": True,
             "trim_offsets": True, "use_regex": True},
            {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True},
            {"type": "Split", "pattern": {"Regex": "\\s+"}, "behavior": "Isolated",
            "invert": False},
            {"type": "Digits", "individual_digits": True}, {"type": "FixedLength", "length": 3},
        ],
        "post_processor": [
            base["post_processor"], None,
            {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
            {"type": "RobertaProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2],
             "trim_offsets": True, "add_prefix_space": True},
        ],
        "truncation": [
            None, {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
        ],
        "padding": [
            None, {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None,
             "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
        ],
        "added_tokens": [
            [], [{"id": 0, "content": "[PAD]", "single_word": False, "lstrip": False,
            "rstrip": False,
             "normalized": False, "special": True}],
        ],
    }  # fmt: skip
    return base, parts


def _tokenizer_json(rng: random.Random) -> bytes:
    base, parts = _tokenizers()
    document = {**base, **{key: rng.choice(kinds) for key, kinds in parts.items()}}
    data = json.dumps(_any_json(rng, document)).encode()
    return inputs.mutated(rng, data, inputs.JSON_TOKENS, 3) if chance(rng, 0.1) else data


@cache
def _text_graph() -> onnx.ModelProto:
    return models.text_graph(inputs=("input_ids", "attention_mask", "token_type_ids"))


class _SideFiles:
    """What Hugging Face's libraries save beside a graph of texts."""

    def case(self, rng: random.Random) -> Files:
        about = rng.choice([*_KEYS, "tokenizer.json"])
        files = {name: _document(rng, name) for name in _KEYS if name == about or chance(rng, 0.15)}
        good = models.tokenizer().to_str().encode()
        files["tokenizer.json"] = _tokenizer_json(rng) if about == "tokenizer.json" else good
        files["model.onnx"] = _text_graph().SerializeToString()
        return Files(files, about)

    def check(self, case: Files, directory: Path) -> None:
        case.write(directory)
        package = read_package(directory)
        session = stand_in(_text_graph())
        head = resolve_head(package, session, HeadOptions("all"))
        "".join(head.labels).encode()
        for texts in ([Template.of_column("a", package.prompt)], [Template.of_column("a")] * 2):
            encoder = open_text_encoder(package, session, tuple(texts))
            column = pa.array(["good", "so fine\0 (aé ab", "", None, "a" * 300, "日本 12"])
            prepared = encoder.prepare(pa.record_batch([column], names=["a"]))
            good = np.setdiff1d(np.arange(len(column)), [fault.index for fault in prepared.faults])
            encoder.feeds(prepared, good)


# --- stored tunings


class _Tuning:
    """What `tune` has stored, damaged."""

    def case(self, rng: random.Random) -> Files:
        content = {
            "tuning": 1,
            "key": {"model": "m", "provider": "p", "precision": "model", "cpu": "c",
                    "onnxruntime": "1"},
            "cores": rng.choice((1, 2, None)),
            "ended": "2024-01-01T00:00:00",
            "winner": rng.choice((None, {"batch_rows": 8, "batch_tokens": 9, "workers": 2})),
        }  # fmt: skip
        data = json.dumps(_any_json(rng, content)).encode()
        if chance(rng, 0.4):
            data = inputs.mutated(rng, data, inputs.JSON_TOKENS, 3)
        return Files({"tuning.json": data}, "tuning.json")

    def check(self, case: Files, directory: Path) -> None:
        key = tuned.TuningKey("m", "p", "model", "c", "1")
        kept = directory / "batchpredict" / "tuning"
        kept.mkdir(parents=True)
        (kept / key.file_name).write_bytes(case.data)
        job = Job(input_file=("a.csv",), model="m")
        session = stand_in(_matrix())
        with (
            mock.patch.dict(os.environ, {"XDG_STATE_HOME": str(directory)}),
            mock.patch.object(tuned, "key_of", return_value=key),
            mock.patch.object(tuned.logger, "warning", _warned),
        ):
            stored = tuned.stored_tuning(job, cast(Any, None), session)
        if stored is not None:
            plan = plan_of(job, session, stored, None)
            np.arange(1, dtype=np.int64) * plan.tuning.batch_rows * plan.tuning.batch_tokens


def _warned(form: str, *values: object) -> None:
    raise ConfigInvalid(form % values)  # judged as errors are


TARGETS: dict[str, Target] = {
    "graph": _Graph(),
    "manifest": _ManifestTarget(),
    "sidefiles": _SideFiles(),
    "tuning": _Tuning(),
    "session": _Opened(),
}
