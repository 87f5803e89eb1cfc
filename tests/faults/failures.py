"""Calls that fail, are interrupted, or take long: what a run makes of each."""

from __future__ import annotations

import errno
import random
import signal
import subprocess
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults import cases, laws
from tests.faults.cases import Case
from tests.faults.client import Ended
from tests.faults.lab import Bench, Entry, Lab
from tests.faults.shim import Action, Call, Rule
from tests.faults.trials import CASES, check_took, entry_of, signalled

NOT_CREATABLE, NOT_WRITTEN, NOT_READ = {73}, {74}, {66}
# Nothing depends on the call, or what it was for is done already: going on is as good as to end.
EITHER = {0, 3, 73, 74}
_FULL = ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "ESTALE")


@dataclass(frozen=True)
class Failing:
    """A call that fails: on what, with which errors, and the exit codes that are right then.

    `what`: a pattern of names beside the output `{out}` of the case; `{in}`: its input. `helped`:
    by a rule without which no short run makes the call.
    """

    call: Call
    what: str
    errors: tuple[str, ...]
    codes: Collection[int]
    helped: tuple[Rule, ...] = ()


# Minutes pass all the time, so that it is time to sync; of several that are due the first wins.
MINUTES = tuple(Rule("clock", "monotonic", "jump", 60 * n, 80 * n, 0) for n in range(9, 0, -1))

DRAFT, REJECTS, RECEIPT = (
    f"*/.{{out}}{end}.????????.part" for end in ("", laws.REJECTS, laws.RECEIPT)
)
JOURNAL, NOTES = "*/.{out}.journal", "*/.{out}.inflight"

FAILING = (
    *(
        Failing("open", what, ("ENOSPC", "EROFS", "EDQUOT", "EACCES", "EIO"), NOT_CREATABLE)
        for what in (DRAFT, REJECTS, RECEIPT, JOURNAL)
    ),
    Failing("open", NOTES, ("ENOSPC", "EROFS", "EDQUOT", "EIO"), EITHER),
    *(Failing("write", what, _FULL, NOT_WRITTEN) for what in (DRAFT, REJECTS, RECEIPT, JOURNAL)),
    Failing("write", "{dir}*", _FULL, NOT_WRITTEN),
    Failing("fsync", JOURNAL, ("EIO", "ENOSPC"), NOT_WRITTEN, MINUTES),
    *(
        Failing("fsync", what, ("EIO", "ENOSPC", "EDQUOT"), NOT_WRITTEN)
        for what in (DRAFT, REJECTS, RECEIPT, "{dir}")
    ),
    *(
        Failing("rename", what, ("EIO", "ENOSPC", "EROFS", "ESTALE"), NOT_CREATABLE | NOT_WRITTEN)
        for what in (DRAFT, REJECTS, RECEIPT)
    ),
    Failing("unlink", "*/{out}.failed*", ("EIO", "EROFS"), EITHER),
    Failing("unlink", NOTES, ("EIO", "EROFS"), EITHER),
    Failing("unlink", JOURNAL, ("EIO", "EROFS"), EITHER),
    Failing("close", DRAFT, ("EIO", "ENOSPC", "EDQUOT"), EITHER),
    Failing("close", JOURNAL, ("EIO",), EITHER),
    Failing("truncate", JOURNAL, ("EIO", "ENOSPC"), EITHER),
    Failing("truncate", NOTES, ("EIO", "ENOSPC", "EFBIG"), EITHER),
    Failing("statvfs", "*", ("EIO", "ENOSYS"), EITHER),
    Failing("open", "{in}", ("EIO", "ESTALE", "EACCES"), NOT_READ),
    Failing("read", "{in}", ("EIO", "ESTALE", "ENOTCONN"), NOT_READ),
)


@dataclass(frozen=True)
class Bearable:
    """What no run may take notice of."""

    call: Call
    what: str
    action: Action
    value: int
    first: int = 1
    times: int = 0


_ANY = "{dir}*"
BEARABLE = (
    *(Bearable(call, _ANY, "errno", errno.EINTR, 1, 3) for call in ("open", "write", "fsync")),
    Bearable("open", "{in}", "errno", errno.EINTR, 1, 3),
    Bearable("read", "{in}", "errno", errno.EINTR, 2, 3),
    Bearable("read", "{in}", "short", 4093),
    Bearable("write", _ANY, "short", 40_000),
    Bearable("write", JOURNAL, "short", 7, 1, 9),
    Bearable("write", _ANY, "delay", 20),
    Bearable("fsync", _ANY, "delay", 300),
    Bearable("read", "{in}", "delay", 20),
    Bearable("rename", _ANY, "delay", 200),
    Bearable("statvfs", "*", "free", 4096),
    # A day back and forth again, years ahead, and machines that were asleep.
    Bearable("clock", "realtime", "jump", -86_400, 10),
    Bearable("clock", "realtime", "jump", 86_400, 10, 30),
    Bearable("clock", "realtime", "jump", 400_000_000, 20),
    Bearable("clock", "monotonic", "jump", 40, 200),
    Bearable("clock", "monotonic", "jump", 86_400, 50),
)


def placed(what: str, case: Case, bench: Bench, lab: Lab) -> str:
    """A pattern with the names of this trial."""
    name = cases.names(case)[-1]
    file = cases.input_files(case, lab.inputs)[-1]
    return what.format(out=name, dir=bench.directory, **{"in": file})


