"""The kinds of trials. Each disturbs one job, runs it to its end, and says what did not hold.

A trial takes a Lab, its own random numbers and its number, and returns its entry for the ledger.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Collection, Sequence

from tests.faults import cases, laws
from tests.faults.cases import Case
from tests.faults.client import Ended
from tests.faults.lab import Bench, Entry, Lab
from tests.faults.shim import CHANGING, Rule, Traced, killed

# Within which a run that is told to end has ended.
SECONDS_TO_END = 5.0
# A group of committed rows is at most as large, or as old as a second.
COMMIT_ROWS = 4096
CASES = cases.all_cases()
# Those of which every transition is tried.
SWEPT = (
    Case("csv", "csv", 1, 9000, 1, 512),
    Case("jsonl.gz", "jsonl.gz", 2, 3000, 2, 256),
    Case("avro", "parquet", 1, 6000, 2, 1024),
)

Trial = Callable[[Lab, random.Random, int], Entry]


# --- signals


def kill(lab: Lab, chosen: random.Random, number: int) -> Entry:
    """SIGKILL at random instants, also of resumed runs, then to the end."""
    case, fresh = chosen.choice(CASES), chosen.random() < 0.1
    shares = [chosen.random() for _ in range(chosen.choice((1, 1, 1, 2, 4)))]
    return killed_at(lab, case, shares, fresh=fresh, old=chosen.random() < 0.5)


def killed_at(
    lab: Lab, case: Case, shares: Sequence[float], *, fresh: bool = False, old: bool = True
) -> Entry:
    """`shares`: of an undisturbed run's time, a run each."""
    bench = lab.bench(case, old=old)
    kills = counted = 0
    for share in shares:
        ended = signalled(lab, bench, share, signal.SIGKILL, fresh=fresh)
        lab.check_meanwhile(bench)
        if ended.code != -signal.SIGKILL:
            break
        kills += 1
        counted += 1
        if laws.published(bench.directory, bench.whole):
            # Killed with nothing left to do: the next run has every right to do it all again.
            bench.inferred, counted = bench.inferred and 0, 0
    else:
        lab.check_next_run(bench)
        _check_repeated(lab, bench, counted)
        return entry_of(lab, bench, kills=kills)
    # One has come to the end before its moment; the next does it all again.
    bench.failures += laws.broken_at_the_end(bench.directory, ended, bench.whole)
    _check_repeated(lab, bench, counted)
    lab.check_next_run(bench)
    return entry_of(lab, bench, kills=kills)


def signalled(
    lab: Lab, bench: Bench, share: float, number: int, *rules: Rule, fresh: bool = False
) -> Ended:
    """A run that gets a signal after a share of an undisturbed one's time, unless it has ended."""
    moment = share * lab.profile(bench.case, fresh=fresh).seconds
    running = lab.start(bench, rules, fresh=fresh)
    ended = lab.client.wait(running, moment)
    if ended is not None:
        return lab.note(bench, ended, rules)
    lab.client.signal(running, number)
    ended = lab.client.finish(running)
    took = round(ended.seconds - moment, 3)
    return lab.note(bench, ended, rules, signal=number, at=round(moment, 3), took=took)


def _check_repeated(lab: Lab, bench: Bench, kills: int) -> None:
    """At most a commit interval is inferred again, and what was in flight."""
    once = lab.profile(bench.case).inferred
    if bench.inferred is None or once is None:
        return
    in_flight = bench.case.workers * (bench.case.batch_rows or COMMIT_ROWS)
    repeated = bench.inferred - once
    bench.attempts[-1]["repeated"] = max(repeated, 0)
    if repeated > kills * (COMMIT_ROWS + in_flight):
        bench.failures.append(f"{repeated} rows were inferred again after {kills} kills")


def terminate(lab: Lab, chosen: random.Random, number: int) -> Entry:
    """SIGTERM at random instants."""
    return _stopped(lab, chosen, signal.SIGTERM)


def interrupt(lab: Lab, chosen: random.Random, number: int) -> Entry:
    """SIGINT at random instants."""
    return _stopped(lab, chosen, signal.SIGINT)


