"""The registry of formats."""

from __future__ import annotations

from dataclasses import dataclass

from batchpredict.data import avro, csv, json, parquet
from batchpredict.data.records import FormatModule


@dataclass(frozen=True)
class Format:
    """A format by name. `suffixes`: file name endings, the first is given to outputs.

    `is_text`: compression may be wrapped around it. `delimiter`, `json_array`: see Dialect.
    """

    suffixes: tuple[str, ...]
    module: FormatModule
    is_text: bool = True
    delimiter: str = ","
    json_array: bool = False


FORMATS: dict[str, Format] = {
    "csv": Format((".csv",), csv),
    "tsv": Format((".tsv", ".tab"), csv, delimiter="\t"),
    "jsonl": Format((".jsonl", ".ndjson"), json),
    "json": Format((".json",), json, json_array=True),
    "avro": Format((".avro",), avro, is_text=False),
    "parquet": Format((".parquet", ".pq"), parquet, is_text=False),
}
