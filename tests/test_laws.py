"""Laws 1 to 4 of DESIGN section 9, through run() and every format."""

from __future__ import annotations

import csv
import gzip
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from batchpredict.data.records import BLOCK_BYTES
from batchpredict.run import planning
from tests import models
from tests.jobs import ROOT, files_in, receipt_of, rejects_of, score
from tests.test_scorer import attention_graph

FORMATS = ("csv", "jsonl", "json", "avro", "parquet")


def _reads_blocks(module: ModuleType) -> bool:
    return getattr(module, "BLOCK_BYTES", None) == BLOCK_BYTES


@contextmanager
def borders(window_rows: int, window_bytes: int, block_bytes: int) -> Iterator[None]:
    """Windows and blocks of other sizes, wherever they are used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "WINDOW_ROWS", window_rows)
        patch.setattr(planning, "WINDOW_BYTES", window_bytes)
        for name, module in list(sys.modules.items()):
            # Readers' blocks; what writers call so shapes bytes and stays.
            if name.startswith("batchpredict.data.") and _reads_blocks(module):
                patch.setattr(module, "BLOCK_BYTES", block_bytes)
        yield


sizes = st.tuples(st.integers(1, 40), st.integers(1, 600), st.sampled_from([1, 7, 64, 1 << 20]))


# --- rows of every kind


@dataclass(frozen=True)
class Given:
    """A row: `x` as text, or one that is `broken` in the way of its format."""

    x: str
    broken: bool = False


GOOD = [str(number) for number in range(10)]
# Unknown to the graph, not a number, missing, beyond float32, not finite once scored.
UNSCORABLE = ["77", "what", "", "1e999", "9.5e9", "5"]
NOT_FINITE = "5"
rows_of_all_kinds = st.lists(
    st.one_of(st.sampled_from(GOOD + UNSCORABLE).map(Given), st.just(Given("0", broken=True))),
    max_size=60,
)


def lookup(directory: Path) -> Path:
    """`prediction` is x + 100 for x of 0 to 9 but for 5, and any other x fails in the session."""
    table = np.arange(10, dtype=np.float32) + 100
    table[int(NOT_FINITE)] = np.nan
    graph = models.model(
        [
            helper.make_node("Cast", ["x"], ["row"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "row"], ["variable"]),
        ],
        [models.value("x", "float32", ("N", 1))],
        [models.value("variable", "float32", ("N", 1))],
        [models.tensor("table", table)],
    )
    return models.write(directory, graph, manifest='[inputs.x]\nmissing = "reject"\n')


def is_good(row: Given) -> bool:
    return not row.broken and row.x in GOOD and row.x != NOT_FINITE


def write(path: Path, rows: Sequence[Given]) -> Path:
    """Rows with their number as `id`. In Avro and Parquet a broken row is an unscorable one."""
    kind = path.suffix.removeprefix(".")
    records = [
        {
            "id": str(number),
            "x": "broken" if row.broken else row.x,
            "note": 'a "note",\n' * (number % 3),
        }
        for number, row in enumerate(rows, 1)
    ]
    if kind in ("avro", "parquet"):
        typed: list[dict[str, Any]] = [r | {"x": r["x"] or None} for r in records]
        if kind == "parquet":
            schema = pa.schema([(name, pa.string()) for name in ("id", "x", "note")])
            pq.write_table(pa.Table.from_pylist(typed, schema), path, row_group_size=17)
            return path
        fields = [{"name": name, "type": ["null", "string"]} for name in ("id", "x", "note")]
        parsed = fastavro.parse_schema({"type": "record", "name": "R", "fields": fields})
        with path.open("wb") as file:
            fastavro.writer(file, parsed, typed, sync_interval=200)
        return path
    if kind == "csv":
        path.write_bytes(b"id,x,note\r\n" + b"".join(map(_csv_row, records)))
        return path
    texts = [
        # In an array what is between two elements must be JSON for the next to be found.
        (b"17" if kind == "json" else b'{"id": \xff, "x": ') if record["x"] == "broken"
        else json.dumps(record).encode()
        for record in records
    ]  # fmt: skip
    if kind == "jsonl":
        path.write_bytes(b"".join(text + b"\n" for text in texts))
    else:
        path.write_bytes(b"[" + b",\n".join(texts) + b"]\n")
    return path


def _csv_row(record: dict[str, str]) -> bytes:
    number = int(record["id"])
    if record["x"] == "broken":
        kinds = [b"1,2\n", b'%d,0,"closed"too\n' % number, b"%d,0,\xff\n" % number, b"1,2,3,4\r\n"]
        return kinds[number % len(kinds)]
    note = '"' + record["note"].replace('"', '""') + '"' if record["note"] else ""
    return f"{number},{record['x']},{note}{chr(13) * (number % 2)}\n".encode()


def read(path: Path) -> list[dict[str, Any]]:
    kind = path.suffix.removeprefix(".")
    if kind == "csv":
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file, strict=True))
    if kind == "jsonl":
        return [json.loads(line) for line in path.read_bytes().splitlines()]
    if kind == "json":
        rows: list[dict[str, Any]] = json.loads(path.read_bytes())
        return rows
    if kind == "parquet":
        table: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return table
    with path.open("rb") as stream:
        return list(fastavro.reader(stream))  # type: ignore[arg-type]


# --- law 1


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=25)
@given(
    rows=rows_of_all_kinds,
    size=sizes,
    on_error=st.sampled_from(["reject", "null"]),
    target=st.sampled_from(FORMATS),
    batch=st.integers(1, 9),
)
def test_rows_in_are_rows_out_and_rejects(
    kind: str,
    rows: list[Given],
    size: tuple[int, int, int],
    on_error: Any,
    target: str,
    batch: int,
) -> None:
    """Law 1: none lost, none twice, order kept, and each where it belongs."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        model = lookup(directory / "model")
        source = write(directory / f"in.{kind}", rows)
        output = directory / f"out.{target}"
        with borders(*size):
            receipt = score(
                source, model, output, on_error=on_error, max_rejects="100%", batch_rows=batch
            )
        found, rejects = read(output), rejects_of(output)
        numbered = list(enumerate(rows, 1))
        # A broken row of a text format is no row to keep; elsewhere it is one without a score.
        readable = [n for n, row in numbered if kind in ("avro", "parquet") or not row.broken]
        good = [number for number, row in numbered if is_good(row)]
        written = good if on_error == "reject" else readable
        assert [int(row["id"]) for row in found] == written
        assert [reject["row"] for reject in rejects] == [n for n, r in numbered if not is_good(r)]
        for row in found:
            number = int(row["id"])
            wanted = float(rows[number - 1].x) + 100 if number in good else None
            assert (
                float(row["prediction"]) if row["prediction"] not in ("", None) else None
            ) == wanted
            assert (row["note"] or "") == 'a "note",\n' * (number % 3)
        counts = receipt.counts
        assert counts.read == len(rows) == counts.scored + counts.nulls + counts.rejected
        assert counts.scored == len(good)
        assert counts.scored + counts.nulls == len(written)


