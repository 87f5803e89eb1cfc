"""Avro files: what comes out is what went in, judged by fastavro reading whole files."""

from __future__ import annotations

import copy
import io
import itertools
import json
import struct
import tracemalloc
from collections.abc import Iterable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchpredict.data import avro, avro_container
from batchpredict.data.avro_container import zigzag
from batchpredict.data.avro_encode import encode
from batchpredict.data.records import (
    BLOCK_BYTES,
    WHOLE,
    Carry,
    Dialect,
    Layout,
    Records,
    Selection,
    Shard,
    take,
)
from batchpredict.data.sources import source_of
from batchpredict.errors import InputInvalid
from tests.sources import MemorySource

CODECS = ("null", "deflate", "bzip2", "snappy", "zstandard", "xz")
SYNC = b"0123456789abcdef"
ADDED = pa.schema([("prediction", pa.string()), ("score", pa.float32())])

RICH: dict[str, Any] = {
    "type": "record", "name": "Trade", "namespace": "shop.v1", "doc": "one trade",
    "aliases": ["Deal"], "owner": "a team",
    "fields": [
        {"name": "id", "type": "long", "doc": "key"},
        {"name": "text", "type": ["null", "string"], "default": None},
        {"name": "flag", "type": "boolean"},
        {"name": "ratio", "type": ["float", "null"]},
        {"name": "price", "type": "double", "order": "ignore"},
        {"name": "blob", "type": "bytes"},
        {"name": "many", "type": ["null", "int", "string", "bytes",
                                  {"type": "array", "items": "long"}]},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["BUY", "SELL"]}},
        {"name": "hash", "type": {"type": "fixed", "name": "Hash", "size": 4}},
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "at", "type": ["null", {"type": "long", "logicalType": "timestamp-micros"}]},
        {"name": "local", "type": {"type": "long", "logicalType": "local-timestamp-millis"}},
        {"name": "clock", "type": {"type": "int", "logicalType": "time-millis"}},
        {"name": "amount", "type": {"type": "bytes", "logicalType": "decimal",
                                    "precision": 30, "scale": 4}},
        {"name": "key", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "buyer", "type": {"type": "record", "name": "Party", "fields": [
            {"name": "name", "type": "string"},
            {"name": "kind", "type": ["null", "Kind"]}]}},
        {"name": "seller", "type": ["null", "Party"]},
        {"name": "tags", "type": {"type": "map", "values": "string"}},
        {"name": "tree", "type": {"type": "record", "name": "Node", "namespace": "", "fields": [
            {"name": "value", "type": "int"},
            {"name": "next", "type": ["null", "Node"]}]}},
        {"name": "last", "type": "int"},
    ],
}  # fmt: skip

_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=90)
_ints = st.integers(-(2**31), 2**31 - 1)
_longs = st.integers(-(2**63), 2**63 - 1)
_parties = st.fixed_dictionaries({"name": _texts, "kind": st.sampled_from([None, "BUY", "SELL"])})
_trees = st.recursive(
    st.fixed_dictionaries({"value": _ints, "next": st.none()}),
    lambda below: st.fixed_dictionaries({"value": _ints, "next": below}),
    max_leaves=3,
)
RICH_ROWS = st.fixed_dictionaries(
    {
        "id": _longs, "text": st.none() | _texts, "flag": st.booleans(),
        "ratio": st.none() | st.floats(width=32), "price": st.floats(),
        "blob": st.binary(max_size=70),
        "many": st.none() | _ints | _texts | st.binary(max_size=5) | st.lists(_longs, max_size=3),
        "kind": st.sampled_from(["BUY", "SELL"]), "hash": st.binary(min_size=4, max_size=4),
        "day": st.integers(-700000, 2900000), "at": st.none() | _longs, "local": _longs,
        "clock": st.integers(0, 86_399_999),
        "amount": st.integers(-(10**30) + 1, 10**30 - 1).map(
            lambda n: n.to_bytes(13, "big", signed=True)
        ),
        "key": st.uuids().map(str), "buyer": _parties, "seller": st.none() | _parties,
        "tags": st.dictionaries(_texts, _texts, max_size=3), "tree": _trees, "last": _ints,
    }
)  # fmt: skip
ROW = {
    "id": -7, "text": "naïve", "flag": True, "ratio": 0.5, "price": -0.0, "blob": b"\xff\x00",
    "many": b"x", "kind": "SELL", "hash": b"abcd", "day": 18000, "at": 1_600_000_000_000_001,
    "local": 1_600_000_000_000, "clock": 3_600_001,
    "amount": (-12345).to_bytes(13, "big", signed=True),
    "key": "12345678-1234-5678-1234-567812345678", "buyer": {"name": "Ann", "kind": "BUY"},
    "seller": None, "tags": {"a": "1"}, "tree": {"value": 1, "next": {"value": 2, "next": None}},
    "last": 9,
}  # fmt: skip


