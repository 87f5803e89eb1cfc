"""Kill nodes of a Ray cluster, and drivers, while a job runs there; see test_cluster.

    python -m tests.cluster_kills INPUT --model=MODEL [--nodes 20] [--drivers 20] [--every 6]
    python -m tests.cluster_kills INPUT --model=MODEL --matrix

The cluster is several nodes (raylets) on this machine. Bytes are compared with a local run's. What
is repeated is counted where it happens: every process of the cluster notes which shards it begins
and how many rows it gives to the session.

`--matrix` kills nothing: texts of INPUT, and rows for a small table model, in all formats, by one
to four actors and by three nodes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from tests import models
from tests.commands import CHECKOUT
from tests.test_cluster import FORMATS, published, rows_of, without_place, write_rows

_NODES = 3
_STORE_BYTES = 80 << 20
_MATRIX_TEXTS = 60
# A line is one write: what a killed process has begun is in the file.
_COUNTER = '''
    import os, sys

    def count():
        """Note in COUNTS each shard that is begun and finished, and rows that are inferred."""
        import numpy as np
        from batchpredict.model import session
        from batchpredict.run import worker
        file = os.open(os.environ["COUNTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        shard, score, run = [None], worker.Worker.score, session.Session.run

        def note(*what):
            os.write(file, (" ".join(map(str, what)) + "\\n").encode())

        def noted_score(self, task):
            shard[0] = task.shard.number
            note("begin", shard[0])
            answer = score(self, task)
            note("end", shard[0])
            shard[0] = None
            return answer

        def noted_run(self, fetch, feeds):
            if shard[0] is not None:
                rows = {len(values) for values in feeds.values()}.pop()
                if rows == 2 and all((v[0] == v[1]).all() for v in feeds.values()):
                    rows = 1  # a batch of one, padded
                note("infer", shard[0], rows)
            return run(self, fetch, feeds)

        worker.Worker.score, session.Session.run = noted_score, noted_run

    if os.environ.get("COUNTS") and "default_worker" in " ".join(sys.orig_argv):
        count()
'''


class Nodes:
    """A cluster whose nodes die and come back; its head stays."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes = [self._add() for _ in range(_NODES)]
        self.options = (
            "--engine=ray",
            f"--ray_address={self.cluster.address}",
            f"--actors=1:{_NODES}",
        )

    def _add(self) -> Any:
        return self.cluster.add_node(num_cpus=1, object_store_memory=_STORE_BYTES)

    def kill(self) -> None:
        """One of them, and start another. Its actors die at once, or only when they see that it is
        gone.
        """
        node = self._nodes.pop(self._random.randrange(len(self._nodes)))
        if self._random.random() < 0.5:
            for process in node.all_processes["raylet"]:
                for child in psutil.Process(process.process.pid).children(recursive=True):
                    child.kill()
        self.cluster.remove_node(node, allow_graceful=False)
        self._nodes.append(self._add())


@dataclass(frozen=True)
class Job:
    """The command; `counts`: what its processes note."""

    options: argparse.Namespace
    counts: Path

    def start(self, output: Path, *more: str) -> subprocess.Popen[bytes]:
        command = [
            sys.executable, "-P", "-m", "batchpredict", f"--input_file={self.options.input}",
            f"--model={self.options.model}", f"--output_file={output}", "--max_rejects=100%",
            f"--shard_bytes={self.options.shard_bytes}", "--quiet", *more,
        ]  # fmt: skip
        return subprocess.Popen(command)


def facts(output: Path) -> dict[str, Any]:
    """What two runs have to have in common."""
    receipt = json.loads(Path(f"{output}.receipt.json").read_text())
    return {
        "sha256": receipt["output"]["sha256"],
        "counts": receipt["counts"],
        "rejects": receipt["rejects"]["sha256"],
        "profile": receipt["profile"],
    }


def repeated(counts: Path, needed: int) -> tuple[str, int]:
    """What was done more than once, in words, and how often shards were begun again.

    `needed`: rows that one run infers.
    """
    begun: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    rows = 0
    for line in counts.read_text().splitlines():
        what, shard, *number = line.split()
        begun[shard] += what == "begin"
        ended[shard] += what == "end"
        rows += sum(map(int, number))
    again = sum(begun.values()) - len(begun)
    twice = sum(ended.values()) - len(begun)
    return (
        f"{len(begun)} shards, {again} begun again, {twice} finished again; {rows} rows inferred "
        f"for {needed}: {rows - needed} again"
    ), again


def killing_nodes(job: Job, nodes: Nodes, output: Path) -> int:
    """How many were killed in one job."""
    process, kills = job.start(output, *nodes.options), 0
    time.sleep(2 * job.options.every)
    while process.poll() is None:
        if kills < job.options.nodes:
            nodes.kill()
            kills += 1
        time.sleep(job.options.every)
    return kills


