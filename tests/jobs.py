"""Jobs run in the test's own process, and what is beside their output."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batchpredict.job import Job
from batchpredict.run.receipt import Receipt
from batchpredict.run.runner import Outcome, run

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def run_job(inputs: Path | Sequence[Path], model: Path, **options: Any) -> Outcome:
    files = [inputs] if isinstance(inputs, Path) else inputs
    for name in ("output_file", "output_dir"):
        if isinstance(options.get(name), Path):
            options[name] = str(options[name])
    job = Job(input_file=tuple(map(str, files)), model=str(model), **options)
    return run(job, lambda counts, source: None)


def score(source: Path, model: Path, output: Path, **options: Any) -> Receipt:
    """The receipt of one input that was published."""
    (receipt,) = run_job(source, model, output_file=output, **options).receipts
    return receipt


def rejects_of(output: Path) -> list[dict[str, Any]]:
    """Lines of the rejects file; none where there is no such file."""
    file = output.with_name(f"{output.name}.rejects.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def receipt_of(output: Path) -> dict[str, Any]:
    receipt: dict[str, Any] = json.loads(
        output.with_name(f"{output.name}.receipt.json").read_text()
    )
    return receipt


def files_in(directory: Path) -> list[str]:
    """Names of all files, hidden ones too."""
    return sorted(
        path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()
    )
