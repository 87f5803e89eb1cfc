"""Whether there is room for what a job is going to write: a warning before the work.

The estimate is rough and low, so that it warns of what will hardly fit, not of what might not:

    text    = stored bytes of the input / (density of its format * share its compression leaves)
    output  = text * density of the output's format * share that its compression leaves
    journal = text / 10

Density: bytes per byte of the same table as CSV. Where format and compression are those of the
input the output is as large as the input. The journal goes when its output is there; an output
that is replaced stays until then, and so do the parts that a cluster's output is joined from.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from batchpredict import s3
from batchpredict.counting import count
from batchpredict.data.locations import STDIO, compression_of, is_stream
from batchpredict.data.naming import Task
from batchpredict.data.storage import Space, amount, space_at
from batchpredict.job import Job

logger = logging.getLogger(__name__)

_DENSITY = {"csv": 1.0, "tsv": 1.0, "jsonl": 2.0, "json": 2.0, "avro": 0.7, "parquet": 0.4}
_LEFT = {"": 1.0, ".gz": 0.25, ".bz2": 0.2, ".xz": 0.2, ".zst": 0.25}
_JOURNAL = 0.1


@dataclass
class _Need:
    """Outputs that share a file system. `most`: bytes, at the instant when they need most."""

    space: Space
    outputs: list[str]
    kept: float = 0.0
    most: float = 0.0


def check_space(tasks: Iterable[Task], job: Job) -> None:
    """Log one warning for each file system that has not the room that `tasks` need.

    Nothing is said where it cannot be known: of pipes and objects, of some of the columns, of some
    of the rows.
    """
    if job.keep != "all" or job.limit is not None:
        return
    needs: dict[int, _Need] = {}
    for task in tasks:
        elsewhere = is_stream(task.output) or s3.is_url(task.output)
        space = None if elsewhere else space_at(Path(task.output))
        size = _size(task.input)
        if space is None or size is None:
            continue
        output, journal = _estimate(task, size)
        parts = output if job.engine != "local" and not job.output_parts else 0.0
        need = needs.setdefault(space.device, _Need(space, []))
        need.outputs.append(task.output)
        need.most = max(need.most, need.kept + output + max(journal, parts))
        need.kept += output - (_size(task.output) or 0)
    for need in needs.values():
        if need.most > need.space.free:
            several = f"{need.outputs[0]} and {count(len(need.outputs) - 1, 'more output')}: need"
            logger.warning(
                "%s about %s, %s; free some space there, or choose another place with "
                "--output_file or --output_dir",
                several if len(need.outputs) > 1 else f"{need.outputs[0]}: needs",
                amount(need.most),
                need.space,
            )


def _estimate(task: Task, size: int) -> tuple[float, float]:
    """Bytes of a task's output and journal."""
    before = _DENSITY[task.input_format] * _LEFT[compression_of(task.input)]
    after = _DENSITY[task.output_format] * _LEFT[compression_of(task.output)]
    return size * after / before, size / before * _JOURNAL


def _size(name: str) -> int | None:
    """Stored bytes of a file; None for what is none, or may not be asked."""
    if name == STDIO or s3.is_url(name) or is_stream(name):
        return None
    try:
        return Path(name).stat().st_size
    except OSError:
        return None
