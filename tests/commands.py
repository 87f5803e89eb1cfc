"""The command line in a process of its own, and what a run may leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests import s3servers

CHECKOUT = Path(__file__).resolve().parents[1]
COMMAND = (sys.executable, "-P", "-m", "batchpredict")
PATIENCE = 120.0


def environment(**more: str) -> dict[str, str]:
    """The test's own, with the checkout on the path."""
    return {**os.environ, "PYTHONPATH": str(CHECKOUT), "LC_ALL": "C.UTF-8", **more}


def run(
    *arguments: str | Path,
    cwd: Path,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    finished = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        input=stdin,
        env=environment(**(env or {})),
        preexec_fn=before,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert not s3servers.reveals(finished.stdout + finished.stderr)
    return finished


def start(
    *arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None, **more: Any
) -> subprocess.Popen[bytes]:
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, env=environment(**(env or {})), **{**pipes, **more})


def half_written(directory: Path) -> list[Path]:
    return list(directory.rglob("*.part"))


def receipt(path: Path) -> dict[str, Any]:
    """A receipt, complete and of the layout we know."""
    found: dict[str, Any] = json.loads(path.read_bytes())
    assert found["receipt"] == 1
    return found
