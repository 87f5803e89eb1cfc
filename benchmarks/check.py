"""What a contender wrote: its labels, row by row, so that a fast wrong answer does not count."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import numpy as np


def labels_of(output: Path) -> list[str]:
    """Column or member `prediction` of every row, in order.

    A directory is read file by file in name order; an `.npz` has an array of that name, a
    `.json` is what mlflow writes.
    """
    if output.is_dir():
        return [label for part in sorted(output.glob("*.csv")) for label in labels_of(part)]
    # Interned: millions of labels are a handful of strings.
    return [sys.intern(label) for label in _READERS[output.suffix](output)]


def _csv(output: Path) -> Iterator[str]:
    with output.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        place = next(rows).index("prediction")
        yield from (row[place] for row in rows)


def _jsonl(output: Path) -> Iterator[str]:
    with output.open("rb") as file:
        yield from (json.loads(line)["prediction"] for line in file)


def _json(output: Path) -> Iterator[str]:
    yield from (row["prediction"] for row in json.loads(output.read_bytes())["predictions"])


def _avro(output: Path) -> Iterator[str]:
    with output.open("rb") as file:
        records: Iterator[Any] = fastavro.reader(file)
        yield from (record["prediction"] for record in records)


def _npz(output: Path) -> Iterator[str]:
    with np.load(output) as stored:
        yield from stored["prediction"].tolist()


_READERS = {".csv": _csv, ".jsonl": _jsonl, ".json": _json, ".avro": _avro, ".npz": _npz}


def agreement(found: list[str], expected: list[str], rows: int) -> float:
    """Share of equal labels over the rows that both have, from the first on.

    Raises ValueError where the contender wrote another number of rows than it was given, and
    where there is nothing to compare with.
    """
    if len(found) != rows:
        raise ValueError(f"wrote {len(found)} of {rows} rows")
    if not expected:
        raise ValueError("nothing to compare its labels with")
    return float(np.mean([a == b for a, b in zip(found, expected, strict=False)]))
