"""Parquet files: what comes out is what went in, judged by pyarrow reading whole files."""

from __future__ import annotations

import gc
import io
import itertools
import json
import os
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchpredict.data import parquet
from batchpredict.data.records import Carry, Dialect, Layout, Records, Selection, take
from batchpredict.data.sources import source_of
from batchpredict.data.thrift_compact import parse, spelled
from batchpredict.errors import InputInvalid, OutputWriteFailed, UsageError

ADDED = pa.schema([("prediction", pa.string()), ("score", pa.float32())])
_utc = pa.timestamp("us", "Europe/Berlin")
COLUMNS: dict[str, pa.Array] = {
    "bool": pa.array([True, None, False]),
    "i8": pa.array([-128, None, 127], pa.int8()),
    "u64": pa.array([2**64 - 1, None, 0], pa.uint64()),
    "half": pa.array(np.array([0.1, 0, 1], np.float16)),
    "float": pa.array([0.1, None, -0.0], pa.float32()),
    "double": pa.array([float("nan"), None, float("inf")]),
    "text": pa.array(["é\n", None, ""]),
    "large": pa.array(["a", None, "b"], pa.large_string()),
    "view": pa.array(["a", None, "b"], pa.string_view()),
    "views": pa.array(
        [{"a": ["x"]}, None, {"a": None}], pa.struct([("a", pa.list_(pa.string_view()))])
    ),
    "runs": pa.array([["a"], None, ["b", "c"]], pa.list_view(pa.string())),
    "bytes": pa.array([b"\xff", None, b""]),
    "fixed": pa.array([b"ab", None, b"cd"], pa.binary(2)),
    "day": pa.array([date(1, 1, 1), None, date(9999, 12, 31)]),
    "seconds": pa.array([datetime(2020, 1, 1), None, None], pa.timestamp("s")),
    "zone": pa.array([0, None, -1], pa.int64()).cast(_utc),
    "nanos": pa.array([1, None, -1], pa.int64()).cast(pa.timestamp("ns")),
    "clock": pa.array([time(1, 2, 3), None, None], pa.time64("ns")),
    "span": pa.array([5, None, -5], pa.duration("ms")),
    "decimal": pa.array([Decimal("1.10"), None, Decimal("-0.01")], pa.decimal128(20, 2)),
    "wide": pa.array([Decimal(10**50), None, None], pa.decimal256(60, 3)),
    "choice": pa.array(["p", None, "q"]).dictionary_encode(),
    "list": pa.array([[1, None], None, []], pa.list_(pa.int16())),
    "pair": pa.array([[1.5, 2.5], None, [0, 0]], pa.list_(pa.float32(), 2)),
    "struct": pa.array([{"a": 1, "b": ["x"]}, None, {"a": None, "b": None}]),
    "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
    "nothing": pa.nulls(3),
    "json": pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a":1}', None, "2"])),
    "uuid": pa.ExtensionArray.from_storage(
        pa.uuid(), pa.array([b"0" * 16, None, b"1" * 16], pa.binary(16))
    ),
}


def opened(path: Path) -> parquet.ParquetReader:
    reader = parquet.open_reader(source_of(str(path)), Dialect(), False)
    assert isinstance(reader, parquet.ParquetReader)
    return reader


def scored(count: int, first: int = 0) -> pa.RecordBatch:
    scores = [i / 7 if i % 3 else None for i in range(first, first + count)]
    labels = [str(i % 5) for i in range(first, first + count)]
    return pa.RecordBatch.from_pydict({"prediction": labels, "score": scores}, ADDED)


def converted(path: Path, carry: Carry, kept: tuple[str, ...] = (), step: int = 0) -> bytes:
    """What the writer makes of a file; handed over `step` rows at a time."""
    reader = opened(path)
    sink = io.BytesIO()
    kept_schema = pa.schema([reader.schema.field(name) for name in kept])
    writer = parquet.open_writer(sink, Layout(carry, kept_schema, ADDED, reader, Dialect()))
    first = 0
    for records in reader.records(Selection((), kept, carry)):
        for start in range(0, len(records), step or len(records)):
            stop = min(start + (step or len(records)), len(records))
            writer.write(take(records, np.arange(start, stop)), scored(stop - start, first))
            first += stop - start
    writer.close()
    assert not sink.closed
    return sink.getvalue()


def read(data: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(data))


