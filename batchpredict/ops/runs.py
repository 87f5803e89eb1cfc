"""Runs, as the files beside their outputs tell of them: receipts, failed receipts, journals."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from batchpredict import s3
from batchpredict.errors import InputInvalid, InputMissing, UsageError
from batchpredict.ops.layout import LayoutInvalid, made, part
from batchpredict.run.receipt import Counts, InputFile, RejectsSummary, Resumed, Retried

# "waiting": its lock is held, but nothing is scored yet. "stopped": killed or given up; the next
# run goes on with what it kept.
State = Literal["ok", "partial", "failed", "running", "waiting", "stopped"]

RECEIPT, FAILED, JOURNAL = ".receipt.json", ".failed.json", ".journal"
# A profile of many labels may take some hundred kilobytes; what is larger is no receipt of ours.
_MOST_BYTES = 16 << 20
# A date or a time in a name, or a part's number.
_NUMBERS = re.compile(r"\d+(?:[-_.:T]?\d+)*")
_MOST_WARNINGS = 10
_MOST_DIGITS = 19  # of nanoseconds since the epoch
_MOST = 1e15  # of what is counted: rows, bytes, seconds
_MANY_DIGITS = re.compile(rb"[\s:,\[-]\d{%d}" % (_MOST_DIGITS + 1))
_YEARS = range(1970, 9000)  # others have no local time everywhere
# A run that fails writes its journal first, its receipt at once thereafter.
_SAME_END = timedelta(seconds=2)


@dataclass(frozen=True)
class ScoredBy:
    """A model as receipts name it; None where they do not (a journal has the sha256 alone)."""

    name: str | None = None
    version: str | None = None
    alias: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Run:
    """One input's latest run, or its latest publication.

    `file`: where it is told of. `output`: as seen from here, with the directory of `file`.
    `ended`: UTC; of a journal, when it was last written to. `kept_rows`: scored ones in the journal
    of a run that published nothing. `warnings`: of how the model was come by. `receipt`: all that
    is in the file, empty for a journal.
    """

    file: str
    state: State
    output: str
    ended: datetime
    started: datetime | None = None
    run_id: str | None = None
    exit_code: int | None = None
    message: str | None = None
    input: InputFile | None = None
    model: ScoredBy = field(default_factory=ScoredBy)
    tool: Mapping[str, str] = field(default_factory=dict)
    counts: Counts | None = None
    rejects: RejectsSummary | None = None
    rows_per_second: float | None = None
    stages: Mapping[str, float] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    resumed: Resumed = field(default_factory=Resumed)
    retried: Retried | None = None
    kept_rows: int = 0
    warnings: tuple[str, ...] = ()
    receipt: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float | None:
        """From start to end."""
        return max((self.ended - self.started).total_seconds(), 0.0) if self.started else None

    @property
    def series(self) -> str:
        """What all nights of one job have in common: the output's name without its numbers."""
        return _NUMBERS.sub("#", self.output)

    @property
    def is_over(self) -> bool:
        return self.state not in ("running", "waiting")


@dataclass(frozen=True)
class Skipped:
    """A file that was to be read, and why it was not."""

    file: str
    reason: str


@dataclass(frozen=True)
class Found:
    """`runs`: oldest end first, those that still work last."""

    runs: tuple[Run, ...]
    skipped: tuple[Skipped, ...]


def read_runs(paths: Iterable[str]) -> Found:
    """The runs that receipts tell of; of a folder, all in it and below, but for hidden folders.

    What cannot be read or is no receipt is skipped. Raises InputMissing where a path is none,
    UsageError where it is in S3.
    """
    runs: dict[str, Run] = {}
    skipped: list[Skipped] = []
    journals: dict[str, None] = {}
    for file in _files(paths, skipped):
        real = os.path.realpath(file)
        if Path(file).name.endswith(JOURNAL):
            journals[file] = None
        elif real not in runs:
            try:
                runs[real] = read_run(file)
            except (InputMissing, InputInvalid) as error:
                skipped.append(Skipped(file, str(error).removeprefix(f"{file}: ")))
    published = list(runs.values())
    unfinished = _unfinished(tuple(journals), skipped)
    found = [*_with_kept_rows(published, unfinished), *_apart(published, unfinished)]
    found.sort(key=lambda run: (not run.is_over, run.ended, run.output))
    return Found(tuple(_with_model_names(found)), tuple(skipped))


