"""Parquet parts joined: row groups are copied as they are, under one footer made of theirs.

Field numbers are those of parquet.thrift in Apache Parquet's format specification.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

from batchpredict.data.joining import StoredPart
from batchpredict.data.records import Part
from batchpredict.data.thrift_compact import Malformed, Struct, parse, spelled
from batchpredict.errors import TryAgain

_MAGIC = b"PAR1"
# A footer is followed by its length and the magic number.
_END_BYTES = 8
# FileMetaData
_NUM_ROWS, _ROW_GROUPS = 3, 4
# RowGroup
_COLUMNS, _ROWS_OF_GROUP, _FILE_OFFSET, _ORDINAL = 1, 3, 5, 7
# ColumnChunk
_META_DATA = 3
# ColumnMetaData: where data, index and dictionary pages and the bloom filter are
_OFFSETS = (9, 10, 11, 14)


class _Footer:
    """The footer of the joined file, as far as parts were added.

    Row groups are kept as bytes, which take a tenth of the memory.
    """

    def __init__(self) -> None:
        self._common: tuple[Struct, bytes] | None = None
        self._groups: list[bytes] = []
        self._rows = 0

    def add(self, part: Part, footer: bytes, moved: int) -> None:
        """`moved`: by so many bytes its row groups lie further on than in the part."""
        metadata = _parsed(part, footer)
        groups = metadata.get(_ROW_GROUPS)
        for group in groups.elements:
            _move(group, moved, len(self._groups))
            self._rows += group.get(_ROWS_OF_GROUP)
            self._groups.append(spelled(group))
        groups.elements = []
        metadata.put(_NUM_ROWS, 0)
        common = spelled(metadata)
        if self._common is None:
            self._common = metadata, common
        elif self._common[1] != common:
            raise TryAgain(f"{part.name}: was not written as the first part was; run again")

    def spelled(self) -> bytes:
        assert self._common is not None
        metadata = self._common[0]
        metadata.put(_NUM_ROWS, self._rows)
        metadata.get(_ROW_GROUPS).elements = self._groups
        footer = spelled(metadata)
        return footer + len(footer).to_bytes(4, "little") + _MAGIC


def _parsed(part: Part, footer: bytes) -> Struct:
    try:
        metadata, size = parse(footer)
    except Malformed:
        size = -1
    if size + _END_BYTES != len(footer) or footer[-len(_MAGIC) :] != _MAGIC:
        raise TryAgain(f"{part.name}: has another end than was written; run again")
    return metadata


def _move(group: Struct, moved: int, ordinal: int) -> None:
    for chunk in group.get(_COLUMNS).elements:
        pages = chunk.get(_META_DATA)
        for offset in _OFFSETS:
            if pages.get(offset) is not None:
                pages.put(offset, pages.get(offset) + moved)
    if group.get(_FILE_OFFSET) is not None:
        group.put(_FILE_OFFSET, group.get(_FILE_OFFSET) + moved)
    if group.get(_ORDINAL) is not None:
        group.put(_ORDINAL, ordinal)


def joined(parts: Sequence[Part]) -> Iterator[bytes | memoryview]:
    """See FormatModule.join. What is held of each part is the metadata of its row groups."""
    footer = _Footer()
    position = 0
    for part in parts:
        begin = part.begin if position else 0
        with closing(StoredPart(part, begin)) as stored:
            yield from stored.up_to(part.end)
            footer.add(part, stored.rest(), position - begin)
        position += part.end - begin
    yield footer.spelled()
