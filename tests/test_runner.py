"""run(): what is written, counted and told, for every way a run can end."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchpredict.errors import InputInvalid, InputMissing, UsageError
from batchpredict.job import Job
from batchpredict.run import planning, runner
from batchpredict.run.progress import Seen
from batchpredict.run.receipt import Counts
from tests import models
from tests.jobs import files_in, receipt_of, rejects_of, run_job, score

STAGES = ["commit", "finish", "infer", "plan", "prepare", "publish", "read", "write"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """`prediction` is x + 100 for x in 0 to 9; any other number fails in the session."""
    manifest = 'name = "lookup"\nversion = "3"\n[inputs.x]\nmissing = "reject"\n'
    return models.write(tmp_path / "lookup", models.lookup_graph(), manifest=manifest)


def written(path: Path, values: Sequence[str]) -> Path:
    """One row per value, with its number: id,x."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{number},{value}\n" for number, value in enumerate(values, 1))
    path.write_text("id,x\n" + rows)
    return path


def rows_in(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


MIXED = ["1", "what", "3", "77", "5,6", "7", ""]


def test_rejected_rows_are_left_out_and_written_down(tmp_path: Path, model: Path) -> None:
    source, output = written(tmp_path / "in.csv", MIXED), tmp_path / "out.csv"
    receipt = score(source, model, output, max_rejects="4")
    assert [row["id"] for row in rows_in(output)] == ["1", "3", "6"]
    assert [float(row["prediction"]) for row in rows_in(output)] == [101, 103, 107]
    rejects = rejects_of(output)
    assert [(reject["row"], reject["line"], reject["code"]) for reject in rejects] == [
        (2, 3, "bad_type"),
        (4, 5, "inference_failed"),
        (5, 6, "malformed_row"),
        (7, 8, "missing_value"),
    ]
    assert [reject["record"] for reject in rejects] == ["2,what", "4,77", "5,5,6", "7,"]
    assert {reject["file"] for reject in rejects} == {str(source)}
    assert receipt.counts == Counts(read=7, scored=3, rejected=4)
    assert receipt.exit_code == 3


def test_null_keeps_the_row_but_not_a_malformed_one(tmp_path: Path, model: Path) -> None:
    source, output = written(tmp_path / "in.csv", MIXED), tmp_path / "out.csv"
    receipt = score(source, model, output, max_rejects="4", on_error="null")
    found = [(row["id"], row["prediction"]) for row in rows_in(output)]
    assert [name for name, _ in found] == ["1", "2", "3", "4", "6", "7"]
    assert [name for name, prediction in found if not prediction] == ["2", "4", "7"]
    assert [reject["row"] for reject in rejects_of(output)] == [2, 4, 5, 7]
    assert receipt.counts == Counts(read=7, scored=3, nulls=3, rejected=1)
    assert receipt.exit_code == 3


def test_nulls_count_in_the_budget(tmp_path: Path, model: Path) -> None:
    source, output = written(tmp_path / "in.csv", MIXED), tmp_path / "out.csv"
    with pytest.raises(InputInvalid, match="4 of 7 rows"):
        score(source, model, output, max_rejects="3", on_error="null")
    assert not output.exists()


@pytest.mark.parametrize(("values", "code"), [(["1", "what"], "bad_type"), (["1,2"], "malformed")])
def test_fail_ends_at_the_first_bad_row(
    tmp_path: Path, model: Path, values: list[str], code: str
) -> None:
    source, output = written(tmp_path / "in.csv", values), tmp_path / "out.csv"
    with pytest.raises(InputInvalid, match=rf"in.csv:{len(values) + 1}: row {len(values)}: {code}"):
        score(source, model, output, on_error="fail", max_rejects="100%")
    assert files_in(tmp_path / "lookup") == ["batchpredict.toml", "model.onnx"]
    assert "out.csv" not in files_in(tmp_path)
    failed = json.loads((tmp_path / "out.csv.failed.json").read_text())
    assert failed["exit_code"] == 65
    assert code in failed["message"]


def test_fail_lets_a_clean_input_pass(tmp_path: Path, model: Path) -> None:
    source = written(tmp_path / "in.csv", ["1", "2"])
    assert score(source, model, tmp_path / "out.csv", on_error="fail").counts.scored == 2


def test_no_row_that_can_be_scored_is_no_crash(tmp_path: Path, model: Path) -> None:
    source, output = written(tmp_path / "in.csv", ["77", "78", "x"]), tmp_path / "out.csv"
    receipt = score(source, model, output, max_rejects="100%")
    assert receipt.counts == Counts(read=3, rejected=3)
    assert output.read_text() == "id,x,prediction\n"
    score(source, model, output, max_rejects="100%", on_error="null")
    assert output.read_text() == "id,x,prediction\n1,77,\n2,78,\n3,x,\n"


def test_beyond_the_budget_nothing_is_published_and_the_old_file_stays(
    tmp_path: Path, model: Path
) -> None:
    source, output = written(tmp_path / "in.csv", ["1"] * 8 + ["77"]), tmp_path / "out.csv"
    output.write_text("old")
    with pytest.raises(InputInvalid, match="1 of 9 rows rejected"):
        score(source, model, output)
    assert output.read_text() == "old"
    failed = json.loads((tmp_path / "out.csv.failed.json").read_text())
    assert failed["counts"]["rejected"] == 1
    lost = (tmp_path / "out.csv.failed.rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lost] == [9]
    # The next success removes what told of the failure.
    written(source, ["1"])
    score(source, model, output)
    assert files_in(tmp_path)[-4:] == [
        "lookup/batchpredict.toml", "lookup/model.onnx", "out.csv", "out.csv.receipt.json",
    ]  # fmt: skip


@pytest.mark.parametrize(("rejects", "published"), [(1, True), (2, False)])
def test_a_share_is_judged_exactly(
    tmp_path: Path, model: Path, rejects: int, published: bool
) -> None:
    """10% of 10 rows is one row."""
    values = ["77"] * rejects + ["1"] * (10 - rejects)
    source, output = written(tmp_path / "in.csv", values), tmp_path / "out.csv"
    if published:
        assert score(source, model, output).exit_code == 3
    else:
        with pytest.raises(InputInvalid):
            score(source, model, output)
    assert output.exists() == published


def told(tmp_path: Path, model: Path, source: Path, **options: Any) -> list[int]:
    """Rows read when the watcher was told, of a job that fails."""
    seen: list[int] = []

    def watch(counts: Counts, source: Seen) -> None:
        seen.append(counts.read)

    job = Job((str(source),), str(model), output_file=str(tmp_path / "out.csv"), **options)
    with pytest.raises(InputInvalid):
        runner.run(job, watch)
    return seen


def test_a_share_ends_the_run_early_but_not_before_a_thousand_rows(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "WINDOW_ROWS", 100)
    source = written(tmp_path / "in.csv", ["77", "1", "1", "1"] * 1000)
    assert told(tmp_path, model, source) == [100 * n for n in range(1, 10)]


def test_a_number_ends_the_run_in_its_window(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "WINDOW_ROWS", 10)
    source = written(tmp_path / "in.csv", (["1"] * 9 + ["77"]) * 50)
    assert told(tmp_path, model, source, max_rejects="3") == [10, 20, 30]


def test_rows_keep_their_order_through_windows_batches_and_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = models.write_text_model(tmp_path / "words")
    monkeypatch.setattr(planning, "WINDOW_ROWS", 50)
    lengths = np.random.default_rng(2).integers(1, 40, 300).tolist()
    texts = [
        " ".join([("good", "bad")[number % 2]] * length) for number, length in enumerate(lengths)
    ]
    source = tmp_path / "in.csv"
    source.write_text("id,text\n" + "".join(f"{n},{text}\n" for n, text in enumerate(texts)))
    outputs = []
    for workers in (1, 3):
        output = tmp_path / f"out{workers}.csv"
        score(source, directory, output, workers=workers, batch_rows=7, batch_tokens=100)
        outputs.append(output.read_bytes())
        rows = rows_in(output)
        assert [row["id"] for row in rows] == [str(number) for number in range(300)]
        assert [row["text"] for row in rows] == texts
        assert [row["prediction"] for row in rows] == [
            "neg" if n % 2 else "pos" for n in range(300)
        ]
    assert outputs[0] == outputs[1]


def test_several_inputs_give_one_output_each(tmp_path: Path, model: Path) -> None:
    inputs = [
        written(tmp_path / "in" / name, [str(n)]) for n, name in enumerate(["a.csv", "b.csv"])
    ]
    target = tmp_path / "out"
    target.mkdir()
    outcome = run_job(inputs, model, output_dir=target)
    assert outcome.exit_code == 0
    assert [receipt.counts.read for receipt in outcome.receipts] == [1, 1]
    assert files_in(target) == ["a.csv", "a.csv.receipt.json", "b.csv", "b.csv.receipt.json"]
    assert (target / "b.csv").read_text() == "id,x,prediction\n1,1,101\n"


def test_one_bad_input_does_not_stop_the_others(
    tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, late = (written(tmp_path / name, ["1"]) for name in ("a.csv", "d.csv"))
    bad = written(tmp_path / "b.csv", ["77"])
    missing = tmp_path / "c.csv"
    target = tmp_path / "out"
    target.mkdir()
    outcome = run_job([good, bad, missing, late], model, output_dir=target)
    assert outcome.exit_code == 66
    assert [receipt.inputs[0].path for receipt in outcome.receipts] == [str(good), str(late)]
    assert {"a.csv", "d.csv", "b.csv.failed.json"} <= set(files_in(target))
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert any("1 of 1 row rejected" in error for error in errors)
    assert any("no such file" in error for error in errors)


def test_the_highest_code_counts(tmp_path: Path, model: Path) -> None:
    clean = written(tmp_path / "a.csv", ["1"])
    some = written(tmp_path / "b.csv", ["77"] + ["1"] * 20)
    assert run_job([clean, some], model).exit_code == 3
    assert run_job([clean], model).exit_code == 0


def test_one_input_raises(tmp_path: Path, model: Path) -> None:
    with pytest.raises(InputMissing):
        run_job([tmp_path / "none.csv"], model)
    with pytest.raises(UsageError, match="exclude"):
        run_job([tmp_path / "a.csv"], model, output_file="x", output_dir="y")


def test_the_receipt_tells_what_happened(tmp_path: Path, model: Path) -> None:
    source, output = written(tmp_path / "in.csv", ["1", "77"] + ["2"] * 20), tmp_path / "out.csv"
    score(source, model, output, workers=2, batch_rows=5)
    receipt = receipt_of(output)

    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    assert receipt["receipt"] == 1
    assert receipt["exit_code"] == 3
    assert receipt["model"]["name"] == "lookup"
    assert receipt["model"]["version"] == "3"
    assert receipt["inputs"] == [
        {
            "path": str(source),
            "size": source.stat().st_size,
            "modified_ns": source.stat().st_mtime_ns,
            "sha256": digest(source),
        }
    ]
    assert receipt["output"] == {
        "path": str(output), "size": output.stat().st_size, "sha256": digest(output),
        "modified_ns": output.stat().st_mtime_ns,
    }  # fmt: skip
    rejects = Path(f"{output}.rejects.jsonl")
    assert receipt["rejects"] == {
        "path": str(rejects),
        "size": rejects.stat().st_size,
        "sha256": digest(rejects),
        "codes": {"inference_failed": 1},
        "rows_sha256": hashlib.sha256(b"2 inference_failed\n").hexdigest(),
    }
    counts = receipt["counts"]
    assert counts["read"] == counts["scored"] + counts["nulls"] + counts["rejected"] == 22
    assert sorted(receipt["stages"]) == STAGES
    assert all(seconds >= 0 for seconds in receipt["stages"].values())
    assert receipt["rows_per_second"] > 0
    assert receipt["peak_memory_bytes"] > 10 << 20
    assert receipt["plan"]["workers"] == 2
    assert receipt["plan"]["batch_rows"] == 5
    assert receipt["options"]["batch_rows"] == 5
    assert receipt["started"] <= receipt["ended"]


def test_stale_rejects_are_removed(tmp_path: Path, model: Path) -> None:
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    score(written(source, ["77"] + ["1"] * 20), model, output)
    assert len(rejects_of(output)) == 1
    score(written(source, ["1"]), model, output)
    assert files_in(tmp_path)[-2:] == ["out.csv", "out.csv.receipt.json"]


def test_limit_reads_no_further(tmp_path: Path, model: Path) -> None:
    source, output = written(tmp_path / "in.csv", ["1", "77", "2", "3"]), tmp_path / "out.csv"
    receipt = score(source, model, output, limit=3, max_rejects="1")
    assert [row["id"] for row in rows_in(output)] == ["1", "3"]
    assert receipt.counts == Counts(read=3, scored=2, rejected=1)
    assert receipt.inputs[0].sha256 is None
    assert score(source, model, output, limit=0).counts.read == 0
    assert output.read_text() == "id,x,prediction\n"


def test_header_only_is_a_quiet_night(tmp_path: Path, model: Path) -> None:
    source, output = written(tmp_path / "in.csv", []), tmp_path / "out.csv"
    receipt = score(source, model, output)
    assert (receipt.exit_code, receipt.counts) == (0, Counts())
    assert output.read_text() == "id,x,prediction\n"


def test_rehearsal_writes_nothing_and_finds_what_is_wrong(tmp_path: Path, model: Path) -> None:
    source = written(tmp_path / "in.csv", MIXED)
    before = files_in(tmp_path)
    job = Job((str(source),), str(model), output_file=str(tmp_path / "out.csv"), dry_run=True)
    (line,) = runner.rehearse(job)
    assert "7 rows read" in line
    assert files_in(tmp_path) == before


def test_a_failure_in_a_thread_reaches_the_caller_with_its_traceback(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug in the session's callers, far from the loop."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError("deep inside")

    monkeypatch.setattr("batchpredict.run.scorer.Scorer.infer", broken)
    source = written(tmp_path / "in.csv", ["1"])
    with pytest.raises(ZeroDivisionError) as caught:
        score(source, model, tmp_path / "out.csv")
    assert "broken" in [entry.name for entry in caught.traceback]
    failed = json.loads((tmp_path / "out.csv.failed.json").read_text())
    assert failed["exit_code"] == 70
    assert [name for name in files_in(tmp_path) if name.startswith("out")] == [
        "out.csv.failed.json"
    ]


def test_an_engine_is_closed_when_its_caller_fails(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []
    here = runner._here

    def engine(*arguments: Any) -> Iterator[Any]:
        try:
            yield from here(*arguments)
        finally:
            closed.append(True)

    def fail(_: Any) -> None:
        raise RuntimeError("told")

    monkeypatch.setattr(runner, "_here", engine)
    job = Job(input_file=(str(written(tmp_path / "a.csv", ["1"])),), model=str(model))
    with pytest.raises(RuntimeError) as caught:  # it holds all that was called
        runner.run(job, lambda *_: None, fail)
    assert closed
    assert caught
