"""Fuzzing: cases made from integers, checked in worker processes with bounded time and memory.

A target is an object with two methods (see `Target`). To add some, write a module in
tests/fuzz/targets/ with a dict `TARGETS` of them by name; nothing else has to know it.
`inputs.py` has what makes and damages bytes. A case must be a function of the random numbers it
is made from alone, so that every finding can be made again from the name and seed it is
reported with: `python -m tests.fuzz.run --again csv:123`.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import mmap
import os
import pkgutil
import random
import re
import resource
import shutil
import signal
import struct
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, Protocol

from batchpredict.errors import BatchPredictError
from tests.fuzz import targets as _targets

# A worker is let go after so many cases, so that what it leaks is not held against later ones.
_WORKER_CASES = 2000
_SECONDS = 10
# Time on the clock, for a worker that waits and does not compute. Others use this machine too.
_PATIENCE = 120
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_BOARD = struct.Struct("<qqqqd")  # the case at work, read, refused, peak in KiB, CPU seconds


class Target(Protocol):
    """Something that is fed with cases."""

    def case(self, rng: random.Random) -> Any:
        """A case made from `rng` alone; its repr and, if it has one, `data` describe it."""
        ...

    def check(self, case: Any, directory: Path) -> None:
        """Feed it. Raises BatchPredictError where the product refuses it, which is well;
        whatever else is raised is a finding. `directory`: an empty one, emptied afterwards.
        """
        ...


def all_targets() -> dict[str, Target]:
    """Targets by name, from every module in tests/fuzz/targets/."""
    found: dict[str, Target] = {}
    for module in sorted(pkgutil.iter_modules(_targets.__path__), key=lambda module: module.name):
        found.update(importlib.import_module(f"{_targets.__name__}.{module.name}").TARGETS)
    return found


def rng_of(name: str, seed: int) -> random.Random:
    return random.Random(f"{name}:{seed}")


class TooSlow(BaseException):
    """A case took too much CPU time. Nothing that handles errors may swallow it."""


@dataclass
class Result:
    """What became of consecutive cases. `read`: without complaint; `refused`: with one."""

    target: str
    first: int
    cases: int = 0
    read: int = 0
    refused: int = 0
    cpu_seconds: float = 0.0
    peak_mib: int = 0
    findings: list[dict[str, Any]] = field(default_factory=list)


def run(name: str, seeds: range, memory: int = 2 << 30) -> Result:
    """Check the cases of `seeds` (step 1). `memory`: bytes a worker may take beyond its base."""
    result = Result(name, seeds.start, len(seeds))
    target = all_targets()[name]
    board = mmap.mmap(-1, _BOARD.size)
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_memory_disk()) as scratch:
        at = seeds.start
        while at < seeds.stop:
            batch = range(at, min(at + _WORKER_CASES, seeds.stop))
            _BOARD.pack_into(board, 0, at, 0, 0, 0, 0.0)
            report = Path(scratch) / "report"
            with report.open("w+b") as stream:
                death = _watched(_fork(target, name, batch, board, stream, memory), board)
            # Not from `stream`: its position is the worker's, too.
            lines = report.read_bytes().decode(errors="replace").splitlines()
            now, read, refused, peak, seconds = _BOARD.unpack_from(board, 0)
            found = [json.loads(line) for line in lines if line.startswith("{")]
            result.findings += found
            result.read += read
            result.refused += refused
            result.cpu_seconds += seconds
            result.peak_mib = max(result.peak_mib, peak >> 10)
            at = batch.stop
            if death:
                at = now + 1
                trace = "\n".join(line for line in lines if not line.startswith("{"))
                result.findings.append({"seed": now, "what": death, "where": "", "trace": trace})
    return result


def _memory_disk() -> str | None:
    """Where files cost little, if there is such a place."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _fork(
    target: Target, name: str, batch: range, board: mmap.mmap, report: BinaryIO, memory: int
) -> int:
    child = os.fork()
    if child:
        return child
    try:
        faulthandler.enable(report)
        signal.signal(signal.SIGPROF, _expire)
        base = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (base + memory, base + memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        directory = Path(tempfile.mkdtemp(dir=Path(report.name).parent))
        _work(target, name, batch, (board, report, directory))
    except BaseException:  # noqa: BLE001 - the parent hears of it by the exit code
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _expire(signum: int, frame: FrameType | None) -> None:
    raise TooSlow(f"more than {_SECONDS} s of CPU time")


def _work(
    target: Target, name: str, batch: range, places: tuple[mmap.mmap, BinaryIO, Path]
) -> None:
    board, report, directory = places
    warnings.simplefilter("ignore")  # as in the product, not as in tests
    read = refused = 0
    for seed in batch:
        _note(board, seed, read, refused)
        finding = None
        try:
            with _alarm():
                target.check(target.case(rng_of(name, seed)), directory)
            read += 1
        except BatchPredictError as error:
            refused += 1
            finding = _ill_said(error)
        except (Exception, TooSlow) as error:  # noqa: BLE001 - that is what is looked for
            finding = _described(error)
        if finding:
            report.write(json.dumps({"seed": seed, **finding}).encode() + b"\n")
            report.flush()
        _empty(directory)
    _note(board, batch.stop - 1, read, refused)


def _note(board: mmap.mmap, seed: int, read: int, refused: int) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _BOARD.pack_into(board, 0, seed, read, refused, peak, time.process_time())


@contextmanager
def _alarm() -> Iterator[None]:
    signal.setitimer(signal.ITIMER_PROF, _SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _ill_said(error: BatchPredictError) -> dict[str, str] | None:
    """An error is one printable line."""
    text = str(error)
    problem = unprintable(text)
    if problem is None:
        return None
    what = f"an error's text {problem}"
    return {"what": what, "where": _place(error), "trace": ascii(text[:2000])}


def unprintable(text: str) -> str | None:
    """What forbids to show a text as one line on a terminal and in a log."""
    if not text or len(text.splitlines()) != 1:
        return "is not one line"
    if _CONTROL.search(text):
        return "has control characters"
    if _SURROGATE.search(text):
        return "has half a surrogate pair"
    return "is very long" if len(text) > 4000 else None


def _described(error: BaseException) -> dict[str, str]:
    trace = "".join(traceback.format_exception(error, limit=-12))[-6000:]
    return {
        "what": f"{type(error).__name__}: {str(error)[:300]!a}",
        "where": _place(error),
        "trace": trace,
    }


def _place(error: BaseException) -> str:
    """The last line of the product that the error came through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "batchpredict/" in f.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _watched(child: int, board: mmap.mmap) -> str:
    """Wait for a worker; how it died, "" if it did not."""
    seed, since = None, time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if os.WIFSIGNALED(status):
                return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
            return "" if status == 0 else "the worker failed"
        (now, *_) = _BOARD.unpack_from(board, 0)
        if now != seed:
            seed, since = now, time.monotonic()
        elif time.monotonic() - since > _PATIENCE:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return f"no end after {_PATIENCE} s"
        time.sleep(0.02)


def _empty(directory: Path) -> None:
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)  # noqa: PTH108 - one of hundreds of thousands


def distinct(findings: Iterable[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """One finding for each kind and place."""
    result: dict[tuple[str, str], dict[str, Any]] = {}
    for finding in findings:
        result.setdefault((finding["what"].partition(":")[0], finding["where"]), finding)
    return result
