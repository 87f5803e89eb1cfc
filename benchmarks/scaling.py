"""A job on a Ray cluster of this machine beside the same job without it, in turn.

`python benchmarks/scaling.py INPUT MODEL [--rounds 3] [--actors 2] [--gigabytes 5]`. Processes as a
user starts them, one actor for each core; outputs are compared. With `--gigabytes` the rows of
INPUT (CSV) again and again, in a file of that size, which is deleted; `--pad` makes them longer.
`--memory` looks at the memory of all processes, which holds them up: not where time is compared.

Start-up: until the first batch is scored, or all actors have loaded the model. CPU seconds: of all
processes of the job and of Ray. Object store: bytes that were ever put there, and spilled to disk.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure

ROOT = Path(__file__).resolve().parents[1]
_STORE = {
    "created": re.compile(r"num bytes created total: (\d+)"),
    "spilled": re.compile(r"cumulative spill requests: (\d+)"),
}
# In the log; of a local run the receipt knows better.
_STARTED = {"ray": re.compile(rb" actors? on "), "local": re.compile(rb"")}


@dataclass(frozen=True)
class Taken:
    """What a run took. `start`: seconds until the first row; `driver`: bytes at its peak;
    `cpu`: CPU seconds of all processes, `cpu_work`: after the start.
    """

    reading: measure.Reading
    start: float
    driver: int
    cpu: float
    cpu_work: float
    receipt: dict[str, Any]
    store: dict[str, int]

    @property
    def work(self) -> float:
        """Seconds after the start."""
        return self.reading.wall - self.start


def run(options: argparse.Namespace, source: Path, engine: str, folder: Path) -> Taken:
    """One run; of what it writes only the receipt is left."""
    output, log = folder / f"{engine}.csv", folder / f"{engine}.log"
    ray = Path(tempfile.mkdtemp(prefix="ray"))  # short: there will be names of sockets below it
    command = [
        sys.executable, "-P", "-m", "batchpredict", f"--input_file={source}",
        f"--model={options.model}", f"--output_file={output}", "--max_rejects=100%",
    ]  # fmt: skip
    if engine == "ray":
        command += ["--engine=ray", f"--actors={options.actors}"]
        command.append(f"--cpus_per_actor={options.cpus_per_actor}")
    if options.shard_bytes:
        command.append(f"--shard_bytes={options.shard_bytes}")
    variables = {"PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder), "RAY_TMPDIR": str(ray)}
    with _Watch(log, _STARTED[engine]) as watch:
        reading = measure.run(command, os.environ | variables, log, options.memory)
    if reading.exit_code not in (0, 3):
        sys.exit(log.read_text())
    receipt = json.loads(Path(f"{output}.receipt.json").read_text())
    output.unlink()
    store = _stored(ray)
    shutil.rmtree(ray)
    start = watch.started if engine == "ray" else receipt["first_row_seconds"]
    assert start, "when it has started is not in its log"
    used = sum(watch.used.values()), watch.used_after(start)
    return Taken(reading, start, watch.peak, *used, receipt, store)


class _Watch:
    """Looks at a run from outside. `started`: seconds until it said so; `peak`: of the command's
    own process, in bytes; `used`: CPU seconds by process. Ray's daemons wait for none of theirs:
    what these have used is in nobody's account, nor is it of the last second. A look at all
    threads of Ray takes 20 ms.
    """

    def __init__(self, log: Path, started: re.Pattern[bytes]) -> None:
        self.started, self.peak = 0.0, 0
        self.used: dict[int, float] = {}
        self._course: list[tuple[float, float]] = []
        self._log = log
        self._started = started
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        begin = time.perf_counter()
        while not self._ended.wait(1.0 if self.started else 0.2):
            self.peak = max([self.peak, *map(_highest, self._commands())])
            self._course.append((time.perf_counter() - begin, sum(self.used.values())))
            if not self.started and self._has_started():
                self.started = time.perf_counter() - begin

    def _has_started(self) -> bool:
        return self._log.exists() and bool(self._started.search(self._log.read_bytes()))

    def _commands(self) -> list[int]:
        """The processes that are the command."""
        found = measure.descendants(os.getpid())
        self.used |= {pid: max(_used(pid), self.used.get(pid, 0.0)) for pid in found}
        return [pid for pid in found if b"\0batchpredict\0" in _read(pid, "cmdline")]

    def used_after(self, start: float) -> float:
        """CPU seconds of all processes after so many seconds."""
        before = [used for seconds, used in self._course if seconds <= start]
        return sum(self.used.values()) - (before[-1] if before else 0.0)

    def __enter__(self) -> _Watch:
        self._log.unlink(missing_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it has just ended
        return b""


def _used(pid: int) -> float:
    """CPU seconds of a process, without those of its children."""
    numbers = _read(pid, "stat").rpartition(b")")[2].split()
    return sum(map(int, numbers[11:13])) / os.sysconf("SC_CLK_TCK") if numbers else 0.0


def _highest(pid: int) -> int:
    found = re.search(rb"VmHWM:\s+(\d+)", _read(pid, "status"))
    return int(found[1]) * 1024 if found else 0


def _stored(ray: Path) -> dict[str, int]:
    """What Ray's object store says of itself, every 10 seconds."""
    states = [path.read_text() for path in ray.rglob("session_2*/logs/debug_state.txt")]
    if not states:
        return {}
    state = max(states, key=len)
    found = {name: pattern.findall(state) for name, pattern in _STORE.items()}
    files = sum(
        file.stat().st_size
        for folder in ray.rglob("ray_spilled_objects*")
        for file in folder.rglob("*")
        if file.is_file()
    )
    return {name: max(map(int, values)) for name, values in found.items() if values} | {
        "spilled files": files
    }


