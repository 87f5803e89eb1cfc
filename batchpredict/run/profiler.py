"""Add up the profile of a run, window by window; profile.py says what it holds.

It has to cost less than a hundredth of any run, where the fastest take a few microseconds a row:
whole columns at a time, each score of every row, inputs in a sample of the rows.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchpredict.model.contracts import Prepared
from batchpredict.run.input_profile import InputProfile
from batchpredict.run.profile import (
    LOG,
    LOG_LIMIT,
    MOST_LABELS,
    PROBABILITY,
    PROBABILITY_BINS,
    Label,
    Profile,
    first_labels,
    log_keys,
    probability_keys,
)
from batchpredict.run.scorer import Scored, Scorer

Numbers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

# Of each scale, how many bins there can be, and the key of the first.
_WIDTHS = {PROBABILITY: PROBABILITY_BINS, LOG: 2 * LOG_LIMIT + 1}
_FIRSTS = {PROBABILITY: 0, LOG: -LOG_LIMIT}
# Of predictions that wait for being counted.
_MOST_ROWS = 1 << 16
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
        self._columns: dict[str, int] = {}  # places by name
        self._scale = PROBABILITY if head.score_is_probability else LOG
        self._rows = 0
        self._labels: Counter[str] = Counter()
        self._scores: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self._others = Label()
        self._values: Counter[int] = Counter()
        # What is not yet in the above.
        self._numeric = self._task in ("embedding", "regression")
        things = 1 if self._numeric else len(self._known)
        self._tally = _Tally(LOG if self._numeric else self._scale, things)
        self._inputs = InputProfile(scorer.encoder)

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
        if self._task == "embedding":
            self._tally.add(_norms(columns.column(0)))
        elif self._task == "regression":
            with np.errstate(over="ignore"):
                self._tally.add(np.asarray(columns.column(0)).astype(np.float32))
        elif self._task == "multi_label":
            self._add_texts(columns.column(0).flatten(), None)
            for place, label in enumerate(self._known):
                if (scores := self._scores_in(columns, f"score_{label}")) is not None:
                    self._tally.add(scores, place)
        else:
            scores = self._scores_in(columns, "score")
            if scored.places is None or scores is None:
                self._add_texts(columns.column(0), scores)
            else:
                self._tally.add(scores, scored.places)
        if not self._tally.keeps:
            self._settle()
        indices = scored.indices
        numbers = rows if len(rows) == len(indices) else rows[indices]
        self._inputs.add(numbers, prepared, indices)

    def _scores_in(self, columns: pa.RecordBatch, name: str) -> pa.Array | None:
        if name not in self._columns:
            self._columns[name] = columns.schema.get_field_index(self._prefix + name)
        place = self._columns[name]
        return columns.column(place) if place >= 0 else None

    def _add_texts(self, labels: pa.Array, scores: pa.Array | None) -> None:
        """Count labels whose places are not known."""
        encoded = labels.dictionary_encode("encode")
        names = tuple(map(str, encoded.dictionary.to_pylist()))
        places = np.asarray(encoded.indices).astype(np.int64)
        if scores is None:
            for name, rows in zip(names, np.bincount(places).tolist(), strict=True):
                self._labels[name] += rows
        else:
            tally = _Tally(self._scale, len(names))
            tally.add(scores, places)
            self._add_tally(tally, names)
        self._bound()

    def _settle(self) -> None:
        if self._numeric:
            for _, key, rows in self._tally.taken():
                self._values[key] += rows
        else:
            self._add_tally(self._tally, self._known)
            self._bound()

    def _add_tally(self, tally: _Tally, names: Sequence[str]) -> None:
        for place, key, rows in tally.taken():
            self._scores[names[place]][key] += rows
            # Of several labels a row the scores of all are counted, predicted or not.
            if self._task != "multi_label":
                self._labels[names[place]] += rows

    def _bound(self) -> None:
        """Keep no more labels than the profile does; a model may give any text for one."""
        if len(self._labels) <= 2 * MOST_LABELS:
            return
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
        self._settle()
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


class _Tally:
    """Values by thing and bin, where each value is of one of `things`.

    `keeps`: whether it is made for more than a window, which many things are too large for.
    """

    def __init__(self, scale: str, things: int) -> None:
        self._scale = scale
        self._width, self._first = _WIDTHS[scale], _FIRSTS[scale]
        span = things * self._width
        self.keeps = span <= _MOST_KEYS
        self._counts = np.zeros(span if self.keeps else 0, np.int64)
        self._sparse: Counter[int] = Counter()
        # Several windows one after the other: by the next one the caches have all forgotten.
        self._waiting: list[tuple[Floats | pa.Array, Numbers | int]] = []
        self._rows = 0

    def add(self, values: Floats | pa.Array, places: Numbers | int = 0) -> None:
        """`values`: float32. `places`: of their things, or of that of them all."""
        self._waiting.append((values, places))
        self._rows += len(values)
        if self._rows > _MOST_ROWS:
            self._count()

    def _count(self) -> None:
        keys_of = probability_keys if self._scale == PROBABILITY else log_keys
        for values, places in self._waiting:
            keys = keys_of(np.asarray(values))
            keys += places * self._width
            if self._first:
                keys -= self._first
            if self.keeps:
                self._counts += np.bincount(keys, minlength=len(self._counts))
            else:
                found, rows = np.unique(keys, return_counts=True)
                self._sparse.update(dict(zip(found.tolist(), rows.tolist(), strict=True)))
        self._waiting, self._rows = [], 0

    def taken(self) -> Iterator[tuple[int, int, int]]:
        """Thing, bin and rows of all values, which it forgets."""
        self._count()
        found = np.flatnonzero(self._counts)
        rows = self._counts[found].tolist()
        self._counts[found] = 0
        counted = chain(zip(found.tolist(), rows, strict=True), self._sparse.items())
        self._sparse = Counter()
        for key, count in counted:
            yield key // self._width, key % self._width + self._first, count


def _norms(vectors: pa.ListArray) -> Floats:
    """Lengths of vectors that have one width."""
    values = np.asarray(vectors.flatten()).reshape(len(vectors), -1)
    with np.errstate(over="ignore"):
        norms = [
            np.sqrt(np.square(values[start : start + _MOST_VECTORS]).sum(axis=1))
            for start in range(0, len(values), _MOST_VECTORS)
        ]
        return np.concatenate(norms) * _ABOVE_ROUNDING
