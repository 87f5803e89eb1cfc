"""retry: what comes of mended rejects is what a run over a mended input would have made."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchpredict.data.conversion import as_json
from batchpredict.data.drafts import Draft
from batchpredict.data.locks import lock_output
from batchpredict.data.rejected import rejected_rows
from batchpredict.data.sources import source_of
from batchpredict.errors import (
    BatchPredictError,
    ConfigInvalid,
    InputInvalid,
    InputMissing,
    TryAgain,
    UsageError,
)
from batchpredict.ops.retry import Request, retry
from batchpredict.run.receipt import Receipt
from tests import commands, models
from tests.jobs import files_in, receipt_of, rejects_of, run_job, score

Records = Sequence[Any]
ALL = {"max_rejects": "100%"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`prediction` is x + 100 for x in 0 to 9; any other number fails in the session."""
    manifest = 'name = "lookup"\n[inputs.x]\nmissing = "reject"\n'
    return models.write(tmp_path_factory.mktemp("lookup"), models.lookup_graph(), manifest=manifest)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No machine crashes here, and several hundred files are published."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def again(output: Path, **options: Any) -> Receipt | None:
    names: dict[str, Any] = {name: str(value) for name, value in options.items()}
    request = Request(f"{output}.receipt.json", **names)
    return retry(request, lambda counts, source: None)


def mend(output: Path, records: Mapping[int, Any], target: Path | None = None) -> None:
    """Put whole records into the rejects file, by row."""
    rejects = output.with_name(f"{output.name}.rejects.jsonl")
    entries = rejects_of(output)
    for entry in entries:
        if entry["row"] in records:
            entry.pop("record_base64", None)
            entry["record"] = records[entry["row"]]
    lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries]
    (target or rejects).write_text("".join(lines), "utf-8")


def published(output: Path) -> tuple[bytes, bytes | None]:
    """The output's bytes and those of its rejects."""
    rejects = output.with_name(f"{output.name}.rejects.jsonl")
    return output.read_bytes(), rejects.read_bytes() if rejects.exists() else None


# --- inputs: records as they stand in a file, by format


def write_csv(path: Path, records: Records, header: str = "id,x,note\n") -> None:
    path.write_text(header + "".join(f"{record}\n" for record in records), "utf-8", newline="")


def write_tsv(path: Path, records: Records) -> None:
    write_csv(path, records, "id\tx\tnote\n")


def write_jsonl(path: Path, records: Records) -> None:
    path.write_text("".join(f"{record}\n" for record in records), "utf-8")


def write_json(path: Path, records: Records) -> None:
    path.write_text("[\n  " + ",\n  ".join(records) + "\n]\n", "utf-8")


AVRO = {
    "type": "record",
    "name": "Flight",
    "namespace": "example",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "x", "type": ["null", "double"], "default": None},
        {"name": "note", "type": ["string", "null"]},
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "raw", "type": "bytes"},
        {"name": "tags", "type": {"type": "array", "items": ["null", "long", "string"]}},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["A", "B"]}},
        {"name": "more", "type": {"type": "map", "values": "float"}},
    ],
}
PARQUET = pa.schema(
    [
        ("id", pa.int64()),
        ("x", pa.float64()),
        ("note", pa.dictionary(pa.int32(), pa.string())),
        ("day", pa.date32()),
        ("at", pa.timestamp("ns", "UTC")),
        ("took", pa.duration("ms")),
        ("price", pa.decimal128(9, 2)),
        ("raw", pa.binary()),
        ("tags", pa.list_(pa.struct([("k", pa.string()), ("v", pa.float32())]))),
        ("more", pa.map_(pa.string(), pa.int16())),
        ("clock", pa.time64("us")),
    ],
    {b"origin": b"tests"},
)


def write_avro(path: Path, records: Records) -> None:
    with path.open("wb") as file:
        fastavro.writer(file, fastavro.parse_schema(AVRO), records, "deflate")


def write_parquet(path: Path, records: Records) -> None:
    table = pa.Table.from_pylist([dict(record) for record in records], PARQUET)
    pq.write_table(table, path, compression="zstd", row_group_size=7)


WRITE: dict[str, Callable[[Path, Records], None]] = {
    "csv": write_csv, "tsv": write_tsv, "jsonl": write_jsonl, "json": write_json,
    "avro": write_avro, "parquet": write_parquet,
}  # fmt: skip
ROWS = 40


def sound(form: str) -> list[Any]:
    """Records that can be scored."""
    numbers = range(1, ROWS + 1)
    if form in ("csv", "tsv"):
        cut = "," if form == "csv" else "\t"
        return [cut.join((f"{n:03}", str(n % 10), f'"a ""{n}""\nb"')) for n in numbers]
    if form in ("jsonl", "json"):
        gap = "\n   " if form == "json" else ""
        return [f'{{"id": 0.{n}0,{gap} "x": {n % 10}, "note": ["\\u00e9 {n}"]}}' for n in numbers]
    if form == "avro":
        return [
            {
                "id": n, "x": float(n % 10), "note": None if n % 3 else f"é{n}", "day": n,
                "raw": bytes([n, 255]), "tags": [None, n, str(n)], "kind": "AB"[n % 2],
                "more": {"k": n / 7},
            }
            for n in numbers
        ]  # fmt: skip
    return [
        {
            "id": n, "x": float(n % 10), "note": f"é{n % 4}" if n % 3 else None, "day": n,
            "at": n * 10**15 + 1, "took": n, "price": Decimal(n), "raw": bytes([n, 255]),
            "tags": [{"k": "a", "v": n / 7}, None], "more": [("k", n)], "clock": n * 10**6 + n,
        }
        for n in numbers
    ]  # fmt: skip


