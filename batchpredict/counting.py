"""Numbers of things, in words."""

from __future__ import annotations


def count(value: int, one: str, many: str = "") -> str:
    """`1 run`, `1,200 runs`."""
    return f"{value:,} {one if value == 1 else many or one + 's'}"
