"""The same job on a Ray cluster: the same bytes, whatever dies."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import fastavro
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchpredict import s3
from batchpredict.data.copies import new_copy
from batchpredict.data.csv_shards import csv_shards
from batchpredict.data.naming import MANIFEST, Task, tasks_of
from batchpredict.data.outputs import Publishable
from batchpredict.data.records import Dialect
from batchpredict.data.sources import source_of
from batchpredict.errors import (
    InputInvalid,
    OutputNotCreatable,
    OutputWriteFailed,
    TryAgain,
    Unavailable,
    UsageError,
)
from batchpredict.job import Job
from batchpredict.ops.retry import Request, retry
from batchpredict.run.engine import Watch
from batchpredict.run.loading import load_model
from batchpredict.run.parts import done_part, make_folder, part_job, part_of
from batchpredict.run.parts_folder import _Folder
from batchpredict.run.receipt import Counts, Receipt
from batchpredict.run.runner import run, run_task
from batchpredict.run.worker import About, Problem, Setup, Worker, about
from tests import commands, models
from tests.jobs import files_in, receipt_of, rejects_of, run_job, score
from tests.test_poison import MARKER, POISON

ray = pytest.importorskip("ray", reason="there is no Ray for this Python")

from batchpredict.run.ray_cluster import RayCluster  # noqa: E402 - it imports ray

FORMATS = ("csv", "jsonl", "json", "avro", "parquet")
ROWS = 3000
SHARD = 8192
WORDS = [*models.WORDS, 'a "quote"', "comma, comma", "line\nend", "größer"]


TOKEN = "ab" * 32


@pytest.fixture(scope="module")
def _cluster() -> Iterator[None]:
    """One for all tests of this file: a run joins the one its process is connected to."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_AUTH_TOKEN", TOKEN)
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=80 << 20,
            logging_level="ERROR",
        )
    yield
    ray.shutdown()


def rows_of(count: int, seed: int = 7) -> list[dict[str, Any]]:
    """Rows that can be scored, and some that cannot: `x` is missing or far too large."""
    numbers = random.Random(seed)
    rows = []
    for row in range(count):
        x = numbers.choice([float(numbers.randrange(-9, 9)), numbers.random()])
        text = " ".join(numbers.choices(WORDS, k=numbers.randrange(1, 12)))
        bad = numbers.random() < 0.02
        rows.append({"id": row, "text": text, "x": None if bad else x, "y": numbers.random()})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """In the format of the path's suffix, in several blocks or row groups."""
    kind = path.suffixes[0]
    if kind == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        lines = text.getvalue().splitlines(keepends=True)
        lines[len(lines) // 2 : len(lines) // 2] = ["\n", "one,cell,too,many,x\n"]
        data = "".join(lines).encode()
        path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    elif kind == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "[1]\n\n")
    elif kind == ".json":
        path.write_text(json.dumps(rows))
    elif kind == ".avro":
        fields = [
            {"name": "id", "type": "long"},
            {"name": "text", "type": "string"},
            {"name": "x", "type": ["null", "double"]},
            {"name": "y", "type": "double"},
        ]
        schema = {"type": "record", "name": "r", "fields": fields}
        with path.open("wb") as file:
            fastavro.writer(file, schema, rows, codec="deflate", sync_interval=2000)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=150)
    return path


def published(output: Path) -> dict[str, Any]:
    """The output and its rejects, as bytes, and what the receipt counts."""
    receipt = receipt_of(output)
    rejects = output.with_name(f"{output.name}.rejects.jsonl")
    return {
        "output": output.read_bytes(),
        "rejects": rejects.read_bytes() if rejects.exists() else b"",
        "counts": receipt["counts"],
        "codes": receipt["rejects"],
        "profile": receipt["profile"],
        "input": receipt["inputs"],
        "exit_code": receipt["exit_code"],
        "batches": receipt["batches"],
    }


