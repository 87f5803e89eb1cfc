"""How much is in flight: sizes of windows and batches, callers, queues."""

from __future__ import annotations

from dataclasses import dataclass

from batchpredict.job import (
    BATCH_TOKENS,
    TABULAR_BATCH_ROWS,
    TEXT_BATCH_ROWS,
    WINDOW_BYTES,
    WINDOW_ROWS,
    Job,
    effective_cores,
)
from batchpredict.model.session import Session
from batchpredict.run.scorer import Tuning

# Windows that may wait between two stages.
_QUEUE_DEPTH = 2


@dataclass(frozen=True)
class Plan:
    """Fixed before the first row, by the job and the model alone where it shapes bytes.

    `workers`: callers of the session side by side. A window ends after `window_rows` rows or
    `window_bytes` bytes of input. `queue_depth`: windows that may wait between two stages.
    """

    tuning: Tuning
    workers: int
    window_rows: int
    window_bytes: int
    queue_depth: int


def plan_of(job: Job, session: Session) -> Plan:
    """What the job says, else the measured defaults."""
    rows = job.batch_rows or (TEXT_BATCH_ROWS if reads_text(session) else TABULAR_BATCH_ROWS)
    tokens = job.batch_tokens or BATCH_TOKENS
    workers = job.workers or effective_cores()
    return Plan(Tuning(rows, tokens), workers, WINDOW_ROWS, WINDOW_BYTES, _QUEUE_DEPTH)


def reads_text(session: Session) -> bool:
    """Whether a row costs megabytes rather than bytes in the graph.

    Token ids do; so does a lone string: a TF-IDF graph holds a dense count per n-gram and row.
    """
    names = [tensor.name for tensor in session.inputs]
    return "input_ids" in names or [t.dtype for t in session.inputs] == ["string"]
