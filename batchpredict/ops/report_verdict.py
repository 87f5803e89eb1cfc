"""The verdict: whether the last night was fine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from batchpredict.counting import count
from batchpredict.ops.display import duration, local, number, share, size
from batchpredict.ops.report_lines import WORST_FIRST, Level, Line
from batchpredict.ops.runs import Run

_WORDS: Mapping[Level, str] = {"good": "All fine", "bad": "Failed", "busy": "Running"}


@dataclass(frozen=True)
class Verdict:
    """`when`: when the last of the runs it is about ended. `facts`: (name, value, note) of them."""

    level: Level
    word: str
    sentence: str
    when: str
    facts: tuple[tuple[str, str, str], ...]


def verdict_of(recent: Sequence[Line], older: Sequence[Line], now: datetime, many: bool) -> Verdict:
    """`recent`: the runs it is about; `older`: failures before them; `many`: of several runs."""
    level = min((each.level for each in recent), key=WORST_FIRST.index)
    sentence = _summary(recent, older) if many else _single(recent[0])
    over = [each.run for each in recent if each.run.is_over]
    when = ""
    if over:
        end = max(run.ended for run in over)
        when = f"{'Last run ended' if many else 'Ended'} {local(end)}, {_ago(now - end)}"
    return Verdict(level, _word(level, recent), sentence, when, tuple(_figures(over, many)))


def _word(level: Level, recent: Sequence[Line]) -> str:
    if level != "warn":
        return _WORDS[level]
    words = {
        "rows rejected": any(each.run.state == "partial" for each in recent),
        "predictions drifted": any(each.drifted for each in recent),
        "warnings": any(each.warned for each in recent),
    }
    return ", ".join(word for word, is_so in words.items() if is_so).capitalize()


def _figures(runs: Sequence[Run], many: bool) -> list[tuple[str, str, str]]:
    counts = [run.counts for run in runs if run.counts]
    if not counts:
        return []
    read = sum(each.read for each in counts)
    lost = sum(each.rejected + each.nulls for each in counts)
    seconds = sum(run.seconds or 0.0 for run in runs)
    figures = [
        ("Rows read", f"{read:,}", ""),
        ("Scored", f"{sum(each.scored for each in counts):,}", ""),
        ("Not scored", f"{lost:,}", share(lost, read) if lost else ""),
        ("Run time", duration(seconds), ""),
        ("Peak memory", size(max(run.peak_memory_bytes or 0 for run in runs)), ""),
    ]
    if not many:  # of several models it would mean nothing
        figures.insert(4, ("Rows/s", number(runs[0].rows_per_second or 0.0), ""))
    return figures


def _summary(recent: Sequence[Line], older: Sequence[Line]) -> str:
    levels = Counter(each.level for each in recent)
    parts = []
    if levels["bad"]:
        parts.append(f"{levels['bad']:,} of {count(len(recent), 'run')} failed")
    partial = [each.run.counts for each in recent if each.run.state == "partial"]
    if counts := [each for each in partial if each]:
        read = sum(each.read for each in counts)
        lost = sum(each.rejected + each.nulls for each in counts)
        runs = f"{len(counts):,} of {count(len(recent), 'run')}"
        parts.append(f"{runs} published without {count(lost, 'row')} ({share(lost, read)})")
    if drifted := sum(each.drifted for each in recent):
        parts.append(f"{drifted:,} of {count(len(recent), 'run')} with drifted predictions")
    if warned := sum(each.warned for each in recent):
        parts.append(f"{warned:,} of {count(len(recent), 'run')} with a warning")
    if levels["busy"]:
        parts.append(f"{levels['busy']:,} at work")
    if levels["good"] == len(recent):
        parts.append(f"all {count(len(recent), 'run')} published, every row scored")
    if older:
        parts.append(f"{count(len(older), 'earlier failure')} not run again")
    return "; ".join(parts)


def _single(line: Line) -> str:
    run = line.run
    if line.level == "good":
        return (
            f"published, every one of {count(run.counts.read if run.counts else 0, 'row')} scored"
        )
    if run.state == "partial" and run.counts:
        lost = run.counts.rejected + run.counts.nulls
        part = share(lost, run.counts.read)
        return f"published without {count(lost, 'row')} ({part}): {line.reason}"
    return line.reason


def _ago(passed: timedelta) -> str:
    minutes = int(passed.total_seconds() // 60)
    if minutes < 1:
        return "just now" if minutes == 0 else "in the future"
    if minutes < 120:
        return f"{count(minutes, 'minute')} ago"
    if minutes < 48 * 60:
        return f"{minutes // 60} hours ago"
    return f"{minutes // 1440:,} days ago"
