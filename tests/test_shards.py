"""Shards of text: their borders follow from the rows, and each can be read by itself."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from batchpredict.data import (
    csv_blocks,
    csv_cut,
    csv_reader,
    csv_shards,
    encoding,
    jsonreader,
    jsontext,
)
from batchpredict.data.formats import FORMATS
from batchpredict.data.records import WHOLE, Dialect, Reader, Records, Selection, Shard
from batchpredict.data.sources import source_of
from batchpredict.errors import InputInvalid
from tests.sources import MemorySource

BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Row:
    """All that a reader tells of a row; `start` behind a byte order mark."""

    number: int
    line: int
    start: int
    told: Any


def rows_of(blocks: Iterable[Records], data: bytes) -> Iterator[tuple[Row, bool]]:
    """The rows in order, and whether each is said to begin a shard."""
    bom = len(BOM) if data.startswith(BOM) else 0
    begins = [bom, *(place + 1 for place, byte in enumerate(data) if byte == 10)]
    for block in blocks:
        assert block.lines is not None
        assert block.offsets is not None
        values = [tuple(decoded(column)) for column in (*block.columns, *block.kept)]
        told: list[tuple[int, int, int | None, Any]] = [
            (row, line, offset, (raw, weight, *rest))
            for row, line, offset, raw, weight, *rest in zip(
                block.rows.tolist(),
                block.lines.tolist(),
                block.offsets.tolist(),
                block.raw.to_pylist(),
                block.weight.tolist(),
                *values,
                strict=True,
            )
        ]
        told += [(lost.row, lost.line or 0, lost.offset, lost) for lost in block.rejects]
        assert list(block.breaks) == sorted({row for row, *_ in told} & {*block.breaks})
        for row, line, offset, what in sorted(told, key=lambda one: one[0]):
            start = begins[line - 1] - bom
            if offset is not None:
                assert offset in (start, start + bom)
            yield Row(row, line, start, (what, offset)), row in block.breaks


def decoded(column: pa.Array) -> list[Any]:
    """JSON texts of one block may be plain strings in another one."""
    if column.type != pa.json_(pa.string()):
        return cast(list[Any], column.to_pylist())
    return [None if text is None else json.loads(text) for text in column.storage.to_pylist()]


@dataclass(frozen=True)
class Reading:
    """How an input is read. `step`: bytes the source gives at once."""

    format: str
    data: bytes
    dialect: Dialect
    step: int = 1 << 20
    survey: tuple[str, ...] | bool = False

    def source(self) -> MemorySource:
        return MemorySource(self.data, self.step)

    def reader(self) -> Reader:
        return FORMATS[self.format].module.open_reader(self.source(), self.dialect, self.survey)

    def rows(self, shard: Shard = WHOLE) -> Iterator[tuple[Row, bool]]:
        reader = self.reader()
        column = (reader.schema.names or ["a"])[-1]
        yield from rows_of(reader.records(Selection((column,), (), "record"), shard), self.data)

    def shards(self) -> list[Shard]:
        return list(FORMATS[self.format].module.shards(self.source(), self.dialect))


def check(found: list[tuple[Row, bool]], part: Reading) -> list[Shard]:
    """All the laws of shards. `found`: by reading the whole input."""
    rows = [row for row, _ in found]
    assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    size = part.dialect.shard_bytes
    groups = [list(group) for _, group in groupby(rows, lambda row: row.start // size)]
    shards = part.shards()
    assert [(s.number, s.start, s.row, s.line, s.rows) for s in shards if s.rows] == [
        (number, group[0].start, group[0].number, group[0].line, len(group))
        for number, group in enumerate(groups)
    ]
    if not groups:
        assert [(s.number, s.row, s.rows) for s in shards] == [(0, 1, 0)]
    assert [row.number for row, breaks in found if breaks] == [shard.row for shard in shards[1:]]
    for shard, group in zip(shards, groups, strict=False):
        alone: list[Row] = []
        for row, breaks in part.rows(shard):
            if len(alone) == shard.rows:
                assert breaks
                break
            assert not breaks
            alone.append(row)
        assert alone == group
    return shards


@contextlib.contextmanager
def blocks_of(size: int, head: int) -> Iterator[None]:
    """Readers that cut their input into blocks of so many bytes."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (csv_blocks, csv_reader, jsontext):
            patch.setattr(module, "BLOCK_BYTES", size)
        patch.setattr(csv_shards, "_BLOCK_BYTES", size)
        patch.setattr(csv_cut, "_EXACT_BYTES", size)
        patch.setattr(encoding, "_CHUNK", size)
        for module in (csv_blocks, csv_reader):
            patch.setattr(module, "HEAD_BYTES", head)
        for module in (jsontext, jsonreader):
            patch.setattr(module, "CUT_BYTES", head)
        yield


