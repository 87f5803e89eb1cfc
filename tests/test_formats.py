"""Every format into every other, by the definitions of DESIGN section 5 written down here.

Files are judged by csv, json, fastavro and pyarrow, not by our own readers.
"""

from __future__ import annotations

import base64
import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import models
from tests.jobs import EXAMPLES, files_in, rejects_of, score

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FORMATS = ("csv", "jsonl", "json", "avro", "parquet")
DELAYS = EXAMPLES / "models/delays"
ADDED = ("prediction", "score")
Row = dict[str, Any]


# --- reading, each format by another's library


def read_csv(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, strict=True))


def read_jsonl(path: Path) -> list[Row]:
    """Numbers as they are spelled."""
    lines = path.read_text("utf-8").split("\n")
    assert lines[-1] == ""
    return [json.loads(line, parse_float=Spelled, parse_int=Spelled) for line in lines[:-1]]


def read_json(path: Path) -> list[Row]:
    rows = json.loads(path.read_text("utf-8"), parse_float=Spelled, parse_int=Spelled)
    assert isinstance(rows, list)
    return rows


def read_avro(path: Path) -> list[Row]:
    with path.open("rb") as file:
        return list(fastavro.reader(file))  # type: ignore[arg-type]


def read_parquet(path: Path) -> list[Row]:
    rows: list[Row] = pq.read_table(path).to_pylist()
    return rows


READ: dict[str, Callable[[Path], list[Row]]] = {
    "csv": read_csv, "jsonl": read_jsonl, "json": read_json,
    "avro": read_avro, "parquet": read_parquet,
}  # fmt: skip


class Spelled(str):
    """A JSON number by its digits."""

    __slots__ = ()


def number_of(value: Any) -> float:
    return float(value)


# --- what a value is in another format


def expected(value: Any, source: str, target: str) -> Any:
    """A flight's value (text, number or nothing) read from `source`, as `target` holds it."""
    if source in ("csv", "jsonl", "json"):
        if target == "csv":
            return "" if value is None else str(value)
        if target in ("avro", "parquet"):
            return value if value is None else str(value)
        return value
    if target in ("csv", "jsonl", "json") and isinstance(value, (int, float)):
        return Number(value)
    return "" if value is None and target == "csv" else value


class Number:
    """Equal to any shortest spelling of this number."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str):
            return False
        short = len(other) <= len(repr(self.value))
        return type(self.value)(other) == self.value and short

    def __hash__(self) -> int:
        return hash(self.value)

    def __repr__(self) -> str:
        return f"Number({self.value!r})"


def without(row: Row, names: tuple[str, ...] = ADDED) -> Row:
    return {name: value for name, value in row.items() if name not in names}


def scores(rows: list[Row]) -> list[tuple[str, np.float32]]:
    return [(row["prediction"], np.float32(row["score"])) for row in rows]


# --- flights


@pytest.fixture(scope="module")
def flights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The 2,000 flights in each format; the JSON array and Parquet made of the others."""
    directory = tmp_path_factory.mktemp("flights")
    found = {name: EXAMPLES / f"flights.{name}" for name in ("csv", "jsonl", "avro")}
    found["json"] = directory / "flights.json"
    lines = found["jsonl"].read_text("utf-8").splitlines()
    found["json"].write_text("[" + ",\n ".join(lines) + "]", "utf-8")
    found["parquet"] = directory / "flights.parquet"
    pq.write_table(pa.Table.from_pylist(read_avro(found["avro"])), found["parquet"])
    return found


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, np.float32]]:
    """Predictions and scores, from CSV to CSV."""
    output = tmp_path_factory.mktemp("truth") / "out.csv"
    score(EXAMPLES / "flights.csv", DELAYS, output)
    return scores(read_csv(output))


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_all_pairs(
    tmp_path: Path,
    flights: dict[str, Path],
    truth: list[tuple[str, np.float32]],
    source: str,
    target: str,
) -> None:
    output = tmp_path / f"out.{target}"
    receipt = score(flights[source], DELAYS, output)
    assert (receipt.exit_code, receipt.counts.scored) == (0, 2000)
    given, found = READ[source](flights[source]), READ[target](output)
    assert list(found[0]) == [*given[0], *ADDED]
    for before, after in zip(given, found, strict=True):
        assert without(after) == {n: expected(v, source, target) for n, v in before.items()}
    assert scores(found) == truth


def test_a_score_is_the_shortest_decimal_that_reads_back(
    tmp_path: Path, flights: dict[str, Path]
) -> None:
    for target in ("csv", "jsonl"):
        output = tmp_path / f"out.{target}"
        score(flights["csv"], DELAYS, output, keep="none")
        for row in READ[target](output):
            assert str(row["score"]) == str(np.float32(row["score"]))


