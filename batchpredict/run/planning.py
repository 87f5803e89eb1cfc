"""How much is in flight: sizes of windows and batches, callers, queues."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from batchpredict.cgroup import effective_cores
from batchpredict.job import (
    BATCH_TOKENS,
    OPENVINO_BATCH_TOKENS,
    TABULAR_BATCH_ROWS,
    TEXT_BATCH_ROWS,
    WINDOW_BYTES,
    WINDOW_ROWS,
    Job,
)
from batchpredict.model.session import Session
from batchpredict.run.memory import Sizes
from batchpredict.run.room import Room
from batchpredict.run.scorer import Tuning
from batchpredict.run.tuned import StoredTuning

logger = logging.getLogger(__name__)

# Windows that may wait between two stages.
_QUEUE_DEPTH = 2
# What shapes bytes in int8 and bf16: kept as the job says, or refused.
_BATCH = ("batch_rows", "batch_tokens")


@dataclass(frozen=True)
class Plan:
    """Fixed before the first row, by the job and the model alone where it shapes bytes.

    In `precision` int8 and bf16 batches shape the last digits too: there a stored tuning is as good
    as an option of the job, and the receipt has it.

    `workers`: callers of the session side by side. A window ends after `window_rows` rows or
    `window_bytes` bytes of input. `queue_depth`: windows that may wait between two stages.
    `sizes_from`: where batch_rows, batch_tokens and workers come from: job, tuning, default or
    memory (a limit left no room for more).
    """

    tuning: Tuning
    workers: int
    window_rows: int
    window_bytes: int
    queue_depth: int
    sizes_from: dict[str, str] = field(default_factory=dict)

    @property
    def most_rows(self) -> int:
        """Of one batch."""
        return min(self.tuning.batch_rows, self.window_rows)


def plan_of(
    job: Job,
    session: Session,
    stored: StoredTuning | None = None,
    room: Room | None = None,
) -> Plan:
    """What the job says, else what `tune` has found, else the measured defaults.

    `room`: what they are held to. Raises ConfigInvalid where batches that the job asks for do not
    fit in it.
    """
    sizes, origins = _asked(job, session, stored)
    wanted = Sizes(
        **sizes, window_rows=WINDOW_ROWS, window_bytes=WINDOW_BYTES, queue_depth=_QUEUE_DEPTH
    )
    pinned = frozenset(name for name in _BATCH if origins[name] == "job")
    taken = room.sizes(wanted, pinned) if room else wanted
    origins |= {n: "memory" for n in origins if getattr(taken, n) < getattr(wanted, n)}
    return Plan(
        Tuning(taken.batch_rows, taken.batch_tokens),
        taken.workers,
        taken.window_rows,
        taken.window_bytes,
        taken.queue_depth,
        origins,
    )


def _asked(
    job: Job, session: Session, stored: StoredTuning | None
) -> tuple[dict[str, int], dict[str, str]]:
    """Sizes of batches and callers, and where each comes from."""
    sizes = {
        "batch_rows": TEXT_BATCH_ROWS if reads_text(session) else TABULAR_BATCH_ROWS,
        "batch_tokens": OPENVINO_BATCH_TOKENS if "OpenVINO" in session.provider else BATCH_TOKENS,
        "workers": effective_cores(),
    }
    origins = dict.fromkeys(sizes, "default")
    for name in sizes:
        given = getattr(job, name)
        if given is not None:
            sizes[name], origins[name] = given, "job"
        elif stored is not None and name in stored.sizes:
            sizes[name], origins[name] = stored.sizes[name], "tuning"
    if stored is not None and "tuning" in origins.values():
        found = [f"{name} {sizes[name]}" for name in sizes if origins[name] == "tuning"]
        logger.info("tuned on %s: %s (%s)", stored.tuned[:10], ", ".join(found), stored.path)
    return sizes, origins


def reads_text(session: Session) -> bool:
    """Whether a row costs megabytes rather than bytes in the graph.

    Token ids do; so does a lone string: a TF-IDF graph holds a dense count per n-gram and row.
    """
    names = [tensor.name for tensor in session.inputs]
    return "input_ids" in names or [t.dtype for t in session.inputs] == ["string"]
