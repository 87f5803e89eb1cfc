"""A range of days, and inputs that are late or not complete."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from batchpredict.dates import days_between
from batchpredict.errors import InputMissing, InputUnfinished, UsageError
from batchpredict.job import Job
from batchpredict.ops.backfill import Day, backfill, table
from batchpredict.run.arrival import arrived_tasks
from batchpredict.run.runner import Outcome, run
from tests import commands, models
from tests.jobs import files_in

ROWS = "id,text\n1,good\n2,bad\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write_text_model(tmp_path_factory.mktemp("models") / "text")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def score(job: Job) -> Outcome:
    return run(job, lambda counts, source: None)


def append(name: str) -> None:
    with Path(name).open("a") as file:
        file.write("3,good\n")


def jobs_of(model: Path, days: int, **options: Any) -> list[Job]:
    """Of the days from 1 November on."""
    return [
        Job(input_file=(f"{day}.csv",), model=str(model), date=str(day), **options)
        for day in days_between(date(2026, 11, 1), date(2026, 11, days))
    ]


def test_a_month_with_two_days_missing_and_one_malformed(tmp_path: Path, model: Path) -> None:
    days = list(days_between(date(2026, 11, 1), date(2026, 11, 30)))
    for day in days:
        content = b"" if day.day == 10 else ROWS.encode()
        if day.day not in (5, 18):
            Path(f"users_{day}.csv").write_bytes(content)
    command = (
        "--input_file=users_{date}.csv", "--output_file=out/{date:%Y%m%d}.csv", "--if_done=skip",
        "--from=2026-11-01", "--to=2026-11-30", f"--model={model}", "--no_tuning",
    )  # fmt: skip
    Path("out").mkdir()
    outputs = [f"{day:%Y%m%d}.csv" for day in days if day.day not in (5, 10, 18)]

    first = commands.run(*command, cwd=tmp_path)
    assert first.returncode == 66
    assert [name for name in files_in(tmp_path / "out") if len(name) == 12] == outputs
    lines = [line.split(maxsplit=4)[4] for line in first.stdout.decode().splitlines()]
    shown = lines[-32:]
    assert shown[0].split() == ["day", "input", "rows", "rejected", "exit"]
    assert shown[1].split() == ["2026-11-01", "users_2026-11-01.csv", "2", "0", "0"]
    assert shown[5].split()[2:] == ["-", "-", "66", "input", "missing"]
    assert shown[10].split()[2:] == ["-", "-", "65", "input", "invalid"]
    assert shown[31] == "30 days: 27 scored, 0 left alone, 3 failed; 54 rows, 0 rejected"
    assert [line.split()[4].rstrip(":") for line in first.stderr.decode().splitlines()] == [
        "2026-11-05", "2026-11-10", "2026-11-18",
    ]  # fmt: skip

    Path("users_2026-11-18.csv").write_text(ROWS)
    before = {name: Path("out", name).stat().st_mtime_ns for name in outputs}
    second = commands.run(*command, cwd=tmp_path)
    assert second.returncode == 66
    assert b"30 days: 1 scored, 27 left alone, 2 failed; 2 rows" in second.stdout
    assert before == {name: Path("out", name).stat().st_mtime_ns for name in outputs}
    assert Path("out/20261118.csv").exists()
    assert commands.receipt(Path("out/20261118.csv.receipt.json"))["options"]["date"] == (
        "2026-11-18"
    )


class TestRange:
    def test_rejects_are_counted_and_3_is_not_a_failure(self, model: Path) -> None:
        Path("2026-11-01.csv").write_text("id,text\n1,good\n2\n3,bad\n")
        Path("2026-11-02.csv").write_text(ROWS)
        *_, last = table([Day("d", "a", 3, "", 3, 1), Day("e", "b", 0, "", 2, 0)])
        assert last == "2 days: 2 scored, 0 left alone, 0 failed; 5 rows, 1 rejected"
        assert backfill(jobs_of(model, 2, max_rejects="50%"), score) == 3

    def test_a_day_that_may_be_missing(self, model: Path, caplog: pytest.LogCaptureFixture) -> None:
        Path("2026-11-02.csv").write_text(ROWS)
        with caplog.at_level("INFO"):
            assert backfill(jobs_of(model, 2, if_missing="skip"), score) == 0
        assert "2 days: 1 scored, 1 left alone, 0 failed" in caplog.messages[-1]
        assert caplog.messages[-3].endswith("0  no input")

    def test_two_days_in_one_output(self, model: Path) -> None:
        for day in (1, 2):
            Path(f"2026-11-0{day}.csv").write_text(ROWS)
        with pytest.raises(UsageError, match=r"o\.csv: 2026-11-01 and 2026-11-02 would both"):
            backfill(jobs_of(model, 2, output_file="o.csv"), score)
        with pytest.raises(UsageError, match="not to a stream"):
            backfill(jobs_of(model, 2, output_file="-"), score)
        assert not Path("o.csv").exists()

    def test_one_file_on_two_days(self, model: Path) -> None:
        """Whether it is there or not, and in one output or in two of them."""
        first = Job(input_file=("2026-11.csv",), model=str(model), date="2026-11-01")
        days = [first, replace(first, date="2026-11-02")]
        told = r"--input_file=2026-11\.csv: is the same on 2026-11-01 and on 2026-11-02"
        with pytest.raises(UsageError, match=told):
            backfill(days, score)
        Path("2026-11.csv").write_text(ROWS)
        days = [replace(day, receipt_file=f"{day.date}.json") for day in days]
        with pytest.raises(UsageError, match=told):
            backfill(days, score)

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"output_file": "o.csv"}, r"--output_file=o\.csv: .* both write o\.csv,"),
            ({"output_dir": "out"}, r"--output_dir=out: .* both write out/a\.csv,"),
            ({"rejects_file": "r"}, r"--rejects_file=r: .* both write r,"),
        ],
    )
    def test_the_option_that_needs_a_date(
        self, model: Path, options: dict[str, Any], told: str
    ) -> None:
        jobs = jobs_of(model, 2, **options)
        for number, job in enumerate(jobs):
            place = Path(str(job.date))
            place.mkdir()
            (place / "a.csv").write_text(ROWS)
            jobs[number] = replace(job, input_file=(str(place / "a.csv"),))
        with pytest.raises(UsageError, match=told):
            backfill(jobs, score)

    def test_a_rehearsal_goes_on_as_the_range_does(self, model: Path, tmp_path: Path) -> None:
        for day in (1, 3):
            Path(f"u_2026-11-0{day}.csv").write_text(ROWS)
        command = (
            "--input_file=u_{date}.csv", "--from=2026-11-01", "--to=2026-11-04",
            f"--model={model}", "--no_tuning",
        )  # fmt: skip
        done = commands.run(*command, "--dry_run", cwd=tmp_path)
        assert done.returncode == 66
        lines = [line.split(maxsplit=4)[4] for line in done.stdout.decode().splitlines()]
        assert [line.split()[4:] for line in lines[-5:-1]] == [
            ["0", "would", "be", "scored"], ["66", "input", "missing"],
            ["0", "would", "be", "scored"], ["66", "input", "missing"],
        ]  # fmt: skip
        assert lines[-1] == "4 days: 2 would be scored, 0 left alone, 2 failed"
        assert "2026-11-03.csv: dry run: 2 rows read" in done.stdout.decode()
        assert done.stderr.decode().count("no such file") == 2
        assert not [*tmp_path.glob("*.scored.*")]

    def test_the_days_are_not_waited_for(self, model: Path) -> None:
        seen: list[Job] = []

        def watch(job: Job) -> Outcome:
            seen.append(job)
            return Outcome((), 0)

        backfill(jobs_of(model, 2, wait_for_input=500.0), watch)
        assert [job.wait_for_input for job in seen] == [0, 0]

    def test_max_seconds_are_for_all_days(self, model: Path) -> None:
        seen: list[float | None] = []

        def slow(job: Job) -> Outcome:
            seen.append(job.max_seconds)
            time.sleep(0.03)
            return Outcome((), 0)

        assert backfill(jobs_of(model, 9, max_seconds=0.05), slow) == 75
        assert 1 <= len(seen) <= 2
        assert sorted(filter(None, seen), reverse=True) == seen

    def test_it_can_be_interrupted(self, model: Path, caplog: pytest.LogCaptureFixture) -> None:
        def interrupted(job: Job) -> Outcome:
            if job.date == "2026-11-02":
                raise KeyboardInterrupt
            return Outcome((), 0)

        with caplog.at_level("INFO"), pytest.raises(KeyboardInterrupt):
            backfill(jobs_of(model, 3), interrupted)
        assert caplog.messages[-1].startswith("1 day: ")


@pytest.fixture
def later() -> Iterator[Callable[[float, Callable[[], object]], None]]:
    """Do something after so many seconds; it is over when the test is."""
    timers: list[threading.Timer] = []

    def start(seconds: float, action: Callable[[], object]) -> None:
        timers.append(threading.Timer(seconds, action))
        timers[-1].start()

    yield start
    for timer in timers:
        timer.join()


def names(job: Job) -> list[str]:
    return [task.input for task in arrived_tasks(job)[0]]


class TestArrival:
    def test_an_input_that_is_late(self, later: Callable[..., None]) -> None:
        later(0.3, lambda: Path("a.csv").write_text(ROWS))
        job = Job(input_file=("a.csv",), model="m", wait_for_input=20)
        assert names(job) == ["a.csv"]

    def test_an_input_that_does_not_come(self) -> None:
        job = Job(input_file=("a.csv",), model="m", wait_for_input=0.2)
        begin = time.monotonic()
        with pytest.raises(InputMissing, match=r"a\.csv: no such file"):
            arrived_tasks(job)
        assert 0.2 <= time.monotonic() - begin < 5
        assert arrived_tasks(replace(job, if_missing="skip")) == ((), ())

    def test_an_input_that_is_written_slowly(self, later: Callable[..., None]) -> None:
        """It is taken no sooner than it was left alone for so long."""
        Path("a.csv").write_text(ROWS)
        for step in range(1, 5):
            later(0.2 * step, lambda: append("a.csv"))
        job = Job(input_file=("a.csv",), model="m", stable_for=0.7, wait_for_input=30)
        assert names(job) == ["a.csv"]
        assert Path("a.csv").read_text().count("3,good") == 4
        assert time.time() - Path("a.csv").stat().st_mtime >= 0.7

    def test_an_input_that_is_not_complete(self) -> None:
        Path("a.csv").write_text(ROWS)
        job = Job(input_file=("a.csv",), model="m", stable_for=600)
        with pytest.raises(
            InputUnfinished, match=r"a\.csv: changed within the last 600 s"
        ) as error:
            arrived_tasks(job)
        assert error.value.exit_code == 75
        assert arrived_tasks(replace(job, if_missing="skip")) == ((), ())

    def test_an_old_time_of_modification_proves_nothing(self) -> None:
        """As of a copy that keeps times."""
        Path("a.csv").write_text(ROWS)
        os.utime("a.csv", (0, 0))
        with pytest.raises(InputUnfinished):
            arrived_tasks(Job(input_file=("a.csv",), model="m", stable_for=600))

    def test_a_time_of_modification_to_come(self) -> None:
        Path("a.csv").write_text(ROWS)
        os.utime("a.csv", (time.time() + 9999,) * 2)
        job = Job(input_file=("a.csv",), model="m", stable_for=0.2, wait_for_input=20)
        assert names(job) == ["a.csv"]

    def test_of_a_directory_those_that_are_complete(self, caplog: pytest.LogCaptureFixture) -> None:
        Path("in").mkdir()
        for name in ("a", "b"):
            Path("in", f"{name}.csv").write_text(ROWS)
        time.sleep(0.6)
        append("in/b.csv")
        job = Job(input_file=("in",), model="m", stable_for=0.5)
        with caplog.at_level("INFO"):
            assert names(job) == ["in/a.csv"]
        assert caplog.messages == ["1 left for later: changed within 0.5 s"]
        assert sorted(names(replace(job, wait_for_input=20))) == ["in/a.csv", "in/b.csv"]

    def test_a_directory_where_nothing_is_complete(self) -> None:
        Path("in").mkdir()
        job = Job(input_file=("in",), model="m", stable_for=600)
        with pytest.raises(InputMissing, match="directory without files"):
            arrived_tasks(job)
        Path("in/a.csv").write_text(ROWS)
        Path("in/b.csv").write_text(ROWS)
        with pytest.raises(InputUnfinished, match="all of 2 files"):
            arrived_tasks(job)
        assert arrived_tasks(replace(job, if_missing="skip")) == ((), ())

    def test_one_of_two_that_were_named_is_missing(self, model: Path) -> None:
        Path("a.csv").write_text(ROWS)
        job = Job(input_file=("a.csv", "b.csv"), model=str(model))
        assert score(job).exit_code == 66
        assert score(replace(job, if_missing="skip")).exit_code == 0

    def test_waiting_ends_with_sigterm(self, tmp_path: Path) -> None:
        started = commands.start(
            "--input_file=a.csv", "--model=m", "--wait_for_input=300", cwd=tmp_path
        )
        assert started.stdout
        assert b"waiting for at most 300 s: a.csv: no such file" in started.stdout.readline()
        started.send_signal(signal.SIGTERM)
        _, errors = started.communicate(timeout=60)
        assert started.returncode == 143
        assert b"terminated; what was not finished" in errors


def test_each_file_that_lands_is_scored_once_and_none_before_it_is_complete(
    tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Many at once, and some that are written slowly, as by a cron that looks again and again."""
    drop, done = tmp_path / "drop", tmp_path / "done"
    drop.mkdir()
    done.mkdir()
    for number in range(20):
        (drop / f"quick{number}.csv").write_text(f"id,text\n{number},good\n")
    # By their names the first to be read.
    slow = [drop / f"a{number}.csv" for number in range(3)]

    job = Job(
        input_file=(str(drop),), output_dir=str(done), model=str(model), if_done="skip",
        stable_for=1.5, if_missing="skip",
    )  # fmt: skip
    scored: list[str] = []

    def look() -> None:
        outcome = score(job)
        assert outcome.exit_code == 0
        scored.extend(receipt.inputs[0].path for receipt in outcome.receipts)

    for row in range(8):
        for file in slow:
            with file.open("a") as lines:
                lines.write("id,text\n" if row == 0 else f"{row},good\n")
        look()
        time.sleep(0.1)
    assert not set(map(str, slow)) & set(scored)
    until = time.monotonic() + 30
    while len(scored) < 23 and time.monotonic() < until:
        time.sleep(0.1)
        look()
    assert sorted(scored) == sorted(map(str, drop.iterdir()))
    with caplog.at_level("INFO"):
        assert score(job).receipts == ()
    assert caplog.messages == ["23 of 23 were scored before"]
    for file in drop.iterdir():
        found = (done / file.name).read_text().splitlines()
        assert len(found) == len(file.read_text().splitlines())
