"""run(job): lock, load, and for each input read, score, write, publish."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial

from batchpredict import s3
from batchpredict.counting import count
from batchpredict.data.formats import FORMATS
from batchpredict.data.locations import is_stream
from batchpredict.data.locks import Held
from batchpredict.data.naming import Task
from batchpredict.data.outputs import check_buckets, check_creatable
from batchpredict.data.sources import InputDiffers, InputSource, source_of
from batchpredict.errors import ConfigInvalid, InputInvalid, InputMissing, TryAgain
from batchpredict.job import Job
from batchpredict.run.arrival import arrived_tasks
from batchpredict.run.current import enter, one_run
from batchpredict.run.deadline import NEVER, Deadline
from batchpredict.run.engine import Engine, Run, Watch
from batchpredict.run.fetching import fetch
from batchpredict.run.loading import LoadedModel, load_model
from batchpredict.run.monitoring import Monitor, check_baseline
from batchpredict.run.opening import open_task
from batchpredict.run.parts import remove_parts
from batchpredict.run.parts_folder import check_replaceable
from batchpredict.run.pipeline import StageTimes
from batchpredict.run.publication import Publication
from batchpredict.run.receipt import Counts, Receipt, Resumed
from batchpredict.run.resuming import (
    already_done,
    check_resumable,
    forget,
    is_left_alone,
    journal_of,
    locked,
    pinned_model,
    suspects_of,
)
from batchpredict.run.scoring import Work, score
from batchpredict.run.space import check_space
from batchpredict.run.tally import Tally, check_skipped
from batchpredict.run.windows import skipped, windows, without
from batchpredict.signals import check_signals

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """Receipts of the inputs that were scored, and the highest exit code of all of them.

    `done`: how many more there are, that were scored before.
    """

    receipts: tuple[Receipt, ...]
    exit_code: int
    done: int = 0


@one_run()
def run(
    job: Job,
    watch: Watch,
    published: Callable[[Receipt], None] | None = None,
    transferred: Callable[[int], None] | None = None,
) -> Outcome:
    """Score every input of a job. `watch` is told after each window, `published` of each input,
    `transferred` of bytes of the model that are fetched.

    One input's InputInvalid or InputMissing is logged and the others go on; every other error
    ends the job. With one input every error is raised.
    """
    engine = _engine(job)
    tasks, missing = arrived_tasks(job)
    if not tasks:
        logger.info("nothing was there to be scored")
        return Outcome((), 0)
    check_resumable(tasks, job)
    check_baseline(job)
    _check_creatable(tasks, job)
    with locked(tasks, job) as locks, ExitStack() as held:
        deadline = Deadline.after(job.max_seconds)
        enter("load")
        fetched = held.enter_context(fetch(job, pinned_model(locks, tasks, job), transferred))
        digest = fetched.package.digest
        done = {task: already_done(task, job, digest, locks[task.output]) for task in tasks}
        left = [task for task, code in done.items() if code is None]
        if len(left) < len(tasks) > 1:
            logger.info("%d of %d were scored before", len(tasks) - len(left), len(tasks))
        check_space(left, job)
        parquet = any(task.output_format == "parquet" for task in left)
        model = load_model(job, fetched, parquet=parquet) if left else None
        receipts: list[Receipt] = []
        codes = [code for code in done.values() if code is not None]
        for lost in missing:
            logger.error("%s", lost)
            codes.append(lost.exit_code)
        told = partial(_told, codes, alone=len(tasks) + len(missing) == 1)
        if model is not None:
            scored = engine(left, job, model, Run(locks, deadline, watch, told))
            for receipt in held.enter_context(closing(scored)):
                receipts.append(receipt)
                if published is not None:
                    published(receipt)
        code = max([*codes, *(receipt.exit_code for receipt in receipts)])
        if code in (0, 3):
            forget(locks)
        return Outcome(tuple(receipts), code, len(tasks) - len(left))


def _engine(job: Job) -> Engine:
    if job.engine == "local":
        return _here
    try:
        from batchpredict.run.distributed import on_cluster  # ray is an extra
    except ModuleNotFoundError as error:
        raise ConfigInvalid(
            f"--engine=ray: {error}; install it with: pip install 'batchpredict[ray]'"
        ) from error
    return on_cluster


def _here(
    tasks: Sequence[Task], job: Job, model: LoadedModel, run: Run
) -> Generator[Receipt, None, None]:
    """The engine of this process: all shards of an input in one go, one input after the other."""
    done = 0
    for task in tasks:
        check_signals()
        run.deadline.check(done > 0, task.input)
        receipt = None
        with run.told():
            held = run.locks[task.output]
            receipt = run_task(task, job, model, run.watch, held, run.deadline)
        if receipt is not None:
            if not (is_stream(task.output) or s3.is_url(task.output)):
                remove_parts(task.output)  # of a run on a cluster that was stopped
            done += 1
            yield receipt


@contextmanager
def _told(codes: list[int], *, alone: bool) -> Iterator[None]:
    """One input's error is logged, and its code noted, so that others go on; not of one `alone`."""
    try:
        yield
    except (InputInvalid, InputMissing) as error:
        if alone:
            raise
        # Only its code is kept: its traceback holds the whole run of this input in memory.
        logger.error("%s", error)
        codes.append(error.exit_code)


