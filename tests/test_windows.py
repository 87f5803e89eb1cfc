"""windows(): what they hold follows from the rows, never from how a reader cut its blocks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from hypothesis import example, given
from hypothesis import strategies as st

from batchpredict.data.records import Records, Reject
from batchpredict.run.windows import windows

JSON = pa.json_(pa.string())


@dataclass(frozen=True)
class Row:
    """`weight` None: a row that could not be read."""

    number: int
    weight: int | None


def block_of(rows: Sequence[Row], breaks: Sequence[int] = ()) -> Records:
    good = [row for row in rows if row.weight is not None]
    numbers = np.array([row.number for row in good], np.int64)
    texts = [str(row.number) for row in good]
    return Records(
        columns=pa.RecordBatch.from_pydict({"x": pa.array(texts, pa.string())}),
        kept=pa.RecordBatch.from_pydict({"k": pa.array(numbers, pa.int64())}),
        raw=pa.array([text.encode() for text in texts], pa.binary()),
        rows=numbers,
        lines=numbers * 10,
        weight=np.array([row.weight for row in good], np.int64),
        rejects=tuple(
            Reject(row.number, row.number * 10, "malformed_row", "", b"")
            for row in rows
            if row.weight is None
        ),
        offsets=numbers * 100,
        breaks=tuple(row.number for row in rows if row.number in breaks),
    )


def rows_of(window: Records) -> list[Row]:
    """The rows of a window, after every field was seen to tell of the same ones."""
    numbers = window.rows.tolist()
    assert window.columns.column("x").to_pylist() == [str(number) for number in numbers]
    assert window.kept.column("k").to_pylist() == numbers
    assert window.raw.to_pylist() == [str(number).encode() for number in numbers]
    assert window.lines is not None
    assert window.lines.tolist() == [number * 10 for number in numbers]
    assert window.offsets is not None
    assert window.offsets.tolist() == [number * 100 for number in numbers]
    assert numbers == sorted(numbers)
    lost = [reject.row for reject in window.rejects]
    assert lost == sorted(lost)
    weights = dict(zip(numbers, window.weight.tolist(), strict=True))
    return [Row(number, weights.get(number)) for number in sorted([*numbers, *lost])]


def expected(
    rows: Sequence[Row], most: int, size: int, limit: int | None, breaks: Sequence[int] = ()
) -> list[list[Row]]:
    """The definition, row by row."""
    found: list[list[Row]] = [[]]
    for row in rows[:limit]:
        if row.number in breaks:
            found.append([])
        found[-1].append(row)
        if len(found[-1]) == most or sum(one.weight or 0 for one in found[-1]) >= size:
            found.append([])
    return [window for window in found if window]


@st.composite
def inputs(draw: st.DrawFn) -> tuple[list[Row], list[list[Row]]]:
    """Rows, and the same rows in blocks, empty ones among them."""
    weights = draw(st.lists(st.one_of(st.none(), st.integers(0, 30)), max_size=40))
    rows = [Row(number, weight) for number, weight in enumerate(weights, 1)]
    cuts = sorted(draw(st.lists(st.integers(0, len(rows)), max_size=12)))
    borders = itertools.pairwise([0, *cuts, len(rows)])
    return rows, [rows[begin:end] for begin, end in borders]


@given(inputs(), st.integers(1, 12), st.integers(1, 100), st.one_of(st.none(), st.integers(0, 45)))
def test_windows_follow_from_the_rows_alone(
    given_input: tuple[list[Row], list[list[Row]]], most: int, size: int, limit: int | None
) -> None:
    rows, blocks = given_input
    made = windows(map(block_of, blocks), most, size, limit)
    found = [rows_of(window) for window in made]
    assert [window for window in found if window] == expected(rows, most, size, limit)


@given(
    inputs(),
    st.lists(st.integers(2, 40), max_size=8),
    st.integers(1, 12),
    st.integers(1, 100),
    st.one_of(st.none(), st.integers(0, 45)),
)
@example(
    ([*map(Row, (1, 2, 3, 4), (1, 1, 1, 1))], [[Row(1, 1)], [Row(2, 1), Row(3, 1), Row(4, 1)]]),
    [2],
    2,
    99,
    None,
)
def test_windows_begin_anew_with_each_shard(
    given_input: tuple[list[Row], list[list[Row]]],
    breaks: list[int],
    most: int,
    size: int,
    limit: int | None,
) -> None:
    rows, blocks = given_input
    made = windows((block_of(block, breaks) for block in blocks), most, size, limit)
    found = [rows_of(window) for window in made]
    assert [window for window in found if window] == expected(rows, most, size, limit, breaks)


@given(inputs(), st.lists(st.integers(2, 40), max_size=8), st.integers(1, 12))
def test_windows_of_a_shard_read_by_itself_are_those_of_the_whole(
    given_input: tuple[list[Row], list[list[Row]]], breaks: list[int], most: int
) -> None:
    rows, blocks = given_input
    made = windows((block_of(block, breaks) for block in blocks), most, 50, None)
    borders = sorted({1, *(row for row in breaks if row <= len(rows)), len(rows) + 1})
    alone = []
    for begin, end in itertools.pairwise(borders):
        left = ([row for row in block if row.number >= begin] for block in blocks)
        later = [row for row in breaks if row > begin]
        alone += list(windows((block_of(b, later) for b in left), most, 50, end - begin))
    assert [rows_of(window) for window in made] == [rows_of(window) for window in alone]


@given(inputs(), st.integers(1, 12), st.integers(1, 100))
def test_bounds(given_input: tuple[list[Row], list[list[Row]]], most: int, size: int) -> None:
    _, blocks = given_input
    for window in windows(map(block_of, blocks), most, size, None):
        rows = rows_of(window)
        assert 1 <= len(rows) <= most
        assert sum(row.weight or 0 for row in rows[:-1]) < size


def test_blocks_are_asked_for_as_they_are_needed() -> None:
    asked: list[int] = []

    def blocks() -> Iterator[Records]:
        for number in itertools.count(1):
            asked.append(number)
            yield block_of([Row(number, 1)])

    stream = windows(blocks(), 3, 100, None)
    next(stream)
    assert asked == [1, 2, 3]


def test_the_input_is_left_alone_once_the_limit_is_reached() -> None:
    def blocks() -> Iterator[Records]:
        yield block_of([Row(1, 1), Row(2, None), Row(3, 1)])
        raise AssertionError("read on")

    (window,) = windows(blocks(), 10, 100, 3)
    assert rows_of(window) == [Row(1, 1), Row(2, None), Row(3, 1)]


def test_rejects_after_the_last_row_of_a_block_are_in_its_window() -> None:
    (window,) = windows(iter([block_of([Row(1, None), Row(2, None)])]), 5, 100, None)
    assert [reject.row for reject in window.rejects] == [1, 2]
    assert len(window) == 0


def test_no_rows_no_window() -> None:
    assert list(windows(iter([block_of([]), block_of([])]), 5, 100, None)) == []


def with_column(first: int, column: pa.Array) -> Records:
    rows = np.arange(first, first + len(column), dtype=np.int64)
    none = pa.RecordBatch.from_struct_array(pa.array([{}] * len(column), pa.struct([])))
    return Records(
        columns=pa.RecordBatch.from_pydict({"before": column, "x": column, "after": column}),
        kept=none,
        raw=pa.array([b""] * len(column), pa.binary()),
        rows=rows,
        lines=None,
        weight=np.ones(len(column), np.int64),
    )


def as_json(texts: Sequence[str | None]) -> pa.Array:
    return pa.ExtensionArray.from_storage(JSON, pa.array(texts, pa.string()))


def test_a_column_that_is_text_in_one_block_and_json_in_another_is_json() -> None:
    texts = pa.array(['a "b"', None, "é\n", "1"], pa.string())
    mixed = as_json(["1", "null", '{"a": "x"}'])
    (window,) = windows(iter([with_column(1, texts), with_column(5, mixed)]), 10, 100, None)
    for name in ("before", "x", "after"):
        column = window.columns.column(name)
        assert column.type == JSON
        values = column.storage.to_pylist()
        assert [v if v is None else json.loads(v) for v in values] == [
            'a "b"', None, "é\n", "1", 1, None, {"a": "x"},
        ]  # fmt: skip
    assert window.lines is None
    assert window.offsets is None


def test_columns_of_one_type_keep_it() -> None:
    for column in (pa.array(["a", None]), as_json(["1", None]), pa.array([1, None])):
        blocks = [with_column(1, column), with_column(3, column)]
        (window,) = windows(iter(blocks), 10, 100, None)
        assert window.columns.column("x").type == column.type
        assert len(window) == 4
