"""One input whose shards are scored elsewhere: what is to be done, what is done, and the output."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace

from batchpredict.data.formats import FORMATS
from batchpredict.data.locations import compression_of
from batchpredict.data.locks import Held
from batchpredict.data.naming import Task
from batchpredict.data.records import WHOLE, Shard
from batchpredict.data.sources import source_of
from batchpredict.job import Job
from batchpredict.run.cluster_work import ClusterWork
from batchpredict.run.current import enter
from batchpredict.run.journal import Journal
from batchpredict.run.loading import LoadedModel
from batchpredict.run.monitoring import Monitor
from batchpredict.run.opening import Opened, open_task
from batchpredict.run.parts import (
    ScoredPart,
    done_part,
    make_folder,
    part_job,
    part_of,
    remove_parts,
)
from batchpredict.run.parts_folder import parts_folder
from batchpredict.run.pipeline import StageTimes
from batchpredict.run.profile import Profile, merged, read_profile
from batchpredict.run.publication import Publication
from batchpredict.run.receipt import Batches, Counts, Receipt, Resumed
from batchpredict.run.resuming import journal_apart
from batchpredict.run.tally import Tally, check_skipped
from batchpredict.signals import check_signals

logger = logging.getLogger(__name__)


class Gathering:
    """Gathers the parts of one output. To be closed, whatever has become of it.

    `progress`: rows in parts that are done. `over`: it was published, or has failed.
    """

    def __init__(self, task: Task, job: Job, model: LoadedModel, held: Held | None) -> None:
        self.task = task
        self.over = False
        self.progress = Counts()
        self._job, self._model, self._held = job, model, held
        self._journal: Journal | None = None
        self._part_job = part_job(job, model)
        self._times = StageTimes()
        self._tally = Tally(task, job.budget)
        self._stack = ExitStack()
        self._publication = self._stack.enter_context(Publication(task, job, model, self._times))
        self._parts: dict[int, ScoredPart] = {}
        self._absorbed = 0
        self._profile: Profile | None = None
        self._work = ClusterWork()
        self._found: list[Shard] = []
        self._all_found = False

    def orders(self) -> Iterator[Task]:
        """The parts that are left to score, each as soon as its shard is found."""
        self._source = source_of(self.task.input)
        self._stack.enter_context(closing(self._source))
        opened = open_task(self.task, self._job, self._model, self._source)
        for remark in opened.remarks:
            logger.info("%s", remark)
        self._monitor = Monitor(self.task, self._job, self._model.fetched, opened.scorer)
        self._journal = journal_apart(self.task, self._job, self._model, self._source, self._held)
        self._stack.callback(self._journal.detach)
        if self._job.no_resume:
            remove_parts(self.task.output)
        make_folder(self.task.output)
        fingerprint = self._source.fingerprint()
        for shard in self._shards(opened):
            check_signals()
            part = part_of(self.task, shard, opened.columns)
            self._found.append(shard)
            done = done_part(part, self._part_job, self._model, fingerprint)
            if done is not None:
                self.add(done)
                continue
            yield part
            if self.over:  # and its source is closed
                return
        self._all_found = True

    def _shards(self, opened: Opened) -> Iterator[Shard]:
        """Those of the input, but for rows beyond --limit."""
        target = self.task.output
        if self.task.output_format == "json" and compression_of(target):
            found = iter([WHOLE])  # what separates the elements cannot be put in between
        else:
            module = FORMATS[self.task.input_format].module
            found = module.shards(self._source, opened.reader.dialect)
        for shard in found:
            left = None if self._job.limit is None else self._job.limit - (shard.row - 1)
            if left is None or (shard.rows is not None and shard.rows < left):
                yield shard
                continue
            yield replace(shard, rows=left, uncounted=shard.rows is None)
            return

    @property
    def is_complete(self) -> bool:
        """Whether every part is there."""
        return not self.over and self._all_found and self._absorbed == len(self._found)

    @property
    def share(self) -> float:
        """Of the input's bytes, those that are scored, about."""
        if not self._found:
            return 0.0
        last = self._found[-1]
        rows = last.row - 1 + (last.rows or 0)
        size = self._source.size or 0
        seen = 1.0 if self._all_found or not size else self._source.position / size
        return min(1.0, self.progress.read / rows * seen) if rows else 0.0

    def add(self, part: ScoredPart) -> None:
        """Take a part that is there. Raises InputInvalid where too many rows are rejected."""
        assert part.task.shard is not None
        self._parts[part.task.shard.number] = part
        self.progress += _counts(part)
        # In the order of the input, so that the budget is judged as if it was read in one go.
        while next_part := self._parts.get(self._absorbed):
            self._parts[self._absorbed] = next_part.small
            self._absorbed += 1
            self._absorb(next_part)

    def _absorb(self, part: ScoredPart) -> None:
        times, receipt = self._times, part.receipt
        profile = read_profile(receipt["profile"])
        self._profile = merged(self._profile, profile) if self._profile else profile
        with _reject_lines(part) as lines:
            windows, rejects = receipt["part"]["windows"], self._publication.rejects
            self._tally.add_part(_counts(part), windows, lines, rejects)
        if part.node is None:
            return
        self._work.add(part.node, part.actor, part.seconds, receipt)
        for stage, seconds in receipt["stages"].items():
            times.seconds[stage] += seconds
            times.cpu_seconds[stage] += receipt["cpu_seconds"].get(stage, 0.0)
        times.batches += Batches(**receipt["batches"])

    def publish(self) -> Receipt:
        """Join the parts. Raises BatchPredictError."""
        enter("publish")
        publication = self._publication
        parts = [self._parts[number] for number in range(len(self._found))]
        check_skipped(self._job, self._tally.counts, self.task)
        self._tally.judge()
        self._monitor.conclude(publication, self._profile)
        publication.nodes = self._work.nodes
        publication.resumed = _resumed(parts)
        publication.suspects = tuple(row for part in parts for row in part.receipt["suspects"])
        self._assemble(parts)
        receipt = publication.publish(self._source, self._tally.counts)
        self.over = True
        if self._journal is not None:
            self._journal.close(published=True)
        remove_parts(self.task.output)
        return receipt

    def _assemble(self, parts: list[ScoredPart]) -> None:
        """Make the output of them."""
        output_format = FORMATS[self.task.output_format]
        if self._job.output_parts:
            folder = parts_folder(self.task.output, parts, output_format.suffixes[0])
            self._publication.take_output(folder)
            return
        with self._times.measure("join"):
            sink = self._publication.open_output(stored=True)
            for piece in output_format.module.join([part.stored for part in parts]):
                sink.write(piece)

    def fail(self, error: BaseException) -> None:
        """Say what was wrong; parts that are there stay for the next run."""
        if not self.over:
            self.over = True
            if self._journal is not None and not self._parts:
                self._journal.close(published=False)
            self._publication.fail(error, self._tally.counts)

    def close(self) -> None:
        """Leave nothing half-made."""
        self._stack.close()


@contextmanager
def failing(gatherings: Iterable[Gathering]) -> Iterator[None]:
    """An error that comes out of this is their end, of those that are not over."""
    try:
        yield
    except GeneratorExit:
        raise
    except BaseException as error:
        for gathering in gatherings:
            gathering.fail(error)
        raise


@contextmanager
def _reject_lines(part: ScoredPart) -> Iterator[Iterator[bytes]]:
    """The lines of its rejects file."""
    if not part.receipt["rejects"]["codes"]:
        yield iter(())
        return
    source = source_of(part.task.rejects or "")
    with closing(source), source.open() as lines:
        yield iter(lines)


def _counts(part: ScoredPart) -> Counts:
    return Counts(**part.receipt["counts"])


def _resumed(parts: list[ScoredPart]) -> Resumed:
    earlier = [part.receipt for part in parts if part.node is None]
    rows = sum(receipt["counts"]["read"] for receipt in earlier)
    rows += sum(part.receipt["resumed"]["rows"] for part in parts if part.node is not None)
    return Resumed(rows, len({receipt["run_id"] for receipt in earlier}))
