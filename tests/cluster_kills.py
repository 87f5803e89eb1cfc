"""Kill nodes of a Ray cluster, and drivers, while a job runs there; see test_cluster.

    python -m tests.cluster_kills INPUT --model=MODEL [--nodes 20] [--drivers 20] [--every 8]

The cluster is several nodes (raylets) on this machine. Bytes are compared with a local run's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

_NODES = 3


class Killer:
    """A cluster whose nodes die and come back; its head stays."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "object_store_memory": 80 << 20,
            },
        )
        self._nodes = [self._add() for _ in range(_NODES)]

    def _add(self) -> Any:
        return self.cluster.add_node(num_cpus=1, object_store_memory=80 << 20)

    def kill_node(self) -> None:
        node = self._nodes.pop(self._random.randrange(len(self._nodes)))
        self.cluster.remove_node(node, allow_graceful=False)
        self._nodes.append(self._add())


def command(options: argparse.Namespace, output: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-P", "-m", "batchpredict", f"--input_file={options.input}",
        f"--model={options.model}", f"--output_file={output}",
        f"--shard_bytes={options.shard_bytes}", *more,
    ]  # fmt: skip


def facts(output: Path) -> dict[str, Any]:
    """What two runs have to have in common."""
    receipt = json.loads(Path(f"{output}.receipt.json").read_text())
    return {
        "sha256": receipt["output"]["sha256"],
        "counts": receipt["counts"],
        "rejects": receipt["rejects"]["sha256"],
        "profile": receipt["profile"],
    }


def told(name: str, output: Path, kills: int, expected: dict[str, Any], seconds: float) -> bool:
    receipt = json.loads(Path(f"{output}.receipt.json").read_text())
    again = receipt["batches"]["rows"] + receipt["resumed"]["rows"]
    same = facts(output) == expected
    print(
        f"{name}: {kills} kills, {seconds:.0f} s, exit {receipt['exit_code']}, "
        f"{'the same bytes' if same else 'OTHER BYTES'}, {receipt['counts']['read']} rows, "
        f"{receipt['batches']['rows']} inferred by the last run (with {again} known or inferred), "
        f"resumed {receipt['resumed']}, nodes {len(receipt['nodes'])}",
        flush=True,
    )
    return same


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("input")
    parser.add_argument("--model", required=True)
    parser.add_argument("--nodes", type=int, default=20)
    parser.add_argument("--drivers", type=int, default=20)
    parser.add_argument("--every", type=float, default=8.0)
    parser.add_argument("--shard_bytes", default="32KiB")
    parser.add_argument("--work", type=Path, default=Path("kills"))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.work.mkdir(exist_ok=True)
    here = options.work / "here.csv"
    if not here.exists():
        subprocess.run(command(options, here, "--max_rejects=100%"), check=False)
    expected = facts(here)
    killer = Killer(options.seed)
    ray = ("--engine=ray", f"--ray_address={killer.cluster.address}", f"--actors=1:{_NODES}")
    good = True
    if options.nodes:
        output, begin, kills = options.work / "nodes.csv", time.monotonic(), 0
        job = subprocess.Popen(command(options, output, "--max_rejects=100%", *ray))
        time.sleep(3 * options.every)
        while job.poll() is None:
            if kills < options.nodes:
                killer.kill_node()
                kills += 1
            time.sleep(options.every)
        good &= told("nodes", output, kills, expected, time.monotonic() - begin)
    if options.drivers:
        output, begin, kills = options.work / "drivers.csv", time.monotonic(), 0
        numbers = random.Random(options.seed)
        while True:
            job = subprocess.Popen(command(options, output, "--max_rejects=100%", *ray))
            try:
                job.wait(numbers.uniform(1, 4) * options.every if kills < options.drivers else None)
                break
            except subprocess.TimeoutExpired:
                job.kill()
                job.wait()
                kills += 1
        good &= told("drivers", output, kills, expected, time.monotonic() - begin)
    killer.cluster.shutdown()
    return 0 if good else 1


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    sys.exit(main())
