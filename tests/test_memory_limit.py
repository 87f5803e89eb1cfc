"""--memory_limit kept by real runs, a cgroup's limit, and allocations that fail."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from batchpredict import cgroup
from batchpredict.job import Job
from batchpredict.model.package import read_package
from batchpredict.run.loading import load_model
from batchpredict.run.memory import MIB
from tests import models
from tests.commands import environment, run
from tests.jobs import EXAMPLES, receipt_of, score
from tests.test_memory import linear, write_csv

TEXTS = EXAMPLES / "reports.csv"
BUNDLED = EXAMPLES / "models"


# --- a limit of the job's


def test_a_run_stays_below_its_limit_and_says_its_plan(tmp_path: Path) -> None:
    source, output = tmp_path / "a.csv", tmp_path / "b.csv"
    write_csv(source, 200_000)
    model = linear(tmp_path / "model")
    done = run(f"--input_file={source}", f"--model={model}", f"--output_file={output}",
               "--memory_limit=240MiB", "--workers=2", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    receipt = receipt_of(output)
    assert receipt["counts"]["scored"] == 200_000
    assert receipt["peak_memory_bytes"] <= 240 * MIB
    plan = receipt["plan"]
    assert plan["window_rows"] < 16384
    assert plan["queue_depth"] == 1
    told = [line for line in done.stdout.decode().splitlines() if "planned within" in line]
    assert len(told) == 1
    assert f"planned within 240 MiB: batches of {plan['batch_rows']} rows" in told[0]
    assert f"windows of {plan['window_rows']} rows" in told[0]


@pytest.mark.parametrize("model", ["relevance", "relevance-linear"])
def test_text_models_stay_below_theirs(tmp_path: Path, model: str) -> None:
    output = tmp_path / "b.csv"
    done = run(f"--input_file={TEXTS}", f"--model={BUNDLED / model}", f"--output_file={output}",
               "--memory_limit=256MiB", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert receipt_of(output)["peak_memory_bytes"] <= 256 * MIB


def test_a_model_that_cannot_fit_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    graph = models.model(
        [helper.make_node("MatMul", ["features", "w"], ["variable"])],
        [models.value("features", "float32", ("N", 1))],
        [models.value("variable", "float32", ("N", 8 << 20))],
        [models.tensor("w", np.zeros((1, 8 << 20), np.float32))],
    )
    model = models.write(tmp_path / "m", graph)
    source = tmp_path / "a.csv"
    source.write_text("features\n1\n")
    done = run(f"--input_file={source}", f"--model={model}", "--memory_limit=256MiB", cwd=tmp_path)
    assert done.returncode == 78
    message = done.stderr.decode()
    assert "--memory_limit=256MiB" in message
    assert "model.onnx needs" in message
    assert list(tmp_path.glob("a.scored*")) == []


def test_workers_are_capped_and_the_receipt_says_by_what(tmp_path: Path) -> None:
    texts, model = tmp_path / "a.csv", BUNDLED / "relevance-linear"
    texts.write_text("text\ngood\nbad\n")
    score(texts, model, tmp_path / "b.csv", workers=500, memory_limit=300 * MIB, no_tuning=True)
    plan = receipt_of(tmp_path / "b.csv")["plan"]
    assert plan["workers"] < 500
    assert plan["sizes_from"]["workers"] == "memory"
    assert plan["sizes_from"]["batch_rows"] == "default"


def test_what_the_formula_reads_of_a_graph() -> None:
    linear_text = read_package(BUNDLED / "relevance-linear").graph_file
    assert linear_text.width == 20_000
    assert linear_text.inputs == ("text",)
    text = read_package(BUNDLED / "relevance")
    assert text.graph_file.width == 512
    assert text.heads == 4
    assert text.graph_file.inputs == ("input_ids", "attention_mask")


# --- a cgroup's


def test_a_cgroup_lowers_callers_and_changes_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    outputs = {}
    caplog.set_level(logging.INFO)
    for name, limit in (("free", None), ("held", 400 * MIB)):
        monkeypatch.setattr(cgroup, "memory_limit", lambda limit=limit: limit)
        output = tmp_path / f"{name}.csv"
        score(TEXTS, BUNDLED / "relevance", output, workers=50, no_tuning=True, limit=500)
        outputs[name] = output.read_bytes(), receipt_of(output)["plan"]
    (free, wide), (held, narrow) = outputs.values()
    assert free == held
    assert narrow["workers"] < wide["workers"] == 50
    assert narrow["queue_depth"] < wide["queue_depth"]
    same = ("window_rows", "window_bytes", "batch_rows", "batch_tokens")
    assert [narrow[name] for name in same] == [wide[name] for name in same]
    told = [r.message for r in caplog.records if "cgroup" in r.message]
    assert len(told) == 1
    assert "the cgroup lends 400 MiB of memory" in told[0]


def test_a_cgroup_never_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "memory_limit", lambda: MIB)
    plan = load_model(Job(("a.csv",), str(BUNDLED / "delays"), no_tuning=True, workers=3)).plan
    assert (plan.workers, plan.queue_depth, plan.window_rows) == (1, 1, 16384)


# --- allocations that fail

# Each script scores once freely and once with so much address space left, and counts the runs of
# the session it takes.
_SCRIPT = """
import resource, sys
import numpy as np
import pyarrow as pa
from batchpredict.model.outputs import HeadOptions
from batchpredict.model.package import read_package
from batchpredict.run.scorer import Binding, Scorer, Tuning