@contextmanager
def enlarged(source: Path, size: int, pad: int, folder: Path) -> Iterator[Path]:
    """The rows of a CSV file, again and again, in a file of `size` bytes."""
    if not size:
        yield source
        return
    header, *lines = source.read_bytes().splitlines()
    if pad:
        header, more = header + b",note", b"," + b"note " * (pad // 5)
        lines = [line + more for line in lines]
    rows = b"\n".join(lines) + b"\n"
    target = folder / f"large-{source.name}"
    with target.open("wb") as file:
        file.write(header + b"\n")
        while file.tell() < size:
            file.write(rows)
    yield target
    target.unlink()


def told(engine: str, taken: Taken) -> None:
    reading, receipt = taken.reading, taken.receipt
    rows, stages = receipt["counts"]["read"], receipt["stages"]
    nodes = receipt.get("nodes") or []
    together = f", all processes {reading.peak_bytes / 1e6:.0f} MB" if reading.peak_bytes else ""
    print(
        f"{engine:6} wall {reading.wall:7.1f} s: start {taken.start:5.1f}, then {taken.work:7.1f}; "
        f"{taken.cpu:7.1f} CPU s, {taken.cpu_work:.1f} after the start; "
        f"{rows / taken.work:,.0f} rows/s, "
        f"{rows / taken.cpu_work:,.1f} rows per CPU s; load {os.getloadavg()[0]:.1f}\n"
        f"       peak: command {taken.driver / 1e6:.0f} MB, actor "
        f"{max((n['peak_memory_bytes'] for n in nodes), default=0) / 1e6:.0f} MB{together}; "
        f"shards {sum(n['shards'] for n in nodes)}; "
        f"join {stages.get('join', 0.0):.1f} s of {receipt['output']['size'] / 1e6:.0f} MB; "
        f"object store {taken.store}; stages "
        f"{ {name: round(value, 1) for name, value in stages.items()} }",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("input", type=Path)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--cpus_per_actor", type=int, default=1)
    parser.add_argument("--gigabytes", type=float, default=0)
    parser.add_argument("--pad", type=int, default=0, help="bytes of a column more")
    parser.add_argument("--shard_bytes")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--folder", type=Path, help="where files are made")
    parser.add_argument("--engines", default="local,ray")
    options = parser.parse_args()
    taken: dict[str, list[Taken]] = {engine: [] for engine in options.engines.split(",")}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        with enlarged(options.input, int(options.gigabytes * 1e9), options.pad, folder) as source:
            for _ in range(options.rounds):
                for engine, done in taken.items():
                    done.append(run(options, source.resolve(), engine, folder))
                    told(engine, done[-1])
    outputs = {done.receipt["output"]["sha256"] for runs in taken.values() for done in runs}
    assert len(outputs) == 1, "the outputs differ"
    if taken.keys() != {"local", "ray"}:
        return
    pairs = list(zip(taken["local"], taken["ray"], strict=True))
    after = [ray.work / local.work for local, ray in pairs]
    used = [ray.cpu_work / local.cpu_work for local, ray in pairs]
    for what, ratios in (("seconds", after), ("CPU seconds", used)):
        print(
            f"{what} after the start, ray / local: {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f}), {len(ratios)} pairs"
        )


if __name__ == "__main__":
    main()
