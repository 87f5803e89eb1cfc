"""Runs of the command line with faults in them, as the harness sees them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults import shim
from tests.faults.shim import Rule, Traced

ROOT = Path(__file__).parents[2]
# No run takes as long; one that does hangs.
PATIENCE = 120.0


@dataclass(frozen=True)
class Ended:
    """How a run ended. `code`: the exit code, or minus the signal. `inferred`: rows that its
    session scored, None where the process was not a fork.
    """

    code: int
    seconds: float
    cpu_seconds: float
    inferred: int | None
    stdout: str
    stderr: str
    trace: tuple[Traced, ...]

    @property
    def fired(self) -> bool:
        """Whether a rule changed a call; not a clock, which is there to help others."""
        return any(call.fired and call.call != "clock" for call in self.trace)


@dataclass(frozen=True)
class Running:
    pid: int
    files: dict[str, Path]
    fresh: bool
    began: float


class Client:
    """A server of runs. `directory` holds the library and what the runs print.

    Raises RuntimeError where the library cannot be built.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._library = shim.build(directory)
        self._number = 0
        kept = {name: value for name, value in os.environ.items() if not _ours(name)}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-m", "tests.faults.server"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=kept | {
                "LD_PRELOAD": str(self._library), "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8",
                "HOME": str(directory / "no-home"),
            },
        )  # fmt: skip

    def start(
        self,
        arguments: Sequence[str],
        rules: Sequence[Rule] = (),
        *,
        traced: str = "",
        fresh: bool = False,
        environment: dict[str, str] | None = None,
    ) -> Running:
        """`traced`: glob of the paths the calls on which are noted. `fresh`: not a fork."""
        self._number += 1
        files = {
            name: self._directory / f"{self._number}.{name}"
            for name in ("stdout", "stderr", "trace")
        }
        began = time.monotonic()
        answer = self._ask(
            do="start",
            arguments=list(arguments),
            faults=shim.environment(rules, files["trace"], traced),
            environment=environment or {},
            fresh=fresh,
            stdout=str(files["stdout"]),
            stderr=str(files["stderr"]),
        )
        return Running(answer["pid"], files, fresh, began)

    def wait(self, running: Running, seconds: float = PATIENCE) -> Ended | None:
        """How it ended; None where it runs longer than `seconds` from now."""
        answer = self._ask(do="wait", pid=running.pid, seconds=seconds)
        if answer["code"] is None:
            return None
        files = running.files
        ended = Ended(
            answer["code"],
            answer["seconds"],
            answer["cpu_seconds"],
            None if running.fresh else answer["inferred"],
            _text(files["stdout"]),
            _text(files["stderr"]),
            tuple(shim.read_trace(files["trace"])),
        )
        for path in files.values():
            path.unlink(missing_ok=True)
        return ended

    def signal(self, running: Running, number: int) -> None:
        """Harmless where it has ended: until `wait` says so its id is not given to another."""
        os.kill(running.pid, number)

    def finish(self, running: Running, seconds: float = PATIENCE) -> Ended:
        """Its end. Raises TimeoutError, and kills it, where it takes longer."""
        ended = self.wait(running, seconds)
        if ended is None:
            self.signal(running, 9)
            self.wait(running)
            raise TimeoutError(f"a run did not end within {seconds:g} s")
        return ended

    def run(self, arguments: Sequence[str], rules: Sequence[Rule] = (), **more: Any) -> Ended:
        return self.finish(self.start(arguments, rules, **more))

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server of runs has died: exit {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate(timeout=30)


def _text(path: Path) -> str:
    """What a run printed; nothing where it was killed before it could."""
    return path.read_text("utf-8", "replace") if path.exists() else ""


def _ours(name: str) -> bool:
    return name.startswith(("BATCHPREDICT_", "FAULTS")) or name == "LD_PRELOAD"