quickly = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
sizes = st.sampled_from([1, 2, 7, 30, 63, 64, 65, 128, 1000])
shard_sizes = st.integers(1, 200) | st.sampled_from([1, 64, 128])

CSV_PIECES = [
    b"a", b"bc" * 9, b",", b",", b"\n", b"\n", b'"', b'"', b"\r\n", b"\r", b'""', b',"', b'",',
    b'"\n', b'"\r\n', b'\n"', b"\n\n", b"\r\n\r\n", "é".encode(), b"\xff", b"x" * 70,
]  # fmt: skip
# Records whose quoting is regular; only of these large blocks are counted rather than cut.
CSV_RECORDS = [
    b"a,b\n", b"a,b\n", b'"x\ny",b\r\n', b'"""",""\n', b'"x,""\n"\n', b"\n", b"\r\n", b"\r\r\n",
    b"c" * 70 + b",d\n", b'"%s",e\n' % (b"l\n" * 40), b"\xff,f\r\n", b"a,b,c\n", b",\n",
]  # fmt: skip
csv_texts = st.one_of(
    st.lists(st.sampled_from(CSV_PIECES), min_size=5, max_size=60).map(b"".join),
    st.tuples(
        st.lists(st.sampled_from(CSV_RECORDS), min_size=20, max_size=60).map(b"".join),
        st.sampled_from([b"", b"a,b", b'"x\ny",b', b'"x\ny"\r', b'"x\ny', b"\r", b'"x\ny"']),
    ).map(b"".join),
)


@quickly
@given(
    csv_texts,
    st.sampled_from([b"a\n", b"a,b\n", b'\r\n"a",b\r\n', b'"a\n",b,c\n', BOM + b"a,b\n", b""]),
    shard_sizes,
    st.sampled_from([8, 20, 64, 1000]),
    st.tuples(sizes, sizes, sizes),
)
@example(b'"a\nb,"c",d\ne,f\n', b"a,b\n", 3, 1000, (3, 1, 1))
@example(b'"x\ny"\r', b"a\n", 1, 1000, (1, 1000, 1))
@example(b"x" * 70 + b"\n\n\r\n,", b"a,b\n", 10, 20, (30, 2, 64))
def test_shards_of_csv_are_those_of_its_rows(
    body: bytes, header: bytes, size: int, longest: int, steps: tuple[int, int, int]
) -> None:
    dialect = Dialect(header=bool(header), max_record_bytes=longest, shard_bytes=size)
    whole = Reading("csv", header + body, dialect)
    with blocks_of(steps[0], 40):
        try:
            whole.reader()
        except InputInvalid:  # without a header the first record has to be one
            assume(False)
        found = list(whole.rows())
    with blocks_of(steps[1], 40):
        check(found, replace(whole, step=steps[2]))


LINES = [
    b'{"a": 1}', b'{"a": "x"}', b' {"b": "y\\n"} ', b'{"a": "long %s"}' % (b"z" * 70), b"", b"",
    b" ", b"\t \r", b"\r", b" " * 25, b"\x0b", b"[1]", b"{", b'{"a": "\xff"}', b"\xef\xbb\xbf{}",
    b"\xff\xfe", b"\xc2\x85", b"q" * 90, b"q" * 33 + b"\r", b'{"a": "%s"}\r' % (b"q" * 24),
]  # fmt: skip


