"""Cells and records of CSV text as Arrow arrays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchpredict.data.csv_cut import Positions


def slices(block: bytes | pa.Buffer, starts: Positions, ends: Positions) -> pa.BinaryArray:
    """The bytes between each start and end, as one binary array; no copy where they touch."""
    data = pa.py_buffer(block)
    if len(starts) and (starts[1:] == ends[:-1]).all():
        return _binary(np.append(starts, ends[-1]).astype(np.int32), data)
    # Every second piece of the block is wanted, the others lie between two of them.
    bounds = np.column_stack((starts, ends)).ravel().astype(np.int32)
    pieces = _binary(bounds if len(bounds) else np.zeros(1, np.int32), data)
    return pieces.take(pa.array(np.arange(0, 2 * len(starts), 2)))


def _binary(bounds: npt.NDArray[np.int32], data: pa.Buffer) -> pa.BinaryArray:
    return pa.BinaryArray.from_buffers(
        pa.binary(), len(bounds) - 1, [None, pa.py_buffer(bounds), data]
    )


def as_string(cells: pa.BinaryArray) -> pa.StringArray:
    """The same bytes as strings; they are known to be UTF-8."""
    return pa.StringArray.from_buffers(len(cells), *cells.buffers()[1:])


def cell_array(
    block: bytes | pa.Buffer, begins: Positions, ends: Positions, *, unquote: bool
) -> pa.BinaryArray:
    """The cells between `begins` and `ends`; `unquote`: their values, else as they are spelled."""
    if not unquote:
        return slices(block, begins, ends)
    data = np.frombuffer(block, np.uint8)
    quoted = (begins < ends) & (data[np.minimum(begins, len(data) - 1)] == ord('"'))
    cells = slices(block, begins + quoted, ends - quoted)
    if not quoted.any():
        return cells
    doubled = pc.match_substring(cells, b'""')
    if not pc.any(doubled).as_py():
        return cells
    single = pc.replace_substring(cells, b'""', b'"')
    return pc.if_else(pc.and_(doubled, pa.array(quoted)), single, cells)


def data_of(array: pa.BinaryArray) -> memoryview:
    """All bytes of a binary array, one after the other."""
    _, bounds, data = array.buffers()
    positions = np.frombuffer(bounds, np.int32)[array.offset : array.offset + len(array) + 1]
    return memoryview(data)[positions[0] : positions[-1]]


def split_at_contents(raw: pa.BinaryArray) -> tuple[pa.BinaryArray, memoryview]:
    """Records cut where their contents end, before LF, CRLF, or the end of a file.

    Each piece is the line end of one record and the content of the next, so that nothing is
    copied; beside them what is behind the last content. `raw`: at least one record.
    """
    _, bounds, buffer = raw.buffers()
    positions = np.frombuffer(bounds, np.int32)[raw.offset : raw.offset + len(raw) + 1]
    edges = positions.astype(np.int64)
    data = np.frombuffer(buffer, np.uint8)
    starts, ends = edges[:-1], edges[1:]
    line_feed = data[ends - 1] == 10
    carriage_return = line_feed & (ends - starts > 1) & (data[ends - 2] == 13)
    contents = ends - line_feed - carriage_return
    bounds = np.concatenate((edges[:1], contents)).astype(np.int32)
    return _binary(bounds, buffer), memoryview(buffer)[contents[-1] : edges[-1]]
