"""Run benchmarks: contenders interleaved as whole processes, in rounds.

python benchmarks/run.py [SECTION …] [--rounds N] [--work DIR] [--python PYTHON] [--quick]

Without a section, all of them. Each leaves WORK/results/SECTION.json; report.py makes RESULTS.md
of them. `--quick`: few rows, one round, to see that everything works. benchmarks/prepare.py first.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import check
import measure
from prepare import WORK
from sections import SECTIONS, Contender, Section, Workshop

CPU_PROVIDER = "CPUExecutionProvider"
SCORING_STAGES = ("plan", "infer", "finish")


class Runs:
    """What was measured of one contender: a list per figure, an entry per run."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self.failure = contender.missing
        self.figures: dict[str, list[float]] = defaultdict(list)
        self.labels: list[str] = []
        self.agreement: float | None = None
        self._digest = ""

    def add(self, reading: measure.Reading) -> None:
        self.figures["wall"].append(reading.wall)
        self.figures["cpu"].append(reading.cpu)
        self.figures["peak"].append(reading.peak_bytes)
        receipt = Path(f"{self.contender.output}.receipt.json")
        if self.contender.output and receipt.exists():
            for name, value in _receipt_figures(json.loads(receipt.read_text())).items():
                self.figures[name].append(value)

    def verify(self, reference: Runs, least_agreement: float) -> None:
        """Look at the output once, and again whenever it differs from the run before."""
        output = self.contender.output
        if output is None:
            return
        digest = _digest(output)
        if digest == self._digest:
            return
        self._digest, self.labels = digest, check.labels_of(output)
        try:
            found = check.agreement(self.labels, reference.labels, self.contender.rows)
        except ValueError as error:
            self.failure = str(error)
            return
        self.agreement = found if self.agreement is None else min(found, self.agreement)
        if found < least_agreement:
            self.failure = f"labels agree in {found:.4f} of its rows only"

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": self.contender.rows,
            "failure": self.failure,
            "agreement": self.agreement,
            "figures": {} if self.failure else dict(self.figures),
        }


def _receipt_figures(receipt: dict[str, Any]) -> dict[str, float]:
    """CPU seconds of the scoring stage, the share that finding duplicates takes of the process,
    and seconds to the first scored row, where the receipt says so."""
    figures = {}
    stages = receipt.get("cpu_seconds", {})
    if receipt.get("tool", {}).get("provider", CPU_PROVIDER) != CPU_PROVIDER:
        # Another provider works in threads of its own, which no caller's clock sees: what is left
        # of the run. Whatever is in no stage counts too, so it is more than the stage took.
        others = (stages[s] for s in stages if s not in (*SCORING_STAGES, "run", "process"))
        figures["scoring"] = stages["run"] - sum(others)
    elif "infer" in stages:
        figures["scoring"] = sum(stages.get(stage, 0.0) for stage in SCORING_STAGES)
    if "duplicates" in stages:
        figures["duplicates"] = stages["duplicates"] / stages["process"]
    if receipt.get("first_row_seconds") is not None:
        figures["first_row"] = receipt["first_row_seconds"]
    return figures


def _digest(output: Path) -> str:
    files = sorted(output.iterdir()) if output.is_dir() else [output]
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def run_section(section: Section, shop: Workshop, rounds: int) -> dict[str, Any]:
    """Every contender once per round, each round beginning with another of them."""
    environment = shop.environment()
    logs = shop.work / "logs"
    logs.mkdir(exist_ok=True)
    for number, command in enumerate(section.before):
        log = logs / f"{section.name}-before-{number}.log"
        if measure.run(command, environment, log).exit_code:
            print(f"{section.name}: {command[1:3]} failed, see {log}", file=sys.stderr)
    runs = [Runs(contender) for contender in section.contenders]
    for turn in range(rounds * section.repeat):
        place = turn % len(runs)
        for entry in (*runs[place:], *runs[:place]):
            if entry.failure is None:
                log = logs / f"{section.name}-{entry.contender.name.replace(' ', '-')}.log"
                _run_once(entry, environment, log)
                if entry.failure is None:
                    # In the first round the first contender comes first.
                    entry.verify(runs[0], section.least_agreement)
                print(f"{section.name:14} {turn + 1} {_line(entry)}", flush=True)
    return {
        "title": section.title,
        "rounds": rounds * section.repeat,
        "quick": shop.quick,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions(shop),
        "sweeps": sweeps(shop),
        "real_models": json.loads((shop.work / "models" / "made.json").read_text())["real"],
        "contenders": {entry.contender.name: entry.to_json() for entry in runs},
    }


