"""What scores parts in a process of a cluster: a model loaded once, one shard after the other."""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from batchpredict import __version__, errors, s3
from batchpredict.data.locks import Held, lock_output
from batchpredict.data.naming import Task
from batchpredict.data.outputs import read_small
from batchpredict.data.sources import source_of
from batchpredict.errors import BatchPredictError, ConfigInvalid, InputMissing, TryAgain
from batchpredict.job import Job
from batchpredict.run.allocators import give_back
from batchpredict.run.current import adopt
from batchpredict.run.deadline import Deadline
from batchpredict.run.fetching import fetch
from batchpredict.run.loading import LoadedModel, load_model
from batchpredict.run.receipt import Counts
from batchpredict.run.resuming import forget
from batchpredict.run.runner import run_task

# What a row's score may depend on: a node has the driver's.
_PACKAGES = ("batchpredict", "onnxruntime", "onnxruntime-ep-openvino", "tokenizers", "numpy")
_PARENT = "batchpredict"
# Lines, as (level, message).
Log = tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Setup:
    """What a worker is to be. `job`: as `part_job` makes it; `digest`: the model's.

    `directory`: that of the driver, where relative names begin; None where there are none.
    `probes`: small outputs that the driver has written, with their content. `input`: one of the
    inputs, with its size and fingerprint. `versions`: of what a score depends on. `level`: of the
    log.
    """

    job: Job
    digest: str
    run_id: str
    directory: str | None
    probes: Mapping[str, bytes]
    input: tuple[str, int | None, str]
    versions: Mapping[str, str | None]
    level: int = logging.INFO


@dataclass(frozen=True)
class About:
    """What a process computes with. `cpu`: the kind of CPU, as the system names it."""

    versions: Mapping[str, str | None]
    cpu: str


@dataclass(frozen=True)
class Problem:
    """An expected error, by the name of its class in errors.py."""

    kind: str
    message: str

    @classmethod
    def of(cls, error: BatchPredictError) -> Problem:
        """A subclass that only its module knows becomes what errors.py has of it."""
        known = next(c.__name__ for c in type(error).__mro__ if getattr(errors, c.__name__, 0) is c)
        return cls(known, str(error))

    def error(self, node: str) -> BatchPredictError:
        """What to raise where the work was given out."""
        kind: type[BatchPredictError] = getattr(errors, self.kind)
        return kind(f"{self.message} (on node {node})" if node else self.message)


@dataclass(frozen=True)
class Answer:
    """What has become of a part: its receipt's content, or what was wrong. `seconds`: it took.
    `log`: what was logged since the last look.
    """

    receipt: Mapping[str, Any] | None
    problem: Problem | None
    seconds: float
    log: Log


@dataclass(frozen=True)
class Look:
    """Where a worker is: the rows of its shard so far, and what was logged since the last look."""

    counts: Counts
    log: Log


class Worker:
    """Scores parts, one at a time; the other methods are for any thread at any time.

    The model is loaded with the first call that needs it, after a look at the node: one that died
    may have been started again on another.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._model: LoadedModel | None = None
        self._loading = threading.Lock()
        self._counts = Counts()
        self._stop = _Stop()
        self._log = _Lines(setup.level)
        logger = logging.getLogger(_PARENT)
        logger.setLevel(setup.level)
        logger.propagate = False
        logger.addHandler(self._log)
        adopt(setup.run_id)

    def check(self) -> About | Problem:
        """Whether this node sees what the driver sees."""
        try:
            self._loaded()
            self._check_input()
        except BatchPredictError as error:
            return Problem.of(error)
        return about()

    def score(self, task: Task) -> Answer:
        """Score a part and publish it."""
        begin = time.monotonic()
        self._counts = Counts()
        content, problem = None, None
        try:
            model = self._loaded()
            with _locked(task.output) as held:
                receipt = run_task(task, self._setup.job, model, self._watch, held, self._stop)
                if held is not None:
                    forget({task.output: held})
            content = receipt.content()
        except BatchPredictError as error:
            problem = Problem.of(error)
        finally:
            give_back()
        return Answer(content, problem, time.monotonic() - begin, self._log.take())

    def look(self) -> Look:
        """See Look."""
        return Look(self._counts, self._log.take())

    def stop(self) -> None:
        """Have `score` come to an end soon, with what it has scored kept for the next run."""
        self._stop.asked.set()

    def _watch(self, counts: Counts, _: Any) -> None:
        self._counts = counts

    def _loaded(self) -> LoadedModel:
        with self._loading:
            if self._model is None:
                self._model = self._load()
            return self._model

    def _load(self) -> LoadedModel:
        setup = self._setup
        self._check_versions(about())
        if setup.directory is not None:
            try:
                os.chdir(setup.directory)
            except OSError as error:
                raise InputMissing(
                    f"{setup.directory}: {(error.strerror or '').lower()}; give names with their "
                    "whole path, or start in a directory that every node has"
                ) from error
        s3.connect_to(setup.job.endpoint_url, setup.job.service)
        self._check_outputs()
        fetched = fetch(setup.job)
        if fetched.package.digest != setup.digest:
            raise ConfigInvalid(
                f"{setup.job.model}: is another model here (sha256 {fetched.package.digest[:12]}) "
                f"than where the job was started ({setup.digest[:12]}); use a model store"
            )
        return load_model(setup.job, fetched)

    def _check_versions(self, here: About) -> None:
        for name, wanted in self._setup.versions.items():
            if here.versions.get(name) != wanted:
                raise ConfigInvalid(
                    f"{name} is {here.versions.get(name) or 'not installed'} here and "
                    f"{wanted or 'not installed'} where the job was started; install the same "
                    "everywhere"
                )

    def _check_outputs(self) -> None:
        for name, content in self._setup.probes.items():
            if read_small(name) != content:
                raise ConfigInvalid(
                    f"{Path(name).parent}: is not the directory that the job was started with; "
                    "outputs have to lie where every node sees them (a shared file system, s3://)"
                )

    def _check_input(self) -> None:
        name, size, fingerprint = self._setup.input
        source = source_of(name)
        if (source.size, source.fingerprint()) != (size, fingerprint):
            raise ConfigInvalid(
                f"{name}: is not the file that the job was started with; inputs have to lie where "
                "every node sees them (a shared file system, s3://)"
            )


@dataclass(frozen=True)
class _Stop(Deadline):
    """Comes when it is asked for."""

    asked: threading.Event = field(default_factory=threading.Event)

    def check(self, progressed: bool, name: str) -> None:  # noqa: ARG002
        if self.asked.is_set():
            raise TryAgain(f"{name}: stopped; run the same command to go on")


class _Lines(logging.Handler):
    """Keeps what is logged until it is taken."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._kept: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._kept.append((record.levelno, record.getMessage()))

    def take(self) -> Log:
        self.acquire()
        try:
            kept, self._kept = self._kept, []
        finally:
            self.release()
        return tuple(kept)


def about() -> About:
    """Of this process."""
    return About({name: _version(name) for name in _PACKAGES}, _cpu())


def _version(package: str) -> str | None:
    if package == _PARENT:
        return __version__
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


@contextmanager
def _locked(output: str) -> Iterator[Held | None]:
    """The lock of a part; None where somebody else scores it too, who cannot be helped by us.

    One that was taken for dead may be alive. Both write the same.
    """
    with ExitStack() as stack:
        try:
            held = stack.enter_context(lock_output(output))
        except TryAgain:
            held = None
        yield held