def without_logical(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {k: without_logical(v) for k, v in schema.items() if k != "logicalType"}
    return [without_logical(item) for item in schema] if isinstance(schema, list) else schema


def file_of(schema: Any, rows: Iterable[Any], **options: Any) -> bytes:
    """A file by fastavro that states the logical types, made from underlying values."""
    sink = io.BytesIO()
    parsed = fastavro.parse_schema(without_logical(copy.deepcopy(schema)))
    codec = options.get("codec", "null")
    own = options.pop("metadata", {})
    fastavro.writer(sink, parsed, rows, sync_marker=SYNC, **options)
    blocks = sink.getvalue().split(SYNC, 1)[1]
    metadata = {"avro.codec": codec, "avro.schema": json.dumps(schema), **own}
    header = io.BytesIO()
    coded = {key: value.encode() for key, value in metadata.items()}
    fastavro.schemaless_writer(header, {"type": "map", "values": "bytes"}, coded)
    return b"Obj\x01" + header.getvalue() + SYNC + blocks


def schema_in(data: bytes) -> Any:
    return json.loads(fastavro.reader(io.BytesIO(data)).metadata["avro.schema"])


def encoded(data: bytes) -> list[bytes]:
    """The encoding of each record, found by decoding every field, without logical types."""
    result = []
    schema = fastavro.parse_schema(without_logical(schema_in(data)))
    blocks: Any = fastavro.block_reader(io.BytesIO(data))
    for block in blocks:
        whole = block.bytes_.getvalue()
        for _ in range(block.num_records):
            start = block.bytes_.tell()
            fastavro.schemaless_reader(block.bytes_, schema, None)
            result.append(whole[start : block.bytes_.tell()])
    return result


def opened(data: bytes, **dialect: Any) -> avro.AvroReader:
    reader = avro.open_reader(MemorySource(data), Dialect(**dialect), False)
    assert isinstance(reader, avro.AvroReader)
    return reader


def selection(carry: Carry, *kept: str, model: tuple[str, ...] = ()) -> Selection:
    return Selection(model, kept, carry)


def scored(count: int, first: int = 0) -> pa.RecordBatch:
    labels = [None if i % 3 == 0 else f"label {i % 5}" for i in range(first, first + count)]
    scores = [None if i % 4 == 0 else i / 7 for i in range(first, first + count)]
    return pa.RecordBatch.from_pydict({"prediction": labels, "score": scores}, ADDED)


def converted(data: bytes, carry: Carry, kept: tuple[str, ...] = (), step: int = 0) -> bytes:
    """What the writer makes of a file; handed over `step` rows at a time."""
    reader = opened(data)
    sink = io.BytesIO()
    kept_schema = pa.schema([reader.schema.field(name) for name in kept])
    writer = avro.open_writer(sink, Layout(carry, kept_schema, ADDED, reader, Dialect()))
    first = 0
    for records in reader.records(selection(carry, *kept)):
        for start in range(0, len(records), step or len(records)):
            stop = min(start + (step or len(records)), len(records))
            writer.write(take(records, np.arange(start, stop)), scored(stop - start, first))
            first += stop - start
    writer.close()
    return sink.getvalue()


def encoded_score(index: int) -> bytes:
    sink = io.BytesIO()
    row = scored(1, index).to_pylist()[0]
    schema = fastavro.parse_schema(
        {"type": "record", "name": "S", "fields": [
            {"name": "prediction", "type": ["null", "string"]},
            {"name": "score", "type": ["null", "float"]}]}
    )  # fmt: skip
    fastavro.schemaless_writer(sink, schema, row)
    return sink.getvalue()


@pytest.mark.parametrize("codec", CODECS)
def test_records_keep_their_bytes_schema_metadata_and_codec(codec: str, tmp_path: Path) -> None:
    rows = [{**ROW, "id": i, "text": "x" * (i % 200)} for i in range(1500)]
    data = file_of(RICH, rows, codec=codec, sync_interval=3000, metadata={"origin": "a shop"})
    (tmp_path / "a.avro").write_bytes(data)
    reader = avro.open_reader(source_of(str(tmp_path / "a.avro")), Dialect(), False)
    first = next(iter(reader.records(selection("record"))))
    assert first.kept.num_columns == 0
    assert first.kept.num_rows == len(first)
    out = converted(data, "record")
    assert encoded(out) == [row + encoded_score(i) for i, row in enumerate(encoded(data))]
    result = fastavro.reader(io.BytesIO(out))
    assert result.codec == codec
    assert result.metadata["origin"] == "a shop"
    schema = schema_in(out)
    assert [f["name"] for f in schema["fields"][-2:]] == ["prediction", "score"]
    assert {**schema, "fields": schema["fields"][:-2]} == RICH


@given(st.lists(RICH_ROWS, min_size=1, max_size=8), st.sampled_from([1, 200, 16000]))
def test_any_record_keeps_its_bytes(rows: list[Any], interval: int) -> None:
    data = file_of(RICH, rows, sync_interval=interval)
    expected = encoded(data)
    blocks = list(opened(data).records(selection("record", model=("text", "last"))))
    assert [value for block in blocks for value in block.raw.to_pylist()] == expected
    assert [n for block in blocks for n in block.rows.tolist()] == list(range(1, len(rows) + 1))
    assert [w for block in blocks for w in block.weight.tolist()] == [len(e) for e in expected]
    assert [v for block in blocks for v in block.columns["text"].to_pylist()] == [
        row["text"] for row in rows
    ]
    assert [v for block in blocks for v in block.columns["last"].to_pylist()] == [
        row["last"] for row in rows
    ]


@given(
    st.lists(RICH_ROWS, min_size=1, max_size=4),
    st.lists(st.sampled_from([f["name"] for f in RICH["fields"]]), unique=True, min_size=1),
)
def test_kept_cells_keep_their_bytes(rows: list[Any], names: list[str]) -> None:
    data = file_of(RICH, rows)
    out = converted(data, "cell", tuple(names))
    fields = {field["name"]: field for field in without_logical(RICH)["fields"]}
    result = schema_in(out)
    assert [field["name"] for field in result["fields"][:-2]] == names
    assert result["owner"] == "a team"
    plain = fastavro.parse_schema(without_logical(result))
    back: list[Any] = [
        fastavro.schemaless_reader(io.BytesIO(row), plain, None) for row in encoded(out)
    ]
    for field in ("doc", "default", "order"):
        kept = [f.get(field, 0) for f in result["fields"][:-2]]
        assert kept == [fields[name].get(field, 0) for name in names]
    expected = fastavro.parse_schema(without_logical(copy.deepcopy(RICH)))
    for row, was in zip(back, encoded(data), strict=True):
        record: Any = fastavro.schemaless_reader(io.BytesIO(was), expected, None)
        assert repr([row[name] for name in names]) == repr([record[name] for name in names])


def test_bits_of_floats_and_odd_spellings_survive() -> None:
    """A NaN's payload, -0.0, a union branch in two bytes, an array with a block size."""
    schema = {"type": "record", "name": "R", "fields": [
        {"name": "d", "type": "double"}, {"name": "u", "type": ["null", "long"]},
        {"name": "a", "type": {"type": "array", "items": "long"}},
        {"name": "t", "type": "string"}]}  # fmt: skip
    payload = b"\x01\x02\x03\x04\x05\x06\xf8\x7f"
    odd = payload + b"\x82\x00\x06" + b"\x05\x06\x02\x04\x06\x00" + b"\x84\x00hi"
    even = struct.pack("<d", -0.0) + b"\x00" + b"\x00" + b"\x00"
    data = container(schema, [odd, even])
    records = next(iter(opened(data).records(selection("record", model=("d", "u", "a", "t")))))
    assert records.raw.to_pylist() == [odd, even]
    assert records.columns["d"].to_numpy().tobytes() == payload + even[:8]
    assert records.columns["u"].to_pylist() == [3, None]
    assert records.columns["a"].storage.to_pylist() == ["[1,2,3]", "[]"]
    assert records.columns["t"].to_pylist() == ["hi", ""]


def container(schema: Any, rows: list[bytes], count: int | None = None) -> bytes:
    """A file of records that are encoded already, in one block."""
    body = b"".join(rows)
    header = file_of(schema, [])
    size = zigzag(len(rows) if count is None else count) + zigzag(len(body))
    return header + size + body + SYNC


def test_values_have_arrow_types() -> None:
    data = file_of(RICH, [ROW, {**ROW, "at": None, "many": None}])
    reader = opened(data)
    names = tuple(reader.schema.names)
    records = next(iter(reader.records(selection("value", *names, model=("buyer", "amount")))))
    assert records.kept.schema == reader.schema
    kinds = {name: str(reader.schema.field(name).type) for name in names}
    assert kinds == {
        "id": "int64", "text": "string", "flag": "bool", "ratio": "float", "price": "double",
        "blob": "binary", "many": "extension<arrow.json>", "kind": "string",
        "hash": "fixed_size_binary[4]", "day": "date32[day]", "at": "timestamp[us, tz=UTC]",
        "local": "timestamp[ms]", "clock": "time32[ms]", "amount": "decimal128(30, 4)",
        "key": "string", "buyer": "struct<name: string, kind: string>",
        "seller": "struct<name: string, kind: string>", "tags": "map<string, string>",
        "tree": "extension<arrow.json>", "last": "int32",
    }  # fmt: skip
    row = {name: records.kept[name][0] for name in names}
    assert str(row["amount"]) == "-1.2345"
    assert str(row["at"]) == "2020-09-13 12:26:40.000001+00:00"
    assert str(row["day"]) == "2019-04-14"
    assert row["many"].as_py() == '"eA=="'
    assert row["tree"].value.as_py() == '{"value":1,"next":{"value":2,"next":null}}'
    assert row["tags"].as_py() == [("a", "1")]
    assert records.kept["at"].to_pylist()[1] is None
    assert records.kept["many"].storage.to_pylist() == ['"eA=="', None]
    assert records.columns["buyer"].storage[0].as_py() == '{"name":"Ann","kind":"BUY"}'
    assert records.columns["amount"].type == pa.decimal128(30, 4)


@given(st.lists(RICH_ROWS, min_size=1, max_size=5))
def test_values_agree_with_fastavro(rows: list[Any]) -> None:
    data = file_of(RICH, rows)
    names = ("id", "text", "flag", "ratio", "price", "blob", "kind", "hash", "key", "last")
    records = next(iter(opened(data).records(selection("value", *names))))
    assert repr(records.kept.to_pylist()) == repr(
        [{name: row[name] for name in names} for row in rows]
    )
    ticks = next(iter(opened(data).records(selection("value", "day", "at", "local", "amount"))))
    for name, kind in (("day", pa.int32()), ("at", pa.int64()), ("local", pa.int64())):
        assert ticks.kept[name].cast(kind).to_pylist() == [row[name] for row in rows]
    amounts = [int.from_bytes(row["amount"], "big", signed=True) for row in rows]
    assert [int(f"{value:f}".replace(".", "")) for value in ticks.kept["amount"].to_pylist()] == (
        amounts
    )


@pytest.mark.parametrize("carry", ["record", "cell", "value"])
@pytest.mark.parametrize("step", [1, 7])
def test_bytes_do_not_depend_on_how_rows_are_handed_over(carry: Carry, step: int) -> None:
    rows = [{**ROW, "id": i, "text": f"{i:04}" * 100} for i in range(600)]
    data = file_of(RICH, rows, sync_interval=5000)
    kept = () if carry == "record" else ("id", "text", "seller", "buyer")
    whole = converted(data, carry, kept)
    assert converted(data, carry, kept, step) == whole
    assert sum(1 for _ in fastavro.block_reader(io.BytesIO(whole))) > 1


@pytest.mark.parametrize("carry", ["record", "cell", "value"])
def test_no_rows(carry: Carry) -> None:
    out = converted(file_of(RICH, []), carry, () if carry == "record" else ("id",))
    assert list(fastavro.reader(io.BytesIO(out))) == []


def test_a_file_cut_anywhere_is_refused() -> None:
    data = file_of(RICH, [{**ROW, "id": i} for i in range(4)], codec="deflate", sync_interval=1)
    borders = {block.offset for block in fastavro.block_reader(io.BytesIO(data))}
    assert len(borders) == 4
    for size in range(len(data)):
        if size in borders:
            continue
        with pytest.raises(InputInvalid, match=r"^memory: .*(truncated|not an Avro file)"):
            list(opened(data[:size]).records(selection("record")))
    for size in borders:
        list(opened(data[:size]).records(selection("record")))


@pytest.mark.parametrize("codec", CODECS)
@given(data=st.data())
def test_damage_is_refused_or_makes_other_values(codec: str, data: st.DataObject) -> None:
    """Never another exception than InputInvalid; the checksums of some codecs always tell."""
    whole = bytearray(file_of(RICH, [{**ROW, "id": i} for i in range(6)], codec=codec))
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position] ^= data.draw(st.integers(1, 255))
    names = tuple(field["name"] for field in RICH["fields"])
    for carry in ("record", "cell", "value"):
        try:
            reader = opened(bytes(whole))
            kept = () if carry == "record" else [n for n in names if n in reader.schema.names]
            for records in reader.records(selection(carry, *kept)):
                for index in range(len(records)):
                    reader.original(records.raw, index)
        except InputInvalid:
            continue


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not an Avro file"),
        (b"id,text\n1,2\n", "is not an Avro file"),
        (file_of("long", [1, 2]), "its rows are of type long, not records"),
        (file_of(["null", "long"], [1]), "its rows are of type union, not records"),
        (
            file_of(RICH, [ROW]).replace(b"\x14avro.codec\x08null", b"\x14avro.codec\x08zzip"),
            "codec 'zzip' is not known",
        ),
        (
            file_of({"type": "record", "name": "R", "fields": []}, []).replace(
                b'"record"', b'"rekord"'
            ),
            "type rekord is not defined",
        ),
    ],
)
def test_what_cannot_be_read_is_said(data: bytes, message: str) -> None:
    with pytest.raises(InputInvalid, match=message) as caught:
        opened(data)
    assert "\n" not in str(caught.value)