def test_csv_to_csv_copies_the_bytes(tmp_path: Path, flights: dict[str, Path]) -> None:
    output = tmp_path / "out.csv"
    score(flights["csv"], DELAYS, output)
    before = flights["csv"].read_bytes().splitlines()
    after = output.read_bytes().splitlines()
    assert [line.rsplit(b",", 2)[0] for line in after] == before
    assert after[0].endswith(b",prediction,score")


@pytest.mark.parametrize("source", ["jsonl", "json"])
@pytest.mark.parametrize("target", ["jsonl", "json"])
def test_json_to_json_splices_into_the_text(
    tmp_path: Path, flights: dict[str, Path], source: str, target: str
) -> None:
    output = tmp_path / f"out.{target}"
    score(flights[source], DELAYS, output)
    texts = flights["jsonl"].read_text("utf-8").splitlines()
    lines = output.read_text("utf-8").splitlines()
    if target == "json":
        assert (lines[0], lines[-1]) == ("[", "]")
        lines = [line.removesuffix(",") for line in lines[1:-1]]
    for text, line in zip(texts, lines, strict=True):
        assert line.startswith(text.removesuffix("}") + ', "prediction": "')


def test_avro_to_avro_keeps_schema_and_values(tmp_path: Path, flights: dict[str, Path]) -> None:
    output = tmp_path / "out.avro"
    score(flights["avro"], DELAYS, output)
    with flights["avro"].open("rb") as before, output.open("rb") as after:
        old, new = fastavro.reader(before), fastavro.reader(after)
        declared, schema = old.writer_schema, new.writer_schema
        assert isinstance(declared, dict)
        assert isinstance(schema, dict)
        assert schema["name"] == declared["name"]
        assert schema["fields"][: len(declared["fields"])] == declared["fields"]
        assert [field["name"] for field in schema["fields"][-2:]] == list(ADDED)
        assert new.codec == old.codec
    for row, scored in zip(read_avro(flights["avro"]), read_avro(output), strict=True):
        assert without(scored) == row


def test_parquet_to_parquet_keeps_columns(tmp_path: Path, flights: dict[str, Path]) -> None:
    output = tmp_path / "out.parquet"
    score(flights["parquet"], DELAYS, output)
    before, after = pq.read_table(flights["parquet"]), pq.read_table(output)
    assert after.drop_columns(list(ADDED)).equals(before)
    assert after.schema.field("score").type == pa.float32()


# --- values that formats have types for


LOGICAL = {
    "type": "record",
    "name": "Typed",
    "fields": [
        {"name": "x", "type": "double"},
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "at", "type": ["null", {"type": "long", "logicalType": "timestamp-micros"}]},
        {"name": "clock", "type": {"type": "int", "logicalType": "time-millis"}},
        {
            "name": "price",
            "type": {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2},
        },
        {"name": "blob", "type": "bytes"},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
        {"name": "many", "type": {"type": "map", "values": "long"}},
        {"name": "inner", "type": {"type": "record", "name": "I", "fields": [
            {"name": "a", "type": "int"}, {"name": "b", "type": ["null", "string"]}]}},
        {"name": "flag", "type": "boolean"},
        {"name": "kind", "type": {"type": "enum", "name": "K", "symbols": ["A", "B"]}},
    ],
}  # fmt: skip
# By their underlying values: no datetime between the file and the test.
TYPED: list[Row] = [
    {
        "x": 0.1, "day": 19000, "at": 1_600_000_000_123_456, "clock": 3_723_004,
        "price": (12345).to_bytes(2), "blob": b"\x00\xff", "tags": ["a", 'q"'],
        "many": {"k": 2**40}, "inner": {"a": -1, "b": None}, "flag": True, "kind": "B",
    },
    {
        "x": -2.5, "day": -1, "at": None, "clock": 0, "price": (-1).to_bytes(1, signed=True),
        "blob": b"", "tags": [], "many": {}, "inner": {"a": 0, "b": "é"}, "flag": False,
        "kind": "A",
    },
]  # fmt: skip


def plain_schema(schema: Any) -> Any:
    """Without logical types: values as they are stored."""
    if isinstance(schema, dict):
        return {k: plain_schema(v) for k, v in schema.items() if k != "logicalType"}
    return [plain_schema(branch) for branch in schema] if isinstance(schema, list) else schema


