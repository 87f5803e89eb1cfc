"""Models side by side on the same rows, turn by turn, so that all have the same machine."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchpredict.errors import InputInvalid
from batchpredict.job import Job
from batchpredict.model.contracts import Prepared
from batchpredict.model.decoding import Decoded
from batchpredict.run.loading import LoadedModel
from batchpredict.run.scorer import Binding, Inferred, Scorer

# Passes over the rows by each in turn; all counts are of the median.
_ROUNDS = 3
# To warm a session up and to see how many rows the time allows.
_PILOT_ROWS = 32


@dataclass
class Candidate:
    """A model under way. `decoded`, `rows`: of its last pass, in order of `rows`."""

    name: str
    workers: int
    provider: str
    scorer: Scorer
    prepared: Prepared
    decoded: Decoded
    rows: npt.NDArray[np.int64]

    def pass_over(self, count: int) -> tuple[float, float]:
        """Score the first `count` rows; wall and CPU seconds, of all threads."""
        batches = [batch[batch < count] for batch in self.scorer.plan(self.prepared)]
        wall, cpu = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(self.workers) as callers:
            parts = list(
                callers.map(lambda b: self.scorer.infer(self.prepared, b), filter(len, batches))
            )
        spent = time.perf_counter() - wall, time.process_time() - cpu
        self._keep(parts)
        return spent

    def _keep(self, parts: list[Inferred]) -> None:
        scored = [part for part in parts if len(part.indices)]
        if not scored:
            faults = [fault for part in parts for fault in part.faults]
            raise InputInvalid(f"none of the first rows can be scored: {faults[0].message}")
        indices = np.concatenate([part.indices for part in scored])
        order = np.argsort(indices)
        tensors = [
            np.concatenate(arrays)[order]
            for arrays in zip(*(part.tensors for part in scored), strict=True)
        ]
        head = self.scorer.head
        by_name = dict(zip(head.fetch, tensors, strict=True))
        self.decoded = head.decoder.decode([by_name[name] for name in head.decoder.fetch])
        self.rows = indices[order]


def candidate(name: str, model: LoadedModel, job: Job, columns: pa.RecordBatch) -> Candidate:
    """`columns`: the rows. Raises InputInvalid where none of them can be scored."""
    scorer = model.scorer(Binding(columns.schema, column=dict(job.column)))
    prepared = scorer.prepare(columns)
    if len(prepared.faults) == prepared.rows:
        raise InputInvalid(f"none of the first rows can be scored: {prepared.faults[0].message}")
    nothing = Decoded(pa.nulls(0), None, None, np.empty(0, np.bool_))
    return Candidate(
        name,
        model.plan.workers,
        model.session.provider,
        scorer,
        prepared,
        nothing,
        np.empty(0, np.int64),
    )


def first_sound(entry: Candidate) -> int:
    """The first row that can be scored."""
    bad = {fault.index for fault in entry.prepared.faults}
    return next(row for row in range(entry.prepared.rows) if row not in bad)


def affordable(running: list[Candidate], rows: int, seconds: float) -> int:
    """How many of `rows` every candidate can score _ROUNDS times in `seconds`."""
    # Rows with a fault cost nothing; the first that can be scored must be among those taken.
    pilot = min(rows, first_sound(running[0]) + _PILOT_ROWS)
    per_row = sum(entry.pass_over(pilot)[0] for entry in running) / pilot
    return max(pilot, min(rows, int(seconds / (_ROUNDS * per_row))))


def measured(
    running: list[Candidate], count: int, seconds: float = math.inf
) -> Mapping[str, tuple[float, float]]:
    """Rows per second and per CPU second by name, medians of interleaved passes.

    Over the first `count` rows; after `seconds` no further round of passes is begun.
    """
    end = time.monotonic() + seconds
    spent: dict[str, list[tuple[float, float]]] = {entry.name: [] for entry in running}
    for _ in range(_ROUNDS):
        if time.monotonic() > end and all(spent.values()):
            break
        for entry in running:
            spent[entry.name].append(entry.pass_over(count))
    return {
        entry.name: (
            len(entry.rows) / median(wall for wall, _ in spent[entry.name]),
            len(entry.rows) / median(max(cpu, 1e-9) for _, cpu in spent[entry.name]),
        )
        for entry in running
    }
