from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchpredict.data import json as json_format
from batchpredict.data import jsontext
from batchpredict.data.records import Dialect, Layout, Records, Selection, Source, take
from batchpredict.errors import InputInvalid, UsageError

LINES, ARRAY = Dialect(), Dialect(json_array=True)


@dataclass
class Memory:
    data: bytes
    name: str = "rows.json"
    rereadable: bool = True
    compression: str = ""

    def open(self, at: int = 0) -> BinaryIO:
        return io.BytesIO(self.data[at:])

    def local_path(self) -> None:
        return None


class ByteByByte(io.BytesIO):
    """Delivers as a socket may."""

    def read(self, size=-1):
        return super().read(min(size, 1))


class Trickle(Memory):
    def open(self, at: int = 0) -> BinaryIO:
        return ByteByByte(self.data[at:])


class Endless(io.RawIOBase):
    """`pieces` one after the other."""

    def __init__(self, pieces):
        self.pieces, self.rest = iter(pieces), b""

    def read(self, size=-1):
        while len(self.rest) < size and (piece := next(self.pieces, None)):
            self.rest += piece
        data, self.rest = self.rest[:size], self.rest[size:]
        return data


@dataclass
class Generated:
    pieces: Callable[[], Iterator[bytes]]
    name: str = "large.json"
    rereadable: bool = False
    compression: str = ""

    def open(self, at: int = 0) -> BinaryIO:
        assert not at
        return cast(BinaryIO, Endless(self.pieces()))

    def local_path(self) -> None:
        return None


def read(data, dialect=LINES, model=(), kept=(), carry="record", survey=False):
    source: Source = Memory(data) if isinstance(data, bytes) else data
    reader = json_format.open_reader(source, dialect, survey)
    return list(reader.records(Selection(tuple(model), tuple(kept), carry)))


def raws(blocks):
    return [raw for block in blocks for raw in block.raw.to_pylist()]


def column(blocks, name):
    """The values of a column the model reads, decoded."""
    values = []
    for block in blocks:
        array = block.columns[name]
        if array.type == pa.json_(pa.string()):
            texts = array.storage.to_pylist()
            values += [None if text is None else json.loads(text) for text in texts]
        else:
            values += array.to_pylist()
    return values


def faults(blocks):
    return [(r.row, r.line, r.code, r.record) for block in blocks for r in block.rejects]


def numbers(blocks):
    return [int(row) for block in blocks for row in block.rows]


def write(blocks, dialect=LINES, added=None, carry="record", kept=None, origin=None):
    sink = io.BytesIO()
    if added is None:
        added = [pa.RecordBatch.from_pydict({"p": ["x"] * len(block)}) for block in blocks]
    schema = added[0].schema if added else pa.schema([("p", pa.string())])
    layout = Layout(carry, kept or pa.schema([]), schema, origin, dialect)
    writer = json_format.open_writer(sink, layout)
    for block, new in zip(blocks, added, strict=True):
        writer.write(block, new)
    writer.close()
    return sink.getvalue()


# Spelled JSON: values in every spelling the grammar has, with white space where it may be.

blank = st.sampled_from(["", "", " ", "\t", "  "])
characters = st.one_of(
    st.characters(exclude_categories=["Cs"]).map(lambda c: json.dumps(c, ensure_ascii=False)[1:-1]),
    st.characters(exclude_categories=["Cs"]).map(lambda c: json.dumps(c)[1:-1]),
    st.sampled_from(["\\/", "\\\\", '\\"', "\\\\\\\\", "\u2028", "\x85", "[", "]", "{", "}", ","]),
)
strings = st.lists(characters, max_size=6).map(lambda parts: '"' + "".join(parts) + '"')
scalars = st.one_of(
    strings,
    st.sampled_from(
        ["null", "true", "false", "0", "-0", "1.10", "1e5", "-2.50E-3", "12345678901234567890"]
    ),
    st.integers().map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
)


