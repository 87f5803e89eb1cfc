"""Columns to feeds: every dtype, missing values, rows that do not fit, and binding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchpredict.errors import BatchPredictError, ConfigInvalid, InputInvalid, UsageError
from batchpredict.model.binding import bind
from batchpredict.model.casting import cast_column
from batchpredict.model.contracts import Encoder
from batchpredict.model.package import read_package
from batchpredict.model.session import open_session
from tests import models

BAD, GONE = "bad", "missing"
INTS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
FLOATS = ["float16", "float32", "float64"]


def json_column(*values: str | None) -> pa.Array:
    return pa.ExtensionArray.from_storage(pa.json_(pa.string()), pa.array(values, pa.string()))


def cast(column: pa.Array, dtype: str, *missing_values: str) -> list[Any]:
    """What each row is: a value, BAD or GONE."""
    result = cast_column(column, dtype, missing_values)
    assert not (result.bad & result.missing).any()
    assert result.values.dtype == (object if dtype == "string" else dtype)
    values = result.values.tolist()
    return [
        GONE if gone else BAD if bad else value
        for value, gone, bad in zip(values, result.missing, result.bad, strict=True)
    ]


def one(text: str, dtype: str) -> Any:
    """A text alone, among plain numbers, and as a JSON string: the same value."""
    column = pa.array([text])
    (alone,) = cast(column, dtype)
    among = cast(pa.array(["1", text, "0"]), dtype)[1]
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\t", "\\t")
    (quoted,) = cast(json_column(f'"{escaped}"'), dtype)
    assert repr(alone) == repr(among) == repr(quoted)
    return alone


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1.0),
        ("-2.5", -2.5),
        ("+3", 3.0),
        ("  4\t", 4.0),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("inf", math.inf),
        ("-INF", -math.inf),
        ("true", 1.0),
        ("False", 0.0),
        ("", GONE),
        ("  ", GONE),
        ("abc", BAD),
        ("1,5", BAD),
        ("1 2", BAD),
        ("0x10", BAD),
        ("1e999", BAD),
        ("\u0661", BAD),
        ("--1", BAD),
        ("1e", BAD),
        ("-", BAD),
    ],
)
def test_text_to_float(text: str, expected: Any) -> None:
    for dtype in FLOATS:
        assert one(text, dtype) == expected


def test_text_that_says_nan() -> None:
    for text in ("nan", "NaN", "-nan", "+nan"):
        assert math.isnan(one(text, "float32"))


def test_text_beyond_a_float() -> None:
    assert one("1e39", "float32") == BAD
    assert one("1e39", "float64") == 1e39
    assert one("65536", "float16") == BAD


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", 3),
        ("3.0", 3),
        ("+3", 3),
        ("1e1", 10),
        (" 7 ", 7),
        ("007", 7),
        ("000000000000000000000000000007", 7),
        ("TRUE", 1),
        ("3.5", BAD),
        ("nan", BAD),
        ("inf", BAD),
        ("0x10", BAD),
        ("", GONE),
        ("x", BAD),
    ],
)
def test_text_to_whole_number(text: str, expected: Any) -> None:
    for dtype in INTS:
        assert one(text, dtype) == expected


@pytest.mark.parametrize("dtype", INTS)
def test_the_limits_of_whole_numbers(dtype: str) -> None:
    limits = np.iinfo(dtype)
    low, high = int(limits.min), int(limits.max)
    for text in (str(low), str(high)):
        assert one(text, dtype) == int(text)
    for text in (str(low - 1), str(high + 1)):
        assert one(text, dtype) == BAD
    among = cast(pa.array(["3.0", str(high), str(low)]), dtype)
    assert among == [3, high, low]


def test_whole_numbers_are_exact_beside_fractions() -> None:
    column = pa.array(["3.0", "9007199254740993", "9007199254740993.0", "-9007199254740993"])
    assert cast(column, "int64") == [3, 9007199254740993, BAD, -9007199254740993]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("true", True),
        ("FALSE", False),
        ("1", True),
        (" 0 ", False),
        ("1.0", True),
        ("yes", BAD),
        ("2", BAD),
        ("", GONE),
    ],
)
def test_text_to_bool(text: str, expected: Any) -> None:
    assert one(text, "bool") == expected


def test_json_values() -> None:
    column = json_column("1.5", '"2"', "true", "null", None, '{"a": 1}', "[1]", '"x"', '"\\u0033"')
    expected = [1.5, 2.0, 1.0, GONE, GONE, BAD, BAD, BAD, 3.0]
    assert cast(column, "float32") == expected
    texts = ["1.5", "2", "true", GONE, GONE, BAD, BAD, "x", "3"]
    assert cast(column, "string") == texts
    assert cast(json_column("true", "false", "1", '"False"'), "bool") == [True, False, True, False]
    assert cast(json_column('""', '"\\ud800"'), "string") == ["", BAD]


def test_typed_columns() -> None:
    assert cast(pa.array([True, False, None]), "float32") == [1.0, 0.0, GONE]
    assert cast(pa.array([True, None]), "int8") == [1, GONE]
    assert cast(pa.array([1, 0, 2, None]), "bool") == [True, False, BAD, GONE]
    assert cast(pa.array([300, -1, 7, None]), "uint8") == [BAD, BAD, 7, GONE]
    assert cast(pa.array([2**63], pa.uint64()), "int64") == [BAD]
    assert cast(pa.array([-1]), "uint64") == [BAD]
    assert cast(pa.array([1.0, 1.5, math.nan, math.inf, 1e30, None]), "int32") == [
        1,
        BAD,
        BAD,
        BAD,
        BAD,
        GONE,
    ]
    assert cast(pa.array([2.0**63, -(2.0**63)]), "int64") == [BAD, -(2**63)]
    assert cast(pa.array([1e39, math.inf]), "float32") == [BAD, math.inf]
    decimals = pa.array([Decimal("1.10"), None], pa.decimal128(10, 2))
    assert cast(decimals, "float64") == [1.1, GONE]
    assert cast(decimals, "int32") == [BAD, GONE]
    assert cast(pa.nulls(2), "float32") == [GONE, GONE]
    assert cast(pa.nulls(2), "string") == [GONE, GONE]
    categories = pa.array(["1", None, "2"]).dictionary_encode()
    assert cast(categories, "float32") == [1.0, GONE, 2.0]
    assert cast(categories, "string") == ["1", GONE, "2"]
    assert cast(pa.array(["1"], pa.large_string()), "int64") == [1]
    halves = pa.array(np.array([0.5, 2], np.float16))
    assert cast(halves, "float32") == [0.5, 2.0]


def test_columns_to_categories() -> None:
    assert cast(pa.array(["a", "", " b ", None]), "string") == ["a", "", " b ", GONE]
    assert cast(pa.array([7, None]), "string") == ["7", GONE]
    assert cast(pa.array([True, False]), "string") == ["true", "false"]


def test_texts_that_mean_no_value() -> None:
    assert cast(pa.array(["NA", " NA ", "1", "-999"]), "float32", "NA", "-999") == [
        GONE,
        GONE,
        1.0,
        GONE,
    ]
    assert cast(pa.array(["-999", "1"]), "int64", "-999") == [GONE, 1]
    assert cast(pa.array([-999, 1]), "float32", "NA", "-999") == [GONE, 1.0]
    assert cast(pa.array([-999.0, 1.0]), "float32", "NA", "-999") == [GONE, 1.0]
    assert cast(pa.array(["NA", "x"]), "string", "NA") == [GONE, "x"]
    assert cast(pa.array(["NA", "1"]), "bool", "NA") == [GONE, True]
    assert cast(json_column('"NA"', "1"), "float32", "NA") == [GONE, 1.0]


@given(
    st.lists(
        st.one_of(
            st.floats().map(repr),
            st.integers(-(2**70), 2**70).map(str),
            st.text(st.sampled_from("0123456789+-.eEinfatyx_ "), max_size=8),
        )
    ),
    st.sampled_from([*FLOATS, *INTS, "bool"]),
)
def test_every_row_is_what_it_is_alone(texts: list[str], dtype: str) -> None:
    """No neighbour changes a value, and nothing but a number is one."""
    together = cast(pa.array(texts, pa.string()), dtype)
    alone = [cast(pa.array([text]), dtype)[0] for text in texts]
    assert repr(together) == repr(alone)
    for text, value in zip(texts, together, strict=True):
        if value in (BAD, GONE) or text.strip().lower() in ("true", "false"):
            continue
        expected = (
            float(text) if dtype in FLOATS or "e" in text.lower() or "." in text else int(text)
        )
        assert "_" not in text
        if dtype in FLOATS:
            assert repr(np.float64(expected).astype(dtype).item()) == repr(value)
        else:
            assert value == expected


@given(st.lists(st.floats(width=64)), st.sampled_from([*FLOATS, "int32", "int64"]))
def test_typed_values_and_their_texts_agree(numbers: list[float], dtype: str) -> None:
    typed = cast(pa.array(numbers, pa.float64()), dtype)
    text = cast(pa.array([repr(number) for number in numbers], pa.string()), dtype)
    if dtype == "int64":
        # Text of whole floats from 2**53 on is not exact and refused; typed values are exact.
        pairs = [(a, b) for a, b in zip(typed, text, strict=True) if b != BAD]
        assert all(a == b for a, b in pairs)
    else:
        assert repr(typed) == repr(text)


# --- encoders


def encoder(
    directory: Path,
    graph: object = None,
    offered: pa.Schema | None = None,
    *,
    manifest: str | None = None,
    **column: str,
) -> Encoder:
    if graph is not None:
        models.write(directory, graph, manifest=manifest)  # type: ignore[arg-type]
    package = read_package(directory)
    assert offered is not None
    return bind(package, open_session(package), offered, True, column)


def strings(*names: str) -> pa.Schema:
    return pa.schema([(name, pa.string()) for name in names])


def rows(**columns: Sequence[str | None]) -> pa.RecordBatch:
    return pa.record_batch({name: pa.array(v, pa.string()) for name, v in columns.items()})


def test_a_matrix(tmp_path: Path) -> None:
    made = encoder(tmp_path, models.matrix_graph(3), strings("a", "b", "c"))
    assert made.columns == ("a", "b", "c")
    assert made.bindings == {"features": ("a", "b", "c")}
    prepared = made.prepare(rows(c=["3", "6", "x"], a=["1", "", "7"], b=["2", "5", "8"]))
    assert prepared.lengths is None
    assert [(fault.index, fault.code) for fault in prepared.faults] == [(2, "bad_type")]
    assert prepared.faults[0].message == "column 'c': \"x\" is not a float32 value"
    features = made.feeds(prepared, np.array([1, 0]))["features"]
    assert features.dtype == np.float32
    assert features.flags.c_contiguous
    assert features[1].tolist() == [1, 2, 3]
    assert math.isnan(features[0][0])
    assert features[0][1:].tolist() == [5, 6]


@pytest.mark.parametrize("flat", [False, True])
def test_one_input_per_column_of_every_dtype(tmp_path: Path, flat: bool) -> None:
    dtypes = {f"x_{dtype}": dtype for dtype in models.TYPES}
    models.write(tmp_path, models.echo_graph(dtypes, flat=flat))
    package = read_package(tmp_path)
    session = open_session(package)
    made = bind(package, session, strings(*dtypes), True, {})
    assert made.columns == tuple(dtypes)

    prepared = made.prepare(rows(**{name: ["1", "0"] for name in dtypes}))
    feeds = made.feeds(prepared, np.array([0, 1, 0]))
    outputs = session.run([f"{name}_out" for name in dtypes], feeds)

    for (name, dtype), output in zip(dtypes.items(), outputs, strict=True):
        assert output.shape == ((3,) if flat else (3, 1)), name
        expected = ["1", "0", "1"] if dtype == "string" else [1, 0, 1]
        assert output.reshape(-1).tolist() == expected, name


@pytest.mark.parametrize("flat", [False, True])
def test_a_graph_of_strings_gets_the_column_as_it_is(tmp_path: Path, flat: bool) -> None:
    models.write(tmp_path, models.string_graph(flat=flat, name="X"))
    package = read_package(tmp_path)
    session = open_session(package)
    made = bind(package, session, strings("id", "text"), True, {})
    assert made.bindings == {"X": ("text",)}
    prepared = made.prepare(rows(text=[" ä 007", None, ""]))
    assert [(fault.index, fault.code) for fault in prepared.faults] == [(1, "missing_value")]
    (label,) = session.run(["label"], made.feeds(prepared, np.array([0, 2])))
    assert label.tolist() == [" ä 007", ""]
    assert bind(package, session, strings("X", "text"), True, {}).columns == ("X",)
    assert bind(package, session, strings("body"), True, {"text": "body"}).columns == ("body",)
    assert bind(package, session, strings("a", "b"), True, {"X": "b"}).columns == ("b",)


def test_missing_values_follow_the_manifest(tmp_path: Path) -> None:
    manifest = """
    missing_values = ["NA"]
    [inputs.filled]
    fill = -1
    [inputs.city]
    fill = "none"
    [inputs.strict]
    missing = "reject"
    """
    dtypes = {"filled": "int64", "city": "string", "strict": "float32", "usual": "float32"}
    made = encoder(tmp_path, models.echo_graph(dtypes), strings(*dtypes), manifest=manifest)
    gone = ["NA", None, "1"]
    prepared = made.prepare(rows(filled=gone, city=gone, strict=["1", "NA", ""], usual=gone))

    assert [(fault.index, fault.code) for fault in prepared.faults] == [
        (1, "missing_value"),
        (2, "missing_value"),
    ]
    assert "'strict'" in prepared.faults[0].message
    feeds = made.feeds(prepared, np.arange(3))
    assert feeds["filled"].tolist() == [[-1], [-1], [1]]
    assert feeds["city"].tolist() == [["none"], ["none"], ["1"]]
    assert np.isnan(feeds["usual"]).tolist() == [[True], [True], [False]]


def test_whole_numbers_without_a_value_are_rejected(tmp_path: Path) -> None:
    made = encoder(tmp_path, models.echo_graph({"n": "int64"}), strings("n"))
    prepared = made.prepare(rows(n=["1", "", None]))
    assert [fault.index for fault in prepared.faults] == [1, 2]


def test_a_long_value_is_cut_in_the_message(tmp_path: Path) -> None:
    made = encoder(tmp_path, models.echo_graph({"n": "int64"}), strings("n"))
    (fault,) = made.prepare(rows(n=["x" * 1000])).faults
    assert "x" * 40 + "…" in fault.message
    assert "x" * 41 not in fault.message


def test_where_the_columns_of_a_matrix_come_from(tmp_path: Path) -> None:
    offered = strings("id", "a", "b", "c")
    graph = models.matrix_graph(2)
    by_option = encoder(tmp_path / "o", graph, offered, features="c, a")
    assert by_option.columns == ("c", "a")
    named = '[inputs.features]\ncolumns = ["b", "c"]'
    assert encoder(tmp_path / "m", graph, offered, manifest=named).columns == ("b", "c")
    for key, value in (("columns", '["a", "c"]'), ("feature_names", "a,c")):
        graph = models.matrix_graph("D", metadata={key: value})
        assert encoder(tmp_path / key, graph, offered).columns == ("a", "c")
    single = models.matrix_graph(1, name="b")
    assert encoder(tmp_path / "s", single, offered).columns == ("b",)
    assert encoder(tmp_path / "l", models.matrix_graph(1), strings("z")).columns == ("z",)


@pytest.mark.parametrize(
    ("graph", "offered", "column", "error", "parts"),
    [
        (models.matrix_graph(3), "a b", {}, InputInvalid, ["float32 [rows, 3]", "a, b", "columns"]),
        (models.matrix_graph(None), "a b", {}, InputInvalid, ["float32 [rows, ?]"]),
        (
            models.matrix_graph(2),
            "a b c",
            {"features": "a"},
            ConfigInvalid,
            ["takes 2 column(s), 1 are named"],
        ),
        (
            models.echo_graph({"age": "float32"}),
            "Age id",
            {},
            InputInvalid,
            ["input age (float32 [rows, 1])", "did you mean 'Age'", "--column age=COLUMN"],
        ),
        (models.echo_graph({"a": "int64"}), "b", {"a": "c"}, UsageError, ["--column a=c"]),
        (
            models.echo_graph({"age": "int64"}),
            "age",
            {"agee": "age"},
            UsageError,
            ["--column agee", "did you mean 'age'"],
        ),
        (models.matrix_graph(3, batch=1), "a b c", {}, ConfigInvalid, ["dynamic batch axis"]),
    ],
)
def test_what_cannot_be_bound(
    tmp_path: Path,
    graph: object,
    offered: str,
    column: dict[str, str],
    error: type[BatchPredictError],
    parts: list[str],
) -> None:
    with pytest.raises(error) as caught:
        encoder(tmp_path, graph, strings(*offered.split()), **column)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        ("float32", pa.timestamp("us")),
        ("float32", pa.binary()),
        ("int64", pa.list_(pa.int64())),
        ("string", pa.float64()),
        ("string", pa.date32()),
    ],
    ids=str,
)
def test_typed_columns_that_cannot_be_cast(tmp_path: Path, dtype: str, kind: pa.DataType) -> None:
    offered = pa.schema([("x", kind)])
    with pytest.raises(InputInvalid, match=r"'x', which is .*--column x="):
        encoder(tmp_path, models.echo_graph({"x": dtype}), offered)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("[inputs.agee]\nfill = 0", r"\[inputs\.agee\]: no such input, did you mean 'age'"),
        ("[inputs.age]\nmissing = 'nan'", r"\[inputs\.age\]: missing: int64 has no NaN"),
        ("[inputs.age]\nfill = 'x'", r"\[inputs\.age\]: fill: 'x' is not int64"),
        ("[inputs.age]\nfill = 0.5", r"\[inputs\.age\]: fill: 0\.5 is not int64"),
        ("[inputs.city]\nfill = 3", r"\[inputs\.city\]: fill: 3 is not string"),
    ],
)
def test_a_manifest_that_does_not_fit_the_graph(
    tmp_path: Path, manifest: str, message: str
) -> None:
    graph = models.echo_graph({"age": "int64", "city": "string"})
    with pytest.raises(ConfigInvalid, match=message):
        encoder(tmp_path, graph, strings("age", "city"), manifest=manifest)


def test_a_graph_of_strings_takes_no_template(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="one column as it is"):
        encoder(tmp_path, models.string_graph(), strings("text"), manifest='text = "q: {text}"')
    made = encoder(tmp_path, models.string_graph(), strings("body"), manifest='text = "{body}"')
    assert made.columns == ("body",)
