"""Drift: what the index is, when it is believed, what it is compared with, what comes of it."""

from __future__ import annotations

import csv
import json
import logging
import math
import random
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchpredict.dates import expand
from batchpredict.errors import ConfigInvalid, InputInvalid, UsageError
from batchpredict.job import Job
from batchpredict.run.drift import Shift, compare, joined, noise, psi
from batchpredict.run.earlier import earlier_names
from batchpredict.run.profile import PROBABILITY, Label, Profile
from batchpredict.run.runner import rehearse
from tests import commands, models
from tests.jobs import EXAMPLES, receipt_of, run_job, score

RELEVANCE = EXAMPLES / "models" / "relevance"
USUAL = 0.25

cells = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), min_size=1, max_size=30)


def swapped(pairs: Any) -> list[tuple[int, int]]:
    return [(b, a) for a, b in pairs]


# --- the index


@given(cells)
def test_psi_is_a_distance(pairs: list[tuple[int, int]]) -> None:
    assert psi(pairs) >= 0
    assert math.isclose(psi(pairs), psi(swapped(pairs)), rel_tol=1e-12)


@given(st.lists(st.integers(0, 10**6), min_size=1), st.integers(1, 50))
def test_psi_of_equal_shares_is_0(rows: list[int], times: int) -> None:
    assert psi([(count, count * times) for count in rows]) == 0


def test_psi_by_hand() -> None:
    # 26 % against 60 %
    by_hand = (0.26 - 0.6) * math.log(0.26 / 0.6) + (0.74 - 0.4) * math.log(0.74 / 0.4)
    assert math.isclose(psi([(26, 300), (74, 200)]), by_hand)
    assert math.isclose(psi([(0, 10), (10, 10)]), (0.05 - 0.5) * math.log(0.1) + 0.5 * math.log(2))
    assert psi([(0, 10), (0, 10)]) == 0


@given(cells, st.sampled_from([0.0, 0.1]))
def test_joined_bins_have_all_rows(pairs: list[tuple[int, int]], least: float) -> None:
    n, m = (sum(column) for column in zip(*pairs, strict=True))
    found = joined(pairs, n, m, least)
    assert tuple(map(sum, zip(*found, strict=True))) == (n, m)
    assert joined(swapped(pairs), m, n, least) == swapped(found)
    if len(found) > 1:
        for a, b in found:
            assert (a / n + b / m) / 2 >= max(least, 5 / min(n, m)) * (1 - 1e-9)


@pytest.mark.parametrize("rows", [(30, 30), (300, 300), (300, 2100), (5000, 100)])
def test_chance_stays_below_its_noise(rows: tuple[int, int]) -> None:
    """Of 4,000 pairs of samples from one distribution hardly one is beyond."""
    generator = np.random.default_rng(1)
    shares = generator.dirichlet(np.ones(20))
    samples = [generator.multinomial(count, shares, 4000).tolist() for count in rows]
    beyond, above = 0, 0
    for one, other in zip(*samples, strict=True):
        found = joined(list(zip(one, other, strict=True)), *rows, 0.1)
        shift = Shift(psi(found), noise(len(found), *rows))
        beyond += shift.exceeds(0)
        above += shift.psi > USUAL
    assert beyond <= 2
    assert above > 400 or min(rows) > 50  # which small samples would have flagged


def test_small_samples_are_flagged_where_they_are_far_apart() -> None:
    found = joined([(28, 2), (2, 28)], 30, 30, 0.1)
    assert Shift(psi(found), noise(len(found), 30, 30)).exceeds(USUAL)
    assert joined([(3, 0), (0, 3)], 3, 3, 0.1) == [(3, 3)]
    assert noise(1, 3, 3) == 0


def profile_of(**labels: int) -> Profile:
    made = {name: Label(rows, {10: rows}) for name, rows in labels.items()}
    return Profile("single_label", PROBABILITY, sum(labels.values()), labels=made)


def test_rare_labels_and_new_ones() -> None:
    rare = {f"rare{number:03}": 1 for number in range(0, 100, 2)}
    others = {f"rare{number:03}": 1 for number in range(1, 100, 2)}
    same = compare(profile_of(a=500, b=500, **rare), profile_of(a=500, b=500, **others))
    assert same["labels"].psi < 0.01
    new = compare(profile_of(a=500, b=500, c=500), profile_of(a=500, b=500))["labels"]
    assert new.exceeds(USUAL)
    assert compare(profile_of(), profile_of(a=500)) == {"labels": Shift(0.0, 0.0)}