def joined(parts, opening, closing):
    return st.tuples(st.lists(parts, max_size=4), blank).map(
        lambda both: opening + both[1] + ",".join(both[0]) + closing
    )


def objects_of(values):
    name = st.one_of(st.sampled_from(['"a"', '"b"', '"\\u0061"']), strings)
    member = st.tuples(blank, name, blank, blank, values, blank).map(
        lambda p: f"{p[0]}{p[1]}{p[2]}:{p[3]}{p[4]}{p[5]}"
    )
    return joined(member, "{", "}")


def arrays_of(values):
    return joined(st.tuples(blank, values, blank).map("".join), "[", "]")


values = st.recursive(scalars, lambda v: st.one_of(objects_of(v), arrays_of(v)), max_leaves=6)
objects = objects_of(values)
line_ends = st.sampled_from(["\n", "\r\n", "  \n", "\n"])
block_sizes = st.sampled_from([1, 2, 3, 7, 30, 1 << 20])

quickly = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def block_bytes(monkeypatch):
    return lambda size: monkeypatch.setattr(jsontext, "BLOCK_BYTES", size)


@quickly
@given(st.lists(st.tuples(blank, objects, line_ends).map("".join)), block_sizes, st.booleans())
def test_lines_come_back_byte_exact_with_the_values_json_has(block_bytes, lines, size, open_end):
    block_bytes(size)
    if lines and open_end:
        lines[-1] = lines[-1].rstrip("\n")
    data = "".join(lines).encode()
    blocks = read(data, model=["a", "b"])
    assert faults(blocks) == []
    assert b"".join(raws(blocks)) == data
    assert raws(blocks) == [line.encode() for line in lines]
    parsed = [json.loads(line) for line in lines]
    for name in "ab":
        assert column(blocks, name) == [record.get(name) for record in parsed]
    assert numbers(blocks) == list(range(1, len(lines) + 1))
    offsets = [int(o) for block in blocks for o in block.offsets]
    weights = [int(w) for block in blocks for w in block.weight]
    assert weights == [len(line.encode()) for line in lines]
    assert all(b - a == w for (a, b), w in zip(pairwise(offsets), weights, strict=False))


@quickly
@given(st.lists(st.tuples(blank, objects, blank)), blank, block_sizes, st.sampled_from(" \n"))
def test_array_elements_come_back_byte_exact(block_bytes, elements, edge, size, space):
    block_bytes(size)
    body = ",".join(f"{a}{space}{element}{b}" for a, element, b in elements)
    data = f"{edge}[{body}{edge}]{edge}".encode()
    blocks = read(data, ARRAY, model=["a"])
    assert raws(blocks) == [element.encode() for _, element, _ in elements]
    assert column(blocks, "a") == [record.get("a") for record in json.loads(data)]
    for block in blocks:
        for raw, line, offset in zip(
            block.raw.to_pylist(), block.lines, block.offsets, strict=True
        ):
            assert data[offset : offset + len(raw)] == raw
            assert line == data.count(b"\n", 0, offset) + 1


@quickly
@given(st.lists(st.tuples(objects, st.binary(max_size=9)), min_size=1), block_sizes)
def test_a_corrupted_line_costs_exactly_its_row(block_bytes, pairs, size):
    block_bytes(size)
    lines: list[bytes] = []
    bad = []
    for good, noise in pairs:
        noise = b"#" + noise.replace(b"\n", b"").removesuffix(b"\r")
        bad.append((len(lines) + 1, len(lines) + 1, noise))
        lines += [noise, good.encode()]
    blocks = read(b"".join(line + b"\n" for line in lines))
    assert [(row, line, record) for row, line, _, record in faults(blocks)] == bad
    assert {code for _, _, code, _ in faults(blocks)} <= {"malformed_row", "invalid_utf8"}
    assert raws(blocks) == [line + b"\n" for line in lines[1::2]]
    assert numbers(blocks) == list(range(2, len(lines) + 1, 2))