def same(left: pa.Table, right: pa.Table) -> bool:
    """Equal to the bit: NaN is equal to itself."""
    return left.schema.equals(right.schema, check_metadata=True) and all(
        repr(a.to_pylist()) == repr(b.to_pylist())
        for a, b in zip(left.columns, right.columns, strict=True)
    )


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "zstd", "brotli", "lz4"])
def test_every_type_comes_back(codec: str, tmp_path: Path) -> None:
    table = pa.table(COLUMNS).replace_schema_metadata({"owner": "a team"})
    field = table.schema.field("text").with_metadata({"unit": "words"})
    table = table.cast(table.schema.set(table.schema.get_field_index("text"), field))
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, compression=codec)
    for carry, kept in (("record", ()), ("cell", tuple(COLUMNS))):
        data = converted(path, carry, kept)  # type: ignore[arg-type]
        result = read(data)
        assert result.schema.names == [*COLUMNS, "prediction", "score"]
        assert result.schema.metadata == {b"owner": b"a team"}
        assert same(result.select(list(COLUMNS)), pq.read_table(path))
        assert result.schema.field("text").metadata[b"unit"] == b"words"
        chunk = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0).column(0)
        was = pq.ParquetFile(path).metadata.row_group(0).column(0)
        assert chunk.compression == was.compression
    added = result.select(ADDED.names).replace_schema_metadata(None)
    assert same(added, pa.Table.from_batches([scored(3)]))


def test_what_a_model_reads_has_the_type_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(COLUMNS), path)
    records = next(iter(opened(path).records(Selection(tuple(COLUMNS), (), "record"))))
    types = {field.name: field.type for field in records.columns.schema}
    assert types["choice"] == pa.string()
    assert types["uuid"] == pa.binary(16)
    assert types["json"] == pa.json_()
    assert types["float"] == pa.float32()
    assert types["view"] == pa.large_string()
    assert records.kept.num_columns == 0
    assert records.kept.num_rows == records.columns.num_rows == 3
    assert records.rows.tolist() == [1, 2, 3]
    assert records.weight.tolist() == [records.weight[0]] * 3
    record: Any = opened(path).original(records.raw, 0)
    assert json.loads(json.dumps(record)) == record
    assert (record["decimal"], record["bytes"], record["double"]) == ("1.10", "/w==", "NaN")
    assert record["nanos"] == "1970-01-01T00:00:00.000000001"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    rows=st.lists(st.tuples(st.none() | st.text(max_size=9), st.integers(0, 9)), max_size=60),
    group=st.integers(1, 70),
    step=st.integers(1, 70),
    limit=st.integers(1, 40),
)
def test_rows_are_kept_in_order_however_they_are_cut(
    rows: list[Any], group: int, step: int, limit: int, tmp_path: Path
) -> None:
    table = pa.table(
        {
            "t": pa.array([t for t, _ in rows], pa.string()),
            "c": pa.array([str(n) for _, n in rows], pa.string()).dictionary_encode(),
        }
    )
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=group)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "_GROUP_ROWS", limit)
        patch.setattr(parquet, "_MOST_BLOCK_ROWS", 7)
        data = converted(path, "record")
        assert converted(path, "record", step=step) == data
    result = pq.ParquetFile(io.BytesIO(data))
    groups = [result.metadata.row_group(i).num_rows for i in range(result.num_row_groups)]
    assert all(size == limit for size in groups[:-1])
    assert result.read().select(["t", "c"]).to_pylist() == table.to_pylist()
    assert result.read()["score"].to_pylist() == scored(len(rows))["score"].to_pylist()


def test_row_groups_are_cut_by_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"t": [os.urandom(500) for _ in range(400)]}), path)
    monkeypatch.setattr(parquet, "_GROUP_BYTES", 50_000)
    data = converted(path, "record", step=7)
    assert data == converted(path, "record")
    metadata = pq.ParquetFile(io.BytesIO(data)).metadata
    rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert len(set(rows[:-1])) == 1
    assert 80 < rows[0] < 110


def test_a_full_row_group_is_not_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_GROUP_ROWS", 10)
    sink = io.BytesIO()
    writer = parquet.open_writer(sink, Layout("value", pa.schema([]), ADDED, None, Dialect()))
    rows = np.ones(7, np.int64)
    sizes = []
    for _ in range(3):
        empty = scored(7).select([])
        writer.write(Records(empty, empty, pa.nulls(7), rows, None, rows), scored(7))
        sizes.append(sink.tell())
    assert sizes[0] < sizes[1] < sizes[2]


def test_pages_do_not_depend_on_how_rows_are_handed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"t": [os.urandom(100) for _ in range(30_000)]}), path)
    assert converted(path, "record", step=777) == converted(path, "record")


