"""A job: every option of `predict`, validated. The only home of defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from batchpredict.errors import UsageError

if TYPE_CHECKING:
    from fractions import Fraction

# Most rows in one run of the session where `batch_rows` is not given.
TEXT_BATCH_ROWS = 64
TABULAR_BATCH_ROWS = 4096
# Most padded tokens in one run of a text model where `batch_tokens` is not given.
BATCH_TOKENS = 512
OPENVINO_BATCH_TOKENS = 1024
# A window is the rows that are sorted, cut into batches and put back in order together.
WINDOW_ROWS = 16384
WINDOW_BYTES = 16 << 20
# An input is cut into shards of about so many bytes.
SHARD_BYTES = 64 << 20
# Seconds for which what an alias named last is good while its store cannot be reached.
MODEL_AGE = 7 * 86400.0

_COUNTS = (
    "max_record_bytes", "batch_rows", "batch_tokens", "workers", "limit", "memory_limit",
    "shard_bytes", "cpus_per_actor",
)  # fmt: skip
_SECONDS = ("max_seconds", "lock_wait", "max_model_age", "wait_for_input", "stable_for")

Scores = Literal["top", "all", "none"]
OnError = Literal["reject", "null", "fail"]
OnDrift = Literal["warn", "fail"]
Provider = Literal["cpu", "openvino"]
Precision = Literal["model", "bf16", "int8"]
Engine = Literal["local", "ray"]
IfDone = Literal["skip", "rescore", "fail"]
IfMissing = Literal["fail", "skip"]


def check_endpoint(url: str) -> None:
    """Raises UsageError, without the URL: what is wrong with it may be a password."""
    from urllib.parse import urlsplit  # costs --help a share of its time

    try:
        parts = urlsplit(url)
        _ = parts.port
        right = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc
    except ValueError:
        right = False
    if not right:
        raise UsageError(
            "--endpoint_url: must be https://HOST or http://HOST:PORT; keys belong into the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )


@dataclass(frozen=True)
class Budget:
    """How many rows may be rejected: `rows`, or `share` of the rows read (0 to 1, exact)."""

    rows: int | None
    share: Fraction | None

    def exceeded(self, rejected: int, read: int) -> bool:
        """Whether `rejected` of `read` rows are too many."""
        if self.rows is not None:
            return rejected > self.rows
        return rejected > (self.share or 0) * read


@dataclass(frozen=True)
class Job:
    """What to score, with what, how, and where the result goes. Raises UsageError.

    `keep`: "all", "none", or columns. `column`: (model input, column) pairs. `workers`: None
    takes the effective cores. `batch_rows`, `batch_tokens`: None takes what `tune` has found, else
    TEXT_ or TABULAR_BATCH_ROWS and BATCH_TOKENS or OPENVINO_BATCH_TOKENS. `memory_limit`: bytes.
    `max_model_age`: seconds; None is MODEL_AGE where the store cannot be reached, any age where it
    is not to be asked. `date`: the day (ISO 8601) that is in the names of files.
    `stable_for`: seconds that an input must have been left unchanged.
    """

    input_file: tuple[str, ...]
    model: str
    model_store: str | None = None
    max_model_age: float | None = None
    offline: bool = False
    endpoint_url: str | None = None
    service: str | None = None
    output_file: str | None = None
    output_dir: str | None = None
    input_format: str | None = None
    output_format: str | None = None
    column: tuple[tuple[str, str], ...] = ()
    keep: Literal["all", "none"] | tuple[str, ...] = "all"
    outputs: tuple[str, ...] = ()
    delimiter: str | None = None
    encoding: str = "utf-8"
    no_header: bool = False
    max_record_bytes: int = 16 << 20
    scores: Scores = "top"
    threshold: float | None = None
    batch_rows: int | None = None
    batch_tokens: int | None = None
    workers: int | None = None
    no_tuning: bool = False
    memory_limit: int | None = None
    shard_bytes: int = SHARD_BYTES
    provider: Provider = "cpu"
    precision: Precision = "model"
    on_error: OnError = "reject"
    max_rejects: str = "10%"
    baseline: str | None = None
    max_drift: float | None = None
    on_drift: OnDrift = "warn"
    limit: int | None = None
    skip_rows: tuple[int, ...] = ()
    no_resume: bool = False
    max_seconds: float | None = None
    lock_wait: float = 0.0
    if_done: IfDone = "rescore"
    if_missing: IfMissing = "fail"
    wait_for_input: float = 0.0
    stable_for: float = 0.0
    date: str | None = None
    dry_run: bool = False
    rejects_file: str | None = None
    receipt_file: str | None = None
    prefix: str = ""
    engine: Engine = "local"
    ray_address: str | None = None
    actors: str | None = None
    cpus_per_actor: int = 1
    output_parts: bool = False

    def __post_init__(self) -> None:
        _ = self.budget, self.pool
        if not self.input_file:
            raise UsageError("no input: pass --input_file=FILE (a path, glob, directory or -)")
        if isinstance(self.keep, tuple) and len(set(self.keep)) < len(self.keep):
            raise UsageError(f"--keep={','.join(self.keep)}: names a column twice")
        if self.output_file and self.output_dir:
            raise UsageError("--output_file and --output_dir exclude each other")
        if self.delimiter is not None and not (
            len(self.delimiter) == 1 and self.delimiter.isascii() and self.delimiter not in '"\r\n'
        ):
            raise UsageError(
                f"--delimiter={self.delimiter!r}: must be one ASCII character, not a quote or a "
                "line end; for tabs use --input_format=tsv or --delimiter=tab"
            )
        self._check_numbers()
        self._check_engine()
        if self.endpoint_url:
            check_endpoint(self.endpoint_url)
        if self.max_record_bytes > 1 << 30:
            raise UsageError(f"--max_record_bytes={self.max_record_bytes}: at most 1 GiB")
        if self.precision == "int8" and self.provider == "openvino":
            raise UsageError("--precision=int8 runs on --provider=cpu only; leave --provider out")
        if self.threshold is not None and not 0.0 <= self.threshold <= 1.0:
            raise UsageError(f"--threshold={self.threshold}: must be between 0 and 1")

    def _check_numbers(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            least = 0 if name == "limit" else 1
            if value is not None and value < least:
                raise UsageError(f"--{name}={value}: must be {least} or more")
        for name in _SECONDS:
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise UsageError(f"--{name}={value}: must be a number of seconds, 0 or more")
        if self.max_drift is not None and not 0 <= self.max_drift < math.inf:
            raise UsageError(f"--max_drift={self.max_drift}: must be a number, 0 or more")
        if self.on_drift == "fail" and self.max_drift is None:
            raise UsageError("--on_drift=fail: from what on? Pass --max_drift too (0.25 is usual)")
        if any(row < 1 for row in self.skip_rows):
            raise UsageError(f"--skip_rows={min(self.skip_rows)}: rows are numbered from 1")

    def _check_engine(self) -> None:
        for name in ("ray_address", "actors", "output_parts"):
            if self.engine == "local" and getattr(self, name):
                raise UsageError(f"--{name}: is for a cluster; pass --engine=ray too")

    @property
    def pool(self) -> tuple[int, int | None]:
        """`actors` parsed: the fewest to begin with, and the most; None: as many as there are CPUs
        for.
        """
        if self.actors is None:
            return 1, None
        low, _, high = self.actors.partition(":")
        try:
            pool = int(low), int(high or low)
        except ValueError:
            pool = 0, 0
        if not 1 <= pool[0] <= pool[1]:
            raise UsageError(f"--actors={self.actors}: must be a number (4) or a range (2:16)")
        return pool

    @property
    def budget(self) -> Budget:
        """`max_rejects` parsed: N rows, or P% of the rows read."""
        from fractions import Fraction  # costs --help a noticeable share of its time

        text = self.max_rejects.strip()
        try:
            if text.endswith("%"):
                budget = Budget(None, Fraction(text[:-1]) / 100)
                valid = 0 <= (budget.share or 0) <= 1
            else:
                budget = Budget(int(text), None)
                valid = (budget.rows or 0) >= 0
        except (ArithmeticError, ValueError):  # 1/0%, and what is no number
            valid = False
        if not valid:
            raise UsageError(
                f"--max_rejects={self.max_rejects}: must be a number of rows (100) or a share (5%)"
            )
        return budget