@quickly
@given(st.lists(objects), block_sizes)
def test_cells_and_values_are_as_spelled(block_bytes, texts, size):
    block_bytes(size)
    data = "".join(f"{text}\n" for text in texts).encode()
    parsed = [json.loads(text) for text in texts]
    cells = [c for b in read(data, kept=["a"], carry="cell") for c in b.kept["a"].to_pylist()]
    assert [c is not None for c in cells] == ["a" in record for record in parsed]
    assert [json.loads(c) for c in cells if c] == [r["a"] for r in parsed if "a" in r]
    assert all(c.decode() in text for c, text in zip(cells, texts, strict=True) if c)
    values = [v for b in read(data, kept=["a"], carry="value") for v in b.kept["a"].to_pylist()]
    for value, cell, record in zip(values, cells, parsed, strict=True):
        expected = record.get("a")
        if expected is None or isinstance(expected, str):
            assert value == expected
        else:
            assert value == cell.decode()


@quickly
@given(st.lists(objects), st.booleans(), st.booleans())
def test_splicing_keeps_the_record_and_adds_members(texts, from_array, to_array):
    # Names that the added member must not meet.
    texts = [text for text in texts if "p" not in json.loads(text)]
    data = f"[{', '.join(texts)}]" if from_array else "".join(f"{t}\r\n" for t in texts)
    dialect = replace(LINES, json_array=from_array)
    reader = json_format.open_reader(Memory(data.encode()), dialect, False)
    blocks = list(reader.records(Selection((), (), "record")))
    out = write(blocks, replace(LINES, json_array=to_array), origin=reader)
    rows = json.loads(out) if to_array else [json.loads(line) for line in out.splitlines()]
    assert rows == [{**json.loads(text), "p": "x"} for text in texts]
    for text in texts:
        assert text[:-1].rstrip().encode() in out


def test_splicing_spells_added_values():
    data = b'{"n": 1.10}\r\n{ }\n  {"\\u0061" : [ ] } \n{}'
    (one, two) = read(data)
    added = pa.RecordBatch.from_arrays(
        [
            pa.array(['a"\u00e9', None, "\n"]),
            pa.array([0.1, None, float("nan")], pa.float32()),
            pa.array([[1.5], None, []], pa.list_(pa.float32())),
            pa.array([1, 2, None]),
            pa.array([True, False, None]),
        ],
        names=["p", "100%", "v", "i", "b"],
    )
    out = write([one, two], added=[added, added.slice(0, 1)]).decode().split("\n")
    assert out[0].startswith('{"n": 1.10, "p": "a\\"\u00e9", "100%": 0.1, "v": [1.5')
    assert out[0].endswith(', "i": 1, "b": true}\r')
    assert out[1] == '{"p": null, "100%": null, "v": null, "i": 2, "b": false }'
    assert out[2].startswith('  {"\\u0061" : [ ], "p": "\\n", "100%": "NaN", "v": []')
    assert out[2].endswith(" } ")
    assert out[3].startswith('{"p": ')
    assert len(out) == 4  # the last record had no line end


def test_a_record_without_a_line_end_gets_one_where_more_follow():
    (block,) = read(b'{"a":1}')
    assert write([block, block]) == b'{"a":1, "p": "x"}\n{"a":1, "p": "x"}'


def test_elements_that_span_lines_become_lines():
    data = b'[{\r\n  "a": "\\n"\r\n},\n{"b":2}]'
    reader = json_format.open_reader(Memory(data), ARRAY, False)
    blocks = list(reader.records(Selection((), (), "record")))
    lines = write(blocks, origin=reader).split(b"\n")
    assert [json.loads(line) for line in lines[:-1]] == [
        {"a": "\n", "p": "x"},
        {"b": 2, "p": "x"},
    ]
    assert b"\r" not in lines[0]
    assert lines[-1] == b""


