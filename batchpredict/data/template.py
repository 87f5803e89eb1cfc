"""The form of an input that is no longer there: its output without the columns that were added."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq

from batchpredict.data.avro import AvroReader
from batchpredict.data.avro_container import BlockWriter
from batchpredict.data.csv_cut import Grammar, Record, next_record
from batchpredict.data.csv_reader import CsvReader
from batchpredict.data.encoding import escape_of
from batchpredict.data.jsonreader import JsonReader
from batchpredict.data.parquet import ParquetReader
from batchpredict.data.records import Reader


def write_template(path: Path, output: Reader, added: pa.Schema) -> None:
    """A file of the input's form, with a header where it could have one, and no rows.

    JSON, which has no form without rows, gets one with the columns' names. `output`: whose
    records are the input's with `added` columns behind them.
    """
    if isinstance(output, CsvReader):
        path.write_bytes(_csv(output, len(added)))
    elif isinstance(output, JsonReader):
        names = [name for name in output.schema.names if name not in added.names]
        text = json.dumps(dict.fromkeys(names), ensure_ascii=False) if names else ""
        path.write_text(f"[{text}]\n" if output.json_array else f"{text}\n", "utf-8")
    elif isinstance(output, AvroReader):
        path.write_bytes(_avro(output, len(added)))
    else:
        stored = cast(ParquetReader, output).stored
        schema = pa.schema(list(stored)[: len(stored) - len(added)], stored.metadata)
        pq.write_table(schema.empty_table(), path)


def _csv(output: CsvReader, added: int) -> bytes:
    """A header, with cells as they are spelled; the numbers of the columns where it has none."""
    names = output.schema.names[: len(output.schema.names) - added]
    if output.dialect.header:
        start = len(output.header) - len(output.header.lstrip(b"\r\n"))
        grammar = Grammar(ord(output.dialect.delimiter), 1, output.dialect.max_record_bytes)
        record = cast(Record, next_record(output.header, start, grammar, True))
        header = output.header[: record.cell_ends[len(names) - 1]] + output.line_end
    else:
        header = output.dialect.delimiter.join(names).encode() + output.line_end
    escape = escape_of(output.encoding)
    return output.bom + header.decode("utf-8", "surrogatepass").encode(output.encoding, escape)


def _avro(output: AvroReader, added: int) -> bytes:
    declared = output.avro.declared
    fields = declared["fields"]
    schema = {**declared, "fields": fields[: len(fields) - added]}
    text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    stream = io.BytesIO()
    BlockWriter(stream, {**output.metadata, "avro.schema": text.encode()}).close()
    return stream.getvalue()
