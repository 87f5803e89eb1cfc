"""The models and inputs that come with the project, and real ones where they are at hand."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from batchpredict.job import Job
from batchpredict.run.loading import load_model
from tests.jobs import EXAMPLES, ROOT, files_in, score

# Read before conftest.py clears the environment for each test.
SHARED = Path(os.environ.get("BATCHPREDICT_SHARED") or ROOT.parent / "shared")
MODELS = ("delays", "relevance", "relevance-linear")


def rows_in(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_bundled_model_is_tested() -> None:
    assert sorted(path.name for path in (EXAMPLES / "models").iterdir()) == sorted(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_bundled_models_pass_their_golden_rows(name: str) -> None:
    directory = EXAMPLES / "models" / name
    model = load_model(Job(("unused.csv",), str(directory)))
    assert model.package.name == name
    assert len(model.package.manifest.golden) >= 3
    assert "README.md" in files_in(directory)


@pytest.mark.parametrize("name", MODELS)
def test_bundled_models_are_small(name: str) -> None:
    directory = EXAMPLES / "models" / name
    assert sum((directory / file).stat().st_size for file in files_in(directory)) < 12 << 20


@pytest.mark.parametrize("name", ["relevance", "relevance-linear"])
def test_reports_are_told_apart(tmp_path: Path, name: str) -> None:
    output = tmp_path / "reports.csv"
    receipt = score(EXAMPLES / "reports.csv", EXAMPLES / "models" / name, output)
    assert receipt.exit_code == 0
    rows = rows_in(output)
    assert len(rows) >= 290
    assert len({row["lang"] for row in rows}) >= 30
    assert {row["prediction"] for row in rows} == {row["expected"] for row in rows}
    assert all(0.5 <= float(row["score"]) <= 1 for row in rows)
    right = sum(row["prediction"] == row["expected"] for row in rows)
    print(f"{name}: {right} of {len(rows)}, accuracy {right / len(rows):.3f}")
    assert right / len(rows) >= 0.85  # the model READMEs tell what short texts cost


def test_flights_are_the_same_in_every_format() -> None:
    assert {f"flights.{name}" for name in ("csv", "jsonl", "avro")} <= set(files_in(EXAMPLES))
    assert len(rows_in(EXAMPLES / "flights.csv")) == 2000


def test_delays_are_predicted_better_than_by_a_guess(tmp_path: Path) -> None:
    output = tmp_path / "flights.csv"
    score(EXAMPLES / "flights.csv", EXAMPLES / "models/delays", output)
    rows = [row for row in rows_in(output) if row["arr_delay"] not in ("", "NA")]
    late = [float(row["arr_delay"]) > 15 for row in rows]
    right = sum(
        (row["prediction"] == "late") == truth for row, truth in zip(rows, late, strict=True)
    )
    guess = max(sum(late), len(late) - sum(late))
    print(f"delays: {right} of {len(rows)}; the majority would be {guess}")
    assert right > guess


@pytest.mark.parametrize("name", ["relevance-minilm", "relevance-e5"])
def test_real_models_run_as_they_are(tmp_path: Path, name: str) -> None:
    """Exports of Hugging Face models, nothing declared, against scores computed row by row."""
    directory = SHARED / "models" / name
    if not directory.is_dir():
        pytest.skip(f"{directory} is not here")
    output = tmp_path / "scored.csv"
    receipt = score(directory / "expected.csv", directory, output)
    rows = rows_in(output)
    assert receipt.counts.scored == len(rows) == 300
    assert [row["prediction"] for row in rows] == [row["expected_prediction"] for row in rows]
    differences = [abs(float(row["score"]) - float(row["expected_score"])) for row in rows]
    print(f"{name}: largest difference {max(differences):.2e}")
    assert max(differences) <= 1e-5
