"""What a run leaves: rejects, output, receipt, in this order; or what a failed run leaves."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, BinaryIO

from batchpredict import s3
from batchpredict.data.locations import STDIO, compression_of, is_stream
from batchpredict.data.naming import Task
from batchpredict.data.outputs import (
    Publishable,
    draft_of,
    has_directory,
    remove_output,
    write_small,
)
from batchpredict.data.sources import InputSource
from batchpredict.errors import (
    BatchPredictError,
    OutputNotCreatable,
    OutputWriteFailed,
    Unavailable,
    exit_code_of,
    message_of,
)
from batchpredict.job import Job
from batchpredict.run.current import enter, run_id
from batchpredict.run.loading import LoadedModel
from batchpredict.run.pipeline import StageTimes
from batchpredict.run.profile import Profile
from batchpredict.run.progress import log_receipt
from batchpredict.run.receipt import (
    Counts,
    InputFile,
    NodeWork,
    Receipt,
    RejectsSummary,
    Resumed,
    Retried,
    now,
    peak_memory_bytes,
)
from batchpredict.run.rejects import RejectsFile

logger = logging.getLogger(__name__)


class Publication:
    """The files of one task while it runs, and what is written about it in the end.

    Use as a context manager: left without `publish`, nothing half-made stays.
    """

    def __init__(self, task: Task, job: Job, model: LoadedModel, times: StageTimes) -> None:
        self._task = task
        self._job = job
        self._model = model
        self._times = times
        self._started = now()
        self.run_id = run_id()
        self.resumed = Resumed()
        self.suspects: tuple[int, ...] = ()
        self.retried: Retried | None = None
        self.profile: Profile | None = None
        self.drift: dict[str, Any] | None = None
        # Told what is durable and about to be published, while nothing is visible yet.
        self.announce: Callable[[Receipt], None] | None = None
        self.nodes: tuple[NodeWork, ...] | None = None
        self._body: dict[str, Any] | None = None
        self.rejects = RejectsFile(task.input, task.rejects)
        self._draft: Publishable | None = None
        self._cut: Callable[[], int] = int
        self._compression = compression_of(task.output) if task.output != STDIO else ""
        self._published = False

    def open_output(self, *, stored: bool = False) -> BinaryIO:
        """Where the writer writes. Raises OutputNotCreatable.

        `stored`: what is written are stored bytes, compressed already.
        """
        name = self._task.output
        draft = draft_of(name, "" if stored else self._compression)
        self._draft, self._cut = draft, draft.cut
        return draft.stream

    def take_output(self, output: Publishable) -> None:
        """An output that is written already."""
        self._draft = output

    def begin_body(self, source: InputSource) -> None:
        """Told when the header is written. That of the first shard is compressed with its rows."""
        shard = self._task.shard
        if shard is not None:
            begin = self.cut() if shard.number or not self._compression else 0
            whole = {"shard": asdict(shard), "fingerprint": source.fingerprint()}
            self._body = whole | {"begin": begin}

    def cut(self) -> int:
        """What is written from now on is compressed by itself; the stored bytes so far."""
        return self._cut()

    def end_body(self, windows: list[tuple[int, int]]) -> None:
        """Told when all rows are written. `windows`: of each its rows, and how many are rejects."""
        if self._body is not None:
            # A compressed array is one part, and nothing is told apart in it.
            is_alone = self._task.output_format == "json" and self._compression
            self._body |= {"end": 0 if is_alone else self.cut(), "windows": windows}

    def abandon_output(self) -> None:
        """Give the room back that an output takes which will not be published."""
        if self._draft:
            self._draft.abandon()

    def publish(self, source: InputSource | InputFile, counts: Counts) -> Receipt:
        """Make everything durable, then visible. Raises OutputWriteFailed, TryAgain.

        `source`: an InputFile where an earlier run has read the input.
        """
        enter("publish")
        with self._times.measure("publish"):
            read = source if isinstance(source, InputFile) else self._read_to_end(source)
            rejects = self.rejects.finish()
            output = self._draft.finish() if self._draft else None
            receipt = replace(
                self._receipt(3 if self.rejects.counts else 0, counts),
                inputs=(read,),
                output=output,
                suspects=tuple(row for row in self.suspects if row in self._job.skip_rows),
            )
            if rejects:
                summary = replace(receipt.rejects, size=rejects.size, sha256=rejects.sha256)
                receipt = replace(receipt, rejects=summary)
            if self.announce is not None:
                self.announce(receipt)
            if rejects:
                self.rejects.publish()
            else:
                _remove_stale(self._task.rejects)
            if self._draft:
                receipt = replace(receipt, output=self._draft.publish())
        times = self._times
        receipt = replace(receipt, stages=_rounded(times.seconds), cpu_seconds=_cpu(times))
        if self._task.receipt:
            write_small(self._task.receipt, receipt.to_json(), "--receipt_file")
        self._published = True
        try:
            remove_failure(self._task)
        except Unavailable as error:  # what is published has not failed
            logger.warning("%s; what a failed run had left beside the output stays", error)
        return receipt

    def _read_to_end(self, source: InputSource) -> InputFile:
        whole = self._job.limit is None and self._task.shard is None
        digest = source.finish() if whole else None
        if not whole:
            source.check_unchanged()
        return _input_file(source, digest)

    def fail(self, error: BaseException, counts: Counts) -> None:
        """Leave `<output>.failed.json` and the rejects so far; the error stays the caller's.

        Where the output is a stream, a receipt or rejects file that was named is left. What was
        interrupted after it was published has not failed.
        """
        if self._published:
            return
        target = self._task.failed or self._task.receipt
        if target is not None and not has_directory(target):
            return
        if isinstance(error, s3.Unreachable) and s3.is_url(self._task.output):
            return  # whoever does not answer would be waited for twice more
        receipt = replace(self._receipt(exit_code_of(error), counts), message=message_of(error))
        with _second_to(error):
            receipt = self._with_failed_rejects(receipt)
        if target:
            with _second_to(error):
                write_small(target, receipt.to_json())
        log_receipt(receipt)

    def _with_failed_rejects(self, receipt: Receipt) -> Receipt:
        rejects = self.rejects.finish()
        if not rejects:
            _remove_stale(self._task.failed_rejects)
            return receipt
        path = self.rejects.publish(self._task.failed_rejects)
        summary = replace(receipt.rejects, path=path, size=rejects.size, sha256=rejects.sha256)
        return replace(receipt, rejects=summary)

    def _receipt(self, exit_code: int, counts: Counts) -> Receipt:
        ended = now()
        fetched, package = self._model.fetched, self._model.package
        plan = asdict(self._model.plan)
        seconds = max(self._times.elapsed(), 1e-9)
        first = self._times.first_row_seconds
        return Receipt(
            run_id=self.run_id,
            started=self._started,
            ended=ended,
            exit_code=exit_code,
            tool=self._model.tool,
            model={
                "name": fetched.name,
                "version": fetched.version,
                "alias": fetched.alias,
                "sha256": package.digest,
                "manifest_sha256": fetched.manifest_sha256,
                "store": fetched.store,
            },
            inputs=(InputFile(self._task.input, None, None, None),),
            output=None,
            rejects=RejectsSummary(
                self._task.rejects if self.rejects.counts else None,
                0,
                None,
                dict(sorted(self.rejects.counts.items())),
                self.rejects.rows_sha256,
            ),
            options=asdict(self._job),
            plan=plan.pop("tuning") | plan | {"intra_op_threads": 1},
            counts=counts,
            stages=_rounded(self._times.seconds),
            cpu_seconds=_cpu(self._times),
            first_row_seconds=None if first is None else round(first, 6),
            batches=self._times.batches,
            rows_per_second=round(counts.read / seconds, 3),
            peak_memory_bytes=max(
                [peak_memory_bytes(), *(node.peak_memory_bytes for node in self.nodes or ())]
            ),
            nodes=self.nodes,
            resumed=self.resumed,
            suspects=self.suspects,
            warnings=fetched.warnings,
            retried=self.retried,
            part=self._body,
            profile=None if self.profile is None else self.profile.to_json(),
            drift=self.drift,
        )

    def __enter__(self) -> Publication:
        return self

    def __exit__(self, *_: object) -> None:
        self.rejects.abandon()
        self.abandon_output()


def remove_failure(task: Task, *, drafts: bool = True) -> None:
    """Remove what a run that failed has left. Raises OutputNotCreatable.

    `drafts`: those of a killed one too, for which the directory has to be read.
    """
    _remove_stale(task.failed, drafts=drafts)
    _remove_stale(task.failed_rejects, drafts=drafts)


def _remove_stale(name: str | None, *, drafts: bool = True) -> None:
    """Remove what an earlier run left, killed or not; a device or a pipe is not ours to remove."""
    if name and not is_stream(name):
        remove_output(name, drafts=drafts)


@contextmanager
def _second_to(error: BaseException) -> Iterator[None]:
    """Warn where an error cannot be written down, unless it says itself why that is so."""
    try:
        yield
    except BatchPredictError as second:
        if not isinstance(error, OutputNotCreatable | OutputWriteFailed | Unavailable):
            logger.warning("what failed could not be written down: %s", second)


def _input_file(source: InputSource, digest: str | None) -> InputFile:
    size = source.position if source.size is None and digest else source.size
    return InputFile(source.name, size, source.modified_ns, digest, source.etag)


def _cpu(times: StageTimes) -> dict[str, float]:
    whole = {"run": times.elapsed_cpu(), "process": time.process_time()}
    return _rounded(times.cpu_seconds) | _rounded(whole)


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {stage: round(value, 6) for stage, value in sorted(seconds.items())}
