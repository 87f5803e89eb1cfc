"""Inputs and outputs in S3: the bytes and promises of files, with a store that speaks HTTP."""

from __future__ import annotations

import glob
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batchpredict import s3
from batchpredict.cli import main
from batchpredict.data import storage
from batchpredict.data.listing import matches, matching
from batchpredict.data.locations import COMPRESS, compression_of
from batchpredict.data.uploads import object_state
from batchpredict.errors import (
    InputInvalid,
    InputMissing,
    InputUnfinished,
    OutputNotCreatable,
    OutputWriteFailed,
    TryAgain,
    Unavailable,
    UsageError,
)
from batchpredict.job import Job
from batchpredict.ops.retry import Request, retry
from batchpredict.run import arrival, room
from batchpredict.run.inspection import inspect
from batchpredict.run.receipt import Receipt
from batchpredict.run.runner import Outcome, rehearse, run
from batchpredict.s3 import calls, connection, multipart, upload
from tests import commands
from tests.fault_proxy import Proxy, proxy_of
from tests.jobs import files_in, score
from tests.s3servers import TEST_KEY_ID, TEST_SECRET, Server
from tests.test_laws import Given, borders, lookup, write
from tests.test_resume import numbers, ramp

KINDS = ("csv", "csv.gz", "jsonl", "jsonl.zst", "json", "json.bz2", "avro", "parquet")
PART = 1 << 20
ROWS = [Given(str(number % 5)) for number in range(60)]
SOME_BAD = [Given(str(number % 10), broken=number == 7) for number in range(60)]


@dataclass(frozen=True)
class Bucket:
    name: str
    client: Any

    def url(self, key: str) -> str:
        return f"s3://{self.name}/{key}"

    def put(self, path: Path, key: str) -> str:
        self.client.put_object(Bucket=self.name, Key=key, Body=path.read_bytes())
        return self.url(key)

    def get(self, key: str) -> bytes:
        content: bytes = self.client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return content

    def names(self) -> list[str]:
        found = self.client.list_objects_v2(Bucket=self.name)
        return [entry["Key"] for entry in found.get("Contents", ())]

    def uploads(self) -> list[str]:
        found = self.client.list_multipart_uploads(Bucket=self.name)
        return [entry["Key"] for entry in found.get("Uploads", ())]

    def receipt(self, key: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get(f"{key}.receipt.json"))
        return found


@pytest.fixture(autouse=True, scope="module")
def _clients_are_made_once() -> Iterator[None]:
    """Making one costs more than a small job."""
    made: dict[str | None, Any] = {}

    def client(to: connection.Connection) -> Any:
        url = os.environ.get("AWS_ENDPOINT_URL")
        made[url] = made.get(url) or connection.client(to)
        return made[url]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls, "client", client)
        yield
    for one in made.values():
        one.close()


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where journals of objects are."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "batchpredict" / "journals"


@pytest.fixture
def bucket(s3_bucket: str, s3_server: Server, state: Path) -> Bucket:
    return Bucket(s3_bucket, s3_server.client())


@pytest.fixture
def proxy(bucket: Bucket, s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Between the tool and the store; the tests' own client goes around it."""
    with proxy_of(s3_server.url) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.url)
        yield found
        s3.connect_to(None, None)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (multipart, upload):
        monkeypatch.setattr(module, "PART", PART)


def run_names(model: Path, *inputs: str | Path, **options: Any) -> Outcome:
    job = Job(input_file=tuple(map(str, inputs)), model=str(model), **options)
    return run(job, lambda counts, source: None)


def score_name(source: str | Path, model: Path, **options: Any) -> Receipt:
    (receipt,) = run_names(model, source, **options).receipts
    return receipt


def written(directory: Path, kind: str, rows: list[Given]) -> Path:
    path = directory / f"in.{kind}"
    compression = compression_of(path.name)
    plain = write(directory / f"in.{kind.removesuffix(compression)}", rows)
    if compression:
        with path.open("wb") as raw, COMPRESS[compression](raw) as sink:
            sink.write(plain.read_bytes())
        plain.unlink()
    return path


def wide(path: Path, rows: int = 6000, width: int = 400) -> Path:
    """More than two parts; no two rows are alike."""
    note = "n" * width
    path.write_text("id,x,note\n" + "".join(f"{n},{n},{note}\n" for n in range(rows)))
    return path


