"""Values that strangers chose, and figures, as a person reads them."""

from __future__ import annotations

import unicodedata
from datetime import datetime

from batchpredict.errors import CONTROLS

# XML has no place for these two.
_GARBLING = CONTROLS | {0xFFFE: "\\ufffe", 0xFFFF: "\\uffff"}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def plain(text: str, most: int = 200) -> str:
    """One line that can neither control a terminal nor turn what follows; the middle of a long
    one left out.
    """
    if len(text) > most:
        half = (most - 1) // 2
        text = f"{text[:half]}…{text[-half:]}"
    return text.translate(_GARBLING).encode(errors="backslashreplace").decode()


def width(text: str) -> int:
    """Columns that a terminal needs."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))


def number(value: float) -> str:
    """`1,234`; below 100 with a digit after the point, where it is not whole."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def share(part: float, whole: float) -> str:
    """Per cent; what is not nothing does not become 0 %."""
    percent = 100 * part / whole if whole else 0.0
    if 0 < percent < 0.1:
        return "< 0.1 %"
    return f"{percent:.0f} %" if percent in (0, 100) else f"{percent:.1f} %"


def duration(seconds: float) -> str:
    """`850 ms`, `12.3 s`, `4 min 05 s`, `3 h 20 min`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.001 or not seconds else "< 1 ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """`310 B`, `41.3 KiB`."""
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"


def local(time: datetime) -> str:
    """To the second, by this machine's clock."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