# --- what is compared with


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("a_2026-03-01.csv", "a_2026-02-28.csv"),
        ("20260301/a_2026-03-01.csv", "20260228/a_2026-02-28.csv"),
        ("2026/01/01/a.csv", "2025/12/31/a.csv"),
        ("20260301T0200.csv", "20260228T0200.csv"),
        ("2020-01-01/a_20260301.csv", "2020-01-01/a_20260228.csv"),
        ("a_2026-01.csv", "a_2025-12.csv"),
        ("a_202603.csv", "a_202602.csv"),
        ("a_20261301.csv", "a_20261301.csv"),
        ("a_120260301.csv", "a_120260301.csv"),
        ("a.csv", "a.csv"),
    ],
)
def test_names_of_earlier_receipts(name: str, first: str) -> None:
    found = list(earlier_names(name))
    assert found[0] == first
    assert found[-1] == name
    assert len(found) in (1, 13, 32)


@pytest.fixture
def echo(tmp_path: Path) -> Path:
    """Label b for x above 0, else a."""
    manifest = 'name = "echo"\nlabels = ["a", "b"]\ntask = "binary"\n[inputs.features]\n'
    return models.write(
        tmp_path / "echo", models.logits_graph(1), manifest=manifest + 'columns = ["x"]\n'
    )


def write(path: Path, rows: int, share: float) -> Path:
    """A file of so many rows of which a share is labelled b."""
    values = [9 if number < rows * share else -9 for number in range(rows)]
    path.write_text("x\n" + "".join(f"{value}\n" for value in values))
    return path


def test_the_last_seven_days_are_the_baseline(tmp_path: Path, echo: Path) -> None:
    for day in range(10, 20):
        if day != 15:
            share = 0.9 if day < 12 else 0.3
            score(write(tmp_path / "in.csv", 100, share), echo, tmp_path / f"o_2026-11-{day}.csv")
    output = tmp_path / "o_2026-11-20.csv"
    source = write(tmp_path / "in.csv", 100, 0.3)
    for _ in range(2):  # the receipt that is replaced is none of an earlier day
        score(source, echo, output)
        drift = receipt_of(output)["drift"]
        days = [run["receipt"][-len("10.csv.receipt.json") :][:2] for run in drift["baseline"]]
        assert days == ["19", "18", "17", "16", "14", "13", "12"]
        assert drift["rows"] == 700
        assert drift["predictions"]["labels"]["psi"] == 0
        assert drift["exceeded"] == []


