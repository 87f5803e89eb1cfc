"""Counts of a task's rows, and whether too many of them are rejected."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from batchpredict.counting import count
from batchpredict.data.drafts import unpublished
from batchpredict.data.naming import Task
from batchpredict.errors import InputInvalid
from batchpredict.job import Budget, Job
from batchpredict.run.receipt import Counts
from batchpredict.run.rejects import RejectsFile
from batchpredict.run.scoring import Settled

logger = logging.getLogger(__name__)

# From this many rows on, a share of rejects beyond the budget ends the run early.
_EARLY_ROWS = 1000


class Tally:
    """Counts rows and judges the budget.

    `windows`: of each its rows and how many of them are rejects, which another tally can be told.
    """

    def __init__(self, task: Task, budget: Budget) -> None:
        self._task = task
        self._budget = budget
        self._rejects = 0
        self.counts = Counts()
        self.windows: list[tuple[int, int]] = []

    def add(self, settled: Settled, rejects: RejectsFile) -> None:
        """Count a window, write down its rejects, stop where they are too many already."""
        most = self._budget.rows
        written = settled.rejects if most is None else settled.rejects[: most + 1 - self._rejects]
        rejects.add(written)
        self.counts += Counts(
            read=settled.read,
            scored=len(settled.records) - settled.nulls,
            nulls=settled.nulls,
            rejected=settled.read - len(settled.records),
            duplicates=settled.duplicates,
            truncated=settled.truncated,
        )
        self.windows.append((settled.read, len(written)))
        self._add(self.counts.read, len(written))

    def add_part(
        self,
        counts: Counts,
        windows: Iterable[Sequence[int]],
        lines: Iterator[bytes],
        rejects: RejectsFile,
    ) -> None:
        """Count a part, as if its windows had been added one by one.

        `windows`: of its tally; `lines`: of its rejects file.
        """
        read = self.counts.read
        self.counts += counts
        for rows, lost in windows:
            read += rows
            most = self._budget.rows
            written = lost if most is None else min(lost, most + 1 - self._rejects)
            rejects.append(islice(lines, written))
            self._add(read, written)

    def _add(self, read: int, rejects: int) -> None:
        self._rejects += rejects
        if self._budget.rows is not None or read >= _EARLY_ROWS:
            self._judge(read)

    def judge(self) -> None:
        """Raise InputInvalid where more rows are rejected than the budget allows."""
        self._judge(self.counts.read)

    def _judge(self, read: int) -> None:
        if self._budget.exceeded(self._rejects, read):
            allowed = (
                count(self._budget.rows, "row")
                if self._budget.rows is not None
                else f"{float(100 * (self._budget.share or 0)):g}%"
            )
            where = self._task.failed_rejects or "the rejects"
            rows = count(read, "row")
            raise InputInvalid(
                f"{self._task.input}: {self._rejects} of {rows} rejected, more than "
                f"--max_rejects={allowed}; {unpublished(self._task.output)}, see {where}"
            )


def check_skipped(job: Job, counts: Counts, task: Task) -> None:
    """Warn of rows that were to be left out and are not there."""
    beyond = [str(row) for row in job.skip_rows if row > counts.read]
    if beyond:
        logger.warning(
            "--skip_rows=%s: %s has no such rows, it has %s",
            ",".join(beyond),
            task.input,
            f"{counts.read:,}",
        )
