"""run(job): read, score, write, publish.

One row's way: a reader's block, a window, `Scorer.prepare`, a batch, `Scorer.infer`,
`Scorer.finish`, `_settle`, the writer. Reading and preparing are threads of their own, the
callers of the session several; each hands on windows through a short queue, and the loop in
`score` is where they meet, in the input's order.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from batchpredict.data.formats import FORMATS
from batchpredict.data.locations import (
    InputDiffers,
    LocalSource,
    check_creatable,
    unpublished,
)
from batchpredict.data.locks import Held
from batchpredict.data.naming import Task, tasks_of
from batchpredict.data.records import Records, Reject, take
from batchpredict.errors import InputInvalid, InputMissing, TryAgain
from batchpredict.job import Budget, Job
from batchpredict.model.contracts import Prepared
from batchpredict.model.package import read_package
from batchpredict.run.batching import Indices
from batchpredict.run.deaths import Deaths
from batchpredict.run.guard import Guard
from batchpredict.run.inflight import Notes
from batchpredict.run.journal import Journal
from batchpredict.run.loading import LoadedModel, load_model
from batchpredict.run.opening import Opened, open_task
from batchpredict.run.pipeline import Callers, StageTimes, ahead
from batchpredict.run.publication import Publication
from batchpredict.run.receipt import Counts, Receipt, Resumed
from batchpredict.run.rejects import RejectsFile
from batchpredict.run.resuming import (
    already_done,
    check_resumable,
    forget,
    journal_of,
    locked,
    suspects_of,
)
from batchpredict.run.scorer import Inferred, Scored, spread
from batchpredict.run.space import check_space
from batchpredict.run.windows import SKIPPED, rejected, skipped, windows, without

logger = logging.getLogger(__name__)

# From this many rows on, a share of rejects beyond the budget ends the run early.
_EARLY_ROWS = 1000
# What callers get to finish the batches they are at when a run ends early.
_PATIENCE_SECONDS = 2.0

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
    stop_at = time.monotonic() + (math.inf if job.max_seconds is None else job.max_seconds)
    tasks, missing = tasks_of(job)
    check_resumable(tasks, job)
    _check_creatable(tasks, job)
    with locked(tasks, job) as locks:
        package = read_package(job.model)
        done = {task: already_done(task, job, package.digest, locks[task.output]) for task in tasks}
        left = [task for task, code in done.items() if code is None]
        check_space(left, job)
        parquet = any(task.output_format == "parquet" for task in left)
        model = load_model(job, package, parquet=parquet) if left else None
        receipts: list[Receipt] = []
        codes = [code for code in done.values() if code is not None]
        for lost in missing:
            logger.error("%s", lost)
            codes.append(lost.exit_code)
        for task in left:
            assert model is not None
            _check_time(stop_at, bool(receipts), task.input)
            try:
                receipts.append(run_task(task, job, model, watch, locks[task.output], stop_at))
            except (InputInvalid, InputMissing) as error:
                if len(tasks) + len(missing) == 1:
                    raise
                # Only its code is kept: its traceback holds the whole run of this input in memory.
                logger.error("%s", error)
                codes.append(error.exit_code)
        code = max([*codes, *(receipt.exit_code for receipt in receipts)])
        if code in (0, 3):
            forget(locks)
        return Outcome(tuple(receipts), code)


def _check_time(stop_at: float, progressed: bool, name: str) -> None:
    """Raise TryAgain after --max_seconds; not before a first commit, or no run would get on."""
    if progressed and time.monotonic() >= stop_at:
        raise TryAgain(f"{name}: stopped after --max_seconds; run the same command to go on")


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


def run_task(
    task: Task,
    job: Job,
    model: LoadedModel,
    watch: Watch,
    held: Held | None = None,
    stop_at: float = math.inf,
) -> Receipt:
    """Score one input. Raises BatchPredictError; a failure leaves `<output>.failed.json`.

    `held`: the lock of its output, in which the journal is kept. `stop_at`: when to stop, of
    time.monotonic.
    """
    try:
        return _attempt(task, job, model, watch, held, stop_at)
    except InputDiffers as error:
        logger.info("%s; starting over", error)
        if held is None:
            raise
        held.empty()
        return _attempt(task, job, model, watch, held, stop_at)


@contextmanager
def _unless_changed(source: LocalSource) -> Iterator[None]:
    """Raise TryAgain where an input is invalid only because it changed while it was read."""
    try:
        yield
    except InputInvalid:
        source.check_unchanged()
        raise


def _attempt(
    task: Task, job: Job, model: LoadedModel, watch: Watch, held: Held | None, stop_at: float
) -> Receipt:
    times = StageTimes()
    tally = _Tally(task, job.budget)
    with Publication(task, job, model, times) as publication:
        try:
            source = LocalSource(task.input)
            with (
                closing(source),
                journal_of(task, job, model, source, held) as journal,
                _unless_changed(source),
            ):
                publication.resumed = Resumed(journal.found_rows, journal.found_runs)
                opened = open_task(task, job, model, source)
                for remark in opened.remarks:
                    logger.info("%s", remark)
                publication.suspects = suspects_of(journal, task, job)
                sink = publication.open_output()
                writer = FORMATS[task.output_format].module.open_writer(sink, opened.layout)
                with closing(score(Work(opened, job, model, times, journal, stop_at))) as done:
                    for settled in done:
                        tally.add(settled, publication.rejects)
                        with times.measure("write"):
                            writer.write(settled.records, settled.added)
                        watch(tally.counts, source)
                source.meet_expected()
                tally.judge()
                writer.close()
                return publication.publish(source, tally.counts)
        except InputDiffers:
            raise
        except BaseException as error:
            publication.fail(error, tally.counts)
            raise


@dataclass(frozen=True)
class Work:
    """What the stages of a task share; `stop_at`: see run_task."""

    opened: Opened
    job: Job
    model: LoadedModel
    times: StageTimes
    journal: Journal
    stop_at: float


@dataclass(frozen=True)
class _Window:
    """A window on its way: its rows, what the encoder made of them, its batches being inferred.

    `known`: what an earlier run has inferred.
    """

    records: Records
    prepared: Prepared
    known: Inferred
    batches: list[Future[Inferred]]


@dataclass(frozen=True)
class Settled:
    """`records` to write with their `added` columns (null for `nulls` of them), and `rejects`."""

    records: Records
    added: pa.RecordBatch
    rejects: tuple[Reject, ...]
    read: int
    nulls: int
    truncated: int
    duplicates: int


def score(work: Work) -> Generator[Settled]:
    """The windows of an input, scored, in order."""
    opened, plan, limit = work.opened, work.model.plan, work.job.limit
    blocks = opened.reader.records(opened.selection)
    rows = work.times.each("read", windows(blocks, plan.window_rows, plan.window_bytes, limit))
    callers = Callers(plan.workers)
    notes = Notes(work.journal.notes_path, plan.workers + 1, plan.most_rows)
    guard = Guard(opened.scorer, notes, Deaths(work.journal.deaths))
    # Closed by the thread that reads from it: to close it here, while that does, is an error.
    ready = ahead(rows, plan.queue_depth, "read")
    with closing(ahead(_begin(ready, work, guard, callers), plan.queue_depth, "prepare")) as stream:
        try:
            for window in stream:
                inferred = [window.known, *(batch.result() for batch in window.batches)]
                with work.times.measure("finish"):
                    scored = opened.scorer.finish(window.prepared, inferred)
                    settled = _settle(window, scored, work)
                yield settled
        finally:
            callers.stop(_PATIENCE_SECONDS)
            guard.close()


def _begin(
    rows: Iterator[Records], work: Work, guard: Guard, callers: Callers
) -> Iterator[_Window]:
    """Prepare each window and hand what is not known of it to the callers."""
    scorer, reader, times = work.opened.scorer, work.opened.reader, work.times
    for window in rows:
        with times.measure("prepare"):
            records = without(window, skipped(window, work.job.skip_rows), reader)
            records, prepared = guard.prepare(records, reader)
        with times.measure("plan"):
            known = work.journal.committed(records.rows)
            plan = _unknown(scorer.plan(prepared), known, prepared.rows)
        begun = [callers.submit(partial(_infer, work, guard, records, prepared, b)) for b in plan]
        yield _Window(records, prepared, known, begun)


def _unknown(plan: Iterable[Indices], known: Inferred, rows: int) -> list[Indices]:
    """The batches without the rows that are known."""
    unknown = np.ones(rows, bool)
    unknown[known.indices] = False
    unknown[[fault.index for fault in known.faults]] = False
    return [left for batch in plan if len(left := batch[unknown[batch]])]


def _infer(
    work: Work, guard: Guard, records: Records, prepared: Prepared, batch: Indices
) -> Inferred:
    """What a caller does."""
    journal, times = work.journal, work.times
    _check_time(work.stop_at, journal.added_rows > 0, work.opened.source.name)
    with times.measure("infer"):
        inferred = guard.infer(records, prepared, batch)
    with times.measure("commit"):
        journal.add(records.rows, inferred)
    times.mark_row()
    return inferred


def _settle(window: _Window, scored: Scored, work: Work) -> Settled:
    """Decide what is written and what is rejected."""
    records, opened, job = window.records, work.opened, work.job
    faults = [rejected(records, fault, opened.reader) for fault in scored.faults]
    rejects = tuple(sorted((*records.rejects, *faults), key=lambda reject: reject.row))
    first = next((reject for reject in rejects if reject.code != SKIPPED), None)
    if first is not None and job.on_error == "fail":
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
        return Settled(kept, scored.added, rejects, read, 0, truncated, duplicates)
    added = spread(scored, len(records)) if faults else scored.added
    return Settled(records, added, rejects, read, len(faults), truncated, duplicates)


class _Tally:
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
