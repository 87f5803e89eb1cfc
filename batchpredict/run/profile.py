"""What a run's predictions and inputs look like: counts that add up, for any division of the rows.

The receipt has it as `profile`:

- `task`, and `scale`, the bins of scores: `probability`, or `log` where scores are decision values.
- `rows`: the rows with a prediction, of which all that follows speaks; a rejected row is in
  `rejects`.
- `labels`: for each label the `rows` that it was predicted for, and a histogram of `scores`: of
  these rows' `score`; for a multi-label model with `--scores=all`, of the label's score in all
  rows. Of more than MOST_LABELS labels the last ones in the order of their texts are counted
  together in `others`.
- `values`: a histogram of the predictions of a regression, or of the norms of vectors.
- `inputs`: for each column that the model reads (the first MOST_COLUMNS), or for `tokens`, `nulls`,
  `min`, `max`, `mean`, the exact `sum` and a histogram: of numbers as float32, of texts' lengths
  (`unit`: `characters`). They are counted in `sampled` rows,
  see SAMPLE, each of which stands for 1, 8 or 64; `squares` is the sum of the squares of these.
  Which rows follows from their numbers alone.

A histogram names each bin by that of its borders which is nearer to 0, and leaves empty ones out.
`probability`: 20 bins over [0, 1]. `log`: four bins between a power of two and the next (1, 1.25,
1.5, 1.75, 2, 2.5, …), the same for negative numbers, one for 0, `inf` and `-inf`.

No text of an input is in a profile.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

PROBABILITY, LOG = "probability", "log"
PROBABILITY_BINS = 20
_ONE_BITS, _BELOW_ONE = 0x3F800000, np.nextafter(np.float32(1), np.float32(0))
# Keys of `log` lie between -LOG_LIMIT and LOG_LIMIT, which stands for infinity.
LOG_LIMIT = 1020
MOST_LABELS = 100
MOST_COLUMNS = 100
# Inputs are looked at in one block of so many rows in each group of 1, 8 or 64 that follow each
# other, by the numbers of the rows: above the first, up to the second. No group lies across these
# borders.
BLOCK_ROWS = 32
SAMPLE = ((0, 2048, 1), (2048, 16384, 8), (16384, sys.maxsize, 64))
_MOST_CHARACTERS = 100
# In a profile that is read: no more rows than fit a machine word, no longer sum than float32s have.
_MOST_ROWS = (1 << 63) - 1
_SUM = re.compile(r"(-?[0-9]{1,120})(?:/([0-9]{1,120}))?")
_UNIT_BITS = 149
SUM_UNIT = 1 << _UNIT_BITS  # a float32 is a multiple of its reciprocal
# Bits of a float32's mantissa that are below its bin's border.
_LOW_BITS = 21

_LOG_BORDERS: list[float] = (
    (np.arange(LOG_LIMIT + 1, dtype=np.uint32) << _LOW_BITS).view(np.float32).tolist()
)

Counts = npt.NDArray[np.int64]
# Rows by bin; keys ascend with the values: 0 to 19 of a probability, see `log_keys`.
Histogram = Mapping[int, int]


def probability_keys(scores: npt.NDArray[np.float32]) -> Counts:
    """The bin of each score, of which there is one at least; of one beyond [0, 1] the nearest."""
    # Bits of what is below 0 are above those of 1.
    if scores.view(np.uint32).max() >= _ONE_BITS:
        scores = np.clip(scores, 0, _BELOW_ONE)
    keys = np.empty(len(scores), np.int64)
    np.multiply(scores, np.float32(PROBABILITY_BINS), out=keys, casting="unsafe")
    return keys


def log_keys(values: npt.NDArray[np.float32]) -> Counts:
    """The bin of each value, without NaN: the leading bits of its magnitude, with its sign."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    keys = ((bits & 0x7FFFFFFF) >> _LOW_BITS).astype(np.int64)
    return np.where(bits >> 31, -keys, keys)


def border(scale: str, key: int) -> float:
    """Of a bin, that which is nearer to 0."""
    if scale == PROBABILITY:
        return key / PROBABILITY_BINS
    return _LOG_BORDERS[key] if key >= 0 else -_LOG_BORDERS[-key]


@lru_cache(maxsize=4096)
def _name(scale: str, key: int) -> str:
    return _shown(border(scale, key))


