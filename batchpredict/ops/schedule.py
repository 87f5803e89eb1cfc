"""A call of predict to be run at certain times: by cron, or by systemd's timers."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import batchpredict
from batchpredict.dates import before_date
from batchpredict.errors import UsageError
from batchpredict.job import Job
from batchpredict.ops import crontab, units
from batchpredict.ops.crontab import Call
from batchpredict.ops.timing import Timing, parse_timing, system_zone

# How many of the next times are told.
_NEXT = 3
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Schedule:
    """`log_file`: None for ~/NAME.log, with systemd its journal. `watched`: see `units`."""

    timing: Timing
    call: Call
    log_file: str | None = None
    watched: str | None = None

    def line(self) -> str:
        """The crontab entry. Raises UsageError."""
        home = os.path.expanduser(f"~/{self.call.name}.log")  # noqa: PTH111
        return crontab.line(self.timing, self.call, _checked_log(self.log_file or home))

    def units(self) -> dict[str, str]:
        """systemd's units by file name. Raises UsageError."""
        log_file = self.log_file and _checked_log(self.log_file)
        return units.units(self.timing, self.call, log_file, self.watched)


def _checked_log(log_file: str) -> str:
    """Without its directory neither cron nor systemd starts anything."""
    if not Path(log_file).parent.is_dir():
        raise UsageError(f"--log_file={log_file}: {Path(log_file).parent} is no directory")
    return log_file


def call(name: str, options: Sequence[str]) -> Call:
    """This command with `options`, as something that has no environment can run it."""
    variables = [("BATCHPREDICT_NO_BOOTSTRAP", "1")]
    if place := os.environ.get("BATCHPREDICT_VENV"):
        variables.append(("BATCHPREDICT_VENV", os.path.abspath(place)))  # noqa: PTH100 - links stay
    return Call(name, (*_program(), "predict", *options), tuple(variables))


def _program() -> Sequence[str]:
    """What the user has called: the wrapper of this checkout, the installed command, or Python."""
    started = Path(sys.argv[0])
    if started.name == "batchpredict" and (found := shutil.which(sys.argv[0])):
        return [os.path.abspath(found)]  # noqa: PTH100 - links stay
    wrapper = Path(batchpredict.__file__).parents[1] / "bin" / "batchpredict"
    if os.access(wrapper, os.X_OK):
        return [str(wrapper)]
    return [sys.executable, "-P", "-m", "batchpredict"]


