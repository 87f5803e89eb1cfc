"""Push and fetch models in processes that are killed at random; see test_store and test_fetching.

    python -m tests.store_kills --pushes 200 --pulls 200 [--store folder|s3|seaweed|URL] [--seed N]

After each kill nothing that is seen may be incomplete, and nothing that is used may be wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from batchpredict import s3
from batchpredict.model.registry.cache import Cache, findings
from batchpredict.model.registry.reference import Reference
from batchpredict.model.registry.store import open_store
from batchpredict.model.registry.verification import verify
from batchpredict.run.fetching import fetch
from batchpredict.run.origin import ModelChoice
from tests import s3servers, stores

_BIG = 1 << 20


@dataclass
class Figures:
    """`killed`: processes that had not ended, of `runs`. `wrong`: what must never be."""

    runs: int = 0
    killed: int = 0
    versions: int = 0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.runs} runs, {self.killed} killed before their end, {self.versions} complete"
            f" versions, {len(self.wrong)} wrong"
        )


def forked(work: Callable[[], None]) -> int:
    """In a process without clients, so that each has connections of its own."""
    process = os.fork()
    if process:
        return process
    code = 99
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def ended(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def killed_after(seconds: float, work: Callable[[], None]) -> bool:
    """Whether it had not ended by then."""
    process = forked(work)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    code = ended(process)
    if code not in (0, -signal.SIGKILL):
        raise AssertionError(f"failed by itself: {code}")
    return code != 0


def told(work: Callable[[], list[str]]) -> list[str]:
    """Lines that a process of its own finds."""
    with tempfile.NamedTemporaryFile("r") as file:

        def write() -> None:
            Path(file.name).write_text("\n".join(work()))

        if ended(forked(write)):
            raise AssertionError("a check failed by itself")
        return [line for line in file.read().splitlines() if line]


def seconds_of(work: Callable[[], None]) -> float:
    begin = time.monotonic()
    if ended(forked(work)):
        raise AssertionError("failed by itself")
    return time.monotonic() - begin


def push_kills(url: str, folder: Path, runs: int, chance: random.Random) -> Figures:
    """Some are the same as before, some another content."""
    figures = Figures()
    complete: set[str] = set()
    sources = [model_of(folder, f"push{n}", n % 3) for n in range(min(6, 1 + runs // 10))]
    lasts = seconds_of(lambda: _push(url, model_of(folder, "first", 0)))
    while figures.killed < runs and figures.runs < 10 * runs:
        # Half of them are what an earlier one may have begun.
        source = sources[figures.killed * len(sources) // runs]
        if figures.runs % 2:
            source = model_of(folder, f"one{figures.runs}", figures.runs % 3)
        figures.runs += 1
        figures.killed += killed_after(chance.uniform(0, lasts), partial(_push, url, source))
        if figures.runs % 5 == 0:  # what is seen incomplete stays so: no push writes it again
            figures.wrong += _wrong_and_new(url, complete)
    for source in sources:
        if ended(forked(partial(_push, url, source))):
            figures.wrong.append(f"{source} cannot be pushed any more")
    complete.clear()
    figures.wrong += _wrong_and_new(url, complete)
    figures.versions = len(complete)
    return figures


def pull_kills(url: str, folder: Path, runs: int, chance: random.Random) -> Figures:
    """Of the versions that are there; the cache is emptied now and then."""
    figures = Figures()
    cache = folder / "cache" / "batchpredict" / "models"
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    versions = told(lambda: [v.version for v in open_store(url).model("m").versions])
    lasts = seconds_of(lambda: _pull(url, versions[0]))
    while figures.killed < runs and figures.runs < 10 * runs:
        version = versions[chance.randrange(len(versions))]
        if figures.runs % 3 == 0:
            Cache(cache).prune(chance.randrange(2))
        figures.runs += 1
        figures.killed += killed_after(chance.uniform(0, lasts), partial(_pull, url, version))
        figures.wrong += _damaged(cache)
    for version in versions:
        if ended(forked(partial(_pull, url, version))):
            figures.wrong.append(f"{version} cannot be fetched any more")
    figures.wrong += _damaged(cache)
    figures.versions = len(versions)
    Cache(cache).prune(0)
    left = [path for path in cache.rglob("*") if path.is_file() and path.name != "CACHEDIR.TAG"]
    figures.wrong += [
        f"{path} is left"
        for path in left
        if ".part" not in path.name and path.parent.name != "resolved"
    ]
    return figures


def model_of(folder: Path, name: str, files: int) -> Path:
    """Files of 1 MiB that others share, and one that is its own."""
    big = {f"shared{n}": hashlib.sha256(b"%d" % n).digest() * (_BIG // 32) for n in range(files)}
    return stores.model(folder / name, name, own=hashlib.sha256(name.encode()).digest() * 5, **big)


def _push(url: str, source: Path) -> None:
    stores.pushed(open_store(url), source, "m")


def _pull(url: str, version: str) -> None:
    with fetch(ModelChoice(f"m@{version}", url)) as fetched:
        store = open_store(url)
        expected = {file.path: file.sha256 for file in store.manifest("m", version).files}
        for path, _, sha256 in fetched.package.files:
            if expected[path] != sha256:
                raise AssertionError(f"{path} is wrong")


def _wrong_and_new(url: str, complete: set[str]) -> list[str]:
    """What is wrong with the versions that have come into sight; those that are not are added."""

    def look() -> list[str]:
        store = open_store(url)
        found = []
        for version in store.versions("m"):
            if version in complete or not store.exists("m", version):
                continue
            wrong = verify(store, Reference("m", version))[1]
            found += [f"{version}: {what}" for what in wrong] or [f"complete {version}"]
        latest = store.alias("m", "latest")
        if latest and not store.exists("m", latest.version):
            found.append(f"latest names {latest.version}, which is not there")
        return found

    found = told(look)
    complete.update(line.split()[1] for line in found if line.startswith("complete "))
    return [line for line in found if not line.startswith("complete ")]


def _damaged(folder: Path) -> list[str]:
    """What is wrong with the versions of the cache that would be used."""
    wrong = []
    for home in (folder / "versions").glob("[0-9a-f]*"):
        held = Cache(folder).look(home.name)
        if held is None:
            wrong.append(f"{home} is damaged")
            continue
        wrong += findings(held)
        held.release()
    for blob in (folder / "blobs").glob("[0-9a-f]*"):
        if not blob.suffix and hashlib.sha256(blob.read_bytes()).hexdigest() != blob.name:
            wrong.append(f"{blob} is not what its name says")
    return wrong


@contextlib.contextmanager
def location(kind: str, folder: Path) -> Iterator[str]:
    """A new store; a URL is one already."""
    if kind == "folder" or s3.is_url(kind):
        yield str(folder / "store") if kind == "folder" else kind
        return
    (folder / "weed").mkdir()
    with s3servers.moto() if kind == "s3" else s3servers.seaweed(folder / "weed") as server:
        for name, value in s3servers.environment(server.url, folder / "no-aws").items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        if ended(forked(lambda: server.client().create_bucket(Bucket="kills"))):
            raise AssertionError("no bucket")
        yield "s3://kills/models/"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pushes", type=int, default=200)
    parser.add_argument("--pulls", type=int, default=200)
    parser.add_argument("--store", default="folder", help="folder, s3, seaweed or a URL")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    import boto3  # noqa: F401 - once, and not in each process

    s3.connect_to(None, None)
    with tempfile.TemporaryDirectory() as folder, location(arguments.store, Path(folder)) as url:
        pushes = push_kills(url, Path(folder), arguments.pushes, chance)
        print(f"{arguments.store}: pushes: {pushes}", *pushes.wrong, sep="\n", flush=True)
        pulls = pull_kills(url, Path(folder), arguments.pulls, chance)
        print(f"{arguments.store}: pulls: {pulls}", *pulls.wrong, sep="\n", flush=True)
    sys.exit(bool(pushes.wrong or pulls.wrong))


if __name__ == "__main__":
    main()
