"""CSV and TSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO

from batchpredict.data.csv_reader import CsvReader
from batchpredict.data.csv_shards import csv_shards
from batchpredict.data.csv_writer import CsvWriter
from batchpredict.data.joining import concatenated
from batchpredict.data.records import Dialect, Layout, Part, Shard, Source


def open_reader(
    source: Source,
    dialect: Dialect,
    survey: bool | Sequence[str],  # noqa: ARG001
) -> CsvReader:
    """Reads the header. Raises InputInvalid."""
    return CsvReader(source, dialect)


def shards(source: Source, dialect: Dialect) -> Iterator[Shard]:
    """See FormatModule.shards."""
    return csv_shards(source, dialect)


def open_writer(sink: BinaryIO, layout: Layout) -> CsvWriter:
    """Writes the header at once."""
    return CsvWriter(sink, layout)


def join(parts: Sequence[Part]) -> Iterator[bytes | memoryview]:
    """See FormatModule.join."""
    return concatenated(parts)
