"""A run that stops, however often and wherever, ends with the bytes of one that does not."""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from batchpredict.counting import count
from batchpredict.data.locks import journal_path, lock_output
from batchpredict.data.sources import Mark
from batchpredict.errors import InputInvalid, OutputNotCreatable, TryAgain, UsageError
from batchpredict.model.contracts import Fault
from batchpredict.run import journal as journals
from batchpredict.run.commits import Commit, decode, encode
from batchpredict.run.scorer import Inferred, Scorer, Tensors
from tests import models
from tests.commands import run
from tests.jobs import files_in, receipt_of, run_job, score
from tests.test_laws import Given, borders, lookup, published, texts, words, write, write_texts

__all__ = ["words"]  # a fixture

KINDS = ("csv", "csv.gz", "csv.xz", "jsonl", "json", "json.zst", "avro", "parquet")
SMALL = {"batch_rows": 3, "batch_tokens": 60, "workers": 1}


@pytest.fixture(autouse=True, scope="module")
def _unsynced() -> Iterator[None]:
    """No machine goes down in these tests, and a disk takes its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(os, "fdatasync", lambda descriptor: None)
        yield


@contextmanager
def counted_rows() -> Iterator[list[int]]:
    """How many rows each call of the session gets."""
    counts: list[int] = []
    infer = Scorer.infer

    def counting(self: Scorer, prepared: Any, batch: Any) -> Inferred:
        counts.append(len(batch))
        return infer(self, prepared, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scorer, "infer", counting)
        yield counts


@contextmanager
def frames(rows: int) -> Iterator[None]:
    """So many rows go into a frame at least."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journals, "_FRAME_ROWS", rows)
        yield


def stop(source: Path, model: Path, output: Path, **options: Any) -> None:
    """A run that stops after its first batch."""
    with pytest.raises(TryAgain, match="stopped after --max_seconds"):
        score(source, model, output, max_seconds=0.0, **options)
    assert journal_path(str(output)).stat().st_size


def ramp(directory: Path) -> Path:
    """`prediction` is x + 1; no two rows need be alike."""
    graph = models.model(
        [helper.make_node("Add", ["x", "one"], ["variable"])],
        [models.value("x", "float32", ("N", 1))],
        [models.value("variable", "float32", ("N", 1))],
        [models.tensor("one", np.ones(1, np.float32))],
    )
    return models.write(directory, graph)


def numbers(count: int) -> list[Given]:
    return [Given(str(number)) for number in range(count)]


