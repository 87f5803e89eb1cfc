"""Run a command as a whole process: wall seconds, CPU seconds and peak memory of its tree."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
# Looking at a process costs CPU time that the contenders want: rarely in a long run.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 1.0
# Daemons of a framework that was shut down end on their own, or are ended after this long.
_LINGER_SECONDS = 15.0
_LONGEST_SECONDS = 1800.0


@dataclass(frozen=True)
class Reading:
    """One run. `wall` ends with the command; `cpu` includes daemons that outlived it.

    `peak_bytes`: the highest sampled sum of proportional set sizes over the tree, or the
    highest resident set of one of its processes where that is more.
    """

    wall: float
    cpu: float
    peak_bytes: int
    exit_code: int


def run(
    command: Sequence[str], environment: Mapping[str, str], log: Path, peak_too: bool = True
) -> Reading:
    """Runs to the end or half an hour, stdout and stderr into `log`.

    Without `peak_too` nobody looks at memory: that holds the processes up, those of Ray by 10 %.
    """
    # A daemon whose parent has ended becomes our child, so that its CPU time comes to us.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = _children_cpu()
    begin = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        stop = threading.Timer(_LONGEST_SECONDS, os.killpg, (process.pid, signal.SIGKILL))
        stop.start()
        try:
            with _sampling() if peak_too else contextlib.nullcontext([0]) as peak:
                _, status = os.waitpid(process.pid, 0)
                wall = time.perf_counter() - begin
        except BaseException:  # an interrupt; in its own session the command does not see it
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            stop.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    _reap_descendants()
    cpu = _children_cpu() - before
    return Reading(wall, cpu, peak[0], process.returncode)


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@contextlib.contextmanager
def _sampling() -> Iterator[list[int]]:
    peak = [0]
    ended = threading.Event()

    def sample() -> None:
        pause = _FIRST_PAUSE
        while not ended.wait(pause):
            pause = min(_LONGEST_PAUSE, pause * 1.1)
            sizes = [_sizes(pid) for pid in descendants(os.getpid())]
            shares, highest = zip(*sizes, strict=True) if sizes else ((0,), (0,))
            peak[0] = max(peak[0], sum(shares), *highest)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def descendants(pid: int) -> list[int]:
    """Of a process, at any depth."""
    found: list[int] = []
    with contextlib.suppress(OSError):  # processes end while we look
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                found += [child, *descendants(child)]
    return found


def _sizes(pid: int) -> tuple[int, int]:
    """Bytes: proportional set size now, highest resident set so far."""
    try:
        shares = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    share = sum(int(line.split()[1]) for line in shares if line.startswith("Pss:"))
    # Not ru_maxrss, which begins with what the process that started this one had.
    highest = sum(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    return share * 1024, highest * 1024


def _reap_descendants() -> None:
    deadline = time.monotonic() + _LINGER_SECONDS
    while left := descendants(os.getpid()):
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if time.monotonic() > deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
