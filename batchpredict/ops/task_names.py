"""What a run is called among others: the same every night, and not as another crontab line's."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from batchpredict.errors import CONTROLS

# A file's name may have 255 bytes, and gets a suffix while it is written.
_MOST_NAME = 120
_MOST_LABEL = 500


@dataclass(frozen=True)
class TaskName:
    """What the runs of one crontab line have in common.

    `source`: the job file's path, or the inputs and outputs that the command line names.
    """

    task: str
    source: str


def task_name(job_file: str | None, inputs: Sequence[str], outputs: Sequence[str]) -> TaskName:
    """The task of a run. `inputs`, `outputs`: as the command line or the environment names them.

    The job file's name without its suffix, then the paths in absolute form: they are the same
    every night, and differ between tasks.
    """
    paths = ", ".join(map(_absolute, inputs))
    if outputs:
        paths = f"{paths} -> {', '.join(map(_absolute, outputs))}".lstrip()
    if not job_file:
        return TaskName(label(paths), label(paths))
    task = f"{Path(job_file).stem} {paths}".rstrip()
    return TaskName(label(task), label(_absolute(job_file)))


def _absolute(path: str) -> str:
    if path == "-" or "://" in path:
        return path
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 - links stay


def label(text: object) -> str:
    """A label's value: a name need not be UTF-8, and may hold anything, as long as it likes."""
    plain = str(text).encode(errors="backslashreplace").decode().translate(CONTROLS)
    if len(plain) <= _MOST_LABEL:
        return plain
    # No longer than the limit, so that a label of a label is the same.
    end = f"… {_digest(plain)}"
    return plain[: _MOST_LABEL - len(end)] + end


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def file_name(task: str) -> str:
    """The name of a task's file; no two tasks have the same."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", task).strip("_")[:_MOST_NAME]
    if plain != task:
        plain += f"-{_digest(task)}"
    return f"batchpredict_{plain}.prom"
