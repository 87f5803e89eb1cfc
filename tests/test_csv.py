"""CSV: borders against a reference, exact pass-through, encodings, writing."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batchpredict.data import csv as csv_format
from batchpredict.data import csv_blocks, csv_cut, csv_reader, csv_shards
from batchpredict.data.records import Dialect, Layout, Records, Reject, Selection
from batchpredict.errors import InputInvalid
from tests.reference_csv import rows as reference_rows
from tests.sources import MemorySource

PIECES = [b"a", b",", b"\n", b'"', b"\r\n", b"\r", b"bc", b'""', b',"', b'",', b'"\n', "é".encode()]
NO_COLUMNS = pa.schema([])


def text_of(pieces: list[bytes]) -> bytes:
    return b"".join(pieces)


@given(
    st.lists(st.sampled_from(PIECES), max_size=40).map(text_of),
    st.integers(1, 3),
    st.sampled_from([3, 8, 20, 1000]),
    st.sampled_from([1, 3, 10, 1000]),
    st.sampled_from([1, 5, 100]),
)
@example(b'"a\nb,"c",d\ne,f\n', 2, 1000, 3, 1)
def test_borders_equal_the_reference_however_the_input_is_cut_into_blocks(
    body: bytes, columns: int, longest: int, step: int, exact: int
) -> None:
    header = b",".join(b"xyz"[i : i + 1] for i in range(columns)) + b"\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_cut, "_EXACT_BYTES", exact)
        for module in (csv_reader, csv_blocks):
            patch.setattr(module, "BLOCK_BYTES", step)
        dialect = Dialect(max_record_bytes=max(longest, len(header)))
        found = read(header + body, dialect, step=step)
    expected = reference_rows(body, columns, dialect.max_record_bytes)
    good = [row for row in expected if row.cell_ends is not None]
    assert raw_of(found) == [body[row.start : row.end] for row in good]
    flawed = [(row.code, n) for n, row in enumerate(expected, 1) if row.cell_ends is None]
    assert [(reject.code, reject.row) for reject in rejects_of(found)] == flawed
    numbers = [n for n, row in enumerate(expected, 1) if row.cell_ends is not None]
    assert [int(n) for part in found for n in part.rows] == numbers
    lines = [2 + body.count(b"\n", 0, row.start) for row in good]
    assert flat(part.lines for part in found) == lines
    offsets = [len(header) + row.start for row in good]
    assert flat(part.offsets for part in found) == offsets
    for reject, row in zip(
        rejects_of(found), (r for r in expected if not r.cell_ends), strict=True
    ):
        assert reject.offset == len(header) + row.start
        assert reject.length == row.end - row.start
        assert reject.line == 2 + body.count(b"\n", 0, row.start)


CELLS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('",\r\n;"'), max_size=8)


@given(st.lists(st.lists(CELLS, min_size=2, max_size=2), min_size=1), st.integers(1, 64))
def test_values_equal_what_the_csv_module_wrote(cells: list[list[str]], step: int) -> None:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["x", "y"], *cells])
    # a lone CR inside a cell is quoted by the writer, so the borders are the same
    found = read(buffer.getvalue().encode(), Dialect(), model=("x", "y"), step=step)
    values = [tuple(row.values()) for part in found for row in part.columns.to_pylist()]
    assert values == [tuple(row) for row in cells]


def test_cells_keep_their_spelling_and_values_lose_only_the_quotes() -> None:
    text = b'id,t\r\n007,"1.10"\r\n"a""b",\r\n'
    values = read(text, Dialect(), kept=("t", "id"), carry="value")
    assert rows_of(values) == [("1.10", "007"), ("", 'a"b')]
    cells = read(text, Dialect(), kept=("t", "id"), carry="cell")
    assert rows_of(cells) == [(b'"1.10"', b"007"), (b"", b'"a""b"')]


def test_a_row_that_is_not_utf8_costs_that_row_only() -> None:
    found = read(b"x,y\n1,2\n3,\xff\n5,6\n", Dialect(), model=("x",))
    assert [value for (value,) in model_rows(found)] == ["1", "5"]
    (reject,) = rejects_of(found)
    assert (reject.row, reject.line, reject.code, reject.record) == (
        2,
        3,
        "invalid_utf8",
        b"3,\xff",
    )


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "latin-1", "cp932"]
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", "end"])
def test_records_return_byte_for_byte_in_every_encoding(
    encoding: str, line_end: str, last: str
) -> None:
    word = "テスト" if encoding == "cp932" else "é ÿ"
    text = line_end.join(["a,b", f'{word},"{word}{line_end}, ""x"""', "", f'"",  {word} ', ""])
    text = text.removesuffix(line_end) if last else text
    data = text.encode(encoding)
    name = "utf-8" if encoding == "utf-8-sig" else encoding
    dialect = Dialect(encoding=csv_format_encoding(name))
    for step in (1, 7, 1 << 20):
        assert written(data, dialect, added=[], step=step) == without_blank(
            data, encoding, line_end
        )


