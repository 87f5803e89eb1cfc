"""examples/airflow_dag.py in the real Airflow, which has an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.stand_in import CHECKOUT, write_command

DAG = (CHECKOUT / "examples" / "airflow_dag.py").read_text(encoding="utf-8")
AIRFLOW = CHECKOUT / ".venv-airflow"

# Ends as the next word of the file `statuses` for its date says.
STUB = r"""#!/bin/sh
date=${3#--date=}
printf '%s\n' "$1 $2" >>"$0.$date.calls"
read -r status rest <"$0.$date.statuses"
printf '%s\n' "$rest" >"$0.$date.statuses"
case $status in
killed) kill -s KILL $$ ;;
hangs)
  trap 'echo terminated >>"$0.$date.calls"; exit 143' TERM
  sleep 60 &
  wait
  ;;
esac
exit "$status"
"""

# What batchpredict ends with in turn; then the states of run and task, and the number of tries.
SCENARIOS = [
    ("0", "success", 1),
    ("3", "success", 1),
    ("75 75 0", "success", 3),
    ("75 " * 9, "failed", 6),
    ("killed 143 0", "success", 3),
    ("hangs 3", "success", 2),
    *((f"{status} 0", "failed", 1) for status in (65, 130)),
]


def edited(name: str, command: Path, *more: tuple[str, str]) -> str:
    """The DAG as a user edits it. `more`: what stands there, and what instead."""
    text = DAG
    changes = [
        ('"batchpredict_nightly"', f'"{name}"'),
        ('"/opt/batchpredict/bin/batchpredict"', repr(str(command))),
        *more,
    ]
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def stubbed(directory: Path) -> tuple[str, list[tuple[str, str | None]]]:
    """A DAG that plays the scenarios, and the runs of it: one a day."""
    stub = directory / "stub"
    stub.write_text(STUB)
    stub.chmod(0o755)
    runs: list[tuple[str, str | None]] = []
    for day, (statuses, *_) in enumerate(SCENARIOS, 1):
        (directory / f"stub.2026-07-{day + 1:02}.statuses").write_text(f"{statuses}\n")
        # In the DAG's time zone, Europe/Berlin, the next day has begun.
        runs.append(("stubbed", f"2026-07-{day:02}T22:30:00+00:00"))
    timeout = ("timedelta(hours=2, minutes=10)", "timedelta(seconds=2)")
    return edited("stubbed", stub, timeout), runs


def real(directory: Path) -> tuple[str, list[tuple[str, str | None]]]:
    """A DAG that scores 1,000 rows and rejects one, stopped again and again; a run by hand."""
    lines = (CHECKOUT / "examples" / "flights.csv").read_text().splitlines(keepends=True)
    for year in range(2026, 2100):
        (directory / f"flights_{year}.csv").write_text("".join([*lines[:1001], "too,few\n"]))
    job = directory / "nightly.toml"
    job.write_text(
        f'input_file = "flights_{{date:%Y}}.csv"\noutput_file = "scored.csv"\n'
        f'model = "{CHECKOUT}/examples/models/delays"\nbatch_rows = 500\nworkers = 1\n'
    )
    text = edited(
        "real", write_command(directory / "bin" / "batchpredict"),
        ('"/srv/batchpredict/nightly.toml"', repr(str(job))),
        ("--max_seconds=7200", "--max_seconds=0"),
    )  # fmt: skip
    return text, [("real", None)]


def run_dags(
    directory: Path, texts: dict[str, str], runs: list[tuple[str, str | None]]
) -> tuple[list[Any], str]:
    """What became of each run, and the log."""
    if not (AIRFLOW / "pins.txt").exists():
        pytest.skip(f"{AIRFLOW.name} is not there; .ci/airflow makes it (220 MB, a minute)")
    dags, home, results = directory / "dags", directory / "airflow", directory / "results.json"
    dags.mkdir()
    for name, text in texts.items():
        (dags / f"{name}.py").write_text(text)
    settings = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "PATH": "/usr/bin:/bin",
        "HOME": os.environ["HOME"],
        "LC_ALL": "C.UTF-8",
    }
    python, script = AIRFLOW / "bin" / "python", CHECKOUT / "tests" / "airflow_runs.py"
    finished = subprocess.run(
        [str(python), "-P", str(script), str(dags), json.dumps(runs), str(results)],
        env=settings, cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, encoding="utf-8", timeout=240,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout
    found = json.loads(results.read_text())
    assert found["import_errors"] == {}
    return found["runs"], finished.stdout


def assert_played(directory: Path, found: list[Any], log: str) -> None:
    for day, ((statuses, state, tries), run) in enumerate(zip(SCENARIOS, found, strict=True), 2):
        results = [int(statuses.split()[tries - 1])] if state == "success" else []
        expected = {"run": state, "task": state, "tries": tries, "results": results}
        assert run == expected, statuses
        calls = (directory / f"stub.2026-07-{day:02}.calls").read_text().splitlines()
        terminated = ["terminated"] * ("hangs" in statuses)
        predict = ["predict --job=/srv/batchpredict/nightly.toml"]
        assert sorted(calls) == predict * tries + terminated
    warnings = [line for line in log.splitlines() if "but some rows were rejected" in line]
    assert len(warnings) == 3  # two scenarios and the real run
    assert all("[warning" in line for line in warnings)


def test_what_becomes_of_each_exit_status(tmp_path: Path) -> None:
    """In one process of Airflow, whose start takes most of the time."""
    stub, runs_of_stub = stubbed(tmp_path)
    job, runs_of_job = real(tmp_path)
    (*played, done), log = run_dags(
        tmp_path, {"stubbed": stub, "real": job}, runs_of_stub + runs_of_job
    )
    assert_played(tmp_path, played, log)

    assert (done["run"], done["results"]) == ("success", [3])
    assert done["tries"] > 1
    assert log.count("stopped after --max_seconds") == done["tries"] - 1
    assert "going on, 500 rows scored already" in log
    assert len((tmp_path / "scored.csv").read_text().splitlines()) == 1001