def broken(form: str) -> dict[int, Any]:
    """Records that cannot, by row: the first two, the last, some between, some unreadable."""
    good = sound(form)
    if form in ("csv", "tsv"):
        cut = "," if form == "csv" else "\t"
        texts = ("what", "77", "", "5", "")
        bad = {
            row: cut.join(("b", text, "z"))
            for row, text in zip((1, 2, 9, 10, ROWS), texts, strict=True)
        }
        return {**bad, 10: "too few", 17: f'1{cut}2{cut}"open', 18: f'"x"y{cut}2{cut}3'}
    if form in ("jsonl", "json"):
        bad = {
            1: '{"id": 1, "x": "?"}',
            2: '{"x": 77, "id": 1}',
            9: '{"note": 3}',
            ROWS: '{"x":null}',
        }
        control = '{"x": 5, "id": "\t"}'
        return bad | {10: control} | ({} if form == "json" else {17: '{"x": 5, "id"', 18: "[1]"})
    return {
        row: {**good[row - 1], "x": x}
        for row, x in {1: None, 2: 77.0, 9: None, 10: -500.0, ROWS: None}.items()
    }


def as_mended(form: str, record: Any) -> Any:
    """A sound record as a user writes it into a rejects file."""
    if form == "avro":
        return {**record, "raw": base64.b64encode(record["raw"]).decode()}
    if form == "parquet":
        table = pa.Table.from_pylist([record], PARQUET).to_batches()[0]
        return json.loads(as_json(table.to_struct_array())[0])
    return record


CASES = [
    *((form, form, {}) for form in WRITE),
    *((form, form, {"keep": ("x", "id")}) for form in ("csv", "jsonl", "avro", "parquet")),
    *((form, form, {"on_error": "null"}) for form in ("tsv", "json", "avro", "parquet")),
    ("csv", "parquet", {}), ("csv", "jsonl", {}), ("csv", "avro", {}), ("csv", "tsv", {}),
    ("jsonl", "csv", {"on_error": "null"}), ("jsonl", "json", {}), ("json", "jsonl", {}),
    ("jsonl", "parquet", {}), ("json", "avro", {}), ("avro", "csv", {}), ("parquet", "jsonl", {}),
    ("parquet", "csv", {"keep": "none"}), ("avro", "parquet", {"keep": ("x", "tags")}),
    ("csv", "csv", {"keep": "none"}),
]  # fmt: skip


@pytest.mark.parametrize(("source", "target", "options"), CASES, ids=str)
def test_the_law(
    tmp_path: Path, model: Path, source: str, target: str, options: dict[str, Any]
) -> None:
    good, bad = sound(source), broken(source)
    WRITE[source](tmp_path / f"in.{source}", [bad.get(n, r) for n, r in enumerate(good, 1)])
    WRITE[source](tmp_path / f"mended.{source}", good)
    output, expected = tmp_path / f"out.{target}", tmp_path / f"expected.{target}"
    options = {**ALL, **options}
    first = score(tmp_path / f"in.{source}", model, output, **options)
    assert sum(first.rejects.codes.values()) == len(bad)
    before = published(output)

    unmended = again(output)
    assert unmended is not None
    assert published(output) == before
    assert replace(unmended.counts, duplicates=0) == replace(first.counts, duplicates=0)
    assert unmended.rejects.codes == first.rejects.codes

    some = {n: as_mended(source, good[n - 1]) for n in list(bad)[::2]}
    mend(output, some)
    part = again(output)
    assert part is not None
    assert part.exit_code == 3
    assert [entry["row"] for entry in rejects_of(output)] == sorted(bad.keys() - some.keys())

    mend(output, {n: as_mended(source, good[n - 1]) for n in bad})
    whole = again(output)
    assert whole is not None
    assert whole.exit_code == 0
    reference = score(tmp_path / f"mended.{source}", model, expected, **options)
    assert published(output) == published(expected)
    assert replace(whole.counts, duplicates=0) == replace(reference.counts, duplicates=0)
    assert again(output) is None
    assert not [name for name in files_in(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("target", ["csv", "csv.gz", "json", "parquet", "avro"])
def test_rows_of_an_input_of_many_shards(tmp_path: Path, model: Path, target: str) -> None:
    good, bad = sound("csv"), broken("csv")
    WRITE["csv"](tmp_path / "in.csv", [bad.get(n, r) for n, r in enumerate(good, 1)])
    output, expected = tmp_path / f"out.{target}", tmp_path / f"expected.{target}"
    score(tmp_path / "in.csv", model, output, **ALL, shard_bytes=100)
    again(output)
    # As if the input were one shard; where nothing tells shards apart, the same anyway.
    score(tmp_path / "in.csv", model, expected, **ALL)
    assert published(output) == published(expected)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "avro", "parquet"])
