"""What is on the page of a report: the verdict, jobs, charts, runs."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from markupsafe import Markup

from batchpredict.counting import count
from batchpredict.ops import report_charts as charts
from batchpredict.ops.display import duration, plain
from batchpredict.ops.report_detail import Detail, detail_of, stages_of
from batchpredict.ops.report_lines import WORST_FIRST, Line, line_of
from batchpredict.ops.report_scores import drift_of
from batchpredict.ops.report_verdict import Verdict, verdict_of
from batchpredict.ops.runs import Found, Run, Skipped

# A verdict is about the runs that ended so shortly before the last one: a night and what came late,
# but not the night before, whose runs need not have ended at the same hour.
_NIGHT = timedelta(hours=18)
# What a page of many runs shows at most.
_MOST_PROBLEMS, _MOST_JOBS, _MOST_CHARTS, _MOST_DETAILS, _MOST_RUNS = 20, 60, 6, 12, 2000
_MOST_POINTS = 1000
_SPARK_POINTS = 60
# A job that is this much slower than it was is worth a word.
_SLOWER = 0.7


@dataclass(frozen=True)
class Series:
    """All nights of one job. `change`: of its speed against its nights before, as text."""

    name: str
    latest: Line
    nights: int
    change: str
    slower: bool
    spark: Markup | None


@dataclass(frozen=True)
class Chart:
    """`about`: the job, empty where it is about all."""

    title: str
    about: str
    svg: Markup


@dataclass(frozen=True)
class View:
    """The page. `older`: problems from before the time that the verdict is about."""

    title: str
    made: datetime
    zone: str
    verdict: Verdict
    problems: tuple[Line, ...]
    older: tuple[Line, ...]
    left_out: int
    series: tuple[Series, ...]
    more_series: int
    charts: tuple[Chart, ...]
    details: tuple[Detail, ...]
    runs: tuple[Line, ...]
    more_runs: int
    skipped: tuple[Skipped, ...]
    with_records: bool


def view(found: Found, with_records: bool, now: datetime) -> View:
    """Everything on the page. `found` has at least one run."""
    lines = [line_of(run, with_records) for run in found.runs]
    end = max((line.run.ended for line in lines if line.run.is_over), default=now)
    recent = [each for each in lines if not each.run.is_over or each.run.ended > end - _NIGHT]
    problems = [each for each in recent if each.level in ("bad", "warn")]
    problems.sort(key=lambda each: WORST_FIRST.index(each.level))
    older = [each for each in lines if each.level == "bad" and each.run.ended <= end - _NIGHT]
    series = _all_series(lines)
    many = len(lines) > 1
    shown = _to_detail(problems, series) if many else lines
    return View(
        title=_title(lines),
        made=now,
        zone=now.astimezone().strftime("%Z (UTC%z)"),
        verdict=verdict_of(recent, older if many else (), now, many),
        problems=tuple(problems[:_MOST_PROBLEMS]) if many else (),
        older=tuple(older[-_MOST_PROBLEMS:]) if many else (),
        left_out=max(len(problems) - _MOST_PROBLEMS, 0) + max(len(older) - _MOST_PROBLEMS, 0),
        series=tuple(series[:_MOST_JOBS]) if many else (),
        more_series=max(len(series) - _MOST_JOBS, 0),
        charts=tuple(_charts(lines)) if many else (),
        details=tuple(
            detail_of(line, _runs_before(line.run, found.runs), with_records) for line in shown
        ),
        runs=tuple(reversed(lines[-_MOST_RUNS:])) if many else (),
        more_runs=max(len(lines) - _MOST_RUNS, 0),
        skipped=found.skipped,
        with_records=with_records,
    )


def _title(lines: Sequence[Line]) -> str:
    return plain(lines[0].run.output, 80) if len(lines) == 1 else count(len(lines), "run")


def _all_series(lines: Sequence[Line]) -> list[Series]:
    """Worst first, then by name."""
    grouped: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        grouped[line.run.series].append(line)
    found = [_series(name, each) for name, each in grouped.items()]
    return sorted(found, key=lambda each: (WORST_FIRST.index(each.latest.level), each.name))


def _series(name: str, lines: Sequence[Line]) -> Series:
    speeds = _speeds([line.run for line in lines])[-_SPARK_POINTS:]
    change, slower = "", False
    if len(speeds) > 3:
        usual = statistics.median(speeds[:-1])
        ratio = speeds[-1] / usual if usual else 1.0
        change, slower = f"{100 * (ratio - 1):+.0f} %", ratio < _SLOWER
    spark = None
    if len(speeds) > 2:
        spark = Markup(charts.sparkline(f"rows per second of {name}", speeds))
    return Series(name, lines[-1], len(lines), change, slower, spark)


def _speeds(runs: Sequence[Run]) -> list[float]:
    return [run.rows_per_second for run in _published(runs) if run.rows_per_second is not None]


def _published(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.state in ("ok", "partial")]


def _charts(lines: Sequence[Line]) -> list[Chart]:
    """Speed over time of the jobs with most runs, rejects where there are any, time per stage."""
    grouped: dict[str, list[Run]] = defaultdict(list)
    for line in lines:
        grouped[line.run.series].append(line.run)
    found = []
    for name, runs in sorted(grouped.items(), key=lambda each: -len(each[1]))[:_MOST_CHARTS]:
        done = [run for run in _published(runs) if run.counts][-_MOST_POINTS:]
        if len(done) < 2:
            continue
        points = [(run.ended, run.rows_per_second or 0.0) for run in done]
        found.append(_chart("Rows per second", name, charts.over_time, points))
        lost = [(run.ended, _lost_percent(run)) for run in done]
        if any(value for _, value in lost):
            found.append(_chart("Rows not scored, per cent", name, charts.over_time, lost))
        drifts = [(run.ended, drift.most) for run in done if (drift := drift_of(run))]
        if len(drifts) > 1:
            found.append(_chart("Drift, largest PSI", name, charts.over_time, drifts, _decimals))
    stages = stages_of([line.run for line in lines])
    if stages:
        found.append(_chart("Time per stage", "all runs", charts.bars, stages, duration))
    return found


def _chart(title: str, about: str, draw: Any, *values: Any) -> Chart:
    return Chart(title, about, Markup(draw(f"{title}: {about}", *values)))


def _decimals(value: float) -> str:
    return f"{value:.3g}"


def _lost_percent(run: Run) -> float:
    counts = run.counts
    assert counts is not None
    return 100 * (counts.rejected + counts.nulls) / counts.read if counts.read else 0.0


def _to_detail(problems: Sequence[Line], series: Sequence[Series]) -> list[Line]:
    """Runs with a problem, then the latest of each job."""
    chosen = [line for line in problems if line.run.receipt]
    chosen += [each.latest for each in series if each.latest not in chosen]
    return chosen[:_MOST_DETAILS]


def _runs_before(run: Run, runs: Sequence[Run]) -> list[Run]:
    """Published runs of the same job, the last one at the end."""
    same = [each for each in _published(runs) if each.series == run.series]
    return [each for each in same if each.ended < run.ended and each.file != run.file]
