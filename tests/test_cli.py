"""The command line: options and where they come from, streams, receipt, order of publication."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from batchpredict import __version__, cli, jobfile, log
from batchpredict.jobfile import PATHS
from batchpredict.run import progress
from batchpredict.run.receipt import Counts
from tests import models
from tests.commands import COMMAND, environment, receipt, run

HEAVY = ("onnxruntime", "pyarrow", "pandas", "boto3", "tokenizers", "fastavro", "numpy")
CSV = "id,text\n007,good fine\n8,bad\n9,good\n"


@dataclass(frozen=True)
class Done:
    """What a run in this process left."""

    code: int
    out: str
    err: str


Invoke = Callable[..., Done]


@pytest.fixture
def invoke(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Invoke:
    """`cli.main` in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> Done:
        log.logger.handlers = []
        code = cli.main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Done(code, out, err)

    return call


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reads the column `text`; labels neg and pos."""
    return models.write_text_model(tmp_path_factory.mktemp("models") / "text")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.csv"
    path.write_text(CSV)
    return path


def header(path: Path) -> str:
    return path.read_text().split("\n", 1)[0]


# --- spelling


def test_underscores_and_dashes(invoke: Invoke, model: Path, data: Path, tmp_path: Path) -> None:
    for option in ("output_file", "output-file"):
        done = invoke(f"--input-file={data}", f"--{option}={option}.csv", "--model", model)
        assert (done.code, done.err) == (0, "")
        assert (tmp_path / f"{option}.csv").exists()


def test_predict_is_the_default_command(invoke: Invoke, model: Path, data: Path) -> None:
    outputs = []
    for command in ([], ["predict"]):
        assert invoke(*command, f"--input_file={data}", f"--model={model}").code == 0
        outputs.append(data.with_name("data.scored.csv").read_bytes())
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("dash", ["\u2013", "\u2014", "\u2212"])
def test_typographic_dash(invoke: Invoke, dash: str) -> None:
    done = invoke(f"{dash}input_file=data.csv")
    assert done.code == 2
    assert f"U+{ord(dash):04X}" in done.err
    assert "type --input_file=data.csv" in done.err
    assert len(done.err.splitlines()) == 1


def test_usage_errors_are_one_line_with_a_way_out(invoke: Invoke, data: Path) -> None:
    for arguments, words in (
        ([f"--input_file={data}"], ("no model", "--model=PATH")),
        (["--model=m"], ("no input", "--input_file=FILE")),
        (["--imput_file=x"], ("--input_file", "--help")),
        ([f"--input_file={data}", "--model=m", "--limit=x"], ("--limit", "--help")),
        ([f"--input_file={data}", "--model=m", "--limit=-1"], ("--limit=-1",)),
        (["scores"], ("scores", "--help")),
    ):
        done = invoke(*arguments)
        assert done.code == 2, arguments
        (line,) = done.err.splitlines()
        assert all(word in line for word in words), line
        assert done.out == ""


def test_nothing_at_all_shows_the_help(invoke: Invoke) -> None:
    done = invoke()
    assert (done.code, "Usage: batchpredict" in done.err) == (2, True)


def test_home_is_expanded(
    invoke: Invoke, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").symlink_to(model)
    (tmp_path / "out").mkdir()
    common = ("--input_file=~/data.csv", "--model=~/m")
    assert invoke(*common).code == 0
    assert (tmp_path / "data.scored.csv").exists()
    assert invoke(*common, "--output_file=~/x.csv", "--receipt_file=~/r.json").code == 0
    assert (tmp_path / "x.csv").exists()
    assert (tmp_path / "r.json").exists()
    assert invoke(*common, "--output_dir=~/out").code == 0
    assert (tmp_path / "out" / "data.csv").exists()
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("argument", ["--help", "--version", "-h", "predict --help"])
def test_help_and_version_import_nothing_heavy(argument: str) -> None:
    code = (
        "import sys; from batchpredict.cli import main; code = main(sys.argv[1:]);"
        f"print([name for name in {HEAVY!r} if name in sys.modules], code)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *argument.split()],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    shown, last = done.stdout.strip().rsplit("\n", 1)
    assert last == "[] 0"
    assert (__version__ if "version" in argument else "Usage: batchpredict") in shown


# --- streams


def test_a_clean_run_writes_the_log_to_stdout_only(invoke: Invoke, model: Path, data: Path) -> None:
    done = invoke(f"--input_file={data}", f"--model={model}")
    assert (done.code, done.err) == (0, "")
    assert "3 rows, 3 scored" in done.out
    assert "data.scored.csv" in done.out


def test_data_alone_on_stdout(invoke: Invoke, model: Path, data: Path, tmp_path: Path) -> None:
    arguments = (f"--input_file={data}", f"--model={model}")
    done = invoke(*arguments, "--output_file=-")
    assert done.code == 0
    assert done.out.splitlines()[0] == "id,text,prediction,score"
    assert len(done.out.splitlines()) == 4
    assert "3 rows, 3 scored" in done.err
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["data.csv"]
    done = invoke(*arguments, "--output_file=/dev/stdout", "--quiet", "--receipt_file=r.json")
    assert (done.code, done.out.count("\n"), done.err) == (0, 4, "")
    assert receipt(tmp_path / "r.json")["output"]["path"] == "-"


def test_stdin_and_rejects_on_stderr(model: Path, tmp_path: Path) -> None:
    bad = CSV + "1,2,3\n"
    arguments = ("--input_file=-", f"--model={model}", "--max_rejects=1", "--quiet")
    done = run(*arguments, "--input_format=csv", cwd=tmp_path, stdin=bad.encode())
    assert done.returncode == 3
    assert done.stdout.splitlines()[0] == b"id,text,prediction,score"
    assert len(done.stdout.splitlines()) == 4
    reject, warning = done.stderr.decode().splitlines()
    assert json.loads(reject)["record"] == "1,2,3"
    assert json.loads(reject)["file"] == "-"
    assert "malformed_row 1" in warning
    assert [path for path in tmp_path.iterdir() if path.is_file()] == []


def test_stdin_needs_a_format(invoke: Invoke, model: Path) -> None:
    done = invoke("--input_file=-", f"--model={model}")
    assert (done.code, "--input_format" in done.err) == (2, True)


def test_quiet(invoke: Invoke, model: Path, data: Path) -> None:
    done = invoke(f"--input_file={data}", f"--model={model}", "--quiet")
    assert done == Done(0, "", "")


def test_json_log(invoke: Invoke, model: Path, data: Path, tmp_path: Path) -> None:
    data.write_text(CSV + "1,2,3\n")
    arguments = (f"--input_file={data}", f"--model={model}", "--log_format=json")
    done = invoke(*arguments, "--max_rejects=1")
    assert done.code == 3
    entries = [json.loads(line) for line in done.out.splitlines()]
    assert {entry["level"] for entry in entries} == {"info"}
    events = [entry["event"] for entry in entries]
    assert events == ["summary", "output", "rejects", "receipt"]
    assert "4 rows, 3 scored" in entries[0]["message"]
    published = receipt(tmp_path / "data.scored.csv.receipt.json")
    assert entries[-1]["receipt"] == published
    for entry in entries:
        assert (entry["run_id"], entry["stage"]) == (published["run_id"], "publish")
        assert entry.get("counts") in (published["counts"], None)
    (warning,) = [json.loads(line) for line in done.err.splitlines()]
    assert (warning["level"], warning["event"]) == ("warning", "lost")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", warning["time"])


def test_json_log_of_a_failed_run(invoke: Invoke, model: Path, data: Path, tmp_path: Path) -> None:
    data.write_text(CSV + "1,2,3\n")
    arguments = (f"--input_file={data}", f"--model={model}", "--log_format=json")
    done = invoke(*arguments, "--max_rejects=0")
    (error,) = [json.loads(line) for line in done.err.splitlines()]
    assert (done.code, error["level"], error["stage"]) == (65, "error", "score")
    failed = receipt(tmp_path / "data.scored.csv.failed.json")
    assert json.loads(done.out.splitlines()[-1])["receipt"] == failed
    assert failed["run_id"] == error["run_id"]


def test_one_run_has_one_id(invoke: Invoke, model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "second.csv").write_text(CSV)
    inputs = (f"--input_file={data}", f"--input_file={tmp_path / 'second.csv'}")
    invoke(*inputs, f"--model={model}")
    first, second = (
        receipt(tmp_path / f"{name}.scored.csv.receipt.json")["run_id"]
        for name in ("data", "second")
    )
    assert first == second
    done = invoke(*inputs, f"--model={model}")
    again = receipt(tmp_path / "data.scored.csv.receipt.json")["run_id"]
    assert again != first
    assert {line.split()[3] for line in done.out.splitlines()} == {again[:8]}


def test_file_names_that_are_not_utf8(invoke: Invoke, model: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"d\xff.csv")
    (tmp_path / name).write_text(CSV)
    done = invoke(f"--input_file={name}", f"--model={model}")
    assert (done.code, done.err) == (0, "")
    assert receipt(tmp_path / f"{name[:-4]}.scored.csv.receipt.json")["inputs"][0]["path"] == name


# --- what is scored and what is written


def scores(path: Path) -> list[list[str]]:
    return [line.split(",") for line in path.read_text().splitlines()]


def test_limit(invoke: Invoke, model: Path, data: Path, tmp_path: Path) -> None:
    for limit in (0, 2, 9):
        assert invoke(f"--input_file={data}", f"--model={model}", f"--limit={limit}").code == 0
        assert len(scores(tmp_path / "data.scored.csv")) == 1 + min(limit, 3)
        found = receipt(tmp_path / "data.scored.csv.receipt.json")
        assert found["counts"]["read"] == min(limit, 3)
        (read,) = found["inputs"]
        assert (read["path"], read["size"]) == (str(data), data.stat().st_size)
        assert read["sha256"] is None


def test_dry_run(invoke: Invoke, model: Path, data: Path, tmp_path: Path) -> None:
    data.write_text(CSV + "1,2,3\n")
    arguments = (f"--model={model}", "--dry_run")
    done = invoke(f"--input_file={data}", *arguments)
    assert (done.code, done.err) == (0, "")
    assert "4 rows read, 1 of them would be rejected" in done.out
    assert str(tmp_path / "data.scored.csv") in done.out
    for options, code in (
        (["--input_file=gone.csv"], 66),
        ([f"--input_file={data}", "--output_file=gone/x.csv"], 73),
        ([f"--input_file={data}", "--receipt_file=gone/x"], 73),
        ([f"--input_file={data}", "--column=text=other"], 2),
        ([f"--input_file={data}", "--model=gone"], 69),
    ):
        done = invoke(*arguments, *options)
        assert (done.code, len(done.err.splitlines())) == (code, 1), options
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["data.csv"]


def test_one_row(invoke: Invoke, model: Path, data: Path, tmp_path: Path) -> None:
    """Is no rows, wherever it is told of."""
    (tmp_path / "one").mkdir()
    data.write_text("id,text\n7,good\n8\n")
    call = (f"--input_file={data}", f"--model={model}", "--max_rejects=50%")
    told = [
        invoke(*call, "--limit=1", "--dry_run"), invoke(*call, "--limit=1"), invoke(*call),
        invoke("retry", f"{data.with_suffix('')}.scored.csv.receipt.json"),
        invoke(*call, "--max_rejects=0"), invoke(*call, "--limit=1", "--output_dir=one"),
        invoke("runs", "list", "one"),
    ]  # fmt: skip
    mended = Path(f"{data.with_suffix('')}.scored.csv.rejects.jsonl")
    mended.write_text(mended.read_text().replace('"8"', '"8,fine"'))
    told.append(invoke("retry", f"{data.with_suffix('')}.scored.csv.receipt.json"))
    shown = invoke("runs", "show", "data.scored.csv.receipt.json").out
    text = "".join(done.out + done.err for done in told) + shown
    found = re.findall(r"(?<![\d.,/])1 (rejected rows?|rows?|runs?)\b", text)
    assert sorted({*found}) == ["row", "run"], text
    assert len(found) > 8


def test_keep(invoke: Invoke, model: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "data.scored.csv"
    for keep, expected in (
        ("all", "id,text,prediction,score"),
        ("none", "prediction,score"),
        ("text,id", "text,id,prediction,score"),
        ('"text"', "text,prediction,score"),
    ):
        assert invoke(f"--input_file={data}", f"--model={model}", f"--keep={keep}").code == 0
        assert header(output) == expected
    done = invoke(f"--input_file={data}", f"--model={model}", "--keep=texts")
    assert (done.code, "did you mean 'text'?" in done.err) == (2, True)


def test_scores(invoke: Invoke, model: Path, data: Path, tmp_path: Path) -> None:
    for choice, expected in (
        ("all", "id,text,prediction,score,score_neg,score_pos"),
        ("none", "id,text,prediction"),
        ("top", "id,text,prediction,score"),
    ):
        assert invoke(f"--input_file={data}", f"--model={model}", f"--scores={choice}").code == 0
        assert header(tmp_path / "data.scored.csv") == expected


def test_clash_with_an_input_column(invoke: Invoke, model: Path, data: Path) -> None:
    data.write_text("text,prediction\ngood,x\n")
    arguments = (f"--input_file={data}", f"--model={model}")
    done = invoke(*arguments)
    assert done.code == 2
    assert "'prediction'" in done.err
    assert "--prefix" in done.err
    assert invoke(*arguments, "--prefix=m_").code == 0
    assert header(data.with_name("data.scored.csv")) == "text,prediction,m_prediction,m_score"


@pytest.fixture(scope="module")
def numbers_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """logits [N, 2] of the columns x and y, and further outputs."""
    return models.write(
        tmp_path_factory.mktemp("models") / "numbers",
        models.two_heads_graph(),
        manifest='[inputs.features]\ncolumns = ["x", "y"]\nmissing = "reject"\n',
        config={"id2label": {"0": "a", "1": "b"}},
    )


def test_on_error(invoke: Invoke, numbers_model: Path, data: Path, tmp_path: Path) -> None:
    data.write_text("x,y\n1,2\nmany,2\n3,1\n")
    output = tmp_path / "data.scored.csv"
    arguments = (f"--input_file={data}", f"--model={numbers_model}", "--max_rejects=1")
    assert invoke(*arguments, "--on_error=null").code == 3
    assert [row[:3] for row in scores(output)[1:]] == [
        ["1", "2", "b"],
        ["many", "2", ""],
        ["3", "1", "a"],
    ]
    found = receipt(tmp_path / "data.scored.csv.receipt.json")
    assert (found["counts"]["nulls"], found["counts"]["rejected"]) == (1, 0)
    rejects = (tmp_path / "data.scored.csv.rejects.jsonl").read_text()
    assert json.loads(rejects)["code"] == "bad_type"
    assert invoke(*arguments).code == 3
    assert [row[:2] for row in scores(output)[1:]] == [["1", "2"], ["3", "1"]]
    done = invoke(*arguments, "--on_error=fail")
    assert done.code == 65
    assert "data.csv:3: row 2: bad_type" in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("budget", "code"),
    [("29%", 3), ("28%", 65), ("28.9%", 65), ("29", 3), ("28", 65), ("0", 65), ("100%", 3)],
)
def test_max_rejects(
    invoke: Invoke, numbers_model: Path, data: Path, tmp_path: Path, budget: str, code: int
) -> None:
    """29 of 100 are 29 %, whatever 0.29 * 100 is in floating point."""
    data.write_text("x,y\n" + "x,2\n" * 29 + "1,2\n" * 71)
    done = invoke(f"--input_file={data}", f"--model={numbers_model}", f"--max_rejects={budget}")
    assert done.code == code
    assert (tmp_path / "data.scored.csv").exists() is (code == 3)


def test_max_rejects_is_judged_early(invoke: Invoke, numbers_model: Path, data: Path) -> None:
    data.write_text("x,y\n" + "x,2\n" * 20_000 + "1,2\n" * 1_000_000)
    done = invoke(f"--input_file={data}", f"--model={numbers_model}", "--max_rejects=50%")
    assert done.code == 65
    failed = receipt(data.with_name("data.scored.csv.failed.json"))
    assert failed["counts"]["read"] < 100_000


def test_threshold_and_outputs(
    invoke: Invoke, model: Path, numbers_model: Path, data: Path, tmp_path: Path
) -> None:
    binary = models.write_text_model(tmp_path / "binary", models.text_graph(1))
    output = tmp_path / "data.scored.csv"
    common = (f"--input_file={data}", f"--model={binary}")
    for threshold, expected in (("0.1", ["pos"] * 3), ("0.8", ["pos", "neg", "neg"])):
        assert invoke(*common, f"--threshold={threshold}").code == 0
        assert [row[2] for row in scores(output)[1:]] == expected
    assert invoke(*common, "--threshold=2").code == 2
    data.write_text("x,y\n1,2\n")
    arguments = (f"--input_file={data}", f"--model={numbers_model}", "--output_format=jsonl")
    assert invoke(*arguments, "--outputs=embedding,length").code == 0
    row = json.loads((tmp_path / "data.scored.jsonl").read_text())
    assert [value for key, value in row.items() if "embedding" in key] == [[-1, -2]]
    assert [value for key, value in row.items() if "length" in key] == [3]
    done = invoke(*arguments, "--outputs=embeding")
    assert "embedding" in done.err
    assert done.code in (2, 78)


def test_column(invoke: Invoke, model: Path, data: Path) -> None:
    data.write_text("text,body\nbad,good\n")
    common = (f"--input_file={data}", f"--model={model}")
    assert invoke(*common, "--column=text=body").code == 0
    assert scores(data.with_name("data.scored.csv"))[1][2] == "pos"
    for column, word in (
        ("text=bdy", "did you mean 'body'?"),
        ("txt=body", "did you mean 'text'?"),
        ("text", "is not INPUT=COLUMN"),
    ):
        done = invoke(*common, f"--column={column}")
        assert (done.code, word in done.err) == (2, True), done.err


def test_dialects(invoke: Invoke, model: Path, data: Path, tmp_path: Path) -> None:
    common = (f"--model={model}", "--column=text=2", "--no_header")
    data.write_text("1;good\n2;bad\n")
    assert invoke(f"--input_file={data}", *common, "--delimiter=;").code == 0
    lines = (tmp_path / "data.scored.csv").read_text().splitlines()
    assert [line.rsplit(";", 1)[0] for line in lines] == ["1;good;pos", "2;bad;neg"]
    data.write_text("1\tgood\n")
    for delimiter in ("tab", "\\t", "\t"):
        assert invoke(f"--input_file={data}", *common, f"--delimiter={delimiter}").code == 0
        assert (tmp_path / "data.scored.csv").read_text().startswith("1\tgood\tpos\t")
    (tmp_path / "data.tsv").write_text("1\tgood\n")
    assert invoke("--input_file=data.tsv", *common).code == 0
    assert (tmp_path / "data.scored.tsv").read_text().startswith("1\tgood\tpos\t")
    data.write_bytes("1,good Käse\n".encode("latin-1"))
    assert invoke(f"--input_file={data}", *common, "--encoding=latin-1").code == 0
    assert (tmp_path / "data.scored.csv").read_bytes().startswith(b"1,good K\xe4se,pos,")
    for option in ("--delimiter=;;", '--delimiter="', "--encoding=klingon", "--encoding=base64"):
        done = invoke(f"--input_file={data}", *common, option)
        assert (done.code, len(done.err.splitlines())) == (2, 1)


# --- where options come from


def test_command_line_beats_environment_beats_job_file_beats_default(
    invoke: Invoke, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def limit(*arguments: str) -> int:
        assert invoke(f"--input_file={data}", f"--model={model}", *arguments).code == 0
        found = receipt(tmp_path / "data.scored.csv.receipt.json")["options"]["limit"]
        return -1 if found is None else int(found)

    (tmp_path / "night.toml").write_text("limit = 1\n")
    assert limit() == -1
    assert limit("--job=night.toml") == 1
    monkeypatch.setenv("BATCHPREDICT_LIMIT", "2")
    assert limit("--job=night.toml") == 2
    assert limit("--job=night.toml", "--limit=3") == 3


def test_job_file(invoke: Invoke, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "jobs"
    folder.mkdir()
    (folder / "in.csv").write_text("id,body\n1,good\n")
    (folder / "night.toml").write_text(
        'input_file = "in.csv"\noutput-file = "out.csv"\n'
        f'model = "{model}"\nkeep = ["body"]\nscores = "none"\n'
        'column = { text = "body" }\nmax_rejects = 5\nno_header = false\n'
    )
    assert invoke("--job", "jobs/night.toml").code == 0
    assert (folder / "out.csv").read_text() == "body,prediction\ngood,pos\n"
    found = receipt(folder / "out.csv.receipt.json")["options"]
    assert (found["max_rejects"], found["column"]) == ("5", [["text", "body"]])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("inputfile = 'x'", ("unknown option 'inputfile'", "did you mean 'input_file'?")),
        ("job = 'x'", ("unknown option 'job'",)),
        ("limit = ", ("is not TOML",)),
        ("limit = 'many'", ("--limit", "many")),
        ("keep = 5", ("--keep", "list of names")),
        ("column = 'x'", ("column must be a table",)),
        ("limit = { a = 1 }", ("limit must not be a table",)),
        ("max_rejects = 1\nmax-rejects = 2", ("max_rejects", "twice")),
        ("scores = 'most'", ("--scores", "most")),
    ],
)
def test_job_file_that_is_wrong(
    invoke: Invoke, tmp_path: Path, content: str, words: tuple[str, ...]
) -> None:
    (tmp_path / "night.toml").write_text(content)
    done = invoke("--job=night.toml", "--input_file=data.csv", "--model=m")
    assert done.code == 78
    (line,) = done.err.splitlines()
    assert all(word in line for word in ("night.toml", *words)), line


PLACES = sorted({*PATHS, "job", "endpoint_url", "service", "ping_url"})


@pytest.mark.parametrize("option", PLACES)
def test_a_place_that_is_empty(
    invoke: Invoke, model: Path, data: Path, option: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Wrong usage, but for an environment variable: there it is none."""
    given = {"input_file": f"--input_file={data}", "model": f"--model={model}"}
    done = invoke(*given.values(), f"--{option}=")
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert f"--{option}'" in line
    assert "is empty" in line
    if option != "job":
        (tmp_path / "night.toml").write_text(f'{option} = ""\n')
        arguments = [text for name, text in given.items() if name != option]
        done = invoke("--job=night.toml", *arguments)
        assert (done.code, done.err.count("\n"), "night.toml: " in done.err) == (78, 1, True)
    monkeypatch.setenv(f"BATCHPREDICT_{option.upper()}", "")
    assert invoke(*given.values(), "--quiet").code == 0
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".toml") == [
        "data.csv", "data.scored.csv", "data.scored.csv.receipt.json",
    ]  # fmt: skip


