"""Regroup blocks of records into windows: the rows that are sorted and batched together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchpredict.data.records import Reader, Records, Reject, take
from batchpredict.model.contracts import Fault

SKIPPED = "skipped"
_JSON = pa.json_(pa.string())


def windows(
    blocks: Iterator[Records], rows: int, size: int, limit: int | None
) -> Iterator[Records]:
    """The same rows, in windows that follow from the input alone, however blocks were cut.

    A window ends with the row that makes it `rows` rows (rejected ones counted) or at least
    `size` bytes of input, or before the first row of a shard, which is in its `breaks` then.
    `limit`: rows after which the input is left alone.
    """
    pieces: list[Records] = []
    filled = weight = total = 0
    for block in blocks:
        for piece in _pieces(block, rows, size, (filled, weight)):
            if piece.breaks and pieces:
                yield _joined(pieces)
                pieces, filled, weight = [], 0, 0
            count = len(piece) + len(piece.rejects)
            if limit is not None and total + count >= limit:
                yield _joined([*pieces, _first_rows(piece, limit - total)])
                return
            pieces.append(piece)
            total += count
            filled += count
            weight += int(piece.weight.sum() + _weights(piece.rejects).sum())
            if filled == rows or weight >= size:
                yield _joined(pieces)
                pieces, filled, weight = [], 0, 0
    if pieces and filled:
        yield _joined(pieces)


def rejected(records: Records, fault: Fault, reader: Reader) -> Reject:
    """A row that cannot be scored, as it came."""
    index = fault.index
    return Reject(
        row=int(records.rows[index]),
        line=None if records.lines is None else int(records.lines[index]),
        code=fault.code,
        message=fault.message,
        record=reader.original(records.raw, index),
        offset=None if records.offsets is None else int(records.offsets[index]),
    )


def skipped(records: Records, rows: Sequence[int]) -> tuple[Fault, ...]:
    """Those of a window that are to be left out, by their numbers."""
    places = np.flatnonzero(np.isin(records.rows, rows)) if rows else ()
    return tuple(Fault(int(place), SKIPPED, "left out by --skip_rows") for place in places)


def without(records: Records, faults: Sequence[Fault], reader: Reader) -> Records:
    """The window with some of its rows rejected, as if they could not be read."""
    if not faults:
        return records
    lost = [rejected(records, fault, reader) for fault in faults]
    left = np.delete(np.arange(len(records)), [fault.index for fault in faults])
    rejects = sorted((*records.rejects, *lost), key=lambda reject: reject.row)
    return replace(take(records, left), rejects=tuple(rejects))


def _pieces(block: Records, rows: int, size: int, begun: tuple[int, int]) -> Iterator[Records]:
    """Cut a block where windows end; `begun`: rows and bytes the open window has already."""
    reject_rows = np.array([reject.row for reject in block.rejects], np.int64)
    numbers = np.concatenate([block.rows, reject_rows])
    order = np.argsort(numbers)
    numbers = numbers[order]
    weights = np.concatenate([block.weight, _weights(block.rejects)])[order]
    reached = np.cumsum(weights)
    borders = [*np.searchsorted(numbers, block.breaks).tolist(), len(numbers)]
    start, (filled, weight) = 0, begun
    while start < len(numbers):
        if start == borders[0]:
            borders, filled, weight = borders[1:], 0, 0
        before = int(reached[start - 1]) if start else 0
        by_size = int(np.searchsorted(reached, before + size - weight)) + 1
        end = min(start + rows - filled, by_size, borders[0])
        yield _between(block, reject_rows, int(numbers[start]), int(numbers[end - 1]))
        start, filled, weight = end, 0, 0


def _weights(rejects: Sequence[Reject]) -> npt.NDArray[np.int64]:
    """Bytes of input of each reject; 0 where a format does not hand them on."""
    return np.array(
        [
            len(r.record) if r.length is None and isinstance(r.record, bytes) else r.length or 0
            for r in rejects
        ],
        np.int64,
    )


def _between(block: Records, reject_rows: npt.NDArray[np.int64], first: int, last: int) -> Records:
    """The rows numbered `first` to `last`."""
    begin, end = np.searchsorted(block.rows, [first, last + 1])
    lost = slice(*np.searchsorted(reject_rows, [first, last + 1]))
    count = int(end - begin)
    return Records(
        columns=block.columns.slice(begin, count),
        kept=block.kept.slice(begin, count),
        raw=block.raw.slice(begin, count),
        rows=block.rows[begin:end],
        lines=None if block.lines is None else block.lines[begin:end],
        weight=block.weight[begin:end],
        rejects=block.rejects[lost],
        offsets=None if block.offsets is None else block.offsets[begin:end],
        breaks=tuple(row for row in block.breaks if first <= row <= last),
    )


def _first_rows(piece: Records, count: int) -> Records:
    """The first `count` rows, rejected ones counted."""
    reject_rows = np.array([reject.row for reject in piece.rejects], np.int64)
    numbers = np.sort(np.concatenate([piece.rows, reject_rows]))[:count]
    last = int(numbers[-1]) if len(numbers) else -1
    return _between(piece, reject_rows, 0, last)


def _joined(pieces: Sequence[Records]) -> Records:
    if len(pieces) == 1:
        return pieces[0]
    lines = [piece.lines for piece in pieces if piece.lines is not None]
    offsets = [piece.offsets for piece in pieces if piece.offsets is not None]
    return Records(
        columns=_concat_columns([piece.columns for piece in pieces]),
        kept=pa.concat_batches([piece.kept for piece in pieces]),
        raw=pa.concat_arrays([piece.raw for piece in pieces]),
        rows=np.concatenate([piece.rows for piece in pieces]),
        lines=np.concatenate(lines) if lines else None,
        weight=np.concatenate([piece.weight for piece in pieces]),
        rejects=tuple(reject for piece in pieces for reject in piece.rejects),
        offsets=np.concatenate(offsets) if offsets else None,
        breaks=pieces[0].breaks,
    )


def _concat_columns(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Concatenate; a JSON column that is text here and JSON there becomes JSON throughout."""
    schema = batches[0].schema
    for index, name in enumerate(schema.names):
        types = {batch.schema.types[index] for batch in batches}
        if len(types) > 1:
            schema = schema.set(index, pa.field(name, _JSON))
            batches = [_with_json(batch, index) for batch in batches]
    return pa.concat_batches([batch.cast(schema) for batch in batches])


def _with_json(batch: pa.RecordBatch, index: int) -> pa.RecordBatch:
    column = batch.column(index)
    if column.type == _JSON:
        return batch
    storage = pa.array(
        [None if text is None else json.dumps(text) for text in column.to_pylist()], pa.string()
    )
    json_column = pa.ExtensionArray.from_storage(_JSON, storage)
    return batch.set_column(index, batch.schema.names[index], json_column)
