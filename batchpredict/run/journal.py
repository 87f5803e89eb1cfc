"""The journal: what a run has inferred, on disk beside its output, so that the next need not.

A file of frames: length and CRC-32 of the payload (unsigned, 4 bytes each, little-endian), then
the payload, whose first byte is its kind:

- `P`: the pins (JSON): what the frames after it are good for. The first frame.
- `S`: one byte, "1" once the output was published. The second frame.
- `R`: a run has begun here.
- `D`: rows in flight when a run died (JSON).
- `B`: raw outputs of the session by row number; see commits.py. Before them 8 bytes, how many
  stored bytes of the input had been read by then, and their sha256.

Frames are appended; whatever damaged or unfinished one is found ends the journal.
"""

from __future__ import annotations

import json
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from batchpredict.data.drafts import write_failed
from batchpredict.data.locks import Held
from batchpredict.data.sources import Mark
from batchpredict.errors import OutputWriteFailed
from batchpredict.run.batching import Indices
from batchpredict.run.commits import Commit, decode, encode
from batchpredict.run.deaths import Deaths
from batchpredict.run.identity import Pins
from batchpredict.run.inflight import notes_beside
from batchpredict.run.scorer import Inferred, joined

_HEAD = struct.Struct("<II")
_MARK = struct.Struct("<Q32s")
_UNPUBLISHED, _PUBLISHED = b"S0", b"S1"
# A frame is written with the first commit after so many rows or seconds; what is not yet written
# is lost with the process, what is not yet synced with the machine.
_FRAME_ROWS = 4096
_FRAME_SECONDS = 1.0
_SYNC_SECONDS = 10.0


@dataclass(frozen=True)
class _Batch:
    """Where a frame of kind B lies, and its lowest and highest row."""

    offset: int
    length: int
    first: int
    last: int


@dataclass(frozen=True)
class Recorded:
    """What a journal holds. `state`: offset of the frame of kind S. `end`: of the first byte that
    is no part of the journal.

    `rows`: rows inferred, and those that failed in the session. `runs`: how many have begun.
    """

    pins: Pins
    published: bool
    runs: int
    rows: int
    deaths: tuple[Any, ...]
    marks: tuple[Mark, ...]
    batches: tuple[_Batch, ...]
    state: int
    end: int


def read_journal(held: Held) -> Recorded | None:
    """What the journal holds; None where there is none in the file. Raises OutputWriteFailed."""
    try:
        return _read(_frames(held.descriptor))
    except OSError as error:
        raise _unreadable(held.path, error) from error


def _unreadable(path: Path, error: OSError) -> OutputWriteFailed:
    return OutputWriteFailed(
        f"{path}: cannot be read: {(error.strerror or '').lower()}; check the disk (dmesg), or "
        "remove the file to start over"
    )


def read_pins(held: Held) -> Pins | None:
    """What the journal is good for; None where there is none. Raises OutputWriteFailed."""
    try:
        begun = _begun(_frames(held.descriptor))
    except OSError as error:
        raise _unreadable(held.path, error) from error
    return begun.pins if begun else None


def _begun(frames: Iterator[tuple[int, bytes]]) -> _Content | None:
    """The first two frames; None where they are no beginning of a journal."""
    begin, state = next(frames, None), next(frames, None)
    if begin is None or state is None or state[1] not in (_UNPUBLISHED, _PUBLISHED):
        return None
    try:
        pins = json.loads(begin[1][1:])
    except ValueError:
        return None
    is_pins = isinstance(pins, dict) and all(isinstance(part, dict) for part in pins.values())
    if begin[1][:1] != b"P" or not is_pins:
        return None
    return _Content(pins, state[1] == _PUBLISHED, state[0])


def _read(frames: Iterator[tuple[int, bytes]]) -> Recorded | None:
    content = _begun(frames)
    if content is None:
        return None
    for offset, payload in frames:
        try:
            content.take(offset + _HEAD.size, payload)
        except (ValueError, LookupError, TypeError, struct.error, OverflowError):
            break  # damage that the checksum fits: none of ours has written this frame
    return content.recorded()


