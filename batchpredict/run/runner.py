"""run(job): read, score, write, publish.

One row's way: a reader's block, a window, `Scorer.prepare`, a batch, `Scorer.infer`,
`Scorer.finish`, `_settle`, the writer. Reading and preparing are threads of their own, the
callers of the session several; each hands on windows through a short queue, and the loop in
`_score` is where they meet, in the input's order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import pyarrow as pa

from batchpredict.data.formats import FORMATS
from batchpredict.data.locations import LocalSource, check_creatable, unpublished
from batchpredict.data.naming import Task, tasks_of
from batchpredict.data.records import Reader, Records, Reject, take
from batchpredict.errors import InputInvalid, InputMissing
from batchpredict.job import Budget, Job
from batchpredict.model.contracts import Fault, Prepared
from batchpredict.run.batching import Indices
from batchpredict.run.loading import LoadedModel, load_model
from batchpredict.run.opening import Opened, open_task
from batchpredict.run.pipeline import StageTimes, ahead
from batchpredict.run.publication import Publication
from batchpredict.run.receipt import Counts, Receipt
from batchpredict.run.rejects import RejectsFile
from batchpredict.run.scorer import Inferred, Scored, Scorer, spread
from batchpredict.run.windows import windows

logger = logging.getLogger(__name__)

# From this many rows on, a share of rejects beyond the budget ends the run early.
_EARLY_ROWS = 1000

Watch = Callable[[Counts, LocalSource], None]


@dataclass(frozen=True)
class Outcome:
    """Receipts of the inputs that were scored, and the highest exit code of all of them."""

    receipts: tuple[Receipt, ...]
    exit_code: int


def run(job: Job, watch: Watch) -> Outcome:
    """Score every input of a job. `watch` is told after each window.

    One input's InputInvalid or InputMissing is logged and the others go on; every other error
    ends the job. With one input every error is raised.
    """
    tasks, missing = tasks_of(job)
    _check_creatable(tasks, job)
    model = load_model(job, parquet=any(task.output_format == "parquet" for task in tasks))
    receipts: list[Receipt] = []
    codes: list[int] = []
    for lost in missing:
        logger.error("%s", lost)
        codes.append(lost.exit_code)
    for task in tasks:
        try:
            receipts.append(run_task(task, job, model, watch))
        except (InputInvalid, InputMissing) as error:
            if len(tasks) + len(missing) == 1:
                raise
            # Only its code is kept: its traceback holds the whole run of this input in memory.
            logger.error("%s", error)
            codes.append(error.exit_code)
    return Outcome(tuple(receipts), max([*codes, *(receipt.exit_code for receipt in receipts)]))


def _check_creatable(tasks: Iterable[Task], job: Job) -> None:
    """Whatever is to be written, checked before any work."""
    for task in tasks:
        check_creatable(task.output, job.output_dir, "--output_file or --output_dir")
        if task.rejects:
            below = None if job.rejects_file else job.output_dir
            check_creatable(task.rejects, below, "--rejects_file")
        if task.receipt:
            below = None if job.receipt_file else job.output_dir
            check_creatable(task.receipt, below, "--receipt_file")


def rehearse(job: Job) -> tuple[str, ...]:
    """Every check of `run`, and the first window read and prepared; one line per input."""
    tasks, missing = tasks_of(job)
    if missing:
        raise missing[0]
    _check_creatable(tasks, job)
    model = load_model(job, parquet=any(task.output_format == "parquet" for task in tasks))
    return tuple(_rehearse_task(task, job, model) for task in tasks)


def _rehearse_task(task: Task, job: Job, model: LoadedModel) -> str:
    opened = open_task(task, job, model)
    with closing(opened.source):
        for remark in opened.remarks:
            logger.info("%s", remark)
        blocks = opened.reader.records(opened.selection)
        plan = model.plan
        rows = windows(blocks, plan.window_rows, plan.window_bytes, job.limit)
        first = next(rows, None)
        if first is None:
            return f"{task.input}: no rows; nothing would be scored"
        prepared = opened.scorer.prepare(first.columns)
        rejects = len(first.rejects) + len(prepared.faults)
        return (
            f"{task.input}: dry run: {len(first) + len(first.rejects)} rows read, {rejects} of "
            f"them would be rejected; scored rows would go to {task.output}"
        )


def run_task(task: Task, job: Job, model: LoadedModel, watch: Watch) -> Receipt:
    """Score one input. Raises BatchPredictError; a failure leaves `<output>.failed.json`."""
    times = StageTimes()
    tally = _Tally(task, job.budget)
    with Publication(task, job, model, times) as publication:
        try:
            opened = open_task(task, job, model)
            with closing(opened.source):
                for remark in opened.remarks:
                    logger.info("%s", remark)
                sink = publication.open_output()
                writer = FORMATS[task.output_format].module.open_writer(sink, opened.layout)
                for settled in _score(opened, job, model, times):
                    tally.add(settled, publication.rejects)
                    with times.measure("write"):
                        writer.write(settled.records, settled.added)
                    watch(tally.counts, opened.source)
                tally.judge()
                writer.close()
                return publication.publish(opened.source, tally.counts)
        except BaseException as error:
            publication.fail(error, tally.counts)
            raise


@dataclass(frozen=True)
class _Window:
    """A window on its way: its rows, what the encoder made of them, its batches being inferred."""

    records: Records
    prepared: Prepared
    batches: list[Future[Inferred]]


@dataclass(frozen=True)
class _Settled:
    """`records` to write with their `added` columns (null for `nulls` of them), and `rejects`."""

    records: Records
    added: pa.RecordBatch
    rejects: tuple[Reject, ...]
    read: int
    nulls: int
    truncated: int
    duplicates: int


def _score(opened: Opened, job: Job, model: LoadedModel, times: StageTimes) -> Iterator[_Settled]:
    """The windows of an input, scored, in order."""
    scorer, plan = opened.scorer, model.plan
    blocks = opened.reader.records(opened.selection)
    rows = times.each("read", windows(blocks, plan.window_rows, plan.window_bytes, job.limit))
    callers = ThreadPoolExecutor(plan.workers, "caller")
    try:
        begun = _begin(ahead(rows, plan.queue_depth, "read"), scorer, callers, times)
        with closing(ahead(begun, plan.queue_depth, "prepare")) as stream:
            for window in stream:
                inferred = [batch.result() for batch in window.batches]
                with times.measure("finish"):
                    scored = scorer.finish(window.prepared, inferred)
                    settled = _settle(window, scored, opened, job)
                yield settled
    finally:
        callers.shutdown(wait=False, cancel_futures=True)


def _begin(
    rows: Iterator[Records], scorer: Scorer, callers: Executor, times: StageTimes
) -> Iterator[_Window]:
    """Prepare each window and hand its batches to the callers."""
    for records in rows:
        with times.measure("prepare"):
            prepared = scorer.prepare(records.columns)
        with times.measure("plan"):
            plan = scorer.plan(prepared)

        def infer(batch: Indices, prepared: Prepared = prepared) -> Inferred:
            with times.measure("infer"):
                inferred = scorer.infer(prepared, batch)
            times.mark_row()
            return inferred

        yield _Window(records, prepared, [callers.submit(infer, batch) for batch in plan])


def _settle(window: _Window, scored: Scored, opened: Opened, job: Job) -> _Settled:
    """Decide what is written and what is rejected."""
    records = window.records
    faults = [_as_reject(records, fault, opened.reader) for fault in scored.faults]
    rejects = tuple(sorted((*records.rejects, *faults), key=lambda reject: reject.row))
    if rejects and job.on_error == "fail":
        first = rejects[0]
        line = "" if first.line is None else f":{first.line}"
        raise InputInvalid(
            f"{opened.source.name}{line}: row {first.row}: {first.code}: {first.message}; mend "
            "it, or let it be rejected with --on_error=reject"
        )
    read = len(records) + len(records.rejects)
    prepared = window.prepared
    truncated = prepared.truncated
    duplicates = int((prepared.first[scored.indices] != scored.indices).sum())
    if faults and job.on_error == "reject":
        kept = take(records, scored.indices)
        return _Settled(kept, scored.added, rejects, read, 0, truncated, duplicates)
    added = spread(scored, len(records)) if faults else scored.added
    return _Settled(records, added, rejects, read, len(faults), truncated, duplicates)


def _as_reject(records: Records, fault: Fault, reader: Reader) -> Reject:
    index = fault.index
    return Reject(
        row=int(records.rows[index]),
        line=None if records.lines is None else int(records.lines[index]),
        code=fault.code,
        message=fault.message,
        record=reader.original(records.raw, index),
        offset=None if records.offsets is None else int(records.offsets[index]),
    )


class _Tally:
    """Counts rows and judges the budget."""

    def __init__(self, task: Task, budget: Budget) -> None:
        self._task = task
        self._budget = budget
        self._rejects = 0
        self.counts = Counts()

    def add(self, settled: _Settled, rejects: RejectsFile) -> None:
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
