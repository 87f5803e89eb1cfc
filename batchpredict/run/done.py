"""Whether an output is there already, scored from this input by this model with these options."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from batchpredict.data.naming import Task
from batchpredict.data.sources import LocalSource
from batchpredict.job import Job
from batchpredict.run.identity import shaping_options


def done_receipt(task: Task, job: Job, digest: str) -> dict[str, Any] | None:
    """The receipt beside the output, where it says that there is nothing left to do.

    `digest`: the model's. The input is taken to be the same if size and time of change are, else
    if its sha256 is; likewise the output, if it has its size and is not younger than the receipt.
    """
    receipt = _read(task)
    if receipt is None or receipt["exit_code"] not in (0, 3):
        return None
    if receipt["model"]["sha256"] != digest:
        return None
    if _options(task, receipt["options"]) != _options(task, asdict(job)):
        return None
    same = _same_input(task, receipt["inputs"][0]) and _same_output(task, receipt["output"])
    return receipt if same else None


def _options(task: Task, options: dict[str, Any]) -> dict[str, Any]:
    """All that decide what is in the output, those too that no score depends on."""
    others = {name: options.get(name) for name in ("on_error", "skip_rows")}
    plain: dict[str, Any] = json.loads(json.dumps(others))
    return shaping_options(task, options) | plain


def _read(task: Task) -> dict[str, Any] | None:
    """A receipt that has what is compared; None where there is none or it is no such thing."""
    try:
        receipt = json.loads(Path(task.receipt or "").read_bytes())
        _ = receipt["exit_code"], receipt["model"]["sha256"], dict(receipt["options"])
        _ = receipt["inputs"][0]["size"], receipt["output"]["size"], receipt["output"]["sha256"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    found: dict[str, Any] = receipt
    return found


def _same_input(task: Task, recorded: dict[str, Any]) -> bool:
    source = LocalSource(task.input)
    if not source.rereadable or source.size != recorded["size"]:
        return False
    if source.modified_ns == recorded.get("modified_ns"):
        return True
    return bool(source.finish() == recorded.get("sha256"))


def _same_output(task: Task, recorded: dict[str, Any]) -> bool:
    output = Path(task.output)
    try:
        status = output.stat()
        if status.st_size != recorded["size"]:
            return False
        if status.st_mtime_ns <= Path(task.receipt or "").stat().st_mtime_ns:
            return True
        with output.open("rb") as file:
            return bool(hashlib.file_digest(file, "sha256").hexdigest() == recorded["sha256"])
    except OSError:
        return False
