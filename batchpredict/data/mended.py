"""Reads rejected rows, mended or not, as if they were the rows of their input."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchpredict.data.records import (
    BLOCK_BYTES,
    WHOLE,
    Reader,
    Records,
    Reject,
    Selection,
    Shard,
)
from batchpredict.data.rejected import RejectedRow
from batchpredict.data.spelling import NewColumn, Spelled, Spelling, Unmendable
from batchpredict.errors import InputInvalid

# Rows that are read together; JSON's columns on offer are those of as many.
_MOST_ROWS = 1000


@dataclass(frozen=True)
class _Piece:
    """Rows to be read together, and their records as they stand in a file."""

    rows: Sequence[RejectedRow]
    records: Sequence[Spelled]

    def halves(self) -> tuple[_Piece, _Piece]:
        half = len(self.rows) // 2
        first = _Piece(self.rows[:half], self.records[:half])
        return first, _Piece(self.rows[half:], self.records[half:])


class MendedReader:
    """Obeys Reader: rows and lines have the numbers they have in the input.

    A record that is not exactly one row, or would swallow the ones after it, is found by halving
    and costs no other row. `origin`: an opened file with the input's columns. `recall`: the whole
    of a record that was cut, or None; asked in the rows' order.
    """

    def __init__(
        self,
        origin: Reader,
        spelling: Spelling,
        rows: Iterable[RejectedRow],
        recall: Callable[[RejectedRow], str | None],
    ) -> None:
        self.schema = origin.schema
        self.complete = origin.complete
        self.notes: Sequence[str] = ()
        self.dialect = origin.dialect
        self.kept_aside: set[int] = set()
        self._origin = origin
        self._spelling = spelling
        self._rows = rows
        self._recall = recall
        self._waiting: deque[RejectedRow] = deque()
        self._aside: deque[Reject] = deque()
        self._ready: list[Reject] = []

    def records(self, selection: Selection, shard: Shard = WHOLE) -> Iterator[Records]:  # noqa: ARG002
        """See Reader.records; without the rows that go to `settled` directly."""
        rows: list[RejectedRow] = []
        records: list[Spelled] = []
        size = 0
        for row in self._rows:
            try:
                record = self._spelling.spelled(self._whole(row))
            except Unmendable as error:
                self._aside.append(row.rejected(error.code, error.message))
                continue
            self._waiting.append(row)
            rows.append(row)
            records.append(record)
            size += len(record.data)
            if size >= BLOCK_BYTES or len(rows) == _MOST_ROWS:
                yield from self._read(_Piece(rows, records), selection)
                rows, records, size = [], [], 0
        if rows:
            yield from self._read(_Piece(rows, records), selection)

    def _whole(self, row: RejectedRow) -> RejectedRow:
        """With all of its record. Raises Unmendable where there is no more than its beginning."""
        if row.record is not None and not row.is_cut:
            return row
        whole = self._recall(row) if row.is_cut else None
        if whole is None:
            self.kept_aside.add(row.row)
            raise Unmendable(row.code, row.message)
        return replace(row, record=whole)

    def _read(self, piece: _Piece, selection: Selection) -> Iterator[Records]:
        try:
            found = self._attempt(piece, selection)
        except NewColumn:
            raise
        except InputInvalid as error:
            found, why = None, Unmendable("malformed_row", str(error))
        except Unmendable as error:
            found, why = None, error
        else:
            why = Unmendable("malformed_row", "the record is not one row; mend it as one")
        if found is not None:
            yield from found
        elif len(piece.rows) > 1:
            for half in piece.halves():
                yield from self._read(half, selection)
        else:
            (row,) = piece.rows
            self._aside.append(row.rejected(why.code, why.message))

    def _attempt(self, piece: _Piece, selection: Selection) -> list[Records] | None:
        """The rows of a piece; None where a record is not read as the row it is."""
        numbers = [row.row for row in piece.rows]
        reader = self._spelling.reader(numbers, [record.data for record in piece.records])
        blocks = list(reader.records(selection))
        if sum(len(block) + len(block.rejects) for block in blocks) != len(piece.rows):
            return None
        if len(piece.rows) > 1 and not self._are_in_place(blocks, piece):
            return None
        return [_renumbered(block, piece.rows) for block in blocks]

    def _are_in_place(self, blocks: Sequence[Records], piece: _Piece) -> bool:
        """Whether each row begins on the line where its record begins."""
        if self._spelling.first_line is None:
            return True
        feeds = np.array([record.lines + 1 for record in piece.records], np.int64)
        expected = self._spelling.first_line + np.cumsum(feeds) - feeds
        found = np.zeros(len(expected), np.int64)
        for block in blocks:
            found[block.rows - 1] = 0 if block.lines is None else block.lines
            for reject in block.rejects:
                found[reject.row - 1] = reject.line or 0
        return bool(np.array_equal(found, expected))

    def original(self, raw: pa.Array, index: int) -> bytes | Mapping[str, Any]:
        """See Reader.original."""
        return self._origin.original(raw, index)

    def settled(self, rejects: Iterable[Reject], last: int | None) -> list[Reject]:
        """What is to be written down of rows up to number `last` (None: of all that are left).

        `rejects`: those of the rows of `records`. Each gets the record it came with.
        """
        came: dict[int, RejectedRow] = {}
        while self._waiting and (last is None or self._waiting[0].row <= last):
            row = self._waiting.popleft()
            came[row.row] = row
        again = [_again(came[reject.row], reject) for reject in rejects]
        while self._aside:
            self._ready.append(self._aside.popleft())
        again += [reject for reject in self._ready if last is None or reject.row <= last]
        self._ready = [r for r in self._ready if last is not None and r.row > last]
        return sorted(again, key=lambda reject: reject.row)


def _again(row: RejectedRow, reject: Reject) -> Reject:
    """The reject with the record it came with.

    What follows a line with a wrong quote is not there any more: where the quote is the same one,
    the reason given before is the better one.
    """
    quote = reject.message.rpartition(" (opened at byte ")
    same = reject.code == row.code and quote[1] and row.message.endswith("".join(quote[1:]))
    return row.rejected(reject.code, row.message if same else reject.message)


def _renumbered(block: Records, rows: Sequence[RejectedRow]) -> Records:
    numbers = np.array([row.row for row in rows], np.int64)
    return replace(
        block,
        rows=numbers[block.rows - 1],
        lines=_lines(block, rows),
        rejects=tuple(
            replace(reject, row=rows[reject.row - 1].row, line=rows[reject.row - 1].line)
            for reject in block.rejects
        ),
        offsets=None,
    )


def _lines(block: Records, rows: Sequence[RejectedRow]) -> npt.NDArray[np.int64] | None:
    if block.lines is None:
        return None
    return np.array([row.line or 0 for row in rows], np.int64)[block.rows - 1]
