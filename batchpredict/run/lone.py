"""A child process that scores what may kill the process that scores it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import traceback
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from batchpredict.run.scorer import Inferred, Scorer

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Work = Literal["prepare", "infer"]

# As the parent's own modules are found, whatever the directory and the environment.
_MAIN = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from batchpredict.run.lone import serve; serve(int(sys.argv[2]), int(sys.argv[3]))"
)
_READY = "ready"
# What the child gets when its lifeline's other end is closed.
_HANGING_UP = signal.SIGIO
# What a terminal or a supervisor sends to all processes of the job is the parent's business.
_PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class LoneDied(Exception):
    """The child died of its work. `signal`: of which, None where it was none."""

    def __init__(self, returncode: int) -> None:
        super().__init__(f"exit code {returncode}" if returncode >= 0 else _name(-returncode))
        self.signal = None if returncode >= 0 else -returncode


class LoneFailed(Exception):
    """The work could not be done or handed over; nobody died of it."""


class LoneNotStarted(Exception):
    """There is no child: it could not be started, died before it had any work, or was closed."""


@dataclass
class _Child:
    """`lifeline`: a pipe that the kernel closes when this process is gone."""

    process: subprocess.Popen[bytes]
    connection: Connection[Any, Any]
    lifeline: FileIO


@dataclass
class LoneScorer:
    """The parent's side: starts a child where there is none, and keeps it until it dies.

    `turn`: to be held by who calls anything but `close`, which is for any thread at any time.
    """

    scorer: Scorer
    turn: threading.Lock = field(default_factory=threading.Lock)
    closed: bool = False
    _child: _Child | None = None
    _changing: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        """Have a child that has loaded the model. Raises LoneNotStarted."""
        if self._child is not None:
            return
        try:
            recipe = pickle.dumps(self.scorer)
            with self._changing:
                if self.closed:
                    raise LoneNotStarted("the run has ended")
                child = self._child = _spawn()
            child.connection.send_bytes(recipe)
            answer = child.connection.recv()
        except (OSError, EOFError) as error:
            why = f"it died ({LoneDied(self.stop())})" if self._child else str(error)
            raise LoneNotStarted(why) from error
        if answer != _READY:
            self.stop()
            raise LoneNotStarted(answer)

    def ask(self, work: Work, columns: pa.RecordBatch) -> Inferred:
        """Have the child prepare these rows, and infer them as one batch: nothing, or the batch.

        To the bit what this process would get. Raises LoneDied, LoneFailed, and LoneNotStarted
        where `close` came between. Call `start` before.
        """
        assert self._child is not None
        connection = self._child.connection
        try:
            connection.send((work, _to_ipc(columns)))
            answer = connection.recv()
        except (OSError, EOFError) as error:
            code = self.stop()
            if self.closed:
                raise LoneNotStarted("the run has ended") from error
            if code in (0, -_HANGING_UP):
                raise LoneFailed(str(error)) from error
            raise LoneDied(code) from error
        if isinstance(answer, Inferred):
            return answer
        raise LoneFailed(answer)

    def stop(self) -> int:
        """End the child, if it has not ended by itself; its exit code, negative for a signal."""
        with self._changing:
            child, self._child = self._child, None
        if child is None:
            return 0
        # A child that is dying has nothing open any more, and its end is decided.
        child.connection.close()
        child.lifeline.close()
        return child.process.wait()

    def close(self) -> None:
        """End the child, at work or not, and let there be no other."""
        with self._changing:
            self.closed = True
            if self._child is not None:
                self._child.process.kill()
        with self.turn:
            self.stop()


def _spawn() -> _Child:
    from multiprocessing.connection import Pipe  # no run but one in trouble needs it

    ours, theirs = Pipe()
    reader, writer = os.pipe()
    descriptors = (theirs.fileno(), reader)
    arguments = (json.dumps(sys.path), *map(str, descriptors))
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _MAIN, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=descriptors,
        )
    except BaseException:
        ours.close()
        os.close(writer)
        raise
    finally:
        theirs.close()
        os.close(reader)
    return _Child(process, ours, FileIO(writer, "w"))


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _to_ipc(columns: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, columns.schema) as stream:
        stream.write_batch(columns)
    return bytes(sink.getvalue())


def serve(descriptor: int, lifeline: int) -> None:
    """The child's side: load what the parent sends, and work until it is gone."""
    from multiprocessing.connection import Connection

    _settle_in(lifeline)
    connection: Connection[Any, Any] = Connection(descriptor)
    try:
        scorer: Scorer = pickle.loads(connection.recv_bytes())
        connection.send(_READY)
        while True:
            work, data = connection.recv()
            connection.send(_answer(scorer, work, pa.ipc.open_stream(data).read_next_batch()))
    except (EOFError, ConnectionError):
        return
    except Exception as error:  # noqa: BLE001 - reported
        connection.send(_told(error))


def _settle_in(lifeline: int) -> None:
    """Die before the parent and with it, and leave nothing behind."""
    for number in _PARENTS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(_HANGING_UP, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [_HANGING_UP])
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError):  # then the kernel chooses as it would have
        Path("/proc/self/oom_score_adj").write_text("1000")
    # When the other end is closed the kernel sends SIGIO, which ends this process whatever it is
    # doing. PR_SET_PDEATHSIG would end it with the thread that started it.
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC)


def _answer(scorer: Scorer, work: Work, columns: pa.RecordBatch) -> Inferred | str:
    nothing = np.empty(0, np.int64)
    try:
        prepared = scorer.prepare(columns)
        if work == "prepare":
            return Inferred(nothing, [], ())
        return scorer.infer(prepared, np.arange(prepared.rows))
    except Exception as error:  # noqa: BLE001 - reported; the parent meets it itself
        return _told(error)


def _told(error: Exception) -> str:
    return "".join(traceback.format_exception_only(error)).strip()
