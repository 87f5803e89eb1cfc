"""Load a model; open a task: everything that can be checked before the first row is scored."""

from __future__ import annotations

import difflib
import json
import logging
import math
from dataclasses import dataclass

import pyarrow as pa

from batchpredict.data import conversion
from batchpredict.data.encoding import normal_encoding
from batchpredict.data.formats import FORMATS
from batchpredict.data.locations import LocalSource
from batchpredict.data.naming import Task
from batchpredict.data.records import Carry, Dialect, Layout, Reader, Selection
from batchpredict.errors import BatchPredictError, ConfigInvalid, InputInvalid, UsageError
from batchpredict.job import TABULAR_BATCH_ROWS, TEXT_BATCH_ROWS, Job, effective_cores
from batchpredict.model.manifest import Golden
from batchpredict.model.outputs import HeadOptions
from batchpredict.model.package import ModelPackage, read_package
from batchpredict.model.session import Session, open_session
from batchpredict.run.scorer import Binding, Scorer, Tuning

logger = logging.getLogger(__name__)

# Golden scores are written with six decimals and may come from another kind of CPU.
_GOLDEN_TOLERANCE = 1e-4


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, shared by all inputs of a job. `workers`: callers side by side."""

    package: ModelPackage
    session: Session
    options: HeadOptions
    tuning: Tuning
    workers: int

    def scorer(self, binding: Binding) -> Scorer:
        """A Scorer for one input's columns. Raises BatchPredictError where they do not fit."""
        return Scorer(self.package, binding, self.options, self.tuning, self.session)


@dataclass(frozen=True)
class Opened:
    """A task ready to run. `remarks`: said once before the first row."""

    source: LocalSource
    reader: Reader
    scorer: Scorer
    selection: Selection
    layout: Layout
    remarks: tuple[str, ...]


def load_model(job: Job) -> LoadedModel:
    """Read, load and check a model with its golden rows. Raises Unavailable, ConfigInvalid."""
    package = read_package(job.model)
    session = open_session(package)
    rows = job.batch_rows or (TEXT_BATCH_ROWS if _reads_text(session) else TABULAR_BATCH_ROWS)
    model = LoadedModel(
        package,
        session,
        HeadOptions(job.scores, job.threshold, job.outputs, job.prefix),
        Tuning(rows, job.batch_tokens),
        job.workers or effective_cores(),
    )
    _check_golden(model)
    return model


def _reads_text(session: Session) -> bool:
    """Whether a row costs megabytes rather than bytes in the graph.

    Token ids do; so does a lone string: a TF-IDF graph holds a dense count per n-gram and row.
    """
    names = [tensor.name for tensor in session.inputs]
    return "input_ids" in names or [t.dtype for t in session.inputs] == ["string"]


def _check_golden(model: LoadedModel) -> None:
    """Score the manifest's golden rows as any others and compare."""
    golden = model.package.manifest.golden
    if not golden:
        return
    names = {name: None for entry in golden for name in entry.row}
    names |= {tensor.name: None for tensor in model.session.inputs}
    json_type = pa.json_(pa.string())
    columns = pa.RecordBatch.from_pydict(
        {
            name: pa.ExtensionArray.from_storage(
                json_type,
                pa.array(
                    [json.dumps(e.row[name]) if name in e.row else None for e in golden],
                    pa.string(),
                ),
            )
            for name in names
        }
    )
    options = HeadOptions("top", None, (), "")
    offered = pa.schema([(name, pa.string()) for name in names])
    scorer = Scorer(model.package, Binding(offered), options, model.tuning, model.session)
    scored = scorer.score(columns)
    if scored.faults:
        fault = scored.faults[0]
        raise _golden_error(model, fault.index, fault.message)
    for number, (entry, found) in enumerate(zip(golden, scored.added.to_pylist(), strict=True)):
        wrong = _golden_difference(entry, found)
        if wrong:
            raise _golden_error(model, number, wrong)


def _golden_difference(golden: Golden, found: dict[str, object]) -> str | None:
    for name, expected in (("prediction", golden.prediction), ("score", golden.score)):
        value = found.get(name)
        if expected is None:
            continue
        if not _agree(value, expected):
            return f"{name} is {value!r} instead of {expected!r}"
    return None


def _agree(found: object, expected: object) -> bool:
    """Numbers within the tolerance, texts equal; lists of labels or numbers one by one."""
    if isinstance(expected, tuple):
        return (
            isinstance(found, list)
            and len(found) == len(expected)
            and all(map(_agree, found, expected))
        )
    if isinstance(expected, float | int) and isinstance(found, float | int):
        return math.isclose(found, expected, rel_tol=_GOLDEN_TOLERANCE, abs_tol=_GOLDEN_TOLERANCE)
    return found == expected


def _golden_error(model: LoadedModel, index: int, message: str) -> ConfigInvalid:
    return ConfigInvalid(
        f"{model.package.directory}/batchpredict.toml: golden row {index + 1}: {message}; the "
        "model or this machine's runtime is not what the row was made with"
    )


def open_task(task: Task, job: Job, model: LoadedModel) -> Opened:
    """Open the input, bind its columns, decide how rows travel. Raises BatchPredictError."""
    source = LocalSource(task.input)
    try:
        return _open(source, task, job, model)
    except BaseException:
        source.close()
        raise


def _open(source: LocalSource, task: Task, job: Job, model: LoadedModel) -> Opened:
    dialect = _dialect(task.input_format, job)
    same = _same_family(task)
    survey = not same and job.keep == "all"
    reader = FORMATS[task.input_format].module.open_reader(source, dialect, survey)
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
    spelled = reader.dialect if as_input else _dialect(task.output_format, job)
    layout = Layout(carry, pa.schema(fields), added, reader if same else None, spelled)
    losses = conversion.losses(layout.kept, task.output_format) if carry == "value" else []
    return Opened(source, reader, scorer, selection, layout, (*reader.notes, *losses))


def _field(reader: Reader, name: str) -> pa.Field:
    index = reader.schema.get_field_index(name)
    return reader.schema.field(index) if index >= 0 else pa.field(name, pa.string())


def _dialect(name: str, job: Job) -> Dialect:
    entry = FORMATS[name]
    delimiter = entry.delimiter if job.delimiter is None else job.delimiter
    return Dialect(
        delimiter,
        normal_encoding(job.encoding),
        not job.no_header,
        entry.json_array,
        job.max_record_bytes,
    )


def _same_family(task: Task) -> bool:
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