PAIR = {"type": "record", "name": "R", "fields": [
    {"name": "t", "type": "string"}, {"name": "u", "type": ["null", "int"]}]}  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "row"),
    [
        ([b"\x02a\x00", b"\x02b\x04", b"\x02c\x00"], 2),  # no such branch
        ([b"\x02a\x00", b"\x02b\x00", b"\x03c\x00"], 3),  # a negative length
        ([b"\x02a\x00", b"\x7eb\x00"], 2),  # longer than the block
    ],
)
def test_a_record_that_cannot_be_decoded_is_named(rows: list[bytes], row: int) -> None:
    with pytest.raises(InputInvalid, match=f"row {row} cannot be read"):
        list(opened(container(PAIR, rows)).records(selection("record")))


def test_a_record_that_ends_beyond_its_block_is_named() -> None:
    schema = {**PAIR, "fields": PAIR["fields"][:1]}
    with pytest.raises(InputInvalid, match="row 2 cannot be read"):
        list(opened(container(schema, [b"\x02a", b"\x7eb"])).records(selection("record")))


def test_a_file_cut_inside_a_row_count_is_refused() -> None:
    """fastavro takes it for complete."""
    header = container(PAIR, [])[:-18]
    for cut in (b"\xc8", b"\x80\x80"):
        with pytest.raises(InputInvalid, match=r"the Avro block at byte \d+ is truncated"):
            list(opened(header + cut).records(selection("record")))