def test_without_the_input(tmp_path: Path, model: Path, suffix: str) -> None:
    """Its columns are told by the output, where that keeps them all."""
    good, bad = sound(suffix), broken(suffix)
    WRITE[suffix](tmp_path / f"in.{suffix}", [bad.get(n, r) for n, r in enumerate(good, 1)])
    output = tmp_path / f"out.{suffix}"
    score(tmp_path / f"in.{suffix}", model, output, **ALL)
    (tmp_path / f"in.{suffix}").unlink()
    before = published(output)
    again(output)
    assert published(output) == before
    mend(output, {n: as_mended(suffix, good[n - 1]) for n in bad})
    again(output)
    WRITE[suffix](tmp_path / f"mended.{suffix}", good)
    score(tmp_path / f"mended.{suffix}", model, tmp_path / f"expected.{suffix}", **ALL)
    assert published(output) == published(tmp_path / f"expected.{suffix}")


def rejected_and_mended(
    tmp_path: Path, model: Path, name: str, parts: tuple[bytes, bytes], **options: Any
) -> tuple[Path, Path]:
    """Outputs of an input and of one that is right, before anything is retried."""
    outputs = []
    for kind, data in zip(("broken", "right"), parts, strict=True):
        source = tmp_path / kind / name
        source.parent.mkdir()
        source.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        outputs.append(source.with_name(f"out-{name}"))
        score(source, model, outputs[-1], **ALL, **options)
    return outputs[0], outputs[1]


CSV = "id,x,né\r\n01,what,ü\r\n02,2,é\r\n03,3,ö\r\n04,,à\r\n"
NO_HEADER: dict[str, Any] = {"no_header": True, "column": (("x", "2"),)}
SPELLINGS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "crlf": ("a.csv", CSV, "utf-8", {}),
    "no last line end": ("a.csv", CSV[:-2], "utf-8", {}),
    "compressed, no last line end": ("a.csv.gz", CSV[:-2], "utf-8", {}),
    "byte order mark": ("a.csv", CSV, "utf-8-sig", {}),
    "latin-1": ("a.csv", CSV, "latin-1", {"encoding": "latin-1"}),
    "utf-16": ("a.csv", CSV, "utf-16", {}),
    "utf-16, no last line end": ("a.csv", CSV[:-2], "utf-16", {}),
    "no header": ("a.csv", CSV.split("\n", 1)[1], "utf-8", NO_HEADER),
    "delimiter": ("a.csv", CSV.replace(",", ";"), "utf-8", {"delimiter": ";"}),
    "quoted header": ("a.csv", '\n"id","x","a ""b"""\r\n' + CSV.split("\n", 1)[1], "utf-8", {}),
}  # fmt: skip


# How the last line ended is known from the input alone.
WITHOUT_INPUT = [name for name in SPELLINGS if "no last" not in name]


@pytest.mark.parametrize(
    ("case", "keeps_input"),
    [*((name, True) for name in SPELLINGS), *((name, False) for name in WITHOUT_INPUT)],
)
def test_spellings_of_csv(tmp_path: Path, model: Path, case: str, keeps_input: bool) -> None:
    name, text, encoding, options = SPELLINGS[case]
    right = text.replace("what", "1").replace("4,,", "4,4,").replace("4;;", "4;4;")
    parts = text.encode(encoding), right.encode(encoding)
    output, expected = rejected_and_mended(tmp_path, model, name, parts, **options)
    if not keeps_input:
        (tmp_path / "broken" / name).unlink()
    first = output.read_bytes()
    again(output)
    assert output.read_bytes() == first
    cut = options.get("delimiter", ",")
    last = next(e for e in rejects_of(output) if e["row"] == 4)
    assert last["record"] == cut.join(("04", "", "à"))
    mend(output, {1: cut.join(("01", "1", "ü")), 4: cut.join(("04", "4", "à"))})
    receipt = again(output)
    assert receipt is not None
    assert published(output) == published(expected)


JSON = {
    "crlf": ("a.jsonl", '{"x": "?"}\r\n {"x": 2} \r\n{"x": 77, "y": 1.10}\r\n'),
    "no last line end": ("a.jsonl", '{"x": 1}\n\n{"x": "?"}\n{"x": 77, "y": 1.10}'),
    "lines in .json": ("a.json", '{"x": "?"}\n{"x": 2}\n{"x": 77, "y": 1.10}\n'),
    "one line": ("a.json", '[{"x": "?"}, {"x": 2},{"x": 77, "y": 1.10}]'),
    "many lines": ("a.json.gz", '[\n{\n"x": "?"\n},\n\n{"x": 2},{"x": 77,\n "y": 1.10}]'),
}


@pytest.mark.parametrize("case", list(JSON))
def test_spellings_of_json(tmp_path: Path, model: Path, case: str) -> None:
    name, text = JSON[case]
    right = text.replace('"?"', "5").replace("77", "7")
    output, expected = rejected_and_mended(tmp_path, model, name, (text.encode(), right.encode()))
    before = published(output)
    again(output)
    assert published(output) == before
    entries = rejects_of(output)
    assert len(entries) == 2
    fixed = (entry["record"].replace('"?"', "5").replace("77", "7") for entry in entries)
    mend(output, {entry["row"]: record for entry, record in zip(entries, fixed, strict=True)})
    again(output)
    assert published(output) == published(expected)


