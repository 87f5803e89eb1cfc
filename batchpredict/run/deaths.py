"""Which rows were in flight when earlier runs of a task died."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from batchpredict.run.inflight import RANGES, Note, Rows
from batchpredict.run.lone import Work

# Rows in flight at so many deaths are suspect; a row in flight at so many, and alone at two, is
# named. One is not enough: another thread of the parent may have had the row that killed.
_SUSPECT, _NAMED = 2, 3


def death_of(notes: Iterable[Note]) -> list[Any]:
    """A death as it stands in the journal (JSON)."""
    return [[note.stage, note.rows.tolist()] for note in notes]


class Deaths:
    """What a journal tells of the deaths of a task. Wherever rows are asked about, there is one.

    `recorded`: as `death_of` makes them.
    """

    def __init__(self, recorded: Iterable[Sequence[Any]] = ()) -> None:
        self._deaths = [
            [Note(stage, np.array(rows, np.int64)) for stage, rows in death] for death in recorded
        ]
        inferred = [_union(death, "infer") for death in self._deaths]
        rows, times = np.unique(_joined(inferred), return_counts=True)
        self._inferred_twice = rows[times >= _SUSPECT]

    def suspects(self, work: Work, rows: Rows) -> bool:
        """Whether that was done with one of them at two deaths. Rows to be prepared: ascending."""
        if work == "infer":
            twice = self._inferred_twice
            return len(twice) > 0 and bool(np.isin(rows, twice).any())
        return sum(_in_flight(death, work, rows) for death in self._deaths) >= _SUSPECT

    def died_together(self, work: Work, rows: Rows) -> bool:
        """Whether a child died with its parent when it had several of them, and not more others."""
        return any(
            note.stage == f"lone_{work}"
            and 1 < _extent(note.stage, note.rows) <= _extent(note.stage, rows)
            and _has_one_of(note, rows)
            for death in self._deaths
            for note in death
        )

    @property
    def of_starting(self) -> bool:
        """Whether it is the start of a child that ends runs, as it may where memory is short."""
        starts = sum(any(note.stage == "start" for note in death) for death in self._deaths)
        return starts >= _SUSPECT

    def named(self) -> dict[int, int]:
        """Rows that were by themselves at two deaths and in flight at three or more; at how many.

        Nothing tells such deaths from kills from outside.
        """
        alone = Counter(
            int(note.rows[0])
            for death in self._deaths
            for note in death
            if note.stage != "start" and _extent(note.stage, note.rows) == 1
        )
        twice = sorted(row for row, count in alone.items() if count >= _SUSPECT)
        times = {row: self._times(np.array([row])) for row in twice}
        return {row: count for row, count in times.items() if count >= _NAMED}

    def _times(self, rows: Rows) -> int:
        works: tuple[Work, ...] = ("infer", "prepare")
        return sum(any(_in_flight(death, work, rows) for work in works) for death in self._deaths)


def _joined(rows: Sequence[Rows]) -> Rows:
    return np.concatenate([np.empty(0, np.int64), *rows])


def _union(death: Sequence[Note], work: Work) -> Rows:
    """The rows that this was done with, here or in a child, none twice."""
    return np.unique(_joined([note.rows for note in death if _is_of(note, work)]))


def _is_of(note: Note, work: Work) -> bool:
    return note.stage in (work, f"lone_{work}")


def _in_flight(death: Sequence[Note], work: Work, rows: Rows) -> bool:
    return any(_is_of(note, work) and _has_one_of(note, rows) for note in death)


def _has_one_of(note: Note, rows: Rows) -> bool:
    if note.stage in RANGES:
        return bool(note.rows[0] <= rows[-1] and rows[0] <= note.rows[-1])
    return bool(np.isin(note.rows, rows).any())


def _extent(stage: str, rows: Rows) -> int:
    """How many rows; of a range, those between count too."""
    return int(rows[-1] - rows[0]) + 1 if stage in RANGES else len(rows)
