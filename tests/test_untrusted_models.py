"""Models from strangers: refused in one line, soon, and without reading what is not theirs."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from onnx import TensorProto, helper

from batchpredict.errors import BatchPredictError, ConfigInvalid, Unavailable
from batchpredict.job import Job
from batchpredict.model import optimize, protobuf
from batchpredict.model.binding import bind
from batchpredict.model.manifest import Template, nearest, read_manifest
from batchpredict.model.outputs import HeadOptions, resolve_head
from batchpredict.model.package import ModelPackage, read_package
from batchpredict.model.session import Session, open_session
from batchpredict.model.text import open_text_encoder
from batchpredict.run import inspection
from batchpredict.run.loading import load_model
from batchpredict.run.tuned import key_of, stored_tuning, tuning_directory
from tests import models


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    """What waits for a FIFO or computes without end is ended."""
    signal.alarm(10)
    yield
    signal.alarm(0)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A model of texts with weights beside the graph, and a file next door."""
    (tmp_path / "secret").write_bytes(b"{}")
    made = models.write_text_model(tmp_path / "model", config={"vocab_size": 12})
    graph, data = models.external_graph("deep/weights.bin")
    (made / "model.onnx").write_bytes(graph.SerializeToString())
    (made / "deep").mkdir()
    (made / "deep" / "weights.bin").write_bytes(data)
    return made


def refused(directory: Path, match: str, error: type[Exception] = ConfigInvalid) -> str:
    with pytest.raises(error, match=match) as caught:
        read_package(directory)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert text.isprintable()
    assert len(text) < 3000
    return text


MEMBERS = ("model.onnx", "config.json", "tokenizer.json", "batchpredict.toml", "deep/weights.bin")


# --- files


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize(
    "target", ["../secret", "/etc/hostname", "/dev/zero", "../model/../secret"]
)
def test_a_link_out_of_the_directory_is_refused(directory: Path, name: str, target: str) -> None:
    path = directory / name
    path.unlink(missing_ok=True)
    path.symlink_to(f"../{target}" if "/" in name and target.startswith("..") else target)
    assert ConfigInvalid.exit_code == 78
    assert f"{path}: links to /" in refused(directory, "outside of the model's directory")


def test_a_folder_that_is_a_link_out_is_refused(directory: Path, tmp_path: Path) -> None:
    (directory / "deep").rename(tmp_path / "elsewhere")
    (directory / "deep").symlink_to("../elsewhere")
    refused(directory, "outside of the model's directory")


def test_links_within_the_directory_are_followed(directory: Path, tmp_path: Path) -> None:
    before = read_package(directory)
    (directory / "..data").mkdir()  # as Kubernetes mounts a volume
    for name in ("config.json", "tokenizer.json", "model.onnx"):
        (directory / name).rename(directory / "..data" / name)
        (directory / name).symlink_to(f"..data/{name}")
    (tmp_path / "current").symlink_to("model")
    assert read_package(tmp_path / "current").digest == before.digest


def hub(directory: Path, root: Path) -> Path:
    """The same files as the cache of huggingface_hub keeps them."""
    snapshot, blobs = root / "snapshots" / "c0ffee", root / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in [path for path in directory.rglob("*") if path.is_file()]:
        name = path.relative_to(directory)
        blob = blobs / name.as_posix().replace("/", "")
        path.rename(blob)
        (snapshot / name).parent.mkdir(exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    return snapshot


def test_the_links_of_a_hugging_face_cache_are_followed(directory: Path, tmp_path: Path) -> None:
    before = read_package(directory)
    snapshot = hub(directory, tmp_path / "models--a--b")
    package = read_package(snapshot)
    assert package.digest == before.digest
    assert open_session(package).outputs
    assert read_package(snapshot / "model.onnx").digest == before.digest


def test_other_links_of_a_cache_are_not(directory: Path, tmp_path: Path) -> None:
    root = tmp_path / "models--a--b"
    snapshot = hub(directory, root)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_bytes(b"{}")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("../../refs/main")
    refused(snapshot, "outside of the model's directory")

    (snapshot / "config.json").unlink()
    (root / "blobs").rename(tmp_path / "elsewhere")
    (root / "blobs").symlink_to("../elsewhere")
    refused(snapshot, "outside of the model's directory")


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


@pytest.mark.parametrize("make", [_fifo, _socket, Path.mkdir])
@pytest.mark.parametrize("name", MEMBERS)
def test_what_is_no_file_is_refused_at_once(
    directory: Path, name: str, make: Callable[[Path], None]
) -> None:
    (directory / name).unlink(missing_ok=True)
    make(directory / name)
    refused(directory, "not a file" if make is not Path.mkdir else "not a file|no .onnx file")


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "fifo.onnx"])
def test_a_device_or_fifo_is_no_model(tmp_path: Path, path: str) -> None:
    os.mkfifo(tmp_path / "fifo.onnx")
    refused(tmp_path / path, "not a file")


