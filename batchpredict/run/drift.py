"""How far the predictions of a run have moved from those of others: population stability index.

For the shares p_i and q_i of the rows of two runs in the same bins

    PSI = sum of (p_i - q_i) * ln(p_i / q_i)

(the symmetric Kullback-Leibler divergence; as a monitor of scores: N. Siddiqi, Credit Risk
Scorecards, Wiley 2006). It is 0 for equal shares. By convention below 0.1 nothing has changed,
from 0.1 to 0.25 something, and above 0.25 a lot.

The bins of two histograms, made for being added up, are more than the usual ten. Neighbours are
joined, from the lowest on, until a bin has a tenth of the rows, the mean of both runs' shares, and
at least 5 of the smaller run; so are labels, from the rarest on, until they have 5. What is empty
in one run is counted as half a row.

Between two samples of n and m rows of one distribution PSI is not 0: in B bins it is about
(1/n + 1/m) times chi-square with B - 1 degrees of freedom (B. Yurdakul, Statistical Properties of
Population Stability Index, Western Michigan University 2018), on average (B - 1)(1/n + 1/m): 0.25
for ten bins, 72 rows each. `noise` is what chance exceeds once in 30,000 comparisons; PSI below it
says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from batchpredict.run.profile import Histogram, Label, Profile

# Rows of the one run and of the other, in the same bin.
Cells = Sequence[tuple[int, int]]

_LEAST_SHARE = 0.1
_LEAST_ROWS = 5
_EMPTY_ROWS = 0.5
# Standard deviations of a normal distribution beyond which it comes once in 30,000 times.
_BEYOND = 4.0


@dataclass(frozen=True)
class Shift:
    """PSI of one thing, and what of it may be chance."""

    psi: float
    noise: float

    def exceeds(self, most: float) -> bool:
        """Whether it moved farther, and not by chance."""
        return self.psi > max(most, self.noise)


def psi(cells: Cells) -> float:
    """Of two histograms; 0 where one of them is empty."""
    n, m = sum(a for a, _ in cells), sum(b for _, b in cells)
    if not n or not m:
        return 0.0
    shares = [(max(a, _EMPTY_ROWS) / n, max(b, _EMPTY_ROWS) / m) for a, b in cells if a or b]
    return sum((p - q) * math.log(p / q) for p, q in shares)


def noise(cells: int, n: int, m: int) -> float:
    """What PSI of so many bins hardly exceeds for n and m rows of one distribution.

    Chi-square's quantile is Wilson and Hilferty's, a bit high for a few bins.
    """
    free = cells - 1
    if free < 1 or not n or not m:
        return 0.0
    spread = 2 / (9 * free)
    return (1 / n + 1 / m) * free * (1 - spread + _BEYOND * math.sqrt(spread)) ** 3


def joined(cells: Cells, n: int, m: int, least_share: float) -> Cells:
    """Neighbours added up until each has enough rows; the last of too few go to those before.

    `n`, `m`: rows that the counts stand for, where they are estimates.
    """
    first, second = sum(a for a, _ in cells), sum(b for _, b in cells)
    if not first or not second:
        return [(first, second)]
    least = max(least_share, _LEAST_ROWS / max(1, min(n, m)))
    found: list[tuple[int, int]] = []
    begun = (0, 0)
    for a, b in cells:
        begun = (begun[0] + a, begun[1] + b)
        if (begun[0] / first + begun[1] / second) / 2 >= least:
            found.append(begun)
            begun = (0, 0)
    if begun != (0, 0):
        before = found.pop() if found else (0, 0)
        found.append((before[0] + begun[0], before[1] + begun[1]))
    return found


def compare(now: Profile, before: Profile) -> dict[str, Shift]:
    """Predictions, by what they are: "labels", "scores LABEL", or "values". Symmetric.

    For a multi-label model each label is a thing of its own: "label LABEL". The profiles must be
    of one task and scale.
    """
    found = {}
    if now.task == "multi_label":
        for name in _names(now, before):
            a, b = _rows(now.labels, name), _rows(before.labels, name)
            cells = [(a, b), (now.rows - a, before.rows - b)]
            found[f"label {name}"] = _shift(cells, now.rows, before.rows, 0.0)
    elif now.labels or before.labels:
        found["labels"] = _shift(_labels(now, before), now.rows, before.rows, 0.0)
    for name in _names(now, before):
        scores = [profile.labels.get(name, Label()).scores for profile in (now, before)]
        if scores[0] and scores[1]:
            found[f"scores {name}"] = _of_histograms(*scores)
    if now.values or before.values:
        found["values"] = _of_histograms(now.values, before.values)
    return found


def compare_inputs(now: Profile, before: Profile) -> dict[str, Shift]:
    """Columns that both have; rows without a value are a bin."""
    found = {}
    for name, column in now.inputs.items():
        if name not in before.inputs:
            continue
        other = before.inputs[name]
        counts = _cells(column.histogram, other.histogram)
        rows = (now.input_evidence, before.input_evidence)
        cells = [*joined(counts, *rows, _LEAST_SHARE), (column.nulls, other.nulls)]
        cells = [cell for cell in cells if cell != (0, 0)]
        found[name] = Shift(psi(cells), noise(len(cells), *rows))
    return found


def _of_histograms(now: Histogram, before: Histogram) -> Shift:
    n, m = sum(now.values()), sum(before.values())
    return _shift(_cells(now, before), n, m, _LEAST_SHARE)


def _shift(cells: Cells, n: int, m: int, least_share: float) -> Shift:
    cells = joined(cells, n, m, least_share)
    return Shift(psi(cells), noise(len(cells), n, m))


def _cells(one: Histogram, other: Histogram) -> Cells:
    return [(one.get(key, 0), other.get(key, 0)) for key in sorted({*one, *other})]


def _names(now: Profile, before: Profile) -> list[str]:
    return sorted({*now.labels, *before.labels})


def _rows(labels: Mapping[str, Label], name: str) -> int:
    return labels[name].rows if name in labels else 0


def _labels(now: Profile, before: Profile) -> Cells:
    """Rows by label, the rarest of both runs together first.

    Not by their shares in each: of labels that are as frequent, those that chance left out of the
    smaller run would come first, be joined with each other, and look like drift.
    """
    cells = [(_rows(now.labels, n), _rows(before.labels, n)) for n in _names(now, before)]
    cells.append((now.others.rows, before.others.rows))
    return sorted(cells, key=sum)
