"""Ray actors that score parts. The only import of ray.

Ray carries names of shards and small records, never rows; it starts actors, restarts them when
they or their nodes die, gives them their shard again, and asks for nodes where it can.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TextIO, cast

import ray
from ray.exceptions import RayActorError, RayError

from batchpredict.cgroup import effective_cores
from batchpredict.counting import count
from batchpredict.data.naming import Task
from batchpredict.errors import ConfigInvalid, TryAgain, Unavailable
from batchpredict.job import Job
from batchpredict.light_imports import light_imports
from batchpredict.run.receipt import Counts
from batchpredict.run.worker import About, Answer, Log, Look, Problem, Setup, Worker, about
from batchpredict.signals import check_signals

logger = logging.getLogger(__name__)

# Times that a shard is given to an actor again, by Ray: what kills it is narrowed down to a row
# with each.
_MOST_DEATHS = 20
_TICK_SECONDS = 0.2
_LOOK_SECONDS = 2.0
# For the fewest actors asked for: nodes of a cloud take minutes to start.
_START_SECONDS = 600.0
_REACH_SECONDS = 10.0
_TOLD_SECONDS = 30.0
# For shards in flight to be kept when a run ends early.
_PATIENCE_SECONDS = 1.5
# For Ray to end where a run ends early.
_END_SECONDS = 2.0
# The least that Ray takes; there is nothing in it.
_OBJECT_STORE_BYTES = 80 << 20
# Older versions of Ray have no tokens.
_REFUSED: tuple[type[Exception], ...] = (
    ConnectionError,
    RuntimeError,
    ValueError,
    getattr(ray.exceptions, "AuthenticationError", ConnectionError),
)
_ADVICE = (
    "; look whether that cluster runs, and set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN if it wants "
    "a token"
)
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_COLOR_PREFIX": "0",
}


class _Actor:
    """A Worker, and where it is."""

    def __init__(self, setup: Setup) -> None:
        with light_imports():
            self._worker = Worker(setup)
        self._node = ray.util.get_node_ip_address()

    def check(self) -> tuple[str, About | Problem]:
        return self._node, self._worker.check()

    def score(self, task: Task) -> tuple[str, Answer]:
        return self._node, self._worker.score(task)

    def look(self) -> tuple[str, Look]:
        return self._node, self._worker.look()

    def stop(self) -> None:
        self._worker.stop()


@dataclass(frozen=True)
class Delivered:
    """What has become of a part. `node`: the address of that which had it; `actor`: its number."""

    task: Task
    answer: Answer
    node: str
    actor: int


class RayCluster:
    """A pool of actors; Ray's own, if there is none to join, begins and ends with it.

    Raises ConfigInvalid, TryAgain, and what keeps a node from scoring.
    """

    def __init__(self, setup: Setup, job: Job) -> None:
        self._setup = setup
        self._held = ExitStack()
        self._began = not ray.is_initialized()
        least, most = job.pool
        if self._began:
            _connect(job, least, most)
        cpus = job.cpus_per_actor
        if most is None:
            most = max(least, int(ray.cluster_resources().get("CPU", 1)) // cpus)
        self._least = least
        options: dict[str, Any] = {
            "num_cpus": cpus,
            "max_restarts": -1,
            "max_task_retries": _MOST_DEATHS,
            "max_concurrency": 3,
        }
        started: Any = ray.remote(**options)(_Actor)
        self._actors: list[Any] = [started.remote(setup) for _ in range(most)]
        self._starting: dict[Any, Any] = {actor.check.remote(): actor for actor in self._actors}
        self._idle: list[Any] = []
        self._is_working = False
        self._busy: dict[Any, tuple[Any, Task]] = {}
        self._looks: dict[Any, Any] = {}
        self._looked = time.monotonic()
        self._counts: dict[Any, Counts] = {}
        self._cpu = about().cpu

    def start(self) -> None:
        """Wait for the fewest actors that were asked for."""
        begin = told = time.monotonic()
        while len(self._idle) < self._least:
            check_signals()
            self._welcome(_TICK_SECONDS)
            now = time.monotonic()
            if now - told >= _TOLD_SECONDS:
                told = now
                logger.info("%s", self._waiting())
            if now - begin >= _START_SECONDS:
                raise TryAgain(f"{self._waiting()}; add nodes, or ask for fewer with --actors")
        self._is_working = True
        logger.info("%s on %s", count(len(self._idle), "actor"), self._where())

    def _waiting(self) -> str:
        cpus = ray.cluster_resources().get("CPU", 0)
        return (
            f"the cluster has started {len(self._idle)} of {self._least} actors, each of "
            f"{self._setup.job.workers} CPUs; it has {cpus:g} CPUs"
        )

    def _where(self) -> str:
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        return f"a Ray cluster of {nodes} nodes" if nodes > 1 else "one node"

    def _welcome(self, wait: float) -> None:
        """Take actors that have started and see what the driver sees.

        One that does not ends a run that has not begun to work, and is left out of one that has.
        """
        if not self._starting:
            return
        ready, _ = ray.wait(list(self._starting), timeout=wait)
        for reference in ready:
            actor = self._starting.pop(reference)
            node, said = _result(reference, "start")
            if isinstance(said, Problem):
                if not self._is_working:
                    raise said.error(node)
                logger.warning("%s; no work is given to it", said.error(node))
                self._release([actor])
                continue
            if said.cpu != self._cpu:
                logger.warning(
                    "node %s has another kind of CPU (%s) than this one (%s): scores may differ in "
                    "their last digits",
                    node,
                    said.cpu,
                    self._cpu,
                )
                self._cpu = said.cpu
            self._idle.append(actor)

    def map(self, orders: Iterator[Task]) -> Iterator[Delivered | None]:
        """Have each part scored, in any order of coming; None now and then while nothing comes."""
        left = True
        while left or self._busy:
            while left and self._idle:
                task = next(orders, None)
                if task is None:
                    left = False
                    break
                actor = self._idle.pop()
                self._busy[actor.score.remote(task)] = (actor, task)
            if not left:
                self._release(self._idle)
            if self._busy:
                ready, _ = ray.wait(list(self._busy), timeout=_TICK_SECONDS)
                for reference in ready:
                    yield self._delivered(reference)
            self._welcome(0.0 if self._busy else _TICK_SECONDS)
            self._look()
            yield None

    def _release(self, idle: list[Any]) -> None:
        """There is nothing left for these; their CPUs are for others."""
        while idle:
            actor = idle.pop()
            self._actors.remove(actor)
            ray.kill(actor)

    def _delivered(self, reference: Any) -> Delivered:
        actor, task = self._busy.pop(reference)
        self._counts.pop(actor, None)
        node, answer = _result(reference, task.output)
        _tell(node, answer.log)
        self._idle.append(actor)
        return Delivered(task, answer, node, hash(actor))

    def _look(self) -> None:
        """Ask the busy ones, and take what they have said by now."""
        if self._looks:
            busy = {actor for actor, _ in self._busy.values()}
            references = list(self._looks)
            ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
            for reference in ready:
                actor = self._looks.pop(reference)
                try:
                    node, look = ray.get(reference)
                except RayActorError:  # its shard will tell
                    continue
                _tell(node, look.log)
                if actor in busy:
                    self._counts[actor] = look.counts
        elif time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._looked = time.monotonic()
            self._looks = {actor.look.remote(): actor for actor, _ in self._busy.values()}

    @property
    def in_flight(self) -> Counts:
        """Rows of shards that are being scored, as far as is known."""
        return sum(self._counts.values(), Counts())

    def __enter__(self) -> RayCluster:
        self._held.enter_context(redirect_stdout(cast(TextIO, _Stdout(sys.stdout))))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        busy = list(self._busy)
        with self._held:
            for actor, _ in self._busy.values():
                actor.stop.remote()
            if busy:
                ray.wait(busy, num_returns=len(busy), timeout=_PATIENCE_SECONDS)
            for actor in self._actors:
                ray.kill(actor)
            if self._began:
                # It waits long for a node that the same signal has ended, and there is more to be
                # told.
                ending = threading.Thread(target=ray.shutdown, name="ray_shutdown", daemon=True)
                ending.start()
                ending.join(None if error is None else _END_SECONDS)


class _Stdout:
    """The standard output, but what a thread of Ray prints is logged: the log may be JSON Lines."""

    def __init__(self, stdout: TextIO) -> None:
        self._stdout = stdout

    def write(self, text: str) -> int:
        if not threading.current_thread().name.startswith("ray_"):
            return self._stdout.write(text)
        if line := " ".join(text.split()):
            logger.warning("Ray: %s", line)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stdout, name)


def _tell(node: str, log: Log) -> None:
    for level, message in log:
        logger.log(level, "node %s: %s", node, message)


def _result(reference: Any, what: str) -> Any:
    """What an actor has answered. Raises TryAgain where there is none any more."""
    try:
        return ray.get(reference)
    except RayActorError as error:
        why = " ".join(str(error).split())
        if "No module named" in why or "ModuleNotFoundError" in why:
            raise ConfigInvalid(
                f"a node cannot load batchpredict: {why}; install the same version on all nodes"
            ) from error
        raise TryAgain(
            f"{what}: the process that was to do it has died too often: {why}; look at that node, "
            "and run the same command to go on"
        ) from error


def _check_reachable(address: str) -> None:
    """Raise Unavailable where nobody listens: Ray tries for a quarter of an hour."""
    host, _, port = address.rpartition(":")
    if "//" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise Unavailable(
            f"--ray_address={address}: no cluster answers there "
            f"({getattr(error, 'strerror', None) or error}); start it, or name another"
        ) from error


def _connect(job: Job, least: int, most: int | None) -> None:
    """Join the cluster, or begin one on this machine."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    # Ray takes SIGTERM for itself.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    own: dict[str, Any] = {}
    if job.ray_address is None:
        # Else Ray makes one, in a home that may not be there, or not be writable.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        cpus = max(effective_cores(), (most or least) * job.cpus_per_actor)
        own = {
            "num_cpus": cpus,
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
    else:
        _check_reachable(job.ray_address)
    try:
        ray.init(
            address=job.ray_address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            **own,
        )
    except _REFUSED as error:
        where = f"--ray_address={job.ray_address}" if job.ray_address else "--engine=ray"
        raise ConfigInvalid(
            f"{where}: {' '.join(str(error).split())}{_ADVICE if job.ray_address else ''}"
        ) from error
    except Exception as error:
        if type(error) is not Exception and not isinstance(error, RayError):
            raise
        # Ray's own, of a node that has not started within its half a minute.
        raise TryAgain(
            f"Ray has not started: {' '.join(str(error).split())}; run the same command when this "
            "machine has less to do"
        ) from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
