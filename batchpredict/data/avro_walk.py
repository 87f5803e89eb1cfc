"""Find where encoded Avro records and fields begin and end, without decoding them.

A record's bytes can then be passed on as they are and only what is asked for is decoded, at
four to five times the speed of decoding every record with fastavro.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Mapping
from typing import Any

from batchpredict.data.avro_container import Damaged
from batchpredict.data.avro_schema import RecordSchema, branches, kind_of

# Returns the position after a value that begins at a position. May point beyond the data, or
# raise IndexError, where the data ends early; moves backwards never.
Skip = Callable[[bytes, int], int]

_FIXED_BYTES = {"null": 0, "boolean": 1, "float": 4, "double": 8}
_LONGEST_VARINT = 10
# References to types followed within each other; what decodes the values recurses, too.
_MOST_LEVELS = 100
# Values that take no bytes, between two calls of `Walker.begin`: lists of nulls, records of
# them. Nine bytes could ask for 2^63.
_MOST_IDLE = 1 << 22
# Bytes taken by a text or byte string whose length is stated in the one byte that indexes this;
# 0 where more bytes, or a negative length, follow from it.
_SHORT = tuple(1 + (byte >> 1) if byte < 0x80 and not byte & 1 else 0 for byte in range(256))

_TEXT, _NUMBER, _FIXED, _OTHER = range(4)


# How to skip one field: its kind; its width where that is fixed; what skips any value of it; the
# bytes that choose the value's and the null's branch of a union of the two, else -1. A plain
# tuple, because the innermost loop unpacks one per field and record.
_Step = tuple[int, int, Skip, int, int]


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """An int or long and the position after it."""
    number = shift = 0
    while True:
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), position
        shift += 7
        if shift >= 7 * _LONGEST_VARINT:
            raise Damaged("a number does not end")


def _skip_number(data: bytes, position: int) -> int:
    return read_varint(data, position)[1]


def _skip_text(data: bytes, position: int) -> int:
    length, position = read_varint(data, position)
    if length < 0:
        raise Damaged("a length is negative")
    return position + length


def _skip_fixed(width: int) -> Skip:
    return lambda _, position: position + width


class _Idle:
    """Counts values that take no bytes: decoded they do take memory."""

    def __init__(self) -> None:
        self.left = _MOST_IDLE

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise Damaged(f"more than {_MOST_IDLE} values of nested types take no bytes")


class _Compiler:
    """Makes a Skip for each type; a type that contains itself is looked up when it is met."""

    def __init__(self, definitions: Mapping[str, Any], idle: _Idle) -> None:
        self._definitions = definitions
        self._idle = idle
        self._named: dict[str, Skip] = {}
        self._extents: dict[str, tuple[int | None, int]] = {}
        self._depth = 0

    def extent(self, node: Any) -> tuple[int | None, int]:
        """Bytes of every value of a type, None where they differ; and of how many values the
        one consists where they do not.
        """
        if isinstance(node, str) and node in self._definitions:
            if node not in self._extents:
                self._extents[node] = None, 1  # for one that contains itself
                self._extents[node] = self.extent(self._definitions[node])
            return self._extents[node]
        kind = kind_of(node)
        if kind == "fixed":
            return int(node["size"]), 1
        if kind in ("record", "error"):
            extents = [self.extent(field["type"]) for field in node["fields"]]
            widths = [width for width, _ in extents if width is not None]
            cells = 1 + sum(cells for _, cells in extents)
            return (sum(widths), cells) if len(widths) == len(extents) else (None, 1)
        return _FIXED_BYTES.get(kind), 1

    def width(self, node: Any) -> int | None:
        return self.extent(node)[0]

    def skip(self, node: Any) -> Skip:
        if isinstance(node, str) and node in self._definitions:
            return lambda data, position: self._by_name(node, data, position)
        width, cells = self.extent(node)
        if width is not None:
            return self._skip_fixed(width, cells)
        kind = kind_of(node)
        if kind in ("bytes", "string"):
            return _skip_text
        if kind in ("int", "long", "enum"):
            return _skip_number
        if kind == "union":
            return _skip_union([self._branch(branch) for branch in node])
        if kind == "array":
            return _skip_items(self.skip(node["items"]), *self.extent(node["items"]), self._idle)
        if kind == "map":
            value = self.skip(node["values"])
            return _skip_items(lambda d, p: value(d, _skip_text(d, p)), None, 1, self._idle)
        return _skip_all([self.skip(field["type"]) for field in node["fields"]])

    def _branch(self, node: Any) -> Skip:
        """The branch's number is a byte of its own, so one value is not idle."""
        return _skip_fixed(0) if kind_of(node) == "null" else self.skip(node)

    def _skip_fixed(self, width: int, cells: int) -> Skip:
        idle, spend = cells - width, self._idle.spend
        if idle <= 0:
            return _skip_fixed(width)

        def skip(_: bytes, position: int) -> int:
            spend(idle)
            return position + width

        return skip

    def _by_name(self, name: str, data: bytes, position: int) -> int:
        if name not in self._named:
            self._named[name] = self.skip(self._definitions[name])
        self._depth += 1  # whatever is raised below ends the walk
        if self._depth > _MOST_LEVELS:
            raise Damaged(f"it is nested more than {_MOST_LEVELS} levels deep")
        position = self._named[name](data, position)
        self._depth -= 1
        return position

    def step(self, node: Any) -> _Step:
        skip = self.skip(node)
        value = null = -1
        others = branches(node)
        if isinstance(node, list) and len(node) == 2 and len(others) == 1:
            null = 0 if kind_of(node[0]) == "null" else 2
            value = 2 - null
            node = others[0]
        width = self.width(node)
        if width is not None:
            return _FIXED, width, skip, value, null
        kind = kind_of(node)
        if kind in ("bytes", "string"):
            return _TEXT, 0, skip, value, null
        if kind in ("int", "long", "enum"):
            return _NUMBER, 0, skip, value, null
        return _OTHER, 0, skip, -1, -1


