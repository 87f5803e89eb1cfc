"""Earlier runs of a task, found by the name of its receipt, and their profiles."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from batchpredict import s3
from batchpredict.data.locations import is_stream
from batchpredict.errors import ConfigInvalid
from batchpredict.job import Job
from batchpredict.run.profile import Profile, read_profile

logger = logging.getLogger(__name__)

MOST_RUNS = 7
_UNUSABLE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
# Of a receipt in S3.
_MOST_BYTES = 16 << 20
_DAYS, _MONTHS = 31, 12
_A_DAY = timedelta(1)
# The parts of a date are apart by one separator, or by the folders of Hive: year=2026/month=11.
_YEAR_MONTH = r"(?<!\d)((?:19|20)\d\d)([-_./]?|/month=)(\d\d)"
_DAY = re.compile(_YEAR_MONTH + r"(\2|/day=)(\d\d)(?!\d)")
_MONTH = re.compile(_YEAR_MONTH + r"(?!\d)")
# A prediction depends on these, and its score on no others that one model can be run with.
_OPTIONS = ("column", "threshold")


@dataclass(frozen=True)
class Earlier:
    """A run that was published. `model`: its digest."""

    receipt: str
    run_id: str
    ended: str
    model: str
    profile: Profile


def earlier_names(receipt: str) -> Iterator[str]:
    """What receipts of earlier runs may be called, the last one first.

    The same name with the days before the last date in it (2026-11-21, 20261121, 2026/11/21), in
    the folders of their months, or, without a day, with the months before; then the name itself,
    whose file is about to be replaced. A date of the day (month) before the run's goes along, as
    it may be {yesterday}, and on the other hand may stay, as it may be part of the name.
    """
    if day := _last(_DAY, receipt):
        run = _run_day(receipt, day)
        for back in range(1, _DAYS + 1):
            with_yesterday = _on(run, [run, run - _A_DAY], back, receipt)
            yield from dict.fromkeys([with_yesterday, _on(day, [day], back, receipt)])
    elif month := _last(_MONTH, receipt):
        for back in range(1, _MONTHS + 1):
            both = {each: _months_before(each, back) for each in (month, _months_before(month, 1))}
            alone = {month: both[month]}
            yield from dict.fromkeys(_MONTH.sub(_instead(new), receipt) for new in (both, alone))
    yield receipt


def _run_day(receipt: str, day: date) -> date:
    """The day of the run, where `day`, the last date in a name, may be the one before."""
    after = day + _A_DAY
    others = {_date(match) for match in _DAY.finditer(receipt)}
    if after.day == 1:
        others |= {_date(match) for match in _MONTH.finditer(_DAY.sub("", receipt))}
    return after if after in others else day


def _on(run: date, days: Sequence[date], back: int, receipt: str) -> str:
    """`days` are replaced, and between them the run's month: 2026-12/users_2026-12-01."""
    earlier = timedelta(back)
    month = _instead({run.replace(day=1): (run - earlier).replace(day=1)})
    instead = _instead({day: day - earlier for day in days})
    parts, end = [], 0
    for match in _DAY.finditer(receipt):
        parts += [_MONTH.sub(month, receipt[end : match.start()]), instead(match)]
        end = match.end()
    return "".join([*parts, _MONTH.sub(month, receipt[end:])])


def _months_before(month: date, count: int) -> date:
    """`month`: its first day."""
    years, place = divmod(month.year * 12 + month.month - 1 - count, 12)
    return date(years, place + 1, 1)


def _last(pattern: re.Pattern[str], text: str) -> date | None:
    dates = [found for match in pattern.finditer(text) if (found := _date(match))]
    return dates[-1] if dates else None


def _date(match: re.Match[str]) -> date | None:
    """Of a month, its first day."""
    year, month, *day = match.groups()[::2]
    try:
        return date(int(year), int(month), int(day[0]) if day else 1)
    except ValueError:  # a number that is no date
        return None


def _instead(dates: Mapping[date, date]) -> Callable[[re.Match[str]], str]:
    """What replaces those dates in a name, spelled as they are."""

    def spell(match: re.Match[str]) -> str:
        found = _date(match)
        if found is None or found not in dates:
            return match[0]
        parts = dates[found].isoformat().split("-")
        apart = [*match.groups()[1::2], ""]
        return "".join(part + sep for part, sep in zip(parts, apart, strict=False))

    return spell


def earlier_runs(receipt: str, job: Job, model: str | None) -> tuple[Earlier, ...]:
    """The last ones, at most MOST_RUNS, with the model of this name and the same predictions.

    Those of earlier dates if there are any, else the one whose receipt `receipt` will replace.
    """
    *dated, replaced = earlier_names(receipt)
    for names in (dated, [replaced]):
        found = (run for name in names if (run := _usable(name, job, model)))
        if runs := tuple(islice(found, MOST_RUNS)):
            return runs
    return ()


def _usable(name: str, job: Job, model: str | None) -> Earlier | None:
    try:
        content = json.loads(_read(name))
        if content["model"]["name"] != model or content["exit_code"] not in (0, 3):
            return None
        if _options(content["options"]) != _options(asdict(job)):
            return None
        return _earlier(name, content)
    except FileNotFoundError:
        return None
    except (*_UNUSABLE, OSError, ConfigInvalid, s3.Denied) as error:
        logger.debug("%s: not compared with: %s", name, error)
        return None


def _read(name: str) -> bytes:
    """Raises FileNotFoundError, OSError, ConfigInvalid (too large), Unavailable."""
    if is_stream(name):  # a pipe may never say anything, a device never end
        raise FileNotFoundError(errno.ENOENT, "is no regular file")
    if not s3.is_url(name):
        return Path(name).read_bytes()
    try:
        return s3.store().read(s3.parse(name), _MOST_BYTES)[0]
    except s3.Missing as error:
        raise FileNotFoundError(errno.ENOENT, str(error)) from error


def _options(options: Mapping[str, Any]) -> Any:
    found = [options.get(name) for name in _OPTIONS]
    # Columns are bound by name, so their order says nothing.
    return json.loads(json.dumps([sorted(v) if isinstance(v, list | tuple) else v for v in found]))


def _earlier(name: str, content: Mapping[str, Any]) -> Earlier:
    return Earlier(
        name,
        str(content["run_id"]),
        str(content["ended"]),
        str(content["model"]["sha256"]),
        read_profile(content["profile"]),
    )


def read_baseline(name: str) -> Earlier:
    """The run that --baseline names. Raises ConfigInvalid, Unavailable."""
    path = os.path.expanduser(name)  # noqa: PTH111 - pathlib's raises for unknown users
    try:
        return _earlier(path, json.loads(_read(path)))
    except OSError as error:
        why = (error.strerror or str(error)).lower()
    except KeyError as error:
        why = f"it has no {error}"
    except _UNUSABLE as error:
        why = f"is no receipt with a profile: {error}"
    raise ConfigInvalid(
        f"--baseline={name}: {why}; name the OUTPUT.receipt.json of a run of this version"
    )
