"""Tell others how a run went: a metrics file, health pings. Neither can fail the run."""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from batchpredict.errors import BatchPredictError, Unavailable, exit_code_of, message_of
from batchpredict.ops.task_names import TaskName
from batchpredict.run.current import run_id
from batchpredict.signals import deferred

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from batchpredict.job import Job
    from batchpredict.run.receipt import Receipt

# Of a run's warnings and errors, those that are kept: the last.
_MOST_MESSAGES = 100


@dataclass(frozen=True)
class Targets:
    """Where to tell of a run; None: nowhere."""

    metrics_dir: str | None
    ping_url: str | None


@dataclass(frozen=True)
class Ended:
    """A run that is over. `ended`: seconds since the epoch.

    `published`, `failed`: receipts of its inputs, the latter as JSON has them. `messages`: its last
    warnings and errors.
    """

    run_id: str
    exit_code: int
    ended: float
    seconds: float
    published: tuple[Receipt, ...]
    failed: tuple[Mapping[str, Any], ...]
    messages: tuple[str, ...]

    @property
    def status(self) -> str:
        """`stopped`: not finished, but the same command goes on, or may succeed later."""
        known = {0: "success", 3: "partial", 75: "stopped", 130: "stopped", 143: "stopped"}
        return known.get(self.exit_code, "failed")


class Watched(logging.Handler):
    """A run while it works. `jobs`: as soon as they are known. `exit_code`: if it returns one."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.jobs: tuple[Job, ...] = ()
        self.exit_code = 0
        self._begin = time.monotonic()
        self._published: list[Receipt] = []
        self._messages: deque[str] = deque(maxlen=_MOST_MESSAGES)

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(f"{record.levelname} {record.getMessage()}")

    def after(self, shown: Callable[[Receipt], None]) -> Callable[[Receipt], None]:
        """What is to be told of each published input: it is shown, and kept."""

        def published(receipt: Receipt) -> None:
            shown(receipt)
            self._published.append(receipt)

        return published

    def failed(self, error: BaseException) -> None:
        """Told of what has ended the run."""
        self.exit_code = exit_code_of(error)
        self._messages.append(f"ERROR {message_of(error)}")

    @cached_property
    def ended(self) -> Ended:
        """What has become of it, once it is over."""
        # Where a store cannot be used, asking it for receipts takes as long again.
        jobs = self.jobs if self.exit_code not in (0, Unavailable.exit_code) else ()
        return Ended(
            run_id(),
            self.exit_code,
            time.time(),
            time.monotonic() - self._begin,
            tuple(self._published),
            tuple(receipt for job in jobs for receipt in _failed(job)),
            tuple(self._messages),
        )


@contextmanager
def monitored(name: TaskName, targets: Targets) -> Iterator[Watched]:
    """Tell `targets` of what is done in here. Raises UsageError: `ping_url` is no address."""
    watched = Watched()
    log = logging.getLogger("batchpredict")
    log.addHandler(watched)
    pings = None
    try:
        if targets.ping_url is not None:
            from batchpredict.ops.pings import Pings

            pings = Pings(targets.ping_url, run_id())
            pings.start()
        yield watched
    except BaseException as error:
        watched.failed(error)
        raise
    finally:
        log.removeHandler(watched)
        with deferred():
            with _harmless("--metrics_dir"):
                if targets.metrics_dir is not None:
                    from batchpredict.ops.metrics import write_metrics

                    write_metrics(targets.metrics_dir, name, watched.ended)
            with _harmless("--ping_url"):
                if pings is not None:
                    pings.end(watched.ended)


@contextmanager
def _harmless(option: str) -> Iterator[None]:
    """What tells of a run must not be what fails it, not even by a bug."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - of which the text may hold the ping's address
        logger.warning("%s: this run is not told of: %s", option, type(error).__name__)


def _failed(job: Job) -> Iterator[dict[str, Any]]:
    """The receipts of inputs that failed in this run."""
    from batchpredict.data.naming import tasks_of

    try:
        tasks, _ = tasks_of(job)
    except BatchPredictError:  # then that is what has ended the run
        return
    for task in tasks:
        receipt = _read(task.failed or task.receipt)
        if receipt.get("run_id") == run_id() and receipt.get("exit_code") not in (0, 3):
            yield receipt


def _read(path: str | None) -> dict[str, Any]:
    """A receipt; nothing where there is none, or no file of ours."""
    from batchpredict.data.outputs import read_small

    try:
        found = json.loads((path and read_small(path)) or b"")
    except (BatchPredictError, ValueError, RecursionError):  # a store may not answer
        return {}
    return found if isinstance(found, dict) else {}
