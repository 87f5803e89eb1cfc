"""Law 5: memory does not grow with the input. Each run is a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from onnx import helper

from tests import models
from tests.jobs import receipt_of

# A row group of 65,536 rows is held until it is written: the smaller Parquet file must fill one.
ROWS = {"csv": 300_000, "jsonl": 300_000, "json": 300_000, "avro": 300_000, "parquet": 1_000_000}
ALLOWANCE = 50 << 20
_PIECE = 10_000
# Enough bytes per row for the large input to be several times the memory of a run's windows.
_FILLER = "lorem ipsum dolor sit amet "


def pieces(rows: int) -> Iterator[pa.Table]:
    """Tabular rows: an id, a text, four numbers; the same for every format."""
    for start in range(0, rows, _PIECE):
        numbers = np.arange(start, min(start + _PIECE, rows))
        columns = {f"c{i}": (numbers * (i + 3) % 1000) / 8 for i in range(4)}
        names = pa.array([f"{_FILLER}{number}" for number in numbers.tolist()])
        yield pa.table({"id": numbers, "name": names, **columns})


def write_csv(path: Path, rows: int) -> None:
    with path.open("wb") as file:
        for number, piece in enumerate(pieces(rows)):
            options = pyarrow.csv.WriteOptions(include_header=not number)
            pyarrow.csv.write_csv(piece, file, options)


def _lines(rows: int) -> Iterator[str]:
    for piece in pieces(rows):
        form = ", ".join(f'"{name}": {{}}' for name in piece.column_names)
        columns = [column.to_pylist() for column in piece.columns]
        columns[1] = [f'"{text}"' for text in columns[1]]
        for row in zip(*columns, strict=True):
            yield "{" + form.format(*row) + "}"


def write_jsonl(path: Path, rows: int) -> None:
    with path.open("w") as file:
        file.writelines(f"{line}\n" for line in _lines(rows))


def write_json(path: Path, rows: int) -> None:
    with path.open("w") as file:
        for number, line in enumerate(_lines(rows)):
            file.write(f"{',' if number else '['}\n{line}")
        file.write("\n]\n")


def write_avro(path: Path, rows: int) -> None:
    types = {"id": "long", "name": "string"} | {f"c{i}": "double" for i in range(4)}
    fields = [{"name": name, "type": kind} for name, kind in types.items()]
    schema = fastavro.parse_schema({"type": "record", "name": "R", "fields": fields})
    records = (row for piece in pieces(rows) for row in piece.to_pylist())
    with path.open("wb") as file:
        fastavro.writer(file, schema, records)


def write_parquet(path: Path, rows: int) -> None:
    made = iter(pieces(rows))
    first = next(made)
    with pq.ParquetWriter(path, first.schema) as writer:
        writer.write_table(first)
        for piece in made:
            writer.write_table(piece)


WRITE: dict[str, Callable[[Path, int], None]] = {
    "csv": write_csv, "jsonl": write_jsonl, "json": write_json,
    "avro": write_avro, "parquet": write_parquet,
}  # fmt: skip


def linear(directory: Path) -> Path:
    """Two classes from four columns."""
    coefficients = np.array([[1, -1], [0.5, 2], [-3, 0], [0.1, 0.2]], np.float32)
    graph = models.model(
        [helper.make_node("MatMul", ["features", "coefficients"], ["logits"])],
        [models.value("features", "float32", ("N", 4))],
        [models.value("logits", "float32", ("N", 2))],
        [models.tensor("coefficients", coefficients)],
    )
    columns = '[inputs.features]\ncolumns = ["c0", "c1", "c2", "c3"]\n'
    return models.write(directory, graph, manifest=f'task = "single_label"\n{columns}')


def run(source: Path, model: Path, output: Path) -> dict[str, Any]:
    """The receipt of a run in a process of its own."""
    command = ["-m", "batchpredict", f"--input_file={source}", f"--model={model}"]
    subprocess.run(
        [sys.executable, "-P", *command, f"--output_file={output}", "--quiet"], check=True
    )
    return receipt_of(output)


@pytest.mark.parametrize("kind", WRITE)
def test_ten_times_the_rows_take_no_more_memory(tmp_path: Path, kind: str) -> None:
    model = linear(tmp_path / "model")
    peaks: dict[int, int] = {}
    for rows in (ROWS[kind] // 10, ROWS[kind]):
        source, output = tmp_path / f"in.{kind}", tmp_path / f"out.{kind}"
        WRITE[kind](source, rows)
        receipt = run(source, model, output)
        assert receipt["counts"]["scored"] == rows
        peaks[rows] = receipt["peak_memory_bytes"]
        source.unlink()
        output.unlink()
    small, large = peaks.values()
    print(f"{kind}: {small / 1e6:.0f} MB, {large / 1e6:.0f} MB for ten times the rows")
    assert large <= 1.05 * small + ALLOWANCE