def without_place(found: dict[str, Any]) -> dict[str, Any]:
    """What two outputs of one input have in common."""
    codes = {name: value for name, value in found["codes"].items() if name != "path"}
    return {**found, "codes": codes}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write_text_model(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("classifier")
    return models.write_classifier(directory)


def same_on_cluster(
    sources: Path | list[Path], model: Path, tmp_path: Path, **options: Any
) -> list[dict[str, Any]]:
    """Receipts of the cluster's run, which has the bytes of the local one."""
    actors, batches = options.pop("actors", "1"), options.pop("batches", True)
    options = {"shard_bytes": SHARD, "max_rejects": "20%", **options}
    here, there = (made(tmp_path / name) for name in ("here", "there"))
    scored = run_job(sources, model, output_dir=here, **options).receipts
    receipts = run_job(
        sources, model, output_dir=there, engine="ray", actors=actors, **options
    ).receipts
    assert len(receipts) == len(scored)
    for receipt in scored:
        output = Path(receipt.output.path if receipt.output else "")
        expected, found = (without_place(published(d / output.name)) for d in (here, there))
        if not batches:  # those of this run alone
            found["batches"] = expected["batches"]
        assert found == expected
    assert not [name for name in files_in(there) if ".parts" in name]
    return [receipt.content() for receipt in receipts]


def on(engine: str) -> dict[str, Any]:
    return {"engine": engine, "actors": None if engine == "local" else "1"}


def shards_of(receipts: list[dict[str, Any]]) -> int:
    return sum(node["shards"] for receipt in receipts for node in receipt["nodes"])


def made(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    return directory


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same rows in every format."""
    directory = tmp_path_factory.mktemp("inputs")
    return [write_rows(directory / f"in_{kind}.{kind}", rows_of(ROWS)) for kind in FORMATS]


@pytest.mark.usefixtures("_cluster")
def test_a_text_job_gives_the_same_bytes(sources: list[Path], model: Path, tmp_path: Path) -> None:
    receipts = same_on_cluster(sources, model, tmp_path, actors="2")
    assert shards_of(receipts) > 4 * 10 + 1  # an array is one


@pytest.mark.usefixtures("_cluster")
def test_a_tabular_job_gives_the_same_bytes(
    sources: list[Path], classifier: Path, tmp_path: Path
) -> None:
    receipts = same_on_cluster(sources, classifier, tmp_path, actors="1:4")
    assert all(receipt["rejects"]["codes"] for receipt in receipts)


@pytest.mark.usefixtures("_cluster")
@pytest.mark.parametrize("target", ["avro", "parquet"])  # whose schema is that of all rows
def test_from_any_format_to_another(
    target: str, sources: list[Path], classifier: Path, tmp_path: Path
) -> None:
    same_on_cluster(sources, classifier, tmp_path, output_format=target, keep="all")


@pytest.mark.usefixtures("_cluster")
def test_compressed_inputs_are_a_shard_each(classifier: Path, tmp_path: Path) -> None:
    sources = [write_rows(tmp_path / f"{n}.csv.gz", rows_of(300, seed=n)) for n in range(6)]
    receipts = same_on_cluster(sources, classifier, tmp_path, shard_bytes=512)
    assert shards_of(receipts) == 6


@pytest.mark.usefixtures("_cluster")
@pytest.mark.parametrize("limit", [0, 1234])
def test_a_limit_holds_for_many_shards_and_for_one(
    limit: int, sources: list[Path], classifier: Path, tmp_path: Path
) -> None:
    few = write_rows(tmp_path / "few.csv.gz", rows_of(300))
    packed = [tmp_path / f"packed{source.suffix}.gz" for source in sources[:2]]
    for source, name in zip(sources, packed, strict=False):
        name.write_bytes(gzip.compress(source.read_bytes()))
    same_on_cluster([sources[0], few, *packed, sources[2]], classifier, tmp_path, limit=limit)


@pytest.mark.usefixtures("_cluster")
@pytest.mark.parametrize("suffix", [".csv.gz", ".json.gz"])
def test_an_output_may_be_compressed(
    suffix: str, sources: list[Path], classifier: Path, tmp_path: Path
) -> None:
    outputs = [tmp_path / f"{name}{suffix}" for name in ("here", "there")]
    for output, engine in zip(outputs, ("local", "ray"), strict=True):
        options = {"shard_bytes": SHARD, "max_rejects": "20%", **on(engine)}
        score(sources[0], classifier, output, **options)
    here, there = map(published, outputs)
    assert without_place(there) == without_place(here)


@pytest.mark.usefixtures("_cluster")
@pytest.mark.parametrize(
    "options",
    [
        {"skip_rows": (1, 1700), "on_error": "null", "keep": ("id",)},
        {"keep": "none"},
    ],
)
def test_options_that_concern_the_whole_input(
    options: dict[str, Any], sources: list[Path], classifier: Path, tmp_path: Path
) -> None:
    same_on_cluster(sources[0], classifier, tmp_path, **options)


@pytest.mark.usefixtures("_cluster")
def test_an_output_may_stay_in_parts(sources: list[Path], classifier: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.csv", tmp_path / "parts.csv"
    options = {"shard_bytes": SHARD, "max_rejects": "20%"}
    score(sources[0], classifier, whole, **options)
    for _ in range(2):  # the second replaces the first
        score(sources[0], classifier, parts, output_parts=True, **on("ray"), **options)
        manifest = json.loads((parts / "_manifest.json").read_text())
        listed = [parts / part["path"] for part in manifest["parts"]]
        assert files_in(parts) == ["_manifest.json", *sorted(path.name for path in listed)]
        tables = [path.read_bytes().split(b"\n", 1) for path in listed]
        header = tables[0][0] + b"\n"
        assert header + b"".join(rows for _, rows in tables) == whole.read_bytes()
        assert sum(part["rows"] for part in manifest["parts"]) == manifest["rows"]
        for path, part in zip(listed, manifest["parts"], strict=True):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == part["sha256"]
    with pytest.raises(UsageError, match=r"is a folder of parts .* run predict again"):
        retry(Request(f"{parts}.receipt.json"), lambda *_: None)
    again = run_job(
        sources[0], classifier, output_file=parts, engine="ray", output_parts=True,
        if_done="skip", **options
    )  # fmt: skip
    assert (again.receipts, again.done) == ((), 1)


def test_a_folder_of_parts_replaces_nothing_else(classifier: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.csv", rows_of(10))
    (made(tmp_path / "out.csv") / "mine").touch()
    with pytest.raises(OutputNotCreatable, match="no folder that --output_parts has made"):
        score(source, classifier, tmp_path / "out.csv", engine="ray", output_parts=True)


@pytest.fixture
def folder(tmp_path: Path) -> Publishable:
    """Of one part, where a private one is already, finished."""
    output = made(tmp_path / "out.csv")
    (output / MANIFEST).write_text("old")
    output.chmod(0o750)
    (tmp_path / "part").write_text("a\n1\n")
    files = {"part-00000.csv": str(tmp_path / "part")}
    made_of = _Folder(str(output), files, b"new")
    made_of.finish()
    return made_of


def test_a_folder_of_parts_shows_no_more_than_the_one_it_replaces(
    folder: Publishable, tmp_path: Path
) -> None:
    assert (tmp_path / ".out.csv.folder").stat().st_mode & 0o777 == 0o700
    folder.publish()
    assert (tmp_path / "out.csv").stat().st_mode & 0o777 == 0o750
    assert files_in(tmp_path) == ["out.csv/_manifest.json", "out.csv/part-00000.csv", "part"]


def test_a_folder_that_cannot_be_replaced_is_still_there(
    folder: Publishable, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / ".out.csv.folder")
    with pytest.raises(OutputWriteFailed):
        folder.publish()
    folder.abandon()
    assert (tmp_path / "out.csv" / MANIFEST).read_text() == "old"
    # And where a run was killed in between, by the next one.
    (tmp_path / "out.csv").rename(tmp_path / ".out.csv.old")
    folder.finish()
    assert (tmp_path / "out.csv" / MANIFEST).read_text() == "old"


def test_a_manifest_is_no_input_of_a_folder(folder: Publishable, tmp_path: Path) -> None:
    folder.publish()
    job = Job(input_file=(str(tmp_path / "out.csv"),), model="m", output_dir=str(tmp_path / "d"))
    tasks, _ = tasks_of(job)
    assert [Path(task.input).name for task in tasks] == ["part-00000.csv"]


@pytest.mark.usefixtures("_cluster")
def test_too_many_rejects_end_both_with_the_same_words(classifier: Path, tmp_path: Path) -> None:
    rows = rows_of(ROWS)
    for row in rows[2000:2300]:
        row["x"] = None
    source = write_rows(tmp_path / "in.csv", rows)
    for budget in ("20", "7%"):
        said = []
        for engine in ("local", "ray"):
            output = tmp_path / "out.csv"
            with pytest.raises(InputInvalid) as caught:
                score(
                    source, classifier, output, max_rejects=budget, shard_bytes=SHARD, **on(engine)
                )
            left = tmp_path / "out.csv.failed.rejects.jsonl"
            said.append((str(caught.value), left.read_bytes() if budget == "20" else b""))
        assert said[0] == said[1]


@pytest.mark.usefixtures("_cluster")
def test_an_input_that_is_damaged_does_not_keep_others(classifier: Path, tmp_path: Path) -> None:
    sources = [write_rows(tmp_path / f"{n}.csv.gz", rows_of(300, seed=n)) for n in range(3)]
    sources[1].write_bytes(b"no gzip")
    output = made(tmp_path / "out")
    outcome = run_job(sources, classifier, output_dir=output, max_rejects="20%", **on("ray"))
    assert outcome.exit_code == 65
    assert len(outcome.receipts) == 2
    assert (output / "1.csv.gz.failed.json").exists()


@pytest.mark.usefixtures("_cluster")
def test_an_input_that_fails_early_does_not_keep_others(
    classifier: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row for row in rows_of(ROWS) if row["x"] is not None]
    good = write_rows(tmp_path / "good.jsonl", rows[:20])
    good.write_text(good.read_text().removesuffix("[1]\n\n"))
    bad = write_rows(tmp_path / "bad.jsonl", [rows[0], {**rows[1], "x": None}, *rows])
    said = []
    for engine in ("local", "ray"):
        caplog.clear()
        outcome = run_job(
            [bad, good], classifier, output_dir=made(tmp_path / engine), on_error="fail",
            shard_bytes=SHARD, **on(engine),
        )  # fmt: skip
        assert (outcome.exit_code, len(outcome.receipts)) == (65, 1)
        said.append([r.getMessage() for r in caplog.records if r.levelname == "ERROR"])
    assert said[1] == [f"{text} (on node {ray.util.get_node_ip_address()})" for text in said[0]]


def watched(source: Path, model: Path, output: Path, watch: Watch, **options: Any) -> Receipt:
    options = {"shard_bytes": SHARD, "max_rejects": "20%", "engine": "ray", **options}
    job = Job(input_file=(str(source),), model=str(model), output_file=str(output), **options)
    (receipt,) = run(job, watch).receipts
    return receipt


def parts_in(directory: Path) -> list[str]:
    """Those that are finished."""
    return [name for name in files_in(directory) if name.endswith(".csv.receipt.json")]


@pytest.mark.usefixtures("_cluster")
def test_parts_that_are_there_are_not_scored_again(classifier: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.csv", rows_of(ROWS))
    output = made(tmp_path / "there") / "in.csv"

    def interrupt(counts: Counts, _: Any) -> None:
        if counts.read > ROWS / 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watched(source, classifier, output, interrupt, actors="2")
    kept = len(parts_in(tmp_path))
    assert kept
    assert not output.exists()
    assert json.loads((tmp_path / "there/in.csv.failed.json").read_text())["exit_code"] == 130
    (receipt,) = same_on_cluster(source, classifier, tmp_path, actors="2", batches=False)
    assert receipt["resumed"]["rows"] > 0
    shards = -(-source.stat().st_size // SHARD)
    assert sum(node["shards"] for node in receipt["nodes"]) <= shards - kept


@pytest.mark.usefixtures("_cluster")
def test_inputs_that_are_done_are_not_scored_again(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [write_rows(tmp_path / f"{n}.csv", rows_of(50, seed=n)) for n in range(4)]
    job = Job(
        input_file=tuple(map(str, sources)), model=str(classifier), engine="ray", actors="1",
        output_dir=str(made(tmp_path / "out")), max_rejects="20%",
    )  # fmt: skip
    done: list[Receipt] = []
    setups: list[Setup] = []
    began = RayCluster.__init__

    def begin(cluster: RayCluster, setup: Setup, job: Job) -> None:
        setups.append(setup)
        began(cluster, setup, job)

    monkeypatch.setattr(RayCluster, "__init__", begin)

    def interrupt(receipt: Receipt) -> None:
        # An actor that comes late, or again on another node, finds what it is to look for.
        assert isinstance(Worker(setups[0]).check(), About)
        done.append(receipt)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(job, lambda counts, seen: None, interrupt)
    again = run(job, lambda counts, seen: None)
    assert (len(again.receipts), again.done) == (2, 2)
    assert not [name for name in files_in(tmp_path) if "/." in name]


@pytest.mark.usefixtures("_cluster")
def test_actors_that_are_killed_change_nothing(classifier: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.csv", rows_of(5 * ROWS))
    here, there = tmp_path / "here.csv", tmp_path / "there.csv"
    score(source, classifier, here, shard_bytes=SHARD, max_rejects="20%")
    killed: list[int] = []

    def kill(counts: Counts, _: Any) -> None:
        if len(killed) < 6 and counts.read:
            actors = [p for p in psutil.process_iter() if is_actor(p)]
            for victim in actors[:1]:  # there may be none just now
                victim.kill()
                killed.append(victim.pid)

    watched(source, classifier, there, kill, actors="3")
    assert len(killed) > 2
    again = without_place(published(there)) | {"batches": None}
    assert again == without_place(published(here)) | {"batches": None}


@pytest.mark.usefixtures("_cluster")
def test_a_killed_driver_is_gone_on_with_by_the_same_command(
    classifier: Path, tmp_path: Path
) -> None:
    source = write_rows(tmp_path / "in.csv", rows_of(4 * ROWS))
    here, there = tmp_path / "here.csv", tmp_path / "there.csv"
    score(source, classifier, here, shard_bytes=SHARD, max_rejects="20%")
    command = (
        f"--input_file={source}", f"--model={classifier}", f"--output_file={there}",
        f"--shard_bytes={SHARD}", "--max_rejects=20%", "--engine=ray", "--actors=1",
    )  # fmt: skip
    joined = f"--ray_address={ray.get_runtime_context().gcs_address}"
    refused = commands.run(*command, joined, cwd=tmp_path, env={"RAY_AUTH_MODE": "token"})
    assert refused.returncode == 78
    assert b"no authentication token was found" in refused.stderr
    assert b"Traceback" not in refused.stderr
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    with commands.start(*command, joined, cwd=tmp_path, env=token) as process:
        wait_for(lambda: len(parts_in(tmp_path)) > 2)
        process.kill()
    kept = len(parts_in(tmp_path))
    with commands.start(*command, cwd=tmp_path) as process:
        wait_for(lambda: len(parts_in(tmp_path)) > kept + 2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 130
        assert b"interrupted; what was not finished" in errors
    assert not there.exists()
    finished = commands.run(*command, joined, cwd=tmp_path, env=token)
    assert finished.returncode == 3, finished.stderr.decode()
    assert receipt_of(there)["resumed"]["runs"] == 2
    assert not finished.stdout.decode().count("Traceback")
    expected = without_place(published(here)) | {"batches": None}
    assert without_place(published(there)) | {"batches": None} == expected
    left = sorted(["in.csv", *(f"{n}.csv{s}" for n in ("here", "there") for s in ENDINGS)])
    assert files_in(tmp_path) == left


ENDINGS = ("", ".receipt.json", ".rejects.jsonl")


def is_actor(process: psutil.Process) -> bool:
    try:
        return "ray::_Actor" in "".join(process.cmdline())
    except psutil.Error:  # it has just died
        return False


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_row_that_kills_its_actor_is_found(classifier: Path, tmp_path: Path) -> None:
    rows = rows_of(ROWS)
    rows[1000]["y"] = MARKER
    source = write_rows(tmp_path / "in.csv", rows)
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(textwrap.dedent(POISON))
    output = tmp_path / "out.csv"
    finished = commands.run(
        f"--input_file={source}", f"--model={classifier}", f"--output_file={output}",
        f"--shard_bytes={SHARD}", "--max_rejects=20%", "--engine=ray", "--actors=2",
        "--log_format=json", cwd=tmp_path,
        env={
            "PYTHONPATH": f"{site}:{commands.CHECKOUT}",
            "POISON": json.dumps({"step": "infer", "signal": signal.SIGSEGV}),
        },
    )  # fmt: skip
    assert finished.returncode == 3, finished.stderr.decode()
    lost = [reject["row"] for reject in rejects_of(output) if reject["code"] == "killed_process"]
    assert lost == [1001]
    # What Ray says of the deaths is in the log like all else.
    said = [
        json.loads(line) for line in [*finished.stdout.splitlines(), *finished.stderr.splitlines()]
    ]
    assert [line for line in said if line.get("message", "").startswith("Ray: ")]


def test_objects_are_read_and_written_by_nodes(
    sources: list[Path], classifier: Path, s3_bucket: str, tmp_path: Path
) -> None:
    inputs = [sources[0], sources[4]]
    for source in inputs:
        s3.store().upload(source, s3.parse(f"s3://{s3_bucket}/in/{source.name}"))
    common = (f"--model={classifier}", "--max_rejects=20%", f"--shard_bytes={8 * SHARD}")
    ray_too = ("--engine=ray", "--actors=1")
    for place, more in (("here", ()), ("there", ray_too), ("parts", (*ray_too, "--output_parts"))):
        finished = commands.run(
            f"--input_file=s3://{s3_bucket}/in/*", f"--output_dir=s3://{s3_bucket}/{place}/",
            *common, *more, cwd=tmp_path, env={"XDG_STATE_HOME": str(made(tmp_path / "state"))},
        )  # fmt: skip
        assert finished.returncode == 3, finished.stderr.decode()
        assert b"Traceback" not in finished.stdout + finished.stderr
        # Each input has lost rows, and that is all there is to be told.
        lines = finished.stderr.decode().splitlines()
        assert [line for line in lines if "could not be scored" not in line] == []
    stored = {
        found.address.key: s3.store().read(found.address, 1 << 24)[0]
        for found in s3.store().list(s3.parse(f"s3://{s3_bucket}/"))
    }
    here, there = (
        {key.removeprefix(place): stored[key] for key in stored if key.startswith(place)}
        for place in ("here/", "there/")
    )
    for name in (source.name for source in inputs):
        assert there.pop(name) == here.pop(name)
        assert there.pop(f"{name}.rejects.jsonl") == here.pop(f"{name}.rejects.jsonl")
        manifest = json.loads(stored[f"parts/{name}/_manifest.json"])
        for part in manifest["parts"]:
            content = stored[f"parts/{name}/{part['path']}"]
            assert hashlib.sha256(content).hexdigest() == part["sha256"]
    assert sorted(there) == sorted(here) == [f"{source.name}.receipt.json" for source in inputs]
    assert not [key for key in stored if "/." in key]


def test_a_copy_of_an_object_serves_all_of_its_shards(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"s3://{s3_bucket}/{n}.parquet" for n in range(2)]
    for name in names:
        s3.store().write(s3.parse(name), name.encode())
    fetched: list[str] = []

    def fetch(name: str, size: int) -> BinaryIO:
        fetched.append(name)
        return new_copy(name, size)

    monkeypatch.setattr("batchpredict.data.sources.new_copy", fetch)
    for name in (names[0], names[0], names[1], names[0]):
        with closing(source_of(name, keeps_copy=True)) as source:
            path = source.local_path()
            assert path
            assert path.read_bytes() == name.encode()
            assert source.finish() == hashlib.sha256(name.encode()).hexdigest()
    assert fetched == [names[0], names[1], names[0]]


# --- what a node is asked before it works


@pytest.fixture
def setup(classifier: Path, tmp_path: Path) -> Setup:
    """Of a node that sees everything."""
    source = write_rows(tmp_path / "in.csv", rows_of(10))
    job = Job(input_file=(str(source),), model=str(classifier))
    model = load_model(job)
    probe = tmp_path / "probe"
    probe.write_bytes(b"42")
    origin = source_of(str(source))
    return Setup(
        part_job(job, model), model.package.digest, "0" * 16, None, {str(probe): b"42"},
        (str(source), origin.size, origin.fingerprint()), about().versions,
    )  # fmt: skip


def test_a_node_that_sees_the_same_may_work(setup: Setup) -> None:
    assert isinstance(Worker(setup).check(), About)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"digest": "ab" * 32}, "is another model here"),
        ({"probes": {"/nowhere/probe": b"42"}}, "outputs have to lie where every node sees them"),
        ({"input": ("in.csv", 17, "x")}, "in.csv: no such file"),
        ({"versions": {"onnxruntime": "0.1"}}, "where the job was started; install the same"),
        ({"directory": "/nowhere"}, "start in a directory that every node has"),
    ],
)
def test_a_node_that_does_not_says_why(setup: Setup, change: dict[str, Any], said: str) -> None:
    problem = Worker(replace(setup, **change)).check()
    assert isinstance(problem, Problem)
    assert said in str(problem.error("10.0.0.7"))
    assert "10.0.0.7" in str(problem.error("10.0.0.7"))


def _touch(source: Path) -> None:
    """Other bytes of the same size and time."""
    status = source.stat()
    source.write_bytes(source.read_bytes()[:-2] + b"5\n")
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    ["nothing", "shard", "options", "on_error", "model", "tokenizers", "input", "output", "sizes"],
)
def test_a_part_is_taken_only_where_it_would_come_out_again(
    change: str, model: Path, tmp_path: Path
) -> None:
    source = tmp_path / "in.csv"
    source.write_text("text\n" + "".join(f"good {row}\n" for row in range(9)))
    job = Job(input_file=(str(source),), model=str(model), output_file=str(tmp_path / "out.csv"))
    loaded = load_model(job)
    (task,), _ = tasks_of(job)
    parts = replace(part_job(job, loaded), no_resume=False)
    (shard,) = csv_shards(source_of(str(source)), Dialect())
    part = part_of(task, shard, None)
    make_folder(task.output)
    receipt = run_task(part, parts, loaded, lambda *_: None)
    assert receipt.part
    fingerprint = source_of(str(source)).fingerprint()
    if change == "input":
        _touch(source)
        fingerprint = source_of(str(source)).fingerprint()
    elif change == "shard":
        part = replace(part, shard=replace(shard, rows=5))
    elif change in ("options", "on_error"):
        others: dict[str, Any] = {"options": {"scores": "all"}, "on_error": {"on_error": "null"}}
        parts = replace(parts, **others[change])
    elif change == "model":
        package = replace(loaded.package, digest="ab" * 32)
        loaded = replace(loaded, fetched=replace(loaded.fetched, package=package))
    elif change == "tokenizers":
        name = Path(part.receipt or "")
        name.write_text(re.sub(r'("tokenizers": )"[^"]*"', r'\1"0.1"', name.read_text()))
    elif change == "output":
        Path(part.output).write_bytes(b"x" * Path(part.output).stat().st_size)
    elif change == "sizes":
        plan = replace(loaded.plan, tuning=replace(loaded.plan.tuning, batch_rows=3))
        loaded = replace(loaded, plan=plan)
    found = done_part(part, parts, loaded, fingerprint)
    assert (found is not None) == (change == "nothing")


def test_a_node_that_takes_over_is_looked_at_too(setup: Setup, tmp_path: Path) -> None:
    (tmp_path / "probe").unlink()
    task = Task("in.csv", "csv", str(tmp_path / "out.csv"), "csv", None, None)
    problem = Worker(setup).score(task).problem
    assert problem
    assert "outputs have to lie where every node sees them" in problem.message


@pytest.mark.parametrize("kind", [Exception, ray.exceptions.GetTimeoutError])
def test_a_ray_that_does_not_start_in_time_is_tried_again(
    kind: type[Exception], classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(**_: Any) -> None:
        raise kind("The current node timed out\nduring startup.")

    source = write_rows(tmp_path / "in.csv", rows_of(10))
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)  # a run would leave one of its own
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", late)
    with pytest.raises(TryAgain, match="has not started: The current node timed out during"):
        run_job(source, classifier, output_file=tmp_path / "out.csv", engine="ray")


@pytest.mark.parametrize("address", ["127.0.0.1:9", "127.0.0.1:70000", "[::1]:9"])
def test_an_address_where_nobody_listens(
    address: str, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_rows(tmp_path / "in.csv", rows_of(10))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    options = {"engine": "ray", "ray_address": address}
    with pytest.raises(Unavailable, match=re.escape(f"--ray_address={address}: no cluster")):
        run_job(source, classifier, output_file=tmp_path / "out.csv", **options)


def test_what_a_worker_logs_comes_with_its_answer(setup: Setup, tmp_path: Path) -> None:
    """Whoever has no more work is not looked at again."""
    worker = Worker(setup)
    output = str(tmp_path / "out.csv")
    task = Task(setup.input[0], "csv", output, "csv", f"{output}.rejects.jsonl", None)
    logging.getLogger("batchpredict.run").warning("it is late")
    assert (logging.WARNING, "it is late") in worker.score(task).log
    assert worker.look().log == ()


SCATTER = """
import threading
import psutil
from batchpredict.run.allocators import give_back

def scatter():
    pieces = [bytes(60_000) for _ in range(1500)]
    kept.extend(pieces[::50])

kept = []
for _ in range(2):
    thread = threading.Thread(target=scatter)
    thread.start()
    thread.join()
before = psutil.Process().memory_info().rss
give_back()
print(before - psutil.Process().memory_info().rss)
"""


def test_memory_that_is_free_is_given_back_after_each_part(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-P", "-c", SCATTER]
    done = subprocess.run(command, capture_output=True, check=True, env=commands.environment())
    assert int(done.stdout) > 16 << 20
    given: list[bool] = []
    monkeypatch.setattr("batchpredict.run.worker.give_back", lambda: given.append(True))
    worker, output = Worker(setup), str(tmp_path / "out.csv")
    task = Task(setup.input[0], "csv", output, "csv", f"{output}.rejects.jsonl", None)
    worker.score(task)
    worker.score(replace(task, input="gone.csv"))
    assert len(given) == 2


def test_streams_are_refused(classifier: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.csv", rows_of(10))
    with pytest.raises(UsageError, match="nodes cannot share"):
        run_job(source, classifier, output_file="-", engine="ray")


def test_a_local_run_removes_what_a_cluster_has_left(classifier: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.csv", rows_of(10))
    (made(tmp_path / ".out.csv.parts") / "000000.out.csv").touch()
    score(source, classifier, tmp_path / "out.csv", max_rejects="50%")
    assert not (tmp_path / ".out.csv.parts").exists()


@pytest.mark.parametrize("actors", ["0", "two", "4:2", ":3"])
def test_actors_are_a_number_or_a_range(actors: str) -> None:
    with pytest.raises(UsageError, match="must be a number"):
        Job(input_file=("a.csv",), model="m", engine="ray", actors=actors)
