"""Text and JSON of every Arrow type."""

from __future__ import annotations

import base64
import json
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchpredict.data.conversion import as_json, as_text, losses


def timestamps(unit: str, zone: str | None, *ticks: int | None) -> pa.Array:
    return pa.array(ticks, pa.int64()).cast(pa.timestamp(unit, zone))


TEXTS: list[tuple[pa.Array, list[str]]] = [
    (pa.array(["007", "é\n", ""]), ["007", "é\n", ""]),
    (pa.array(["a"], pa.large_string()), ["a"]),
    (pa.array(["a"], pa.string_view()), ["a"]),
    (pa.array([-128, 127], pa.int8()), ["-128", "127"]),
    (pa.array([2**64 - 1], pa.uint64()), ["18446744073709551615"]),
    (pa.array([0.1, -0.0, 1e20, 1.0]), ["0.1", "-0", "1e+20", "1"]),
    (pa.array([0.1, 16777216], pa.float32()), ["0.1", "16777216"]),
    (pa.array(np.array([0.1], np.float16)), ["0.1"]),
    (
        pa.array([float("nan"), float("inf"), -float("inf")]),
        ["NaN", "Infinity", "-Infinity"],
    ),
    (pa.array([True, False]), ["true", "false"]),
    (pa.array([date(2020, 2, 29), date(1, 1, 1)]), ["2020-02-29", "0001-01-01"]),
    (pa.array([date(2020, 2, 29)], pa.date64()), ["2020-02-29"]),
    (pa.array([2**31 - 1], pa.int32()).cast(pa.date32()), ["2147483647"]),
    (pa.array([time(1, 2, 3)], pa.time32("s")), ["01:02:03"]),
    (pa.array([-1], pa.int32()).cast(pa.time32("s")), ["-1"]),
    (pa.array([1], pa.int64()).cast(pa.time64("ns")), ["00:00:00.000000001"]),
    (timestamps("s", None, -1), ["1969-12-31T23:59:59"]),
    (timestamps("s", None, 2**62), [str(2**62)]),
    (timestamps("us", "UTC", 1), ["1970-01-01T00:00:00.000001Z"]),
    (timestamps("ms", "Europe/Berlin", 0), ["1970-01-01T01:00:00.000+01:00"]),
    (timestamps("ns", "-05:30", 0), ["1969-12-31T18:30:00.000000000-05:30"]),
    (pa.array([-1500], pa.duration("ms")), ["-PT1.500S"]),
    (pa.array([61], pa.duration("s")), ["PT61S"]),
    (pa.array([(1, 2, -3)], pa.month_day_nano_interval()), ["P1M2DT-0.000000003S"]),
    (pa.array([Decimal("1.10"), Decimal("1E-8")], pa.decimal128(20, 8)),
     ["1.10000000", "0.00000001"]),
    (pa.array([Decimal("12E+2")], pa.decimal128(5, -2)), ["1200"]),
    (pa.array([Decimal(10**70)], pa.decimal256(76, 2)), ["1" + "0" * 70 + ".00"]),
    (pa.array([Decimal("1.2")], pa.decimal32(5, 1)), ["1.2"]),
    (pa.array([b"\xff\x00"]), ["/wA="]),
    (pa.array([b"ab"], pa.binary(2)), ["YWI="]),
    (pa.array([b"ab"], pa.large_binary()), ["YWI="]),
    (pa.array([[1, None], []]), ["[1,null]", "[]"]),
    (pa.array([["a"], ["b", "c"]], pa.list_view(pa.string())), ['["a"]', '["b","c"]']),
    (pa.array([[1.5, None]], pa.list_(pa.float32(), 2)), ["[1.5,null]"]),
    (pa.array([[0.1]], pa.large_list(pa.float32())), ["[0.1]"]),
    (pa.array([{"a": "x\"", "b": [b"\xff"]}, {"a": None, "b": None}]),
     ['{"a":"x\\"","b":["/w=="]}', '{"a":null,"b":null}']),
    (pa.array([{}], pa.struct([])), ["{}"]),
    (pa.array([[(1, True)], [(2, None)], []], pa.map_(pa.int32(), pa.bool_())),
     ['{"1":true}', '{"2":null}', "{}"]),
    (pa.array(["p", "q", "p"]).dictionary_encode(), ["p", "q", "p"]),
    (pa.RunEndEncodedArray.from_arrays([2, 3], [1, 2]), ["1", "1", "2"]),
    (pa.ExtensionArray.from_storage(pa.json_(), pa.array(['"é\\n"', '{"a": 1.0}', "2"])),
     ["é\n", '{"a": 1.0}', "2"]),
    (pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()),
                               [pa.array([1, 2]), pa.array(["a", "b"])]), ["1", '"b"']),
]  # fmt: skip


