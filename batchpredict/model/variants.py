"""Make a variant of a graph: without training, folded, quantised, fused; one file from another.

Run as a program it does so: onnxruntime.quantization takes several times the model's memory, warns
through the root logger and writes beside its input, so it gets a process and a folder of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from batchpredict.errors import ConfigInvalid
from batchpredict.model.package import ModelPackage
from batchpredict.model.session import runtime_version

# What makes each variant. `int8_run` is what --precision=int8 runs; the others are to be kept.
STEPS = {
    "int8_run": ("fold", "int8"),
    "int8": ("stop_training", "fold", "int8", "fuse"),
    "int4": ("stop_training", "fold", "int4", "fuse"),
    "model": ("stop_training", "fold", "fuse"),
}
# What integer kernels make faster. A table of embeddings is only looked up, and loses as much
# in one scale for all of its rows as the rest of a transformer.
_OPERATORS = ("Attention", "Conv", "LSTM", "MatMul")
_PRODUCTS = {
    "int8": frozenset({"Gemm", *_OPERATORS}),
    "int4": frozenset({"Gather", "Gemm", "MatMul"}),
}
_MOST_BYTES = 2**31 - 1


@dataclass(frozen=True)
class Made:
    """What was done: nodes of the graph before and after, and how many trained until then."""

    nodes_before: int
    nodes_after: int
    trained: int


def check_variant(package: ModelPackage, precision: str, instead: str) -> None:
    """Whether a variant can be made. `instead`: what to do where it cannot be quantised.

    Raises ConfigInvalid: quantised already, nothing to quantise, too large, no package onnx.
    """
    what = f"{package.graph_path}: --precision={precision}:"
    graph = package.graph_file
    if precision != "model" and graph.quantised:
        raise ConfigInvalid(
            f"{what} the graph is quantised already (it has {', '.join(graph.quantised)});"
            f" {instead}"
        )
    if precision != "model" and not _PRODUCTS[precision] & set(graph.operators):
        raise nothing_to_quantise(package, precision, instead)
    weights = sum(size for name, size, _ in package.files if not name.endswith((".json", ".toml")))
    if weights > _MOST_BYTES:
        raise ConfigInvalid(
            f"{what} {weights:,} bytes of weights do not fit into one ONNX file (2 GiB), which"
            " making a variant needs; use the model as it is"
        )
    if importlib.util.find_spec("onnx") is None:
        raise ConfigInvalid(
            f"--precision={precision} needs the package onnx, which is not installed;"
            " pip install 'batchpredict[optimize]'"
        )


def nothing_to_quantise(package: ModelPackage, precision: str, instead: str) -> ConfigInvalid:
    """The error for a graph that has nothing that `precision` could make smaller."""
    return ConfigInvalid(
        f"{package.graph_path}: --precision={precision}: nothing to quantise, no matrix product"
        f" with weights{' or table that are large' if precision == 'int4' else ''}"
        f" (it has {', '.join(package.graph_file.operators)}); {instead}"
    )


def make_variant(package: ModelPackage, kind: str, work: Path, made: Path, hold: int) -> Made:
    """Write the variant `kind` (of STEPS) of the package's graph as `made`.

    `work`: a folder for files on the way, which stay there. `hold`: a descriptor that is open as
    long as somebody writes there, whatever becomes of this process. Raises ConfigInvalid.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-m", __name__, kind, package.graph_path, work, made],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        pass_fds=(hold,),
        check=False,
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        why = lines[-1].strip() if lines else f"exit status {done.returncode}"
        precision = kind.removesuffix("_run")
        verb = "optimise" if precision == "model" else "quantise"
        raise ConfigInvalid(
            f"{package.graph_path}: --precision={precision}: onnxruntime {runtime_version()} cannot"
            f" {verb} it: {why}"
        )
    return Made(*json.loads(done.stdout.splitlines()[-1]))


# --- the program; a step reads one file and writes another


def _stop_training(source: Path, target: Path) -> int:
    import onnx

    from batchpredict.model.graph_edits import stop_training

    model = onnx.load(source)
    count = stop_training(model)
    onnx.save(model, target)
    return count


def _optimised(source: Path, target: Path, level: str) -> None:
    """As onnxruntime would run it: constants folded, nodes of no effect removed, others fused."""
    from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions

    options = SessionOptions()
    options.graph_optimization_level = getattr(GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(target)
    # Else weights that were external stay so, in a folder that the quantiser refuses to read.
    for key, value in (("file_name", f"{target.name}.data"), ("min_size_in_bytes", "0")):
        options.add_session_config_entry(
            f"session.optimized_model_external_initializers_{key}", value
        )
    InferenceSession(
        str(source),
        options,
        providers=["CPUExecutionProvider"],
        # A Sigmoid that is fused into what is before it is no more to be seen, and would be
        # applied to its own result. What it saves, every load of the graph does again.
        disabled_optimizers=["GemmActivationFusion", "ConvActivationFusion"],
    )


def _fold(source: Path, target: Path) -> None:
    import onnx

    # Functions, constant arithmetic and external weights hide matrix products from a quantiser.
    _optimised(source, target, "ORT_ENABLE_BASIC")
    onnx.save(onnx.load(target), target)  # with its weights


def _fuse(source: Path, target: Path) -> None:
    import onnx

    # No more than EXTENDED: what is beyond it holds for the CPU it was made on.
    _optimised(source, target, "ORT_ENABLE_EXTENDED")
    onnx.save(onnx.load(target), target)


def _int8(source: Path, target: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Shapes noted before weights were folded may contradict what the quantiser infers.
    folded = onnx.load(source)
    del folded.graph.value_info[:]
    onnx.save(folded, source)
    # Signed weights: with unsigned ones the integer kernels are no faster than float32. A scale
    # per channel: one per tensor is as fast and doubles the differences. All 8 bits: 7 of them
    # (reduce_range) keep CPUs without VNNI from saturating, and change labels on the others.
    quantize_dynamic(
        str(source),
        target,
        op_types_to_quantize=list(_OPERATORS),
        per_channel=True,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )


def _int4(source: Path, target: Path) -> None:
    import onnx

    from batchpredict.model.graph_edits import quantise_to_4_bits

    model = onnx.load(source)
    quantise_to_4_bits(model)
    onnx.save(model, target)


def _nodes(path: Path) -> int:
    import onnx

    return len(onnx.load(path, load_external_data=False).graph.node)


def _main(kind: str, graph: str, work: str, made: str) -> None:
    programs = {"fold": _fold, "int8": _int8, "int4": _int4, "fuse": _fuse}
    trained = 0
    at = Path(work) / "inference.onnx"
    if "stop_training" in STEPS[kind]:
        trained = _stop_training(Path(graph), at)
    if not trained:
        at = Path(graph)
    for step in STEPS[kind]:
        if step in programs:
            after = Path(work) / f"{step}.onnx"
            programs[step](at, after)
            at = after
    at.replace(made)
    print(json.dumps([_nodes(Path(graph)), _nodes(Path(made)), trained]))  # noqa: T201


if __name__ == "__main__":
    _main(*sys.argv[1:])
