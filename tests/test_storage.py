"""File systems that fail, change their mind or run full, and who may read what is left on them."""

from __future__ import annotations

import contextlib
import errno
import gzip
import itertools
import json
import logging
import os
import random
import resource
import shutil
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from batchpredict import cli, log
from batchpredict.data import permissions, storage
from batchpredict.data.drafts import Draft
from batchpredict.data.locks import lock_output
from batchpredict.data.naming import tasks_of
from batchpredict.data.sources import source_of
from batchpredict.data.storage import Space
from batchpredict.errors import (
    InputMissing,
    OutputNotCreatable,
    OutputWriteFailed,
    TryAgain,
)
from batchpredict.job import Job
from batchpredict.run import runner, space
from tests import models
from tests.commands import COMMAND, PATIENCE, environment, half_written
from tests.faults.shim import Rule, build
from tests.faults.shim import environment as faulty_environment

# The last row is rejected: 1 of 12.
TABLE = "x,y\n" + "".join(f"{i}.5,{i}\n" for i in range(11)) + "1,none\n"
OLD = b"what was there before\n"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
GONE = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.ETIMEDOUT)


@dataclass(frozen=True)
class Done:
    """What a run in this process left."""

    code: int
    err: str

    @property
    def line(self) -> str:
        (line,) = self.err.splitlines()
        assert "Traceback" not in line
        return line


Command = Callable[..., Done]