def without_blank(data: bytes, encoding: str, line_end: str) -> bytes:
    text = data.decode(encoding).replace(line_end * 2, line_end, 1)
    mark = data[:2] if encoding == "utf-16" else b""
    return mark + text.encode("utf-16-le") if mark else text.encode(encoding)


def csv_format_encoding(name: str) -> str:
    from batchpredict.data.encoding import normal_encoding

    return normal_encoding(name)


def test_bytes_a_single_byte_encoding_does_not_define_cost_their_row() -> None:
    data = b"a,b\n1,\x81\n2,\x80\n"
    dialect = Dialect(encoding="cp1252")
    found = read(data, dialect, model=("a",))
    (reject,) = rejects_of(found)
    assert (reject.row, reject.code, reject.record) == (1, "invalid_utf8", b"1,\x81")
    assert written(data, dialect, added=[]) == b"a,b\n2,\x80\n"


def test_added_cells_are_appended_to_the_records_bytes() -> None:
    data = b'a,b\r\n"x",1.10\r\n\r\n y ,"2\n3"\n7,8'
    result = written(data, Dialect(), added=[("p", ["u,v", 'w"', None]), ("s", [0.5, 1.0, None])])
    assert result == b'a,b,p,s\r\n"x",1.10,"u,v",0.5\r\n y ,"2\n3","w""",1\n7,8,,'


def test_a_single_empty_cell_is_not_written_as_a_blank_line() -> None:
    assert (
        written(b"a\n1\n2\n", Dialect(), added=[("p", [None, "x"])], carry="cell") == b'p\n""\nx\n'
    )


def test_a_single_cell_of_two_quotes_is_told_from_an_empty_one() -> None:
    result = written(b"a\n1\n2\n", Dialect(), added=[("p", ['""', ""])], carry="cell")
    assert result == b'p\n""""""\n""\n'
    found = read(result, Dialect(), model=("p",))
    assert model_rows(found) == [('""',), ("",)]


def test_without_a_header_columns_are_numbered_and_none_is_written() -> None:
    dialect = Dialect(header=False)
    found = read(b"a,b\nc,d\n", dialect, model=("2",))
    assert model_rows(found) == [("b",), ("d",)]
    assert written(b"a,b\nc,d\n", dialect, added=[("p", ["x", "y"])]) == b"a,b,x\nc,d,y\n"


