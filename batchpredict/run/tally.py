"""Counts of a task's rows, and whether too many of them are rejected."""

from __future__ import annotations

from batchpredict.data.drafts import unpublished
from batchpredict.data.naming import Task
from batchpredict.errors import InputInvalid
from batchpredict.job import Budget
from batchpredict.run.receipt import Counts
from batchpredict.run.rejects import RejectsFile
from batchpredict.run.scoring import Settled

# From this many rows on, a share of rejects beyond the budget ends the run early.
_EARLY_ROWS = 1000


class Tally:
    """Counts rows and judges the budget."""

    def __init__(self, task: Task, budget: Budget) -> None:
        self._task = task
        self._budget = budget
        self._rejects = 0
        self.counts = Counts()

    def add(self, settled: Settled, rejects: RejectsFile) -> None:
        """Count a window, write down its rejects, stop where they are too many already."""
        most = self._budget.rows
        written = settled.rejects if most is None else settled.rejects[: most + 1 - self._rejects]
        rejects.add(written)
        self._rejects += len(written)
        counts = self.counts
        self.counts = Counts(
            read=counts.read + settled.read,
            scored=counts.scored + len(settled.records) - settled.nulls,
            nulls=counts.nulls + settled.nulls,
            rejected=counts.rejected + settled.read - len(settled.records),
            duplicates=counts.duplicates + settled.duplicates,
            truncated=counts.truncated + settled.truncated,
        )
        if self._budget.rows is not None or self.counts.read >= _EARLY_ROWS:
            self.judge()

    def judge(self) -> None:
        """Raise InputInvalid where more rows are rejected than the budget allows."""
        if self._budget.exceeded(self._rejects, self.counts.read):
            allowed = (
                f"{self._budget.rows} rows"
                if self._budget.rows is not None
                else f"{float(100 * (self._budget.share or 0)):g}%"
            )
            where = self._task.failed_rejects or "the rejects"
            raise InputInvalid(
                f"{self._task.input}: {self._rejects} of {self.counts.read} rows rejected, more "
                f"than --max_rejects={allowed}; {unpublished(self._task.output)}, see {where}"
            )
