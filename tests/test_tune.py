"""tune: the sweep, the store that runs look into, and what is printed and written."""

from __future__ import annotations

import itertools
import json
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from batchpredict import errors
from batchpredict.job import BATCH_TOKENS, TABULAR_BATCH_ROWS, TEXT_BATCH_ROWS, Job
from batchpredict.model.package import read_package
from batchpredict.model.session import open_session
from batchpredict.ops import compare
from batchpredict.ops import tune as tuning
from batchpredict.ops.sweep import Pass, Ranking, Sizes, sweep
from batchpredict.ops.tune import Found, tune
from batchpredict.ops.tuning_files import Targets, write_job
from batchpredict.ops.tuning_report import report, svg, verdict
from batchpredict.run import tuned
from batchpredict.run.loading import load_model
from batchpredict.run.planning import plan_of
from batchpredict.run.scorer import Scorer, Tuning
from batchpredict.run.tuned import key_of, store_tuning, stored_tuning
from tests import commands, models
from tests.jobs import EXAMPLES, receipt_of, score

REPORTS, RELEVANCE = EXAMPLES / "reports.csv", EXAMPLES / "models" / "relevance"
FLIGHTS, DELAYS = EXAMPLES / "flights.csv", EXAMPLES / "models" / "delays"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where tunings are kept."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "batchpredict" / "tuning"


def sizes(tokens: int, workers: int = 2, rows: int = 64) -> Sizes:
    return Sizes(Tuning(rows, tokens), workers)


class Machine:
    """Sizes run at their speed in rows/s, times what the machine lends at the moment."""

    def __init__(
        self,
        speeds: dict[Sizes, float],
        drift: Callable[[float], float] = lambda clock: 1.0,
        budget: float = 1000.0,
    ) -> None:
        self.speeds, self.drift, self.budget = speeds, drift, budget
        self.clock = 0.0
        self.runs: list[Sizes] = []

    def __call__(self, asked: Sizes) -> Pass | None:
        seconds = 100 / (self.speeds[asked] * self.drift(self.clock))
        if self.clock + seconds > self.budget:
            return None
        self.clock += seconds
        self.runs.append(asked)
        return Pass(100, seconds, seconds)


def ranked(machine: Machine, variants: Sequence[Sizes] = ()) -> Ranking:
    default, *_ = machine.speeds
    given = [entry for entry in machine.speeds if entry not in variants]
    return sweep(default, given, lambda best: variants, machine)


class TestSweep:
    def test_the_fastest_wins(self) -> None:
        speeds = {sizes(512): 100.0, sizes(128): 80.0, sizes(256): 130.0, sizes(1024): 90.0}
        ranking = ranked(Machine(speeds))
        assert ranking.winner == sizes(256)
        assert ranking.measured[0].sizes == sizes(256)
        assert ranking.measured[0].ratio == pytest.approx(1.3)
        assert {entry.sizes for entry in ranking.measured} == set(speeds)

    def test_the_default_stays_where_nothing_is_clearly_better(self) -> None:
        ranking = ranked(Machine({sizes(512): 100.0, sizes(256): 101.0, sizes(128): 50.0}))
        assert ranking.winner == sizes(512)

    def test_a_drifting_machine_does_not_mislead(self) -> None:
        """It loses two thirds of its speed on the way, so that whoever comes first looks best."""
        speeds = {sizes(512): 100.0, sizes(64): 95.0, sizes(256): 90.0, sizes(2048): 120.0}
        machine = Machine(speeds, drift=lambda clock: max(0.3, 1 - clock / 20))
        ranking = ranked(machine)
        assert ranking.winner == sizes(2048)
        rates = {entry.sizes: entry.ratio for entry in ranking.measured}
        assert rates[sizes(256)] == pytest.approx(0.9, abs=0.06)

    def test_time_goes_to_the_good_ones(self) -> None:
        speeds = {sizes(512): 100.0} | {sizes(64 << n): 40.0 + n for n in range(8) if n != 3}
        speeds[sizes(128)] = 140.0
        machine = Machine(speeds)
        ranked(machine)
        counts = {entry: machine.runs.count(entry) for entry in speeds}
        assert counts[sizes(128)] > 3 * counts[sizes(64)]

    def test_a_swing_of_the_machine_is_no_gain(self) -> None:
        """Alternating speed: whoever is beside the default differs by a fifth, either way."""
        swing = iter([1.0, 1.2, 0.9, 1.1, 0.8, 1.15, 1.0, 0.85] * 200)
        machine = Machine({sizes(512): 100.0, sizes(256): 102.0}, lambda clock: next(swing))
        ranking = ranked(machine)
        assert ranking.noise > 0.05
        assert ranking.winner == sizes(512)

    def test_variants_of_the_best_join(self) -> None:
        variant = sizes(256, rows=256)
        speeds = {sizes(512): 100.0, sizes(256): 120.0, variant: 150.0}
        assert ranked(Machine(speeds), [variant]).winner == variant

    def test_too_little_time_is_said(self) -> None:
        speeds = {sizes(512): 100.0} | {sizes(64 << n): 150.0 for n in range(3)}
        ranking = ranked(Machine(speeds, budget=2.5))
        assert ranking.winner is None
        assert ranking.unmeasured
        assert ranked(Machine(speeds, budget=0.0)).measured == ()