# --- laws 2 and 3


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little transformer, whose last bits tell a batch of another shape."""
    return models.write_text_model(tmp_path_factory.mktemp("model"), attention_graph())


def texts(count: int, seed: int = 5) -> list[dict[str, str]]:
    chosen = random.Random(seed)
    return [
        {"id": str(n), "text": " ".join(chosen.choices(models.WORDS, k=chosen.randint(0, 40)))}
        for n in range(count)
    ]


def write_texts(path: Path, rows: list[dict[str, str]]) -> Path:
    """Some rows have no text or none that can be read; gzip around CSV."""
    bare = path.name.split(".")[1]
    if bare == "csv":
        lines = [f"{row['id']},{row['text']}\n" for row in rows]
        lines[7:7] = ["broken\n"]
        data = ("id,text\n" + "".join(lines)).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    elif bare == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"text": 7}\n{"text"\n')
    elif bare == "json":
        path.write_text(json.dumps([*rows, 17, {"text": None}]))
    elif bare == "avro":
        fields = [{"name": name, "type": ["null", "string"]} for name in ("id", "text")]
        parsed = fastavro.parse_schema({"type": "record", "name": "R", "fields": fields})
        with path.open("wb") as file:
            fastavro.writer(file, parsed, [*rows, {"id": "x", "text": None}])
    else:
        pq.write_table(pa.Table.from_pylist([*rows, {"id": "x", "text": None}]), path)
    return path


def published(output: Path) -> tuple[bytes, bytes | None]:
    rejects = Path(f"{output}.rejects.jsonl")
    return output.read_bytes(), rejects.read_bytes() if rejects.exists() else None


SHAPES = [
    {"batch_rows": 1, "batch_tokens": 1, "workers": 1},
    {"batch_rows": 3, "batch_tokens": 100, "workers": 3},
    {"batch_rows": 64, "batch_tokens": 4096, "workers": 2},
]
BORDERS = [(16384, 16 << 20, 1 << 20), (37, 1 << 20, 100), (1000, 900, 1), (1, 1, 1 << 20)]


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "jsonl", "json", "avro", "parquet"])
def test_bytes_do_not_depend_on_batches_workers_windows_or_blocks(
    tmp_path: Path, words: Path, kind: str
) -> None:
    """Laws 2 and 3: the same output and rejects to the byte, scores to the bit."""
    source = write_texts(tmp_path / f"in.{kind}", texts(120))
    output = tmp_path / f"out.{kind}"
    found = []
    for shape, size in zip([*SHAPES, SHAPES[0]], [*BORDERS[1:], BORDERS[0]], strict=True):
        with borders(*size):
            score(source, words, output, **shape)
        found.append(published(output))
    assert found[0][1]
    for other in found[1:]:
        assert other == found[0]


@pytest.mark.parametrize("target", FORMATS)
def test_bytes_of_a_conversion_do_not_depend_on_them_either(
    tmp_path: Path, words: Path, target: str
) -> None:
    source = write_texts(tmp_path / "in.csv", texts(80))
    output = tmp_path / f"out.{target}"
    found = []
    for shape, size in zip(SHAPES, BORDERS[:-1], strict=True):
        with borders(*size):
            score(source, words, output, **shape)
        found.append(published(output))
    assert found[0] == found[1] == found[2]


@settings(max_examples=15)
@given(
    picked=st.lists(st.integers(0, 79), min_size=1, max_size=30),
    size=sizes,
    shape=st.sampled_from(SHAPES),
)
def test_scores_do_not_depend_on_neighbours(
    words: Path, picked: list[int], size: tuple[int, int, int], shape: dict[str, int]
) -> None:
    """Law 2: any rows in any order and company score as they do among all."""
    rows = texts(80)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        score(write_texts(directory / "all.parquet", rows), words, directory / "all.csv")
        wanted = {
            row["id"]: (row["prediction"], row["score"]) for row in read(directory / "all.csv")
        }
        some = write_texts(directory / "some.parquet", [rows[index] for index in picked])
        with borders(*size):
            score(some, words, directory / "some.csv", max_rejects="100%", **shape)
        found = read(directory / "some.csv")
    assert [(r["prediction"], r["score"]) for r in found] == [wanted[str(i)] for i in picked]


TIMES = (
    *("run_id", "started", "ended", "stages", "cpu_seconds", "first_row_seconds"),
    *("rows_per_second", "peak_memory_bytes"),
)


@pytest.mark.parametrize("kind", ["csv.gz", "jsonl", "json", "avro", "parquet"])
def test_twice_is_the_same_but_for_the_times(tmp_path: Path, words: Path, kind: str) -> None:
    """Law 3."""
    source = write_texts(tmp_path / f"in.{kind}", texts(60))
    output = tmp_path / f"out.{kind}"
    runs = []
    for _ in range(2):
        score(source, words, output)
        receipt = receipt_of(output)
        assert len({receipt.pop(name) is None for name in TIMES}) == 1
        del receipt["output"]["modified_ns"]
        receipt.pop("drift", None)  # from the run before, which the first has not
        runs.append((published(output), receipt))
    assert runs[0] == runs[1]
    if kind.endswith(".gz"):
        assert output.read_bytes()[4:8] == bytes(4)  # no time, which two quick runs would share


# --- law 4


OLD = b"what was here before\n"


class Killer:
    """A process that runs jobs in children of its own and kills them; see killed_jobs.py."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.killed_jobs"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, job: dict[str, Any], at: tuple[str, float] | None) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"job": job, "at": at}) + "\n")
        self._process.stdin.flush()
        ended: dict[str, Any] = json.loads(self._process.stdout.readline())
        return ended

    def close(self) -> None:
        self._process.communicate(timeout=30)


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    made = Killer()
    yield made
    made.close()


