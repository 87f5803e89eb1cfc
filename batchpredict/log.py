"""Where the log goes: the run's to standard output, warnings and errors to standard error."""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import Any

from batchpredict.errors import CONTROLS
from batchpredict.run.current import run_id, stage

logger = logging.getLogger("batchpredict")

# Of a run's id, in a line of text.
_ID_DIGITS = 8
# What json.dumps leaves in a text, and a terminal or a reader of lines might obey.
_ESCAPED = {code: f"\\u{code:04x}" for code in CONTROLS if code >= 0x7F}


class _Log(logging.StreamHandler[Any]):
    """A log whose reader may go or whose disk may be full: the run goes on without it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        to_nowhere(self.stream)
        if not isinstance(error, BrokenPipeError) and self.stream is not sys.stderr:
            reason = (error.strerror or "").lower()
            sys.stderr.write(f"batchpredict: the log cannot be written: {reason}\n")


def to_nowhere(stream: Any) -> None:
    """Drop what a broken stream still holds and will be given, or Python fails on it at exit."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, stream.fileno())
    os.close(descriptor)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.run = run_id()[:_ID_DIGITS]
        text = super().format(record)
        return text if getattr(record, "lines", False) else text.translate(CONTROLS)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "run_id": run_id(),
            "stage": stage(),
            "event": getattr(record, "event", "message"),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        import json

        return json.dumps(entry, ensure_ascii=False).translate(_ESCAPED)


def _is_for_people(record: logging.LogRecord) -> bool:
    """Not a receipt, which is in a file for those who want it."""
    return getattr(record, "event", None) != "receipt"


def configure_logging(quiet: bool, verbose: bool, log_format: str, to_stderr: bool) -> None:
    """The log to stdout (to stderr where the data owns stdout), warnings and errors to stderr.

    A record's `event` (a name) and `fields` (more members) are for "json"; so are receipts.
    """
    formatter = (
        _JsonLines()
        if log_format == "json"
        else _Text("%(asctime)s %(levelname)s %(run)s %(message)s", "%Y-%m-%d %H:%M:%S")
    )
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names need not fit the locale's encoding
            stream.reconfigure(errors="backslashreplace")
    log = _Log(sys.stderr if to_stderr else sys.stdout)
    log.addFilter(lambda record: record.levelno < logging.WARNING)
    if log_format == "text":
        log.addFilter(_is_for_people)
    warnings = _Log(sys.stderr)
    warnings.setLevel(logging.WARNING)
    logger.handlers = [log, warnings]
    for handler in logger.handlers:
        handler.setFormatter(formatter)
    logger.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    logger.propagate = False
