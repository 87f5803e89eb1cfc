"""The registry of formats."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import cast

from batchpredict.data.records import FormatModule


@dataclass(frozen=True)
class Format:
    """A format by name. `suffixes`: file name endings, the first is given to outputs.

    `family`: the module of this package that reads and writes it, imported when it is asked for.
    `is_text`: compression may be wrapped around it. `is_sequential`: read from begin to end, once.
    `delimiter`, `json_array`: see Dialect.
    """

    suffixes: tuple[str, ...]
    family: str
    is_text: bool = True
    is_sequential: bool = True
    delimiter: str = ","
    json_array: bool = False

    @property
    def module(self) -> FormatModule:
        return cast(FormatModule, import_module(f"batchpredict.data.{self.family}"))


FORMATS: dict[str, Format] = {
    "csv": Format((".csv",), "csv"),
    "tsv": Format((".tsv", ".tab"), "csv", delimiter="\t"),
    "jsonl": Format((".jsonl", ".ndjson"), "json"),
    "json": Format((".json",), "json", json_array=True),
    "avro": Format((".avro",), "avro", is_text=False),
    "parquet": Format((".parquet", ".pq"), "parquet", is_text=False, is_sequential=False),
}