class _Content:
    """What the frames read so far come to."""

    def __init__(self, pins: Pins, published: bool, state: int) -> None:
        self.pins = pins
        self._published = published
        self._state = state
        self._end = state + _HEAD.size + len(_PUBLISHED)
        self._runs = self._rows = 0
        self._deaths: list[Any] = []
        self._marks: dict[int, Mark] = {}
        self._batches: list[_Batch] = []

    def take(self, offset: int, payload: bytes) -> None:
        """Count in a frame's payload, which lies at `offset`."""
        kind = payload[:1]
        if kind == b"R":
            self._runs += 1
        elif kind == b"D":
            death = json.loads(payload[1:])
            Deaths((death,))
            self._deaths.append(death)
        elif kind == b"B":
            position, digest = _MARK.unpack_from(payload, 1)
            mark = Mark(position, digest.hex())
            if self._marks.setdefault(position, mark) != mark:
                raise ValueError("the same bytes of the input with two checksums")
            numbers = decode(payload[1 + _MARK.size :]).numbers()
            self._batches.append(_Batch(offset, len(payload), int(numbers[0]), int(numbers[-1])))
            self._rows += len(numbers)
        self._end = offset + len(payload)

    def recorded(self) -> Recorded:
        return Recorded(
            self.pins,
            self._published,
            self._runs,
            self._rows,
            tuple(self._deaths),
            tuple(self._marks.values()),
            tuple(self._batches),
            self._state,
            self._end,
        )


def _frames(descriptor: int) -> Iterator[tuple[int, bytes]]:
    """(offset, payload) of each whole frame."""
    offset, size = 0, os.fstat(descriptor).st_size
    while len(head := os.pread(descriptor, _HEAD.size, offset)) == _HEAD.size:
        length, checksum = _HEAD.unpack(head)
        if not 0 < length <= size - offset - _HEAD.size:
            return
        payload = os.pread(descriptor, length, offset + _HEAD.size)
        if len(payload) < length or zlib.crc32(payload) != checksum:
            return
        yield offset, payload
        offset += _HEAD.size + length


