"""Drives a reader as the product does, and judges what it delivers."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa

from batchpredict.data import (
    avro,
    conversion,
    csv_blocks,
    csv_reader,
    encoding,
    jsonreader,
    jsontext,
    parquet,
    sources,
)
from batchpredict.data.formats import FORMATS
from batchpredict.data.records import Carry, Dialect, Layout, Reader, Records, Selection
from batchpredict.data.sources import source_of
from batchpredict.run.rejects import reject_line
from tests.fuzz.harness import unprintable
from tests.fuzz.inputs import chance

_ADDED = pa.schema([("prediction", pa.string()), ("score", pa.float32())])
_CODES = {"malformed_row", "invalid_utf8", "too_large", "bad_type"}
# Sizes at which readers cut their input: small ones let small cases meet every border.
_BLOCK_SIZES = {
    csv_blocks: ("BLOCK_BYTES",),
    csv_reader: ("BLOCK_BYTES",),
    encoding: ("_CHUNK",),
    jsontext: ("BLOCK_BYTES", "CUT_BYTES"),
    avro: ("BLOCK_BYTES", "_MOST_ROWS"),
    parquet: ("BLOCK_BYTES", "_MOST_BLOCK_BYTES", "_MOST_BLOCK_ROWS"),
}


# Threads for each case would take most of the time.
_CORES = (1, 1, 1, 1, 1, 1, 1, 2)


@dataclass(frozen=True)
class Input:
    """A file and how it shall be read. `choices`: seed of what is chosen on the way.

    `pieces`: into how many readers shall cut it, about; 0 for blocks of their own size.
    """

    format: str
    data: bytes = field(repr=False)
    dialect: Dialect = field(default_factory=Dialect)
    suffix: str = ""
    survey: bool = False
    pieces: int = 0
    choices: int = 0


class Broken(AssertionError):
    """A reader breaks what records.py promises."""


def read(case: Input, directory: Path) -> int:
    """Read it to its end; the number of rows. Raises BatchPredictError, Broken, and any bug."""
    rng = random.Random(case.choices)
    name = FORMATS[case.format].suffixes[0]
    path = directory / f"in{name}{case.suffix}"
    path.write_bytes(case.data)
    source = source_of(str(path))
    with _changed(1 + len(case.data) // case.pieces if case.pieces else 0, rng.choice(_CORES)):
        try:
            reader = FORMATS[case.format].module.open_reader(source, case.dialect, case.survey)
            selection = _selection(rng, reader)
            rows = 0
            with _Writing(rng, case, reader, selection) as writing:
                for records in reader.records(selection):
                    rows = _judged(records, rows, selection, reader)
                    writing.write(records)
            source.finish()
        finally:
            source.close()
    return rows


@contextmanager
def _changed(size: int, cores: int) -> Iterator[None]:
    changed: list[tuple[Any, str, Any]] = [
        (sources, "_READ_BYTES", 1 << 16),
        (jsonreader, "effective_cores", lambda: cores),
    ]
    if size:
        changed += [
            (module, name, size) for module, names in _BLOCK_SIZES.items() for name in names
        ]
    before = [getattr(module, name) for module, name, _ in changed]
    for module, name, value in changed:
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name, _), value in zip(changed, before, strict=True):
            setattr(module, name, value)


def _selection(rng: random.Random, reader: Reader) -> Selection:
    names = list(reader.schema.names)[:50]
    if not reader.complete:
        names += [n for n in ("a", "x", "no such member") if n not in names]
    carry: Carry = rng.choice(("record", "cell", "value"))
    model = rng.sample(names, rng.randint(0, min(3, len(names))))
    kept = rng.sample(names, rng.randint(0, len(names)))
    if chance(rng, 0.5):
        kept = list(reader.schema.names)[:200]
    reserved = tuple(_ADDED.names) if chance(rng, 0.5) else ()
    return Selection(tuple(model), () if carry == "record" else tuple(kept), carry, reserved)


def _judged(records: Records, before: int, selection: Selection, reader: Reader) -> int:
    """The number of rows with these. Raises Broken."""
    count = len(records)
    numbers = sorted([*records.rows.tolist(), *(reject.row for reject in records.rejects)])
    _require(numbers == list(range(before + 1, before + 1 + len(numbers))), "rows are numbered")
    _require(bool((np.diff(records.rows) > 0).all()), "rows are in order")
    for part in (records.columns, records.kept):
        _require(part.num_rows == count, "every column has every row")
        for column in part.columns:
            _validate(column, as_stored=part is records.kept and selection.carry == "cell")
    _require(len(records.raw) == count, "every row is raw")
    _validate(records.raw, as_stored=True)
    _require(records.columns.schema.names == list(selection.model), "the model's columns")
    _require(records.kept.schema.names == list(selection.kept), "the kept columns")
    _require(len(records.weight) == count and records.weight.dtype == np.int64, "weights are int64")
    _require(bool((records.weight >= 0).all()), "no weight is negative")
    for places in (records.lines, records.offsets):
        if places is not None:
            _require(len(places) == count and bool((np.diff(places) >= 0).all()), "places ascend")
    for index in {0, count // 2, count - 1} if count else ():
        json.dumps(_jsonable(reader.original(records.raw, index)))
    for reject in records.rejects:
        _require(reject.code in _CODES, f"code {reject.code}")
        _require(not unprintable(reject.message), f"message {reject.message[:200]!a}")
        reject_line("file", reject)
    return before + len(numbers)


def _validate(array: pa.Array, as_stored: bool) -> None:
    """`as_stored`: nobody looks into it before it is written as it came."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid as error:
        # A time that no clock shows, or too long a decimal, is kept as the number that it is.
        harmless = [
            "within the acceptable range",
            "does not fit in precision",
            *(["Invalid UTF8"] if as_stored else []),
        ]
        if not any(words in str(error) for words in harmless):
            raise


def _jsonable(record: Any) -> Any:
    return record.decode("utf-8", "replace") if isinstance(record, bytes) else record


def _require(holds: bool, law: str) -> None:
    if not holds:
        raise Broken(law)


class _Writing:
    """Writes what was read, as a run would: what travels to a writer must be fit for it."""

    def __init__(
        self, rng: random.Random, case: Input, reader: Reader, selection: Selection
    ) -> None:
        self._writer = None
        if chance(rng, 0.7):
            return
        names = reader.schema.names if selection.carry == "record" else selection.kept
        if not set(_ADDED.names).isdisjoint(names):  # the product refuses it
            return
        same = selection.carry != "value"
        target = case.format if same else rng.choice(list(FORMATS))
        kept = pa.schema([_field(reader, name) for name in selection.kept])
        if not same:
            conversion.losses(kept, target)
        spelled = Dialect(FORMATS[target].delimiter, json_array=FORMATS[target].json_array)
        dialect = reader.dialect if same else spelled
        layout = Layout(selection.carry, kept, _ADDED, reader if same else None, dialect)
        self._writer = FORMATS[target].module.open_writer(cast(Any, io.BytesIO()), layout)

    def __enter__(self) -> _Writing:
        return self

    def write(self, records: Records) -> None:
        if self._writer and len(records):
            count = len(records)
            added = [pa.array(["a"] * count), pa.array([0.5] * count, pa.float32())]
            self._writer.write(records, pa.RecordBatch.from_arrays(added, schema=_ADDED))

    def __exit__(self, kind: object, *rest: object) -> None:
        if self._writer and kind is None:
            self._writer.close()


def _field(reader: Reader, name: str) -> pa.Field:
    index = reader.schema.get_field_index(name)
    return reader.schema.field(index) if index >= 0 else pa.field(name, pa.string())
