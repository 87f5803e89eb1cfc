"""SIGTERM and SIGINT in the command line's process while the model does not come back."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from batchpredict import signals
from batchpredict.errors import Terminated
from tests.commands import CHECKOUT, COMMAND, environment, half_written, run
from tests.jobs import files_in
from tests.test_laws import Given, lookup, write

# Put before the package by Python itself; the first batch is quick, the others hang.
SLOW = """
import threading, time
from batchpredict.model import session

run, count, lock = session.Session.run, [0], threading.Lock()

def slow(self, *arguments):
    with lock:
        count[0] += 1
        first = count[0] == 1
    if not first:
        open({flag!r}, "w").close()
        {wait}
    return run(self, *arguments)

session.Session.run = slow
"""
# Holds the interpreter, as a library that never gives it back would.
STUCK = "while True: pass"
ASLEEP = "time.sleep(600)"


@pytest.fixture
def hung(tmp_path: Path, request: pytest.FixtureRequest) -> subprocess.Popen[bytes]:
    """A run that hangs in its second batch."""
    flag = tmp_path / "hangs"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        SLOW.format(flag=str(flag), wait=request.param)
    )
    write(tmp_path / "in.csv", [Given(str(number % 5)) for number in range(20_000)])
    model = lookup(tmp_path / "model")
    process = subprocess.Popen(
        [*COMMAND, "--input_file=in.csv", f"--model={model}", "--workers=1", "--batch_rows=2"],
        cwd=tmp_path,
        env=environment(PYTHONPATH=f"{tmp_path / 'site'}:{CHECKOUT}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not flag.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_where_an_exception_would_do_harm_a_signal_waits(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    wanted = KeyboardInterrupt if number == signal.SIGINT else Terminated
    try:
        signals.raise_on_signals()
        signals.check_signals()
        with signals.deferred():
            with signals.deferred():
                signal.raise_signal(number)
            signal.raise_signal(number)
        with pytest.raises(wanted):
            signals.check_signals()
        with pytest.raises(wanted):
            signal.raise_signal(number)
        signals.raise_on_signals()
        signals.check_signals()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def ended(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    begin = time.monotonic()
    process.communicate(timeout=30)
    return process.returncode, time.monotonic() - begin


@pytest.mark.parametrize(
    ("hung", "number"),
    [(STUCK, signal.SIGTERM), (STUCK, signal.SIGINT), (ASLEEP, signal.SIGTERM)],
    indirect=["hung"],
)
def test_one_ends_it_within_five_seconds_and_keeps_what_is_scored(
    tmp_path: Path, hung: subprocess.Popen[bytes], number: signal.Signals
) -> None:
    hung.send_signal(number)
    code, seconds = ended(hung)
    assert code == 128 + number
    assert seconds < 5
    assert not (tmp_path / "in.scored.csv").exists()
    done = run("--input_file=in.csv", f"--model={tmp_path / 'model'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"going on, 2 rows scored already" in done.stdout
    assert half_written(tmp_path) == []
    assert not [name for name in files_in(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("hung", [STUCK], indirect=True)
def test_two_end_it_at_once(tmp_path: Path, hung: subprocess.Popen[bytes]) -> None:
    hung.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    hung.send_signal(signal.SIGTERM)
    code, seconds = ended(hung)
    assert code == 143
    assert seconds < 2
    assert not (tmp_path / "in.scored.csv").exists()