def _run_once(entry: Runs, environment: dict[str, str], log: Path) -> None:
    output = entry.contender.output
    if output and output.is_dir():
        shutil.rmtree(output)
    elif output:
        output.unlink(missing_ok=True)
        Path(f"{output}.receipt.json").unlink(missing_ok=True)
    reading = measure.run(entry.contender.command, environment, log)
    if reading.exit_code:
        lines = log.read_text(errors="replace").strip().splitlines() or [""]
        entry.failure = f"exit {reading.exit_code}: {lines[-1][:200]}"
    else:
        entry.add(reading)


def _line(entry: Runs) -> str:
    if entry.failure:
        return f"{entry.contender.name:16} {entry.failure}"
    wall, cpu, peak = (entry.figures[name][-1] for name in ("wall", "cpu", "peak"))
    agreement = "" if entry.agreement is None else f"{entry.agreement:9.4f} agree"
    rows = entry.contender.rows
    speeds = f"{rows / wall:12,.1f} rows/s {rows / cpu:12,.1f} rows/CPU s"
    return f"{entry.contender.name:16} {wall:8.2f} s {speeds} {peak / 1e6:8.0f} MB{agreement}"


def machine() -> dict[str, Any]:
    facts = dict(
        line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line
    )
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    flags = facts.get("flags", "").split()
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": facts.get("model name", platform.machine()),
        "family_model": f"{facts.get('cpu family', '?')}/{facts.get('model', '?')}",
        "features": [flag for flag in wanted if flag in flags],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / 2**30, 1),
        "kernel": platform.release(),
    }


def versions(shop: Workshop) -> dict[str, str]:
    """Of what runs batchpredict, and of the peers; a package's name with its environment."""
    script = (
        "import sys, importlib.metadata as m; print('python=' + sys.version.split()[0]);"
        "[print(f'{n}={m.version(n)}') for n in sys.argv[1:] if any(m.distributions(name=n))]"
    )
    asked = {
        "batchpredict": (shop.python, ["onnxruntime", "onnxruntime-ep-openvino", "pyarrow",
                                       "tokenizers", "numpy"]),
        "scripts": (None, ["onnxruntime", "pandas", "polars", "orjson", "fastavro"]),
        "huggingface": (None, ["onnxruntime", "transformers", "optimum-onnx", "torch"]),
        "ray": (None, ["onnxruntime", "ray"]),
        "mlflow": (None, ["onnxruntime", "mlflow"]),
    }  # fmt: skip
    found = {}
    for group, (interpreter, names) in asked.items():
        python = interpreter or str(shop.work / "venvs" / group / "bin" / "python")
        command = [python, "-P", "-c", script, *names]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            found[group] = "not installed"
        else:
            found[group] = ", ".join(done.stdout.replace("=", " ").split("\n")[:-1])
    return found


def sweeps(shop: Workshop) -> dict[str, Any]:
    return {
        path.stem: json.loads(path.read_text()) for path in sorted(shop.outputs.glob("*-best.json"))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--python", default=sys.executable, help="what runs batchpredict")
    parser.add_argument("--quick", action="store_true", help="few rows, to see that all works")
    options = parser.parse_args()
    unknown = [name for name in options.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    work = options.work.resolve()
    results = work / ("results-quick" if options.quick else "results")
    results.mkdir(exist_ok=True)
    for name in options.sections or SECTIONS:
        shop = Workshop(work, name, options.python, options.quick)
        shop.outputs.mkdir(parents=True, exist_ok=True)
        section = SECTIONS[name](shop)
        if name == "text_4bit" and not shop.model("e5").exists():
            print("text_4bit: needs the real models, see prepare.py --models", file=sys.stderr)
            continue
        result = run_section(section, shop, 1 if options.quick else options.rounds)
        (results / f"{name}.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
