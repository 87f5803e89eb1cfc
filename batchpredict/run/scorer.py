"""Scorer: a record batch in, prediction columns out. Holds no file and no job."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchpredict.model.binding import bind
from batchpredict.model.contracts import Fault, Prepared
from batchpredict.model.outputs import HeadOptions, resolve_head
from batchpredict.model.package import ModelPackage
from batchpredict.model.session import InferenceFailed, Session, open_session
from batchpredict.run.batching import Indices, plan

if TYPE_CHECKING:
    import pandas as pd

Tensors = list[npt.NDArray[Any]]


@dataclass(frozen=True)
class Tuning:
    """Shapes of the work: most rows and most padded tokens in one run of the session."""

    batch_rows: int
    batch_tokens: int


@dataclass(frozen=True)
class Binding:
    """What a Scorer needs to know of its input: the columns on offer and which input reads which.

    `complete`: False where rows may hold columns that `offered` does not name. `column`: model
    input to column, where the names differ.
    """

    offered: pa.Schema
    complete: bool = True
    column: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Inferred:
    """Raw outputs of one batch: `tensors` for the rows at `indices`, `faults` for the others."""

    indices: Indices
    tensors: Tensors
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class Scored:
    """`added`: prediction columns of the rows at `indices` (ascending); `faults`: the others.

    `places`: of the predictions among the head's labels, where they are known and one a row.
    """

    indices: Indices
    added: pa.RecordBatch
    faults: tuple[Fault, ...]
    places: Indices | None = None


class Scorer:
    """A model bound to an input's columns. Safe to be called from several threads.

    Pickles as its model package and options; unpickling opens the session again, of the same
    provider and precision. Raises BatchPredictError where model and columns do not fit.
    """

    def __init__(
        self,
        package: ModelPackage,
        binding: Binding,
        options: HeadOptions,
        tuning: Tuning,
        session: Session | None = None,
    ) -> None:
        self._session = session or open_session(package)
        self._recipe = (package, binding, options, tuning, self._session)
        self._tuning = tuning
        self.encoder = bind(
            package, self._session, binding.offered, binding.complete, binding.column
        )
        self.head = resolve_head(package, self._session, options)

    def __reduce__(self) -> tuple[Callable[..., Scorer], tuple[Any, ...]]:
        return Scorer, self._recipe

    def prepare(self, columns: pa.RecordBatch) -> Prepared:
        """Tokenize without padding, or cast; `columns` has at least `encoder.columns`."""
        return self.encoder.prepare(columns)

    def plan(self, prepared: Prepared, tuning: Tuning | None = None) -> list[Indices]:
        """Batches of the rows without a fault, equal rows once.

        `tuning`: of other shapes than the scorer's own.
        """
        tuning = tuning or self._tuning
        sound = prepared.first == np.arange(prepared.rows)
        sound[[fault.index for fault in prepared.faults]] = False
        return plan(
            np.flatnonzero(sound),
            prepared.lengths,
            tuning.batch_rows,
            tuning.batch_tokens,
        )

    def infer(self, prepared: Prepared, batch: Indices) -> Inferred:
        """Run the session on one batch; on failure halve it until the rows at fault are found.

        Memory that runs out while a batch is fed or run is such a failure.
        """
        # A batch of one row is run as two equal ones: one-row matrix products take another code
        # path and differ in the last bits, and a score must not depend on a row's neighbours.
        rows = np.repeat(batch, 2) if len(batch) == 1 else batch
        try:
            raw = self._session.run(self.head.fetch, self.encoder.feeds(prepared, rows))
            tensors = self.head.tensors(raw, len(rows))
        except (InferenceFailed, MemoryError) as error:
            why = str(error) or type(error).__name__
        else:
            return Inferred(batch, [tensor[: len(batch)] for tensor in tensors], ())
        # Not in the handler: there the error still holds the frames, and they the whole feeds.
        if len(batch) == 1:
            return Inferred(batch[:0], [], (Fault(int(batch[0]), "inference_failed", why),))
        half = len(batch) // 2
        return joined([self.infer(prepared, part) for part in (batch[:half], batch[half:])])

    def finish(self, prepared: Prepared, inferred: Sequence[Inferred]) -> Scored:
        """Scatter the batches' outputs back into row order and make columns of them."""
        whole = joined(inferred)
        faults = [*prepared.faults, *_fanned_out(whole.faults, prepared.first)]
        places = np.full(prepared.rows, -1)
        places[whole.indices] = np.arange(len(whole.indices))
        order = places[prepared.first]
        indices = np.flatnonzero(order >= 0)
        order = order[indices]
        if not len(indices):
            nothing = pa.RecordBatch.from_pylist([], self.head.schema)
            return Scored(indices, nothing, _sorted(faults))
        added, unusable, at = self.head.decoded([tensor[order] for tensor in whole.tensors])
        if unusable:
            usable = np.ones(len(indices), bool)
            usable[[fault.index for fault in unusable]] = False
            faults += [Fault(int(indices[f.index]), f.code, f.message) for f in unusable]
            added, indices = added.filter(pa.array(usable)), indices[usable]
            at = None if at is None else at[usable]
        return Scored(indices, added, _sorted(faults), at)

    def score(self, columns: pa.RecordBatch) -> Scored:
        """All stages, one after the other."""
        prepared = self.prepare(columns)
        return self.finish(prepared, [self.infer(prepared, b) for b in self.plan(prepared)])

    def score_frame(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Prediction columns with the frame's index; rows that cannot be scored are null."""
        columns = pa.RecordBatch.from_pandas(
            frame[list(self.encoder.columns)], preserve_index=False
        )
        result: pd.DataFrame = spread(self.score(columns), len(frame)).to_pandas()
        result.index = frame.index
        return result


def spread(scored: Scored, rows: int) -> pa.RecordBatch:
    """Prediction columns for all of `rows` rows, null where there is no score."""
    positions = np.zeros(rows, np.int64)
    positions[scored.indices] = np.arange(len(scored.indices))
    missing = np.ones(rows, bool)
    missing[scored.indices] = False
    return scored.added.take(pa.array(positions, mask=missing))


def joined(parts: Sequence[Inferred]) -> Inferred:
    """One after the other."""
    filled = [part for part in parts if len(part.indices)]
    faults = tuple(fault for part in parts for fault in part.faults)
    if not filled:
        return Inferred(np.empty(0, np.int64), [], faults)
    tensors = [
        np.concatenate(arrays) for arrays in zip(*(part.tensors for part in filled), strict=True)
    ]
    return Inferred(np.concatenate([part.indices for part in filled]), tensors, faults)


def _fanned_out(faults: Sequence[Fault], first: Indices) -> list[Fault]:
    """The same faults for every row with the same model input."""
    return [
        replace(fault, index=row)
        for fault in faults
        for row in np.flatnonzero(first == fault.index).tolist()
    ]


def _sorted(faults: list[Fault]) -> tuple[Fault, ...]:
    return tuple(sorted(faults, key=lambda fault: fault.index))
