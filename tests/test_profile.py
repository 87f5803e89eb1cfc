"""The profile of a run: it adds up exactly, and is what the output says, however the run went."""

from __future__ import annotations

import csv
import json
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from batchpredict.errors import TryAgain
from batchpredict.model.outputs import HeadOptions
from batchpredict.model.package import read_package
from batchpredict.ops.retry import Request, retry
from batchpredict.run import input_profile
from batchpredict.run import profile as profiles
from batchpredict.run.profile import (
    LOG,
    MOST_LABELS,
    PROBABILITY,
    SUM_UNIT,
    Column,
    Label,
    Profile,
    border,
    log_keys,
    merged,
    probability_keys,
    read_profile,
)
from batchpredict.run.profiler import Profiler
from batchpredict.run.scorer import Binding, Scorer, Tuning
from tests import models
from tests.jobs import receipt_of, rejects_of, score
from tests.test_laws import borders, sizes, texts, words, write_texts

__all__ = ["words"]  # a fixture

EMPTY = Profile("single_label", PROBABILITY)
COLUMN = {"unit": "value", "nulls": 0, "min": 1, "max": 1, "sum": "1", "histogram": {"1": 1}}

counts = st.integers(1, 10**12)
histograms = st.dictionaries(st.integers(-1020, 1020), counts, max_size=5)
scores = st.dictionaries(st.integers(0, 19), counts, max_size=4)
made_labels = st.builds(Label, counts, scores)
numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
columns = st.builds(
    Column,
    st.just("value"),
    st.integers(0, 99),
    numbers,
    numbers,
    numbers.map(lambda value: int(Fraction(value) * SUM_UNIT)),
    histograms,
)
made_profiles = st.builds(
    Profile,
    st.just("single_label"),
    st.just(PROBABILITY),
    counts,
    counts,
    counts,
    st.dictionaries(st.text("abcé<\x1b", max_size=2), made_labels, max_size=6),
    st.builds(Label, counts, scores),
    histograms,
    st.dictionaries(st.sampled_from(["x", "y"]), columns),
)


@pytest.fixture(autouse=True)
def _few_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "MOST_LABELS", 5)


@settings(max_examples=30)
@given(made_profiles, made_profiles, made_profiles)
def test_profiles_add_up_in_any_order(one: Profile, two: Profile, three: Profile) -> None:
    assert merged(one, two) == merged(two, one)
    assert merged(merged(one, two), three) == merged(one, merged(two, three))
    assert merged(one, EMPTY) == merged(EMPTY, one) == merged(EMPTY, merged(one, EMPTY))


@settings(max_examples=60)
@given(made_profiles)
def test_a_receipt_holds_all_of_a_profile(one: Profile) -> None:
    one = merged(one, EMPTY)  # no more labels than it keeps
    text = json.dumps(one.to_json())
    again = read_profile(json.loads(text))
    assert json.dumps(again.to_json()) == text
    assert merged(again, one).to_json() == merged(one, one).to_json()


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        {"task": "x"},
        {"scale": "linear"},
        EMPTY.to_json() | {"rows": -1},
        EMPTY.to_json() | {"rows": "3"},
        EMPTY.to_json() | {"values": {"nan": 3}},
        EMPTY.to_json() | {"values": {"1e99": 3}},
        EMPTY.to_json() | {"labels": {"a": {"rows": 1, "scores": {"1.5": 1}}}},
        EMPTY.to_json() | {"inputs": {"x": {"unit": "value"}}},
        EMPTY.to_json() | {"inputs": {"x": COLUMN | {"sum": "1/3"}}},
        EMPTY.to_json() | {"inputs": {"x": COLUMN | {"sum": "1/0"}}},
        EMPTY.to_json() | {"inputs": {"x": COLUMN | {"sum": "1e9"}}},
    ],
)
def test_what_is_no_profile(content: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_profile(content)


@pytest.mark.parametrize("text", ["0", "-3", "5/2", f"-7/{SUM_UNIT}"])
def test_sums_are_read_as_they_are_written(text: str) -> None:
    content = EMPTY.to_json() | {"inputs": {"x": COLUMN | {"sum": text}}}
    assert read_profile(content).to_json()["inputs"]["x"]["sum"] == text


def test_profiles_of_two_tasks_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="is not regression"):
        merged(EMPTY, Profile("regression", PROBABILITY))


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_bins_of_numbers_are_where_their_borders_say(values: list[float]) -> None:
    found = log_keys(np.array(values, np.float32)).tolist()
    for value, key in zip(values, found, strict=True):
        near, far = border(LOG, key), border(LOG, key + (1 if key >= 0 else -1) * (abs(key) < 1020))
        assert abs(near) <= abs(value)
        assert abs(value) < abs(far) or math.isinf(value)
        assert near * value >= 0
    assert [k for _, k in sorted(zip(values, found, strict=True))] == sorted(found)


