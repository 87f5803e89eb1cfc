"""Parquet files, damaged in their footer, their pages, or anywhere."""

from __future__ import annotations

import datetime
import decimal
import io
import random
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchpredict.data.records import Dialect
from tests.fuzz import inputs
from tests.fuzz.harness import Target
from tests.fuzz.inputs import chance, few
from tests.fuzz.reading import Input, read

_SEEDS = 60
_DAY = datetime.date(2024, 1, 2)
_NOON = datetime.datetime(2024, 1, 2, 12)
_COLUMNS: tuple[tuple[pa.DataType, list[Any]], ...] = (
    (pa.int64(), [1, None, -(1 << 62)]),
    (pa.int8(), [1, None, -128]),
    (pa.uint64(), [1, None, (1 << 64) - 1]),
    (pa.bool_(), [True, None, False]),
    (pa.float32(), [0.5, None, float("nan")]),
    (pa.float16(), [0.5, None, float("inf")]),
    (pa.float64(), [0.5, None, -1e300]),
    (pa.string(), ["a", None, "é\n\U0001f600"]),
    (pa.large_string(), ["a", None, ""]),
    (pa.string_view(), ["a", None, "longer than twelve bytes"]),
    (pa.binary(), [b"a", None, b"\xff\0"]),
    (pa.binary(3), [b"abc", None, b"\xff\0\0"]),
    (pa.date32(), [_DAY, None, _DAY]),
    (pa.timestamp("us", "Europe/Berlin"), [_NOON, None, _NOON]),
    (pa.timestamp("ns"), [_NOON, None, _NOON]),
    (pa.time64("us"), [datetime.time(1, 2), None, datetime.time()]),
    (pa.duration("ms"), [datetime.timedelta(1), None, datetime.timedelta(-1)]),
    (pa.decimal128(10, 2), [decimal.Decimal("1.25"), None, decimal.Decimal("-1")]),
    (pa.decimal256(60, 5), [decimal.Decimal("1.25"), None, decimal.Decimal("-1")]),
    (pa.list_(pa.int32()), [[1, None], None, []]),
    (pa.list_(pa.list_(pa.string())), [[["a"], None], None, []]),
    (pa.list_(pa.int32(), 2), [[1, 2], [3, None], [5, 6]]),
    (pa.map_(pa.string(), pa.int32()), [[("a", 1)], None, []]),
    (pa.struct([("a", pa.int32()), ("b", pa.string())]), [{"a": 1, "b": "x"}, None, {}]),
    (pa.dictionary(pa.int32(), pa.string()), ["a", None, "b"]),
    (pa.null(), [None, None, None]),
)
_TOKENS = (
    b"\x00", b"\x15", b"\x16", b"\x18", b"\x19", b"\x1c", b"\x2c", b"\x26", b"\x15\x00",
    b"\x15\x02",
    b"\xfe\xff\xff\xff\x0f", b"\xff\xff\xff\xff\x0f", b"\xff" * 9 + b"\x01",
    b"\x80\x80\x80\x80\x10",
    b"PAR1", b"\x00\x00\x00\x00PAR1", b"\x19\xfc\xff\xff\xff\xff\x0f", b"\x1c" * 300, b"\x7f",
)  # fmt: skip


class _Parquet:
    def case(self, rng: random.Random) -> Input:
        data = seed(rng.randrange(_SEEDS))
        kind = rng.random()
        if kind < 0.55:
            data = _with_footer(rng, data)
        elif kind < 0.8:
            length = int.from_bytes(data[-8:-4], "little")
            body, footer = data[4 : -8 - length], data[-8 - length :]
            changed = bytearray(body)
            if chance(rng, 0.6):  # nothing moves, so the footer still points at the pages
                for _ in range(1 + few(rng, 6)):
                    token = rng.choice(_TOKENS)[:6]
                    at = rng.randrange(len(changed) + 1)
                    changed[at : at + len(token)] = token
                data = b"PAR1" + bytes(changed[: len(body)].ljust(len(body), b"\0")) + footer
            else:
                data = b"PAR1" + inputs.mutated(rng, bytes(body), _TOKENS) + footer
        elif kind < 0.95:
            data = inputs.mutated(rng, data, _TOKENS)
        dialect = Dialect()
        pieces = rng.choice((0, 0, 0, 1, 3))
        return Input("parquet", data, dialect, pieces=pieces, choices=rng.getrandbits(32))

    def check(self, case: Input, directory: Path) -> None:
        read(case, directory)


def _with_footer(rng: random.Random, data: bytes) -> bytes:
    length = int.from_bytes(data[-8:-4], "little")
    footer = inputs.mutated(rng, data[-8 - length : -8], _TOKENS, 3)
    return data[: -8 - length] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


@cache
def seed(number: int) -> bytes:
    """One of _SEEDS valid files."""
    rng = random.Random(f"parquet seed {number}")
    columns = rng.sample(_COLUMNS, rng.randint(1, 4))
    count = rng.choice((0, 1, 3, 20, 100))
    table = pa.table(
        {
            f"c{i}": pa.array([values[j % 3] for j in range(count)], kind)
            for i, (kind, values) in enumerate(columns)
        }
    )
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        compression=rng.choice(("none", "snappy", "gzip", "zstd", "lz4", "brotli")),
        use_dictionary=chance(rng, 0.5),
        data_page_version=rng.choice(("1.0", "2.0")),
        row_group_size=rng.choice((1 << 20, 7)),
        write_page_checksum=chance(rng, 0.1),
        store_schema=chance(rng, 0.7),
        write_statistics=chance(rng, 0.5),
        use_deprecated_int96_timestamps=chance(rng, 0.1),
        column_encoding=None,
    )
    return sink.getvalue()


TARGETS: dict[str, Target] = {"parquet": _Parquet()}