@pytest.mark.parametrize("name", MEMBERS)
def test_a_link_to_nothing_is_not_overlooked(directory: Path, name: str) -> None:
    (directory / name).unlink(missing_ok=True)
    (directory / name).symlink_to("gone")
    refused(directory, "no such file", Unavailable)


@pytest.mark.parametrize(
    "path", ["loop", "loop/model.onnx", "a\0b", "x" * 300, "~nobody-here/model"]
)
def test_paths_that_lead_nowhere(tmp_path: Path, path: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    refused(Path(path) if path.startswith("~") else tmp_path / path, "name a .onnx", Unavailable)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("config.json", 17 << 20),
        ("batchpredict.toml", 3 << 20),
        ("tokenizer.json", 200 << 20),
        ("model.onnx", 1 << 31),
        ("config.json", 1 << 40),
    ],
)
def test_what_is_far_too_large_is_not_read(directory: Path, name: str, size: int) -> None:
    with (directory / name).open("ab") as file:
        file.truncate(size)
    refused(directory, "bytes, such a file has at most")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_closed_directory_is_unavailable(directory: Path) -> None:
    directory.chmod(0)
    try:
        refused(directory, "permission denied", Unavailable)
    finally:
        directory.chmod(0o700)


# --- graphs


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(number: int) -> bytes:
    result = bytearray()
    while number > 0x7F:
        result.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*result, number])


def external(location: bytes) -> bytes:
    """A TensorProto of external data."""
    return field(13, field(1, b"location") + field(2, location)) + b"\x70\x01"


def wrapped(graph: bytes) -> bytes:
    """A ModelProto around the fields of a GraphProto."""
    return b"\x08\x08" + field(7, graph) + field(8, b"\x10\x11")


def test_graphs_within_graphs_end(tmp_path: Path) -> None:
    graph = b""
    for _ in range(5000):
        graph = field(1, field(5, field(6, graph)))
    models.write(tmp_path, wrapped(graph))
    refused(tmp_path, "not an ONNX model")


HIDDEN = external(b"../secret")
NUMBERS = b"\x40\x01" * 3  # ints, where the walk over an attribute usually ends


@pytest.mark.parametrize(
    "data",
    [
        wrapped(field(5, HIDDEN)),
        wrapped(field(15, field(1, HIDDEN))),
        wrapped(field(15, field(2, HIDDEN))),
        wrapped(field(1, field(5, field(5, HIDDEN)))),
        wrapped(field(1, field(5, NUMBERS + field(5, HIDDEN)))),
        wrapped(field(1, field(5, field(1, b"classlabels_ints") + NUMBERS + field(5, HIDDEN)))),
        wrapped(field(1, field(5, field(1, b"prob_a") + field(10, HIDDEN)))),
        wrapped(
            field(1, field(5, field(1, b"post_transform") + field(4, b"NONE") + field(5, HIDDEN)))
        ),
        wrapped(field(1, field(5, field(22, field(1, HIDDEN))))),
        wrapped(b"") + field(25, field(7, field(5, field(5, HIDDEN)))),
        wrapped(b"") + field(25, field(11, field(5, HIDDEN))),
        wrapped(b"") + field(7, field(5, HIDDEN)),
    ],
)
def test_external_data_cannot_be_hidden(tmp_path: Path, data: bytes) -> None:
    models.write(tmp_path, data)
    refused(tmp_path, "outside the model's folder")


