"""What JSON records have in common that differ in their scalar values only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from batchpredict.data.jsontext import BLANK, decode, too_deep

# Longer texts between two values are not worth the padding that looking for them takes.
LONGEST_LITERAL = 4096

_TOKENS = re.compile(rb'[ \t\r\n]+|"[^"]*"|[{}:,]|\[[ \t\r\n]*\]|\[|[^][ \t\r\n"{}:,]+')


@dataclass(frozen=True)
class Span:
    """Where a member's value lies: from byte `start` of literal `first` to `end` of `last`."""

    first: int
    start: int
    last: int
    end: int


@dataclass(frozen=True, eq=False)
class Template:
    """The bytes around the scalar values of a record, nested objects' ones included.

    `literals`: before the first value, between each two, behind the last; all but the last hold
    a quote, none a backslash. `members`: the record's own ones, in order.
    """

    literals: tuple[bytes, ...]
    members: Mapping[str, Span]


def template_of(record: bytes) -> Template | None:
    """What `record` is an example of; None where it is no valid object or no such example is
    known to be safe: escapes, arrays that are not empty, a name that comes twice.

    `record`: without white space behind it.
    """
    if b"\\" in record or not _is_object(record):
        return None
    template = _Walk().over(record)
    if template is None or max(map(len, template.literals)) > LONGEST_LITERAL:
        return None
    return template


def _is_object(record: bytes) -> bool:
    try:
        text = record.decode().strip(BLANK)
        value, stop = decode(text)
    except (ValueError, RecursionError):
        return False
    return type(value) is dict and stop == len(text) and not too_deep(text)


class _Walk:
    """One pass over the tokens of a valid object without backslashes."""

    def __init__(self) -> None:
        self._literals: list[bytes] = []
        self._literal = bytearray()
        self._members: dict[str, Span] = {}
        self._name = ""
        self._start = (0, 0)
        self._depth = 0

    def over(self, record: bytes) -> Template | None:
        """The template that `record`, valid JSON, follows; None where it is not plain."""
        is_value = True
        for token in _TOKENS.findall(record):
            if token == b"[":
                return None
            if token.isspace():
                self._literal += token
            elif is_value:
                is_value = False
                self._value(token)
            else:
                is_value = token == b":"
                if token.startswith(b'"') and self._depth == 1:
                    self._name = token[1:-1].decode()
                    if self._name in self._members:
                        return None
                self._literal += token
                if token == b"}":
                    self._depth -= 1
                    self._end_member()
        if not self._literals:
            return None
        return Template((*self._literals, bytes(self._literal)), self._members)

    def _value(self, token: bytes) -> None:
        if self._depth == 1:
            self._start = self._place
        if token == b"{":
            self._literal += token
            self._depth += 1
            return
        if token.startswith(b"["):
            self._literal += token
        else:
            self._literals.append(bytes(self._literal))
            self._literal.clear()
        self._end_member()

    def _end_member(self) -> None:
        if self._depth == 1:
            self._members[self._name] = Span(*self._start, *self._place)

    @property
    def _place(self) -> tuple[int, int]:
        return len(self._literals), len(self._literal)
