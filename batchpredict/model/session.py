"""The only import of onnxruntime: a session that runs one graph, and its errors in one line."""

from __future__ import annotations

import importlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

# Importing onnxruntime starts its telemetry: files in the home directory, hashes of graph and
# weights to its makers. A model is its owner's business. Read at import, so it is set before.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state

from batchpredict.cgroup import effective_cores
from batchpredict.errors import ConfigInvalid
from batchpredict.model.contracts import Feeds, Tensor
from batchpredict.model.package import ModelPackage

_PROVIDERS = {"cpu": "CPUExecutionProvider", "openvino": "OpenVINOExecutionProvider"}
_PLUGIN = "onnxruntime_ep_openvino"
_INSTALL_PLUGIN = "pip install 'batchpredict[openvino]'"
_CPU_INFO = Path("/proc/cpuinfo")
# OpenVINO takes the hint on a CPU without any of these too, and runs slower than in float32.
_BF16_FLAGS = frozenset({"amx_bf16", "avx512_bf16"})
_FATAL = 4
# onnxruntime has no base class for its exceptions.
_ERRORS: tuple[type[Exception], ...] = (
    *(
        kind
        for kind in vars(onnxruntime_pybind11_state).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ),
    RuntimeError,
    MemoryError,
    UnicodeDecodeError,  # names in the graph, or in a message about it
)
# Beside them: a runtime too old for plugins, a plugin without its library.
_PLUGIN_ERRORS: tuple[type[Exception], ...] = (*_ERRORS, AttributeError, OSError)
# Of a fixed dimension of an input or output: a label each, and a number in the memory of a batch.
_MOST_SIZE = 1 << 22
_DTYPES = {"float": "float32", "double": "float64"}


class InferenceFailed(Exception):
    """The session failed on these feeds; perhaps one row is to blame, perhaps their number."""


class Session:
    """One loaded graph. `run` may be called from several threads at a time.

    `inputs`, `outputs`: what the graph states. `metadata`: its custom_metadata_map. Pickles as
    what it was opened with, and is opened again.
    `provider`: onnxruntime's name of the one that runs every node. `precision`: "model", "bf16"
    or "int8". `graph`: the file the user named, for messages.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        graph: str,
        precision: str,
        reopen: Callable[[], Session],
    ) -> None:
        self._session = session
        self._reopen = reopen
        self.inputs = tuple(_tensor(graph, node) for node in session.get_inputs())
        self.outputs = tuple(_tensor(graph, node) for node in session.get_outputs())
        self.metadata: Mapping[str, str] = dict(session.get_modelmeta().custom_metadata_map)
        self.provider: str = session.get_providers()[0]
        self.precision = precision
        self.graph = graph

    def __reduce__(self) -> tuple[Callable[[], Session], tuple[()]]:
        return self._reopen, ()

    def run(self, fetch: Sequence[str], feeds: Feeds) -> list[Any]:
        """One array (ZipMap: a list of dicts) per name in `fetch`. Raises InferenceFailed."""
        try:
            return list(self._session.run(list(fetch), feeds))
        except _ERRORS as error:
            raise InferenceFailed(_one_line(error) or type(error).__name__) from error


def open_session(
    package: ModelPackage,
    *,
    provider: str = "cpu",
    precision: str = "model",
    graph: Path | None = None,
    callers: int | None = None,
) -> Session:
    """Loads the graph for callers that run side by side, one thread each.

    `precision`: "bf16" selects openvino; "int8" needs `graph`, the variant that optimize made.
    `callers`: how many (None: the effective cores); only openvino, which computes in threads of
    its own, has to know. Raises ConfigInvalid with what is wrong with the model or the
    environment.

    A score in "model" precision does not depend on the rows beside it, on either provider. In
    "bf16" the shape of the batch chooses among kernels that round at different places: the same
    batches give the same bits, other batches scores as far from each other as from float32.
    """
    if (precision == "int8") != (graph is not None):
        raise ValueError("int8, and int8 alone, runs another graph than the package's")
    if precision == "bf16":
        provider = "openvino"
        _check_bf16(package)
    wanted = _PROVIDERS[provider]
    path = str(graph or package.graph_path)
    # Its own log goes to stderr, which belongs to warnings of ours; every error is raised as well.
    onnxruntime.set_default_logger_severity(_FATAL)
    options = _options()
    if provider == "openvino":
        _add_openvino(options, precision, callers or effective_cores())
    again = partial(
        open_session,
        package,
        provider=provider,
        precision=precision,
        graph=graph,
        callers=callers,
    )
    try:
        # Providers that the options hold already must not be named again.
        named = {"providers": [wanted]} if provider == "cpu" else {}
        # A fallback would try once more and print that on standard output, which may hold rows.
        session = onnxruntime.InferenceSession(path, options, enable_fallback=0, **named)
        opened = Session(session, str(package.graph_path), precision, again)
    except _ERRORS as error:
        raise ConfigInvalid(f"{path}: {_explain(package, _one_line(error))}") from error
    given = session.get_providers()
    if given[0] != wanted:
        raise ConfigInvalid(f"{path}: asked for {wanted}, onnxruntime gave {', '.join(given)}")
    if provider == "openvino":
        _check_assignment(session, path)
    return opened


def runtime_version() -> str:
    """onnxruntime's."""
    return str(onnxruntime.__version__)


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Memory patterns are kept per shape of the feeds, and every batch has another shape.
    options.enable_mem_pattern = False
    options.log_severity_level = _FATAL
    return options


