"""Smaller variants of a graph, made once per model and kept in the user's cache.

Run as a program it quantises one file: onnxruntime.quantization takes several times the model's
memory, warns through the root logger and writes beside its input, so it gets a process and a
folder of its own.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from batchpredict.errors import ConfigInvalid
from batchpredict.model.graph_file import read_graph_file
from batchpredict.model.package import ModelPackage
from batchpredict.model.session import runtime_version

# In the names of what is cached: raised with every change of what _quantise does.
_RECIPE = 1
# What integer kernels make faster. A table of embeddings is only looked up, and loses as much
# in one scale for all of its rows as the rest of a transformer.
_OPERATORS = ("Attention", "Conv", "LSTM", "MatMul")
_MOST_BYTES = 2**31 - 1
_MOST_SUM_BYTES = 1024


def int8_graph(package: ModelPackage) -> Path:
    """The graph with its weights as 8-bit integers, from the cache or made now.

    Weights get a scale per channel, activations one per run of the session, taken from all rows
    of a batch: scores depend a little on a row's neighbours. Raises ConfigInvalid: the extra is
    not installed, the graph is quantised already or has nothing to quantise, the cache cannot be
    written.
    """
    _check(package)
    folder = _cache_folder()
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


def _check(package: ModelPackage) -> None:
    what = f"{package.graph_path}: --precision=int8:"
    if package.graph_file.quantised:
        raise ConfigInvalid(
            f"{what} the graph is quantised already (it has"
            f" {', '.join(package.graph_file.quantised)}); leave --precision out"
        )
    if not {"Gemm", *_OPERATORS} & set(package.graph_file.operators):
        raise _nothing_to_quantise(package)
    weights = sum(size for name, size, _ in package.files if not name.endswith((".json", ".toml")))
    if weights > _MOST_BYTES:
        raise ConfigInvalid(
            f"{what} {weights:,} bytes of weights do not fit into one ONNX file (2 GiB), which"
            " quantising needs; leave --precision out"
        )
    if importlib.util.find_spec("onnx") is None:
        raise ConfigInvalid(
            "--precision=int8 needs the package onnx, which is not installed;"
            " pip install 'batchpredict[optimize]'"
        )


def _nothing_to_quantise(package: ModelPackage) -> ConfigInvalid:
    return ConfigInvalid(
        f"{package.graph_path}: --precision=int8: nothing to quantise, no matrix product with"
        f" weights (it has {', '.join(package.graph_file.operators)}); leave --precision out"
    )


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    # A relative path is to be ignored (XDG Base Directory Specification).
    if Path(base).is_absolute():
        return Path(base) / "batchpredict" / "optimized"
    try:
        return Path("~/.cache/batchpredict/optimized").expanduser()
    except RuntimeError as error:
        raise ConfigInvalid(
            "--precision=int8 keeps its variant in the home directory, and this user has none; set"
            " XDG_CACHE_HOME to a folder that can be written"
        ) from error


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
            raise _nothing_to_quantise(package)
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
    done = subprocess.run(
        [sys.executable, "-P", "-m", __name__, package.graph_path, work, made],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        # Outlives us if we are killed, and must keep others out of its folder as long.
        pass_fds=(lock,),
        check=False,
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        why = lines[-1].strip() if lines else f"exit status {done.returncode}"
        raise ConfigInvalid(
            f"{package.graph_path}: --precision=int8: onnxruntime {runtime_version()} cannot"
            f" quantise it: {why}"
        )


def _quantise(graph: str, work: str, made: str) -> None:
    import onnx
    from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Functions, constant arithmetic and external weights hide matrix products from the quantiser.
    options = SessionOptions()
    options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_BASIC
    basic = Path(work) / "basic.onnx"
    options.optimized_model_filepath = str(basic)
    # Else weights that were external stay so, in a folder that the quantiser refuses to read.
    for key, value in (("file_name", "basic.data"), ("min_size_in_bytes", "0")):
        options.add_session_config_entry(
            f"session.optimized_model_external_initializers_{key}", value
        )
    InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    # Shapes noted before weights were folded may contradict what the quantiser infers.
    folded = onnx.load(basic)
    del folded.graph.value_info[:]
    onnx.save(folded, basic)
    # Signed weights: with unsigned ones the integer kernels are no faster than float32. A scale
    # per channel: one per tensor is as fast and doubles the differences. All 8 bits: 7 of them
    # (reduce_range) keep CPUs without VNNI from saturating, and change labels on the others.
    quantize_dynamic(
        str(basic),
        made,
        op_types_to_quantize=list(_OPERATORS),
        per_channel=True,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )


if __name__ == "__main__":
    _quantise(*sys.argv[1:])
