"""When a run is to stop, done or not."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from batchpredict.errors import TryAgain


@dataclass(frozen=True)
class Deadline:
    """`at`: of time.monotonic, in seconds."""

    at: float = math.inf

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """So many seconds from now; None never comes."""
        return cls() if seconds is None else cls(time.monotonic() + seconds)

    def check(self, progressed: bool, name: str) -> None:
        """Raise TryAgain once it has passed, but not before a first commit: no run would get on."""
        if progressed and time.monotonic() >= self.at:
            raise TryAgain(f"{name}: stopped after --max_seconds; run the same command to go on")


NEVER = Deadline()