# --- the same bytes as on disk


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_is_as_on_disk(tmp_path: Path, bucket: Bucket, kind: str) -> None:
    model = lookup(tmp_path / "model")
    source = written(tmp_path, kind, SOME_BAD)
    options: dict[str, Any] = {"max_rejects": "50%"}
    score(source, model, tmp_path / f"out.{kind}", **options)
    whole = (tmp_path / f"out.{kind}").read_bytes()
    rejects = (tmp_path / f"out.{kind}.rejects.jsonl").read_bytes()

    url = bucket.put(source, f"in.{kind}")
    receipt = score_name(url, model, **options)
    base = f"in.scored.{kind}"
    assert bucket.names() == [f"in.{kind}", base, f"{base}.receipt.json", f"{base}.rejects.jsonl"]
    assert bucket.get(base) == whole
    expected = rejects.replace(json.dumps(str(source)).encode(), json.dumps(url).encode())
    assert bucket.get(f"{base}.rejects.jsonl") == expected
    assert receipt.exit_code == 3
    found = bucket.receipt(base)
    head = bucket.client.head_object(Bucket=bucket.name, Key=base)
    assert found["output"]["path"] == bucket.url(base)
    assert (found["output"]["size"], found["output"]["etag"]) == (len(whole), head["ETag"])

    score_name(url, model, output_file=str(tmp_path / f"back.{kind}"), **options)
    assert (tmp_path / f"back.{kind}").read_bytes() == whole
    score_name(source, model, output_file=bucket.url(f"up.{kind}"), **options)
    assert bucket.get(f"up.{kind}") == whole
    assert "etag" not in json.loads((tmp_path / f"back.{kind}.receipt.json").read_text())["output"]


@pytest.mark.parametrize(("kind", "target"), [("csv.gz", "parquet"), ("parquet", "jsonl.xz")])
def test_conversions_are_as_on_disk(tmp_path: Path, bucket: Bucket, kind: str, target: str) -> None:
    model = lookup(tmp_path / "model")
    source = written(tmp_path, kind, ROWS)
    score(source, model, tmp_path / f"out.{target}")
    score_name(bucket.put(source, "a"), model, input_format=kind.partition(".")[0],
               output_file=bucket.url(f"b.{target}")) if kind == "parquet" else score_name(
        bucket.put(source, f"a.{kind}"), model, output_file=bucket.url(f"b.{target}")
    )  # fmt: skip
    assert bucket.get(f"b.{target}") == (tmp_path / f"out.{target}").read_bytes()