def _stopped(lab: Lab, chosen: random.Random, number: int) -> Entry:
    case, fresh = chosen.choice(CASES), chosen.random() < 0.1
    shares = [chosen.random() for _ in range(chosen.choice((1, 1, 2, 3)))]
    return stopped_at(lab, case, shares, number, fresh=fresh, old=chosen.random() < 0.5)


def stopped_at(
    lab: Lab,
    case: Case,
    shares: Sequence[float],
    number: int,
    *,
    fresh: bool = False,
    old: bool = True,
) -> Entry:
    """SIGTERM or SIGINT after shares of an undisturbed run's time, a run each."""
    bench = lab.bench(case, old=old)
    stops = 0
    for share in shares:
        ended = signalled(lab, bench, share, number, fresh=fresh)
        lab.check_meanwhile(bench)
        if "signal" not in bench.attempts[-1]:
            break
        stops += 1
        _check_told(bench, ended, {number})
        check_took(bench)
    lab.check_next_run(bench)
    return entry_of(lab, bench, stops=stops)


def _check_told(bench: Bench, ended: Ended, numbers: Collection[int]) -> None:
    """A run that got these signals says that it was ended, if it was."""
    codes = {bench.whole.code, *(128 + number for number in numbers)}
    own = {-number for number in numbers}
    if not ended.trace and (ended.code in own or "import runpy" in ended.stderr):
        return  # before the command line had begun
    # The signal's own effect while the interpreter is being shut down; a shell sees no difference.
    if laws.published(bench.directory, bench.whole):
        codes |= own
    bench.failures += laws.broken_by_failing(ended, codes, silent=len(numbers) > 1)


def check_took(bench: Bench) -> None:
    """A run that was told to end has ended soon."""
    took = bench.attempts[-1].get("took", 0.0)
    if took > SECONDS_TO_END:
        bench.failures.append(f"took {took:.1f} s to end after a signal")


def twice(lab: Lab, chosen: random.Random, number: int) -> Entry:
    """A second signal while the first is being obeyed ends the run at once."""
    first, second = chosen.choices((signal.SIGTERM, signal.SIGINT), k=2)
    case, gap = chosen.choice(CASES), chosen.choice((0, 0.001, 0.02, 0.2))
    return told_twice(lab, case, (first, second), chosen.random(), gap)


def told_twice(
    lab: Lab, case: Case, numbers: tuple[int, int], share: float, gap: float = 0.0
) -> Entry:
    """Two signals, `gap` seconds after each other."""
    bench = lab.bench(case, old=True)
    moment = share * lab.profile(case).seconds
    running = lab.start(bench)
    ended = lab.client.wait(running, moment)
    if ended is None:
        lab.client.signal(running, numbers[0])
        ended = lab.client.wait(running, gap)
    if ended is None:
        lab.client.signal(running, numbers[1])
        ended = lab.client.finish(running)
    took = round(ended.seconds - moment, 3)
    lab.note(bench, ended, signals=numbers, at=round(moment, 3), took=took)
    check_took(bench)
    _check_told(bench, ended, numbers)
    lab.check_meanwhile(bench)
    lab.check_next_run(bench)
    return entry_of(lab, bench)


# --- transitions


def transition(lab: Lab, chosen: random.Random, number: int) -> Entry:
    """SIGKILL right before, after or within one call that changes what lies beside an output."""
    case = chosen.choice(CASES)
    rules = transitions(lab.profile(case).calls)
    return killed_by(lab, case, chosen.choice(rules), old=chosen.random() < 0.5)


def sweep(lab: Lab, chosen: random.Random, number: int) -> Entry:
    """The same for every such call of some cases, one after the other (about 500)."""
    every = [(case, rule) for case in SWEPT for rule in transitions(lab.profile(case).calls)]
    case, rule = every[number % len(every)]
    return killed_by(lab, case, rule, old=bool(number % 2))


def killed_by(lab: Lab, case: Case, rule: Rule, *, old: bool) -> Entry:
    bench = lab.bench(case, old=old)
    ended = lab.run(bench, [rule])
    lab.check_meanwhile(bench)
    if ended.fired and ended.code != -signal.SIGKILL:
        bench.failures.append(f"{rule} did not kill: {ended.code}")
    lab.check_next_run(bench)
    return entry_of(lab, bench, kills=int(ended.code < 0))