@dataclass(frozen=True)
class Victim:
    """A job with a few rejects, and what it publishes when nobody disturbs it."""

    job: dict[str, Any]
    output: Path
    whole: tuple[bytes, bytes | None]
    seconds: float
    calls: tuple[str, ...]


def victim(directory: Path, killer: Killer, kind: str, rows: int) -> Victim:
    model = lookup(directory / "model")
    chosen = random.Random(kind)
    given_rows = [
        Given(chosen.choice(["1", "2", "3", "4"] if number % 900 else ["77", "what"]))
        for number in range(rows)
    ]
    source = write(directory / f"in.{kind.split('.')[0]}", given_rows)
    target = directory / "out"
    target.mkdir()
    output = target / f"out.{kind}"
    job = {"input_file": [str(source)], "model": str(model), "output_file": str(output)}
    ended = killer.run(job, None)
    assert ended["code"] == 3
    whole = published(output)
    return Victim(job, output, whole, ended["seconds"], tuple(ended["calls"]))


def lay_out(victim: Victim, old: bool) -> None:
    for name in files_in(victim.output.parent):
        (victim.output.parent / name).unlink()
    if old:
        victim.output.write_bytes(OLD)
        Path(f"{victim.output}.rejects.jsonl").write_bytes(OLD)
        Path(f"{victim.output}.receipt.json").write_bytes(OLD)