def _check_creatable(tasks: Sequence[Task], job: Job) -> None:
    """Whatever is to be written, checked before any work."""
    for task in tasks:
        if job.output_parts:
            check_replaceable(task.output)
        else:
            check_creatable(task.output, job.output_dir, "--output_file or --output_dir")
        if task.rejects:
            below = None if job.rejects_file else job.output_dir
            check_creatable(task.rejects, below, "--rejects_file")
        if task.receipt:
            below = None if job.receipt_file else job.output_dir
            check_creatable(task.receipt, below, "--receipt_file")
    written = (name for task in tasks for name in (task.output, task.rejects, task.receipt))
    check_buckets(filter(None, written))


def rehearse(job: Job) -> tuple[str, ...]:
    """Every check of `run`, and the first window read and prepared; one line per input."""
    tasks, missing = arrived_tasks(job)
    if missing:
        raise missing[0]
    if not tasks:
        logger.info("nothing is there to be scored")
        return ()
    check_resumable(tasks, job)
    check_baseline(job)
    _check_creatable(tasks, job)
    with fetch(job) as fetched:
        left = [t for t in tasks if not is_left_alone(t, job, fetched.package.digest)]
        if not left:
            return ()
        model = load_model(job, fetched, parquet=any(t.output_format == "parquet" for t in left))
        return tuple(_rehearse_task(task, job, model) for task in left)


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
        first = without(first, skipped(first, job.skip_rows), opened.reader)
        prepared = opened.scorer.prepare(first.columns)
        rejects = len(first.rejects) + len(prepared.faults)
        return (
            f"{task.input}: dry run: {count(len(first) + len(first.rejects), 'row')} read, "
            f"{rejects} of them would be rejected; scored rows would go to {task.output}"
        )


def run_task(
    task: Task,
    job: Job,
    model: LoadedModel,
    watch: Watch,
    held: Held | None = None,
    deadline: Deadline = NEVER,
) -> Receipt:
    """Score one input. Raises BatchPredictError; a failure leaves `<output>.failed.json`.

    `held`: the lock of its output, in which the journal is kept.
    """
    try:
        return _attempt(task, job, model, watch, held, deadline)
    except InputDiffers as error:
        if held is None:
            raise
        logger.info("%s; starting over", error)
        held.empty()
    # Not in the handler: there the error still holds the first attempt's rows.
    return _attempt(task, job, model, watch, held, deadline)


@contextmanager
def _unless_changed(source: InputSource) -> Iterator[None]:
    """Raise TryAgain where an input is invalid only because it changed while it was read.

    Who ends us may have ended the other end of a pipe first.
    """
    try:
        yield
    except InputInvalid:
        check_signals()
        source.check_unchanged()
        raise


def _check_read(job: Job, counts: Counts, task: Task) -> None:
    """Warn of rows to be left out that there are not; of a shard, raise where rows are missing."""
    if task.shard is not None:
        if task.shard.rows not in (None, counts.read) and not task.shard.uncounted:
            raise TryAgain(
                f"{task.input}: {counts.read} rows from row {task.shard.row} on, where there were "
                f"{task.shard.rows}; run again when it is complete"
            )
        return
    check_skipped(job, counts, task)


@contextmanager
def _abandoned(publication: Publication) -> Iterator[None]:
    """Where a run ends early, the journal gets the room on the disk that the output had taken."""
    try:
        yield
    except BaseException:
        publication.abandon_output()
        raise


def _attempt(
    task: Task, job: Job, model: LoadedModel, watch: Watch, held: Held | None, deadline: Deadline
) -> Receipt:
    enter("score")
    times = StageTimes()
    tally = Tally(task, job.budget)
    with Publication(task, job, model, times) as publication:
        try:
            source = source_of(task.input, keeps_copy=task.shard is not None)
            with (
                closing(source),
                journal_of(task, job, model, source, held) as journal,
                _unless_changed(source),
                _abandoned(publication),
            ):
                publication.resumed = Resumed(journal.found_rows, journal.found_runs)
                opened = open_task(task, job, model, source)
                for remark in opened.remarks if task.shard is None else ():
                    logger.info("%s", remark)
                publication.suspects = suspects_of(journal, task, job)
                monitor = Monitor(task, job, model.fetched, opened.scorer)
                sink = publication.open_output()
                writer = FORMATS[task.output_format].module.open_writer(sink, opened.layout)
                publication.begin_body(source)
                profiler = monitor.profiler
                work = Work(opened, job, model, times, journal, deadline, profiler, task.shard)
                with closing(score(work)) as done:
                    for settled in done:
                        tally.add(settled, publication.rejects)
                        with times.measure("write"):
                            if settled.records.breaks:
                                writer.cut()
                                publication.cut()
                            writer.write(settled.records, settled.added)
                        watch(tally.counts, source)
                source.meet_expected()
                _check_read(job, tally.counts, task)
                tally.judge()
                monitor.conclude(publication)
                writer.cut()
                publication.end_body(tally.windows)
                writer.close()
                return publication.publish(source, tally.counts)
        except InputDiffers:
            raise
        except BaseException as error:
            publication.fail(error, tally.counts)
            raise