def test_array_output():
    (block,) = read(b'{"a":1}\r\n{"a": 2}\n')
    assert write([], ARRAY) == b"[]\n"
    assert write([take(block, np.array([], np.int64))], ARRAY) == b"[]\n"
    empty, full = take(block, np.array([], np.int64)), block
    assert write([full, empty, full], ARRAY) == (
        b'[\n{"a":1, "p": "x"},\n{"a": 2, "p": "x"},\n{"a":1, "p": "x"},\n{"a": 2, "p": "x"}\n]\n'
    )


def test_building_from_cells_leaves_absent_members_absent():
    data = b'{"b": [1, 2.0], "a": "\\u00e9"}\n{"a": null}\n{"c": 1}\n'
    (block,) = read(data, kept=["a", "b"], carry="cell")
    out = write([block], carry="cell", kept=block.kept.schema)
    assert out == (
        b'{"a": "\\u00e9", "b": [1, 2.0], "p": "x"}\n{"a": null, "p": "x"}\n{"p": "x"}\n'
    )


def test_building_from_typed_values():
    kept = pa.RecordBatch.from_arrays(
        [pa.array(["\u00e9", None]), pa.array([1.5, 0.1], pa.float32())], names=["t", 'f"']
    )
    (block,) = read(b"{}\n{}\n")
    block = replace(block, kept=kept)
    out = write([block], carry="value", kept=kept.schema)
    assert [json.loads(line) for line in out.splitlines()] == [
        {"t": "\u00e9", 'f"': 1.5, "p": "x"},
        {"t": None, 'f"': 0.1, "p": "x"},
    ]
    assert "\u00e9".encode() in out


def test_no_columns_at_all_are_empty_objects():
    (block,) = read(b'{"a":1}\n{"a":2}\n', carry="cell")
    assert write([block], carry="cell", added=[block.kept]) == b"{}\n{}\n"


def test_records_of_no_columns_have_their_number_of_rows():
    (block,) = read(b'{"a":1}\n{"a":2}\n')
    assert block.kept.num_rows == block.columns.num_rows == 2
    assert take(block, np.array([1])).kept.num_rows == 1


@pytest.mark.parametrize("survey", [False, True])
def test_blank_lines_are_no_rows_and_a_bom_is_no_data(survey):
    blocks = read(b'\xef\xbb\xbf{"a":1}\n \t\r\n\n{"a":2}\n\n', survey=survey)
    assert raws(blocks) == [b'{"a":1}\n', b'{"a":2}\n']
    assert [list(b.rows) for b in blocks] == [[1, 2]]
    assert [list(b.lines) for b in blocks] == [[1, 4]]
    assert [list(b.offsets) for b in blocks] == [[3, 16]]


@pytest.mark.parametrize("size", [1, 5, 1 << 20])
def test_faults_of_lines(block_bytes, size):
    block_bytes(size)
    deep = b"[" * 3000 + b"]" * 3000
    data = b"\n".join(
        [
            b'{"a": 1',
            b"[1]",
            b'{"a": "\xff"}',
            b'{"a": ' + deep + b"}",
            b'{"a": ' + b"[" * 600 + b"]" * 600 + b"}",
            b'{"a":1} {"a":2}',
            b'{"a":1}\r{"a":2}',
            b'{"a": "\t"}',
            b"null",
            b'{"good": "\xe2\x80\xa8"}',
        ]
    )
    blocks = read(data)
    messages = [r.message for block in blocks for r in block.rejects]
    assert [r[0] for r in faults(blocks)] == list(range(1, 10))
    assert [r[2] for r in faults(blocks)].count("malformed_row") == 8
    assert messages[0] == "not valid JSON: Expecting ',' delimiter at character 8"
    assert messages[1] == "an array where an object is expected"
    assert messages[2] == "byte 8 is not UTF-8"
    assert messages[3] == messages[4] == "nested more than 500 levels deep"
    assert messages[5] == "not valid JSON: more text at character 8"
    assert messages[8] == "null where an object is expected"
    assert [r[3] for r in faults(blocks)] == data.split(b"\n")[:9]
    assert raws(blocks) == [data.split(b"\n")[9]]


