"""The metrics file of a task: what is in it, who may write it, and what alerts make of it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from batchpredict import __version__
from batchpredict.ops import metrics
from batchpredict.ops.task_names import TaskName, file_name, task_name
from batchpredict.ops.watching import Ended
from tests import models
from tests.commands import CHECKOUT, receipt, run
from tests.jobs import files_in

CSV = "id,text\n1,good fine\n2,bad\n3,good\n"
ONE_TOO_MANY = "4,5,6\n"
HOSTILE = 'a"b\\c\n# HELP {task="x"} 1\x1b[31m\udcff.csv'

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Debian's package prometheus) is not there"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reads the column `text`."""
    return models.write_text_model(tmp_path_factory.mktemp("models") / "text")


@pytest.fixture
def predict(tmp_path: Path, model: Path) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """A run with metrics in `prom`."""
    (tmp_path / "prom").mkdir()
    (tmp_path / "data.csv").write_text(CSV)

    def call(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        return run(f"--model={model}", "--metrics_dir=prom", *arguments, cwd=tmp_path)

    return call


Predict = Callable[..., subprocess.CompletedProcess[bytes]]
Labels = frozenset[tuple[str, str]]


def read(directory: Path, task: str | None = None) -> dict[tuple[str, Labels], float]:
    """(name, labels but for `task`) of each sample of the one file, and its value."""
    (path,) = directory.iterdir()
    found = {}
    for family in text_string_to_metric_families(path.read_text()):
        assert family.documentation
        for sample in family.samples:
            assert sample.timestamp is None
            if task is not None:
                assert sample.labels["task"] == task
            labels = {name: of for name, of in sample.labels.items() if name != "task"}
            found[sample.name.removeprefix("batchpredict_"), frozenset(labels.items())] = (
                sample.value
            )
    return found


def value(found: dict[tuple[str, Labels], float], name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def promtool(*arguments: str | Path, stdin: bytes = b"") -> None:
    done = subprocess.run(
        ["promtool", *map(str, arguments)],
        input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout.decode()


def test_a_run(predict: Predict, tmp_path: Path, model: Path) -> None:
    before = time.time()
    done = predict("--input_file=data.csv")
    assert (done.returncode, done.stderr) == (0, b"")
    found = read(tmp_path / "prom", str(tmp_path / "data.csv"))
    told = receipt(tmp_path / "data.scored.csv.receipt.json")
    assert before <= value(found, "last_run_timestamp_seconds") <= time.time()
    ended = value(found, "last_run_timestamp_seconds")
    assert value(found, "last_success_timestamp_seconds") == ended
    assert value(found, "last_run_exit_code") == 0
    assert value(found, "last_run_status", status="success") == 1
    assert sum(of for (name, _), of in found.items() if name == "last_run_status") == 1
    assert value(found, "last_run_records", result="scored") == 3
    assert value(found, "last_run_input_bytes") == len(CSV)
    assert value(found, "last_run_output_bytes") == told["output"]["size"]
    rate = value(found, "last_run_records_per_second")
    assert rate == pytest.approx(told["rows_per_second"], rel=1e-3)
    for stage, seconds in told["stages"].items():
        assert value(found, "last_run_stage_seconds", stage=stage) == seconds
    assert value(found, "last_run_duration_seconds") >= sum(told["stages"].values()) / 8
    assert value(found, "last_run_peak_resident_memory_bytes") > 10 << 20
    (info,) = (dict(labels) for name, labels in found if name == "model_info")
    assert info == {
        "name": model.name,
        "version": "",
        "digest": told["model"]["sha256"],
        "provider": told["tool"]["provider"],
        "precision": "model",
    }
    (build,) = (dict(labels) for name, labels in found if name == "build_info")
    assert build["version"] == __version__
    assert build["onnxruntime"] == told["tool"]["onnxruntime"]


def test_a_failed_run_keeps_the_last_success(predict: Predict, tmp_path: Path) -> None:
    predict("--input_file=data.csv")
    first = read(tmp_path / "prom")
    (tmp_path / "data.csv").write_text(CSV + ONE_TOO_MANY)
    assert predict("--input_file=data.csv", "--max_rejects=0").returncode == 65
    found = read(tmp_path / "prom")
    success = value(first, "last_success_timestamp_seconds")
    assert value(found, "last_success_timestamp_seconds") == success
    assert value(found, "last_run_timestamp_seconds") > success
    assert value(found, "last_run_exit_code") == 65
    assert value(found, "last_run_status", status="failed") == 1
    assert value(found, "last_run_records", result="rejected") == 1
    assert value(found, "last_run_inputs", result="failed") == 1
    assert value(found, "last_run_output_bytes") == 0
    assert predict("--input_file=data.csv", "--max_rejects=1").returncode == 3
    found = read(tmp_path / "prom")
    assert value(found, "last_success_timestamp_seconds") > success
    assert value(found, "last_run_status", status="partial") == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--input_file=absent.csv",), 66),
        (("--input_file=data.csv", "--model=absent"), 69),
        (("--input_file=data.csv", "--threshold=7"), 2),
        (("--input_file=data.csv", "--output_dir=absent/more"), 73),
    ],
    ids=["input", "model", "usage", "output"],
)
def test_a_run_that_fails_at_once(
    predict: Predict, tmp_path: Path, arguments: tuple[str, ...], code: int
) -> None:
    assert predict(*arguments).returncode == code
    found = read(tmp_path / "prom")
    assert value(found, "last_run_exit_code") == code
    assert value(found, "last_run_status", status="failed") == 1
    assert value(found, "last_success_timestamp_seconds") == 0


def test_a_night_without_a_file_that_may_be_missing(predict: Predict, tmp_path: Path) -> None:
    """It is a success, and told from one that has scored something."""
    done = predict("--input_file=gone.csv", "--if_missing=skip")
    assert (done.returncode, done.stderr) == (0, b"")
    skipped, last = done.stdout.decode().splitlines()
    assert "skipped: gone.csv: no such file" in skipped
    assert last.endswith("nothing was there to be scored")
    found = read(tmp_path / "prom")
    ended = value(found, "last_run_timestamp_seconds")
    assert value(found, "last_success_timestamp_seconds") == ended
    assert value(found, "last_run_status", status="success") == 1
    assert [value(found, "last_run_inputs", result=of) for of in ("published", "failed")] == [0, 0]
    rehearsed = predict("--input_file=gone.csv", "--if_missing=skip", "--dry_run")
    assert (rehearsed.returncode, rehearsed.stderr) == (0, b"")
    assert rehearsed.stdout.endswith(b"nothing is there to be scored\n")


def test_several_inputs_are_added_up(predict: Predict, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "data.csv", tmp_path / "more.csv")
    (tmp_path / "bad.csv").write_text(CSV + 9 * ONE_TOO_MANY)
    (tmp_path / "out").mkdir()
    names = ("data", "more", "bad")
    done = predict(*(f"--input_file={name}.csv" for name in names), "--output_dir=out")
    assert done.returncode == 65
    inputs = ", ".join(f"{tmp_path}/{name}.csv" for name in names)
    found = read(tmp_path / "prom", f"{inputs} -> {tmp_path}/out")
    assert value(found, "last_run_inputs", result="published") == 2
    assert value(found, "last_run_inputs", result="failed") == 1
    assert value(found, "last_run_records", result="scored") == 9
    assert value(found, "last_run_records", result="rejected") == 9


def test_a_rehearsal_and_a_run_without_the_option_leave_nothing(
    predict: Predict, tmp_path: Path
) -> None:
    assert predict("--input_file=data.csv", "--dry_run").returncode == 0
    assert files_in(tmp_path / "prom") == []


@pytest.mark.parametrize("kind", ["absent", "file", "read-only"])
def test_a_directory_that_cannot_be_written_to(predict: Predict, tmp_path: Path, kind: str) -> None:
    (tmp_path / "prom").rmdir()
    if kind == "file":
        (tmp_path / "prom").touch()
    elif kind == "read-only":
        (tmp_path / "prom").symlink_to("/proc/self")
    done = predict("--input_file=data.csv")
    assert done.returncode == 0
    (line,) = done.stderr.decode().splitlines()
    assert "WARNING" in line
    assert "--metrics_dir=prom: metrics cannot be written" in line
    assert (tmp_path / "data.scored.csv").exists()


@needs_promtool
def test_promtool_accepts_the_file(predict: Predict, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text(CSV + ONE_TOO_MANY)
    name = 'a "quoted"\\name\n.csv'
    (tmp_path / "data.csv").rename(tmp_path / name)
    assert predict(f"--input_file={name}", "--max_rejects=1").returncode == 3
    (path,) = (tmp_path / "prom").iterdir()
    promtool("check", "metrics", stdin=path.read_bytes())


@needs_promtool
def test_alert_rules() -> None:
    promtool("check", "rules", CHECKOUT / "examples" / "alerts.yml")
    promtool("test", "rules", CHECKOUT / "tests" / "alerts.yml")


def test_alert_rules_name_metrics_that_exist() -> None:
    rules = (CHECKOUT / "examples" / "alerts.yml").read_text()
    ours = {f"batchpredict_{name}" for name in metrics._HELP}
    named = set(re.findall(r"\bbatchpredict_\w+", rules))
    assert named
    assert named <= ours


# --- in this process


def ended(code: int, at: float, **more: Any) -> Ended:
    receipts = {"published": (), "failed": (), "messages": (), **more}
    return Ended("0123456789abcdef", code, at, 1.5, **receipts)


def last_success(directory: Path) -> float:
    return value(read(directory), "last_success_timestamp_seconds")


NAME = TaskName("nightly", "/etc/nightly.toml")


@pytest.mark.parametrize("code", [75, 130, 143])
def test_a_run_that_can_go_on_has_not_failed(tmp_path: Path, code: int) -> None:
    metrics.write_metrics(str(tmp_path), NAME, ended(0, 5.0))
    metrics.write_metrics(str(tmp_path), NAME, ended(code, 6.0))
    assert value(read(tmp_path), "last_run_status", status="stopped") == 1
    assert last_success(tmp_path) == 5.0


def test_the_highest_drift_of_several_inputs(tmp_path: Path) -> None:
    rest: dict[str, Any] = {"stages": {}, "inputs": (), "output": None, "rows_per_second": 0.0}
    rest["model"] = dict.fromkeys(("name", "version", "sha256"))
    rest["tool"] = {"provider": "p", "precision": "model"}
    rest["counts"] = {"read": 0}
    failed = [
        {**rest, "drift": {"predictions": {"labels": {"psi": psi, "noise": psi / 2}}}}
        for psi in (0.25, 0.5, 0.125)
    ]
    metrics.write_metrics(str(tmp_path), NAME, ended(65, 5.0, failed=(*failed, rest)))
    found = read(tmp_path)
    assert value(found, "score_psi", label="labels") == 0.5
    assert value(found, "score_psi_noise", label="labels") == 0.25


def test_a_damaged_file_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for content in (b"\xff\n", b"a{\n", b"a 1 2 3 4 x\n", b'batchpredict_job_info{task="' * 9):
        (tmp_path / "batchpredict_nightly.prom").write_bytes(content)
        caplog.clear()
        metrics.write_metrics(str(tmp_path), NAME, ended(65, 6.0))
        assert "no metrics file" in caplog.text
        assert last_success(tmp_path) == 0


def test_two_job_files_of_one_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics.write_metrics(str(tmp_path), NAME, ended(0, 5.0))
    metrics.write_metrics(str(tmp_path), NAME, ended(0, 6.0))
    assert not caplog.records
    metrics.write_metrics(str(tmp_path), TaskName("nightly", "/srv/nightly.toml"), ended(0, 7.0))
    assert "/etc/nightly.toml are replaced" in caplog.text


def test_runs_of_one_task_take_turns(tmp_path: Path) -> None:
    """A run that ends without success must not undo one that succeeds at the same time."""
    metrics.write_metrics(str(tmp_path), NAME, ended(0, 5.0))
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_SH)
    second = threading.Thread(
        target=metrics.write_metrics, args=(str(tmp_path), NAME, ended(75, 7.0))
    )
    second.start()
    time.sleep(0.2)
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text().replace(" 5.0\n", " 6.0\n"))
    os.close(other)
    second.join()
    assert last_success(tmp_path) == 6.0


