"""CSV and TSV."""

from __future__ import annotations

from typing import BinaryIO

from batchpredict.data.csv_reader import CsvReader
from batchpredict.data.csv_writer import CsvWriter
from batchpredict.data.records import Dialect, Layout, Source


def open_reader(source: Source, dialect: Dialect, survey: bool) -> CsvReader:  # noqa: ARG001
    """Reads the header. Raises InputInvalid."""
    return CsvReader(source, dialect)


def open_writer(sink: BinaryIO, layout: Layout) -> CsvWriter:
    """Writes the header at once."""
    return CsvWriter(sink, layout)
