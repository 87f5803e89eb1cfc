"""Scorer: scores that do not depend on batches or neighbours, and rows at fault found."""

from __future__ import annotations

import pickle
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from batchpredict.errors import InputInvalid
from batchpredict.model.contracts import Feeds
from batchpredict.model.outputs import HeadOptions
from batchpredict.model.package import read_package
from batchpredict.model.session import InferenceFailed, Session, open_session
from batchpredict.run.scorer import Binding, Scored, Scorer, Tuning, spread
from tests import models
from tests.jobs import EXAMPLES

TOP = HeadOptions("top", None, (), "")


def scorer_of(
    directory: Path,
    columns: pa.RecordBatch,
    rows: int = 64,
    tokens: int = 512,
    session: Session | None = None,
    options: HeadOptions = TOP,
) -> Scorer:
    package = read_package(directory)
    return Scorer(package, Binding(columns.schema), options, Tuning(rows, tokens), session)


def bits(scored: Scored) -> list[tuple[Any, ...]]:
    """Index, label and the score's bits of every scored row."""
    scores = scored.added.column("score").to_numpy(zero_copy_only=False)
    assert scores.dtype == np.float32
    labels = scored.added.column("prediction").to_pylist()
    return list(zip(scored.indices.tolist(), labels, scores.view(np.uint32).tolist(), strict=True))


def one_by_one(scorer: Scorer, columns: pa.RecordBatch) -> list[tuple[Any, ...]]:
    found = []
    for index in range(columns.num_rows):
        for _, label, score in bits(scorer.score(columns.slice(index, 1))):
            found.append((index, label, score))
    return found


def attention_graph(width: int = 48, words: int = 12) -> onnx.ModelProto:
    """One layer of masked self-attention, layer norm, GELU, mean over the real tokens, two logits.

    The operators that an exported transformer has, and whose results change with shapes.
    """
    seeded = np.random.default_rng(7)

    def random_weights(*shape: int) -> np.ndarray:
        return (seeded.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)

    weights = {
        "table": random_weights(words, width) * 3,
        "query_weights": random_weights(width, width),
        "key_weights": random_weights(width, width),
        "value_weights": random_weights(width, width),
        "wide": random_weights(width, 4 * width),
        "narrow": random_weights(4 * width, width),
        "head": random_weights(width, 2),
        "gain": np.ones(width, np.float32),
        "bias": np.zeros(width, np.float32),
        "scale": np.float32(width**-0.5),
        "never": np.float32(-1e9),
        "unit": np.float32(1),
        "root": np.float32(2**-0.5),
        "half": np.float32(0.5),
        "tokens": np.array([1]),
        "last": np.array([-1]),
    }
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "input_ids"], ["x"]),
        node("MatMul", ["x", "query_weights"], ["query"]),
        node("MatMul", ["x", "key_weights"], ["key"]),
        node("MatMul", ["x", "value_weights"], ["value"]),
        node("Transpose", ["key"], ["key_t"], perm=[0, 2, 1]),
        node("MatMul", ["query", "key_t"], ["raw"]),
        node("Mul", ["raw", "scale"], ["scaled"]),
        node("Cast", ["attention_mask"], ["mask"], to=onnx.TensorProto.FLOAT),
        node("Sub", ["unit", "mask"], ["padding"]),
        node("Mul", ["padding", "never"], ["penalty_flat"]),
        node("Unsqueeze", ["penalty_flat", "tokens"], ["penalty"]),
        node("Add", ["scaled", "penalty"], ["masked"]),
        node("Softmax", ["masked"], ["attention"], axis=-1),
        node("MatMul", ["attention", "value"], ["attended"]),
        node("Add", ["attended", "x"], ["residual"]),
        node("LayerNormalization", ["residual", "gain", "bias"], ["normal"], axis=-1),
        node("MatMul", ["normal", "wide"], ["inner"]),
        node("Mul", ["inner", "root"], ["inner_scaled"]),
        node("Erf", ["inner_scaled"], ["erf"]),
        node("Add", ["erf", "unit"], ["erf_one"]),
        node("Mul", ["inner", "erf_one"], ["gelu_twice"]),
        node("Mul", ["gelu_twice", "half"], ["gelu"]),
        node("MatMul", ["gelu", "narrow"], ["outer"]),
        node("Add", ["outer", "normal"], ["encoded"]),
        node("Unsqueeze", ["mask", "last"], ["mask_wide"]),
        node("Mul", ["encoded", "mask_wide"], ["kept"]),
        node("ReduceSum", ["kept", "tokens"], ["summed"], keepdims=0),
        node("ReduceSum", ["mask", "tokens"], ["count"], keepdims=1),
        node("Div", ["summed", "count"], ["pooled"]),
        node("MatMul", ["pooled", "head"], ["logits"]),
    ]
    shape = ("batch", "tokens")
    return models.model(
        nodes,
        [models.value("input_ids", "int64", shape), models.value("attention_mask", "int64", shape)],
        [models.value("logits", "float32", ("batch", 2))],
        [models.tensor(name, values) for name, values in weights.items()],
    )


