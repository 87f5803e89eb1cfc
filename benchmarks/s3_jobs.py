"""A job from S3 to S3 beside the same from disk to disk, in turn, against SeaweedFS on loopback.

`python benchmarks/s3_jobs.py INPUT MODEL [--rounds 3]`. Processes as a user starts them; their
outputs are compared. The server's own CPU seconds are not counted, but it takes them from the jobs.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests import s3servers  # noqa: E402

BUCKET = "benchmark"


def run(environment: dict[str, str], source: str, model: str, output: str) -> tuple[float, float]:
    """Wall and CPU seconds."""
    command = [sys.executable, "-m", "batchpredict", f"--input_file={source}", f"--model={model}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    subprocess.run([*command, f"--output_file={output}", "--quiet"], env=environment, check=True)
    wall = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("input", type=Path)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, s3servers.seaweed(Path(folder)) as server:
        variables = s3servers.environment(server.url, Path(folder))
        environment = os.environ | {k: v for k, v in variables.items() if v is not None}
        environment |= {"PYTHONPATH": str(ROOT), "XDG_STATE_HOME": f"{folder}/state"}
        client, name = server.client(), options.input.name
        client.create_bucket(Bucket=BUCKET)
        client.upload_file(options.input, BUCKET, name)
        places = {
            "disk": (str(options.input.resolve()), f"{folder}/scored-{name}"),
            "S3": (f"s3://{BUCKET}/{name}", f"s3://{BUCKET}/scored-{name}"),
        }
        taken: dict[str, list[tuple[float, float]]] = {place: [] for place in places}
        for _ in range(options.rounds):
            for place, (source, output) in places.items():
                taken[place].append(run(environment, source, options.model, output))
        content = client.get_object(Bucket=BUCKET, Key=f"scored-{name}")["Body"].read()
        assert content == Path(places["disk"][1]).read_bytes(), "the outputs differ"
    for place, seconds in taken.items():
        walls, used = zip(*seconds, strict=True)
        print(f"{place:5} {statistics.median(walls):7.2f} s  {statistics.median(used):7.2f} CPU s")
    pairs = zip(taken["disk"], taken["S3"], strict=True)
    speeds = [(disk[0] / other[0], disk[1] / other[1]) for disk, other in pairs]
    wall, used = (statistics.median(part) for part in zip(*speeds, strict=True))
    print(f"speed, disk = 1 (median of {len(speeds)} pairs): {wall:.3f}, per CPU second {used:.3f}")


if __name__ == "__main__":
    main()
