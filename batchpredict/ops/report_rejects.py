"""Examples of rejected rows, for the report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchpredict.ops.display import plain
from batchpredict.ops.runs import Run

_PER_CODE = 3
_MOST_BYTES = 4 << 20
_MOST_LINE = 1 << 20
_MOST_SHOWN = 500


@dataclass(frozen=True)
class Example:
    """A rejected row. `message`, `record`: None unless they were asked for, since both tell what
    is in the input.
    """

    code: str
    row: int
    line: int | None
    message: str | None
    record: str | None


def examples(run: Run, with_records: bool) -> tuple[Example, ...]:
    """A few rows of each code, from the rejects file beside the receipt.

    None where there is no such file there, or nothing in it is a reject.
    """
    if run.rejects is None or not run.rejects.path:
        return ()
    file = Path(run.file).parent / Path(run.rejects.path).name
    seen: Counter[str] = Counter()
    found = []
    for entry in _entries(file):
        code = str(entry.get("code"))
        if code not in run.rejects.codes or seen[code] >= _PER_CODE:
            continue
        seen[code] += 1
        found.append(_example(entry, code, with_records))
        if all(seen[each] >= min(_PER_CODE, n) for each, n in run.rejects.codes.items()):
            break
    return tuple(found)


def _example(entry: dict[str, Any], code: str, with_records: bool) -> Example:
    row, line = entry.get("row"), entry.get("line")
    message = record = None
    if with_records:
        message = plain(str(entry.get("message")), _MOST_SHOWN)
        record = plain(_record(entry), _MOST_SHOWN)
    return Example(
        plain(code, 40),
        row if isinstance(row, int) else 0,
        line if isinstance(line, int) else None,
        message,
        record,
    )


def _record(entry: dict[str, Any]) -> str:
    if "record_base64" in entry:
        return f"(base64) {entry['record_base64']}"
    record = entry.get("record")
    if record is None:
        return ""
    return record if isinstance(record, str) else json.dumps(record, ensure_ascii=False)


def _entries(file: Path) -> Iterator[dict[str, Any]]:
    """JSON objects from the file's beginning; other lines are left out, as are very long ones."""
    try:
        if not file.is_file():
            return
        stream = file.open("rb")
    except OSError:  # another user's, or no possible name; the receipt has the counts
        return
    with stream:
        while stream.tell() < _MOST_BYTES and (line := stream.readline(_MOST_LINE)):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(entry, dict):
                yield entry
