"""The ledger: one JSON object a line, appended, so that a campaign can be run in pieces."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def append(path: Path, entry: dict[str, Any]) -> None:
    """Add a line, whole or not at all, though several campaigns write at once."""
    line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def read(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def summary(entries: Iterable[dict[str, Any]]) -> str:
    """Totals of each kind, and every failure with what is needed to repeat it."""
    trials: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    slowest: dict[str, float] = defaultdict(float)
    failures = []
    for entry in entries:
        kind = entry["kind"]
        trials[kind] += 1
        failed[kind] += bool(entry["failures"])
        for name in ("kills", "stops"):
            sums[kind][name] += entry.get(name, 0)
            sums[kind][f"with_{name}"] += bool(entry.get(name))
        sums[kind]["fired"] += bool(entry.get("fired"))
        took = [attempt.get("took", 0.0) for attempt in entry["attempts"]]
        slowest[kind] = max([slowest[kind], *took])
        if entry["failures"]:
            place = f"--seed {entry['seed']} --only {kind}:{entry['number']}"
            failures.append(f"{place}  {entry['case']}  {entry['failures']}")
    lines = [_line(kind, trials, failed, sums[kind], slowest[kind]) for kind in sorted(trials)]
    return "\n".join([*lines, f"failures: {len(failures)}", *failures])


def _line(
    kind: str, trials: Counter[str], failed: Counter[str], sums: Counter[str], slowest: float
) -> str:
    parts = [f"{kind}: {trials[kind]} trials, {failed[kind]} failed"]
    parts += [f"{name} {sums[name]}" for name in sorted(sums) if sums[name]]
    if slowest:
        parts.append(f"slowest end {slowest:.2f} s")
    return ", ".join(parts)
