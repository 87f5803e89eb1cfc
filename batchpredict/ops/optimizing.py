"""`models optimize`: a variant of a model, compared with it before it is written."""

from __future__ import annotations

import importlib.metadata
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from batchpredict import __version__
from batchpredict.data.naming import Task, tasks_of
from batchpredict.data.records import Records
from batchpredict.errors import BatchPredictError, ConfigInvalid, InputInvalid, UsageError
from batchpredict.job import Job
from batchpredict.model.graph_file import read_graph_file
from batchpredict.model.manifest import MadeFrom
from batchpredict.model.package import ModelPackage
from batchpredict.model.session import open_session, runtime_version
from batchpredict.model.variants import Made, check_variant, make_variant, nothing_to_quantise
from batchpredict.ops.agreement import Changed, changed_rows
from batchpredict.ops.candidates import Candidate, candidate, first_sound, measured
from batchpredict.ops.differences import difference, matched
from batchpredict.ops.variant_directory import (
    GRAPH,
    Draft,
    copy_companions,
    draft_of,
    write_manifest,
)
from batchpredict.run.fetching import Fetched
from batchpredict.run.loading import LoadedModel, load_model
from batchpredict.run.opening import first_records

# After which the speeds are not measured once more.
_SECONDS = 60.0
_LOADS = 3
_ADVICE = {
    "quantised": "give the model it was made from",
    "nothing": "--precision=model may make it load faster",
}


@dataclass(frozen=True)
class Request:
    """What to make. `precision`: a key of variants.STEPS. `rows`: of the sample, from its start."""

    precision: str
    target: str
    min_agreement: float
    rows: int


@dataclass(frozen=True)
class Side:
    """The model, or the variant: bytes of its graph and weights, nodes, seconds to load, speed."""

    name: str
    bytes: int
    nodes: int
    load_seconds: float
    rows_per_second: float
    rows_per_cpu_second: float


@dataclass(frozen=True)
class Report:
    """`rows`: of the sample that the model scored, equal ones once. `trained`: nodes that trained,
    now set to inference. `written`: the new directory; None where agreement was too small.
    """

    sample: str
    precision: str
    rows: int
    sides: tuple[Side, Side]
    agreement: float
    min_agreement: float
    largest_difference: float | None
    mean_difference: float | None
    changed: tuple[Changed, ...]
    trained: int
    target: str
    written: bool


def optimize(job: Job, request: Request) -> Report:
    """Make the variant and write it, if it agrees with the job's model on the job's input.

    Raises BatchPredictError: OutputNotCreatable where the target exists, ConfigInvalid where the
    model has no such variant, or one that breaks its golden rows.
    """
    (task, *more), _ = tasks_of(job)
    if more:
        raise UsageError(f"{job.input_file[0]}: means {len(more) + 1} files; name one of them")
    target = Path(request.target).absolute()
    with draft_of(target) as draft:
        own = load_model(job)
        with own.fetched:
            return _optimize(task, job, request, own, draft)


def _optimize(task: Task, job: Job, request: Request, own: LoadedModel, draft: Draft) -> Report:
    package, precision = own.package, request.precision
    advice = _ADVICE["quantised" if package.graph_file.quantised else "nothing"]
    check_variant(package, precision, advice)
    records = _sample(task, job, own, request.rows)
    graph = draft.path / GRAPH
    made = make_variant(package, precision, draft.work, graph, draft.descriptor)
    copy_companions(package, draft.path)
    origin = _origin(own.fetched, precision)
    write_manifest(package, draft.path, origin)
    variant = _variant(job, draft, package, made, precision)
    report = _compared(job, request, (own, variant), records, made)
    if report.agreement < request.min_agreement:
        return report
    write_manifest(package, draft.path, _agreed(origin, report))
    draft.publish()
    return replace(report, written=True)


def _sample(task: Task, job: Job, model: LoadedModel, rows: int) -> Records:
    records = first_records(task, job, model, rows)
    if records is None or not len(records):
        raise InputInvalid(f"{task.input}: has no row to compare the variant on")
    return records


def _origin(fetched: Fetched, precision: str) -> MadeFrom:
    before = fetched.package.manifest.made_from
    if precision == "model" and before is not None:  # weights that were quantised stay so
        precision = before.precision
    return MadeFrom(
        name=fetched.name.encode(errors="replace").decode(),
        version=fetched.version,
        digest=fetched.package.digest,
        precision=precision,
        batchpredict=__version__,
        onnxruntime=runtime_version(),
        onnx=importlib.metadata.version("onnx"),
    )