def test_a_header_without_rows_is_an_empty_input() -> None:
    assert model_rows(read(b"a,b", Dialect(), model=("a",))) == []
    assert written(b"a,b", Dialect(), added=[("p", [])]) == b"a,b,p"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"a,b,a\n", "column 'a' appears twice (columns 1 and 3)"),
        (b'"a\n', "a quote is not closed"),
        (b"a\0b\0\n", "NUL bytes"),
        (b"\x1f\x8b\x08abc", "is compressed"),
        (b"caf\xe9\n", "not utf-8"),
        (b"a\r1\r2\r", "lone CR"),
    ],
)
def test_headers_that_are_none(data: bytes, message: str) -> None:
    with pytest.raises(InputInvalid, match="memory") as caught:
        read(data, Dialect())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_overlong_record_is_skipped_in_bounded_memory() -> None:
    data = b"a,b\n1,2\n" + b"x" * 5_000_000 + b"\n3,4\n"
    found = read(data, Dialect(max_record_bytes=1000), model=("a",), step=1 << 16)
    assert model_rows(found) == [("1",), ("3",)]
    (reject,) = rejects_of(found)
    assert (reject.row, reject.line, reject.code) == (2, 3, "too_large")
    assert (reject.offset, reject.length) == (8, 5_000_001)
    assert isinstance(reject.record, bytes)
    assert len(reject.record) <= 1 << 16


# What follows makes tests short.


def read(
    data: bytes,
    dialect: Dialect,
    *,
    model: tuple[str, ...] = (),
    kept: tuple[str, ...] = (),
    carry: Any = "record",
    step: int = 1 << 20,
) -> list[Records]:
    reader = csv_format.open_reader(MemorySource(data, step), dialect, survey=False)
    found = list(reader.records(Selection(model, kept, carry)))
    numbers = sorted(
        [int(n) for part in found for n in part.rows] + [r.row for r in rejects_of(found)]
    )
    assert all(after == before + 1 for before, after in pairwise([0, *numbers]))
    return found


def written(
    data: bytes,
    dialect: Dialect,
    *,
    added: list[tuple[str, list[Any]]],
    carry: Any = "record",
    step: int = 1 << 20,
) -> bytes:
    reader = csv_format.open_reader(MemorySource(data, step), dialect, survey=False)
    types = {"p": pa.string(), "s": pa.float32()}
    schema = pa.schema([(name, types[name]) for name, _ in added])
    sink = io.BytesIO()
    writer = csv_format.open_writer(sink, Layout(carry, NO_COLUMNS, schema, reader, dialect))
    position = 0
    for part in reader.records(Selection((), (), carry)):
        arrays = [
            pa.array(values[position : position + len(part)], types[name]) for name, values in added
        ]
        writer.write(part, pa.RecordBatch.from_arrays(arrays, schema=schema))
        position += len(part)
    writer.close()
    return sink.getvalue()


def flat(arrays: Iterable[npt.NDArray[np.int64] | None]) -> list[int]:
    return [int(number) for array in arrays for number in ([] if array is None else array)]


def raw_of(found: list[Records]) -> list[bytes]:
    return [value for part in found for value in part.raw.to_pylist()]


def rejects_of(found: list[Records]) -> list[Reject]:
    return [reject for part in found for reject in part.rejects]


def rows_of(found: list[Records]) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for part in found for row in part.kept.to_pylist()]


def model_rows(found: list[Records]) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for part in found for row in part.columns.to_pylist()]


@pytest.mark.parametrize("begin", [b"", b'"1",2\n' * 3])
def test_quotes_that_are_data_cost_no_exact_pass(
    begin: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inches, in an export that quotes nothing; before them a record or two may be exact."""
    data = b'1,5" pipe\n' * 2000
    grammar = csv_cut.Grammar(44, 2, 1 << 20)
    exact = csv_cut._cut_exactly
    seen: list[int] = []

    def counting(block: bytes, position: int, *rest: Any) -> csv_cut.Cut:
        part = exact(block, position, *rest)
        seen.append(part.consumed - position)
        return part

    monkeypatch.setattr(csv_cut, "_EXACT_BYTES", 10)
    monkeypatch.setattr(csv_cut, "_cut_exactly", counting)
    found = csv_cut.cut(begin + data, grammar, False)
    assert len(found.starts) == (3 if begin else 0) + 2000
    assert sum(seen) < 100
    assert isinstance(csv_shards.counted(data, grammar, False), csv_shards.Counted)
