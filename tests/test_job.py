"""The job: what is refused, the budget, the job file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchpredict.errors import ConfigInvalid, UsageError
from batchpredict.job import Budget, Job
from batchpredict.jobfile import read_job_file

KNOWN = {"input_file", "output_file", "model", "limit", "column", "keep", "max_rejects"}


def made(**options: object) -> Job:
    return Job(**{"input_file": ("a.csv",), "model": "m", **options})  # type: ignore[arg-type]


def test_a_job_is_frozen_and_has_the_defaults() -> None:
    plain = made()
    assert (plain.keep, plain.scores, plain.on_error, plain.max_rejects) == (
        *("all", "top", "reject", "10%"),
    )
    assert plain.max_record_bytes == 16 * 2**20
    with pytest.raises(dataclasses.FrozenInstanceError):
        plain.limit = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"input_file": ()}, "--input_file"),
        ({"output_file": "a", "output_dir": "b"}, "--output_dir"),
        ({"delimiter": ""}, "--delimiter"),
        ({"delimiter": ";;"}, "--delimiter"),
        ({"delimiter": "ä"}, "--delimiter"),
        ({"delimiter": '"'}, "--delimiter"),
        ({"delimiter": "\n"}, "--delimiter"),
        ({"max_record_bytes": 0}, "--max_record_bytes"),
        ({"max_record_bytes": (1 << 30) + 1}, "--max_record_bytes"),
        ({"batch_rows": 0}, "--batch_rows"),
        ({"batch_tokens": 0}, "--batch_tokens"),
        ({"workers": 0}, "--workers"),
        ({"limit": -1}, "--limit"),
        ({"threshold": 1.1}, "--threshold"),
        ({"threshold": float("nan")}, "--threshold"),
    ],
)
def test_refused(options: dict[str, object], word: str) -> None:
    with pytest.raises(UsageError, match=word) as error:
        made(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "x", "-1", "5.5", "-1%", "101%", "%", "nan%", "inf%", "1/0%"])
def test_budget_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--max_rejects"):
        made(max_rejects=text)


@pytest.mark.parametrize(
    ("text", "rejected", "read", "exceeded"),
    [
        ("0", 0, 0, False),
        ("0", 1, 10, True),
        ("3", 3, 3, False),
        ("3", 4, 1000, True),
        ("0%", 0, 10, False),
        ("0%", 1, 10, True),
        ("100%", 10, 10, False),
        (" 5 % ".strip(), 5, 100, False),
        ("0.1%", 1, 1000, False),
        ("0.1%", 1, 999, True),
    ],
)
def test_budget(text: str, rejected: int, read: int, exceeded: bool) -> None:
    assert made(max_rejects=text).budget.exceeded(rejected, read) is exceeded


@given(st.integers(0, 1000), st.integers(1, 1000))
def test_a_share_that_is_just_reached_is_not_exceeded(permille: int, thousands: int) -> None:
    budget = made(max_rejects=f"{permille / 10}%").budget
    assert isinstance(budget, Budget)
    assert not budget.exceeded(permille * thousands, 1000 * thousands)
    assert budget.exceeded(permille * thousands + 1, 1000 * thousands)


# --- cores


# --- job file


def read(directory: Path, text: str) -> dict[str, object]:
    path = directory / "jobs" / "night.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return read_job_file(str(path), KNOWN)


def test_relative_paths_count_from_the_job_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    found = read(
        tmp_path,
        'input_file = ["a.csv", "/b/*.csv", "~/c.csv", "-", "s3://d/e.csv"]\n'
        'output_file = "../out.csv"\nmodel = "m"\n',
    )
    jobs = tmp_path / "jobs"
    assert found == {
        "input_file": [f"{jobs}/a.csv", "/b/*.csv", "/home/me/c.csv", "-", "s3://d/e.csv"],
        "output_file": f"{jobs}/../out.csv",
        "model": f"{jobs}/m",
    }


def test_values_keep_their_types(tmp_path: Path) -> None:
    found = read(tmp_path, 'limit = 5\nkeep = ["a,b", "c"]\ncolumn = { text = "body" }\n')
    assert found == {"limit": 5, "keep": ["a,b", "c"], "column": (("text", "body"),)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("limitt = 5", ("unknown option 'limitt'", "did you mean 'limit'?")),
        ("max-rejets = 5", ("'max_rejets'", "did you mean 'max_rejects'?")),
        ("zzz = 5", ("unknown option 'zzz'",)),
        ("max_rejects = 5\nmax-rejects = 6", ("twice",)),
        ("limit = 5\nlimit = 6", ("is not TOML", "overwrite")),
        ("column = { text = 5 }", ("column must be a table",)),
        ("model = { a = 'b' }", ("model must not be a table",)),
    ],
)
def test_job_file_refused(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigInvalid) as error:
        read(tmp_path, text)
    assert "night.toml: " in str(error.value)
    assert all(word in str(error.value) for word in words)


def test_job_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"model = '\xe4'")
    for name, word in (
        ("gone.toml", "no such file"),
        ("latin.toml", "is not TOML"),
        ("", "directory"),
    ):
        with pytest.raises(ConfigInvalid, match=word):
            read_job_file(str(tmp_path / name), KNOWN)