def test_bins_of_probabilities() -> None:
    values = np.array([0, 0.049, 0.051, 0.5, 0.949, 0.951, 1, -0.1, 1.1], np.float32)
    assert probability_keys(values).tolist() == [0, 0, 1, 10, 18, 19, 19, 0, 19]


# --- of a scorer


def scorer_of(directory: Path, graph: Any, columns: str, **options: Any) -> Scorer:
    manifest = options.pop("manifest", None)
    package = read_package(str(models.write(directory, graph, manifest=manifest)))
    offered = pa.schema([(name, pa.string()) for name in columns.split()])
    return Scorer(package, Binding(offered), HeadOptions(**options), Tuning(64, 512))


def profile_of(scorer: Scorer, rows: list[dict[str, Any]], cuts: list[int]) -> Profile:
    """Of rows that come in windows which end at `cuts`."""
    found = Profiler(scorer)
    for begin, end in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        if part := rows[begin:end]:
            schema = pa.schema([(name, pa.string()) for name in scorer.encoder.columns])
            batch = pa.RecordBatch.from_pylist(part, schema)
            prepared = scorer.prepare(batch)
            inferred = [scorer.infer(prepared, b) for b in scorer.plan(prepared)]
            found.add(np.arange(begin + 1, end + 1), prepared, scorer.finish(prepared, inferred))
    return found.profile()


@contextmanager
def sampling(block: int, rate: int) -> Iterator[None]:
    """A few rows are many."""
    with pytest.MonkeyPatch.context() as patch:
        head = 3 * block
        patch.setattr(input_profile, "SAMPLE", ((0, head, 1), (head, sys.maxsize, rate)))
        patch.setattr(input_profile, "BLOCK_ROWS", block)
        patch.setattr(input_profile, "_BLOCK_VALUES", 5)
        yield


MANIFEST = """
[inputs.features]
columns = ["x", "y"]
"""
cells = st.one_of(
    st.floats(width=32, allow_nan=False, min_value=-(2.0**120), max_value=2.0**120).map(repr),
    st.sampled_from(["", "0", "-0.0", "1e-42", "-1e-42"]),
)
some_rows = st.lists(
    st.fixed_dictionaries({"x": cells, "y": st.sampled_from(["1", "-2.5", "0.1"])}), max_size=40
)


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    """`prediction` is x + y."""
    directory = tmp_path_factory.mktemp("sums")
    return scorer_of(directory, models.matrix_graph(2), "x y", manifest=MANIFEST)


@settings(max_examples=60)
@given(some_rows, st.lists(st.integers(0, 40), max_size=3), st.integers(1, 9))
def test_parts_of_the_rows_add_up_to_the_whole(
    sums: Scorer, rows: list[dict[str, Any]], cuts: list[int], block: int
) -> None:
    cuts = sorted(min(cut, len(rows)) for cut in cuts)
    with sampling(block, 3):
        whole = profile_of(sums, rows, [])
        assert profile_of(sums, rows, cuts).to_json() == whole.to_json()
    with sampling(block, 1):
        assert profile_of(sums, rows, cuts).sampled == whole.rows


@settings(max_examples=60)
@given(some_rows)
def test_numbers_of_an_input_are_exact(sums: Scorer, rows: list[dict[str, Any]]) -> None:
    rows = [{"x": row["x"] or "", "y": row["y"]} for row in rows]
    found = profile_of(sums, rows, []).inputs
    fed = [np.float32(row["x"]) for row in rows if row["x"] and "inf" not in row["x"]]
    # A row without x has no sum that is finite, so that it is rejected.
    if not fed:
        assert not found or found["x"].mean is None
        return
    column = found["x"]
    total = sum(Fraction(float(value)) for value in fed)
    assert column.total == total * SUM_UNIT
    assert column.mean == float(total / len(fed))
    assert (column.low, column.high) == (float(min(fed)), float(max(fed)))
    assert column.nulls == 0
    keys = log_keys(np.array(fed, np.float32)).tolist()
    assert column.histogram == Counter(keys)


def test_the_sample_stands_for_all_rows(sums: Scorer) -> None:
    rows = [{"x": str(number % 100), "y": "1"} for number in range(60000)]
    found = profile_of(sums, rows, [20000])
    column = found.inputs["x"]
    assert found.rows == 60000
    assert 2000 < found.sampled < 5000
    assert sum(column.histogram.values()) == pytest.approx(60000, rel=0.1)
    assert column.mean == pytest.approx(49.5, rel=0.05)
    assert 500 < found.input_evidence < found.sampled


