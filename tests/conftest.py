"""What every test relies on: no network, no home directory, no options from the environment."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Tests that import onnxruntime themselves must not start its telemetry either.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# Machines that throttle make deadlines fail by chance. Nothing is kept between runs.
settings.register_profile("batchpredict", deadline=None, database=None)
settings.load_profile("batchpredict")


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home that does not exist, no BATCHPREDICT_* or XDG_* variables, loopback only."""
    for name in [n for n in os.environ if n.startswith(("BATCHPREDICT_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "no-home"))
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):
            raise AssertionError(f"a test connects to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)
