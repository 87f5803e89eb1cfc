"""Which files a job reads, and what the files beside its outputs are called."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchpredict.data.locations import Identities, identity
from batchpredict.data.locks import hidden_beside, journal_path, notes_path
from batchpredict.data.naming import Task, format_of, is_own, split_name, tasks_of
from batchpredict.errors import InputMissing, UsageError
from batchpredict.job import Job


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def put(*names: str) -> None:
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text\n")


def tasks(*inputs: str, **options: str) -> tuple[Task, ...]:
    found, missing = tasks_of(Job(input_file=inputs, model="m", **options))  # type: ignore[arg-type]
    assert missing == ()
    return found


def pairs(*inputs: str, **options: str) -> list[tuple[str, str]]:
    return [(task.input, task.output) for task in tasks(*inputs, **options)]


@pytest.mark.parametrize(
    ("name", "parts", "kind"),
    [
        ("a.csv", ("a", ".csv", ""), "csv"),
        ("a.b.CSV.GZ", ("a.b", ".CSV", ".GZ"), "csv"),
        ("a.tab", ("a", ".tab", ""), "tsv"),
        ("a.ndjson.zst", ("a", ".ndjson", ".zst"), "jsonl"),
        ("a.json.xz", ("a", ".json", ".xz"), "json"),
        ("a.avro", ("a", ".avro", ""), "avro"),
        ("a.pq", ("a", ".pq", ""), "parquet"),
        ("a.txt.bz2", ("a.txt", "", ".bz2"), None),
        ("csv", ("csv", "", ""), None),
        (".csv", (".csv", "", ""), None),
    ],
)
def test_suffixes(name: str, parts: tuple[str, str, str], kind: str | None) -> None:
    assert split_name(name) == parts
    assert format_of(name) == kind


@pytest.mark.parametrize(
    ("name", "options", "output"),
    [
        ("data.csv", {}, "data.scored.csv"),
        ("data.csv.gz", {}, "data.scored.csv.gz"),
        ("dir/data.tab", {}, "dir/data.scored.tab"),
        ("data.csv", {"output_format": "parquet"}, "data.scored.parquet"),
        ("data.csv.gz", {"output_format": "avro"}, "data.scored.avro"),
        ("data.csv.gz", {"output_format": "jsonl"}, "data.scored.jsonl.gz"),
        ("data.avro", {"output_format": "csv"}, "data.scored.csv"),
        ("data.txt", {"input_format": "csv"}, "data.scored.txt"),
        ("data", {"input_format": "csv"}, "data.scored"),
        ("data.txt", {"input_format": "csv", "output_format": "json"}, "data.txt.scored.json"),
        ("data.csv", {"output_file": "x/y.parquet"}, "x/y.parquet"),
        ("data.csv", {"output_dir": "out"}, "out/data.csv"),
        ("dir/data.csv", {"output_dir": "out"}, "out/data.csv"),
        ("data.csv", {"output_dir": "out", "output_format": "json"}, "out/data.json"),
    ],
)
def test_output_of_one_file(name: str, options: dict[str, str], output: str) -> None:
    put(name)
    (task,) = tasks(name, **options)
    assert task.output == output
    assert task.rejects == f"{output}.rejects.jsonl"
    assert task.receipt == f"{output}.receipt.json"
    assert task.failed == f"{output}.failed.json"
    assert task.failed_rejects == f"{output}.failed.rejects.jsonl"


def test_the_output_names_its_format() -> None:
    put("data.csv")
    (task,) = tasks("data.csv", output_file="x.jsonl.gz")
    assert (task.input_format, task.output_format) == ("csv", "jsonl")
    (task,) = tasks("data.csv", output_file="x.dat")
    assert task.output_format == "csv"
    (task,) = tasks("data.csv", output_file="x.csv", output_format="tsv")
    assert task.output_format == "tsv"


def test_names_of_the_other_files() -> None:
    put("data.csv")
    (task,) = tasks("data.csv", rejects_file="r/bad.jsonl", receipt_file="done.json")
    assert (task.rejects, task.receipt) == ("r/bad.jsonl", "done.json")
    assert task.failed_rejects == "r/bad.jsonl.failed.rejects.jsonl"


def test_nothing_beside_standard_output_and_devices() -> None:
    put("data.csv")
    os.mkfifo("pipe")
    for output in ("-", "/dev/null", "pipe"):
        (task,) = tasks("data.csv", output_file=output)
        assert (task.rejects, task.receipt, task.failed, task.failed_rejects) == (None,) * 4
        (task,) = tasks("data.csv", output_file=output, receipt_file="r", rejects_file="pipe")
        assert (task.rejects, task.receipt, task.failed_rejects) == ("pipe", "r", None)


def test_standard_input() -> None:
    (task,) = tasks("-", input_format="csv")
    assert (task.input, task.output, task.receipt) == ("-", "-", None)
    (task,) = tasks("-", input_format="csv", output_file="x.json")
    assert (task.output, task.output_format) == ("x.json", "json")
    with pytest.raises(UsageError, match="--input_format"):
        tasks("-")
    with pytest.raises(UsageError, match="--output_file"):
        tasks("-", input_format="csv", output_dir="out")


def test_directory() -> None:
    put("in/b.csv", "in/a.jsonl.gz", "in/notes.txt", "in/.hidden.csv", "in/deep/c.csv")
    put("in/b.scored.csv", "in/b.scored.csv.rejects.jsonl", "in/x.failed.rejects.jsonl")
    put("in/b.scored.csv.receipt.json")
    expected = [("in/a.jsonl.gz", "in/a.scored.jsonl.gz"), ("in/b.csv", "in/b.scored.csv")]
    assert pairs("in") == expected
    assert pairs("in/", output_dir="out") == [
        ("in/a.jsonl.gz", "out/a.jsonl.gz"),
        ("in/b.csv", "out/b.csv"),
    ]


def test_glob() -> None:
    put("in/2024/a.csv", "in/2025/a.csv", "in/2025/.b.csv", "in/2025/a.scored.csv", "in/top.csv")
    assert pairs("in/**/*.csv", output_dir="out") == [
        ("in/2024/a.csv", "out/2024/a.csv"),
        ("in/2025/a.csv", "out/2025/a.csv"),
        ("in/top.csv", "out/top.csv"),
    ]
    assert pairs("in/202?/a.csv", output_dir="out")[0] == ("in/2024/a.csv", "out/2024/a.csv")
    assert [source for source, _ in pairs("in/*.csv")] == ["in/top.csv"]


def test_outputs_are_no_inputs() -> None:
    put("in/a.csv", "in/out/a.csv", "in/out/b.csv")
    assert pairs("in/**/*.csv", output_dir="in/out") == [("in/a.csv", "in/out/a.csv")]
    assert pairs("in/**/*.csv", output_dir="./in/../in/out")[0][0] == "in/a.csv"


def test_a_file_named_literally_is_always_taken() -> None:
    put("a.scored.csv", ".hidden.csv", "we[ir]d.csv", "*.csv")
    assert pairs("a.scored.csv") == [("a.scored.csv", "a.scored.scored.csv")]
    assert pairs(".hidden.csv") == [(".hidden.csv", ".hidden.scored.csv")]
    assert pairs("we[ir]d.csv") == [("we[ir]d.csv", "we[ir]d.scored.csv")]
    assert pairs("*.csv") == [("*.csv", "*.scored.csv")]


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    put("a.csv")
    assert pairs("~/*.csv") == [(f"{tmp_path}/a.csv", f"{tmp_path}/a.scored.csv")]
    assert pairs("~/a.csv", output_dir="~/out") == [(f"{tmp_path}/a.csv", f"{tmp_path}/out/a.csv")]


@pytest.mark.parametrize("name", ["a.scored.csv", "x.receipt.json", "x.failed.json", ".a.csv"])
def test_own_files(name: str) -> None:
    assert is_own(f"dir/{name}")
    assert not is_own("dir.scored.x/a.csv")


@given(
    st.lists(
        st.sampled_from(
            ["a", "b", "to_a", "to_file", "gone", "loop", "dangling", "x.csv", "..", ".", ""]
        ),
        min_size=1,
        max_size=4,
    )
    .map("/".join)
    # Of a link to itself and two slashes, realpath forgets what stands before.
    .map(lambda name: re.sub("loop//+", "loop/", name))
)
def test_what_names_of_one_file_have_in_common(
    links: Path, identities: Identities, name: str
) -> None:
    for each in (name, f"{links}/{name}", f"{os.path.relpath(links)}/{name}"):
        assert identities.of(each) == identity(each)
        if identity(each) != "/":
            final = Path(os.path.realpath(each))
            journal, notes = hidden_beside(str(final))
            wanted = str(final.with_name(f".{final.name}.journal"))
            assert journal == str(journal_path(each)) == wanted
            assert notes == str(notes_path(each))


@pytest.fixture(scope="module")
def identities() -> Identities:
    return Identities()


@pytest.fixture(scope="module")
def links(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with links of every kind."""
    place = tmp_path_factory.mktemp("links")
    (place / "a" / "b").mkdir(parents=True)
    (place / "a" / "x.csv").touch()
    for at in (place, place / "a", place / "a" / "b"):
        for name, target in (
            ("to_a", place / "a"), ("to_file", "x.csv"), ("loop", "loop"),
            ("dangling", "../gone/x.csv"),
        ):  # fmt: skip
            (at / name).symlink_to(target)
    return place


