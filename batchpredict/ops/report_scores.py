"""Scores, drift and inputs, as `profile` and `drift` in a receipt tell of them.

The only module that knows what these look like. What is not as it is to be is left out.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from batchpredict.ops.runs import Run

PROBABILITY_BINS = 20
# Neighbouring bins are drawn as one until there are no more than so many.
_MOST_BINS = 40
_MOST_LABELS = 12
_TICKS = 4
_MOST_COLUMNS = 30
_MOST_PSI = 1e6
_OTHERS, _VALUES = "(other labels)", "(values)"
# Borders are written as decimals.
_ROUNDING = 1e-9

# Rows by the border of a bin.
Bins = Mapping[float, int]


@dataclass(frozen=True)
class Distribution:
    """Of one label, or of all values. `share`: of the run's rows with a prediction.

    `heights`: shares of the label's rows, 0 to 1, a bin each, side by side from 0 on; `ticks`:
    values at places between bins. `before`, `share_before`: the same of the baseline, None where
    there is none.
    """

    label: str
    rows: int
    share: float
    share_before: float | None
    heights: Sequence[float]
    before: Sequence[float] | None
    ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Shift:
    """How far something has moved. `noise`: the PSI that may be chance."""

    name: str
    psi: float
    noise: float
    exceeded: bool


@dataclass(frozen=True)
class Drift:
    """From the runs `baseline` (their ids). `exceeded`: what moved farther than --max_drift."""

    baseline: tuple[str, ...]
    predictions: tuple[Shift, ...]
    inputs: tuple[Shift, ...]
    exceeded: tuple[str, ...]

    @property
    def most(self) -> float:
        """The largest PSI of the predictions."""
        return max((shift.psi for shift in self.predictions), default=0.0)

    @property
    def told(self) -> str:
        """What moved too far; empty where nothing did."""
        if not self.exceeded:
            return ""
        moved = [f"{each.name} {each.psi:.2f}" for each in self.predictions if each.exceeded]
        return f"predictions have drifted (PSI): {', '.join(moved)}"


@dataclass(frozen=True)
class Column:
    """An input of the model. `nulls`: share of the rows."""

    name: str
    unit: str
    nulls: float
    low: float | None
    mean: float | None
    high: float | None


def distributions(run: Run, baseline: Sequence[Run]) -> tuple[Distribution, ...]:
    """By label, the one with most rows first; `baseline`: runs that it is drawn against."""
    now = _profile(run)
    if now is None:
        return ()
    kind = (now.get("task"), now.get("scale"))
    known = [each for each in map(_profile, baseline) if each]
    known = [each for each in known if (each.get("task"), each.get("scale")) == kind]
    found, before_by_label = [], _histograms(known)
    for label, (rows, bins) in _histograms([now]).items():
        rows_then, bins_then = before_by_label.get(label, (0, {}))
        whole, whole_then = now["rows"], sum(each["rows"] for each in known)
        heights, before, ticks = _drawn(bins, bins_then, kind[1] == "probability")
        found.append(
            Distribution(
                label=label,
                rows=rows,
                share=rows / whole if whole else 0.0,
                share_before=rows_then / whole_then if whole_then else None,
                heights=heights,
                before=before if bins_then else None,
                ticks=ticks,
            )
        )
    found.sort(key=lambda each: -each.rows)
    return tuple(found[:_MOST_LABELS])


def drift_of(run: Run) -> Drift | None:
    """None where the run was compared with nothing."""
    drift = run.receipt.get("drift")
    if not isinstance(drift, dict):
        return None
    baseline, exceeded = drift.get("baseline"), drift.get("exceeded")
    runs = (
        [each for each in baseline if isinstance(each, dict)] if isinstance(baseline, list) else []
    )
    names = tuple(str(each) for each in exceeded) if isinstance(exceeded, list) else ()
    return Drift(
        tuple(str(each.get("run_id")) for each in runs),
        _shifts(drift.get("predictions"), names),
        _shifts(drift.get("inputs"), ()),
        names,
    )


def columns(run: Run) -> tuple[Column, ...]:
    """The inputs of the model."""
    profile = _profile(run)
    inputs = profile.get("inputs") if profile else None
    found = []
    for name, each in inputs.items() if isinstance(inputs, dict) else ():
        nulls = each.get("nulls") if isinstance(each, dict) else None
        if _is_count(nulls):
            low, mean, high = (_number(each.get(key)) for key in ("min", "mean", "max"))
            # Of the rows that the sample stands for, as the others.
            rows = nulls + sum(_bins(each.get("histogram")).values())
            share = nulls / rows if rows else 0.0
            found.append(Column(name, str(each.get("unit", "")), share, low, mean, high))
    return tuple(found[:_MOST_COLUMNS])


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else None


def _shifts(content: Any, exceeded: Sequence[str]) -> tuple[Shift, ...]:
    """The largest first."""
    found = []
    for name, shift in content.items() if isinstance(content, dict) else ():
        if isinstance(shift, dict):
            psi, noise = _number(shift.get("psi")), _number(shift.get("noise"))
            if psi is not None and noise is not None and 0 <= psi < _MOST_PSI:
                found.append(Shift(name, psi, noise, name in exceeded))
    found.sort(key=lambda each: (not each.exceeded, -each.psi))
    return tuple(found[:_MOST_COLUMNS])


def _profile(run: Run) -> dict[str, Any] | None:
    profile = run.receipt.get("profile")
    if isinstance(profile, dict) and _is_count(profile.get("rows")):
        return profile
    return None


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and value >= 0


def _histograms(profiles: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, Bins]]:
    """Rows and bins by label, those of several profiles added up."""
    rows: Counter[str] = Counter()
    bins: dict[str, Counter[float]] = {}
    for profile in profiles:
        labels = profile.get("labels")
        parts = dict(labels) if isinstance(labels, dict) else {}
        if "others" in profile:
            parts[_OTHERS] = profile["others"]
        for name, label in parts.items():
            if isinstance(label, dict) and _is_count(label.get("rows")):
                rows[name] += label["rows"]
                bins.setdefault(name, Counter()).update(_bins(label.get("scores")))
        if values := _bins(profile.get("values")):
            rows[_VALUES] += sum(values.values())
            bins.setdefault(_VALUES, Counter()).update(values)
    return {name: (rows[name], dict(sorted(bins[name].items()))) for name in bins}


def _bins(content: Any) -> Bins:
    if not isinstance(content, dict):
        return {}
    found = {}
    for name, rows in content.items():
        try:
            border = float(name)
        except ValueError:
            continue
        if not math.isnan(border) and _is_count(rows):
            found[border] = rows
    return dict(sorted(found.items()))


def _drawn(
    bins: Bins, before: Bins, probability: bool
) -> tuple[list[float], list[float], list[tuple[float, str]]]:
    """Heights of both, and ticks."""
    if probability:
        borders = [place / PROBABILITY_BINS for place in range(PROBABILITY_BINS)]
        ticks = [
            (PROBABILITY_BINS * part / _TICKS, f"{part / _TICKS:g}") for part in range(_TICKS + 1)
        ]
        width = 1
    else:
        borders = sorted({*bins, *before})
        width = -(-len(borders) // _MOST_BINS) or 1
        step = max(1, -(-len(borders) // _TICKS))
        ticks = [(place / width, f"{borders[place]:.3g}") for place in range(0, len(borders), step)]
    return _heights(bins, borders, width), _heights(before, borders, width), ticks


def _heights(bins: Bins, borders: Sequence[float], width: int) -> list[float]:
    total = sum(bins.values()) or 1
    counts = [0] * len(borders)
    for border, rows in bins.items():
        place = min(bisect.bisect_left(borders, border - _ROUNDING), len(borders) - 1)
        counts[place] += rows
    return [sum(counts[at : at + width]) / total for at in range(0, len(counts), width)]
