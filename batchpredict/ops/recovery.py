"""What a retry in place keeps until all is published, and what the next makes of it.

Its output, rejects and receipt replace those it was made of, and a kill may come between any two.
So before the first of them a note, the receipt to be, and what was mended by hand lie beside the
receipt and the rejects file, hidden.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from batchpredict import s3
from batchpredict.data.drafts import write_durably
from batchpredict.data.naming import Task
from batchpredict.data.sources import InputSource, source_of
from batchpredict.ops.former import Former, read_former
from batchpredict.run.receipt import Receipt

logger = logging.getLogger(__name__)


class Keeping:
    """The hidden files of a retry that writes `task`."""

    def __init__(self, task: Task) -> None:
        self._rejects = Path(task.rejects or "")
        receipt = Path(task.receipt or "")
        self._note = receipt.with_name(f".{receipt.name}.retry")
        self._copy = self._rejects.with_name(f".{self._rejects.name}.mended")

    def recover(self, former: Former) -> tuple[Former, Path | None]:
        """The run whose rows are to be tried now, and where they are if a kill came before.

        Writes the receipt of a retry that was killed before it could.
        """
        note = self._noted()
        if note is None:
            return former, None
        if note["retried"]["run_id"] == former.run_id:
            if _agrees(Path(former.task.output), note["output"]):
                logger.info("%s: is written now, the retry before was killed", former.receipt)
                write_durably(Path(former.receipt), self._note.read_bytes())
                self._remove()
                return read_former(former.receipt), None
            if self._copy.exists() and _agrees(self._rejects, note["rejects"]):
                logger.info("the retry before was killed; its rows are taken from %s", self._copy)
                return former, self._copy
        self._remove()
        return former, None

    def _noted(self) -> dict[str, Any] | None:
        """The note; None, and none from then on, where it is no receipt of a retry."""
        if not self._note.exists():
            return None
        try:
            note: dict[str, Any] = json.loads(self._note.read_bytes())
            _ = note["retried"]["run_id"]
            for name in ("output", "rejects"):
                _ = note[name]["size"], note[name]["sha256"]
        except (ValueError, LookupError, TypeError, RecursionError):
            logger.warning("%s: is not what a retry leaves, it is not used", self._note)
            self._note.unlink()
            return None
        return note

    @contextmanager
    def keep(self, mended: InputSource) -> Iterator[None]:
        """Keep what was mended, where the file's name will be another's."""
        here = not s3.is_url(mended.name)
        if here and self._rejects.exists() and self._rejects.samefile(mended.name):
            self._copy.unlink(missing_ok=True)
            try:
                self._copy.hardlink_to(self._rejects)
            except OSError:  # a file system without links
                shutil.copy2(self._rejects, self._copy)
        try:
            yield
        except BaseException:
            if not self._note.exists():  # nothing was about to be published
                self._copy.unlink(missing_ok=True)
            raise
        self._remove()

    def announce(self, receipt: Receipt) -> None:
        """Write down what is about to be published. Raises OutputWriteFailed."""
        write_durably(self._note, receipt.to_json())

    def _remove(self) -> None:
        self._note.unlink(missing_ok=True)
        self._copy.unlink(missing_ok=True)


def _agrees(path: Path, recorded: Mapping[str, Any]) -> bool:
    """Whether a file is what a receipt tells of; one that it has not is not there."""
    if recorded["sha256"] is None or not path.exists():
        return recorded["sha256"] is None and not path.exists()
    source = source_of(str(path))
    return bool(source.size == recorded["size"] and source.finish() == recorded["sha256"])
