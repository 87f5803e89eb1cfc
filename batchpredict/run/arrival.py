"""Inputs that are there and complete: wait for those that are late, leave out the others."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from batchpredict import s3
from batchpredict.data.locations import is_stream
from batchpredict.data.naming import Task, tasks_of
from batchpredict.errors import InputMissing, InputUnfinished
from batchpredict.job import Job
from batchpredict.signals import check_signals

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
# Of a store, where a look is a call or more.
_ASK_SECONDS = 10.0
# How many times as long as a look took nothing is looked at.
_LOOK_SHARE = 10.0


@dataclass(frozen=True)
class _Sight:
    """`unfinished`: left out of `tasks`, as they were changed too recently."""

    tasks: tuple[Task, ...]
    missing: tuple[InputMissing, ...]
    unfinished: tuple[str, ...]


def arrived_tasks(job: Job) -> tuple[tuple[Task, ...], tuple[InputMissing, ...]]:
    """As `tasks_of`, once all inputs are there and complete, or the time to wait for them is over.

    No task at all only where that is to be skipped. Raises UsageError, InputMissing, Unavailable.
    """
    begin = time.monotonic()
    sight = _look(job)
    until = time.monotonic() + job.wait_for_input
    # A look at ten thousand files takes seconds: it must not take all of a core.
    least = _LOOK_SHARE * (until - job.wait_for_input - begin)
    pause = _ASK_SECONDS if any(map(s3.is_url, job.input_file)) else _LOOK_SECONDS
    if job.wait_for_input and (sight.missing or sight.unfinished):
        for reason in _reasons(sight, job):
            logger.info("waiting for at most %g s: %s", job.wait_for_input, reason)
    while (sight.missing or sight.unfinished) and (left := until - time.monotonic()) > 0:
        _rest(min(left, max(pause, least)))
        sight = _look(job)
    missing = (*sight.missing, *_unfinished_names(sight, job))
    if job.if_missing == "skip":
        for error in missing:
            logger.info("skipped: %s", error)
        missing = ()
    elif missing and not sight.tasks:
        raise missing[0]
    named = {_path(name) for name in job.input_file}
    if sight.tasks and (later := [name for name in sight.unfinished if name not in named]):
        logger.info("%d left for later: changed within %g s", len(later), job.stable_for)
    return sight.tasks, missing


def _rest(seconds: float) -> None:
    """Sleep, but for what a signal asks for."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, _LOOK_SECONDS))
        check_signals()


def _look(job: Job) -> _Sight:
    try:
        tasks, missing = tasks_of(job)
    except InputMissing as error:
        return _Sight((), (error,), ())
    unfinished = {task.input for task in tasks if not _is_settled(task.input, job.stable_for)}
    return _Sight(
        tuple(task for task in tasks if task.input not in unfinished), missing, tuple(unfinished)
    )


def _is_settled(name: str, seconds: float) -> bool:
    """Whether nothing has changed a file for so long.

    The time of change of its inode counts too: a copy may be given an old time of modification.
    An object's time is that of its store. Raises Unavailable.
    """
    if not seconds or is_stream(name):
        return True
    now = time.time()
    try:
        if s3.is_url(name):
            return now - s3.store().head(s3.parse(name)).modified_ns / 1e9 >= seconds
        status = Path(name).stat()
    except (OSError, s3.Missing):  # it was renamed or removed since it was listed
        return False
    # A time of modification to come was set by someone whose clock is wrong.
    changed = max([status.st_ctime, *(t for t in [status.st_mtime] if t <= now)])
    return now - changed >= seconds


def _unfinished_names(sight: _Sight, job: Job) -> Iterable[InputUnfinished]:
    """What is wrong with inputs that were named, or with all where nothing else is there."""
    named = {_path(name): name for name in job.input_file}
    told = [named[name] for name in sight.unfinished if name in named]
    if not told and sight.unfinished and not sight.tasks:
        told = [f"all of {len(sight.unfinished)} files" if len(sight.unfinished) > 1 else each
                for each in sight.unfinished][:1]  # fmt: skip
    for name in told:
        yield InputUnfinished(
            f"{name}: changed within the last {job.stable_for:g} s and may not be complete; run "
            "again later, or wait with --wait_for_input=SECONDS"
        )


def _reasons(sight: _Sight, job: Job) -> Iterable[str]:
    yield from map(str, sight.missing)
    if sight.unfinished:
        few = ", ".join(sorted(sight.unfinished)[:3])
        yield f"{len(sight.unfinished)} changed within the last {job.stable_for:g} s ({few})"


def _path(name: str) -> str:
    """As in Task.input."""
    return s3.parse(name).url if s3.is_url(name) else os.path.expanduser(name)  # noqa: PTH111
