"""Runs for people at a terminal, and for programs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from batchpredict.counting import count
from batchpredict.errors import InputInvalid, InputMissing, UsageError
from batchpredict.ops.display import duration, local, number, plain, share, size, width
from batchpredict.ops.report_scores import drift_of
from batchpredict.ops.runs import Found, Run, State, read_runs

_HEADS = ("ended", "state", "exit", "rows", "rejected", "seconds", "rows/s", "model", "output")
_TEXTS = frozenset({"ended", "state", "model", "output"})
_ORDER: tuple[State, ...] = ("ok", "partial", "failed", "stopped", "running", "waiting")
_LEAST_PREFIX = 4


def table(found: Found, last: int | None = None) -> str:
    """A line a run, the latest at the bottom; below a failed one, why."""
    runs = found.runs[-last:] if last else found.runs
    lines = [list(_HEADS), *(_cells(run) for run in runs)]
    widths = [max(map(width, column)) for column in zip(*lines, strict=True)]
    text = []
    for cells, run in zip(lines, (None, *runs), strict=True):
        padded = [
            cell + " " * (wide - width(cell)) if head in _TEXTS else cell.rjust(wide)
            for head, cell, wide in zip(_HEADS, cells, widths, strict=True)
        ]
        text.append("  ".join(padded).rstrip())
        text += [f"    {line}" for line in (_remarks(run) if run else ())]
    return "\n".join([*text, summary(found.runs)])


def _cells(run: Run) -> list[str]:
    counts, model = run.counts, run.model
    name = plain(model.name or "-", 24)
    version = plain(f" {model.version}", 12) if model.version else ""
    return [
        local(run.ended),
        run.state,
        "-" if run.exit_code is None else str(run.exit_code),
        f"{counts.read if counts else run.kept_rows:,}",
        f"{counts.rejected + counts.nulls:,}" if counts else "-",
        "-" if run.seconds is None else f"{run.seconds:,.1f}",
        "-" if run.rows_per_second is None else number(run.rows_per_second),
        name + version,
        plain(run.output, 80),
    ]


def _remarks(run: Run) -> list[str]:
    lines = [plain(run.message, 400)] if run.message else []
    lines += [plain(f"warning: {warning}", 400) for warning in _warnings(run)]
    if run.kept_rows and run.is_over:
        lines.append(
            f"{count(run.kept_rows, 'row')} scored and kept; the same command goes on there"
        )
    return lines


def _warnings(run: Run) -> list[str]:
    drift = drift_of(run) if run.state != "failed" else None  # whose message says so
    return [*run.warnings, *([drift.told] if drift and drift.told else [])]


def summary(runs: Sequence[Run]) -> str:
    """`27 runs: 25 ok, 2 failed; 1,234 rows read, 3 rejected`."""
    if not runs:
        return "no runs"
    states = Counter(run.state for run in runs)
    told = ", ".join(f"{states[state]:,} {state}" for state in _ORDER if states[state])
    counts = [run.counts for run in runs if run.counts]
    read = sum(each.read for each in counts)
    lost = sum(each.rejected + each.nulls for each in counts)
    rejected = f", {lost:,} rejected ({share(lost, read)})" if lost else ""
    return f"{count(len(runs), 'run')}: {told}; {count(read, 'row')} read{rejected}"


def facts(found: Found, last: int | None = None) -> dict[str, Any]:
    """The list as JSON."""
    return {
        "runs": [_facts(run) for run in (found.runs[-last:] if last else found.runs)],
        "skipped": [asdict(each) for each in found.skipped],
    }


def _facts(run: Run) -> dict[str, Any]:
    return {
        "state": run.state,
        "run_id": run.run_id,
        "started": run.started.isoformat() if run.started else None,
        "ended": run.ended.isoformat(),
        "seconds": run.seconds,
        "exit_code": run.exit_code,
        "message": run.message,
        "input": run.input.path if run.input else None,
        "output": run.output,
        "model": asdict(run.model),
        "counts": asdict(run.counts) if run.counts else None,
        "warnings": _warnings(run),
        "reject_codes": run.rejects.codes if run.rejects else {},
        "kept_rows": run.kept_rows,
        "rows_per_second": run.rows_per_second,
        "peak_memory_bytes": run.peak_memory_bytes,
        "file": run.file,
    }


def show_facts(runs: Sequence[Run]) -> dict[str, Any]:
    """Runs as JSON: their receipts, and what the list says of them."""
    return {"runs": [_facts(run) | {"receipt": run.receipt or None} for run in runs]}


def find_runs(name: str, runs: Iterable[Run]) -> tuple[Run, ...]:
    """All inputs of the run with this id or beginning of one. Raises UsageError (several runs),
    InputMissing.
    """
    matching = [run for run in runs if run.run_id and run.run_id.startswith(name)]
    if len(matching) > 1 and len({run.run_id for run in matching}) > 1:
        several = len({run.run_id for run in matching})
        raise UsageError(f"{name}: {several} runs have an id that starts so; give more of it")
    if not matching or len(name) < _LEAST_PREFIX:
        raise InputMissing(
            f"{name}: no receipt, and no run with such an id under the folders given; "
            "batchpredict runs --json lists the ids"
        )
    return tuple(matching)


def show(run: Run) -> str:
    """One input's run, a fact a line."""
    lines = [(name, plain(text, 400)) for name, text in _about(run) if text]
    wide = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{wide}}  {text}" for name, text in lines)