def test_of_many_inputs_drift_is_looked_for_where_it_is_asked_for(
    tmp_path: Path, echo: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    source = write(tmp_path / "in" / "a.csv", 100, 0.3)

    def compared(*inputs: Path, **options: Any) -> bool:
        (receipt,) = run_job(inputs, echo, output_dir=tmp_path / "out", **options).receipts
        return receipt.drift is not None

    assert not compared(source)
    assert compared(source)
    for name in (source.parent, source.parent / "*.csv"):
        assert not compared(name)
        assert compared(name, max_drift=USUAL)
        assert compared(name, baseline=str(tmp_path / "out" / "a.csv.receipt.json"))


def test_another_model_or_threshold_is_no_baseline(tmp_path: Path, echo: Path) -> None:
    source, output = write(tmp_path / "in.csv", 100, 0.3), tmp_path / "out.csv"
    score(source, echo, output)
    score(source, echo, output, threshold=0.7)
    assert "drift" not in receipt_of(output)
    score(source, echo, output, threshold=0.7, keep="none")
    assert receipt_of(output)["drift"]["rows"] == 100
    manifest = echo / "batchpredict.toml"
    manifest.write_text(manifest.read_text().replace('name = "echo"', 'name = "other"'))
    score(source, echo, output, threshold=0.7)
    assert "drift" not in receipt_of(output)


def without_profile(receipt: dict[str, Any]) -> None:
    del receipt["profile"]


def with_hostile_profile(receipt: dict[str, Any]) -> None:
    receipt["profile"]["labels"] = {"a": {"rows": "<script>", "scores": {}}}


@pytest.mark.parametrize("change", [without_profile, with_hostile_profile, dict.clear])
def test_a_receipt_that_is_no_use(
    tmp_path: Path, echo: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    source, output = write(tmp_path / "in.csv", 100, 0.3), tmp_path / "out.csv"
    score(source, echo, output)
    receipt = output.with_name("out.csv.receipt.json")
    content = json.loads(receipt.read_text())
    change(content)
    receipt.write_text(json.dumps(content))
    score(source, echo, output, max_drift=USUAL)
    assert "drift" not in receipt_of(output)
    receipt.write_text(json.dumps(content))
    with pytest.raises(ConfigInvalid, match=r"--baseline=.*receipt.json: .*; name the OUTPUT"):
        score(source, echo, output, baseline=str(receipt))


def test_a_baseline_of_another_kind(tmp_path: Path, echo: Path) -> None:
    source, output = write(tmp_path / "in.csv", 100, 0.3), tmp_path / "out.csv"
    manifest = '[inputs.features]\ncolumns = ["x"]\n'
    numbers = models.write(tmp_path / "numbers", models.matrix_graph(1), manifest=manifest)
    score(source, numbers, output)
    baseline = str(output.with_name("out.csv.receipt.json"))
    with pytest.raises(ConfigInvalid, match=r"is of a regression \(log\) model, this is a binary"):
        score(source, echo, tmp_path / "new.csv", baseline=baseline)
    assert not (tmp_path / "new.csv").exists()
    job = Job(input_file=(str(source),), model=str(echo), baseline="gone.json")
    with pytest.raises(ConfigInvalid, match=r"gone.json: no such file"):
        rehearse(job)


# --- what comes of it


def test_drift_is_told_or_ends_the_run(
    tmp_path: Path, echo: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, output = write(tmp_path / "in.csv", 300, 0.26), tmp_path / "out.csv"
    score(source, echo, output)
    baseline = str(output.with_name("out.csv.receipt.json"))
    old = output.read_bytes()
    write(source, 300, 0.6)
    with pytest.raises(InputInvalid) as caught:
        score(source, echo, output, max_drift=USUAL, on_drift="fail")
    said = f"{source}: predictions have drifted from {baseline}: labels 0.49 (PSI; --max_drift="
    rest = str(caught.value).removeprefix(said)
    assert rest.startswith("0.25); b was 26.0% of the rows and is 60.0%; ")
    assert "inputs moved too: x 0.49" in str(caught.value)
    assert output.read_bytes() == old
    failed = json.loads(output.with_name("out.csv.failed.json").read_text())
    assert failed["exit_code"] == 65
    assert failed["drift"]["exceeded"] == ["labels"]
    assert failed["profile"]["labels"]["b"]["rows"] == 180

    with caplog.at_level(logging.WARNING):
        receipt = score(source, echo, output, max_drift=USUAL)
    assert [record.getMessage().startswith(said) for record in caplog.records] == [True]
    assert receipt.exit_code == 0
    assert receipt.resumed.rows == 2  # all that differ: nothing was scored again
    assert receipt.drift is not None
    assert receipt.drift["exceeded"] == ["labels"]

    score(source, echo, output, max_drift=USUAL, on_drift="fail")  # from the run before: none
    write(source, 300, 0.26)
    score(source, echo, tmp_path / "other.csv", baseline=baseline, max_drift=0.3)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert "a was 40.0% of the rows and is 74.0%" in told[1]


def test_a_first_run_has_nothing_to_drift_from(tmp_path: Path, echo: Path) -> None:
    source, output = write(tmp_path / "in.csv", 30, 0.5), tmp_path / "out.csv"
    assert score(source, echo, output, max_drift=0.0, on_drift="fail").exit_code == 0
    empty = write(tmp_path / "empty.csv", 0, 0.5)
    assert score(empty, echo, output, max_drift=0.0, on_drift="fail").exit_code == 0
    assert receipt_of(output)["profile"]["rows"] == 0
    assert score(source, echo, output, max_drift=0.0, on_drift="fail").exit_code == 0


@pytest.mark.parametrize("options", [{"max_drift": -1.0}, {"on_drift": "fail"}])
def test_options_without_a_meaning(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"--max_drift|--on_drift"):
        Job(input_file=("x",), model="m", **options)


def test_the_command_line(tmp_path: Path, echo: Path) -> None:
    write(tmp_path / "in.csv", 300, 0.26)
    common = ("--input_file=in.csv", f"--model={echo}", "--max_drift=0.25", "--quiet")
    assert commands.run(*common, cwd=tmp_path).returncode == 0
    write(tmp_path / "in.csv", 300, 0.6)
    done = commands.run(*common, "--on_drift=fail", cwd=tmp_path)
    assert done.returncode == 65
    assert b"predictions have drifted from in.scored.csv.receipt.json" in done.stderr


def test_a_shift_of_labels_is_flagged_and_chance_is_not(tmp_path: Path) -> None:
    """The bundled model: ten nights of 300 rows, of which 26 % are labelled game; then 60 %."""
    with (EXAMPLES / "reports.csv").open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header, rows = next(reader), list(reader)
    score(EXAMPLES / "reports.csv", RELEVANCE, tmp_path / "all.csv")
    with (tmp_path / "all.csv").open(newline="", encoding="utf-8") as file:
        labels = [row["prediction"] for row in csv.DictReader(file)]
    pools = {n: [r for r, o in zip(rows, labels, strict=True) if o == n] for n in set(labels)}
    chance = random.Random(6)
    files = []
    for night in range(1, 12):
        share = 0.26 if night < 11 else 0.6
        drawn = [chance.choice(pools["game" if chance.random() < share else "other"])
                 for _ in range(300)]  # fmt: skip
        files.append(tmp_path / f"reports_2026-11-{night:02}.csv")
        with files[-1].open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *drawn])
    (tmp_path / "scored").mkdir()
    receipts = run_job(files, RELEVANCE, output_dir=tmp_path / "scored", max_drift=USUAL).receipts
    found = [receipt.drift["exceeded"] for receipt in receipts if receipt.drift]
    assert found == [[]] * 9 + [["labels"]]


def test_many_rare_labels_of_one_distribution_are_no_drift() -> None:
    source = np.random.default_rng(1)
    shares = 1 / np.arange(1, 91)
    shares /= shares.sum()

    def drawn(rows: int) -> Profile:
        counts = source.multinomial(rows, shares).tolist()
        labels = {f"{place}": Label(count) for place, count in enumerate(counts) if count}
        return Profile("single_label", "probability", rows, labels=labels)

    # A night against the seven before it.
    shifts = [compare(drawn(60), drawn(420))["labels"] for _ in range(100)]
    assert not [shift for shift in shifts if shift.exceeds(0.25)]


@pytest.mark.parametrize(
    ("name", "earlier"),
    [
        ("a_2026-02-28_2026-03-01.csv", "a_2026-02-27_2026-02-28.csv"),
        ("a_20260301_20260228.csv", "a_20260228_20260227.csv"),
        ("2026-03-01/2026-03/a_20260228.csv", "2026-02-28/2026-02/a_20260227.csv"),
        ("2026-12/a_2026-11-30.csv", "2026-11/a_2026-11-29.csv"),
        ("model_2026-02-28/a_2026-03-01.csv", "model_2026-02-28/a_2026-02-28.csv"),
        ("dt=2026-03-01/a.csv", "dt=2026-02-28/a.csv"),
        ("year=2026/month=03/day=01/a.csv", "year=2026/month=02/day=28/a.csv"),
        ("month=2026-03/day=01/a.csv", "month=2026-02/day=28/a.csv"),
        ("year=2026/month=01/a.csv", "year=2025/month=12/a.csv"),
        ("a_2025-12_2026-01.csv", "a_2025-11_2025-12.csv"),
        ("model_2025-12/a_2026-01.csv", "model_2025-12/a_2025-12.csv"),
    ],
)
def test_names_with_more_than_a_date(name: str, earlier: str) -> None:
    """As {yesterday}_{date} has, and partitions of Hive."""
    found = list(earlier_names(name))
    assert earlier in found[:2]
    assert found[-1] == name
    assert len(found) == len(set(found))


@given(st.dates(date(1950, 1, 1), date(2099, 1, 1)), st.integers(1, 31))
def test_what_a_name_was_on_earlier_days(day: date, back: int) -> None:
    for template in (
        "o/{date}.csv", "{yesterday}/{date:%Y%m%d}.json", "{date}_{yesterday}.csv", "x_{yesterday}",
        "{month}/{date:%Y/%m/%d}_v1",
        "year={date:%Y}/month={date:%m}/day={date:%d}/part.csv", "dt={date}/part-2.csv",
    ):  # fmt: skip
        earlier = expand(template, day - timedelta(back))
        assert earlier in list(earlier_names(expand(template, day)))[: 2 * back]


def test_days_before_the_first_of_a_month_are_in_the_folder_of_the_month_before() -> None:
    names = list(earlier_names("out/2026-12/users_2026-12-01.csv"))
    assert names[0] == "out/2026-11/users_2026-11-30.csv"
    assert names[30] == "out/2026-10/users_2026-10-31.csv"
    names = list(earlier_names("2026/12/20261202_v1.csv"))
    assert names[:2] == ["2026/12/20261201_v1.csv", "2026/11/20261130_v1.csv"]
