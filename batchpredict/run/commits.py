"""What the session gave for some rows, by row number, as bytes and back."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from batchpredict.model.contracts import Fault
from batchpredict.run.batching import Indices
from batchpredict.run.scorer import Inferred, Tensors

_LENGTH = struct.Struct("<I")
# How texts are spelled: a line each, or a JSON list.
_LINES, _JSON = "lines", "json"
_NUMBERS = re.compile(r"[<|][biuf][1248]")


@dataclass(frozen=True)
class Commit:
    """Raw outputs for `rows` (int64 row numbers), first dimension len(rows), in their order.

    `faults`: rows the session failed on; `index` is the row's number here.
    """

    rows: Indices
    tensors: Tensors
    faults: tuple[Fault, ...]

    @classmethod
    def of(cls, numbers: Indices, inferred: Inferred) -> Commit:
        """A batch of a window whose rows have these numbers."""
        faults = tuple(
            Fault(int(numbers[fault.index]), fault.code, fault.message) for fault in inferred.faults
        )
        return cls(numbers[inferred.indices], inferred.tensors, faults)

    @classmethod
    def merged(cls, commits: Sequence[Commit]) -> Commit:
        """One after the other."""
        if len(commits) == 1:
            return commits[0]
        faults = tuple(fault for commit in commits for fault in commit.faults)
        filled = [commit for commit in commits if len(commit.rows)]
        if not filled:
            return cls(np.empty(0, np.int64), [], faults)
        tensors = [
            np.concatenate(arrays) for arrays in zip(*(c.tensors for c in filled), strict=True)
        ]
        return cls(np.concatenate([commit.rows for commit in filled]), tensors, faults)

    def numbers(self) -> Indices:
        """Of all rows, those that failed too; none twice, ascending."""
        return np.unique(np.concatenate([self.rows, _failed(self.faults)]))

    def among(self, numbers: Indices) -> Inferred:
        """What is here of the rows of these numbers (ascending), by their place in them."""
        places, known = _places(self.rows, numbers)
        failed, meant = _places(_failed(self.faults), numbers)
        faults = tuple(
            Fault(int(place), fault.code, fault.message)
            for place, fault, is_one in zip(failed, self.faults, meant, strict=True)
            if is_one
        )
        return Inferred(places[known], [tensor[known] for tensor in self.tensors], faults)


def _failed(faults: Sequence[Fault]) -> Indices:
    return np.array([fault.index for fault in faults], np.int64)


def _places(rows: Indices, numbers: Indices) -> tuple[Indices, npt.NDArray[np.bool_]]:
    """Where each row is in `numbers`, and whether it is there at all."""
    places = np.minimum(np.searchsorted(numbers, rows), len(numbers) - 1)
    return places, numbers[places] == rows


def encode(commit: Commit) -> bytes:
    """A commit as bytes: a JSON header (with its length before it), then the arrays.

    In the header: `first` row where the rows are consecutive; then they are no array. A tensor's
    dtype (or how its texts are spelled), shape and size in bytes.
    """
    rows = commit.rows
    count, parts, layout = len(rows), [], []
    first = int(rows[0]) if count else 0
    consecutive = bool((rows == np.arange(first, first + count)).all())
    if not consecutive:
        parts.append(rows.astype("<i8").tobytes())
    for tensor in commit.tensors:
        part, kind = _array_bytes(tensor)
        layout.append([kind, list(tensor.shape), len(part)])
        parts.append(part)
    header = {
        "rows": count,
        "first": first if consecutive else None,
        "tensors": layout,
        "faults": [[fault.index, fault.code, fault.message] for fault in commit.faults],
    }
    head = json.dumps(header).encode()
    return b"".join([_LENGTH.pack(len(head)), head, *parts])


def _array_bytes(tensor: npt.NDArray[Any]) -> tuple[bytes, str]:
    if tensor.dtype != object and tensor.dtype.kind != "U":
        dtype = tensor.dtype.newbyteorder("<")
        return tensor.astype(dtype, copy=False).tobytes(), dtype.str
    texts = tensor.ravel().tolist()
    line = "\n".join(texts)
    if texts and line.count("\n") == len(texts) - 1:  # three times as fast as JSON
        return line.encode("utf-8", "surrogatepass"), _LINES
    return json.dumps(texts).encode(), _JSON


def decode(data: bytes) -> Commit:
    """The opposite of `encode`."""
    (length,) = _LENGTH.unpack_from(data)
    offset = _LENGTH.size + length
    header = json.loads(data[_LENGTH.size : offset])
    count, first = header["rows"], header["first"]
    if first is None:
        rows = np.frombuffer(data, "<i8", count, offset).astype(np.int64)
        offset += rows.nbytes
    else:
        rows = np.arange(first, first + count, dtype=np.int64)
    tensors: Tensors = []
    for kind, shape, size in header["tensors"]:
        tensors.append(_array(data[offset : offset + size], kind).reshape(shape))
        offset += size
    failed = header["faults"]
    return Commit(rows, tensors, tuple(Fault(*fault) for fault in failed))


def _array(data: bytes, kind: str) -> npt.NDArray[Any]:
    if kind == _LINES:
        return np.array(data.decode("utf-8", "surrogatepass").split("\n"), object)
    if kind == _JSON:
        return np.array(json.loads(data), object)
    if not _NUMBERS.fullmatch(kind):  # numpy takes much for a dtype, and raises what it likes
        raise ValueError(f"{kind!r} is no type of numbers")
    return np.frombuffer(data, np.dtype(kind))