def linear_graph(width: int = 37) -> onnx.ModelProto:
    """scikit-learn's classifier on a matrix, as a matrix product."""
    coefficients = np.random.default_rng(3).standard_normal((width, 3)).astype(np.float32)
    return models.model(
        [helper.make_node("Gemm", ["features", "coefficients"], ["logits"])],
        [models.value("features", "float32", ("N", width))],
        [models.value("logits", "float32", ("N", 3))],
        [models.tensor("coefficients", coefficients)],
    )


def random_texts(count: int) -> pa.RecordBatch:
    chosen = random.Random(5)
    texts = [
        " ".join(chosen.choices(models.WORDS, k=chosen.choice([0, 1, 2, 3, 5, 8, 13, 30, 60])))
        for _ in range(count)
    ]
    return pa.RecordBatch.from_pydict({"text": texts})


def flights(count: int) -> pa.RecordBatch:
    path = EXAMPLES / "flights.csv"
    names = path.read_text("utf-8").split("\n", 1)[0].split(",")
    texts = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    table = pyarrow.csv.read_csv(path, convert_options=texts)
    batch: pa.RecordBatch = table.slice(0, count).combine_chunks().to_batches()[0]
    return batch


def numbers(count: int, width: int = 37) -> pa.RecordBatch:
    values = np.random.default_rng(11).standard_normal((count, width))
    return pa.RecordBatch.from_arrays(
        [pa.array(column) for column in values.T], [f"c{i}" for i in range(width)]
    )


@pytest.fixture(params=["attention", "relevance", "delays", "linear"])
def real(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, pa.RecordBatch]:
    """A model directory and rows for it."""
    if request.param == "attention":
        return models.write_text_model(tmp_path, attention_graph()), random_texts(120)
    if request.param == "linear":
        names = ", ".join(f'"c{i}"' for i in range(37))
        manifest = f'task = "single_label"\n[inputs.features]\ncolumns = [{names}]\n'
        return models.write(tmp_path, linear_graph(), manifest=manifest), numbers(150)
    if request.param == "delays":
        return EXAMPLES / "models/delays", flights(300)
    texts = pyarrow.csv.read_csv(
        EXAMPLES / "reports.csv",
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
    )
    (batch,) = texts.select(["text"]).slice(0, 60).combine_chunks().to_batches()
    return EXAMPLES / "models/relevance", batch


def test_scores_are_the_same_to_the_bit_in_any_batches(real: tuple[Path, pa.RecordBatch]) -> None:
    directory, columns = real
    session = open_session(read_package(directory))
    wanted = one_by_one(scorer_of(directory, columns, session=session), columns)
    assert len(wanted) == columns.num_rows
    for rows, tokens in [
        (1, 1),
        (2, 64),
        (3, 100),
        (7, 512),
        (64, 512),
        (64, 8192),
        (4096, 1 << 20),
    ]:
        scorer = scorer_of(directory, columns, rows, tokens, session)
        assert bits(scorer.score(columns)) == wanted, (rows, tokens)


def test_scores_do_not_depend_on_neighbours(real: tuple[Path, pa.RecordBatch]) -> None:
    directory, columns = real
    scorer = scorer_of(directory, columns)
    wanted = {index: (label, score) for index, label, score in bits(scorer.score(columns))}
    chosen = random.Random(1)
    for _ in range(6):
        picked = [chosen.randrange(columns.num_rows) for _ in range(chosen.randint(1, 40))]
        found = bits(scorer.score(columns.take(pa.array(picked))))
        assert [(label, score) for _, label, score in found] == [wanted[row] for row in picked]