def write_avro(path: Path, schema: Any, rows: list[Row]) -> Path:
    """Rows by their underlying values, under a schema with logical types."""
    stored = io.BytesIO()
    fastavro.writer(stored, fastavro.parse_schema(plain_schema(schema)), rows)
    stored.seek(0)
    blocks = list(fastavro.block_reader(stored))
    with path.open("wb") as file:
        writer = fastavro.write.Writer(file, fastavro.parse_schema(schema))
        for block in blocks:
            writer.write_block(block)
        writer.flush()
    return path


@pytest.fixture
def echo(tmp_path: Path) -> Path:
    """`x_out` is x."""
    return models.write(tmp_path / "echo", models.echo_graph({"x": "float64"}))


def test_avro_to_text_and_json(tmp_path: Path, echo: Path) -> None:
    source = write_avro(tmp_path / "typed.avro", LOGICAL, TYPED)
    score(source, echo, tmp_path / "out.csv")
    first, second = (without(row, ("prediction",)) for row in read_csv(tmp_path / "out.csv"))
    assert first | {"tags": json.loads(first["tags"]), "many": json.loads(first["many"]),
                    "inner": json.loads(first["inner"])} == {
        "x": "0.1", "day": "2022-01-08", "at": first["at"], "clock": "01:02:03.004",
        "price": "123.45", "blob": base64.b64encode(b"\x00\xff").decode(), "tags": ["a", 'q"'],
        "many": {"k": 2**40}, "inner": {"a": -1, "b": None}, "flag": "true", "kind": "B",
    }  # fmt: skip
    assert first["at"].startswith("2020-09-13T12:26:40.123456")
    assert (second["day"], second["at"], second["price"]) == ("1969-12-31", "", "-0.01")
    score(source, echo, tmp_path / "out.json")
    first, second = json.loads((tmp_path / "out.json").read_text("utf-8"), parse_float=Decimal)
    assert first["x"] == Decimal("0.1")
    assert first["price"] == "123.45"
    assert (first["tags"], first["many"]) == (["a", 'q"'], {"k": 2**40})
    assert (first["flag"], second["at"], second["inner"]) == (True, None, {"a": 0, "b": "é"})


def test_avro_to_avro_by_underlying_values(tmp_path: Path, echo: Path) -> None:
    source = write_avro(tmp_path / "typed.avro", LOGICAL, TYPED)
    output = tmp_path / "out.avro"
    score(source, echo, output)
    with output.open("rb") as file:
        schema = fastavro.reader(file).writer_schema
        assert isinstance(schema, dict)
        for ours, theirs in zip(schema["fields"], LOGICAL["fields"], strict=False):
            assert ours == theirs
    found = read_avro(output)
    assert [without(row, ("prediction",)) for row in found] == read_avro(source)


def test_avro_to_parquet_and_back(tmp_path: Path, echo: Path) -> None:
    source = write_avro(tmp_path / "typed.avro", LOGICAL, TYPED)
    middle, output = tmp_path / "out.parquet", tmp_path / "back.avro"
    score(source, echo, middle)
    score(middle, echo, output, prefix="again_")
    given, found = read_avro(source), read_avro(output)
    for before, after in zip(given, found, strict=True):
        assert without(after, ("prediction", "again_prediction")) == before


# --- chains


CHAINS = [
    ("csv", "avro", "parquet", "json", "csv"),
    ("csv", "parquet", "avro", "jsonl", "csv"),
    ("csv", "jsonl", "avro", "json", "parquet", "csv"),
]


@pytest.mark.parametrize("chain", CHAINS, ids="-".join)
def test_chains_end_where_they_began(
    tmp_path: Path,
    flights: dict[str, Path],
    truth: list[tuple[str, np.float32]],
    chain: tuple[str, ...],
) -> None:
    names = list(read_csv(flights["csv"])[0])
    at = flights["csv"]
    for step, target in enumerate(chain[1:]):
        output = tmp_path / f"{step}.{target}"
        last = step == len(chain) - 2
        score(at, DELAYS, output, keep=tuple(names), prefix="" if last else "x_")
        at = output
    found = read_csv(at)
    assert [without(row) for row in found] == read_csv(flights["csv"])
    assert scores(found) == truth


def test_a_chain_that_keeps_everything(tmp_path: Path, flights: dict[str, Path]) -> None:
    """Each step adds its own columns, all of them equal in the end."""
    at = flights["csv"]
    for prefix, target in zip("abcd", ("avro", "parquet", "json", "csv"), strict=True):
        output = tmp_path / f"{prefix}.{target}"
        score(at, DELAYS, output, prefix=f"{prefix}_")
        at = output
    for before, after in zip(read_csv(flights["csv"]), read_csv(at), strict=True):
        assert {name: after[name] for name in before} == before
        assert len({np.float32(after[f"{prefix}_score"]) for prefix in "abcd"}) == 1
        assert len({after[f"{prefix}_prediction"] for prefix in "abcd"}) == 1