class Journal:
    """A task's journal while it runs. Safe to be called from several threads.

    `held` None: a task that cannot be resumed; then nothing is written or remembered.
    `mark`: how far the input was read, at least to the rows that are added.
    `found_rows`, `added_rows`, `kept_rows`: inferred by earlier runs, by this one, and those that
    are written down.
    """

    def __init__(self, held: Held | None, name: str, mark: Callable[[], Mark]) -> None:
        self._held = held
        self._name = name
        self._mark = mark
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        self._pending: list[Commit] = []
        self._since = self._synced = time.monotonic()
        self._end = 0
        self._state = 0
        self._batches: tuple[_Batch, ...] = ()
        self._firsts = self._lasts = np.empty(0, np.int64)
        self._detached = held is None
        self.found_rows = self.added_rows = self.kept_rows = self.found_runs = 0
        self.deaths: tuple[Any, ...] = ()

    @property
    def notes_path(self) -> Path | None:
        """Where the rows in flight are noted; None where a death would not be remembered."""
        return notes_beside(self._held.path) if self._held else None

    def begin(self, pins: Pins) -> None:
        """Start an empty journal."""
        if self._held is None:
            return
        payload = b"P" + json.dumps(pins, ensure_ascii=False).encode("utf-8", "surrogatepass")
        with self._lock:
            self._cut(0)
            self._end = 0
            self._append(payload)
            self._state = self._end
            self._append(_UNPUBLISHED)
            self._append(b"R")

    def resume(self, recorded: Recorded) -> None:
        """Go on with a journal that was read from the file held."""
        if self._held is None:
            return
        self.found_rows = self.kept_rows = recorded.rows
        self.found_runs = recorded.runs
        self.deaths = recorded.deaths
        self._batches = recorded.batches
        self._firsts = np.array([batch.first for batch in recorded.batches], np.int64)
        self._lasts = np.array([batch.last for batch in recorded.batches], np.int64)
        with self._lock:
            self._state = recorded.state
            self._cut(recorded.end)
            self._end = recorded.end
            self._append(b"R")

    def add_death(self, notes: Any) -> None:
        """Record the rows in flight when a run died; JSON."""
        with self._lock:
            self._append(b"D" + json.dumps(notes).encode())
        self.deaths += (notes,)

    def committed(self, numbers: Indices) -> Inferred:
        """What is known of the rows of these numbers (ascending); `indices` are places in them."""
        nothing = Inferred(np.empty(0, np.int64), [], ())
        if self._held is None or not self._batches or not len(numbers):
            return nothing
        hits = np.flatnonzero((self._firsts <= numbers[-1]) & (self._lasts >= numbers[0]))
        found = [self._load(self._batches[hit]).among(numbers) for hit in hits.tolist()]
        return joined(found) if found else nothing

    def _load(self, batch: _Batch) -> Commit:
        assert self._held is not None
        try:
            payload = os.pread(self._held.descriptor, batch.length, batch.offset)
        except OSError as error:
            raise _unreadable(self._held.path, error) from error
        return decode(payload[1 + _MARK.size :])

    def add(self, numbers: Indices, inferred: Inferred) -> None:
        """Commit what was inferred of a window whose rows have these numbers.

        Raises OutputWriteFailed.
        """
        with self._lock:
            if self._detached:
                return
            self._pending.append(Commit.of(numbers, inferred))
            self.added_rows += len(inferred.indices) + len(inferred.faults)
            rows = sum(len(commit.rows) for commit in self._pending)
            if rows >= _FRAME_ROWS or time.monotonic() - self._since >= _FRAME_SECONDS:
                self._write_pending()
        if time.monotonic() - self._synced >= _SYNC_SECONDS and self._syncing.acquire(False):
            try:
                if not self._detached:
                    self._sync()
            finally:
                self._syncing.release()

    def flush(self) -> None:
        """Make every commit durable. Raises OutputWriteFailed."""
        if self._held is None:
            return
        with self._lock:
            self._write_pending()
        self._sync()

    def detach(self) -> None:
        """Leave the file alone from now on: callers may still be at work when it is closed."""
        with self._lock:
            self._detached = True

    def close(self, *, published: bool) -> None:
        """Say that the output was published; remove a journal that is of no use to anybody."""
        if self._held is None:
            return
        with self._lock:
            self._detached = True
            if published:
                self._write(_framed(_PUBLISHED), self._state)
                self._cut(self._state + _HEAD.size + len(_PUBLISHED))
            elif self._state and not (self.kept_rows or self.deaths):
                self._cut(0)

    def _cut(self, size: int) -> None:
        assert self._held is not None
        try:
            os.ftruncate(self._held.descriptor, size)
        except OSError as error:
            raise write_failed(self._name, error) from error

    def _write_pending(self) -> None:
        if not self._pending:
            return
        mark = self._mark()
        head = b"B" + _MARK.pack(mark.position, bytes.fromhex(mark.sha256))
        commit = Commit.merged(self._pending)
        self._append(head + encode(commit))
        # Only now: what a full disk did not take is tried again when the draft has gone.
        self._pending, self._since = [], time.monotonic()
        self.kept_rows += len(commit.rows) + len(commit.faults)

    def _append(self, payload: bytes) -> None:
        frame = _framed(payload)
        self._write(frame, self._end)
        # Only now: what failed half-way is overwritten by the next frame.
        self._end += len(frame)

    def _write(self, data: bytes, offset: int) -> None:
        assert self._held is not None
        view = memoryview(data)
        try:
            while view:
                count = os.pwrite(self._held.descriptor, view, offset)
                view, offset = view[count:], offset + count
        except OSError as error:
            raise write_failed(self._name, error) from error

    def _sync(self) -> None:
        assert self._held is not None
        self._synced = time.monotonic()
        try:
            os.fdatasync(self._held.descriptor)
        except OSError as error:
            raise write_failed(self._name, error) from error


def _framed(payload: bytes) -> bytes:
    return _HEAD.pack(len(payload), zlib.crc32(payload)) + payload
