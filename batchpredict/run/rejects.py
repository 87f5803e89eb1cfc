"""The rejects file: rows that were not scored, as they came, so that they can be mended."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

from batchpredict.data.drafts import Published
from batchpredict.data.outputs import OutputDraft, draft_of
from batchpredict.data.records import Reject

_MOST_RECORD_BYTES = 64 << 10


def reject_line(file: str, reject: Reject) -> str:
    """One line of the rejects file (JSON), without the line end."""
    entry: dict[str, Any] = {"file": file, "row": reject.row}
    if reject.line is not None:
        entry["line"] = reject.line
    entry |= {"code": reject.code, "message": reject.message}
    return json.dumps(entry | _record(reject), ensure_ascii=False)


def _record(reject: Reject) -> dict[str, Any]:
    record = reject.record
    if record is None or not isinstance(record, bytes):
        return {"record": record}
    length = len(record) if reject.length is None else reject.length
    if length <= _MOST_RECORD_BYTES:
        return _text_or_base64(record)
    entry: dict[str, Any] = {**_text_or_base64(_whole_characters(record[:_MOST_RECORD_BYTES]))}
    if reject.offset is not None:
        entry["offset"] = reject.offset
    return entry | {"length": length}


def _whole_characters(cut: bytes) -> bytes:
    """`cut` without a UTF-8 character that lost its end, if it is UTF-8 otherwise."""
    try:
        cut.decode()
    except UnicodeDecodeError as error:
        return cut[: error.start] if error.end == len(cut) else cut
    return cut


def _text_or_base64(record: bytes) -> dict[str, str]:
    try:
        return {"record": record.decode()}
    except UnicodeDecodeError:
        return {"record_base64": base64.b64encode(record).decode("ascii")}


def row_line(row: int, code: str) -> bytes:
    """What a reject adds to `rows_sha256`."""
    return f"{row} {code}\n".encode()


class RejectsFile:
    """Collects rejects of one input. The file comes into being with the first of them.

    `path` None writes to standard error instead. `counts`: rejects by code.
    """

    def __init__(self, file: str, path: str | None) -> None:
        self._file = file
        self._path = path
        self._draft: OutputDraft | None = None
        self._published: str | None = None
        self.counts: Counter[str] = Counter()
        self._rows = hashlib.sha256()

    @property
    def rows_sha256(self) -> str | None:
        """See RejectsSummary; of the rejects so far."""
        return self._rows.hexdigest() if self.counts else None

    def add(self, rejects: Iterable[Reject]) -> None:
        """Append, in the order given."""
        for reject in rejects:
            self.counts[reject.code] += 1
            self._rows.update(row_line(reject.row, reject.code))
            line = reject_line(self._file, reject) + "\n"
            self._write(line.encode("utf-8", "backslashreplace"))

    def _write(self, line: bytes) -> None:
        if self._path is None:
            sys.stderr.write(line.decode())
            return
        if self._draft is None:
            self._draft = draft_of(self._path, option="--rejects_file", may_be_renamed=True)
        self._draft.stream.write(line)

    def append(self, lines: Iterable[bytes]) -> None:
        """Append lines that another one has written."""
        for line in lines:
            entry = json.loads(line)
            self.counts[entry["code"]] += 1
            self._rows.update(row_line(entry["row"], entry["code"]))
            self._write(line)

    def finish(self) -> Published | None:
        """Make the file durable; None where there were no rejects."""
        return self._draft.finish() if self._draft else None

    def publish(self, name: str | None = None) -> str | None:
        """Give the finished file its name, or `name`; returns the one it has."""
        if self._draft and self._published is None:
            self._draft.publish(name)
            self._published = name or self._path
        return self._published

    def abandon(self) -> None:
        """Leave nothing behind; harmless after `publish`."""
        if self._draft:
            self._draft.abandon()
