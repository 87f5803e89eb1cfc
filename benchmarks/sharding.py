"""A large CSV file with quoted line feeds cut into shards, beside hashing it and parsing it.

`python benchmarks/sharding.py [--gigabytes 10] [--slice_megabytes 500]`. The file is made in
`.work/` and deleted. Each figure is of a process of its own, megabytes per CPU second of it, after
a first small file was read. Ours counts rows, finds every border and computes the SHA-256.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
WORK = HERE / ".work"

_TIMED = """
import sys, time
{setup}
work(sys.argv[1])
wall, used = time.perf_counter(), time.process_time()
found = work(sys.argv[2])
print(time.perf_counter() - wall, time.process_time() - used, found)
"""
_OURS = """
from batchpredict.data import csv
from batchpredict.data.records import Dialect
from batchpredict.data.sources import source_of
def work(path):
    source = source_of(path)
    found = list(csv.shards(source, Dialect()))
    source.finish()
    return f"{len(found)} shards, {sum(shard.rows for shard in found)} rows"
"""
_HASH = """
import hashlib
def work(path):
    digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 20))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return "bytes alone"
"""
_MODULE = """
import csv
def work(path):
    with open(path, newline="") as file:
        return f"{sum(1 for _ in csv.reader(file)) - 1} rows"
"""
_ARROW = """
import pyarrow as pa, pyarrow.csv
pa.set_cpu_count(1)
def work(path):
    options = pa.csv.ParseOptions(newlines_in_values=True)
    read = pa.csv.ReadOptions(use_threads=False)
    with pa.csv.open_csv(path, read_options=read, parse_options=options) as reader:
        return f"{sum(batch.num_rows for batch in reader)} rows"
"""


def rows(count: int, seed: int) -> bytes:
    chance = random.Random(seed)
    lines = []
    for _ in range(count):
        words = " ".join(chance.choices(("red", "small", "printer", "né", "leaks"), k=12))
        note = f'"{words}\nand ""{chance.randrange(99)}"", too"' if chance.random() < 0.5 else words
        lines.append(f"{chance.randrange(10**9)},{note},{chance.random():.6f},\n")
    return "".join(lines).encode()


def make(path: Path, size: int) -> None:
    """`size` bytes, about: a few thousand rows again and again, begun anew at varying places."""
    blocks = [rows(3000 + 7 * seed, seed) for seed in range(8)]
    chance = random.Random(0)
    with path.open("wb") as file:
        file.write(b"id,note,score,rest\n")
        while file.tell() < size:
            file.write(chance.choice(blocks))


def measured(name: str, setup: str, small: Path, path: Path) -> None:
    command = [sys.executable, "-c", _TIMED.format(setup=setup), str(small), str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=HERE.parent)
    wall, used, found = done.stdout.split(maxsplit=2)
    size = path.stat().st_size
    print(
        f"{name:28} {size / 1e9:6.2f} GB {float(wall):7.1f} s {float(used):7.1f} CPU s "
        f"{size / float(used) / 1e6:6.0f} MB per CPU s; {found.strip()}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--slice_megabytes", type=float, default=500)
    options = parser.parse_args()
    WORK.mkdir(exist_ok=True)
    small, part, whole = (WORK / f"shards_{name}.csv" for name in ("small", "slice", "whole"))
    try:
        make(small, 1 << 20)
        make(part, int(options.slice_megabytes * 1e6))
        make(whole, int(options.gigabytes * 1e9))
        measured("SHA-256 alone", _HASH, small, whole)
        measured("shards and SHA-256", _OURS, small, whole)
        measured("pyarrow, one thread", _ARROW, small, part)
        measured("csv module", _MODULE, small, part)
    finally:
        for path in (small, part, whole):
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