def test_bits_that_others_drop_hide_nothing(tmp_path: Path) -> None:
    # As 64 bits another field than external_data, as the 32 that protobuf keeps the same.
    tag = varint((13 << 3 | 2) | 1 << 34)
    entry = field(1, b"location") + field(2, b"../secret")
    models.write(tmp_path, wrapped(field(5, tag + varint(len(entry)) + entry)))
    refused(tmp_path, "not an ONNX model")


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("a\0b", "not there|null byte"),
        ("x" * 300, "not there|too long"),
        ("x" * 60_000, "not there|too long"),
        ("y/" * 3000, "not there|too long"),
        ("\x1b[31m\n", "not there"),
        ("*/_ORT_MEM_ADDR_/*", "outside the model's folder"),
        ("../" + "x" * 10_000, "outside the model's folder"),
    ],
)
def test_strange_locations(tmp_path: Path, location: str, message: str) -> None:
    models.write(tmp_path, wrapped(field(5, external(location.encode()))))
    refused(tmp_path, message, BatchPredictError)


def test_a_compiled_graph_is_refused(tmp_path: Path) -> None:
    models.write(tmp_path, wrapped(field(1, field(4, b"EPContext"))))
    refused(tmp_path, "compiled for one device")


def test_a_graph_that_would_be_read_for_hours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protobuf, "_MOST_FIELDS", 1000)
    for graph in (
        b"\x10\x01" * 2000,
        field(1, b"") * 2000,
        field(5, field(1, b"\x01" * 2000)),
        field(1, field(5, field(1, b"ngram_indexes") + field(8, b"\x01" * 2000))),
        field(1, field(5, field(1, b"classlabels_ints") * 40 + b"\x40\x01" * 40)),
    ):
        models.write(tmp_path, wrapped(graph))
        refused(tmp_path, "too many nodes and values")


def test_nodes_that_go_round_end(tmp_path: Path) -> None:
    node = field(1, b"a") + field(2, b"a") + field(4, b"Identity")
    outputs = b"".join(field(12, field(1, b"a")) for _ in range(1000))
    models.write(tmp_path, wrapped(field(1, node) + outputs))
    assert read_package(tmp_path).graph_file.producer("a") == "Identity"


def test_values_of_half_an_integer_are_left_to_the_runtime(tmp_path: Path) -> None:
    graph = models.matrix_graph()
    graph.graph.initializer.append(
        TensorProto(name="classes", data_type=TensorProto.INT64, dims=[1], raw_data=b"12345")
    )
    models.write(tmp_path, graph)
    assert read_package(tmp_path).graph_file.classes == ()


@pytest.mark.parametrize("bad", [b"\xff\xfe", b"a\xed\xa0\x80"])
@pytest.mark.parametrize("place", ["dimension", "metadata", "node", "message"])
def test_names_that_are_not_utf8(
    tmp_path: Path, bad: bytes, place: str, capfd: pytest.CaptureFixture[str]
) -> None:
    graph = models.matrix_graph(None, batch="NAME", metadata={"NAME": "x"})
    graph.graph.node[0].name = "NAME"
    if place == "message":
        del graph.graph.node[0].input[:]
    data = graph.SerializeToString()
    if place == "dimension":
        data = data.replace(b"NAME", bad.ljust(4, b"x"))
    elif place == "metadata":
        at = data.rindex(b"NAME")
        data = data[:at] + bad.ljust(4, b"x") + data[at + 4 :]
    else:
        data = data.replace(b"NAME", bad.ljust(4, b"x"), 1)
    models.write(tmp_path, data)
    try:
        session = open_session(read_package(tmp_path))
        json.dumps([session.metadata, [tensor.shape for tensor in session.inputs]]).encode()
    except ConfigInvalid as error:
        assert str(tmp_path) in str(error)  # noqa: PT017 - whether it loads is the runtime's say
    assert capfd.readouterr().out == ""  # where rows may go


