"""Precisions side by side on the user's own rows."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from batchpredict.errors import InputInvalid
from batchpredict.job import Job
from batchpredict.model import session
from batchpredict.model.session import InferenceFailed
from batchpredict.ops.compare import Compared, Comparison, compare, facts, table
from batchpredict.run.loading import LoadedModel, load_model
from tests import models

HAS_BF16 = find_spec("onnxruntime_ep_openvino") is not None and bool(
    session._cpu_flags() & session._BF16_FLAGS
)
ROWS = 20
MANIFEST = '[inputs.features]\ncolumns = ["a", "b", "c"]\n'


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def matmul(directory: Path, classes: int, output: str = "logits") -> Path:
    weights = np.random.default_rng(5).normal(size=(3, classes)).astype(np.float32)
    graph = models.model(
        [helper.make_node("MatMul", ["features", "weights"], [output])],
        [models.value("features", "float32", ("N", 3))],
        [models.value(output, "float32", ("N", classes))],
        [models.tensor("weights", weights)],
    )
    return models.write(directory, graph, manifest=MANIFEST)


def rows(path: Path, bad: int | None = None) -> Path:
    values = np.random.default_rng(6).normal(size=(ROWS, 3)).round(3).tolist()
    lines = [",".join(map(str, row)) for row in values]
    if bad is not None:
        lines[bad] = "x,1,1"
    path.write_text("a,b,c\n" + "\n".join(lines) + "\n")
    return path


def job(model: Path, source: Path) -> Job:
    return Job(input_file=(str(source),), model=str(model))


def by_name(comparison: Comparison) -> dict[str, Compared]:
    return {entry.precision: entry for entry in comparison.precisions}


def test_every_precision_is_measured_or_refused(tmp_path: Path) -> None:
    asked = job(matmul(tmp_path / "model", 3), rows(tmp_path / "in.csv"))
    comparison = compare(asked, seconds=1)
    own, bf16, int8 = comparison.precisions
    assert comparison.rows == ROWS
    assert (own.precision, own.same_prediction, own.largest_difference) == ("model", 1.0, 0.0)
    assert own.rows_per_second is not None
    assert own.rows_per_second > 0
    assert int8.provider == "CPUExecutionProvider"
    assert int8.same_prediction is not None
    assert int8.same_prediction > 0.5
    assert int8.largest_difference is not None
    assert int8.mean_difference is not None
    assert 0 < int8.mean_difference < int8.largest_difference < 0.2
    if HAS_BF16:
        assert bf16.provider == "OpenVINOExecutionProvider"
        assert bf16.refusal is None
    else:
        assert bf16.refusal


def test_a_precision_that_cannot_be_had_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_CPU_INFO", tmp_path / "absent")
    model = models.write(tmp_path / "model", models.matrix_graph(), manifest=MANIFEST)
    comparison = compare(job(model, rows(tmp_path / "in.csv")), seconds=1)
    found = by_name(comparison)
    assert "neither amx_bf16 nor avx512_bf16" in (found["bf16"].refusal or "")
    assert "nothing to quantise" in (found["int8"].refusal or "")
    printed = table(comparison)
    assert "int8: not here: " in printed
    assert len(printed.splitlines()) == 5
    json.dumps(facts(comparison))


def test_rows_with_a_fault_are_left_out(tmp_path: Path) -> None:
    asked = job(matmul(tmp_path / "model", 2), rows(tmp_path / "in.csv", bad=0))
    assert compare(asked, seconds=1).rows == ROWS - 1


def test_no_more_rows_than_asked_for(tmp_path: Path) -> None:
    asked = job(matmul(tmp_path / "model", 2), rows(tmp_path / "in.csv"))
    assert compare(asked, rows=5, seconds=1).rows == 5


def test_a_regression_has_differences_and_no_agreement(tmp_path: Path) -> None:
    model = matmul(tmp_path / "model", 1, "variable")
    found = by_name(compare(job(model, rows(tmp_path / "in.csv")), seconds=1))
    assert found["int8"].same_prediction is None
    assert found["int8"].largest_difference is not None
    assert found["int8"].largest_difference > 0


def test_the_jobs_own_precision_plays_no_part(tmp_path: Path) -> None:
    asked = job(matmul(tmp_path / "model", 2), rows(tmp_path / "in.csv"))
    comparison = compare(replace(asked, precision="int8"), seconds=1)
    assert [entry.precision for entry in comparison.precisions] == ["model", "bf16", "int8"]
    assert comparison.precisions[0].largest_difference == 0


def test_a_file_without_rows_is_told(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("a,b,c\n")
    with pytest.raises(InputInvalid, match="no row to compare"):
        compare(job(matmul(tmp_path / "model", 2), tmp_path / "in.csv"))
    (tmp_path / "in.csv").write_text("a,b,c\nx,1,1\n")
    with pytest.raises(InputInvalid, match="can be scored"):
        compare(job(matmul(tmp_path / "model", 2), tmp_path / "in.csv"))


def test_a_precision_that_fails_on_every_row_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise InferenceFailed("no kernel")

    def loaded(job: Job) -> LoadedModel:
        model = load_model(job)
        if job.precision == "int8":
            monkeypatch.setattr(model.session, "run", fails)
        return model

    monkeypatch.setattr("batchpredict.ops.compare.load_model", loaded)
    found = by_name(compare(job(matmul(tmp_path / "m", 3), rows(tmp_path / "in.csv"))))
    assert "no kernel" in (found["int8"].refusal or "")
    assert found["model"].refusal is None