def _check_bf16(package: ModelPackage) -> None:
    """Raises ConfigInvalid where neither the graph nor the CPU is made for bf16."""
    if package.graph_file.quantised:
        raise ConfigInvalid(
            f"{package.graph_path}: --precision=bf16: the graph is quantised already (it has"
            f" {', '.join(package.graph_file.quantised)}); leave --precision out, or give the model"
            " in float32"
        )
    flags = _cpu_flags()
    if not flags & _BF16_FLAGS:
        raise ConfigInvalid(
            "--precision=bf16: this CPU has no bf16 arithmetic (neither amx_bf16 nor avx512_bf16"
            f" in {_CPU_INFO}); run it on one that has, or leave --precision out"
        )


def _cpu_flags() -> frozenset[str]:
    """Of the first core; empty where the kernel tells none (another architecture)."""
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except FileNotFoundError:
        return frozenset()
    return next(
        (frozenset(line.split()) for line in lines if line.startswith("flags")), frozenset()
    )


def _add_openvino(options: onnxruntime.SessionOptions, precision: str, callers: int) -> None:
    """One stream of one thread per caller: more threads in a stream split sums differently."""
    streams = str(min(callers, effective_cores()))
    hints = {
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": streams,
        # Pinned, two jobs side by side would share the first cores and leave the others idle.
        "ENABLE_CPU_PINNING": "NO",
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        # Kernels it keeps per shape of a batch, a megabyte a shape: by default thousands, without
        # use, for a plan takes the batches of one shape one after the other.
        "CPU_RUNTIME_CACHE_CAPACITY": "100",
    }
    device = _openvino_device()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_provider_for_devices([device], {"load_config": json.dumps({"CPU": hints})})


@cache
def _openvino_device() -> Any:
    """The CPU as OpenVINO's plugin offers it. Raises ConfigInvalid where it is not there."""
    try:
        plugin = importlib.import_module(_PLUGIN)
    except ImportError as error:
        raise ConfigInvalid(
            f"the provider openvino needs the package {_PLUGIN.replace('_', '-')}, which cannot be"
            f" imported ({error}); {_INSTALL_PLUGIN}"
        ) from error
    runtime = f"onnxruntime {onnxruntime.__version__}"
    try:
        onnxruntime.register_execution_provider_library(_PLUGIN, plugin.get_library_path())
    except _PLUGIN_ERRORS as error:
        raise ConfigInvalid(
            f"{runtime} cannot load {_PLUGIN.replace('_', '-')}: {_one_line(error)};"
            f" {_INSTALL_PLUGIN} again, in the versions of constraints.txt"
        ) from error
    for device in onnxruntime.get_ep_devices():
        found = device.ep_name == plugin.get_ep_name()
        if found and device.ep_metadata.get("ov_device") == "CPU":
            return device
    raise ConfigInvalid("the provider openvino offers no CPU device on this machine; use cpu")


