"""Add up the profile of a run, window by window; profile.py says what it holds.

It has to cost less than a hundredth of any run, where the fastest take a few microseconds a row:
whole columns at a time, each score of every row, inputs in a sample of the rows.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchpredict.model.contracts import Prepared
from batchpredict.run.profile import (
    BLOCK_ROWS,
    LOG,
    LOG_LIMIT,
    MOST_COLUMNS,
    MOST_LABELS,
    PROBABILITY,
    PROBABILITY_BINS,
    SAMPLE,
    SUM_UNIT,
    Column,
    Label,
    Profile,
    first_labels,
    log_keys,
    parts_of_sum,
    probability_keys,
)
from batchpredict.run.scorer import Scored, Scorer

Numbers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

# Of each scale, how many bins there can be, and the key of the first.
_LOG_WIDTH = 2048
_WIDTHS = {PROBABILITY: PROBABILITY_BINS, LOG: _LOG_WIDTH}
_FIRSTS = {PROBABILITY: 0, LOG: -LOG_LIMIT}
# Multiples of the golden ratio's fraction spread evenly over every period, so that none in the
# input meets the sample's.
_GOLDEN, _HASHES = np.uint64(0x9E3779B97F4A7C15), 1 << 64
# Of inputs that are looked at together.
_BLOCK_VALUES = 1 << 16
# Of predictions that are: arrays of more come from the system, page by page, each time.
_MOST_ROWS = 1 << 14
# Of keys that are counted in an array of their own.
_MOST_KEYS = 1 << 17
_MOST_VECTORS = 1024
# Vectors of length 1, which most models give, come out a bit above or below it, and a bin begins
# there.
_ABOVE_ROUNDING = np.float32(1 + 1e-4)


class Profiler:
    """Counts what a scorer gives. To be called by one thread at a time."""

    def __init__(self, scorer: Scorer) -> None:
        head = scorer.head
        self._task = head.task
        self._prefix = head.options.prefix
        self._known = head.labels
        self._scale = PROBABILITY if head.score_is_probability else LOG
        self._rows = 0
        self._labels: Counter[str] = Counter()
        self._scores: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self._others = Label()
        self._values: Counter[int] = Counter()
        self._inputs = _Inputs(scorer)

    @property
    def nothing(self) -> Profile:
        """Of no rows."""
        return Profile(self._task, self._scale)

    def add(self, rows: Numbers, prepared: Prepared, scored: Scored) -> None:
        """Count a window. `rows`: numbers in the input of all its rows, ascending."""
        columns = scored.added
        self._rows += columns.num_rows
        if not columns.num_rows:
            return
        prediction = columns.column(0)
        if self._task == "embedding":
            self._values.update(_tally(LOG, _norms(prediction)))
        elif self._task == "regression":
            with np.errstate(over="ignore"):
                self._values.update(_tally(LOG, np.asarray(prediction).astype(np.float32)))
        elif self._task == "multi_label":
            self._add_labels(prediction.flatten(), None, None)
            for label in self._known:
                if (scores := self._scores_in(columns, f"score_{label}")) is not None:
                    self._scores[label].update(_tally(self._scale, scores))
        else:
            self._add_labels(prediction, scored.places, self._scores_in(columns, "score"))
        indices = scored.indices
        numbers = rows if len(rows) == len(indices) else rows[indices]
        self._inputs.add(numbers, prepared, indices)

    def _scores_in(self, columns: pa.RecordBatch, name: str) -> Floats | None:
        place = columns.schema.get_field_index(self._prefix + name)
        return np.asarray(columns.column(place)) if place >= 0 else None

    def _add_labels(self, labels: pa.Array, places: Numbers | None, scores: Floats | None) -> None:
        """`places`: of the labels among those known, whose texts need not be looked at then."""
        names = self._known
        if places is None:
            encoded = labels.dictionary_encode("encode")
            names = tuple(map(str, encoded.dictionary.to_pylist()))
            places = np.asarray(encoded.indices).astype(np.int64)
        if scores is None:
            for place, count in _counted(len(names), [places]).items():
                self._labels[names[place]] += count
        else:
            width, first = _WIDTHS[self._scale], _FIRSTS[self._scale]
            for key, count in _tally(self._scale, scores, places, len(names)).items():
                name = names[(key - first) // width]
                self._labels[name] += count
                self._scores[name][(key - first) % width + first] += count
        if len(self._labels) > 2 * MOST_LABELS:
            self._bound()

    def _bound(self) -> None:
        """Keep no more labels than the profile does; a model may give any text for one."""
        labels, self._others = first_labels(self._all_labels(), self._others)
        self._labels = Counter({name: label.rows for name, label in labels.items()})
        self._scores = defaultdict(Counter)
        for name, label in labels.items():
            self._scores[name].update(label.scores)

    def _all_labels(self) -> dict[str, Label]:
        names = {*self._labels, *self._scores}
        return {name: Label(self._labels[name], dict(self._scores[name])) for name in names}

    def profile(self) -> Profile:
        """Of all rows so far."""
        labels, others = first_labels(self._all_labels(), self._others)
        return Profile(
            self._task,
            self._scale,
            self._rows,
            self._inputs.sampled,
            self._inputs.squares,
            labels,
            others,
            dict(self._values),
            self._inputs.columns(),
        )


class _Inputs:
    """What the model is fed with, in a sample of the rows.

    Counts by column and bin, and sums of the bits below a bin's border, which together give the
    exact sum of the values, in whatever order they come.
    """

    def __init__(self, scorer: Scorer) -> None:
        self._encoder = scorer.encoder
        self._units: dict[str, str] = {}
        self._block = np.empty((0, 0), np.float32)
        self._filled, self._weight = 0, 1
        self._counts = self._lows = np.zeros((0, _LOG_WIDTH), np.int64)
        self._low = self._high = np.zeros(0, np.float32)
        self.sampled = self.squares = 0

    def add(self, numbers: Numbers, prepared: Prepared, indices: Numbers) -> None:
        """`numbers`: of the rows at `indices`, in the input."""
        if not self._units:
            self._begin(self._encoder.measured(prepared, indices[:0], MOST_COLUMNS).units)
        first, last = int(numbers[0]), int(numbers[-1])
        for begin, end, weight in SAMPLE:
            if first > end or last <= begin:
                continue
            low, high = max(first, begin + 1) - 1, min(last, end) - 1
            blocks = np.arange(low // BLOCK_ROWS, high // BLOCK_ROWS + 1)
            if weight > 1:
                hashes = blocks.view(np.uint64) * _GOLDEN
                blocks = blocks[hashes < np.uint64(_HASHES // weight)]
            self._take(prepared, indices[_places(numbers, blocks)], weight)

    def _take(self, prepared: Prepared, rows: Numbers, weight: int) -> None:
        self.sampled += len(rows)
        self.squares += len(rows) * weight**2
        while len(rows):
            rows = self._fill(prepared, rows, weight)

    def _begin(self, units: dict[str, str]) -> None:
        self._units = units
        count = len(units)
        self._block = np.empty((count, max(1, _BLOCK_VALUES // count)), np.float32)
        self._counts = np.zeros((count, _LOG_WIDTH), np.int64)
        self._lows = np.zeros((count, _LOG_WIDTH), np.int64)
        self._low = self._high = np.full(count, np.nan, np.float32)

    def _fill(self, prepared: Prepared, rows: Numbers, weight: int) -> Numbers:
        """Put rows into the block, as many as it takes; the others."""
        if weight != self._weight or self._filled == self._block.shape[1]:
            self._count()
            self._weight = weight
        taken = rows[: self._block.shape[1] - self._filled]
        end = self._filled + len(taken)
        measured = self._encoder.measured(prepared, taken, MOST_COLUMNS)
        self._block[:, self._filled : end] = measured.values
        self._filled = end
        return rows[len(taken) :]

    def _count(self) -> None:
        """Empty the block."""
        values, self._filled = self._block[:, : self._filled], 0
        if not values.size:
            return
        # Column by column: small arrays are in the cache, and are no new pages from the system.
        for place, bits in enumerate(values.view(np.uint32)):
            keys = (bits >> 21).astype(np.int64)
            counts = np.bincount(keys, minlength=_LOG_WIDTH)
            self._counts[place] += self._weight * counts
            # Sums of whole numbers below 2**53: exact in float64.
            lows = np.bincount(keys, bits & 0x1FFFFF, _LOG_WIDTH)
            self._lows[place] += self._weight * lows.astype(np.int64)
        if not (finite := np.isfinite(values)).all():
            values = np.where(finite, values, np.float32(np.nan))
        self._low = np.fmin(self._low, np.fmin.reduce(values, axis=1))
        self._high = np.fmax(self._high, np.fmax.reduce(values, axis=1))

    def columns(self) -> dict[str, Column]:
        """By name, in the encoder's order."""
        self._count()
        counts, lows, half = self._counts.copy(), self._lows.copy(), _LOG_WIDTH // 2
        # What is next to 0 is one bin, whatever its sign.
        counts[:, 0] += counts[:, half]
        lows[:, 0] -= lows[:, half]
        counts[:, half] = 0
        places, at = np.nonzero(counts)
        keys = np.where(at < half, at, half - at)
        bins = list(
            zip(
                keys.tolist(),
                counts[places, at].tolist(),
                parts_of_sum(keys, counts[places, at], lows[places, at]),
                strict=True,
            )
        )
        ends = np.searchsorted(places, np.arange(len(self._units)), "right").tolist()
        found, begin = {}, 0
        for place, (name, unit) in enumerate(self._units.items()):
            found[name] = self._column(place, unit, bins[begin : ends[place]])
            begin = ends[place]
        return found

    def _column(self, place: int, unit: str, bins: Sequence[tuple[int, int, int]]) -> Column:
        """`bins`: key, rows, and part of the sum."""
        low, high = float(self._low[place]), float(self._high[place])
        return Column(
            unit,
            sum(rows for key, rows, _ in bins if abs(key) > LOG_LIMIT),
            None if np.isnan(low) else low,
            None if np.isnan(high) else high,
            Fraction(sum(part for key, _, part in bins if abs(key) < LOG_LIMIT), SUM_UNIT),
            {key: rows for key, rows, _ in bins if abs(key) <= LOG_LIMIT},
        )


