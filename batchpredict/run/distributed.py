"""The engine that has shards scored by a cluster: gives them out, and gathers their parts."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from batchpredict import s3
from batchpredict.data.naming import Task
from batchpredict.data.outputs import write_small
from batchpredict.data.sources import source_of
from batchpredict.job import Job
from batchpredict.run.current import enter, run_id
from batchpredict.run.engine import Run
from batchpredict.run.gathering import Gathering
from batchpredict.run.loading import LoadedModel
from batchpredict.run.parts import ScoredPart, folder_of, make_folder, part_job
from batchpredict.run.ray_cluster import Delivered, RayCluster
from batchpredict.run.receipt import Counts, Receipt
from batchpredict.run.worker import Setup, about
from batchpredict.signals import check_signals

# Directories that are looked at before work starts.
_MOST_PROBES = 16


def on_cluster(tasks: Sequence[Task], job: Job, model: LoadedModel, run: Run) -> Iterator[Receipt]:
    """See Engine."""
    inputs = _Inputs(tasks, job, model, run)
    setup = _setup(tasks, job, model)
    with closing(inputs), RayCluster(setup, job) as cluster, inputs.failing():
        cluster.start()
        enter("score")
        for delivered in cluster.map(inputs.orders()):
            check_signals()
            if delivered is not None:
                inputs.take(delivered)
            for gathering in inputs.complete():
                receipt = None
                with run.told(), gathering.failing():
                    receipt = gathering.publish(cluster.nodes)
                if receipt is not None:
                    yield receipt
            run.watch(inputs.counts + cluster.in_flight, inputs)
            run.deadline.check(inputs.counts.read > 0, inputs.name)


class _Inputs:
    """The inputs of a run; Seen as one. To be closed."""

    def __init__(self, tasks: Sequence[Task], job: Job, model: LoadedModel, run: Run) -> None:
        self._tasks, self._job, self._model, self._run = tasks, job, model, run
        self._begun: list[Gathering] = []
        self._by_part: dict[str, Gathering] = {}

    def orders(self) -> Iterator[Task]:
        """All parts that are to be scored."""
        for task in self._tasks:
            held = self._run.locks[task.output]
            gathering = Gathering(task, self._job, self._model, held)
            self._begun.append(gathering)
            with self._run.told(), gathering.failing():
                for part in gathering.orders():
                    self._by_part[part.output] = gathering
                    yield part

    def take(self, delivered: Delivered) -> None:
        """A part that is there, or what was wrong with it."""
        gathering = self._by_part.pop(delivered.task.output)
        if gathering.over:
            return
        with self._run.told(), gathering.failing():
            answer, node = delivered.answer, delivered.node
            if answer.problem is not None:
                raise answer.problem.error(node)
            assert answer.receipt is not None
            gathering.add(ScoredPart(delivered.task, answer.receipt, node))

    def complete(self) -> list[Gathering]:
        """Those that are to be published now."""
        return [gathering for gathering in self._begun if gathering.is_complete]

    @property
    def counts(self) -> Counts:
        """Rows of parts that are there."""
        return sum((gathering.progress for gathering in self._begun), Counts())

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
        return int(sum(1000 * gathering.share for gathering in self._begun))

    @contextmanager
    def failing(self) -> Iterator[None]:
        """An error that comes out of this ends every input that is not over."""
        try:
            yield
        except GeneratorExit:
            raise
        except BaseException as error:
            for gathering in self._begun:
                gathering.fail(error)
            raise

    def close(self) -> None:
        for gathering in self._begun:
            gathering.close()


def _setup(tasks: Sequence[Task], job: Job, model: LoadedModel) -> Setup:
    """What workers need to know and to compare. Writes probes into the folders of parts."""
    names = [job.model_store or "", *(n for task in tasks for n in (task.input, task.output))]
    relative = any(name and not (s3.is_url(name) or os.path.isabs(name)) for name in names)  # noqa: PTH117
    folders = {folder_of(task.output).rpartition("/")[0]: task.output for task in tasks}
    probes: dict[str, bytes] = {}
    for output in list(folders.values())[:_MOST_PROBES]:
        make_folder(output)
        name, content = f"{folder_of(output)}/probe", run_id().encode()
        write_small(name, content, "--output_file or --output_dir")
        probes[name] = content
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
