"""Variants of models: what they are made of, how far they agree, and when nothing is written."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import helper, numpy_helper

from batchpredict.errors import (
    BatchPredictError,
    ConfigInvalid,
    InputInvalid,
    OutputNotCreatable,
    TryAgain,
)
from batchpredict.job import Job
from batchpredict.model import graph_edits
from batchpredict.model.manifest import MadeFrom, Manifest, read_manifest
from batchpredict.model.optimize import int8_graph
from batchpredict.model.outputs import HeadOptions
from batchpredict.model.package import ModelPackage, read_package
from batchpredict.model.session import Session, open_session
from batchpredict.model.variants import Made
from batchpredict.ops import optimizing, optimizing_report, variant_directory
from batchpredict.ops.optimizing import Report, Request, optimize
from batchpredict.run.loading import load_model
from batchpredict.run.scorer import Binding, Scorer, Tuning
from tests import commands, models

WIDTH = 64
# Each score as the network gives it, with more digits than its tolerance.
MANIFEST = """\
# A comment that stays.
name = "network"
version = 4

[[golden]]
row = { text = "good fine" }  # and this one
prediction = "PREDICTION"
score = SCORE
"""
VARIANTS = ("model", "int8", "int4")


def network(
    *, training: int | None = None, head: str = "logits", classes: int = 2
) -> onnx.ModelProto:
    """Embedded tokens through two layers, their mean through a head that is too small to quantise.

    `training`: with a BatchNormalization of this training_mode. `head`: the output; "active" is a
    Sigmoid.
    """
    draw = np.random.default_rng(7)
    weights = {
        "table": draw.normal(size=(100, WIDTH)),
        "turned": draw.normal(size=(4 * WIDTH, WIDTH)) / 8,
        "bias": draw.normal(size=4 * WIDTH) / 8,
        "two": draw.normal(size=(4 * WIDTH, WIDTH)) / 16,
        "last": draw.normal(size=(WIDTH, classes)),
        "last_bias": np.linspace(1.4, 0, classes),  # about as many neg as pos
    }
    tensors = [models.tensor(name, value.astype(np.float32)) for name, value in weights.items()]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("Transpose", ["turned"], ["one"]),  # to be folded
        helper.make_node("MatMul", ["embedded", "one"], ["widened"]),
        helper.make_node("Add", ["widened", "bias"], ["shifted"]),
        helper.make_node("Tanh", ["shifted"], ["bent"]),
        helper.make_node("MatMul", ["bent", "two"], ["narrowed"]),
        helper.make_node("ReduceMean", ["narrowed"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("Gemm", ["mean", "last", "last_bias"], [head]),
    ]
    if training is not None:
        tensors += [models.tensor(name, np.full(WIDTH, 0.5, np.float32)) for name in "sbmv"]
        nodes[-1].input[0] = "normal"
        inputs = ["mean", "s", "b", "m", "v"]
        outputs = ["normal", "new_m", "new_v"][: 1 + 2 * training]
        norm = helper.make_node("BatchNormalization", inputs, outputs, training_mode=training)
        nodes.insert(-1, norm)
    if head == "active":
        nodes[-1].output[0] = "logit"
        nodes.append(helper.make_node("Sigmoid", ["logit"], [head]))
    return models.model(
        nodes,
        [models.value("input_ids", "int64", ("batch", "tokens"))],
        [models.value(head, "float32", ("batch", classes))],
        tensors,
        metadata={"author": "a test"},
    )


def texts(rows: int = 40) -> list[str]:
    draw = np.random.default_rng(11)
    return [" ".join(draw.choice(models.WORDS, draw.integers(1, 7))) for _ in range(rows)]


def sample(path: Path, rows: int = 40) -> Path:
    path.write_text("id,text\n" + "".join(f"{i},{text}\n" for i, text in enumerate(texts(rows))))
    return path


def columns(rows: list[str]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"text": rows})


def scores_of(directory: Path, rows: list[str], batch_rows: int = 64) -> pa.RecordBatch:
    binding = Binding(pa.schema([("text", pa.string())]))
    package = read_package(directory)
    scorer = Scorer(
        package, binding, HeadOptions("all"), Tuning(batch_rows, 512), open_session(package)
    )
    return scorer.score(columns(rows)).added


def logits(opened: Session, ids: np.ndarray) -> np.ndarray:
    return np.asarray(opened.run(["logits"], {"input_ids": ids})[0])


def run(
    model: Path, source: Path, target: Path, precision: str = "model", least: float = 0.99
) -> Report:
    job = Job(input_file=(str(source),), model=str(model))
    return optimize(job, Request(precision, str(target), least, 300))


def refusal(kind: type[BatchPredictError], call: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network, with a golden row that it gives itself."""
    directory = tmp_path_factory.mktemp("source") / "network"
    models.write_text_model(directory, network())
    (added,) = scores_of(directory, ["good fine"]).to_pylist()
    manifest = MANIFEST.replace("PREDICTION", added["prediction"])
    manifest = manifest.replace("SCORE", f"{added['score']:.6f}")
    (directory / "batchpredict.toml").write_text(manifest)
    (directory / "README.md").write_text("not read")
    return directory


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Report]]:
    """Each variant and what was said of it. int8: two words of the vocabulary lie near."""
    folder = tmp_path_factory.mktemp("made")
    rows = sample(folder / "in.csv")
    return {
        precision: (folder / precision, run(source, rows, folder / precision, precision, 0.8))
        for precision in VARIANTS
    }


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[onnx.ModelProto], None]:
    """Sets the graph that is "made", for what does not depend on how."""

    def use(graph: onnx.ModelProto) -> None:
        def copy(package: ModelPackage, kind: str, work: Path, made: Path, hold: int) -> Made:
            made.write_bytes(graph.SerializeToString())
            return Made(9, 8, 0)

        monkeypatch.setattr(optimizing, "make_variant", copy)

    return use