def test_a_wrong_sync_marker_is_refused() -> None:
    data = container(PAIR, [b"\x02a\x00"])
    with pytest.raises(InputInvalid, match="sync marker"):
        list(opened(data[:-1] + b"?").records(selection("record")))


def test_deflate_data_without_its_end_is_refused() -> None:
    data = file_of(PAIR, [{"t": "abc", "u": None}], codec="deflate")
    header, stored = data[: data.index(SYNC) + 18], data[data.index(SYNC) + 18 : -16]
    assert header[-1] == 2 * len(stored)
    cut = header[:-1] + zigzag(len(stored) - 5) + stored[:-5] + SYNC
    with pytest.raises(InputInvalid, match="deflate data ends early"):
        list(opened(cut).records(selection("record")))


def test_snappy_checksums_are_written_and_checked() -> None:
    data = file_of(PAIR, [{"t": "abc", "u": None}], codec="snappy")
    assert len(next(iter(opened(converted(data, "record")).records(selection("record"))))) == 1
    wrong = bytearray(data)
    wrong[-17] ^= 1
    with pytest.raises(InputInvalid, match="snappy checksum differs"):
        list(opened(bytes(wrong)).records(selection("record")))


def test_a_block_that_is_longer_than_its_rows_is_refused() -> None:
    with pytest.raises(InputInvalid, match="longer than its rows"):
        list(opened(container(PAIR, [b"\x02a\x00"] * 3, 2)).records(selection("record")))


