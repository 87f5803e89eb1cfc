"""What the merged options ask for: one job, or one for each day of a range."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from batchpredict.dates import days_between, escape, expand, has_date, parse_day
from batchpredict.errors import UsageError
from batchpredict.job import Job
from batchpredict.jobfile import PATHS
from batchpredict.log import logger

# Those of a Job: what is told of a run, it does not know.
_DATED = tuple(name for name in PATHS if name != "metrics_dir")


@dataclass(frozen=True)
class Request:
    """`options`: those of the Job, with dates still in the names. `ranged`: --from and --to."""

    options: Mapping[str, Any]
    days: Sequence[date]
    ranged: bool

    def job(self) -> Job:
        """The one job. Raises UsageError."""
        return self.jobs()[0]

    def jobs(self) -> list[Job]:
        """A job for each of `days`. Raises UsageError."""
        return [_job(self.options, day) for day in self.days]

    def template(self, job: Job) -> Job:
        """`job` with its names as they would be given: with dates, and their braces escaped."""
        named: dict[str, Any] = {
            name: self.options[name] if name != "model" else escape(job.model)
            for name in _DATED
            if self.options.get(name)
        }
        return replace(job, date=None, **named)


def read_request(options: Mapping[str, Any], today: date) -> Request:
    """Options by name, as click has merged them. Raises UsageError."""
    given = dict(options)
    given["keep"] = _all_or_none(given["keep"])
    if given["delimiter"] in ("tab", "\\t"):
        given["delimiter"] = "\t"
    given = {
        name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
    }
    days, ranged = _days(given, today)
    given["model"] = given["model"] or _bundled()
    return Request(given, days, ranged)


def place_of_run(name: str, options: Mapping[str, Any], today: date) -> str:
    """A place that all days of a range share, with the day of --date or today's in its name.

    Raises UsageError.
    """
    chosen = options["date"] if has_date(name) else None
    return expand(name, today if chosen is None else parse_day("date", chosen, today))


def _days(options: dict[str, Any], today: date) -> tuple[Sequence[date], bool]:
    """The days, and whether they were given as a range; their options are taken out."""
    chosen, first, last = (options.pop(name) for name in ("date", "from", "to"))
    given = [each for each in (chosen, first, last) if each is not None]
    if given and not any(_dated(options[name]) for name in _DATED):
        raise UsageError(
            "--date: no name of a file has a date in it, such as users_{date}.csv; put one in, or "
            "leave --date out"
            if chosen is not None
            else "--from and --to: no name of a file has a date in it, so each day would score the "
            "same again; put {date} into --input_file (users_{date}.csv), or leave --from and --to "
            "out"
        )
    if first is None and last is None:
        return [today if chosen is None else parse_day("date", chosen, today)], False
    if chosen is not None:
        raise UsageError("--date and --from exclude each other")
    if first is None or last is None:
        raise UsageError("--from and --to go together: the first and the last day of a range")
    begin, end = parse_day("from", first, today), parse_day("to", last, today)
    if begin > end:
        raise UsageError(f"--from={first} is after --to={last}")
    return days_between(begin, end), True


def _bundled() -> str:
    model = os.environ.get("BATCHPREDICT_DEFAULT_MODEL")
    if not model:
        raise UsageError("no model: pass --model=PATH (a .onnx file or a model directory)")
    logger.info("no model was named; the bundled example is used: %s", model)
    return escape(model)


def _all_or_none(keep: tuple[str, ...] | str) -> tuple[str, ...] | str:
    return keep[0] if isinstance(keep, tuple) and keep in (("all",), ("none",)) else keep


def _job(options: Mapping[str, Any], day: date) -> Job:
    names: dict[str, Any] = {
        name: expand(options[name], day) for name in _DATED if isinstance(options[name], str)
    }
    names["input_file"] = tuple(_input(name, day) for name in options["input_file"])
    names["model"] = os.path.expanduser(names["model"])  # noqa: PTH111
    dated = any(_dated(options[name]) for name in _DATED)
    return Job(**{**options, **names, "date": day.isoformat() if dated else None})


def _input(name: str, day: date) -> str:
    """A file that exists is taken as it is called, braces or not, unless its name has a date."""
    if not has_date(name) and os.path.lexists(os.path.expanduser(name)):  # noqa: PTH111
        return name
    return expand(name, day)


def _dated(value: Any) -> bool:
    return (
        any(map(has_date, value)) if isinstance(value, tuple) else bool(value and has_date(value))
    )