# --- compression, --keep


def opened(path: Path, mode: str) -> Any:
    by_suffix: dict[str, Any] = {
        ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": zstd.open,
    }  # fmt: skip
    return by_suffix[path.suffix](path, mode)


@pytest.mark.parametrize("name", ["csv", "jsonl", "json"])
@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_compression_in_and_out(
    tmp_path: Path, flights: dict[str, Path], name: str, suffix: str
) -> None:
    plain = tmp_path / f"plain.{name}"
    score(flights[name], DELAYS, plain)
    packed = tmp_path / f"in.{name}{suffix}"
    with opened(packed, "wb") as file:
        file.write(flights[name].read_bytes())
    receipt = score(packed, DELAYS, tmp_path / f"out.{name}{suffix}")
    with opened(tmp_path / f"out.{name}{suffix}", "rb") as file:
        assert file.read() == plain.read_bytes()
    assert receipt.inputs[0].size == packed.stat().st_size
    score(packed, DELAYS, tmp_path / f"unpacked.{name}")
    assert (tmp_path / f"unpacked.{name}").read_bytes() == plain.read_bytes()


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_keep_lists(tmp_path: Path, flights: dict[str, Path], source: str, target: str) -> None:
    """Their order is the list's, columns the model reads or not."""
    kept = ("dest", "tailnum", "dep_delay")
    output = tmp_path / f"out.{target}"
    score(flights[source], DELAYS, output, keep=kept, limit=200)
    given, found = READ[source](flights[source])[:200], READ[target](output)
    for before, after in zip(given, found, strict=True):
        assert list(after) == [*kept, *ADDED]
        assert without(after) == {name: expected(before[name], source, target) for name in kept}


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_keep_none(tmp_path: Path, flights: dict[str, Path], source: str, target: str) -> None:
    output = tmp_path / f"out.{target}"
    score(flights[source], DELAYS, output, keep="none", limit=50)
    found = READ[target](output)
    assert len(found) == 50
    assert {tuple(row) for row in found} == {ADDED}


# --- texts that break things


NASTY = [
    "", " leading", "trailing ", "NULL", "null", "NaN", "None", "007", "1.10", "1e5", "true",
    "12345678901234567890", "a,b;c\td|e", 'say "hi"', '"', '""', '"quoted"', "line\nbreak",
    "carriage\rreturn", "both\r\nof them", "\n", "\r\n", "tab\t", "nul\x00inside", "\x00",
    "\x1f\x7f", "é", "日本語",
    "👩‍👩‍👧‍👦", "\U0010ffff", "\u2028\u2029\x85", "\ufeffbom", "{}", "[1,2]",
    '{"a": 1}', "\\", "\\n", "\\u0041", "'", "=1+1", "#", "-", "x" * 5000,
]  # fmt: skip


def write_nasty(path: Path, kind: str) -> Path:
    rows = [{"id": str(number), "text": text} for number, text in enumerate(NASTY)]
    if kind == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["id", "text"], quoting=csv.QUOTE_ALL)
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        lines = (json.dumps(row, ensure_ascii=bool(n % 2)) for n, row in enumerate(rows))
        path.write_text("".join(f"{line}\n" for line in lines), "utf-8", newline="")
    elif kind == "json":
        path.write_text(json.dumps(rows, indent=1), "utf-8")
    elif kind == "avro":
        fields = [{"name": name, "type": "string"} for name in ("id", "text")]
        schema = fastavro.parse_schema({"type": "record", "name": "R", "fields": fields})
        with path.open("wb") as file:
            fastavro.writer(file, schema, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_nasty_texts_through_all_pairs(tmp_path: Path, source: str, target: str) -> None:
    """The model gives each text back, so that what it saw is in the output too."""
    directory = models.write(tmp_path / "echo", models.string_graph(flat=True))
    given = write_nasty(tmp_path / f"in.{source}", source)
    output = tmp_path / f"out.{target}"
    score(given, directory, output, max_rejects="100%")
    lost = {reject["row"]: reject["code"] for reject in rejects_of(output)}
    assert lost == {}
    found = READ[target](output)
    assert [row["id"] for row in found] == [str(number) for number in range(len(NASTY))]
    assert [row["text"] for row in found] == NASTY
    assert [row["prediction"] for row in found] == NASTY


def test_no_drafts_are_left(tmp_path: Path, flights: dict[str, Path]) -> None:
    for source, target in itertools.product(("csv", "avro"), ("parquet", "json")):
        score(flights[source], DELAYS, tmp_path / f"{source}.{target}", limit=10)
    assert not [name for name in files_in(tmp_path) if name.endswith(".part")]
