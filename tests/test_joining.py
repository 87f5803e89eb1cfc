"""Parts joined are the output that one writer writes, to the byte."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchpredict import s3
from batchpredict.data import avro, parquet, thrift_compact
from batchpredict.data import csv as csv_format
from batchpredict.data import json as json_format
from batchpredict.data.drafts import Draft
from batchpredict.data.records import (
    Carry,
    Dialect,
    FormatModule,
    Layout,
    Part,
    Reader,
    Records,
    Selection,
    Writer,
    take,
)
from batchpredict.data.sources import source_of
from batchpredict.data.thrift_compact import Field, List, Malformed, Struct, parse, spelled
from batchpredict.errors import InputMissing, TryAgain
from tests.sources import MemorySource
from tests.test_avro import CODECS, file_of

ADDED = pa.schema([("prediction", pa.string()), ("score", pa.float32())])
CARRIES: Sequence[Carry] = ("record", "cell", "value")
Rows = list[tuple[Records, pa.RecordBatch]]
TOOLS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}


def scored(first: int, end: int) -> pa.RecordBatch:
    labels = [None if i % 3 == 0 else f"label, {i % 5}" for i in range(first, end)]
    scores = [None if i % 4 == 0 else i / 7 for i in range(first, end)]
    return pa.RecordBatch.from_pydict({"prediction": labels, "score": scores}, ADDED)


@dataclass
class Run:
    """What shall be written: all rows of an opened input, cut behind each of `ends`.

    `suffix`: of the outputs, which says how they are compressed.
    """

    module: FormatModule
    reader: Reader
    carry: Carry
    ends: tuple[int, ...]
    suffix: str = ""

    @property
    def kept(self) -> pa.Schema:
        return pa.schema([]) if self.carry == "record" else self.reader.schema

    @property
    def layout(self) -> Layout:
        origin = None if self.carry == "value" else self.reader
        return Layout(self.carry, self.kept, ADDED, origin, self.reader.dialect)

    @cached_property
    def rows(self) -> list[Rows]:
        """What each part gets; a part may get nothing."""
        selection = Selection((), tuple(self.kept.names), self.carry)
        blocks = list(self.reader.records(selection))
        count = sum(map(len, blocks))
        borders = [0, *sorted(min(end, count) for end in self.ends), count]
        return [between(blocks, *pair) for pair in itertools.pairwise(borders)]


def between(blocks: Sequence[Records], first: int, end: int) -> Rows:
    result: Rows = []
    for block in blocks:
        start, stop = max(0, first), min(len(block), end)
        if start < stop:
            added = scored(int(block.rows[start]) - 1, int(block.rows[stop - 1]))
            result.append((take(block, np.arange(start, stop)), added))
        first, end = first - len(block), end - len(block)
    return result


@contextlib.contextmanager
def drafted(name: str, suffix: str) -> Iterator[Draft]:
    draft = Draft(name, suffix)
    try:
        yield draft
        draft.finish()
        draft.publish()
    finally:
        draft.abandon()


def write(writer: Writer, rows: Rows) -> None:
    for records, added in rows:
        writer.write(records, added)


def local(run: Run, directory: Path) -> bytes:
    """One output, cut where each part ends."""
    path = directory / f"whole{run.suffix}"
    with drafted(str(path), run.suffix) as draft:
        writer = run.module.open_writer(draft.stream, run.layout)
        draft.cut()
        for rows in run.rows:
            write(writer, rows)
            writer.cut()
            draft.cut()
        writer.close()
    return path.read_bytes()


def part(run: Run, rows: Rows, path: Path) -> Part:
    with drafted(str(path), run.suffix) as draft:
        writer = run.module.open_writer(draft.stream, run.layout)
        begin = draft.cut()
        write(writer, rows)
        writer.cut()
        end = draft.cut()
        writer.close()
    return Part(str(path), begin, end, path.stat().st_size)


def parts(run: Run, directory: Path) -> list[Part]:
    return [
        part(run, rows, directory / f"{number}{run.suffix}") for number, rows in enumerate(run.rows)
    ]


def joined(run: Run, directory: Path) -> bytes:
    return b"".join(map(bytes, run.module.join(parts(run, directory))))


def check(run: Run) -> bytes:
    """The law. What was written, decompressed."""
    with TemporaryDirectory() as name:
        directory = Path(name)
        whole = local(run, directory)
        assert joined(run, directory) == whole
        return source_of(str(directory / f"whole{run.suffix}")).open().read()


ENDS = st.lists(st.integers(0, 12), max_size=4).map(tuple)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=5)
ROWS = st.lists(st.tuples(TEXTS, st.integers(-(2**63), 2**63 - 1)), max_size=12)
SUFFIXES = st.sampled_from(["", ".gz", ".bz2", ".xz", ".zst"])


@settings(max_examples=40)
@given(
    ROWS, ENDS, SUFFIXES, st.sampled_from(CARRIES), st.booleans(), st.booleans()
)  # fmt: skip
def test_csv(
    rows: list[Any], ends: tuple[int, ...], suffix: str, carry: Carry, header: bool, last: bool
) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    data = text.getvalue().encode().removesuffix(b"" if last else b"\n")
    reader = csv_format.open_reader(MemorySource(data), Dialect(header=header), False)
    count = len(rows) + (not header)
    out = check(Run(csv_format, reader, carry, ends, suffix)).decode()
    read = list(csv.reader(io.StringIO(out, newline="")))
    assert len(read) == count + header
    assert [row[:2] for row in read[header:]] == [
        [a, str(b)] for a, b in ([] if header else [("a", "b")]) + rows
    ]


@settings(max_examples=40)
@given(ROWS, ENDS, SUFFIXES, st.sampled_from(CARRIES), st.booleans(), st.booleans())
def test_json_lines(
    rows: list[Any], ends: tuple[int, ...], suffix: str, carry: Carry, last: bool, from_array: bool
) -> None:
    out = check(json_run(rows, ends, suffix, carry, last, from_array, to_array=False))
    read = [json.loads(line) for line in out.splitlines()]
    assert [(row["a"], int(row["b"])) for row in read] == rows
    assert out.count(b"\n") >= len(rows) - 1


@settings(max_examples=40)
@given(ROWS, ENDS, st.sampled_from(CARRIES), st.booleans(), st.booleans())
def test_json_arrays(
    rows: list[Any], ends: tuple[int, ...], carry: Carry, last: bool, from_array: bool
) -> None:
    out = check(json_run(rows, ends, "", carry, last, from_array, to_array=True))
    assert [(row["a"], int(row["b"])) for row in json.loads(out)] == rows
    assert (out == b"[]\n") == (not rows)


def json_run(
    rows: list[Any],
    ends: tuple[int, ...],
    suffix: str,
    carry: Carry,
    last: bool,
    from_array: bool,
    *,
    to_array: bool,
) -> Run:
    lines = [json.dumps({"a": a, "b": b}).encode() for a, b in rows]
    data = b"".join(line + b"\n" for line in lines).removesuffix(b"" if last else b"\n")
    if from_array:
        data = b"[" + b",".join(lines) + b"]"
    source = MemorySource(data)
    reader = json_format.open_reader(source, Dialect(json_array=from_array), True)
    run = Run(json_format, reader, carry, ends, suffix)
    return Layed(run.module, run.reader, carry, ends, suffix, to_array=to_array)


@dataclass
class Layed(Run):
    """A run whose output is an array, or lines, whatever its input is."""

    to_array: bool = False

    @property
    def layout(self) -> Layout:
        from_run = super().layout
        return Layout(
            from_run.carry, from_run.kept, ADDED, from_run.origin, Dialect(json_array=self.to_array)
        )


COLUMNS: dict[str, pa.DataType] = {
    "text": pa.string(), "view": pa.string_view(), "bytes": pa.binary(), "flag": pa.bool_(),
    "whole": pa.int64(), "small": pa.uint8(), "float": pa.float32(), "double": pa.float64(),
    "day": pa.date32(), "zone": pa.timestamp("us", "Europe/Berlin"), "nanos": pa.timestamp("ns"),
    "span": pa.duration("ms"), "decimal": pa.decimal128(20, 2), "fixed": pa.binary(2),
    "choice": pa.dictionary(pa.int32(), pa.string()), "nothing": pa.null(),
    "list": pa.list_(pa.int16()), "struct": pa.struct([("a", pa.int64()), ("b", pa.string())]),
    "map": pa.map_(pa.string(), pa.list_(pa.float64())),
}  # fmt: skip
PARQUET_CODECS = ("none", "snappy", "gzip", "zstd", "brotli", "lz4")


def column(kind: pa.DataType, values: Sequence[int | None]) -> pa.Array:
    """Whatever the type makes of small numbers."""

    def made(value: int, kind: pa.DataType) -> Any:
        if pa.types.is_list(kind):
            return [made(value, kind.value_type)] * (value % 3)
        if pa.types.is_struct(kind):
            return {field.name: made(value, field.type) for field in kind}
        if pa.types.is_map(kind):
            return [("k", made(value, kind.item_type))]
        if pa.types.is_dictionary(kind):
            return f"choice {value % 4}"
        if kind == pa.bool_():
            return bool(value % 2)
        if kind in (pa.string(), pa.string_view()):
            return f"naïve {value}"
        if kind in (pa.binary(), pa.binary(2)):
            return bytes([value, 255])
        return None if kind == pa.null() else value

    chosen = [None if value is None else made(value, kind) for value in values]
    if pa.types.is_dictionary(kind):
        return pa.array(chosen, kind.value_type).dictionary_encode()
    return pa.array(chosen, kind)


@settings(max_examples=30)
@given(
    st.lists(st.none() | st.integers(0, 200), max_size=12),
    st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=6, unique=True),
    ENDS,
    st.sampled_from(CARRIES),
    st.sampled_from(PARQUET_CODECS),
    st.sampled_from([1, 5, 1 << 16]),
)
def test_parquet(
    values: list[int | None],
    names: list[str],
    ends: tuple[int, ...],
    carry: Carry,
    codec: str,
    group_rows: int,
) -> None:
    table = pa.table({name: column(COLUMNS[name], values) for name in names})
    table = table.replace_schema_metadata({"owner": "a team"})
    check_parquet(table, ends, carry, group_rows, compression=codec)


def check_parquet(
    table: pa.Table, ends: tuple[int, ...], carry: Carry, group_rows: int, **options: Any
) -> None:
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "_GROUP_ROWS", group_rows)
        path = Path(name) / "in.parquet"
        pq.write_table(table, path, **options)
        for data in (path.read_bytes(), out := check(parquet_run(path, carry, ends))):
            footer = data[-8 - int.from_bytes(data[-8:-4], "little") : -8]
            struct, size = parse(footer)
            assert (spelled(struct), size) == (footer, len(footer))
        read = pq.read_table(io.BytesIO(out))
        expected = pq.read_table(path, coerce_int96_timestamp_unit="us")
        assert read.select(table.column_names).to_pylist() == expected.to_pylist()
        assert read["score"].to_pylist() == scored(0, len(table))["score"].to_pylist()


def parquet_run(path: Path, carry: Carry, ends: tuple[int, ...]) -> Run:
    return Run(parquet, parquet.open_reader(source_of(str(path)), Dialect(), False), carry, ends)


@pytest.mark.parametrize("carry", CARRIES)
def test_int96_and_many_row_groups(carry: Carry) -> None:
    """Lists of more than 14 elements are spelled in another way."""
    table = pa.table({"at": column(pa.timestamp("us"), range(99))})
    check_parquet(table, tuple(range(3, 99, 3)), carry, 2, use_deprecated_int96_timestamps=True)


TABLE = {
    "type": "record", "name": "Table", "fields": [
        {"name": "a", "type": ["null", "string"]}, {"name": "b", "type": "long"},
        {"name": "c", "type": {"type": "array", "items": "long"}}]
}  # fmt: skip


@settings(max_examples=40)
@given(
    ROWS,
    ENDS,
    st.sampled_from(CODECS),
    st.sampled_from(CARRIES),
    st.sampled_from([1, 200, 16000]),
)
def test_avro(
    rows: list[Any], ends: tuple[int, ...], codec: str, carry: Carry, interval: int
) -> None:
    objects = [{"a": a, "b": b, "c": [b] * (b % 3)} for a, b in rows]
    data = file_of(TABLE, objects, codec=codec, sync_interval=interval)
    reader = avro.open_reader(MemorySource(data), Dialect(), False)
    run = Run(avro, reader, carry, ends)
    out = check(run)
    read: list[Any] = list(fastavro.reader(io.BytesIO(out)))
    assert [(row["a"], row["b"]) for row in read] == rows
    assert [row["prediction"] for row in read] == scored(0, len(rows))["prediction"].to_pylist()


@pytest.mark.parametrize("groups", [13, 14, 15, 16, 127, 128, 129])
def test_footers_are_spelled_as_pyarrow_spells_them(groups: int) -> None:
    """The heads of lists grow with their length."""
    table = pa.table({"n": column(pa.int64(), range(groups))})
    check_parquet(table, tuple(range(1, groups)), "record", 1)


def test_the_codec_takes_whatever_the_protocol_has() -> None:
    everything = Struct(
        [
            Field(1, thrift_compact.TRUE, True),
            Field(17, thrift_compact.FALSE, False),
            Field(16, thrift_compact.BYTE, 200),
            Field(-3, thrift_compact.I16, -(2**15)),
            Field(40, thrift_compact.I64, 2**63 - 1),
            Field(41, thrift_compact.DOUBLE, b"12345678"),
            Field(42, thrift_compact.LIST, List(thrift_compact.TRUE, [True, False])),
            Field(43, thrift_compact.SET, List(thrift_compact.BINARY, [b"x" * 300] * 20)),
            Field(44, thrift_compact.STRUCT, Struct([Field(1, thrift_compact.I32, -1)])),
        ]
    )
    data = spelled(everything)
    parsed, size = parse(data + b"more")
    assert size == len(data)
    assert spelled(parsed) == data
    assert parsed.get(-3) == -(2**15)
    assert parsed.get(44).get(1) == -1
    for end in range(len(data)):
        with pytest.raises(Malformed):
            parse(data[:end])
    for bad in (b"\x1b\x00", b"\x16" + b"\xff" * 11, b"\x1c" * 200):
        with pytest.raises(Malformed):
            parse(bad)


def rewritten(part: Part, ordinal: bool) -> Part:
    """A part whose row groups are numbered, or whose footer is another one."""
    data = Path(part.name).read_bytes()
    footer, _ = parse(data[part.end : -8])
    if ordinal:
        for group in footer.get(4).elements:
            group.fields.append(Field(7, thrift_compact.I16, 0))
    else:
        footer.put(6, b"another writer")
    changed = spelled(footer)
    ending = changed + len(changed).to_bytes(4, "little") + b"PAR1"
    Path(part.name).write_bytes(data[: part.end] + ending)
    return replace(part, size=part.end + len(ending))


def test_row_groups_are_numbered_anew_and_writers_are_not_mixed(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": range(9)}), tmp_path / "in.parquet")
    made = parts(parquet_run(tmp_path / "in.parquet", "record", (3, 6)), tmp_path)
    made = [rewritten(part, ordinal=True) for part in made]
    data = b"".join(map(bytes, parquet.join(made)))
    footer, _ = parse(data[-8 - int.from_bytes(data[-8:-4], "little") : -8])
    assert [group.get(7) for group in footer.get(4).elements] == [0, 1, 2]
    assert pq.read_table(io.BytesIO(data))["n"].to_pylist() == list(range(9))
    with pytest.raises(TryAgain, match="was not written as the first part was"):
        list(parquet.join([made[0], rewritten(made[1], ordinal=False)]))
    garbled = replace(made[2], end=made[2].end + 1)
    with pytest.raises(TryAgain, match="has another end than was written"):
        list(parquet.join([garbled]))


def test_parts_that_are_others_by_now(tmp_path: Path) -> None:
    run = json_run([("a", 1)] * 9, (3, 6), "", "record", True, False, to_array=False)
    made = parts(run, tmp_path)
    with pytest.raises(TryAgain, match=r"has \d+ bytes, not the \d+ written"):
        list(json_format.join([made[0], replace(made[1], size=made[1].size - 1)]))
    joining = json_format.join(made)
    next(joining)
    os.utime(made[0].name, (1, 1))
    with pytest.raises(TryAgain, match="changed while it was read"):
        list(joining)
    Path(made[2].name).unlink()
    with pytest.raises(InputMissing, match=made[2].name):
        list(json_format.join(made[1:]))


def test_parts_in_a_store(tmp_path: Path, s3_bucket: str) -> None:
    """As many bytes are asked for as are needed, each part from its first row on."""
    run = json_run([("a", 1)] * 9, (3, 6), ".gz", "record", True, False, to_array=False)
    made = parts(run, tmp_path)
    stored = []
    for number, part in enumerate(made):
        url = f"s3://{s3_bucket}/{number}.gz"
        s3.store().write(s3.parse(url), Path(part.name).read_bytes())
        stored.append(replace(part, name=url))
    assert b"".join(map(bytes, json_format.join(stored))) == local(run, tmp_path)