def killing_drivers(job: Job, nodes: Nodes, output: Path) -> int:
    """How many were killed until one has come to its end."""
    numbers, kills = random.Random(job.options.seed), 0
    while True:
        process = job.start(output, *nodes.options)
        try:
            wait = numbers.uniform(0.7, 2.5) * job.options.every
            process.wait(wait if kills < job.options.drivers else None)
            return kills
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1


def kills(options: argparse.Namespace) -> bool:
    """Whether every job had the local run's bytes and no more work than it may."""
    site = options.work / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(textwrap.dedent(_COUNTER))
    job = Job(options, options.work / "counts.txt")
    os.environ["COUNTS"] = str(job.counts)
    os.environ["PYTHONPATH"] = f"{site}:{CHECKOUT}"
    here = options.work / "here.csv"
    if not here.exists():
        job.start(here).wait()
    needed = json.loads(Path(f"{here}.receipt.json").read_text())["batches"]["rows"]
    nodes, good = Nodes(options.seed), True
    ways: dict[str, Callable[[Job, Nodes, Path], int]] = {}
    # In flight are the shard of the node that dies, or those of all nodes.
    most = {}
    if options.nodes:
        ways["nodes"], most["nodes"] = killing_nodes, 1
    if options.drivers:
        ways["drivers"], most["drivers"] = killing_drivers, _NODES
    for name, way in ways.items():
        job.counts.unlink(missing_ok=True)
        output, begin = options.work / f"{name}.csv", time.monotonic()
        killed = way(job, nodes, output)
        same = facts(output) == facts(here)
        said, again = repeated(job.counts, needed)
        left = [path.name for path in options.work.glob(f".{output.name}.*")]
        print(
            f"{name}: {killed} kills, {time.monotonic() - begin:.0f} s, "
            f"{'the same bytes' if same else 'OTHER BYTES'}; {said}; left behind: {left}",
            flush=True,
        )
        good &= same and not left and again <= most[name] * killed
    nodes.cluster.shutdown()
    return good


def matrix(options: argparse.Namespace) -> bool:
    """Whether all engines give the same bytes for all formats."""
    folder = options.work / "matrix"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "text").mkdir(parents=True)
    (folder / "table").mkdir()
    with options.input.open(newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)][:_MATRIX_TEXTS]
    rows = [{**row, "text": text} for row, text in zip(rows_of(len(texts)), texts, strict=True)]
    table = models.write_classifier(folder / "table")
    nodes, good = Nodes(options.seed), True
    engines: dict[str, Sequence[str]] = {"here": ()}
    engines |= {f"{n} actors": ("--engine=ray", f"--actors={n}") for n in (1, 2, 4)}
    engines["3 nodes"] = (*nodes.options[:2], f"--actors={_NODES}")
    for name, model, content, shard_bytes in (
        ("text", options.model, rows, "2KiB"),
        ("table", table, rows_of(5000), "8KiB"),
    ):
        inputs = [write_rows(folder / name / f"in_{kind}.{kind}", content) for kind in FORMATS]
        for engine, how in engines.items():
            target = folder / name / engine.replace(" ", "-")
            target.mkdir()
            command = [
                sys.executable, "-P", "-m", "batchpredict", *(f"--input_file={i}" for i in inputs),
                f"--model={model}", f"--output_dir={target}", "--max_rejects=20%",
                f"--shard_bytes={shard_bytes}", "--quiet", *how,
            ]  # fmt: skip
            begin, code = time.monotonic(), subprocess.run(command, check=False).returncode
            same, shards = _same(folder / name / "here", target)
            good &= same
            print(
                f"{name}, {engine}: exit {code}, {time.monotonic() - begin:.0f} s, {shards}, "
                f"{'the same' if same else 'OTHER'} outputs, rejects and counts",
                flush=True,
            )
    nodes.cluster.shutdown()
    return good


def _same(here: Path, there: Path) -> tuple[bool, str]:
    """Whether two runs have published the same; shards and nodes of the second."""
    same, shards, nodes = True, 0, 0
    for receipt in sorted(here.glob("*.receipt.json")):
        name = receipt.name.removesuffix(".receipt.json")
        expected, found = (without_place(published(d / name)) for d in (here, there))
        same &= found == expected
        work = json.loads((there / receipt.name).read_text()).get("nodes", [])
        shards, nodes = sum(n["shards"] for n in work), sum(n["actors"] for n in work)
    return same and len(list(there.iterdir())) == len(list(here.iterdir())), (
        f"{shards} shards by {nodes} actors"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("input", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--matrix", action="store_true")
    parser.add_argument("--nodes", type=int, default=20)
    parser.add_argument("--drivers", type=int, default=20)
    parser.add_argument("--every", type=float, default=6.0, help="seconds between kills")
    parser.add_argument("--shard_bytes", default="32KiB")
    parser.add_argument("--work", type=Path, default=Path("kills"))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.work.mkdir(exist_ok=True)
    options.work = options.work.resolve()
    return 0 if (matrix if options.matrix else kills)(options) else 1


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    sys.exit(main())
