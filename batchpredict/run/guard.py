"""Prepare and infer so that a row that kills the process does not kill every run.

Each flight of rows is noted. Rows that were in flight at two deaths are left to a child process,
together, then in ever smaller parts; a row that kills a child of its own too, while this process
lives, is rejected.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from batchpredict.data.records import Reader, Records
from batchpredict.errors import BatchPredictError
from batchpredict.model.contracts import Fault, Prepared
from batchpredict.run.batching import Indices
from batchpredict.run.deaths import Deaths
from batchpredict.run.inflight import Notes, Rows, Stage
from batchpredict.run.lone import LoneDied, LoneFailed, LoneNotStarted, LoneScorer, Work
from batchpredict.run.scorer import Inferred, Scorer, joined
from batchpredict.run.windows import without

logger = logging.getLogger(__name__)

# A row that kills its child is given to another one, to be sure that it was the row.
_TRIALS = 2
# Into so many parts rows are divided that together kill a child. Each division may cost one more
# death of the job, each part a journey to the child (milliseconds), each killer a child (seconds).
_PARTS = 64
KILLED = "killed_process"
_NOTHING = Inferred(np.empty(0, np.int64), [], ())


@dataclass(frozen=True)
class _Suspects:
    """Rows that a child shall do. `places`: in the window, of the rows of `columns`; `numbers`:
    theirs in the input. `here`: does those at some places in this process.
    """

    work: Work
    columns: pa.RecordBatch
    places: Indices
    numbers: Rows
    here: Callable[[Indices], Inferred]


class Guard:
    """A scorer's `prepare` and `infer` with notes. Safe to be called from several threads.

    To be closed; what then is still at work in other threads may raise CancelledError.
    """

    def __init__(self, scorer: Scorer, notes: Notes, deaths: Deaths) -> None:
        self._scorer = scorer
        self._notes = notes
        self._deaths = deaths
        self._lone = LoneScorer(scorer)
        self._has_child = not deaths.of_starting
        self._told = False

    def prepare(self, records: Records, reader: Reader) -> tuple[Records, Prepared]:
        """As Scorer.prepare; rows that kill have become rejects of the window."""
        if len(records) and self._deaths.suspects("prepare", records.rows):
            records = without(records, self._killers(records), reader)
        with self._notes.flight("prepare", records.rows):
            return records, self._scorer.prepare(records.columns)

    def infer(self, records: Records, prepared: Prepared, batch: Indices) -> Inferred:
        """As Scorer.infer, of rows of a window; those that kill are among the faults."""

        def here(places: Indices) -> Inferred:
            with self._notes.flight("infer", records.rows[places]):
                return self._scorer.infer(prepared, places)

        rows = records.rows[batch]
        if not self._deaths.suspects("infer", rows):
            return here(batch)
        columns = records.columns.take(pa.array(batch))
        return self._isolated(_Suspects("infer", columns, batch, rows, here))

    def close(self) -> None:
        """End the child, if there is one."""
        self._lone.close()

    def _killers(self, records: Records) -> tuple[Fault, ...]:
        """The rows of a window that cannot be prepared."""

        def here(places: Indices) -> Inferred:
            with self._notes.flight("prepare", records.rows[places]):
                self._scorer.prepare(records.columns.take(pa.array(places)))
            return _NOTHING

        places = np.arange(len(records))
        suspects = _Suspects("prepare", records.columns, places, records.rows, here)
        return self._isolated(suspects).faults

    def _isolated(self, suspects: _Suspects) -> Inferred:
        if not self._told:
            self._told = True
            logger.info(
                "two runs died with rows between %d and %d in flight; a process of their own shall "
                "%s these, and others of which the same is true",
                suspects.numbers.min(),
                suspects.numbers.max(),
                suspects.work,
            )
        return self._divided(suspects, 0, len(suspects.places))

    def _divided(self, suspects: _Suspects, at: int, count: int) -> Inferred:
        """These rows together; in parts where that kills a child, or killed it and its parent."""
        if count == 1:
            return self._alone(suspects, at)
        if not self._deaths.died_together(suspects.work, suspects.numbers[at : at + count]):
            try:
                return self._in_child(suspects, at, count)
            except LoneFailed:
                return suspects.here(suspects.places[at : at + count])
            except LoneDied as error:
                logger.info("%d rows together killed that process (%s)", count, error)
            except LoneNotStarted as error:
                # And will not be: one by one, so that the notes name the row that kills.
                logger.debug("no process of their own for %d rows: %s", count, error)
        size, end = -(-count // _PARTS), at + count
        parts = [self._divided(suspects, i, min(size, end - i)) for i in range(at, end, size)]
        return joined(parts)

    def _alone(self, suspects: _Suspects, at: int) -> Inferred:
        """One row, in a child while there is one. Raises BatchPredictError."""
        died = None
        for _ in range(_TRIALS):
            try:
                return self._in_child(suspects, at, 1)
            except LoneDied as error:
                died = error
            except (LoneFailed, LoneNotStarted) as error:
                if self._lone.closed:
                    raise CancelledError from error
                return suspects.here(suspects.places[at : at + 1])
        row = int(suspects.numbers[at])
        if died is None or died.signal is None:
            raise BatchPredictError(
                f"row {row} ends every process that scores it, with {died}; leave it out with "
                f"--skip_rows={row}"
            )
        why = f"a process that was to {suspects.work} this row alone was killed by {died}, twice"
        return Inferred(_NOTHING.indices, [], (Fault(int(suspects.places[at]), KILLED, why),))

    def _in_child(self, suspects: _Suspects, at: int, count: int) -> Inferred:
        """So many rows from `at` on. Raises LoneDied, LoneFailed, LoneNotStarted."""
        places, numbers = suspects.places[at : at + count], suspects.numbers[at : at + count]
        with self._lone.turn:
            if not self._has_child:
                raise LoneNotStarted("it cannot be started")
            with self._notes.flight("start", numbers[:1]):
                try:
                    self._lone.start()
                except LoneNotStarted:
                    self._has_child = False
                    raise
            stage: Stage = "lone_prepare" if suspects.work == "prepare" else "lone_infer"
            with self._notes.flight(stage, numbers):
                done = self._lone.ask(suspects.work, suspects.columns.slice(at, count))
        faults = (replace(fault, index=int(places[fault.index])) for fault in done.faults)
        return replace(done, indices=places[done.indices], faults=tuple(faults))
