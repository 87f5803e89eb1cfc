"""Load a model and check it with its golden rows."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa

from batchpredict import __version__, s3
from batchpredict.cgroup import effective_cores
from batchpredict.errors import ConfigInvalid
from batchpredict.job import Job
from batchpredict.model.manifest import Golden
from batchpredict.model.outputs import HeadOptions
from batchpredict.model.package import ModelPackage
from batchpredict.model.session import Session, open_session, runtime_version
from batchpredict.run.fetching import Fetched, fetch
from batchpredict.run.planning import Plan, plan_of
from batchpredict.run.room import room_of
from batchpredict.run.scorer import Binding, Scorer
from batchpredict.run.tuned import stored_tuning
from batchpredict.signals import check_signals, deferred

# Golden scores are written with six decimals and may come from another kind of CPU; other
# precisions move a probability by as much as the largest difference measured on real models.
_GOLDEN_TOLERANCE = {"model": 1e-4, "bf16": 0.05, "int8": 0.3, "int4": 0.3}


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory and the plan it runs by, shared by all inputs of a job."""

    fetched: Fetched
    session: Session
    options: HeadOptions
    plan: Plan

    @property
    def package(self) -> ModelPackage:
        return self.fetched.package

    @property
    def tool(self) -> dict[str, str]:
        """What it runs on, as a receipt has it."""
        more = []
        if self.package.tokenizer:
            more.append("tokenizers")
        if "OpenVINO" in self.session.provider:
            more.append("onnxruntime-ep-openvino")
        return {
            "version": __version__,
            "onnxruntime": runtime_version(),
            "provider": self.session.provider,
            "precision": self.session.precision,
        } | {name: version(name) for name in more}

    def scorer(self, binding: Binding) -> Scorer:
        """A Scorer for one input's columns. Raises BatchPredictError where they do not fit."""
        return Scorer(self.package, binding, self.options, self.plan.tuning, self.session)


def load_model(job: Job, fetched: Fetched | None = None, *, parquet: bool = False) -> LoadedModel:
    """Read, load and check a model with its golden rows. Raises Unavailable, ConfigInvalid.

    `fetched`: the model, if the caller has it; else it is held in the cache until this process
    ends. `parquet`: whether an output is written as such, which takes memory of its own.
    """
    if fetched is None:
        s3.connect_to(job.endpoint_url, job.service)
        fetched = fetch(job)
    with deferred():
        model = _load(job, fetched, parquet)
    check_signals()
    return model


def _load(job: Job, fetched: Fetched, parquet: bool) -> LoadedModel:
    package = fetched.package
    room = room_of(job, package, parquet=parquet)
    callers = job.workers
    if room is not None:
        room.check()
        callers = room.callers(job.workers or effective_cores())
    session = open_session(
        package,
        provider=job.provider,
        precision=job.precision,
        graph=_variant(package, job),
        callers=callers,
    )
    model = LoadedModel(
        fetched,
        session,
        HeadOptions(job.scores, job.threshold, job.outputs, job.prefix),
        plan_of(job, session, stored_tuning(job, package, session), room),
    )
    _check_golden(model)
    return model


def _variant(package: ModelPackage, job: Job) -> Path | None:
    """The graph to run instead of the model's own."""
    if job.precision != "int8":
        return None
    from batchpredict.model.optimize import int8_graph  # onnx is an extra

    return int8_graph(package)


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
    scorer = Scorer(model.package, Binding(offered), options, model.plan.tuning, model.session)
    scored = scorer.score(columns)
    # A variant keeps the rows of the model that it was made from.
    made_from = model.package.manifest.made_from
    precisions = (model.session.precision, made_from.precision if made_from else "model")
    within = max(_GOLDEN_TOLERANCE[precision] for precision in precisions)
    if scored.faults:
        fault = scored.faults[0]
        raise _golden_error(model, fault.index, fault.message)
    for number, (entry, found) in enumerate(zip(golden, scored.added.to_pylist(), strict=True)):
        wrong = _golden_difference(entry, found, within)
        if wrong:
            raise _golden_error(model, number, wrong)


def _golden_difference(golden: Golden, found: dict[str, object], within: float) -> str | None:
    for name, expected in (("prediction", golden.prediction), ("score", golden.score)):
        value = found.get(name)
        if expected is None:
            continue
        if not _agree(value, expected, within):
            return f"{name} is {value!r} instead of {expected!r}"
    return None


def _agree(found: object, expected: object, within: float) -> bool:
    """Numbers within a tolerance, texts equal; lists of labels or numbers one by one."""
    if isinstance(expected, tuple):
        return (
            isinstance(found, list)
            and len(found) == len(expected)
            and all(_agree(*pair, within) for pair in zip(found, expected, strict=True))
        )
    if isinstance(expected, float | int) and isinstance(found, float | int):
        return math.isclose(found, expected, rel_tol=within, abs_tol=within)
    return found == expected


def _golden_error(model: LoadedModel, index: int, message: str) -> ConfigInvalid:
    return ConfigInvalid(
        f"{model.package.directory}/batchpredict.toml: golden row {index + 1}: {message}; the "
        "model or this machine's runtime is not what the row was made with"
    )
