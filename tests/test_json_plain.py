"""Records that follow a template give what looking at each record gives, to the last byte."""

from __future__ import annotations

import io
import itertools
import json
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from batchpredict.data import json as json_format
from batchpredict.data import json_plain, json_splice, jsonreader, jsontext
from batchpredict.data.json_numbers import are_scalars
from batchpredict.data.json_plain import Templates
from batchpredict.data.json_splice import spliced
from batchpredict.data.json_template import template_of
from batchpredict.data.json_threads import in_order
from batchpredict.data.records import Dialect, Layout, Selection
from batchpredict.errors import InputInvalid
from tests.sources import MemorySource as Memory

NAMES = ("a", "b", "n", "s")
SELECTIONS = (
    Selection(("a", "b", "absent"), (), "record", ("p",)),
    Selection(("s",), ("n", "a", "absent"), "cell"),
    Selection(("n", "a"), ("b", "a", "s", "absent"), "value"),
)

quickly = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


# Values as they are spelled, right and wrong; each is written into a record of any shape.
good_values = st.sampled_from(
    [b"0", b"-0", b"7", b"-1", b"12345678", b"-1234567", b"123456789", b"12345678901234567890123",
     b"1.10", b"-0.5", b"1e400", b"1E+5", b"-2.50e-3", b"0.1234567890123456789", b"NaN",
     b"Infinity", b"-Infinity", b"true", b"false", b"null", b'""', b'"x"', b'"1"', b'"null"',
     b'"a:b, c}"', b'"\xc3\xa9\xe2\x80\xa8"', b'"\x7f"', b'"[{"', b"1" * 70]
)  # fmt: skip
odd_values = st.sampled_from(
    [b"[1]", b"[]", b"[ ]", b"{}", b'{"a": 1}', b'{"a":{"b":"x"}}', b'"\\n"', b'"\\""', b'"\\\\"',
     b'"\\u00e9"', b'"\\ud800"', b'"\\uD83D\\uDE00"', b'["\\\\", "]"]', b'"' + b"y" * 40 + b'"']
)  # fmt: skip
bad_values = st.sampled_from(
    [b"", b"01", b"-", b"+1", b"1.", b".5", b"1e", b"1e+", b"--1", b"00", b"-01", b"0x10", b"1_0",
     b"nan", b"inf", b"-NaN", b"tru", b"True", b"nul", b"nulll", b"falsee", b"1 2", b"1,", b'"',
     b'"x', b'x"', b'"\t"', b'"\x00"', b'"\x1f"', b"\x00", b'"\xff"', b'"\xc3"',
     b'"\xed\xa0\x80"', b'"\xc0\x80"', b'"x" "y"', b'"\\x"', b"'x'", b"1}", b"{", b"[1", b"1:2",
     b"\xc2\xa0", b"1234567x", b"12/4", b"1:", b"1 ", b" 1", b"\t1"]
)  # fmt: skip
values = st.one_of(good_values, good_values, good_values, odd_values, bad_values)

# Names, the text between them, and around the record: how one shape differs from another.
shapes = st.sampled_from(
    [
        (b'{"a": %s, "b": %s, "n": %s, "s": %s}', 4),
        (b'{"a":%s,"b":%s,"n":%s,"s":%s}', 4),
        (b'{"a": %s, "b": %s, "n": %s}', 3),
        (b'{"a": %s, "b": %s, "n": %s]', 3),
        (b'{"b": %s, "a": %s, "n": %s, "s": %s}', 4),
        (b'{"a": %s, "a": %s, "n": %s, "s": %s}', 4),
        (b'{"a": %s, "b": {"a": %s, "b": {"a": %s}}, "s": %s}', 4),
        (b'{"a": {"a": %s}, "b": {}, "n": %s, "s": []}', 2),
        (b'\t{ "a" :\t%s , "n": %s }  ', 2),
        (b'{"a": %s, "p": %s}', 2),
        (b'{"\\u0061": %s, "b": %s}', 2),
        (b'{"\xc3\xa9": %s, "a": %s}', 2),
        (b'{"": %s, ":": %s, ", ": %s, "a": %s}', 4),
        (b"{}", 0),
        (b"%s", 1),
        (b"", 0),
        (b'{"a": %s} {"b": %s}', 2),
        (b'{"a": %s}\r{"b": %s}', 2),
        (b'{"a": %s, "b": %s,}', 2),
        (b'{"a": %s', 1),
        (b'{"a": %s]', 1),
    ]
)
line_ends = st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b" \n", b"\n\n", b"\t \t \t\r\n"])


