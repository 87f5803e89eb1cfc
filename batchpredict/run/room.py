"""The memory a job may use, and what is planned within it."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, replace

from batchpredict import cgroup
from batchpredict.errors import ConfigInvalid
from batchpredict.job import Job
from batchpredict.model.package import COMPANIONS, ModelPackage
from batchpredict.run.memory import (
    MIB,
    Graph,
    Needs,
    S3Use,
    Sizes,
    calmed,
    estimate,
    least,
    needs,
    within,
)
from batchpredict.s3 import is_url

logger = logging.getLogger(__name__)

# Of a cgroup's limit: its page cache, and processes beside this one, count against it too.
_CGROUP_SHARE = 0.9
_LEAST = least(Sizes(*[sys.maxsize] * 6))


@dataclass(frozen=True)
class Room:
    """`limit`: the job's, in bytes; it shapes the plan. `lent`: the cgroup's; only callers and
    queues, which change no byte, are held to it. None: no limit."""

    needs: Needs
    graph: str
    limit: int | None
    lent: int | None

    def check(self) -> None:
        """Raises ConfigInvalid where the job's limit is too small for the smallest plan."""
        smallest = estimate(self.needs, _LEAST)
        if self.limit is not None and smallest > self.limit:
            raise ConfigInvalid(
                f"{_option(self.limit)}: {self.graph} needs"
                f" {_shown(self.needs.loading)} while it is loaded and {_shown(smallest)} with one"
                " caller, the smallest batch and window; give it"
                f" --memory_limit={-(-smallest // MIB)}MiB or more, or a smaller model"
            )

    def sizes(self, wanted: Sizes, pinned: frozenset[str] = frozenset()) -> Sizes:
        """`wanted`, lowered until it fits, and one line in the log of it; `pinned` stay as they
        are. Raises ConfigInvalid where they do not fit beside the least of all others."""
        taken = wanted
        if self.limit is not None:
            found = within(self.needs, self.limit, wanted, pinned)
            if found is None:
                raise self._too_large(wanted, pinned)
            taken = found
            logger.info("planned within %s: %s", _shown(self.limit), self._told(taken))
        if self.lent is not None and estimate(self.needs, taken) > self._lent():
            taken = calmed(self.needs, self._lent(), taken)
            needed = estimate(self.needs, taken)
            short = needed > self._lent() and self.limit is None
            logger.info(
                "the cgroup lends %s of memory: %s%s",
                _shown(self.lent),
                self._told(taken),
                "; --memory_limit would plan within it" if short else "",
            )
        return taken

    def callers(self, wanted: int) -> int:
        """How many fit beside the least of everything else; at least 1."""
        limit = min(self._lent(), self.limit or self._lent())
        return calmed(self.needs, limit, replace(_LEAST, workers=wanted)).workers

    def _lent(self) -> int:
        return sys.maxsize if self.lent is None else int(_CGROUP_SHARE * self.lent)

    def _told(self, sizes: Sizes) -> str:
        batch = f"batches of {sizes.batch_rows} rows"
        if self.needs.longest:
            batch += f" and {sizes.batch_tokens} tokens"
        return (
            f"{batch}, windows of {sizes.window_rows} rows and {_shown(sizes.window_bytes)},"
            f" {sizes.workers} {'caller' if sizes.workers == 1 else 'callers'}, queues of"
            f" {sizes.queue_depth}; at most {_shown(estimate(self.needs, sizes))}"
        )

    def _too_large(self, wanted: Sizes, pinned: frozenset[str]) -> ConfigInvalid:
        smallest = estimate(self.needs, least(wanted, pinned))
        asked = ", ".join(f"--{name}={getattr(wanted, name)}" for name in sorted(pinned))
        return ConfigInvalid(
            f"{_option(self.limit)}: {self.graph} with {asked} needs"
            f" {_shown(smallest)} even with one caller and the smallest window; lower"
            f" {'it' if len(pinned) == 1 else 'them'} or give --memory_limit={-(-smallest // MIB)}"
            "MiB or more"
        )


def room_of(job: Job, package: ModelPackage, *, parquet: bool) -> Room | None:
    """None where nothing limits the job. `parquet`: whether an output is written as such."""
    lent = cgroup.memory_limit()
    if job.memory_limit is None and lent is None:
        return None
    sizes = {name: size for name, size, _ in package.files}
    inputs = package.graph_file.inputs
    graph = Graph(
        bytes=sum(size for name, size in sizes.items() if name not in COMPANIONS),
        width=package.graph_file.width,
        inputs=len(inputs),
        text="input_ids" in inputs,
        tokenizer=sizes.get("tokenizer.json", 0),
        heads=package.heads,
        max_length=package.max_length,
    )
    openvino = job.provider == "openvino" or job.precision == "bf16"
    found = needs(graph, openvino=openvino, parquet=parquet, s3=_s3_use(job))
    return Room(found, str(package.graph_path), job.memory_limit, lent)


def _s3_use(job: Job) -> S3Use:
    outputs: tuple[str | None, ...] = (job.output_file, job.output_dir)
    outputs += (job.rejects_file, job.receipt_file)
    if not (job.output_file or job.output_dir):
        outputs += job.input_file  # they go beside them
    if any(name and is_url(name) for name in outputs):
        return "written"
    others = (*job.input_file, job.model, job.model_store)
    return "read" if any(name and is_url(name) for name in others) else "none"


def _shown(size: int) -> str:
    if size >= 1 << 30:
        return f"{size / (1 << 30):.2f} GiB"
    return f"{-(-size // MIB)} MiB" if size >= MIB else f"{size >> 10} KiB"


def _option(limit: int | None) -> str:
    """As it is given on the command line."""
    limit = limit or 0
    return f"--memory_limit={limit}" if limit % MIB else f"--memory_limit={limit // MIB}MiB"
