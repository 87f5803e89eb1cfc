"""Score rejected rows of a former run, and write its output with them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from batchpredict.counting import count
from batchpredict.data.csv_reader import CsvReader
from batchpredict.data.drafts import Draft, write_failed
from batchpredict.data.formats import FORMATS
from batchpredict.data.jsonreader import JsonReader
from batchpredict.data.mended import MendedReader
from batchpredict.data.merge import (
    interleaved,
    open_output,
    rows_as,
    rows_but,
    whole_layout,
    write_whole,
)
from batchpredict.data.naming import Task
from batchpredict.data.recall import Recall, ends_with_line_feed, first_line_end
from batchpredict.data.records import Dialect, Reader
from batchpredict.data.sources import InputSource, Mark, source_of
from batchpredict.data.spelling import LineEnds, spelling_of
from batchpredict.data.template import write_template
from batchpredict.errors import InputInvalid
from batchpredict.job import Job
from batchpredict.model.outputs import resolve_head
from batchpredict.ops.former import Former
from batchpredict.ops.rejected import Rejected
from batchpredict.run.deadline import NEVER
from batchpredict.run.journal import Journal
from batchpredict.run.loading import LoadedModel
from batchpredict.run.opening import Opened, dialect_of, open_task, same_family
from batchpredict.run.pipeline import StageTimes
from batchpredict.run.profile import merged
from batchpredict.run.profiler import Profiler
from batchpredict.run.publication import Publication
from batchpredict.run.receipt import Counts
from batchpredict.run.scoring import Settled, Work, score

logger = logging.getLogger(__name__)

Numbers = npt.NDArray[np.int64]
Watch = Callable[[Counts, InputSource], None]


@dataclass(frozen=True)
class Retry:
    """A retry on its way. `output`, `input`: the former run's; no input where it is not as it
    was. `task`, `job`: what is published now. `directory`: for what nobody else shall see.
    """

    former: Former
    task: Task
    job: Job
    rejected: Rejected
    output: InputSource
    input: InputSource | None
    model: LoadedModel
    directory: Path


@dataclass
class _Tried:
    """What became of the rows: `written` ones, by window, `nulls` of them without a prediction."""

    written: list[Numbers] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)

    def add(self, settled: Settled) -> None:
        """Count a window."""
        self.written.append(settled.records.rows)
        before = self.counts
        self.counts = Counts(
            read=before.read + settled.read,
            scored=before.scored + len(settled.records) - settled.nulls,
            nulls=before.nulls + settled.nulls,
            duplicates=before.duplicates + settled.duplicates,
            truncated=before.truncated + settled.truncated,
        )

    @property
    def numbers(self) -> Numbers:
        return np.concatenate([np.empty(0, np.int64), *self.written])


def _open(work: Retry) -> Opened:
    """The former run's input, or a file of its form; its rows are never read."""
    former = work.former
    if work.input is not None:
        return open_task(former.task, work.job, work.model, work.input)
    if work.job.keep != "all" or not same_family(former.task):
        raise InputInvalid(
            f"{former.task.input}: is not there as it was scored, and the output does not tell "
            "its columns; put it back, or run predict again"
        )
    model = work.model
    output = open_output(work.output, former.task.output_format, _output_dialect(work))
    added = resolve_head(model.package, model.session, model.options).schema
    path = work.directory / "template"
    try:
        write_template(path, output, added)
    except OSError as error:
        raise write_failed(str(path), error) from error
    return open_task(
        replace(former.task, input=str(path)), replace(work.job, no_header=False), model
    )


def _output_dialect(work: Retry) -> Dialect:
    """Of the output as it is."""
    dialect = dialect_of(work.former.task.output_format, work.job)
    return dialect if same_family(work.former.task) else replace(dialect, encoding="utf-8")


def _mended(work: Retry, opened: Opened) -> MendedReader:
    reader, source = opened.reader, work.input and source_of(work.input.name)
    surveyed = work.job.keep == "all" and not same_family(work.former.task)
    spelling = spelling_of(
        work.former.task.input,
        reader,
        _line_ends(work, reader),
        work.directory,
        surveyed=surveyed,
    )
    return MendedReader(reader, spelling, work.rejected.rows(), Recall(source, reader))


def _line_ends(work: Retry, reader: Reader) -> LineEnds:
    is_lines = isinstance(reader, JsonReader) and not reader.json_array
    if not (isinstance(reader, CsvReader) or is_lines):
        return LineEnds()
    source = source_of(work.input.name if work.input else work.output.name)
    if isinstance(reader, CsvReader) and not work.job.no_header:
        line_end = reader.line_end
    else:
        line_end = first_line_end(source, reader)
    last = int(work.rejected.numbers[-1])
    whole = work.input is not None and work.job.limit is None
    is_last = whole and last == work.former.counts.read
    ended = not is_last or ends_with_line_feed(source, reader)
    return LineEnds(line_end, None if ended else last)


