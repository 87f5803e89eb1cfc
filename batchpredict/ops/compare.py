"""What each precision gives and costs on the user's own rows. Shown, never applied."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from batchpredict.counting import count
from batchpredict.data.naming import tasks_of
from batchpredict.errors import ConfigInvalid, InputInvalid, UsageError
from batchpredict.job import Job, Precision
from batchpredict.ops.candidates import Candidate, affordable, candidate, first_sound, measured
from batchpredict.ops.differences import difference, matched
from batchpredict.run.loading import load_model
from batchpredict.run.opening import first_rows

PRECISIONS: tuple[Precision, ...] = ("model", "bf16", "int8")
# Rows of the file where --limit does not say, and seconds after which there are fewer.
ROWS = 300
SECONDS = 60.0


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
    found: dict[str, Candidate | str] = {}
    for precision in PRECISIONS:
        try:
            model = own if precision == "model" else load_model(_job_in(job, precision))
            found[precision] = entry = candidate(precision, model, job, columns)
            entry.pass_over(first_sound(entry) + 1)
        except (ConfigInvalid, InputInvalid) as error:
            if precision == "model":
                raise
            found[precision] = str(error)
    running = [entry for entry in found.values() if isinstance(entry, Candidate)]
    rows = affordable(running, columns.num_rows, seconds)
    speeds = measured(running, rows)
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


def _compared(
    entry: Candidate, base: Candidate, per_second: float, per_cpu_second: float
) -> Compared:
    apart = difference(matched(entry, base))
    return Compared(
        entry.name,
        entry.provider,
        None,
        per_second,
        per_cpu_second,
        apart.same_prediction,
        apart.largest,
        apart.mean,
    )


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
        f"on {count(comparison.rows, 'row')} from the start of {comparison.path}; "
        "nothing is applied"
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
