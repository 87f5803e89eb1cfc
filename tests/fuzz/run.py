"""The long run: `python -m tests.fuzz.run --target all --cases 100000 --seed 0 --ledger FILE`.

The ledger gets a JSON line per piece of the run, so a run can be stopped at any time, the next
one begin at another --seed, and all of them be summed with `--sum`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.fuzz import harness

_PIECE = 4000


def main() -> int:
    arguments = _arguments()
    if arguments.sum:
        return _print_sums(arguments.ledger)
    if arguments.again:
        name, _, seed = arguments.again.partition(":")
        return _again(name, int(seed), arguments.save)
    names = list(harness.all_targets()) if arguments.target == "all" else [arguments.target]
    found: list[dict[str, Any]] = []
    for first in range(0, arguments.cases, _PIECE):
        count = min(_PIECE, arguments.cases - first)
        for name in names:
            begin = arguments.seed + first
            result = harness.run(name, range(begin, begin + count), arguments.memory << 20)
            _record(result, arguments.ledger)
            found += result.findings
    return 1 if found else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="all", choices=["all", *harness.all_targets()])
    parser.add_argument("--cases", type=int, default=1000, help="for each target")
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--ledger", type=Path, help="where results are appended")
    parser.add_argument("--memory", type=int, default=2048, help="MiB beyond the worker's base")
    parser.add_argument("--sum", action="store_true", help="add up the ledger, run nothing")
    parser.add_argument("--again", metavar="TARGET:SEED", help="make one case again, in-process")
    parser.add_argument("--save", type=Path, help="with --again: where to write its bytes")
    return parser.parse_args()


def _record(result: harness.Result, ledger: Path | None) -> None:
    line = json.dumps(asdict(result))
    if ledger:
        with ledger.open("a") as stream:
            stream.write(line + "\n")
    rate = result.cases / max(result.cpu_seconds, 1e-9)
    print(
        f"{result.target} {result.first}+{result.cases}: {result.read} read, {result.refused} "
        f"refused, {len(result.findings)} findings, {rate:.0f} cases per CPU second, "
        f"peak {result.peak_mib} MiB",
        flush=True,
    )
    for finding in harness.distinct(result.findings).values():
        again = f"{result.target}:{finding['seed']}"
        print(f"  {again} {finding['what']} {finding['where']}", flush=True)


def _print_sums(ledger: Path) -> int:
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])
    for line in ledger.read_text().splitlines():
        entry = json.loads(line)
        row = sums[entry["target"]]
        row[:4] = [
            total + entry[key]
            for total, key in zip(row, ("cases", "read", "refused", "cpu_seconds"), strict=False)
        ]
        row[4] += len(entry["findings"])
    for name, (cases, read, refused, seconds, findings) in sorted(sums.items()):
        print(
            f"{name}: {cases} cases, {read} read, {refused} refused, {findings} findings, ", end=""
        )
        print(f"{seconds:.0f} CPU seconds")
    print(f"all: {sum(row[0] for row in sums.values())} cases")
    return 0


def _again(name: str, seed: int, save: Path | None) -> int:
    target = harness.all_targets()[name]
    case = target.case(harness.rng_of(name, seed))
    print(repr(case)[:4000])
    if save:
        save.write_bytes(case.data)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        target.check(case, Path(scratch))
    return 0


if __name__ == "__main__":
    sys.exit(main())
