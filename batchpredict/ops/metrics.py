"""A run as a Prometheus text file, for the textfile collector of node_exporter.

One file per task: whoever scrapes sees the last run of each, and when the last success was.
"""

from __future__ import annotations

import fcntl
import logging
import os
import platform
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile
from prometheus_client.parser import text_string_to_metric_families

from batchpredict import __version__
from batchpredict.ops.task_names import TaskName, file_name, label
from batchpredict.ops.watching import Ended
from batchpredict.run.receipt import peak_memory_bytes

logger = logging.getLogger(__name__)

STATUSES = ("success", "partial", "stopped", "failed")
# A collector refuses all files where two of them describe a metric in different words, so these
# texts stay as they are.
_HELP = {
    "last_run_timestamp_seconds": "When the last run ended, since the epoch.",
    "last_success_timestamp_seconds": "When the last run that published all its outputs ended, "
    "since the epoch; 0 if none did.",
    "last_run_exit_code": "Exit status of the last run.",
    "last_run_status": "1 for what became of the last run, 0 for what did not.",
    "last_run_duration_seconds": "How long the last run took.",
    "last_run_cpu_seconds": "CPU time of the last run, of all its threads.",
    "last_run_stage_seconds": "How long the threads of each stage of the last run worked.",
    "last_run_inputs": "Inputs that the last run opened, by result.",
    "last_run_records": "Records that the last run read, by result.",
    "last_run_input_bytes": "Size of the inputs that the last run read to their end.",
    "last_run_output_bytes": "Size of the outputs that the last run published.",
    "last_run_records_per_second": "Records read per second of the time spent on the inputs.",
    "last_run_peak_resident_memory_bytes": "Highest resident memory of the last run.",
    "score_psi": "Population stability index of the last run's predictions against earlier runs; "
    "of several inputs the highest.",
    "score_psi_noise": "What chance alone may make of the population stability index.",
    "model_info": "The model that the last run loaded, and what it ran on.",
    "job_info": "What the task is named after: a job file, or its inputs and outputs.",
    "build_info": "The versions that the last run had.",
}
# Less than what a signal leaves, see pings.
_LOCK_SECONDS = 2.5
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class _Previous:
    """What the file of a task has said so far. `source`: None where there was none."""

    last_success: float = 0.0
    source: str | None = None


def write_metrics(directory: str, name: TaskName, ended: Ended) -> None:
    """Replace the file of a task in `directory`; warn where that cannot be done."""
    path = Path(os.path.expanduser(directory), file_name(name.task))  # noqa: PTH111
    try:
        with _alone(path.parent):
            previous = _read(path)
            if previous.source not in (None, name.source):
                logger.warning(
                    "--metrics_dir=%s: the metrics of %s are replaced: it is called %s too; give "
                    "one of them another name, or another directory",
                    *(directory, previous.source, name.task),
                )
            write_to_textfile(str(path), _registry(name, ended, previous))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        logger.warning("--metrics_dir=%s: metrics cannot be written: %s", directory, reason)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """One process at a time: another run's success between reading and writing would be lost."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        until = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise TimeoutError("another process has locked the directory") from error
                time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _read(path: Path) -> _Previous:
    try:
        families = list(text_string_to_metric_families(path.read_text("utf-8")))
    except FileNotFoundError:
        return _Previous()
    except ValueError:
        logger.warning("%s: is no metrics file; when the last success was is not known", path)
        return _Previous()
    samples = {sample.name: sample for family in families for sample in family.samples}
    success = samples.get("batchpredict_last_success_timestamp_seconds")
    job = samples.get("batchpredict_job_info")
    return _Previous(success.value if success else 0.0, job.labels.get("source") if job else None)


class _Gauges:
    """The metrics of one task."""

    def __init__(self, task: str) -> None:
        self._task = task
        self._gauges: dict[str, Gauge] = {}
        self.registry = CollectorRegistry()

    def set(self, name: str, value: float, /, **labels: object) -> None:
        if name not in self._gauges:
            full, names = f"batchpredict_{name}", ("task", *labels)
            self._gauges[name] = Gauge(full, _HELP[name], names, registry=self.registry)
        plain = {key: label(value) for key, value in labels.items()}
        self._gauges[name].labels(task=self._task, **plain).set(value)


def _registry(name: TaskName, ended: Ended, previous: _Previous) -> CollectorRegistry:
    gauges = _Gauges(name.task)
    success = ended.ended if ended.status in ("success", "partial") else previous.last_success
    gauges.set("last_run_timestamp_seconds", ended.ended)
    gauges.set("last_success_timestamp_seconds", success)
    gauges.set("last_run_exit_code", ended.exit_code)
    for status in STATUSES:
        gauges.set("last_run_status", float(status == ended.status), status=status)
    gauges.set("last_run_duration_seconds", round(ended.seconds, 3))
    gauges.set("last_run_cpu_seconds", round(time.process_time(), 3))
    gauges.set("last_run_peak_resident_memory_bytes", peak_memory_bytes())
    gauges.set("last_run_inputs", len(ended.published), result="published")
    gauges.set("last_run_inputs", len(ended.failed), result="failed")
    gauges.set("job_info", 1, source=name.source)
    gauges.set(
        *("build_info", 1),
        version=__version__,
        onnxruntime=version("onnxruntime"),
        python=platform.python_version(),
    )
    _set_sums(gauges, [*(receipt.content() for receipt in ended.published), *ended.failed])
    return gauges.registry


def _set_sums(gauges: _Gauges, receipts: Sequence[Mapping[str, Any]]) -> None:
    """What the receipts of the inputs add up to."""
    counts: Counter[str] = Counter()
    stages: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    seconds = 0.0
    for receipt in receipts:
        counts.update(receipt["counts"])
        stages.update(receipt["stages"])
        sizes["input"] += sum(read["size"] or 0 for read in receipt["inputs"])
        sizes["output"] += (receipt["output"] or {"size": 0})["size"]
        rate = receipt["rows_per_second"]
        seconds += receipt["counts"]["read"] / rate if rate else 0.0
    for result, key in (("scored", "scored"), ("null", "nulls"), ("rejected", "rejected")):
        gauges.set("last_run_records", counts[key], result=result)
    for stage, spent in sorted(stages.items()):
        gauges.set("last_run_stage_seconds", round(spent, 6), stage=stage)
    gauges.set("last_run_input_bytes", sizes["input"])
    gauges.set("last_run_output_bytes", sizes["output"])
    gauges.set("last_run_records_per_second", round(counts["read"] / (seconds or 1.0), 3))
    _set_drift(gauges, receipts)
    if receipts:
        model, tool = receipts[-1]["model"], receipts[-1]["tool"]
        gauges.set(
            *("model_info", 1),
            name=model["name"],
            version="" if model["version"] is None else model["version"],
            digest=model["sha256"],
            provider=tool["provider"],
            precision=tool["precision"],
        )


def _set_drift(gauges: _Gauges, receipts: Sequence[Mapping[str, Any]]) -> None:
    highest: dict[str, Mapping[str, float]] = {}
    for receipt in receipts:
        for what, shift in (receipt.get("drift") or {"predictions": {}})["predictions"].items():
            if what not in highest or shift["psi"] > highest[what]["psi"]:
                highest[what] = shift
    for what, shift in sorted(highest.items()):
        gauges.set("score_psi", shift["psi"], label=what)
        gauges.set("score_psi_noise", shift["noise"], label=what)
