"""Where this machine keeps what it knows of jobs and models between runs: under XDG state."""

from __future__ import annotations

import os
from pathlib import Path


def state_directory(part: str) -> Path | None:
    """Where `part` of it is kept; None where the environment names no home for it."""
    home, state = os.environ.get("HOME"), os.environ.get("XDG_STATE_HOME", "")
    # A relative path is to be ignored (XDG Base Directory Specification).
    if not Path(state).is_absolute():
        state = f"{home}/.local/state" if home else ""
    return Path(state).absolute() / "batchpredict" / part if state else None


def make_state_directory(directory: Path) -> None:
    """Make one that is missing, for this user alone. Raises OSError."""
    if not Path(os.environ.get("XDG_STATE_HOME", "")).is_absolute():
        Path(os.environ["HOME"]).stat()  # a home that is not there is not ours to make
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(0, "not writable")
