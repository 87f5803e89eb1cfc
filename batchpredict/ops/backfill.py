"""A job for each day of a range, in order; a day that fails does not keep the next from running."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from batchpredict.data.locations import identity, is_stream
from batchpredict.data.naming import tasks_of
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
            days.append(_score(replace(job, wait_for_input=0.0, max_seconds=left), score))
    finally:
        for line in table(days):
            logger.info("%s", line)
    return max(day.exit_code for day in days)


def _score(job: Job, score: Callable[[Job], Outcome]) -> Day:
    day, inputs = str(job.date), ", ".join(job.input_file)
    try:
        if job.max_seconds == 0:
            raise TryAgain("not begun, as --max_seconds are over; run the same command again")
        outcome = score(job)
    except BatchPredictError as error:
        logger.error("%s: %s", day, error)
        return Day(day, inputs, error.exit_code, _REMARKS.get(error.exit_code, "failed"))
    if not outcome.receipts:
        remark = "done before" if outcome.done else _REMARKS.get(outcome.exit_code, "no input")
        return Day(day, inputs, outcome.exit_code, remark)
    remarks = [f"{outcome.done} done before"] if outcome.done else []
    if outcome.exit_code not in (0, 3):
        remarks.append(_REMARKS.get(outcome.exit_code, "failed"))
    counts = [receipt.counts for receipt in outcome.receipts]
    return Day(
        day,
        inputs,
        outcome.exit_code,
        ", ".join(remarks),
        sum(count.read for count in counts),
        sum(count.rejected for count in counts),
    )


def _check_apart(jobs: Sequence[Job]) -> None:
    """Raise UsageError where two days would write the same file, or one a stream."""
    written: dict[str, str] = {}
    for job in jobs:
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
                day = written.setdefault(identity(file), str(job.date))
                if day != job.date:
                    raise UsageError(
                        f"{file}: {day} and {job.date} would both be written to it; put {{date}} "
                        "into --output_file or --output_dir too"
                    )


def table(days: Sequence[Day]) -> Iterator[str]:
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
    scored = sum(day.rows is not None and day.exit_code in (0, 3) for day in days)
    failed = sum(day.exit_code not in (0, 3) for day in days)
    yield (
        f"{len(days)} days: {scored} scored, {len(days) - scored - failed} left alone, "
        f"{failed} failed; "
        f"{sum(day.rows or 0 for day in days):,} rows, "
        f"{sum(day.rejected or 0 for day in days):,} rejected"
    )


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"
