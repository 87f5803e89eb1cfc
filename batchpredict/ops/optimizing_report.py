"""What `models optimize` has found, for people and for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from batchpredict.ops.agreement import TOLERANCE, Changed
from batchpredict.ops.optimizing import Report, Side

# Rows that differ, in a table and in the line of an error.
_MOST_ROWS = 20
_MOST_IN_LINE = 3


def facts(report: Report) -> dict[str, Any]:
    """For --json; every row that differs."""
    found = asdict(report)
    old, new = found.pop("sides")
    found["written"] = report.target if report.written else None
    return {"model": old, "variant": new, **found}


def table(report: Report) -> str:
    """For people."""
    heads = ("", "bytes", "nodes", "load s", "rows/s", "rows/CPU s")
    lines = [heads, *(_cells(side) for side in report.sides)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    text = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    ]
    text.append(f"{_agreement(report)}; {_difference(report)}")
    text += [f"  {_row(changed)}" for changed in report.changed[:_MOST_ROWS]]
    if len(report.changed) > _MOST_ROWS:
        text.append(f"  … and {len(report.changed) - _MOST_ROWS:,} more (--json has all)")
    if report.trained:
        text.append(
            f"{report.trained} nodes trained (Dropout or BatchNormalization) and do so no more:"
            " scores of the model itself depend on chance or on other rows"
        )
    text.append(f"written: {report.target}" if report.written else f"not written: {report.target}")
    return "\n".join(text)


def refusal(report: Report) -> str | None:
    """Why nothing was written, in a line."""
    if report.written:
        return None
    rows = "; ".join(_row(changed) for changed in report.changed[:_MOST_IN_LINE])
    more = len(report.changed) - _MOST_IN_LINE
    return (
        f"{report.target}: not written, --min_agreement is {report.min_agreement:g}:"
        f" {_agreement(report)}; {_difference(report)}; {rows}"
        f"{f'; and {more:,} more' if more > 0 else ''}"
    )


def _cells(side: Side) -> tuple[str, ...]:
    return (
        side.name,
        f"{side.bytes:,}",
        f"{side.nodes:,}",
        f"{side.load_seconds:.3f}",
        f"{side.rows_per_second:,.1f}",
        f"{side.rows_per_cpu_second:,.1f}",
    )


def _agreement(report: Report) -> str:
    alike = report.rows - len(report.changed)
    return f"{alike:,} of {report.rows:,} rows agree ({report.agreement:.4f})"


def _difference(report: Report) -> str:
    if report.largest_difference is None or report.mean_difference is None:
        return "there are no scores to compare"
    return (
        f"scores are off by at most {report.largest_difference:.2g},"
        f" {report.mean_difference:.2g} on average"
    )


def _row(changed: Changed) -> str:
    if changed.cosine is not None:
        return f"row {changed.row:,}: cosine {changed.cosine:.4f}, less than {1 - TOLERANCE:g}"
    if changed.new is None:
        return f"row {changed.row:,}: {_said(changed.old, changed.old_score)} -> no finite score"
    old = _said(changed.old, changed.old_score)
    return f"row {changed.row:,}: {old} -> {_said(changed.new, changed.new_score)}"


def _said(value: str | float | list[str] | None, score: float | None) -> str:
    if isinstance(value, float):
        text = f"{value:.6g}"
    else:
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if score is None else f"{text} {score:.4f}"
