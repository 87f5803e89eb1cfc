"""Notes of the rows in flight, in a memory-mapped file that outlives its process.

What a process stores in shared pages the kernel keeps however the process ends; nothing is ever
synced, for a machine that stops has not been killed by a row. Where storage vanishes under the file
(a network mount), or a copy-on-write file system is full, a store is SIGBUS: a death like any
other.

The file, in little-endian 64-bit integers: magic number, slots, most rows of a slot; then the
slots, each a count, a stage and rows. A slot counts 0 unless it is whole: the count is stored last,
and taken back first.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from batchpredict.data.drafts import not_creatable

logger = logging.getLogger(__name__)

# "prepare", "infer": by this process. "lone_…": by its child. "start": the child was being started
# for this row and others.
Stage = Literal["prepare", "infer", "lone_prepare", "lone_infer", "start"]

_STAGES: tuple[Stage, ...] = get_args(Stage)
# Of consecutive rows the first and the last are enough.
RANGES = frozenset({"prepare", "lone_prepare"})
_MAGIC = int.from_bytes(b"inflight", "little")
_WORD = np.dtype("<i8")
_HEAD_WORDS, _SLOT_WORDS = 3, 2
_LEAST_ROWS = 2
# What claims to be larger is damaged.
_MOST_BYTES = 1 << 32
# File systems that cannot be mapped (FUSE with direct_io).
_UNMAPPABLE = (errno.ENODEV, errno.EINVAL, errno.EOPNOTSUPP)

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Note:
    """Rows in flight. `rows`: their numbers, int64; in the stages of preparing a window, its first
    and last.
    """

    stage: Stage
    rows: Rows


def notes_beside(journal: Path) -> Path:
    """Where the notes lie that belong to a journal: `.out.csv.inflight`."""
    return journal.with_suffix(".inflight")


class Notes:
    """One slot for each thread that may have rows in flight. Safe to be called from all of them.

    Replaces what lies at `path`; None keeps the notes to this process. `most_rows`: of a flight.
    The file is to be removed at every orderly end. Raises OutputNotCreatable.
    """

    def __init__(self, path: Path | None, threads: int, most_rows: int) -> None:
        most_rows = max(most_rows, _LEAST_ROWS)
        size = _WORD.itemsize * (_HEAD_WORDS + threads * (_SLOT_WORDS + most_rows))
        memory = mmap.mmap(-1, size) if path is None else _mapped(path, size)
        words = np.frombuffer(memory, _WORD)
        words[1:_HEAD_WORDS] = threads, most_rows
        words[0] = _MAGIC
        self._free = list(words[_HEAD_WORDS:].reshape(threads, -1))

    @contextmanager
    def flight(self, stage: Stage, rows: Rows) -> Iterator[None]:
        """These rows are in flight. `rows`: ascending where they are prepared."""
        if stage in RANGES and len(rows):
            rows = rows[[0, -1]]
        slot = self._free.pop()
        slot[1] = _STAGES.index(stage)
        slot[_SLOT_WORDS : _SLOT_WORDS + len(rows)] = rows
        slot[0] = len(rows)
        try:
            yield
        finally:
            slot[0] = 0
            self._free.append(slot)


def _mapped(path: Path, size: int) -> mmap.mmap:
    """Shared pages of a new file. Their room on the disk is taken now: later it would be SIGBUS."""
    try:
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
            return mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _UNMAPPABLE:
            logger.info(
                "%s cannot be mapped into memory (%s): should a row kill this process, the next "
                "run will not know which",
                path,
                (error.strerror or "").lower(),
            )
            return mmap.mmap(-1, size)
        with suppress(OSError):  # the same error again
            path.unlink(missing_ok=True)
        raise not_creatable(str(path), error, "--output_file or --output_dir") from error


def read_notes(path: Path) -> tuple[Note, ...]:
    """What was in flight when the process died that kept notes here; none where there are none.

    Of a damaged file, the slots that are whole.
    """
    try:
        if not 0 < path.stat().st_size <= _MOST_BYTES:
            return ()
        data = path.read_bytes()
    except FileNotFoundError:
        return ()
    words = np.frombuffer(data, _WORD, len(data) // _WORD.itemsize).astype(np.int64)
    if len(words) < _HEAD_WORDS or words[0] != _MAGIC or words[2] < _LEAST_ROWS:
        return ()
    width = _SLOT_WORDS + int(words[2])
    slots = min(int(words[1]), (len(words) - _HEAD_WORDS) // width)
    return tuple(
        Note(_STAGES[slot[1]], slot[_SLOT_WORDS : _SLOT_WORDS + slot[0]])
        for slot in (words[_HEAD_WORDS + i * width :][:width] for i in range(slots))
        if _is_whole(slot)
    )


def _is_whole(slot: Rows) -> bool:
    count, stage = int(slot[0]), int(slot[1])
    if not (0 < count <= len(slot) - _SLOT_WORDS and 0 <= stage < len(_STAGES)):
        return False
    rows = slot[_SLOT_WORDS : _SLOT_WORDS + count]
    if rows.min() < 1:
        return False
    return _STAGES[stage] not in RANGES or (count == 2 and bool(rows[0] <= rows[1]))
