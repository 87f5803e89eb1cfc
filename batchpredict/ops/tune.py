"""tune(job): find the sizes of batches and the callers that suit a model, a file and a machine.

The first rows of the user's own file go through `Scorer.plan` and `Scorer.infer` with one thread
per caller, as a run's do. No size of a window is tuned: windows shape bytes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchpredict.cgroup import effective_cores
from batchpredict.data.locations import is_stream
from batchpredict.data.naming import tasks_of
from batchpredict.errors import BatchPredictError, InputInvalid, UsageError
from batchpredict.job import Job
from batchpredict.model.contracts import Prepared
from batchpredict.ops import compare
from batchpredict.ops.sweep import Pass, Ranking, Sizes, sweep
from batchpredict.run.batching import Indices
from batchpredict.run.loading import LoadedModel, load_model
from batchpredict.run.opening import open_task
from batchpredict.run.planning import Plan, reads_text
from batchpredict.run.receipt import now
from batchpredict.run.scorer import Scorer, Tuning
from batchpredict.run.tuned import TuningKey, key_of, store_tuning
from batchpredict.run.windows import windows

_MOST_SECONDS = 86_400
_TOKENS = tuple(64 << power for power in range(8))  # 64 to 8192
_TABULAR_ROWS = tuple(256 << power for power in range(9))  # 256 to 65536
# A graph that takes a lone string may need megabytes for each.
_STRING_ROWS = (8, 16, 32, 64, 128)
# Caps on the rows of a batch of texts that are tried beside the best token budget.
_CAPS = (16, 32, 128, 256)
# Passes over the sample that a sweep of one candidate takes, the default's between them counted.
_PASSES_EACH = 4.5
# Widths of rows that a sample of texts has, and the rows of one width it should have at least.
_WIDTHS = 6
_ROWS_PER_WIDTH = 48
# Shares of the time for tokenizing, and for finding out how fast the model is.
_SURVEY_SHARE = 0.1
_PROBE_SHARE = 0.02
# Share of the time for the comparison of precisions. Beside its passes, of which there are at
# least so many over so many rows, it makes the variants: as long as several loadings, and imports.
_PRECISIONS_SHARE = 0.3
_COMPARED_PASSES, _PILOT_ROWS = 8, 32
_LOADS, _VARIANT_SECONDS = 4, 2.0
# Windows that a sample of a tabular file has at most.
_TABULAR_WINDOWS = 4
# By how much a first pass may take longer than it should before the sample is cut anew.
_TOO_LONG = 1.3
# Most times one pass goes over a sample that is too small to be timed.
_REPEATS = 64


@dataclass(frozen=True)
class Found:
    """What a sweep has shown. `default`: what a run takes without a tuning.

    `read`: rows looked at; of them `truncated` are longer than `max_length` tokens, `unscorable`
    cannot be scored, and at least `duplicates` are not inferred again. `sampled`: rows that were
    measured with. `alike`: candidates that cut them into the same batches as another does.
    `by_tokens`: batches are cut by tokens rather than by rows. `precisions`: compared, or why not.
    """

    file: str
    model: str
    key: TuningKey
    ended: str
    seconds: float
    read: int
    truncated: int
    max_length: int | None
    unscorable: int
    duplicates: int
    sampled: int
    alike: int
    default: Sizes
    by_tokens: bool
    ranking: Ranking
    precisions: compare.Comparison | str

    @property
    def sizes(self) -> dict[str, int]:
        """The winner's sizes by option; without tokens where the model has none."""
        best = self.ranking.winner or self.default
        tokens = {"batch_tokens": best.tuning.batch_tokens} if self.by_tokens else {}
        return {"batch_rows": best.tuning.batch_rows, **tokens, "workers": best.workers}


def tune(job: Job, seconds: float) -> Found:
    """Sweep for at most `seconds`, loading the model counted. Raises BatchPredictError."""
    if not 0 < seconds <= _MOST_SECONDS:
        raise UsageError(f"--seconds={seconds:g}: must be more than 0, at most {_MOST_SECONDS}")
    if job.dry_run:
        raise UsageError("--dry_run: tune scores rows; leave it out")
    begin = time.monotonic()
    job = _bare(job)
    model = load_model(job)
    loading = time.monotonic() - begin
    others = _PRECISIONS_SHARE * seconds > _VARIANT_SECONDS + _LOADS * loading
    share = 1 - _PRECISIONS_SHARE if others else 1.0
    found = _sweep(job, model, (begin, begin + share * seconds))
    del model  # the comparison loads it again beside its variants
    left = begin + seconds - time.monotonic() - _VARIANT_SECONDS - _LOADS * loading
    rate = max((entry.rows_per_second for entry in found.ranking.measured), default=0.0)
    if others and rate and _COMPARED_PASSES * _PILOT_ROWS / rate < left:
        found = replace(found, precisions=_precisions(job, left))
    return replace(found, seconds=round(time.monotonic() - begin, 3))