@pytest.mark.parametrize(("array", "texts"), TEXTS, ids=lambda v: str(getattr(v, "type", "")))
def test_text(array: pa.Array, texts: list[str]) -> None:
    assert as_text(array).to_pylist() == texts
    assert as_text(array).type == pa.string()
    assert as_text(array.slice(1)).to_pylist() == texts[1:]
    assert as_text(array.slice(0, 0)).to_pylist() == []


@pytest.mark.parametrize("array", [a for a, _ in TEXTS], ids=lambda a: str(a.type))
def test_json_is_json_and_null_is_null(array: pa.Array) -> None:
    parsed = [json.loads(text, parse_constant=pytest.fail) for text in as_json(array)]
    assert len(parsed) == len(array)
    assert as_json(array.slice(1)) == as_json(array)[1:]
    if not pa.types.is_union(array.type):
        nulls = pa.nulls(2, array.type)
        assert as_text(nulls).to_pylist() == [None, None]
        assert as_json(nulls) == ["null", "null"]


def test_json_of_each_kind() -> None:
    assert as_json(pa.array(['é"\n', None])) == ['"é\\"\\n"', "null"]
    assert as_json(pa.array([1, None])) == ["1", "null"]
    assert as_json(pa.array([True])) == ["true"]
    assert as_json(pa.array([0.5, float("nan"), -float("inf")])) == ["0.5", '"NaN"', '"-Infinity"']
    assert as_json(pa.array([Decimal("1.10")])) == ['"1.10"']
    assert as_json(pa.array([datetime(2020, 1, 1)], pa.timestamp("s"))) == ['"2020-01-01T00:00:00"']
    assert as_json(pa.array([b"\xff"])) == ['"/w=="']
    text = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1.0}', None]))
    assert as_json(text) == ['{"a": 1.0}', "null"]
    assert as_text(pa.ExtensionArray.from_storage(pa.json_(), pa.array(["null"]))).to_pylist() == [
        None
    ]


@given(st.lists(st.none() | st.floats()), st.lists(st.none() | st.floats(width=32)))
def test_floats_read_back(doubles: list[Any], singles: list[Any]) -> None:
    for values, kind in ((doubles, pa.float64()), (singles, pa.float32())):
        array = pa.array(values, kind)
        back = [None if text is None else float(text) for text in as_text(array).to_pylist()]
        assert repr(pa.array(back, kind).to_pylist()) == repr(array.to_pylist())


@given(st.lists(st.none() | st.lists(st.none() | st.fixed_dictionaries(
    {"t": st.none() | st.text(st.characters(exclude_categories=["Cs"])), "n": st.none()
     | st.integers(-(2**63), 2**63 - 1), "b": st.none() | st.binary()}))),
    st.integers(0, 3))  # fmt: skip
def test_nested_values_read_back(rows: list[Any], start: int) -> None:
    kind = pa.list_(pa.struct([("t", pa.string()), ("n", pa.int64()), ("b", pa.binary())]))
    array = pa.array(rows, kind).slice(min(start, len(rows)))
    expected = [
        None if row is None else [
            None if item is None else {
                **item, "b": item["b"] and base64.b64encode(item["b"]).decode()
                if item["b"] != b"" else ""}
            for item in row]
        for row in rows[start:]
    ]  # fmt: skip
    assert [json.loads(text) for text in as_json(array)] == expected
    texts = as_text(array).to_pylist()
    assert [None if text is None else json.loads(text) for text in texts] == expected


def test_losses_are_said_once_per_column() -> None:
    schema = pa.schema(
        [
            ("id", pa.int64()), ("x", pa.binary()), ("a b", pa.string()),
            ("day", pa.dictionary(pa.int8(), pa.date32())), ("l", pa.list_(pa.decimal128(5, 2))),
            ("u", pa.uint64()), ("z", pa.timestamp("us", "Europe/Berlin")),
            ("t", pa.time64("ns")), ("j", pa.json_()), ("e", pa.struct([])),
        ]
    )  # fmt: skip
    mixed = "column 'j': values that are not text are written as JSON text"
    text = [
        "column 'x': bytes are written as base64",
        "column 'l': nested values are written as JSON text",
        mixed,
        "column 'e': nested values are written as JSON text",
    ]
    assert losses(schema, "csv") == losses(schema, "tsv") == text
    in_json = [
        "column 'x': bytes are written as base64 text",
        "column 'day': dates and times are written as ISO 8601 text",
        "column 'l': decimals are written as text",
        "column 'z': dates and times are written as ISO 8601 text",
        "column 't': dates and times are written as ISO 8601 text",
    ]
    assert losses(schema, "json") == losses(schema, "jsonl") == in_json
    assert losses(schema, "avro") == [
        "column 'a b': Avro forbids the name, written as a_b",
        "column 'u': unsigned 64-bit numbers are written as decimals",
        "column 'z': the instants are kept, the time zone Europe/Berlin is not",
        "column 't': values are written as text",
        mixed,
    ]
    assert losses(schema, "parquet") == [mixed, "column 'e': values are written as text"]