@lru_cache(maxsize=4096)
def _key(scale: str, text: str) -> int:
    """Raises ValueError where no bin has that name."""
    if scale == PROBABILITY:
        key = round(float(text) * PROBABILITY_BINS)
        if not 0 <= key < PROBABILITY_BINS:
            raise ValueError(f"no bin {text!r}")
        return key
    (bits,) = struct.unpack("<I", struct.pack("<f", float(text)))
    size = int(bits & 0x7FFFFFFF) >> _LOW_BITS
    if size > LOG_LIMIT:
        raise ValueError(f"no bin {text!r}")
    return -size if bits >> 31 else size


def _shown(value: float) -> str:
    return f"{value:.9g}"  # reads back as the same float32


@dataclass(frozen=True)
class Label:
    """`scores`: empty where there are none."""

    rows: int = 0
    scores: Histogram = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """One input. `low`, `high`: None where no value is finite; `total`: of the finite ones, in
    units of 1 / SUM_UNIT.
    """

    unit: str
    nulls: int
    low: float | None
    high: float | None
    total: int
    histogram: Histogram

    @property
    def mean(self) -> float | None:
        """Of the finite values."""
        count = sum(rows for key, rows in self.histogram.items() if abs(key) < LOG_LIMIT)
        return self.total / (SUM_UNIT * count) if count else None


@dataclass(frozen=True)
class Profile:
    """See the module's text. `inputs` keeps the model's order."""

    task: str
    scale: str
    rows: int = 0
    sampled: int = 0
    squares: int = 0
    labels: Mapping[str, Label] = field(default_factory=dict)
    others: Label = field(default_factory=Label)
    values: Histogram = field(default_factory=dict)
    inputs: Mapping[str, Column] = field(default_factory=dict)

    @property
    def input_evidence(self) -> int:
        """How many rows, each of which counts once, would tell as much of the inputs."""
        column = next(iter(self.inputs.values()), None)
        if column is None or not self.squares:
            return 0
        return (sum(column.histogram.values()) + column.nulls) ** 2 // self.squares

    def to_json(self) -> dict[str, Any]:
        """What `read_profile` reads."""
        content: dict[str, Any] = {
            "task": self.task,
            "scale": self.scale,
            "rows": self.rows,
            "labels": {name: self._label(label) for name, label in sorted(self.labels.items())},
            "others": self._label(self.others),
            "values": _histogram(LOG, self.values),
            "sampled": self.sampled,
            "squares": self.squares,
            "inputs": {name: _column(column) for name, column in self.inputs.items()},
        }
        if not self.others.rows:
            del content["others"]
        if not self.values:
            del content["values"]
        return content

    def _label(self, label: Label) -> dict[str, Any]:
        return {"rows": label.rows, "scores": _histogram(self.scale, label.scores)}


def first_labels(labels: Mapping[str, Label], others: Label) -> tuple[dict[str, Label], Label]:
    """The first MOST_LABELS by their texts, cut to a bearable length; the rest is with `others`.

    A label that is among the first of all is among those of any part of the rows, so that its
    count is exact however the rows were divided.
    """
    cut: dict[str, Label] = {}
    for name, label in labels.items():
        short = name[:_MOST_CHARACTERS]
        cut[short] = _both(cut[short], label) if short in cut else label
    names = sorted(cut)
    for name in names[MOST_LABELS:]:
        others = _both(others, cut[name])
    return {name: cut[name] for name in names[:MOST_LABELS]}, others


def merged(one: Profile, other: Profile) -> Profile:
    """Of the rows of both. Raises ValueError where they are of different tasks."""
    if (one.task, one.scale) != (other.task, other.scale):
        raise ValueError(f"{one.task} ({one.scale}) is not {other.task} ({other.scale})")
    labels, others = first_labels(
        _united(one.labels, other.labels, _both), _both(one.others, other.others)
    )
    return Profile(
        one.task,
        one.scale,
        one.rows + other.rows,
        one.sampled + other.sampled,
        one.squares + other.squares,
        labels,
        others,
        _sum(one.values, other.values),
        _united(one.inputs, other.inputs, _both_columns),
    )


def _united(
    one: Mapping[str, Any], other: Mapping[str, Any], both: Callable[[Any, Any], Any]
) -> dict[str, Any]:
    united = dict(one)
    for name, more in other.items():
        united[name] = both(united[name], more) if name in united else more
    return united


