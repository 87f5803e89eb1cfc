"""Outputs that are objects in S3: stored in parts while they are written, visible at once.

A lock and a journal of such an output are files of this machine (see uploads.py). Two machines that
write one object do not exclude each other: the last one that publishes wins, and what it published
is whole.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import replace
from typing import BinaryIO, cast

from batchpredict import s3
from batchpredict.data.copies import add
from batchpredict.data.drafts import CountedOutput, Published, unpublished
from batchpredict.data.storage import reason
from batchpredict.data.uploads import UploadNote, abort_abandoned
from batchpredict.errors import BatchPredictError, OutputNotCreatable, OutputWriteFailed

_READ_BYTES = 1 << 20


def _incomplete(name: str) -> OutputWriteFailed:
    return OutputWriteFailed(f"{name}: is incomplete; {unpublished(name)}")


class ObjectDraft:
    """Obeys the OutputDraft protocol. Raises Unavailable, OutputNotCreatable."""

    def __init__(self, name: str, compression: str = "") -> None:
        self.name = name
        abort_abandoned(name)
        self._upload = s3.store().begin(s3.parse(name), self._take_note)
        self._note: UploadNote | None = None
        self._sink = CountedOutput(self._put)
        self.stream = self._sink.through(compression)
        self._finished: Published | None = None
        self._finishing = self._over = False

    def _put(self, data: memoryview) -> None:
        self._upload.write(data)

    def _take_note(self, upload_id: str) -> None:
        self._note = UploadNote(self.name, upload_id)

    def cut(self) -> int:
        """See OutputDraft."""
        return self._sink.cut()

    def finish(self) -> Published:
        """Have every byte stored. What failed once fails again. Raises Unavailable,
        OutputWriteFailed.
        """
        if self._finished is not None:
            return self._finished
        if self._finishing or self._sink.torn:
            raise _incomplete(self.name)
        self._finishing = True
        self.stream.close()
        self._upload.finish()
        self._finished = Published(self.name, self._sink.size, self._sink.digest.hexdigest())
        return self._finished

    def publish(self, name: str | None = None) -> Published:
        """Make the finished object visible. Raises Unavailable."""
        assert self._finished is not None
        assert name in (None, self.name)
        self._finished = replace(self._finished, etag=self._upload.publish())
        self._end(over=True)
        return self._finished

    def abandon(self) -> None:
        """Leave nothing behind, or to the next run to remove. Harmless after `publish`."""
        if self._over:
            return
        # What cannot be aborted now is noted; and the error that led here is the one to be told.
        over = False
        with contextlib.suppress(BatchPredictError):
            self._upload.abort()
            over = True
        self._end(over=over)

    def _end(self, *, over: bool) -> None:
        self._over = self._sink.ended = True
        if self._note is not None:
            self._note.close(over=over)
            self._note = None


class SpooledDraft:
    """An object whose name may be decided when it is published. Obeys the OutputDraft protocol.

    Until then it is a local file without a name. Raises OutputNotCreatable, OutputWriteFailed.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        abort_abandoned(name)
        try:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - see `abandon`
        except OSError as error:
            raise OutputNotCreatable(
                f"{name}: cannot be collected: no temporary file can be made: {reason(error)}; "
                "name another directory with TMPDIR"
            ) from error
        self._sink = CountedOutput(lambda data: add(cast(BinaryIO, self._file), data))
        self.stream = self._sink.through("")

    def cut(self) -> int:
        """See OutputDraft."""
        return self._sink.cut()

    def finish(self) -> Published:
        """Have every byte in the file. Raises OutputWriteFailed."""
        if self._sink.torn:
            raise _incomplete(self.name)
        self.stream.flush()
        return Published(self.name, self._sink.size, self._sink.digest.hexdigest())

    def publish(self, name: str | None = None) -> Published:
        """Store the object and make it visible. Raises Unavailable."""
        draft = ObjectDraft(name or self.name)
        try:
            self._file.seek(0)
            while data := self._file.read(_READ_BYTES):
                draft.stream.write(data)
            draft.finish()
            return draft.publish()
        finally:
            draft.abandon()

    def abandon(self) -> None:
        """Leave nothing behind."""
        self._sink.ended = True
        self._file.close()