@pytest.mark.parametrize("touched", [False, True])
def test_a_limited_run(tmp_path: Path, model: Path, touched: bool) -> None:
    """Its sha256 is not known; without the time of change, the output tells the columns."""
    output = simple(tmp_path, model, "1\n3\nwhat\n4", limit=3)
    if touched:
        os.utime(tmp_path / "a.csv", (1, 1))
    mend(output, {3: "2"})
    receipt = again(output)
    assert receipt is not None
    assert output.read_text() == "x,prediction\n1,101\n3,103\n2,102\n"
    assert (receipt.counts.read, receipt.inputs[0].sha256) == (3, None)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json", "avro", "parquet"])
def test_rows_go_between_those_of_many_blocks(tmp_path: Path, model: Path, suffix: str) -> None:
    rng = random.Random(7)
    fill = "".join(rng.choices("abcdef", k=700))
    rows = [{"id": n, "x": float(n % 10), "fill": fill[n % 400 :]} for n in range(1, 4_001)]
    bad = set(rng.sample(range(1, 4_001), 300)) | {1, 4_000}

    def written(path: Path, records: list[dict[str, Any]]) -> None:
        if suffix == "csv":
            lines = [f"{r['id']},{r['x'] or ''},{r['fill']}\n" for r in records]
            path.write_text("id,x,fill\n" + "".join(lines))
        elif suffix == "jsonl":
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
        elif suffix == "json":
            path.write_text(json.dumps(records))
        elif suffix == "parquet":
            pq.write_table(pa.Table.from_pylist(records), path)
        else:
            kinds = {"id": "long", "x": ["null", "double"], "fill": "string"}
            fields = [{"name": name, "type": kind} for name, kind in kinds.items()]
            schema = {"type": "record", "name": "R", "fields": fields}
            with path.open("wb") as file:
                fastavro.writer(file, schema, records)

    for kind in ("broken", "right"):
        broken = kind == "broken"
        written(
            tmp_path / f"{kind}.{suffix}",
            [
                {**r, "x": None} if broken and r["id"] in bad else {**r, "x": r["x"] or 0.5}
                for r in rows
            ],
        )
        score(tmp_path / f"{kind}.{suffix}", model, tmp_path / f"{kind}.out.{suffix}", **ALL)
    output = tmp_path / f"broken.out.{suffix}"
    entries = rejects_of(output)
    assert len(entries) == len(bad)
    for entry in entries:
        right = {**rows[entry["row"] - 1]}
        right["x"] = right["x"] or 0.5
        entry["record"] = (
            right if suffix in ("avro", "parquet")
            else json.dumps(right) if suffix != "csv"
            else f"{right['id']},{right['x']},{right['fill']}"
        )  # fmt: skip
    mended = tmp_path / "mended.jsonl"
    mended.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    again(output, input_file=mended)
    assert published(output) == published(tmp_path / f"right.out.{suffix}")


CELL = st.sampled_from(["a", 'a"b', "a,b", "a\nb", "", "é", " a ", '""', "\r\n"])


@settings(
    max_examples=12,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    rows=st.lists(st.tuples(st.integers(0, 9), CELL, st.booleans()), min_size=1, max_size=8),
    flaw=st.sampled_from(["what", '1"', '"1', '"1"1', "1,1", "", "77", '"1\n']),
)
def test_any_csv(
    tmp_path_factory: pytest.TempPathFactory, model: Path, rows: list[Any], flaw: str
) -> None:
    """Unmended rows come back as they were, whatever is wrong with them."""
    directory = tmp_path_factory.mktemp("any")
    lines = [
        f'{flaw if bad else x},"{note.replace(chr(34), chr(34) * 2)}"\n' for x, note, bad in rows
    ]
    (directory / "a.csv").write_text("x,note\n" + "".join(lines), newline="")
    output = directory / "out.csv"
    receipt = score(directory / "a.csv", model, output, **ALL)
    before = published(output)
    after = again(output)
    assert (after is None) == (not receipt.rejects.codes)
    assert published(output) == before


def simple(tmp_path: Path, model: Path, lines: str = '1\nwhat\n3\n""\n', **options: Any) -> Path:
    (tmp_path / "a.csv").write_text(f"x\n{lines}")
    output = tmp_path / "a.scored.csv"
    score(tmp_path / "a.csv", model, output, **ALL, **options)
    return output


def test_some_rows_in_another_file(tmp_path: Path, model: Path) -> None:
    """Those it leaves out are taken from the rejects file, if that is as it was."""
    output = simple(tmp_path, model)
    entries = rejects_of(output)
    mended = tmp_path / "mended.jsonl"
    mended.write_text(json.dumps({**entries[1], "record": "4"}) + "\n")
    receipt = again(output, input_file=mended)
    assert receipt is not None
    assert output.read_text() == "x,prediction\n1,101\n3,103\n4,104\n"
    assert rejects_of(output) == entries[:1]
    assert receipt.exit_code == 3
    content = receipt_of(output)
    assert content["retried"]["rows"] == 2
    assert content["counts"]["scored"] == 3
    assert content["inputs"][0]["path"] == str(tmp_path / "a.csv")


def test_dry_run(tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = simple(tmp_path, model)
    mend(output, {2: "1,1"})
    before = {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)}
    with caplog.at_level(logging.INFO):
        request = Request(f"{output}.receipt.json", dry_run=True)
        assert retry(request, lambda counts, source: None) is None
    assert "2 of them would be rejected again (malformed_row 1, missing_value 1)" in caplog.text
    assert {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)} == before


