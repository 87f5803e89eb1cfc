"""Other precisions and providers: what they give, what is kept, and what they refuse."""

from __future__ import annotations

import hashlib
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import helper

from batchpredict.errors import ConfigInvalid
from batchpredict.model import optimize, session
from batchpredict.model.optimize import int8_graph
from batchpredict.model.package import ModelPackage, read_package
from batchpredict.model.session import Session, open_session
from tests import commands, models

ROWS, TOKENS, WIDTH = 24, 6, 64
HAS_PLUGIN = find_spec("onnxruntime_ep_openvino") is not None
HAS_BF16 = bool(session._cpu_flags() & session._BF16_FLAGS)
openvino = pytest.mark.skipif(not HAS_PLUGIN, reason="onnxruntime-ep-openvino is not installed")
bf16 = pytest.mark.skipif(not HAS_PLUGIN or not HAS_BF16, reason="no plugin, or no bf16 CPU")


def encoder_graph(*, external: str | None = None) -> onnx.ModelProto:
    """Mean of a two-layer network over the tokens, as `logits` [rows, 2]."""
    draw = np.random.default_rng(7)
    weights = {
        "table": draw.normal(size=(100, WIDTH)),
        "one": draw.normal(size=(WIDTH, 4 * WIDTH)) / 8,
        "two": draw.normal(size=(4 * WIDTH, 2)) / 4,
    }
    tensors = [models.tensor(name, value.astype(np.float32)) for name, value in weights.items()]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("MatMul", ["embedded", "one"], ["widened"]),
        helper.make_node("Tanh", ["widened"], ["bent"]),
        helper.make_node("MatMul", ["bent", "two"], ["narrowed"]),
        helper.make_node("ReduceMean", ["narrowed"], ["logits"], axes=[1], keepdims=0),
    ]
    made = models.model(
        nodes,
        [models.value("input_ids", "int64", ("batch", "tokens"))],
        [models.value("logits", "float32", ("batch", 2))],
        tensors,
        metadata={"author": "a test"},
    )
    if external:
        for tensor in made.graph.initializer:
            onnx.external_data_helper.set_external_data(tensor, external)
    return made


def ids(rows: int = ROWS) -> dict[str, np.ndarray]:
    return {"input_ids": np.random.default_rng(3).integers(0, 100, (rows, TOKENS))}


