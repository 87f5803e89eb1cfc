"""Which files a job reads, and what the files it writes are called."""

from __future__ import annotations

import bisect
import difflib
import glob
import os
from dataclasses import dataclass
from pathlib import Path

from batchpredict import s3
from batchpredict.data import listing
from batchpredict.data.formats import FORMATS
from batchpredict.data.locations import STDIO, Identities, compression_of, is_stream
from batchpredict.data.locks import hidden_beside
from batchpredict.data.records import Shard
from batchpredict.errors import InputMissing, UsageError
from batchpredict.job import Job

_OWN_ENDINGS = (".rejects.jsonl", ".receipt.json")
# Of an output that is left in parts.
MANIFEST = "_manifest.json"
_OWN_PARTS = (".scored.", ".failed.")


@dataclass(frozen=True)
class Task:
    """One input and the files beside its output. "-": standard input or output.

    `rejects` None: to standard error. `receipt`, `failed` None: not written. `shard`: of the input,
    where the output is a part (see run/parts.py); then `columns` are those on offer, if a pass over
    the input has found them.
    """

    input: str
    input_format: str
    output: str
    output_format: str
    rejects: str | None
    receipt: str | None
    shard: Shard | None = None
    columns: tuple[str, ...] | None = None

    @property
    def failed(self) -> str | None:
        """The receipt of a run that failed."""
        return None if is_stream(self.output) else f"{self.output}.failed.json"

    @property
    def failed_rejects(self) -> str | None:
        """The rejects of a run that failed, in the directory where `rejects` would be."""
        if self.rejects is None or is_stream(self.rejects):
            return None
        return f"{self.rejects.removesuffix('.rejects.jsonl')}.failed.rejects.jsonl"


def tasks_of(job: Job) -> tuple[tuple[Task, ...], tuple[InputMissing, ...]]:
    """One task per input, in order, and what is wrong with names that stand for no file.

    The object store of the job is the process's from here on. Raises UsageError; InputMissing where
    there is no task at all; Unavailable.
    """
    s3.connect_to(job.endpoint_url, job.service)
    found: list[tuple[str, str]] = []
    missing: list[InputMissing] = []
    for name in job.input_file:
        try:
            found += _expand(name, job.output_dir)
        except InputMissing as error:
            missing.append(error)
    if not found:
        raise missing[0]
    if len(found) > 1:
        for option in ("output_file", "rejects_file", "receipt_file"):
            if getattr(job, option):
                raise UsageError(
                    f"--{option} names one file, but there are {len(found)} inputs; "
                    "use --output_dir"
                )
    tasks = tuple(_task(job, name, relative) for name, relative in found)
    _check_distinct(tasks)
    return tasks, tuple(missing)


def is_named(task: Task, job: Job) -> bool:
    """Whether the job names this input, by no folder or pattern, and no other."""
    return [_user(name) for name in job.input_file] == [task.input]


def _expand(name: str, output_dir: str | None) -> list[tuple[str, str]]:
    """(path, path relative to the directory or to the glob's fixed part) of each file meant."""
    if name == STDIO:
        return [(STDIO, STDIO)]
    if s3.is_url(name):
        return _expand_url(name, output_dir)
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        files = _own_left_out(sorted(glob.glob(f"{glob.escape(path)}/*")), output_dir)
        files = [file for file in files if format_of(file)]
        root = path
        kind = "directory without files of a known format (" + ", ".join(_suffixes()) + ")"
    elif not os.path.lexists(path) and glob.has_magic(path):
        files = _own_left_out(sorted(glob.glob(path, recursive=True)), output_dir)
        root = os.path.dirname(path[: path.index(next(c for c in path if c in "*?["))])
        kind = "no file matches"
    elif not os.path.exists(path):
        near = "; did you mean s3://BUCKET/KEY?" if name.lower().startswith("s3:") else ""
        raise InputMissing(f"{name}: no such file{near or _nearest(path)}; check the path")
    else:
        return [(path, os.path.basename(path))]
    if not files:
        raise InputMissing(f"{name}: {kind}; check the path")
    return [(file, os.path.relpath(file, root or ".")) for file in files]


def _own_left_out(files: list[str], output_dir: str | None) -> list[str]:
    """Regular files that are neither hidden nor ours nor where outputs go."""
    target = None
    if output_dir and not s3.is_url(output_dir):
        target = os.path.join(os.path.realpath(os.path.expanduser(output_dir)), "")
    identity = Identities().of
    return [
        file
        for file in files
        if os.path.isfile(file)
        and not is_own(file)
        and not (target and identity(file).startswith(target))
    ]


def _expand_url(name: str, output_dir: str | None) -> list[tuple[str, str]]:
    """What `_expand` says, of objects."""
    address = s3.parse(name)
    below = not address.key or address.key.endswith("/")
    if not below and listing.exists(address):
        return [(address.url, os.path.basename(address.key))]
    if not below and not glob.has_magic(address.key):
        raise InputMissing(f"{name}: no such object{listing.nearest(address)}; check the name")
    if below:
        found, root = listing.directly_below(address), address.url
        files = [file for file in found if format_of(file)]
        wrong = "no object directly in it has a known format (" + ", ".join(_suffixes()) + ")"
    else:
        files, root = listing.matching(address), listing.fixed_part(address).url
        wrong = "no object matches"
    target = None
    if output_dir and s3.is_url(output_dir):
        target = s3.parse(output_dir).url.rstrip("/") + "/"
    files = [f for f in files if not is_own(f) and not (target and f.startswith(target))]
    if not files:
        raise InputMissing(f"{name}: {wrong}; check the name")
    if output_dir:
        _check_parts(files, root)
    return [(file, file.removeprefix(root)) for file in sorted(files)]


