"""The stages of a task: its windows are read, prepared, inferred and settled.

One row's way: a reader's block, a window, `Scorer.prepare`, a batch, `Scorer.infer`, the journal,
`Scorer.finish`, `_settle`, the writer. Reading and preparing are threads of their own, the
callers of the session several; each hands on windows through a short queue, and the loop in
`score` is where they meet, in the input's order.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from batchpredict.data.records import WHOLE, Records, Reject, Shard, take
from batchpredict.errors import InputInvalid
from batchpredict.job import Job
from batchpredict.model.contracts import Prepared
from batchpredict.run.batching import Indices, tally_of
from batchpredict.run.deadline import Deadline
from batchpredict.run.deaths import Deaths
from batchpredict.run.guard import Guard
from batchpredict.run.inflight import Notes
from batchpredict.run.journal import Journal
from batchpredict.run.loading import LoadedModel
from batchpredict.run.opening import Opened
from batchpredict.run.pipeline import Callers, StageTimes, ahead
from batchpredict.run.profiler import Profiler
from batchpredict.run.scorer import Inferred, Scored, spread
from batchpredict.run.windows import SKIPPED, rejected, skipped, windows, without
from batchpredict.signals import check_signals

# What callers get to finish the batches they are at when a run ends early.
_PATIENCE_SECONDS = 2.0


@dataclass(frozen=True)
class Work:
    """What the stages of a task share. `shard`: of the input; None: all of it."""

    opened: Opened
    job: Job
    model: LoadedModel
    times: StageTimes
    journal: Journal
    deadline: Deadline
    profiler: Profiler
    shard: Shard | None = None


@dataclass(frozen=True)
class _Window:
    """A window on its way: its rows, what the encoder made of them, its batches being inferred.

    `known`: what an earlier run has inferred.
    """

    records: Records
    prepared: Prepared
    known: Inferred
    batches: list[Future[Inferred]]


@dataclass(frozen=True)
class Settled:
    """`records` to write with their `added` columns (null for `nulls` of them), and `rejects`."""

    records: Records
    added: pa.RecordBatch
    rejects: tuple[Reject, ...]
    read: int
    nulls: int
    truncated: int
    duplicates: int


def score(work: Work) -> Generator[Settled]:
    """The windows of an input, scored, in order."""
    opened, plan = work.opened, work.model.plan
    blocks = opened.reader.records(opened.selection, work.shard or WHOLE)
    limit = work.shard.rows if work.shard else work.job.limit
    rows = work.times.each("read", windows(blocks, plan.window_rows, plan.window_bytes, limit))
    callers = Callers(plan.workers)
    notes = Notes(work.journal.notes_path, plan.workers + 1, plan.most_rows)
    guard = Guard(opened.scorer, notes, Deaths(work.journal.deaths))
    ready = ahead(rows, plan.queue_depth, "read")
    with closing(ahead(_begin(ready, work, guard, callers), plan.queue_depth, "prepare")) as stream:
        try:
            for window in stream:
                check_signals()
                inferred = [window.known, *(callers.result(batch) for batch in window.batches)]
                with work.times.measure("finish"):
                    scored = opened.scorer.finish(window.prepared, inferred)
                    settled = _settle(window, scored, work)
                    work.profiler.add(window.records.rows, window.prepared, scored)
                yield settled
        finally:
            callers.stop(_PATIENCE_SECONDS)
            guard.close()


def _begin(
    rows: Generator[Records], work: Work, guard: Guard, callers: Callers
) -> Generator[_Window]:
    """Prepare each window and hand what is not known of it to the callers."""
    scorer, reader, times = work.opened.scorer, work.opened.reader, work.times
    # Closed here, by the thread that reads from it: another might do so while this one does.
    with closing(rows):
        for window in rows:
            with times.measure("prepare"):
                records = without(window, skipped(window, work.job.skip_rows), reader)
                records, prepared = guard.prepare(records, reader)
            with times.measure("plan"):
                known = work.journal.committed(records.rows)
                plan = _unknown(scorer.plan(prepared), known, prepared.rows)
                times.batches += tally_of(plan, prepared.lengths, prepared.tokens)
            infer = partial(_infer, work, guard, records, prepared)
            begun = [callers.submit(partial(infer, batch)) for batch in plan]
            yield _Window(records, prepared, known, begun)


def _unknown(plan: Iterable[Indices], known: Inferred, rows: int) -> list[Indices]:
    """The batches without the rows that are known."""
    unknown = np.ones(rows, bool)
    unknown[known.indices] = False
    unknown[[fault.index for fault in known.faults]] = False
    return [left for batch in plan if len(left := batch[unknown[batch]])]


def _infer(
    work: Work, guard: Guard, records: Records, prepared: Prepared, batch: Indices
) -> Inferred:
    """What a caller does."""
    journal, times = work.journal, work.times
    work.deadline.check(journal.added_rows > 0, work.opened.source.name)
    with times.measure("infer"):
        inferred = guard.infer(records, prepared, batch)
    with times.measure("commit"):
        journal.add(records.rows, inferred)
    times.mark_row()
    return inferred


def _settle(window: _Window, scored: Scored, work: Work) -> Settled:
    """Decide what is written and what is rejected."""
    records, opened, job = window.records, work.opened, work.job
    faults = [rejected(records, fault, opened.reader) for fault in scored.faults]
    rejects = tuple(sorted((*records.rejects, *faults), key=lambda reject: reject.row))
    first = next((reject for reject in rejects if reject.code != SKIPPED), None)
    if first is not None and job.on_error == "fail":
        line = "" if first.line is None else f":{first.line}"
        raise InputInvalid(
            f"{opened.source.name}{line}: row {first.row}: {first.code}: {first.message}; mend "
            "it, or let it be rejected with --on_error=reject"
        )
    read = len(records) + len(records.rejects)
    prepared = window.prepared
    truncated = prepared.truncated
    duplicates = int((prepared.first[scored.indices] != scored.indices).sum())
    if faults and job.on_error == "reject":
        kept = take(records, scored.indices)
        return Settled(kept, scored.added, rejects, read, 0, truncated, duplicates)
    added = spread(scored, len(records)) if faults else scored.added
    return Settled(records, added, rejects, read, len(faults), truncated, duplicates)
