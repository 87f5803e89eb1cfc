"""The report: one HTML page about one run or many, from their receipts alone."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from batchpredict import __version__
from batchpredict.counting import count
from batchpredict.data.drafts import write_durably
from batchpredict.errors import InputMissing, UsageError
from batchpredict.ops import display
from batchpredict.ops.report_view import View, view
from batchpredict.ops.runs import Found, read_runs

_HERE = Path(__file__).parent
_MOST_TEXT = 300


@dataclass(frozen=True)
class Report:
    """What was written, and about what. `verdict`: one line."""

    found: Found
    verdict: str


def write(sources: Sequence[str], output_file: str, with_records: bool) -> Report:
    """Read receipts, write the page. Raises InputMissing, UsageError (the page would
    replace a receipt), OutputNotCreatable, OutputWriteFailed.
    """
    found = read_runs(sources)
    if not found.runs:
        skipped = f" ({len(found.skipped)} files could not be read)" if found.skipped else ""
        raise InputMissing(
            f"{', '.join(sources)}: no receipt{skipped}; name a receipt, or a folder with outputs"
        )
    path = os.path.expanduser(output_file)  # noqa: PTH111 - pathlib's raises for unknown users
    if os.path.realpath(path) in {os.path.realpath(run.file) for run in found.runs}:
        raise UsageError(f"--output={output_file}: is what is to be read; name another file")
    shown = view(found, with_records, datetime.now(UTC))
    write_durably(Path(path), page(shown).encode(), "--output_file")
    return Report(found, f"{shown.verdict.word}: {shown.verdict.sentence}")


def page(shown: View) -> str:
    """The page. Its policy lets a browser load nothing, run nothing, and take no other styles."""
    style = (_HERE / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    template = _environment().get_template("report.html")
    return template.render(view=shown, style=Markup(style), policy=policy, version=__version__)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalized,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = count
    environment.filters |= {
        name: getattr(display, name) for name in ("duration", "local", "number", "share", "size")
    }
    return environment


def _finalized(value: object) -> object:
    """Every value on its way into the page; what is markup is ours already."""
    if isinstance(value, Markup):
        return value
    return display.plain(value, _MOST_TEXT) if isinstance(value, str) else value
