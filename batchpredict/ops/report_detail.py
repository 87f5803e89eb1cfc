"""One run in full: counts, times, batches, scores, rejects, lineage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields

from markupsafe import Markup

from batchpredict.counting import count
from batchpredict.job import Job
from batchpredict.ops import report_charts as charts
from batchpredict.ops.display import duration, local, number, plain, share, size
from batchpredict.ops.layout import LayoutInvalid, made
from batchpredict.ops.report_lines import Line
from batchpredict.ops.report_rejects import Example, examples
from batchpredict.ops.report_scores import (
    Column,
    Distribution,
    Drift,
    columns,
    distributions,
    drift_of,
)
from batchpredict.ops.runs import Run
from batchpredict.run.receipt import Batches

_SIZES = {
    "batch_rows": "most rows in a batch",
    "batch_tokens": "most tokens in a batch",
    "workers": "workers",
    "window_rows": "rows in a window",
}


@dataclass(frozen=True)
class Detail:
    """One run in full. `rejects`: (code, rows, share). `outline`: what the scores are drawn
    against, in words.
    """

    line: Line
    facts: tuple[tuple[str, str], ...]
    stages: Markup | None
    shape: tuple[tuple[str, str], ...]
    scores: tuple[tuple[Distribution, Markup | None], ...]
    outline: str
    drift: Drift | None
    inputs: tuple[Column, ...]
    rejects: tuple[tuple[str, int, str], ...]
    examples: tuple[Example, ...]
    lineage: tuple[tuple[str, str], ...]
    options: tuple[tuple[str, str], ...]


def stages_of(runs: Sequence[Run]) -> dict[str, float]:
    """Seconds per stage, longest first, without those that take nothing."""
    seconds: Counter[str] = Counter()
    for run in runs:
        seconds.update(run.stages)
    most = max(seconds.values(), default=0.0)
    return {name: took for name, took in seconds.most_common() if took > most / 1000}


def detail_of(line: Line, others: Sequence[Run], with_records: bool) -> Detail:
    """`others`: the runs of the same job before it, the last one at the end."""
    run = line.run
    baseline, outline = _baseline(run, others)
    stages, codes = stages_of([run]), run.rejects.codes if run.rejects else {}
    read = run.counts.read if run.counts else 0
    return Detail(
        line=line,
        facts=_facts(run),
        stages=Markup(charts.bars("Time per stage", stages, duration)) if stages else None,
        shape=_shape(run),
        scores=tuple((each, _histogram(each)) for each in distributions(run, baseline)),
        outline=outline,
        drift=drift_of(run),
        inputs=columns(run),
        rejects=tuple((code, rows, share(rows, read)) for code, rows in codes.items()),
        examples=examples(run, with_records),
        lineage=_lineage(run),
        options=_options(run),
    )


def _baseline(run: Run, others: Sequence[Run]) -> tuple[Sequence[Run], str]:
    """What its scores are drawn against: the runs that it was compared with, or the one before."""
    drift = drift_of(run)
    known = [each for each in others if drift and each.run_id in drift.baseline]
    if known:
        return known, "the baseline"
    return (others[-1:], "the run before") if others else ((), "")


def _histogram(each: Distribution) -> Markup | None:
    if not any(each.heights):
        return None
    title = f"Scores of {each.label}"
    return Markup(charts.histogram(title, each.heights, each.before, each.ticks))


def _facts(run: Run) -> tuple[tuple[str, str], ...]:
    counts = (
        {name: value for name, value in vars(run.counts).items() if value} if run.counts else {}
    )
    facts = [(name, f"{value:,}") for name, value in counts.items()]
    if run.started:
        facts.append(("started", local(run.started)))
    facts.append(("ended" if run.is_over else "last write", local(run.ended)))
    if run.seconds is not None:
        facts.append(("took", duration(run.seconds)))
    if run.rows_per_second is not None:
        facts.append(("rows/s", number(run.rows_per_second)))
    if run.peak_memory_bytes:
        facts.append(("peak memory", size(run.peak_memory_bytes)))
    if run.exit_code is not None:
        facts.append(("exit status", str(run.exit_code)))
    return tuple(facts)


def _shape(run: Run) -> tuple[tuple[str, str], ...]:
    """How rows were put into batches, as far as the receipt tells."""
    plan, counts = run.receipt.get("plan"), run.counts
    if not isinstance(plan, dict):
        return ()
    given = plan.get("sizes_from")
    sources = given if isinstance(given, dict) else {}
    lines = []
    for name, told in _SIZES.items():
        if isinstance(value := plan.get(name), int):
            source = f" ({plain(str(sources[name]), 40)})" if name in sources else ""
            lines.append((told, f"{value:,}{source}"))
    lines += _batches(run)
    if counts and counts.scored:
        lines.append(("not inferred, same input", share(counts.duplicates, counts.scored)))
        lines.append(("texts cut at the maximum", share(counts.truncated, counts.scored)))
    return tuple(lines)


def _batches(run: Run) -> list[tuple[str, str]]:
    try:
        batches = made(Batches, run.receipt.get("batches"), "batches")
    except LayoutInvalid:  # an older version's, or damaged
        return []
    if min(vars(batches).values()) < 0 or not batches.count:
        return []
    lines = [("batches", f"{batches.count:,}")]
    lines.append(("rows in a batch", f"{number(batches.rows / batches.count)} on average"))
    if batches.padded_tokens:
        tokens = batches.padded_tokens / batches.count
        padding = batches.padded_tokens - batches.tokens
        lines.append(("tokens in a batch", f"{number(tokens)} on average"))
        lines.append(("of these padding", share(padding, batches.padded_tokens)))
    return lines


def _lineage(run: Run) -> tuple[tuple[str, str], ...]:
    model, output, rejects = run.model, run.receipt.get("output"), run.rejects
    lines = [
        ("model", " ".join(filter(None, (model.name, model.version)))),
        ("model alias", model.alias or ""),
        ("model sha256", model.sha256 or ""),
        ("input", run.input.path if run.input else ""),
        ("input sha256", (run.input and run.input.sha256) or ""),
        ("output", run.output),
        ("output sha256", str(output.get("sha256")) if isinstance(output, dict) else ""),
        ("rejects sha256", (rejects and rejects.sha256) or ""),
        ("software", ", ".join(f"{name} {value}" for name, value in run.tool.items())),
        ("run", run.run_id or ""),
    ]
    if run.resumed.rows:
        lines.append(
            (
                "resumed",
                f"{count(run.resumed.rows, 'row')} of {count(run.resumed.runs, 'run')} before",
            )
        )
    if run.retried:
        lines.append(("retried", f"{count(run.retried.rows, 'row')} of run {run.retried.run_id}"))
    return tuple((name, value) for name, value in [*lines, ("receipt", run.file)] if value)


def _options(run: Run) -> tuple[tuple[str, str], ...]:
    """Those that are not as they are by default."""
    options = run.receipt.get("options")
    if not isinstance(options, dict):
        return ()
    defaults = {field.name: field.default for field in fields(Job)}
    found = []
    for name, value in options.items():
        default = defaults.get(name, MISSING)
        given = tuple(value) if isinstance(value, list) else value
        if given != default and value not in (None, [], {}):
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            found.append((plain(f"--{name}", 60), plain(text, 200)))
    return tuple(found)
