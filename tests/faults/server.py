"""Starts runs of the command line: forks of one warmed-up process, or processes of their own.

    python -m tests.faults.server LIBRARY

with LIBRARY preloaded. Importing costs half a second; a fork of a process that has imported
everything but has no thread and no session yet is a run without that. Requests are JSON objects
on standard input, one a line, and so are the answers; see client.py, which alone talks to it.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import json
import mmap
import os
import signal
import struct
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any, NoReturn

from batchpredict import __main__ as entrance
from batchpredict.light_imports import light_imports

_MODULES = (
    *("batchpredict.cli", "batchpredict.log"),
    *("batchpredict.run.runner", "batchpredict.run.progress"),
    *("onnxruntime", "pyarrow.parquet", "fastavro"),
)
_ROWS = struct.Struct("q")


@dataclass
class Child:
    """A run. `inferred`: memory shared with it, where it counts the rows it has inferred."""

    began: float
    inferred: mmap.mmap


class Counter:
    """Rows that the session has scored in this process, kept where the parent sees them."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._lock = threading.Lock()

    def watch(self) -> None:
        """Count from now on, whatever calls the session of a Scorer."""
        from batchpredict.run.scorer import Scorer

        infer = Scorer.infer

        def counted(scorer: Any, prepared: Any, batch: Any, *more: Any) -> Any:
            inferred = infer(scorer, prepared, batch, *more)
            with self._lock:
                (rows,) = _ROWS.unpack_from(self.memory)
                _ROWS.pack_into(self.memory, 0, rows + len(batch))
            return inferred

        setattr(Scorer, "infer", counted)  # noqa: B010


def warm_up() -> None:
    with light_imports():
        for name in _MODULES:
            importlib.import_module(name)


def _redirect(request: dict[str, Any]) -> None:
    for number, path in enumerate(("/dev/null", request["stdout"], request["stderr"])):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND if number else os.O_RDONLY
        descriptor = os.open(path, flags, 0o666)
        os.dup2(descriptor, number)
        os.close(descriptor)


def _arm(faults: dict[str, str]) -> None:
    """Through the symbol of the preloaded library: its environment was read long ago."""
    arm = ctypes.CDLL(None).faults_arm
    arm(*(faults[name].encode() for name in ("FAULTS", "FAULTS_TRACE", "FAULTS_TRACED")))


def _become_run(request: dict[str, Any], counter: Counter) -> NoReturn:
    """In the child: what `python -m batchpredict` does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _redirect(request)
    os.environ.update(request["environment"])
    faulthandler.enable()  # a crash says on standard error where
    if request["fresh"]:
        os.environ.update(request["faults"], PYTHONFAULTHANDLER="1")
        arguments = [sys.executable, "-P", "-m", "batchpredict", *request["arguments"]]
        os.execv(sys.executable, arguments)
    counter.watch()
    _arm(request["faults"])
    sys.argv[1:] = request["arguments"]
    entrance.run()


class Server:
    """Answers requests."""

    def __init__(self) -> None:
        self._children: dict[int, Child] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "start":
            return self._start(request)
        return self._wait(request["pid"], request["seconds"])

    def _start(self, request: dict[str, Any]) -> dict[str, Any]:
        counter = Counter()
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _become_run(request, counter)
        self._children[pid] = Child(began, counter.memory)
        return {"pid": pid}

    def _wait(self, pid: int, seconds: float) -> dict[str, Any]:
        """The end of a run, or None after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            reaped, status, usage = os.wait4(pid, os.WNOHANG)
            if reaped:
                break
            if time.monotonic() >= deadline:
                return {"code": None}
            time.sleep(0.001)
        child = self._children.pop(pid)
        (rows,) = _ROWS.unpack_from(child.inferred)
        child.inferred.close()
        return {
            "code": os.waitstatus_to_exitcode(status),
            "seconds": time.monotonic() - child.began,
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "inferred": rows,
        }


def main() -> None:
    # Ctrl-C at the harness is for the harness; its children get their own disposition.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warm_up()
    server = Server()
    while line := sys.stdin.readline():
        print(json.dumps(server.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
