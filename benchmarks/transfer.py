"""Downloads and uploads of one large file beside plain boto3's, in turn, against one server.

`python benchmarks/transfer.py [--megabytes 500] [--rounds 5] [--server static|seaweed]`. Every
transfer is a process of its own, whose seconds count from the first call. Ours includes the
SHA-256, which boto3 does not compute.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

_START = """
import resource, sys, time
from pathlib import Path
from batchpredict import s3
store, address, path = s3.store(), s3.parse(sys.argv[1]), Path(sys.argv[2])
"""
_OURS = _START + "stored = store.head(address); client = None\n"
_THEIRS = (
    _START
    + """
import boto3
from botocore.config import Config
client = boto3.client("s3", config=Config(
    s3={"addressing_style": "path"},
    request_checksum_calculation="when_required", response_checksum_validation="when_required"))
client.head_object(Bucket=address.bucket, Key=address.key)
"""
)
_END = """
start, used = time.perf_counter(), time.process_time()
{call}
seconds, used = time.perf_counter() - start, time.process_time() - used
print(seconds, used, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
DOWNLOADS = {
    "boto3 download_file": (_THEIRS, "client.download_file(address.bucket, address.key, path)"),
    "batchpredict, SHA-256 too": (_OURS, "store.download(stored, path, lambda count: None)"),
}
UPLOADS = {
    "boto3 upload_file": (_THEIRS, "client.upload_file(path, address.bucket, address.key)"),
    "batchpredict": (_OURS, "store.upload(path, address, lambda count: None)"),
}


@contextmanager
def served(kind: str, file: Path, directory: Path) -> Iterator[str]:
    """The URL of a server that has `file` as bucket/key."""
    from tests import s3servers

    if kind == "seaweed":
        with s3servers.seaweed(directory) as server:
            server.client().create_bucket(Bucket="bucket")
            server.client().upload_file(file, "bucket", "key")
            yield server.url
        return
    command = [sys.executable, str(HERE / "static_store.py"), str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.kill()


def measured(url: str, head: str, call: str, path: Path) -> list[float]:
    """Seconds, CPU seconds, MB of memory."""
    from tests import s3servers

    given = s3servers.environment(url, path.parent / "none")
    env = {**os.environ, **{name: value for name, value in given.items() if value}}
    env["PYTHONPATH"] = str(HERE.parent)
    code = head + _END.format(call=call)
    command = [sys.executable, "-c", code, "s3://bucket/key", str(path)]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    return [float(word) for word in done.stdout.split()]


def compare(url: str, contenders: dict, rounds: int, path: Path, keep: bool) -> None:
    results: dict[str, list[list[float]]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name in sorted(contenders, reverse=bool(turn % 2)):
            if not keep:
                path.unlink(missing_ok=True)
            results[name].append(measured(url, *contenders[name], path))
    for name, figures in results.items():
        wall, cpu, memory = (statistics.median(column) for column in zip(*figures, strict=True))
        print(f"{name:28} {wall:6.2f} s {cpu:6.2f} CPU s {memory:6.0f} MB")
    theirs, ours = ([row[0] for row in results[name]] for name in contenders)
    print(f"speed, boto3 = 1: {statistics.median(theirs) / statistics.median(ours):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--server", choices=["static", "seaweed"], default="static")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        file = directory / "file"
        with file.open("wb") as out:
            for _ in range(options.megabytes):
                out.write(os.urandom(1_000_000))
        store = directory / "store"
        store.mkdir()
        with served(options.server, file, store) as url:
            compare(url, DOWNLOADS, options.rounds, directory / "copy", keep=False)
            if options.server == "seaweed":
                compare(url, UPLOADS, options.rounds, file, keep=True)
        shutil.rmtree(store)


if __name__ == "__main__":
    main()