def test_brackets_in_strings_are_not_depth():
    assert len(raws(read(b'{"a": "' + b"[" * 2000 + b'"}\n'))) == 1


@pytest.mark.parametrize("size", [1000, 65_000, 100_000, 1 << 20])
@pytest.mark.parametrize("array", [False, True])
def test_a_record_that_is_too_large_costs_its_row(block_bytes, size, array):
    block_bytes(size)
    limit = 70_000
    big = b'{"a": "' + b'x],\\"' * 20_000 + b'"}'
    fits = b'{"a": "' + b"y" * (limit - 9) + b'"}'
    one_more = b'{"a": "' + b"y" * (limit - 8) + b'"}'
    small = b'{"a": "z"}'
    records = [small, big, fits, one_more, small, big]
    data = b"[" + b", ".join(records) + b"]" if array else b"\n".join(records)
    blocks = read(data, Dialect(json_array=array, max_record_bytes=limit))
    assert [raw.rstrip() for raw in raws(blocks)] == [small, fits, small]
    assert numbers(blocks) == [1, 3, 5]
    rejects = [r for block in blocks for r in block.rejects]
    assert [(r.row, r.code) for r in rejects] == [
        (2, "too_large"),
        (4, "too_large"),
        (6, "too_large"),
    ]
    assert [r.line for r in rejects] == ([1, 1, 1] if array else [2, 4, 6])
    for reject in rejects:
        assert len(reject.record) in ((64 << 10) - array, 64 << 10)
        assert records[reject.row - 1].startswith(reject.record)
        assert data[reject.offset :].startswith(reject.record)
        assert reject.length == len(records[reject.row - 1])


def test_an_oversized_record_that_is_not_cut_is_whole():
    (block,) = read(b'{"a": "long"}\n{}', Dialect(max_record_bytes=10))[:1]
    (reject,) = block.rejects
    assert (reject.record, reject.offset, reject.length) == (b'{"a": "long"}', None, None)


def test_an_element_is_rejected_alone_where_its_borders_are_certain():
    data = b'[{"a":1}, 5, {"a": "\xff,]"}, "s", {"a": "\n"},\n{"a":2}]'
    blocks = read(data, ARRAY)
    assert raws(blocks) == [b'{"a":1}', b'{"a":2}']
    assert numbers(blocks) == [1, 6]
    assert [(row, code) for row, _, code, _ in faults(blocks)] == [
        (2, "malformed_row"),
        (3, "invalid_utf8"),
        (4, "malformed_row"),
        (5, "malformed_row"),
    ]
    assert faults(blocks)[1][3] == b'{"a": "\xff,]"}'


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b'[{"a":1} {"b":2}]', 1),
        (b'[{"a":1},\n{"b":2} {"c":3}]', 2),
        (b'[{"a":1},]', 1),
        (b'[,{"a":1}]', 1),
        (b'[{"a":1},,{"a":1}]', 1),
        (b"[,]", 1),
        (b"[", 1),
        (b'[{"a":1}', 1),
        (b'[{"a":1},', 1),
        (b'[{"a":1},\n{"a": "', 2),
        (b'[{"a":1}]\n\n{}', 3),
        (b'[{"a":1}}', 1),
        (b"[]]", 1),
        (b'[{"a":\n 1 "b": 2}]', 2),
        (b'[{"a": "x"y"}, {"b": "z"}]', 1),
        (b'[{"a": \xff}]', 1),
        (b'[{"a":1]]', 1),
        (b'\n\n"a"', 3),
        (b"5", 1),
        (b"", 1),
        (b" \n ", 1),
    ],
)
@pytest.mark.parametrize("size", [1, 4, 1 << 20])
def test_a_broken_array_is_malformed_as_a_whole(block_bytes, data, line, size):
    block_bytes(size)
    with pytest.raises(InputInvalid) as caught:
        read(data, ARRAY)
    assert str(caught.value).startswith(f"rows.json:{line}: ")
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)