def _check_parts(files: list[str], root: str) -> None:
    """A key may have parts that mean something else in a path."""
    for file in files:
        if {"", ".", ".."} & set(file.removeprefix(root).split("/")):
            raise UsageError(
                f"{file}: its name leads out of --output_dir; name it alone, with --output_file"
            )


def is_own(file: str) -> bool:
    """Whether a file is hidden or one that we write beside an output."""
    name = Path(file).name
    return (
        name.startswith(".")
        or name == MANIFEST
        or name.endswith(_OWN_ENDINGS)
        or any(part in name for part in _OWN_PARTS)
    )


def _suffixes() -> list[str]:
    return [entry.suffixes[0] for entry in FORMATS.values()]


# Of the names on either side of one that is not there.
_MOST_NEAR = 50


def _nearest(path: str) -> str:
    directory, name = os.path.split(path)
    try:
        names = sorted(os.listdir(directory or "."))
    except OSError:
        return ""
    # Comparing thousands takes long, and a file that is late is looked for every second.
    place = bisect.bisect(names, name)
    names = names[max(0, place - _MOST_NEAR) : place + _MOST_NEAR]
    near = difflib.get_close_matches(name, names, 1, cutoff=0.75)
    return f"; did you mean {os.path.join(directory, near[0])}?" if near else ""


def split_name(name: str) -> tuple[str, str, str]:
    """(stem, format suffix, compression suffix) of a file name; "" for what it lacks."""
    compression = compression_of(name)
    rest = name[: len(name) - len(compression)]
    for entry in FORMATS.values():
        for suffix in entry.suffixes:
            if rest.lower().endswith(suffix) and rest[: -len(suffix)]:
                return rest[: -len(suffix)], rest[-len(suffix) :], name[len(rest) :]
    return rest, "", name[len(rest) :]


def format_of(name: str) -> str | None:
    """The format a file's suffix names, None where it names none."""
    suffix = split_name(name)[1].lower()
    return next((key for key, entry in FORMATS.items() if suffix in entry.suffixes), None)


def _task(job: Job, name: str, relative: str) -> Task:
    input_format = job.input_format or format_of(name)
    if input_format is None:
        what = "standard input needs" if name == STDIO else f"{name}: its suffix names no format;"
        raise UsageError(f"{what} --input_format={'|'.join(FORMATS)}")
    if compression_of(name) and not FORMATS[input_format].is_text:
        raise UsageError(f"{name}: {input_format} is compressed inside; decompress the file")
    output_format = (
        job.output_format or (job.output_file and format_of(job.output_file)) or input_format
    )
    output = _output(job, name, relative, (input_format, output_format))
    if output != STDIO and compression_of(output) and not FORMATS[output_format].is_text:
        raise UsageError(f"{output}: {output_format} is compressed inside; drop the last suffix")
    beside = not is_stream(output)
    rejects = _user(job.rejects_file) or (f"{output}.rejects.jsonl" if beside else None)
    receipt = _user(job.receipt_file) or (f"{output}.receipt.json" if beside else None)
    return Task(
        name,
        input_format,
        output,
        output_format,
        rejects,
        receipt,
    )


def _user(name: str | None) -> str | None:
    """A name of the user's in full."""
    if name and s3.is_url(name):
        return s3.parse(name).url
    return os.path.expanduser(name) if name else None


def _output(job: Job, name: str, relative: str, formats: tuple[str, str]) -> str:
    if job.output_file:
        return STDIO if job.output_file == STDIO else str(_user(job.output_file))
    if name == STDIO:
        if job.output_dir:
            raise UsageError("standard input has no name; use --output_file, not --output_dir")
        return STDIO
    base = relative if job.output_dir else name
    stem, suffix, compression = split_name(base)
    if formats[0] != formats[1] or not (suffix or compression):
        changed = FORMATS[formats[1]].suffixes[0] if formats[0] != formats[1] else ""
        suffix = changed or suffix
    if not suffix and formats[0] == formats[1] and "." in os.path.basename(stem):
        stem, suffix = os.path.splitext(stem)
    if not FORMATS[formats[1]].is_text:
        compression = ""
    if job.output_dir:
        return os.path.join(str(_user(job.output_dir)), f"{stem}{suffix}{compression}")
    return f"{stem}.scored{suffix}{compression}"


def _check_distinct(tasks: tuple[Task, ...]) -> None:
    identity = Identities().of
    inputs = {identity(task.input): task.input for task in tasks if task.input != STDIO}
    written: dict[str, Task] = {}
    for task in tasks:
        files = [task.output, task.rejects, task.receipt, task.failed, task.failed_rejects]
        if not is_stream(task.output) and not s3.is_url(task.output):
            files += hidden_beside(identity(task.output))
        for file in files:
            if file is None or is_stream(file):
                continue
            real = identity(file)
            if real in inputs:
                raise UsageError(
                    f"{file}: would overwrite the input {inputs[real]}; choose another "
                    "--output_file or --output_dir"
                )
            if written.get(real) is task:
                raise UsageError(
                    f"{file}: is to be two files of {task.input}; choose another name with "
                    "--output_file, --rejects_file or --receipt_file"
                )
            if real in written:
                raise UsageError(
                    f"{file}: {written[real].input} and {task.input} would both be written to it; "
                    "choose another --output_dir"
                )
            written[real] = task
