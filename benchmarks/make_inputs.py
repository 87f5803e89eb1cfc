"""Make the tables that are scored; runs in the `scripts` environment.

python make_inputs.py WORK_DIR FLIGHTS_SDIST [DESCRIPTIONS.parquet]
"""

from __future__ import annotations

import csv
import itertools
import json
import random
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import fastavro
import pyarrow.parquet as pq

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.append(str(EXAMPLES))
from make_flights_sample import avro_schema, read_lines, to_avro, to_records  # noqa: E402

SEED = 2013
TEXT_ROWS = (100, 300, 1000, 3000)
LONG_TABLES = {"thousands": 20_000, "million": 1_000_000}
CHUNK_ROWS = 20_000
Text = dict[str, str]


def natural_texts(descriptions: Path) -> list[Text]:
    """English descriptions, in random order."""
    columns = ["id", "lang", "section", "text"]
    rows = pq.read_table(descriptions, columns=columns).to_pylist()
    rows = [row for row in rows if row["lang"] == "en"]
    return random.Random(SEED).sample(rows, max(TEXT_ROWS))


def composed_texts() -> list[Text]:
    """Where no descriptions are given: two to four of the examples' reports in a row."""
    with (EXAMPLES / "reports.csv").open(newline="", encoding="utf-8") as file:
        reports = [row["text"] for row in csv.DictReader(file)]
    chance = random.Random(SEED)
    texts = (" ".join(chance.sample(reports, chance.randint(2, 4))) for _ in range(max(TEXT_ROWS)))
    return [
        {"id": f"{number:016x}", "lang": "und", "section": "report", "text": text}
        for number, text in enumerate(texts)
    ]


def write_texts(folder: Path, texts: list[Text]) -> None:
    for rows in TEXT_ROWS:
        with (folder / f"text-{rows}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(texts[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(texts[:rows])


def write_flights(folder: Path, sdist: Path) -> None:
    """The table as it is, and repeated without its last column (a time, the 19th)."""
    with tarfile.open(sdist) as archive:
        (member,) = (m for m in archive.getmembers() if m.name.endswith("/flights.csv.zip"))
        member.name = "flights.csv.zip"
        archive.extract(member, folder, filter="data")
    lines = read_lines(folder / "flights.csv.zip")
    (folder / "flights.csv").write_bytes(b"".join(lines))
    (folder / "flights-20000.csv").write_bytes(b"".join(lines[:20_001]))
    narrow = [line.rsplit(b",", 1)[0] + b"\n" for line in lines]
    for name, rows in LONG_TABLES.items():
        write_long(folder / name, narrow, rows)


def write_long(target: Path, lines: list[bytes], rows: int) -> None:
    """So many rows of `lines`, whose first is the header, as CSV, JSON Lines and Avro."""
    header = lines[0]
    with target.with_suffix(".csv").open("wb") as file:
        file.write(header)
        file.writelines(itertools.islice(itertools.cycle(lines[1:]), rows))
    with target.with_suffix(".jsonl").open("w") as file:
        file.writelines(json.dumps(record) + "\n" for record in records(lines, rows))
    schema = fastavro.parse_schema(avro_schema(header.decode().strip().split(",")))
    for codec in ("null", "deflate"):
        with target.with_suffix(f".{codec}.avro").open("wb") as file:
            typed = ({k: to_avro(k, v) for k, v in r.items()} for r in records(lines, rows))
            fastavro.writer(file, schema, typed, codec=codec, sync_marker=bytes(16))


def records(lines: list[bytes], rows: int) -> Iterator[dict]:
    repeated = itertools.islice(itertools.cycle(lines[1:]), rows)
    while chunk := list(itertools.islice(repeated, CHUNK_ROWS)):
        yield from to_records([lines[0], *chunk])


if __name__ == "__main__":
    work, flights, *descriptions = map(Path, sys.argv[1:])
    inputs = work / "inputs"
    inputs.mkdir(exist_ok=True)
    write_texts(inputs, natural_texts(descriptions[0]) if descriptions else composed_texts())
    write_flights(inputs, flights)