def fail(lab: Lab, chosen: random.Random, number: int) -> Entry:
    """One of FAILING, early or late in a job, a new one or one that resumes."""
    failing = chosen.choice(FAILING)
    error, case = chosen.choice(failing.errors), chosen.choice(CASES)
    first, times = chosen.choice((1, 1, 2, 3, 5)), chosen.choice((1, 0))
    return failed(lab, case, failing, error, first, times, resumed=chosen.random() < 0.3)


def failed(
    lab: Lab,
    case: Case,
    failing: Failing,
    error: str,
    first: int = 1,
    times: int = 1,
    *,
    resumed: bool = False,
) -> Entry:
    """A call fails; then the same command, undisturbed. `resumed`: a run was killed before."""
    bench = lab.bench(case, old=first % 2 == 0)
    if resumed:
        signalled(lab, bench, 0.7, signal.SIGKILL)
    ended = _fail(lab, bench, failing, error, first, times)
    lab.check_next_run(bench)
    return entry_of(lab, bench, fault=f"{failing.call} {failing.what} {error}", fired=ended.fired)


def failed_in_turn(lab: Lab, case: Case, faults: Sequence[tuple[Failing, str]]) -> Entry:
    """A run for each fault, of calls that every run makes; one undisturbed in the end."""
    bench = lab.bench(case, old=True)
    for failing, error in faults:
        if not _fail(lab, bench, failing, error).fired:
            bench.failures.append(f"no run does {failing.call} {failing.what}")
    lab.check_next_run(bench)
    return entry_of(lab, bench)


def _fail(
    lab: Lab, bench: Bench, failing: Failing, error: str, first: int = 1, times: int = 1
) -> Ended:
    glob = placed(failing.what, bench.case, bench, lab)
    rule = Rule(failing.call, glob, "errno", getattr(errno, error), first, times)
    ended = lab.run(bench, [rule, *failing.helped])
    if ended.fired:
        bench.failures += laws.broken_by_failing(ended, failing.codes)
    lab.check_meanwhile(bench)
    return ended


def full(lab: Lab, chosen: random.Random, number: int) -> Entry:
    """A disk that is full, a real one (to be mounted by root), then one with room."""
    return filled(lab, chosen.choice(CASES), chosen.uniform(0.02, 1.5), old=chosen.random() < 0.5)


def filled(lab: Lab, case: Case, share: float, *, old: bool = False) -> Entry:
    """`share`: of what the outputs need. Raises PermissionError where nothing can be mounted."""
    bench = lab.bench(case, old=False)
    pages = sum(file.stat().st_size for file in cases.input_files(case, lab.inputs)) // 4096
    with mounted(bench.directory, pages):
        if old:
            bench.old = True
            laws.lay_old(bench.directory, cases.names(case))
        resize(bench.directory, max(12, int(share * pages)))
        ended = lab.run(bench)
        attempt = bench.attempts[-1]
        bench.failures += laws.broken_by_failing(ended, {0, 3, 73, 74})
        lab.check_meanwhile(bench)
        attempt["promised"] = bench.promised
        resize(bench.directory, 100 * pages)
        lab.check_next_run(bench)
    return entry_of(lab, bench, share=share)


@contextmanager
def mounted(directory: Path, pages: int) -> Iterator[None]:
    """A file system of so many pages of memory. Raises PermissionError where that is denied."""
    _mount(directory, f"size={pages * 4096}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def resize(directory: Path, pages: int) -> None:
    """Make a mounted file system larger or smaller, at least as large as what is in it."""
    used = sum(-(-path.stat().st_size // 4096) + 1 for path in directory.iterdir()) + 1
    _mount(directory, f"remount,size={max(pages, used) * 4096}")


def _mount(directory: Path, options: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise PermissionError(f"{directory}: there is no mount command") from error
    if made.returncode:
        raise PermissionError(f"{directory}: {made.stderr.strip()}")


def bear(lab: Lab, chosen: random.Random, number: int) -> Entry:
    """One of BEARABLE."""
    return borne(lab, chosen.choice(CASES), chosen.choice(BEARABLE))


def borne(lab: Lab, case: Case, bearable: Bearable) -> Entry:
    bench = lab.bench(case, old=True)
    glob = placed(bearable.what, case, bench, lab)
    rule = Rule(
        bearable.call, glob, bearable.action, bearable.value, bearable.first, bearable.times
    )
    ended = lab.run(bench, [rule])
    bench.failures += laws.broken_at_the_end(bench.directory, ended, bench.whole)
    fault = f"{bearable.call} {bearable.what} {bearable.action} {bearable.value}"
    return entry_of(lab, bench, fault=fault, fired=ended.fired)


def stall(lab: Lab, chosen: random.Random, number: int) -> Entry:
    """SIGTERM or SIGINT while a disk does not answer: the run ends in time all the same."""
    call: Call = chosen.choice(("fsync", "write", "open", "rename"))
    told = chosen.choice((signal.SIGTERM, signal.SIGINT))
    return stalled(lab, chosen.choice(CASES), call, told, chosen.choice((1, 2, 5)))


def stalled(lab: Lab, case: Case, call: Call, number: int, first: int = 1) -> Entry:
    bench = lab.bench(case, old=True)
    rule = Rule(call, f"{bench.directory}*", "delay", 20_000, first, 0)
    ended = signalled(lab, bench, 1.5, number, rule)
    if "signal" in bench.attempts[-1]:
        check_took(bench)
        if ended.code != 128 + number:
            bench.failures.append(f"exit code {ended.code}, not {128 + number}: {ended.stderr}")
    lab.check_meanwhile(bench)
    lab.check_next_run(bench)
    return entry_of(lab, bench, fault=f"{call} stalls", fired=ended.fired)
