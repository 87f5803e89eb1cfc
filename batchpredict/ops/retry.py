"""Score rejected rows again, mended or not, and put them into the output they were left out of.

A retry of unmended rows gives the output and rejects there were, to the byte, and one of mended
rows those that a run over an input mended likewise would give, but for:
- text formats, where an input has more than one kind of line end, or its last record has none and
  the input is gone or was changed: mended records end as the first line does.
- JSON, where a record's text was replaced by an object: its numbers are spelled anew.
- JSON as another format, whose columns are those of the first run, in its order. A column that is
  new in a mended record is an error.
- Avro, where a union has two branches that hold a mended value: the first is taken.
- Inputs of more than one shard: Parquet's row groups, Avro's blocks and compressed members, which
  end where a shard does, are cut again as for one shard. The rows are the same.
- Parquet, where row groups end by size (64 MiB) rather than by rows: they may end elsewhere. Of
  columns of maps that came from another format, the note on Arrow's schema is spelled otherwise.
- int8 and bf16, whose scores depend on the rows they run with.
Rows left out with --skip_rows are left out again.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from batchpredict import __version__
from batchpredict.counting import count
from batchpredict.data.formats import FORMATS
from batchpredict.data.locations import compression_of, identity, is_stream
from batchpredict.data.naming import Task, format_of
from batchpredict.data.outputs import check_buckets, check_creatable
from batchpredict.data.sources import InputSource, source_of
from batchpredict.errors import (
    ConfigInvalid,
    InputMissing,
    OutputNotCreatable,
    TryAgain,
    UsageError,
)
from batchpredict.job import Job
from batchpredict.model.session import runtime_version
from batchpredict.ops.former import Former, read_former
from batchpredict.ops.recovery import Keeping
from batchpredict.ops.rejected import find_rejected
from batchpredict.ops.rescoring import Retry, Watch, rehearse, write_merged
from batchpredict.run.current import one_run
from batchpredict.run.fetching import Fetched, Pinned, fetch
from batchpredict.run.loading import LoadedModel, load_model
from batchpredict.run.pipeline import StageTimes
from batchpredict.run.publication import Publication
from batchpredict.run.receipt import Receipt, Retried
from batchpredict.run.resuming import locked

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What to retry. `input_file`, `output_file`, `model`: None where they are as they were.
    `lock_wait`: seconds.
    """

    receipt: str
    input_file: str | None = None
    output_file: str | None = None
    model: str | None = None
    lock_wait: float = 0.0
    dry_run: bool = False


@one_run()
def retry(request: Request, watch: Watch) -> Receipt | None:
    """Retry the rejects of one input; None where nothing was to be published.

    `watch` is told after each window that is scored and each block that is written. Raises
    BatchPredictError.
    """
    with ExitStack() as stack:
        former, task, job = stack.enter_context(_locked(request))
        in_place = former.task == task
        keeping = Keeping(task)
        former, kept = keeping.recover(former) if in_place else (former, None)
        output = stack.enter_context(closing(former.open_output()))
        if not former.codes:
            logger.info("nothing to do: %s tells of no rejected rows", former.receipt)
            return None
        mended = _rejects(former, request, kept)
        rejected = find_rejected(former, mended)
        pinned = _pinned(former) if job.model == former.job.model else None
        model = _load(former, job, stack.enter_context(fetch(job, pinned)))
        directory = stack.enter_context(_own_directory())
        source = former.open_input()
        work = Retry(former, task, job, rejected, output, source, model, directory)
        if request.dry_run:
            rehearse(work)
            return None
        if not in_place:
            return _publish(work, watch, None)
        with keeping.keep(mended):
            return _publish(work, watch, keeping)


@contextmanager
def _locked(request: Request) -> Iterator[tuple[Former, Task, Job]]:
    """The run, and what is written now, while nobody else writes either output."""

    def read() -> tuple[Former, Task, Job]:
        former = read_former(request.receipt)
        return former, *_target(former, request)

    former, task, job = read()
    outputs = {identity(t.output): t for t in (former.task, task)}
    with locked(tuple(outputs.values()), job):
        # Whoever had the lock may have written another receipt.
        former, task, job = read()
        if not {identity(t.output) for t in (former.task, task)} <= outputs.keys():
            raise TryAgain(f"{request.receipt}: was replaced meanwhile; try again")
        yield former, task, job


def _rejects(former: Former, request: Request, kept: Path | None) -> InputSource:
    """The file to read the rows from."""
    if request.input_file:
        name = os.path.expanduser(request.input_file)  # noqa: PTH111
    else:
        name = str(kept or former.task.rejects)
        if not Path(name).exists():
            raise InputMissing(f"{name}: is not there; name the mended rows with --input_file")
    source = source_of(name)
    if not source.rereadable:
        raise UsageError(f"{name}: is no file that can be read twice; save it to one")
    return source


