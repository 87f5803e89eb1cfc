"""String tensors, numeric matrices, and one input per column: columns to feeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchpredict.model.casting import Cast, cast_column
from batchpredict.model.contracts import Fault, Feeds, Measured, Prepared
from batchpredict.model.duplicates import first_equal


@dataclass(frozen=True)
class BoundInput:
    """A graph input and the columns that fill it.

    `flat`: its shape is [rows], else [rows, len(columns)]. `missing`: "nan", "fill" or "reject";
    `fill`: the value for "fill", of the input's dtype.
    """

    name: str
    dtype: str
    columns: tuple[str, ...]
    flat: bool
    missing: str
    fill: bool | int | float | str | None = None


@dataclass(frozen=True)
class TabularEncoder:
    """Feeds of the graph's own dtypes; rows have no length.

    `missing_values`: texts that mean "no value".
    """

    inputs: tuple[BoundInput, ...]
    missing_values: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(chain.from_iterable(item.columns for item in self.inputs)))

    @property
    def bindings(self) -> Mapping[str, tuple[str, ...]]:
        return {item.name: item.columns for item in self.inputs}

    def prepare(self, columns: pa.RecordBatch) -> Prepared:
        """Casts whole columns. Faults: missing_value, bad_type; the first column that is wrong."""
        faults: dict[int, Fault] = {}
        keys: list[npt.NDArray[np.unsignedinteger]] = []
        missing: dict[str, npt.NDArray[np.bool_]] = {}
        payload = {
            item.name: self._input(item, columns, faults, keys, missing) for item in self.inputs
        }
        ordered = tuple(faults[row] for row in sorted(faults))
        first = np.arange(columns.num_rows)
        if keys:
            sound = np.delete(first, list(faults))
            first[sound] = sound[first_equal([key[sound] for key in keys] if faults else keys)]
        return Prepared(columns.num_rows, None, ordered, payload, first, missing=missing)

    def _input(
        self,
        item: BoundInput,
        columns: pa.RecordBatch,
        faults: dict[int, Fault],
        keys: list[npt.NDArray[np.unsignedinteger]],
        missing: dict[str, npt.NDArray[np.bool_]],
    ) -> npt.NDArray[np.generic]:
        dtype = object if item.dtype == "string" else item.dtype
        matrix = np.empty((columns.num_rows, len(item.columns)), dtype)
        for place, name in enumerate(item.columns):
            cast = cast_column(columns.column(name), item.dtype, self.missing_values)
            _collect(name, item, cast, faults)
            matrix[:, place] = cast.values
            if cast.missing.any():
                matrix[cast.missing, place] = _substitute(item)
                missing[name] = cast.missing
            if item.dtype == "string" and cast.bad.any():
                matrix[cast.bad, place] = ""
            keys.append(_key(cast, matrix[:, place]))
        return matrix[:, 0] if item.flat else matrix

    def feeds(self, prepared: Prepared, indices: npt.NDArray[np.int64]) -> Feeds:
        """[rows] or [rows, columns] arrays."""
        return {name: values[indices] for name, values in prepared.payload.items()}

    def measured(self, prepared: Prepared, indices: npt.NDArray[np.int64], most: int) -> Measured:
        """Numbers as they are fed, but for missing ones; characters of texts."""
        sources = self._sources[:most]
        values = np.empty((len(sources), len(indices)), np.float32)
        fed_to, fed = "", values
        for into, (name, item, place) in zip(values, sources, strict=True):
            if item.name != fed_to:
                fed_to, fed = item.name, prepared.payload[item.name][indices]
            column = fed if item.flat else fed[:, place]
            into[:] = _numbers(column, item.dtype)
            if name in prepared.missing:
                into[prepared.missing[name][indices]] = np.nan
        units = {
            name: "characters" if item.dtype == "string" else "value" for name, item, _ in sources
        }
        return Measured(units, values)

    @cached_property
    def _sources(self) -> tuple[tuple[str, BoundInput, int], ...]:
        """For each column the first input that has it, and its place there."""
        found: dict[str, tuple[str, BoundInput, int]] = {}
        for item in self.inputs:
            for place, name in enumerate(item.columns):
                found.setdefault(name, (name, item, place))
        return tuple(found.values())


def _numbers(column: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any] | list[int]:
    if dtype == "string":
        return list(map(len, column.tolist()))
    if dtype == "float64":
        with np.errstate(over="ignore"):
            return column.astype(np.float32)
    return column


def _substitute(item: BoundInput) -> bool | int | float | str | None:
    """What stands where there is no value; anything in rows that are rejected."""
    if item.missing == "nan":
        return float("nan")
    if item.missing == "fill":
        return item.fill
    return "" if item.dtype == "string" else 0


def _key(cast: Cast, values: npt.NDArray[np.generic]) -> npt.NDArray[np.unsignedinteger]:
    """Bits that are equal only where the values fed are, those in place of no value too."""
    if cast.codes is not None:
        return np.where(cast.missing, np.uint32(0), cast.codes.astype(np.uint32) + 1)
    return values.view(f"u{values.itemsize}")


def _collect(name: str, item: BoundInput, cast: Cast, faults: dict[int, Fault]) -> None:
    if cast.bad.any():
        for row in np.flatnonzero(cast.bad).tolist():
            message = f"column {name!r}: {cast.why(row, item.dtype)}"
            faults.setdefault(row, Fault(row, "bad_type", message))
    if item.missing == "reject" and cast.missing.any():
        for row in np.flatnonzero(cast.missing).tolist():
            faults.setdefault(row, Fault(row, "missing_value", f"column {name!r} has no value"))
