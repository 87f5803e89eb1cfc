"""Go on where an earlier run of the same command was stopped, or say why not."""

from __future__ import annotations

import logging
import os
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np

from batchpredict import s3
from batchpredict.counting import count
from batchpredict.data.drafts import not_creatable
from batchpredict.data.formats import FORMATS
from batchpredict.data.locations import identity, is_stream
from batchpredict.data.locks import Held, lock_output
from batchpredict.data.naming import Task
from batchpredict.data.sources import InputDiffers, InputSource
from batchpredict.errors import (
    ConfigInvalid,
    InputMissing,
    OutputNotCreatable,
    OutputWriteFailed,
    UsageError,
)
from batchpredict.job import Job
from batchpredict.run.deaths import Deaths, death_of
from batchpredict.run.done import done_receipt
from batchpredict.run.fetching import Pinned
from batchpredict.run.identity import Pins, difference, pinned_by, pins_of
from batchpredict.run.inflight import notes_beside, read_notes
from batchpredict.run.journal import Journal, Recorded, read_journal, read_pins
from batchpredict.run.loading import LoadedModel
from batchpredict.run.parts import remove_parts
from batchpredict.run.progress import lost
from batchpredict.run.publication import remove_failure

logger = logging.getLogger(__name__)

Locks = Mapping[str, Held | None]
# What a run has open at most besides the locks of its outputs.
_OTHER_FILES = 128


def check_resumable(tasks: Sequence[Task], job: Job) -> None:
    """Raise UsageError where a stream cannot do what is asked of files.

    And where rows are to be left out of one knows not which input.
    """
    if job.skip_rows and len(tasks) > 1:
        raise UsageError(
            f"--skip_rows counts the rows of one input, and there are {len(tasks)}; score the one "
            "that is meant by a command of its own"
        )
    if not any(is_stream(name) for task in tasks for name in (task.input, task.output)):
        return
    if job.engine != "local":
        raise UsageError(
            f"--engine={job.engine}: nodes cannot share standard input or output, a device or a "
            "pipe; name an --input_file and an --output_file"
        )
    if job.max_seconds is not None:
        raise UsageError(
            f"--max_seconds={job.max_seconds:g}: a run from standard input or into a stream "
            "cannot be resumed; name an --input_file and an --output_file"
        )
    if job.if_done != "rescore":
        raise UsageError(
            f"--if_done={job.if_done}: what came from standard input or went into a stream is "
            "not there to be compared; name an --input_file and an --output_file"
        )


@contextmanager
def locked(tasks: Sequence[Task], job: Job) -> Iterator[Locks]:
    """The locks of all outputs, by output. Raises TryAgain, OutputNotCreatable.

    A journal in which there is nothing is removed in the end.
    """
    _allow_open_files(len(tasks))
    with ExitStack() as stack:
        locks: dict[str, Held | None] = {}
        deadline = time.monotonic() + job.lock_wait
        try:
            # In one order for all: else two jobs may each wait for what the other one has.
            for task in sorted(tasks, key=lambda task: identity(task.output)):
                if job.output_dir and not s3.is_url(task.output):
                    _make_parents(task.output)
                wait = max(0.0, deadline - time.monotonic())
                locks[task.output] = stack.enter_context(lock_output(task.output, wait))
            yield locks
        finally:
            for held in filter(None, locks.values()):
                # An empty one that stays does no harm; why it cannot be removed is told already.
                with suppress(OSError):
                    if not os.fstat(held.descriptor).st_size:
                        held.remove()


def _allow_open_files(locks: int) -> None:
    wanted = locks + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise ConfigInvalid(
            f"{locks} outputs need as many open files, and no more than {hard} are allowed; raise "
            "the limit (ulimit -Hn), or score fewer inputs at once"
        )
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def forget(locks: Locks) -> None:
    """Remove all journals: a job that has come to its end needs none of them."""
    for held in filter(None, locks.values()):
        _remove_notes(held)
        try:
            held.remove()
        except OSError as error:
            reason = (error.strerror or "").lower()
            logger.warning("%s: cannot be removed: %s; remove it", held.path, reason)


def _remove_notes(held: Held) -> None:
    # Where they cannot be removed nothing can be written either, and that is what matters.
    with suppress(OSError):
        notes_beside(held.path).unlink(missing_ok=True)


def _make_parents(output: str) -> None:
    try:
        Path(os.path.realpath(output)).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_creatable(output, error, "--output_dir") from error


def pinned_model(locks: Locks, tasks: Sequence[Task], job: Job) -> Pinned | None:
    """The version of a model that this job has used so far, if it was stopped.

    What an alias names may have changed meanwhile; one job scores all of its inputs with one
    version.
    """
    for task in () if job.no_resume else tasks:
        held = locks[task.output]
        pins = read_pins(held) if held else None
        with suppress(InputMissing):  # which the run of this input will meet and tell
            if pins and (pinned := pinned_by(pins, task, job)):
                return pinned
    return None


def already_done(task: Task, job: Job, digest: str, held: Held | None) -> int | None:
    """The exit code of a task that need not be run; None where it has to be.

    An input that an interrupted run of this job has finished is not scored again, and its code is
    what it was; one that is done otherwise is left alone with 0 where --if_done says so.
    """
    if held is None:
        return None
    recorded = None if job.no_resume else read_journal(held)
    finished = recorded is not None and recorded.published
    receipt = done_receipt(task, job, digest) if finished else None
    if receipt is None:
        if not is_left_alone(task, job, digest):
            return None
        remove_failure(task, drafts=False)
        return 0
    logger.info("%s: finished by the run before, not scored again", task.input)
    if job.engine != "local":
        remove_parts(task.output)
    remove_failure(task)
    _remove_notes(held)
    rejects = receipt["rejects"]
    if rejects["codes"]:
        logger.warning("%s; see %s", lost(task.input, rejects["codes"]), rejects["path"])
    return int(receipt["exit_code"])


