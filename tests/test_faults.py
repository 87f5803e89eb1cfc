"""Killed, told to end, out of disk, in competition: some of each; tests/faults has the rest.

The long part: python -m tests.faults --help
"""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from tests.faults import failures, trials
from tests.faults.cases import Case
from tests.faults.failures import BEARABLE, FAILING, Bearable, Failing
from tests.faults.lab import Entry, Lab
from tests.faults.shim import Call, NoCompiler, killed

# Small batches, so that a run of a third of a second has much to commit.
CSV = Case("csv", "csv", rows=4500, batch_rows=256)
SEVERAL = Case("csv.gz", "csv.gz", 2, rows=3000, workers=2, batch_rows=256)
KILLED = (
    *(CSV, SEVERAL, Case("jsonl.gz", "jsonl.gz", rows=3000, workers=2, batch_rows=256)),
    *(Case("avro", "parquet", rows=3000), Case("csv", "avro", 1, 20_000, 2)),
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    try:
        made = Lab(tmp_path_factory.mktemp("faults"))
    except NoCompiler as error:
        pytest.skip(str(error))
    yield made
    made.close()


def check(entry: Entry) -> Entry:
    assert not entry["failures"], entry
    return entry


def until_it_meets(trial: Callable[[float], Entry], what: str) -> None:
    """Trials at a random share of a run's time until one meets a run that has not ended."""
    for attempt in range(5):
        if check(trial(random.uniform(0.2, 0.8) / (1 + attempt)))[what]:
            return
    raise AssertionError("every run had ended before its moment")


@pytest.mark.parametrize("case", KILLED, ids=lambda case: f"{case.source}-{case.target}")
def test_killed_runs_come_to_the_same_end(lab: Lab, case: Case) -> None:
    until_it_meets(lambda share: trials.killed_at(lab, case, [share, random.random()]), "kills")


def test_killed_processes_of_their_own_come_to_the_same_end(lab: Lab) -> None:
    """As cron starts them, and not as forks."""
    until_it_meets(lambda share: trials.killed_at(lab, CSV, [share], fresh=True), "kills")


def test_what_was_committed_is_not_inferred_again(lab: Lab) -> None:
    case = replace(CSV, rows=15_000)
    once = lab.profile(case).inferred
    # Three frames begin a journal; each after them has the rows of some batches.
    rule = killed("write", "*/.out.csv.journal", 6, after=True)
    first, second = check(trials.killed_by(lab, case, rule, old=True))["attempts"]
    assert second["resumed"] >= 3 * trials.COMMIT_ROWS
    assert once is not None
    # Golden rows are inferred by every run.
    assert second["resumed"] + second["inferred"] <= once + 10
    assert first["inferred"] - second["resumed"] <= trials.COMMIT_ROWS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_told_to_end_ends_soon_and_goes_on_later(lab: Lab, number: int) -> None:
    until_it_meets(
        lambda share: trials.stopped_at(lab, SEVERAL, [share, random.random()], number), "stops"
    )


def test_a_second_signal_ends_a_run_at_once(lab: Lab) -> None:
    share = random.uniform(0.3, 0.8)
    check(trials.told_twice(lab, CSV, (signal.SIGTERM, signal.SIGINT), share))


def test_killed_around_calls_that_change_files(lab: Lab) -> None:
    """Some of all; the long part tries each."""
    # A close changes nothing; the journal's last one meets a file that has its name no more.
    rules = [rule for rule in trials.transitions(lab.profile(CSV).calls) if rule.call != "close"]
    assert {rule.call for rule in rules} >= {"open", "write", "fsync", "rename", "unlink"}
    journal = [rule for rule in rules if rule.glob.endswith(".journal")]
    assert len(journal) > 10
    for rule in (*random.sample(journal, 5), *random.sample(rules, 4)):
        assert check(trials.killed_by(lab, CSV, rule, old=True))["kills"], rule


def each_error_somewhere() -> list[tuple[Failing, str]]:
    """Every call that fails with one error, so chosen that each error is seen."""
    seen: Counter[str] = Counter()
    faults = []
    for failing in FAILING:
        error = min(failing.errors, key=seen.__getitem__)
        seen[error] += 1
        faults.append((failing, error))
    assert set(seen) == {error for failing in FAILING for error in failing.errors}
    return faults


@pytest.mark.parametrize("call", sorted({failing.call for failing in FAILING}))
def test_a_call_that_fails_ends_a_run_with_its_code_and_one_line(lab: Lab, call: Call) -> None:
    faults = [(failing, error) for failing, error in each_error_somewhere() if failing.call == call]
    check(failures.failed_in_turn(lab, CSV, faults))


def test_a_disk_that_is_full_keeps_what_was_scored(lab: Lab) -> None:
    try:
        # Room for a frame of the journal, but not for the output beside it.
        entry = check(failures.filled(lab, replace(CSV, rows=6000), 1.0, old=True))
    except PermissionError as error:
        pytest.skip(f"only root may mount: {error}")
    assert entry["attempts"][0]["code"] == 74
    assert entry["attempts"][0]["promised"] > 0


@pytest.mark.parametrize(
    "bearable", BEARABLE, ids=lambda it: f"{it.call} {it.what} {it.action} {it.value}"
)
def test_what_no_run_may_take_notice_of(lab: Lab, bearable: Bearable) -> None:
    """Interrupted and short calls, a slow disk, clocks that jump."""
    check(failures.borne(lab, CSV, bearable))


def test_a_disk_that_does_not_answer_holds_no_run_up(lab: Lab) -> None:
    check(failures.stalled(lab, CSV, "fsync", signal.SIGTERM))


@pytest.mark.parametrize("count", [2, 8])
def test_of_runs_that_start_together_one_works(lab: Lab, count: int) -> None:
    check(trials.competed(lab, CSV, count, wait=False))


def test_runs_that_wait_work_in_turn(lab: Lab) -> None:
    check(trials.competed(lab, CSV, 3, wait=True))


def test_short_runs_come_to_the_end_together(lab: Lab) -> None:
    assert check(trials.sliced(lab, replace(CSV, rows=1500, batch_rows=512), 0.01))["runs"] > 1
