"""The engine that has shards scored by a cluster: gives them out, and gathers their parts."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager

from batchpredict import s3
from batchpredict.data.naming import Task
from batchpredict.data.outputs import remove_output, write_small
from batchpredict.data.sources import source_of
from batchpredict.errors import BatchPredictError
from batchpredict.job import Job
from batchpredict.run.current import enter, run_id
from batchpredict.run.engine import Run
from batchpredict.run.gathering import Gathering, failing
from batchpredict.run.loading import LoadedModel
from batchpredict.run.parts import ScoredPart, folder_of, part_job
from batchpredict.run.ray_cluster import Delivered, RayCluster
from batchpredict.run.receipt import Counts, Receipt
from batchpredict.run.worker import Setup, about
from batchpredict.signals import check_signals

logger = logging.getLogger(__name__)

# Directories that are looked at before work starts.
_MOST_PROBES = 16


def on_cluster(
    tasks: Sequence[Task], job: Job, model: LoadedModel, run: Run
) -> Generator[Receipt, None, None]:
    """See Engine."""
    inputs = _Inputs(tasks, job, model, run)
    setup = _setup(tasks, job, model)
    with (
        _probed(setup.probes),
        closing(inputs),
        RayCluster(setup, job) as cluster,
        failing(inputs.begun),
    ):
        cluster.start()
        enter("score")
        for delivered in cluster.map(inputs.orders()):
            check_signals()
            if delivered is not None:
                inputs.take(delivered)
            for gathering in inputs.complete():
                receipt = None
                with run.told(), failing([gathering]):
                    receipt = gathering.publish()
                if receipt is not None:
                    yield receipt
            run.watch(inputs.counts + cluster.in_flight, inputs)
            run.deadline.check(inputs.have_progressed, inputs.name)


class _Inputs:
    """The inputs of a run; Seen as one. To be closed.

    `begun`: those that are worked on. `have_progressed`: this run has had a part scored, which the
    next one need not.
    """

    def __init__(self, tasks: Sequence[Task], job: Job, model: LoadedModel, run: Run) -> None:
        self._tasks, self._job, self._model, self._run = tasks, job, model, run
        self.begun: list[Gathering] = []
        self._over = 0
        self._ended = Counts()
        self.have_progressed = False
        self._by_part: dict[str, Gathering] = {}

    def orders(self) -> Iterator[Task]:
        """All parts that are to be scored."""
        for task in self._tasks:
            held = self._run.locks[task.output]
            gathering = Gathering(task, self._job, self._model, held)
            self.begun.append(gathering)
            with self._run.told(), failing([gathering]):
                for part in gathering.orders():
                    self._by_part[part.output] = gathering
                    yield part

    def take(self, delivered: Delivered) -> None:
        """A part that is there, or what was wrong with it."""
        gathering = self._by_part.pop(delivered.task.output)
        if gathering.over:
            return
        with self._run.told(), failing([gathering]):
            answer, node = delivered.answer, delivered.node
            if answer.problem is not None:
                raise answer.problem.error(node)
            assert answer.receipt is not None
            self.have_progressed = True
            receipt, seconds = answer.receipt, answer.seconds
            gathering.add(ScoredPart(delivered.task, receipt, node, delivered.actor, seconds))

    def complete(self) -> list[Gathering]:
        """Those that are to be published now."""
        self._let_go()
        return [gathering for gathering in self.begun if gathering.is_complete]

    def _let_go(self) -> None:
        """What is over keeps files open, and there may be many."""
        for gathering in [gathering for gathering in self.begun if gathering.over]:
            self.begun.remove(gathering)
            self._over += 1
            self._ended += gathering.progress
            gathering.close()

    @property
    def counts(self) -> Counts:
        """Rows of parts that are there."""
        return sum((gathering.progress for gathering in self.begun), self._ended)

    @property
    def name(self) -> str:
        return self._tasks[0].input if len(self._tasks) == 1 else f"{len(self._tasks)} inputs"

    @property
    def size(self) -> int:
        """A thousand for each input."""
        return 1000 * len(self._tasks)

    @property
    def position(self) -> int:
        """Of `size`."""
        return 1000 * self._over + int(sum(1000 * gathering.share for gathering in self.begun))

    def close(self) -> None:
        for gathering in self.begun:
            gathering.close()


def _setup(tasks: Sequence[Task], job: Job, model: LoadedModel) -> Setup:
    """What workers need to know and to compare."""
    names = [job.model_store or "", *(n for task in tasks for n in (task.input, task.output))]
    relative = any(name and not (s3.is_url(name) or os.path.isabs(name)) for name in names)  # noqa: PTH117
    folders = {folder_of(task.output).rpartition("/")[0]: task.output for task in tasks}
    probed = list(folders.values())[:_MOST_PROBES]
    probes = {f"{folder_of(output)}.probe": run_id().encode() for output in probed}
    source = source_of(tasks[0].input)
    with closing(source):
        first = (tasks[0].input, source.size, source.fingerprint())
    return Setup(
        job=part_job(job, model),
        digest=model.package.digest,
        run_id=run_id(),
        directory=os.getcwd() if relative else None,  # noqa: PTH109
        probes=probes,
        input=first,
        versions=about().versions,
        level=logging.getLogger("batchpredict").getEffectiveLevel(),
    )


@contextmanager
def _probed(probes: Mapping[str, bytes]) -> Iterator[None]:
    """With these files there, beside outputs; an actor may start at any time and look for them."""
    try:
        for name, content in probes.items():
            write_small(name, content, "--output_file or --output_dir")
        yield
    finally:
        for name in probes:
            try:
                remove_output(name, drafts=False)
            except BatchPredictError as error:  # a run that ends well has not failed
                logger.warning("%s", error)
