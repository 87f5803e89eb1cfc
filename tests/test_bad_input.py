"""Bad input, bad models, bad places: what the user sees, through a real process each.

Every case asserts the exit code of DESIGN's table, one line of error that names the file and a
way out, and that nothing half-written is left.
"""

from __future__ import annotations

import ctypes
import gzip
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import fastavro
import pytest

from batchpredict import cli, log
from tests import models
from tests.commands import half_written, receipt, run, start

# 11 rows: one reject is within the default budget of 10 %.
ROWS = [f"{number},good fine" for number in range(1, 12)]
HEADER = "id,text"


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reads the column `text`; labels neg and pos."""
    return models.write_text_model(tmp_path_factory.mktemp("models") / "text")


@pytest.fixture(scope="module")
def tabular_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write_classifier(tmp_path_factory.mktemp("models") / "tabular")


def table(*rows: str, header: str = HEADER) -> str:
    return "\n".join([header, *rows]) + "\n"


def many(rows: int) -> str:
    """Input of the tabular model, about 14 bytes a row."""
    return "x,y\n" + "".join(f"{i}.5,{i}\n" for i in range(rows))


def names(directory: Path) -> list[str]:
    """Files in a directory; conftest's home may lie there too."""
    return sorted(path.name for path in directory.iterdir() if path.is_file())


def error_of(done: subprocess.CompletedProcess[bytes], code: int, *words: str) -> str:
    """The one line on stderr of a run that ended with `code`."""
    text = done.stderr.decode()
    assert done.returncode == code, text
    assert "Traceback" not in text
    (line,) = text.splitlines()
    for word in words:
        assert word in line
    return line


def refused(
    directory: Path, done: subprocess.CompletedProcess[bytes], code: int, *words: str
) -> str:
    """`error_of` a run that published nothing."""
    line = error_of(done, code, *words)
    published = [
        path.name
        for path in directory.iterdir()
        if (".scored." in path.name or path.name.startswith("out"))
        and ".failed." not in path.name
        and not path.name.endswith(".journal")
    ]
    assert published == []
    assert half_written(directory) == []
    return line


# --- the input


def test_no_such_file(tmp_path: Path, text_model: Path) -> None:
    (tmp_path / "data.csv").write_text(table(*ROWS))
    done = run("--input_file=dta.csv", f"--model={text_model}", cwd=tmp_path)
    refused(tmp_path, done, 66, "dta.csv", "no such file", "did you mean data.csv?")
    assert names(tmp_path) == ["data.csv"]


def test_directory_without_matching_files(tmp_path: Path, text_model: Path) -> None:
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / "notes.txt").write_text("nothing")
    (tmp_path / "exports" / "a.scored.csv").write_text(table(*ROWS))
    done = run("--input_file=exports", f"--model={text_model}", cwd=tmp_path)
    refused(tmp_path, done, 66, "exports", ".csv", "check the path")
    done = run("--input_file=exports/*.avro", f"--model={text_model}", cwd=tmp_path)
    refused(tmp_path, done, 66, "exports/*.avro", "no file matches", "check the path")