def test_rows_that_cannot_be_decoded_are_rejected_alone() -> None:
    rows = [b"\x02a\x00", b"\x02\xff\x00", b"\x02c\x02\xfe\xff\xff\xff\x7f", b"\x02d\x02\x02"]
    data = container(PAIR, rows)
    records = next(iter(opened(data).records(selection("record", model=("t", "u")))))
    assert records.columns.to_pylist() == [{"t": "a", "u": None}, {"t": "d", "u": 1}]
    assert records.rows.tolist() == [1, 4]
    assert records.raw.to_pylist() == [rows[0], rows[3]]
    assert [(r.row, r.code) for r in records.rejects] == [(2, "invalid_utf8"), (3, "bad_type")]
    assert records.rejects[0].record == rows[1]
    assert len(next(iter(opened(data).records(selection("record"))))) == 4


def test_decimals_of_too_many_digits_are_rejected() -> None:
    node = {"type": "bytes", "logicalType": "decimal", "precision": 3, "scale": 1}
    schema = {"type": "record", "name": "R", "fields": [{"name": "d", "type": node}]}
    values = [999, 1000, -999, -1000]
    rows = [b"\x04" + value.to_bytes(2, "big", signed=True) for value in values]
    records = next(iter(opened(container(schema, rows)).records(selection("value", "d"))))
    assert records.kept["d"].to_pylist() == [Decimal("99.9"), Decimal("-99.9")]
    assert [(r.row, r.code) for r in records.rejects] == [(2, "bad_type"), (4, "bad_type")]


def test_long_records_are_rejected() -> None:
    data = file_of(PAIR, [{"t": "x" * n, "u": n} for n in (5, 200, 6)])
    reader = opened(data, max_record_bytes=100)
    records = next(iter(reader.records(selection("record", model=("u",)))))
    assert records.columns["u"].to_pylist() == [5, 6]
    assert [(r.row, r.code, r.record) for r in records.rejects] == [(2, "too_large", None)]