def test_runs_side_by_side(tmp_path: Path) -> None:
    names = [TaskName(f"task {number}", f"/{number}") for number in range(8)]
    threads = [
        threading.Thread(target=metrics.write_metrics, args=(str(tmp_path), name, ended(0, 5.0)))
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files_in(tmp_path) == sorted(file_name(name.task) for name in names)


def test_any_name_can_be_a_label(tmp_path: Path) -> None:
    name = task_name(None, [f"/{HOSTILE}"], [])
    metrics.write_metrics(str(tmp_path), name, ended(0, 5.0))
    (path,) = tmp_path.iterdir()
    text = path.read_text()
    assert "\x1b" not in text
    assert read(tmp_path, name.task)
    assert all(line.startswith(("#", "batchpredict_")) for line in text.splitlines())


def test_what_a_task_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert task_name("jobs/nightly.toml", [], []) == TaskName(
        "nightly", f"{tmp_path}/jobs/nightly.toml"
    )
    assert task_name("nightly.toml", ["/b.csv"], []).task == "nightly /b.csv"
    assert task_name("nightly.toml", [], ["/o"]).task == "nightly -> /o"
    assert task_name(None, ["a.csv"], []).task == f"{tmp_path}/a.csv"
    assert task_name(None, ["-", "/b/*.csv"], ["/o"]).task == "-, /b/*.csv -> /o"


def test_a_pattern_that_the_shell_has_expanded() -> None:
    inputs = [f"/data/{number}.csv" for number in range(1000)]
    first, second = (task_name(None, found, []).task for found in (inputs, inputs[:-1]))
    assert len(first) < 600
    assert first != second


def test_the_readme_has_every_metric() -> None:
    text = (CHECKOUT / "README.md").read_text()
    section = text.partition("\n### Metrics\n")[2].partition("\n### ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(metrics._HELP)


def test_the_job_file_names_the_task(predict: Predict, tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "nightly.toml").write_text(
        'input_file = "../data.csv"\nmetrics_dir = "../other"\n'
    )
    (tmp_path / "other").mkdir()
    assert predict("--job=jobs/nightly.toml").returncode == 0
    assert files_in(tmp_path / "prom") == ["batchpredict_nightly.prom"]
    done = run(
        "--job=jobs/nightly.toml", "--input_file=data.csv", f"--model={tmp_path}/absent",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 69
    assert read(tmp_path / "other", f"nightly {tmp_path}/data.csv")


@settings(max_examples=50)
@given(st.lists(st.text(max_size=200), min_size=2, max_size=5, unique=True))
def test_file_names_are_safe_and_differ(tasks: list[str]) -> None:
    names = [file_name(task) for task in tasks]
    assert len(set(names)) == len(names)
    for name in names:
        assert len(name.encode()) < 200
        assert "/" not in name
        assert name.startswith("batchpredict_")
        assert name.endswith(".prom")


def test_receipts_hold_neither_option(predict: Predict, tmp_path: Path) -> None:
    predict("--input_file=data.csv")
    told = json.loads((tmp_path / "data.scored.csv.receipt.json").read_bytes())
    assert not {"metrics_dir", "ping_url"} & set(told["options"])
