"""Sessions: what they say of a graph, and every error in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from batchpredict.errors import ConfigInvalid
from batchpredict.model.contracts import Tensor
from batchpredict.model.package import read_package
from batchpredict.model.session import InferenceFailed, Session, open_session
from tests import models


def opened(directory: Path, graph: object, **documents: object) -> Session:
    return open_session(read_package(models.write(directory, graph, **documents)))  # type: ignore[arg-type]


def test_inputs_outputs_and_metadata(tmp_path: Path) -> None:
    session = opened(tmp_path, models.matrix_graph(metadata={"columns": "a,b,c"}))
    assert session.inputs == (Tensor("features", "float32", ("N", 3)),)
    assert session.outputs == (Tensor("variable", "float32", ("N", 1)),)
    assert session.metadata == {"columns": "a,b,c"}
    assert session.provider == "CPUExecutionProvider"


def test_every_dtype_has_its_numpy_name(tmp_path: Path) -> None:
    session = opened(tmp_path, models.echo_graph({name: name for name in models.TYPES}))
    assert [tensor.dtype for tensor in session.inputs] == list(models.TYPES)
    zipmap = opened(tmp_path, models.classifier_graph(["a", "b"], zipmap=True))
    assert [tensor.dtype for tensor in zipmap.outputs] == ["string", "sequence(map)"]


def test_run_gives_the_outputs_asked_for(tmp_path: Path) -> None:
    session = opened(tmp_path, models.two_heads_graph())
    features = np.array([[1, 2], [3, 4]], np.float32)
    length, logits = session.run(["length", "logits"], {"features": features})
    assert length.tolist() == [3, 7]
    assert np.array_equal(logits, features)


def test_weights_in_another_file(tmp_path: Path) -> None:
    graph, data = models.external_graph()
    tmp_path.joinpath("weights.bin").write_bytes(data)
    session = opened(tmp_path, graph)
    (logits,) = session.run(["logits"], {"features": np.zeros((1, 3), np.float32)})
    assert logits.tolist() == [[10, 20, 30]]


def test_a_failing_row_is_one_line_and_silent(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    graph = models.text_graph(inputs=("input_ids",))
    session = opened(tmp_path, graph)
    with pytest.raises(InferenceFailed, match="Gather") as caught:
        session.run(["logits"], {"input_ids": np.array([[9999]])})
    assert "\n" not in str(caught.value)
    assert "ONNXRuntimeError" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_messages_name_no_source_files(tmp_path: Path) -> None:
    graph = models.model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [models.value("x", "float32", ("N",))],
        [models.value("y", "float32", (2, "M"))],
        [models.tensor("shape", np.array([2, -1]))],
    )
    session = opened(tmp_path, graph)
    with pytest.raises(InferenceFailed, match="cannot be reshaped") as caught:
        session.run(["y"], {"x": np.zeros(3, np.float32)})
    assert "onnxruntime" not in str(caught.value)


def test_a_truncated_graph(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    directory = models.write(tmp_path, models.text_graph())
    package = read_package(directory)
    data = (directory / "model.onnx").read_bytes()
    (directory / "model.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigInvalid, match=r"model\.onnx: not an ONNX model, or truncated"):
        open_session(package)
    assert capfd.readouterr() == ("", "")


def refusal(directory: Path, graph: object) -> str:
    with pytest.raises(ConfigInvalid) as caught:
        opened(directory, graph)
    message = str(caught.value)
    assert message.startswith(f"{directory / 'model.onnx'}: ")
    assert "\n" not in message
    assert "/onnxruntime_src" not in message
    return message


def test_an_opset_newer_than_the_runtime_names_both(tmp_path: Path) -> None:
    message = refusal(tmp_path, models.text_graph(opset=99))
    assert "needs opset 99 of ai.onnx" in message
    assert "onnxruntime 1." in message


def test_a_newer_ir_version(tmp_path: Path) -> None:
    graph = models.text_graph()
    graph.ir_version = 99
    assert "IR version 99" in refusal(tmp_path, graph)


def test_unknown_operators_are_named(tmp_path: Path) -> None:
    def graph(domain: str) -> object:
        return models.model(
            [helper.make_node("Frobnicate", ["x"], ["y"], domain=domain)],
            [models.value("x", "float32", ("N",))],
            [models.value("y", "float32", ("N",))],
            opsets=[("", 17), ("com.example", 1)],
        )

    assert "Frobnicate is not known" in refusal(tmp_path, graph(""))
    message = refusal(tmp_path, graph("com.example"))
    assert "Frobnicate of domain 'com.example'" in message


def test_external_data_that_vanished(tmp_path: Path) -> None:
    graph, data = models.external_graph()
    (tmp_path / "weights.bin").write_bytes(data)
    package = read_package(models.write(tmp_path, graph))
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ConfigInvalid, match=r"weights\.bin is not there"):
        open_session(package)


def test_a_locale_this_machine_lacks_names_both_ways_out(tmp_path: Path) -> None:
    message = refusal(tmp_path, models.locale_graph("xx_YY.UTF-8"))
    assert "locale xx_YY.UTF-8" in message
    assert "locale-gen xx_YY.UTF-8" in message
    assert "C.UTF-8" in message


def test_the_locale_every_machine_has(tmp_path: Path) -> None:
    session = opened(tmp_path, models.locale_graph("C.UTF-8"))
    (texts,) = session.run(["label"], {"text": np.array(["ÀB"], object)})
    assert texts.tolist() == ["àb"]