@pytest.mark.parametrize("data", [b"[", b'[{"a":1}', b'[{"a":1},', b'[{"a": "]'])
def test_an_array_that_is_cut_off_is_named(data):
    with pytest.raises(InputInvalid, match="it is not closed"):
        read(data, ARRAY)


@pytest.mark.parametrize("size", [1000, 1 << 20])
@pytest.mark.parametrize("blank", [65_100, 300_000])
def test_white_space_beyond_the_limit_loses_no_row(block_bytes, blank, size):
    block_bytes(size)
    data = b'[{"a":1},' + b" " * blank + b'{"a":"%s"},{"a":3}]' % (b"y" * 900)
    blocks = read(data, replace(ARRAY, max_record_bytes=1000))
    codes = {row: code for row, _, code, _ in faults(blocks)}
    assert set(codes.values()) <= {"too_large"}
    assert sorted([*codes, *numbers(blocks)]) == [1, 2, 3]
    assert raws(blocks)[-1] == b'{"a":3}'


def test_quiet_inputs():
    assert read(b"[]", ARRAY) == read(b" [ \n]\n", ARRAY) == []
    assert read(b"") == read(b"\n \n") == read(b"", survey=True) == []


@quickly
@given(st.text('[]{},:"\\a1 \n', max_size=30), block_sizes)
def test_an_array_reads_as_json_loads_reads_it_or_not_at_all(block_bytes, body, size):
    block_bytes(size)
    text = f"[{body}]"
    try:
        expected = json.loads(text, strict=False)
    except ValueError:
        expected = None
    try:
        blocks = read(text.encode(), ARRAY)
    except InputInvalid:
        assert expected is None
        return
    assert expected is not None
    assert len(raws(blocks)) + len(faults(blocks)) == len(expected)


@pytest.mark.parametrize("size", [1, 1 << 20])
@pytest.mark.parametrize("survey", [False, True])
def test_an_object_first_is_read_as_lines_and_said(block_bytes, size, survey):
    block_bytes(size)
    reader = json_format.open_reader(Memory(b'\n \n  {"a":1}\n{"a":2}\n'), ARRAY, survey)
    blocks = list(reader.records(Selection((), (), "record")))
    assert reader.notes == ("rows.json: starts with { and is read as JSON Lines",)
    assert not reader.json_array
    assert raws(blocks) == [b'  {"a":1}\n', b'{"a":2}\n']
    assert [n for b in blocks if b.lines is not None for n in b.lines.tolist()] == [3, 4]


def test_utf16_is_named():
    with pytest.raises(InputInvalid, match=r"UTF-16.*iconv"):
        read("{}".encode("utf-16"))


def test_columns_are_strings_or_spelled_json():
    data = b'{"a": "x"}\n{"a": null}\n{}\n{"a": "\\u00e9", "b": 1.10}\n{"b": "\\u00e9"}\n'
    blocks = read(
        data + b'{"b": {"x":  1}}\n{"b": NaN}\n{"b": true}\n{"b": 1, "b": -1E2}', model=["a", "b"]
    )
    table = pa.Table.from_batches([block.columns for block in blocks[:1]])
    assert table["a"].type == pa.string()
    assert table["a"].to_pylist()[:4] == ["x", None, None, "\u00e9"]
    texts = [text for block in blocks for text in block.columns["b"].storage.to_pylist()]
    assert texts == [
        None, None, None, "1.10", '"\\u00e9"', '{"x":  1}', "NaN", "true", "-1E2",
    ]  # fmt: skip