directory, rows, spare = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
values = np.arange(rows, dtype=np.float32) + 1
columns = pa.record_batch({f"c{i}": values / (i + 1) for i in range(int(sys.argv[4]))})
scorer = Scorer(read_package(directory), Binding(columns.schema), HeadOptions("top", None, (), ""),
                Tuning(rows, 512))
prepared = scorer.prepare(columns)
(batch,) = scorer.plan(prepared)
fed = []
feeds, run = scorer.encoder.feeds, scorer._session.run
def counted(prepared, rows):
    try:
        made = feeds(prepared, rows)
    except MemoryError:
        fed.append("feeds")
        raise
    fed.append(len(rows))
    return made
object.__setattr__(scorer.encoder, "feeds", counted)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + spare, -1))
parts = scorer.infer(prepared, batch)
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
held = scorer.finish(prepared, [parts])
assert not held.faults, held.faults[0]
assert held.indices.tolist() == list(range(rows))
print(*fed)
first, second = held.added.to_pydict(), scorer.finish(prepared, [scorer.infer(prepared, batch)])
assert first == second.added.to_pydict()
"""


def starved(directory: Path, rows: int, columns: int, spare: int) -> list[str]:
    """What was fed: numbers of rows, and "feeds" where making them failed."""
    command = [sys.executable, "-P", "-c", _SCRIPT, *map(str, (directory, rows, spare, columns))]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def manifest(columns: int) -> str:
    names = ", ".join(f'"c{i}"' for i in range(columns))
    return f'task = "regression"\n[inputs.features]\ncolumns = [{names}]\n'


def test_a_batch_the_runtime_has_no_memory_for_is_halved(tmp_path: Path) -> None:
    wide = 1 << 20  # 4 MiB a row
    graph = models.model(
        [
            helper.make_node("MatMul", ["features", "w"], ["wide"]),
            helper.make_node("ReduceMax", ["wide"], ["variable"], axes=[1], keepdims=1),
        ],
        [models.value("features", "float32", ("N", 2))],
        [models.value("variable", "float32", ("N", 1))],
        [models.tensor("w", np.ones((2, wide), np.float32))],
    )
    model = models.write(tmp_path, graph, manifest=manifest(2))
    fed = starved(model, 64, 2, 150 * MIB)
    assert fed[0] == "64"
    assert "32" in fed
    assert len(fed) > 3


def test_feeds_there_is_no_memory_for_are_halved(tmp_path: Path) -> None:
    model = models.write(tmp_path, models.matrix_graph(16), manifest=manifest(16))
    rows = 1 << 20  # 64 MiB of feeds
    assert starved(model, rows, 16, 60 * MIB)[0] == "feeds"