@quickly
@given(
    st.lists(
        st.tuples(st.sampled_from(LINES), st.sampled_from([b"\n", b"\n", b"\r\n"])), max_size=30
    ),
    st.sampled_from([b"", BOM, b'{"a": 0}\n']),
    st.booleans(),
    shard_sizes,
    st.sampled_from([1, 8, 20, 33, 64, 1000]),
    st.tuples(sizes, sizes, sizes),
)
@example([(b" " * 25, b"\n"), (b"", b"\n")], b"", False, 5, 24, (3, 1, 1))
def test_shards_of_json_lines_are_those_of_its_rows(
    lines: list[tuple[bytes, bytes]],
    begin: bytes,
    open_end: bool,
    size: int,
    longest: int,
    steps: tuple[int, int, int],
) -> None:
    text = b"".join(line + end for line, end in lines)
    data = begin + (text.rstrip(b"\n") if open_end else text)
    if data.startswith((b"\xff\xfe", BOM + BOM)):
        return
    dialect = Dialect(max_record_bytes=longest, shard_bytes=size)
    whole = Reading("jsonl", data, dialect, survey=("a", "b"))
    with blocks_of(steps[0], 32):
        found = list(whole.rows())
    with blocks_of(steps[1], 32):
        check(found, replace(whole, step=steps[2]))


def shards_of(format: str, data: bytes, **dialect: Any) -> list[tuple[int, int, int, int | None]]:
    """Checked and without their numbers: start, row, line, rows."""
    reading = Reading(format, data, Dialect(**dialect))
    return [(s.start, s.row, s.line, s.rows) for s in check(list(reading.rows()), reading)]


def test_a_record_belongs_to_the_shard_of_its_first_byte() -> None:
    rows = b'a,b\n1,2\n"3\n\n4",5\n6,7\n'
    assert shards_of("csv", rows, shard_bytes=10) == [(4, 1, 2, 2), (17, 3, 6, 1)]
    assert shards_of("csv", rows, shard_bytes=4) == [(4, 1, 2, 1), (8, 2, 3, 1), (17, 3, 6, 1)]


def test_shards_are_counted_behind_a_byte_order_mark() -> None:
    for format, header in (("csv", b"a,b\n"), ("jsonl", b"{}\n\n")):
        row = b'1,"2"\n' if format == "csv" else b"{ }  \n"
        plain = shards_of(format, header + row * 4, shard_bytes=10)
        assert shards_of(format, BOM + header + row * 4, shard_bytes=10) == plain
        assert [start for start, *_ in plain][1:] == [10, 22]


def test_crlf_and_a_last_line_without_an_end() -> None:
    assert shards_of("csv", b"a\r\n1\r\n2\r\n3", shard_bytes=6) == [(3, 1, 2, 1), (6, 2, 3, 2)]
    assert shards_of("jsonl", b"{}\r\n{}\r\n{}", shard_bytes=8) == [(0, 1, 1, 2), (8, 3, 3, 1)]


def test_a_record_longer_than_shards_leaves_some_without_rows() -> None:
    data = b"a,b\n" + b"x" * 40 + b",1\n2,3\n"
    assert shards_of("csv", data, shard_bytes=8) == [(4, 1, 2, 1), (47, 2, 3, 1)]
    data = b'{"a": "' + b"x" * 40 + b'"}\n{}\n'
    assert shards_of("jsonl", data, shard_bytes=8) == [(0, 1, 1, 1), (50, 2, 2, 1)]


def test_blank_lines_at_a_border_are_in_no_shard() -> None:
    assert shards_of("csv", b"a\n1\n\n\r\n\n2\n", shard_bytes=5) == [(2, 1, 2, 1), (8, 2, 6, 1)]
    assert shards_of("jsonl", b"\n{}\n \n\t\n{}\n\n", shard_bytes=6) == [
        (1, 1, 2, 1),
        (8, 2, 5, 1),
    ]


@pytest.mark.parametrize(
    ("format", "data"), [("csv", b"a,b\n"), ("csv", b"a,b"), ("jsonl", b""), ("jsonl", b"\n \n")]
)
def test_an_input_without_rows_is_one_shard(format: str, data: bytes) -> None:
    ((_, row, _, rows),) = shards_of(format, data)
    assert (row, rows) == (1, 0)


