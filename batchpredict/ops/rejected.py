"""Which rows of a former run are to be tried again, and whether its output has them."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from batchpredict.data.locations import identity
from batchpredict.data.rejected import RejectedRow, rejected_rows
from batchpredict.data.sources import InputSource, source_of
from batchpredict.errors import InputInvalid, InputMissing
from batchpredict.ops.former import Former
from batchpredict.run.rejects import row_line

Numbers = npt.NDArray[np.int64]

# With on_error "null" such rows are never in the output, or are there without a prediction; of
# other codes the receipt's counts must tell.
_NEVER_WRITTEN = frozenset(("malformed_row", "too_large", "skipped"))
_WITHOUT_PREDICTION = frozenset(("missing_value", "too_long", "inference_failed", "not_finite"))


@dataclass(frozen=True)
class Rejected:
    """The rows to try again. `numbers`: of all, ascending; `absent`: of those that the output
    does not have, while the others are in it without a prediction. `mended`: the file they are
    read from, and `rest` the one that the run left, where it is there as it was: it has those
    that `mended` leaves out. `killers`: rows that killed the process.
    """

    former: Former
    numbers: Numbers
    absent: Numbers
    mended: InputSource
    rest: InputSource | None
    killers: tuple[int, ...]

    def rows(self) -> Iterator[RejectedRow]:
        """From the start. Raises InputInvalid."""
        return _rows(self.former, self.mended, self.rest)


@dataclass
class _Found:
    """What rows a file has. `written`: see _written."""

    numbers: array[int] = field(default_factory=lambda: array("q"))
    written: array[int] = field(default_factory=lambda: array("b"))
    killers: list[int] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)
    sha256: str = ""

    @classmethod
    def of(cls, rows: Iterable[RejectedRow]) -> _Found:
        found, digest = cls(), hashlib.sha256()
        for row in rows:
            digest.update(row_line(row.row, row.code))
            found.numbers.append(row.row)
            found.written.append(_written(row.code))
            found.codes[row.code] += 1
            if row.code == "killed_process":
                found.killers.append(row.row)
        found.sha256 = digest.hexdigest()
        return found


def find_rejected(former: Former, mended: InputSource) -> Rejected:
    """Read through a mended rejects file. Raises InputInvalid where rows of the run are missing,
    or others are in it, or codes are not as they were.
    """
    rest = _original(former, mended)
    found = _Found.of(_rows(former, mended, rest))
    if rest is None and len(found.numbers) < sum(former.codes.values()):
        raise _incomplete(former, mended)
    if not _are_those_of(former, found):
        raise InputInvalid(
            f"{mended.name}: its rows and codes are not those of {former.receipt}; mend "
            '"record" and leave the rest as it is'
        )
    numbers = np.array(found.numbers, np.int64)
    absent = numbers[~_is_written(former, np.array(found.written, np.int8))]
    return Rejected(former, numbers, absent, mended, rest, tuple(found.killers))


def _are_those_of(former: Former, found: _Found) -> bool:
    if former.rejects.rows_sha256 is not None:
        return found.sha256 == former.rejects.rows_sha256
    # A receipt of a version that did not write it.
    last = max(found.numbers[-1:], default=0)
    return found.codes == former.codes and last <= former.counts.read


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


def _original(former: Former, mended: InputSource) -> InputSource | None:
    """The rejects file as the run left it; None where it is not there, or is `mended` itself."""
    if _is_original(former, mended):
        return None
    try:
        source = source_of(former.task.rejects or "")
    except InputMissing:
        return None
    same = source.rereadable and source.size == former.rejects.size
    return source if same and source.finish() == former.rejects.sha256 else None


def _is_original(former: Former, mended: InputSource) -> bool:
    return identity(former.task.rejects or "") == identity(mended.name)


def _incomplete(former: Former, mended: InputSource) -> InputInvalid:
    rest = f", and {former.task.rejects} is not there as the run left it"
    return InputInvalid(
        f"{mended.name}: does not hold all {sum(former.codes.values())} rejected rows"
        f"{'' if _is_original(former, mended) else rest}; put the rows back that are missing, each "
        "line as it was"
    )


def _rows(former: Former, mended: InputSource, rest: InputSource | None) -> Iterator[RejectedRow]:
    rows = _checked(former, mended)
    if rest is None:
        yield from rows
        return
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
            f"{mended.name}:{row.place}: row {row.row} is none of those in {rest.name}; leave the "
            "row numbers as they are"
        )


def _checked(former: Former, mended: InputSource) -> Iterator[RejectedRow]:
    """Its rows, which are of the run's input and have a record wherever the run had one."""
    for row in rejected_rows(mended):
        if row.file != former.input.path:
            raise InputInvalid(
                f"{mended.name}:{row.place}: is a row of {row.file}, {former.receipt} is of "
                f"{former.input.path}; name the rejects of that file, or the other one's receipt"
            )
        may_lack = former.task.input_format == "avro" and row.code == "too_large"
        if row.record is None and not may_lack:
            raise InputInvalid(
                f"{mended.name}:{row.place}: has no record; put it back, or leave the line out if "
                "the rejects file of the run is as it was"
            )
        yield row
