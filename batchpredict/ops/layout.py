"""JSON that another process wrote, checked against what it is to be."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import MISSING, fields
from functools import cache
from types import UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")
# Characters of a value in a message.
_MOST_SHOWN = 40


class LayoutInvalid(Exception):
    """Says what is wrong, not where."""


def part(content: Any, name: str, kind: type[T]) -> T:
    """A value by its name, dots between names of objects. Raises LayoutInvalid."""
    value = content
    keys = name.split(".")
    for depth, key in enumerate(keys, 1):
        if not isinstance(value, dict) or key not in value:
            raise LayoutInvalid(f"it lacks {'.'.join(keys[:depth])}")
        value = value[key]
    if not isinstance(value, kind):
        raise LayoutInvalid(f"{name} cannot be {_shown(value)}")
    return value


def made(cls: type[T], content: Any, name: str, **defaults: Any) -> T:
    """A dataclass of what an object says of its fields; whatever else it says is left alone.

    `defaults`: besides those of the class. Raises LayoutInvalid, and what the class raises.
    """
    if not isinstance(content, Mapping):
        raise LayoutInvalid(f"it lacks {name}")
    hints, values = _hints(cast(Hashable, cls)), dict(defaults)
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name in content:
            values[field.name] = content[field.name]
            if not _fits(values[field.name], hints[field.name]):
                raise LayoutInvalid(f"{name}.{field.name} cannot be {_shown(values[field.name])}")
        elif field.name not in values and (field.default, field.default_factory) == (MISSING,) * 2:
            raise LayoutInvalid(f"it lacks {name}.{field.name}")
    return cls(**values)


@cache
def _hints(cls: Any) -> Mapping[str, Any]:
    return get_type_hints(cls)


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        if arguments[-1] is Ellipsis:
            arguments = arguments[:1] * len(value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    if origin is dict:
        return isinstance(value, dict) and all(_fits(v, arguments[1]) for v in value.values())
    return isinstance(value, int | float if hint is float else hint)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"
