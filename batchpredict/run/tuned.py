"""What `tune` has found for a model on a machine: kept under XDG state, found there by runs."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from batchpredict.cgroup import effective_cores
from batchpredict.data.drafts import write_durably
from batchpredict.data.state import make_state_directory, state_directory
from batchpredict.errors import OutputNotCreatable
from batchpredict.job import Job
from batchpredict.model.files import read_small
from batchpredict.model.manifest import shown
from batchpredict.model.package import ModelPackage
from batchpredict.model.session import Session, runtime_version

logger = logging.getLogger(__name__)

# The version of the file's layout.
_LAYOUT = 1
SIZES = ("batch_rows", "batch_tokens", "workers")
# What a damaged file may at most ask for: far beyond what any tuning finds.
_MOST = {"batch_rows": 1 << 30, "batch_tokens": 1 << 30, "workers": 1024}
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class TuningKey:
    """What a tuning holds for; with anything else it says nothing. `model`: its digest."""

    model: str
    provider: str
    precision: str
    cpu: str
    onnxruntime: str

    @property
    def file_name(self) -> str:
        """A name that follows from all of them."""
        text = json.dumps(asdict(self), sort_keys=True)
        return f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


@dataclass(frozen=True)
class StoredTuning:
    """A winner that was found: SIZES by name, when, and the file it is in.

    `sizes` is empty where nothing was better than the defaults.
    """

    sizes: Mapping[str, int]
    tuned: str
    path: Path


def key_of(job: Job, package: ModelPackage, session: Session) -> TuningKey:
    """The key of a loaded model on this machine."""
    return TuningKey(package.digest, session.provider, job.precision, cpu_name(), runtime_version())


def cpu_name() -> str:
    """What the kernel calls the CPU; on ARM, which has no name, its implementer and part."""
    wanted = ("model name", "CPU implementer", "CPU part")
    found: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in wanted:
                found.setdefault(name.strip(), value.strip())
    except OSError:
        return platform.machine()
    return found.get("model name") or " ".join([platform.machine(), *found.values()])


def tuning_directory() -> Path | None:
    """Where tunings are kept; None where the environment names no home for it."""
    return state_directory("tuning")


def stored_tuning(job: Job, package: ModelPackage, session: Session) -> StoredTuning | None:
    """What was found for this model on this machine, if anything; a damaged file is warned of.

    The callers are left out where the machine lends another number of cores than it did then.
    """
    directory = tuning_directory()
    if job.no_tuning or directory is None or not directory.is_dir():
        return None
    key = key_of(job, package, session)
    path = directory / key.file_name
    try:
        return _parsed(path, json.loads(read_small(path, _MOST_BYTES)), key)
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    except (ValueError, RecursionError) as error:  # no JSON, or not what `store_tuning` writes
        reason = " ".join(str(error).split())
    logger.warning("%s: the stored tuning is ignored: %s; run tune again", path, reason)
    return None


def _parsed(path: Path, content: Any, key: TuningKey) -> StoredTuning:
    """Raises ValueError with what is wrong."""
    if not isinstance(content, dict) or content.get("tuning") != _LAYOUT:
        raise ValueError(f"is no tuning of layout {_LAYOUT}")
    if content.get("key") != asdict(key):
        raise ValueError("is of another model, provider, precision, CPU or runtime")
    winner = content.get("winner")
    sizes = winner if isinstance(winner, dict) else {}
    sound = all(type(size) is int and 0 < size <= _MOST.get(n, 0) for n, size in sizes.items())
    if not sound or (winner is not None and not sizes):
        raise ValueError(f"winner is {shown(winner)}")
    if content.get("cores") != effective_cores():
        sizes = {name: size for name, size in sizes.items() if name != "workers"}
    return StoredTuning(sizes, str(content.get("ended", "")), path)


def check_storable() -> Path:
    """The directory for tunings, made where it is missing. Raises OutputNotCreatable."""
    directory = tuning_directory()
    if directory is None:
        raise OutputNotCreatable(
            "the tuning cannot be stored: HOME is not set; set it or XDG_STATE_HOME, or take the "
            "sizes along with --write_job"
        )
    try:
        make_state_directory(directory)
    except OSError as error:
        raise _not_stored(directory, error) from error
    return directory


def store_tuning(
    key: TuningKey, winner: Mapping[str, int] | None, ended: str, measured: Mapping[str, Any]
) -> Path:
    """Replace what is stored for `key`; `winner` None: the defaults are best.

    `measured`: whatever else is worth keeping, as JSON. Raises OutputNotCreatable,
    OutputWriteFailed.
    """
    content = {
        "tuning": _LAYOUT,
        "key": asdict(key),
        "cores": effective_cores(),
        "ended": ended,
        "winner": None if winner is None else dict(winner),
        **measured,
    }
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path = check_storable() / key.file_name
    write_durably(path, text.encode("utf-8", "backslashreplace") + b"\n")
    return path


def _not_stored(path: Path, error: OSError) -> OutputNotCreatable:
    reason = (error.strerror or str(error)).lower()
    return OutputNotCreatable(
        f"{path}: the tuning cannot be stored: {reason}; set XDG_STATE_HOME to a directory that "
        "can be written, or take the sizes along with --write_job"
    )