@pytest.mark.parametrize("period", [64, 256, 1000, 2048, 2049, 4096, 16384])
def test_the_sample_meets_no_period_of_the_input(period: int) -> None:
    """For any windows the same rows, also where some are left out."""
    numbers = np.arange(1, 300001)
    sample = input_profile._Sample()
    whole, parts, left, total, rows = [], [], [], 0.0, 0
    for begin, end, weight in profiles.SAMPLE:
        found = numbers[sample.among(numbers, begin, end, weight)]
        total += weight * (found % period).sum() / period
        rows += weight * len(found)
        whole += found.tolist()
        for cut in range(0, 300000, 7777):
            window = numbers[cut : cut + 7777]
            if window[0] <= end and window[-1] > begin:
                parts += window[sample.among(window, begin, end, weight)].tolist()
        odd = numbers[::2]
        left += odd[sample.among(odd, begin, end, weight)].tolist()
    assert parts == whole
    assert left == [number for number in whole if number % 2]
    assert rows == pytest.approx(300000, rel=0.01)
    assert total / rows == pytest.approx(0.5, rel=0.05)


def test_values_that_are_missing(tmp_path: Path) -> None:
    """Whatever stands in for them."""
    graph = models.model(
        [helper.make_node("Identity", ["x"], ["variable"])],
        [models.value(name, kind, ("N", 1)) for name, kind in INPUTS],
        [models.value("variable", "float32", ("N", 1))],
    )
    manifest = """
missing_values = ["NA"]
[inputs.n]
fill = 7
[inputs.t]
fill = "longer"
"""
    scorer = scorer_of(tmp_path, graph, "x n t", manifest=manifest)
    rows = [
        {"x": "1", "n": "2", "t": "été"},
        {"x": "3", "n": "NA", "t": "NA"},
        {"x": "5", "n": "", "t": ""},
    ]
    found = profile_of(scorer, rows, []).to_json()["inputs"]
    assert list(found) == ["x", "n", "t"]
    assert {n: (c["nulls"], c["min"], c["max"]) for n, c in found.items()} == {
        "x": (0, 1.0, 5.0),
        "n": (2, 2.0, 2.0),
        "t": (1, 0.0, 3.0),
    }
    assert found["t"] == {
        "unit": "characters",
        "nulls": 1,
        "min": 0.0,
        "max": 3.0,
        "mean": 1.5,
        "sum": "3",
        "histogram": {"0": 1, "3": 1},
    }


INPUTS = (("x", "float32"), ("n", "int64"), ("t", "string"))


def logits(tmp_path: Path, rows: list[list[float]], **options: Any) -> Profile:
    """Of a model that gives what it is fed."""
    width, problem = len(rows[0]), options.pop("problem", "")
    names = [f"c{place}" for place in range(width)]
    manifest = f"{problem}\n[inputs.features]\ncolumns = {json.dumps(names)}\n"
    graph = models.logits_graph(width)
    scorer = scorer_of(tmp_path, graph, " ".join(names), manifest=manifest, **options)
    cells = [dict(zip(names, map(str, row), strict=True)) for row in rows]
    return profile_of(scorer, cells, [1])


def test_scores_by_label(tmp_path: Path) -> None:
    rows = [[0.0, 5.0], [math.nan, 9.0], [0.0, 0.1], [3.0, 0.0]]
    found = logits(tmp_path / "a", rows)
    content = found.to_json()
    assert content["labels"] == {
        "0": {"rows": 1, "scores": {"0.95": 1}},
        "1": {"rows": 2, "scores": {"0.5": 1, "0.95": 1}},
    }
    raw = logits(tmp_path / "b", rows, problem='activation = "none"').to_json()
    assert raw["scale"] == LOG
    assert raw["labels"]["1"] == {"rows": 2, "scores": {"0.09375": 1, "5": 1}}
    none = logits(tmp_path / "c", rows, scores="none").to_json()
    assert none["labels"]["1"] == {"rows": 2, "scores": {}}


def test_several_labels_a_row(tmp_path: Path) -> None:
    rows = [[9.0, 9.0], [-9.0, 9.0], [-9.0, -9.0]]
    top = logits(tmp_path / "a", rows, problem='task = "multi_label"')
    assert {name: label.rows for name, label in top.labels.items()} == {"0": 1, "1": 2}
    assert top.rows == 3
    full = logits(tmp_path / "b", rows, problem='task = "multi_label"', scores="all").to_json()
    assert full["labels"] == {
        "0": {"rows": 1, "scores": {"0": 2, "0.95": 1}},
        "1": {"rows": 2, "scores": {"0": 1, "0.95": 2}},
    }


