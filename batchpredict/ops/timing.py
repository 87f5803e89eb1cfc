"""When cron runs an entry: what the five fields mean, and the next times."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from batchpredict.errors import UsageError

_NICKNAMES = {
    "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0", "@daily": "0 0 * * *", "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}  # fmt: skip
_REBOOT = "@reboot"
# What every cron reads: cronsim also takes L, # and a step behind a lone number, which Debian's
# refuses, or worse, takes for something else.
_FIELD = re.compile(r"(?:\*|\w+-\w+)(?:/\d+)?|\w+")
_FOREIGN = re.compile(r"\d*L|LW", re.IGNORECASE)
_FIELDS = ("minute", "hour", "day of month", "month", "day of week")
_WEEKDAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")


@dataclass(frozen=True)
class Timing:
    """`text`: as it stands in a crontab. `fields`: the five that it means; "" for @reboot."""

    text: str
    fields: str

    def next(self, after: datetime, count: int) -> Sequence[datetime]:
        """The next times, in the zone of `after`, which it has to have."""
        if not self.fields:
            return []
        return list(itertools.islice(CronSim(self.fields, after), count))

    def words(self) -> str:
        if not self.fields:
            return "When the machine starts"
        return CronSim(self.fields, datetime.now(UTC)).explain()

    def on_calendar(self) -> Sequence[str]:
        """The same times as systemd.time(7) writes them; several where either may be met."""
        if not self.fields:
            return []
        found = CronSim(self.fields, datetime.now(UTC))
        hours, minutes = _list(found.hours, range(24)), _list(found.minutes, range(60))
        clock = f"{hours}:{minutes}:00"
        months, days = _list(found.months, range(1, 13)), _list(found.days, range(1, 32))
        named = {day % 7 for day in found.weekdays if isinstance(day, int)}
        week = "" if len(named) == 7 else ",".join(_WEEKDAYS[day] for day in sorted(named)) + " "
        if found.day_and:
            return [f"{week}*-{months}-{days} {clock}"]
        return [f"*-{months}-{days} {clock}", f"{week}*-{months}-* {clock}"]


def _list(values: set[int], whole: range) -> str:
    if values >= set(whole):
        return "*"
    return ",".join(f"{value:02}" for value in sorted(values))


def parse_timing(text: str) -> Timing:
    """Five fields, or @daily and the like. Raises UsageError."""
    plain = " ".join(text.split())
    if plain.lower() == _REBOOT:
        return Timing(_REBOOT, "")
    if plain.startswith("@"):
        if plain.lower() not in _NICKNAMES:
            raise UsageError(f"{text!r}: there are {', '.join([*_NICKNAMES, _REBOOT])}")
        return Timing(plain.lower(), _NICKNAMES[plain.lower()])
    fields = plain.split(" ")
    if len(fields) != 5:
        raise UsageError(f"{text!r}: must be five fields ({', '.join(_FIELDS)}), as in '0 2 * * *'")
    for name, field in zip(_FIELDS, fields, strict=True):
        _check_field(text, name, field)
    understood = " ".join(",".join(map(_single, field.split(","))) for field in fields)
    try:
        found = CronSim(understood, datetime.now(UTC))
        next(found)
    except CronSimError as error:
        problem = str(error).removeprefix("Bad ").replace("-", " ")
        raise UsageError(f"{text!r}: the {problem} is out of range or no value") from error
    except StopIteration:
        raise UsageError(f"{text!r}: there is no such day") from None
    return Timing(plain, understood)


def _check_field(text: str, name: str, field: str) -> None:
    for term in field.split(","):
        if not _FIELD.fullmatch(term) or not term.isascii() or _FOREIGN.fullmatch(term):
            raise UsageError(
                f"{text!r}: {term!r} is no {name} that every cron reads; there are *, 5, 1-5, "
                "*/10, 1-30/10 and lists of them with commas"
            )


def _single(term: str) -> str:
    """`5-5/2` is 5; cronsim takes it for 5/2, which is every other one from 5 on."""
    ends, step, _ = term.partition("/")
    first, dash, last = (part.lstrip("0") or "0" for part in ends.upper().partition("-"))
    return first if step and dash == "-" and first == last else term


def system_zone() -> tuple[tzinfo, str]:
    """The zone that cron and systemd go by, and its name; TZ is the caller's own matter."""
    place = Path("/etc/localtime")
    try:
        with place.open("rb") as file:
            key = str(place.resolve()).partition("/zoneinfo/")[2] or None
            return ZoneInfo.from_file(file, key), key or "local time"
    except (OSError, ValueError):
        return UTC, "UTC"
