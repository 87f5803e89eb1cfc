"""Compare a run's predictions with those of earlier runs, before it is published."""

from __future__ import annotations

import logging
from functools import reduce
from typing import Any

from batchpredict import s3
from batchpredict.data.drafts import unpublished
from batchpredict.data.naming import Task, is_named
from batchpredict.errors import ConfigInvalid, InputInvalid
from batchpredict.job import Job
from batchpredict.run.drift import Shift, compare, compare_inputs
from batchpredict.run.earlier import Earlier, earlier_runs, read_baseline
from batchpredict.run.fetching import Fetched
from batchpredict.run.profile import Profile, merged
from batchpredict.run.profiler import Profiler
from batchpredict.run.publication import Publication
from batchpredict.run.scorer import Scorer

logger = logging.getLogger(__name__)

# Things that a message names; the receipt has all.
_MOST_NAMED = 3


def check_baseline(job: Job) -> None:
    """Raise ConfigInvalid where --baseline is no receipt to compare with."""
    if job.baseline is not None:
        read_baseline(job.baseline)


class Monitor:
    """Watches one input's run. `profiler`: to be told of each window.

    Raises ConfigInvalid where the run that --baseline names cannot be compared with.
    """

    def __init__(self, task: Task, job: Job, fetched: Fetched, scorer: Scorer) -> None:
        self._task = task
        self._job = job
        self.profiler = Profiler(scorer)
        self._earlier = self._baseline(fetched.name)
        self._digest = fetched.package.digest

    def _baseline(self, model: str | None) -> tuple[Earlier, ...]:
        kind = self.profiler.nothing
        if self._job.baseline is not None:
            pinned = read_baseline(self._job.baseline)
            if not _comparable(pinned.profile, kind):
                raise ConfigInvalid(
                    f"--baseline={self._job.baseline}: is of a {_kind(pinned.profile)} model, this "
                    f"is a {_kind(kind)} model; name a receipt of this model"
                )
            return (pinned,)
        if self._task.shard is not None:  # its driver compares, the whole
            return ()
        receipt = self._task.receipt
        if receipt is None or not (self._job.max_drift is not None or self._is_cheap(receipt)):
            return ()
        found = earlier_runs(receipt, self._job, model)
        return tuple(run for run in found if _comparable(run.profile, kind))

    def _is_cheap(self, receipt: str) -> bool:
        """Whether to look for earlier runs where nobody has asked for it.

        Not by a request for each day of a month, nor, where the inputs are many, by what may take
        longer than to score one.
        """
        return is_named(self._task, self._job) and not s3.is_url(receipt)

    def conclude(self, publication: Publication, profile: Profile | None = None) -> None:
        """Give `publication` the profile and what it differs in. Raises InputInvalid where that is
        too much for --on_drift=fail.

        `profile`: where others than `profiler` have seen the rows.
        """
        profile = publication.profile = profile or self.profiler.profile()
        most = self._job.max_drift
        if not self._earlier:
            if most is not None:
                # Else a drift that is to fail a run could go unseen for ever.
                level = logging.WARNING if self._job.on_drift == "fail" else logging.INFO
                logger.log(level, "%s: no earlier run to compare with", self._task.input)
            return
        before = reduce(merged, (run.profile for run in self._earlier))
        shifts = compare(profile, before)
        inputs = compare_inputs(profile, before)
        exceeded = [] if most is None else [n for n, s in shifts.items() if s.exceeds(most)]
        publication.drift = {
            "baseline": [
                {"receipt": r.receipt, "run_id": r.run_id, "ended": r.ended, "model": r.model}
                for r in self._earlier
            ],
            "rows": before.rows,
            "predictions": _content(shifts),
            "inputs": _content(inputs),
            "exceeded": exceeded,
        }
        if exceeded:
            self._tell(_named(exceeded, shifts) + self._cause(profile, before, inputs))
        elif most is not None:
            nearest = _named(list(shifts), shifts, 1)
            logger.info("%s: no drift from %s: %s", self._task.input, self._runs(), nearest)

    def _tell(self, what: str) -> None:
        said = f"{self._task.input}: predictions have drifted from {self._runs()}: {what}"
        if self._job.on_drift == "warn":
            logger.warning("%s", said)
            return
        raise InputInvalid(
            f"{said}; {unpublished(self._task.output)}; look into it, or publish with "
            "--on_drift=warn, for which nothing is scored again"
        )

    def _runs(self) -> str:
        first = self._earlier[0].receipt
        others = len(self._earlier) - 1
        return first + (f" and {others} before" if others else "")

    def _cause(self, now: Profile, before: Profile, inputs: dict[str, Shift]) -> str:
        """What may explain a drift."""
        most = self._job.max_drift or 0.0
        text = f" (PSI; --max_drift={most:g})"
        if moved := _label_moved(now, before):
            text += f"; {moved}"
        if names := [name for name, shift in inputs.items() if shift.exceeds(most)]:
            text += f"; inputs moved too: {_named(names, inputs)}"
        if any(run.model != self._digest for run in self._earlier):
            text += "; the model is not the same"
        return text


def _comparable(one: Profile, other: Profile) -> bool:
    return (one.task, one.scale) == (other.task, other.scale)


def _kind(profile: Profile) -> str:
    return f"{profile.task} ({profile.scale})"


def _content(shifts: dict[str, Shift]) -> dict[str, Any]:
    return {
        name: {"psi": round(shift.psi, 6), "noise": round(shift.noise, 6)}
        for name, shift in shifts.items()
    }


def _named(names: list[str], shifts: dict[str, Shift], most: int = _MOST_NAMED) -> str:
    """The largest first."""
    names = sorted(names, key=lambda name: -shifts[name].psi)
    told = [f"{name} {shifts[name].psi:.2f}" for name in names[:most]]
    less = f", {len(names) - most} less" if len(names) > most else ""
    return ", ".join(told) + less


def _label_moved(now: Profile, before: Profile) -> str:
    """The label whose share has changed most; of two labels the one that became more."""
    shares = {}
    for name in sorted({*now.labels, *before.labels}):
        was, new = (
            p.labels[name].rows / p.rows if name in p.labels else 0.0 for p in (before, now)
        )
        shares[name] = (was, new)
    if not shares:
        return ""
    changes = {name: new - was for name, (was, new) in shares.items()}
    name = max(changes, key=lambda name: (round(abs(changes[name]), 6), changes[name]))
    was, new = shares[name]
    return f"{name} was {was:.1%} of the rows and is {new:.1%}"
