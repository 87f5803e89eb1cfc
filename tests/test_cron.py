"""Every entry of cron/ is read as cron reads it and run as cron runs it."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.stand_in import CHECKOUT, write_command

FILES = sorted((CHECKOUT / "cron").glob("*.crontab"))
# What the head of a file says is to be edited, and the name of the command there.
PLACES = {
    "nightly.crontab": "/opt/batchpredict/bin/batchpredict",
    "flock.crontab": "/opt/batchpredict-venv/bin",
}
MODEL = CHECKOUT / "examples" / "models" / "relevance-linear"

MONTHS = {
    "jan": 1, "feb": 2, "mar": 3, "apr": 4, "may": 5, "jun": 6,
    "jul": 7, "aug": 8, "sep": 9, "oct": 10, "nov": 11, "dec": 12,
}  # fmt: skip
DAYS = {"sun": 0, "mon": 1, "tue": 2, "wed": 3, "thu": 4, "fri": 5, "sat": 6}
FIELDS: list[tuple[str, int, int, dict[str, int]]] = [
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of month", 1, 31, {}),
    ("month", 1, 12, MONTHS),
    ("day of week", 0, 7, DAYS),
]
VARIABLE = re.compile(r"""([A-Za-z_]\w*)\s*=\s*("[^"]*"|'[^']*'|.*)""")
# What an entry that is left alone writes, and where its log goes (%: the log is dated).
RESULTS = {
    "--input_file=~/data.csv": ("data.scored.csv", "log.txt"),
    "--job=~/nightly.toml": ("nightly.out.csv", "nightly.log"),
    "--input_file='~/exports/*.csv'": ("scored/monday.csv", "scored-*.log"),
    "--input_file=~/incoming.csv": ("incoming.parquet", "incoming.log"),
    "--input_file=~/archive.csv.gz": ("archive.scored.csv.gz", "archive.log"),
}


@dataclass(frozen=True)
class Entry:
    """A line that runs something: `fields` as allowed values, `command` as the shell gets it."""

    fields: tuple[frozenset[int], ...]
    command: str


@dataclass(frozen=True)
class Crontab:
    variables: dict[str, str]
    entries: tuple[Entry, ...]


def parse_field(text: str, name: str, low: int, high: int, names: dict[str, int]) -> frozenset[int]:
    """A list of `*`, N or N-M, each but N with an optional /STEP; a name stands for a number."""
    allowed: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"(?:(\*)|(\w+)(?:-(\w+))?)(?:/(\d+))?", part)
        if not found:
            raise ValueError(f"{name}: {part!r} is no value, range or step")
        star, first, last, step = found.groups()
        if step and not (star or last):
            raise ValueError(f"{name}: {part!r} has a step without a range")
        if step and not 1 <= int(step) <= high:
            raise ValueError(f"{name}: {part!r} has a step out of range")
        ends = [str(low), str(high)] if star else [first, last or first]
        bounds = [parse_value(end, names) for end in ends]
        if not low <= bounds[0] <= bounds[1] <= high:
            raise ValueError(f"{name}: {part!r} is not within {low}-{high}")
        allowed.update(range(bounds[0], bounds[1] + 1, int(step or 1)))
    return frozenset(allowed)


def parse_value(text: str, names: dict[str, int]) -> int:
    if text.lower() in names:
        return names[text.lower()]
    if not text.isdecimal():
        raise ValueError(f"{text!r} is neither a number nor a name")
    return int(text)


def parse_command(text: str) -> str:
    if re.search(r"(?<!\\)%", text):
        raise ValueError(f"an unescaped % ends the command and begins its input: {text!r}")
    return text.replace(r"\%", "%")


def parse_crontab(text: str) -> Crontab:
    """As crontab(5) says. Stricter: a variable is set once and above all entries, as cron passes
    those below an entry not to it."""
    if not text.endswith("\n"):
        raise ValueError("the last line has no end; cron refuses the file")
    if "\r" in text or "\t" in text:
        raise ValueError("a carriage return or a tab")
    variables: dict[str, str] = {}
    entries: list[Entry] = []
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if variable := VARIABLE.fullmatch(line.strip()):
            name, value = variable.groups()
            if name in variables or entries:
                raise ValueError(f"{name} is set twice or below an entry")
            variables[name] = value[1:-1] if value[:1] in ("'", '"') else value
            continue
        *fields, command = line.split(maxsplit=5)
        if len(fields) != 5:
            raise ValueError(f"fewer than five fields and a command: {line!r}")
        values = (parse_field(f, *spec) for f, spec in zip(fields, FIELDS, strict=True))
        entries.append(Entry(tuple(values), parse_command(command)))
    return Crontab(variables, tuple(entries))


CASES = [
    pytest.param(path, index, id=f"{path.stem}-{index + 1}")
    for path in FILES
    for index in range(len(parse_crontab(path.read_text(encoding="utf-8")).entries))
]