def check_name(name: str) -> str:
    """`name`, if it can be one of an entry. Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"--name={name}: must be letters, digits, _, - and . (nightly)")
    return name


def name_of(job_file: str | None, inputs: Sequence[str]) -> str:
    """What an entry is called that was given no name: after its job file or its input."""
    source = Path(job_file or before_date(inputs[0]))
    found = [re.sub(r"[^A-Za-z0-9]+", "-", name.split(".")[0]) for name in reversed(source.parts)]
    return next(filter(None, (name.strip("-") for name in found[:2])), "predict")


def check_unattended(job: Job) -> None:
    """Raise UsageError for what cannot run with nobody there."""
    for option in ("input_file", "output_file"):
        given = getattr(job, option)
        if given == "-" or (isinstance(given, tuple) and "-" in given):
            raise UsageError(f"--{option}=-: a job that is scheduled reads and writes files")


def watched(inputs: Sequence[str], job: Job) -> str:
    """The place where inputs arrive: the directory that is given or the glob's. Absolute.

    Raises UsageError where a file would be scored whenever another one arrives.
    """
    if job.if_done != "skip":
        raise UsageError(
            "--on_arrival needs --if_done=skip, or each arrival scores all files again"
        )
    if job.wait_for_input < job.stable_for:
        raise UsageError(
            "--on_arrival with --stable_for needs a --wait_for_input of as long, or a start "
            "that finds a new file leaves it to the timer"
        )
    if len(inputs) > 1:
        raise UsageError("--on_arrival watches one --input_file, a directory or a glob")
    place = re.split(r"[*?\[]", before_date(os.path.expanduser(inputs[0])))[0]  # noqa: PTH111
    if place != inputs[0] and not place.endswith("/"):
        place = os.path.dirname(place)  # noqa: PTH120
    return os.path.abspath(place or ".")  # noqa: PTH100 - links stay


def told(timing: Timing) -> Iterator[str]:
    """When it runs, in words, and the next times."""
    zone, name = system_zone()
    yield f"{timing.words()} ({name}); next:"
    if not timing.fields:
        yield "  with the next start of the machine"
    for when in timing.next(datetime.now(zone), _NEXT):
        yield f"  {when:%a %Y-%m-%d %H:%M %Z}"


def install_entry(schedule: Schedule, is_named: bool = True) -> str:
    """Put the entry into the user's crontab; what was done. Raises BatchPredictError.

    `is_named`: the name was chosen, so an entry of this name is replaced whatever it runs.
    """
    name, entry = schedule.call.name, schedule.line()
    before = crontab.read_crontab()
    there = crontab.entries(before).get(name)
    if there and not is_named:
        _check_owner(f"the crontab's entry {name}", schedule.call, crontab.sources(there))
    after = crontab.with_entry(before, name, entry)
    if after == before:
        return f"{name} is in the crontab already"
    crontab.write_crontab(after)
    return f"replaced in the crontab: {there}" if there else f"added to the crontab: {name}"


def _check_owner(what: str, call: Call, there: Sequence[str]) -> None:
    """Raise UsageError where `what` has other sources, `there`, than the call that is installed."""
    if list(there) != list(crontab.sources_of(call.arguments)):
        runs = " ".join(there) or "what has no job file and no input"
        raise UsageError(
            f"{what} runs {runs}; choose a name for this one (--name=OTHER), or replace that one "
            f"with --name={call.name}"
        )


def remove_entry(name: str) -> str:
    """Take the entry out of the user's crontab; what was done. Raises BatchPredictError."""
    before = crontab.read_crontab()
    after = crontab.without_entry(before, name)
    if after == before:
        others = ", ".join(crontab.entries(before)) or "none"
        raise UsageError(f"no entry {name} in the crontab; there are: {others}")
    crontab.write_crontab(after)
    return f"removed from the crontab: {name}"


def install_units(schedule: Schedule, is_named: bool = True) -> Iterator[str]:
    """Write the units; what was done, and what is left to do. Raises BatchPredictError.

    `is_named`: as of `install_entry`.
    """
    found = schedule.units()
    service = units.installed_service(schedule.call.name)
    if service is not None and not is_named:
        there = crontab.sources_of(units.arguments(service))
        _check_owner(f"the unit batchpredict-{schedule.call.name}.service", schedule.call, there)
    changed = units.install(found)
    yield from (f"written: {file}" for file in changed)
    if not changed:
        yield f"all there already, in {units.directory()}"
    active = " ".join(name for name in found if not name.endswith(".service"))
    yield "to start it, and keep it when you are not logged in:"
    yield "  systemctl --user daemon-reload"
    yield f"  systemctl --user enable --now {active}"
    yield "  loginctl enable-linger"


def remove_units(name: str) -> Iterator[str]:
    """Delete the units; what was done. Raises BatchPredictError."""
    gone = units.remove(name)
    if not gone:
        others = ", ".join(units.names()) or "none"
        raise UsageError(f"no units {name} in {units.directory()}; there are: {others}")
    yield from (f"removed: {file}" for file in gone)
    active = " ".join(dict.fromkeys(file.name for file in gone if file.suffix != ".service"))
    yield "what is active already ends with:"
    yield f"  systemctl --user stop {active}"
    yield "  systemctl --user daemon-reload"


def listed() -> Iterator[str]:
    """Each entry of ours in the user's crontab with the next time. Raises BatchPredictError."""
    zone, _ = system_zone()
    found = crontab.entries(crontab.read_crontab())
    if not found:
        yield "no entry of batchpredict schedule is in the crontab"
    for name, entry in found.items():
        count = 1 if entry.lstrip().startswith("@") else 5
        try:
            timing = parse_timing(" ".join(entry.split()[:count]))
        except UsageError:  # it was edited since
            yield f"{name}: {entry}"
            continue
        when = next((f"{t:%a %Y-%m-%d %H:%M %Z}" for t in timing.next(datetime.now(zone), 1)), "-")
        yield f"{name}: next {when}: {entry}"
