"""Dates in the names of files, and the days that are asked for."""

from __future__ import annotations

import os
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchpredict import dates
from batchpredict.cli import cli
from batchpredict.errors import UsageError
from batchpredict.options import OF_THE_RUN
from batchpredict.request import Request, read_request
from tests import models
from tests.commands import receipt, run

DAY = date(2026, 3, 1)
DAYS = st.dates(date(1900, 1, 1), date(2999, 12, 31))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("users_{date}.csv", "users_2026-03-01.csv"),
        ("{date:%Y%m%d}", "20260301"),
        ("{date:%Y/%m/%d}/x", "2026/03/01/x"),
        ("{yesterday}", "2026-02-28"),
        ("{yesterday:%d.%m.%y}", "28.02.26"),
        ("{month}", "2026-03"),
        ("{last_month}", "2026-02"),
        ("{last_month:%b}", "Feb"),
        ("{year}/{date:%j}", "2026/060"),
        ("{date:%G-W%V-%u}", "2026-W09-7"),
        ("{date:%d%%}", "01%"),
        # Braces of the name.
        ("{{date}}", "{date}"),
        ("{{{date}}}", "{2026-03-01}"),
        ("a{b-1}{}{1}}", "a{b-1}{}{1}"),
        ("{6F9619FF-8B86}.csv", "{6F9619FF-8B86}.csv"),
        ("s3://bucket/{month}/", "s3://bucket/2026-03/"),
    ],
)
def test_fields(name: str, expected: str) -> None:
    assert dates.expand(name, DAY) == expected


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("{dat}.csv", ("{dat}.csv: {dat} is no date", "did you mean {date}?", "{{")),
        ("{Date}", ("did you mean {date}?",)),
        ("{text}", ("{text} is no date", "{yesterday}")),
        ("{date-1}", ("{date-1} is no date",)),
        ("{date:%H}", ("%H in {date:%H} is no part of a date",)),
        ("{date:%}", ("is no part of a date",)),
        ("{date:}", ("has no part of a date",)),
        ("{date:x%%}", ("has no part of a date",)),
    ],
)
def test_what_is_no_date(name: str, words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as error:
        dates.expand(name, DAY)
    assert all(word in str(error.value) for word in words)


class TestLaws:
    @settings(max_examples=40)
    @given(st.text(), DAYS)
    def test_what_is_escaped_comes_back(self, name: str, day: date) -> None:
        assert dates.expand(dates.escape(name), day) == name
        assert not dates.has_date(dates.escape(name))

    @settings(max_examples=40)
    @given(st.text(st.characters(exclude_characters="{}")), DAYS)
    def test_a_name_without_braces_stays(self, name: str, day: date) -> None:
        assert dates.expand(name, day) == name

    @settings(max_examples=40)
    @given(st.text(), st.text(), DAYS)
    def test_a_date_changes_nothing_around_it(self, before: str, after: str, day: date) -> None:
        name = f"{dates.escape(before)}{{date}}{dates.escape(after)}"
        assert dates.expand(name, day) == f"{before}{day.isoformat()}{after}"
        assert dates.has_date(name)
        assert dates.before_date(name) == before

    @settings(max_examples=40)
    @given(DAYS, st.integers(0, 400))
    def test_two_days_have_two_names(self, day: date, more: int) -> None:
        names = {dates.expand("{date:%Y%m%d}", each) for each in (day, day + timedelta(more))}
        assert len(names) == (2 if more else 1)

    @settings(max_examples=40)
    @given(DAYS)
    def test_fields_are_as_formatted(self, day: date) -> None:
        assert dates.expand("{yesterday}", day + timedelta(1)) == f"{day:%Y-%m-%d}"
        assert dates.expand("{last_month:%Y%m}", day) < dates.expand("{month:%Y%m}", day)


class TestDays:
    def test_what_a_day_can_be(self) -> None:
        assert dates.parse_day("date", "2026-11-20", DAY) == date(2026, 11, 20)
        assert dates.parse_day("date", "today", DAY) == DAY
        assert dates.parse_day("date", "yesterday", DAY) == date(2026, 2, 28)

    @pytest.mark.parametrize("text", ["20261120", "2026-2-1", "2026-02-30", "", "0001-01-01", "x"])
    def test_what_is_no_day(self, text: str) -> None:
        with pytest.raises(UsageError, match="--to="):
            dates.parse_day("to", text, DAY)

    def test_a_range_has_both_ends(self) -> None:
        found = dates.days_between(date(2026, 2, 27), date(2026, 3, 1))
        assert [day.day for day in found] == [27, 28, 1]


def request(**given: Any) -> Request:
    """As the command line without more options merges it."""
    with cli.commands["predict"].make_context("predict", []) as context:
        options = dict(context.params)
    for name in OF_THE_RUN:
        del options[name]
    return read_request({**options, "model": "m", **given}, DAY)


class TestRequest:
    def test_every_name_is_expanded_with_one_date(self) -> None:
        job = request(
            input_file=("a_{date}.csv", "b_{yesterday}.csv"), output_dir="out/{date}",
            rejects_file="{month}.jsonl", receipt_file="{year}.json", model="models/{last_month}",
            baseline="{yesterday}.json", model_store="s3://models/{year}/",
        ).job()  # fmt: skip
        assert job.input_file == ("a_2026-03-01.csv", "b_2026-02-28.csv")
        assert (job.output_dir, job.model) == ("out/2026-03-01", "models/2026-02")
        assert (job.baseline, job.model_store) == ("2026-02-28.json", "s3://models/2026/")
        assert (job.rejects_file, job.receipt_file) == ("2026-03.jsonl", "2026.json")
        assert job.date == "2026-03-01"
        assert request(input_file=("a.csv",), output_file="{date}.csv").job().date == "2026-03-01"

    def test_without_a_date_there_is_none(self) -> None:
        assert request(input_file=("a{{date}}.csv",)).job().date is None

    def test_prefix_and_columns_are_no_names_of_files(self) -> None:
        assert request(input_file=("a.csv",), prefix="{x}").job().prefix == "{x}"

    def test_a_range_is_a_job_for_each_day(self) -> None:
        found = request(input_file=("{date}.csv",), **{"from": "2026-02-28", "to": "today"})
        assert found.ranged
        assert [job.input_file for job in found.jobs()] == [
            ("2026-02-28.csv",),
            ("2026-03-01.csv",),
        ]

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"date": "2026-01-01", "input_file": ("a.csv",)}, "no name of a file has a date"),
            (
                {"from": "2026-01-01", "to": "today", "input_file": ("a.csv",)},
                "--from and --to: no name",
            ),
            ({"from": "2026-01-01"}, "go together"),
            ({"to": "2026-01-01"}, "go together"),
            ({"from": "today", "to": "yesterday"}, "is after"),
            ({"from": "today", "to": "today", "date": "today"}, "exclude each other"),
            ({"date": "tomorrow"}, "--date=tomorrow"),
        ],
    )
    def test_what_contradicts_itself(self, given: dict[str, Any], words: str) -> None:
        with pytest.raises(UsageError, match=words):
            request(**{"input_file": ("a_{date}.csv",), **given})

    def test_a_file_that_exists_is_taken_as_it_is_called(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for name in ("a{b}.csv", "{{b}}.csv", "{date}.csv"):
            Path(name).touch()
        given = request(input_file=("a{b}.csv", "{{b}}.csv", "{date}.csv")).job().input_file
        assert given == ("a{b}.csv", "{{b}}.csv", "2026-03-01.csv")
        with pytest.raises(UsageError, match=r"\{c\} is no date"):
            request(input_file=("a{c}.csv",)).job()

    def test_a_template_can_be_given_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("BATCHPREDICT_DEFAULT_MODEL", "a{b}/model")
        asked = request(input_file=("{date}.csv",), model=None)
        template = asked.template(asked.job())
        assert (template.input_file, template.model) == (("{date}.csv",), "a{{b}}/model")
        assert template.date is None


def test_a_job_file_in_a_directory_with_braces(tmp_path: Path) -> None:
    """Only what stands in the job file can have a date; the receipt says which."""
    place = tmp_path / "in{date}"
    place.mkdir()
    models.write_text_model(place / "model")
    (place / "a_2026-11-20.csv").write_text("text\ngood\n")
    (place / "night.toml").write_text(
        'input_file = "a_{date}.csv"\noutput_file = "b_{date:%d}.csv"\nmodel = "model"\n'
        "date = 2026-11-20\n"
    )
    done = run("--job", place / "night.toml", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    options = receipt(place / "b_20.csv.receipt.json")["options"]
    assert options["date"] == "2026-11-20"
    assert options["input_file"] == [os.fspath(place / "a_2026-11-20.csv")]


def test_today_is_the_local_day(tmp_path: Path) -> None:
    """14 hours ahead of UTC it is another day than 12 hours behind it, whatever the hour."""
    models.write_text_model(tmp_path / "model")
    common = ("--input_file=x_{date}.csv", "--model=model", "--if_missing=skip")
    told = []
    for zone in ("AHEAD-14", "BEHIND+12"):
        done = run(*common, cwd=tmp_path, env={"TZ": zone})
        told.append(done.stdout)
        assert done.returncode == 0, done.stderr
    assert told[0] != told[1]
    assert all(b"x_20" in text for text in told)