@st.composite
def runs(draw):
    """Records of one shape, most of them sound, as in a file."""
    shape, slots = draw(shapes)
    kinds = st.one_of(good_values, good_values, good_values, values) if draw(st.booleans()) else (
        values
    )  # fmt: skip
    count = draw(st.integers(1, 6))
    return [shape % tuple(draw(kinds) for _ in range(slots)) for _ in range(count)]


files = st.lists(runs(), min_size=1, max_size=4).map(lambda lists: list(itertools.chain(*lists)))


def everything(data, dialect, selection, survey):
    """All that leaves the reader and the writer, in a form that can be compared."""
    try:
        reader = json_format.open_reader(Memory(data), dialect, survey)
    except InputInvalid as error:
        return str(error), b""
    found = [reader.schema.names, list(reader.notes)]
    sink = io.BytesIO()
    writer = None
    try:
        for block in reader.records(selection):
            added = pa.RecordBatch.from_pydict({"p": [f"x{row}" for row in block.rows]})
            if writer is None:
                layout = Layout(
                    selection.carry, block.kept.schema, added.schema, reader, reader.dialect
                )
                writer = json_format.open_writer(sink, layout)
            if len(block):
                writer.write(block, added)
            assert block.lines is not None
            assert block.offsets is not None
            for batch in (block.columns, block.kept):
                batch.validate(full=True)
            found.append(
                (
                    block.columns.schema.types,
                    [column.to_pylist() for column in block.columns.columns],
                    block.kept.schema.types,
                    [column.to_pylist() for column in block.kept.columns],
                    block.raw.to_pylist(),
                    [numbers.tolist() for numbers in (block.rows, block.lines, block.weight)],
                    block.offsets.tolist(),
                    block.rejects,
                )
            )
    except InputInvalid as error:
        found.append(str(error))
    if writer is not None:
        writer.close()
    return found, sink.getvalue()


@pytest.fixture
def compared(monkeypatch):
    """Both ways, and what they gave; `data`: of a file."""

    def compare(data, dialect, selection, size=1 << 20, survey=False):
        with monkeypatch.context() as patch:
            patch.setattr(jsontext, "BLOCK_BYTES", size)
            patch.setattr(json_plain, "LEAST_ROWS", 1)
            patch.setattr(json_plain, "_WORTHWHILE", 1000)
            fast = everything(data, dialect, selection, survey)
            patch.setattr(Templates, "find", lambda *_: [])
            patch.setattr(json_format, "spliced", lambda *_: None)
            exact = everything(data, dialect, selection, survey)
        assert fast == exact
        return exact

    return compare


@quickly
@given(
    files,
    st.lists(line_ends, min_size=1, max_size=3),
    st.booleans(),
    st.sampled_from(SELECTIONS),
    st.sampled_from([50, 200, 1 << 20]),
    st.booleans(),
)
@example([b'{"a": "x"}', b'{"a": "}'], [b"\n"], True, SELECTIONS[0], 1 << 20, False)
@example([b'{"a": 1}', b'{"a": "x}', b'{"a": "}'], [b"\n"], False, SELECTIONS[0], 1 << 20, False)
@example([b'{"a": 1, "b": 2}', b'{"a": 1x, "b": 2}'], [b"\n"], False, SELECTIONS[1], 999, True)
@example([b'{"a": 1}', b'{"a": 1]', b'{"a": 1,'], [b"\n"], False, SELECTIONS[0], 999, False)
@example([b'{"a": "x"}', b'{"a": 1}'], [b"\n"], False, SELECTIONS[2], 999, False)
def test_lines(compared, records, ends, open_end, selection, size, survey):
    lines = [record + end for record, end in zip(records, itertools.cycle(ends), strict=False)]
    data = b"".join(lines)
    compared(data.rstrip(b"\n") if open_end else data, Dialect(), selection, size, survey)


@quickly
@given(
    files,
    st.sampled_from([b",", b", ", b",\n  ", b" ,\r\n"]),
    st.sampled_from(SELECTIONS),
    st.sampled_from([50, 1 << 20]),
)
def test_arrays(compared, elements, between, selection, size):
    data = b"[\n  " + between.join(elements) + b"\n]\n"
    compared(data, Dialect(json_array=True), selection, size)