def _about(run: Run) -> list[tuple[str, str]]:
    model, counts, rejects = run.model, run.counts, run.rejects
    lines = [
        ("state", run.state + ("" if run.exit_code is None else f" (exit {run.exit_code})")),
        ("message", run.message or ""),
        *(("warning", warning) for warning in _warnings(run)),
        ("run", run.run_id or ""),
        ("started", local(run.started) if run.started else ""),
        ("ended" if run.is_over else "last write", local(run.ended)),
        ("took", duration(run.seconds) if run.seconds is not None else ""),
        ("input", run.input.path if run.input else ""),
        ("output", run.output),
        ("model", " ".join(filter(None, (model.name, model.version, model.alias)))),
        ("model sha256", model.sha256 or ""),
        ("tool", ", ".join(f"{name} {value}" for name, value in run.tool.items())),
    ]
    if counts:
        lines += [(name, f"{value:,}") for name, value in vars(counts).items() if value]
    if run.kept_rows:
        lines.append(("kept rows", f"{run.kept_rows:,}"))
    if rejects:
        lines += [(f"rejects {plain(code, 40)}", f"{n:,}") for code, n in rejects.codes.items()]
        lines.append(("rejects file", rejects.path or ""))
    if run.rows_per_second is not None:
        lines.append(("rows/s", number(run.rows_per_second)))
    if run.peak_memory_bytes:
        lines.append(("peak memory", size(run.peak_memory_bytes)))
    lines += [(f"seconds {plain(name, 40)}", f"{took:,.2f}") for name, took in run.stages.items()]
    if run.resumed.rows:
        lines.append(
            (
                "resumed",
                f"{count(run.resumed.rows, 'row')} of {count(run.resumed.runs, 'run')} before",
            )
        )
    if run.retried:
        lines.append(("retried", f"{count(run.retried.rows, 'row')} of run {run.retried.run_id}"))
    return [*lines, ("receipt" if run.receipt else "journal", run.file)]


def read_meant(name: str, folders: Sequence[str]) -> tuple[Run, ...]:
    """What is meant by a receipt's path, or by an id under the folders. See `find_runs`."""
    if not os.path.isfile(name):  # noqa: PTH113 - pathlib's raises for a name too long
        return find_runs(name, read_runs(folders).runs)
    found = read_runs([name])
    if not found.runs:
        reason = found.skipped[0].reason if found.skipped else "its output is published"
        raise InputInvalid(f"{name}: {reason}; name OUTPUT.receipt.json")
    return found.runs
