"""systemd's units: a service, the timer that starts it, and a path that is watched."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from batchpredict.data.drafts import write_durably
from batchpredict.errors import OutputNotCreatable, UsageError
from batchpredict.ops.crontab import Call
from batchpredict.ops.timing import Timing

_HEAD = "# Written by batchpredict schedule.\n"
_PREFIX = "batchpredict-"
# Behind these a word is read to its end as it is.
_PLAIN = re.compile(r"[\w@%+=:,./{}~^-]+")
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|\S+')

# systemd's own limit is five starts within ten seconds.
_NO_START_LIMIT = (
    "# However fast files come: a limit on starts that is reached ends the .path unit.",
    "StartLimitIntervalSec=0",
)


def units(
    timing: Timing, call: Call, log_file: str | None = None, watched: str | None = None
) -> dict[str, str]:
    """Contents by file name. `watched`: a directory or file whose change starts the service too.

    Raises UsageError for what a unit cannot hold.
    """
    stem = f"{_PREFIX}{call.name}"
    found = {
        f"{stem}.service": _service(call, log_file, watched is not None),
        f"{stem}.timer": _timer(timing, call.name),
    }
    if watched is not None:
        found[f"{stem}.path"] = _path(watched, call.name)
    return found


def _service(call: Call, log_file: str | None, is_watched: bool) -> str:
    program, *arguments = call.arguments
    # systemd expands no $ in the program's own name.
    command = [_quoted(program, dollar="$"), *map(_quoted, arguments)]
    lines = [
        "[Unit]",
        f"Description=batchpredict: {_specifiers(call.name)}",
        *(_NO_START_LIMIT if is_watched else ()),
        "",
        "[Service]",
        "Type=oneshot",
        *(f"Environment={_quoted(f'{k}={v}', dollar='$')}" for k, v in call.variables),
        f"ExecStart={' '.join(command)}",
        "# Finished, with some rows rejected within the budget.",
        "SuccessExitStatus=3",
    ]
    if log_file:
        _check_text(log_file)
        lines.append(f"StandardOutput=append:{_specifiers(log_file)}")
    return _HEAD + "\n".join(lines) + "\n"


def _timer(timing: Timing, name: str) -> str:
    times = [f"OnCalendar={each}" for each in timing.on_calendar()] or ["OnBootSec=1min"]
    lines = [
        f"# {timing.text}",
        "[Unit]",
        f"Description=batchpredict: when to run {name}",
        "",
        "[Timer]",
        *times,
        "# A time that passed while the machine was off is made up for.",
        "Persistent=true",
        "",
        "[Install]",
        "WantedBy=timers.target",
    ]
    return _HEAD + "\n".join(lines) + "\n"


def _path(watched: str, name: str) -> str:
    _check_text(watched)
    lines = [
        "[Unit]",
        f"Description=batchpredict: where files for {name} arrive",
        "",
        "[Path]",
        "# What comes while the service runs may go unnoticed: the timer finds it.",
        f"PathChanged={_specifiers(watched)}",
        "",
        "[Install]",
        "WantedBy=paths.target",
    ]
    return _HEAD + "\n".join(lines) + "\n"


def _check_text(text: str) -> None:
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise UsageError(f"{text!r}: a unit of systemd cannot hold a control character")


def _specifiers(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(text: str, dollar: str = "$$") -> str:
    """One word of a command line; see systemd.service(5)."""
    _check_text(text)
    plain = _specifiers(text).replace("$", dollar)
    if _PLAIN.fullmatch(plain):
        return plain
    escaped = plain.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def arguments(service: str) -> Sequence[str]:
    """What the program of a service of ours is given; of one that was edited, something else."""
    (command, *_) = [*re.findall(r"^ExecStart=(.*)$", service, re.MULTILINE), ""]
    return [_unquoted(word) for word in _WORD.findall(command)[1:]]


def _unquoted(word: str) -> str:
    if word.startswith('"'):
        word = re.sub(r"\\(.)", r"\1", word[1:-1])
    return word.replace("%%", "%").replace("$$", "$")


def directory() -> Path:
    """Where a user's own units are."""
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111
    return Path(config) / "systemd" / "user"


def install(found: Mapping[str, str]) -> Sequence[Path]:
    """Write units where systemd finds them; those written. Raises OutputNotCreatable.

    One that is there as it is to be is left alone, one that is not ours is not replaced.
    """
    place = directory()
    files = {place / name: text for name, text in found.items()}
    for file in files:
        _check_ours(file)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputNotCreatable(f"{place}: {(error.strerror or '').lower()}") from error
    changed = [file for file, text in files.items() if _read(file) != text]
    for file in changed:
        write_durably(file, os.fsencode(files[file]))
    return changed


def remove(name: str) -> Sequence[Path]:
    """Delete the units of this name and what starts them; the files that were there.

    Raises OutputNotCreatable.
    """
    files = [directory() / f"{_PREFIX}{name}.{kind}" for kind in ("path", "timer", "service")]
    there = [file for file in files if file.exists()]
    for file in there:
        _check_ours(file)
    # The links first: while a unit is there, so is what is called to remove the rest.
    there = [*_enabled(files), *there]
    for file in there:
        try:
            file.unlink()
        except OSError as error:
            raise OutputNotCreatable(f"{file}: {(error.strerror or '').lower()}") from error
    return there


def _enabled(files: Sequence[Path]) -> Iterator[Path]:
    """The links that `systemctl --user enable` has made to `files`, which may be gone already."""
    places = [*directory().glob("*.wants"), *directory().glob("*.requires")]
    for file in files:
        links = (place / file.name for place in sorted(places))
        yield from (
            each for each in links if each.is_symlink() and each.resolve() == file.resolve()
        )


def installed_service(name: str) -> str | None:
    """The service of this name, None where there is none. Raises OutputNotCreatable: not ours."""
    file = directory() / f"{_PREFIX}{name}.service"
    _check_ours(file)
    return _read(file)


def names() -> Sequence[str]:
    """Of all that are installed. Raises OutputNotCreatable where one cannot be read."""
    return sorted(
        file.stem.removeprefix(_PREFIX)
        for file in directory().glob(f"{_PREFIX}*.timer")
        if (_read(file) or "").startswith(_HEAD)
    )


def _read(file: Path) -> str | None:
    try:
        return os.fsdecode(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OutputNotCreatable(f"{file}: {(error.strerror or '').lower()}") from error


def _check_ours(file: Path) -> None:
    text = _read(file)
    if text is not None and not text.startswith(_HEAD):
        raise OutputNotCreatable(f"{file}: is there and was not written by schedule; remove it")