@contextmanager
def _own_directory() -> Iterator[Path]:
    """A directory for what nobody else shall see, while it is needed."""
    try:
        made = tempfile.TemporaryDirectory(prefix="batchpredict-")
    except OSError as error:
        raise OutputNotCreatable(
            f"no temporary directory can be made: {(error.strerror or str(error)).lower()}; name "
            "another with TMPDIR"
        ) from error
    with made as name:
        yield Path(name)


def _target(former: Former, request: Request) -> tuple[Task, Job]:
    """What is written, and the job that has these options."""
    task = former.task
    job = former.job
    if request.output_file:
        task = _other_task(former, os.path.expanduser(request.output_file))  # noqa: PTH111
        job = replace(job, rejects_file=None, receipt_file=None)
    read = [identity(name) for name in (former.task.input, request.input_file) if name]
    for name in (task.output, task.receipt):
        if identity(name or "") in read:
            raise UsageError(f"{name}: would overwrite an input; choose another --output_file")
    check_creatable(task.output, None, "--output_file")
    check_buckets([task.output])
    job = replace(
        job,
        input_file=(task.input,),
        output_file=task.output,
        output_dir=None,
        input_format=task.input_format,
        output_format=task.output_format,
        lock_wait=request.lock_wait,
        model=os.path.expanduser(request.model or job.model),  # noqa: PTH111
    )
    return task, job


def _other_task(former: Former, name: str) -> Task:
    form = former.task.output_format
    if is_stream(name):
        raise UsageError(f"--output_file={name}: rows can be put into a file only")
    if format_of(name) not in (None, form):
        raise UsageError(f"--output_file={name}: the output stays {form}; name it accordingly")
    if compression_of(name) and not FORMATS[form].is_text:
        raise UsageError(f"{name}: {form} is compressed inside; drop the last suffix")
    if identity(name) == identity(former.task.output):
        return former.task
    return replace(
        former.task,
        output=name,
        rejects=f"{name}.rejects.jsonl",
        receipt=f"{name}.receipt.json",
    )


def _load(former: Former, job: Job, fetched: Fetched) -> LoadedModel:
    """The model of the former run. Raises ConfigInvalid where it is another one."""
    digest, was = fetched.package.digest, former.model["sha256"]
    if digest != was:
        raise ConfigInvalid(
            f"--model={job.model}: its digest is {digest}, that of the model in {former.receipt} "
            f"is {was}; name that model with --model, or run predict again"
        )
    model = load_model(job, fetched, parquet=former.task.output_format == "parquet")
    for what, now in (("version", __version__), ("onnxruntime", runtime_version())):
        if former.tool[what] != now:
            name = "batchpredict" if what == "version" else what
            logger.info("scored with %s %s, retried with %s", name, former.tool[what], now)
    return model


def _pinned(former: Former) -> Pinned | None:
    """The version of a store that the former run used; an alias may name another one by now."""
    said = [former.model.get(name) for name in ("name", "version", "manifest_sha256")]
    if not all(isinstance(text, str) for text in said):
        return None
    name, version, sha256 = map(str, said)
    return Pinned(name, version, former.model.get("alias"), sha256)


def _publish(work: Retry, watch: Watch, keeping: Keeping | None) -> Receipt:
    former, times = work.former, StageTimes()
    with Publication(work.task, work.job, work.model, times) as publication:
        if keeping is not None:
            publication.announce = keeping.announce
        publication.retried = Retried(former.run_id, len(work.rejected.numbers))
        # Of nearly all rows; without it a warning would be gone that nobody has looked into.
        publication.drift = former.drift
        try:
            counts = write_merged(work, publication, watch, times)
            return publication.publish(replace(former.input, path=work.task.input), counts)
        except BaseException as error:
            publication.fail(error, former.counts)
            raise


def report(receipt: Receipt) -> list[str]:
    """What a retry did, a line each."""
    assert receipt.retried is not None
    assert receipt.output is not None
    left = sum(receipt.rejects.codes.values())
    tried = receipt.retried.rows
    lines = [
        f"{receipt.inputs[0].path}: {count(tried, 'row')} tried again, {tried - left:,} scored; "
        f"{receipt.counts.scored:,} of {receipt.counts.read:,} are",
        f"output: {receipt.output.path}",
    ]
    return [*lines, f"rejects: {receipt.rejects.path}"] if receipt.rejects.path else lines


def remainder(receipt: Receipt) -> str:
    """The rows that are rejected still."""
    codes = receipt.rejects.codes
    told = ", ".join(f"{code} {rows}" for code, rows in codes.items())
    left = count(sum(codes.values()), "row")
    return f"{receipt.inputs[0].path}: {left} could still not be scored ({told})"