def test_a_copy_leaves_nothing_and_asks_for_room_first(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lookup(tmp_path / "model")
    url = bucket.put(write(tmp_path / "in.parquet", ROWS), "in.parquet")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    score_name(url, model)
    assert files_in(tmp_path / "tmp") == []
    full = storage.Space(1, "/", 10, False)
    monkeypatch.setattr("batchpredict.data.copies.space_at", lambda path: full)
    with pytest.raises(OutputNotCreatable, match=r"needs .* kB, 10 B free on /; .*TMPDIR"):
        score_name(url, model)


def test_output_in_parts(tmp_path: Path, bucket: Bucket, state: Path, small_parts: None) -> None:
    model = ramp(tmp_path / "model")
    source = wide(tmp_path / "in.csv")
    score(source, model, tmp_path / "out.csv")
    score_name(source, model, output_file=bucket.url("out.csv"))
    assert bucket.get("out.csv") == (tmp_path / "out.csv").read_bytes()
    assert bucket.client.head_object(Bucket=bucket.name, Key="out.csv")["ETag"].endswith('-3"')
    assert bucket.uploads() == []
    assert files_in(state) == []


def test_a_second_server(tmp_path: Path, seaweed_bucket: str, seaweed: Server, state: Path) -> None:
    """Which refuses parts of less than 5 MiB, as S3 does."""
    model = ramp(tmp_path / "model")
    bucket = Bucket(seaweed_bucket, seaweed.client())
    source = wide(tmp_path / "in.csv", width=2000)
    score(source, model, tmp_path / "out.csv")
    with pytest.MonkeyPatch.context() as patch:
        for module in (multipart, upload):
            patch.setattr(module, "PART", 5 << 20)
        score_name(bucket.put(source, "in.csv"), model, output_file=bucket.url("out.csv"))
    assert bucket.get("out.csv") == (tmp_path / "out.csv").read_bytes()
    assert bucket.names() == ["in.csv", "out.csv", "out.csv.receipt.json"]
    assert bucket.uploads() == []


# --- names


def test_a_folder_and_an_output_directory(tmp_path: Path, bucket: Bucket) -> None:
    model = lookup(tmp_path / "model")
    source = write(tmp_path / "in.csv", ROWS)
    for key in ("b.csv", "a.csv", ".c.csv", "x.scored.csv", "note.txt", "e/f.csv", ""):
        bucket.put(source, f"d/{key}")
    outcome = run_names(model, bucket.url("d/"), output_dir=bucket.url("d/e"))
    assert [receipt.inputs[0].path for receipt in outcome.receipts] == [
        bucket.url("d/a.csv"), bucket.url("d/b.csv"),
    ]  # fmt: skip
    new = {"d/e/a.csv", "d/e/a.csv.receipt.json", "d/e/b.csv", "d/e/b.csv.receipt.json"}
    assert new <= set(bucket.names())
    # Outputs below the input are no inputs; and into a directory here.
    (tmp_path / "out").mkdir()
    everything = bucket.url("d/**/*.csv")
    outcome = run_names(model, everything, output_dir=str(tmp_path / "out"), prefix="new_")
    assert [name for name in files_in(tmp_path / "out") if name.endswith(".csv")] == [
        "a.csv", "b.csv", "e/a.csv", "e/b.csv", "e/f.csv",
    ]  # fmt: skip
    outcome = run_names(model, everything, output_dir=bucket.url("d/e/"))
    assert len(outcome.receipts) == 2
    outcome = run_names(model, f"{tmp_path}/*.csv", output_dir=bucket.url("up/"))
    assert "up/in.csv" in bucket.names()


def test_a_name_that_leads_out_of_the_directory(tmp_path: Path, bucket: Bucket) -> None:
    model = lookup(tmp_path / "model")
    (tmp_path / "out").mkdir()
    for key, name in (("d/../x.csv", "d/.*/x.csv"), ("d/e//x.csv", "d/*//x.csv")):
        bucket.put(write(tmp_path / "in.csv", ROWS), key)
        with pytest.raises(UsageError, match="leads out of --output_dir"):
            run_names(model, bucket.url(name), output_dir=str(tmp_path / "out"))


SEGMENTS = st.sampled_from(["a", "b.csv", ".h", "ab", "c"])
PATTERNS = st.sampled_from(["a", "*", "**", "?", "*.csv", "[ab]*", ".*", "a*", "[!a]"])


@settings(max_examples=60)
@example(keys=[(".h",), ("a", ".h"), (".h", "a")], pattern=["**"])
@example(keys=[(".h",), ("a",)], pattern=["*"])
@example(keys=[("a", "a"), ("a", ".h", "a"), (".h", "a")], pattern=["**", "a"])
@given(
    keys=st.lists(st.lists(SEGMENTS, min_size=1, max_size=3).map(tuple), max_size=8),
    pattern=st.lists(PATTERNS, min_size=1, max_size=3),
)
def test_globs_mean_what_they_do_on_disk(keys: list[tuple[str, ...]], pattern: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for key in keys:
            path = root.joinpath(*key)
            if not any(parent.is_file() for parent in path.parents) and not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        there = files_in(root)
        # pathlib's finds hidden names
        found = glob.glob("/".join(pattern), root_dir=root, recursive=True)  # noqa: PTH207
        wanted = {file for file in found if (root / file).is_file()}
    assert {key for key in there if matches(key.split("/"), pattern)} == wanted


def test_names_that_are_not_there(tmp_path: Path, bucket: Bucket) -> None:
    model = lookup(tmp_path / "model")
    source = write(tmp_path / "in.csv", ROWS)
    url = bucket.put(source, "data/in.csv")
    for name, wrong in [
        ("data/im.csv", rf"no such object; did you mean {url}\?"),
        ("data", rf"no such object; did you mean {bucket.url('data/')}\?"),
        ("data/*.avro", "no object matches"),
        ("nothing/", "no object directly in it has a known format"),
    ]:
        with pytest.raises(InputMissing, match=wrong):
            run_names(model, bucket.url(name))
    with pytest.raises(InputMissing, match="there is no such bucket"):
        run_names(model, "s3://no-such-bucket/in.csv")
    with pytest.raises(OutputNotCreatable, match="there is no bucket no-such-bucket"):
        run_names(model, source, output_file="s3://no-such-bucket/out.csv")
    with pytest.raises(OutputNotCreatable, match="names no object"):
        run_names(model, source, output_file=bucket.url("out/"), output_format="csv")
    with pytest.raises(UsageError, match="would overwrite the input"):
        run_names(model, url, output_file=url)
    assert run_names(model, url, bucket.url("data/none.csv")).exit_code == 66


def test_a_home_for_journals_is_needed(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    with pytest.raises(OutputNotCreatable, match="set XDG_STATE_HOME"):
        score_name(write(tmp_path / "in.csv", ROWS), lookup(tmp_path / "model"),
                   output_file=bucket.url("out.csv"))  # fmt: skip
    assert bucket.names() == []


def test_other_commands_read_objects(tmp_path: Path, bucket: Bucket) -> None:
    model = lookup(tmp_path / "model")
    url = bucket.put(write(tmp_path / "in.csv", ROWS), "in.csv")
    job = Job(input_file=(url,), model=str(model))
    assert inspect(job, url)["file"]["columns"]["x"] == "string"
    (line,) = rehearse(job)
    assert bucket.url("in.scored.csv") in line
    score_name(url, model)
    with pytest.raises(UsageError, match="retry works on files; fetch the output"):
        retry(Request(bucket.url("in.scored.csv.receipt.json")), lambda counts, source: None)


def test_what_was_rejected_of_an_object_is_retried(tmp_path: Path, bucket: Bucket) -> None:
    model = lookup(tmp_path / "model")
    url = bucket.put(write(tmp_path / "in.csv", SOME_BAD), "in.csv")
    output = tmp_path / "out.csv"
    score_name(url, model, output_file=str(output), max_rejects="50%")
    before, rejects = output.read_bytes(), (tmp_path / "out.csv.rejects.jsonl").read_bytes()
    name = f"{output}.receipt.json"
    again = Request(name, output_file=bucket.url("new.csv"))
    for request in (again, Request(name)):
        assert retry(request, lambda counts, source: None) is not None
    assert bucket.get("new.csv") == before
    assert bucket.get("new.csv.rejects.jsonl") == rejects
    assert (output.read_bytes(), (tmp_path / "out.csv.rejects.jsonl").read_bytes()) == (
        before, rejects,
    )  # fmt: skip


# --- what is asked of the store


def test_calls_of_a_small_job(tmp_path: Path, bucket: Bucket, proxy: Proxy) -> None:
    model = lookup(tmp_path / "model")
    url = bucket.put(write(tmp_path / "in.csv", ROWS), "in.csv")
    score_name(url, model, output_file=bucket.url("out.csv"))
    asked = [request.partition("&prefix")[0] for request in proxy.requests]
    at = f"/{bucket.name}"
    assert asked == [
        f"HEAD {at}/in.csv",  # is there such an object, or is it a glob or a mistake
        f"GET {at}?list-type=2",  # the output's bucket, before any work
        f"HEAD {at}/in.csv",  # the version to be read
        f"GET {at}/in.csv",
        f"HEAD {at}/in.csv",  # is it still that one
        f"HEAD {at}/out.csv.rejects.jsonl",  # is there one of an earlier run
        f"PUT {at}/out.csv",
        f"PUT {at}/out.csv.receipt.json",
        f"HEAD {at}/out.csv.failed.json",  # likewise
        f"HEAD {at}/out.csv.failed.rejects.jsonl",
    ]
    proxy.forget()
    outcome = run_names(model, url, output_file=bucket.url("out.csv"), if_done="skip")
    assert outcome.exit_code == 0
    assert not outcome.receipts
    assert proxy.count("^PUT|^DELETE") == 0
    assert proxy.count("GET .*/(in|out).csv$") == 0  # by their ETags


def test_limit_does_not_read_it_all(tmp_path: Path, bucket: Bucket, s3_server: Server) -> None:
    """Of 24 MB, what fits in the buffers."""
    model = ramp(tmp_path / "model")
    url = bucket.put(wide(tmp_path / "in.csv", width=4000), "in.csv")
    taken: list[int] = []
    take = s3.Body.take

    def counting(self: s3.Body, most: int) -> bytes:
        data = take(self, most)
        taken.append(len(data))
        return data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3.Body, "take", counting)
        score_name(url, model, limit=10, output_file=str(tmp_path / "out.csv"))
    assert (tmp_path / "out.csv").read_bytes().count(b"\n") == 11
    assert sum(taken) < 8 << 20


def test_nothing_of_s3_is_imported_without_it(tmp_path: Path) -> None:
    model = lookup(tmp_path / "model")
    source = write(tmp_path / "in.csv", ROWS)
    program = (
        "import sys; from batchpredict.job import Job; from batchpredict.run.runner import run; "
        f"run(Job(input_file=({str(source)!r},), model={str(model)!r}), lambda c, s: None); "
        "sys.exit(any(name.split('.')[0] in ('boto3', 'botocore', 'urllib3') "
        "for name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=commands.environment(), check=False, timeout=60
    )
    assert done.returncode == 0


# --- what goes wrong


def test_a_connection_that_drops(tmp_path: Path, bucket: Bucket, proxy: Proxy) -> None:
    model = ramp(tmp_path / "model")
    source = wide(tmp_path / "in.csv")
    score(source, model, tmp_path / "out.csv")
    url = bucket.put(source, "in.csv")
    proxy.add("reset_answer", "GET .*/in.csv", times=2, after=600_000)
    score_name(url, model, output_file=bucket.url("out.csv"))
    assert bucket.get("out.csv") == (tmp_path / "out.csv").read_bytes()
    assert proxy.count("GET .*/in.csv") == 3


def replacing(bucket: Bucket, key: str, path: Path) -> Callable[[Any, Any], None]:
    """What replaces an object while it is read."""
    left = [path]

    def watch(counts: Any, source: Any) -> None:
        if left:
            bucket.put(left.pop(), key)

    return watch


@pytest.mark.parametrize("dropped", [False, True])
def test_an_object_that_is_replaced_while_it_is_read(
    tmp_path: Path, bucket: Bucket, proxy: Proxy, dropped: bool
) -> None:
    """Also where the rest of it has to be asked for."""
    model = ramp(tmp_path / "model")
    url = bucket.put(wide(tmp_path / "in.csv", width=2000), "in.csv")
    if dropped:
        proxy.add("reset_answer", "GET .*/in.csv", times=1, after=11_000_000)
    job = Job(input_file=(url,), model=str(model), output_file=bucket.url("out.csv"))
    watch = replacing(bucket, "in.csv", write(tmp_path / "other.csv", ROWS))
    with (
        borders(100, 1 << 20, 1 << 16),
        pytest.raises(TryAgain, match=r"in\.csv: was replaced while it was read"),
    ):
        run(job, watch)
    assert proxy.count("GET .*/in.csv") == 1 + dropped
    assert bucket.names() == ["in.csv", "out.csv.failed.json"]
    assert json.loads(bucket.get("out.csv.failed.json"))["exit_code"] == 75


def test_an_upload_that_fails(
    tmp_path: Path, bucket: Bucket, proxy: Proxy, state: Path, small_parts: None
) -> None:
    model = ramp(tmp_path / "model")
    source = wide(tmp_path / "in.csv")
    bucket.put(write(tmp_path / "old.csv", ROWS), "out.csv")
    old = bucket.get("out.csv")
    proxy.add("denied", "PUT .*partNumber=2")
    with pytest.raises(Unavailable, match=r"out\.csv: the credentials give no access"):
        score_name(source, model, output_file=bucket.url("out.csv"))
    assert bucket.uploads() == []
    assert bucket.get("out.csv") == old
    assert bucket.names() == ["out.csv", "out.csv.failed.json"]
    assert all(name.endswith(".journal") for name in files_in(state))
    # What was scored is kept, and the next run has the bytes of one that nobody disturbs.
    proxy.forget()
    receipt = score_name(source, model, output_file=bucket.url("out.csv"))
    assert receipt.resumed.rows > 0
    score(source, model, tmp_path / "out.csv")
    assert bucket.get("out.csv") == (tmp_path / "out.csv").read_bytes()
    assert bucket.names() == ["out.csv", "out.csv.receipt.json"]
    assert files_in(state) == []


def test_an_upload_that_cannot_even_be_aborted(
    tmp_path: Path, bucket: Bucket, proxy: Proxy, state: Path, small_parts: None
) -> None:
    """Then it is the next run's."""
    model = ramp(tmp_path / "model")
    source = wide(tmp_path / "in.csv")
    proxy.add("denied", "PUT .*partNumber=2")
    proxy.add("denied", "DELETE .*uploadId=")
    with pytest.raises(Unavailable):
        score_name(source, model, output_file=bucket.url("out.csv"))
    assert bucket.uploads() == ["out.csv"]
    assert [name for name in files_in(state) if name.endswith(".upload")]
    proxy.forget()
    score_name(source, model, output_file=bucket.url("out.csv"))
    assert bucket.uploads() == []
    assert files_in(state) == []


def test_a_publication_that_fails(tmp_path: Path, bucket: Bucket, proxy: Proxy) -> None:
    """Rejects, output, receipt: what comes after the fault is not there."""
    model = lookup(tmp_path / "model")
    source = write(tmp_path / "in.csv", SOME_BAD)
    proxy.add("denied", "PUT .*/out.csv$")
    with pytest.raises(Unavailable):
        score_name(source, model, output_file=bucket.url("out.csv"), max_rejects="50%")
    assert bucket.names() == ["out.csv.failed.json", "out.csv.rejects.jsonl"]
    proxy.forget()
    score_name(source, model, output_file=bucket.url("out.csv"), max_rejects="50%")
    assert bucket.names() == ["out.csv", "out.csv.receipt.json", "out.csv.rejects.jsonl"]


@pytest.mark.parametrize("what", ["PUT .*/out.csv.rejects.jsonl", "PUT .*/out.csv.*rejects.jsonl"])
def test_rejects_that_cannot_be_stored(
    tmp_path: Path, bucket: Bucket, proxy: Proxy, what: str
) -> None:
    """They come first, so nothing is published; where they may be as failed ones, they are."""
    model = lookup(tmp_path / "model")
    proxy.add("denied", what)
    with pytest.raises(Unavailable, match=r"out\.csv\.rejects\.jsonl: the credentials"):
        score_name(write(tmp_path / "in.csv", SOME_BAD), model,
                   output_file=bucket.url("out.csv"), max_rejects="50%")  # fmt: skip
    failed = [] if "csv.*" in what else ["out.csv.failed.rejects.jsonl"]
    assert bucket.names() == ["out.csv.failed.json", *failed]


def test_who_may_not_list_may_write(tmp_path: Path, bucket: Bucket, proxy: Proxy) -> None:
    """There what is not there is denied."""
    model = lookup(tmp_path / "model")
    proxy.add("denied", "HEAD|GET .*list-type")
    score_name(write(tmp_path / "in.csv", ROWS), model, output_file=bucket.url("out.csv"))
    assert bucket.names() == ["out.csv", "out.csv.receipt.json"]


def test_a_failed_run_leaves_its_rejects_and_the_next_removes_them(
    tmp_path: Path, bucket: Bucket
) -> None:
    model = lookup(tmp_path / "model")
    source = write(tmp_path / "in.csv", SOME_BAD)
    url = bucket.url("out.csv")
    with pytest.raises(InputInvalid, match="rejected"):
        score_name(source, model, output_file=url, max_rejects="2")
    assert bucket.names() == ["out.csv.failed.json", "out.csv.failed.rejects.jsonl"]
    score_name(source, model, output_file=url, max_rejects="50%")
    assert bucket.names() == ["out.csv", "out.csv.receipt.json", "out.csv.rejects.jsonl"]
    score_name(write(tmp_path / "in.csv", ROWS), model, output_file=url)
    assert bucket.names() == ["out.csv", "out.csv.receipt.json"]


def test_a_store_that_nobody_reaches(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(connection, "_ATTEMPTS", 1)
    model = lookup(tmp_path / "model")
    for options in ({}, {"output_file": str(tmp_path / "out.csv")}):
        with pytest.raises(Unavailable, match="cannot be reached; check the endpoint") as caught:
            score_name(bucket.url("in.csv"), model, **options)
        assert "\n" not in str(caught.value)


# --- killed and interrupted

PROGRAM = """
import sys
from batchpredict.s3 import multipart, upload
multipart.PART = upload.PART = int(sys.argv.pop(1))
from batchpredict.__main__ import run
sys.exit(run())
"""


def started(*arguments: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(PART), *map(str, arguments)],
        env=commands.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + commands.PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_ended_in_mid_upload(
    tmp_path: Path,
    bucket: Bucket,
    proxy: Proxy,
    state: Path,
    small_parts: None,
    number: signal.Signals,
) -> None:
    model = ramp(tmp_path / "model")
    source = wide(tmp_path / "in.csv")
    score(source, model, tmp_path / "out.csv", batch_rows=100)
    url = bucket.put(source, "in.csv")
    proxy.add("silence", "PUT .*partNumber=2")
    process = started(
        f"--input_file={url}", f"--model={model}", f"--output_file={bucket.url('out.csv')}",
        "--batch_rows=100",
    )  # fmt: skip
    until(lambda: proxy.count("PUT .*partNumber=2") > 0 or process.poll() is not None)
    time.sleep(0.3)  # the part is under way
    process.send_signal(number)
    output, errors = process.communicate(timeout=commands.PATIENCE)
    killed = number == signal.SIGKILL
    assert process.returncode == (-9 if killed else 128 + number), errors
    assert bucket.names() == ["in.csv"] if killed else ["in.csv", "out.csv.failed.json"]
    assert bucket.uploads() == (["out.csv"] if killed else [])
    for text in (output, errors, *(file.read_bytes() for file in state.iterdir())):
        assert TEST_SECRET.encode() not in text
        assert TEST_KEY_ID.encode() not in text
    proxy.forget()
    receipt = score_name(url, model, output_file=bucket.url("out.csv"), batch_rows=100)
    assert receipt.resumed.rows > 0
    assert bucket.get("out.csv") == (tmp_path / "out.csv").read_bytes()
    assert bucket.uploads() == []
    assert bucket.names() == ["in.csv", "out.csv", "out.csv.receipt.json"]
    assert files_in(state) == []


def test_interrupted_while_the_store_is_silent(
    tmp_path: Path, bucket: Bucket, proxy: Proxy
) -> None:
    """In order: the thread that waits for bytes is not waited for."""
    model = ramp(tmp_path / "model")
    url = bucket.put(wide(tmp_path / "in.csv"), "in.csv")
    proxy.add("stall", "GET .*/in.csv", after=2_200_000)
    process = started(f"--input_file={url}", f"--model={model}")
    until(lambda: proxy.count("GET .*/in.csv") > 0)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=commands.PATIENCE)
    assert (process.returncode, bucket.names()) == (143, ["in.csv", "in.scored.csv.failed.json"])
    assert b"terminated" in errors


def test_another_input_of_the_same_name_is_not_resumed(
    tmp_path: Path, bucket: Bucket, state: Path
) -> None:
    model = ramp(tmp_path / "model")
    url = bucket.put(write(tmp_path / "in.csv", numbers(60)), "in.csv")
    with pytest.raises(TryAgain, match="stopped after --max_seconds"):
        score_name(url, model, max_seconds=0.0, batch_rows=3)
    assert [Path(name).suffix for name in files_in(state)] == [".journal"]
    bucket.put(write(tmp_path / "in.csv", list(reversed(numbers(60)))), "in.csv")
    receipt = score_name(url, model, batch_rows=3)
    assert receipt.resumed.rows == 0
    score(tmp_path / "in.csv", model, tmp_path / "out.csv", batch_rows=3)
    assert bucket.get("in.scored.csv") == (tmp_path / "out.csv").read_bytes()


@pytest.mark.parametrize("kind", ["csv.gz", "avro", "parquet"])
def test_stopped_and_resumed(tmp_path: Path, bucket: Bucket, kind: str) -> None:
    model = ramp(tmp_path / "model")
    source = written(tmp_path, kind, [*numbers(60), Given("0", broken=True)])
    score(source, model, tmp_path / f"out.{kind}", max_rejects="50%", batch_rows=7)
    url, stops = bucket.put(source, f"in.{kind}"), 0
    while True:
        try:
            receipt = score_name(url, model, max_rejects="50%", batch_rows=7, max_seconds=0.0)
            break
        except TryAgain:
            stops += 1
            assert f"in.scored.{kind}" not in bucket.names()
    assert receipt.resumed.runs == stops > 0
    assert bucket.get(f"in.scored.{kind}") == (tmp_path / f"out.{kind}").read_bytes()


def test_two_runs_of_one_output_exclude_each_other(tmp_path: Path, bucket: Bucket) -> None:
    from batchpredict.data.locks import lock_output

    source, model = write(tmp_path / "in.csv", ROWS), lookup(tmp_path / "model")
    with (
        lock_output(bucket.url("out.csv")),
        pytest.raises(TryAgain, match="another run is writing it"),
    ):
        score_name(source, model, output_file=bucket.url("out.csv"))
    score_name(source, model, output_file=bucket.url("out.csv"))


def test_a_full_disk_under_a_copy(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def __init__(self, file: Any) -> None:
            self._file = file

        def write(self, data: Any) -> int:
            raise OSError(28, "No space left on device")

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    model = lookup(tmp_path / "model")
    url = bucket.put(write(tmp_path / "in.parquet", ROWS), "in.parquet")
    real = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **options: Full(real(**options)))
    with pytest.raises(OutputWriteFailed, match=r"no space left on device.*TMPDIR"):
        score_name(url, model)


def test_a_glob_of_one_level_lists_one(bucket: Bucket, proxy: Proxy) -> None:
    for key in ("g/a.csv", "g/b.csv", "g/archive/c.csv"):
        s3.store().write(s3.parse(bucket.url(key)), b"x\n1\n")
    proxy.forget()
    assert matching(s3.parse(bucket.url("g/*.csv"))) == [
        bucket.url("g/a.csv"),
        bucket.url("g/b.csv"),
    ]
    assert proxy.count("delimiter=%2F") == 1
    assert len(matching(s3.parse(bucket.url("g/**/*.csv")))) == 3


def test_repeated_stars_are_one() -> None:
    parts = ["d"] * 60
    assert matches([*parts, "a.csv"], ["**"] * 12 + ["*.csv"])
    assert not matches([*parts, "a.csv"], ["**"] * 12 + ["*.json"])


def test_journals_of_two_stores_are_two(
    bucket: Bucket, proxy: Proxy, s3_server: Server, state: Path
) -> None:
    name = bucket.url("scored.csv")
    found = []
    for url in (proxy.url, s3_server.url):
        s3.connect_to(url, None)
        found.append(object_state(name, ".journal"))
    assert found[0] != found[1]


def test_receipts_that_may_not_be_seen_are_none(
    tmp_path: Path, bucket: Bucket, proxy: Proxy
) -> None:
    model, source = lookup(tmp_path / "model"), bucket.put(written(tmp_path, "csv", ROWS), "in.csv")
    proxy.add("denied", r"GET .*receipt\.json")
    receipt = score_name(source, model, output_file=bucket.url("out.csv"), if_done="skip")
    assert receipt.counts.read == len(ROWS)


def test_a_publication_whose_leftovers_cannot_be_removed(
    tmp_path: Path, bucket: Bucket, proxy: Proxy
) -> None:
    model, source = lookup(tmp_path / "model"), bucket.put(written(tmp_path, "csv", ROWS), "in.csv")
    proxy.add("500", r"HEAD .*\.failed\.json")
    outcome = run_names(model, source, output_file=bucket.url("out.csv"))
    assert outcome.exit_code == bucket.receipt("out.csv")["exit_code"]


# --- night after night


def nightly(bucket: Bucket, model: Path, *arguments: str) -> int:
    return main(
        [f"--input_file={bucket.url('in/{date}.csv')}", f"--model={model}", *arguments,
         f"--output_file={bucket.url('out/{date:%Y/%m/%d}.csv')}", "--quiet"]
    )  # fmt: skip


def test_a_range_of_days(
    tmp_path: Path, bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    model = lookup(tmp_path / "model")
    source = written(tmp_path, "csv", ROWS)
    for day in ("2026-11-20", "2026-11-22"):
        bucket.put(source, f"in/{day}.csv")
    days = ("--from=2026-11-20", "--to=2026-11-22", "--max_drift=0.25", "--if_done=skip")
    (tmp_path / "metrics").mkdir()
    assert nightly(bucket, model, *days, f"--metrics_dir={tmp_path / 'metrics'}") == 66
    (line,) = capsys.readouterr().err.splitlines()
    assert bucket.url("in/2026-11-21.csv") in line
    receipts = [bucket.receipt(f"out/2026/11/{day}.csv") for day in (20, 22)]
    assert len({receipt["run_id"] for receipt in receipts}) == 1
    drift = receipts[1]["drift"]
    assert [each["receipt"] for each in drift["baseline"]] == [
        bucket.url("out/2026/11/20.csv.receipt.json")
    ]
    (metrics,) = (tmp_path / "metrics").iterdir()
    text = metrics.read_text()
    assert 'last_run_inputs{result="published",task="' in text
    assert re.search(r'records\{result="scored",.*\} 120\.0\n', text)
    assert set(re.findall(r'score_psi\{label="([^"]+)"', text)) == set(drift["predictions"])


def test_metrics_and_log_of_an_input_that_fails(
    tmp_path: Path, bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    model = lookup(tmp_path / "model")
    url = bucket.put(written(tmp_path, "csv", SOME_BAD), "in.csv")
    (tmp_path / "metrics").mkdir()
    call = [f"--input_file={url}", f"--model={model}", "--max_rejects=0", "--log_format=json"]
    assert main([*call, f"--metrics_dir={tmp_path / 'metrics'}"]) == 65
    (metrics,) = (tmp_path / "metrics").iterdir()
    assert re.search(r'inputs\{result="failed",.*\} 1\.0\n', metrics.read_text())
    assert re.search(r'records\{result="rejected",.*\} [1-9]', metrics.read_text())
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (told,) = [event["receipt"] for event in events if event["event"] == "receipt"]
    assert told == json.loads(bucket.get("in.scored.csv.failed.json"))


def test_a_pinned_baseline(
    tmp_path: Path, bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    model = lookup(tmp_path / "model")
    url = bucket.put(written(tmp_path, "csv", ROWS), "in.csv")
    call = [f"--input_file={url}", f"--model={model}", "--quiet"]
    assert main([*call, f"--baseline={bucket.url('pinned.json')}"]) == 78
    assert "pinned.json" in capsys.readouterr().err
    assert main(call) == 0
    pinned = bucket.url("in.scored.csv.receipt.json")
    assert main([*call, f"--baseline={pinned}", "--max_drift=0.1"]) == 0
    assert bucket.receipt("in.scored.csv")["drift"]["baseline"][0]["receipt"] == pinned


def test_an_object_that_is_late(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival, "_ASK_SECONDS", 0.2)
    url, source = bucket.url("in.csv"), written(tmp_path, "csv", ROWS)
    job = Job(input_file=(url,), model="m", wait_for_input=30.0)
    timer = threading.Timer(0.5, lambda: bucket.put(source, "in.csv"))
    timer.start()
    tasks, missing = arrival.arrived_tasks(job)
    timer.join()
    assert ([task.input for task in tasks], missing) == ([url], ())


def test_an_object_that_is_new(tmp_path: Path, bucket: Bucket) -> None:
    url = bucket.put(written(tmp_path, "csv", ROWS), "in/a.csv")
    for name in (url, bucket.url("in/"), bucket.url("in/*.csv")):
        job = Job(input_file=(name,), model="m", stable_for=3600.0)
        with pytest.raises(InputUnfinished, match="changed within the last 3600 s"):
            arrival.arrived_tasks(job)
        assert arrival.arrived_tasks(replace(job, if_missing="skip")) == ((), ())
    time.sleep(1.1)  # a store keeps whole seconds
    tasks, _ = arrival.arrived_tasks(replace(job, stable_for=1.0, wait_for_input=30.0))
    assert [task.input for task in tasks] == [url]


def test_an_object_that_may_be_missing(bucket: Bucket) -> None:
    job = Job(input_file=(bucket.url("in.csv"),), model="m")
    with pytest.raises(InputMissing, match="no such object"):
        arrival.arrived_tasks(job)
    assert arrival.arrived_tasks(replace(job, if_missing="skip")) == ((), ())


def test_who_may_neither_list_nor_delete_may_publish(
    tmp_path: Path, bucket: Bucket, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    model = lookup(tmp_path / "model")
    proxy.add("denied", "HEAD|DELETE|GET .*(list-type|rejects|failed)")
    score_name(write(tmp_path / "in.csv", ROWS), model, output_file=bucket.url("out.csv"))
    assert bucket.names() == ["out.csv", "out.csv.receipt.json"]
    assert "if an earlier run has left it, it is out of date" in caplog.text


def test_a_store_that_does_not_answer_is_asked_once(
    tmp_path: Path, bucket: Bucket, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "READ_TIMEOUT", 0.3)
    s3.connect_to(None, None)
    model = lookup(tmp_path / "model")
    proxy.add("silence", "PUT")
    with pytest.raises(s3.Unreachable):
        run_names(model, write(tmp_path / "in.csv", ROWS), output_file=bucket.url("out.csv"))
    assert proxy.count("PUT .*out.csv$") == 5
    assert proxy.count("failed") == 0


@pytest.mark.parametrize(
    ("names", "use"),
    [
        ({"input_file": ("s3://b/a.csv",)}, "written"),
        ({"input_file": ("s3://b/a.csv",), "output_file": "a.csv"}, "read"),
        ({"input_file": ("a.csv",), "output_dir": "s3://b/"}, "written"),
        ({"input_file": ("a.csv",), "model_store": "s3://b/"}, "read"),
        ({"input_file": ("a.csv",)}, "none"),
    ],
)
def test_room_is_left_for_what_is_in_s3(names: dict[str, Any], use: str) -> None:
    assert room._s3_use(Job(model="m", **names)) == use