def test_another_output_leaves_the_old_one(tmp_path: Path, model: Path) -> None:
    output = simple(tmp_path, model)
    before = published(output), receipt_of(output)
    mend(output, {2: "2", 4: "4"}, target := tmp_path / "mended.jsonl")
    other = tmp_path / "b.csv.gz"
    receipt = again(output, input_file=target, output_file=other)
    assert receipt is not None
    assert (published(output), receipt_of(output)) == before
    text = gzip.decompress(other.read_bytes()).decode()
    assert text == "x,prediction\n1,101\n2,102\n3,103\n4,104\n"
    assert again(other) is None


def test_an_output_without_rows(tmp_path: Path, model: Path) -> None:
    output = simple(tmp_path, model, "what\n77\n")
    before = published(output)
    again(output)
    assert published(output) == before
    mend(output, {1: "1", 2: "2"})
    again(output)
    assert output.read_text() == "x,prediction\n1,101\n2,102\n"


@pytest.mark.parametrize("record", ["1\n2", "", '"1', "1,2"])
def test_a_record_that_is_not_one_row(tmp_path: Path, model: Path, record: str) -> None:
    """It costs no other row."""
    output = simple(tmp_path, model)
    mend(output, {2: record, 4: "4"})
    again(output)
    assert output.read_text() == "x,prediction\n1,101\n3,103\n4,104\n"
    (entry,) = rejects_of(output)
    assert (entry["row"], entry["line"], entry["record"]) == (2, 3, record)
    assert entry["code"] == "malformed_row"


def test_records_that_are_rows_together_only(tmp_path: Path, model: Path) -> None:
    """Two records make two rows, but not these: neither would be one in the input."""
    (tmp_path / "a.csv").write_text("x,note\n1,a\n?,b\n?,c\n")
    output = tmp_path / "out.csv"
    score(tmp_path / "a.csv", model, output, **ALL)
    mend(output, {2: '1,"b', 3: 'c",d\n2,e'})
    again(output)
    assert output.read_text() == "x,note,prediction\n1,a,101\n"
    assert [entry["record"] for entry in rejects_of(output)] == ['1,"b', 'c",d\n2,e']


def test_a_record_that_was_cut(tmp_path: Path, model: Path) -> None:
    """It is read from the input while that is as it was, else it stays rejected."""
    long = "é" * 50_000
    text = f"x,fill,last\n1,a,a\n,{long},b\n,{long},c\n77,{long},d\n"
    (tmp_path / "a.csv").write_text(text)
    output = tmp_path / "out.csv"
    score(tmp_path / "a.csv", model, output, **ALL)
    before = published(output)
    again(output)
    assert published(output) == before
    entries = rejects_of(output)
    assert all(entry["length"] > len(entry["record"].encode()) for entry in entries)
    source = source_of(f"{output}.rejects.jsonl")
    assert all(row.is_cut for row in rejected_rows(source))
    mend(output, {2: "2,short,b"})
    again(output)
    assert output.read_text() == "x,fill,last,prediction\n1,a,a,101\n2,short,b,102\n"
    assert [entry["offset"] for entry in rejects_of(output)] == [e["offset"] for e in entries[1:]]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_cut_records_are_scored_from_the_input(tmp_path: Path, model: Path, suffix: str) -> None:
    """Here those of a run that left them out on demand."""
    fills = [f"é{n}" * 35_000 for n in range(20)]
    lines = [f"{n % 10},{fill}\n" for n, fill in enumerate(fills)]
    if suffix == "jsonl":
        lines = [f'{{"x": {n % 10}, "fill": "{fill}"}}\n' for n, fill in enumerate(fills)]
    start = "\ufeff" if suffix == "jsonl" else "\ufeffx,fill\n"
    (tmp_path / f"a.{suffix}").write_text(start + "".join(lines), "utf-8")
    output, expected = tmp_path / f"out.{suffix}", tmp_path / f"expected.{suffix}"
    score(tmp_path / f"a.{suffix}", model, expected, **ALL)
    score(tmp_path / f"a.{suffix}", model, output, skip_rows=(2, 3, 17, 20), **ALL)
    content = receipt_of(output)
    content["options"]["skip_rows"] = []
    output.with_name(f"{output.name}.receipt.json").write_text(json.dumps(content))
    again(output)
    assert published(output) == published(expected)