def _bare(job: Job) -> Job:
    """The first input of a job alone, with nothing that only a run's output needs.

    Some conversions read the whole input for what is kept.
    """
    (task, *_), _ = tasks_of(job)
    if is_stream(task.input):
        raise UsageError(f"{task.input}: tune reads no stream; name a file")
    nowhere: dict[str, Any] = dict.fromkeys(
        ("output_file", "output_dir", "rejects_file", "receipt_file")
    )
    return replace(job, input_file=(task.input,), no_tuning=True, keep="none", **nowhere)


def _sweep(job: Job, model: LoadedModel, period: tuple[float, float]) -> Found:
    """`period`: when it began and when it has to end (time.monotonic)."""
    (task,), _ = tasks_of(job)
    begin, deadline = period
    opened = open_task(task, job, model)
    text, plan = reads_text(model.session), model.plan
    with closing(opened.source):
        blocks = opened.reader.records(opened.selection)
        rows = plan.window_rows * (1 if text else _TABULAR_WINDOWS)
        first = next(windows(blocks, rows, _TABULAR_WINDOWS * plan.window_bytes, job.limit), None)
    if first is None or not len(first):
        raise InputInvalid(f"{task.input}: has no rows to measure with")
    survey = _survey(opened.scorer, first.columns, _SURVEY_SHARE * (deadline - begin))
    if not len(survey.sound):
        raise InputInvalid(f"{task.input}: none of the first {survey.read} rows can be scored")
    by_tokens = survey.lengths is not None
    with closing(_Trial(opened.scorer, first.columns, survey, plan, deadline)) as trial:
        wanted = _candidates(job, plan, text, by_tokens)
        trial.choose_sample(len(wanted))
        # Several candidates may be the same on these rows; then there is time for more rows.
        trial.choose_sample(len(trial.distinct(wanted)))
        near = partial(trial.variants, _caps(job, by_tokens), _workers(job, plan))
        distinct = trial.distinct(wanted)
        ranking = sweep(trial.default, distinct, near, trial)
    return Found(
        file=task.input,
        model=model.package.name,
        key=key_of(job, model.package, model.session),
        ended=now(),
        seconds=round(time.monotonic() - begin, 3),
        read=survey.read,
        truncated=survey.truncated,
        max_length=getattr(opened.scorer.encoder, "max_length", None),
        unscorable=survey.unscorable,
        duplicates=survey.read - survey.unscorable - len(survey.sound),
        sampled=trial.rows,
        alike=len(wanted) - len(distinct),
        default=trial.default,
        by_tokens=by_tokens,
        ranking=ranking,
        precisions="that takes more --seconds",
    )


def _precisions(job: Job, seconds: float) -> compare.Comparison | str:
    """What other precisions would give. Its failure is no reason to lose a tuning."""
    try:
        return compare.compare(job, compare.ROWS, seconds)
    except BatchPredictError as error:
        return str(error)


def store(found: Found) -> Path | None:
    """Keep the winner and everything measured; None where nothing was found out.

    Raises OutputNotCreatable.
    """
    if found.ranking.winner is None:
        return None
    won = found.ranking.winner != found.default
    measured: dict[str, Any] = asdict(found)
    del measured["key"], measured["ended"], measured["ranking"]["winner"]
    return store_tuning(found.key, found.sizes if won else None, found.ended, measured)


@dataclass(frozen=True)
class _Survey:
    """The first rows, prepared. `sound`: rows that are inferred, neither faults nor duplicates.

    `lengths`: as Prepared has them.
    """

    read: int
    sound: Indices
    lengths: npt.NDArray[np.int64] | None
    truncated: int
    unscorable: int


