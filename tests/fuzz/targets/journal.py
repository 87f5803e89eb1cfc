"""What a run leaves for the next: its journal, its notes of rows in flight, its receipt.

Half of the damaged journals get checksums that fit, so that what is in the frames is met too.
"""

from __future__ import annotations

import json
import os
import random
import struct
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from batchpredict.data.locks import Held
from batchpredict.data.naming import Task
from batchpredict.data.sources import Mark
from batchpredict.job import Job
from batchpredict.model.contracts import Fault
from batchpredict.run.deaths import Deaths
from batchpredict.run.done import done_receipt
from batchpredict.run.identity import Pins, difference
from batchpredict.run.inflight import _MAGIC, read_notes
from batchpredict.run.journal import Journal, read_journal
from batchpredict.run.scorer import Inferred
from tests.fuzz import inputs
from tests.fuzz.harness import Target
from tests.fuzz.inputs import chance

_HEAD = struct.Struct("<II")
_TOKENS = (
    b'"rows": ', b'"first": ', b"null", b'"tensors"', b"-1", b"99999999999999999999", b"[[", b"{}",
    b'"|O"', b'"<f4"', b'"lines"', b'"json"', b"\x00" * 8, b"\xff" * 8, b"S1", b"R", b"D[[", b"P{}",
)  # fmt: skip
_PINS: Pins = {
    "input": {"path": "/in.csv", "size": 3, "modified_ns": 4, "fingerprint": "0" * 64},
    "model": {"sha256": "1" * 64},
    "options": {"keep": "all", "limit": None},
    "versions": {"batchpredict": "0"},
}


@dataclass(frozen=True)
class Damaged:
    """A file's content."""

    data: bytes


@cache
def _whole(path: Path) -> bytes:
    """A journal with a frame of every kind."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        journal = Journal(Held(path, descriptor), "out.csv", lambda: Mark(7, "2" * 64))
        journal.begin(_PINS)
        journal.add_death([["infer", [3, 4]], ["prepare", [1, 9]]])
        for first in (1, 11):
            tensors = [
                np.arange(4.0),
                np.array(["a", "b\n", "", "ü"], object),
                np.ones((4, 2), "f4"),
            ]
            found = Inferred(np.array([0, 2, 3, 1]), tensors, (Fault(4, "inference_failed", "no"),))
            journal.add(np.arange(first, first + 5), found)
            journal.flush()
        return path.read_bytes()
    finally:
        os.close(descriptor)
        path.unlink()


def _frames(data: bytes) -> list[bytes]:
    found = []
    while len(data) >= _HEAD.size:
        length, _ = _HEAD.unpack_from(data)
        found.append(data[_HEAD.size : _HEAD.size + length])
        data = data[_HEAD.size + length :]
    return found


class _Journals:
    def case(self, rng: random.Random) -> Damaged:
        data = _whole(Path(f"/tmp/fuzz-journal-{os.getpid()}"))
        if chance(rng, 0.5):
            return Damaged(inputs.mutated(rng, data, _TOKENS))
        frames = _frames(data)
        place = rng.randrange(len(frames))
        frames[place] = inputs.mutated(rng, frames[place], _TOKENS)
        if chance(rng, 0.2):
            rng.shuffle(frames)
        return Damaged(b"".join(_HEAD.pack(len(f), zlib.crc32(f)) + f for f in frames))

    def check(self, case: Damaged, directory: Path) -> None:
        path = directory / ".out.csv.journal"
        path.write_bytes(case.data)
        descriptor = os.open(path, os.O_RDWR)
        try:
            held = Held(path, descriptor)
            recorded = read_journal(held)
            if recorded is None or difference(recorded.pins, _PINS):
                return
            journal = Journal(held, "out.csv", lambda: Mark(9, "3" * 64))
            journal.resume(recorded)
            Deaths(journal.deaths).named()
            known = journal.committed(np.arange(1, 20))
            assert all(len(tensor) == len(known.indices) for tensor in known.tensors)
            journal.add(np.arange(30, 33), Inferred(np.arange(3), [np.zeros(3)], ()))
            journal.flush()
            again = read_journal(held)
            assert again is not None
            assert again.runs == recorded.runs + 1
        finally:
            os.close(descriptor)


class _Notes:
    def case(self, rng: random.Random) -> Damaged:
        words = np.array([_MAGIC, 2, 4, *(rng.randrange(-2, 9) for _ in range(16))], "<i8")
        return Damaged(inputs.mutated(rng, words.tobytes(), _TOKENS))

    def check(self, case: Damaged, directory: Path) -> None:
        path = directory / ".out.csv.inflight"
        path.write_bytes(case.data)
        for note in read_notes(path):
            assert len(note.rows) <= len(case.data)


class _Receipts:
    def case(self, rng: random.Random) -> Damaged:
        receipt = {
            "receipt": 1,
            "exit_code": 0,
            "model": {"sha256": "1" * 64},
            "inputs": [{"path": "in.csv", "size": 3, "modified_ns": 1, "sha256": "2" * 64}],
            "output": {"path": "out.csv", "size": 3, "sha256": "3" * 64},
            "options": {"keep": "all", "skip_rows": []},
        }
        return Damaged(inputs.mutated(rng, json.dumps(receipt).encode(), _TOKENS))

    def check(self, case: Damaged, directory: Path) -> None:
        for name in ("in.csv", "out.csv"):
            (directory / name).write_bytes(b"a\n1")
        receipt = directory / "out.csv.receipt.json"
        receipt.write_bytes(case.data)
        source, output = str(directory / "in.csv"), str(directory / "out.csv")
        task = Task(source, "csv", output, "csv", None, str(receipt))
        done_receipt(task, Job((source,), "model"), "1" * 64)


TARGETS: dict[str, Target] = {
    "journal": _Journals(),
    "notes": _Notes(),
    "receipt": _Receipts(),
}