def test_original_shows_underlying_values() -> None:
    reader = opened(file_of(RICH, [ROW]))
    records = next(iter(reader.records(selection("record"))))
    record = reader.original(records.raw, 0)
    json.dumps(record)
    assert isinstance(record, dict)
    assert record["at"] == ROW["at"]
    assert record["blob"] == "/wA="
    assert record["tree"] == ROW["tree"]


def test_blocks_are_joined_and_split() -> None:
    rows = [{"t": "x" * 1000, "u": i} for i in range(5000)]
    for interval in (100, 10**9):
        data = file_of(PAIR, rows, sync_interval=interval)
        blocks = list(opened(data).records(selection("record", model=("u",))))
        assert [u for b in blocks for u in b.columns["u"].to_pylist()] == list(range(5000))
        sizes = [int(block.weight.sum()) for block in blocks]
        assert all(BLOCK_BYTES <= size < BLOCK_BYTES + 2000 for size in sizes[:-1])
    assert [row for block in blocks for row in block.rows.tolist()] == list(range(1, 5001))


def test_a_pipe_is_enough_and_rows_can_be_read_again() -> None:
    data = file_of(PAIR, [{"t": "a", "u": 1}] * 3)
    reader = avro.open_reader(MemorySource(data, step=3), Dialect(), False)
    for _ in range(2):
        assert sum(len(records) for records in reader.records(selection("record"))) == 3


def test_records_without_fields_are_rows() -> None:
    data = container({"type": "record", "name": "E", "fields": []}, [b""] * 70_000)
    counts = [len(records) for records in opened(data).records(selection("record"))]
    assert sum(counts) == 70_000
    assert len(counts) == 2


def test_memory_does_not_grow_with_blocks() -> None:
    def peak(rows: int) -> int:
        data = file_of(PAIR, ({"t": "x" * 500, "u": i} for i in range(rows)), codec="deflate")
        tracemalloc.start()
        arrow = 0
        for _ in opened(data).records(selection("record", model=("t",))):
            arrow = max(arrow, pa.total_allocated_bytes())
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest + arrow

    assert peak(24_000) < 1.2 * peak(8_000)


ARROW = pa.schema(
    [
        ("i8", pa.int8()), ("u32", pa.uint32()), ("u64", pa.uint64()), ("f2", pa.float16()),
        ("f4", pa.float32()), ("b", pa.bool_()), ("a b", pa.large_string()),
        ("a_b", pa.binary()), ("9", pa.date32()), ("s", pa.timestamp("s")),
        ("z", pa.timestamp("ns", "Europe/Berlin")), ("t", pa.time64("ns")),
        ("d", pa.decimal128(9, 2)), ("l", pa.list_(pa.float32())),
        ("st", pa.struct([("x y", pa.timestamp("ms")), ("n", pa.list_(pa.string()))])),
        ("m", pa.map_(pa.string(), pa.int64())), ("c", pa.dictionary(pa.int8(), pa.string())),
        ("n", pa.null()), ("j", pa.json_(pa.string())), ("lv", pa.list_view(pa.int8())),
    ]
)  # fmt: skip


def arrow_rows() -> pa.RecordBatch:
    j = pa.ExtensionArray.from_storage(pa.json_(pa.string()), pa.array(['"x"', "[1]", None]))
    z = pa.array([1, None, -1], pa.int64()).cast(pa.timestamp("ns", "Europe/Berlin"))
    t = pa.array([1, None, 2], pa.int64()).cast(pa.time64("ns"))
    columns = {
        "i8": [-128, None, 127], "u32": [2**32 - 1, None, 0], "u64": [2**64 - 1, None, 0],
        "f2": np.array([0.5, 0, 1], np.float16), "f4": [0.1, None, -0.0],
        "b": [True, None, False], "a b": ["é", None, ""], "a_b": [b"\xff", None, b""],
        "9": [date(2020, 1, 1), None, date(1969, 12, 31)],
        "s": [datetime(2020, 1, 1), None, datetime(1, 1, 1)], "z": z, "t": t,
        "d": [Decimal("-1.28"), None, Decimal("1.28")], "l": [[1.5, None], None, []],
        "st": [{"x y": datetime(2020, 1, 1), "n": ["a"]}, None, {"x y": None, "n": None}],
        "m": [[("k", 1)], None, []], "c": ["p", None, "q"], "n": [None] * 3, "j": j,
        "lv": [[1], None, [2, 3]],
    }  # fmt: skip
    return pa.record_batch(
        [c if isinstance(c, pa.Array) else pa.array(c, f.type) for c, f in
         zip(columns.values(), ARROW, strict=True)], ARROW)  # fmt: skip