def write_merged(work: Retry, publication: Publication, watch: Watch, times: StageTimes) -> Counts:
    """Score what was rejected, and write the output with it. Counts of the whole.

    Raises BatchPredictError.
    """
    opened = _open(work)
    with closing(opened.source):
        mended = _mended(work, opened)
        sink = publication.open_output()
        again = _Again(work, replace(opened, reader=mended), mended, publication, watch, times)
        if work.former.rows == 0:  # there is nothing to put the rows into
            tried, dropped = again.score(sink), 0
        else:
            draft = Draft(str(work.directory / "scored"))
            try:
                tried = again.score(draft.stream)
                draft.finish()
                draft.publish()
            finally:
                draft.abandon()
            with times.measure("merge"):
                dropped = again.merge(sink, source_of(draft.name), tried.numbers)
    return _counts(work.former.counts, tried.counts, dropped)


def _counts(former: Counts, more: Counts, dropped: int) -> Counts:
    """Of the whole, where `dropped` rows that had no prediction were tried again."""
    scored = former.scored + more.scored
    nulls = former.nulls - dropped + more.nulls
    return Counts(
        read=former.read,
        scored=scored,
        nulls=nulls,
        rejected=former.read - scored - nulls,
        duplicates=former.duplicates + more.duplicates,
        truncated=former.truncated + more.truncated,
    )


@dataclass(frozen=True)
class _Again:
    """What scores the rows and merges them. `opened`: its reader is `mended`."""

    work: Retry
    opened: Opened
    mended: MendedReader
    publication: Publication
    watch: Watch
    times: StageTimes

    def score(self, sink: BinaryIO) -> _Tried:
        """Write the rows to `sink`, and to the rejects what is rejected again."""
        form, rejects = self.work.task.output_format, self.publication.rejects
        writer = FORMATS[form].module.open_writer(sink, self.opened.layout)
        tried, profiler = _Tried(), Profiler(self.opened.scorer)
        with closing(self._windows(profiler)) as windows:
            for settled in windows:
                rows = settled.records.rows[-1:].tolist()
                rows += [reject.row for reject in settled.rejects[-1:]]
                rejects.add(self.mended.settled(settled.rejects, max(rows)))
                with self.times.measure("write"):
                    writer.write(settled.records, settled.added)
                tried.add(settled)
                self.watch(tried.counts, self.work.rejected.mended)
        rejects.add(self.mended.settled((), None))
        writer.close()
        former = self.work.former.profile
        if former is not None:
            self.publication.profile = merged(former, profiler.profile())
        return tried

    def _windows(self, profiler: Profiler) -> Generator[Settled]:
        work = self.work
        journal = Journal(None, work.task.output, lambda: Mark(0, ""))
        # Rows that killed the run go to a child process at once, as after two deaths.
        death = [[stage, [row]] for row in work.rejected.killers for stage in ("prepare", "infer")]
        journal.deaths = (death, death)
        job = replace(work.job, limit=None)
        return score(
            Work(
                opened=self.opened,
                job=job,
                model=work.model,
                times=self.times,
                journal=journal,
                deadline=NEVER,
                profiler=profiler,
            )
        )

    def merge(self, sink: BinaryIO, scored: InputSource, numbers: Numbers) -> int:
        """Write the former output again, with the rows that were `scored`, which have these
        numbers. How many rows it had already, without a prediction.
        """
        work, form = self.work, self.work.task.output_format
        old = open_output(work.output, form, _output_dialect(work))
        aside = np.array(sorted(self.mended.kept_aside), np.int64)
        stay = np.concatenate([work.rejected.absent, aside])
        dropped = np.setdiff1d(work.rejected.numbers, stay)
        blocks = rows_but(old, work.rejected.absent, dropped)
        if len(numbers):
            layout = self.opened.layout
            encoding = layout.dialect.encoding if layout.origin else "utf-8"
            new = open_output(scored, form, replace(layout.dialect, encoding=encoding))
            blocks = interleaved(blocks, rows_as(new, numbers))
        writer = FORMATS[form].module.open_writer(sink, whole_layout(old))
        written = 0
        for rows in write_whole(writer, blocks):
            written += rows
            self.watch(Counts(read=written), work.output)
        writer.close()
        more = written - (work.former.rows - len(dropped) + len(numbers))
        if more:
            raise InputInvalid(
                f"{work.output.name}: has {more:+d} rows more than its receipt says; run predict "
                "again"
            )
        return len(dropped)


def rehearse(work: Retry) -> None:
    """Read and prepare all rows, and say what would become of them."""
    opened = _open(work)
    with closing(opened.source):
        mended = _mended(work, opened)
        codes: Counter[str] = Counter()
        for block in mended.records(opened.selection):
            codes.update(fault.code for fault in opened.scorer.prepare(block.columns).faults)
            codes.update(reject.code for reject in mended.settled(block.rejects, None))
    again = ", ".join(f"{code} {rows}" for code, rows in sorted(codes.items()))
    logger.info(
        "%s: dry run: %s read, %d of them would be rejected again%s; the others would go into %s",
        work.rejected.mended.name,
        count(len(work.rejected.numbers), "rejected row"),
        sum(codes.values()),
        f" ({again})" if again else "",
        work.task.output,
    )
