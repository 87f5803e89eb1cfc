"""Open a task: everything that can be checked of an input before its first row is scored."""

from __future__ import annotations

import difflib
import logging
from contextlib import closing
from dataclasses import dataclass

import pyarrow as pa

from batchpredict.data import conversion
from batchpredict.data.encoding import normal_encoding
from batchpredict.data.formats import FORMATS
from batchpredict.data.naming import Task
from batchpredict.data.records import Carry, Dialect, Layout, Reader, Records, Selection
from batchpredict.data.sources import InputSource, source_of
from batchpredict.errors import BatchPredictError, InputInvalid, UsageError
from batchpredict.job import Job
from batchpredict.run.loading import LoadedModel
from batchpredict.run.scorer import Binding, Scorer
from batchpredict.run.windows import windows

logger = logging.getLogger(__name__)

# Of input, at most, that `first_rows` reads.
_FIRST_BYTES = 64 << 20


@dataclass(frozen=True)
class Opened:
    """A task ready to run. `remarks`: said once before the first row. `columns`: those on offer,
    where it took a pass over the input to know them.
    """

    source: InputSource
    reader: Reader
    scorer: Scorer
    selection: Selection
    layout: Layout
    remarks: tuple[str, ...]
    columns: tuple[str, ...] | None = None


def open_task(
    task: Task, job: Job, model: LoadedModel, source: InputSource | None = None
) -> Opened:
    """Open the input, bind its columns, decide how rows travel. Raises BatchPredictError.

    `source`: the input, if the caller has it already.
    """
    source = source or source_of(task.input)
    try:
        return _open(source, task, job, model)
    except BaseException:
        source.close()
        raise


def first_rows(task: Task, job: Job, model: LoadedModel, rows: int) -> pa.RecordBatch:
    """What the model reads of the first `rows` rows that can be read. Raises BatchPredictError."""
    first = first_records(task, job, model, rows)
    return pa.record_batch({}) if first is None else first.columns


def first_records(task: Task, job: Job, model: LoadedModel, rows: int) -> Records | None:
    """The first `rows` rows, unreadable ones counted; None where there are none."""
    opened = open_task(task, job, model)
    with closing(opened.source):
        blocks = opened.reader.records(opened.selection)
        return next(windows(blocks, rows, _FIRST_BYTES, None), None)


def _open(source: InputSource, task: Task, job: Job, model: LoadedModel) -> Opened:
    dialect = dialect_of(task.input_format, job)
    same = same_family(task)
    survey = not same and job.keep == "all"
    module = FORMATS[task.input_format].module
    reader = module.open_reader(source, dialect, task.columns or survey)
    binding = Binding(reader.schema, reader.complete, dict(job.column))
    try:
        scorer = model.scorer(binding)
    except InputInvalid as error:
        if reader.notes:  # a wrong delimiter is the likelier cause than a missing column
            raise InputInvalid(f"{task.input}: {error}; {reader.notes[0]}") from error
        raise InputInvalid(f"{task.input}: {error}") from error
    kept = _kept(job, reader, same, task)
    added = scorer.head.schema
    _check_clash(task.input, added, reader.schema.names if job.keep == "all" else kept)
    carry: Carry = "value" if not same else "record" if job.keep == "all" else "cell"
    fields = [_field(reader, name) for name in kept]
    columns = tuple(dict.fromkeys(scorer.encoder.columns))
    selection = Selection(columns, tuple(kept), carry, tuple(added.names))
    as_input = task.output_format == task.input_format
    spelled = reader.dialect if as_input else dialect_of(task.output_format, job)
    layout = Layout(carry, pa.schema(fields), added, reader if same else None, spelled)
    losses = conversion.losses(layout.kept, task.output_format) if carry == "value" else []
    remarks = (*reader.notes, *losses)
    surveyed = tuple(reader.schema.names) if survey and reader.complete else None
    return Opened(source, reader, scorer, selection, layout, remarks, surveyed)


def _field(reader: Reader, name: str) -> pa.Field:
    index = reader.schema.get_field_index(name)
    return reader.schema.field(index) if index >= 0 else pa.field(name, pa.string())


def dialect_of(name: str, job: Job) -> Dialect:
    """How a file of format `name` is spelled, by the job's options."""
    entry = FORMATS[name]
    delimiter = entry.delimiter if job.delimiter is None else job.delimiter
    return Dialect(
        delimiter,
        normal_encoding(job.encoding),
        not job.no_header,
        entry.json_array,
        job.max_record_bytes,
        job.shard_bytes,
    )


def same_family(task: Task) -> bool:
    """Whether records can be carried over as they are (JSON Lines and JSON arrays are one)."""
    one, other = FORMATS[task.input_format], FORMATS[task.output_format]
    return one.module is other.module and one.delimiter == other.delimiter


def _kept(job: Job, reader: Reader, same: bool, task: Task) -> list[str]:
    """The columns the reader shall deliver for the writer; none where records travel whole."""
    if job.keep == "none" or (job.keep == "all" and same):
        return []
    if job.keep == "all":
        return list(reader.schema.names)
    for name in job.keep:
        if name in reader.schema.names:
            continue
        near = difflib.get_close_matches(name, reader.schema.names, 1)
        columns = ", ".join(reader.schema.names)
        advice = f"did you mean {near[0]!r}?" if near else f"it has: {columns}"
        if reader.complete:
            raise UsageError(f"--keep: {task.input} has no column {name!r}; {advice}")
        logger.warning("--keep: no column %r in the first rows of %s; %s", name, task.input, advice)
    return list(job.keep)


def _check_clash(file: str, added: pa.Schema, names: list[str]) -> None:
    for name in added.names:
        if name in names:
            raise UsageError(
                f"{file}: has a column {name!r} already; pass --prefix (for example "
                "--prefix=model_) to name the added columns otherwise"
            )
    if len(set(added.names)) != len(added.names):
        raise BatchPredictError(f"two added columns have one name: {', '.join(added.names)}")
