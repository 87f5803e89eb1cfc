"""What each precision gives and costs on the user's own rows. Shown, never applied."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchpredict.data.naming import tasks_of
from batchpredict.errors import ConfigInvalid, InputInvalid, UsageError
from batchpredict.job import Job, Precision
from batchpredict.model.contracts import Prepared
from batchpredict.model.decoding import Decoded
from batchpredict.run.loading import LoadedModel, load_model
from batchpredict.run.opening import first_rows
from batchpredict.run.scorer import Binding, Inferred, Scorer

PRECISIONS: tuple[Precision, ...] = ("model", "bf16", "int8")
# Rows of the file where --limit does not say, and seconds after which there are fewer.
ROWS = 300
SECONDS = 60.0
# Passes over the rows by each precision in turn; all counts are of the median.
_ROUNDS = 3
# To warm a session up and to see how many rows the time allows.
_PILOT_ROWS = 32


@dataclass(frozen=True)
class Compared:
    """One precision beside the model's own, on the rows that both score.

    `refusal`: why it cannot be had here; then the rest is None. `same_prediction`: share of rows,
    None where predictions are no labels. Differences: absolute, over the scores of all labels,
    or over the numbers of a regression or embedding; None where the graph gives no numbers.
    """

    precision: str
    provider: str | None = None
    refusal: str | None = None
    rows_per_second: float | None = None
    rows_per_cpu_second: float | None = None
    same_prediction: float | None = None
    largest_difference: float | None = None
    mean_difference: float | None = None


@dataclass(frozen=True)
class Comparison:
    """`rows`: of `path`, from its start, that were scored, equal ones once.

    The model's own precision is first.
    """

    path: str
    rows: int
    precisions: tuple[Compared, ...]


@dataclass
class _Candidate:
    """A precision under way. `decoded`, `rows`: of its last pass, in order of `rows`."""

    precision: str
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


def compare(job: Job, rows: int = ROWS, seconds: float = SECONDS) -> Comparison:
    """Score the first `rows` rows of the job's input in every precision, turn by turn.

    Takes about `seconds`, loading apart: fewer rows where the model is slow. All variants are in
    memory together. Raises BatchPredictError where the model itself cannot be run, or no row.
    """
    (task, *more), _ = tasks_of(job)
    if more:
        raise UsageError(f"{job.input_file[0]}: means {len(more) + 1} files; name one of them")
    own = load_model(_job_in(job, "model"))
    columns = first_rows(task, _job_in(job, "model"), own, rows)
    if not columns.num_rows:
        raise InputInvalid(f"{task.input}: has no row to compare precisions on")
    found: dict[str, _Candidate | str] = {}
    for precision in PRECISIONS:
        try:
            model = own if precision == "model" else load_model(_job_in(job, precision))
            found[precision] = entry = _candidate(precision, model, job, columns)
            entry.pass_over(_first_sound(entry) + 1)
        except (ConfigInvalid, InputInvalid) as error:
            if precision == "model":
                raise
            found[precision] = str(error)
    running = [entry for entry in found.values() if isinstance(entry, _Candidate)]
    count = _affordable(running, columns.num_rows, seconds)
    speeds = _measured(running, count)
    base = running[0]
    return Comparison(
        task.input,
        len(base.rows),
        tuple(
            Compared(name, refusal=entry)
            if isinstance(entry, str)
            else _compared(entry, base, *speeds[name])
            for name, entry in found.items()
        ),
    )


def _job_in(job: Job, precision: Precision) -> Job:
    return replace(job, provider="cpu", precision=precision, outputs=())


def _candidate(precision: str, model: LoadedModel, job: Job, columns: pa.RecordBatch) -> _Candidate:
    scorer = model.scorer(Binding(columns.schema, column=dict(job.column)))
    prepared = scorer.prepare(columns)
    if len(prepared.faults) == prepared.rows:
        raise InputInvalid(f"none of the first rows can be scored: {prepared.faults[0].message}")
    nothing = Decoded(pa.nulls(0), None, None, np.empty(0, np.bool_))
    return _Candidate(
        precision,
        model.plan.workers,
        model.session.provider,
        scorer,
        prepared,
        nothing,
        np.empty(0, np.int64),
    )


def _first_sound(entry: _Candidate) -> int:
    bad = {fault.index for fault in entry.prepared.faults}
    return next(row for row in range(entry.prepared.rows) if row not in bad)


def _affordable(running: list[_Candidate], rows: int, seconds: float) -> int:
    """How many of `rows` every candidate can score _ROUNDS times in `seconds`."""
    # Rows with a fault cost nothing; the first that can be scored must be among those taken.
    pilot = min(rows, _first_sound(running[0]) + _PILOT_ROWS)
    per_row = sum(entry.pass_over(pilot)[0] for entry in running) / pilot
    return max(pilot, min(rows, int(seconds / (_ROUNDS * per_row))))


def _measured(running: list[_Candidate], count: int) -> Mapping[str, tuple[float, float]]:
    """Rows per second and per CPU second by precision, medians of interleaved passes."""
    spent: dict[str, list[tuple[float, float]]] = {entry.precision: [] for entry in running}
    for _ in range(_ROUNDS):
        for entry in running:
            spent[entry.precision].append(entry.pass_over(count))
    return {
        entry.precision: (
            len(entry.rows) / median(wall for wall, _ in spent[entry.precision]),
            len(entry.rows) / median(max(cpu, 1e-9) for _, cpu in spent[entry.precision]),
        )
        for entry in running
    }


def _compared(
    entry: _Candidate, base: _Candidate, per_second: float, per_cpu_second: float
) -> Compared:
    _, ours, theirs = np.intersect1d(
        entry.rows[entry.decoded.finite], base.rows[base.decoded.finite], return_indices=True
    )
    mine, other = _at(entry.decoded, ours), _at(base.decoded, theirs)
    values, expected = _numbers(mine), _numbers(other)
    largest = mean = None
    if values is not None and expected is not None and values.size:
        difference = np.abs(values - expected)
        largest, mean = float(difference.max()), float(difference.mean())
    return Compared(
        entry.precision,
        entry.provider,
        None,
        per_second,
        per_cpu_second,
        _agreement(mine.prediction, other.prediction),
        largest,
        mean,
    )


def _at(decoded: Decoded, places: npt.NDArray[np.int64]) -> Decoded:
    """Its finite rows at `places`."""
    kept = np.flatnonzero(decoded.finite)[places]
    return Decoded(
        decoded.prediction.take(pa.array(kept)),
        None if decoded.score is None else decoded.score[kept],
        None if decoded.scores is None else decoded.scores[kept],
        decoded.finite[kept],
    )


def _numbers(decoded: Decoded) -> npt.NDArray[np.float64] | None:
    if decoded.scores is not None:
        return decoded.scores
    if decoded.score is not None:
        return decoded.score
    values = decoded.prediction
    if pa.types.is_list(values.type):
        values = values.flatten()
    if not pa.types.is_floating(values.type):
        return None
    return np.asarray(values.cast(pa.float64()).to_numpy(zero_copy_only=False))


def _agreement(ours: pa.Array, theirs: pa.Array) -> float | None:
    inner = ours.type.value_type if pa.types.is_list(ours.type) else ours.type
    if pa.types.is_floating(inner) or not len(ours):
        return None
    if pa.types.is_list(ours.type):  # lists of labels, which Arrow cannot compare
        pairs = zip(ours.to_pylist(), theirs.to_pylist(), strict=True)
        return float(np.mean([one == other for one, other in pairs]))
    return float(pc.mean(pc.equal(ours, theirs)).as_py())


def facts(comparison: Comparison) -> dict[str, Any]:
    """For --json."""
    return asdict(comparison)


def table(comparison: Comparison) -> str:
    """For people: a line per precision, then what cannot be had and why."""
    heads: tuple[str, ...] = (
        "precision",
        "rows/s",
        "rows/CPU s",
        "same label",
        "score off by, at most",
        "mean",
    )
    lines = [heads]
    lines += [_cells(entry) for entry in comparison.precisions if entry.refusal is None]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    text = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    ]
    text += [
        f"{entry.precision}: not here: {entry.refusal}"
        for entry in comparison.precisions
        if entry.refusal is not None
    ]
    text.append(
        f"on {comparison.rows:,} rows from the start of {comparison.path}; nothing is applied"
    )
    return "\n".join(text)


def _cells(entry: Compared) -> tuple[str, ...]:
    return (
        entry.precision,
        _number(entry.rows_per_second, ",.1f"),
        _number(entry.rows_per_cpu_second, ",.1f"),
        _number(entry.same_prediction, ".4f"),
        _number(entry.largest_difference, ".2g"),
        _number(entry.mean_difference, ".2g"),
    )


def _number(value: float | None, spelling: str) -> str:
    return "-" if value is None else format(value, spelling)
