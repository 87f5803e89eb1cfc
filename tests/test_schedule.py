"""Entries of a crontab and units of systemd, as cron, a shell and systemd read them."""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from click import ClickException
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batchpredict.cli import cli
from batchpredict.errors import BatchPredictError, OutputNotCreatable, UsageError
from batchpredict.job import Job
from batchpredict.ops import crontab, schedule, units
from batchpredict.ops.crontab import Call
from batchpredict.ops.timing import parse_timing
from tests.commands import CHECKOUT, environment
from tests.test_cron import FIELDS, parse_crontab, parse_field

NOW = datetime(2026, 11, 22, 12, 34, 56, tzinfo=UTC)
NOON = parse_timing("0 12 * * *")
systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze (package systemd) is missing"
)


def write_program(path: Path) -> Path:
    """As pip installs the command."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"#!{sys.executable} -P\nimport sys\nsys.path.insert(0, {str(CHECKOUT)!r})\n"
        "from batchpredict.__main__ import run\nrun()\n"
    )
    path.chmod(0o755)
    return path


# --- when


def field(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    span = st.tuples(number, number).map(lambda ends: f"{min(ends)}-{max(ends)}")
    base = st.one_of(st.just("*"), span)
    step = st.tuples(base, st.integers(1, high or 1)).map(lambda two: f"{two[0]}/{two[1]}")
    term = st.one_of(base, step, number.map(str))
    return st.one_of(term, st.lists(term, min_size=1, max_size=3).map(",".join))


EXPRESSIONS = st.tuples(*(field(low, high) for _, low, high, _ in FIELDS)).map(" ".join)


@functools.lru_cache(1)
def parsed(expression: str) -> tuple[frozenset[int], ...]:
    return tuple(parse_field(t, *spec) for t, spec in zip(expression.split(), FIELDS, strict=True))


def matches(expression: str, when: datetime) -> bool:
    """As crontab(5) says."""
    texts = expression.split()
    minute, hour, day, month, week = parsed(expression)
    days = [when.day in day, bool({when.isoweekday(), when.isoweekday() % 7} & week)]
    either = not (texts[2].startswith("*") or texts[4].startswith("*"))
    fits = any(days) if either else all(days)
    return when.minute in minute and when.hour in hour and when.month in month and fits


@settings(max_examples=40)
@given(EXPRESSIONS)
@example("* * * * 1-1/1")
@example("5-05/3 * * * *")
@example("0 0 13 * 5")
@example("0 0 */2 * 1")
@example("59 23 31 12 *")
def test_the_next_time_is_one_and_none_is_left_out(expression: str) -> None:
    try:
        timing = parse_timing(expression)
    except UsageError:  # 30 February
        assert not any(
            matches(expression, NOW.replace(month=1, day=1, hour=h, minute=m) + timedelta(days=d))
            for d in range(366) for h in (0, 12) for m in (0, 30)
        )  # fmt: skip
        return
    first, second = timing.next(NOW, 2)
    assert NOW < first < second
    assert matches(expression, first)
    assert matches(expression, second)
    minutes = min(1500, int((first - NOW).total_seconds() // 60))
    begin = NOW.replace(second=0)
    between = (begin + timedelta(minutes=count) for count in range(1, minutes))
    assert not any(matches(expression, when) for when in between if when < first)


@pytest.mark.parametrize(
    "text",
    ["", "* * * *", "* * * * * *", "60 * * * *", "5/2 * * * *", "0 0 L * *", "0 0 LW * *",
     "0 0 * * 5L", "0 0 * * 5#2", "0 0 * * fri-mon", "0 0 30 2 *", "0 0 32 1 *", "1, * * * *",
     "@daly", "*/0 * * * *", "٣ * * * *"],
)  # fmt: skip
def test_what_not_every_cron_reads(text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_timing(text)
    assert repr(text) in str(error.value)


def test_nicknames() -> None:
    (when,) = parse_timing("@daily").next(NOW, 1)
    assert when == datetime(2026, 11, 23, tzinfo=UTC)
    assert parse_timing(" @Reboot ").next(NOW, 3) == []
    assert parse_timing("0  2 * *   mon").text == "0 2 * * mon"


def test_clocks_that_are_changed() -> None:
    """As Debian's cron: what would be left out runs right after, nothing runs twice."""
    zone = ZoneInfo("Europe/Berlin")
    timing = parse_timing("30 2 * * *")
    spring = timing.next(datetime(2026, 3, 28, 12, tzinfo=zone), 2)
    assert [f"{when:%d %H:%M %Z}" for when in spring] == ["29 03:00 CEST", "30 02:30 CEST"]
    autumn = timing.next(datetime(2026, 10, 24, 12, tzinfo=zone), 2)
    assert [f"{when:%d %H:%M %Z}" for when in autumn] == ["25 02:30 CEST", "26 02:30 CET"]