def check_complete(victim: Victim, old: bool) -> None:
    """Whatever has a final name is whole: the new file, or the one that was here before."""
    before = OLD if old else None
    output, rejects, receipt = (
        path.read_bytes() if path.exists() else None
        for path in (
            victim.output,
            Path(f"{victim.output}.rejects.jsonl"),
            Path(f"{victim.output}.receipt.json"),
        )
    )
    assert output in (before, victim.whole[0])
    assert rejects in (before, victim.whole[1])
    if output == victim.whole[0]:
        assert rejects == victim.whole[1]
    if receipt != before:
        assert receipt is not None
        assert json.loads(receipt)["counts"]["rejected"]
        assert (output, rejects) == victim.whole
    known = {victim.output.name, *(victim.output.name + end for end in ENDINGS)}
    assert all(
        name in known
        or (name.startswith(".") and name.endswith((".part", ".journal", ".inflight")))
        for name in files_in(victim.output.parent)
    )


ENDINGS = (".rejects.jsonl", ".receipt.json")


def check_next_run(victim: Victim, killer: Killer) -> None:
    assert killer.run(victim.job, None)["code"] == 3
    assert published(victim.output) == victim.whole
    name = victim.output.name
    assert files_in(victim.output.parent) == sorted([name, *(name + end for end in ENDINGS)])


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "json", "avro", "parquet"])
def test_killed_at_any_time_leaves_no_half_file(tmp_path: Path, killer: Killer, kind: str) -> None:
    """Law 4, at random moments."""
    prey = victim(tmp_path, killer, kind, 4000)
    chosen = random.Random()
    killed = 0
    for number in range(7):
        old = bool(number % 2)
        lay_out(prey, old)
        moment = chosen.uniform(0, prey.seconds)
        killed += killer.run(prey.job, ("seconds", moment))["killed"]
        check_complete(prey, old)
    check_next_run(prey, killer)
    assert killed


@pytest.mark.parametrize("old", [False, True])
def test_killed_before_every_call_that_changes_a_file(
    tmp_path: Path, killer: Killer, old: bool
) -> None:
    """Law 4, at each moment that could matter."""
    prey = victim(tmp_path, killer, "csv", 2000)
    assert {"replace", "fsync", "write", "open"} <= set(prey.calls)
    for number in range(len(prey.calls)):
        lay_out(prey, old)
        ended = killer.run(prey.job, ("call", number))
        assert ended["killed"], (number, prey.calls[number])
        check_complete(prey, old)
    check_next_run(prey, killer)


def test_drafts_of_a_killed_run_go_even_where_they_are_not_needed_again(
    tmp_path: Path, killer: Killer
) -> None:
    """The killed run had rejects, the next one has none."""
    prey = victim(tmp_path, killer, "csv", 2000)
    lay_out(prey, False)
    killer.run(prey.job, ("call", prey.calls.index("replace")))
    drafts = files_in(prey.output.parent)
    assert any(".rejects.jsonl." in name for name in drafts)
    write(tmp_path / "in.csv", [Given("1")])
    assert killer.run(prey.job, None)["code"] == 0
    assert files_in(prey.output.parent) == ["out.csv", "out.csv.receipt.json"]
