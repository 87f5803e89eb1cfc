"""What is run: jobs over the bundled tabular example, in every format."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.client import ROOT

MODEL = ROOT / "examples" / "models" / "delays"
TEXT_COLUMNS = ("id", "carrier", "origin", "dest", "distance", "note")
NUMBER_COLUMNS = ("month", "day", "sched_dep_time", "dep_delay", "hour")
# Text and compressed text; the two others have their own compression inside.
KINDS = (
    *("csv", "csv.gz", "tsv", "tsv.gz", "jsonl", "jsonl.gz", "json", "json.gz"),
    *("avro", "parquet"),
)
_BAD_EVERY = 331
_DOUBLE_EVERY = 10


@dataclass(frozen=True)
class Case:
    """A job. `source`, `target`: formats of its inputs and outputs; `rows` of each input."""

    source: str
    target: str
    inputs: int = 1
    rows: int = 30_000
    workers: int = 1
    batch_rows: int | None = None
    on_error: str = "reject"

    @property
    def result(self) -> Case:
        """Of all cases that must give the same bytes, the one to ask for them."""
        return Case(self.source, self.target, self.inputs, self.rows, on_error=self.on_error)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def names(case: Case) -> list[str]:
    """Of the outputs, in the order in which they are made."""
    if case.inputs == 1:
        return [f"out.{case.target}"]
    return [f"part{number}.{case.target}" for number in range(case.inputs)]


def arguments(case: Case, directory: Path, inputs: Path) -> list[str]:
    """The command line that writes into `directory`."""
    files = input_files(case, inputs)
    given = [f"--input_file={file}" for file in files]
    given += [f"--model={MODEL}", f"--workers={case.workers}", f"--on_error={case.on_error}"]
    if case.batch_rows:
        given.append(f"--batch_rows={case.batch_rows}")
    if case.inputs == 1:
        return [*given, f"--output_file={directory / names(case)[0]}"]
    given.append(f"--output_dir={directory}")
    # Several outputs keep their inputs' compression.
    if case.source != case.target:
        given.append(f"--output_format={case.target}")
    return given


def input_files(case: Case, directory: Path) -> list[Path]:
    """The inputs; made where they are not there yet, and never touched again."""
    found = []
    for number in range(case.inputs):
        folder = directory / f"{case.rows}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"part{number}.{case.source}"
        if not path.exists():
            draft = path.with_name(f"draft.{os.getpid()}.{path.name}")
            _write(draft, case.source, _rows(case.rows, number))
            draft.rename(path)
        found.append(path)
    return found


def _rows(count: int, seed: int) -> list[dict[str, str]]:
    """Flights, no two alike but for every tenth, which is the one before it again."""
    with (ROOT / "examples" / "flights.csv").open(newline="", encoding="utf-8") as file:
        flights = list(csv.DictReader(file))
    chosen = random.Random(seed)
    rows: list[dict[str, str]] = []
    for number in range(count):
        row = dict(chosen.choice(flights))
        row["distance"] = f"{row['distance']}.{chosen.randrange(10**6):06}"
        if number % _DOUBLE_EVERY == _DOUBLE_EVERY - 1:
            row = dict(rows[-1])
        if number % _BAD_EVERY == 7:
            row["distance"] = "far"
        row["id"] = str(number)
        row["note"] = ("", "plain", 'a "quoted",\nnote')[number % 97 % 3]
        rows.append({name: row[name] for name in (*TEXT_COLUMNS, *NUMBER_COLUMNS)})
    return rows


def _write(path: Path, kind: str, rows: Sequence[dict[str, str]]) -> None:
    bare = kind.removesuffix(".gz")
    if bare in ("avro", "parquet"):
        _BINARY[bare](path, [_typed(row) for row in rows])
        return
    data = _TEXT[bare](rows)
    path.write_bytes(gzip.compress(data, 1, mtime=0) if kind.endswith(".gz") else data)


def _typed(row: dict[str, str]) -> dict[str, Any]:
    numbers = {name: _number(row[name]) for name in NUMBER_COLUMNS}
    return {name: row[name] for name in TEXT_COLUMNS} | numbers


def _number(text: str) -> float | None:
    return float(text) if text not in ("", "NA") else None


def _delimited(rows: Sequence[dict[str, str]], delimiter: str) -> bytes:
    """With a line that is no record of this file here and there."""
    lines = [delimiter.join((*TEXT_COLUMNS, *NUMBER_COLUMNS))]
    for number, row in enumerate(rows):
        cells = ['"' + v.replace('"', '""') + '"' if '"' in v else v for v in row.values()]
        lines.append(delimiter.join(cells[:4] if number % _BAD_EVERY == 99 else cells))
    return ("\n".join(lines) + "\n").encode()


def _json(rows: Sequence[dict[str, str]], *, array: bool) -> bytes:
    texts = [json.dumps(_typed(row)) for row in rows]
    # In an array what is between two commas must be JSON for the next to be found.
    texts[99::_BAD_EVERY] = ["17" if array else '{"id": '] * len(texts[99::_BAD_EVERY])
    return ("[" + ",\n".join(texts) + "]\n" if array else "\n".join(texts) + "\n").encode()


def _avro(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    fields = [{"name": name, "type": ["null", "string"]} for name in TEXT_COLUMNS]
    fields += [{"name": name, "type": ["null", "double"]} for name in NUMBER_COLUMNS]
    schema = fastavro.parse_schema({"type": "record", "name": "Flight", "fields": fields})
    with path.open("wb") as file:
        fastavro.writer(file, schema, rows, "deflate")


def _parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    fields = [(name, pa.string()) for name in TEXT_COLUMNS]
    fields += [(name, pa.float64()) for name in NUMBER_COLUMNS]
    pq.write_table(pa.Table.from_pylist(list(rows), pa.schema(fields)), path, row_group_size=5000)


_TEXT: dict[str, Callable[[Sequence[dict[str, str]]], bytes]] = {
    "csv": lambda rows: _delimited(rows, ","),
    "tsv": lambda rows: _delimited(rows, "\t"),
    "jsonl": lambda rows: _json(rows, array=False),
    "json": lambda rows: _json(rows, array=True),
}
_BINARY = {"avro": _avro, "parquet": _parquet}

# What is converted on the way; a single input only, and more of what nightly jobs do.
_CONVERSIONS = (("csv", "parquet"), ("jsonl", "avro"), ("avro", "csv.gz"), ("parquet", "jsonl"))


def all_cases() -> list[Case]:
    """Every output format, with gzip and without, one and three inputs, one and two workers.

    Most are small, so that a run takes a fraction of a second, and have many small batches; some
    are several windows long.
    """
    cases = []
    for workers, batch_rows, rows in ((1, 512, 9000), (2, 256, 6000)):
        for kind in KINDS:
            cases.append(Case(kind, kind, 1, rows, workers, batch_rows))
            cases.append(Case(kind, kind, 3, rows // 2, workers, batch_rows))
        for source, target in _CONVERSIONS:
            cases.append(Case(source, target, 1, rows, workers, on_error="null"))
        for source, target in (("csv", "csv"), ("csv.gz", "parquet"), ("parquet", "tsv.gz")):
            cases.append(Case(source, target, 1, 40_000, workers))
    return cases