def test_an_object_in_place_of_json_text(tmp_path: Path, model: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n{"x": "what"}\n')
    output = tmp_path / "out.jsonl"
    score(tmp_path / "a.jsonl", model, output, **ALL)
    mend(output, {2: {"x": 2}})
    again(output)
    assert output.read_text() == '{"x": 1, "prediction": 101}\n{"x": 2, "prediction": 102}\n'


def refused(output: Path, error: type[BatchPredictError], match: str, **options: Any) -> None:
    """Nothing is changed by it."""
    directory = output.parent
    before = {name: (directory / name).read_bytes() for name in files_in(directory)}
    with pytest.raises(error, match=match):
        again(output, **options)
    assert {name: (directory / name).read_bytes() for name in files_in(directory)} == before


def test_names_that_count_from_elsewhere(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output lies beside the receipt, where the input's name is the output's."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "a.csv").write_text("x\n1\nwhat\n3\n")
    monkeypatch.chdir(tmp_path)
    run_job(Path("in/a.csv"), model, output_dir="out", **ALL)
    monkeypatch.chdir("/")
    output = tmp_path / "out" / "a.csv"
    mend(output, {2: "2"})
    again(output)
    assert output.read_text() == "x,prediction\n1,101\n2,102\n3,103\n"
    assert receipt_of(output)["inputs"][0]["path"] == "in/a.csv"


def test_what_cannot_be_retried(tmp_path: Path, model: Path) -> None:
    output = simple(tmp_path, model)
    entries = rejects_of(output)
    mended = tmp_path / "mended.jsonl"

    def wrong(match: str, *changed: Any) -> None:
        mended.write_text("".join(json.dumps(entry) + "\n" for entry in changed))
        refused(output, InputInvalid, match, input_file=mended)

    wrong("comes after row", entries[1], entries[0])
    wrong("row 3 is none of those", {**entries[0], "row": 3})
    wrong("are not those of", {**entries[0], "code": "other"}, entries[1])
    wrong("lacks 'row'", {})
    wrong("lacks 'file'", {key: value for key, value in entries[0].items() if key != "file"})
    wrong("lacks 'record'", {key: value for key, value in entries[0].items() if key != "record"})
    wrong(r"mended.jsonl:1: has no record; put it back", {**entries[0], "record": None})
    wrong("no JSON object", [1])
    wrong(
        r"mended.jsonl:2: is a row of b.csv, .*name the rejects",
        entries[0],
        {**entries[1], "file": "b.csv"},
    )
    wrong("neither text nor an object", {**entries[0], "record": 1}, entries[1])
    refused(output, InputMissing, "no such file", input_file=tmp_path / "none")
    other = models.write(tmp_path / "other", models.matrix_graph(1, name="x"))
    refused(output, ConfigInvalid, "digest .* name that model with --model", model=other)
    refused(output, UsageError, "stays csv", output_file=tmp_path / "b.parquet")
    refused(output, UsageError, "overwrite an input", output_file=tmp_path / "a.csv")
    with lock_output(str(output)) as held:
        assert held is not None
        with pytest.raises(TryAgain, match="another run"):
            again(output)
        held.remove()
    rejects = output.with_name(f"{output.name}.rejects.jsonl")
    rejects.write_text(json.dumps(entries[0]) + "\n")
    refused(output, InputInvalid, "does not hold all 2 rejected rows")
    output.write_text(output.read_text().replace("101", "909"))
    refused(output, InputInvalid, "is not the file that .* tells of")
    output.with_name(f"{output.name}.receipt.json").write_text("[]")
    refused(output, InputInvalid, "is not a receipt")


def test_an_output_in_parts(tmp_path: Path, model: Path) -> None:
    """What the receipt names is the manifest, which is no output."""
    output = simple(tmp_path, model)
    receipt = receipt_of(output)
    receipt["options"] |= {"engine": "ray", "output_parts": True}
    folder = tmp_path / "parts"
    folder.mkdir()
    manifest = folder / "_manifest.json"
    manifest.write_bytes(b'{"manifest": 1}\n')
    sha256 = hashlib.sha256(manifest.read_bytes()).hexdigest()
    receipt["output"] |= {"path": str(manifest), "size": 16, "sha256": sha256}
    output.with_name(f"{output.name}.receipt.json").write_text(json.dumps(receipt))
    refused(output, UsageError, "its output is a folder of parts .* run predict again")
    assert files_in(folder) == ["_manifest.json"]


@pytest.mark.parametrize("rejects", ["changed", "gone", "as they were"])
def test_rows_that_were_moved(tmp_path: Path, model: Path, rejects: str) -> None:
    """Codes and numbers of rows are as many as there were, but they are not those of the run."""
    output = simple(tmp_path, model, "1\nwhat\n3\nwhat\n5\n")
    entries = rejects_of(output)
    mended = [{**entry, "row": entry["row"] + 1, "record": "4"} for entry in entries]
    path = tmp_path / ("mended.jsonl" if rejects != "changed" else f"{output.name}.rejects.jsonl")
    path.write_text("".join(json.dumps(entry) + "\n" for entry in mended))
    if rejects == "gone":
        output.with_name(f"{output.name}.rejects.jsonl").unlink()
    match = "row 3 is none of those" if rejects == "as they were" else "are not those of"
    refused(output, InputInvalid, match, **({} if rejects == "changed" else {"input_file": path}))
    swapped = [{**entries[0], "row": 3}, entries[1]]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in swapped))
    refused(output, InputInvalid, match, **({} if rejects == "changed" else {"input_file": path}))


def test_rows_of_a_receipt_without_their_sha256(tmp_path: Path, model: Path) -> None:
    """An older version wrote it; the rejects it left tell which rows they are."""
    output = simple(tmp_path, model)
    receipt = receipt_of(output)
    del receipt["rejects"]["rows_sha256"]
    output.with_name(f"{output.name}.receipt.json").write_text(json.dumps(receipt))
    mended = tmp_path / "mended.jsonl"
    lines = [{**entry, "row": entry["row"] - 1} for entry in rejects_of(output)]
    mended.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    refused(output, InputInvalid, "mended.jsonl:1: row 1 is none of those", input_file=mended)
    again(output)


