"""Run one job over and over, each in a process of its own that is killed; see test_laws.

    python -m tests.killed_jobs '{"job": {…}, "at": ["seconds", 0.1] | ["call", 7] | null}' …

A plan a line on standard input; for each, a line on standard output: how the process ended, the
seconds it took, and the system calls that change files which it made.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from typing import Any

from batchpredict.job import Job
from batchpredict.run.runner import run

CALLS = ("open", "write", "pwrite", "ftruncate", "fsync", "replace", "unlink")


def count_calls(last: int | None) -> list[str]:
    """Note each call that changes files; end the process right before call number `last`."""
    made: list[str] = []

    def counted(name: str, call: Any) -> Any:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            if len(made) == last:
                os.kill(os.getpid(), signal.SIGKILL)
            made.append(name)
            return call(*arguments, **options)

        return wrapper

    for name in CALLS:
        setattr(os, name, counted(name, getattr(os, name)))
    return made


def child(job: Job, last: int | None, pipe: int) -> None:
    made = count_calls(last)
    code = run(job, lambda counts, source: None).exit_code
    report = json.dumps({"code": code, "calls": list(made)}).encode()
    while report:
        report = report[os.write(pipe, report) :]
    os._exit(0)


def attempt(job: Job, kind: str, at: Any) -> dict[str, Any]:
    """Fork before any thread or session exists, so that imports are paid for once."""
    reader, writer = os.pipe()
    begin = time.monotonic()
    process = os.fork()
    if process == 0:
        try:
            child(job, at if kind == "call" else None, writer)
        finally:
            os._exit(99)
    os.close(writer)
    if kind == "seconds":
        select.select([reader], [], [], at)  # until then, or until it has ended
        os.kill(process, signal.SIGKILL)
    with os.fdopen(reader, "rb") as file:
        report = file.read()
    _, status = os.waitpid(process, 0)
    ended: dict[str, Any] = json.loads(report) if report else {"code": None, "calls": []}
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return ended | {"killed": killed, "status": status, "seconds": time.monotonic() - begin}


def main() -> None:
    for line in sys.stdin:
        plan = json.loads(line)
        kind, at = plan["at"] or ("never", None)
        options: dict[str, Any] = plan["job"]
        options["input_file"] = tuple(options["input_file"])
        print(json.dumps(attempt(Job(**options), kind, at)), flush=True)


if __name__ == "__main__":
    main()
