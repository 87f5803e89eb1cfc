"""Whether an output is there already, scored from this input by this model with these options."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from batchpredict.data.naming import MANIFEST, Task
from batchpredict.data.outputs import read_small
from batchpredict.data.sources import source_of
from batchpredict.errors import InputMissing, TryAgain
from batchpredict.job import Job
from batchpredict.run.identity import shaping_options


def done_receipt(task: Task, job: Job, digest: str) -> dict[str, Any] | None:
    """The receipt beside the output, where it says that there is nothing left to do.

    `digest`: the model's. The input is taken to be the same if size and time of change (of an
    object: its ETag) are, else if its sha256 is; likewise the output. The rejects must have theirs.
    """
    receipt = _read(task)
    if receipt is None or receipt["exit_code"] not in (0, 3):
        return None
    if receipt["model"]["sha256"] != digest:
        return None
    if _options(task, receipt["options"]) != _options(task, asdict(job)):
        return None
    codes, read = receipt["rejects"]["codes"], receipt["counts"]["read"]
    if job.budget.exceeded(sum(codes.values()), read):
        return None
    output = manifest_of(task.output) if job.output_parts else task.output
    same = (
        _same_file(task.input, receipt["inputs"][0])
        and _same_file(output, receipt["output"])
        and (not codes or _same_file(task.rejects, receipt["rejects"]))
    )
    return receipt if same else None


def manifest_of(output: str) -> str:
    """What proves that an output which is left in parts is complete."""
    return f"{output}/{MANIFEST}"


def _options(task: Task, options: dict[str, Any]) -> dict[str, Any]:
    """All that decide what is in the output, those too that no score depends on."""
    others = {name: options.get(name) for name in ("on_error", "skip_rows")}
    plain: dict[str, Any] = json.loads(json.dumps(others))
    return shaping_options(task, options) | plain


def _read(task: Task) -> dict[str, Any] | None:
    """A receipt that has what is compared; None where there is none or it is no such thing."""
    try:
        receipt = json.loads(read_small(task.receipt or "") or b"")
        _ = receipt["exit_code"], receipt["model"]["sha256"], dict(receipt["options"])
        _ = receipt["inputs"][0]["size"], receipt["output"]["size"], receipt["output"]["sha256"]
        _ = receipt["rejects"]["size"], receipt["rejects"]["sha256"], receipt["counts"]["read"] + 0
        _ = sum(receipt["rejects"]["codes"].values())
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    found: dict[str, Any] = receipt
    return found


def _same_file(name: str | None, recorded: dict[str, Any]) -> bool:
    try:
        source = source_of(name or "")
        if not source.rereadable or source.size != recorded["size"]:
            return False
        if source.is_of(recorded.get("modified_ns"), recorded.get("etag")):
            return True
        if recorded.get("sha256") is None:
            return False
        return bool(source.finish() == recorded["sha256"])
    except (InputMissing, TryAgain):  # which the run of this input will meet and tell
        return False