def test_predictions_that_are_numbers(tmp_path: Path, sums: Scorer) -> None:
    found = profile_of(sums, [{"x": "1", "y": "1"}, {"x": "-4", "y": "0.1"}], [1]).to_json()
    assert found["values"] == {"-3.5": 1, "2": 1}
    assert found["labels"] == {}
    rows = [[0.6, 0.8], [0.8, -0.6], [0.0, 0.0], [3.0, 4.0]]
    vectors = logits(tmp_path, rows, problem='task = "embedding"').to_json()
    assert vectors["values"] == {"0": 1, "1": 2, "5": 1}


def test_a_model_that_gives_any_text(tmp_path: Path) -> None:
    """No more than a few labels are kept, the same ones for any windows."""
    scorer = scorer_of(tmp_path, models.string_graph(), "text")
    rows = [{"text": f"{number * 7 % 300:03}"} for number in range(900)] + [{"text": "0" * 500}]
    found = profile_of(scorer, rows, [])
    assert found == profile_of(scorer, rows, [100, 150, 400])
    assert {name: label.rows for name, label in found.labels.items()} == {
        "0" * 100: 1, "000": 3, "001": 3, "002": 3, "003": 3
    }  # fmt: skip
    assert found.others.rows == 901 - 13
    assert MOST_LABELS > 5


# --- of a run


@settings(max_examples=6)
@given(size=sizes, workers=st.integers(1, 3), batch=st.integers(1, 9), stops=st.integers(0, 2))
def test_a_run_has_one_profile(
    words: Path, size: tuple[int, int, int], workers: int, batch: int, stops: int
) -> None:
    """For any number of workers and any windows, and where it was stopped and gone on with."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        source = write_texts(directory / "in.csv", texts(60))
        with sampling(2, 3):
            score(source, words, directory / "a.csv")
        shape: dict[str, Any] = {"workers": workers, "batch_rows": batch}
        with borders(*size), sampling(2, 3):
            for _ in range(stops):
                with pytest.raises(TryAgain):
                    score(source, words, directory / "b.csv", max_seconds=0.0, **shape)
            score(source, words, directory / "b.csv", **shape)
        wanted, found = (receipt_of(directory / f"{n}.csv") for n in "ab")
        assert bool(stops) == bool(found["resumed"]["rows"])
        assert found["profile"] == wanted["profile"]
        with (directory / "a.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
    by_label: dict[str, Counter[str]] = {}
    for row in rows:
        if row["prediction"]:
            bins = by_label.setdefault(row["prediction"], Counter())
            bins[f"{min(int(np.float32(row['score']) * np.float32(20)), 19) / 20:g}"] += 1
    assert {n: x["scores"] for n, x in wanted["profile"]["labels"].items()} == by_label
    assert wanted["profile"]["rows"] == wanted["counts"]["scored"]


def test_mended_rejects_come_to_the_profile(tmp_path: Path) -> None:
    manifest = 'name = "lookup"\n[inputs.x]\nmissing = "reject"\n'
    model = models.write(tmp_path / "lookup", models.lookup_graph(), manifest=manifest)
    source, whole = tmp_path / "in.csv", tmp_path / "whole.csv"
    source.write_text("x\n1\n\n2\nbad\n3\n77\n")
    whole.write_text("x\n1\n\n2\n9\n3\n0\n")
    output = tmp_path / "out.csv"
    score(source, model, output, max_rejects="100%")
    assert len(rejects_of(output)) == 2
    rejects = output.with_name("out.csv.rejects.jsonl")
    mended = rejects.read_text().replace('"record": "bad"', '"record": "9"')
    rejects.write_text(mended.replace('"record": "77"', '"record": "0"'))
    receipt = retry(Request(str(output) + ".receipt.json"), lambda counts, read: None)
    assert receipt is not None
    score(whole, model, tmp_path / "wanted.csv")
    assert (tmp_path / "wanted.csv").read_bytes() == output.read_bytes()
    assert receipt_of(output)["profile"] == receipt_of(tmp_path / "wanted.csv")["profile"]


def test_windows_of_runs_merge(words: Path, tmp_path: Path) -> None:
    """The halves of a file, scored apart, come to the profile of the whole."""
    rows = texts(60)
    found = []
    for name, part in (("a", rows[:25]), ("b", rows[25:]), ("c", rows)):
        source = write_texts(tmp_path / f"{name}.jsonl", part)
        score(source, words, tmp_path / f"{name}.csv")
        found.append(read_profile(receipt_of(tmp_path / f"{name}.csv")["profile"]))
    assert reduce(merged, found[:2]).to_json() == found[2].to_json()