def test_arrow_values_become_avro() -> None:
    batch = arrow_rows()
    sink = io.BytesIO()
    writer = avro.open_writer(sink, Layout("value", ARROW, ADDED, None, Dialect()))
    count = np.arange(3)
    empty = batch.select([])
    writer.write(Records(empty, batch, pa.nulls(3), count, None, count), scored(3))
    writer.close()
    data = sink.getvalue()
    names = [field["name"] for field in schema_in(data)["fields"]]
    assert names[6:9] == ["a_b_2", "a_b", "_9"]
    assert schema_in(data)["fields"][6]["doc"] == "a b"
    plain = fastavro.parse_schema(without_logical(schema_in(data)))
    rows: list[Any] = [
        fastavro.schemaless_reader(io.BytesIO(row), plain, None) for row in encoded(data)
    ]
    first = list(rows[0].values())[:-2]
    assert first == [
        -128, 2**32 - 1, (2**64 - 1).to_bytes(9, "big"), 0.5, float(np.float32(0.1)), True, "é",
        b"\xff", 18262, 1577836800000, 1, "00:00:00.000000001", b"\x80", [1.5, None],
        {"x_y": 1577836800000, "n": ["a"]}, {"k": 1}, "p", None, "x", [1],
    ]  # fmt: skip
    assert rows[2]["d"] == b"\x00\x80"
    assert rows[2]["j"] is None
    assert rows[2]["lv"] == [2, 3]
    assert str(rows[2]["f4"]) == "-0.0"
    assert {k for k, v in rows[1].items() if v is not None} == {"f2", "j", "prediction", "score"}
    assert len(list(fastavro.reader(io.BytesIO(data)))) == 3


@given(st.lists(st.none() | _longs), st.lists(st.none() | st.binary(max_size=300)))
def test_encodings_agree_with_fastavro(longs: list[Any], blobs: list[Any]) -> None:
    for values, kind, name in ((longs, pa.int64(), "long"), (blobs, pa.binary(), "bytes")):
        schema = fastavro.parse_schema({"type": "record", "name": "R", "fields": [
            {"name": "v", "type": ["null", name]}]})  # fmt: skip
        expected = []
        for value in values:
            sink = io.BytesIO()
            fastavro.schemaless_writer(sink, schema, {"v": value})
            expected.append(sink.getvalue())
        array = pa.array([None, *values], kind).slice(1)
        assert encode(array).to_pylist() == expected


def test_decimals_of_a_slice_are_its_own() -> None:
    array = pa.array([Decimal("1.1"), Decimal("-1.29"), None], pa.decimal128(9, 2)).slice(1)
    assert encode(array).to_pylist() == [b"\x02\x04\xff\x7f", b"\x00"]


def test_the_sync_marker_comes_from_the_schema() -> None:
    data = file_of(PAIR, [{"t": "a", "u": 1}])
    assert converted(data, "record") == converted(data, "record")
    sink = io.BytesIO()
    avro_container.BlockWriter(sink, {"avro.schema": b"{}"}).close()
    other = io.BytesIO()
    avro_container.BlockWriter(other, {"avro.schema": b"[]"}).close()
    assert sink.getvalue()[-16:] != other.getvalue()[-16:]


# --- shards


def described(records: Records) -> tuple[Any, ...]:
    """Everything there is to know of a block of rows."""
    columns = (records.columns.to_pylist(), records.kept.to_pylist(), records.raw.to_pylist())
    numbers = (records.rows.tolist(), records.weight.tolist())
    return columns, numbers, records.rejects, records.breaks


def of_shard(data: bytes, shard: Shard, chosen: Selection, **dialect: Any) -> list[Any]:
    """What a reader of its own gives; it stops asking when it has the rows."""
    found: list[Any] = []
    left = shard.rows
    for records in opened(data, **dialect).records(chosen, shard):
        found.append(described(records))
        if left is not None:
            left -= len(records) + len(records.rejects)
            assert left >= 0
            if not left:
                break
    return found


def read_by_shards(data: bytes, chosen: Selection, **dialect: Any) -> list[Any]:
    found: list[Any] = []
    for shard in avro.shards(MemorySource(data), Dialect(**dialect)):
        found += of_shard(data, shard, chosen, **dialect) if shard.rows != 0 else []
    return found