def test_pandas_finds_its_index(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    frame = pd.DataFrame({"c": pd.Categorical(["a", "b"]), "n": [1, 2]}, index=[5, 6])
    frame.to_parquet(path)
    (tmp_path / "b.parquet").write_bytes(converted(path, "record"))
    result = pd.read_parquet(tmp_path / "b.parquet")
    pd.testing.assert_frame_equal(result[["c", "n"]], frame)
    assert list(result.columns) == ["c", "n", "prediction", "score"]


@pytest.mark.parametrize("carry", ["record", "cell", "value"])
def test_no_rows(carry: Carry, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(COLUMNS).slice(0, 0), path)
    names = tuple(COLUMNS)
    result = read(converted(path, carry, () if carry == "record" else names))
    assert result.schema.names == [*names, "prediction", "score"]
    assert result.num_rows == 0


def test_values_of_other_formats(tmp_path: Path) -> None:
    kept = pa.schema([("t", pa.string()), ("j", pa.json_()), ("e", pa.struct([]))])
    j = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['"x"', "[1]", None]))
    e = pa.array([{}, None, {}], pa.struct([]))
    batch = pa.record_batch([pa.array(["1.10", None, ""]), j, e], kept)
    sink = io.BytesIO()
    writer = parquet.open_writer(sink, Layout("value", kept, ADDED, None, Dialect()))
    count = np.arange(3)
    writer.write(Records(batch, batch, pa.nulls(3), count, None, count), scored(3))
    writer.close()
    result = read(sink.getvalue())
    assert result["t"].to_pylist() == ["1.10", None, ""]
    assert result["j"].to_pylist() == ["x", "[1]", None]
    assert result.schema.field("j").type == pa.string()
    assert result["e"].to_pylist() == ["{}", None, "{}"]


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": [1, 2, 3], "b": ["x", "y", "z"]}), path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(InputInvalid, match="is not a Parquet file, or is truncated") as caught:
            opened(path)
        assert "\n" not in str(caught.value)


def test_damaged_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": range(9)}), path, write_page_checksum=True, compression="none")
    whole = bytearray(path.read_bytes())
    whole[60] ^= 1
    path.write_bytes(whole)
    with pytest.raises(InputInvalid, match="data is damaged"):
        list(opened(path).records(Selection(("a",), (), "record")))


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table([[1], [2]], names=["a", "a"]), path)
    with pytest.raises(InputInvalid, match="more than one column named 'a'"):
        opened(path)


def test_a_pipe_and_a_compressed_file_are_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UsageError, match="cannot be read from a pipe"):
        parquet.open_reader(source_of(str(pipe)), Dialect(), False)
    (tmp_path / "a.parquet.gz").write_bytes(b"")
    with pytest.raises(UsageError, match="compressed inside"):
        opened(tmp_path / "a.parquet.gz")