def found_by(ranking: Ranking, **changes: Any) -> Found:
    key = tuned.TuningKey("0" * 64, "CPUExecutionProvider", "model", "a CPU", "1.0")
    found = Found(
        file="a.csv", model="m<&>\x01", key=key, ended="2026-01-01T00:00:00Z", seconds=3.0,
        read=50, truncated=5, max_length=16, unscorable=0, duplicates=2, sampled=40, alike=1,
        default=sizes(512), by_tokens=True, ranking=ranking, precisions="why not",
    )  # fmt: skip
    return replace(found, **changes)


@pytest.fixture
def found() -> Found:
    speeds = {sizes(512): 100.0, sizes(256): 130.0, sizes(64): 70.0, sizes(256, 1): 66.0}
    return found_by(ranked(Machine(speeds)))


class TestReport:
    def test_table(self, found: Found) -> None:
        lines = report(found).splitlines()
        header = next(i for i, line in enumerate(lines) if "batch_tokens" in line)
        assert lines[header + 1].split()[:5] == ["1", "256", "64", "2", "130"]
        assert lines[header + 1].endswith("best")
        assert sum(line.endswith("default") for line in lines) == 1
        assert "5 of 50 rows (10.0%) are longer than the model's maximum of 16 tokens" in lines[1]
        assert lines[2].startswith("2 of 50 rows (4.0%) or more have the model input of another")
        assert "1 more make the same batches of these rows as one of them" in lines
        assert "the precisions are not compared: why not" in lines
        assert lines[-1].startswith("the best is batch_rows 64, batch_tokens 256, workers 2: 1.30")

    def test_curve(self, found: Found) -> None:
        shown = report(found)
        (top,) = (line for line in shown.splitlines() if line.startswith("130 |"))
        (axis,) = (line for line in shown.splitlines() if line.split() == ["64", "256", "512"])
        assert abs(top.index("x") - axis.index("256")) <= 3
        assert "batch_tokens; o workers 1, x workers 2" in shown

    def test_verdicts(self, found: Found) -> None:
        ranking = found.ranking
        kept = replace(found, ranking=replace(ranking, winner=found.default))
        assert "nothing beats the default (batch_rows 64, batch_tokens 512" in verdict(kept)
        unclear = replace(found, ranking=replace(ranking, winner=None))
        assert "--seconds" in verdict(unclear)

    def test_svg(self, found: Found) -> None:
        root = ET.fromstring(svg(found))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
        assert texts[0] == "m<&>\N{REPLACEMENT CHARACTER}, CPUExecutionProvider, precision model"
        assert {"64", "256", "512", "batch_tokens", "rows per second", "workers 1"} <= set(texts)
        assert len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))) == 2
        points = [e for e in root.iter("{http://www.w3.org/2000/svg}circle") if e.get("r") == "4"]
        assert len(points) == 4 + 2  # and the legend's
        for point in points:
            assert 0 < float(point.get("cx", -1)) < float(root.get("width", 0))
            assert 0 < float(point.get("cy", -1)) < float(root.get("height", 0))

    def test_without_tokens(self) -> None:
        speeds = {sizes(512, rows=n): float(n) for n in (4096, 256, 1024)}
        found = found_by(ranked(Machine(speeds)), by_tokens=False, default=sizes(512, rows=4096))
        assert "batch_tokens" not in report(found)
        assert "batch_tokens" not in svg(found)
        assert found.sizes == {"batch_rows": 4096, "workers": 2}

    def test_with_nothing_measured(self, found: Found) -> None:
        empty = replace(found, ranking=Ranking((), None, 1.0, (sizes(64),)))
        assert "no time was left for 1 more" in report(empty)
        ET.fromstring(svg(empty))