def write_rows(path: Path, rows: list[tuple[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("id", "text"), *rows])


def make_home(home: Path) -> None:
    rows = [("1", "A chess game, with hints"), ("2", "Ein Programm für Rechnungen"), ("3", "Игра")]
    for name in ("data.csv", "incoming.csv", "exports/monday.csv", "exports/tuesday.csv"):
        write_rows(home / name, rows)
    (home / "archive.csv.gz").write_bytes(gzip.compress((home / "data.csv").read_bytes()))
    (home / "nightly.toml").write_text(
        'input_file = "~/data.csv"\noutput_file = "nightly.out.csv"\nkeep = ["id"]\n'
    )
    (home / "model").symlink_to(MODEL)


def test_both_files_are_there() -> None:
    assert {path.name for path in FILES} == set(PLACES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
class TestText:
    def test_is_a_crontab(self, path: Path) -> None:
        crontab = parse_crontab(path.read_text(encoding="utf-8"))
        assert crontab.entries
        assert {"SHELL", "PATH", "MAILTO"} <= set(crontab.variables)
        for value in crontab.variables.values():
            assert not set(value) & set("$~"), "cron expands nothing in a value"

    def test_one_path_is_to_be_edited(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        assert text.count(PLACES[path.name]) == 1
        assert "/home/" not in text

    def test_a_comment_stands_above_every_entry(self, path: Path) -> None:
        lines = path.read_text(encoding="utf-8").splitlines()
        for above, line in itertools.pairwise(lines):
            if line[:1] not in ("", "#") and not VARIABLE.fullmatch(line):
                assert above.startswith("# ")


def test_the_entry_of_the_first_request_is_there() -> None:
    text = (CHECKOUT / "cron" / "nightly.crontab").read_text(encoding="utf-8")
    assert "\n0 0 * * * $BATCHPREDICT --input_file=~/data.csv >~/log.txt\n" in text
    assert "\nBATCHPREDICT_NO_BOOTSTRAP=1\n" in text


@pytest.mark.parametrize(("path", "index"), CASES)
def test_an_entry_run_as_cron_runs_it(tmp_path: Path, path: Path, index: int) -> None:
    home = tmp_path / "home"
    home.mkdir()
    make_home(home)
    wrapped = path.name == "nightly.crontab"
    command = write_command(tmp_path / "bin" / "batchpredict", MODEL if wrapped else None)
    edited = str(command if wrapped else command.parent)
    text = path.read_text(encoding="utf-8").replace(PLACES[path.name], edited)
    crontab = parse_crontab(text)
    entry = crontab.entries[index]

    environ = {"HOME": str(home), "LOGNAME": "someone", "SHELL": "/bin/sh", "PATH": "/usr/bin:/bin"}
    environ |= crontab.variables
    settings = [f"{name}={value}" for name, value in environ.items()]
    finished = subprocess.run(
        ["/usr/bin/env", "-i", *settings, environ["SHELL"], "-c", entry.command],
        cwd=home, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip

    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")
    (output, log) = next(RESULTS[key] for key in RESULTS if key in entry.command)
    scored = home / output
    receipt = json.loads((home / f"{output}.receipt.json").read_text(encoding="utf-8"))
    assert receipt["counts"]["scored"] == 3
    assert len(predictions(scored)) == 3
    assert set(predictions(scored)) <= {"game", "other"}
    (written,) = home.glob(log)
    assert f"output: {scored}" in written.read_text(encoding="utf-8")
    assert not [file for file in home.rglob("*") if ".failed." in file.name]
    assert not list(home.glob("~*")), "a ~ was taken for a name"


def predictions(scored: Path) -> list[str]:
    if scored.suffix == ".parquet":
        return [str(value) for value in pq.read_table(scored)["prediction"].to_pylist()]
    data = scored.read_bytes()
    text = (gzip.decompress(data) if scored.suffix == ".gz" else data).decode()
    return [row["prediction"] for row in csv.DictReader(text.splitlines())]


# What an entry that is skipped while its lock is taken has in it: the lock, and its exit status.
SKIPPED = {"flock -n -E 75 ~/.scores.lock ": 75, "flock -n ~/.incoming.lock ": 1}


@pytest.mark.parametrize("lock", SKIPPED)
def test_a_start_that_finds_the_lock_taken_is_skipped(tmp_path: Path, lock: str) -> None:
    (command,) = (command for command in commands() if command.startswith(lock))
    (log,) = (log for key, (_, log) in RESULTS.items() if key in command)
    (tmp_path / log).write_text("of the run that works\n", encoding="utf-8")
    held = ["flock", str(tmp_path / lock.split("~/")[1].strip()), "/bin/sh", "-c", command]
    finished = subprocess.run(
        held, cwd=tmp_path, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (finished.returncode, finished.stdout, finished.stderr) == (SKIPPED[lock], "", "")
    assert (tmp_path / log).read_text(encoding="utf-8") == "of the run that works\n"


def test_every_entry_that_is_skipped_is_tested() -> None:
    skipped = [command for command in commands() if "flock -n" in command]
    assert len(skipped) == len(SKIPPED)
    assert all(command.startswith(tuple(SKIPPED)) for command in skipped)


def commands() -> list[str]:
    return [
        entry.command
        for path in FILES
        for entry in parse_crontab(path.read_text(encoding="utf-8")).entries
    ]


class TestParser:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("*/20", {0, 20, 40}),
            ("1,5-9/2", {1, 5, 7, 9}),
            ("59", {59}),
        ],
    )
    def test_minutes(self, text: str, expected: set[int]) -> None:
        assert parse_field(text, *FIELDS[0]) == expected

    def test_names(self) -> None:
        assert parse_field("mon-FRI", *FIELDS[4]) == {1, 2, 3, 4, 5}
        assert parse_field("jan,dec", *FIELDS[3]) == {1, 12}

    @pytest.mark.parametrize("text", ["60", "5-1", "", "1,", "*/0", "5/2", "mon", "-1", "1-2-3"])
    def test_what_is_no_field(self, text: str) -> None:
        with pytest.raises(ValueError):  # noqa: PT011 - any of its messages
            parse_field(text, *FIELDS[0])

    def test_percent(self) -> None:
        assert parse_command(r"date +\%F") == "date +%F"
        with pytest.raises(ValueError, match="unescaped"):
            parse_command("date +%F")
        with pytest.raises(ValueError, match="no end"):
            parse_crontab("* * * * * true")