def is_left_alone(task: Task, job: Job, digest: str) -> bool:
    """Whether the output is there and --if_done says to leave it; raises OutputNotCreatable."""
    if job.if_done == "rescore" or done_receipt(task, job, digest) is None:
        return False
    there = f"{task.output} is there, scored from {task.input} by this model with these options"
    if job.if_done == "fail":
        raise OutputNotCreatable(f"{there}; remove it, or leave out --if_done=fail")
    # Of what a directory yields there may be thousands: they are counted.
    named = task.input in map(os.path.expanduser, job.input_file)
    logger.log(logging.INFO if named else logging.DEBUG, "nothing to do: %s", there)
    return True


@contextmanager
def journal_of(
    task: Task, job: Job, model: LoadedModel, source: InputSource, held: Held | None
) -> Iterator[Journal]:
    """The journal of a task while it runs; left by an error, everything inferred is kept in it.

    The source is told what the bytes must be that were scored before; reading raises InputDiffers
    where they are not.
    """
    if held is not None and not source.rereadable:
        logger.info("%s: cannot be read twice; a run that is killed starts over", task.input)
        held = None
    name = str(held.path) if held and s3.is_url(task.output) else task.output
    journal = Journal(held, name, source.mark)
    try:
        if held is not None:
            recorded = _begin(journal, held, pins_of(task, job, model, source), job, source)
            if recorded is not None:
                inside = task.shard is not None and task.shard.start > 0
                source.expect(recorded.marks, inside=inside)
            _record_death(journal)
            if task.shard is None and not FORMATS[task.input_format].is_sequential:
                source.read_whole()
        yield journal
        journal.close(published=True)
    except InputDiffers:
        raise
    except BaseException as error:
        _keep(journal, task, error)
        raise
    finally:
        journal.detach()
        if held is not None:
            _remove_notes(held)


def journal_apart(
    task: Task, job: Job, model: LoadedModel, source: InputSource, held: Held | None
) -> Journal:
    """The journal of a task whose rows are kept elsewhere: it says which model they are scored
    with, and once it is closed as published, that the task is done. To be detached.
    """
    name = str(held.path) if held and s3.is_url(task.output) else task.output
    journal = Journal(held, name, source.mark)
    if held is None:
        return journal
    recorded, pins = read_journal(held), pins_of(task, job, model, source)
    known = recorded is not None and not recorded.published and not job.no_resume
    if recorded is not None and known and difference(recorded.pins, pins) is None:
        journal.resume(recorded)
    else:
        journal.begin(pins)
    return journal


def _begin(
    journal: Journal, held: Held, pins: Pins, job: Job, source: InputSource
) -> Recorded | None:
    """What is gone on with; None where nothing is."""
    recorded = read_journal(held)
    why = None
    if recorded is None or recorded.published:
        journal.begin(pins)
        return None
    why = "--no_resume" if job.no_resume else difference(recorded.pins, pins)
    if why:
        if recorded.rows:
            logger.info("%s: %s; starting over", source.name, why)
        journal.begin(pins)
        return None
    journal.resume(recorded)
    if recorded.rows:
        logger.info("%s: going on, %s scored already", source.name, count(recorded.rows, "row"))
    return recorded


def _record_death(journal: Journal) -> None:
    """What the run before had in flight, if it died."""
    path = journal.notes_path
    if path is None:
        return
    try:
        notes = read_notes(path)
        if notes and journal.found_runs:  # else they are of a job that was given up
            journal.add_death(death_of(notes))
        path.unlink(missing_ok=True)
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise OutputNotCreatable(
            f"{path}: cannot be read and removed: {reason}; remove it"
        ) from error


def suspects_of(journal: Journal, task: Task, job: Job) -> tuple[int, ...]:
    """Rows that perhaps kill this process together with its child; told in a warning."""
    named = Deaths(journal.deaths).named()
    numbers = np.array(list(named), np.int64)
    known = journal.committed(numbers)
    lived = {*known.indices.tolist(), *(fault.index for fault in known.faults)}
    suspects = tuple(row for place, row in enumerate(named) if place not in lived)
    told = [row for row in suspects if row not in job.skip_rows]
    if told:
        rows = ", ".join(map(str, told))
        logger.warning(
            "%s: %s in flight, alone, when this job died (%s); a kill from outside looks the "
            "same, so it goes on; should it die again, leave such rows out with --skip_rows=%s",
            task.input,
            f"row {rows} was" if len(told) == 1 else f"rows {rows} were",
            count(max(named[row] for row in told), "time"),
            ",".join(str(row) for row in sorted({*job.skip_rows, *told})),
        )
    return suspects


def _keep(journal: Journal, task: Task, error: BaseException) -> None:
    """Make durable what an unfinished run has inferred."""
    try:
        journal.flush()
        journal.close(published=False)
    except OutputWriteFailed as second:
        if not isinstance(error, OutputWriteFailed):
            logger.warning("what was scored last is lost: %s", second)
    if rows := journal.kept_rows:
        logger.info("%s: %s scored and kept for the next run", task.input, count(rows, "row"))