# --- what is written


@pytest.mark.parametrize("precision", VARIANTS)
def test_a_variant_is_a_model_directory(
    source: Path, made: dict[str, tuple[Path, Report]], precision: str
) -> None:
    directory, report = made[precision]
    assert report.written
    names = ["batchpredict.toml", "config.json", "model.onnx", "tokenizer.json"]
    assert sorted(path.name for path in directory.iterdir()) == names
    assert sorted(path.name for path in directory.parent.iterdir()) == sorted((*VARIANTS, "in.csv"))
    assert (directory / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    own, found = read_package(source), read_package(directory)
    made_from = found.manifest.made_from
    assert made_from is not None
    assert (made_from.name, made_from.version, made_from.digest) == ("network", "4", own.digest)
    assert (made_from.precision, made_from.rows) == (precision, report.rows)
    assert made_from.agreement == report.agreement
    assert replace(found.manifest, made_from=None) == own.manifest
    assert (
        (directory / "batchpredict.toml")
        .read_text()
        .startswith((source / "batchpredict.toml").read_text().rstrip())
    )
    assert open_session(found).metadata["author"] == "a test"
    model = load_model(Job(input_file=("-",), model=str(directory)))
    assert model.package.digest == found.digest


def test_what_is_left_out_and_what_is_quantised(made: dict[str, tuple[Path, Report]]) -> None:
    sizes = {}
    for precision, (directory, report) in made.items():
        old, new = report.sides
        sizes[precision] = new.bytes / old.bytes
        assert new.bytes == (directory / "model.onnx").stat().st_size
        operators = read_package(directory).graph_file.operators
        assert "Transpose" not in operators  # of a constant
        assert min(new.load_seconds, new.rows_per_second, new.rows_per_cpu_second) > 0
    assert sizes["int4"] < 0.25 < sizes["int8"] < 0.6 < sizes["model"] <= 1.01
    of = {precision: read_package(made[precision][0]).graph_file for precision in VARIANTS}
    assert of["model"].quantised == ()
    assert of["int4"].quantised == ("GatherBlockQuantized", "MatMulNBits")
    assert any(name.startswith("DynamicQuantize") for name in of["int8"].quantised)


def test_folding_and_fusing_changes_no_bit(
    source: Path, made: dict[str, tuple[Path, Report]]
) -> None:
    directory, report = made["model"]
    assert (report.agreement, report.largest_difference, report.changed) == (1.0, 0.0, ())
    assert report.sides[1].nodes < report.sides[0].nodes
    assert scores_of(directory, texts(200)) == scores_of(source, texts(200))


@pytest.mark.parametrize("precision", ["model", "int4"])
def test_a_score_does_not_depend_on_the_batch(
    made: dict[str, tuple[Path, Report]], precision: str
) -> None:
    directory, _ = made[precision]
    rows = texts(200)
    whole = scores_of(directory, rows)
    for batch in (1, 2, 3, 7, 33):
        assert scores_of(directory, rows, batch) == whole
    assert scores_of(directory, rows[::-1]).to_pylist() == whole.to_pylist()[::-1]


def test_int8_is_what_the_option_of_predict_runs(
    source: Path,
    made: dict[str, tuple[Path, Report]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    package = read_package(source)
    asked = open_session(package, precision="int8", graph=int8_graph(package))
    kept = open_session(read_package(made["int8"][0]))
    ids = np.random.default_rng(3).integers(0, 12, (24, 6))
    assert np.array_equal(logits(asked, ids), logits(kept, ids))


def test_golden_rows_are_checked_within_what_the_precision_moves(
    made: dict[str, tuple[Path, Report]], tmp_path: Path
) -> None:
    for precision, (directory, _) in made.items():
        copy = tmp_path / precision
        copy.mkdir()
        for file in directory.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        manifest = copy / "batchpredict.toml"
        text = manifest.read_text()
        score = read_manifest(manifest).golden[0].score
        assert score is not None
        job = Job(input_file=("-",), model=str(copy))
        manifest.write_text(text.replace(f"{score:.6f}", f"{score - 0.02:.6f}"))
        if precision == "model":
            assert "golden row 1: score" in refusal(ConfigInvalid, partial(load_model, job))
        else:
            load_model(job)
        other = {"neg": "pos", "pos": "neg"}[str(read_manifest(manifest).golden[0].prediction)]
        manifest.write_text(
            text.replace(f'"{ {"neg": "pos", "pos": "neg"}[other] }"', f'"{other}"')
        )
        message = refusal(ConfigInvalid, partial(load_model, job))
        assert "golden row 1: prediction" in message


def test_weights_in_another_file_come_into_the_graph(source: Path, tmp_path: Path) -> None:
    models.write_text_model(tmp_path / "model", network())
    onnx.save(
        network(), tmp_path / "model" / "model.onnx", save_as_external_data=True,
        location="weights", size_threshold=0,
    )  # fmt: skip
    report = run(tmp_path / "model", sample(tmp_path / "in.csv"), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "batchpredict.toml", "config.json", "model.onnx", "tokenizer.json",
    ]  # fmt: skip
    assert report.sides[0].bytes > 4 * WIDTH * WIDTH * 4
    assert scores_of(tmp_path / "out", texts()) == scores_of(source, texts())


def test_an_activation_is_applied_once(tmp_path: Path) -> None:
    """Fused into the Gemm before it, a Sigmoid would be no more to be seen."""
    graph = network(head="active", classes=1)
    model = models.write_text_model(tmp_path / "model", graph)
    run(model, sample(tmp_path / "in.csv"), tmp_path / "out")
    assert read_package(tmp_path / "out").graph_file.producer("active") == "Sigmoid"
    assert scores_of(tmp_path / "out", texts()) == scores_of(model, texts())


def test_a_variant_whose_output_means_something_else_is_refused(
    source: Path, tmp_path: Path, stand_in: Callable[[onnx.ModelProto], None]
) -> None:
    graph = network()
    graph.graph.node[-1].output[0] = "raw"
    graph.graph.node.append(helper.make_node("Softmax", ["raw"], ["logits"]))
    stand_in(graph)
    bare = models.write_text_model(tmp_path / "bare", network())
    rows = sample(tmp_path / "in.csv")
    message = refusal(BatchPredictError, lambda: run(bare, rows, tmp_path / "out"))
    assert "would be read in another way" in message
    stand_in(shifted(100.0))
    message = refusal(BatchPredictError, lambda: run(source, rows, tmp_path / "out", least=0.0))
    assert f"{tmp_path}/out/batchpredict.toml: golden row 1" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare", "in.csv"]


def test_training_ends(tmp_path: Path) -> None:
    """What normalises over the rows of a batch makes scores of their neighbours."""
    model = models.write_text_model(tmp_path / "model", network(training=1))
    assert scores_of(model, texts(), 3) != scores_of(model, texts())
    report = run(model, sample(tmp_path / "in.csv"), tmp_path / "out", least=0.0)
    assert report.trained == 1
    assert "1 nodes trained" in optimizing_report.table(report)
    plain = models.write_text_model(tmp_path / "plain", network(training=0))
    assert scores_of(tmp_path / "out", texts()) == scores_of(plain, texts())
    assert scores_of(tmp_path / "out", texts(), 3) == scores_of(plain, texts())


def test_what_is_learnt_and_read_stays() -> None:
    made = network(training=1)
    made.graph.output.append(models.value("new_m", "float32", (WIDTH,)))
    before = made.SerializeToString()
    assert graph_edits.stop_training(made) == 0
    assert made.SerializeToString() == before


@pytest.mark.parametrize(("train", "left"), [("yes", 2), ("no", 3), ("asked", 3), ("said", 2)])
def test_a_dropout_drops_no_more(train: str, left: int) -> None:
    """onnxruntime leaves it where it makes an output of the graph."""
    said = helper.make_node("Constant", [], ["said"], value=models.tensor("", np.True_))
    made = models.model(
        [said, helper.make_node("Dropout", ["x", "ratio", train], ["y"])],
        [models.value("x", "float32", ("N", 4)), models.value("asked", "bool", ())],
        [models.value("y", "float32", ("N", 4))],
        [
            models.tensor("ratio", np.float32(0.5)),
            models.tensor("yes", np.True_),
            models.tensor("no", np.False_),
        ],
    )
    assert graph_edits.stop_training(made) == 3 - left
    assert len(made.graph.node[1].input) == left
    onnx.checker.check_model(made)


# --- agreement


def shifted(by: float) -> onnx.ModelProto:
    """The network with its first label more likely."""
    graph = network()
    for tensor in graph.graph.initializer:
        if tensor.name == "last_bias":
            moved = numpy_helper.to_array(tensor) + np.array([by, 0], np.float32)
            tensor.CopyFrom(models.tensor("last_bias", moved.astype(np.float32)))
    return graph


def test_too_little_agreement_writes_nothing(
    tmp_path: Path, stand_in: Callable[[onnx.ModelProto], None]
) -> None:
    model = models.write_text_model(tmp_path / "model", network())
    rows = sample(tmp_path / "in.csv")
    labels = scores_of(model, texts()).column("prediction").to_pylist()
    stand_in(shifted(100.0))
    report = run(model, rows, tmp_path / "out")
    assert not report.written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "model"]
    first = {text: row for row, text in reversed(list(enumerate(texts(), 1)))}
    expected = sorted(
        {first[t] for t, label in zip(texts(), labels, strict=True) if label == "pos"}
    )
    assert [changed.row for changed in report.changed] == expected
    assert {changed.new for changed in report.changed} == {"neg"}
    assert report.agreement == (len(set(texts())) - len(expected)) / len(set(texts()))
    line = optimizing_report.refusal(report)
    assert line is not None
    assert f"({report.agreement:.4f})" in line
    assert f"row {expected[0]}: pos 0." in line
    assert f"and {len(expected) - 3} more" in line
    just_above = float(np.nextafter(report.agreement, 1))
    assert not run(model, rows, tmp_path / "out", least=just_above).written
    assert run(model, rows, tmp_path / "out", least=report.agreement).written


def test_rows_the_variant_cannot_score_do_not_agree(
    tmp_path: Path, stand_in: Callable[[onnx.ModelProto], None]
) -> None:
    model = models.write_text_model(tmp_path / "model", network())
    graph = network()
    for tensor in graph.graph.initializer:
        if tensor.name == "table":
            table = numpy_helper.to_array(tensor).copy()
            table[models.VOCABULARY["poor"]] = np.nan
            tensor.CopyFrom(models.tensor("table", table))
    stand_in(graph)
    report = run(model, sample(tmp_path / "in.csv"), tmp_path / "out")
    poor = {text for text in texts() if "poor" in text.split()}
    assert len(report.changed) == len(poor)
    assert {changed.new for changed in report.changed} == {None}
    assert "-> no finite score" in optimizing_report.table(report)


@pytest.mark.parametrize(("factor", "agrees"), [(1.005, True), (1.05, False)])
@pytest.mark.parametrize("task", ["regression", "embedding"])
def test_numbers_and_vectors_agree_within_a_hundredth(
    tmp_path: Path,
    stand_in: Callable[[onnx.ModelProto], None],
    task: str,
    factor: float,
    agrees: bool,
) -> None:
    """A vector may be longer, but must not turn."""
    manifest = f'task = "{task}"\n[inputs.features]\ncolumns = ["a", "b"]\n'

    def graph(by: float) -> onnx.ModelProto:
        width = 1 if task == "regression" else 2
        turn = (
            np.array([[1, 0], [0, 1]])
            if task == "regression" or agrees
            else np.array([[1, 0.2], [0, 1]])
        )
        weights = (turn[:, :width] * by).astype(np.float32)
        return models.model(
            [helper.make_node("MatMul", ["features", "weights"], ["out"])],
            [models.value("features", "float32", ("N", 2))],
            [models.value("out", "float32", ("N", width))],
            [models.tensor("weights", weights)],
        )

    base = graph(1.0)
    base.graph.initializer[0].CopyFrom(
        models.tensor("weights", np.eye(2, 1 if task == "regression" else 2, dtype=np.float32))
    )
    model = models.write(tmp_path / "model", base, manifest=manifest)
    (tmp_path / "in.csv").write_text("a,b\n10,0\n-10,4\n3,-9\n")
    stand_in(graph(factor))
    report = run(model, tmp_path / "in.csv", tmp_path / "out")
    assert report.written == agrees
    assert bool(report.changed) != agrees
    if not agrees:
        assert (report.changed[0].cosine is None) == (task == "regression")
        assert optimizing_report.refusal(report)


def test_a_table_is_short_and_json_whole(
    tmp_path: Path, stand_in: Callable[[onnx.ModelProto], None]
) -> None:
    model = models.write_text_model(tmp_path / "model", network())
    stand_in(shifted(100.0))
    source = sample(tmp_path / "in.csv", 200)
    report = run(model, source, tmp_path / "out")
    lines = optimizing_report.table(report).splitlines()
    assert sum(line.startswith("  row ") for line in lines) == 20
    assert f"… and {len(report.changed) - 20} more" in lines[-2]
    found = json.loads(json.dumps(optimizing_report.facts(report)))
    assert len(found["changed"]) == len(report.changed) > 20
    assert (found["written"], found["model"]["name"]) == (None, "model")


# --- what cannot be done


def test_refusals_leave_nothing(source: Path, tmp_path: Path) -> None:
    rows = sample(tmp_path / "in.csv")
    (tmp_path / "empty.csv").write_text("text\n")
    (tmp_path / "there").mkdir()
    tree = models.write_classifier(tmp_path / "tree")
    (tmp_path / "xy.csv").write_text("x,y\n1,2\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    message = refusal(OutputNotCreatable, lambda: run(source, rows, tmp_path / "there"))
    assert "is there already" in message
    message = refusal(OutputNotCreatable, lambda: run(source, rows, tmp_path / "no" / "out"))
    assert "no such file or directory" in message
    message = refusal(InputInvalid, lambda: run(source, tmp_path / "empty.csv", tmp_path / "out"))
    assert "no row to compare" in message
    for precision in ("int8", "int4"):
        message = refusal(
            ConfigInvalid, partial(run, tree, tmp_path / "xy.csv", tmp_path / "out", precision)
        )
        assert "nothing to quantise" in message
        assert "--precision=model" in message
    message = refusal(ConfigInvalid, lambda: run(tree, tmp_path / "xy.csv", tmp_path / "out"))
    assert "nothing to fold, fuse or leave out" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_what_is_quantised_is_not_quantised_again(
    made: dict[str, tuple[Path, Report]], tmp_path: Path
) -> None:
    rows = sample(tmp_path / "in.csv")
    for precision, operator in (("int8", "MatMulNBits"), ("int4", "MatMulNBits")):
        again = made["int4"][0]
        message = refusal(ConfigInvalid, partial(run, again, rows, tmp_path / "out", precision))
        assert "quantised already" in message
        assert operator in message


def test_small_weights_are_not_quantised(tmp_path: Path) -> None:
    weights = np.random.default_rng(5).normal(size=(3, 2)).astype(np.float32)
    graph = models.model(
        [helper.make_node("MatMul", ["features", "weights"], ["logits"])],
        [models.value("features", "float32", ("N", 3))],
        [models.value("logits", "float32", ("N", 2))],
        [models.tensor("weights", weights)],
    )
    manifest = '[inputs.features]\ncolumns = ["a", "b", "c"]\n'
    model = models.write(tmp_path / "model", graph, manifest=manifest)
    (tmp_path / "in.csv").write_text("a,b,c\n1,2,3\n")
    call = lambda: run(model, tmp_path / "in.csv", tmp_path / "out", "int4")  # noqa: E731
    assert "or table that are large" in refusal(ConfigInvalid, call)
    assert not (tmp_path / "out").exists()


def test_two_processes_do_not_make_one_directory(source: Path, tmp_path: Path) -> None:
    part = tmp_path / ".out.part"
    part.mkdir()
    (part / "left").write_text("by a process that was killed")
    rows = sample(tmp_path / "in.csv")
    holder = os.open(part, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    message = refusal(TryAgain, lambda: run(source, rows, tmp_path / "out"))
    assert "another process" in message
    assert (part / "left").exists()
    os.close(holder)
    with variant_directory.draft_of(tmp_path / "out") as draft:
        assert [path.name for path in draft.path.iterdir()] == ["work"]
        refusal(TryAgain, lambda: run(source, rows, tmp_path / "out"))
        (tmp_path / "out").mkdir()
        refusal(OutputNotCreatable, draft.publish)
    assert not part.exists()


def test_the_command(source: Path, tmp_path: Path) -> None:
    sample(tmp_path / "in.csv")
    arguments = ("models", "optimize", source, "--precision=int4", "--sample=in.csv", "-o")
    done = commands.run(*arguments, "out", "--json", "--min-agreement=0.5", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    found = json.loads(done.stdout)
    assert found["written"] == "out"
    assert (tmp_path / "out" / "model.onnx").stat().st_size == found["variant"]["bytes"]
    again = commands.run(*arguments, "out", cwd=tmp_path)
    assert again.returncode == 73
    assert again.stderr.count(b"\n") == 1
    scored = commands.run(
        "--input_file=in.csv", "--model=out", "--output_file=scored.csv", "--quiet", cwd=tmp_path
    )
    assert (scored.returncode, scored.stderr) == (0, b"")


# --- 4 bits


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=70),
        # Below, a step has not all digits of a float32.
        elements=st.floats(-1e6, 1e6, width=32).map(
            lambda value: value if abs(value) > 1e-30 else 0
        ),
    )
)
def test_a_value_is_at_most_half_a_step_away(matrix: np.ndarray) -> None:
    blocks = graph_edits.blocks_of(matrix)
    rows, count = blocks.scales.shape
    cut = blocks.integers.reshape(rows, count, -1).astype(np.float64)
    values = (cut - blocks.zeros[:, :, None]) * blocks.scales[:, :, None]
    error = np.abs(values.reshape(rows, -1)[:, : matrix.shape[1]] - matrix)
    steps = np.repeat(blocks.scales, graph_edits.BLOCK, axis=1)[:, : matrix.shape[1]]
    assert (error <= steps * 0.501).all()


def dequantised(matrix: np.ndarray) -> np.ndarray:
    blocks = graph_edits.blocks_of(matrix)
    rows, count = blocks.scales.shape
    cut = blocks.integers.reshape(rows, count, -1).astype(np.float32)
    values = (cut - blocks.zeros[:, :, None]) * blocks.scales[:, :, None]
    return np.asarray(values.reshape(rows, -1)[:, : matrix.shape[1]])


@pytest.mark.parametrize("turned", [0, 1])
@pytest.mark.parametrize("width", [70, 71, 96])
def test_the_runtime_reads_them_as_we_write_them(tmp_path: Path, width: int, turned: int) -> None:
    """Products with and without an addition, and a table, of widths that fill no whole block."""
    draw = np.random.default_rng(width)
    one = draw.normal(size=(100, width)).astype(np.float32)
    two = draw.normal(size=(width, 62)).astype(np.float32)
    bias = draw.normal(size=62).astype(np.float32)
    three = draw.normal(size=(62, 68)).astype(np.float32)
    graph = models.model(
        [
            helper.make_node("Gather", ["one", "ids"], ["row"]),
            helper.make_node("Gemm", ["row", "two", "bias"], ["second"], transB=turned),
            helper.make_node("MatMul", ["second", "three"], ["logits"]),
        ],
        [models.value("ids", "int64", ("N",))],
        [models.value("logits", "float32", ("N", 68))],
        [
            models.tensor("one", one),
            models.tensor("two", two.T if turned else two),
            models.tensor("bias", bias),
            models.tensor("three", three),
        ],
    )
    even = width % 2 == 0
    assert graph_edits.quantise_to_4_bits(graph) == (3 if even else 2)
    left = {tensor.name for tensor in graph.graph.initializer} & {"one", "two", "three"}
    assert left == (set() if even else {"one"})
    package = read_package(models.write(tmp_path, graph))
    ids = np.arange(100)
    (found,) = open_session(package).run(["logits"], {"ids": ids})
    table = dequantised(one) if even else one
    expected = (table @ dequantised(two.T).T + bias) @ dequantised(three.T).T
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-3)


# --- what it was made from


def described(directory: Path, text: str | None) -> ModelPackage:
    return read_package(models.write_text_model(directory, manifest=text))


ORIGIN = MadeFrom('a "name"\x7f\u2028é', None, "0" * 64, "int8", "1", "2", "3", 10, 0.995, 0.25)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        'name = "x"',
        'name = "x"  # why\n\n[[golden]]\nrow = { text = "so" }\nscore = 0.5',
        'labels = ["a\u2028[made_from]", "b"]\n[made_from]\nprecision = "int4"\n',
        '[made_from]\nprecision = "int4"\n# of it\n\n[[golden]]\nrow = { text = "so" }\nscore = 1',
    ],
)
def test_the_rest_of_a_manifest_stays(tmp_path: Path, text: str | None) -> None:
    package = described(tmp_path / "model", text)
    (tmp_path / "out").mkdir()
    for origin in (ORIGIN, replace(ORIGIN, rows=11)):
        variant_directory.write_manifest(package, tmp_path / "out", origin)
        found = read_manifest(tmp_path / "out" / "batchpredict.toml")
        assert found == replace(package.manifest, made_from=origin)
    written = (tmp_path / "out" / "batchpredict.toml").read_text()
    assert ("# why" in written) == ("# why" in (text or ""))


def test_a_table_that_cannot_be_told_from_the_rest(tmp_path: Path) -> None:
    package = described(tmp_path / "model", 'made_from = { precision = "int4" }\n')
    (tmp_path / "out").mkdir()
    call = lambda: variant_directory.write_manifest(package, tmp_path / "out", ORIGIN)  # noqa: E731
    assert "its [made_from] cannot be replaced" in refusal(ConfigInvalid, call)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('precision = "int2"', "'int2' is not one of model, int8, int4"),
        ("agreement = true", "agreement: must be a number"),
        ("rows = 1.5", "rows: must be a whole number"),
        ("row = 1", "unknown key, did you mean 'rows'?"),
    ],
)
def test_a_wrong_table_is_told(tmp_path: Path, table: str, message: str) -> None:
    path = tmp_path / "batchpredict.toml"
    path.write_text(f"[made_from]\n{table}\n")
    assert message in refusal(ConfigInvalid, lambda: read_manifest(path))
    path.write_text("[made_from]\n")
    assert read_manifest(path) == Manifest(
        made_from=MadeFrom(None, None, None, "model", None, None, None)
    )
