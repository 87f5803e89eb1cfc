"""Raw outputs to prediction columns: every task, who decides which, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from batchpredict.errors import BatchPredictError, ConfigInvalid, UsageError
from batchpredict.model.contracts import Fault
from batchpredict.model.decoding import activated
from batchpredict.model.outputs import HeadOptions, TaskHead, resolve_head
from batchpredict.model.package import read_package
from batchpredict.model.session import Session, open_session
from tests import models

LIST = pa.list_(pa.float32())


class Opened:
    """A model, its head, and what the head makes of given features."""

    def __init__(self, directory: Path, graph: Any, options: HeadOptions, **files: Any) -> None:
        package = read_package(models.write(directory, graph, **files))
        self.session: Session = open_session(package)
        self.head: TaskHead = resolve_head(package, self.session, options)

    def columns(self, features: Any) -> tuple[pa.RecordBatch, tuple[Fault, ...]]:
        dtype = self.session.inputs[0].dtype
        name = self.session.inputs[0].name
        array = np.asarray(features, object if dtype == "string" else dtype)
        raw = self.session.run(self.head.fetch, {name: array})
        columns, faults = self.head.columns(self.head.tensors(raw, len(array)))
        assert columns.schema == self.head.schema
        return columns, faults


def opened(directory: Path, graph: Any, manifest: str | None = None, **given: Any) -> Opened:
    names = ("scores", "threshold", "outputs", "prefix")
    options = HeadOptions(**{name: given.pop(name) for name in names if name in given})
    return Opened(directory, graph, options, manifest=manifest, **given)


def close(column: pa.Array, expected: list[float]) -> bool:
    return bool(np.allclose(column.to_numpy(), expected, rtol=1e-6, atol=0))


def sigmoid(value: float) -> float:
    return float(1 / (1 + np.exp(-value)))


CONFIG = {"id2label": {"0": "neg", "1": "pos"}}


# --- single label


def test_logits_of_single_label(tmp_path: Path) -> None:
    made = opened(tmp_path, models.logits_graph(3))
    columns, faults = made.columns([[1, 2, 0], [5, 0, 5]])
    assert made.head.task == "single_label"
    assert made.head.score_is_probability
    assert faults == ()
    assert columns.schema == pa.schema([("prediction", pa.string()), ("score", pa.float32())])
    assert columns["prediction"].to_pylist() == ["1", "0"]
    e = np.exp(1)
    assert close(columns["score"], [e / (1 + e + 1 / e), 1 / (2 + np.exp(-5))])


def test_scores_all_and_none(tmp_path: Path) -> None:
    made = opened(tmp_path, models.logits_graph(2), config=CONFIG, scores="all", prefix="m_")
    columns, _ = made.columns([[0, 1]])
    assert columns.schema.names == ["m_prediction", "m_score", "m_score_neg", "m_score_pos"]
    assert columns["m_prediction"].to_pylist() == ["pos"]
    assert close(columns["m_score_neg"], [sigmoid(-1)])
    assert close(columns["m_score_pos"], [sigmoid(1)])
    assert columns["m_score"] == columns["m_score_pos"]

    bare = opened(tmp_path, models.logits_graph(2), scores="none")
    assert bare.head.schema.names == ["prediction"]


def test_large_logits_do_not_overflow(tmp_path: Path) -> None:
    columns, faults = opened(tmp_path, models.logits_graph(2)).columns([[1e30, -1e30]])
    assert columns["score"].to_pylist() == [1.0]
    assert faults == ()


def test_a_threshold_moves_two_labels(tmp_path: Path) -> None:
    graph = models.logits_graph(2)
    rows = [[0, -1], [0, 1]]
    half = opened(tmp_path, graph, config=CONFIG)
    assert half.columns(rows)[0]["prediction"].to_pylist() == ["neg", "pos"]
    low = opened(tmp_path, graph, config=CONFIG, threshold=0.25)
    columns, _ = low.columns(rows)
    assert columns["prediction"].to_pylist() == ["pos", "pos"]
    assert close(columns["score"], [sigmoid(-1), sigmoid(1)])
    declared = opened(tmp_path, graph, "threshold = 0.8", config=CONFIG)
    assert declared.columns(rows)[0]["prediction"].to_pylist() == ["neg", "neg"]
    beaten = opened(tmp_path, graph, "threshold = 0.8", config=CONFIG, threshold=0.1)
    assert beaten.columns(rows)[0]["prediction"].to_pylist() == ["pos", "pos"]


def test_equal_logits(tmp_path: Path) -> None:
    argmax = opened(tmp_path, models.logits_graph(2), config=CONFIG)
    assert argmax.columns([[1, 1]])[0]["prediction"].to_pylist() == ["neg"]
    binary = opened(tmp_path, models.logits_graph(2), 'task = "binary"', config=CONFIG)
    assert binary.head.threshold == 0.5
    assert binary.columns([[1, 1]])[0]["prediction"].to_pylist() == ["pos"]


# --- binary, multi-label, regression, embedding


@pytest.mark.parametrize("flat", [False, True])
def test_binary_with_one_logit(tmp_path: Path, flat: bool) -> None:
    graph = models.logits_graph(1, flat=flat)
    made = opened(tmp_path, graph, scores="all", config=CONFIG)
    columns, _ = made.columns([-1, 2, 0] if flat else [[-1], [2], [0]])
    assert made.head.task == "binary"
    assert columns["prediction"].to_pylist() == ["neg", "pos", "pos"]
    assert close(columns["score"], [sigmoid(1), sigmoid(2), 0.5])
    assert close(columns["score_pos"], [sigmoid(-1), sigmoid(2), 0.5])
    assert close(columns["score_neg"], [sigmoid(1), sigmoid(-2), 0.5])
    strict = opened(tmp_path, graph, threshold=0.9, config={"id2label": {"0": "LABEL_0"}})
    columns, _ = strict.columns([2, 3] if flat else [[2], [3]])
    assert columns["prediction"].to_pylist() == ["0", "1"]


def test_multi_label(tmp_path: Path) -> None:
    config = {
        "id2label": {"0": "a", "1": "b", "2": "c"},
        "problem_type": "multi_label_classification",
    }
    graph = models.logits_graph(3)
    made = opened(tmp_path, graph, config=config, scores="all")
    columns, _ = made.columns([[1, -1, 0], [-1, -1, -1], [9, 9, 9]])
    assert made.head.task == "multi_label"
    assert columns.schema.names == ["prediction", "score_a", "score_b", "score_c"]
    assert columns.schema.field("prediction").type == pa.list_(pa.string())
    assert columns["prediction"].to_pylist() == [["a", "c"], [], ["a", "b", "c"]]
    assert close(columns["score_b"], [sigmoid(-1), sigmoid(-1), sigmoid(9)])
    assert opened(tmp_path, graph, config=config).head.schema.names == ["prediction"]
    low = opened(tmp_path, graph, config=config, threshold=0.2)
    assert low.columns([[-1, -9, -1]])[0]["prediction"].to_pylist() == [["a", "c"]]


def test_regression(tmp_path: Path) -> None:
    made = opened(tmp_path, models.matrix_graph(2), scores="all")
    columns, _ = made.columns([[1, 2], [3, 4.5]])
    assert made.head.task == "regression"
    assert columns.schema == pa.schema([("prediction", pa.float32())])
    assert columns["prediction"].to_pylist() == [3, 7.5]
    double = opened(tmp_path, models.logits_graph(1, output="y", dtype="float64"))
    columns, _ = double.columns([[0.1]])
    assert columns.schema == pa.schema([("prediction", pa.float64())])
    assert columns["prediction"].to_pylist() == [0.1]
    said = opened(tmp_path, models.logits_graph(1), config={"problem_type": "regression"})
    assert said.columns([[-3]])[0]["prediction"].to_pylist() == [-3]


def test_embedding(tmp_path: Path) -> None:
    made = opened(tmp_path, models.logits_graph(3, output="sentence_embedding"))
    columns, _ = made.columns([[1, 2, 3], [4, 5, 6]])
    assert made.head.task == "embedding"
    assert columns.schema == pa.schema([("prediction", LIST)])
    assert columns["prediction"].to_pylist() == [[1, 2, 3], [4, 5, 6]]
    for name in ("pooler_output", "text_embeds"):
        assert opened(tmp_path, models.logits_graph(3, output=name)).head.task == "embedding"
    declared = opened(tmp_path, models.two_heads_graph(), 'task = "embedding"\noutput = "topic"')
    assert declared.columns([[1, 2]])[0]["prediction"].to_pylist() == [[1, 2, 1]]


def test_token_embeddings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="pooling"):
        opened(tmp_path, models.token_embedding_graph())


# --- activations


@pytest.mark.parametrize(
    ("graph", "manifest", "score", "probability"),
    [
        (models.logits_graph(2), None, sigmoid(0.5), True),
        (models.logits_graph(2), 'activation = "none"', 0.75, False),
        (models.logits_graph(2, output="probabilities"), None, 0.75, True),
        (models.logits_graph(2), 'activation = "sigmoid"', sigmoid(0.75), True),
        (models.activated_graph("Softmax", 2), None, sigmoid(0.5), True),
        (models.activated_graph("Softmax", 2), 'activation = "softmax"', None, True),
    ],
)
def test_softmax_once(
    tmp_path: Path, graph: Any, manifest: str | None, score: float | None, probability: bool
) -> None:
    made = opened(tmp_path, graph, manifest)
    columns, _ = made.columns([[0.25, 0.75]])
    expected = sigmoid(sigmoid(0.5) - sigmoid(-0.5)) if score is None else score
    assert close(columns["score"], [expected])
    assert made.head.score_is_probability is probability


def test_sigmoid_inside_the_graph(tmp_path: Path) -> None:
    made = opened(tmp_path, models.activated_graph("Sigmoid", 1))
    assert made.head.task == "binary"
    assert close(made.columns([[2]])[0]["score"], [sigmoid(2)])


# --- scikit-learn


@pytest.mark.parametrize("zipmap", [False, True])
@pytest.mark.parametrize(
    ("classes", "labels"),
    [(["b", "c", "a"], ["b", "c", "a"]), ([7, 3, 5], ["7", "3", "5"])],
)
def test_label_and_probabilities(
    tmp_path: Path, classes: list[Any], labels: list[str], zipmap: bool
) -> None:
    made = opened(tmp_path, models.classifier_graph(classes, zipmap=zipmap), scores="all")
    columns, _ = made.columns([[0, 1, 2], [3, 0, 0]])
    assert made.head.score_is_probability
    assert columns["prediction"].to_pylist() == [labels[2], labels[0]]
    total = 1 + np.exp(1) + np.exp(2)
    for label, value in zip(labels, (1, np.exp(1), np.exp(2)), strict=True):
        assert abs(columns[f"score_{label}"][0].as_py() - value / total) < 1e-6
    assert abs(columns["score"][0].as_py() - np.exp(2) / total) < 1e-6
    assert abs(columns["score"][1].as_py() - np.exp(3) / (np.exp(3) + 2)) < 1e-6


def test_names_for_whole_numbers(tmp_path: Path) -> None:
    graph = models.classifier_graph([0, 1])
    made = opened(tmp_path, graph, 'labels = ["on time", "late"]', scores="all")
    columns, _ = made.columns([[0, 1], [1, 0]])
    assert columns["prediction"].to_pylist() == ["late", "on time"]
    assert close(columns["score_late"], [sigmoid(1), sigmoid(-1)])


def test_a_threshold_on_probabilities(tmp_path: Path) -> None:
    made = opened(tmp_path, models.classifier_graph(["no", "yes"], zipmap=True), threshold=0.1)
    columns, _ = made.columns([[1, 0], [9, 0]])
    assert columns["prediction"].to_pylist() == ["yes", "no"]
    assert close(columns["score"][:1], [sigmoid(-1)])


@pytest.mark.parametrize("zipmap", [False, True])
def test_decision_values_are_no_probabilities(tmp_path: Path, zipmap: bool) -> None:
    graph = models.classifier_graph(["a", "b", "c"], zipmap=zipmap, transform="NONE")
    made = opened(tmp_path, graph)
    columns, _ = made.columns([[-4, -2, -3]])
    assert not made.head.score_is_probability
    assert columns["prediction"].to_pylist() == ["b"]
    assert columns["score"].to_pylist() == [-2]


def test_one_decision_value_for_two_classes(tmp_path: Path) -> None:
    made = opened(tmp_path, models.decision_graph(["no", "yes"]), scores="all")
    columns, _ = made.columns([[-2, 2], [3, -3]])
    assert not made.head.score_is_probability
    assert columns["prediction"].to_pylist() == ["yes", "no"]
    assert columns["score"].to_pylist() == [2, 3]
    assert columns["score_no"].to_pylist() == [-2, 3]
    assert columns["score_yes"].to_pylist() == [2, -3]


def test_zipmap_alone(tmp_path: Path) -> None:
    graph = models.classifier_graph(["b", "c", "a"], zipmap=True)
    made = opened(tmp_path, graph, 'output = "output_probability"', scores="all")
    columns, _ = made.columns([[0, 9, 0], [0, 0, 9]])
    assert made.head.score_is_probability
    assert columns.schema.names[2:] == ["score_b", "score_c", "score_a"]
    assert columns["prediction"].to_pylist() == ["c", "a"]
    assert columns["score"] == pa.array(
        [columns["score_c"][0].as_py(), columns["score_a"][1].as_py()], pa.float32()
    )


def test_zipmaps_classes_beat_those_of_the_node_before_it(tmp_path: Path) -> None:
    graph = models.classifier_graph([0, 1], zipmap=True)
    zipmap = models.classifier_graph(["no", "yes"], zipmap=True)
    graph.graph.node[1].CopyFrom(zipmap.graph.node[1])
    graph.graph.output[1].CopyFrom(zipmap.graph.output[1])
    made = opened(tmp_path, graph, 'output = "output_probability"')
    assert made.head.labels == ("no", "yes")
    assert made.columns([[0, 9]])[0]["prediction"].to_pylist() == ["yes"]


def test_labels_alone(tmp_path: Path) -> None:
    made = opened(tmp_path, models.string_graph())
    columns, _ = made.columns([["x"], ["y"]])
    assert columns.schema.names == ["prediction"]
    assert columns["prediction"].to_pylist() == ["x", "y"]


def test_declared_labels_that_are_not_the_graphs(tmp_path: Path) -> None:
    graph = models.classifier_graph(["a", "b"])
    with pytest.raises(ConfigInvalid, match="classes are a, b"):
        opened(tmp_path, graph, 'labels = ["x", "y"]')
    with pytest.raises(ConfigInvalid, match="2 classes"):
        opened(tmp_path, graph, 'labels = ["x", "y", "z"]')
    reordered = opened(tmp_path, graph, 'labels = ["b", "a"]', scores="all")
    assert reordered.head.labels == ("a", "b")


# --- further outputs


def test_further_outputs(tmp_path: Path) -> None:
    graph = models.two_heads_graph()
    assert opened(tmp_path, graph).head.fetch == ("logits",)
    names = ("topic", "length", "embedding", "logits")
    made = opened(tmp_path, graph, outputs=names, prefix="p_")
    columns, _ = made.columns([[1, 2], [4, 3]])
    assert made.head.fetch == ("logits", "topic", "length", "embedding")
    assert columns.schema == pa.schema(
        [
            ("p_prediction", pa.string()),
            ("p_score", pa.float32()),
            ("p_topic", LIST),
            ("p_length", pa.float32()),
            ("p_embedding", LIST),
            ("p_logits", LIST),
        ]
    )
    assert columns["p_prediction"].to_pylist() == ["1", "0"]
    assert columns["p_topic"].to_pylist() == [[1, 2, 1], [4, 3, 4]]
    assert columns["p_length"].to_pylist() == [3, 7]
    assert columns["p_embedding"].to_pylist() == [[-1, -2], [-4, -3]]


def test_zipmap_and_labels_as_further_outputs(tmp_path: Path) -> None:
    graph = models.classifier_graph(["b", "a"], zipmap=True)
    made = opened(tmp_path, graph, outputs=("label", "output_probability"))
    columns, _ = made.columns([[1, 0]])
    assert columns["label"].to_pylist() == ["b"]
    assert np.allclose(columns["output_probability"][0].as_py(), [sigmoid(1), sigmoid(-1)])


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"outputs": ("topics",)}, UsageError, "did you mean 'topic'.*logits, topic, embedding"),
        ({"outputs": ("tokens",)}, UsageError, "--outputs tokens"),
        ({"manifest": 'output = "logit"'}, ConfigInvalid, "output: .*did you mean 'logits'"),
        ({"config": {"id2label": {"0": "a", "1": "b", "2": "c"}}}, ConfigInvalid, "2 columns, 3"),
        ({"config": {"problem_type": "ranking"}}, ConfigInvalid, "problem_type: 'ranking'"),
        ({"manifest": 'task = "binary"\noutput = "topic"'}, ConfigInvalid, "task: binary"),
        ({"manifest": 'output = "topic"', "threshold": 0.5}, UsageError, "--threshold"),
        ({"manifest": 'output = "topic"\nthreshold = 0.5'}, ConfigInvalid, "threshold: "),
        ({"manifest": 'output = "tokens"'}, ConfigInvalid, "pooling"),
    ],
)
def test_what_cannot_be_resolved(
    tmp_path: Path, given: dict[str, Any], error: type[BatchPredictError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        opened(tmp_path, models.two_heads_graph(), **given)
    assert "\n" not in str(caught.value)


def test_several_outputs_of_no_known_name(tmp_path: Path) -> None:
    graph = models.echo_graph({"a": "float32", "b": "float32"})
    with pytest.raises(ConfigInvalid, match=r"a_out float32.*set `output` in batchpredict\.toml"):
        opened(tmp_path, graph)
    assert opened(tmp_path, graph, 'output = "b_out"').head.fetch == ("b_out",)


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    graph = models.logits_graph(2, output="score")
    with pytest.raises(ConfigInvalid, match="would be named score"):
        opened(tmp_path, graph, outputs=("score",))


# --- what rows give


def test_scores_that_are_not_finite(tmp_path: Path) -> None:
    nan, inf = np.nan, np.inf
    made = opened(tmp_path, models.logits_graph(2), scores="all")
    columns, faults = made.columns([[0, 1], [nan, 1], [inf, inf], [1, -inf]])
    assert [(fault.index, fault.code) for fault in faults] == [(1, "not_finite"), (2, "not_finite")]
    assert columns["prediction"].to_pylist() == ["1", None, None, "0"]
    assert columns["score_0"].null_count == 2
    number = opened(tmp_path, models.matrix_graph(1))
    assert [fault.index for fault in number.columns([[1], [nan], [inf]])[1]] == [1, 2]
    vector = opened(tmp_path, models.logits_graph(2, output="embedding"))
    columns, faults = vector.columns([[1, 2], [nan, 1]])
    assert columns["prediction"].to_pylist() == [[1, 2], None]
    assert [fault.index for fault in faults] == [1]
    config = {"problem_type": "multi_label_classification"}
    several = opened(tmp_path, models.logits_graph(2), config=config)
    columns, _ = several.columns([[1, 2], [nan, 1]])
    assert columns["prediction"].to_pylist() == [["0", "1"], None]


def test_a_graph_that_loses_rows(tmp_path: Path) -> None:
    made = opened(tmp_path, models.logits_graph(2))
    with pytest.raises(ConfigInvalid, match=r"output logits: shape .* for 3 rows"):
        made.head.tensors([np.zeros((2, 2), np.float32)], 3)


def test_maps_with_other_classes(tmp_path: Path) -> None:
    made = opened(tmp_path, models.classifier_graph(["a", "b"], zipmap=True))
    with pytest.raises(ConfigInvalid, match="classes"):
        made.head.tensors([np.array(["a"], object), [{"a": 0.5, "c": 0.5}]], 1)


def test_no_rows(tmp_path: Path) -> None:
    for number, graph in enumerate(
        (models.logits_graph(3), models.matrix_graph(2), models.classifier_graph(["a", "b"]))
    ):
        made = opened(tmp_path / str(number), graph, scores="all")
        width = made.session.inputs[0].shape[1]
        assert isinstance(width, int)
        columns, faults = made.columns(np.zeros((0, width), np.float32))
        assert (columns.num_rows, faults) == (0, ())


FLOATS = st.floats(-1e4, 1e4, width=32)


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(1, 20)), elements=FLOATS),
    st.sampled_from(["softmax", "sigmoid", "none"]),
)
def test_a_row_scores_the_same_alone(values: np.ndarray, activation: str) -> None:
    together = activated(values, activation)
    alone = np.concatenate([activated(row[None], activation) for row in values])
    assert together.tobytes() == alone.tobytes()
    if activation == "softmax":
        assert np.allclose(together.sum(axis=1), 1)
    if activation != "none":
        assert ((together >= 0) & (together <= 1)).all()
