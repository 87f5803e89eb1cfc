"""The receipt: what a run read, did and wrote. Other commands read nothing else."""

from __future__ import annotations

import json
import resource
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from batchpredict.data.drafts import Published


@dataclass(frozen=True)
class Counts:
    """Rows; read = scored + nulls + rejected. `duplicates`: of the scored, those not inferred
    because a row of their window had the same model input.
    """

    read: int = 0
    scored: int = 0
    nulls: int = 0
    rejected: int = 0
    duplicates: int = 0
    truncated: int = 0

    def __add__(self, other: Counts) -> Counts:
        mine, theirs = asdict(self), asdict(other)
        return Counts(**{name: count + theirs[name] for name, count in mine.items()})


@dataclass(frozen=True)
class InputFile:
    """An input's stored bytes. `modified_ns`: when it was last changed, since the epoch.

    None where unknown: a pipe's time, the sha256 where not all was read (`--limit`). `etag`: of an
    object.
    """

    path: str
    size: int | None
    modified_ns: int | None
    sha256: str | None
    etag: str | None = None


@dataclass(frozen=True)
class Resumed:
    """What was taken from `runs` earlier ones: `rows` that they had inferred."""

    rows: int = 0
    runs: int = 0


@dataclass(frozen=True)
class Retried:
    """`rows` that the run `run_id` had rejected were tried again and put into its output."""

    run_id: str
    rows: int


@dataclass(frozen=True)
class RejectsSummary:
    """The rejects file, and rejects by code.

    `rows_sha256`: of a line "ROW CODE" for each, in order; it stays the same while records are
    mended. None where there are none.
    """

    path: str | None
    size: int
    sha256: str | None
    codes: dict[str, int]
    rows_sha256: str | None = None


@dataclass(frozen=True)
class Batches:
    """What batches come to: how many, their rows, and of texts their tokens, without padding and
    with it. The second row that a batch of one is run with is padding.
    """

    count: int = 0
    rows: int = 0
    tokens: int = 0
    padded_tokens: int = 0

    def __add__(self, other: Batches) -> Batches:
        return Batches(
            self.count + other.count,
            self.rows + other.rows,
            self.tokens + other.tokens,
            self.padded_tokens + other.padded_tokens,
        )


@dataclass(frozen=True)
class NodeWork:
    """What a node of a cluster has done: `rows` in `shards`, by `actors` that were busy for
    `seconds` in sum. `rows_per_second`: of one busy actor. `peak_memory_bytes`: the largest of one.
    """

    address: str
    actors: int
    shards: int
    rows: int
    seconds: float
    rows_per_second: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Receipt:
    """DESIGN: `<output>.receipt.json`. Times in ISO 8601 UTC, sizes in bytes, stages in seconds.

    `cpu_seconds`: of each stage's own threads; of all threads of the process while this input
    was scored (`run`), and since its start (`process`). A provider that computes in threads of
    its own is in these two alone. `first_row_seconds`: from the start of the process to the end
    of the first batch. `batches`: those that this run planned, not earlier ones. `suspects`:
    numbers of rows without a score that were in flight, alone, when runs before died. `model`:
    `manifest_sha256` and `store` are None where it came from no store. `warnings`: what the
    operator should know of how the model was come by. `profile`: see profile.py; None where not
    all rows were scored. `drift`: from `rows` of the runs in `baseline`, see drift.py; None where
    there are none. `part`: of a part of an output, its shard and the bytes of its rows, see Part.
    `nodes`: of a cluster, those that scored.
    """

    run_id: str
    started: str
    ended: str
    exit_code: int
    tool: dict[str, str]
    model: dict[str, Any]
    inputs: tuple[InputFile, ...]
    output: Published | None
    rejects: RejectsSummary
    options: dict[str, Any]
    plan: dict[str, Any]
    counts: Counts
    stages: dict[str, float]
    cpu_seconds: dict[str, float]
    first_row_seconds: float | None
    rows_per_second: float
    peak_memory_bytes: int
    batches: Batches = Batches()
    resumed: Resumed = Resumed()
    suspects: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    retried: Retried | None = None
    profile: dict[str, Any] | None = None
    drift: dict[str, Any] | None = None
    part: dict[str, Any] | None = None
    nodes: tuple[NodeWork, ...] | None = None
    message: str | None = None

    def content(self) -> dict[str, Any]:
        """What JSON has of it; `receipt` is the version of this layout."""
        # `asdict` copies each of their numbers.
        content = {"receipt": 1} | asdict(replace(self, profile=None, drift=None))
        content |= {"profile": self.profile, "drift": self.drift}
        for name in ("message", "retried", "profile", "drift", "part", "nodes"):
            if content[name] is None:
                del content[name]
        for stored in filter(None, (*content["inputs"], content["output"])):
            if stored["etag"] is None:
                del stored["etag"]
        return content

    def to_json(self) -> bytes:
        """The file's content."""
        content = self.content()
        # Thousands of numbers, which shall not take a line each.
        compact = {n: content.pop(n) for n in ("drift", "profile") if n in content}
        text = json.dumps(content, indent=2, ensure_ascii=False).removesuffix("\n}")
        for name, value in compact.items():
            text += f',\n  "{name}": {json.dumps(value, ensure_ascii=False)}'
        text += "\n}"
        # A file name need not be UTF-8; JSON has an escape for what it holds instead.
        return text.encode("utf-8", "backslashreplace") + b"\n"


def now() -> str:
    """This instant in ISO 8601, UTC, with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def peak_memory_bytes() -> int:
    """Highest resident set of this process so far."""
    try:
        # ru_maxrss starts at what the process that started this one had resident.
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