@quickly
@given(st.lists(st.binary(max_size=3), max_size=3), st.integers(0, 400), st.data())
def test_noise_anywhere_in_a_file(compared, noise, place, data):
    whole = bytearray(b'{"a": "x", "b": -1.5, "n": null}\n' * 12)
    for piece in noise:
        place = data.draw(st.integers(0, len(whole)))
        length = data.draw(st.integers(0, 3))
        whole[place : place + length] = piece
    compared(bytes(whole), Dialect(), SELECTIONS[0])


@pytest.mark.parametrize("limit", [20, 30, 31, 32, 60])
def test_records_that_are_too_large(compared, limit):
    lines = [b'{"a": "%s"}\n' % (b"x" * size) for size in (*range(18, 24), 100, 1)]
    compared(b"".join(lines), Dialect(max_record_bytes=limit), SELECTIONS[0], 64)


def plain_rows(data, least, monkeypatch):
    """How many records were not looked at one by one."""
    found: list[Any] = []
    find = Templates.find

    def counted(self, *args):
        plain = find(self, *args)
        found.extend(len(group.index) for group in plain)
        return plain

    monkeypatch.setattr(json_plain, "LEAST_ROWS", least)
    monkeypatch.setattr(Templates, "find", counted)
    reader = json_format.open_reader(Memory(data), Dialect(), False)
    rows = sum(map(len, reader.records(SELECTIONS[0])))
    return rows, sum(found) / 2  # the first block is read for its names, too


def test_ordinary_files_are_not_looked_at_record_by_record(monkeypatch):
    """So that the comparisons above are no comparisons of one way with itself."""
    lines = [
        b'{"a": %d, "b": "x%d", "n": %s, "o": {"p": %r}}\n'
        % (row, row, b"null" if row % 3 else b'"y"', row / 7)
        if row % 2
        else b'{"b": %d}\n' % row
        for row in range(200)
    ]
    assert plain_rows(b"".join(lines), 32, monkeypatch) == (200, 200)


def test_odd_records_cost_only_themselves(monkeypatch):
    lines = [b'{"a": %d, "b": "x"}\n' % row for row in range(200)]
    for row in range(0, 200, 10):
        lines[row] = b'{"a": [1], "b": "\\n"}\n'
    assert plain_rows(b"".join(lines), 32, monkeypatch) == (200, 180)


@given(st.one_of(st.binary(max_size=14), st.from_regex(r"-?[0-9.eE+-]{1,12}", fullmatch=True)))
@settings(max_examples=500, deadline=None)
def test_scalars_are_what_the_standard_library_takes(spelled):
    text = spelled if isinstance(spelled, bytes) else spelled.encode()
    data = np.frombuffer(b"#" + text + b"#" * 80, np.uint8)
    (found,) = are_scalars(data, np.array([1]), np.array([1 + len(text)]))
    try:
        value = json.loads(text) if text.strip() == text else []
    except ValueError:
        value = []
    assert found == isinstance(value, int | float | None)


@pytest.mark.parametrize(
    "text",
    [b"0", b"-0", b"9", b"-7654321", b"87654321", b"-87654321", b"null", b"true", b"false", b"NaN",
     b"-Infinity", b"1.5", b"9" * 64]
)  # fmt: skip
@pytest.mark.parametrize("behind", [b",", b"0", b"\xff", b"}", b"l"])
def test_scalars_end_where_they_end(text, behind):
    data = np.frombuffer(text + behind * 80, np.uint8)
    assert are_scalars(data, np.array([0]), np.array([len(text)])).all()


def test_a_template_is_the_text_around_the_values():
    template = template_of(b'{"a": 1, "o": {"x": "y", "e": {}}, "l": [ ], "t": null }')
    assert template is not None
    assert template.literals == (
        b'{"a": ', b', "o": {"x": ', b', "e": {}}, "l": [ ], "t": ', b" }"
    )  # fmt: skip
    assert list(template.members) == ["a", "o", "l", "t"]


@pytest.mark.parametrize(
    "record",
    [b"", b"{}", b"[1]", b"1", b'{"a": [1]}', b'{"a": "\\n"}', b'{"a": 1, "a": 2}', b'{"a": 1',
     b'{"a": "\xff"}', b'{"a": 01}', b'{"%s": 1}' % (b"x" * 5000),
     b'{"a":' * 501 + b"1" + b"}" * 501]
)  # fmt: skip
def test_what_is_no_template(record):
    assert template_of(record) is None


