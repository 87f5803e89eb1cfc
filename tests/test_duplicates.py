"""Rows of equal model input."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchpredict.model import duplicates
from batchpredict.model.binding import bind
from batchpredict.model.duplicates import first_equal, first_seen
from batchpredict.model.package import read_package
from batchpredict.model.session import open_session
from tests import models
from tests.jobs import receipt_of, score

ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=40)


def expected(rows: list[tuple[int, int]]) -> list[int]:
    return [rows.index(row) for row in rows]


def keys(rows: list[tuple[int, int]]) -> list[np.ndarray]:
    return [np.array([row[place] for row in rows], np.uint32) for place in range(2)]


@given(ROWS)
def test_the_first_equal_row(rows: list[tuple[int, int]]) -> None:
    assert first_equal(keys(rows)).tolist() == expected(rows)
    assert first_seen(np.arange(len(rows)), rows, len(rows)).tolist() == expected(rows)


@given(ROWS)
def test_rows_of_one_digest_are_not_taken_for_equal(rows: list[tuple[int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_MULTIPLIERS", np.zeros(64, np.uint64))
        first = first_equal(keys(rows))
    for row, other in enumerate(first.tolist()):
        assert rows[row] == rows[other]
        assert other <= row


def test_many_columns() -> None:
    rows = np.arange(300, dtype=np.uint64) % 7
    columns = [rows * number for number in range(200)]
    assert first_equal(columns).tolist() == (np.arange(300) % 7).tolist()


def test_doubles_of_whole_numbers() -> None:
    """Their last bits are all zero."""
    random = np.random.default_rng(1)
    columns = [random.integers(0, 2, 4000).astype(np.float64).view(np.uint64) for _ in range(9)]
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    assert first_equal(columns).tolist() == [rows.index(row) for row in rows]


def test_bits_count_not_numbers(tmp_path: Path) -> None:
    """0.0 and -0.0 are equal and not the same input; two missing values are."""
    graph = models.echo_graph({"a": "float32", "b": "string"})
    package = read_package(models.write(tmp_path, graph))
    columns = pa.RecordBatch.from_pydict(
        {
            "a": ["0", "-0", "", "", "0", "0.0", "x"],
            "b": ["k", "k", "k", "k", "l", "k", "k"],
        }
    )
    encoder = bind(package, open_session(package), columns.schema, True, {})
    prepared = encoder.prepare(columns)
    assert prepared.first.tolist() == [0, 1, 2, 2, 4, 0, 6]


def test_text_and_receipt(tmp_path: Path) -> None:
    """Equal texts, and different texts of equal tokens, are told and scored like any other."""
    directory = models.write_text_model(tmp_path / "model")
    texts = ["so", "it", "so", " so ", "it", "", "so"]
    source = tmp_path / "in.csv"
    with source.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *enumerate(texts)])
    output = tmp_path / "out.csv"
    score(source, directory, output)
    with output.open(newline="") as file:
        lines = list(csv.DictReader(file))
    by_text = {line["text"].strip(): (line["prediction"], line["score"]) for line in lines}
    assert len(lines) == len(texts)
    for line in lines:
        assert (line["prediction"], line["score"]) == by_text[line["text"].strip()]
    assert receipt_of(output)["counts"]["duplicates"] == 4