def said(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


def undisturbed(source: Path, model: Path, directory: Path, **options: Any) -> Any:
    """Published bytes and counts of a run that nobody stops."""
    output = directory / f"whole.{source.name.partition('.')[2]}"
    score(source, model, output, **options)
    return published(output), receipt_of(output)["counts"]


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_after_every_batch(tmp_path: Path, words: Path, kind: str) -> None:
    name = f"in.{kind}"
    source = write_texts(tmp_path / f"in.{kind.replace('.xz', '').replace('.zst', '')}", texts(30))
    output = tmp_path / f"out.{kind}"
    whole = tmp_path / f"whole.{kind}"
    with borders(17, 1 << 20, 300):
        with counted_rows() as inferred:
            score(source, words, whole, **SMALL)
        wanted = sum(inferred)
        with counted_rows() as inferred, frames(1):
            stops = 0
            while True:
                try:
                    receipt = score(source, words, output, max_seconds=0.0, **SMALL)
                    break
                except TryAgain:
                    stops += 1
                    assert not output.exists()
    assert stops > 5, name
    assert published(output) == published(whole)
    assert receipt_of(output)["counts"] == receipt_of(whole)["counts"]
    # What is begun when a run stops is finished and kept: nothing is inferred twice.
    assert sum(inferred) == wanted
    assert receipt.resumed.runs == stops
    assert 0 < receipt.resumed.rows < wanted
    assert not journal_path(str(output)).exists()


@settings(max_examples=25)
@given(
    where=st.floats(0, 1, exclude_max=True),
    workers=st.integers(1, 2),
    flip=st.one_of(st.just(0), st.integers(1, 255)),
)
def test_a_journal_cut_or_damaged_anywhere(
    words: Path, where: float, workers: int, flip: int
) -> None:
    """kill -9 cuts it, a power failure may leave anything from some point on."""
    with tempfile.TemporaryDirectory() as name, frames(5):
        directory = Path(name)
        source = write_texts(directory / "in.csv", texts(50))
        options = {"batch_rows": 4, "batch_tokens": 60}
        with borders(20, 1 << 20, 300):
            whole, counts = undisturbed(source, words, directory, **options)
            output = directory / "out.csv"
            for _ in range(3):
                stop(source, words, output, workers=workers, **options)
            journal = journal_path(str(output))
            content = bytearray(journal.read_bytes())
            place = int(where * len(content))
            if flip:
                content[place] ^= flip
            else:
                del content[place:]
            journal.write_bytes(content)
            score(source, words, output, workers=workers, **options)
        assert published(output) == whole
        assert receipt_of(output)["counts"] == counts
        assert not journal.exists()


def test_other_batches_windows_and_workers_go_on(tmp_path: Path, words: Path) -> None:
    """A run that was killed for its memory is gone on with in smaller batches."""
    source, output = write_texts(tmp_path / "in.jsonl", texts(80)), tmp_path / "out.jsonl"
    whole, counts = undisturbed(source, words, tmp_path)
    with borders(30, 1 << 20, 500), frames(1):
        stop(source, words, output, batch_rows=8, workers=2)
        stop(source, words, output, batch_rows=8, workers=2)
    with borders(7, 500, 90), counted_rows() as inferred:
        receipt = score(source, words, output, batch_rows=2, workers=1)
    assert receipt.resumed.rows
    assert sum(inferred) < 80
    assert published(output) == whole
    assert {**receipt_of(output)["counts"], "duplicates": 0} == {**counts, "duplicates": 0}


def test_rows_that_fail_in_the_session_are_kept_too(tmp_path: Path) -> None:
    model = lookup(tmp_path / "model")
    rows = [Given(str(number % 5)) for number in range(200)]
    rows[3] = rows[150] = Given("77")
    rows[90] = Given("0", broken=True)
    source, output = write(tmp_path / "in.csv", rows), tmp_path / "out.csv"
    with borders(40, 1 << 20, 300), frames(1):
        whole, counts = undisturbed(source, model, tmp_path, batch_rows=2)
        for _ in range(4):
            stop(source, model, output, batch_rows=2, workers=1)
        with counted_rows() as inferred:
            receipt = score(source, model, output, batch_rows=2)
    assert published(output) == whole
    assert receipt_of(output)["counts"] == counts
    # Row 4 has failed in the first batches; the one that is left is row 151.
    assert receipt.resumed.rows >= 4
    assert sum(inferred) < 5 * 5


# --- what has changed meanwhile


@pytest.fixture
def stopped(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Input, model and output of a run that was stopped."""
    model = ramp(tmp_path / "model")
    source, output = write(tmp_path / "in.csv", numbers(30_000)), tmp_path / "out.csv"
    stop(source, model, output, batch_rows=500, workers=1)
    return source, model, output


def test_the_same_goes_on(
    stopped: tuple[Path, Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    source, model, output = stopped
    with caplog.at_level(logging.INFO):
        receipt = score(source, model, output, batch_rows=500)
    assert receipt.resumed.rows >= 500
    assert f"{source}: going on, {count(receipt.resumed.rows, 'row')} scored already" in said(
        caplog
    )


def same_time(path: Path, before: os.stat_result) -> None:
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", ["appended", "truncated", "touched", "first", "middle", "late"])
def test_a_changed_input_starts_over(
    stopped: tuple[Path, Path, Path], caplog: pytest.LogCaptureFixture, change: str
) -> None:
    """Also where neither its size nor its time nor its ends tell."""
    source, model, output = stopped
    before, content = source.stat(), source.read_bytes()
    changed = {
        "appended": content + b"30001,1,\n",
        "truncated": content[: content.rindex(b"\n", 0, -1) + 1],
        "touched": content,
        "first": content.replace(b"\n1,", b"\n9,", 1),
        "middle": _replaced(content, 100_000),
        "late": _replaced(content, len(content) - 10),
    }[change]
    source.write_bytes(changed)
    if change != "touched":
        same_time(source, before)
    else:
        os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with caplog.at_level(logging.INFO):
        receipt = score(source, model, output, batch_rows=500)
    assert "starting over" in said(caplog)
    assert "the input has changed" in said(caplog) or "are not those scored before" in said(caplog)
    assert receipt.resumed.rows == 0
    score(source, model, output.with_name("whole.csv"), batch_rows=500)
    assert output.read_bytes() == output.with_name("whole.csv").read_bytes()
    assert not Path(f"{output}.failed.json").exists()


def _replaced(content: bytes, at: int) -> bytes:
    """With another score for a row that begins after `at`, or before the end."""
    line = content.index(b"\n", min(at, content.rindex(b"\n", 0, -1))) + 1
    cell = content.index(b",", line) + 1
    return (
        content[:cell] + (b"4" if content[cell : cell + 1] != b"4" else b"3") + content[cell + 1 :]
    )


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ({"threshold": None, "prefix": "p_"}, "--prefix is"),
        ({"keep": ("id",)}, "--keep is"),
        ({"limit": 20_000}, "--limit is"),
        ({"no_resume": True}, "--no_resume"),
    ],
)
def test_changed_options_start_over(
    stopped: tuple[Path, Path, Path],
    caplog: pytest.LogCaptureFixture,
    option: dict[str, Any],
    told: str,
) -> None:
    source, model, output = stopped
    with caplog.at_level(logging.INFO):
        receipt = score(source, model, output, batch_rows=500, **option)
    assert told in said(caplog)
    assert "starting over" in said(caplog)
    assert receipt.resumed.rows == 0


def test_a_changed_model_starts_over(
    stopped: tuple[Path, Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    source, model, output = stopped
    with (model / "batchpredict.toml").open("a") as file:
        file.write("\n# another file\n")
    with caplog.at_level(logging.INFO):
        assert score(source, model, output, batch_rows=500).resumed.rows == 0
    assert "the model has changed; starting over" in said(caplog)


def test_budgets_and_what_is_done_with_rejects_may_change(tmp_path: Path) -> None:
    """The row that ended the run is let through, and nothing is scored again."""
    model = ramp(tmp_path / "model")
    rows = numbers(2000)
    rows[1500] = Given("what")
    source, output = write(tmp_path / "in.csv", rows), tmp_path / "out.csv"
    with borders(500, 1 << 20, 4000):
        with pytest.raises(InputInvalid, match="row 1501"):
            score(source, model, output, batch_rows=100, on_error="fail")
        with counted_rows() as inferred:
            receipt = score(source, model, output, batch_rows=100, on_error="reject")
    assert receipt.resumed.rows >= 1000
    assert sum(inferred) + receipt.resumed.rows == 1999
    assert receipt.counts.rejected == 1


def test_with_a_limit(tmp_path: Path, words: Path) -> None:
    source, output = write_texts(tmp_path / "in.csv", texts(80)), tmp_path / "out.csv"
    with borders(10, 1 << 20, 300), frames(1):
        whole, counts = undisturbed(source, words, tmp_path, limit=33)
        for _ in range(3):
            stop(source, words, output, limit=33, **SMALL)
        score(source, words, output, limit=33)
    assert published(output) == whole
    assert receipt_of(output)["counts"] == counts


def test_nothing_is_left_of_a_run_that_scored_nothing(tmp_path: Path) -> None:
    model = lookup(tmp_path / "model")
    source = tmp_path / "in.csv"
    source.write_text("id,y\n1,2\n")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputInvalid):
        score(source, model, tmp_path / "out" / "out.csv")
    assert files_in(tmp_path / "out") == ["out.csv.failed.json"]


# --- several inputs, and what is done already


def several(tmp_path: Path) -> tuple[list[Path], Path]:
    model = lookup(tmp_path / "model")
    rows = [Given(str(number % 5)) for number in range(300)]
    (tmp_path / "in").mkdir()
    return [write(tmp_path / "in" / f"{name}.csv", rows) for name in "abc"], model


def test_finished_inputs_are_not_scored_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sources, model = several(tmp_path)
    whole, out = tmp_path / "whole", tmp_path / "out"
    for directory in (whole, out):
        directory.mkdir()
    run_job(sources, model, output_dir=whole, batch_rows=50)
    broken = sources[1].read_bytes()
    with pytest.raises(TryAgain, match=r"b\.csv: stopped after --max_seconds"):
        run_job(sources, model, output_dir=out, batch_rows=1000, max_seconds=0.0)
    assert sorted(path.name for path in out.glob("*.csv")) == ["a.csv"]
    before = (out / "a.csv").stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        outcome = run_job(sources, model, output_dir=out, batch_rows=1000)
    assert outcome.exit_code == 0
    assert len(outcome.receipts) == 2
    assert "a.csv: finished by the run before, not scored again" in said(caplog)
    assert (out / "a.csv").stat().st_mtime_ns == before
    for name in "abc":
        assert (out / f"{name}.csv").read_bytes() == (whole / f"{name}.csv").read_bytes()
    assert not [name for name in files_in(out) if name.startswith(".")]
    assert broken == sources[1].read_bytes()
    # That job is over: the next one scores everything.
    assert len(run_job(sources, model, output_dir=out).receipts) == 3


@pytest.mark.parametrize("hard", [1000, 150])
def test_more_inputs_than_open_files_are_allowed(tmp_path: Path, hard: int) -> None:
    """The limit is raised where that is allowed."""
    model = lookup(tmp_path / "model")
    (tmp_path / "in").mkdir()
    for number in range(40):
        write(tmp_path / "in" / f"{number}.csv", [Given("1")])
    done = run(
        "--input_file=in",
        f"--model={model}",
        cwd=tmp_path,
        before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard)),
    )
    if hard == 1000:
        assert done.returncode == 0, done.stderr
        assert len(list((tmp_path / "in").glob("*.scored.csv"))) == 40
    else:
        assert done.returncode == 78
        assert b"40 outputs need as many open files" in done.stderr


@pytest.mark.parametrize("how", ["skip", "fail"])
def test_if_done(tmp_path: Path, caplog: pytest.LogCaptureFixture, how: Any) -> None:
    model = ramp(tmp_path / "model")
    source, output = write(tmp_path / "in.csv", numbers(300)), tmp_path / "out.csv"
    options: dict[str, Any] = {"output_file": output}

    def is_done(**changed: Any) -> bool:
        if how == "fail":
            try:
                return not run_job(source, model, if_done=how, **options, **changed).receipts
            except OutputNotCreatable as error:
                return "out.csv is there, scored from " in str(error)
        outcome = run_job(source, model, if_done=how, **options, **changed)
        assert outcome.exit_code == 0
        return not outcome.receipts

    assert not is_done()
    before = output.stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        assert is_done(workers=1, batch_rows=7)
    assert how == "fail" or "nothing to do: " in said(caplog)
    os.utime(source)  # its sha256 is the same
    assert is_done()
    assert output.stat().st_mtime_ns == before
    assert not is_done(prefix="p_")
    assert is_done(prefix="p_")
    output.write_bytes(b"x" * output.stat().st_size)
    os.utime(output, ns=(0, output.stat().st_mtime_ns + 10**9))
    assert not is_done(prefix="p_")
    with source.open("a") as file:
        file.write("301,1,\n")
    assert not is_done(prefix="p_")
    Path(f"{output}.receipt.json").write_text("{}")
    assert not is_done(prefix="p_")
    assert is_done(prefix="p_")
    assert not [name for name in files_in(tmp_path) if name.startswith(".")]


def test_what_is_done_has_its_rejects_and_keeps_the_budget(tmp_path: Path) -> None:
    model = ramp(tmp_path / "model")
    rows = [*numbers(300), Given("what")]
    source, output = write(tmp_path / "in.csv", rows), tmp_path / "out.csv"
    rejects = tmp_path / "out.csv.rejects.jsonl"
    options: dict[str, Any] = {"output_file": output, "if_done": "skip"}
    score(source, model, output)
    assert not run_job(source, model, **options).receipts
    with pytest.raises(InputInvalid, match="1 of 301 rows rejected"):
        run_job(source, model, max_rejects="0", **options)
    rejects.write_bytes(b"x" * rejects.stat().st_size)
    assert run_job(source, model, **options).receipts
    assert not run_job(source, model, **options).receipts
    rejects.unlink()
    assert run_job(source, model, **options).receipts
    # Another file of that size and an older time, as a restored backup is.
    output.write_bytes(b"x" * output.stat().st_size)
    os.utime(output, ns=(0, output.stat().st_mtime_ns - 10**12))
    assert run_job(source, model, **options).receipts
    other = tmp_path / "other.csv"
    other.write_bytes(b"x" * output.stat().st_size)
    receipt = f"{output}.receipt.json"
    assert run_job(source, model, output_file=other, receipt_file=receipt, if_done="skip").receipts
    Path(f"{other}.failed.json").write_text("{}")
    assert not run_job(
        source, model, output_file=other, receipt_file=receipt, if_done="skip"
    ).receipts
    assert not Path(f"{other}.failed.json").exists()


def test_one_input_that_cannot_be_read_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sources, model = several(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    run_job(sources, model, output_dir=out)
    for source in sources[1:]:
        os.utime(source)
    with sources[0].open("a") as file:
        file.write("301,1,\n")
    real = os.open

    def refuse(path: Any, *more: Any, **options: Any) -> int:
        if str(path) == str(sources[1]):
            raise PermissionError(13, "Permission denied")
        return real(path, *more, **options)

    monkeypatch.setattr(os, "open", refuse)
    outcome = run_job(sources, model, output_dir=out, if_done="skip")
    assert outcome.exit_code == 66
    assert [Path(receipt.inputs[0].path).name for receipt in outcome.receipts] == ["a.csv"]
    assert "b.csv: permission denied" in said(caplog)


def test_a_lock_is_not_taken_from_the_run_that_has_it_now(tmp_path: Path) -> None:
    output = str(tmp_path / "out.csv")
    with lock_output(output) as one:
        assert one is not None
        one.remove()
        with lock_output(output) as other:
            assert other is not None
            one.remove()
            assert other.path.exists()
            with pytest.raises(TryAgain), lock_output(output):
                pass
    (tmp_path / "victim").write_text("precious")
    journal_path(output).unlink()
    journal_path(output).symlink_to("victim")
    with pytest.raises(OutputNotCreatable, match="journal"), lock_output(output):
        pass
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_lock_that_is_held_leaves_nothing_of_the_others(tmp_path: Path) -> None:
    sources, model = several(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    with lock_output(str(out / "b.csv")):
        with pytest.raises(TryAgain, match=r"b\.csv: another run is writing it"):
            run_job(sources, model, output_dir=out)
        assert files_in(out) == [".b.csv.journal"]


def test_rows_to_be_skipped_that_are_not_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = ramp(tmp_path / "model")
    source = write(tmp_path / "in.csv", numbers(10))
    score(source, model, tmp_path / "out.csv", skip_rows=(3, 11, 99), max_rejects="1")
    assert "--skip_rows=11,99: " in said(caplog)
    assert "has no such rows, it has 10" in said(caplog)


def test_two_checksums_of_the_same_bytes_end_a_journal(tmp_path: Path) -> None:
    digests = iter(["0" * 64, "1" * 64])
    with lock_output(str(tmp_path / "out.csv")) as held:
        assert held is not None
        journal = journals.Journal(held, "out.csv", lambda: Mark(5, next(digests)))
        journal.begin({"input": {}})
        for first in (1, 5):
            journal.add(np.arange(first, first + 4), Inferred(np.arange(4), [np.zeros(4)], ()))
            journal.flush()
        recorded = journals.read_journal(held)
        assert recorded is not None
        assert recorded.rows == 4


def test_max_seconds_needs_files(tmp_path: Path) -> None:
    model = lookup(tmp_path / "model")
    with pytest.raises(UsageError, match=r"--max_seconds=5: .* cannot be resumed"):
        score(Path("-"), model, tmp_path / "out.csv", input_format="csv", max_seconds=5.0)
    source = write(tmp_path / "in.csv", [Given("1")])
    with pytest.raises(UsageError, match=r"--max_seconds=5: .* cannot be resumed"):
        score(source, model, Path("-"), max_seconds=5.0)


# --- commits


@given(seed=st.integers(0, 1 << 30), rows=st.integers(0, 40))
def test_a_commit_comes_back(seed: int, rows: int) -> None:
    chosen = np.random.default_rng(seed)
    tensors: Tensors = [
        chosen.normal(size=(rows, 3)).astype(np.float32),
        chosen.integers(-5, 5, rows),
        chosen.normal(size=(rows, 0)),
        np.array([random.choice(["a", "ü", "", "\x00"]) for _ in range(rows)], object),
        chosen.integers(0, 2, (rows, 2)).astype(bool),
        chosen.normal(size=rows).astype(np.float16),
    ]
    numbers = chosen.permutation(1000)[:rows].astype(np.int64)
    faults = (Fault(7, "inference_failed", "ünder"),) if seed % 2 else ()
    commit = decode(encode(Commit(numbers, tensors, faults)))
    assert commit.rows.tolist() == numbers.tolist()
    assert commit.faults == faults
    for one, other in zip(commit.tensors, tensors, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        assert one.tolist() == other.tolist() or np.isnan(other).any()
    window = np.unique(chosen.integers(1, 1000, 30))
    found = commit.among(window)
    assert window[found.indices].tolist() == [n for n in numbers.tolist() if n in window]
    assert found.tensors[1].tolist() == [
        value
        for number, value in zip(numbers.tolist(), tensors[1].tolist(), strict=True)
        if number in window
    ]
    assert [window[fault.index] for fault in found.faults] == [7] * (7 in window and bool(faults))


def test_the_journal_says_what_it_is(stopped: tuple[Path, Path, Path]) -> None:
    source, model, output = stopped
    with lock_output(str(output)) as held:
        assert held is not None
        recorded = journals.read_journal(held)
    assert recorded is not None
    assert recorded.runs == 1
    assert recorded.rows >= 500
    assert recorded.pins["input"]["path"] == str(source)
    assert recorded.pins["options"]["input_format"] == "csv"
    assert json.dumps(recorded.pins)
    assert model.exists()