def transitions(calls: Sequence[Traced]) -> list[Rule]:
    """A kill before, after and (of a write) within each call that changes a file or a name."""
    rules: list[Rule] = []
    seen: dict[tuple[str, str], int] = {}
    for call in calls:
        name = next((known for known in CHANGING if known == call.call), None)
        if name is None:
            continue
        glob = f"*/{_general(call.path)}"
        nth = seen[name, glob] = seen.get((name, glob), 0) + 1
        rules += [killed(name, glob, nth, after=after) for after in (False, True)]
        if name == "write":
            rules.append(Rule("write", glob, "torn", 1 + 37 * nth % 200, nth))
    return rules


def _general(path: str) -> str:
    """A traced path's name as a glob: drafts and directories have other names in every run."""
    name = path.rsplit("/", 1)[-1].removesuffix(" (deleted)")
    if name.endswith(".part"):
        return f"{name.rsplit('.', 2)[0]}.????????.part*"
    return name if name.startswith((".", "out", "part")) else "trial*[0-9]"


# --- others


def slices(lab: Lab, chosen: random.Random, number: int) -> Entry:
    """Runs that stop early after --max_seconds come to the end together."""
    seconds = chosen.choice((0.01, 0.1, 0.3))
    return sliced(lab, chosen.choice(CASES), seconds, old=chosen.random() < 0.5)


def sliced(lab: Lab, case: Case, seconds: float, *, old: bool = True) -> Entry:
    bench = lab.bench(case, old=old)
    # Each commits a batch at least, and a window has one that is not full.
    batches = case.rows // (case.batch_rows or COMMIT_ROWS) + 2
    for _ in range(2 + case.inputs * batches):
        ended = lab.run(bench, [], f"--max_seconds={seconds:g}")
        if ended.code != 75:
            break
        bench.failures += laws.broken_by_failing(ended, {75})
        lab.check_meanwhile(bench)
    bench.failures += laws.broken_at_the_end(bench.directory, ended, bench.whole)
    return entry_of(lab, bench, runs=len(bench.attempts))


def compete(lab: Lab, chosen: random.Random, number: int) -> Entry:
    """Two, four or eight runs started at once on one output: one works, the others say so."""
    case = chosen.choice([case for case in CASES if case.inputs == 1])
    return competed(lab, case, chosen.choice((2, 4, 8)), wait=chosen.random() < 0.25)


def competed(lab: Lab, case: Case, count: int, *, wait: bool, old: bool = True) -> Entry:
    """`wait`: with --lock_wait, all of them work in turn."""
    bench = lab.bench(case, old=old)
    # Slow enough that all have started before one ends.
    rules = [] if wait else [Rule("rename", f"{bench.directory}*", "delay", 400 + 300 * count)]
    more = ["--lock_wait=100"] if wait else []
    running = [lab.start(bench, rules, *more) for _ in range(count)]
    ended = [lab.note(bench, lab.client.finish(each)) for each in running]
    good = bench.whole.code
    codes = sorted(each.code for each in ended)
    wanted = [good] * count if wait else sorted([good] + [75] * (count - 1))
    if codes != wanted:
        bench.failures.append(f"exit codes {codes}, not {wanted}")
    for each in ended:
        bench.failures += laws.broken_by_failing(each, {good, 75})
    winner = next((each for each in ended if each.code == good), ended[0])
    bench.failures += laws.broken_at_the_end(bench.directory, winner, bench.whole)
    lab.check_next_run(bench)
    return entry_of(lab, bench, competitors=count, wait=wait)


def entry_of(lab: Lab, bench: Bench, **more: object) -> Entry:
    """What the ledger keeps of a trial; its files are thrown away unless they show a failure."""
    lab.clear(bench)
    entry: Entry = {"case": bench.case.to_json(), "old": bench.old} | more
    entry |= {"attempts": bench.attempts, "failures": bench.failures}
    if bench.failures:
        entry["directory"] = str(bench.directory)
    return entry