def _survey(scorer: Scorer, columns: pa.RecordBatch, seconds: float) -> _Survey:
    """Prepare as many of the rows as the time allows, the first ones in any case."""
    begin = time.monotonic()
    parts: list[Prepared] = []
    read, step = 0, 64
    while read < columns.num_rows and (not parts or time.monotonic() - begin < seconds):
        parts.append(scorer.prepare(columns.slice(read, step)))
        read += parts[-1].rows
        step = min(step * 2, 4096)
    sound: list[Indices] = []
    start = 0
    for part in parts:
        own = part.first == np.arange(part.rows)
        own[[fault.index for fault in part.faults]] = False
        sound.append(start + np.flatnonzero(own))
        start += part.rows
    lengths = [part.lengths for part in parts if part.lengths is not None]
    return _Survey(
        read,
        np.concatenate(sound),
        np.concatenate(lengths) if lengths else None,
        sum(part.truncated for part in parts),
        sum(len(part.faults) for part in parts),
    )


class _Trial:
    """Called with sizes, it runs the sample by them once; None when time is short."""

    def __init__(
        self,
        scorer: Scorer,
        columns: pa.RecordBatch,
        survey: _Survey,
        plan: Plan,
        deadline: float,
    ) -> None:
        self.default = Sizes(plan.tuning, plan.workers)
        self._scorer = scorer
        self._columns = columns
        self._survey = survey
        self._window_rows = plan.window_rows
        self._deadline = deadline
        self._windows: list[Prepared] = []
        self._repeats = 1
        self._rate = 0.0
        self._callers: dict[int, ThreadPoolExecutor] = {}
        self._took: dict[Sizes, float] = {}
        self.rows = 0

    def choose_sample(self, candidates: int) -> None:
        """As many rows as can be passed over a few times for each of `candidates`."""
        seconds = self._deadline - time.monotonic()
        if not self._rate:
            # Callers side by side are seldom as fast as each of them alone.
            abreast = max(1.0, self.default.workers * 0.6)
            self._rate = abreast * self._probe(_PROBE_SHARE * seconds)
        each = seconds / (_PASSES_EACH * candidates + 8)
        self._cut(each)
        took = self._took[self.default] if self(self.default) else seconds
        if took > _TOO_LONG * each:
            self._rate *= each / took
            self._cut(each)

    def _cut(self, seconds: float) -> None:
        """A sample that takes about so long."""
        rows = max(16, int(seconds * self._rate))
        indices = _sample(self._survey, rows)
        self._windows = self._prepared(indices)
        self.rows = len(indices)
        self._repeats = min(_REPEATS, max(1, rows // len(indices)))
        self._took.clear()

    def _prepared(self, indices: Indices) -> list[Prepared]:
        """Windows of equal size; if there are more rows than these, one or more for each caller.

        A caller that waits while another is at the last large batch would mislead.
        """
        count = -(-len(indices) // self._window_rows)
        if self._survey.lengths is None and len(indices) < len(self._survey.sound):
            count = -(-count // self.default.workers) * self.default.workers
        parts = np.array_split(indices, count)
        return [self._scorer.prepare(self._columns.take(pa.array(part))) for part in parts]

    def _probe(self, seconds: float) -> float:
        """Rows per second of one caller; the first run, which warms up, is not counted."""
        count = 8
        while True:
            rows = pa.array(self._survey.sound[:count])
            prepared = self._scorer.prepare(self._columns.take(rows))
            batches = self._scorer.plan(prepared, self.default.tuning)
            if count == 8:
                self._scorer.infer(prepared, batches[0])
            begin = time.perf_counter()
            for batch in batches:
                self._scorer.infer(prepared, batch)
            took = max(time.perf_counter() - begin, 1e-6)
            if took > seconds or count >= len(self._survey.sound):
                return prepared.rows / took
            count *= 2 if took > seconds / 4 else 4

    def _batches(self, tuning: Tuning) -> list[tuple[Prepared, Indices]]:
        """The sample's batches with the window each is of."""
        return [
            (prepared, batch)
            for prepared in self._windows
            for batch in self._scorer.plan(prepared, tuning)
        ]

    def distinct(self, wanted: Sequence[Sizes]) -> list[Sizes]:
        """Without sizes that cut the sample into the same batches as some before them do."""
        seen: dict[tuple[int, ...], Sizes] = {}
        for sizes in wanted:
            cut = tuple(len(batch) for _, batch in self._batches(sizes.tuning))
            seen.setdefault((sizes.workers, *cut), sizes)
        return list(seen.values())

    def variants(self, caps: Sequence[int], workers: Sequence[int], best: Sizes) -> list[Sizes]:
        """`best` with other caps on the rows of a batch and other callers, where it matters."""
        capped = [replace(best.tuning, batch_rows=cap) for cap in caps]
        near = [Sizes(tuning, best.workers) for tuning in capped]
        near += [Sizes(best.tuning, count) for count in workers]
        return self.distinct([best, *near])[1:]

    def __call__(self, sizes: Sizes) -> Pass | None:
        left = self._deadline - time.monotonic()
        slower = max(1.0, self.default.workers / sizes.workers)
        expected = self._took.get(sizes, self._took.get(self.default, 0.0) * slower)
        if left < expected:
            return None
        callers = self._callers.setdefault(
            sizes.workers, ThreadPoolExecutor(sizes.workers, "caller")
        )
        batches = self._batches(sizes.tuning) * self._repeats
        ends: dict[int, float] = {}

        def infer(prepared: Prepared, batch: Indices) -> None:
            self._scorer.infer(prepared, batch)
            ends[threading.get_ident()] = time.perf_counter()

        begin, cpu = time.perf_counter(), time.process_time()
        pending = [callers.submit(infer, *batch) for batch in batches]
        if not _finished(pending, left):
            return None
        used = time.process_time() - cpu
        self._took[sizes] = time.perf_counter() - begin
        # A run has always a next batch. Here the callers end one by one: their mean counts.
        seconds = sum(end - begin for end in ends.values()) / len(ends)
        return Pass(sum(len(batch) for _, batch in batches), seconds, used)

    def close(self) -> None:
        """Let the callers go."""
        for callers in self._callers.values():
            callers.shutdown(cancel_futures=True)


def _finished(pending: Sequence[Future[None]], seconds: float) -> bool:
    """Whether all were done within the time; if not, no further one is begun."""
    done, late = wait(pending, timeout=seconds)
    for future in late:
        future.cancel()
    wait(late)
    for future in done:
        future.result()
    return not late


def _sample(survey: _Survey, rows: int) -> Indices:
    """Rows to measure with: the first ones; of texts, rows of a few widths that stand for all.

    A run's window has many rows of each width. A small sample of all widths has few, so that
    large batches would never fill; rows of a few widths fill them as a window does.
    """
    sound, lengths = survey.sound, survey.lengths
    if lengths is None or rows >= len(sound):
        return sound[:rows]
    widths = np.sort(lengths[sound])
    count = max(2, min(_WIDTHS, rows // _ROWS_PER_WIDTH))
    while True:
        chosen = _of_widths(survey, widths, count, rows)
        if len(chosen) > rows * 2 // 3 or count > len(widths):
            return chosen
        count *= 2  # they have too few rows each


def _of_widths(survey: _Survey, widths: npt.NDArray[np.int64], count: int, rows: int) -> Indices:
    """About `rows` rows of the widths in the middle of `count` equal shares of the work."""
    sound, lengths = survey.sound, survey.lengths
    assert lengths is not None
    work = np.cumsum(widths)
    shares = (np.arange(count) + 0.5) / count
    middles = np.unique(widths[np.searchsorted(work, shares * work[-1])])
    # The shorter the rows, the more of them a share of the work is.
    tokens = rows * float(np.mean(widths)) / len(middles)
    parts = [
        sound[lengths[sound] == width][: max(2, round(tokens / max(1, width)))]
        for width in middles.tolist()
    ]
    return np.sort(np.concatenate(parts))


def _candidates(job: Job, plan: Plan, text: bool, lengths: bool) -> list[Sizes]:
    """What to try, the default first; what the job fixes stays."""
    default = plan.tuning
    shapes = [default]
    if lengths:
        if job.batch_tokens is None:
            shapes += [replace(default, batch_tokens=tokens) for tokens in _TOKENS]
    elif job.batch_rows is None:
        rows = _STRING_ROWS if text else _TABULAR_ROWS
        shapes += [replace(default, batch_rows=count) for count in rows]
    pairs = [Sizes(shape, plan.workers) for shape in shapes]
    # With other callers the default alone, later the best of these: curves are alike.
    pairs += [Sizes(default, count) for count in _workers(job, plan)]
    return list(dict.fromkeys(pairs))


def _workers(job: Job, plan: Plan) -> list[int]:
    """Numbers of callers to try beside the plan's."""
    cores = effective_cores()
    if job.workers is not None:
        return []
    counts = range(1, cores + 1) if cores <= 4 else (cores // 2, cores * 3 // 4, cores)
    return [count for count in counts if count != plan.workers]


def _caps(job: Job, by_tokens: bool) -> tuple[int, ...]:
    """Caps on the rows of a batch of texts to try beside the default."""
    return _CAPS if by_tokens and job.batch_rows is None else ()
