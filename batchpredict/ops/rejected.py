"""Which rows of a former run are to be tried again, and whether its output has them."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from batchpredict.data.rejected import RejectedRow, rejected_rows
from batchpredict.data.sources import LocalSource
from batchpredict.errors import InputInvalid, InputMissing
from batchpredict.ops.former import Former

Numbers = npt.NDArray[np.int64]

# With on_error "null" such rows are never in the output, or are there without a prediction; of
# other codes the receipt's counts must tell.
_NEVER_WRITTEN = frozenset(("malformed_row", "too_large", "skipped"))
_WITHOUT_PREDICTION = frozenset(("missing_value", "too_long", "inference_failed", "not_finite"))


@dataclass(frozen=True)
class Rejected:
    """The rows to try again. `numbers`: of all, ascending; `absent`: of those that the output
    does not have, while the others are in it without a prediction. `mended`: the file they are
    read from, and `rest` the one with those that `mended` leaves out. `killers`: rows that killed
    the process.
    """

    numbers: Numbers
    absent: Numbers
    mended: LocalSource
    rest: LocalSource | None
    killers: tuple[int, ...]

    def rows(self) -> Iterator[RejectedRow]:
        """From the start. Raises InputInvalid."""
        return _rows(self.mended, self.rest)


@dataclass
class _Found:
    """What rows a file has. `written`: see _written."""

    numbers: array[int] = field(default_factory=lambda: array("q"))
    written: array[int] = field(default_factory=lambda: array("b"))
    killers: list[int] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, rows: Iterable[RejectedRow]) -> _Found:
        found = cls()
        for row in rows:
            found.numbers.append(row.row)
            found.written.append(_written(row.code))
            found.codes[row.code] += 1
            if row.code == "killed_process":
                found.killers.append(row.row)
        return found


def find_rejected(former: Former, mended: LocalSource) -> Rejected:
    """Read through a mended rejects file. Raises InputInvalid where rows of the run are missing,
    or others are in it, or codes are not as they were.
    """
    rest = None
    found = _Found.of(rejected_rows(mended))
    if len(found.numbers) != sum(former.codes.values()):
        rest = _original(former, mended)
        found = _Found.of(_rows(mended, rest))
    if found.codes != former.codes or max(found.numbers[-1:], default=0) > former.counts.read:
        raise InputInvalid(
            f"{mended.name}: its rows and codes are not those of {former.receipt}; mend "
            '"record" and leave the rest as it is'
        )
    numbers = np.array(found.numbers, np.int64)
    is_written = _is_written(former, np.array(found.written, np.int8))
    return Rejected(numbers, numbers[~is_written], mended, rest, tuple(found.killers))


def _written(code: str) -> int:
    """1 and 0: whether "null" leaves the row in the output; -1: not told by the code."""
    if code in _NEVER_WRITTEN:
        return 0
    return 1 if code in _WITHOUT_PREDICTION else -1


def _is_written(former: Former, written: npt.NDArray[np.int8]) -> npt.NDArray[np.bool_]:
    nulls = former.counts.nulls
    certain, doubtful = int((written == 1).sum()), int((written == -1).sum())
    if nulls == 0:
        return np.zeros(len(written), bool)
    if nulls in (certain, certain + doubtful):
        least = 1 if nulls == certain else -1
        return np.isin(written, (least, 1))
    raise InputInvalid(
        f"{former.receipt}: which of its rejected rows are in the output cannot be told by their "
        "codes; mend the input and run predict again"
    )


def _original(former: Former, mended: LocalSource) -> LocalSource:
    """The rejects file as the run left it."""
    name = former.task.rejects or ""
    try:
        source = LocalSource(name)
    except InputMissing as error:
        raise _incomplete(former, mended) from error
    if source.size != former.rejects.size or source.finish() != former.rejects.sha256:
        raise _incomplete(former, mended)
    return source


def _incomplete(former: Former, mended: LocalSource) -> InputInvalid:
    return InputInvalid(
        f"{mended.name}: does not hold all {sum(former.codes.values())} rejected rows, and "
        f"{former.task.rejects} is not there as the run left it; put the rows back that are "
        "missing, each line as it was"
    )


def _rows(mended: LocalSource, rest: LocalSource | None) -> Iterator[RejectedRow]:
    if rest is None:
        yield from rejected_rows(mended)
        return
    rows = rejected_rows(mended)
    row = next(rows, None)
    for original in rejected_rows(rest):
        if row is None or row.row > original.row:
            yield original
            continue
        if row.row < original.row:
            break
        yield row
        row = next(rows, None)
    if row is not None:
        raise InputInvalid(
            f"{mended.name}: row {row.row} is none of those in {rest.name}; leave the row numbers "
            "as they are"
        )
