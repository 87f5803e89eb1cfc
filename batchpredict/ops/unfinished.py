"""Runs that have published nothing yet, as their journals tell of them."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from batchpredict.data.locks import Held, is_locked
from batchpredict.errors import InputInvalid, InputMissing, OutputWriteFailed
from batchpredict.ops.runs import JOURNAL, Run, ScoredBy, State
from batchpredict.run.journal import Recorded, read_journal
from batchpredict.run.receipt import InputFile


def read_unfinished(file: str) -> Run | None:
    """The run that a journal tells of; None where its output is published, or there was none.

    Raises InputMissing, InputInvalid (it is no journal).
    """
    path = Path(file)
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise InputMissing(f"{file}: {(error.strerror or '').lower()}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputInvalid(f"{file}: is not a journal (it is no regular file)")
        works = is_locked(descriptor)
        recorded = read_journal(Held(path, descriptor))
    except OutputWriteFailed as error:
        raise InputMissing(str(error)) from error
    finally:
        os.close(descriptor)
    if recorded is None:
        if status.st_size and not works:
            raise InputInvalid(f"{file}: is not a journal")
        return _run(path, "waiting", status.st_mtime, None) if works else None
    if recorded.published:
        return None
    return _run(path, "running" if works else "stopped", status.st_mtime, recorded)


def _run(path: Path, state: State, modified: float, recorded: Recorded | None) -> Run:
    output = path.with_name(path.name.removeprefix(".").removesuffix(JOURNAL))
    read: dict[str, Any] = recorded.pins.get("input", {}) if recorded else {}
    model: dict[str, Any] = recorded.pins.get("model", {}) if recorded else {}
    size, digest = read.get("size"), model.get("sha256")
    return Run(
        file=str(path),
        state=state,
        output=str(output),
        ended=datetime.fromtimestamp(modified, UTC),
        input=InputFile(str(read["path"]), size if isinstance(size, int) else None, None, None)
        if "path" in read
        else None,
        model=ScoredBy(sha256=digest if isinstance(digest, str) else None),
        kept_rows=recorded.rows if recorded else 0,
    )