@pytest.mark.parametrize("size", [(1 << 22) + 1, 1 << 40, (1 << 63) - 1])
def test_absurd_sizes_of_inputs_and_outputs(tmp_path: Path, size: int) -> None:
    wide = models.write(tmp_path / "tokens", models.text_graph(shape=("batch", size)))
    with pytest.raises(ConfigInvalid, match="input_ids is int64"):
        open_session(read_package(wide))
    graph = models.model(
        [helper.make_node("Expand", ["features", "shape"], ["logits"])],
        [models.value("features", "float32", ("N", 1)), models.value("shape", "int64", (2,))],
        [models.value("logits", "float32", ("N", size))],
    )
    many = models.write(tmp_path / "labels", graph)
    with pytest.raises(ConfigInvalid, match="logits is float32"):
        open_session(read_package(many))


def test_long_names_are_not_compared() -> None:
    assert nearest("x" * 100_000, ["x" * 99_999]) == ""
    assert nearest("abc", ["x" * 100_000, "abd"]) == ", did you mean 'abd'?"


# --- Hugging Face's files


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "[" * 100_000, "nested too deeply"),
        ("config.json", '{"a":' * 100_000, "nested too deeply"),
        ("config.json", '{"vocab_size": ' + "9" * 5000 + "}", "not JSON: .*4300 digits"),
        ("config.json", '{"vocab_size": "' + "x" * 10_000 + '"}', "vocab_size: must be a whole"),
        ("config.json", '{"id2label": {"0": "\\ud800", "1": "b"}}', "surrogates not allowed"),
        ("config.json", '{"id2label": {"0": "a\\u001b", "1": "a\\u001b"}}', "labels are the same"),
        ("config.json", b"\xff\xfe{\x00}", "not JSON"),
        ("tokenizer_config.json", '{"model_max_length": NaN}', "must be a whole number"),
        (
            "tokenizer_config.json",
            '{"model_max_length": [' + "1," * 9999 + "1]}",
            "must be a whole",
        ),
        ("config_sentence_transformers.json", '{"default_prompt_name": "q\\n"}', "not among"),
    ],
)
def test_absurd_json(directory: Path, name: str, text: str | bytes, message: str) -> None:
    (directory / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert name in refused(directory, message)


def test_numbers_without_end_are_whole(directory: Path) -> None:
    document = {
        "vocab_size": 10**400,
        "num_attention_heads": -3,
        "max_position_embeddings": 10**400,
    }
    (directory / "config.json").write_text(json.dumps(document))
    package = read_package(directory)
    assert (package.vocab_size, package.heads, package.max_length) == (10**400, None, None)


def opened_text(directory: Path) -> tuple[ModelPackage, Session]:
    package = read_package(directory)
    return package, open_session(package)


def text_model(directory: Path, change: Callable[[dict[str, Any]], None], **files: Any) -> Path:
    document = json.loads(models.tokenizer().to_str())
    change(document)
    graph = models.text_graph(inputs=("input_ids", "attention_mask", "token_type_ids"))
    return models.write(directory, graph, tokenizer=document, **files)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["model"]["vocab"].update(good=2**32 - 1), "token ids beyond 2147483647"),
        (
            lambda t: t["post_processor"]["special_tokens"]["[CLS]"].update(ids=[2**32 - 1]),
            "token ids beyond",
        ),
        (
            lambda t: t["post_processor"]["single"][0]["SpecialToken"].update(type_id=200),
            "types beyond 127",
        ),
        (lambda t: t.update(model={"type": "x"}), "not a tokenizer"),
        (
            lambda t: t.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AA=="}),
            "not a tokenizer: .*panicked",
        ),
    ],
)
def test_tokenizers_that_no_model_has(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    package, session = opened_text(text_model(tmp_path, change))
    with pytest.raises(ConfigInvalid, match=message):
        open_text_encoder(package, session, (Template.of_column("text"),)).prepare(
            pa.record_batch([pa.array(["good"])], names=["text"])
        )


@pytest.mark.parametrize("length", [0, 2**31, 2**64 - 1])
def test_the_tokenizer_cuts_at_an_absurd_length(tmp_path: Path, length: int) -> None:
    cut = {"direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": 0}
    package, session = opened_text(text_model(tmp_path, lambda t: t.update(truncation=cut)))
    encoder = open_text_encoder(package, session, (Template.of_column("text"),))
    assert encoder.max_length is None


@pytest.mark.parametrize("pad", [-1, 2**31, 2**63, 10**300])
def test_an_absurd_pad_id_is_not_fed(tmp_path: Path, pad: int) -> None:
    made = text_model(tmp_path, lambda t: None, config={"pad_token_id": pad})
    encoder = open_text_encoder(*opened_text(made), (Template.of_column("text"),))
    prepared = encoder.prepare(pa.record_batch([pa.array(["good", "so fine"])], names=["text"]))
    assert encoder.feeds(prepared, np.arange(2))["input_ids"].max() < 100


# --- manifests


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = " + "[" * 100_000, "nested too deeply"),
        ("a = " + "{a = " * 100_000, "nested too deeply"),
        ("version = " + "9" * 5000, "not TOML: .*4300 digits"),
        ("version = 0x" + "f" * 5000, "version: the number is too large"),
        ("max_length = 0x" + "f" * 5000, "max_length: the number is too large"),
        ("max_length = 2147483648", "max_length: must be 1 or more, at most 2147483647"),
        ('labels = ["' + "x" * 100_000 + '"]', "labels: needs two or more"),
        (".".join("a" * 30_000) + " = 1", "1: a key of more than 16 parts"),
        ("\n[" + ".".join(["'a b'"] * 20) + "]", "2: a key of more than 16 parts"),
        ("x = { " + " . ".join("a" * 20) + " = 1}", "1: a key of more than 16 parts"),
        ("[[golden]]\nrow = {a = 1979-05-27}\nscore = 1", "row: may hold texts"),
        ("[[golden]]\nrow = {a = 0x" + "f" * 5000 + "}\nscore = 1", "row: may hold texts"),
        ("[[golden]]\nrow = {a = 1}\nscore = 0x" + "f" * 400, "score: the number is too large"),
        ("[[golden]]\nrow = {a = 1}\nprediction = [0x" + "f" * 5000 + "]", "labels or numbers"),
        ("[[golden]]\nrow = {a = 1}\nprediction = [[1]]", "labels or numbers"),
        ('"a\\u001b[31m\\n" = 1', r"a\\x1b\[31m\\n: unknown key"),
        ("y" * 100_000 + " = 1", "unknown key"),
    ],
)
def test_absurd_manifests(directory: Path, text: str, message: str) -> None:
    (directory / "batchpredict.toml").write_text(text)
    assert "batchpredict.toml" in refused(directory, message)