def test_a_record_that_the_run_did_not_write_down(tmp_path: Path, model: Path) -> None:
    """Of Avro, where it is too long: there null is as it came."""
    good = sound("avro")
    good[3] = {**good[3], "note": "n" * 5000}
    write_avro(tmp_path / "a.avro", [{**good[0], "x": None}, *good[1:]])
    output = tmp_path / "out.avro"
    score(tmp_path / "a.avro", model, output, max_record_bytes=4000, **ALL)
    entries = {entry["code"]: entry for entry in rejects_of(output)}
    assert entries["too_large"]["record"] is None
    before = published(output)
    again(output)
    assert published(output) == before
    mend(output, {1: None})
    refused(output, InputInvalid, r"rejects.jsonl:1: has no record")


def _without(content: dict[str, Any], name: str) -> dict[str, Any]:
    *keys, last = name.split(".")
    inner = content
    for key in keys:
        inner = inner[key]
    del inner[last]
    return content


@pytest.mark.parametrize(
    "name",
    [
        "receipt", "exit_code", "run_id", "inputs", "rejects", "rejects.codes", "options",
        "options.model", "counts", "tool", "tool.version", "tool.onnxruntime", "model",
        "model.sha256", "output.sha256",
    ],
)  # fmt: skip
def test_a_receipt_that_lacks_something(tmp_path: Path, model: Path, name: str) -> None:
    output = simple(tmp_path, model)
    path = output.with_name(f"{output.name}.receipt.json")
    path.write_text(json.dumps(_without(receipt_of(output), name)))
    lacks = rf"receipt.json: is not a receipt \(it lacks {name}\); name OUTPUT.receipt.json$"
    refused(output, InputInvalid, lacks)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ([1], "it lacks receipt"),
        ("text", "it lacks receipt"),
        ({"counts": {"read": "four"}}, "counts.read cannot be 'four'"),
        ({"tool": []}, "it lacks tool.version"),
        ({"model": {"sha256": 5}}, "model.sha256 cannot be 5"),
        ({"inputs": []}, "it has 0 inputs, not 1"),
        ({"inputs": [5]}, r"it lacks inputs\[0\]"),
        ({"rejects": None}, "it lacks rejects"),
        ({"output": 5}, "it lacks output"),
    ],
)
def test_a_receipt_that_is_something_else(
    tmp_path: Path, model: Path, changed: Any, match: str
) -> None:
    output = simple(tmp_path, model)
    content = receipt_of(output) | changed if isinstance(changed, dict) else changed
    output.with_name(f"{output.name}.receipt.json").write_text(json.dumps(content))
    refused(output, InputInvalid, rf"is not a receipt \({match}")


@pytest.mark.parametrize(
    ("option", "value"), [("skip_rows", 5), ("max_rejects", 1), ("keep", 0), ("workers", -1)]
)
def test_a_receipt_with_options_of_no_run(
    tmp_path: Path, model: Path, option: str, value: Any
) -> None:
    output = simple(tmp_path, model)
    content = receipt_of(output)
    content["options"][option] = value
    output.with_name(f"{output.name}.receipt.json").write_text(json.dumps(content))
    refused(output, InputInvalid, rf"is not a receipt \(.*{option}")


def test_rejects_that_are_gone_or_empty(tmp_path: Path, model: Path) -> None:
    output = simple(tmp_path, model)
    rejects = output.with_name(f"{output.name}.rejects.jsonl")
    rejects.write_text("")
    with pytest.raises(InputInvalid, match="does not hold all 2 rejected rows; put") as caught:
        again(output)
    assert str(caught.value).count(str(rejects)) == 1
    rejects.unlink()
    refused(output, InputMissing, "is not there; name the mended rows with --input_file")


@pytest.mark.parametrize("note", ["nonsense", "[]", "{}", '{"retried": {"run_id": "x"}}'])
def test_a_note_that_is_none(tmp_path: Path, model: Path, note: str) -> None:
    output = simple(tmp_path, model)
    output.with_name(f".{output.name}.receipt.json.retry").write_text(note)
    mend(output, {2: "2", 4: "4"})
    again(output)
    assert output.read_text() == "x,prediction\n1,101\n2,102\n3,103\n4,104\n"
    assert not [name for name in files_in(tmp_path) if name.startswith(".")]


def test_waiting_for_the_lock(tmp_path: Path, model: Path) -> None:
    """What is tried then is what the other one left."""
    output = simple(tmp_path, model)
    mend(output, {2: "2", 4: "4"})
    request = Request(f"{output}.receipt.json", lock_wait=30.0)
    finished: list[Receipt | None] = []
    waiting = threading.Thread(
        target=lambda: finished.append(retry(request, lambda counts, source: None))
    )
    before = {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)}
    again(output)
    after = {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)}
    for name in after.keys() | before.keys():
        (tmp_path / name).unlink(missing_ok=True)
        if name in before:
            (tmp_path / name).write_bytes(before[name])
    with lock_output(str(output)) as held:
        assert held is not None
        waiting.start()
        time.sleep(0.3)
        assert waiting.is_alive()
        (tmp_path / f"{output.name}.rejects.jsonl").unlink()
        for name, content in after.items():
            (tmp_path / name).write_bytes(content)
        held.remove()
    waiting.join(30)
    assert finished == [None]
    assert {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)} == after