def logits(opened: Session, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(opened.run(["logits"], feeds)[0])


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """encoder_graph() as int8_graph makes it, in a cache of its own."""
    folder = tmp_path_factory.mktemp("variant")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        return int8_graph(read_package(models.write(folder / "model", encoder_graph())))


@pytest.fixture
def made(variant: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where the quantiser wrote to, time after time; it takes seconds, so a copy stands in."""
    calls: list[Path] = []

    def copy(package: ModelPackage, work: Path, made: Path, lock: int) -> None:
        shutil.copyfile(variant, made)
        calls.append(made)

    monkeypatch.setattr(optimize, "_run_quantiser", copy)
    return calls


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelPackage:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return read_package(models.write(tmp_path / "model", encoder_graph()))


def kept(tmp_path: Path) -> list[str]:
    """Suffixes of what is in the cache, the names themselves hold a digest."""
    folder = tmp_path / "cache" / "batchpredict" / "optimized"
    return sorted(path.name.partition(".onnx")[2] for path in folder.iterdir())


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ConfigInvalid) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- int8


def test_int8_agrees_and_is_quantised(
    package: ModelPackage, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    graph = int8_graph(package)
    opened = open_session(package, precision="int8", graph=graph)
    exact = logits(open_session(package), ids())
    near = logits(opened, ids())
    assert 0 < np.abs(near - exact).max() < 0.1
    assert (near.argmax(axis=1) == exact.argmax(axis=1)).mean() > 0.9
    assert (opened.provider, opened.precision) == ("CPUExecutionProvider", "int8")
    assert opened.graph == str(package.graph_path)
    assert opened.metadata["author"] == "a test"
    assert kept(tmp_path) == ["", ".lock", ".sha256"]
    assert package.digest in graph.name
    assert [path.name for path in package.directory.iterdir()] == ["model.onnx"]
    assert capfd.readouterr() == ("", "")


def test_nothing_is_called_int8_that_is_not(package: ModelPackage, variant: Path) -> None:
    with pytest.raises(ValueError, match="int8"):
        open_session(package, precision="int8")
    with pytest.raises(ValueError, match="int8"):
        open_session(package, graph=variant)


def test_int8_is_made_once(package: ModelPackage, made: list[Path]) -> None:
    graph = int8_graph(package)
    before = graph.stat()
    assert int8_graph(package) == graph
    assert graph.stat() == before
    assert len(made) == 1


@pytest.mark.parametrize("damaged", ["graph", "half", "sum", "no sum"])
def test_a_damaged_variant_is_made_again(
    package: ModelPackage, made: list[Path], damaged: str
) -> None:
    graph = int8_graph(package)
    whole = graph.read_bytes()
    beside = graph.with_name(f"{graph.name}.sha256")
    if damaged == "graph":
        graph.write_bytes(whole[:-9] + bytes(9))
    elif damaged == "half":
        graph.write_bytes(whole[: len(whole) // 2])
    elif damaged == "sum":
        beside.write_bytes(b"\xff")
    else:
        beside.unlink()
    assert int8_graph(package).read_bytes() == whole
    assert len(made) == 2
    assert beside.read_text() == f"{hashlib.sha256(whole).hexdigest()}  {graph.name}\n"


@pytest.mark.usefixtures("made")
def test_what_a_killed_process_left_is_in_nobodys_way(
    package: ModelPackage, tmp_path: Path
) -> None:
    graph = int8_graph(package)
    graph.unlink()
    left = graph.with_name(f"{graph.name}.part")
    left.mkdir()
    (left / "int8.onnx").write_bytes(b"half")
    int8_graph(package)
    assert kept(tmp_path) == ["", ".lock", ".sha256"]


def test_two_processes_at_once_make_one(
    package: ModelPackage, variant: Path, tmp_path: Path
) -> None:
    """Both wait for a lock that is held, so that both have looked before either has made it."""
    program = (
        "import shutil, sys\n"
        "from batchpredict.model import optimize\n"
        "from batchpredict.model.package import read_package\n"
        "def copy(package, work, made, lock):\n"
        "    print('made', flush=True)\n"
        "    shutil.copyfile(sys.argv[2], made)\n"
        "optimize._run_quantiser = copy\n"
        "print('ready', flush=True)\n"
        "print(optimize.int8_graph(read_package(sys.argv[1])))\n"
    )
    folder = tmp_path / "cache" / "batchpredict" / "optimized"
    folder.mkdir(parents=True)
    command = [sys.executable, "-P", "-c", program, str(package.directory), str(variant)]
    name = f"{package.digest}-int8-{session.runtime_version()}-{optimize._RECIPE}.onnx"
    with optimize._locked(folder / f"{name}.lock"):
        both = [
            subprocess.Popen(command, stdout=subprocess.PIPE, env=commands.environment(), text=True)
            for _ in range(2)
        ]
        for one in both:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            both[0].wait(0.5)
    printed = [one.communicate(timeout=60)[0].split() for one in both]
    assert sorted(map(len, printed)) == [1, 2]
    assert {words[-1] for words in printed} == {str(folder / name)}


def test_weights_in_another_file_become_one_int8_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    directory = tmp_path / "model"
    directory.mkdir()
    onnx.save(
        encoder_graph(), directory / "model.onnx", save_as_external_data=True, location="weights",
        size_threshold=0,
    )  # fmt: skip
    package = read_package(directory)
    assert package.graph_file.external == ("weights",)
    opened = open_session(package, precision="int8", graph=int8_graph(package))
    assert np.abs(logits(opened, ids()) - logits(open_session(package), ids())).max() < 0.1


def test_a_product_with_turned_weights_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exporters leave Transpose(weights) before a MatMul, which is no constant to look at."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights = np.random.default_rng(1).normal(size=(2, 32)).astype(np.float32)
    graph = models.model(
        [
            helper.make_node("Transpose", ["weights"], ["turned"]),
            helper.make_node("MatMul", ["features", "turned"], ["logits"]),
        ],
        [models.value("features", "float32", ("N", 32))],
        [models.value("logits", "float32", ("N", 2))],
        [models.tensor("weights", weights)],
    )
    package = read_package(models.write(tmp_path / "model", graph))
    made = read_package(int8_graph(package)).graph_file
    assert "MatMulInteger" in made.operators


def test_int8_and_bf16_refuse_a_quantised_graph(variant: Path) -> None:
    again = read_package(variant)
    for call in (lambda: int8_graph(again), lambda: open_session(again, precision="bf16")):
        message = refusal(call)
        assert "quantised already (it has DynamicQuantizeLinear, MatMulInteger)" in message


def test_int8_refuses_a_graph_without_a_matrix_product(tmp_path: Path) -> None:
    package = read_package(models.write(tmp_path, models.matrix_graph()))
    message = refusal(lambda: int8_graph(package))
    assert "nothing to quantise" in message
    assert "ReduceSum" in message


def test_a_product_of_two_inputs_has_no_weights_to_quantise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    graph = models.model(
        [helper.make_node("MatMul", ["x", "y"], ["logits"])],
        [models.value("x", "float32", ("N", 2)), models.value("y", "float32", (2, 2))],
        [models.value("logits", "float32", ("N", 2))],
    )
    package = read_package(models.write(tmp_path / "model", graph))
    assert "nothing to quantise" in refusal(lambda: int8_graph(package))
    assert kept(tmp_path) == [".lock"]


def test_without_the_extra_the_error_names_it(package: ModelPackage) -> None:
    program = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda n, *a: None if n == 'onnx' else find(n, *a)\n"
        "from batchpredict.errors import ConfigInvalid\n"
        "from batchpredict.model.optimize import int8_graph\n"
        "from batchpredict.model.package import read_package\n"
        "try:\n"
        "    int8_graph(read_package(sys.argv[1]))\n"
        "except ConfigInvalid as error:\n"
        "    print(error)\n"
        "assert 'onnx' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, str(package.directory)],
        env=commands.environment(),
        capture_output=True,
        check=True,
    )
    assert b"pip install 'batchpredict[optimize]'" in done.stdout
    assert done.stderr == b""


def test_a_cache_that_cannot_be_written(
    package: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    message = refusal(lambda: int8_graph(package))
    assert str(tmp_path / "file") in message
    assert "XDG_CACHE_HOME" in message


def test_a_graph_the_quantiser_chokes_on_is_one_line(package: ModelPackage, tmp_path: Path) -> None:
    package.graph_path.write_bytes(b"overwritten after it was read")
    assert "cannot quantise it: " in refusal(lambda: int8_graph(package))
    assert kept(tmp_path) == [".lock"]


def test_the_operators_of_a_graph_are_known(package: ModelPackage) -> None:
    assert package.graph_file.operators == ("Gather", "MatMul", "ReduceMean", "Tanh")
    assert package.graph_file.quantised == ()


# --- openvino


@openvino
def test_openvino_in_the_models_precision(package: ModelPackage) -> None:
    """To the bit whatever rows are beside it."""
    opened = open_session(package, provider="openvino")
    assert (opened.provider, opened.precision) == ("OpenVINOExecutionProvider", "model")
    assert opened.metadata == open_session(package).metadata
    assert opened.inputs == open_session(package).inputs
    exact, near = logits(open_session(package), ids()), logits(opened, ids())
    assert np.allclose(near, exact, atol=1e-5)
    for rows in (2, 3, 7):
        few = logits(opened, {"input_ids": ids()["input_ids"][:rows]})
        assert np.array_equal(few, near[:rows])


@bf16
def test_bf16_selects_openvino_and_is_near(
    package: ModelPackage, capfd: pytest.CaptureFixture[str]
) -> None:
    opened = open_session(package, precision="bf16")
    exact, near = logits(open_session(package), ids()), logits(opened, ids())
    assert (opened.provider, opened.precision) == ("OpenVINOExecutionProvider", "bf16")
    assert 1e-6 < np.abs(near - exact).max() < 0.05
    assert capfd.readouterr() == ("", "")


@bf16
def test_bf16_gives_the_same_bits_with_any_number_of_callers(package: ModelPackage) -> None:
    one, two = (open_session(package, precision="bf16", callers=count) for count in (1, 2))
    assert np.array_equal(logits(one, ids()), logits(two, ids()))


@openvino
def test_nodes_that_openvino_leaves_to_the_cpu_are_refused(tmp_path: Path) -> None:
    graph = models.classifier_graph(["a", "b"], zipmap=True)
    package = read_package(models.write(tmp_path, graph))
    message = refusal(lambda: open_session(package, provider="openvino"))
    assert "OpenVINO cannot run 2 of its nodes (LinearClassifier, ZipMap)" in message


@openvino
def test_a_broken_graph_is_one_line_on_openvino_too(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    package = read_package(models.write(tmp_path, models.text_graph(opset=99)))
    assert "needs opset 99" in refusal(lambda: open_session(package, provider="openvino"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("info", ["flags\t\t: fpu avx512f avx2\n", "Features\t: fp asimd\n", None])
def test_bf16_refuses_a_cpu_without_it(
    package: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, info: str | None
) -> None:
    path = tmp_path / "cpuinfo"
    if info is not None:
        path.write_text(info)
    monkeypatch.setattr(session, "_CPU_INFO", path)
    message = refusal(lambda: open_session(package, precision="bf16"))
    assert "neither amx_bf16 nor avx512_bf16" in message


def test_a_missing_plugin_names_the_extra(
    package: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_openvino", None)
    monkeypatch.setattr(session, "_openvino_device", session._openvino_device.__wrapped__)
    message = refusal(lambda: open_session(package, provider="openvino"))
    assert "pip install 'batchpredict[openvino]'" in message
    assert "onnxruntime-ep-openvino" in message


def test_a_plugin_that_does_not_load_is_one_line(
    package: ModelPackage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plugin = SimpleNamespace(get_library_path=lambda: str(tmp_path / "absent.so"))
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_openvino", plugin)
    monkeypatch.setattr(session, "_openvino_device", session._openvino_device.__wrapped__)
    message = refusal(lambda: open_session(package, provider="openvino"))
    assert "cannot load onnxruntime-ep-openvino" in message


@pytest.mark.usefixtures("made")
def test_a_pickled_session_is_of_the_same_precision(package: ModelPackage) -> None:
    opened = open_session(package, precision="int8", graph=int8_graph(package))
    again = pickle.loads(pickle.dumps(opened))
    assert (again.precision, again.provider) == ("int8", "CPUExecutionProvider")
    feeds = {"input_ids": np.arange(12).reshape(2, 6)}
    plain = open_session(package).run(["logits"], feeds)[0]
    assert (again.run(["logits"], feeds)[0] == opened.run(["logits"], feeds)[0]).all()
    assert (again.run(["logits"], feeds)[0] != plain).any()
