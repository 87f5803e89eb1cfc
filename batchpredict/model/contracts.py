"""What the scoring loop knows of a model: how rows become feeds and outputs become columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Feeds = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Tensor:
    """An input or output of a graph.

    `dtype`: "float32", "int64", "string", "bool" …; "sequence(map)" for ZipMap's output.
    `shape`: sizes; a name or None where a dimension is free; empty where not stated.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True)
class Fault:
    """A row that cannot be scored. `index`: its place in the record batch, from 0."""

    index: int
    code: str
    message: str


@dataclass(frozen=True)
class Prepared:
    """Rows ready to be cut into batches.

    `lengths`: int64 [rows], tokens of each row with the padding that the row itself asks for;
    rows of one length share batches. None where rows have no length.
    `faults`: rows that must not be in any batch, in order of index. `truncated`: rows cut to the
    model's maximum length. `tokens`: int64 [rows], `lengths` without the padding. `payload`: the
    encoder's own. `first`: int64 [rows], for each row the
    first one with the same model input, itself where there is none; only that one is inferred.
    `missing`: by column, bool [rows], the rows without a value; columns without any are left out.
    """

    rows: int
    lengths: npt.NDArray[np.int64] | None
    faults: tuple[Fault, ...]
    payload: Any
    first: npt.NDArray[np.int64]
    truncated: int = 0
    tokens: npt.NDArray[np.int64] | None = None
    missing: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """What a model is fed with, as numbers: float32 [names, rows], NaN where there is none.

    `units`: by name, what the numbers are: "value", or "characters" or "tokens" of a text.
    """

    units: dict[str, str]
    values: npt.NDArray[np.float32]


class Encoder(Protocol):
    """Turns columns into feeds. Safe to be called from several threads.

    `columns`: the columns it reads. `bindings`: graph input (or "text", "text_pair") to columns.
    """

    @property
    def columns(self) -> tuple[str, ...]: ...

    @property
    def bindings(self) -> Mapping[str, tuple[str, ...]]: ...

    def prepare(self, columns: pa.RecordBatch) -> Prepared:
        """`columns` has at least `self.columns`, typed as Records.columns says."""
        ...

    def feeds(self, prepared: Prepared, indices: npt.NDArray[np.int64]) -> Feeds:
        """Feeds for the rows at `indices`, in that order, padded to the longest of them.

        Rows of one length give the same numbers whatever rows are fed beside them.
        """
        ...

    def measured(self, prepared: Prepared, indices: npt.NDArray[np.int64], most: int) -> Measured:
        """The first `most` columns of these rows, none of which may have a fault."""
        ...


class Head(Protocol):
    """Turns a graph's raw outputs into prediction columns.

    `fetch`: the outputs to ask the session for. `schema`: the columns that are added.
    `score_is_probability`: else `score` is a decision value.
    """

    @property
    def fetch(self) -> tuple[str, ...]: ...

    @property
    def schema(self) -> pa.Schema: ...

    @property
    def score_is_probability(self) -> bool: ...

    def tensors(self, raw: Sequence[Any], rows: int) -> list[npt.NDArray[Any]]:
        """One array per fetched output, first dimension `rows`, from one run of the session."""
        ...

    def columns(
        self, tensors: Sequence[npt.NDArray[Any]]
    ) -> tuple[pa.RecordBatch, tuple[Fault, ...]]:
        """Prediction columns for rows whose tensors are given; faults: scores not finite."""
        ...
