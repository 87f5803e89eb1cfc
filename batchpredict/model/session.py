"""The only import of onnxruntime: a session that runs one graph, and its errors in one line."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

# Importing onnxruntime starts its telemetry: files in the home directory, hashes of graph and
# weights to its makers. A model is its owner's business. Read at import, so it is set before.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state

from batchpredict.errors import ConfigInvalid
from batchpredict.model.contracts import Feeds, Tensor
from batchpredict.model.package import ModelPackage

_PROVIDERS = {"cpu": "CPUExecutionProvider"}
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
)
_DTYPES = {"float": "float32", "double": "float64"}


class InferenceFailed(Exception):
    """The session failed on these feeds; perhaps one row is to blame, perhaps their number."""


class Session:
    """One loaded graph. `run` may be called from several threads at a time.

    `inputs`, `outputs`: what the graph states. `metadata`: its custom_metadata_map.
    """

    def __init__(self, session: onnxruntime.InferenceSession, graph: str) -> None:
        self._session = session
        self.inputs = tuple(_tensor(node) for node in session.get_inputs())
        self.outputs = tuple(_tensor(node) for node in session.get_outputs())
        self.metadata: Mapping[str, str] = dict(session.get_modelmeta().custom_metadata_map)
        self.provider: str = session.get_providers()[0]
        self.graph = graph

    def run(self, fetch: Sequence[str], feeds: Feeds) -> list[Any]:
        """One array (ZipMap: a list of dicts) per name in `fetch`. Raises InferenceFailed."""
        try:
            return list(self._session.run(list(fetch), feeds))
        except _ERRORS as error:
            raise InferenceFailed(_one_line(error) or type(error).__name__) from error


def open_session(package: ModelPackage, *, provider: str = "cpu") -> Session:
    """Loads the graph for callers that run side by side, one thread each.

    Raises ConfigInvalid with what is wrong with the model or the environment.
    """
    wanted = _PROVIDERS[provider]
    graph = str(package.graph_path)
    # Its own log goes to stderr, which belongs to warnings of ours; every error is raised as well.
    onnxruntime.set_default_logger_severity(_FATAL)
    try:
        session = onnxruntime.InferenceSession(graph, _options(), providers=[wanted])
    except _ERRORS as error:
        raise ConfigInvalid(f"{graph}: {_explain(package, _one_line(error))}") from error
    given = session.get_providers()
    if given[0] != wanted:
        raise ConfigInvalid(f"{graph}: asked for {wanted}, onnxruntime gave {', '.join(given)}")
    return Session(session, graph)


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


def _tensor(node: Any) -> Tensor:
    dtype = re.sub(r"^tensor\((.*)\)$", r"\1", node.type)
    if node.type.startswith("seq(map("):
        dtype = "sequence(map)"
    shape = tuple(None if isinstance(size, int) and size < 0 else size for size in node.shape)
    return Tensor(node.name, _DTYPES.get(dtype, dtype), shape)


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
