"""Columns out of the records of a block, with values as they are spelled in the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from batchpredict.data.json_numbers import Int64s, Mask, texts_between
from batchpredict.data.json_plain import Plain
from batchpredict.data.jsontext import member_texts
from batchpredict.data.records import Carry

_JSON = pa.json_(pa.string())
_STRINGS = {str, type(None)}
_QUOTE, _NULL = ord('"'), ord("n")


class Part(Protocol):
    """Some records of a block, those at `index` in it (int64, ascending).

    All arrays have one value per record.
    """

    @property
    def index(self) -> Int64s: ...

    def is_text(self, name: str) -> bool:
        """Whether every value of a member is a string, null or absent."""
        ...

    def text(self, name: str) -> pa.Array:
        """Decoded strings, where all are; null and absent ones are null."""
        ...

    def json(self, name: str) -> pa.Array:
        """Each value's JSON text (`string`); null and absent ones are null."""
        ...

    def cells(self, name: str) -> pa.Array:
        """Each value's JSON text (`binary`); absent ones are null."""
        ...

    def values(self, name: str) -> pa.Array:
        """Decoded strings, the JSON text of other values; null and absent ones are null."""
        ...


class Columns:
    """Columns of all the records of `parts` (one or more), in the order of the block."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        index = np.concatenate([part.index for part in parts])
        self._order = np.argsort(index)
        self.index: Int64s = index[self._order]

    def column(self, name: str) -> pa.Array:
        """As in Records.columns."""
        if all(part.is_text(name) for part in self._parts):
            return self._merged(lambda part: part.text(name))
        return pa.ExtensionArray.from_storage(_JSON, self._merged(lambda part: part.json(name)))

    def kept(self, name: str, carry: Carry) -> pa.Array:
        """As in Records.kept."""
        if carry == "cell":
            return self._merged(lambda part: part.cells(name))
        return self._merged(lambda part: part.values(name))

    def _merged(self, array_of: Callable[[Part], pa.Array]) -> pa.Array:
        arrays = [array_of(part) for part in self._parts]
        if len(arrays) == 1:
            return arrays[0]
        return pa.concat_arrays(arrays).take(pa.array(self._order))


@dataclass(frozen=True)
class _Stretches:
    """Where the values of a member are; `is_quoted`, `is_null`: bool [records]."""

    starts: Int64s
    ends: Int64s
    is_quoted: Mask
    is_null: Mask


class PlainPart:
    """Records whose values are known by their places in the block's `data`."""

    def __init__(self, plain: Plain, data: bytes) -> None:
        self.index = plain.index
        self._plain = plain
        self._bytes = np.frombuffer(data, np.uint8)
        self._data = pa.py_buffer(data)

    def _stretches(self, name: str) -> _Stretches | None:
        span = self._plain.span(name)
        if span is None:
            return None
        first = self._bytes.take(span[0])
        # NaN is no null, and a number.
        return _Stretches(*span, is_quoted=first == _QUOTE, is_null=first == _NULL)

    def is_text(self, name: str) -> bool:
        at = self._stretches(name)
        return at is None or bool((at.is_quoted | at.is_null).all())

    def text(self, name: str) -> pa.Array:
        return self.values(name)

    def json(self, name: str) -> pa.Array:
        at = self._stretches(name)
        if at is None:
            return pa.nulls(len(self.index), pa.string())
        return texts_between(self._data, at.starts, at.ends, pa.string(), at.is_null)

    def cells(self, name: str) -> pa.Array:
        at = self._stretches(name)
        if at is None:
            return pa.nulls(len(self.index), pa.binary())
        return texts_between(self._data, at.starts, at.ends, pa.binary())

    def values(self, name: str) -> pa.Array:
        at = self._stretches(name)
        if at is None:
            return pa.nulls(len(self.index), pa.string())
        starts, ends = at.starts + at.is_quoted, at.ends - at.is_quoted
        return texts_between(self._data, starts, ends, pa.string(), at.is_null)


@dataclass(frozen=True)
class WholePart:
    """Records parsed one by one: at `places` in their block, what `jsontext.decode` made of
    them, and their text.
    """

    places: list[int]
    objects: list[dict[str, Any]]
    texts: list[str]
    _members: dict[int, dict[str, str]] = field(default_factory=dict)

    @property
    def index(self) -> Int64s:
        return np.array(self.places, np.int64)

    def is_text(self, name: str) -> bool:
        return {type(record.get(name)) for record in self.objects} <= _STRINGS

    def text(self, name: str) -> pa.Array:
        return pa.array([record.get(name) for record in self.objects], pa.string())

    def json(self, name: str) -> pa.Array:
        texts = [
            None if (value := record.get(name)) is None else self._text(index, name, value)
            for index, record in enumerate(self.objects)
        ]
        return pa.array(texts, pa.string())

    def cells(self, name: str) -> pa.Array:
        cells = [
            self._text(index, name, record[name]) if name in record else None
            for index, record in enumerate(self.objects)
        ]
        return pa.array(cells, pa.binary())

    def values(self, name: str) -> pa.Array:
        values = [record.get(name) for record in self.objects]
        texts = [
            value if type(value) in _STRINGS else self._text(index, name, value)
            for index, value in enumerate(values)
        ]
        return pa.array(texts, pa.string())

    def _text(self, index: int, name: str, value: Any) -> str | bytes:
        """A member's JSON text. Most values show it, only the others need another look."""
        if type(value) is bytes:
            return value
        if value is None:
            return "null"
        if type(value) is bool:
            return "true" if value else "false"
        if type(value) is str and "\\" not in self.texts[index]:
            return f'"{value}"'
        if index not in self._members:
            self._members[index] = member_texts(self.texts[index])
        return self._members[index][name]
