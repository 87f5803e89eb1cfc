"""Runs are told from the files beside outputs, whoever wrote these."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchpredict.cli import main
from batchpredict.data.locks import journal_path, lock_output
from batchpredict.errors import InputInvalid, InputMissing, TryAgain
from batchpredict.ops.display import duration, plain, share, width
from batchpredict.ops.runs import Run, read_run, read_runs
from batchpredict.ops.runs_table import show, table
from tests import models
from tests.jobs import run_job, score

# What must not reach a terminal: controls, ends of lines, marks that turn the text's direction.
HOSTILE = "\uffff\x1b[2J\x1b]0;owned\x07\n\r\x9b31m\u2028\u202e<script>alert(1)</script>=1+1"
FORBIDDEN = [*map(chr, range(32)), *map(chr, range(127, 160)), "\u2028", "\u2029", "\u202e"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return models.write_classifier(tmp_path / "model")


def rows(path: Path, *lines: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["x,y", *lines, ""]))
    return path


def scored(directory: Path, model: Path, name: str = "a.csv", *lines: str) -> Path:
    """The receipt of a run over some rows."""
    output = directory / f"{name}.out.csv"
    score(rows(directory / name, *(lines or ("1,2", "3,4"))), model, output, max_rejects="90%")
    return Path(f"{output}.receipt.json")


def stopped(directory: Path, model: Path) -> Path:
    """The output of a run that had not the time for all rows."""
    output = directory / "late.out.csv"
    source = rows(directory / "late.csv", *(f"{number},2" for number in range(50)))
    with pytest.raises(TryAgain):
        score(source, model, output, max_seconds=0.0, batch_rows=5, workers=1)
    return output


def changed(receipt: Path, **values: Any) -> Path:
    """The same receipt with other values; dots in names as "__"."""
    content = json.loads(receipt.read_bytes())
    for name, value in values.items():
        *parents, last = name.split("__")
        part = content
        for parent in parents:
            part = part[parent]
        part[last] = value
    receipt.write_text(json.dumps(content))
    return receipt


def only(*paths: Path) -> Run:
    (run,) = read_runs(map(str, paths)).runs
    return run


class TestReading:
    def test_a_run(self, tmp_path: Path, model: Path) -> None:
        receipt = scored(tmp_path / "out", model, "a.csv", "1,2", "3,4", "bad")
        run = only(tmp_path)
        assert (run.state, run.exit_code, run.file) == ("partial", 3, str(receipt))
        assert run.output == str(tmp_path / "out" / "a.csv.out.csv")
        assert run.counts is not None
        assert (run.counts.read, run.counts.rejected) == (3, 1)
        assert run.seconds is not None
        assert run.receipt["plan"]

    def test_a_file_named_twice_is_one_run(self, tmp_path: Path, model: Path) -> None:
        receipt = scored(tmp_path, model)
        assert len(read_runs([str(tmp_path), str(receipt), f"{tmp_path}/model/.."]).runs) == 1

    def test_hidden_folders_are_left_out(self, tmp_path: Path, model: Path) -> None:
        receipt = scored(tmp_path / "out", model)
        (tmp_path / ".venv").mkdir()
        receipt.rename(tmp_path / ".venv" / receipt.name)
        assert not read_runs([str(tmp_path)]).runs

    def test_another_receipt_file(self, tmp_path: Path, model: Path) -> None:
        named = tmp_path / "told.json"
        score(rows(tmp_path / "a.csv", "1,2"), model, tmp_path / "o.csv", receipt_file=str(named))
        assert only(named).output == str(tmp_path / "o.csv")

    def test_a_failed_run_says_why_and_what_it_kept(self, tmp_path: Path, model: Path) -> None:
        output = stopped(tmp_path, model)
        run = only(tmp_path)
        assert (run.state, run.exit_code, run.output) == ("failed", 75, str(output))
        assert "--max_seconds" in (run.message or "")
        assert run.kept_rows >= 5

    def test_a_missing_folder(self) -> None:
        with pytest.raises(InputMissing, match="no-such"):
            read_runs(["no-such"])

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_folder_that_may_not_be_read(self, tmp_path: Path, model: Path) -> None:
        scored(tmp_path / "mine", model)
        (tmp_path / "closed").mkdir(mode=0)
        found = read_runs([str(tmp_path)])
        assert len(found.runs) == 1
        assert [each.reason for each in found.skipped] == ["permission denied"]


class TestJournals:
    def test_a_run_that_works(self, tmp_path: Path, model: Path) -> None:
        scored(tmp_path, model)
        output = stopped(tmp_path, model)
        Path(f"{output}.failed.json").unlink()
        with lock_output(str(output)):
            *_, run = read_runs([str(tmp_path)]).runs
        assert (run.state, run.output) == ("running", str(output))
        assert run.kept_rows >= 5
        assert run.input is not None
        assert run.input.path == str(tmp_path / "late.csv")
        assert run.model.name == "model"  # as the other run calls that digest

    def test_a_run_that_was_killed(self, tmp_path: Path, model: Path) -> None:
        output = stopped(tmp_path, model)
        Path(f"{output}.failed.json").unlink()
        assert only(tmp_path).state == "stopped"
        assert "the same command goes on" in table(read_runs([str(tmp_path)]))

    def test_a_run_that_was_killed_after_one_that_failed(self, tmp_path: Path, model: Path) -> None:
        output = stopped(tmp_path, model)
        later = time.time() + 60
        os.utime(journal_path(str(output)), (later, later))
        states = [run.state for run in read_runs([str(tmp_path)]).runs]
        assert states == ["failed", "stopped"]

    def test_a_run_that_has_not_begun(self, tmp_path: Path) -> None:
        with lock_output(str(tmp_path / "o.csv")):
            assert only(tmp_path).state == "waiting"
        assert not read_runs([str(tmp_path)]).runs  # an empty journal is of no run

    def test_a_journal_whose_output_is_published(self, tmp_path: Path, model: Path) -> None:
        sources = [rows(tmp_path / "in" / f"{name}.csv", "1,2") for name in "ab"]
        (tmp_path / "out").mkdir()
        with pytest.raises(TryAgain):
            run_job(sources, model, output_dir=tmp_path / "out", max_seconds=0.0)
        assert journal_path(str(tmp_path / "out" / "a.csv")).exists()
        states = [run.state for run in read_runs([str(tmp_path / "out")]).runs]
        assert sorted(states) in (["ok"], ["failed", "ok"])

    def test_what_is_no_journal(self, tmp_path: Path) -> None:
        (tmp_path / ".o.csv.journal").write_bytes(b"systemd")
        found = read_runs([str(tmp_path)])
        assert not found.runs
        assert [each.reason for each in found.skipped] == ["is not a journal"]

    def test_looking_does_not_end_a_run_that_starts(self, tmp_path: Path) -> None:
        """A look takes the lock; a start that meets it must not take it for another run."""
        output, over = str(tmp_path / "o.csv"), threading.Event()
        journal_path(output).touch()

        def look() -> None:
            while not over.is_set():
                read_runs([str(tmp_path)])

        thread = threading.Thread(target=look)
        thread.start()
        try:
            for _ in range(200):
                with lock_output(output):
                    pass
        finally:
            over.set()
            thread.join()


def test_a_lock_is_waited_for_as_long_as_a_look_takes(tmp_path: Path) -> None:
    output = str(tmp_path / "o.csv")
    journal_path(output).touch()
    descriptor = os.open(journal_path(output), os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    timer = threading.Timer(0.3, os.close, (descriptor,))
    timer.start()
    with lock_output(output):
        timer.join()


def test_a_run_is_not_waited_for_as_if_it_looked(tmp_path: Path) -> None:
    output = str(tmp_path / "o.csv")
    with lock_output(output):
        begin = time.monotonic()
        with pytest.raises(TryAgain, match="another run"), lock_output(output):
            pass
    assert time.monotonic() - begin < 2


class TestForeignFiles:
    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "it is not JSON"),
            (b"\xff\xfe", "it is not JSON"),
            (b"[" * 100_000, "it is not JSON"),
            (b"[]", "it lacks receipt"),
            (b'{"receipt": 2}', "its layout is 2, not 1"),
            (b'{"receipt": 1}', "it lacks exit_code"),
            (b'{"receipt": 1e999}', "1e999 is not a finite number"),
            (b'{"receipt": 1, "exit_code": NaN}', "NaN is not a finite number"),
            (b'{"receipt": ' + b"9" * 5000 + b"}", "is too large a number"),
        ],
    )
    def test_are_skipped(self, tmp_path: Path, content: bytes, reason: str) -> None:
        (tmp_path / "x.receipt.json").write_bytes(content)
        (skipped,) = read_runs([str(tmp_path)]).skipped
        assert reason in skipped.reason

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("counts__read", -1), ("counts__read", True), ("counts__read", "1"), ("counts", []),
            ("ended", "yesterday"), ("ended", "2026-11-22T01:02:03"), ("ended", 7),
            ("started", "0001-01-01T00:00:00Z"), ("ended", "9999-12-31T23:59:59Z"),
            ("stages__read", "1"), ("stages__read", -1), ("rows_per_second", -1.0),
            ("rows_per_second", 1e300), ("stages__read", 1e16),
            ("peak_memory_bytes", None), ("model", "m"), ("model__name", 7), ("inputs", {}),
            ("rejects__codes", {"x": -1}), ("rejects__codes", {"x": "1"}), ("exit_code", "0"),
            ("retried", 1), ("resumed", {"rows": "1"}), ("tool", []), ("run_id", None),
        ],
    )  # fmt: skip
    def test_a_damaged_receipt_is_skipped(
        self, tmp_path: Path, model: Path, name: str, value: Any
    ) -> None:
        changed(scored(tmp_path, model), **{name: value})
        found = read_runs([str(tmp_path)])
        assert not found.runs
        assert found.skipped[0].reason.startswith("is not a receipt (")

    def test_too_large_and_no_files_at_all(self, tmp_path: Path) -> None:
        with (tmp_path / "huge.receipt.json").open("wb") as file:
            file.truncate(1 << 30)
        os.mkfifo(tmp_path / "pipe.receipt.json")
        os.mkfifo(tmp_path / ".pipe.journal")
        (tmp_path / "gone.failed.json").symlink_to("nowhere")
        reasons = [each.reason for each in read_runs([str(tmp_path)]).skipped]
        assert len(reasons) == 4
        assert "is not a receipt (it has 1,073,741,824 bytes)" in reasons
        assert "is not a receipt (it is no regular file)" in reasons

    @given(st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["rows", "path", "x"]), inner, max_size=3),
    ), st.sampled_from([
        "receipt", "run_id", "started", "ended", "exit_code", "tool", "model", "inputs", "output",
        "rejects", "options", "plan", "counts", "stages", "rows_per_second", "resumed", "retried",
        "message", "profile", "peak_memory_bytes",
    ]))  # fmt: skip
    def test_whatever_stands_in_a_receipt(self, value: Any, name: str) -> None:
        """It is read or refused, and what is read can be shown."""
        content = json.loads(WHOLE) | {name: value}
        path = SCRATCH / "any.receipt.json"
        path.write_text(json.dumps(content))
        try:
            run = read_run(str(path))
        except InputInvalid:
            return
        show(run)
        table(read_runs([str(path)]))


@pytest.fixture(autouse=True, scope="module")
def _whole_receipt(tmp_path_factory: pytest.TempPathFactory) -> None:
    global SCRATCH, WHOLE
    SCRATCH = tmp_path_factory.mktemp("any")
    model = models.write_classifier(SCRATCH / "model")
    WHOLE = scored(SCRATCH / "out", model).read_text()


SCRATCH = Path()
WHOLE = ""


class TestCommand:
    def test_list(self, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        scored(tmp_path / "a", model)
        scored(tmp_path / "b", model, "b.csv", "1,2", "bad")
        stopped(tmp_path / "b", model)
        (tmp_path / "b" / "foreign.receipt.json").write_text("{}")
        assert main(["runs", str(tmp_path)]) == 0
        out, err = capsys.readouterr()
        heads, ok, partial, failed, why, kept, summary = out.splitlines()
        assert heads.split() == [
            "ended", "state", "exit", "rows", "rejected", "seconds", "rows/s", "model", "output",
        ]  # fmt: skip
        assert ok.split()[2:6] == ["ok", "0", "2", "0"]
        assert partial.split()[2:6] == ["partial", "3", "2", "1"]
        assert failed.split()[2:4] == ["failed", "75"]
        assert "--max_seconds" in why
        assert kept.endswith("scored and kept; the same command goes on there")
        assert summary.startswith("3 runs: 1 ok, 1 partial, 1 failed; ")
        assert "foreign.receipt.json: is not a receipt (it lacks receipt); skipped" in err

    def test_the_latest(
        self, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name in "abc":
            scored(tmp_path, model, f"{name}.csv")
        assert main(["runs", "list", "--last=1", str(tmp_path)]) == 0
        _, line, summary = capsys.readouterr().out.splitlines()
        assert "c.csv" in line
        assert summary.startswith("3 runs: 3 ok")

    def test_this_folder_is_meant_where_none_is_named(
        self, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        scored(tmp_path / "out", model)
        monkeypatch.chdir(tmp_path)
        assert main(["runs"]) == 0
        assert capsys.readouterr().out.splitlines()[1].endswith("  out/a.csv.out.csv")
        monkeypatch.chdir(tmp_path / "model")
        assert main(["runs"]) == 0
        assert capsys.readouterr().out == "no runs\n"

    def test_json(self, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        receipt = scored(tmp_path, model)
        (tmp_path / "x.receipt.json").write_text("{}")
        assert main(["runs", "--json", str(tmp_path)]) == 0
        out, err = capsys.readouterr()
        found = json.loads(out)
        (run,) = found["runs"]
        assert run["counts"] == json.loads(receipt.read_bytes())["counts"]
        assert (run["state"], run["file"], err) == ("ok", str(receipt), "")
        assert found["skipped"][0]["file"].endswith("x.receipt.json")

    def test_show_by_receipt_and_by_id(
        self, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        receipt = scored(tmp_path, model)
        run_id = json.loads(receipt.read_bytes())["run_id"]
        shown = []
        for arguments in ([str(receipt)], [run_id, str(tmp_path)], [run_id[:6], str(tmp_path)]):
            assert main(["runs", "show", *arguments]) == 0
            shown.append(capsys.readouterr().out)
        assert shown[0] == shown[1] == shown[2]
        assert run_id in shown[0]
        assert main(["runs", "show", "--json", str(receipt)]) == 0
        (content,) = json.loads(capsys.readouterr().out)["runs"]
        assert content["receipt"] == json.loads(receipt.read_bytes())

    def test_show_all_inputs_of_a_run(
        self, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        inputs = [rows(tmp_path / name, "1,2", "3,4") for name in ("a.csv", "b.csv", "c.csv")]
        arguments = [f"--input_file={each}" for each in inputs]
        assert main([f"--model={model}", "--quiet", *arguments]) == 0
        receipts = [Path(f"{each.with_suffix('')}.scored.csv.receipt.json") for each in inputs]
        (run_id,) = {json.loads(each.read_bytes())["run_id"] for each in receipts}
        changed(scored(tmp_path, model, "other.csv"), run_id="0" * 16)
        capsys.readouterr()
        assert main(["runs", "show", run_id, str(tmp_path)]) == 0
        out = capsys.readouterr().out
        assert [out.count(f"{each}\n") for each in receipts] == [1, 1, 1]
        assert main(["runs", "show", "--json", run_id, str(tmp_path)]) == 0
        found = json.loads(capsys.readouterr().out)["runs"]
        assert sorted(each["file"] for each in found) == list(map(str, receipts))

    def test_warnings_are_told(
        self, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        moved = {"predictions": {"labels": {"psi": 0.41, "noise": 0.1}}, "exceeded": ["labels"]}
        receipt = scored(tmp_path, model)
        changed(receipt, warnings=["the store was silent"], drift=moved, run_id="abcdef")
        for arguments in ([str(tmp_path)], ["show", "abcdef", str(tmp_path)]):
            assert main(["runs", *arguments]) == 0
            out = capsys.readouterr().out
            assert re.search(r"warning:? +the store was silent\n", out)
            assert re.search(r"warning:? +predictions have drifted \(PSI\): labels 0.41\n", out)

    def test_a_folder_in_s3(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["runs", "s3://bucket/scored/"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "receipts are read from folders of this machine" in line

    def test_show_what_is_not_there(
        self, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        changed(scored(tmp_path, model), run_id="abcd1")
        changed(scored(tmp_path, model, "b.csv"), run_id="abcd2")
        other = tmp_path / "other.json"
        other.write_text("[]")
        for name, code, words in [
            ("ffff", 66, "no run with such an id"),
            ("abcd", 2, "2 runs have an id that starts so"),
            (str(other), 65, "is not a receipt (it lacks receipt)"),
        ]:
            assert main(["runs", "show", name, str(tmp_path)]) == code
            assert words in capsys.readouterr().err

    def test_hostile_values_stay_on_their_line(
        self, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "a\x1b[31m\n\u202eb"
        receipt = scored(folder, model)
        content = json.loads(receipt.read_bytes())
        content |= {"message": HOSTILE * 1000, "run_id": HOSTILE, "tool": {HOSTILE: HOSTILE}}
        content["model"] |= {"name": HOSTILE * 1000, "version": HOSTILE, "alias": "\ud800"}
        content["inputs"][0]["path"] = HOSTILE
        content["stages"][HOSTILE] = 1.0
        content["rejects"]["codes"][HOSTILE] = 1
        receipt.write_text(json.dumps(content))
        (folder / f"{HOSTILE.replace('/', '')}.receipt.json").write_text("{}")
        for arguments in ([str(tmp_path)], ["show", str(receipt)], ["--json", str(tmp_path)]):
            assert main(["runs", *arguments]) == 0
            streams = capsys.readouterr()
            for text in (streams.out, streams.err):
                lines = text.split("\n")
                assert not [c for line in lines for c in line if c in FORBIDDEN]
            if arguments[0] != "--json":
                assert max(map(len, lines)) < 1500

    def test_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        for arguments in (["runs", "--help"], ["runs", "list", "--help"], ["runs", "show", "-h"]):
            assert main(arguments) == 0
            assert "Usage:" in capsys.readouterr().out


def test_receipts_are_read_without_the_session(tmp_path: Path, model: Path) -> None:
    scored(tmp_path, model)
    code = (
        "import sys; from batchpredict.cli import main; code = main(['runs', sys.argv[1]]); "
        "heavy = {'numpy', 'onnxruntime', 'pyarrow', 'pygal'} & set(sys.modules); "
        "assert not heavy, heavy; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


class TestDisplay:
    @given(st.text(max_size=300))
    def test_plain_is_one_line_without_controls(self, text: str) -> None:
        shown = plain(text, 100)
        assert not set(shown) & set(FORBIDDEN)
        shown.encode()
        assert text.isprintable() is False or len(text) > 100 or shown == text

    def test_figures(self) -> None:
        assert [duration(seconds) for seconds in (0.85, 12.34, 245, 12000, 59.99)] == [
            "850 ms", "12.3 s", "4 min 05 s", "3 h 20 min", "1 min 00 s",
        ]  # fmt: skip
        assert [share(part, 10_000) for part in (0, 1, 10, 333, 10_000)] == [
            "0 %", "< 0.1 %", "0.1 %", "3.3 %", "100 %",
        ]  # fmt: skip
        assert share(0, 0) == "0 %"
        assert width("数e\u0301") == 3
