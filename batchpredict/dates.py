"""Dates in the names of files: `users_{date}.csv`. Pure; today's date is handed in."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from datetime import date, timedelta

from batchpredict.errors import UsageError

# What each field stands for, and how it is written where it has no format.
_FIELDS: dict[str, tuple[Callable[[date], date], str]] = {
    "date": (lambda day: day, "%Y-%m-%d"),
    "yesterday": (lambda day: day - timedelta(days=1), "%Y-%m-%d"),
    "month": (lambda day: day.replace(day=1), "%Y-%m"),
    "last_month": (lambda day: (day.replace(day=1) - timedelta(days=1)).replace(day=1), "%Y-%m"),
    "year": (lambda day: day.replace(month=1, day=1), "%Y"),
}
# Of strftime's directives those that a date fills, in the same way on every system.
_DIRECTIVES = "YymdjGVuaAbB%"
_TOKEN = re.compile(r"\{\{|\}\}|\{([A-Za-z_]+)([^{}]*)\}")
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
# Earlier years are no days of a job, and strftime does not fill them up with zeros.
_FIRST_YEAR = 1900


def expand(name: str, day: date) -> str:
    """`name` with its dates as of `day`. `{{` stands for `{`, `}}` for `}`.

    Braces around anything but a word stay. Raises UsageError (a word that is no field, a format
    that has no date).
    """

    def replaced(token: re.Match[str]) -> str:
        word, rest = token[1], token[2]
        if word is None:
            return token[0][0]
        if word not in _FIELDS and rest and rest[0] != ":":
            return token[0]
        return _written(name, token[0], day)

    return _TOKEN.sub(replaced, name)


def _written(name: str, token: str, day: date) -> str:
    word, colon, form = token[1:-1].partition(":")
    if word not in _FIELDS:
        near = difflib.get_close_matches(word.lower(), _FIELDS, 1)
        advice = f"did you mean {{{near[0]}}}? " if near else ""
        known = ", ".join(f"{{{field}}}" for field in _FIELDS)
        raise UsageError(
            f"{name}: {token} is no date ({known}, or {{date:%Y%m%d}}); {advice}"
            "braces of the name itself are written {{ and }}"
        )
    place, usual = _FIELDS[word]
    if not colon:
        return place(day).strftime(usual)
    _check_format(name, token, form)
    return place(day).strftime(form)


def _check_format(name: str, token: str, form: str) -> None:
    directives = re.findall(r"%(.?)", form, re.DOTALL)
    unknown = [each for each in directives if not each or each not in _DIRECTIVES]
    if unknown:
        raise UsageError(
            f"{name}: %{unknown[0]} in {token} is no part of a date; there are "
            + ", ".join(f"%{each}" for each in _DIRECTIVES)
        )
    if set(directives) <= {"%"}:
        raise UsageError(f"{name}: the format of {token} has no part of a date, such as %Y%m%d")


def has_date(name: str) -> bool:
    """Whether a date would be put into `name`."""
    return any(token[1] in _FIELDS for token in _TOKEN.finditer(name))


def before_date(name: str) -> str:
    """What `expand` makes of `name` up to its first date. Raises UsageError."""
    found = (token.start() for token in _TOKEN.finditer(name) if token[1] in _FIELDS)
    return expand(name[: next(found, None)], date.max)


def escape(name: str) -> str:
    """What `expand` makes `name` of."""
    return name.replace("{", "{{").replace("}", "}}")


def parse_day(option: str, text: str, today: date) -> date:
    """YYYY-MM-DD, `today` or `yesterday`. Raises UsageError, which names `option`."""
    relative = {"today": today, "yesterday": today - timedelta(days=1)}
    if text in relative:
        return relative[text]
    try:
        day = date.fromisoformat(text) if _DAY.fullmatch(text) else None
    except ValueError:
        day = None
    if day is None or day.year < _FIRST_YEAR:
        raise UsageError(
            f"--{option}={text}: must be a day as {today.isoformat()}, today or yesterday"
        )
    return day


def days_between(first: date, last: date) -> Sequence[date]:
    """Every day from `first` to `last`, both of them too."""
    return [first + timedelta(days=count) for count in range((last - first).days + 1)]
