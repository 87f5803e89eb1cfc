"""The wire format of protocol buffers (https://protobuf.dev/programming-guides/encoding/)."""

from __future__ import annotations

from collections.abc import Iterator

Value = int | memoryview

# Read in two to seven seconds. MiniLM has 4,000; one of a million n-grams has as many of them;
# more has only a file that was made for it.
_MOST_FIELDS = 2_000_000


class Truncated(ValueError):
    """A length runs over the end of its message."""


class TooManyFields(ValueError):
    """Reading on would take as long as the file's maker likes."""


class Fields:
    """Reads messages of one file; every field and number of it counts against one limit.

    Everything raises ValueError where the bytes are no such message.
    """

    def __init__(self) -> None:
        self._left = _MOST_FIELDS

    def of(self, view: memoryview) -> Iterator[tuple[int, Value]]:
        """(field number, number or bytes) of one message; fixed-width numbers come as bytes."""
        at = 0
        while at < len(view):
            self._left -= 1
            if self._left < 0:
                raise TooManyFields
            tag, at = _varint(view, at)
            number, wire = tag >> 3, tag & 7
            if tag >> 32:  # other readers drop these bits and see another field
                raise ValueError
            if wire == 0:
                value, at = _varint(view, at)
                yield number, value
                continue
            if wire == 2:
                size, at = _varint(view, at)
            elif wire in (1, 5):
                size = 8 if wire == 1 else 4
            else:
                raise ValueError
            if at + size > len(view):
                raise Truncated
            yield number, view[at : at + size]
            at += size

    def messages(self, view: memoryview, *numbers: int) -> Iterator[tuple[int, memoryview]]:
        """Those fields of a message that have one of these numbers, which hold bytes."""
        for number, value in self.of(view):
            if number in numbers:
                if isinstance(value, int):
                    raise ValueError
                yield number, value

    def packed(self, value: Value) -> list[int]:
        """Repeated int64, packed or one at a time."""
        if isinstance(value, int):
            return [signed(value)]
        self._left -= len(value)
        if self._left < 0:
            raise TooManyFields
        numbers, at = [], 0
        while at < len(value):
            number, at = _varint(value, at)
            numbers.append(signed(number))
        return numbers


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(view):
            raise Truncated
        byte = view[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError


def text(value: Value) -> str:
    if isinstance(value, int):
        raise ValueError
    return bytes(value).decode()


def signed(value: int) -> int:
    """The int64 of a varint, whose bits beyond 64 nobody reads."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value