@pytest.fixture
def command(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Command:
    """`cli.main` in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Done:
        log.logger.handlers = []
        code = cli.main(arguments)
        return Done(code, capfd.readouterr().err)

    return call


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write_classifier(tmp_path_factory.mktemp("models") / "tabular")


@pytest.fixture
def job(tmp_path: Path, model: Path) -> list[str]:
    """Arguments of a run that replaces `out.csv` and has one reject."""
    (tmp_path / "data.csv").write_text(TABLE)
    (tmp_path / "out.csv").write_bytes(OLD)
    return ["--input_file=data.csv", f"--model={model}", "--output_file=out.csv"]


@dataclass
class Faults:
    """Errors of system calls on files whose path matches a glob. `seen`: calls that matched."""

    monkeypatch: pytest.MonkeyPatch
    seen: list[str] = field(default_factory=list)

    def inject(self, call: str, glob: str, error: int, first: int = 1, last: int = 1 << 30) -> None:
        """Let the calls `first` to `last` (counted from 1) of os.`call` raise `error`."""
        real = getattr(os, call)
        count = itertools.count(1)

        def faulty(file: Any, *rest: Any, **options: Any) -> Any:
            path = file
            if isinstance(file, int):
                with contextlib.suppress(FileNotFoundError):
                    path = os.readlink(f"/proc/self/fd/{file}")  # noqa: PTH115
            if fnmatch(str(path), glob):
                self.seen.append(call)
                if first <= next(count) <= last:
                    raise OSError(error, os.strerror(error))
            return real(file, *rest, **options)

        self.monkeypatch.setattr(os, call, faulty)

    def undo(self) -> None:
        self.monkeypatch.undo()


@pytest.fixture
def faults() -> Iterator[Faults]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield Faults(monkeypatch)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def resumed(command: Command, faults: Faults, job: list[str], directory: Path) -> None:
    """The same command once more, undisturbed, gives what it should have given at once."""
    faults.undo()
    assert command(*job).code == 3
    lines = (directory / "out.csv").read_text().splitlines()
    assert lines[0] == "x,y,prediction,score"
    assert len(lines) == 12
    assert names(directory) == {
        "data.csv", "out.csv", "out.csv.rejects.jsonl", "out.csv.receipt.json",
    }  # fmt: skip


@pytest.mark.parametrize("error", [*FULL, *GONE, errno.EROFS], ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["write", "fsync", "close", "replace"])
def test_the_output_cannot_be_written(
    tmp_path: Path, command: Command, job: list[str], faults: Faults, call: str, error: int
) -> None:
    faults.inject(call, "*/.out.csv.????????.part", error)
    done = command(*job)
    assert faults.seen
    assert done.code == 74
    words = ["out.csv: cannot be written: ", os.strerror(error).lower(), "an old file stays"]
    for word in [*words, " free on /", storage.remedy(OSError(error, ""))]:
        assert word in done.line
    assert (tmp_path / "out.csv").read_bytes() == OLD
    assert half_written(tmp_path) == []
    assert json.loads((tmp_path / "out.csv.failed.json").read_bytes())["exit_code"] == 74
    resumed(command, faults, job, tmp_path)


@pytest.mark.parametrize("error", [*FULL[:2], *GONE, errno.EROFS], ids=errno.errorcode.get)
@pytest.mark.parametrize("file", ["out.csv", "out.csv.rejects.jsonl", "out.csv.receipt.json"])
def test_a_draft_cannot_be_created(
    tmp_path: Path, command: Command, job: list[str], faults: Faults, file: str, error: int
) -> None:
    faults.inject("open", f"*/.{file}.????????.part", error)
    done = command(*job)
    assert faults.seen
    assert done.code == 73
    option = {"out.csv": "--output_file or --output_dir", "out.csv.rejects.jsonl": "--rejects_file"}
    for word in (
        f"{file}: cannot be created: {os.strerror(error).lower()} (", " free on /",
        storage.remedy(OSError(error, "")), option.get(file, "--receipt_file"),
    ):  # fmt: skip
        assert word in done.line
    if file != "out.csv.receipt.json":  # the last of them all
        assert (tmp_path / "out.csv").read_bytes() == OLD
    assert half_written(tmp_path) == []
    resumed(command, faults, job, tmp_path)


def test_a_name_that_is_wrong_has_no_free_space(
    command: Command, job: list[str], faults: Faults
) -> None:
    faults.inject("open", "*/.out.csv.????????.part", errno.EACCES)
    assert "cannot be created: permission denied; choose another place" in command(*job).line


def test_a_file_system_without_locks(
    tmp_path: Path, command: Command, job: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with monkeypatch.context() as patched:
        patched.setattr("fcntl.flock", no_locks)
        done = command(*job)
        assert (done.code, "no locks available" in done.line) == (73, True)
        with pytest.raises(OutputNotCreatable, match="no locks available"):
            Draft("out.csv")
    assert half_written(tmp_path) == []
    assert (tmp_path / "out.csv").read_bytes() == OLD


OUTPUTS = (
    *(f"out.{kind}{suffix}" for kind in ("csv", "json") for suffix in ("", ".gz", ".bz2", ".xz")),
    "out.jsonl.zst",
    "out.avro",
    "out.parquet",
)


@pytest.mark.parametrize("output", OUTPUTS)
def test_every_write_of_every_writer_may_fail(
    tmp_path: Path, command: Command, job: list[str], output: str, faults: Faults
) -> None:
    """Also those of a compressor that is being made, or closed."""
    arguments = [*job[:2], f"--output_file={output}"]
    counted = Faults(faults.monkeypatch)
    counted.inject("write", f"*/.{output}.????????.part", errno.EIO, first=1 << 30)
    assert command(*arguments).code == 3
    assert counted.seen
    for nth in {1, len(counted.seen)}:
        (tmp_path / output).write_bytes(OLD)
        faults.undo()
        faults.inject("write", f"*/.{output}.????????.part", errno.ENOSPC, first=nth)
        done = command(*arguments, "--no_resume")
        assert done.code == 74
        assert f"{output}: cannot be written: no space left on device" in done.line
        assert (tmp_path / output).read_bytes() == OLD
        assert half_written(tmp_path) == []


# The notes of rows in flight have their room from the start.
SMALL_NOTES = ("--workers=1", "--batch_rows=100")


@pytest.mark.parametrize("output", OUTPUTS)
def test_no_larger_file_is_allowed(
    tmp_path: Path, command: Command, job: list[str], output: str
) -> None:
    """A real limit (ulimit -f), which also sends a signal that would end a careless process."""
    (tmp_path / output).write_bytes(OLD)
    draw = random.Random(1)
    rows = "".join(f"{draw.random()},{draw.random()}\n" for _ in range(4000))
    (tmp_path / "data.csv").write_text("x,y\n" + rows)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        done = command(*job[:2], f"--output_file={output}", *SMALL_NOTES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert done.code == 74
    for word in (f"{output}: cannot be written: file too large", "ulimit -f", " free on /"):
        assert word in done.line
    assert (tmp_path / output).read_bytes() == OLD
    assert half_written(tmp_path) == []
    assert f"{output}.failed.json" in names(tmp_path)


def test_short_writes_lose_nothing(
    tmp_path: Path, command: Command, job: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(*job).code == 3
    files = ("out.csv", "out.csv.rejects.jsonl")
    whole = [(tmp_path / file).read_bytes() for file in files]
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, memoryview(data)[:3]))
    assert command(*job).code == 3
    assert [(tmp_path / file).read_bytes() for file in files] == whole


def test_what_failed_once_is_never_published(
    tmp_path: Path, command: Command, job: list[str], faults: Faults
) -> None:
    """A second fsync succeeds, but of what the first one lost nobody is told again."""
    faults.inject("fsync", "*/.out.csv.rejects.jsonl.????????.part", errno.EIO, last=1)
    done = command(*job)
    assert done.code == 74
    assert "out.csv.rejects.jsonl: cannot be written: input/output error" in done.line
    failed = json.loads((tmp_path / "out.csv.failed.json").read_bytes())
    assert (failed["exit_code"], failed["rejects"]["path"]) == (74, "out.csv.rejects.jsonl")
    assert (tmp_path / "out.csv").read_bytes() == OLD
    assert not [name for name in names(tmp_path) if "rejects" in name]
    resumed(command, faults, job, tmp_path)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_torn_write_is_never_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """The buffer above would write again what is written already."""
    draft = Draft(str(tmp_path / "out.csv"))
    write = os.write
    calls = itertools.count()

    def torn(file: int, data: Any) -> int:
        if next(calls) == 1:
            raise error
        return write(file, data[:4])

    monkeypatch.setattr(os, "write", torn)
    draft.stream.write(b"0123456789")
    with pytest.raises((OutputWriteFailed, KeyboardInterrupt)):
        draft.stream.flush()
    for _ in range(2):
        with pytest.raises(OutputWriteFailed, match="is incomplete; "):
            draft.finish()
    draft.abandon()
    assert names(tmp_path) == set()


def test_an_error_when_descriptors_are_closed(tmp_path: Path, faults: Faults) -> None:
    """Of standard output and devices it is the only one that some networks report."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    draft = Draft(str(tmp_path / "pipe"))
    draft.stream.write(b"1")
    faults.inject("close", "*/pipe", errno.EIO, last=1)
    with pytest.raises(OutputWriteFailed, match="pipe: cannot be written: input/output error"):
        draft.finish()
    draft.abandon()
    faults.undo()
    os.close(reader)


def test_a_draft_that_cannot_be_removed_hides_no_error(
    tmp_path: Path, command: Command, job: list[str], faults: Faults
) -> None:
    for call in ("write", "unlink"):
        faults.inject(call, "*/.out.csv.????????.part", errno.EROFS)
    done = command(*job)
    assert done.code == 74
    assert "out.csv: cannot be written: read-only file system" in done.line
    assert len(half_written(tmp_path)) == 1
    resumed(command, faults, job, tmp_path)


def test_drafts_of_other_users_are_left_alone(
    tmp_path: Path, command: Command, job: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".out.csv.01234567.part").touch()
    real = Path.open

    def refused(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name.endswith(".01234567.part"):
            raise PermissionError(errno.EACCES, "")
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refused)
    assert command(*job).code == 3
    assert [path.name for path in half_written(tmp_path)] == [".out.csv.01234567.part"]


def test_a_directory_that_cannot_be_synced(
    tmp_path: Path, command: Command, job: list[str], faults: Faults
) -> None:
    """By then the new name is there, and it is said that it may not last."""
    faults.inject("fsync", str(tmp_path), errno.EIO, first=2)  # the first is that of the rejects
    done = command(*job)
    assert done.code == 74
    assert "out.csv: is complete, but a power cut may undo that: input/output error" in done.line
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 12
    resumed(command, faults, job, tmp_path)


@pytest.mark.parametrize(("call", "error"), [("fsync", errno.EINVAL), ("open", errno.EACCES)])
def test_directories_that_have_no_fsync(
    tmp_path: Path, command: Command, job: list[str], faults: Faults, call: str, error: int
) -> None:
    synced: list[None] = []
    faults.monkeypatch.setattr(os, "sync", lambda: synced.append(None))
    faults.inject(call, str(tmp_path), error)
    assert command(*job).code == 3
    assert len(synced) == 3  # rejects, output, receipt


@pytest.mark.parametrize("stale", ["out.csv.failed.json", "out.csv.failed.rejects.jsonl"])
def test_stale_files_that_cannot_be_removed(
    tmp_path: Path, command: Command, job: list[str], faults: Faults, stale: str
) -> None:
    (tmp_path / stale).touch()
    faults.inject("unlink", stale, errno.EIO)
    done = command(*job)
    assert done.code == 73
    assert f"{stale}: cannot be removed: input/output error" in done.line
    assert half_written(tmp_path) == []
    resumed(command, faults, job, tmp_path)


def test_a_place_that_has_gone(
    tmp_path: Path, command: Command, job: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount that vanished answers even to stat with an error."""
    (tmp_path / "mount").mkdir()
    real = Path.stat

    def gone(self: Path, **options: Any) -> os.stat_result:
        if self.name == "mount" or self.parent.name == "mount":
            raise OSError(errno.ENOTCONN, "")
        return real(self, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "stat", gone)
        done = command(*job[:2], "--output_file=mount/out.csv")
    assert done.code == 73
    assert "mount/out.csv: cannot be created: transport endpoint is not connected" in done.line
    assert "check the mount" in done.line
    assert " free on " not in done.line


def test_a_place_that_goes_while_it_is_written_to(
    tmp_path: Path, command: Command, job: list[str], faults: Faults
) -> None:
    (tmp_path / "mount").mkdir()
    real = Path.stat
    write = os.write

    def gone(self: Path, **options: Any) -> os.stat_result:
        if self.name == "mount":
            raise OSError(errno.ENOTCONN, "")
        return real(self, **options)

    def last(file: int, data: Any) -> int:
        if os.readlink(f"/proc/self/fd/{file}").endswith(".part"):  # noqa: PTH115
            faults.monkeypatch.setattr(Path, "stat", gone)
            raise OSError(errno.ENOTCONN, "")
        return write(file, data)

    faults.monkeypatch.setattr(os, "write", last)
    done = command(*job[:2], "--output_file=mount/out.csv")
    assert done.code == 74
    for word in ("cannot be written: transport endpoint is not connected;", "check the mount"):
        assert word in done.line


# A disk of its own, in a name space of its own, for a command and the files in `given`. What is
# on the disk in the end is copied to `left`.
ON_A_SMALL_DISK = """
mkdir disk left && mount -t tmpfs -o "$1" none disk && cp -a given/. disk && $2 || exit 99
shift 2
"$@"
code=$?
cp -a disk/. left
exit $code
"""


def on_a_small_disk(
    directory: Path, given: dict[str, bytes], options: str, rules: tuple[Rule, ...], *words: str
) -> tuple[int, str]:
    """Exit code and standard error of a command whose output is on a small disk.

    `options`: of the mount; what follows a space is a shell command to be run after it.
    Where the system mounts nothing for users like us, `rules` stand in for the disk.
    """
    (directory / "given").mkdir()
    for name, content in given.items():
        (directory / "given" / name).write_bytes(content)
    command = [*COMMAND, *words]
    variables: dict[str, str] = {}
    mounted = subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(directory)],
        capture_output=True, check=False,
    )  # fmt: skip
    if mounted.returncode == 0:
        size, _, then = options.partition(" ")
        command = ["unshare", "-rm", "sh", "-c", ON_A_SMALL_DISK, "sh", size, then or ":", *command]
    else:
        shutil.copytree(directory / "given", directory / "disk")
        variables = {
            "LD_PRELOAD": str(build(directory)),
            **faulty_environment(rules, None, ""),
        }
    done = subprocess.run(
        command, cwd=directory, env=environment(**variables), capture_output=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    if mounted.returncode:
        (directory / "disk").rename(directory / "left")
    return done.returncode, done.stderr.decode()


def test_a_disk_runs_full(tmp_path: Path, model: Path) -> None:
    rows = "".join(f"{i}.5,{i}\n" for i in range(30_000))
    (tmp_path / "data.csv").write_text("x,y\n" + rows)
    full = Rule("write", "*.part", "errno", errno.ENOSPC, times=0)
    code, err = on_a_small_disk(
        tmp_path, {"out.csv": OLD}, "size=400k", (full,),
        "--input_file=data.csv", f"--model={model}", "--output_file=disk/out.csv", *SMALL_NOTES,
    )  # fmt: skip
    line = err.splitlines()[-1]  # a warning may come first: it was to be foreseen
    assert "Traceback" not in err
    assert code == 74, err
    for word in ("disk/out.csv: cannot be written: no space left on device (", " free on /",
                 "free some space there", "an old file stays"):  # fmt: skip
        assert word in line
    assert (tmp_path / "left/out.csv").read_bytes() == OLD
    assert half_written(tmp_path / "left") == []


def test_a_disk_that_is_read_only(tmp_path: Path, model: Path) -> None:
    (tmp_path / "data.csv").write_text(TABLE)
    code, err = on_a_small_disk(
        tmp_path, {"out.csv": OLD}, "size=400k mount -o remount,ro disk",
        (Rule("open", "*/disk/.*", "errno", errno.EROFS, times=0),),
        "--input_file=data.csv", f"--model={model}", "--output_file=disk/out.csv",
    )  # fmt: skip
    (line,) = err.splitlines()
    assert code == 73, err
    assert "read-only file system" in line
    assert names(tmp_path / "left") == {"out.csv"}
    assert (tmp_path / "left/out.csv").read_bytes() == OLD


# --- Inputs


def table_as(kind: str, path: Path, rows: int = 12) -> Path:
    path = path.with_name(f"{path.name}.{kind}")
    text = TABLE if rows == 12 else "x,y\n" + "".join(f"{hash((i,))},{i}\n" for i in range(rows))
    if kind == "parquet":
        table = pa.csv.read_csv(pa.py_buffer(text.replace("none", "").encode()))
        pq.write_table(table, path)
    else:
        path.write_bytes(gzip.compress(text.encode()) if kind.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("good", [0, 1])  # calls before the one that fails
@pytest.mark.parametrize("error", GONE[:3], ids=errno.errorcode.get)
@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet"])
def test_an_input_that_cannot_be_read(
    tmp_path: Path,
    command: Command,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    error: int,
    good: int,
) -> None:
    table_as(kind, tmp_path / "data")

    where: Any = pq.ParquetFile if kind == "parquet" else os
    call = "iter_batches" if kind == "parquet" else "readv"
    real = getattr(where, call)
    calls = itertools.count()

    def broken(*arguments: Any, **options: Any) -> Any:
        if next(calls) >= good:
            raise OSError(error, "Error reading bytes from file. Detail")
        return real(*arguments, **options)

    monkeypatch.setattr(where, call, broken)
    done = command(f"--input_file=data.{kind}", f"--model={model}")
    assert done.code == 66
    assert f"data.{kind}: cannot be read: {os.strerror(error).lower()}; check the" in done.line
    assert half_written(tmp_path) == []


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"1,1\n")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 5)


def rewrite(path: Path) -> None:
    """With as many other bytes."""
    content = path.read_bytes()
    path.write_bytes(content[::-1])


def replace(path: Path) -> None:
    """As a producer does that publishes a new version by renaming."""
    other = path.with_name("other")
    shutil.copy2(path, other)
    other.replace(path)


@pytest.mark.parametrize("limit", [None, 10])
@pytest.mark.parametrize("change", [grow, truncate, rewrite, replace])
@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet"])
def test_an_input_that_changes_while_it_is_read(
    tmp_path: Path, model: Path, kind: str, change: Callable[[Path], None], limit: int | None
) -> None:
    data = table_as(kind, tmp_path / "data")
    output = tmp_path / f"out.{kind}"
    output.write_bytes(OLD)
    job = Job(
        input_file=(str(data),), output_file=str(output), model=str(model), limit=limit,
        max_rejects="100%",
    )  # fmt: skip
    with pytest.raises(TryAgain, match="changed while it was read; run again"):
        runner.run(job, lambda counts, source: change(data))
    assert output.read_bytes() == OLD
    assert half_written(tmp_path) == []
    assert json.loads((tmp_path / f"out.{kind}.failed.json").read_bytes())["exit_code"] == 75


def test_an_input_that_is_truncated_under_the_reader_is_not_called_damaged(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = table_as("csv.gz", tmp_path / "data", rows=20_000)
    assert data.stat().st_size > 200 << 10
    real = os.readv

    def truncating(file: int, views: list[memoryview]) -> int:
        count = real(file, [views[0][: 64 << 10]])
        os.truncate(data, 128 << 10)
        return count

    monkeypatch.setattr(os, "readv", truncating)
    job = Job(input_file=(str(data),), model=str(model), limit=None)
    with pytest.raises(TryAgain, match="changed while it was read"):
        runner.run(job, lambda counts, source: None)
    assert not (tmp_path / "data.scored.csv.gz").exists()


def test_an_input_that_is_removed_after_it_was_opened_was_read_whole(tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    data.write_text(TABLE)
    source = source_of(str(data))
    stream = source.open()
    data.unlink()
    assert stream.read() == TABLE.encode()
    source.check_unchanged()
    source.finish()
    with pytest.raises(InputMissing):
        source.open()


# --- Who may read what


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[int]]:
    """Modes that drafts had when they were made, written, and had their permissions changed."""
    found: dict[str, set[int]] = {}

    def watch(call: str) -> None:
        real = getattr(os, call)

        def watched(file: Any, *rest: Any, **options: Any) -> Any:
            result = real(file, *rest, **options)
            descriptor = result if call == "open" else file
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115
            if path.name.endswith(".part"):
                bits = stat.S_IMODE(os.fstat(descriptor).st_mode)
                found.setdefault(path.name[1 : -len(".01234567.part")], set()).add(bits)
            return result

        monkeypatch.setattr(os, call, watched)

    for call in ("open", "write", "fchmod", "fchown"):
        watch(call)
    return found


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0o077, 0o027, 0o022, 0o000])
def test_new_files_follow_the_umask(
    tmp_path: Path, command: Command, job: list[str], modes: dict[str, set[int]], mask: int
) -> None:
    (tmp_path / "out.csv").unlink()
    with umask(mask):
        assert command(*job, "--max_rejects=0").code == 65
        assert command(*job).code == 3
        assert command(*job, "--max_rejects=0").code == 65
    files = names(tmp_path) - {"data.csv"}
    assert {
        "out.csv", "out.csv.rejects.jsonl", "out.csv.receipt.json",
        "out.csv.failed.json", "out.csv.failed.rejects.jsonl",
    } <= files  # fmt: skip
    assert {file: mode_of(tmp_path / file) for file in files} == dict.fromkeys(files, 0o666 & ~mask)
    assert len(modes) == 4
    # 0600 is how a draft begins that replaces a file.
    assert set().union(*modes.values()) <= {0o666 & ~mask, 0o600}


@pytest.mark.parametrize("mask", [0o077, 0o000])
@pytest.mark.parametrize("bits", [0o600, 0o640, 0o604, 0o666, 0o444])
def test_a_file_that_is_replaced_hands_its_permissions_on(
    tmp_path: Path,
    command: Command,
    job: list[str],
    modes: dict[str, set[int]],
    bits: int,
    mask: int,
) -> None:
    files = ("out.csv", "out.csv.rejects.jsonl", "out.csv.receipt.json")
    for file in files:
        (tmp_path / file).touch()
        (tmp_path / file).chmod(bits)
    with umask(mask):
        assert command(*job).code == 3
    for file in files:
        assert mode_of(tmp_path / file) == bits
        assert bits in modes[file]
        # 0600 is how a draft begins; only the owner is concerned.
        assert all(not seen & 0o077 & ~bits for seen in modes[file])


@pytest.mark.parametrize("old", [0o600, 0o640, None])
def test_a_journal_shows_no_more_than_its_output(tmp_path: Path, old: int | None) -> None:
    output = tmp_path / "out.csv"
    if old is not None:
        output.touch()
        output.chmod(old)
    with umask(0o022), lock_output(str(output)) as held:
        assert held is not None
        assert mode_of(held.path) == (0o644 if old is None else old)


def test_set_id_bits_are_not_handed_on(tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    (tmp_path / "old").chmod(0o6755)
    os.close(permissions.create_like(tmp_path / "old", tmp_path / "new"))
    assert mode_of(tmp_path / "new") == 0o755


@pytest.mark.parametrize("allowed", [True, False])
def test_the_group_is_handed_on_or_gets_what_all_get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.touch()
    old.chmod(0o664)
    group = os.getegid() + 1
    asked: list[tuple[int, int]] = []
    stat_of, status_of = Path.stat, os.fstat

    def in_another_group(status: os.stat_result) -> os.stat_result:
        return os.stat_result((*status[:5], group, *status[6:]))

    def other(self: Path, **options: Any) -> os.stat_result:
        return (
            in_another_group(stat_of(self, **options)) if self == old else stat_of(self, **options)
        )

    def fchown(descriptor: int, owner: int, wanted: int) -> None:
        asked.append((owner, wanted))
        if not allowed:
            raise PermissionError(errno.EPERM, "")
        monkeypatch.setattr(os, "fstat", lambda file: in_another_group(status_of(file)))

    monkeypatch.setattr(Path, "stat", other)
    monkeypatch.setattr(os, "fchown", fchown)
    os.close(permissions.create_like(old, new))
    assert asked == [(os.geteuid(), group), (-1, group)][: 1 if allowed else 2]
    assert mode_of(new) == (0o664 if allowed else 0o644)


def access_list(named: int) -> bytes:
    """user::rw-, user:12345:`named`, group::---, mask::rw-, other::---"""
    entries = [(1, 6, -1), (2, named, 12345), (4, 0, -1), (16, 6, -1), (32, 0, -1)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


def test_access_lists_are_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a list the bits of the group are its mask: taken for the group's they let it in."""
    old, new, refused = tmp_path / "old", tmp_path / "new", tmp_path / "refused"
    old.touch()
    os.setxattr(old, "system.posix_acl_access", access_list(4))
    assert mode_of(old) == 0o660
    os.close(permissions.create_like(old, new))
    assert os.getxattr(new, "system.posix_acl_access") == access_list(4)

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, "")

    monkeypatch.setattr(os, "setxattr", refuse)
    os.close(permissions.create_like(old, refused))
    assert mode_of(refused) == 0o600


def test_the_list_of_a_directory_lets_nobody_in_whom_the_old_file_kept_out(tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    (tmp_path / "old").chmod(0o640)
    os.setxattr(tmp_path, "system.posix_acl_default", access_list(6))
    os.close(permissions.create_like(tmp_path / "old", tmp_path / "new"))
    assert mode_of(tmp_path / "new") == 0o640
    with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
        os.getxattr(tmp_path / "new", "system.posix_acl_access")


# --- Free space


def test_amounts() -> None:
    shown = {0: "0 B", 999: "999 B", 1000: "1.0 kB", 999_949: "999.9 kB", 999_950: "1.0 MB"}
    assert {size: storage.amount(size) for size in shown} == shown
    assert storage.amount(12_345_678) == "12.3 MB"


def test_the_file_system_of_a_name_that_is_not_there_yet(tmp_path: Path) -> None:
    found = storage.space_at(tmp_path / "a/b/out.csv")
    assert found is not None
    assert Path(found.mount).is_mount()
    assert found.free <= os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize
    assert storage.space_at(Path("/proc/self/x")) is None
    assert str(Space(1, "/mnt/x", 12_345_678, False)) == "12.3 MB free on /mnt/x"
    assert str(Space(1, "/mnt/x", 12_345_678, True)) == "12.3 MB, but no inode, free on /mnt/x"


@dataclass
class Checked:
    """`check_space` where every file system has `free` bytes left; lines it warned with."""

    caplog: pytest.LogCaptureFixture
    monkeypatch: pytest.MonkeyPatch

    def __call__(self, free: int | None, **options: Any) -> list[str]:
        job = Job(model="m.onnx", **options)
        found = None if free is None else Space(1, "/mnt/x", free, False)
        self.monkeypatch.setattr(space, "space_at", lambda path: found)
        self.caplog.clear()
        with self.caplog.at_level(logging.INFO, "batchpredict"):
            space.check_space(tasks_of(job)[0], job)
        return [record.getMessage() for record in self.caplog.records]


@pytest.fixture
def checked(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Checked:
    monkeypatch.chdir(tmp_path)
    for name, size in {"a.csv": 1000, "b.csv": 1000, "c.csv.gz": 1000, "d.parquet": 1000}.items():
        Path(name).write_bytes(bytes(size))
    return Checked(caplog, monkeypatch)


def test_room_that_is_there_is_not_talked_about(checked: Checked) -> None:
    assert checked(1100, input_file=("a.csv",)) == []
    assert checked(1 << 40, input_file=("*.csv", "c.csv.gz", "d.parquet")) == []


def test_room_that_is_missing(checked: Checked) -> None:
    assert checked(1099, input_file=("a.csv",)) == [
        "a.scored.csv: needs about 1.1 kB, 1.1 kB free on /mnt/x; free some space there, or "
        "choose another place with --output_file or --output_dir"
    ]


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({"input_file": ("a.csv", "b.csv")}, 2100),
        ({"input_file": ("c.csv.gz",)}, 1000 + 400),
        ({"input_file": ("c.csv.gz",), "output_file": "out.csv"}, 4000 + 400),
        ({"input_file": ("a.csv",), "output_file": "out.csv.gz"}, 250 + 100),
        ({"input_file": ("d.parquet",), "output_file": "out.csv"}, 2500 + 250),
        ({"input_file": ("a.csv",), "output_file": "out.jsonl"}, 2000 + 100),
        ({"input_file": ("a.csv",), "engine": "ray"}, 1000 + 1000),
        ({"input_file": ("a.csv",), "engine": "ray", "output_parts": True}, 1000 + 100),
    ],
)
def test_what_is_needed(checked: Checked, options: dict[str, Any], needed: int) -> None:
    assert checked(needed, **options) == []
    (line,) = checked(needed - 2, **options)
    assert f"about {storage.amount(needed)}, {storage.amount(needed - 2)} free on /mnt/x" in line


def test_outputs_that_are_replaced_make_room_for_the_next(checked: Checked) -> None:
    Path("a.scored.csv").write_bytes(bytes(1000))
    assert checked(1100, input_file=("a.csv", "b.csv")) == []
    (line,) = checked(1099, input_file=("a.csv", "b.csv"))
    assert line.startswith("a.scored.csv and 1 more output: need about 1.1 kB, ")


@pytest.mark.parametrize(
    "options",
    [
        {"keep": "none"},
        {"keep": ("x",)},
        {"limit": 5},
        {"output_file": "-"},
        {"output_file": "/dev/null"},
    ],
)
def test_what_cannot_be_known_is_not_talked_about(
    checked: Checked, options: dict[str, Any]
) -> None:
    assert checked(0, input_file=("a.csv",), **options) == []


def test_file_systems_that_do_not_say(checked: Checked) -> None:
    assert checked(None, input_file=("a.csv",)) == []
