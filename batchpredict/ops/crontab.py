"""An entry of a crontab, and the user's crontab, of which no other line is touched."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from batchpredict.errors import ConfigInvalid, OutputWriteFailed, UsageError
from batchpredict.ops.timing import Timing

# Ends an entry of ours, where it is a comment of the shell's.
_MARK = "# batchpredict schedule: "
# An editor may have saved it with carriage returns: there that, too, is part of the comment.
_ENTRY = re.compile(rb"([ \t]*[^#\s].* " + _MARK.encode() + rb"([A-Za-z0-9_.-]+)[ \t]*)(\r?)")
# Of what stands behind the five fields; Debian's cron refuses 998.
_MOST_BYTES = 990


@dataclass(frozen=True)
class Call:
    """What is run: `name` tells it from other entries, `arguments` begin with the program.

    `variables`: of the environment, which under cron has next to nothing.
    """

    name: str
    arguments: Sequence[str]
    variables: Sequence[tuple[str, str]]


def line(timing: Timing, call: Call, log_file: str) -> str:
    """The entry: standard output goes to the end of `log_file`, standard error into a mail.

    Raises UsageError where cron cannot be given a name, or so much.
    """
    variables = [f"{name}={_quoted(value)}" for name, value in call.variables]
    words = [*variables, *map(_quoted, call.arguments), f">>{_quoted(log_file)}"]
    # A bare % would end the command: the rest is its standard input.
    command = f"{' '.join(words)} {_MARK}{call.name}".replace("%", r"\%")
    if len(os.fsencode(command)) > _MOST_BYTES:
        raise UsageError(
            f"the entry has {len(os.fsencode(command))} bytes, and cron takes {_MOST_BYTES}; put "
            "the options into a job file (--job)"
        )
    return f"{timing.text} {command}"


def _quoted(text: str) -> str:
    # What becomes of a backslash differs from cron to cron.
    if "\\" in text or any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise UsageError(
            f"{text!r}: a crontab cannot hold a backslash or a control character for certain; "
            "put the option into a job file (--job)"
        )
    return shlex.quote(text)


def entries(content: bytes) -> dict[str, str]:
    """Our entries by name, in order."""
    found = (_ENTRY.fullmatch(each) for each in content.split(b"\n"))
    return {os.fsdecode(each[2]): os.fsdecode(each[1]) for each in found if each}


def sources(entry: str) -> Sequence[str]:
    """The job file and the inputs of an entry, as options; of one that was edited, nothing."""
    try:
        words = shlex.split(entry.replace(r"\%", "%"))
    except ValueError:
        return []
    return sources_of(words)


def sources_of(words: Iterable[str]) -> Sequence[str]:
    """The job file and the inputs among the words of a command, as options."""
    return [word for word in words if word.startswith(("--job=", "--input_file="))]


def with_entry(content: bytes, name: str, entry: str) -> bytes:
    """A crontab with `entry`, in the place of the one of this name, or else at the end."""
    lines = content.split(b"\n")
    places = [number for number, each in enumerate(lines) if _is(each, name)]
    if places:
        lines[places[0]] = os.fsencode(entry) + (b"\r" if lines[places[0]].endswith(b"\r") else b"")
        for number in reversed(places[1:]):
            del lines[number]
        return b"\n".join(lines)
    ended = not content or content.endswith(b"\n")
    return content + (b"" if ended else b"\n") + os.fsencode(entry) + b"\n"


def without_entry(content: bytes, name: str) -> bytes:
    return b"\n".join(each for each in content.split(b"\n") if not _is(each, name))


def _is(each: bytes, name: str) -> bool:
    found = _ENTRY.fullmatch(each)
    return found is not None and found[2] == name.encode()


def read_crontab() -> bytes:
    """The user's own; empty where there is none. Raises ConfigInvalid."""
    finished = _crontab("-l")
    if finished.returncode == 0:
        return finished.stdout
    if b"no crontab for" in finished.stderr:
        return b""
    raise ConfigInvalid(f"crontab -l: {_first_line(finished)}; crontab -l must work first")


def write_crontab(content: bytes) -> None:
    """Replace the user's own; an empty one is removed. Raises ConfigInvalid, OutputWriteFailed."""
    finished = _crontab("-", content) if content else _crontab("-r")
    if finished.returncode:
        raise ConfigInvalid(f"crontab: {_first_line(finished)}; nothing was changed")
    if read_crontab() != content:
        raise OutputWriteFailed("crontab -l does not show what was written; look at it")


def _crontab(argument: str, content: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            ["crontab", argument],
            input=content,
            capture_output=True,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except OSError as error:
        raise ConfigInvalid(
            "crontab cannot be run; install cron, or use systemd's timers (--systemd)"
        ) from error


def _first_line(finished: subprocess.CompletedProcess[bytes]) -> str:
    lines = finished.stderr.decode(errors="replace").strip().splitlines()
    return lines[0] if lines else f"exit status {finished.returncode}"