def _skip_all(skips: list[Skip]) -> Skip:
    def skip(data: bytes, position: int) -> int:
        for skip_field in skips:
            position = skip_field(data, position)
        return position

    return skip


def _skip_union(skips: list[Skip]) -> Skip:
    def skip(data: bytes, position: int) -> int:
        branch, position = read_varint(data, position)
        if not 0 <= branch < len(skips):
            raise Damaged("a union has no such branch")
        return skips[branch](data, position)

    return skip


def _skip_items(skip_item: Skip, width: int | None, cells: int, idle: _Idle) -> Skip:
    """Arrays and maps: blocks of items, each with a count; a negative one states the size.

    `width`: of every item, which consists of `cells` values; None where they differ.
    """
    idle_cells = 0 if width is None else max(0, cells - width)

    def skip(data: bytes, position: int) -> int:
        while True:
            count, position = read_varint(data, position)
            if count == 0:
                return position
            stated = -1
            if count < 0:
                stated = _skip_text(data, position)
                count, position = -count, _skip_number(data, position)
            if width is not None:
                idle.spend(count * idle_cells)
                position += count * width
            else:
                for _ in range(count):
                    position = skip_item(data, position)
            # What decodes the items does not obey the size, so it must not be believed.
            if stated not in (-1, position):
                raise Damaged("the items of a list do not have the size it states")

    return skip


class Walker:
    """Finds borders in the records of one schema.

    `bordered`: the fields whose borders are wanted. `column`: for each of them the index, in
    the marks of a record, of its end; the mark before it is its start (the end of the record
    before it is the start of the first).
    """

    def __init__(self, schema: RecordSchema, bordered: Collection[str]) -> None:
        self._idle = _Idle()
        compiler = _Compiler(schema.definitions, self._idle)
        self._runs: list[list[_Step]] = []
        self.column: dict[str, int] = {}
        joinable = False
        for field in schema.fields:
            step = compiler.step(field["type"])
            if field["name"] in bordered:
                self.column[field["name"]] = len(self._runs)
                self._runs.append([step])
                joinable = False
            elif joinable:
                self._runs[-1].append(step)
            else:
                self._runs.append([step])
                joinable = True
        self._runs = self._runs or [[]]

    @property
    def marks_per_record(self) -> int:
        return len(self._runs)

    def begin(self) -> None:
        """Records walked from here on are decoded apart from those before."""
        self._idle.left = _MOST_IDLE

    def walk(self, data: bytes, position: int, most: int, stop: int) -> array[int]:
        """The marks of the next records, each record's last being its end.

        Ends after `most` records, or with the record that reaches `stop`. An end may lie beyond
        the data where they end early. Raises Damaged, its second argument the index of the
        record that cannot be read.
        """
        marks = array("q")
        index = 0
        try:
            while index < most:
                position = self._record(data, position, marks)
                index += 1
                if position >= stop:
                    break
        except (IndexError, OverflowError, RecursionError) as error:
            raise Damaged("it ends early or is nested too deeply", index) from error
        except Damaged as error:
            raise Damaged(str(error), index) from error
        return marks

    def _record(self, data: bytes, position: int, marks: array[int]) -> int:
        for run in self._runs:
            for kind, width, skip, value, null in run:
                if value >= 0:
                    branch = data[position]
                    position += 1
                    if branch != value:
                        if branch != null:  # spelled in more bytes, or no branch at all
                            position = skip(data, position - 1)
                        continue
                if kind == _TEXT:
                    short = _SHORT[data[position]]
                    position = position + short if short else _skip_text(data, position)
                elif kind == _NUMBER:
                    while data[position] > 0x7F:
                        position += 1
                    position += 1
                elif kind == _FIXED:
                    position += width
                else:
                    position = skip(data, position)
            marks.append(position)
        return position
