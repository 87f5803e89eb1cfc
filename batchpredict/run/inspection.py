"""What a model expects and gives, and how a file's columns bind to it."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pyarrow as pa

from batchpredict.data.naming import tasks_of
from batchpredict.errors import CONTROLS
from batchpredict.job import Job
from batchpredict.model.contracts import Tensor
from batchpredict.model.outputs import TaskHead, resolve_head
from batchpredict.run.loading import LoadedModel, load_model
from batchpredict.run.opening import open_task


def inspect(job: Job, file: str | None) -> dict[str, Any]:
    """Facts about `job.model`, and with `file` its binding. Raises BatchPredictError."""
    model = load_model(job)
    found = _model_facts(model, resolve_head(model.package, model.session, model.options))
    if file is not None:
        found["file"] = _binding_facts(job, model)
    return found


def _model_facts(model: LoadedModel, head: TaskHead) -> dict[str, Any]:
    package = model.package
    facts: dict[str, Any] = {
        "name": package.name,
        "version": package.version,
        "sha256": package.digest,
        "files": [{"path": path, "size": size, "sha256": sha} for path, size, sha in package.files],
        "inputs": [_tensor(tensor) for tensor in model.session.inputs],
        "outputs": [_tensor(tensor) for tensor in model.session.outputs],
        "task": head.task,
        "labels": list(head.labels),
        "activation": head.activation,
        "threshold": head.threshold,
        "positive_label": head.labels[1] if len(head.labels) == 2 else None,
        "score": "probability" if head.score_is_probability else "decision value",
        "added_columns": {field.name: str(field.type) for field in head.schema},
        "golden_rows": len(package.manifest.golden),
        "provider": model.session.provider,
    }
    if package.tokenizer is not None:
        facts["tokenizer"] = {
            "file": package.tokenizer.name,
            "max_length": package.max_length,
            "pad_id": package.pad_id,
            "prompt": package.prompt,
        }
    return facts


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "type": tensor.dtype, "shape": list(tensor.shape)}


def _binding_facts(job: Job, model: LoadedModel) -> dict[str, Any]:
    (task,), _ = tasks_of(job)
    opened = open_task(task, job, model)
    with closing(opened.source):
        schema: pa.Schema = opened.reader.schema
        return {
            "path": task.input,
            "format": task.input_format,
            "columns": {field.name: str(field.type) for field in schema},
            "binding": {name: list(of) for name, of in opened.scorer.encoder.bindings.items()},
            "remarks": list(opened.remarks),
        }


def table(facts: dict[str, Any]) -> str:
    """The facts for people: a name and a value a line."""
    rows: list[tuple[str, str]] = []
    for name, value in facts.items():
        if name == "files":
            rows += [("file", f"{f['path']} ({f['size']:,} bytes)") for f in value]
        elif name in ("inputs", "outputs"):
            rows += [(name[:-1], _described(tensor)) for tensor in value]
        elif isinstance(value, dict):
            rows += [(f"{name}.{key}", _text(entry)) for key, entry in value.items()]
        else:
            rows.append((name, _text(value)))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}".translate(CONTROLS) for name, value in rows)


def _described(tensor: dict[str, Any]) -> str:
    shape = ", ".join("?" if size is None else str(size) for size in tensor["shape"])
    return f"{tensor['name']}: {tensor['type']} [{shape}]"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        # a list is what is bound to a name, anything else is said of it
        return ", ".join(
            f"{key}{' <-' if isinstance(entry, list) else ':'} {_text(entry)}"
            for key, entry in value.items()
        )
    if isinstance(value, list):
        return ", ".join(str(entry) for entry in value) or "-"
    return "-" if value is None or value == "" else str(value)
