"""The report: what it says, that nothing in it can run, and that a browser has no complaint."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchpredict.cli import main
from batchpredict.data.locks import lock_output
from batchpredict.ops import report_scores
from batchpredict.ops.report import page, write
from batchpredict.ops.report_view import View, view
from batchpredict.ops.runs import read_runs
from tests import models
from tests.jobs import score
from tests.test_runs import FORBIDDEN, HOSTILE, rows, stopped

SECRET = "<b>Prinzessin</b>"
KEYS = (
    "rows", "labels", "scores", "values", "scale", "inputs", "nulls", "min", "baseline", "psi",
    "noise", "predictions", "exceeded", "sizes_from", "batch_rows", "sha256", "0.5",
)  # fmt: skip
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
# All that a page may consist of. None of these loads or runs anything.
TAGS = set(
    re.findall(
        r"\w+",
        """html head meta title style body header main section footer div span p h1 h2 h3 ul li dl
        dt dd table thead tbody tr th td details summary figure figcaption b bdi small code time svg
        g path rect circle text""",
    )
)
ATTRIBUTES = set(
    re.findall(
        r"[\w-]+",
        """lang charset http-equiv content name class aria-hidden aria-label role open cx cy d
        height r rx ry transform viewbox width x y""",
    )
)


class Parsed(HTMLParser):
    """Tags, attributes and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.texts: list[str] = []
        self.policy = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        values = dict(attrs)
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"] or ""

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def receipt(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a run that was fine."""
    directory = tmp_path_factory.mktemp("run")
    model = models.write_classifier(directory / "model")
    score(rows(directory / "in.csv", "1,2", "3,4"), model, directory / "out.csv")
    content: dict[str, Any] = json.loads((directory / "out.csv.receipt.json").read_bytes())
    return content


def profile(**labels: int) -> dict[str, Any]:
    return {
        "task": "single_label",
        "scale": "probability",
        "rows": sum(labels.values()),
        "labels": {
            name: {"rows": rows, "scores": {"0.5": rows // 2, "0.95": rows - rows // 2}}
            for name, rows in labels.items()
        },
        "sampled": 10,
        "inputs": {
            "x": {
                "unit": "number",
                "nulls": 30,
                "min": 0.5,
                "max": 9.0,
                "mean": None,
                "sum": "0",
                "histogram": {"0.5": 50, "8": 20},
            }
        },
    }


def put(
    directory: Path, receipt: Mapping[str, Any], name: str, *, ago: float = 0, **values: Any
) -> Path:
    """A receipt that ended so many hours before a fixed night."""
    ended = datetime(2026, 11, 22, 2, tzinfo=UTC) - timedelta(hours=ago)
    content = {**receipt, "run_id": f"{hash(name) & 0xFFFFFFFF:08x}", **values}
    content["started"] = (ended - timedelta(minutes=3)).isoformat()
    content["ended"] = ended.isoformat()
    ending = "receipt" if content["exit_code"] in (0, 3) else "failed"
    file = directory / f"{name}.{ending}.json"
    file.write_text(json.dumps(content))
    return file


def partial(codes: Mapping[str, int], path: str | None = None) -> dict[str, Any]:
    lost = sum(codes.values())
    return {
        "exit_code": 3,
        "counts": {"read": 1000, "scored": 1000 - lost, "rejected": lost},
        "rejects": {"path": path, "size": 1, "sha256": "ab", "codes": dict(codes)},
    }


def seen(*paths: Path, with_records: bool = False) -> View:
    now = datetime(2026, 11, 22, 8, tzinfo=UTC)
    return view(read_runs(map(str, paths)), with_records, now)


def parsed(*paths: Path, with_records: bool = False) -> Parsed:
    return Parsed(page(seen(*paths, with_records=with_records)))


class TestVerdict:
    def test_all_fine(self, tmp_path: Path, receipt: dict[str, Any]) -> None:
        for name in ("a.csv", "b.csv"):
            put(tmp_path, receipt, name)
        verdict = seen(tmp_path).verdict
        assert (verdict.level, verdict.word) == ("good", "All fine")
        assert verdict.sentence == "all 2 runs published, every row scored"
        assert verdict.when.endswith(", 6 hours ago")

    def test_rejected_rows(self, tmp_path: Path, receipt: dict[str, Any]) -> None:
        put(tmp_path, receipt, "a.csv")
        put(tmp_path, receipt, "b.csv", **partial({"missing_value": 7, "bad_type": 5}))
        shown = seen(tmp_path)
        assert (shown.verdict.level, shown.verdict.word) == ("warn", "Rows rejected")
        assert shown.verdict.sentence == "1 of 2 runs published without 12 rows (1.2 %)"
        assert [line.reason for line in shown.problems] == ["missing_value 7, bad_type 5"]

    def test_a_failure_is_worse(self, tmp_path: Path, receipt: dict[str, Any]) -> None:
        put(tmp_path, receipt, "a.csv", **partial({"missing_value": 1}))
        put(tmp_path, receipt, "b.csv", exit_code=74, message="the disk is full", output=None)
        shown = seen(tmp_path)
        assert (shown.verdict.level, shown.verdict.word) == ("bad", "Failed")
        assert shown.verdict.sentence.startswith("1 of 2 runs failed; 1 of 2 runs published")
        assert [line.reason for line in shown.problems] == ["the disk is full", "missing_value 1"]

    def test_of_last_night_not_of_nights_before(
        self, tmp_path: Path, receipt: dict[str, Any]
    ) -> None:
        put(tmp_path, receipt, "a_1.csv", ago=72, exit_code=74, message="full", output=None)
        put(tmp_path, receipt, "a_2.csv", ago=23, **partial({"missing_value": 1}))
        put(tmp_path, receipt, "a_3.csv")
        shown = seen(tmp_path)
        assert shown.verdict.level == "good"
        assert shown.verdict.sentence.endswith("; 1 earlier failure not run again")
        assert [line.run.output[-7:] for line in shown.older] == ["a_1.csv"]

    def test_a_warning(self, tmp_path: Path, receipt: dict[str, Any]) -> None:
        silent = "the store cannot be reached; reviews@champion is what it was 2 hours ago"
        shown = seen(put(tmp_path, receipt, "a.csv", warnings=[silent]))
        assert (shown.verdict.level, shown.verdict.word) == ("warn", "Warnings")
        assert shown.verdict.sentence == silent
        put(tmp_path, receipt, "b.csv")
        shown = seen(tmp_path)
        assert (shown.verdict.level, shown.verdict.sentence) == (
            "warn",
            "1 of 2 runs with a warning",
        )
        assert [line.reason for line in shown.problems] == [silent]

    def test_drift(self, tmp_path: Path, receipt: dict[str, Any]) -> None:
        moved = {
            "baseline": [{"run_id": "r"}],
            "predictions": {"labels": {"psi": 0.41, "noise": 0.02}},
            "exceeded": ["labels"],
        }
        shown = seen(put(tmp_path, receipt, "a.csv", drift=moved))
        assert (shown.verdict.level, shown.verdict.word) == ("warn", "Predictions drifted")
        assert shown.verdict.sentence == "predictions have drifted (PSI): labels 0.41"
        assert "labels 0.410 up to 0.020" in parsed(tmp_path).text

    def test_a_run_that_works(self, tmp_path: Path, receipt: dict[str, Any]) -> None:
        put(tmp_path, receipt, "a.csv")
        with lock_output(str(tmp_path / "b.csv")):
            shown = seen(tmp_path)
        assert (shown.verdict.level, shown.verdict.word) == ("busy", "Running")

    def test_a_run_that_was_killed(self, tmp_path: Path) -> None:
        output = stopped(tmp_path, models.write_classifier(tmp_path / "model"))
        Path(f"{output}.failed.json").unlink()
        shown = seen(tmp_path)
        assert shown.verdict.level == "bad"
        assert "the same command goes on there" in parsed(tmp_path).text


class TestPage:
    def test_one_run(self, tmp_path: Path, receipt: dict[str, Any]) -> None:
        found = parsed(put(tmp_path, receipt, "a.csv", profile=profile(game=30, other=70)))
        for text in (
            "published, every one of 2 rows scored", "Time per stage",
            "most rows in a batch 4,096 (default)",
            "batches 1 rows in a batch 2 on average",
            f"model sha256 {receipt['model']['sha256']}", "Predicted: other 70 rows, 70.0 %",
            "x (number) 30.0 % 0.5 9",
        ):  # fmt: skip
            assert text in found.text

    def test_many_runs(self, tmp_path: Path, receipt: dict[str, Any]) -> None:
        for night in range(5):
            speed = 100.0 if night == 0 else 1000.0
            put(
                tmp_path, receipt, f"users_2026-11-{20 - night}.csv", ago=24 * night,
                rows_per_second=speed, profile=profile(game=30 + night, other=70),
            )  # fmt: skip
        shown = seen(tmp_path)
        (job,) = shown.series
        assert job.name == f"{tmp_path}/users_#.csv".replace(
            str(tmp_path), re.sub(r"\d+(?:[-_.:T]?\d+)*", "#", str(tmp_path))
        )
        assert (job.nights, job.change, job.slower) == (5, "-90 %", True)
        assert [chart.title for chart in shown.charts] == ["Rows per second", "Time per stage"]
        assert "game 30 rows, 30.0 % (the run before: 30.7 %)" in parsed(tmp_path).text

    def test_problems_that_are_left_out(self, tmp_path: Path, receipt: dict[str, Any]) -> None:
        for number in range(22):
            put(tmp_path, receipt, f"{number}.csv", **partial({"missing_value": 1}))
        assert " 2 more in the list of all runs." in parsed(tmp_path).text

    def test_the_baseline_of_the_receipt_is_drawn(
        self, tmp_path: Path, receipt: dict[str, Any]
    ) -> None:
        put(tmp_path, receipt, "a_1.csv", ago=48, profile=profile(game=50, other=50))
        put(tmp_path, receipt, "a_2.csv", ago=24, profile=profile(game=100))
        pinned = read_runs([str(tmp_path)]).runs[0].run_id
        put(
            tmp_path, receipt, "a_3.csv", profile=profile(game=40, other=60),
            drift={"baseline": [{"run_id": pinned}], "predictions": {}, "exceeded": []},
        )  # fmt: skip
        assert "game 40 rows, 40.0 % (the baseline: 50.0 %)" in parsed(tmp_path).text

    def test_text_of_the_input_only_where_asked_for(
        self, tmp_path: Path, receipt: dict[str, Any]
    ) -> None:
        reject = {"row": 2, "line": 3, "code": "bad_type", "message": SECRET, "record": SECRET}
        (tmp_path / "a.csv.rejects.jsonl").write_text(json.dumps(reject) + "\n")
        put(tmp_path, receipt, "a.csv", **partial({"bad_type": 1}, "/gone/a.csv.rejects.jsonl"))
        message = f"in.csv:3: row 2: bad_type: {SECRET}; mend it, or let it be rejected"
        put(tmp_path, receipt, "b.csv", exit_code=65, message=message, output=None)
        without, shown = (page(seen(tmp_path, with_records=each)) for each in (False, True))
        assert "Prinzessin" not in without
        assert "row 2: bad_type; mend it" in without
        assert "bad_type 2 3" in Parsed(without).text
        assert shown.count("&lt;b&gt;Prinzessin&lt;/b&gt;") >= 3
        assert SECRET not in shown

    def test_policy(self, tmp_path: Path, receipt: dict[str, Any]) -> None:
        text = page(seen(put(tmp_path, receipt, "a.csv")))
        (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        assert Parsed(text).policy == (
            f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
        )
        assert not re.search(r"(?i)url\(|@import|https?:|//[a-z]", text)


def hostile(value: Any, name: str = "") -> Any:
    """The same with a hostile text wherever a receipt has one, and a hostile name beside them."""
    if isinstance(value, dict):
        return {key: hostile(each, key) for key, each in value.items()} | (
            {HOSTILE: 1} if name in ("stages", "codes") else {}
        )
    if isinstance(value, list):
        return [hostile(each) for each in value]
    kept = ("started", "ended", "task", "scale", "sum")
    return HOSTILE if isinstance(value, str) and name not in kept else value


def write_hostile(directory: Path, receipt: dict[str, Any]) -> None:
    whole = profile(**{HOSTILE: 40, "</title></style><script>alert(2)</script>": 60})
    whole["inputs"] = {HOSTILE: whole["inputs"]["x"] | {"unit": HOSTILE}}
    drift = {
        "baseline": [{"run_id": HOSTILE}],
        "predictions": {HOSTILE: {"psi": 9.0, "noise": 0.1}},
        "inputs": {HOSTILE: {"psi": 9.0, "noise": 0.1}},
        "exceeded": [HOSTILE],
    }
    bad = hostile(receipt) | {"profile": whole, "drift": drift, "message": HOSTILE}
    bad["options"] |= {HOSTILE: HOSTILE, "model": f"javascript:{HOSTILE}"}
    name = HOSTILE.replace("/", "")
    rejects = {"row": 1, "code": HOSTILE, "message": HOSTILE, "record": HOSTILE}
    for night in range(4):
        file = f"{night}{name}.csv"
        (directory / f"{file}.rejects.jsonl").write_text(json.dumps(rejects) + "\n[" * 9999)
        more = partial({HOSTILE: 3}, f"x/{file}.rejects.jsonl") if night else {"exit_code": 74}
        put(directory, bad, file, ago=night, **more)
    (directory / f"{name}.receipt.json").write_text("{}")


def test_hostile_values_are_text(tmp_path: Path, receipt: dict[str, Any]) -> None:
    write_hostile(tmp_path, receipt)
    everything = seen(tmp_path, with_records=True)
    assert len(everything.runs) == 4
    assert everything.skipped
    for text in (page(everything), page(seen(next(tmp_path.glob("3*.receipt.json"))))):
        found = Parsed(text)
        assert found.tags <= TAGS
        assert found.attributes <= ATTRIBUTES
        assert "<script>alert(1)</script>=1+1" in found.text
        assert not (set(text) - {"\n"}) & set(FORBIDDEN)
        text.encode()


Browse = Callable[[Path, int], tuple[list[str], str]]


@pytest.fixture(scope="module")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Browse:
    """What a browser of some width says of a file on its console, and the page that it has made."""
    home = tmp_path_factory.mktemp("chromium")

    def open_file(file: Path, width: int) -> tuple[list[str], str]:
        done = subprocess.run(
            [
                str(CHROMIUM), "--headless", "--disable-gpu", "--enable-logging=stderr",
                f"--user-data-dir={home}", f"--window-size={width},900", "--dump-dom",
                *(["--no-sandbox"] if os.geteuid() == 0 else []), file.as_uri(),
            ],
            capture_output=True, text=True, timeout=90, check=True, encoding="utf-8",
            env={"PATH": os.environ["PATH"], "HOME": str(home)},
        )  # fmt: skip
        return [line for line in done.stderr.splitlines() if "CONSOLE" in line], done.stdout

    return open_file


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=4)
        ),
    ),
    st.sampled_from(["profile", "drift", "plan", "options", "stages", "output", "tool"]),
)
def test_whatever_stands_in_a_receipt(
    tmp_path: Path, receipt: dict[str, Any], value: Any, name: str
) -> None:
    file = put(tmp_path, receipt, "a.csv", **{name: value})
    if read_runs([str(file)]).runs:
        assert Parsed(page(seen(file))).tags <= TAGS


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
class TestBrowser:
    def test_no_message_on_its_console(
        self, tmp_path: Path, receipt: dict[str, Any], browse: Browse
    ) -> None:
        write_hostile(tmp_path, receipt)
        file = tmp_path / "report.html"
        write([str(tmp_path)], str(file), with_records=True)
        for width in (400, 1400):
            said, shown = browse(file, width)
            assert not said
            assert "<h1>Failed</h1>" in shown

    def test_which_would_be_seen(
        self, tmp_path: Path, receipt: dict[str, Any], browse: Browse
    ) -> None:
        text = page(seen(put(tmp_path, receipt, "a.csv")))
        file = tmp_path / "report.html"
        file.write_text(text.replace("<h1>", '<h1 style="color: red" onclick="alert(1)">'))
        assert browse(file, 400)[0]


class TestCommand:
    def test_a_file_and_the_log(
        self, tmp_path: Path, receipt: dict[str, Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        put(tmp_path, receipt, "a.csv")
        (tmp_path / "b.receipt.json").write_text("{}")
        (tmp_path / "r.html").write_text("old")
        assert main(["report", str(tmp_path), "-o", str(tmp_path / "r.html")]) == 0
        out, err = capsys.readouterr()
        assert " All fine: published, every one of 2 rows scored\n" in out
        assert out.endswith(f" report: {tmp_path}/r.html\n")
        assert "b.receipt.json: is not a receipt (it lacks receipt); skipped\n" in err
        assert "<h1>All fine</h1>" in (tmp_path / "r.html").read_text()

    def test_standard_output(
        self, tmp_path: Path, receipt: dict[str, Any], capfdbinary: pytest.CaptureFixture[bytes]
    ) -> None:
        put(tmp_path, receipt, "a.csv")
        assert main(["report", str(tmp_path), "--output_file=-"]) == 0
        out, err = capfdbinary.readouterr()
        assert out.startswith(b"<!DOCTYPE html>")
        assert out.rstrip().endswith(b"</html>")
        assert b" All fine: " in err

    def test_nothing_to_report(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["report", str(tmp_path)]) == 66
        assert "no receipt; name a receipt, or a folder" in capsys.readouterr().err
        assert main(["report", str(tmp_path / "gone")]) == 66


class TestScores:
    def test_bins_are_in_their_places(self, tmp_path: Path, receipt: dict[str, Any]) -> None:
        whole = profile(a=4)
        whole["labels"]["a"]["scores"] = {"0": 1, "0.05": 1, "0.15": 2, "0.95": 4}
        (run,) = read_runs([str(put(tmp_path, receipt, "a.csv", profile=whole))]).runs
        (found,) = report_scores.distributions(run, ())
        shares = [0.125, 0.125, 0, 0.25, *[0] * 15, 0.5]
        assert list(found.heights) == shares
        assert [label for _, label in found.ticks] == ["0", "0.25", "0.5", "0.75", "1"]

    def test_values_of_a_regression(self, tmp_path: Path, receipt: dict[str, Any]) -> None:
        values = {str(border): 1 for border in [-float("inf"), -2.0, 0.0, *range(1, 98)]}
        whole = {"task": "regression", "scale": "log", "rows": 100, "labels": {}, "values": values}
        (run,) = read_runs([str(put(tmp_path, receipt, "a.csv", profile=whole))]).runs
        (found,) = report_scores.distributions(run, [run])
        assert sum(found.heights) == pytest.approx(1)
        assert len(found.heights) <= 40
        assert found.before == found.heights
        assert "(values)" in parsed(tmp_path).text

    @pytest.mark.parametrize(
        "whole",
        [
            7, {}, {"rows": -1}, {"rows": 3, "labels": []}, {"rows": 3, "labels": {"a": 1}},
            {"rows": 3, "labels": {"a": {"rows": 3, "scores": {"nan": 1, "x": 2, "0.5": "3"}}}},
            {"rows": 0, "labels": {"a": {"rows": 0, "scores": {}}}, "inputs": {"x": 3, "y": {}}},
            {"rows": 3, "values": {"1e400": 2, "-1e400": 1}, "inputs": {"y": {"nulls": 1}}},
        ],
    )  # fmt: skip
    def test_what_is_no_profile(self, tmp_path: Path, receipt: dict[str, Any], whole: Any) -> None:
        put(tmp_path, receipt, "a.csv", profile=whole, drift=whole)
        assert "All fine" in parsed(tmp_path).text


def test_a_thousand_runs_take_less_than_five_seconds(
    tmp_path: Path, receipt: dict[str, Any]
) -> None:
    """20 MB of receipts, in CPU seconds, for others may be at work on this machine."""
    labels = {f"label {number}": number * 100 for number in range(1, 60)}
    whole = profile(**labels)
    for label in whole["labels"].values():
        label["scores"] = {f"{place / 20:g}": place * 1000 for place in range(20)}
    for night in range(1000):
        put(tmp_path, receipt, f"users_{night}.csv", ago=24 * night, profile=whole)
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    began = time.process_time()
    write([str(tmp_path)], str(tmp_path / "report.html"), with_records=False)
    took = time.process_time() - began
    made = (tmp_path / "report.html").stat().st_size
    print(f"{size / 1e6:.1f} MB of receipts: {took:.2f} CPU s, a page of {made / 1e3:.0f} kB")
    assert size > 20e6
    assert took < 5
