"""The graph of --precision=int8, made once per model and kept in the user's cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from batchpredict.errors import ConfigInvalid
from batchpredict.model.cache_folder import cache_folder
from batchpredict.model.graph_file import read_graph_file
from batchpredict.model.package import ModelPackage
from batchpredict.model.session import runtime_version
from batchpredict.model.variants import check_variant, make_variant, nothing_to_quantise

# In the names of what is cached: raised with every change of what `int8_run` of variants does.
_RECIPE = 1
_MOST_SUM_BYTES = 1024
_INSTEAD = "leave --precision out"


def int8_graph(package: ModelPackage) -> Path:
    """The graph with its weights as 8-bit integers, from the cache or made now.

    Weights get a scale per channel, activations one per run of the session, taken from all rows
    of a batch: scores depend a little on a row's neighbours. Raises ConfigInvalid: the extra is
    not installed, the graph is quantised already or has nothing to quantise, the cache cannot be
    written.
    """
    check_variant(package, "int8", _INSTEAD)
    folder = cache_folder("optimized", "--precision=int8 keeps its variant")
    name = f"{package.digest}-int8-{runtime_version()}-{_RECIPE}.onnx"
    target = folder / name
    try:
        if _is_whole(target):
            return target
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f"{name}.lock") as lock:
            if not _is_whole(target):  # another process may have made it meanwhile
                _make(package, target, lock)
    except OSError as error:
        raise ConfigInvalid(
            f"{error.filename or folder}: {(error.strerror or str(error)).lower()};"
            " --precision=int8 keeps its variant there, set XDG_CACHE_HOME to a folder that can be"
            " written"
        ) from error
    return target


def _is_whole(target: Path) -> bool:
    """Whether it is there and as it was made; a disk or a copy may have damaged it since."""
    if not (target.is_file() and _sum_file(target).is_file()):
        return False
    with _sum_file(target).open("rb") as file:
        stated = file.read(_MOST_SUM_BYTES).split()[:1]
    with target.open("rb") as file:
        return stated == [hashlib.file_digest(file, "sha256").hexdigest().encode()]


def _sum_file(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _make(package: ModelPackage, target: Path, lock: int) -> None:
    work = target.with_name(f"{target.name}.part")
    shutil.rmtree(work, ignore_errors=True)  # of a process that was killed: the lock is ours
    work.mkdir()
    try:
        made = work / "int8.onnx"
        _run_quantiser(package, work, made, lock)
        if not read_graph_file(made).quantised:
            raise nothing_to_quantise(package, "int8", _INSTEAD)
        with made.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        stated = work / "sha256"
        with stated.open("w") as file_of_sum:
            file_of_sum.write(f"{digest}  {target.name}\n")
            file_of_sum.flush()
            os.fsync(file_of_sum.fileno())
        made.replace(target)
        stated.replace(_sum_file(target))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _run_quantiser(package: ModelPackage, work: Path, made: Path, lock: int) -> None:
    make_variant(package, "int8_run", work, made, lock)