def test_dots_in_texts_are_no_keys(tmp_path: Path) -> None:
    path = tmp_path / "batchpredict.toml"
    dots = ". . . " + "a." * 40
    path.write_text(f'name = "{dots}"\ntext = "{{a}} {dots}"\n')
    assert read_manifest(path).name == dots


@pytest.mark.parametrize("fill", ["0x7fffffffffffffff", "1e300", "-1e999"])
def test_a_fill_that_does_not_fit(tmp_path: Path, fill: str) -> None:
    models.write(tmp_path, models.echo_graph({"a": "int8"}), manifest=f"[inputs.a]\nfill = {fill}")
    package = read_package(tmp_path)
    with pytest.raises(ConfigInvalid, match="is not int8"):
        bind(package, open_session(package), pa.schema([("a", pa.int8())]), True, {})


# --- files of our own


@pytest.fixture
def matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Job, ModelPackage, Session]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    package = read_package(models.write(tmp_path / "model", models.matrix_graph()))
    return Job(input_file=("a.csv",), model=str(package.directory)), package, open_session(package)


def tuning_file(matrix: tuple[Job, ModelPackage, Session]) -> Path:
    directory = tuning_directory()
    assert directory is not None
    directory.mkdir(parents=True)
    return directory / key_of(*matrix).file_name