def _places(numbers: Numbers, blocks: Numbers) -> Numbers:
    """Of the rows of these blocks among those with these numbers."""
    wanted = (blocks[:, None] * BLOCK_ROWS + np.arange(1, BLOCK_ROWS + 1)).ravel()
    places = np.minimum(np.searchsorted(numbers, wanted), len(numbers) - 1)
    return np.asarray(places[numbers[places] == wanted])


def _tally(
    scale: str, values: Floats, places: Numbers | None = None, count: int = 1
) -> dict[int, int]:
    """Values by bin; of several things of which each is at one of `count` places, the bins of the
    first place, then of the second, …
    """
    width, first = _WIDTHS[scale], _FIRSTS[scale]
    keys_of = probability_keys if scale == PROBABILITY else log_keys

    def parts() -> Iterator[Numbers]:
        for start in range(0, len(values), _MOST_ROWS):
            keys = keys_of(values[start : start + _MOST_ROWS])
            if first:
                keys -= first
            if places is not None and count > 1:
                keys += places[start : start + _MOST_ROWS] * width
            yield keys

    return {key + first: rows for key, rows in _counted(width * count, parts()).items()}


def _counted(span: int, parts: Iterable[Numbers]) -> dict[int, int]:
    """How often each number from 0 to `span` is there."""
    if span <= _MOST_KEYS:
        counts = np.zeros(span, np.int64)
        for part in parts:
            counts += np.bincount(part, minlength=span)
        present = np.flatnonzero(counts)
        counts = counts[present]
    else:
        present, counts = np.unique(np.concatenate(list(parts)), return_counts=True)
    return dict(zip(present.tolist(), counts.tolist(), strict=True))


def _norms(vectors: pa.ListArray) -> Floats:
    """Lengths of vectors that have one width."""
    values = np.asarray(vectors.flatten()).reshape(len(vectors), -1)
    with np.errstate(over="ignore"):
        norms = [
            np.sqrt(np.square(values[start : start + _MOST_VECTORS]).sum(axis=1))
            for start in range(0, len(values), _MOST_VECTORS)
        ]
        return np.concatenate(norms) * _ABOVE_ROUNDING