def _check_assignment(session: onnxruntime.InferenceSession, path: str) -> None:
    """What OpenVINO does not know, onnxruntime gives to its CPU provider without a word."""
    left = Counter(
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != _PROVIDERS["openvino"]
        for node in part.get_nodes()
    )
    if left:
        raise ConfigInvalid(
            f"{path}: OpenVINO cannot run {left.total()} of its nodes"
            f" ({', '.join(sorted(left))}); leave --provider and --precision=bf16 out"
        )


def _tensor(graph: str, node: Any) -> Tensor:
    dtype = re.sub(r"^tensor\((.*)\)$", r"\1", node.type)
    dtype = "sequence(map)" if node.type.startswith("seq(map(") else _DTYPES.get(dtype, dtype)
    shape = tuple(None if isinstance(size, int) and size < 0 else size for size in node.shape)
    if any(isinstance(size, int) and size > _MOST_SIZE for size in shape):
        raise ConfigInvalid(
            f"{graph}: {node.name} is {dtype} {list(shape)}; dimensions of up to {_MOST_SIZE:,} can"
            " be fed, export the model with others"
        )
    return Tensor(node.name, dtype, shape)


def _one_line(error: Exception) -> str:
    """The message without the runtime's prefix, source location and line ends."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    # "/onnxruntime_src/… file.cc:12 some::function(types) what happened"
    where = r"/onnxruntime_src/\S+:\d+ .*?::\S*\(.*?\)(?:::<lambda\(\)>)?(?: const)? "
    text = re.sub(where, "", text)
    return text.strip().rstrip(".")


def _explain(package: ModelPackage, message: str) -> str:
    """What a load error means and what to do; the runtime's own words where we know no better."""
    runtime = f"onnxruntime {onnxruntime.__version__}"
    if found := re.search(r"Failed to construct locale with name: ?([^:\s]+)", message):
        name = found[1]
        return (
            f"its text nodes want the locale {name}, which this machine lacks; install it"
            f" (apt-get install locales && locale-gen {name}) or export the model again with the"
            " locale attribute of StringNormalizer set to C.UTF-8"
        )
    if found := re.search(r"support for domain (\S+) is till opset (\d+)", message):
        have = dict(package.graph_file.opsets).get(found[1], "newer")
        return (
            f"needs opset {have} of {found[1]}, {runtime} knows up to {found[2]};"
            " install a newer onnxruntime or export with a lower opset"
        )
    if found := re.search(r"IR version: (\d+), max supported IR version: (\d+)", message):
        return (
            f"has IR version {found[1]}, {runtime} knows up to {found[2]};"
            " install a newer onnxruntime or export with a lower opset"
        )
    if "protobuf parsing failed" in message.lower() or "No graph was found" in message:
        return "not an ONNX model, or truncated; copy or export it again"
    if found := re.search(r"External data path does not exist: \"?([^\"]+)", message):
        return f"its external data {found[1]} is not there; copy it beside the graph"
    if found := re.search(r"No Op registered for (\S+) with domain_version of (\d+)", message):
        return f"the operator {found[1]} is not known to {runtime} at opset {found[2]}"
    if found := re.search(r"(\S+?):(\w+)\(-?\d+\) is not a registered function/op", message):
        return (
            f"the operator {found[2]} of domain {found[1]!r} is not known to {runtime};"
            " custom operators are not loaded, export without them"
        )
    return f"{runtime} cannot load it: {message}"