def test_half_a_surrogate_pair_matters_only_where_it_is_read():
    data = b'{"a": "\\ud800"}\n{"a": "\\ud83d\\ude00"}\n{"b": 1}\n'
    assert faults(read(data)) == faults(read(data, kept=["a"], carry="cell")) == []
    assert raws(read(data)) == data.splitlines(keepends=True)
    for blocks in (read(data, model=["a"]), read(data, kept=["a"], carry="value")):
        assert [f[:3] for f in faults(blocks)] == [(1, 1, "invalid_utf8")]
        assert numbers(blocks) == [2, 3]
    reader = json_format.open_reader(Memory(b'{"\\ud800": 1, "b": 2}'), LINES, True)
    assert reader.schema.names == ["b"]
    assert len(reader.notes) == 1


def test_very_long_numbers_are_numbers():
    number = b"1" * 5000
    (block,) = read(b'{"a": %s}\n' % number, model=["a"])
    assert block.columns["a"].storage.to_pylist() == [number.decode()]


def test_schema():
    data = b'{"b": 1, "a": 1}\n' + b"{}\n" * 2000 + b'bad\n{"c": 1}\n'
    surveyed = json_format.open_reader(Memory(data), LINES, True)
    assert surveyed.complete
    assert surveyed.schema == pa.schema([(n, pa.string()) for n in "bac"])
    for source in (Memory(data), replace(Memory(data), rereadable=False), Trickle(data)):
        sampled = json_format.open_reader(source, LINES, False)
        assert not sampled.complete
        assert sampled.schema.names == ["b", "a"]
        assert len(raws(sampled.records(Selection((), (), "record")))) == 2002
    with pytest.raises(UsageError, match="--keep"):
        json_format.open_reader(replace(Memory(data), rereadable=False), LINES, True)


def test_records_can_be_read_again():
    reader = json_format.open_reader(Memory(b'{"a":1}\n'), LINES, False)
    for _ in range(2):
        assert raws(reader.records(Selection((), (), "record"))) == [b'{"a":1}\n']


def test_blocks_do_not_depend_on_how_the_stream_delivers():
    data = b'{"a": "\xc3\xa9"}\n' * 500
    blocks = read(Trickle(data))
    assert [len(block) for block in blocks] == [500]
    assert raws(blocks) == raws(read(data))


def test_original_is_the_record_without_its_line_end():
    reader = json_format.open_reader(Memory(b'{"a":1} \r\n{}\n{}'), LINES, False)
    originals = [
        reader.original(block.raw, i)
        for block in reader.records(Selection((), (), "record"))
        for i in range(len(block))
    ]
    assert originals == [b'{"a":1} ', b"{}", b"{}"]


def test_a_large_array_takes_bounded_memory():
    element = b'{"text": "' + b"\xc3\xa9x, " * 1000 + b'", "n": [1, 2]}'
    count = 60_000_000 // len(element) // 100

    def pieces():
        yield b"["
        for _ in range(count):
            yield b",\n".join([element] * 100) + b","
        yield b'{"huge": "' + b"h" * 1000
        for _ in range(20):
            yield b"h" * 1_000_000
        yield b'"}]'

    reader = json_format.open_reader(
        Generated(pieces), replace(ARRAY, max_record_bytes=1 << 20), False
    )
    rows = rejected = 0
    tracemalloc.start()
    try:
        for block in reader.records(Selection(("text",), (), "record")):
            rows += len(block)
            rejected += len(block.rejects)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (rows, rejected) == (count * 100, 1)
    assert peak < 25_000_000


def test_a_huge_line_is_not_held():
    def pieces():
        for _ in range(60):
            yield b"x" * 1_000_000
        yield b'\n{"a":1}\n'

    reader = json_format.open_reader(
        Generated(pieces), replace(LINES, max_record_bytes=1 << 20), False
    )
    tracemalloc.start()
    try:
        blocks: list[Records] = list(reader.records(Selection((), (), "record")))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert raws(blocks) == [b'{"a":1}\n']
    assert [(r.code, r.length) for b in blocks for r in b.rejects] == [("too_large", 60_000_000)]
    assert peak < 10_000_000
