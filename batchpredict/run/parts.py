"""Parts of an output: each shard of an input is scored into a complete one, beside the output.

`out.csv` has them in `.out.csv.parts/`: `000017.out.csv` with the rows of shard 17, its rejects and
its receipt, by the names of any output. A receipt that agrees is a commit: who scores the same
input again goes on with the shards that have none. Whoever scores a shard twice, at once or not,
writes the same bytes, and either of both is published by one rename.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from batchpredict import s3
from batchpredict.data.drafts import not_creatable
from batchpredict.data.naming import Task
from batchpredict.data.records import Part, Shard
from batchpredict.errors import Unavailable
from batchpredict.job import Job
from batchpredict.run.done import done_receipt
from batchpredict.run.fetching import Fetched
from batchpredict.run.loading import LoadedModel

logger = logging.getLogger(__name__)

_SUFFIX = ".parts"
# Of a receipt, what is needed once the profile is counted.
_SMALL = ("counts", "output", "suspects", "run_id", "resumed")


@dataclass(frozen=True)
class ScoredPart:
    """A part that is there. `receipt`: its content; `node`: who scored it, None: an earlier run;
    `actor`: which process there, which took `seconds`.
    """

    task: Task
    receipt: Mapping[str, Any]
    node: str | None = None
    actor: int = 0
    seconds: float = 0.0

    @property
    def stored(self) -> Part:
        """Its bytes."""
        body, output = self.receipt["part"], self.receipt["output"]
        return Part(self.task.output, body["begin"], body["end"], output["size"])

    @property
    def small(self) -> ScoredPart:
        """What is needed to join it: there may be a hundred thousand."""
        body = {name: self.receipt["part"][name] for name in ("begin", "end")}
        return replace(self, receipt={n: self.receipt[n] for n in _SMALL} | {"part": body})


def folder_of(output: str) -> str:
    """Where the parts of an output are, without "/" at its end."""
    if s3.is_url(output):
        directory, _, name = output.rpartition("/")
        return f"{directory}/.{name}{_SUFFIX}"
    final = Path(os.path.realpath(output))
    return str(final.with_name(f".{final.name}{_SUFFIX}"))


def make_folder(output: str) -> None:
    """Make it, if it is a directory. Raises OutputNotCreatable."""
    if s3.is_url(output):
        return
    folder = Path(folder_of(output))
    # There will be scores in it: it shows no more than an output that it is to replace.
    mode = 0o700 if os.path.lexists(output) else 0o777
    try:
        folder.mkdir(mode, exist_ok=True)
    except OSError as error:
        raise not_creatable(str(folder), error, "--output_file or --output_dir") from error


def remove_parts(output: str) -> None:
    """Remove the parts of an output, and what belongs to them; warn where that cannot be.

    What is published has not failed, and parts that stay are compared before they are used.
    """
    folder = folder_of(output)
    try:
        if s3.is_url(output):
            found = s3.store().list(s3.parse(f"{folder}/"))
            s3.store().remove_all(stored.address for stored in found)
        else:
            shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except (OSError, Unavailable) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        logger.warning("%s: cannot be removed: %s; remove it", folder, str(reason).lower())


def part_of(task: Task, shard: Shard, columns: tuple[str, ...] | None) -> Task:
    """The task to score one shard. `columns`: see Task."""
    folder, name = folder_of(task.output), task.output.rpartition("/")[2]
    output = f"{folder}/{shard.number:06d}.{name}"
    return replace(
        task,
        output=output,
        rejects=f"{output}.rejects.jsonl",
        receipt=f"{output}.receipt.json",
        shard=shard,
        columns=columns,
    )


def part_job(job: Job, model: LoadedModel) -> Job:
    """How parts are scored: what concerns the whole input is judged by whoever joins them.

    What shapes bytes and may differ from machine to machine is as it is on this one.
    """
    sizes = model.plan.tuning
    return replace(
        job,
        model=_exact(job.model, model.fetched),
        batch_rows=sizes.batch_rows,
        batch_tokens=sizes.batch_tokens,
        workers=job.cpus_per_actor,
        max_rejects="100%",
        baseline=None,
        max_drift=None,
        on_drift="warn",
        limit=None,
        max_seconds=None,
        no_resume=False,
        lock_wait=0.0,
        if_done="rescore",
        engine="local",
        ray_address=None,
        actors=None,
        output_parts=False,
    )


def _exact(model: str, fetched: Fetched) -> str:
    """The model as any directory and any day finds the same: an alias may move, paths may not."""
    if s3.is_url(model):
        return model
    if fetched.manifest_sha256 is None:
        return os.path.abspath(model)  # noqa: PTH100 - it need not be UTF-8
    return f"{fetched.name}@{fetched.version}#sha256:{fetched.manifest_sha256}"


def done_part(task: Task, job: Job, model: LoadedModel, fingerprint: str) -> ScoredPart | None:
    """The part, if an earlier run has finished it and it is what would come out now.

    `job`: as `part_job` makes it; `fingerprint`: of the input.
    """
    receipt = done_receipt(task, job, model.package.digest)
    if receipt is None or task.shard is None:
        return None
    part, tool, plan = (receipt.get(name) or {} for name in ("part", "tool", "plan"))
    sizes = asdict(model.plan.tuning)
    here = {"shard": asdict(task.shard), "fingerprint": fingerprint}
    same = here.items() <= part.items() and {"begin", "end", "windows"} <= part.keys()
    if not same or tool != model.tool or any(plan.get(n) != sizes[n] for n in sizes):
        return None
    return ScoredPart(task, receipt)
