"""The run that this process is at: its id and its stage, which every line of the log has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Stage = Literal["start", "load", "score", "publish"]

# The process's, not a thread's: what any thread logs belongs to the run.
_id = [""]
_stage: list[Stage] = ["start"]
_depth = [0]


@contextmanager
def one_run() -> Iterator[str]:
    """All that is done in here is one run, of a new id; one within another is a part of that.

    The id stays until the next one begins: the error that ends a run is told after it.
    """
    if not _depth[0]:
        _id[0], _stage[0] = "", "start"
    _depth[0] += 1
    try:
        yield run_id()
    finally:
        _depth[0] -= 1


def run_id() -> str:
    """16 hexadecimal digits."""
    if not _id[0]:
        _id[0] = os.urandom(8).hex()
    return _id[0]


def adopt(run_id: str) -> None:
    """Be a part of a run in another process."""
    _id[0] = run_id


def enter(stage: Stage) -> None:
    """Say what is done from now on."""
    _stage[0] = stage


def stage() -> Stage:
    """What is being done, or was when the run ended."""
    return _stage[0]