def _files(paths: Iterable[str], skipped: list[Skipped]) -> Iterator[str]:
    for name in paths:
        if s3.is_url(name):
            raise UsageError(
                f"{name}: receipts are read from folders of this machine; copy them into one first"
            )
        path = os.path.expanduser(name)  # noqa: PTH111 - pathlib's raises for unknown users
        if os.path.isdir(path):  # noqa: PTH112 - pathlib's raises for a name too long
            yield from _below(path, skipped)
        elif os.path.lexists(path):
            yield path
        else:
            raise InputMissing(
                f"{name}: no such file or folder; name a receipt, or a folder with outputs"
            )


def _below(folder: str, skipped: list[Skipped]) -> Iterator[str]:
    def unreadable(error: OSError) -> None:
        skipped.append(Skipped(str(error.filename), _reason(error)))

    for directory, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            hidden = name.startswith(".")
            if name.endswith((RECEIPT, FAILED)) or (hidden and name.endswith(JOURNAL)):
                yield os.path.normpath(Path(directory) / name)


def read_run(file: str) -> Run:
    """The run that a receipt tells of. Raises InputMissing, InputInvalid (it is none)."""
    data = _content(file)
    try:
        # A call for each number of a profile would take as long as all the rest.
        whole = _whole if _MANY_DIGITS.search(data) else None
        text = data.decode()  # json.loads takes UTF-16 too, in which no digits are found above
        content = json.loads(text, parse_int=whole, parse_float=_finite, parse_constant=_finite)
    except LayoutInvalid as error:
        raise _no_receipt(file, str(error)) from error
    except (ValueError, RecursionError) as error:
        raise _no_receipt(file, "it is not JSON") from error
    try:
        return _run(file, content)
    except LayoutInvalid as error:
        raise _no_receipt(file, str(error)) from error


def _no_receipt(file: str, why: str) -> InputInvalid:
    return InputInvalid(f"{file}: is not a receipt ({why})")


