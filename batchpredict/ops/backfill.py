"""A job for each day of a range, in order; a day that fails does not keep the next from running."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from batchpredict.counting import count
from batchpredict.data.locations import Identities, is_stream
from batchpredict.data.naming import Task, tasks_of
from batchpredict.errors import BatchPredictError, InputMissing, TryAgain, UsageError
from batchpredict.job import Job
from batchpredict.run.runner import Outcome
from batchpredict.signals import check_signals

logger = logging.getLogger(__name__)

_REMARKS = {
    2: "wrong usage", 65: "input invalid", 66: "input missing", 69: "model not available",
    73: "output cannot be created", 74: "output not written", 75: "run it again",
    78: "model or options wrong",
}  # fmt: skip
_WOULD = "would be scored"


@dataclass(frozen=True)
class Day:
    """What became of a day. `rows`, `rejected`: None where nothing was scored."""

    day: str
    inputs: str
    exit_code: int
    remark: str = ""
    rows: int | None = None
    rejected: int | None = None


def backfill(jobs: Sequence[Job], score: Callable[[Job], Outcome]) -> int:
    """The highest exit code of all days. Days are told in a table, however the range ends.

    The jobs are those of `Request.jobs`. `max_seconds` is for all of them together. Raises
    UsageError before any work.
    """
    return _each(jobs, lambda job: _scored(job, score(job)), table)


def rehearse(jobs: Sequence[Job], rehearsed: Callable[[Job], Sequence[str]]) -> int:
    """As `backfill`, without scoring. `rehearsed`: what would be done on a day, a line each."""

    def told(job: Job) -> Day:
        lines = rehearsed(job)
        for line in lines:
            logger.info("%s", line)
        return _day(job, 0, _WOULD if lines else "nothing to do")

    return _each(jobs, told, lambda days: table(days, dry_run=True))


def _each(
    jobs: Sequence[Job],
    work: Callable[[Job], Day],
    told: Callable[[Sequence[Day]], Iterator[str]],
) -> int:
    _check_apart(jobs)
    if jobs[0].wait_for_input:
        logger.info("--wait_for_input is for one day; the days of a range are not waited for")
    begin = time.monotonic()
    days: list[Day] = []
    try:
        for job in jobs:
            check_signals()
            left = job.max_seconds
            if left is not None:
                left = max(0.0, left - (time.monotonic() - begin))
            days.append(_work(replace(job, wait_for_input=0.0, max_seconds=left), work))
    finally:
        for line in told(days):
            logger.info("%s", line)
    return max(day.exit_code for day in days)


def _work(job: Job, work: Callable[[Job], Day]) -> Day:
    try:
        if job.max_seconds == 0:
            raise TryAgain("not begun, as --max_seconds are over; run the same command again")
        return work(job)
    except BatchPredictError as error:
        logger.error("%s: %s", job.date, error)
        return _day(job, error.exit_code, _REMARKS.get(error.exit_code, "failed"))


def _day(job: Job, exit_code: int, remark: str) -> Day:
    return Day(str(job.date), ", ".join(job.input_file), exit_code, remark)


def _scored(job: Job, outcome: Outcome) -> Day:
    if not outcome.receipts:
        remark = "done before" if outcome.done else _REMARKS.get(outcome.exit_code, "no input")
        return _day(job, outcome.exit_code, remark)
    remarks = [f"{outcome.done} done before"] if outcome.done else []
    if outcome.exit_code not in (0, 3):
        remarks.append(_REMARKS.get(outcome.exit_code, "failed"))
    counts = [receipt.counts for receipt in outcome.receipts]
    return replace(
        _day(job, outcome.exit_code, ", ".join(remarks)),
        rows=sum(each.read for each in counts),
        rejected=sum(each.rejected for each in counts),
    )


def _check_apart(jobs: Sequence[Job]) -> None:
    """Raise UsageError where two days would write the same file, or one a stream."""
    days: dict[Job, str] = {}
    written: dict[str, tuple[str, str]] = {}
    identities = Identities()
    for job in jobs:
        date = str(job.date)
        if (day := days.setdefault(replace(job, date=None), date)) != date:
            raise _scored_twice(job.input_file[0], day, date)
        try:
            tasks, _ = tasks_of(job)
        except InputMissing:
            continue
        for task in tasks:
            for file in (task.output, task.rejects, task.receipt):
                if file is None or is_stream(file):
                    raise UsageError(
                        f"{task.input}: a range of days is written to files, not to a stream; "
                        "name an --input_file and an --output_file"
                    )
                day, source = written.setdefault(identities.of(file), (date, task.input))
                if day != date and source == task.input:
                    raise _scored_twice(source, day, date)
                if day != date:
                    raise UsageError(
                        f"{_naming(job, task, file)}: {day} and {date} would both write {file}, "
                        "and the second would replace the first; put {date} into it too"
                    )


def _scored_twice(name: str, day: str, other: str) -> UsageError:
    return UsageError(
        f"--input_file={name}: is the same on {day} and on {other}, and would be scored twice; put "
        "{date} into it, or have it scored once, with --date instead of --from and --to"
    )


def _naming(job: Job, task: Task, file: str) -> str:
    """The option that `file` is called after."""
    beside = {task.rejects: "rejects_file", task.receipt: "receipt_file"}
    for option in (beside.get(file), "output_file", "output_dir"):
        if option and (name := getattr(job, option)):
            return f"--{option}={name}"
    return f"--input_file={task.input}"


def table(days: Sequence[Day], *, dry_run: bool = False) -> Iterator[str]:
    """A line for each day, and one that sums up; nothing for no days."""
    if not days:
        return
    rows = [("day", "input", "rows", "rejected", "exit", "")]
    rows += [
        (
            day.day,
            day.inputs,
            _count(day.rows),
            _count(day.rejected),
            str(day.exit_code),
            day.remark,
        )
        for day in days
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        cells = [row[column].ljust(widths[column]) for column in (0, 1)]
        cells += [row[column].rjust(widths[column]) for column in (2, 3, 4)]
        yield "  ".join([*cells, row[5]]).rstrip()
    yield _sum(days, dry_run)


def _sum(days: Sequence[Day], dry_run: bool) -> str:
    good = [day for day in days if day.exit_code in (0, 3)]
    scored = sum(day.rows is not None or day.remark == _WOULD for day in good)
    told = (
        f"{count(len(days), 'day')}: {scored} {'would be ' if dry_run else ''}scored, "
        f"{len(good) - scored} left alone, {len(days) - len(good)} failed"
    )
    if dry_run:
        return told
    return (
        f"{told}; {count(sum(day.rows or 0 for day in days), 'row')}, "
        f"{sum(day.rejected or 0 for day in days):,} rejected"
    )


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"
