"""What fuzzing the readers found: each file here once gave a traceback, a crash, or no end."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchpredict.data import avro as avro_format
from batchpredict.data import (
    avro_columns,
    avro_encode,
    avro_walk,
    conversion,
    csv_blocks,
    csv_cut,
    csv_reader,
    jsonreader,
)
from batchpredict.data.formats import FORMATS
from batchpredict.data.records import Carry, Dialect, Records, Reject, Selection
from batchpredict.data.sources import InputSource, source_of
from batchpredict.errors import InputInvalid
from tests.fuzz.inputs import varint
from tests.fuzz.targets.avro import container
from tests.sources import MemorySource


def read(
    name: str,
    data: bytes,
    model: tuple[str, ...] = (),
    kept: tuple[str, ...] = (),
    carry: Carry = "value",
    **dialect: Any,
) -> list[Records]:
    module = FORMATS[name].module
    reader = module.open_reader(MemorySource(data), Dialect(**dialect), False)
    return list(reader.records(Selection(model, kept, carry)))


def rejects(blocks: list[Records]) -> list[Reject]:
    return [reject for records in blocks for reject in records.rejects]


def record(*fields: Any) -> bytes:
    named = [{"name": f"f{i}", "type": node} for i, node in enumerate(fields)]
    return json.dumps({"type": "record", "name": "R", "fields": named}).encode()


# --- Avro ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["deflate", "bzip2", "xz", "zstandard"])
def test_a_block_does_not_unpack_without_bounds(
    codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(avro_format, "MOST_BLOCK_BYTES", 1 << 16)
    row = varint(1 << 16) + b"x" * (1 << 16)
    data = container(record("string"), [(1, row)], codec)
    with pytest.raises(InputInvalid, match=r"block at byte .* unpacks to more than 65536 bytes"):
        read("avro", data, max_record_bytes=1000)
    assert sum(map(len, read("avro", data))) == 1  # the longest record is larger now


@pytest.mark.parametrize("codec", ["deflate", "bzip2", "xz", "zstandard"])
def test_a_block_cut_in_its_compressed_data_is_damaged(codec: str) -> None:
    data = container(record("string"), [(1, varint(3000) + bytes(range(250)) * 12)], codec)
    begin = data.index(b"0123456789abcdef") + 16
    body = data[begin:-16]
    stored = body[-(len(body) - 3) // 2 :]
    damaged = data[:begin] + varint(1) + varint(len(stored)) + stored + data[-16:]
    with pytest.raises(InputInvalid, match=r"the Avro block at byte \d+ is truncated or damaged"):
        read("avro", damaged)


def test_a_stated_block_size_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(avro_format, "MOST_BLOCK_BYTES", 1 << 16)
    head = container(record("string"), [])
    with pytest.raises(InputInvalid, match="states a size of 1048576 bytes"):
        read("avro", head + varint(1) + varint(1 << 20), max_record_bytes=1000)


def test_a_header_is_not_read_without_bounds() -> None:
    data = b"Obj\x01" + varint(1) + varint(1 << 40) + b"k" * 100
    with pytest.raises(InputInvalid, match="header is truncated or damaged"):
        read("avro", data)


def test_rows_without_bytes_come_to_an_end() -> None:
    data = container(record("null"), [(1 << 62, b"")])
    with pytest.raises(InputInvalid, match="states 4611686018427387904 rows in 0 bytes"):
        read("avro", data)


def test_blocks_without_rows_are_not_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(avro_format, "_MOST_EXTENTS", 3)
    monkeypatch.setattr(avro_format, "_MOST_ROWS", 5)
    blocks = read("avro", container(record("null"), [(2, b"")] * 20), ("f0",))
    assert [len(records) for records in blocks] == [5, 1] * 6 + [4]
    assert [row for records in blocks for row in records.rows] == list(range(1, 41))


@pytest.mark.parametrize(
    "items",
    [
        "null",
        {"type": "fixed", "name": "F", "size": 0},
        {"type": "record", "name": "E", "fields": []},
    ],
)
@pytest.mark.parametrize("sized", [False, True])
def test_a_list_of_nothing_is_bounded(items: Any, sized: bool) -> None:
    count = varint(-(1 << 40)) + varint(0) if sized else varint(1 << 40)
    schema = record({"type": "array", "items": items})
    with pytest.raises(InputInvalid, match=r"row 1 cannot be read .*take no bytes"):
        read("avro", container(schema, [(1, count + b"\0")]), ("f0",))
    few = container(schema, [(1, varint(3) + b"\0")])
    assert sum(map(len, read("avro", few, ("f0",), ("f0",)))) == 1


def test_nulls_of_unions_are_not_held_against_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(avro_walk, "_MOST_IDLE", 10)
    schema = record({"type": "array", "items": ["null", "int"]})
    data = container(schema, [(1, varint(100) + b"\0" * 100 + b"\0")])
    (records,) = read("avro", data, (), ("f0",))
    assert records.kept.column(0).to_pylist() == [[None] * 100]


def test_the_size_a_list_states_is_not_believed() -> None:
    schema = record({"type": "array", "items": "int"})
    data = container(schema, [(1, varint(-2) + varint(40) + b"\x02\x02" + b"\0" * 60)])
    with pytest.raises(InputInvalid, match="do not have the size"):
        read("avro", data, ("f0",))


def test_types_that_use_each_other_twice_are_refused() -> None:
    node: Any = {"type": "record", "name": "R0", "fields": [{"name": "a", "type": "null"}]}
    for number in range(1, 60):
        fields = [{"name": "a", "type": node}, {"name": "b", "type": f"R{number - 1}"}]
        node = {"type": "record", "name": f"R{number}", "fields": fields}
    with pytest.raises(InputInvalid, match="more than 64 levels or 65536 values"):
        read("avro", container(json.dumps(node).encode(), [(1, b"")]))


def test_deep_schemas_are_refused() -> None:
    node: Any = "int"
    for _ in range(200):
        node = {"type": "array", "items": node}
    with pytest.raises(InputInvalid, match="more than 64 levels"):
        read("avro", container(record(node), []))


def test_deep_values_are_refused() -> None:
    fields = [{"name": "next", "type": ["null", "R"]}]
    schema = json.dumps({"type": "record", "name": "R", "fields": fields}).encode()
    with pytest.raises(InputInvalid, match=r"row 1 .*nested more than 100 levels deep"):
        read("avro", container(schema, [(1, b"\x02" * 100_000 + b"\0")]), ("next",))
    (records,) = read("avro", container(schema, [(1, b"\x02" * 90 + b"\0")]), ("next",))
    assert len(records) == 1


@pytest.mark.parametrize(
    "schema",
    [
        record({"type": "fixed", "name": "F", "size": 1 << 40}),
        record({"type": "fixed", "name": "F", "size": True}),
        record("int").replace(b'"f0"', b'"\\ud800"'),
        record("a\nb"),
        record("x" * 100_000),
        b"[" * 100_000,
    ],
)
def test_odd_schemas_are_refused_in_one_line(schema: bytes) -> None:
    with pytest.raises(
        InputInvalid, match=r"its schema is not valid|not defined|no size"
    ) as caught:
        read("avro", container(schema, []))
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500


def test_a_null_of_a_long_fixed_type_takes_no_space() -> None:
    schema = record(["null", {"type": "fixed", "name": "F", "size": 1 << 29}])
    (records,) = read("avro", container(schema, [(1000, b"\0" * 1000)]), (), ("f0",))
    assert records.kept.column(0).null_count == 1000
    assert records.kept.nbytes < 1 << 20


@pytest.mark.parametrize(
    ("node", "good", "bad"),
    [
        ("int", varint(5), varint(1 << 40)),
        (
            {"type": "bytes", "logicalType": "decimal", "precision": 5, "scale": 1},
            b"\x02\x05",
            varint(30) + b"\x7f" * 30,
        ),
    ],
)
def test_a_nested_value_out_of_range_costs_its_row(node: Any, good: bytes, bad: bytes) -> None:
    schema = record({"type": "array", "items": node})
    rows = [b"\x02" + value + b"\0" for value in (good, bad, good)]
    blocks = read("avro", container(schema, [(3, b"".join(rows))]), (), ("f0",))
    assert [(reject.row, reject.code) for reject in rejects(blocks)] == [(2, "bad_type")]
    assert [row for records in blocks for row in records.rows] == [1, 3]


def test_text_of_names_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(avro_columns, "_MOST_TEXT", 1000)
    inner = {"type": "record", "name": "I", "fields": [{"name": "n" * 500, "type": "boolean"}]}
    with pytest.raises(InputInvalid, match="rows from 1 on cannot be read"):
        read("avro", container(record(inner), [(3, b"\1" * 3)]), ("f0",))


def test_a_field_name_with_a_line_end_stays_in_one_line() -> None:
    schema = record("int").replace(b'"f0"', b'"a\\nb"')
    blocks = read("avro", container(schema, [(1, varint(1 << 40))]), ("a\nb",))
    (reject,) = rejects(blocks)
    assert "\n" not in reject.message


def test_nulls_in_lists_are_encoded() -> None:
    for kind, value in (
        (pa.map_(pa.string(), pa.null()), [("a", None), ("b", None)]),
        (pa.list_(pa.null()), [None] * 5),
        (pa.struct([("a", pa.large_list(pa.null())), ("b", pa.date32())]), {"a": [None] * 5}),
    ):
        avro_encode.encode(pa.array([value, value, None], kind))


# --- Parquet ------------------------------------------------------------------------------------


def parquet(path: Path, table: pa.Table, *changes: tuple[bytes, bytes]) -> InputSource:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="none", use_dictionary=False, write_statistics=False)
    data = sink.getvalue()
    for old, new in changes:
        assert old in data
        assert len(old) == len(new)
        data = data.replace(old, new)
    path.write_bytes(data)
    return source_of(str(path))


@pytest.mark.parametrize("nested", [False, True])
def test_parquet_text_that_is_none_costs_its_row(tmp_path: Path, nested: bool) -> None:
    texts = ["one", "two!", "three"]
    kind = pa.list_(pa.string()) if nested else pa.string()
    values: list[Any] = [[text] for text in texts] if nested else texts
    table = pa.table({"t": pa.array(values, kind), "n": [1, 2, 3]})
    source = parquet(tmp_path / "a.parquet", table, (b"two!", b"\xff\xfe\xfd!"))
    reader = FORMATS["parquet"].module.open_reader(source, Dialect(), False)
    blocks = list(reader.records(Selection((), ("t", "n"), "value")))
    (reject,) = rejects(blocks)
    assert (reject.row, reject.code, reject.message) == (
        2, "invalid_utf8", "column 't': the text is not UTF-8",
    )  # fmt: skip
    assert reject.record == {"t": None if nested else "//79IQ==", "n": 2}
    assert [row for records in blocks for row in records.rows] == [1, 3]
    # Who keeps whole records need not know what their texts are.
    (records,) = reader.records(Selection(("n",), (), "record"))
    assert len(records) == 3
    assert reader.original(records.raw, 1) == reject.record
    source.close()


def test_a_parquet_column_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    source = parquet(tmp_path / "a.parquet", pa.table({"name!": [1]}), (b"name!", b"nam\xff!"))
    with pytest.raises(InputInvalid, match="is not a Parquet file"):
        FORMATS["parquet"].module.open_reader(source, Dialect(), False)


def test_an_unknown_time_zone_is_written_as_utc() -> None:
    zoned = pa.array([0, None], pa.timestamp("us", "Nowhere/Town"))
    assert conversion.as_text(zoned).to_pylist() == ["1970-01-01T00:00:00.000000Z", None]


# --- CSV and JSON -------------------------------------------------------------------------------


def test_many_columns_are_named_at_once() -> None:
    header = ",".join(f"c{i}" for i in range(131_072)).encode()
    reader = csv_reader.CsvReader(MemorySource(header), Dialect())
    assert len(reader.schema) == 131_072
    with pytest.raises(InputInvalid, match="more than 131072 columns"):
        csv_reader.CsvReader(MemorySource(header + b",more"), Dialect())


def test_a_long_name_is_not_shown_whole() -> None:
    name = b"n" * 100_000
    with pytest.raises(InputInvalid, match="appears twice") as caught:
        read("csv", name + b"," + name + b"\n")
    assert len(str(caught.value)) < 500


def test_short_records_behind_a_long_one_come_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_blocks, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(csv_cut, "_EXACT_BYTES", 1000)
    data = b"a,b\n" + b"x" * 50_000 + b",1\n" + b"1\n" * 60_000
    blocks = read("csv", data, ("a",))
    assert sum(map(len, blocks)) == 1
    assert len(rejects(blocks)) == 60_000
    assert max(len(records.rejects) for records in blocks) <= 2000


@pytest.mark.parametrize("behind", [b"", b"1,2\n" * 3000])
def test_records_behind_an_overlong_one_are_read(
    behind: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_blocks, "BLOCK_BYTES", 1000)
    long = b"x" * 10_000 + b",1\n"
    rows = [b"1,2\n" * 10, long, b"1,2\n" * 900, b"y" * 7000 + b",1\n", long, long, behind]
    blocks = read("csv", b"a,b\n" + b"".join(rows), ("a",), max_record_bytes=8000)
    assert [reject.row for reject in rejects(blocks)] == [11, 913, 914]
    assert [reject.length for reject in rejects(blocks)] == [len(long)] * 3
    assert sum(map(len, blocks)) == 911 + len(behind) // 4


def test_rows_with_ever_new_members_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(jsonreader, "_MOST_COLUMNS", 100)
    data = b"".join(b'{"a%d":1}\n' % i for i in range(101))
    with pytest.raises(InputInvalid, match="more than 100 different members; name the ones"):
        jsonreader.JsonReader(MemorySource(data), Dialect(), True)


def test_many_columns_make_blocks_of_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonreader, "_MOST_CELLS", 100)
    data = b"".join(b'{"a": "%d", "b": %d}\n' % (i, i) for i in range(300))
    for lines in (False, True):
        text = data if lines else b"[" + b",".join(data.split(b"\n")[:-1]) + b"]"
        blocks = read("jsonl" if lines else "json", text, ("a",), ("b",), json_array=not lines)
        assert [len(records) for records in blocks] == [50] * 6
        texts = [v for records in blocks for v in records.columns.column(0).to_pylist()]
        assert texts == [str(i) for i in range(300)]
        assert [row for records in blocks for row in records.rows] == list(range(1, 301))
        offsets = [int(at) for records in blocks for at in records.offsets]  # type: ignore[union-attr]
        assert [text[at : at + 5] for at in offsets] == [b'{"a":'] * 300


def test_a_member_with_an_odd_name_stays_in_one_line() -> None:
    blocks = read("jsonl", '{"\x85": "\\ud800"}\n'.encode(), ("\x85",))
    (reject,) = rejects(blocks)
    assert len(reject.message.splitlines()) == 1
    assert reject.message.isprintable()


def test_messages_of_rejects_are_shared() -> None:
    cut = csv_cut.cut(b"1\n" * 100, csv_cut.Grammar(44, 2, 1 << 20), True)
    assert len({id(flaw.message) for flaw in cut.flaws}) == 1


_BOMB = """
import resource, sys
from batchpredict.data.formats import FORMATS
from batchpredict.data.sources import InputSource, source_of
from batchpredict.data.records import Dialect, Selection
import batchpredict.data.csv, batchpredict.data.json, numpy, pyarrow
base = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (base + (250 << 20), base + (250 << 20)))
name, path = sys.argv[1:]
source = source_of(path)
dialect = Dialect(json_array=name == "json", max_record_bytes=1 << 20)
reader = FORMATS[name].module.open_reader(source, dialect, False)
for records in reader.records(Selection((), (), "value")):
    for reject in records.rejects:
        print(reject.code, reject.length)
    if len(records):
        print("row")
"""


@pytest.mark.parametrize(
    ("name", "begin", "end", "expected"),
    [
        ("csv", b"a\n", b"\n1\n", "too_large"),
        ("csv", b'a\n"', b'"\n1\n', "malformed_row"),  # its quote is not closed in time
        ("jsonl", b'{"a":"', b'"}\n{"a":1}\n', "too_large"),
        ("json", b'[{"a":"', b'"},{"a":1}]', "too_large"),
    ],
)
def test_a_compression_bomb_is_not_held(
    tmp_path: Path, name: str, begin: bytes, end: bytes, expected: str
) -> None:
    """300 MB in one record, with 250 MiB of memory for everything."""
    size = 300_000_000
    path = tmp_path / f"in{FORMATS[name].suffixes[0]}.gz"
    with gzip.open(path, "wb", 1) as stream:
        stream.write(begin)
        for _ in range(size // 1_000_000):
            stream.write(b"x" * 1_000_000)
        stream.write(end)
    done = subprocess.run(
        [sys.executable, "-c", _BOMB, name, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    code, found = first.split()
    assert code == expected
    assert size <= int(found) <= size + 10
    assert second == "row"