@given(
    st.lists(RICH_ROWS, max_size=30),
    st.lists(st.integers(0, 4), min_size=1, max_size=12),
    st.sampled_from([1, 50, 300, 4000, 1 << 20]),
    st.sampled_from(CODECS),
    st.integers(20, 400),
)
def test_a_shard_read_alone_gives_what_reading_all_gives(
    rows: list[Any], counts: list[int], size: int, codec: str, longest: int
) -> None:
    data = blocks_of(rows, counts, codec)
    chosen = selection("record", model=("text", "last"))
    options = {"shard_bytes": size, "max_record_bytes": longest}
    whole = [described(records) for records in opened(data, **options).records(chosen)]
    assert read_by_shards(data, chosen, **options) == whole
    shards = list(avro.shards(MemorySource(data), Dialect(shard_bytes=size)))
    assert [shard.number for shard in shards] == list(range(len(shards)))
    assert sum(shard.rows or 0 for shard in shards) == len(rows)
    assert [shard.row for shard in shards[1:]] == [row for *_, breaks in whole for row in breaks]
    if rows:
        assert len({shard.start // size for shard in shards}) == len(shards)
        assert all(shard.rows for shard in shards)


def blocks_of(rows: list[Any], counts: list[int], codec: str) -> bytes:
    """A file whose blocks have so many rows, over and over; some have none."""
    records = encoded(file_of(RICH, rows)) if rows else []
    sink = io.BytesIO()
    metadata = {"avro.schema": json.dumps(RICH).encode(), "avro.codec": codec.encode()}
    writer = avro_container.BlockWriter(sink, metadata)
    sync = sink.getvalue()[-16:]
    for count in itertools.cycle([*counts, 1]):
        if not records:
            return sink.getvalue()
        block, records = records[:count], records[count:]
        writer.append(pa.array(block, pa.binary()))
        writer.cut()
        if not block:
            stored = avro_container._ENCODE[codec](b"")
            sink.write(zigzag(0) + zigzag(len(stored)) + stored + sync)
    raise AssertionError


def test_pipes_and_files_without_rows_have_one_shard() -> None:
    data = file_of(RICH, [ROW] * 9, sync_interval=1)
    pipe = MemorySource(data)
    pipe.rereadable = False
    assert list(avro.shards(pipe, Dialect(shard_bytes=1))) == [WHOLE]
    assert len(list(avro.shards(MemorySource(data), Dialect(shard_bytes=1)))) == 9
    reader = avro.open_reader(pipe, Dialect(shard_bytes=1), False)
    assert [records.breaks for records in reader.records(selection("record"))] == [
        (), *((row,) for row in range(2, 10))
    ]  # fmt: skip
    empty = file_of(RICH, [])
    assert list(avro.shards(MemorySource(empty), Dialect())) == [Shard(0, len(empty), rows=0)]


@given(st.data(), st.sampled_from(CODECS))
def test_damage_is_told_by_the_reader_of_its_shard_as_by_one_of_all(
    data: st.DataObject, codec: str
) -> None:
    whole = blocks_of([{**ROW, "id": i} for i in range(12)], [3, 0, 1, 2], codec)
    first = next(avro.shards(MemorySource(whole), Dialect())).start
    at = data.draw(st.integers(first, len(whole) - 1))
    cut = data.draw(st.booleans())
    damaged = whole[:at] if cut else whole[:at] + bytes([whole[at] ^ 0x15]) + whole[at + 1 :]
    chosen = selection("record", model=("text",))
    outcomes: list[Any] = []
    for read in (read_whole, read_by_shards):
        try:
            outcomes.append([row for _, numbers, *_ in read(damaged, chosen, shard_bytes=700)
                             for row in numbers[0]])  # fmt: skip
        except InputInvalid as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


def read_whole(data: bytes, chosen: Selection, **dialect: Any) -> list[Any]:
    return [described(records) for records in opened(data, **dialect).records(chosen)]


def test_what_follows_a_shard_is_not_read() -> None:
    data = file_of(RICH, [ROW] * 9, sync_interval=1)
    shards = list(avro.shards(MemorySource(data), Dialect(shard_bytes=1)))
    cut = data[: shards[1].start + 9]
    assert len(of_shard(cut, shards[0], selection("record"), shard_bytes=1)) == 1
    with pytest.raises(InputInvalid, match=f"the Avro block at byte {shards[1].start} is trunc"):
        of_shard(cut, shards[1], selection("record"), shard_bytes=1)


def test_a_damaged_block_without_rows_is_told_too() -> None:
    data = file_of(RICH, [ROW] * 3, sync_interval=1)
    data += zigzag(0) + zigzag(2) + b"ab" + data[-16:]
    for size in (1, 1 << 20):
        *_, last = avro.shards(MemorySource(data), Dialect(shard_bytes=size))
        assert last.rows is None
        with pytest.raises(InputInvalid, match="row 4 cannot be read"):
            read_by_shards(data, selection("record"), shard_bytes=size)
        with pytest.raises(InputInvalid, match="row 4 cannot be read"):
            read_whole(data, selection("record"), shard_bytes=size)


def test_rows_of_no_bytes_are_bounded_in_each_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(avro_container, "_MOST_EMPTY_ROWS", 10)
    data = file_of({"type": "record", "name": "Nothing", "fields": []}, [{}] * 4)
    data += 3 * (zigzag(4) + zigzag(0) + SYNC)
    for read in (read_whole, read_by_shards):
        assert len(read(data, selection("record"), shard_bytes=1)) == 4
        with pytest.raises(InputInvalid, match="states 4 rows in 0 bytes"):
            read(data, selection("record"))
