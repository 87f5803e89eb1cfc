"""What a score depends on, and whether it has changed since an earlier run."""

from __future__ import annotations

import json
import os
from contextlib import closing
from dataclasses import asdict
from typing import Any

from batchpredict import s3
from batchpredict.data.naming import Task
from batchpredict.data.sources import InputSource, source_of
from batchpredict.job import Job
from batchpredict.run.fetching import Fetched, Pinned
from batchpredict.run.loading import LoadedModel

# A JSON object of JSON objects: input, model, options, versions, reference.
Pins = dict[str, dict[str, Any]]
_REFERENCE = "reference"

# Options that neither a score nor the form of the output depends on; the model and the input are
# compared by their content.
_FREE = frozenset(
    (
        "model_store", "max_model_age", "offline", "endpoint_url", "service",
        "input_file", "model", "output_file", "output_dir", "rejects_file", "receipt_file",
        "workers", "no_tuning", "memory_limit", "batch_rows", "batch_tokens",
        "on_error", "max_rejects", "dry_run", "skip_rows",
        "baseline", "max_drift", "on_drift",
        "no_resume", "max_seconds", "lock_wait", "if_done",
        "if_missing", "wait_for_input", "stable_for", "date",
        "engine", "ray_address", "actors", "cpus_per_actor",
    )
)  # fmt: skip


def pins_of(task: Task, job: Job, model: LoadedModel, source: InputSource) -> Pins:
    """Everything that the scores in a journal are good for."""
    tool = model.tool
    versions: dict[str, Any] = {"batchpredict": tool.pop("version"), **tool}
    if not _is_exact(model):
        versions["skip_rows"] = list(job.skip_rows)
        plan = asdict(model.plan)
        versions |= plan["tuning"] | {n: plan[n] for n in ("window_rows", "window_bytes")}
    return {
        "input": _input_pins(task, source),
        "model": {"sha256": model.package.digest},
        "options": shaping_options(task, asdict(job)),
        "versions": versions,
        _REFERENCE: _reference(model.fetched),
    }


def _input_pins(task: Task, source: InputSource) -> dict[str, Any]:
    return {
        "path": _place(task.input),
        **({"shard": asdict(task.shard)} if task.shard else {}),
        "size": source.size,
        "modified_ns": None if source.etag else source.modified_ns,  # see InputSource.is_of
        "fingerprint": source.fingerprint(),
    }


def _reference(fetched: Fetched) -> dict[str, Any]:
    """Which version of a store it was; empty where the model is no such."""
    if fetched.manifest_sha256 is None:
        return {}
    names = ("name", "version", "alias", "manifest_sha256")
    return {name: getattr(fetched, name) for name in names}


def pinned_by(pins: Pins, task: Task, job: Job) -> Pinned | None:
    """The version that a journal with these pins is gone on with; None where none is.

    That is so for as long as input and options are what they were. Raises InputMissing.
    """
    reference = pins.get(_REFERENCE)
    if not reference or pins.get("options") != shaping_options(task, asdict(job)):
        return None
    source = source_of(task.input)
    with closing(source):
        if not source.rereadable or pins.get("input") != _input_pins(task, source):
            return None
    try:
        return Pinned(**reference)
    except TypeError:  # of another version of ours
        return None


def _place(name: str) -> str:
    return name if s3.is_url(name) else os.path.abspath(name)  # noqa: PTH100 - it need not be UTF-8


def _is_exact(model: LoadedModel) -> bool:
    """Whether a score does not depend on the batch it is computed in, down to the last digit."""
    session = model.session
    plain = session.precision == "model" and session.provider == "CPUExecutionProvider"
    return plain and not model.package.graph_file.quantised


def shaping_options(task: Task, options: dict[str, Any]) -> dict[str, Any]:
    """Those of a job's options that a score or the form of the output depends on, as in JSON."""
    formats = {"input_format": task.input_format, "output_format": task.output_format}
    shaping = {name: value for name, value in options.items() if name not in _FREE} | formats
    plain: dict[str, Any] = json.loads(json.dumps(shaping))
    return plain


def difference(old: Pins, new: Pins) -> str | None:
    """In words, the first thing that is not as it was; None where nothing is."""
    for part, now in new.items():
        if part == _REFERENCE:  # what the model is called, which is compared by its content
            continue
        before = old.get(part, {})
        for name in sorted(now.keys() | before.keys()):
            if now.get(name) == before.get(name):
                continue
            if part == "input":
                return "the input has changed"
            if part == "model":
                return "the model has changed"
            prefix = "--" if part == "options" else ""
            return f"{prefix}{name} is {_shown(now.get(name))}, it was {_shown(before.get(name))}"
    return None


def _shown(value: Any) -> str:
    return "not given" if value is None else json.dumps(value, ensure_ascii=False)
