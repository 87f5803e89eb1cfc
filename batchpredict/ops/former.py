"""A run that is over, as its receipt tells of it."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from batchpredict import s3
from batchpredict.data.drafts import Published
from batchpredict.data.locations import identity, is_stream
from batchpredict.data.naming import Task, format_of
from batchpredict.data.sources import InputSource, source_of
from batchpredict.errors import InputInvalid, InputMissing, UsageError
from batchpredict.job import Job
from batchpredict.ops.layout import LayoutInvalid, made, part
from batchpredict.run.profile import Profile, read_profile
from batchpredict.run.receipt import Counts, InputFile, RejectsSummary


@dataclass(frozen=True)
class Former:
    """One input's run. `task`: where its files are now. `tool`, `model`, `drift`: see Receipt."""

    receipt: str
    run_id: str
    job: Job
    task: Task
    input: InputFile
    output: Published
    rejects: RejectsSummary
    counts: Counts
    tool: Mapping[str, str]
    model: Mapping[str, Any]
    profile: Profile | None
    drift: dict[str, Any] | None

    @property
    def rows(self) -> int:
        """Of its output."""
        return self.counts.scored + self.counts.nulls

    @property
    def codes(self) -> Counter[str]:
        return Counter(self.rejects.codes)

    def open_output(self) -> InputSource:
        """Its output, which agrees with the receipt. Raises InputMissing, InputInvalid."""
        source = source_of(self.task.output)
        if source.size != self.output.size or source.finish() != self.output.sha256:
            raise InputInvalid(
                f"{self.task.output}: is not the file that {self.receipt} tells of, it was changed "
                "or replaced since; name the receipt of the run that wrote it, or run predict again"
            )
        return source

    def open_input(self) -> InputSource | None:
        """Its input; None where that is no longer there as it was read.

        It is taken to be if size and time of change (of an object: its ETag) are the same, else if
        its sha256 is.
        """
        try:
            source = source_of(self.task.input)
        except InputMissing:
            return None
        read = self.input
        if not source.rereadable or source.size != read.size:
            return None
        same = source.is_of(read.modified_ns, read.etag)
        return source if same or source.finish() == read.sha256 else None


def read_former(path: str) -> Former:
    """Read a receipt. The object store of its job is the process's from here on.

    Raises InputMissing, InputInvalid (none, or of no published output), UsageError.
    """
    _check_local(path)
    path = os.path.expanduser(path)  # noqa: PTH111 - pathlib's raises for unknown users
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputMissing(f"{path}: {reason}; name the receipt beside an output") from error
    except (ValueError, RecursionError) as error:
        raise _no_receipt(path, "it is not JSON") from error
    try:
        return _former(path, content)
    except LayoutInvalid as error:
        raise _no_receipt(path, str(error)) from error


def _check_local(name: str) -> None:
    """What is replaced in place, with a note beside it, is a file."""
    if s3.is_url(name):
        raise UsageError(
            f"{name}: retry works on files; fetch the output, its rejects and its receipt into one "
            "directory, and name the receipt there"
        )


def _no_receipt(path: str, why: str) -> InputInvalid:
    return InputInvalid(f"{path}: is not a receipt ({why}); name OUTPUT.receipt.json")


def _former(path: str, content: Any) -> Former:
    if part(content, "receipt", int) != 1:
        raise _no_receipt(path, f"its layout is {content['receipt']!r}, not 1")
    if part(content, "exit_code", int) not in (0, 3) or content.get("output") is None:
        raise InputInvalid(f"{path}: that run published nothing; run predict again")
    output = made(Published, content["output"], "output")
    if is_stream(output.path):
        raise InputInvalid(f"{path}: its output went to a stream ({output.path}); run predict")
    inputs = part(content, "inputs", list)
    if len(inputs) != 1:
        raise LayoutInvalid(f"it has {len(inputs)} inputs, not 1")
    read = made(InputFile, inputs[0], "inputs[0]", modified_ns=None)
    rejects = made(RejectsSummary, content.get("rejects"), "rejects")
    job = _job(path, part(content, "options", dict))
    if job.output_parts:
        raise UsageError(
            f"{path}: its output is a folder of parts (--output_parts), and retry works on one "
            "file; mend the input and run predict again"
        )
    s3.connect_to(job.endpoint_url, job.service)
    for name in ("tool.version", "tool.onnxruntime", "model.sha256"):
        part(content, name, str)
    return Former(
        receipt=path,
        run_id=part(content, "run_id", str),
        job=job,
        task=_task(path, job, read, output, rejects.path),
        input=read,
        output=output,
        rejects=rejects,
        counts=made(Counts, content.get("counts"), "counts"),
        tool=content["tool"],
        model=content["model"],
        profile=_profile(content),
        drift=part(content, "drift", dict) if content.get("drift") else None,
    )


def _profile(content: Mapping[str, Any]) -> Profile | None:
    """None in a receipt of a version that made none."""
    if content.get("profile") is None:
        return None
    try:
        return read_profile(content["profile"])
    except ValueError as error:
        raise LayoutInvalid(f"profile: {error}") from error


def _job(path: str, options: Mapping[str, Any]) -> Job:
    """The job that has these options."""
    known = {field.name for field in fields(Job)}
    if unknown := sorted(set(options) - known):
        raise InputInvalid(
            f"{path}: {unknown[0]!r} is no option of this version; use the version of batchpredict "
            "that wrote the receipt"
        )
    try:
        return made(Job, {name: _hashable(value) for name, value in options.items()}, "options")
    except UsageError as error:
        raise _no_receipt(path, str(error)) from error


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _task(path: str, job: Job, read: InputFile, output: Published, rejects: str | None) -> Task:
    """Files by the names they have in the receipt, or else beside it.

    The names count from where that run was started, which need not be here.
    """
    input_format = job.input_format or format_of(read.path)
    if input_format is None:
        raise _no_receipt(path, f"the format of {read.path} is not known")
    named = job.output_file and format_of(job.output_file)
    found = _located(path, output.path, output.size)
    beside = Path(path).parent / Path(output.path).name
    if beside.is_file() and not Path(found).is_file():  # it was changed, which is told later
        found = str(beside)
    _check_local(found)
    rejects = rejects or f"{output.path}.rejects.jsonl"
    source = read.path if s3.is_url(read.path) else _located(path, read.path, read.size)
    return Task(
        read.path if identity(source) == identity(found) else source,
        input_format,
        found,
        job.output_format or named or input_format,
        rejects if found == output.path else str(Path(path).parent / Path(rejects).name),
        path,
    )


def _located(receipt: str, name: str, size: int | None) -> str:
    """The file of this size, under its name or beside the receipt; else the name."""
    for file in (name, str(Path(receipt).parent / Path(name).name)):
        if Path(file).is_file() and Path(file).stat().st_size == size:
            return file
    return name