def test_zero_bytes(tmp_path: Path, text_model: Path) -> None:
    (tmp_path / "data.csv").touch()
    done = run("--input_file=data.csv", f"--model={text_model}", cwd=tmp_path)
    refused(tmp_path, done, 65, "data.csv", "empty", "check the export")
    failed = receipt(tmp_path / "data.scored.csv.failed.json")
    assert (failed["exit_code"], failed["counts"]["read"]) == (65, 0)
    assert "data.csv" in failed["message"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("data.jsonl", "", ""),
        ("data.json", "[]", "[]"),
        ("data.csv", "id,text\r\n", "id,text,prediction,score\r\n"),
    ],
)
def test_a_quiet_night(
    tmp_path: Path, text_model: Path, name: str, content: str, expected: str
) -> None:
    (tmp_path / name).write_bytes(content.encode())
    done = run(f"--input_file={name}", f"--model={text_model}", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    output = tmp_path / name.replace("data", "data.scored")
    assert b"".join(output.read_bytes().split()) == expected.encode().strip()
    found = receipt(tmp_path / f"{output.name}.receipt.json")
    assert found["counts"]["read"] == 0
    assert found["exit_code"] == 0


def test_wrong_delimiter(tmp_path: Path, text_model: Path) -> None:
    (tmp_path / "data.csv").write_text("id;text\n1;good\n")
    done = run("--input_file=data.csv", f"--model={text_model}", cwd=tmp_path)
    refused(tmp_path, done, 65, "data.csv", "'id;text'", "';'", "--delimiter")


def test_column_missing(tmp_path: Path, text_model: Path) -> None:
    (tmp_path / "data.csv").write_text("id,Texts\n1,good\n")
    done = run("--input_file=data.csv", f"--model={text_model}", cwd=tmp_path)
    refused(tmp_path, done, 65, "data.csv", "'text'", "did you mean 'Texts'?", "--column")


def test_duplicate_column_names(tmp_path: Path, text_model: Path) -> None:
    (tmp_path / "data.csv").write_text("text,id,text\ngood,1,bad\n")
    done = run("--input_file=data.csv", f"--model={text_model}", cwd=tmp_path)
    refused(tmp_path, done, 65, "data.csv:1", "'text' appears twice", "columns 1 and 3", "rename")


def one_reject(
    directory: Path, model: Path, data: bytes, *, name: str = "data.csv"
) -> tuple[dict, dict, bytes]:
    """Score data of 11 sound rows and a bad one: the reject, the receipt, the output."""
    (directory / name).write_bytes(data)
    done = run(f"--input_file={name}", f"--model={model}", cwd=directory)
    error_of(done, 3, name, "1 row could not be scored")
    assert half_written(directory) == []
    output = directory / name.replace("data", "data.scored")
    found = receipt(directory / f"{output.name}.receipt.json")
    assert (found["counts"]["read"], found["counts"]["scored"]) == (12, 11)
    assert found["counts"]["rejected"] == 1
    (line,) = (directory / f"{output.name}.rejects.jsonl").read_bytes().splitlines()
    return json.loads(line), found, output.read_bytes()


def predictions(output: bytes) -> list[str]:
    return [line.split(",")[2] for line in output.decode().splitlines()[1:]]


def test_ragged_line(tmp_path: Path, text_model: Path) -> None:
    data = table(*ROWS[:5], "6,good,fine", *ROWS[5:])
    reject, _, output = one_reject(tmp_path, text_model, data.encode())
    assert reject == {
        "file": "data.csv",
        "row": 6,
        "line": 7,
        "code": "malformed_row",
        "message": "3 cells instead of 2",
        "record": "6,good,fine",
    }
    assert predictions(output) == ["pos"] * 11
    assert [line.split(",")[0] for line in output.decode().splitlines()[1:]] == [
        row.split(",")[0] for row in ROWS
    ]


def test_unclosed_quote_at_the_end(tmp_path: Path, text_model: Path) -> None:
    data = table(*ROWS[:5], '6,"good', *ROWS[5:])
    reject, _, output = one_reject(tmp_path, text_model, data.encode())
    assert (reject["row"], reject["line"], reject["code"]) == (6, 7, "malformed_row")
    assert "quote is not closed" in reject["message"]
    assert reject["record"] == '6,"good'
    assert predictions(output) == ["pos"] * 11


def test_nul_bytes_in_a_cell_are_data(tmp_path: Path, text_model: Path) -> None:
    (tmp_path / "data.csv").write_text(table("1,good\0 fine", "2,bad"))
    done = run("--input_file=data.csv", f"--model={text_model}", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    lines = (tmp_path / "data.scored.csv").read_bytes().splitlines()
    assert lines[1].startswith(b"1,good\0 fine,")
    assert lines[2].startswith(b"2,bad,neg,")


def test_nul_bytes_in_the_header(tmp_path: Path, text_model: Path) -> None:
    (tmp_path / "data.csv").write_bytes(b"id,text\0\n1,good\n")
    done = run("--input_file=data.csv", f"--model={text_model}", cwd=tmp_path)
    refused(tmp_path, done, 65, "data.csv:1", "NUL bytes", "--encoding")


def test_utf16_with_a_byte_order_mark(tmp_path: Path, text_model: Path) -> None:
    data = table("1,good ✓", "2,bad")
    (tmp_path / "data.csv").write_bytes(data.encode("utf-16"))
    done = run("--input_file=data.csv", f"--model={text_model}", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    output = (tmp_path / "data.scored.csv").read_bytes().decode("utf-16").splitlines()
    assert [line.rsplit(",", 1)[0] for line in output] == [
        "id,text,prediction",
        "1,good ✓,pos",
        "2,bad,neg",
    ]


def test_utf16_without_a_byte_order_mark(tmp_path: Path, text_model: Path) -> None:
    data = table("1,good", "2,bad").encode("utf-16-le")
    (tmp_path / "data.csv").write_bytes(data)
    done = run("--input_file=data.csv", f"--model={text_model}", cwd=tmp_path)
    refused(tmp_path, done, 65, "data.csv:1", "NUL bytes", "--encoding=utf-16-le")
    arguments = ("--input_file=data.csv", f"--model={text_model}", "--encoding=utf-16-le")
    assert run(*arguments, cwd=tmp_path).returncode == 0
    assert b"p\0o\0s\0" in (tmp_path / "data.scored.csv").read_bytes()
    assert not (tmp_path / "data.scored.csv.failed.json").exists()


def test_truncated_gzip(tmp_path: Path, tabular_model: Path) -> None:
    whole = gzip.compress(many(50_000).encode())
    (tmp_path / "data.csv.gz").write_bytes(whole[: len(whole) // 2])
    done = run("--input_file=data.csv.gz", f"--model={tabular_model}", cwd=tmp_path)
    refused(tmp_path, done, 65, "data.csv.gz", "truncated", "fetch the file again")
    assert receipt(tmp_path / "data.scored.csv.gz.failed.json")["exit_code"] == 65


def avro(records: int, codec: str = "null") -> bytes:
    fields = [{"name": "id", "type": "int"}, {"name": "text", "type": "string"}]
    schema = {"type": "record", "name": "row", "fields": fields}
    file = io.BytesIO()
    rows = [{"id": number, "text": "good"} for number in range(records)]
    fastavro.writer(file, schema, rows, codec)
    return file.getvalue()


def test_truncated_avro(tmp_path: Path, text_model: Path) -> None:
    whole = avro(5000)
    (tmp_path / "data.avro").write_bytes(whole[:-100])
    done = run("--input_file=data.avro", f"--model={text_model}", cwd=tmp_path)
    refused(tmp_path, done, 65, "data.avro", "truncated")


def test_avro_with_an_unknown_codec(tmp_path: Path, text_model: Path) -> None:
    whole = avro(3, "deflate").replace(b"\x0edeflate", b"\x0elzo-two")
    (tmp_path / "data.avro").write_bytes(whole)
    done = run("--input_file=data.avro", f"--model={text_model}", cwd=tmp_path)
    refused(tmp_path, done, 65, "data.avro", "lzo-two", "codec")


@pytest.mark.parametrize("content", ["17", "good fine\n"])
def test_json_that_is_not_an_array(tmp_path: Path, text_model: Path, content: str) -> None:
    (tmp_path / "data.json").write_text(content)
    done = run("--input_file=data.json", f"--model={text_model}", cwd=tmp_path)
    refused(tmp_path, done, 65, "data.json")


def test_deeply_nested_json(tmp_path: Path, text_model: Path) -> None:
    rows = [json.dumps({"id": number, "text": "good"}) for number in range(11)]
    deep = '{"text": "good", "x": ' + "[" * 100_000 + "]" * 100_000 + "}"
    data = "\n".join([*rows[:4], deep, *rows[4:]]) + "\n"
    reject, _, output = one_reject(tmp_path, text_model, data.encode(), name="data.jsonl")
    assert (reject["row"], reject["line"], reject["code"]) == (5, 5, "malformed_row")
    assert (len(reject["record"]), reject["length"]) == (65536, len(deep))
    read = [json.loads(line) for line in output.splitlines()]
    assert [(row["id"], row["prediction"]) for row in read] == [(i, "pos") for i in range(11)]


@pytest.mark.parametrize("name", ["data.csv", "data.jsonl"])
def test_row_of_100_mb(tmp_path: Path, text_model: Path, name: str) -> None:
    if name.endswith("csv"):
        small = [HEADER, *ROWS]
        big = f"99,{'good ' * 20_000_000}"
    else:
        small = [json.dumps({"id": number, "text": "good fine"}) for number in range(11)]
        big = '{"id": 99, "text": "' + "good " * 20_000_000 + '"}'
    plain = tmp_path / f"plain-{name}"
    plain.write_text("\n".join(small) + "\n")
    assert run(f"--input_file={plain}", f"--model={text_model}", cwd=tmp_path).returncode == 0
    usual = receipt(tmp_path / f"plain-data.scored.{name[5:]}.receipt.json")["peak_memory_bytes"]
    data = "\n".join([*small[:6], big, *small[6:]]) + "\n"
    reject, found, output = one_reject(tmp_path, text_model, data.encode(), name=name)
    assert reject["code"] == "too_large"
    assert "--max_record_bytes" in reject["message"]
    assert reject["length"] in (len(big), len(big) + 1)
    assert reject["line"] == 7
    assert reject["offset"] == data.index(big)
    assert len(output) < 2000
    # Six times the longest record, and the same for a row of 200 MB.
    assert usual < found["peak_memory_bytes"] < usual + 96 * 2**20


def test_too_many_rejects_then_a_clean_run(tmp_path: Path, text_model: Path) -> None:
    (tmp_path / "data.csv").write_text(table(*ROWS))
    arguments = ("--input_file=data.csv", f"--model={text_model}")
    assert run(*arguments, cwd=tmp_path).returncode == 0
    old = (tmp_path / "data.scored.csv").read_bytes()
    (tmp_path / "data.csv").write_text(table(*ROWS, "1,2,3", "1,2,3"))
    done = run(*arguments, cwd=tmp_path)
    error_of(done, 65, "data.csv", "2 of 13 rows", "--max_rejects=10%", "failed.rejects.jsonl")
    assert (tmp_path / "data.scored.csv").read_bytes() == old
    assert receipt(tmp_path / "data.scored.csv.receipt.json")["exit_code"] == 0
    failed = receipt(tmp_path / "data.scored.csv.failed.json")
    assert failed["exit_code"] == 65
    assert failed["counts"]["rejected"] == 2
    rejects = tmp_path / "data.scored.csv.failed.rejects.jsonl"
    assert failed["rejects"]["path"] == rejects.name
    assert failed["rejects"]["size"] == rejects.stat().st_size
    assert len(rejects.read_bytes().splitlines()) == 2
    assert not (tmp_path / "data.scored.csv.rejects.jsonl").exists()
    assert run(*arguments, "--max_rejects=2", cwd=tmp_path).returncode == 3
    kept = [f"data.scored.csv{ending}" for ending in ("", ".receipt.json", ".rejects.jsonl")]
    assert names(tmp_path) == ["data.csv", *kept]
    (tmp_path / "data.csv").write_text(table(*ROWS))
    assert run(*arguments, cwd=tmp_path).returncode == 0
    assert not (tmp_path / "data.scored.csv.rejects.jsonl").exists()


def test_several_inputs_of_which_some_are_bad(tmp_path: Path, text_model: Path) -> None:
    for name, content in (("a", table(*ROWS)), ("b", "id,other\n1,x\n"), ("c", table(*ROWS))):
        (tmp_path / f"{name}.csv").write_text(content)
    arguments = (f"--model={text_model}", "--input_file=a.csv", "--input_file=b.csv")
    done = run(*arguments, "--input_file=gone.csv", "--input_file=c.csv", cwd=tmp_path)
    assert done.returncode == 66
    lines = done.stderr.decode().splitlines()
    assert [word for line in lines for word in ("b.csv:", "gone.csv:") if word in line] == [
        "gone.csv:",
        "b.csv:",
    ]
    for name in ("a", "c"):
        assert receipt(tmp_path / f"{name}.scored.csv.receipt.json")["counts"]["scored"] == 11
    assert not (tmp_path / "b.scored.csv").exists()
    assert receipt(tmp_path / "b.scored.csv.failed.json")["exit_code"] == 65


# --- the model


def refused_model(directory: Path, model: Path, code: int, *words: str) -> None:
    (directory / "data.csv").write_text(table(*ROWS))
    done = run("--input_file=data.csv", f"--model={model}", cwd=directory)
    refused(directory, done, code, str(model), *words)


def test_model_missing(tmp_path: Path) -> None:
    refused_model(tmp_path, tmp_path / "gone", 69, "no such file or directory", "--model")


def test_model_truncated(tmp_path: Path, text_model: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(text_model, model)
    whole = (model / "model.onnx").read_bytes()
    (model / "model.onnx").write_bytes(whole[: len(whole) * 2 // 3])
    refused_model(tmp_path, model, 78, "model.onnx", "truncated")


def test_model_not_onnx(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_text("not a model, but a text about one")
    refused_model(tmp_path, model, 78, "not an ONNX model", "give an .onnx file")


def test_model_of_a_newer_opset(tmp_path: Path) -> None:
    graph = models.text_graph()
    graph.opset_import[0].version = 99
    model = models.write_text_model(tmp_path / "model", graph)
    refused_model(tmp_path, model, 78, "opset 99", "install a newer onnxruntime")


def test_model_without_tokenizer(tmp_path: Path, text_model: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(text_model, model)
    (model / "tokenizer.json").unlink()
    refused_model(tmp_path, model, 78, "tokenizer.json", "save_pretrained")


def test_model_with_a_tokenizer_of_another_size(tmp_path: Path) -> None:
    tokens = models.tokenizer((*models.WORDS, "more", "words"))
    model = models.write_text_model(tmp_path / "model", tokens=tokens)
    refused_model(tmp_path, model, 78, "tokenizer")


def test_golden_rows_that_disagree(tmp_path: Path) -> None:
    golden = '[[golden]]\nrow = { text = "good" }\nprediction = "neg"\n'
    model = models.write_text_model(tmp_path / "model", manifest=golden)
    refused_model(tmp_path, model, 78, "golden row 1", "'pos' instead of 'neg'")


# --- the output


def test_output_directory_missing(tmp_path: Path, text_model: Path) -> None:
    (tmp_path / "data.csv").write_text(table(*ROWS))
    arguments = ("--input_file=data.csv", f"--model={text_model}")
    for option in ("output_file=gone/out.csv", "receipt_file=gone/out", "rejects_file=gone/out"):
        done = run(*arguments, f"--{option}", cwd=tmp_path)
        where = "--output_file" if option.startswith("output") else option.split("=")[0]
        refused(tmp_path, done, 73, "gone/out", "is no directory", where)
    done = run(*arguments, "--output_dir=gone", cwd=tmp_path)
    refused(tmp_path, done, 73, "gone/data.csv", "is no directory", "--output_dir")


def obey_permissions() -> None:
    """Let even root's next program obey permissions: without CAP_DAC_OVERRIDE (1)."""
    drop_from_bounding_set = 24
    ctypes.CDLL(None).prctl(drop_from_bounding_set, 1)


def test_output_directory_read_only(tmp_path: Path, text_model: Path) -> None:
    exports = tmp_path / "exports"
    exports.mkdir()
    (exports / "data.csv").write_text(table(*ROWS))
    exports.chmod(0o555)
    arguments = ("--input_file=exports/data.csv", f"--model={text_model}")
    done = run(*arguments, cwd=tmp_path, before=obey_permissions)
    refused(exports, done, 73, "exports/data.scored.csv", "is not writable", "--output_dir")
    assert names(exports) == ["data.csv"]


def test_output_equal_to_input(tmp_path: Path, text_model: Path) -> None:
    (tmp_path / "data.csv").write_text(table(*ROWS))
    (tmp_path / "link.csv").symlink_to("data.csv")
    arguments = ("--input_file=data.csv", f"--model={text_model}")
    for output in ("./data.csv", "link.csv"):
        done = run(*arguments, f"--output_file={output}", cwd=tmp_path)
        refused(tmp_path, done, 2, "data.csv", "would overwrite the input", "--output_file")
    assert (tmp_path / "data.csv").read_text() == table(*ROWS)


def test_disk_full(tmp_path: Path, tabular_model: Path) -> None:
    (tmp_path / "data.csv").write_text(many(100_000))
    (tmp_path / "out.csv").write_text("old")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    arguments = ("--input_file=data.csv", f"--model={tabular_model}")
    done = run(*arguments, "--output_file=out.csv", cwd=tmp_path, before=limit)
    error_of(done, 74, "out.csv", "cannot be written", "file too large", "an old file stays")
    assert (tmp_path / "out.csv").read_text() == "old"
    assert half_written(tmp_path) == []
    assert receipt(tmp_path / "out.csv.failed.json")["exit_code"] == 74


def test_device_full(tmp_path: Path, text_model: Path) -> None:
    (tmp_path / "data.csv").write_text(table(*ROWS))
    arguments = ("--input_file=data.csv", f"--model={text_model}", "--output_file=/dev/full")
    error_of(run(*arguments, cwd=tmp_path), 74, "/dev/full", "no space left on device")
    assert sorted(path.name for path in Path("/dev").glob("full*")) == ["full"]
    assert names(tmp_path) == ["data.csv"]


def test_devices_as_outputs_stay_devices(tmp_path: Path, text_model: Path) -> None:
    (tmp_path / "data.csv").write_text(table(*ROWS))
    os.mkfifo(tmp_path / "null")  # stands for /dev/null, which a mistake would remove
    reader = os.open(tmp_path / "null", os.O_RDONLY | os.O_NONBLOCK)
    done = run(
        "--input_file=data.csv",
        f"--model={text_model}",
        "--rejects_file=null",
        "--receipt_file=null",
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "null").is_fifo()
    assert b'"receipt": 1' in os.read(reader, 65536)
    os.close(reader)


def test_pipe_closed_by_the_reader(tmp_path: Path, tabular_model: Path) -> None:
    (tmp_path / "data.csv").write_text(many(300_000))
    process = start(
        "--input_file=data.csv", f"--model={tabular_model}", "--output_file=-", cwd=tmp_path
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"x,y,prediction,score\n"
    process.stdout.close()
    process.stdout = None
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 74
    assert b"Traceback" not in stderr
    (line,) = stderr.splitlines()
    assert b"reader of the pipe has gone" in line
    assert names(tmp_path) == ["data.csv"]


@pytest.mark.parametrize("log", ["gone", "full"])
def test_log_that_cannot_be_written(tmp_path: Path, text_model: Path, log: str) -> None:
    """The work is done all the same."""
    (tmp_path / "data.csv").write_text(table(*ROWS))
    stdout: int | None = None
    if log == "full":
        stdout = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, stdout = os.pipe()
        os.close(reader)
    process = start("--input_file=data.csv", f"--model={text_model}", cwd=tmp_path, stdout=stdout)
    os.close(stdout)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    expected = b"batchpredict: the log cannot be written: no space left on device\n"
    assert stderr == (b"" if log == "gone" else expected)
    assert predictions((tmp_path / "data.scored.csv").read_bytes()) == ["pos"] * 11


# --- what happens while it runs


def draft_appears(directory: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until the output is being written."""
    deadline = time.monotonic() + 60
    while not half_written(directory):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("source", ["pipe", "file"])
def test_stopped_by_a_signal(
    tmp_path: Path, tabular_model: Path, number: signal.Signals, code: int, source: str
) -> None:
    (tmp_path / "out.csv").write_text("old")
    (tmp_path / "data.csv").write_text(many(2_000_000 if source == "file" else 1))
    name = "-" if source == "pipe" else "data.csv"
    process = start(
        f"--input_file={name}",
        "--input_format=csv",
        f"--model={tabular_model}",
        "--output_file=out.csv",
        cwd=tmp_path,
    )
    assert process.stdin is not None
    process.stdin.write(many(100_000 if source == "pipe" else 1).encode())
    process.stdin.flush()
    draft_appears(tmp_path, process)
    process.send_signal(number)
    begin = time.monotonic()
    process.wait(timeout=30)
    assert time.monotonic() - begin < 5
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == code
    (line,) = stderr.decode().splitlines()
    assert ("interrupted" if code == 130 else "terminated") in line
    assert (tmp_path / "out.csv").read_text() == "old"
    assert half_written(tmp_path) == []
    failed = receipt(tmp_path / "out.csv.failed.json")
    assert failed["exit_code"] == code
    assert failed["message"] in ("interrupted", "terminated")


def test_input_changed_while_it_was_read(tmp_path: Path, tabular_model: Path) -> None:
    data = tmp_path / "data.csv"
    data.write_text(many(300_000))
    process = start("--input_file=data.csv", f"--model={tabular_model}", cwd=tmp_path)
    draft_appears(tmp_path, process)
    process.send_signal(signal.SIGSTOP)
    with data.open("a") as file:
        file.write("1,2\n")
    process.send_signal(signal.SIGCONT)
    _, stderr = process.communicate(timeout=60)
    done = subprocess.CompletedProcess([], process.returncode, b"", stderr)
    refused(tmp_path, done, 75, "data.csv", "changed while it was read", "run again")
    assert receipt(tmp_path / "data.scored.csv.failed.json")["exit_code"] == 75


def test_a_bug(
    tmp_path: Path,
    text_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from batchpredict.run import scoring

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a slip of ours")

    data = tmp_path / "data.csv"
    data.write_text(table(*ROWS))
    monkeypatch.setattr(scoring, "_settle", broken)
    before = signal.getsignal(signal.SIGTERM)
    try:
        code = cli.main([f"--input_file={data}", f"--model={text_model}"])
    finally:
        signal.signal(signal.SIGTERM, before)
        log.logger.handlers = []
    assert code == 70
    stderr = capfd.readouterr().err
    assert "this is a bug in batchpredict 0." in stderr
    assert "Traceback" in stderr
    assert "ZeroDivisionError: a slip of ours" in stderr
    failed = receipt(tmp_path / "data.scored.csv.failed.json")
    assert (failed["exit_code"], failed["message"]) == (70, "ZeroDivisionError: a slip of ours")
    assert not (tmp_path / "data.scored.csv").exists()
    assert half_written(tmp_path) == []
