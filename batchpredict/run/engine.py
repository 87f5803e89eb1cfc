"""The seam between what a run is and where its shards are scored."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from batchpredict.data.naming import Task
from batchpredict.job import Job
from batchpredict.run.deadline import Deadline
from batchpredict.run.loading import LoadedModel
from batchpredict.run.progress import Seen
from batchpredict.run.receipt import Counts, Receipt
from batchpredict.run.resuming import Locks

Watch = Callable[[Counts, Seen], None]


@dataclass(frozen=True)
class Run:
    """What the inputs of a run share. `watch`: to be told of rows as they are scored. `told`: an
    error that concerns one input ends in it, where others go on.
    """

    locks: Locks
    deadline: Deadline
    watch: Watch
    told: Callable[[], AbstractContextManager[None]]


class Engine(Protocol):
    """Scores the shards of inputs and publishes each input when it is done. To be closed.

    Outputs, rejects and counts are the same on every engine, to the byte.
    """

    def __call__(
        self, tasks: Sequence[Task], job: Job, model: LoadedModel, run: Run
    ) -> Generator[Receipt, None, None]: ...