def test_callers_side_by_side_get_the_same(real: tuple[Path, pa.RecordBatch]) -> None:
    directory, columns = real
    scorer = scorer_of(directory, columns, 16, 256)
    wanted = bits(scorer.score(columns))
    found: list[list[tuple[Any, ...]]] = []
    threads = [
        threading.Thread(target=lambda: found.append(bits(scorer.score(columns)))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 4


def test_a_pickled_scorer_scores_the_same(real: tuple[Path, pa.RecordBatch]) -> None:
    directory, columns = real
    scorer = scorer_of(directory, columns, 16, 256)
    again = pickle.loads(pickle.dumps(scorer))
    assert again.encoder.columns == scorer.encoder.columns
    assert again.head.schema == scorer.head.schema
    assert bits(again.score(columns)) == bits(scorer.score(columns))


def lookup_graph(known: int = 10) -> onnx.ModelProto:
    """`variable` is row `x` of a table of `known` rows: any other `x` fails the whole batch."""
    return models.model(
        [
            helper.make_node("Cast", ["x"], ["row"], to=onnx.TensorProto.INT64),
            helper.make_node("Gather", ["table", "row"], ["variable"]),
        ],
        [models.value("x", "float32", ("N", 1))],
        [models.value("variable", "float32", ("N", 1))],
        [models.tensor("table", np.arange(known, dtype=np.float32) + 100)],
    )


@settings(max_examples=60)
@given(
    values=st.lists(st.integers(0, 13), min_size=1, max_size=40),
    rows=st.sampled_from([1, 2, 3, 16, 64]),
)
def test_a_failing_batch_is_halved_until_the_rows_are_found(
    tmp_path_factory: pytest.TempPathFactory, values: list[int], rows: int
) -> None:
    directory = models.write(tmp_path_factory.mktemp("lookup"), lookup_graph())
    columns = pa.RecordBatch.from_pydict({"x": pa.array(values, pa.float32())})
    scored = scorer_of(directory, columns, rows).score(columns)
    known = [index for index, x in enumerate(values) if x < 10]
    assert scored.indices.tolist() == known
    assert scored.added.column("prediction").to_pylist() == [values[i] + 100 for i in known]
    assert [(fault.index, fault.code) for fault in scored.faults] == [
        (index, "inference_failed") for index, x in enumerate(values) if x >= 10
    ]
    assert all("indices" in fault.message for fault in scored.faults)


class Recorded(Session):
    """A session that keeps the number of rows of each run, and fails where it is told to."""

    def __init__(self, inner: Session, most_rows: int = 1 << 30) -> None:
        vars(self).update(vars(inner))
        self._inner = inner
        self._most_rows = most_rows
        self.runs: list[int] = []

    def run(self, fetch: Sequence[str], feeds: Feeds) -> list[Any]:
        rows = len(next(iter(feeds.values())))
        self.runs.append(rows)
        if rows > self._most_rows:
            raise InferenceFailed("bad allocation")
        return self._inner.run(fetch, feeds)


def recorded(directory: Path, most_rows: int = 1 << 30) -> Recorded:
    return Recorded(open_session(read_package(directory)), most_rows)


def test_one_row_is_run_as_two(tmp_path: Path) -> None:
    directory = models.write(tmp_path, lookup_graph())
    session = recorded(directory)
    columns = pa.RecordBatch.from_pydict({"x": pa.array([1, 2, 3], pa.float32())})
    scored = scorer_of(directory, columns, 2, session=session).score(columns)
    assert session.runs == [2, 2]
    assert scored.added.column("prediction").to_pylist() == [101, 102, 103]


def test_a_batch_that_is_only_too_large_costs_no_row(tmp_path: Path) -> None:
    directory = models.write(tmp_path, lookup_graph(20))
    session = recorded(directory, most_rows=4)
    columns = pa.RecordBatch.from_pydict({"x": pa.array(range(20), pa.float32())})
    scored = scorer_of(directory, columns, 64, session=session).score(columns)
    assert scored.faults == ()
    assert scored.added.column("prediction").to_pylist() == [*range(100, 120)]
    assert max(session.runs) == 20


def test_one_bad_row_of_many_costs_few_runs(tmp_path: Path) -> None:
    directory = models.write(tmp_path, lookup_graph(1024))
    session = recorded(directory)
    columns = pa.RecordBatch.from_pydict(
        {"x": pa.array([*range(700), 2000, *range(701, 1024)], pa.float32())}
    )
    scored = scorer_of(directory, columns, 1024, session=session).score(columns)
    assert [fault.index for fault in scored.faults] == [700]
    assert len(session.runs) == 2 * 10 + 1


def test_equal_rows_are_inferred_once(tmp_path: Path) -> None:
    directory = models.write(tmp_path, lookup_graph())
    session = recorded(directory)
    columns = pa.RecordBatch.from_pydict({"x": pa.array([3, 1, 3, 3, 1, 7] * 5, pa.float32())})
    scored = scorer_of(directory, columns, 64, session=session).score(columns)
    assert session.runs == [3]
    assert scored.added.column("prediction").to_pylist() == [103, 101, 103, 103, 101, 107] * 5


def test_a_fault_is_the_fault_of_every_equal_row(tmp_path: Path) -> None:
    directory = models.write(tmp_path, lookup_graph())
    session = recorded(directory)
    columns = pa.RecordBatch.from_pydict({"x": pa.array([99, 1, 99, 1, 99], pa.float32())})
    scored = scorer_of(directory, columns, 64, session=session).score(columns)
    assert [fault.index for fault in scored.faults] == [0, 2, 4]
    assert len({fault.message for fault in scored.faults}) == 1
    assert scored.indices.tolist() == [1, 3]


def test_no_row_that_can_be_scored(tmp_path: Path) -> None:
    directory = models.write(tmp_path, lookup_graph())
    columns = pa.RecordBatch.from_pydict({"x": pa.array([99, 98], pa.float32())})
    scorer = scorer_of(directory, columns)
    scored = scorer.score(columns)
    assert len(scored.indices) == 0
    assert scored.added.num_rows == 0
    assert scored.added.schema == scorer.head.schema
    assert [fault.index for fault in scored.faults] == [0, 1]
    assert spread(scored, 2).to_pylist() == [{"prediction": None}] * 2


def test_no_rows_at_all(tmp_path: Path) -> None:
    directory = models.write(tmp_path, lookup_graph())
    columns = pa.RecordBatch.from_pydict({"x": pa.array([], pa.float32())})
    scored = scorer_of(directory, columns).score(columns)
    assert (len(scored.indices), scored.added.num_rows, scored.faults) == (0, 0, ())


def test_rows_are_lost_to_the_encoder_the_session_and_the_head(tmp_path: Path) -> None:
    """Faults of all three come out together, in order of the rows."""
    table = np.array([1, np.nan, 3], np.float32)
    graph = lookup_graph()
    graph.graph.initializer[0].CopyFrom(models.tensor("table", table))
    directory = models.write(tmp_path, graph)
    columns = pa.RecordBatch.from_pydict({"x": ["2", "1", "what", "7", "0", "1"]})
    scored = scorer_of(directory, columns, 4).score(columns)
    assert scored.indices.tolist() == [0, 4]
    assert scored.added.column("prediction").to_pylist() == [3, 1]
    assert [(fault.index, fault.code) for fault in scored.faults] == [
        (1, "not_finite"), (2, "bad_type"), (3, "inference_failed"), (5, "not_finite"),
    ]  # fmt: skip


def test_a_frame_keeps_its_index_and_rows_without_score_are_null(tmp_path: Path) -> None:
    directory = models.write(tmp_path, lookup_graph())
    frame = pd.DataFrame(
        {"other": ["a", "b", "c"], "x": [3.0, 99.0, 5.0]}, index=["first", "second", "second"]
    )
    offered = pa.RecordBatch.from_pydict({"x": pa.array([], pa.float64())})
    result = scorer_of(directory, offered).score_frame(frame)
    assert result.index.tolist() == ["first", "second", "second"]
    assert list(result.columns) == ["prediction"]
    assert result["prediction"].isna().tolist() == [False, True, False]
    assert result["prediction"].tolist()[::2] == [103, 105]
    assert list(frame.columns) == ["other", "x"]


def test_a_frame_of_texts(tmp_path: Path) -> None:
    directory = models.write_text_model(tmp_path)
    offered = pa.RecordBatch.from_pydict({"text": pa.array([], pa.string())})
    scorer = scorer_of(directory, offered)
    frame = pd.DataFrame({"text": ["bad", "good good", None]}, index=[7, 3, 5])
    result = scorer.score_frame(frame)
    assert result.index.tolist() == [7, 3, 5]
    assert result["prediction"].tolist()[:2] == ["neg", "pos"]
    assert result["score"].tolist()[:2] == pytest.approx(
        [np.e / (np.e + 1), np.e**2 / (np.e**2 + 1)]
    )
    assert scorer.score_frame(frame.iloc[:0]).empty


def test_columns_that_do_not_fit_are_told_at_once(tmp_path: Path) -> None:
    directory = models.write(tmp_path, lookup_graph())
    with pytest.raises(InputInvalid, match="'x'"):
        scorer_of(directory, pa.RecordBatch.from_pydict({"xx": [1.0], "y": [1.0]}))