def test_an_input_that_changed(tmp_path: Path, model: Path) -> None:
    """It is of no use; where the output tells the columns that does not matter."""
    output = simple(tmp_path, model, keep="none")
    (tmp_path / "a.csv").write_text("y,x\n1,1\n")
    with pytest.raises(InputInvalid, match="put it back, or run predict again"):
        again(output)
    failed = json.loads(output.with_name(f"{output.name}.failed.json").read_text())
    assert failed["exit_code"] == 65


def test_a_column_that_the_output_does_not_have(tmp_path: Path, model: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n{"x"\n')
    output = tmp_path / "out.csv"
    score(tmp_path / "a.jsonl", model, output, **ALL)
    mend(output, {2: '{"x": 2, "new": 3}'})
    before = published(output)
    with pytest.raises(InputInvalid, match="has the column 'new'"):
        again(output)
    assert published(output) == before


def test_values_of_maps_from_avro_in_parquet(tmp_path: Path, model: Path) -> None:
    """Here the file's own note of its Arrow schema is spelled otherwise; the values are equal."""
    good, bad = sound("avro"), broken("avro")
    write_avro(tmp_path / "a.avro", [bad.get(n, r) for n, r in enumerate(good, 1)])
    output = tmp_path / "out.parquet"
    score(tmp_path / "a.avro", model, output, **ALL)
    before = pq.read_table(output)
    again(output)
    assert pq.read_table(output).equals(before)


@pytest.mark.parametrize("which", range(1, 6))
def test_stopped_while_it_published(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    """Before the rows' own file, the note, the rejects, the output or the receipt has its name:
    the next retry ends as this one would have, and nothing mended by hand is lost.
    """
    output = simple(tmp_path, model)
    names = [name for name in files_in(tmp_path) if name.startswith("a.scored")]
    before = {name: (tmp_path / name).read_bytes() for name in names}
    mend(output, {2: "2", 4: "what"})
    again(output)
    expected, receipt = published(output), receipt_of(output)
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
    mend(output, {2: "2", 4: "what"})
    publish, calls = Draft.publish, iter(range(1, 100))

    def stopping(self: Draft, name: str | None = None) -> None:
        if next(calls) == which:
            raise KeyboardInterrupt
        publish(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Draft, "publish", stopping)
        with pytest.raises(KeyboardInterrupt):
            again(output)
    again(output)
    assert published(output) == expected
    found = receipt_of(output)
    for each in (found, receipt):
        each["output"].pop("modified_ns", None)
    for part in ("output", "rejects", "counts"):
        assert found[part] == receipt[part]
    assert sorted(files_in(tmp_path)) == sorted(["a.csv", *names])


def test_notes_of_an_older_retry_are_of_no_use(tmp_path: Path, model: Path) -> None:
    output = simple(tmp_path, model)
    receipt = output.with_name(f"{output.name}.receipt.json")
    note = {**receipt_of(output), "retried": {"run_id": "another", "rows": 1}}
    note["output"]["sha256"] = "0"
    receipt.with_name(f".{receipt.name}.retry").write_text(json.dumps(note))
    (tmp_path / f".{output.name}.rejects.jsonl.mended").write_text("{}")
    mend(output, {2: "2", 4: "4"})
    again(output)
    assert output.read_text() == "x,prediction\n1,101\n2,102\n3,103\n4,104\n"
    assert not [name for name in files_in(tmp_path) if name.startswith(".")]


def test_a_failure_leaves_everything(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = simple(tmp_path, model)
    mend(output, {2: "2", 4: "4"})
    before = published(output), receipt_of(output)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("batchpredict.ops.rescoring.interleaved", full)
    with pytest.raises(OSError, match="No space"):
        again(output)
    assert (published(output), receipt_of(output)) == before
    assert not [name for name in files_in(tmp_path) if name.startswith(".")]


def test_the_command(tmp_path: Path, model: Path) -> None:
    """From another directory, by names that counted from the one where it was scored."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text('x\n1\nwhat\n3\n""\n')
    ran = commands.run(
        "--input_file=a.csv", f"--model={model}", "--max_rejects=100%", cwd=tmp_path / "in"
    )
    assert ran.returncode == 3
    output = tmp_path / "in" / "a.scored.csv"
    receipt = "in/a.scored.csv.receipt.json"
    mend(output, {2: "2"})
    ran = commands.run("retry", receipt, cwd=tmp_path)
    assert ran.returncode == 3, ran.stderr
    assert b"2 rows tried again, 1 scored; 3 of 4 are" in ran.stdout
    assert b"1 row could still not be scored (missing_value 1)" in ran.stderr
    with lock_output(str(output)):
        started = time.monotonic()
        ran = commands.run("retry", receipt, "--lock_wait=0.6", cwd=tmp_path)
        assert (ran.returncode, b"another run is writing it" in ran.stderr) == (75, True)
        assert time.monotonic() - started > 0.6
    ran = commands.run("retry", receipt, cwd=tmp_path, env={"BATCHPREDICT_LOCK_WAIT": "-1"})
    assert b"--lock_wait=-1.0: must be a number of seconds" in ran.stderr
    assert output.read_text() == "x,prediction\n1,101\n2,102\n3,103\n"
