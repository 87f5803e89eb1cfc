"""What the nodes of a cluster have done for one output."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from batchpredict.run.receipt import NodeWork


@dataclass
class _Sum:
    """Of one node."""

    actors: set[int] = field(default_factory=set)
    shards: int = 0
    rows: int = 0
    seconds: float = 0.0
    peak: int = 0


class ClusterWork:
    """Sums up who has scored what."""

    def __init__(self) -> None:
        self._sums: dict[str, _Sum] = defaultdict(_Sum)

    def add(self, node: str, actor: int, seconds: float, receipt: Mapping[str, Any]) -> None:
        """Count a part, which took `actor` so many seconds. `receipt`: the part's."""
        total = self._sums[node]
        total.actors.add(actor)
        total.shards += 1
        total.rows += receipt["counts"]["read"]
        total.seconds += seconds
        total.peak = max(total.peak, receipt["peak_memory_bytes"])

    @property
    def nodes(self) -> tuple[NodeWork, ...]:
        """In the order of their addresses."""
        return tuple(
            NodeWork(
                address,
                len(done.actors),
                done.shards,
                done.rows,
                round(done.seconds, 3),
                round(done.rows / done.seconds, 3) if done.seconds else 0.0,
                done.peak,
            )
            for address, done in sorted(self._sums.items())
        )
