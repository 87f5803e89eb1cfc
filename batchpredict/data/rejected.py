"""Rejects files read back: the rows of an input that were not scored, mended or not."""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from batchpredict.data.records import Reject
from batchpredict.data.sources import InputSource
from batchpredict.errors import InputInvalid

# The beginning of a record that was cut, and what cutting may have taken off it besides: a
# character that lost its end, and a line end.
_CUT_BYTES = 64 << 10
_MOST_TRIMMED_BYTES = 8
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class RejectedRow:
    """A line of a rejects file.

    `place`: which line of it; `line`: which of the input, whose name is `file`. `record`: text;
    bytes that are no UTF-8, in the input's own encoding; an object (Avro, Parquet); None where a
    record was too long to be written down.
    """

    place: int
    file: str
    row: int
    line: int | None
    code: str
    message: str
    record: str | bytes | Mapping[str, Any] | None
    offset: int | None = None
    length: int | None = None

    @property
    def is_cut(self) -> bool:
        """Whether `record` still is the beginning of one that was cut: it has a cut one's size."""
        if self.length is None or not isinstance(self.record, str | bytes):
            return False
        size = len(as_bytes(self.record))
        return 0 <= min(_CUT_BYTES, self.length) - size <= _MOST_TRIMMED_BYTES

    def rejected(self, code: str, message: str) -> Reject:
        """The row as it goes to the rejects that are left, for this reason."""
        record = as_bytes(self.record) if isinstance(self.record, str) else self.record
        reject = Reject(self.row, self.line, code, message, record)
        return replace(reject, offset=self.offset, length=self.length) if self.is_cut else reject


def as_bytes(record: str | bytes) -> bytes:
    """Text as UTF-8; half a surrogate pair, which JSON can spell, becomes invalid UTF-8."""
    return record.encode("utf-8", "surrogatepass") if isinstance(record, str) else record


def rejected_rows(source: InputSource) -> Iterator[RejectedRow]:
    """The lines of a rejects file, rows ascending. Raises InputInvalid, InputMissing."""
    last = 0
    stream = io.BufferedReader(cast(io.RawIOBase, source.open()), _READ_BYTES)
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            found = _parsed(number, line)
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise InputInvalid(
                f"{source.name}:{number}: is no line of a rejects file ({_reason(error)}); mend "
                '"record" and leave the rest as it is'
            ) from error
        if found.row <= last:
            raise InputInvalid(
                f"{source.name}:{number}: row {found.row} comes after row {last}; keep the lines "
                "in their order, each once"
            )
        last = found.row
        yield found


def _reason(error: Exception) -> str:
    if isinstance(error, LookupError):
        return f"it lacks {error}"
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON from character {error.pos + 1} on"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _parsed(place: int, line: bytes) -> RejectedRow:
    entry = json.loads(line)
    if not isinstance(entry, dict):
        raise TypeError("it is no JSON object")
    row, code, message = entry["row"], entry["code"], entry["message"]
    if type(row) is not int or row < 1:
        raise ValueError(f"row {row!r} is no row number")
    if not (isinstance(code, str) and isinstance(message, str)):
        raise TypeError("code and message are not text")
    if not isinstance(file := entry["file"], str):
        raise TypeError("file is not text")
    numbers = [entry.get(name) for name in ("line", "offset", "length")]
    if not all(number is None or type(number) is int for number in numbers):
        raise TypeError("line, offset or length is no whole number")
    at, offset, length = cast(list[int | None], numbers)
    return RejectedRow(place, file, row, at, code, message, _record(entry), offset, length)


def _record(entry: Mapping[str, Any]) -> str | bytes | Mapping[str, Any] | None:
    if "record" in entry:  # whoever mends what was base64 writes text
        record = entry["record"]
        if record is not None and not isinstance(record, str | dict):
            raise TypeError("record is neither text nor an object")
        return cast(str | dict[str, Any] | None, record)
    if "record_base64" not in entry:
        raise LookupError("'record'")
    try:
        return base64.b64decode(entry["record_base64"], validate=True)
    except binascii.Error as error:
        raise ValueError(f"record_base64: {error}") from error
