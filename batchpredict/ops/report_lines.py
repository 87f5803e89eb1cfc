"""How a run stands, in a word and a line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from batchpredict.counting import count
from batchpredict.ops.display import plain
from batchpredict.ops.report_scores import drift_of
from batchpredict.ops.runs import Run

Level = Literal["good", "warn", "bad", "busy"]

WORST_FIRST: tuple[Level, ...] = ("bad", "warn", "busy", "good")
_LEVELS: Mapping[str, Level] = {
    "ok": "good", "partial": "warn", "failed": "bad", "stopped": "bad", "running": "busy",
    "waiting": "busy",
}  # fmt: skip
# Where a run fails on its first bad row, the message may hold a part of that row.
_ROW_MESSAGE = re.compile(r"(: row \d+: [a-z_0-9]+): .*(; mend)", re.DOTALL)
# Of a message that is searched: each beginning in it may be followed to its end.
_MOST_SEARCHED = 4000


@dataclass(frozen=True)
class Line:
    """A run in a table. `reason`: what is wrong with it. `drifted`: its predictions, too far.
    `warned`: of how its model was come by.
    """

    run: Run
    level: Level
    reason: str
    drifted: bool
    warned: bool


def line_of(run: Run, with_records: bool) -> Line:
    """Without `with_records` no text of the input is in it."""
    drift, level = drift_of(run), _LEVELS[run.state]
    drifted = bool(drift and drift.exceeded)
    reasons = [_reason(run, with_records)]
    if drift and run.state != "failed":  # whose message says so
        reasons.append(drift.told)
    reasons += run.warnings
    warned = bool(run.warnings)
    if (drifted or warned) and level == "good":
        level = "warn"
    return Line(run, level, "; ".join(filter(None, reasons)), drifted, warned)


def _reason(run: Run, with_records: bool) -> str:
    kept = f"{count(run.kept_rows, 'row')} scored and kept; the same command goes on there"
    if run.state == "failed":
        message = plain(run.message or "no message", _MOST_SEARCHED)
        message = message if with_records else _ROW_MESSAGE.sub(r"\1\2", message)
        return f"{message}; {kept}" if run.kept_rows else message
    if run.state == "stopped":
        return f"killed or given up; {kept}"
    if run.state == "partial" and run.rejects:
        return ", ".join(f"{code} {rows:,}" for code, rows in run.rejects.codes.items())
    if run.state == "running":
        return f"{count(run.kept_rows, 'row')} so far"
    return "waits for its turn" if run.state == "waiting" else ""