def test_a_directory_is_looked_up_once_for_all_of_its_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put(*(f"in/{number:03}.csv" for number in range(200)))
    Path("out").mkdir()
    looked: list[str] = []
    real = os.path.realpath

    def realpath(path: str) -> str:
        looked.append(path)
        return real(path)

    monkeypatch.setattr(os.path, "realpath", realpath)
    assert len(tasks("in", output_dir="out")) == 200
    assert len(looked) < 10


def test_missing_inputs_do_not_stop_the_others() -> None:
    put("a.csv")
    found, missing = tasks_of(Job(input_file=("a.csv", "b.csv", "*.avro"), model="m"))
    assert [task.input for task in found] == ["a.csv"]
    assert [str(error).split(":")[0] for error in missing] == ["b.csv", "*.avro"]
    with pytest.raises(InputMissing, match=r"did you mean a\.csv"):
        tasks_of(Job(input_file=("aa.csv",), model="m"))


@pytest.mark.parametrize(
    ("inputs", "options", "words"),
    [
        (("a.csv",), {"output_file": "a.csv"}, "would overwrite the input a.csv"),
        (("a.csv",), {"output_file": "./dir/../a.csv"}, "would overwrite the input a.csv"),
        (("a.csv",), {"output_dir": "."}, "would overwrite the input a.csv"),
        (("a.csv", "b.csv"), {"receipt_file": "r"}, "--receipt_file names one file"),
        (("a.csv", "b.csv"), {"output_file": "x.csv"}, "--output_file names one file"),
        (("a.csv", "dir/a.csv"), {"output_dir": "out"}, "would both be written"),
        (("a.csv", "a.csv"), {}, "would both be written"),
        (("a.csv",), {"output_file": "x", "rejects_file": "x"}, "two files of a.csv"),
        (("a.csv",), {"output_file": "x", "rejects_file": ".x.journal"}, "two files of a.csv"),
        (("a.csv",), {"output_file": "x", "receipt_file": ".x.inflight"}, "two files of a.csv"),
        (("a.csv",), {"rejects_file": "a.csv"}, "would overwrite the input a.csv"),
        (("notes.txt",), {}, "its suffix names no format"),
        (("a.avro.gz",), {}, "is compressed inside"),
        (("a.csv",), {"output_file": "x.parquet.gz"}, "is compressed inside"),
    ],
)
def test_refused(inputs: tuple[str, ...], options: dict[str, str], words: str) -> None:
    put("a.csv", "b.csv", "dir/a.csv", "notes.txt", "a.avro.gz")
    with pytest.raises(UsageError, match=words) as error:
        tasks(*inputs, **options)
    assert "\n" not in str(error.value)