LINES = [
    b'{"a": 1}\n{"a": 2}\n',
    b'{"a": 1}\r\n{"a": 2}',
    b'{"a": 1 } \t\n{"a": 2}\n',
    b'{"a": 1}\n{}\n{ }\n',
    b'{"a": 1' + b" " * 40 + b"}\n",
    b'{"a": 1}' + b" " * 40 + b"\n",
    b'{"a": "\\n}"}\n',
    b"",
]


@pytest.mark.parametrize("data", LINES)
@pytest.mark.parametrize(
    "column",
    [
        pa.array(["x", None, 'q"\\\n\u00e9\u2028'] * 4),
        pa.array(["plain", None, ""] * 4, pa.large_string()),
        pa.array([1.5, None, float("nan")] * 4, pa.float32()),
        pa.array([0.1, -0.0, 1e300] * 4, pa.float64()),
        pa.array([1.5, None, 65504] * 4, pa.float16()),
        pa.array([float("inf"), 1, 2] * 4),
        pa.array([1, None, -3] * 4),
        pa.array([True, None, False] * 4),
        pa.array([[1.5], None, []] * 4),
        pa.array(["x", None, "y"] * 4).dictionary_encode(),
        pa.nulls(12, pa.string()),
    ],
    ids=lambda column: str(column.type),
)
def test_columns_are_spliced_as_rows_are(monkeypatch, data, column):
    reader = json_format.open_reader(Memory(data * 2), Dialect(), False)
    blocks = list(reader.records(Selection((), (), "record")))

    def written(added):
        sink = io.BytesIO()
        layout = Layout("record", pa.schema([]), added[0].schema, reader, Dialect())
        writer = json_format.open_writer(sink, layout)
        for block, batch in zip(blocks, added, strict=True):
            writer.write(block, batch)
            writer.write(replace(block, raw=block.raw.slice(1)), batch.slice(1))
        writer.close()
        return sink.getvalue()

    added = [
        pa.RecordBatch.from_arrays([column.slice(1, len(b)), column.slice(0, len(b))], ["p", 'q"'])
        for b in blocks
    ]
    if not added:
        return
    quick = written(added)
    monkeypatch.setattr(json_splice, "_LARGEST_JOINED", 1)  # longer windows go row by row
    assert spliced(blocks[0].raw, ["p", 'q"'], added[0].columns) is None
    assert quick == written(added)
    monkeypatch.setattr(json_format, "spliced", lambda *_: None)
    assert quick == written(added)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_order_and_errors_in_their_turn(threads):
    def items():
        yield from range(20)
        raise InputInvalid("no more")

    seen = []
    stream = in_order(items(), lambda item: item * 2, threads)
    with pytest.raises(InputInvalid, match="no more"):  # noqa: PT012 - what came before counts
        for result in stream:
            seen.append(result)  # noqa: PERF402 - extend() would lose them with the error
    assert seen == [item * 2 for item in range(20)]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_reader_that_is_left_alone_ends_its_threads(threads):
    stream = in_order(iter(range(1000)), lambda item: item, threads)
    assert next(stream) == 0
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("parse_")]


def test_any_number_of_threads_reads_the_same(monkeypatch):
    lines = [b'{"a": %d, "b": "x"}\n' % row for row in range(4000)]
    lines[7::97] = [b"no record\n"] * len(lines[7::97])
    monkeypatch.setattr(jsontext, "BLOCK_BYTES", 3000)
    found = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(jsonreader, "effective_cores", lambda threads=threads: threads)
        monkeypatch.setattr(jsonreader, "_MOST_THREADS", 3)
        found.append(everything(b"".join(lines), Dialect(), SELECTIONS[0], False))
    assert found[0] == found[1] == found[2]
    rejects = [reject for block in found[0][0][2:] for reject in block[-1]]
    assert [reject.row for reject in rejects] == list(range(8, 4001, 97))


def test_a_long_literal_is_not_looked_for_in_short_records(monkeypatch):
    """Copying it for every record of a block would take gigabytes."""
    copied = []
    has = json_plain._Scan._has

    def counted(self, literal, at):
        copied.append(len(literal) * len(at))
        return has(self, literal, at)

    monkeypatch.setattr(json_plain._Scan, "_has", counted)
    data = b'{"%s": 1}\n' % (b"k" * 4000) + b'{"a": 1}\n' * 5000
    rows = sum(
        len(block)
        for block in json_format.open_reader(Memory(data), Dialect(), False).records(
            Selection(("a",), (), "record")
        )
    )
    assert rows == 5001
    assert max(copied) <= len(data)
