"""Puts rows into an output that lacks them, by row number.

Both outputs have one form; their records travel as they are. Memory: some blocks, and the
numbers of the rows that are put in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt

from batchpredict.data.formats import FORMATS
from batchpredict.data.records import Dialect, Layout, Reader, Records, Selection, Source, Writer
from batchpredict.errors import InputInvalid
from batchpredict.signals import check_signals

Numbers = npt.NDArray[np.int64]

_WHOLE = Selection((), (), "record")
# An output's records are longer than the input's.
_MOST_RECORD_BYTES = 1 << 30


def open_output(source: Source, name: str, dialect: Dialect) -> Reader:
    """A reader of an output in format `name`, written in `dialect`. Raises InputInvalid."""
    dialect = replace(dialect, max_record_bytes=_MOST_RECORD_BYTES)
    return FORMATS[name].module.open_reader(source, dialect, False)


def whole_layout(origin: Reader) -> Layout:
    """Of a writer that writes the records of an output again."""
    nothing = pa.schema([])
    return Layout("record", nothing, nothing, origin, origin.dialect)


def write_whole(writer: Writer, blocks: Iterable[Records]) -> Iterator[int]:
    """Write records with nothing added; tells after each block how many rows it has."""
    for block in blocks:
        check_signals()
        writer.write(block, _no_columns(len(block)))
        yield len(block)


def _no_columns(rows: int) -> pa.RecordBatch:
    return pa.record_batch([pa.nulls(rows)], names=["rows"]).select([])


def rows_but(reader: Reader, absent: Numbers, dropped: Numbers) -> Iterator[Records]:
    """The rows of an output by their numbers in its input.

    `absent`: of rows that the output does not have; `dropped`: of rows to leave out; ascending.
    """
    # So many rows of the output are before each absent one.
    before = absent - np.arange(1, len(absent) + 1)
    for block in _sound(reader):
        rows = block.rows + np.searchsorted(before, block.rows - 1, side="right")
        stay = np.isin(rows, dropped, assume_unique=True, invert=True)
        block = replace(block, rows=rows)
        yield block if stay.all() else _masked(block, stay)


def rows_as(reader: Reader, numbers: Numbers) -> Iterator[Records]:
    """The rows of an output, which have these numbers in its input."""
    for block in _sound(reader):
        yield replace(block, rows=numbers[block.rows - 1])


def _sound(reader: Reader) -> Iterator[Records]:
    for block in reader.records(_WHOLE):
        if block.rejects:
            first = block.rejects[0]
            raise InputInvalid(
                f"the output cannot be read back: row {first.row}: {first.message}; "
                "run predict again"
            )
        yield block


def interleaved(one: Iterator[Records], other: Iterator[Records]) -> Iterator[Records]:
    """The rows of both, by their numbers, of which none is in both."""
    left = next(other, None)
    for block in one:
        if not len(block):
            continue
        parts = [block]
        while left is not None and (not len(left) or left.rows[0] < block.rows[-1]):
            count = int(np.searchsorted(left.rows, block.rows[-1]))
            parts.append(_slice(left, 0, count))
            rest = _slice(left, count, len(left))
            left = rest if len(rest) else next(other, None)
        yield from _sorted(parts)
    while left is not None:
        yield left
        left = next(other, None)


def _sorted(parts: Sequence[Records]) -> Iterator[Records]:
    if len(parts) == 1:
        yield parts[0]
        return
    rows = np.concatenate([part.rows for part in parts])
    order = np.argsort(rows)
    if pt.is_struct(parts[0].raw.type):  # of which pyarrow cannot join every kind
        yield from _stretches(parts, order)
        return
    yield _bare(
        pa.concat_arrays([part.raw for part in parts]).take(pa.array(order)),
        rows[order],
        np.concatenate([part.weight for part in parts])[order],
    )


def _stretches(parts: Sequence[Records], order: Numbers) -> Iterator[Records]:
    """Slices of the parts, in the order of their rows; `order`: places in all of them."""
    sizes = [len(part) for part in parts]
    begins = np.cumsum(sizes) - sizes
    owner = np.repeat(np.arange(len(parts)), sizes)[order]
    borders = np.flatnonzero(np.diff(owner)) + 1
    for start, stop in zip([0, *borders], [*borders, len(order)], strict=True):
        part = parts[owner[start]]
        at = int(order[start] - begins[owner[start]])
        yield _slice(part, at, at + int(stop - start))


def _slice(block: Records, start: int, stop: int) -> Records:
    return _bare(
        block.raw.slice(start, stop - start), block.rows[start:stop], block.weight[start:stop]
    )


def _masked(block: Records, mask: npt.NDArray[np.bool_]) -> Records:
    return _bare(block.raw.filter(pa.array(mask)), block.rows[mask], block.weight[mask])


def _bare(raw: pa.Array, rows: Numbers, weight: Numbers) -> Records:
    """Records of which nothing but the whole is wanted."""
    nothing = _no_columns(len(rows))
    return Records(nothing, nothing, raw, rows, None, weight)