def test_a_file_without_a_header_begins_with_its_first_row() -> None:
    assert shards_of("csv", b"\n1,2\n3,4\n", header=False, shard_bytes=5) == [
        (1, 1, 2, 1),
        (5, 2, 3, 1),
    ]


def test_lines_said_to_be_an_array() -> None:
    data = b'\n  {"a": 1}\n{"a": 2}\n'
    assert shards_of("json", data, json_array=True, shard_bytes=8) == [(1, 1, 2, 1), (12, 2, 3, 1)]


@pytest.mark.parametrize(
    ("format", "data", "dialect"),
    [
        ("json", b'[{"a": 1}, {"a": 2}, {"a": 3}]', Dialect(json_array=True)),
        ("csv", "a\n1\n2\n3\n4\n".encode("utf-16"), Dialect()),
        ("csv", b"a\n1\n2\n3\n\xe9\n", Dialect(encoding="latin-1")),
    ],
)
def test_what_is_read_from_its_begin_only_has_breaks_all_the_same(
    format: str, data: bytes, dialect: Dialect
) -> None:
    reading = Reading(format, data, replace(dialect, shard_bytes=4))
    assert reading.shards() == [WHOLE]
    reader = reading.reader()
    blocks = list(reader.records(Selection((), (), "record")))
    offsets = [int(o) // 4 for b in blocks for o in cast(Any, b.offsets)]
    rows = [int(row) for block in blocks for row in block.rows]
    expected = [row for row, (a, b) in zip(rows[1:], pairwise(offsets), strict=True) if a != b]
    assert expected
    assert [row for block in blocks for row in block.breaks] == expected


@pytest.mark.parametrize("format", ["csv", "json", "jsonl"])
def test_what_cannot_be_opened_in_the_middle_is_not_read(format: str) -> None:
    class Unread(MemorySource):
        def open(self, at: int = 0) -> BinaryIO:
            raise AssertionError("read")

    pipe, compressed = Unread(b"a\n1\n"), Unread(b"a\n1\n")
    pipe.rereadable, compressed.compression = False, ".gz"
    for source in (pipe, compressed):
        assert list(FORMATS[format].module.shards(source, Dialect())) == [WHOLE]


def test_the_pass_leaves_nothing_to_hash(tmp_path: Path) -> None:
    for format, data in (("csv", b"a,b\n" + b"1,2\n" * 1000), ("jsonl", b"{}\n" * 1000)):
        path = tmp_path / format
        path.write_bytes(data)
        with closing(source_of(str(path))) as source:
            list(FORMATS[format].module.shards(source, Dialect(shard_bytes=100)))
            assert source.position == len(data)
            path.chmod(0)  # what were to be opened again could not be
            assert source.mark().sha256 == hashlib.sha256(data).hexdigest()


def test_a_shard_is_known_before_the_input_ends() -> None:
    opened: list[BinaryIO] = []

    class Watched(MemorySource):
        def open(self, at: int = 0) -> BinaryIO:
            opened.append(super().open(at))
            return opened[-1]

    for format, data in (("csv", b"a\n" + b"1\n" * 10_000), ("jsonl", b"{}\n" * 10_000)):
        source = Watched(data, 100)
        with blocks_of(100, 40):
            first = next(iter(FORMATS[format].module.shards(source, Dialect(shard_bytes=400))))
            assert first.rows
            assert len(opened[-1].read(1 << 20)) == 100


def test_names_that_a_survey_found_spare_another() -> None:
    data = b'{"a": 1}\n{"b": 2}\n'
    surveyed = FORMATS["jsonl"].module.open_reader(MemorySource(data), Dialect(), True)
    pipe = MemorySource(data)
    pipe.rereadable = False
    told = FORMATS["jsonl"].module.open_reader(pipe, Dialect(), ["a", "b"])
    assert told.schema == surveyed.schema
    assert told.complete
    assert not FORMATS["jsonl"].module.open_reader(MemorySource(b"\n"), Dialect(), []).complete