def _content(file: str) -> bytes:
    try:
        # Not Path.open: a pipe of that name would be waited for.
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as stream:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _no_receipt(file, "it is no regular file")
            if status.st_size > _MOST_BYTES:
                raise _no_receipt(file, f"it has {status.st_size:,} bytes")
            return stream.read(_MOST_BYTES)
    except OSError as error:
        raise InputMissing(f"{file}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _whole(text: str) -> int:
    if len(text.lstrip("-")) > _MOST_DIGITS:
        raise LayoutInvalid(f"{text[:_MOST_DIGITS]}… is too large a number")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise LayoutInvalid(f"{text[:_MOST_DIGITS]} is not a finite number")
    return value


def _run(file: str, content: Any) -> Run:
    if part(content, "receipt", int) != 1:
        raise LayoutInvalid(f"its layout is {str(content['receipt'])[:_MOST_DIGITS]}, not 1")
    exit_code = part(content, "exit_code", int)
    inputs = part(content, "inputs", list)
    message, retried = content.get("message"), content.get("retried")
    run = Run(
        file=file,
        state={0: "ok", 3: "partial"}.get(exit_code, "failed"),  # type: ignore[arg-type]
        output=_output(file, content),
        ended=_time(content, "ended"),
        started=_time(content, "started"),
        run_id=part(content, "run_id", str),
        exit_code=exit_code,
        message=None if message is None else str(message),
        input=made(InputFile, inputs[0], "inputs[0]", modified_ns=None) if inputs else None,
        model=made(ScoredBy, content.get("model"), "model"),
        tool={name: str(value) for name, value in part(content, "tool", dict).items()},
        counts=made(Counts, content.get("counts"), "counts"),
        rejects=made(RejectsSummary, content.get("rejects"), "rejects"),
        rows_per_second=float(part(content, "rows_per_second", int | float)),  # type: ignore[arg-type]
        stages=_seconds(part(content, "stages", dict)),
        peak_memory_bytes=part(content, "peak_memory_bytes", int),
        resumed=made(Resumed, content.get("resumed", {}), "resumed"),
        retried=None if retried is None else made(Retried, retried, "retried"),
        warnings=_warnings(content),
        receipt=content,
    )
    _check_numbers(run)
    return run


def _output(file: str, content: Mapping[str, Any]) -> str:
    """By the name of the receipt, else (--receipt_file) by the names in it."""
    for ending in (RECEIPT, FAILED):
        if file.endswith(ending):
            return file.removesuffix(ending)
    output = content.get("output")
    return part(output, "path", str) if output else file


def _warnings(content: Mapping[str, Any]) -> tuple[str, ...]:
    """None in a receipt of a version that wrote none."""
    warnings = part(content, "warnings", list) if "warnings" in content else []
    return tuple(str(warning) for warning in warnings[:_MOST_WARNINGS])


def _time(content: Mapping[str, Any], name: str) -> datetime:
    text = part(content, name, str)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = datetime.min
    if time.tzinfo is None or time.year not in _YEARS:
        raise LayoutInvalid(f"{name} cannot be {text[:40]!r}")
    return time.astimezone(UTC)


def _seconds(stages: Mapping[str, Any]) -> Mapping[str, float]:
    for name, value in stages.items():
        if not isinstance(value, int | float) or not 0 <= value < _MOST:
            raise LayoutInvalid(f"stages.{name[:40]} cannot be {str(value)[:40]!r}")
    return stages


def _check_numbers(run: Run) -> None:
    """Numbers that are added up and drawn: none is negative, without end, or a truth value."""
    assert run.counts is not None
    assert run.rejects is not None
    numbers = {f"counts.{name}": value for name, value in vars(run.counts).items()}
    numbers |= {f"rejects.codes.{name[:40]}": n for name, n in run.rejects.codes.items()}
    numbers |= {"rows_per_second": run.rows_per_second, "peak_memory_bytes": run.peak_memory_bytes}
    for name, value in numbers.items():
        if isinstance(value, bool) or not 0 <= value < _MOST:
            raise LayoutInvalid(f"{name} cannot be {value!r}")


def _unfinished(journals: Sequence[str], skipped: list[Skipped]) -> list[Run]:
    if not journals:
        return []
    # What reads journals imports the session; receipts are read without.
    from batchpredict.ops.unfinished import read_unfinished

    found = []
    for file in journals:
        try:
            run = read_unfinished(file)
        except (InputMissing, InputInvalid) as error:
            skipped.append(Skipped(file, str(error).removeprefix(f"{file}: ")))
            continue
        if run:
            found.append(run)
    return found


def _with_kept_rows(runs: Sequence[Run], unfinished: Sequence[Run]) -> Iterator[Run]:
    """A run that failed, with the rows in the journal that it left."""
    kept = {run.output: run.kept_rows for run in unfinished}
    for run in runs:
        rows = kept.get(run.output, 0) if run.state == "failed" else 0
        yield replace(run, kept_rows=rows) if rows else run


def _apart(runs: Sequence[Run], unfinished: Sequence[Run]) -> Iterator[Run]:
    """Journals of runs that no receipt tells of."""
    failed = {run.output: run.ended for run in runs if run.state == "failed"}
    for run in unfinished:
        told = failed.get(run.output)
        if run.state != "stopped" or told is None or run.ended > told + _SAME_END:
            yield run


def _with_model_names(runs: Sequence[Run]) -> Iterator[Run]:
    """A journal has the sha256 of its model; the other runs know what that one is called."""
    known = {run.model.sha256: run.model for run in runs if run.model.name}
    for run in runs:
        model = run.model if run.model.name else known.get(run.model.sha256, run.model)
        yield replace(run, model=model)