def _agreed(origin: MadeFrom, report: Report) -> MadeFrom:
    return replace(
        origin,
        rows=report.rows,
        agreement=report.agreement,
        largest_difference=report.largest_difference,
    )


def _variant(
    job: Job, draft: Draft, package: ModelPackage, made: Made, precision: str
) -> LoadedModel:
    """The draft as any other model directory, its golden rows checked."""
    found = read_graph_file(draft.path / GRAPH)
    if precision != "model" and not found.quantised:
        raise nothing_to_quantise(package, precision, _ADVICE["nothing"])
    same = found.operators == package.graph_file.operators
    if precision == "model" and same and made.nodes_after >= made.nodes_before and not made.trained:
        raise ConfigInvalid(
            f"{package.graph_path}: --precision=model: nothing to fold, fuse or leave out; the"
            " variant would be the model as it is"
        )
    try:
        return load_model(replace(job, model=str(draft.path)))
    except ConfigInvalid as error:
        said = str(error).replace(str(draft.path), str(draft.target))
        raise BatchPredictError(f"the {precision} variant cannot be used: {said}") from error


def _compared(
    job: Job,
    request: Request,
    models: tuple[LoadedModel, LoadedModel],
    records: Records,
    made: Made,
) -> Report:
    own, variant = models
    base = candidate("model", own, job, records.columns)
    entry = candidate(request.precision, variant, job, records.columns)
    _check_meaning(base, entry)
    if request.precision == "model":
        entry.name = "folded"
    sides = _sides((base, entry), models, made, len(records))
    rows = int(base.decoded.finite.sum())
    if not rows:
        raise InputInvalid(f"{job.input_file[0]}: the model gives no row a finite score")
    changed = changed_rows(entry, base)
    apart = difference(matched(entry, base))
    return Report(
        sample=job.input_file[0],
        precision=request.precision,
        rows=rows,
        sides=sides,
        agreement=(rows - len(changed)) / rows,
        min_agreement=request.min_agreement,
        largest_difference=apart.largest,
        mean_difference=apart.mean,
        changed=tuple(replace(one, row=int(records.rows[one.row])) for one in changed),
        trained=made.trained,
        target=request.target,
        written=False,
    )


def _sides(
    running: tuple[Candidate, Candidate],
    models: tuple[LoadedModel, LoadedModel],
    made: Made,
    rows: int,
) -> tuple[Side, Side]:
    """The candidates have scored all rows then."""
    for one in running:
        one.pass_over(first_sound(one) + 1)
    speeds = measured(list(running), rows, _SECONDS)
    loads = _load_seconds(models)
    base, entry = (
        Side(one.name, _bytes(model), nodes, load, *speeds[one.name])
        for one, model, nodes, load in zip(
            running, models, (made.nodes_before, made.nodes_after), loads, strict=True
        )
    )
    return base, entry


def _check_meaning(base: Candidate, entry: Candidate) -> None:
    """What an output means is told by the nodes that make it, which the variant has changed."""
    one, other = base.scorer.head, entry.scorer.head
    facts = [
        (h.decoder, h.activation, h.score_is_probability, h.classes, h.schema) for h in (one, other)
    ]
    if facts[0] != facts[1]:
        raise BatchPredictError(
            "the variant's outputs would be read in another way than the model's"
            f" ({one.task}, {one.activation}; {other.task}, {other.activation}); set `task`,"
            " `activation` and `labels` in batchpredict.toml"
        )


def _load_seconds(models: tuple[LoadedModel, LoadedModel]) -> list[float]:
    """Medians, loaded turn by turn."""
    spent: list[list[float]] = [[], []]
    for _ in range(_LOADS):
        for model, seconds in zip(models, spent, strict=True):
            start = time.perf_counter()
            open_session(model.package)
            seconds.append(time.perf_counter() - start)
    return [median(seconds) for seconds in spent]


def _bytes(model: LoadedModel) -> int:
    package = model.package
    folder = Path(package.graph).parent
    names = {(folder / location).as_posix() for location in package.graph_file.external}
    return sum(size for name, size, _ in package.files if name in {package.graph, *names})
