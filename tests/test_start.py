"""Help is quick, because nothing heavy is imported for it."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import models

HEAVY = (
    "boto3", "botocore", "cronsim", "fastavro", "jinja2", "numpy", "onnxruntime", "pandas",
    "prometheus_client", "pyarrow", "pygal", "tokenizers", "tqdm",
)  # fmt: skip
ROUNDS = 11


def seconds(*arguments: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def test_help_takes_less_than_half_again_of_importing_click() -> None:
    """Turn by turn, so that what slows the machine slows both."""
    program, click = ("-P", "-m", "batchpredict", "--help"), ("-c", "import click")
    for arguments in (program, click):  # both compiled and in the page cache
        seconds(*arguments)
    rounds = [(seconds(*program), seconds(*click)) for _ in range(ROUNDS)]
    ours = statistics.median(one for one, _ in rounds)
    theirs = statistics.median(other for _, other in rounds)
    ratio = statistics.median(one / other for one, other in rounds)
    print(f"--help {ours:.3f} s, import click {theirs:.3f} s, {ratio:.2f} times")
    assert min(ratio, ours / theirs) < 1.5


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["predict", "--help"],
        ["inspect", "--help"],
        ["schedule", "--help"],
    ],
)
def test_help_and_version_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from batchpredict.cli import main\n"
        f"code = main({arguments!r})\n"
        f"heavy = set({HEAVY!r}) & {{name.split('.')[0] for name in sys.modules}}\n"
        "assert not heavy, heavy\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, env=dict(os.environ)
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_a_run_imports_no_pandas_and_only_the_formats_it_uses(tmp_path: Path) -> None:
    model = models.write(tmp_path / "model", models.echo_graph({"a": "float32"}))
    (tmp_path / "in.csv").write_text("a\n1\n")
    code = (
        "import gc, sys\n"
        "from batchpredict.cli import main\n"
        f"code = main(['--input_file={tmp_path}/in.csv', '--model={model}', '--quiet'])\n"
        "assert gc.isenabled()\n"
        "spared = {'pandas', 'fastavro', 'boto3', 'pyarrow.parquet', 'prometheus_client'}\n"
        "found = spared & set(sys.modules)\n"
        "assert not found, found\n"
        "import pandas, pyarrow\n"
        "assert list(pyarrow.array([1]).to_pandas()) == [1]\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