def test_an_empty_line_of_a_variable_is_no_input(
    invoke: Invoke, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHPREDICT_INPUT_FILE", f"{data}\n\n")
    assert invoke(f"--model={model}").code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("schedule", "@daily", "--log_file="), ("tune", "--svg="), ("tune", "--write_job="),
        ("retry", "r.json", "--output_file="), ("retry", "r.json", "--input_file="),
        ("retry", "r.json", "--model="), ("report", ".", "--output_file="),
        ("models", "optimize", "m", "--precision=int8", "--sample=s", "--output="),
        ("inspect", "m", "--compare_precision="),
    ],
)  # fmt: skip
def test_other_commands_take_no_empty_place_either(
    invoke: Invoke, arguments: tuple[str, ...]
) -> None:
    done = invoke(*arguments)
    assert (done.code, "is empty" in done.err) == (2, True)


def test_every_command_is_listed_and_there(invoke: Invoke) -> None:
    listed = re.findall(r"(?m)^  ([a-z]+)  ", invoke("--help").out.split("Commands:")[1])
    assert listed == sorted(listed)
    assert {"predict", "models", "report", "runs", "schedule"} <= set(listed)
    for name in listed:
        assert f"batchpredict {name} [OPTIONS]" in invoke(name, "--help").out


def test_models_and_metrics_in_a_job_file(
    invoke: Invoke, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative to it, but for what is a name in a store."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "a {job}"
    (folder / "metrics-2026-11-20").mkdir(parents=True)
    assert invoke("models", "push", model, "texts", f"--model_store={folder / 'store'}").code == 0
    (folder / "in-2026-11-20.csv").write_text("id,text\n1,good\n")
    for name in ("texts", "texts@latest"):
        (folder / "night.toml").write_text(
            f'input_file = "in-{{date}}.csv"\noutput_file = "out.csv"\nmodel = "{name}"\n'
            'model_store = "store"\nmetrics_dir = "metrics-{date}"\ndate = "2026-11-20"\n'
        )
        done = invoke(f"--job={folder / 'night.toml'}")
        assert (done.code, done.err) == (0, "")
        found = receipt(folder / "out.csv.receipt.json")
        assert (found["model"]["name"], found["model"]["version"]) == ("texts", "1")
        assert found["options"]["model_store"] == str(folder / "store")
        assert [file.name for file in (folder / "metrics-2026-11-20").iterdir()] == [
            "batchpredict_night.prom"
        ]


def test_a_store_in_s3_in_a_job_file(tmp_path: Path) -> None:
    file = tmp_path / "night.toml"
    file.write_text('model = "m@2"\nmodel_store = "s3://bucket/models/"\nbaseline = "a.json"\n')
    assert jobfile.read_job_file(str(file), {"model", "model_store", "baseline"}) == {
        "model": "m@2", "model_store": "s3://bucket/models/", "baseline": str(tmp_path / "a.json"),
    }  # fmt: skip


@pytest.mark.parametrize("model", ["./m", "a/m", "m.onnx"])
def test_a_path_beside_the_job_file_is_no_name_in_a_store(tmp_path: Path, model: str) -> None:
    file = tmp_path / "night.toml"
    file.write_text(f'model = "{model}"\nmodel_store = "store"\n')
    found = jobfile.read_job_file(str(file), {"model", "model_store"})["model"]
    assert os.path.normpath(found) == f"{tmp_path}/{model.removeprefix('./')}"


def test_job_file_missing(invoke: Invoke) -> None:
    done = invoke("--job=gone.toml")
    assert (done.code, "gone.toml: no such file" in done.err) == (78, True)


def test_environment_that_is_wrong(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHPREDICT_LIMIT", "many")
    done = invoke("--input_file=data.csv", "--model=m")
    assert done.code == 78
    (line,) = done.err.splitlines()
    assert "BATCHPREDICT_LIMIT: " in line


PREDICT = cli.cli.commands["predict"]
OPTIONS = [p for p in PREDICT.params if isinstance(p, click.Option) and p.name != "help"]


def params(*arguments: str) -> dict[str, Any]:
    settings = cli.cli.context_settings
    return PREDICT.make_context("predict", list(arguments), **settings).params


# A value that each option takes, other than its default, as an environment variable spells it.
VALUES = {
    "input_file": "x.csv",
    "model": "m",
    "column": "a=b",
    "keep": "a,b",
    "outputs": "a",
    "input_format": "json",
    "output_format": "json",
    "max_record_bytes": "4KiB",
    "no_header": "true",
    "dry_run": "true",
    "scores": "all",
    "threshold": "0.25",
    "on_error": "null",
    "max_drift": "0.25",
    "on_drift": "fail",
    "limit": "5",
    "batch_rows": "5",
    "batch_tokens": "5",
    "workers": "5",
    "provider": "openvino",
    "precision": "int8",
    "memory_limit": "2147483648",
    "shard_bytes": "4KiB",
    "engine": "ray",
    "cpus_per_actor": "5",
    "output_parts": "true",
    "no_tuning": "true",
    "if_done": "skip",
    "skip_rows": "3,5",
    "no_resume": "true",
    "max_seconds": "5",
    "max_model_age": "5",
    "offline": "true",
    "endpoint_url": "https://storage.example",
    "lock_wait": "5",
    "wait_for_input": "5",
    "stable_for": "5",
    "if_missing": "skip",
    "progress": "true",
    "quiet": "true",
    "verbose": "true",
    "log_format": "json",
}


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: str(option.name))
def test_every_option_has_a_variable_and_a_key(
    option: click.Option, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = str(option.name)
    assert option.envvar == f"BATCHPREDICT_{name.upper()}"
    if name == "job":
        return
    text = VALUES.get(name, "word")

    def value(*arguments: str) -> object:
        return params(*arguments)[name]

    spelled = f"--{name}" if option.is_flag else f"--{name}={text}"
    expected = value(spelled)
    assert expected != value()
    dashed = f"--{name.replace('_', '-')}"
    assert value(spelled.replace(f"--{name}", dashed)) == expected
    monkeypatch.setenv(f"BATCHPREDICT_{name.upper()}", text)
    assert value() == expected
    monkeypatch.delenv(f"BATCHPREDICT_{name.upper()}")
    toml = {"column": '{ a = "b" }', "keep": '["a", "b"]', "skip_rows": "[3, 5]"}.get(name)
    toml = toml or (text if text in ("true", "5", "0.25") else f'"{text}"')
    (tmp_path / "job.toml").write_text(f"{name} = {toml}\n")
    found = value(f"--job={tmp_path / 'job.toml'}")
    if name in PATHS:
        path = str(tmp_path / text)
        assert found == ((path,) if name == "input_file" else path)
    else:
        assert found == expected


def test_several_inputs_in_one_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHPREDICT_INPUT_FILE", "a b.csv\nc.csv")
    assert params()["input_file"] == ("a b.csv", "c.csv")


@pytest.mark.parametrize("source", ["nothing", "option", "variable", "job"])
def test_default_model_has_the_lowest_precedence(
    invoke: Invoke,
    model: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
) -> None:
    other = models.write_text_model(
        tmp_path / "other", config={"id2label": {"0": "no", "1": "yes"}, "pad_token_id": 0}
    )
    monkeypatch.setenv("BATCHPREDICT_DEFAULT_MODEL", str(other))
    arguments = [f"--input_file={data}"]
    if source == "option":
        arguments.append(f"--model={model}")
    elif source == "variable":
        monkeypatch.setenv("BATCHPREDICT_MODEL", str(model))
    elif source == "job":
        (tmp_path / "job.toml").write_text(f'model = "{model}"\n')
        arguments.append("--job=job.toml")
    done = invoke(*arguments)
    assert (done.code, done.err) == (0, "")
    label = scores(tmp_path / "data.scored.csv")[1][2]
    named = [line for line in done.out.splitlines() if str(other) in line]
    assert (label, len(named)) == (("yes", 1) if source == "nothing" else ("pos", 0))


# --- inspect


def test_inspect(invoke: Invoke, model: Path, data: Path) -> None:
    done = invoke("inspect", model)
    assert (done.code, done.err) == (0, "")
    lines = dict(re.split(r"  +", line, maxsplit=1) for line in done.out.splitlines())
    assert lines["labels"] == "neg, pos"
    assert lines["score"] == "probability"
    assert lines["input"].startswith(("input_ids: int64", "attention_mask: int64"))
    assert lines["tokenizer.file"] == "tokenizer.json"
    done = invoke("inspect", model, data)
    assert (done.code, done.err) == (0, "")
    assert re.search(r"^file.binding +text <- text$", done.out, re.MULTILINE)


def test_inspect_as_json(invoke: Invoke, model: Path, data: Path) -> None:
    done = invoke("inspect", "--json", model)
    facts = json.loads(done.out)
    assert (done.code, done.err, "file" in facts) == (0, "", False)
    assert facts["labels"] == ["neg", "pos"]
    done = invoke("inspect", model, data, "--json", "--column=text=id")
    facts = json.loads(done.out)
    assert facts["file"]["columns"] == {"id": "string", "text": "string"}
    assert facts["file"]["binding"] == {"text": ["id"]}
    assert facts["added_columns"] == {"prediction": "string", "score": "float"}


def test_inspect_a_file_that_does_not_bind(invoke: Invoke, model: Path, data: Path) -> None:
    data.write_text("id,texts\n1,good\n")
    done = invoke("inspect", model, data)
    assert (done.code, done.out) == (65, "")
    (line,) = done.err.splitlines()
    assert "did you mean 'texts'?" in line
    assert "data.csv" in line


def test_inspect_what_is_not_there(invoke: Invoke, model: Path) -> None:
    assert invoke("inspect", "gone").code == 69
    assert invoke("inspect", model, "gone.csv").code == 66


# --- receipt


def digest(path: Path) -> dict[str, object]:
    content = path.read_bytes()
    return {
        "path": str(path),
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "modified_ns": path.stat().st_mtime_ns,
    }


def test_receipt(invoke: Invoke, model: Path, data: Path, tmp_path: Path) -> None:
    data.write_text(CSV + "1,2,3\n")
    assert invoke(f"--input_file={data}", f"--model={model}", "--max_rejects=1").code == 3
    found = receipt(tmp_path / "data.scored.csv.receipt.json")
    assert set(found) == {
        *("receipt", "run_id", "started", "ended", "exit_code", "tool", "model", "inputs"),
        *("output", "rejects", "options", "plan", "counts", "stages", "rows_per_second"),
        *("cpu_seconds", "first_row_seconds", "peak_memory_bytes", "resumed", "suspects"),
        *("batches", "profile", "warnings"),
    }
    assert found["exit_code"] == 3
    assert found["inputs"] == [digest(data)]
    assert found["output"] == digest(tmp_path / "data.scored.csv")
    rejects = digest(tmp_path / "data.scored.csv.rejects.jsonl")
    del rejects["modified_ns"]
    rows = hashlib.sha256(b"4 malformed_row\n").hexdigest()
    assert found["rejects"] == {**rejects, "codes": {"malformed_row": 1}, "rows_sha256": rows}
    counts = found["counts"]
    assert (counts["read"], counts["scored"]) == (4, 3)
    assert counts["read"] == counts["scored"] + counts["nulls"] + counts["rejected"]
    assert found["tool"]["version"] == __version__
    names = {"name", "version", "alias", "sha256", "manifest_sha256", "store"}
    assert found["model"].keys() == names
    assert found["started"] <= found["ended"]
    assert {"read", "prepare", "plan", "infer", "finish", "write", "publish"} <= set(
        found["stages"]
    )
    assert found["options"]["max_rejects"] == "1"
    assert found["plan"]["intra_op_threads"] == 1
    assert found["peak_memory_bytes"] > 10 << 20


def test_order_of_publication(
    invoke: Invoke, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def recording(
        replace: Callable[..., object],
    ) -> Callable[[str | Path, str | Path], object]:
        def call(source: str | Path, target: str | Path) -> object:
            if not order or order[-1] != Path(target).name:
                order.append(Path(target).name)
            return replace(source, target)

        return call

    data.write_text(CSV + "1,2,3\n")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", recording(os.replace))
        patch.setattr(Path, "replace", recording(Path.replace))
        assert invoke(f"--input_file={data}", f"--model={model}", "--max_rejects=1").code == 3
    name = "data.scored.csv"
    assert order == [f"{name}.rejects.jsonl", name, f"{name}.receipt.json"]


# --- progress


class Clock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Source:
    name = "data.csv"
    position = 50
    size: int | None = 200


def test_a_log_line_every_30_seconds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock, source = Clock(), Source()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(logging.getLogger("batchpredict"), "propagate", True)
    caplog.set_level(logging.INFO, "batchpredict")
    watch = progress.Progress(False)
    for second in range(0, 91, 5):
        clock.now = 100.0 + second
        watch(Counts(read=1000 * second), source)
    watch.close()
    assert caplog.messages == [
        f"data.csv: {1000 * second:,} rows (25%), 1,000 rows/s" for second in (30, 60, 90)
    ]


def with_terminal(*arguments: str, cwd: Path) -> tuple[int, str]:
    """Exit code, and what a terminal on stderr was shown."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            more = os.read(ours, 65536)
        except OSError:  # the last writer has gone
            break
        if not more:
            break
        shown += more
    os.close(ours)
    return process.wait(timeout=60), shown.decode()


def test_bar_on_a_terminal_only(model: Path, data: Path, tmp_path: Path) -> None:
    arguments = (f"--input_file={data}", f"--model={model}")
    code, shown = with_terminal(*arguments, cwd=tmp_path)
    assert code == 0
    assert "100%|" in shown
    assert "3 rows" in shown
    for option in ("--no_progress", "--quiet"):
        assert with_terminal(*arguments, option, cwd=tmp_path) == (0, "")
    done = run(*arguments, "--progress", cwd=tmp_path)
    assert done.returncode == 0
    assert b"100%|" in done.stderr


def test_the_home_directory_stays_untouched(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime 1.29 and later would keep a device id there and send telemetry."""
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    home = {"HOME": str(tmp_path / "home"), "CI": "", "ORT_RUNNING_UNIT_TESTS": ""}
    arguments = (f"--input_file={data}", f"--model={model}")
    assert run(*arguments, cwd=tmp_path, env=home).returncode == 0
    assert not (tmp_path / "home").exists()
