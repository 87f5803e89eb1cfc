"""The borders of CSV records by DESIGN section 5, one byte at a time: what `cut` must equal."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """`cell_ends` None: not a row; `code` says why."""

    start: int
    end: int
    cell_ends: tuple[int, ...] | None
    code: str = ""


def rows(text: bytes, columns: int, max_record_bytes: int, delimiter: bytes = b",") -> list[Row]:
    """All rows of `text`, good and flawed, in order; blank lines are none."""
    found: list[Row] = []
    position = 0
    while position < len(text):
        row = _row(text, position, max_record_bytes, delimiter)
        position = row.end
        if row.cell_ends == (row.start,):
            continue
        if row.cell_ends is not None and len(row.cell_ends) != columns:
            row = Row(row.start, row.end, None, "malformed_row")
        found.append(row)
    return found


def _row(text: bytes, start: int, longest: int, delimiter: bytes) -> Row:
    limit = min(len(text), start + longest)
    cells: list[int] = []
    position = start
    while True:
        opened = position
        if position < limit and text[position : position + 1] == b'"':
            position, closed = _quoted(text, position, limit)
            ended = position == limit or text[position : position + 1] in (delimiter, b"\n")
            if not closed or not (ended or text[position : position + 2] == b"\r\n"):
                return Row(start, _after_line(text, opened), None, "malformed_row")
        else:
            while position < limit and text[position : position + 1] not in (delimiter, b"\n"):
                position += 1
        if position == limit:
            if limit < len(text):
                return Row(start, _after_line(text, limit - 1), None, "too_large")
            return Row(start, position, (*cells, position))
        if text[position : position + 1] == delimiter:
            cells.append(position)
            position += 1
            continue
        if text[position : position + 1] == b"\r":
            return Row(start, position + 2, (*cells, position))
        content = position
        if position > opened and text[position - 1 : position] == b"\r":
            content -= 1
        return Row(start, position + 1, (*cells, content))


def _quoted(text: bytes, position: int, limit: int) -> tuple[int, bool]:
    position += 1
    while position < limit:
        if text[position : position + 1] != b'"':
            position += 1
        elif position + 1 < limit and text[position + 1 : position + 2] == b'"':
            position += 2
        else:
            return position + 1, True
    return position, False


def _after_line(text: bytes, position: int) -> int:
    found = text.find(b"\n", position)
    return len(text) if found < 0 else found + 1