def test_int96_keeps_the_years_of_spark(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    far = [datetime(1, 1, 1), datetime(9999, 12, 31), datetime(2020, 1, 1, 0, 0, 0, 1)]
    table = pa.table({"at": pa.array(far, pa.timestamp("us"))})
    pq.write_table(table, path, use_deprecated_int96_timestamps=True)
    assert read(converted(path, "record"))["at"].to_pylist() == far
    assert opened(path).notes == (
        "column 'at': INT96 timestamps are read and written in microseconds",
    )


def test_an_error_of_the_sink_stays_what_it_is() -> None:
    class Full(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            raise OutputWriteFailed("full")

    def write() -> None:
        sink: Any = Full()
        writer = parquet.open_writer(sink, Layout("value", ADDED, pa.schema([]), None, Dialect()))
        rows = np.ones(3, np.int64)
        records = Records(scored(3), scored(3), pa.nulls(3), rows, None, rows)
        writer.write(records, pa.RecordBatch.from_pydict({}))
        writer.close()

    with pytest.raises(OutputWriteFailed, match="full"):
        write()


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Not even with one row group that holds all of it."""

    def peak(rows: int) -> int:
        path = tmp_path / f"{rows}.parquet"
        texts = pa.array([os.urandom(100).hex() for _ in range(rows)])
        pq.write_table(pa.table({"t": texts, "n": range(rows)}), path, row_group_size=rows)
        del texts
        gc.collect()
        before = pa.total_allocated_bytes()
        blocks = opened(path).records(Selection(("n",), (), "record"))
        return max(pa.total_allocated_bytes() - before for _ in blocks)

    small, large = peak(120_000), peak(360_000)
    assert large < 1.3 * small


def test_blocks_are_bounded_where_columns_compress_well(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"t": ["x" * 20_000] * 3000}), path)
    sizes = [
        (len(records), records.raw.nbytes)
        for records in opened(path).records(Selection(("t",), (), "record"))
    ]
    assert sum(rows for rows, _ in sizes) == 3000
    assert max(size for _, size in sizes) <= 9 << 20


def test_a_block_ends_where_the_file_says_not_where_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": range(50_000)}), path, row_group_size=999)
    blocks = list(opened(path).records(Selection(("n",), (), "record")))
    assert list(itertools.chain(*(b.columns["n"].to_pylist() for b in blocks))) == [*range(50_000)]
    assert [n for b in blocks for n in b.rows.tolist()] == [*range(1, 50_001)]
    assert 1 < len(blocks) < 20


# --- shards


def described(records: Records) -> tuple[Any, ...]:
    """Everything there is to know of a block of rows."""
    columns = (records.columns.to_pylist(), records.kept.to_pylist(), records.raw.to_pylist())
    numbers = (records.rows.tolist(), records.weight.tolist())
    return repr(columns), numbers, records.rejects, records.breaks


def read_by_shards(path: Path, dialect: Dialect, chosen: Selection) -> list[Any]:
    """What readers give, one for each shard, who stop asking when they have the rows."""
    found: list[Any] = []
    for shard in parquet.shards(source_of(str(path)), dialect):
        left = shard.rows
        assert left is not None
        reader = parquet.open_reader(source_of(str(path)), dialect, False)
        for records in reader.records(chosen, shard) if left else ():
            found.append(described(records))
            left -= len(records) + len(records.rejects)
            if not left:
                break
        assert left == 0
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    groups=st.lists(st.integers(0, 40), max_size=8),
    size=st.sampled_from([1, 400, 1500, 1 << 20]),
    block=st.integers(1, 50),
    names=st.lists(
        st.sampled_from(sorted({*COLUMNS} - {"view", "views", "runs"})),  # cannot be taken from
        min_size=1,
        max_size=4,
        unique=True,
    ),
)
def test_a_shard_read_alone_gives_what_reading_all_gives(
    groups: list[int], size: int, block: int, names: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "a.parquet"
    rows = sum(groups)
    table = pa.table({name: COLUMNS[name] for name in names}).take(
        pa.array([3 * i % 3 + i % 2 for i in range(rows)], pa.int64())
    )
    write_groups(path, table.append_column("text\n", texts(rows)), groups)
    chosen = Selection(("text\n", names[0]), (), "record")
    dialect = Dialect(shard_bytes=size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "_MOST_BLOCK_ROWS", block)
        reader = parquet.open_reader(source_of(str(path)), dialect, False)
        whole = [described(records) for records in reader.records(chosen)]
        assert read_by_shards(path, dialect, chosen) == whole
    shards = list(parquet.shards(source_of(str(path)), dialect))
    assert [shard.number for shard in shards] == list(range(len(shards)))
    assert sum(shard.rows or 0 for shard in shards) == rows
    assert [shard.row for shard in shards[1:]] == [row for *_, breaks in whole for row in breaks]
    if size == 1 and rows:
        assert [shard.rows for shard in shards] == [count for count in groups if count]
        assert [groups[shard.start] for shard in shards] == [shard.rows for shard in shards]
    if size == 1 << 20:
        assert len(shards) == 1


def texts(rows: int) -> pa.StringArray:
    """Some are none; each row weighs something else."""
    spelled = [b"\xff" if i % 7 == 3 else b"x" * (i % 90) for i in range(rows)]
    return pa.array(spelled, pa.binary()).view(pa.string())


def write_groups(path: Path, table: pa.Table, groups: list[int]) -> None:
    first = 0
    with pq.ParquetWriter(path, table.schema) as writer:
        for count in groups:
            writer.write_table(table.slice(first, count))
            first += count


def test_shards_are_as_many_row_groups_as_it_takes(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"t": pa.array(range(1000), pa.int64())})
    write_groups(path, table, [100] * 10)
    metadata = pq.ParquetFile(path).metadata
    size = metadata.row_group(0).total_byte_size
    assert {metadata.row_group(i).total_byte_size for i in range(10)} == {size}
    for most, rows in ((size, 100), (size + 1, 200), (3 * size, 300), (20 * size, 1000)):
        shards = list(parquet.shards(source_of(str(path)), Dialect(shard_bytes=most)))
        assert [shard.row for shard in shards] == list(range(1, 1001, rows))
        assert [shard.start for shard in shards] == list(range(0, 10, rows // 100))
        assert sum(shard.rows or 0 for shard in shards) == 1000
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="cannot be read from a pipe"):
        list(parquet.shards(source_of(str(tmp_path / "pipe")), Dialect()))


@pytest.mark.parametrize("stated", [41, 1000])
def test_fewer_rows_than_the_footer_states_are_damage(stated: int, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"t": pa.array(range(80), pa.int64())})
    write_groups(path, table, [40, 40])
    data = path.read_bytes()
    size = int.from_bytes(data[-8:-4], "little")
    footer, _ = parse(data[-8 - size : -8])
    footer.get(4).elements[0].put(3, stated)
    changed = spelled(footer)
    ending = changed + len(changed).to_bytes(4, "little") + b"PAR1"
    path.write_bytes(data[: -8 - size] + ending)
    for most in (1, 1 << 20):
        reader = parquet.open_reader(source_of(str(path)), Dialect(shard_bytes=most), False)
        with pytest.raises(InputInvalid, match="the Parquet data is damaged"):
            list(reader.records(Selection((), (), "record")))
