"""Rows that kill the process: found by child processes and rejected, or named; and nothing else.

The rows kill indeed: a sitecustomize in the processes of the tests sends the signal.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchpredict.cli import cli, main
from batchpredict.data.records import Reader, Records
from batchpredict.errors import BatchPredictError, OutputNotCreatable, UsageError
from batchpredict.model.outputs import HeadOptions
from batchpredict.model.package import read_package
from batchpredict.run.deaths import Deaths, death_of
from batchpredict.run.guard import Guard
from batchpredict.run.inflight import Note, Notes, notes_beside, read_notes
from batchpredict.run.lone import LoneDied, LoneFailed, LoneNotStarted, LoneScorer
from batchpredict.run.scorer import Binding, Inferred, Scorer, Tuning
from tests import models
from tests.commands import CHECKOUT
from tests.jobs import files_in, receipt_of, rejects_of, run_job, score

MARKER = 666.0
OTHERS: list[psutil.Process] = []
# What a process does at its start, and a run of the command too: see Command.
POISON = '''
    import json, os, signal, sys, threading, time

    def poison():
        """Have a marked row kill this process: POISON says in which step, and how."""
        import numpy as np
        from batchpredict.model import session, tabular
        poison = json.loads(os.environ["POISON"])
        is_child = "run.lone" in " ".join(sys.orig_argv)

        def die():
            if is_child and poison.get("both"):
                os.kill(os.getppid(), signal.SIGKILL)
            if "sleep" in poison:
                time.sleep(poison["sleep"])
            signal.pthread_kill(threading.get_ident(), poison["signal"])  # as a fault would

        def has_marker(values):
            values = np.asarray(values)
            return bool((values == (666.0 if values.dtype.kind == "f" else "666.0")).any())

        run, prepare = session.Session.run, tabular.TabularEncoder.prepare

        def run_or_die(self, fetch, feeds):
            if any(has_marker(values) for values in feeds.values()):
                die()
            return run(self, fetch, feeds)

        def prepare_or_die(self, columns):
            if any(has_marker(column) for column in columns.columns):
                die()
            return prepare(self, columns)

        if poison["step"] == "start" and is_child:
            die()
        if poison["step"] == "infer":
            session.Session.run = run_or_die
        if poison["step"] == "prepare":
            tabular.TabularEncoder.prepare = prepare_or_die

    if os.environ.get("POISON"):
        poison()
'''
# Runs the command in forks of a process that has imported everything. A line in, two lines out.
SERVER = """
    import json, os, sys
    import sitecustomize
    from batchpredict import cli
    from batchpredict.light_imports import light_imports

    def run(request):
        os.setsid()
        os.chdir(request["cwd"])
        os.dup2(os.open("/dev/null", os.O_RDWR), 1)
        os.dup2(os.open("stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.environ["POISON"] = json.dumps(request["poison"])
        sitecustomize.poison()
        sys.argv = ["batchpredict", *request["options"]]
        return cli.main()

    with light_imports():
        import batchpredict.log, batchpredict.run.progress, batchpredict.run.runner
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            code = 99
            try:
                code = run(json.loads(line))
            finally:
                sys.stderr.flush()
                os._exit(code)
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


def rows_of(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


# --- notes


def facts(notes: Sequence[Note]) -> list[tuple[str, list[int]]]:
    return sorted((note.stage, note.rows.tolist()) for note in notes)


@contextmanager
def noted(path: Path, threads: int, most_rows: int) -> Iterator[Notes]:
    yield Notes(path, threads, most_rows)
    path.unlink(missing_ok=True)


def test_notes_are_there_while_rows_are_in_flight(tmp_path: Path) -> None:
    path = notes_beside(tmp_path / ".out.csv.journal")
    assert path == tmp_path / ".out.csv.inflight"
    with noted(path, 3, 4) as notes:
        assert read_notes(path) == ()
        with notes.flight("infer", rows_of(7, 3, 5, 4)), notes.flight("infer", rows_of(9)):
            with notes.flight("prepare", rows_of(10, 11, 15)):
                assert facts(read_notes(path)) == [
                    ("infer", [7, 3, 5, 4]),
                    ("infer", [9]),
                    ("prepare", [10, 15]),
                ]
            assert len(read_notes(path)) == 2
        with notes.flight("prepare", rows_of()):
            assert read_notes(path) == ()
    assert list(tmp_path.iterdir()) == []


def test_notes_are_kept_by_a_kill(tmp_path: Path) -> None:
    path = tmp_path / ".out.csv.inflight"
    die = (
        "import numpy, os, pathlib, sys; from batchpredict.run.inflight import Notes\n"
        "notes = Notes(pathlib.Path(sys.argv[1]), 2, 2)\n"
        "with notes.flight('lone_infer', numpy.array([4, 2])): os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", die, path], cwd=CHECKOUT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert facts(read_notes(path)) == [("lone_infer", [4, 2])]
    with noted(path, 1, 1):
        assert read_notes(path) == ()


def test_notes_take_their_room_on_the_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / ".out.csv.inflight"
    with noted(path, 3, 5000):
        assert path.stat().st_blocks * 512 >= 3 * 5000 * 8
        assert path.stat().st_mode & 0o777 == 0o600


def test_notes_that_cannot_be_made_say_where(tmp_path: Path) -> None:
    with pytest.raises(OutputNotCreatable, match=r"\.inflight: cannot be created: no such file"):
        Notes(tmp_path / "gone" / ".out.csv.inflight", 1, 1)


def test_a_file_system_without_mapping_costs_the_notes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, offset: int, size: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    path = tmp_path / ".out.csv.inflight"
    with noted(path, 1, 2) as notes, notes.flight("infer", rows_of(1, 2)):
        assert read_notes(path) == ()
    assert not path.exists()


@given(
    cut=st.integers(0, 3 * 6 * 8 + 24),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=9),
)
def test_damaged_notes_give_what_is_whole(
    cut: int, flips: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.inflight"
    with (
        noted(path, 3, 4) as notes,
        notes.flight("infer", rows_of(7, 3, 5, 4)),
        notes.flight("prepare", rows_of(10, 15)),
    ):
        data = bytearray(path.read_bytes())
    for at, byte in flips:
        data[at % len(data)] = byte
    path.write_bytes(data[:cut])
    for note in read_notes(path):
        assert 0 < len(note.rows) <= len(data) // 8
        assert note.rows.min() >= 1
    if not flips:
        whole = [("infer", [7, 3, 5, 4])] if cut >= 24 + 3 * 48 else []
        assert facts(read_notes(path))[: len(whole)] == whole


def test_at_any_instant_a_slot_is_empty_or_whole(tmp_path: Path) -> None:
    path = tmp_path / ".out.csv.inflight"
    seen: list[list[tuple[str, list[int]]]] = []

    class Watched:
        def __init__(self, slot: np.ndarray) -> None:
            self.slot = slot

        def __setitem__(self, key: Any, value: Any) -> None:
            for part in range(len(value)) if isinstance(key, slice) else [None]:
                if part is None:
                    self.slot[key] = value
                else:
                    self.slot[key.start + part] = value[part]
                seen.append(facts(read_notes(path)))

    with noted(path, 1, 3) as notes:
        notes._free[:] = [Watched(slot) for slot in notes._free]  # type: ignore[misc]
        for rows in ([5, 6, 7], [2], [8, 9]):
            with notes.flight("infer", rows_of(*rows)):
                pass
        with notes.flight("prepare", rows_of(1, 2, 3)):
            pass
    whole: list[list[tuple[str, list[int]]]] = [
        [("infer", [5, 6, 7])], [("infer", [2])], [("infer", [8, 9])], [("prepare", [1, 3])]
    ]  # fmt: skip
    assert [now for now in seen if now] == whole


# --- deaths


def note(stage: Any, *rows: int) -> Note:
    return Note(stage, rows_of(*rows))


def deaths(*recorded: Sequence[Note]) -> Deaths:
    """By way of the journal's JSON."""
    return Deaths(json.loads(json.dumps([death_of(notes) for notes in recorded])))


def test_a_batch_is_suspect_after_two_deaths_with_one_of_its_rows() -> None:
    twice = deaths(
        [note("infer", 1, 2, 3), note("infer", 4, 5)], [note("infer", 3, 4)], [note("start", 9, 8)]
    )
    assert [row for row in range(1, 10) if twice.suspects("infer", rows_of(row))] == [3, 4]
    assert twice.suspects("infer", rows_of(9, 4, 1))
    assert not twice.suspects("prepare", rows_of(3))
    assert not deaths([note("infer", 1), note("lone_infer", 1)]).suspects("infer", rows_of(1))
    assert deaths([note("infer", 1)], [note("lone_infer", 1)]).suspects("infer", rows_of(1))
    assert not Deaths().suspects("infer", rows_of(1))


def test_a_window_is_suspect_after_two_deaths_while_it_was_prepared() -> None:
    found = deaths([note("prepare", 1, 100)], [note("lone_prepare", 50, 60), note("infer", 300)])
    assert found.suspects("prepare", rows_of(1, 50))
    assert found.suspects("prepare", rows_of(60, 61, 200))
    assert not found.suspects("prepare", rows_of(1, 49))
    assert not found.suspects("prepare", rows_of(300))
    assert not found.suspects("infer", rows_of(50))


def test_what_killed_child_and_parent_is_not_given_to_a_child_whole_again() -> None:
    batch = [note("infer", *range(1, 9))]
    again = deaths(batch, batch, [note("lone_infer", *range(1, 9))])
    assert again.died_together("infer", np.arange(1, 9))
    assert not again.died_together("infer", np.arange(1, 5))
    part = deaths(batch, batch, [note("lone_infer", *range(1, 9))], [note("lone_infer", 3, 4)])
    assert part.died_together("infer", rows_of(4, 3))
    assert not part.died_together("infer", rows_of(5, 6))
    assert not part.died_together("prepare", rows_of(3, 4))
    window = deaths([note("lone_prepare", 1, 9)])
    assert window.died_together("prepare", rows_of(1, 5, 9))
    assert not window.died_together("prepare", rows_of(1, 5, 8))


def test_a_row_is_named_that_was_alone_at_two_of_three_deaths() -> None:
    batch, alone = [note("infer", 1, 2, 3)], [note("lone_infer", 2)]
    assert deaths(batch, batch, [note("lone_infer", 1, 2, 3)]).named() == {}
    assert deaths(batch, batch, alone).named() == {}
    assert deaths([note("infer", 2)], [note("infer", 2)]).named() == {}
    assert deaths(batch, alone, alone).named() == {2: 3}
    window, alone = [note("prepare", 1, 9)], [note("lone_prepare", 8, 8)]
    assert deaths(window, window, alone, alone).named() == {8: 4}
    assert deaths(batch, batch, [note("start", 2)], [note("start", 2)]).named() == {}


# --- a child


@pytest.fixture(autouse=True)
def _others() -> Iterator[None]:
    """Servers of other tests may be children of this process, too."""
    OTHERS[:] = psutil.Process().children()
    yield
    OTHERS.clear()


def children() -> list[psutil.Process]:
    """Those that a test has begun, zombies too."""
    return [child for child in psutil.Process().children() if child not in OTHERS]


@pytest.fixture(scope="module")
def poison_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("poison")
    (folder / "sitecustomize.py").write_text(textwrap.dedent(POISON).strip())
    return f"{folder}:{CHECKOUT}"


@pytest.fixture
def poisoned(poison_path: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Poisons the children of this process."""

    def poison(**how: Any) -> None:
        monkeypatch.setenv("PYTHONPATH", poison_path)
        monkeypatch.setenv("POISON", json.dumps(how))

    return poison


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write(tmp_path_factory.mktemp("model"), models.matrix_graph())


def columns_of(rows: int, *markers: int) -> pa.RecordBatch:
    """Three columns of texts that are numbers, none twice; the marker in some rows (from 0)."""
    values = [str(MARKER) if row in markers else str(row + 1000.25) for row in range(rows)]
    numbers = [str(row) for row in range(rows)]
    return pa.RecordBatch.from_pydict({"a": numbers, "b": values, "c": numbers})


@pytest.fixture(scope="module")
def scorer(model: Path) -> Scorer:
    head = HeadOptions("top", None, (), "")
    return Scorer(read_package(str(model)), Binding(columns_of(1).schema), head, Tuning(64, 512))


@pytest.fixture
def lone(scorer: Scorer) -> Iterator[LoneScorer]:
    made = LoneScorer(scorer)
    with made.turn:
        made.start()
    yield made
    made.close()


def same(one: Inferred, other: Inferred) -> bool:
    arrays = zip([one.indices, *one.tensors], [other.indices, *other.tensors], strict=True)
    return one.faults == other.faults and all(
        (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()) for a, b in arrays
    )


def test_a_child_scores_to_the_bit_and_leaves_nothing(scorer: Scorer, lone: LoneScorer) -> None:
    columns = columns_of(50)
    prepared = scorer.prepare(columns)
    assert same(lone.ask("infer", columns), scorer.infer(prepared, np.arange(50)))
    part = lone.ask("infer", columns.slice(7, 1))
    assert same(part, Inferred(np.arange(1), scorer.infer(prepared, np.array([7])).tensors, ()))
    assert len(lone.ask("prepare", columns).indices) == 0
    (child,) = children()
    assert Path(f"/proc/{child.pid}/oom_score_adj").read_text().strip() == "1000"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        child.send_signal(number)
    assert len(lone.ask("infer", columns).indices) == 50
    lone.close()
    assert children() == []
    with pytest.raises(LoneNotStarted):
        lone.start()


def test_a_child_that_dies_says_of_what(scorer: Scorer, poisoned: Any) -> None:
    poisoned(step="infer", signal=signal.SIGSEGV)
    lone = LoneScorer(scorer)
    lone.start()
    assert len(lone.ask("prepare", columns_of(5, 3)).indices) == 0
    with pytest.raises(LoneDied, match=r"^SIGSEGV$") as died:
        lone.ask("infer", columns_of(5, 3))
    assert died.value.signal == signal.SIGSEGV
    assert children() == []
    lone.start()
    lone.close()
    assert children() == []


def test_an_exception_in_a_child_is_told(lone: LoneScorer) -> None:
    with pytest.raises(LoneFailed, match="KeyError"):
        lone.ask("infer", columns_of(5).select(["a"]))
    assert len(lone.ask("infer", columns_of(5)).indices) == 5


def test_a_child_that_dies_before_its_work_was_never_there(scorer: Scorer, poisoned: Any) -> None:
    poisoned(step="start", signal=signal.SIGKILL)
    with pytest.raises(LoneNotStarted, match="SIGKILL"):
        LoneScorer(scorer).start()
    assert children() == []


def test_a_child_dies_with_its_parent_whatever_it_is_doing(
    scorer: Scorer, lone: LoneScorer
) -> None:
    """Closing the lifeline is what the kernel does for a parent that was killed."""
    assert lone._child is not None
    (child,) = children()
    child.suspend()
    lone._child.lifeline.close()
    child.resume()
    assert lone._child.process.wait(10) == -signal.SIGIO


# --- the guard


class FakeReader:
    def original(self, raw: pa.Array, index: int) -> bytes:
        return raw[index].as_py()


READER: Reader = FakeReader()  # type: ignore[assignment]


def records_of(columns: pa.RecordBatch, first: int = 101) -> Records:
    rows = np.arange(first, first + columns.num_rows)
    raw = pa.array([f"row {row}".encode() for row in rows], pa.binary())
    nothing = pa.RecordBatch.from_pylist([], pa.schema([]))
    return Records(columns, nothing, raw, rows, None, np.ones(len(rows), np.int64))


@dataclass
class Guarded:
    """A guard whose rows 101 to 180 were in flight at two deaths, and a window.

    Notes have room for 100 rows, as many as there may be in a batch.
    """

    guard: Guard
    scorer: Scorer
    records: Records
    path: Path

    def infer(self) -> Inferred:
        prepared = self.scorer.prepare(self.records.columns)
        return self.guard.infer(self.records, prepared, np.arange(len(self.records)))

    def expected(self, *killers: int) -> Inferred:
        prepared = self.scorer.prepare(self.records.columns)
        places = np.delete(np.arange(len(self.records)), killers)
        return self.scorer.infer(prepared, places)


@contextmanager
def guarded(scorer: Scorer, path: Path, columns: pa.RecordBatch, *more: Note) -> Iterator[Guarded]:
    everything = np.arange(101, 181)
    twice = [[Note("infer", everything), Note("prepare", everything[[0, -1]])]] * 2
    found = deaths(*twice, *([one] for one in more))
    with noted(path, 2, 100) as notes:
        guard = Guard(scorer, notes, found)
        try:
            yield Guarded(guard, scorer, records_of(columns), path)
        finally:
            guard.close()
    assert children() == []


class FakeLone:
    """Answers from this process; dies as it is told, by what it is asked for."""

    closed = False

    def __init__(self, scorer: Scorer, dies: Any) -> None:
        self.scorer, self.dies, self.starts = scorer, dies, 0
        self.asked: list[int] = []
        self.turn = threading.Lock()
        self.notes: list[Any] = []
        self.path = Path()

    def start(self) -> None:
        self.starts += 1

    def ask(self, work: str, columns: pa.RecordBatch) -> Inferred:
        self.notes += facts(read_notes(self.path))
        self.asked.append(columns.num_rows)
        self.dies(columns, len(self.asked))
        prepared = self.scorer.prepare(columns)
        if work == "prepare":
            return Inferred(rows_of(), [], ())
        return self.scorer.infer(prepared, np.arange(prepared.rows))

    def close(self) -> None:
        pass


def with_fake(here: Guarded, dies: Any) -> FakeLone:
    fake = FakeLone(here.scorer, dies)
    fake.path = here.path
    here.guard._lone = fake  # type: ignore[assignment]
    return fake


def test_a_batch_that_kills_by_its_size_loses_no_row(scorer: Scorer, tmp_path: Path) -> None:
    def dies(columns: pa.RecordBatch, times: int) -> None:
        if columns.num_rows > 10:
            raise LoneDied(-signal.SIGKILL)

    with guarded(scorer, tmp_path / "notes", columns_of(80)) as here:
        fake = with_fake(here, dies)
        assert same(here.infer(), here.expected())
        assert fake.asked == [80, *[2] * 40]
        assert fake.notes[0] == ("lone_infer", list(range(101, 181)))
        assert fake.notes[40] == ("lone_infer", [179, 180])
        assert read_notes(here.path) == ()


def test_children_killed_from_outside_cost_no_row(scorer: Scorer, tmp_path: Path) -> None:
    def dies(columns: pa.RecordBatch, times: int) -> None:
        if times % 2:
            raise LoneDied(-signal.SIGKILL)

    with guarded(scorer, tmp_path / "notes", columns_of(80)) as here:
        fake = with_fake(here, dies)
        assert same(here.infer(), here.expected())
        assert fake.starts > 40


def test_what_a_child_cannot_tell_this_process_does(scorer: Scorer, tmp_path: Path) -> None:
    def fails(columns: pa.RecordBatch, times: int) -> None:
        raise LoneFailed("MemoryError")

    with guarded(scorer, tmp_path / "notes", columns_of(80)) as here:
        fake = with_fake(here, fails)
        assert same(here.infer(), here.expected())
        assert fake.asked == [80]


def test_without_a_child_rows_go_one_by_one_so_that_the_notes_name_them(
    scorer: Scorer, poisoned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(step="start", signal=signal.SIGKILL)
    seen: list[Any] = []
    infer = Scorer.infer

    def noting(self: Scorer, prepared: Any, batch: Any) -> Inferred:
        seen.extend(facts(read_notes(tmp_path / "notes")))
        return infer(self, prepared, batch)

    with guarded(scorer, tmp_path / "notes", columns_of(80)) as here:
        expected = here.expected()
        monkeypatch.setattr(Scorer, "infer", noting)
        assert same(here.infer(), expected)
    assert seen == [("infer", [row]) for row in range(101, 181)]


def test_where_starting_a_child_ends_the_job_there_is_none(scorer: Scorer, tmp_path: Path) -> None:
    start = note("start", *range(101, 181))
    with guarded(scorer, tmp_path / "notes", columns_of(80), start, start) as here:
        fake = with_fake(here, lambda columns, times: None)
        assert same(here.infer(), here.expected())
        assert fake.starts == 0


def kills(*rows: int, code: int) -> Any:
    """The death of those that are given one of these rows, from 0 (by column a)."""

    def dies(columns: pa.RecordBatch, times: int) -> None:
        if {str(row) for row in rows} & set(columns.column("a").to_pylist()):
            raise LoneDied(code)

    return dies


def test_who_lives_in_a_child_counts_and_who_kills_it_is_rejected(
    scorer: Scorer, tmp_path: Path
) -> None:
    with guarded(scorer, tmp_path / "notes", columns_of(80)) as here:
        fake = with_fake(here, kills(17, 79, code=-signal.SIGABRT))
        found = here.infer()
        assert [(fault.index, fault.code) for fault in found.faults] == [
            (17, "killed_process"),
            (79, "killed_process"),
        ]
        assert found.faults[0].message.endswith("killed by SIGABRT, twice")
        assert same(replace(found, faults=()), here.expected(17, 79))
        assert fake.asked == [80, *[2] * 9, 1, 1, 1, *[2] * 31, 1, 1, 1]


def test_a_row_that_kills_while_it_is_prepared_is_taken_out_of_its_window(
    scorer: Scorer, tmp_path: Path
) -> None:
    with guarded(scorer, tmp_path / "notes", columns_of(200)) as here:
        with_fake(here, kills(41, code=-signal.SIGKILL))
        records, prepared = here.guard.prepare(here.records, READER)
        (reject,) = records.rejects
        assert (reject.row, reject.code, reject.record) == (142, "killed_process", b"row 142")
        assert records.rows.tolist() == [row for row in range(101, 301) if row != 142]
        assert prepared.rows == len(records) == 199


def test_a_row_that_ends_its_process_without_a_signal_ends_the_run(
    scorer: Scorer, tmp_path: Path
) -> None:
    with guarded(scorer, tmp_path / "notes", columns_of(80)) as here:
        with_fake(here, kills(5, code=3))
        with pytest.raises(BatchPredictError, match=r"row 106 .*exit code 3.*--skip_rows=106"):
            here.infer()


def test_what_died_with_its_parent_is_divided_at_once(scorer: Scorer, tmp_path: Path) -> None:
    whole = note("lone_infer", *range(101, 181))
    with guarded(scorer, tmp_path / "notes", columns_of(80), whole) as here:
        fake = with_fake(here, lambda columns, times: None)
        assert same(here.infer(), here.expected())
        assert fake.asked == [2] * 40
    part = note("lone_infer", 103, 104)
    with guarded(scorer, tmp_path / "notes", columns_of(80), whole, part) as here:
        fake = with_fake(here, lambda columns, times: None)
        assert same(here.infer(), here.expected())
        assert fake.asked == [2, 1, 1, *[2] * 38]


def test_a_run_that_ends_blames_no_row(scorer: Scorer, poisoned: Any, tmp_path: Path) -> None:
    """Closing kills the child, which is not the row's doing."""
    poisoned(step="infer", sleep=30)
    with (
        guarded(scorer, tmp_path / "notes", columns_of(80, 3)) as here,
        ThreadPoolExecutor(1) as pool,
    ):
        future = pool.submit(here.infer)
        while not any("lone" in stage for stage, _ in facts(read_notes(here.path))):
            time.sleep(0.01)
        here.guard.close()
        with pytest.raises(CancelledError):
            future.result(10)


def test_a_child_that_was_closed_has_not_died(lone: LoneScorer) -> None:
    assert lone._child is not None
    lone._child.process.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        with lone.turn:
            future = pool.submit(lone.ask, "infer", columns_of(5))
            closing = threading.Thread(target=lone.close)
            closing.start()
            with pytest.raises(LoneNotStarted):
                future.result(10)
        closing.join()


# --- the command, over and over


@pytest.fixture(scope="module")
def server(poison_path: str) -> Iterator[subprocess.Popen[str]]:
    environ = {**os.environ, "PYTHONPATH": poison_path}
    with subprocess.Popen(
        [sys.executable, "-P", "-c", textwrap.dedent(SERVER)],
        env=environ,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@dataclass
class Command:
    """A job of 24 rows in batches of 8; the last of them is marked."""

    folder: Path
    model: Path
    server: subprocess.Popen[str]
    most_rows: int = 8

    def __post_init__(self) -> None:
        columns = columns_of(24, 23)
        lines = [",".join(row) for row in zip(*columns.to_pydict().values(), strict=True)]
        (self.folder / "in.csv").write_text("\n".join(["a,b,c", *lines, ""]))

    def start(self, *options: str, **poison: Any) -> int:
        """The process and its group."""
        always = ("--input_file=in.csv", f"--model={self.model}", "--workers=1")
        sizes = f"--batch_rows={self.most_rows}"
        request = {"cwd": str(self.folder), "poison": poison}
        assert self.server.stdin is not None
        print(
            json.dumps(request | {"options": [*always, sizes, *options]}),
            file=self.server.stdin,
            flush=True,
        )
        return self._answer()

    def _answer(self) -> int:
        assert self.server.stdout is not None
        return int(self.server.stdout.readline())

    def end(self) -> tuple[int, str]:
        """Exit code and standard error of the run that was started."""
        return self._answer(), (self.folder / "stderr").read_text()

    def run(self, *options: str, **poison: Any) -> tuple[int, str]:
        self.start(*options, **poison)
        return self.end()

    def result(self) -> tuple[bytes, list[tuple[int, str]], dict[str, Any]]:
        output = self.folder / "in.scored.csv"
        rejects = [(line["row"], line["code"]) for line in rejects_of(output)]
        assert [name for name in files_in(self.folder) if name.startswith(".")] == []
        return output.read_bytes(), rejects, receipt_of(output)

    def undisturbed(self, **options: Any) -> bytes:
        """What is written where nothing kills, by a run in this process."""
        output = self.folder / "undisturbed.csv"
        receipt = score(self.folder / "in.csv", self.model, output, **options)
        assert receipt.suspects == ()
        return output.read_bytes()


@pytest.fixture
def command(tmp_path: Path, model: Path, server: subprocess.Popen[str]) -> Command:
    return Command(tmp_path, model, server)


@pytest.mark.parametrize(
    ("step", "number"), [("infer", signal.SIGSEGV), ("prepare", signal.SIGKILL)]
)
def test_a_row_that_kills_is_the_only_one_lost(step: str, number: int, command: Command) -> None:
    codes = [command.run(step=step, signal=number)[0] for _ in range(3)]
    assert codes == [-number, -number, 3]
    output, rejects, receipt = command.result()
    assert output == command.undisturbed(skip_rows=(24,))
    assert (rejects, receipt["suspects"]) == ([(24, "killed_process")], [])


def notes_of_row(row: int, path: Path, before: int) -> list[Note]:
    """Which have it where it is inferred, in a file that was changed since."""
    if not path.exists() or path.stat().st_ctime_ns == before:
        return []
    return [note for note in read_notes(path) if "infer" in note.stage and row in note.rows]


def test_kills_from_outside_lose_no_row(command: Command) -> None:
    """Each while the row is in flight: in the process, then in its child, with others and alone."""
    path = command.folder / ".in.scored.csv.inflight"
    path.touch()
    stages = []
    for _ in range(5):
        before = path.stat().st_ctime_ns
        process = command.start(step="infer", sleep=60)
        while not (meant := notes_of_row(24, path, before)):
            os.kill(process, 0)
            time.sleep(0.01)
        stages.append((meant[0].stage, len(meant[0].rows)))
        os.killpg(process, signal.SIGKILL)
        assert command.end()[0] == -signal.SIGKILL
    assert stages == [("infer", 8)] * 2 + [("lone_infer", 8)] + [("lone_infer", 1)] * 2
    before = path.stat().st_ctime_ns
    process = command.start(step="infer", sleep=60)
    while not notes_of_row(24, path, before):
        time.sleep(0.01)
    began = time.monotonic()
    os.killpg(process, signal.SIGTERM)
    assert command.end()[0] == 143
    assert time.monotonic() - began < 5
    assert not path.exists()  # an orderly end is no death
    code, errors = command.run(step="none")
    assert code == 0
    assert "row 24 was in flight, alone, when this job died (5 times)" in errors
    output, rejects, receipt = command.result()
    assert (rejects, receipt["suspects"]) == ([], [])
    assert output == command.undisturbed()


def test_a_row_that_kills_the_parent_too_is_named_and_can_be_left_out(command: Command) -> None:
    command.most_rows = 1
    poison: dict[str, Any] = {"step": "infer", "signal": signal.SIGKILL, "both": True}
    for _ in range(3):
        assert command.run(**poison) == (-signal.SIGKILL, "")
    code, errors = command.run(**poison)
    assert code == -signal.SIGKILL
    assert errors.count("row 24 was in flight, alone, when this job died (3 times)") == 1
    assert errors.endswith("leave such rows out with --skip_rows=24\n")
    code, errors = command.run("--skip_rows=24", "--on_error=fail", **poison)
    assert (code, "in flight" in errors) == (3, False)
    output, rejects, receipt = command.result()
    assert output == command.undisturbed(skip_rows=(24,))
    assert (rejects, receipt["suspects"]) == ([(24, "skipped")], [24])


def test_rows_to_skip_are_of_one_input(tmp_path: Path, model: Path) -> None:
    inputs = [tmp_path / "one.csv", tmp_path / "two.csv"]
    for path in inputs:
        path.write_text("a,b,c\n1,2,3\n")
    with pytest.raises(UsageError, match="--skip_rows counts the rows of one input"):
        run_job(inputs, model, skip_rows=(1,))


def test_a_job_file_holds_rows_to_skip_as_a_list(tmp_path: Path, model: Path) -> None:
    (tmp_path / "in.csv").write_text("a,b,c\n1,2,3\n4,5,6\n7,8,9\n")
    (tmp_path / "job.toml").write_text(
        f'input_file = "in.csv"\nmodel = "{model}"\nskip_rows = [1, 3]\nmax_rejects = "90%"\n'
    )
    assert main(["--job", str(tmp_path / "job.toml"), "--quiet"]) == 3
    assert [line["row"] for line in rejects_of(tmp_path / "in.scored.csv")] == [1, 3]


@pytest.mark.parametrize("rows", ["0", "x", "1,,2", "-3"])
def test_rows_to_skip_are_numbers_from_1(rows: str) -> None:
    options = ["--input_file=x", "--model=x", f"--skip_rows={rows}"]
    wrong = pytest.raises((click.ClickException, UsageError), match=r"skip_rows|whole numbers")
    with wrong, cli.make_context("batchpredict", options) as context:
        cli.invoke(context)
