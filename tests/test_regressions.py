"""Faults that were found by hand, each as it was met."""

from __future__ import annotations

import io
import json
import logging
import os
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchpredict import log
from batchpredict.data.parquet import open_reader
from batchpredict.data.records import Dialect, Records, Reject, Selection
from batchpredict.data.sources import source_of
from batchpredict.errors import UsageError
from batchpredict.job import Job
from batchpredict.run.windows import windows
from tests import models
from tests.commands import run
from tests.jobs import files_in


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write_classifier(tmp_path_factory.mktemp("models") / "tabular")


def test_a_reader_left_behind_does_not_read_another_file(tmp_path: Path) -> None:
    pipe, other = tmp_path / "pipe", tmp_path / "other.txt"
    os.mkfifo(pipe)
    other.write_bytes(b"A" * 3_000_000)
    keeper = os.open(pipe, os.O_RDWR)
    source = source_of(str(pipe))
    stream = source.open()
    seen: list[Any] = []

    def read() -> None:
        try:
            seen.append(stream.read(1 << 20))
        except Exception as error:  # noqa: BLE001 - handed to the test
            seen.append(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    os.write(keeper, b"1234567890")
    while source.position < 10:
        reader.join(0.01)
    source.close()
    following = source_of(str(other))
    whole = following.open()
    os.write(keeper, b"1234567890")
    reader.join(10)
    os.close(keeper)
    assert not reader.is_alive()
    assert isinstance(seen[0], Exception)
    assert len(b"".join(iter(lambda: whole.read(1 << 20), b""))) == 3_000_000
    following.finish()


def test_an_input_named_like_a_leftover_is_not_removed(tmp_path: Path, model: Path) -> None:
    data = tmp_path / "out.csv.failed.rejects.jsonl"
    data.write_text('{"x": 1, "y": 2}\n')
    done = run(f"--input_file={data}", "--output_file=out.csv", f"--model={model}", cwd=tmp_path)
    assert done.returncode == 2
    assert data.exists()
    assert b"would overwrite the input" in done.stderr


def test_rejected_rows_fill_a_window_too() -> None:
    rejects = tuple(Reject(n, n, "malformed_row", "", b"x" * 100) for n in range(1, 101))
    block = Records(
        columns=pa.RecordBatch.from_pylist([], pa.schema([("x", pa.string())])),
        kept=pa.RecordBatch.from_pylist([], pa.schema([("x", pa.string())])),
        raw=pa.array([], pa.binary()),
        rows=np.empty(0, np.int64),
        lines=np.empty(0, np.int64),
        weight=np.empty(0, np.int64),
        rejects=rejects,
    )
    found = [len(window.rejects) for window in windows(iter([block]), 1000, 1000, None)]
    assert found == [10] * 10


def test_texts_that_a_dictionary_holds_once_weigh_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "long.parquet"
    pq.write_table(pa.table({"note": ["p" * 100_000] * 500}), path)
    assert path.stat().st_size < 200_000
    reader = open_reader(source_of(str(path)), Dialect(), False)
    blocks = list(reader.records(Selection((), (), "record")))
    assert min(int(weight) for block in blocks for weight in block.weight) > 90_000
    cut = windows(iter(blocks), 16384, 1 << 20, None)
    assert max(len(window) for window in cut) < 20


def test_a_long_malformed_row_is_cut_between_characters(tmp_path: Path, model: Path) -> None:
    for padding in ("", "y"):
        text = f"x,y\n1,2\n1,2,{padding}" + "é" * 40_000 + "\n3,4\n"
        (tmp_path / "data.csv").write_bytes(text.encode("latin-1"))
        done = run(
            "--input_file=data.csv",
            "--encoding=latin-1",
            "--max_rejects=1",
            f"--model={model}",
            cwd=tmp_path,
        )
        assert done.returncode == 3, done.stderr
        line = (tmp_path / "data.scored.csv.rejects.jsonl").read_text()
        record = json.loads(line)["record"]
        assert len(record) > 30_000


def test_an_empty_compressed_file_is_damaged(tmp_path: Path, model: Path) -> None:
    for suffix in (".gz", ".bz2", ".xz", ".zst"):
        (tmp_path / f"data.jsonl{suffix}").touch()
        done = run(f"--input_file=data.jsonl{suffix}", f"--model={model}", cwd=tmp_path)
        assert done.returncode == 65, suffix
        assert b"fetch the file again" in done.stderr


def test_rejects_of_a_failed_run_to_a_pipe_are_kept(tmp_path: Path, model: Path) -> None:
    (tmp_path / "data.csv").write_text("x,y\n1,2\n3\n4\n")
    done = run(
        "--input_file=data.csv",
        "--output_file=-",
        "--max_rejects=1",
        "--rejects_file=rejects.jsonl",
        "--receipt_file=receipt.json",
        f"--model={model}",
        cwd=tmp_path,
    )
    assert done.returncode == 65
    assert b"what was written is incomplete" in done.stderr
    kept = tmp_path / "rejects.jsonl.failed.rejects.jsonl"
    assert len(kept.read_text().splitlines()) == 2
    assert str(kept.name).encode() in done.stderr
    found = json.loads((tmp_path / "receipt.json").read_text())
    assert (found["exit_code"], found["rejects"]["path"]) == (65, kept.name)


def test_a_receipt_that_cannot_be_written_is_told_before_any_work(
    tmp_path: Path, model: Path
) -> None:
    (tmp_path / "data.csv").write_text("x,y\n1,2\n")
    (tmp_path / "data.scored.csv.receipt.json").mkdir()
    done = run("--input_file=data.csv", f"--model={model}", cwd=tmp_path)
    assert done.returncode == 73
    assert files_in(tmp_path) == ["data.csv"]


def test_a_run_ends_at_the_reject_that_is_one_too_many(tmp_path: Path, model: Path) -> None:
    (tmp_path / "data.csv").write_text("x,y\n1,2\n" + "3\n" * 50)
    done = run("--input_file=data.csv", "--max_rejects=4", f"--model={model}", cwd=tmp_path)
    assert done.returncode == 65
    kept = (tmp_path / "data.scored.csv.failed.rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in kept] == [2, 3, 4, 5, 6]


def test_golden_rows_of_a_multi_label_model(tmp_path: Path) -> None:
    for expected, code in ((["a", "c"], 0), (["a", "b"], 78), ([], 78)):
        golden = f"[[golden]]\nrow = {{ x = 3, y = -3, z = 2 }}\nprediction = {expected}\n"
        declared = 'task = "multi_label"\nlabels = ["a", "b", "c"]\n'
        columns = '[inputs.features]\ncolumns = ["x", "y", "z"]\n'
        model = models.write(
            tmp_path / f"model{len(expected)}{code}",
            models.logits_graph(3),
            manifest=declared + columns + golden,
        )
        (tmp_path / "data.csv").write_text("x,y,z\n1,-1,-2\n")
        done = run("--input_file=data.csv", f"--model={model}", cwd=tmp_path)
        assert done.returncode == code, done.stderr


def close_all(descriptors: tuple[int, ...]) -> None:
    for number in descriptors:
        os.close(number)


def test_closed_standard_streams(tmp_path: Path, model: Path) -> None:
    (tmp_path / "data.csv").write_text("x,y\n1,2\n")
    for closed in ((2,), (1, 2), (0, 1, 2)):
        done = run(
            "--input_file=data.csv",
            f"--model={model}",
            cwd=tmp_path,
            before=partial(close_all, closed),
        )
        assert done.returncode == 0
        assert (tmp_path / "data.scored.csv").read_text().startswith("x,y,prediction")
        (tmp_path / "data.scored.csv").unlink()
    done = run(
        "--input_file=-",
        "--input_format=csv",
        f"--model={model}",
        cwd=tmp_path,
        before=lambda: os.close(0),
    )
    assert done.returncode == 66


def test_a_column_kept_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="names a column twice"):
        Job(input_file=("a.csv",), model="m", keep=("id", "id"))


def test_a_file_as_a_command_is_told_the_option(tmp_path: Path) -> None:
    done = run("data.csv", cwd=tmp_path)
    assert done.returncode == 2
    assert b"--input_file=data.csv" in done.stderr


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_names_can_neither_forge_a_log_line_nor_reach_the_terminal(
    log_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    log.configure_logging(quiet=False, verbose=False, log_format=log_format, to_stderr=False)
    logger = logging.getLogger("batchpredict")
    name = "a\n2026-01-01 00:00:00 INFO all is well\x1b[31m\x9b\u2028"
    try:
        logger.info("%s", name, extra={"fields": {"input": name}})
    finally:
        logger.handlers = []
    assert out.getvalue().count("\n") == 1
    assert set("\x1b\x9b\u2028").isdisjoint(out.getvalue())
    if log_format == "json":
        assert json.loads(out.getvalue())["input"] == name
