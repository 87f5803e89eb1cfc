"""Model directories: what is read, what the digest covers, what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest

from batchpredict.errors import ConfigInvalid, Unavailable
from batchpredict.model.manifest import Golden, InputSpec, Template, read_manifest
from batchpredict.model.package import read_package
from tests import models

HUGGING_FACE: dict[str, Any] = {
    "config": {
        "id2label": {"1": "pos", "0": "neg"},
        "problem_type": "single_label_classification",
        "max_position_embeddings": 512,
        "vocab_size": 12,
    },
    "tokenizer_config": {"model_max_length": 64, "pad_token": "[PAD]"},
    "config_sentence_transformers": {
        "prompts": {"query": "query: ", "other": "x"},
        "default_prompt_name": "query",
    },
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return models.write_text_model(tmp_path / "reviews", **HUGGING_FACE)


def test_hugging_face_files_are_read(directory: Path) -> None:
    package = read_package(directory)

    assert package.name == "reviews"
    assert package.graph_path == directory / "model.onnx"
    assert package.labels == ("neg", "pos")
    assert package.problem_type == "single_label_classification"
    assert package.max_length == 64
    assert package.pad_token == "[PAD]"
    assert package.vocab_size == 12
    assert package.prompt == "query: "
    assert package.tokenizer == directory / "tokenizer.json"
    assert package.graph_file.opsets == (("ai.onnx", 17), ("ai.onnx.ml", 3))
    assert pickle.loads(pickle.dumps(package)) == package


def test_digest_is_what_sha256sum_prints(directory: Path) -> None:
    package = read_package(directory)

    names = sorted(path.name for path in directory.iterdir())
    assert [name for name, _, _ in package.files] == names
    command = f"sha256sum {' '.join(names)} | LC_ALL=C sort -k2 | sha256sum"
    printed = subprocess.run(command, shell=True, cwd=directory, capture_output=True, check=True)
    assert package.digest == printed.stdout.decode().split()[0]
    sizes = {name: size for name, size, _ in package.files}
    assert sizes["config.json"] == (directory / "config.json").stat().st_size


def test_digest_changes_with_each_file_that_is_read_and_no_other(directory: Path) -> None:
    before = read_package(directory).digest
    (directory / "README.md").write_text("not read")
    assert read_package(directory).digest == before
    for name in ("tokenizer.json", "config.json", "tokenizer_config.json"):
        path = directory / name
        kept = path.read_bytes()
        path.write_bytes(kept + b" ")
        assert read_package(directory).digest != before, name
        path.write_bytes(kept)
    assert read_package(directory).digest == before


@pytest.mark.parametrize(
    ("config", "tokenizer_config", "bert", "expected"),
    [
        ({}, {"model_max_length": 1e30}, {}, None),
        ({}, {"model_max_length": int(1e30)}, {}, None),
        ({}, {"model_max_length": 512}, {"max_seq_length": 256}, 256),
        ({"max_position_embeddings": 512, "model_type": "bert"}, {}, {}, 512),
        ({"max_position_embeddings": 514, "model_type": "xlm-roberta"}, {}, {}, 512),
        ({"max_position_embeddings": 514, "model_type": "roberta"}, {"model_max_length": 9}, {}, 9),
    ],
)
def test_max_length(
    tmp_path: Path, config: dict, tokenizer_config: dict, bert: dict, expected: int | None
) -> None:
    directory = models.write(
        tmp_path,
        models.logits_graph(),
        config=config,
        tokenizer_config=tokenizer_config,
        sentence_bert_config=bert,
    )
    assert read_package(directory).max_length == expected


def test_which_graph_of_a_directory(tmp_path: Path) -> None:
    graph = models.logits_graph()
    only = models.write(tmp_path / "only", graph, name="anything.onnx")
    assert read_package(only).graph == "anything.onnx"

    models.write(only, graph, name="model.onnx")
    assert read_package(only).graph == "model.onnx"

    optimum = models.write(tmp_path / "hub", graph, name="other.txt", config={})
    models.write(optimum / "onnx", graph)
    models.write(optimum / "onnx", graph, name="model_quantized.onnx")
    assert read_package(optimum).graph == "onnx/model.onnx"
    named = read_package(optimum / "onnx" / "model_quantized.onnx")
    assert (named.directory, named.graph) == (optimum, "onnx/model_quantized.onnx")
    assert {name for name, _, _ in named.files} == {"config.json", "onnx/model_quantized.onnx"}


def test_several_graphs_are_named(tmp_path: Path) -> None:
    models.write(tmp_path, models.logits_graph(), name="a.onnx")
    models.write(tmp_path, models.logits_graph(), name="b.onnx")
    with pytest.raises(ConfigInvalid, match=r"a\.onnx, b\.onnx"):
        read_package(tmp_path)
    assert read_package(tmp_path / "b.onnx").name == "b"


def test_a_directory_without_a_graph(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"no \.onnx file"):
        read_package(tmp_path)


def test_a_missing_path_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="nowhere: no such file"):
        read_package(tmp_path / "nowhere")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_graph_is_unavailable(directory: Path) -> None:
    (directory / "model.onnx").chmod(0)
    with pytest.raises(Unavailable, match="Permission denied"):
        read_package(directory)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"hello, this is a text\n" * 10, "not an ONNX model"),
        (b"\x80\x04\x95pickle", "not an ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\x08\x08", "holds no graph"),
    ],
)
def test_what_is_no_graph(tmp_path: Path, data: bytes, message: str) -> None:
    models.write(tmp_path, data)
    with pytest.raises(ConfigInvalid, match=message) as caught:
        read_package(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "model.onnx") in str(caught.value)


def test_a_truncated_graph_at_any_length(tmp_path: Path) -> None:
    data = models.text_graph().SerializeToString()
    for length in range(1, len(data), 7):
        models.write(tmp_path, data[:length])
        try:
            read_package(tmp_path)
        except ConfigInvalid as error:
            assert str(error).startswith(f"{tmp_path / 'model.onnx'}: ")  # noqa: PT017
        else:
            # Cut between two fields: still a graph, and onnxruntime will say what it lacks.
            assert length > len(data) - 40


def test_external_data_is_read_and_named(tmp_path: Path) -> None:
    graph, data = models.external_graph()
    models.write(tmp_path, graph)
    with pytest.raises(ConfigInvalid, match=r"weights\.bin.*not there"):
        read_package(tmp_path)

    (tmp_path / "weights.bin").write_bytes(data)
    package = read_package(tmp_path)
    digest = hashlib.sha256(data).hexdigest()
    assert ("weights.bin", len(data), digest) in package.files


def test_external_data_of_a_subgraph(tmp_path: Path) -> None:
    from onnx import TensorProto, helper
    from onnx.external_data_helper import set_external_data

    hidden = helper.make_tensor("hidden", TensorProto.FLOAT, [1], b"\0\0\0\0", raw=True)
    set_external_data(hidden, "deep/hidden.bin")
    hidden.ClearField("raw_data")
    constant = helper.make_node("Constant", [], ["out"], value=hidden)
    branch = helper.make_graph([constant], "b", [], [models.value("out", "float32", (1,))])
    node = helper.make_node("If", ["on"], ["logits"], then_branch=branch, else_branch=branch)
    graph = models.model(
        [node], [models.value("on", "bool", ())], [models.value("logits", "float32", (1,))]
    )
    models.write(tmp_path, graph)
    with pytest.raises(ConfigInvalid, match=r"deep/hidden\.bin"):
        read_package(tmp_path)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "a/../../b", ""])
def test_external_data_stays_inside(tmp_path: Path, location: str) -> None:
    graph, _ = models.external_graph(location)
    models.write(tmp_path, graph)
    with pytest.raises(ConfigInvalid, match="outside the model's folder"):
        read_package(tmp_path)


def test_class_labels_and_producers_of_a_classifier(tmp_path: Path) -> None:
    models.write(tmp_path, models.classifier_graph(["b", "a"], zipmap=True))
    facts = read_package(tmp_path).graph_file
    assert ("ZipMap", ("b", "a")) in facts.classes
    assert facts.producer("output_probability") == "LinearClassifier:SOFTMAX"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", '{\n"id2label": }', r"config\.json:2: not JSON"),
        ("config.json", "[]", r"config\.json: must hold a JSON object"),
        ("config.json", '{"id2label": {"0": "a", "2": "b"}}', "id2label: .*without gaps"),
        ("config.json", '{"id2label": {"0": "a", "1": "a"}}', "id2label: two labels are the same"),
        ("config.json", '{"pad_token_id": "no"}', "pad_token_id: must be a whole number"),
        ("config.json", '{"pad_token_id": Infinity}', "pad_token_id: must be a whole number"),
        ("config.json", '{"problem_type": 3}', "problem_type: must be a text"),
        ("config_sentence_transformers.json", '{"default_prompt_name": "q"}', "not among"),
    ],
)
def test_bad_json(directory: Path, name: str, text: str, message: str) -> None:
    (directory / name).write_text(text)
    with pytest.raises(ConfigInvalid, match=message):
        read_package(directory)


MANIFEST = """
name = "reviews"
version = 7
task = "single_label"
labels = ["neg", "pos"]
activation = "none"
threshold = 0.25
output = "logits"
text = "query: {text} {{x}}"
text_pair = "{passage}"
max_length = 128
truncate = false
missing_values = ["NA"]
[inputs.features]
columns = ["a", "b"]
missing = "reject"
[inputs.city]
columns = "town"
fill = "none"
[[golden]]
row = { text = "fine", n = 1 }
prediction = "pos"
score = 1
[[golden]]
row = { text = "x" }
prediction = ["a"]
"""


def test_every_key_of_a_manifest(tmp_path: Path) -> None:
    models.write(tmp_path, models.logits_graph(), manifest=MANIFEST)
    package = read_package(tmp_path)
    manifest = package.manifest

    assert (package.name, package.version, package.max_length) == ("reviews", "7", 128)
    assert (manifest.task, manifest.activation, manifest.output) == (
        "single_label",
        "none",
        "logits",
    )
    assert (manifest.threshold, manifest.truncate) == (0.25, False)
    assert manifest.labels == package.labels == ("neg", "pos")
    assert manifest.missing_values == ("NA",)
    assert manifest.text == Template((("query: ", "text"), (" {", None), ("x}", None)))
    assert manifest.text_pair == Template((("", "passage"),))
    assert manifest.inputs == {
        "features": InputSpec(("a", "b"), "reject"),
        "city": InputSpec(("town",), None, "none"),
    }
    assert manifest.golden == (
        Golden({"text": "fine", "n": 1}, "pos", 1.0),
        Golden({"text": "x"}, ("a",), None),
    )
    assert pickle.loads(pickle.dumps(package)) == package


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "a"\nlabels = [', r"batchpredict\.toml:?.*not TOML"),
        ('name = "a"\nb = = 2\n', r"batchpredict\.toml:2: not TOML"),
        ('labls = ["a", "b"]', "labls: unknown key, did you mean 'labels'?"),
        ('task = "single-label"', "task: .*did you mean 'single_label'?"),
        ('labels = ["a", "a"]', "labels: "),
        ('labels = "a"', "labels: must be a list"),
        ("labels = [1, 2]", "labels: must be a list of texts"),
        ("threshold = 2", "threshold: must be a number from 0 to 1"),
        ('threshold = "0.5"', "threshold: must be a number"),
        ("threshold = true", "threshold: must be a number"),
        ("max_length = 0", "max_length: must be 1 or more"),
        ("max_length = true", "max_length: must be a whole number"),
        ("truncate = 1", "truncate: must be true or false"),
        ('text = "plain"', "text: .*no column"),
        ('text = "{}"', "text: .*braces"),
        ('text = "{a"', "text: "),
        ('text = "{a!r}"', "text: .*braces"),
        ('name = ""', "name: must not be empty"),
        ("[inputs]\nx = 3", r"inputs\.x: must be a table"),
        ("[inputs.x]\nmising = 'nan'", r"\[inputs\.x\]: mising: .*'missing'"),
        ("[inputs.x]\nmissing = 'drop'", r"\[inputs\.x\]: missing: 'drop' is not one of"),
        ("[inputs.x]\nmissing = 'nan'\nfill = 0", r"\[inputs\.x\]: fill: cannot stand beside"),
        ("[inputs.x]\ncolumns = []", r"\[inputs\.x\]: columns: must name"),
        ("[inputs.x]\nfill = [0]", r"\[inputs\.x\]: fill: must be"),
        ("[[golden]]\nscore = 1", r"\[\[golden\]\] 1: row: "),
        ("[[golden]]\nrow = {a = 1}", r"\[\[golden\]\] 1: prediction: "),
        ("[[golden]]\nrow = {a = 1}\nscore = 1\nlabel = 'x'", r"golden\]\] 1: label: unknown key"),
        ("golden = [1]", r"\[\[golden\]\] 1: must be a table"),
    ],
)
def test_a_bad_manifest_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "batchpredict.toml"
    path.write_text(text)
    with pytest.raises(ConfigInvalid, match=message) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_manifest_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "batchpredict.toml"
    path.write_bytes(b'name = "\xff"')
    with pytest.raises(ConfigInvalid, match="not UTF-8"):
        read_manifest(path)


def test_templates_are_renamed() -> None:
    template = Template.parse("{title}: {body}!")
    assert template.columns == ("title", "body")
    assert template.renamed({"body": "text"}).columns == ("title", "text")


def test_labels_of_the_manifest_beat_those_of_config(tmp_path: Path) -> None:
    models.write(
        tmp_path,
        models.logits_graph(),
        manifest='labels = ["x", "y"]',
        config=json.loads('{"id2label": {"0": "a", "1": "b"}}'),
    )
    assert read_package(tmp_path).labels == ("x", "y")