@systemd
@pytest.mark.parametrize(
    "text",
    ["0 2 * * *", "*/20 6-22 * * *", "15 1 * * mon-fri", "0 3 1 * *", "0 0 13 * 5", "0 0 */2 * 1",
     "7,30-40/5 * 29 2 *", "* * * * 7", "@weekly"],
)  # fmt: skip
def test_systemd_takes_the_same_times(text: str) -> None:
    timing = parse_timing(text)
    found: set[datetime] = set()
    for expression in timing.on_calendar():
        shown = subprocess.run(
            ["systemd-analyze", "calendar", "--iterations=8", f"--base-time={NOW:%F %T}",
             expression],
            env={"PATH": os.environ["PATH"], "TZ": "UTC", "LC_ALL": "C"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        for line in shown.stdout.splitlines():
            label, _, rest = line.strip().partition(": ")
            if label == "Next elapse" or label.startswith("Iter. #"):
                when = datetime.strptime(rest.strip(), "%a %Y-%m-%d %H:%M:%S UTC")
                found.add(when.replace(tzinfo=UTC))
    assert sorted(found)[:8] == timing.next(NOW, 8)


# --- the entry

TEXTS = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters="\\"))


@settings(max_examples=60)
@given(st.lists(TEXTS, min_size=1, max_size=4), TEXTS)
@example(["it's", 'a "b" $HOME `c` %Y%m%d', "~", "#", "*", "", "{date:%d}", "é x"], "a %d")
def test_a_shell_gets_what_was_meant(
    tmp_path_factory: pytest.TempPathFactory, arguments: list[str], value: str
) -> None:
    """By way of cron, which takes a bare % for the end of the command."""
    log = tmp_path_factory.mktemp("log") / "it's 100%.log"
    call = Call("x", ["/usr/bin/printf", "%s|", "<", *arguments], [("A", value)])
    (entry,) = parse_crontab(crontab.line(NOON, call, str(log)) + "\n").entries
    done = subprocess.run(
        ["/bin/sh", "-c", entry.command], cwd=log.parent, capture_output=True, env={"LC_ALL": "C"}
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert log.read_bytes().decode() == "".join(f"{each}|" for each in ["<", *arguments])
    assert [file.name for file in log.parent.iterdir()] == [log.name]


def test_what_a_crontab_cannot_hold() -> None:
    for text in ("a\\b", "a\nb", "a\x1bb"):
        with pytest.raises(UsageError, match="job file"):
            crontab.line(NOON, Call("x", ["/bin/true", text], []), "/tmp/x.log")
    with pytest.raises(UsageError, match=r"has \d+ bytes, and cron takes 990"):
        crontab.line(NOON, Call("x", ["/bin/true", "é" * 480], []), "/tmp/x.log")


LINES = st.binary().filter(lambda line: b"\n" not in line and b"schedule: " not in line)


@given(st.lists(LINES), st.sampled_from([b"", b"\n"]))
def test_no_other_line_is_touched(lines: list[bytes], end: bytes) -> None:
    before = b"\n".join(lines) + (end if lines else b"")
    entry = crontab.line(NOON, Call("x", ["/bin/true"], []), "/tmp/x.log")
    after = crontab.with_entry(before, "x", entry)
    assert after == crontab.with_entry(after, "x", entry)
    assert crontab.entries(after) == {"x": entry}
    ended = not before or before.endswith(b"\n")
    assert crontab.without_entry(after, "x") == before + (b"" if ended else b"\n")


def test_an_entry_is_known_by_its_name() -> None:
    def entry(name: str, when: str = "0 1 * * *") -> str:
        return crontab.line(parse_timing(when), Call(name, ["/bin/true"], []), "/tmp/x.log")

    content = b"MAILTO=me\n"
    for name in ("a", "a.b", "b"):
        content = crontab.with_entry(content, name, entry(name))
    disabled = b"#" + entry("a").encode() + b"\n"
    content = disabled + content
    changed = crontab.with_entry(content, "a", entry("a", "@daily"))
    assert changed == content.replace(b"\n0 1 * * *", b"\n@daily", 1)
    assert list(crontab.entries(crontab.without_entry(changed, "a"))) == ["a.b", "b"]
    assert crontab.without_entry(changed, "a").startswith(disabled)


def test_a_crontab_with_carriage_returns() -> None:
    """As an editor of another system leaves it: cron runs such an entry, so it is ours still."""
    entry = crontab.line(NOON, Call("x", ["/bin/true"], []), "/tmp/x.log")
    lines = [
        b"MAILTO=me\r",
        b"",
        b"0 1 * * * odd \r\r",
        os.fsencode(entry) + b"\r",
        b"# end\r",
        b"",
    ]
    before = b"\n".join(lines)
    assert crontab.entries(before) == {"x": entry}
    assert crontab.with_entry(before, "x", entry) == before
    changed = crontab.with_entry(before, "x", "@daily" + entry.removeprefix("0 12 * * *"))
    assert changed == before.replace(b"\n0 12 * * *", b"\n@daily")
    assert crontab.without_entry(before, "x") == b"\n".join([*lines[:3], *lines[4:]])


# --- the command

STAND_IN = """#!/bin/sh
# A crontab(1) whose table is a file beside it.
table=${0%/*}/table
case $1 in
  -l) if [ -e "$table" ]; then exec cat "$table"; else echo "no crontab for me" >&2; exit 1; fi ;;
  -r) exec rm "$table" ;;
  -) exec cat >"$table" ;;
esac
"""


class Desk:
    """A user's directory with the installed command and a crontab."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.program = write_program(place / "bin" / "batchpredict")
        tool = place / "bin" / "crontab"
        tool.write_text(STAND_IN)
        tool.chmod(0o755)
        self.table = place / "bin" / "table"
        (place / "nightly.toml").write_text(
            'input_file = "users_{date}.csv"\nmodel = "model"\noutput_file = "o_{date}.csv"\n'
        )

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.program), "schedule", *arguments],
            cwd=self.place, capture_output=True, text=True, timeout=60,
            env=environment(
                PATH=f"{self.place / 'bin'}:{os.environ['PATH']}", HOME=str(self.place), **variables
            ),
        )  # fmt: skip


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_the_entry_is_printed_and_told_in_words(desk: Desk) -> None:
    done = desk.run("0 2 * * *", "--job", "nightly.toml", "--max-rejects=5%", "--no-progress")
    place = desk.place
    assert done.stdout == (
        f"0 2 * * * BATCHPREDICT_NO_BOOTSTRAP=1 {place}/bin/batchpredict predict "
        f"--job={place}/nightly.toml --max_rejects=5\\% --no_progress "
        f">>{place}/nightly.log # batchpredict schedule: nightly\n"
    )
    words, *times = done.stderr.splitlines()
    assert words.startswith("At 02:00 every day (")
    assert len(times) == 3
    assert all(" 02:00 " in time for time in times)


def test_names_are_absolute_and_dates_stay(desk: Desk) -> None:
    done = desk.run(
        "@hourly", "--input_file=in/a_{date:%Y}.csv", "--input_file", "~/b.csv", "--model=m@live",
        "--output_dir=.", "--keep=id,text", "--column=text=body", "--quiet", "--log_file=x.log",
        "--date=yesterday", BATCHPREDICT_VENV="venv",
    )  # fmt: skip
    place = desk.place
    assert done.stdout == (
        f"@hourly BATCHPREDICT_NO_BOOTSTRAP=1 BATCHPREDICT_VENV={place}/venv {desk.program} "
        "predict "
        f"'--input_file={place}/in/a_{{date:\\%Y}}.csv' --input_file={place}/b.csv --model=m@live "
        f"--output_dir={place} --keep=id,text --column=text=body --quiet --date=yesterday "
        f">>{place}/x.log # batchpredict schedule: a\n"
    ), done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--job=nightly.toml"], "when?"),
        (["0 2 * * *", "--job=nightly.toml", "--input_file=-"], "--input_file=-"),
        (["0 2 * * *", "--job=nightly.toml", "--output_file=-"], "--output_file=-"),
        (["0 2 * * *", "--job=nightly.toml", "--date=2026-11-20"], "a fixed day"),
        (["0 2 * * *", "--job=nightly.toml", "--from=today"], "a fixed day"),
        (["0 2 * * *", "--job=nightly.toml", "--limit=x"], "--limit"),
        (["0 2 * * *", "--job=nightly.toml", "--name=a b"], "--name=a b"),
        (["0 2 * * *", "--job=nightly.toml", "--output_dir=x"], "exclude each other"),
        (["0 2 * * *", "--job=nightly.toml", "--log_file=no/x.log"], "is no directory"),
        (["0 2 * * *", "--input_file=a.csv"], "no model"),
        (["0 2 * * *", "--job=nightly.toml", "--on_arrival"], "--systemd"),
        (["0 2 * * *", "--job=nightly.toml", "--on_arrival", "--systemd"], "--if_done=skip"),
        (["--remove", "--name=x"], "there are: none"),
        (["--remove", "--systemd", "--name=x"], "there are: none"),
    ],
)
def test_what_cannot_be_scheduled(
    desk: Desk, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(desk.place)
    monkeypatch.setenv("PATH", str(desk.place / "bin"), prepend=":")
    context = cli.make_context("batchpredict", ["schedule", *arguments])
    with pytest.raises((BatchPredictError, ClickException)) as error, context:
        cli.invoke(context)
    shown = error.value
    text = shown.format_message() if isinstance(shown, ClickException) else str(shown)
    assert words in text
    assert capsys.readouterr().out == ""
    assert not desk.table.exists()


def test_what_will_not_be_in_the_environment(desk: Desk) -> None:
    done = desk.run("0 2 * * *", "--job=nightly.toml", BATCHPREDICT_SCORES="all")
    assert (done.returncode, done.stdout) == (2, "")
    assert "BATCHPREDICT_SCORES is set here" in done.stderr
    (desk.place / "nightly.toml").write_text("input_file = 'a.csv'\ninstall = true\n")
    done = desk.run("0 2 * * *", "--job=nightly.toml")
    assert (done.returncode, desk.table.exists()) == (78, False)


def test_installed_twice_and_removed(desk: Desk) -> None:
    """Of a crontab of odd lines no byte is another."""
    odd = [
        b"# caf\xe9, latin-1", b"", b"\t ", b'FOO = "a b" ', b"MAILTO=''", b"0 1 * * *  a % b % c",
        b"@reboot /bin/true", b"#0 2 * * * x # batchpredict schedule: nightly",
        b"5 4 * * sun\ttab\tin it", b"0 0 * * * echo '# batchpredict schedule:'", b"  # indented",
    ]  # fmt: skip
    before = b"\n".join(itertools.islice(itertools.cycle(odd), 55)) + b"\n"
    desk.table.write_bytes(before)
    when = ("0 2 * * *", "--job=nightly.toml", "--install")
    assert "added to the crontab: nightly" in desk.run(*when).stdout
    first = desk.table.read_bytes()
    assert first.startswith(before)
    assert first.count(b"\n") == before.count(b"\n") + 1
    again = desk.run(*when)
    assert ("is in the crontab already" in again.stdout, again.stderr) == (True, "")
    assert desk.table.read_bytes() == first
    assert "replaced in the crontab: 0 2 * * *" in desk.run("0 3 * * *", *when[1:]).stdout
    assert desk.table.read_bytes() == first.replace(
        b"\n0 2 * * * BATCHPREDICT", b"\n0 3 * * * BATCHPREDICT"
    )
    (listed,) = desk.run("--list").stdout.splitlines()
    assert listed.startswith("nightly: next ")
    assert " 03:00 " in listed
    assert desk.run("--remove", "--job=nightly.toml").returncode == 0
    assert desk.table.read_bytes() == before
    assert desk.run("--remove", "--name=nightly").returncode == 2


def test_the_only_entry_removed_leaves_no_crontab(desk: Desk) -> None:
    assert desk.run("0 2 * * *", "--job=nightly.toml", "--install").returncode == 0
    assert desk.table.exists()
    assert desk.run("--remove", "--name=nightly").returncode == 0
    assert not desk.table.exists()
    assert desk.run("--list").stdout.startswith("no entry")
    assert desk.run("--list", "--systemd").stdout.startswith("no units")


# --- units


def words_of(line: str) -> list[str]:
    """A command line as systemd.service(5) says: quotes, C escapes, %% and $$."""
    words, word, quoted, index = [], "", False, 0
    inside = False
    while index < len(line):
        char = line[index]
        if char == "\\":
            word, index = word + line[index + 1], index + 1
        elif char == '"':
            quoted, inside = not quoted, True
        elif char == " " and not quoted:
            words.append(word)
            word, inside = "", False
        else:
            if char in "%$" and words:
                assert line[index + 1] == char
                index += 1
            word, inside = word + char, True
        index += 1
    assert not quoted
    return [*words, word] if inside or word else words


@given(st.lists(TEXTS.map(lambda text: f"--x={text}")))
def test_systemd_gets_what_was_meant(arguments: list[str]) -> None:
    found = units.units(NOON, Call("x", ["/bin/true", *arguments], []))["batchpredict-x.service"]
    (line,) = [each for each in found.split("\n") if each.startswith("ExecStart=")]
    assert words_of(line.removeprefix("ExecStart=")) == ["/bin/true", *arguments]


def planned(place: Path) -> schedule.Schedule:
    program = write_program(place / "my bin" / "batchpredict")
    call = Call("drop", [str(program), "predict", "--input_file=/a {date:%d}"], [("A", "b c%")])
    return schedule.Schedule(parse_timing("0 0 13 * 5"), call, None, str(place))


@systemd
def test_systemd_has_nothing_to_say(tmp_path: Path) -> None:
    files = []
    for name, text in planned(tmp_path).units().items():
        files.append(tmp_path / name)
        files[-1].write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, files)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    files[0].write_text(files[0].read_text().replace("ExecStart=", "ExecStart=/nowhere"))
    broken = subprocess.run(["systemd-analyze", "verify", *map(str, files)], capture_output=True)
    assert broken.returncode != 0


@systemd
@pytest.mark.parametrize(
    "unit", sorted((CHECKOUT / "cron").glob("*.service")), ids=lambda u: u.stem
)
def test_the_units_to_copy(unit: Path, tmp_path: Path) -> None:
    """They are what schedule writes, and systemd takes them once the path is edited."""
    program = write_program(tmp_path / "batchpredict")
    files = sorted((CHECKOUT / "cron").glob(f"{unit.stem}.*"))
    for file in files:
        text = file.read_text().replace("/opt/batchpredict/bin/batchpredict", str(program))
        (tmp_path / file.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", *(str(tmp_path / file.name) for file in files)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_units_written_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    place = tmp_path / "config" / "systemd" / "user"
    told = list(schedule.install_units(planned(tmp_path)))
    names = ["batchpredict-drop.path", "batchpredict-drop.service", "batchpredict-drop.timer"]
    assert sorted(file.name for file in place.iterdir()) == names
    assert any("enable --now batchpredict-drop.timer batchpredict-drop.path" in t for t in told)
    assert next(schedule.install_units(planned(tmp_path))).startswith("all there already")
    assert units.names() == ["drop"]
    (place / names[2]).write_text("# mine\n")
    with pytest.raises(OutputNotCreatable, match="not written by schedule"):
        list(schedule.install_units(planned(tmp_path)))
    with pytest.raises(OutputNotCreatable, match="not written by schedule"):
        list(schedule.remove_units("drop"))
    assert len(list(place.iterdir())) == 3
    (place / names[2]).unlink()
    assert len(list(schedule.remove_units("drop"))) == 5
    assert list(place.iterdir()) == []


def job_of(place: Path, option: str, name: str = "drop") -> schedule.Schedule:
    return schedule.Schedule(NOON, Call(name, [str(place / "b p"), "predict", option], []))


@pytest.mark.parametrize("option", ["--job=/etc/drop.toml", '--input_file=/a $b/100% "x\\.csv'])
def test_units_of_another_job_are_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    one, other = job_of(tmp_path, option), job_of(tmp_path, "--input_file=/b/drop.csv")
    list(schedule.install_units(one, is_named=False))
    assert next(schedule.install_units(one, is_named=False)).startswith("all there already")
    file = units.directory() / "batchpredict-drop.service"
    before = file.read_bytes()
    with pytest.raises(UsageError) as error:
        list(schedule.install_units(other, is_named=False))
    assert f"batchpredict-drop.service runs {one.call.arguments[-1]}; " in str(error.value)
    assert "--name=OTHER" in str(error.value)
    assert file.read_bytes() == before
    list(schedule.install_units(other, is_named=True))
    assert "/b/drop.csv" in file.read_text()


def test_a_name_that_follows_from_another_job(desk: Desk) -> None:
    """The same with cron and with systemd."""
    (desk.place / "b").mkdir()
    (desk.place / "b" / "nightly.toml").write_bytes((desk.place / "nightly.toml").read_bytes())
    for more in ((), ("--systemd",)):
        first, second = (
            ("0 2 * * *", f"--job={job}", "--install", *more)
            for job in ("nightly.toml", "b/nightly.toml")
        )
        assert desk.run(*first, XDG_CONFIG_HOME=str(desk.place)).returncode == 0
        refused = desk.run(*second, XDG_CONFIG_HOME=str(desk.place))
        assert (refused.returncode, refused.stdout) == (2, "")
        assert f"runs --job={desk.place}/nightly.toml; choose a name" in refused.stderr
        assert refused.stderr.count("\n") == 1


def enable(kind: str, target: str) -> Path:
    """As systemctl does."""
    link = units.directory() / f"{kind}.target.wants" / Path(target).name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)
    return link


def test_what_was_enabled_is_removed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without systemctl, and where the units are gone but for the links."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("PATH", str(tmp_path))
    place = units.directory()
    for is_gone in (False, True):
        list(schedule.install_units(planned(tmp_path)))
        links = [
            enable("timers", str(place / "batchpredict-drop.timer")),
            enable("paths", "../batchpredict-drop.path"),
        ]
        others = [
            enable("timers", str(place / f"batchpredict-a-drop{is_gone}.timer")),
            enable("default", "/etc/systemd/user/batchpredict-drop.timer"),
        ]
        if is_gone:
            for file in place.glob("batchpredict-drop.*"):
                file.unlink()
        told = list(schedule.remove_units("drop"))
        assert not any(link.is_symlink() for link in links)
        assert all(link.is_symlink() for link in others)
        assert all(f"removed: {link}" in told for link in links)
        assert told[-2] == "  systemctl --user stop batchpredict-drop.path batchpredict-drop.timer"
        others[1].unlink()
    with pytest.raises(UsageError, match="no units drop"):
        list(schedule.remove_units("drop"))


def test_where_files_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = Job(input_file=("x",), model="m", if_done="skip")
    for given_name, place in (
        ("drop", "drop"), ("drop/*.csv", "drop"), ("in/{date}/a.csv", "in"), ("in/a_*.csv", "in"),
        ("a.csv", "a.csv"), ("{date}.csv", "."), ("a{{b}}/x*.csv", "a{b}"),
    ):  # fmt: skip
        assert schedule.watched([given_name], job) == str((tmp_path / place).absolute())
    with pytest.raises(UsageError, match="one --input_file"):
        schedule.watched(["a", "b"], job)


def test_names() -> None:
    assert schedule.name_of("/x/nightly.toml", ["a.csv"]) == "nightly"
    assert schedule.name_of(None, ["in/users_{date}.csv"]) == "users"
    assert schedule.name_of(None, ["{date}/a.csv"]) == "predict"
    assert schedule.name_of(None, ["drop/*.csv"]) == "drop"
    assert schedule.name_of(None, ["Käse & Brot.csv"]) == "K-se-Brot"