def _sum(one: Histogram, other: Histogram) -> Histogram:
    return {key: one.get(key, 0) + other.get(key, 0) for key in sorted({*one, *other})}


def _both(one: Label, other: Label) -> Label:
    return Label(one.rows + other.rows, _sum(one.scores, other.scores))


def _both_columns(one: Column, other: Column) -> Column:
    return Column(
        one.unit,
        one.nulls + other.nulls,
        min((low for low in (one.low, other.low) if low is not None), default=None),
        max((high for high in (one.high, other.high) if high is not None), default=None),
        one.total + other.total,
        _sum(one.histogram, other.histogram),
    )


def parts_of_sum(keys: Counts, counts: Counts, lows: Counts) -> list[int]:
    """What bins of `log` add to the sum of float32 values, exactly, in units of 1 / SUM_UNIT; of
    those without a finite value it means nothing.

    `counts`: values in each bin. `lows`: sums of their bits below the bin's border, with their
    sign in the bin around 0.
    """
    sizes = np.abs(keys)
    leading = (sizes & 3) + np.where(sizes < 4, 0, 4)
    whole = (counts * leading << _LOW_BITS) + lows
    shifts = np.maximum((sizes >> 2) - 1, 0)
    parts = zip(np.where(keys < 0, -whole, whole).tolist(), shifts.tolist(), strict=True)
    return [part << shift for part, shift in parts]


def _histogram(scale: str, histogram: Histogram) -> dict[str, int]:
    return {_name(scale, key): rows for key, rows in sorted(histogram.items())}


def _column(column: Column) -> dict[str, Any]:
    def number(value: float | None) -> float | None:
        return None if value is None else float(_shown(value))

    return {
        "unit": column.unit,
        "nulls": column.nulls,
        "min": number(column.low),
        "max": number(column.high),
        "mean": number(column.mean),
        "sum": _sum_text(column.total),
        "histogram": _histogram(LOG, column.histogram),
    }


def read_profile(content: Any) -> Profile:
    """What `to_json` gave. Raises ValueError, also for what has never been a profile."""
    try:
        scale = str(content["scale"])
        if scale not in (PROBABILITY, LOG):
            raise ValueError(f"scale {scale!r}")
        labels, others = content["labels"].items(), content.get("others")
        return Profile(
            str(content["task"]),
            scale,
            _count(content["rows"]),
            _count(content["sampled"]),
            _count(content["squares"]),
            {name: _read_label(scale, label) for name, label in islice(labels, MOST_LABELS)},
            Label() if others is None else _read_label(scale, others),
            _read_histogram(LOG, content.get("values", {})),
            {name: _read_column(part) for name, part in content["inputs"].items()},
        )
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"not a profile: {error}") from error


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _MOST_ROWS:
        raise ValueError(f"{str(value)[:40]!r} is no count")
    return value


def _read_histogram(scale: str, content: Mapping[str, Any]) -> Histogram:
    return {_key(scale, name): _count(rows) for name, rows in content.items()}


def _read_label(scale: str, content: Mapping[str, Any]) -> Label:
    return Label(_count(content["rows"]), _read_histogram(scale, content["scores"]))


def _read_column(content: Mapping[str, Any]) -> Column:
    low, high = content["min"], content["max"]
    return Column(
        str(content["unit"]),
        _count(content["nulls"]),
        None if low is None else float(low),
        None if high is None else float(high),
        _read_sum(content["sum"]),
        _read_histogram(LOG, content["histogram"]),
    )


def _sum_text(total: int) -> str:
    """As a whole number, or as a fraction that cannot be reduced."""
    zeros = min((total & -total).bit_length() - 1, _UNIT_BITS) if total else _UNIT_BITS
    whole = str(total >> zeros)
    return whole if zeros == _UNIT_BITS else f"{whole}/{1 << (_UNIT_BITS - zeros)}"


def _read_sum(text: Any) -> int:
    found = _SUM.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(f"{str(text)[:40]!r} is no sum")
    total, rest = divmod(int(found[1]) * SUM_UNIT, int(found[2] or 1))
    if rest:
        raise ValueError(f"{text[:40]!r} is no sum of float32 numbers")
    return total