# --- the store


def text_model(directory: Path) -> Path:
    return models.write_text_model(directory / "model")


def keep(model: Path, winner: dict[str, int] | None, **job: Any) -> Path:
    """Store a winner for a model, as tune would."""
    package = read_package(model)
    key = key_of(Job(("a.csv",), str(model), **job), package, open_session(package))
    return store_tuning(key, winner, "2026-01-02T03:04:05Z", {"more": [1]})


WINNER = {"batch_rows": 16, "batch_tokens": 128, "workers": 1}


class TestStore:
    def test_precedence(self, tmp_path: Path, state: Path) -> None:
        model = text_model(tmp_path)

        def plan(**options: Any) -> tuple[int, int, dict[str, str]]:
            plan = load_model(Job(("a.csv",), str(model), **options)).plan
            return plan.tuning.batch_rows, plan.tuning.batch_tokens, plan.sizes_from

        default = (TEXT_BATCH_ROWS, BATCH_TOKENS)
        assert plan()[:2] == default
        assert set(plan()[2].values()) == {"default"}
        keep(model, WINNER)
        assert plan() == (16, 128, dict.fromkeys(WINNER, "tuning"))
        rows, tokens, origins = plan(batch_tokens=32, workers=2)
        assert (rows, tokens) == (16, 32)
        assert origins == {"batch_rows": "tuning", "batch_tokens": "job", "workers": "job"}
        assert plan(no_tuning=True)[:2] == default
        keep(model, None)
        assert plan()[:2] == default

    def test_windows_are_not_tuned(self, tmp_path: Path, state: Path) -> None:
        model = text_model(tmp_path)
        session = open_session(read_package(model))
        job = Job(("a.csv",), str(model))
        stored = tuned.StoredTuning(WINNER, "", tmp_path)
        one, other = plan_of(job, session), plan_of(job, session, stored)
        assert one != other
        assert (one.window_rows, one.window_bytes) == (other.window_rows, other.window_bytes)

    def test_key(self, tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = text_model(tmp_path)
        keep(model, WINNER)
        package = read_package(model)
        session = open_session(package)
        job = Job(("a.csv",), str(model))
        assert stored_tuning(job, package, session) is not None
        others: list[tuple[Any, Any, Any]] = [
            (job, replace(package, digest="1" * 64), session),
            (replace(job, precision="int8"), package, session),
            (job, package, SimpleNamespace(provider="OpenVINOExecutionProvider")),
        ]
        for other in others:
            assert stored_tuning(*other) is None
        with monkeypatch.context() as patch:
            patch.setattr(tuned, "cpu_name", lambda: "another CPU")
            assert stored_tuning(job, package, session) is None
        with monkeypatch.context() as patch:
            patch.setattr(tuned, "runtime_version", lambda: "0.1")
            assert stored_tuning(job, package, session) is None

    def test_callers_are_of_the_cores_they_were_found_with(
        self, tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = text_model(tmp_path)
        keep(model, WINNER)
        monkeypatch.setattr(tuned, "effective_cores", lambda: 99)
        package = read_package(model)
        stored = stored_tuning(Job(("a.csv",), str(model)), package, open_session(package))
        assert stored
        assert stored.sizes == {"batch_rows": 16, "batch_tokens": 128}

    @pytest.mark.parametrize(
        "content",
        [
            b"", b"{", b"[]", b"\xff", b'{"tuning": 2}', b"[" * 100_000,
            lambda good: good.replace(b'"cpu": "', b'"cpu": "x'),
            lambda good: good.replace(b'"batch_rows": 16', b'"batch_rows": 0'),
            lambda good: good.replace(b'"batch_rows": 16', b'"batch_rows": "16"'),
            lambda good: good.replace(b'"batch_rows": 16', b'"batch_rows": true'),
            lambda good: good.replace(b'"batch_rows": 16', b'"window_rows": 16'),
            lambda good: good[: len(good) // 2],
        ],
    )  # fmt: skip
    def test_damage_is_a_warning(
        self,
        content: Any,
        tmp_path: Path,
        state: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        model = text_model(tmp_path)
        path = keep(model, WINNER)
        path.write_bytes(content if isinstance(content, bytes) else content(path.read_bytes()))
        plan = load_model(Job(("a.csv",), str(model))).plan
        assert (plan.tuning.batch_rows, plan.tuning.batch_tokens) == (TEXT_BATCH_ROWS, BATCH_TOKENS)
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert record.getMessage().startswith(f"{path}: the stored tuning is ignored: ")

    def test_a_directory_in_its_place_is_a_warning(
        self, tmp_path: Path, state: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        model = text_model(tmp_path)
        path = keep(model, WINNER)
        path.unlink()
        path.mkdir()
        assert load_model(Job(("a.csv",), str(model))).plan.sizes_from["workers"] == "default"
        assert "is a directory" in caplog.text

    def test_nothing_half_written(self, tmp_path: Path, state: Path) -> None:
        path = keep(text_model(tmp_path), WINNER)
        assert keep(text_model(tmp_path), {"workers": 7}) == path
        content = json.loads(path.read_text())
        assert content["winner"] == {"workers": 7}
        assert content["more"] == [1]
        assert list(state.iterdir()) == [path]

    def test_no_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = text_model(tmp_path)
        with pytest.raises(errors.OutputNotCreatable, match=r"cannot be stored: no such file"):
            keep(model, WINNER)
        assert not (tmp_path / "no-home").exists()
        monkeypatch.delenv("HOME")
        with pytest.raises(errors.OutputNotCreatable, match=r"HOME is not set.*--write_job"):
            keep(model, WINNER)
        assert load_model(Job(("a.csv",), str(model))).plan.sizes_from["workers"] == "default"

    def test_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        path = keep(text_model(tmp_path), WINNER)
        assert path.parent == tmp_path / ".local" / "state" / "batchpredict" / "tuning"

    def test_a_state_home_that_is_a_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "state").write_text("")
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        with pytest.raises(errors.OutputNotCreatable, match="cannot be stored: "):
            keep(text_model(tmp_path), WINNER)


# --- the real thing


@pytest.mark.parametrize(("source", "model"), [(REPORTS, RELEVANCE), (FLIGHTS, DELAYS)])
def test_a_sweep_ends_in_time(source: Path, model: Path) -> None:
    begin = time.monotonic()
    found = tune(Job((str(source),), str(model)), 3.0)
    assert time.monotonic() - begin < 20.0  # what was begun is ended, on a busy machine too
    text = model == RELEVANCE
    assert found.by_tokens == text
    default = (TEXT_BATCH_ROWS if text else TABULAR_BATCH_ROWS, BATCH_TOKENS)
    assert (found.default.tuning.batch_rows, found.default.tuning.batch_tokens) == default
    assert found.read == (310 if text else 2000)
    measured = {entry.sizes for entry in found.ranking.measured}
    assert len(measured | {*found.ranking.unmeasured}) > 1
    assert found.default in measured
    assert isinstance(found.precisions, str)
    report(found)
    ET.fromstring(svg(found))


def test_a_slow_candidate_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 tokens make batches of 9 rows, and those alone are slow."""
    source = tmp_path / "a.csv"
    words = itertools.product(("good", "so", "very"), repeat=5)  # rows that are equal run once
    source.write_text("text\n" + "".join(" ".join(text) + "\n" for text in words))
    job = Job((str(source),), str(text_model(tmp_path)), workers=2)
    infer = Scorer.infer

    def slow(self: Any, prepared: Any, batch: Any) -> Any:
        time.sleep(0.1 if len(batch) == 9 else 0)
        return infer(self, prepared, batch)

    monkeypatch.setattr(Scorer, "infer", slow)
    begin = time.monotonic()
    found = tune(job, 4.0)
    assert time.monotonic() - begin < 20.0
    assert sizes(64) in found.ranking.unmeasured
    assert "no time was left for" in report(found)


def test_what_the_job_fixes_stays(tmp_path: Path) -> None:
    found = tune(Job((str(FLIGHTS),), str(DELAYS), batch_rows=500, workers=1), 2.0)
    assert [entry.sizes for entry in found.ranking.measured] == [sizes(BATCH_TOKENS, 1, 500)]
    assert found.ranking.winner == found.default


def test_truncated_and_unscorable_rows_are_told(tmp_path: Path) -> None:
    model = models.write_text_model(tmp_path / "model", manifest="max_length = 6\n")
    source = tmp_path / "a.jsonl"
    lines = [{"text": "good " * 9}, {"text": "bad"}, {"text": None}, {"text": "so " * 7}]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines * 5))
    found = tune(Job((str(source),), str(model)), 2.0)
    assert (found.read, found.truncated, found.max_length, found.unscorable) == (20, 10, 6, 5)
    assert (found.sampled, found.duplicates) == (3, 12)
    assert "10 of 20 rows (50.0%) are longer" in report(found)
    assert "5 of 20 rows cannot be scored" in report(found)


@pytest.mark.parametrize(
    ("text", "problem"),
    [("text\n", "has no rows to measure with"), ('text\n""\n', None), ("other\nx\n", "text")],
)
def test_files_without_use(text: str, problem: str | None, tmp_path: Path) -> None:
    source = tmp_path / "a.csv"
    source.write_text(text)
    job = Job((str(source),), str(text_model(tmp_path)))
    if problem:
        with pytest.raises(errors.InputInvalid, match=problem):
            tune(job, 0.5)
    else:
        assert tune(job, 0.5).read == 1


def test_a_stream_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError, match="tune reads no stream"):
        tune(Job(("-",), str(text_model(tmp_path)), input_format="csv"), 1)


def test_precisions_are_shown_and_not_applied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "a.csv"
    source.write_text("text\n" + "good so very\nbad\n" * 20)
    job = Job((str(source),), str(text_model(tmp_path)))
    asked: list[float] = []
    nothing = compare.Comparison("a.csv", 40, (compare.Compared("model", "CPU"),))

    def stand_in(job: Job, rows: int, seconds: float) -> compare.Comparison:
        asked.append(seconds)
        return nothing

    monkeypatch.setattr(compare, "compare", stand_in)
    monkeypatch.setattr(tuning, "_VARIANT_SECONDS", 0.01)
    monkeypatch.setattr(tuning, "_LOADS", 0)
    found = tune(job, 2.0)
    (left,) = asked
    assert 0 < left < 2.0  # what the sweep has left of it
    assert "a.csv; nothing is applied" in report(found)
    assert found.key.precision == "model"


# --- the command


def test_tune_then_predict(tmp_path: Path) -> None:
    """A winner changes no byte of the output; the log and the receipt tell of it."""
    env = {"XDG_STATE_HOME": str(tmp_path / "state")}
    given = [f"--input_file={REPORTS}", f"--model={RELEVANCE}"]
    curve, job_file = tmp_path / "c.svg", tmp_path / "night.toml"
    finished = commands.run(
        "tune", *given, "--seconds=4", f"--svg={curve}", f"--write_job={job_file}",
        "--output_file=o.csv", "--scores=all", cwd=tmp_path, env=env,
    )  # fmt: skip
    assert (finished.returncode, finished.stderr) == (0, b"")
    (stored,) = (tmp_path / "state" / "batchpredict" / "tuning").iterdir()
    assert str(stored) in finished.stdout.decode()
    assert "batch_tokens" in finished.stdout.decode()
    ET.parse(curve)
    content = json.loads(stored.read_text())
    assert content["ranking"]["measured"]
    # Whatever won on this machine today, something else is stored.
    content["winner"] = {"batch_rows": 5, "batch_tokens": 200, "workers": 1}
    stored.write_text(json.dumps(content))
    plain = score(REPORTS, RELEVANCE, tmp_path / "plain.csv")
    assert plain.plan["sizes_from"]["batch_tokens"] == "default"
    run = commands.run(*given, "--output_file=tuned.csv", cwd=tmp_path, env=env)
    assert (run.returncode, run.stderr) == (0, b"")
    log = run.stdout.decode()
    assert "batch_rows 5, batch_tokens 200, workers 1" in log
    assert str(stored) in log
    plan = receipt_of(tmp_path / "tuned.csv")["plan"]
    assert (plan["batch_rows"], plan["batch_tokens"], plan["workers"]) == (5, 200, 1)
    assert set(plan["sizes_from"].values()) == {"tuning"}
    assert (tmp_path / "tuned.csv").read_bytes() == (tmp_path / "plain.csv").read_bytes()
    # The job file has the sizes and beats the store.
    run = commands.run(f"--job={job_file}", cwd=tmp_path, env=env)
    assert (run.returncode, run.stderr) == (0, b"")
    assert set(receipt_of(tmp_path / "o.csv")["plan"]["sizes_from"].values()) == {"job"}


def test_what_cannot_be_stored_is_not_measured(tmp_path: Path) -> None:
    finished = commands.run(
        "tune", f"--input_file={FLIGHTS}", f"--model={DELAYS}", "--seconds=0.7", cwd=tmp_path
    )
    assert finished.returncode == errors.OutputNotCreatable.exit_code
    assert finished.stdout == b""
    (line,) = finished.stderr.decode().splitlines()
    assert "the tuning cannot be stored: no such file or directory" in line


def test_job_file_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from batchpredict.jobfile import read_job_file

    monkeypatch.chdir(tmp_path)
    job = Job(
        input_file=("a b.csv", '/x/"ü"\x7f.csv'),
        model="m",
        column=(("in put", 'a"b\n'),),
        keep=("a", "b,c"),
        delimiter="\t",
        threshold=0.25,
        no_header=True,
        limit=7,
        no_tuning=True,
    )
    write_job("night.toml", job, {"batch_rows": 8, "workers": 3})
    known = set(Job.__dataclass_fields__)
    values = read_job_file("night.toml", known)
    assert values == {
        "input_file": [str(tmp_path / "a b.csv"), '/x/"ü"\x7f.csv'],
        "model": str(tmp_path / "m"),
        "column": (("in put", 'a"b\n'),),
        "keep": ["a", "b,c"],
        "delimiter": "\t",
        "threshold": 0.25,
        "no_header": True,
        "batch_rows": 8,
        "workers": 3,
    }
    with pytest.raises(errors.OutputNotCreatable, match=r"night\.toml: exists"):
        write_job("night.toml", job, {})
    with pytest.raises(errors.OutputNotCreatable, match=r"night\.toml: exists"):
        Targets(None, "night.toml").check()
    with pytest.raises(errors.OutputNotCreatable, match="--svg"):
        Targets("no/curve.svg", None).check()
    with pytest.raises(errors.OutputNotCreatable, match="is no directory"):
        write_job("no/night.toml", job, {})
    with pytest.raises(errors.UsageError, match="UTF-8"):
        write_job("odd.toml", replace(job, input_file=("\udcff.csv",)), {})
    assert not Path("odd.toml").exists()


@pytest.fixture(autouse=True)
def _no_left_overs(tmp_path: Path) -> Iterator[None]:
    yield
    assert not list(tmp_path.rglob("*.part"))
