"""What `tune` leaves: the winner where runs find it, a curve, a job file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchpredict.data.drafts import check_creatable, write_durably
from batchpredict.errors import OutputNotCreatable, UsageError
from batchpredict.job import Job
from batchpredict.jobfile import placed
from batchpredict.ops.tune import Found, store
from batchpredict.ops.tuning_report import svg
from batchpredict.run.tuned import check_storable

# Of the measuring, not of the job it was done for.
_LEFT_OUT = ("column", "date", "dry_run", "limit", "no_tuning")


@dataclass(frozen=True)
class Targets:
    """Files that were asked for: the curve, a new job file."""

    svg: str | None
    job_file: str | None

    def check(self) -> None:
        """Before any work. Raises OutputNotCreatable."""
        if self.svg:
            check_creatable(self.svg, None, "--svg")
        if self.job_file:
            check_new(self.job_file)
        else:
            check_storable()

    def write(self, job: Job, found: Found) -> Iterator[str]:
        """Write them, then store the winner; a line about each. Raises OutputNotCreatable."""
        if self.svg:
            write_durably(Path(self.svg).expanduser(), svg(found).encode())
            yield f"curve: {self.svg}"
        if self.job_file:
            write_job(self.job_file, job, found.sizes)
            yield f"job file: {self.job_file}"
        path = store(found)
        if path:
            yield f"stored for predict, unless it is told --no_tuning: {path}"


def check_new(name: str) -> Path:
    """Where a new job file may be made. Raises OutputNotCreatable."""
    path = Path(name).expanduser()
    if path.exists() or path.is_symlink():
        raise OutputNotCreatable(f"{name}: exists; choose another name with --write_job")
    if not path.absolute().parent.is_dir():
        raise OutputNotCreatable(
            f"{name}: {path.absolute().parent} is no directory; choose another place with "
            "--write_job"
        )
    return path


def write_job(name: str, job: Job, sizes: Mapping[str, int]) -> None:
    """Write the options of `job` that are not the defaults, and `sizes`, as TOML.

    Paths become absolute: those of a job file count from its own directory. Raises
    OutputNotCreatable (the file exists, too), UsageError (a path that TOML cannot hold).
    """
    changed: dict[str, Any] = dict(sizes)
    text = job_text(dataclasses.replace(job, **changed))
    path = check_new(name)
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{name}: a job file is UTF-8, which a name in it is not") from error
    try:
        with path.open("xb") as file:
            file.write(content)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputNotCreatable(
            f"{name}: cannot be created: {reason}; choose another place with --write_job"
        ) from error


def job_text(job: Job) -> str:
    """`job` as a job file that stands anywhere."""
    lines = ["# Written by batchpredict tune."]
    for field in dataclasses.fields(job):
        value = getattr(job, field.name)
        if value != field.default and field.name not in _LEFT_OUT:
            given = _placed(field.name, value, bool(job.model_store))
            lines.append(f"{field.name} = {_toml(given)}")
    if job.column:
        lines += ["", "[column]", *(f"{_toml(key)} = {_toml(of)}" for key, of in job.column)]
    return "\n".join([*lines, ""])


def _placed(name: str, value: Any, has_store: bool) -> Any:
    if isinstance(value, tuple):
        return tuple(_placed(name, entry, has_store) for entry in value)
    return placed(name, value, has_store=has_store) if isinstance(value, str) else value


def _toml(value: Any) -> str:
    """JSON's spelling is TOML's too, but for DEL."""
    if isinstance(value, tuple):
        value = list(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
