"""Rules for shim.c, the library that injects faults, and how it is built."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SOURCE = Path(__file__).with_name("shim.c")

Call = Literal[
    "open", "read", "write", "fsync", "rename", "unlink", "close", "truncate", "statvfs", "clock"
]
# Calls that change a file or a name.
CHANGING: tuple[Call, ...] = ("open", "write", "fsync", "rename", "unlink", "truncate", "close")
Action = Literal["errno", "short", "torn", "delay", "before", "after", "free", "jump"]


@dataclass(frozen=True)
class Rule:
    """What happens to a call on a path like `glob` (of a clock: realtime or monotonic).

    From the `first` such call on (counted from 1), for `times` of them (0: for all). `value`:
    an error number (errno); most bytes (short), the same with SIGKILL after it (torn);
    milliseconds (delay); a signal (before, after); free bytes (free); seconds (jump).
    """

    call: Call
    glob: str
    action: Action
    value: int
    first: int = 1
    times: int = 1

    def __str__(self) -> str:
        return f"{self.call} {self.glob} {self.first} {self.times} {self.action} {self.value}"

    @classmethod
    def parse(cls, text: str) -> Rule:
        """The rule that `str` wrote."""
        call, glob, first, times, action, value = text.split()
        return cls(call, glob, action, int(value), int(first), int(times))  # type: ignore[arg-type]


def killed(call: Call, glob: str, nth: int, *, after: bool) -> Rule:
    """SIGKILL right before or after a call."""
    return Rule(call, glob, "after" if after else "before", signal.SIGKILL, nth)


@dataclass(frozen=True)
class Traced:
    """A call that a run made. `fired`: a rule changed it."""

    call: str
    path: str
    fired: bool


class NoCompiler(RuntimeError):
    """There is no C compiler, so that nothing can be injected."""


def build(directory: Path) -> Path:
    """The shared library, made anew. Raises NoCompiler."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "gcc"))), None)
    if compiler is None:
        raise NoCompiler("the fault tests need a C compiler: install gcc and libc6-dev")
    library = directory / "faults.so"
    command = [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror"]
    made = subprocess.run(
        [*command, "-o", str(library), str(SOURCE), "-ldl"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if made.returncode:
        raise NoCompiler(f"{SOURCE.name} cannot be built (libc6-dev missing?): {made.stderr}")
    return library


def environment(rules: Sequence[Rule], trace: Path | None, traced: str) -> dict[str, str]:
    """Variables that arm the library in a process of its own."""
    return {
        "FAULTS": "\n".join(map(str, rules)),
        "FAULTS_TRACE": str(trace or ""),
        "FAULTS_TRACED": traced,
    }


def read_trace(path: Path) -> list[Traced]:
    """What a run noted, in order; nothing where it had no time to."""
    if not path.exists():
        return []
    lines = path.read_text("utf-8", "replace").splitlines()
    parts = [line.split(" ", 2) for line in lines]
    return [Traced(call, name, mark == "!") for mark, call, name in parts]