@pytest.mark.parametrize("size", [0, -1, 1 << 31, 10**30, 1e3, True, "9" * 5000])
def test_a_stored_tuning_asks_for_no_absurd_size(
    matrix: tuple[Job, ModelPackage, Session], size: Any
) -> None:
    key = dict(vars(key_of(*matrix)))
    content = {"tuning": 1, "key": key, "cores": None, "ended": "", "winner": {"batch_rows": size}}
    tuning_file(matrix).write_text(json.dumps(content))
    assert stored_tuning(*matrix) is None
    content["winner"] = {"batch_rows": 64}
    (tuning_directory() / key_of(*matrix).file_name).write_text(json.dumps(content))  # type: ignore[operator]
    found = stored_tuning(*matrix)
    assert found is not None
    assert found.sizes == {"batch_rows": 64}


@pytest.mark.parametrize("make", [_fifo, _socket, Path.mkdir])
def test_a_stored_tuning_that_is_no_file(
    matrix: tuple[Job, ModelPackage, Session], make: Callable[[Path], None]
) -> None:
    make(tuning_file(matrix))
    assert stored_tuning(*matrix) is None


@pytest.mark.parametrize("name", ["int8.onnx", "int8.onnx.sha256"])
def test_a_cached_variant_that_is_no_file_is_not_taken(tmp_path: Path, name: str) -> None:
    cached = tmp_path / "int8.onnx"
    cached.write_bytes(b"graph")
    digest = hashlib.sha256(b"graph").hexdigest()
    (tmp_path / "int8.onnx.sha256").write_text(f"{digest}  int8.onnx\n")
    assert optimize._is_whole(cached)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    assert not optimize._is_whole(cached)


# --- messages


def test_an_error_is_one_line_of_bounded_length() -> None:
    text = str(ConfigInvalid("a\nb\x1b[31m\x85\u2028\ud800" + "x" * 100_000 + "the end"))
    assert text.isprintable()
    assert text.startswith("a\\nb\\x1b[31m\\x85\\u2028\\ud800xx")
    assert text.endswith("xxthe end")
    assert len(text) < 2100


def test_a_golden_row_of_what_json_has_no_word_for(tmp_path: Path) -> None:
    manifest = "[[golden]]\nrow = { a = nan }\nprediction = 1.0\n"
    models.write(tmp_path, models.echo_graph({"a": "float32"}), manifest=manifest)
    with pytest.raises(ConfigInvalid, match="golden row 1"):
        load_model(Job(input_file=("a.csv",), model=str(tmp_path)))


def test_inspect_shows_no_name_raw(tmp_path: Path) -> None:
    labels = {"0": "\x1b[31m\n", "1": "b\x9b"}
    models.write_text_model(tmp_path, config={"id2label": labels})
    job = Job(input_file=("a.csv",), model=str(tmp_path))
    text = inspection.table(inspection.inspect(job, None))
    assert all(line.isprintable() for line in text.split("\n"))
    assert "labels                    \\x1b[31m\\n, b\\x9b\n" in text


def test_labels_of_a_stranger_reach_no_terminal_raw(tmp_path: Path) -> None:
    models.write(
        tmp_path, models.logits_graph(), config={"id2label": {"0": "\x1b[31m", "1": "b", "2": "c"}}
    )
    package = read_package(tmp_path)
    with pytest.raises(ConfigInvalid) as caught:
        resolve_head(package, open_session(package), HeadOptions())
    assert str(caught.value).isprintable()
