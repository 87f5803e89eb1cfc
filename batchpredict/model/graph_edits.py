"""Edits of a graph in memory: nodes of training taken out, weights as 4-bit integers.

Imports onnx, which is an extra; run by variants.py in a process of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

# Values that share a scale and a zero point. With 32 a matrix takes 4.6 bits per value; 64 takes
# 4.3 and moves scores further on some models.
BLOCK = 32
# Of a tensor of weights: smaller ones, such as those of the last layer, are no part of the size.
_LEAST_VALUES = 4096
# Values that are quantised at a time, in the memory of some copies of them.
_SLICE_VALUES = 1 << 24
_DOMAIN = "com.microsoft"
_ONNX = ("", "ai.onnx")
# Tensors of 4-bit integers came with it.
_IR_VERSION = 10


def stop_training(model: onnx.ModelProto) -> int:
    """Set nodes that train (random Dropout, BatchNormalization that learns) to inference.

    Returns how many there were. What a caller chooses by an input, or reads of what was learnt,
    stays as it is.
    """
    count = 0
    for graph in _graphs(model.graph):
        read = {name for inner in _graphs(graph) for node in inner.node for name in node.input}
        read |= {entry.name for entry in graph.output}
        trains = _true_constants(graph)
        for node in graph.node:
            if node.domain not in _ONNX:
                continue
            if node.op_type == "Dropout" and not trains.isdisjoint(node.input[2:]):
                del node.input[2:]
                count += 1
            elif node.op_type == "BatchNormalization" and read.isdisjoint(node.output[1:]):
                for attribute in node.attribute:
                    if attribute.name == "training_mode" and attribute.i:
                        attribute.i = 0
                        del node.output[1:]
                        count += 1
    return count


def quantise_to_4_bits(model: onnx.ModelProto) -> int:
    """Weights of matrix products and embedding tables as integers of 4 bits; how many tensors.

    Each run of BLOCK values has a scale and a zero point; what is computed stays float32, so that
    a score depends on no other row. Nodes of subgraphs and tensors of other types stay.
    """
    weights = _Weights(model.graph)
    nodes = [made for node in model.graph.node for made in _quantised(node, weights)]
    if not weights.done:
        return 0
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    weights.store()
    model.ir_version = max(model.ir_version, _IR_VERSION)
    if not any(opset.domain == _DOMAIN for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    return len(weights.done)


@dataclass(frozen=True)
class Blocks:
    """A matrix [rows, columns] cut along its columns into blocks.

    `integers`: uint8 [rows, blocks * BLOCK], 0 to 15, columns beyond the last padded. `scales`:
    float32 [rows, blocks]. `zeros`: uint8 [rows, blocks]. A value is (integer - zero) * scale.
    """

    integers: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32]
    zeros: npt.NDArray[np.uint8]


def blocks_of(matrix: npt.NDArray[np.float32]) -> Blocks:
    """The nearest integers between the least and the largest value of each block and 0."""
    step = max(1, _SLICE_VALUES // matrix.shape[1])
    parts = [_blocks_of(matrix[at : at + step]) for at in range(0, len(matrix), step)]
    return Blocks(
        np.concatenate([part.integers for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate([part.zeros for part in parts]),
    )


def _blocks_of(matrix: npt.NDArray[np.float32]) -> Blocks:
    rows, columns = matrix.shape
    blocks = -(-columns // BLOCK)
    padded = np.zeros((rows, blocks * BLOCK), np.float32)
    padded[:, :columns] = matrix
    cut = padded.reshape(rows, blocks, BLOCK)
    low = np.minimum(cut.min(axis=2, keepdims=True), 0)
    high = np.maximum(cut.max(axis=2, keepdims=True), 0)
    scale = (high - low) / 15
    scale[scale == 0] = 1
    zero = np.round(-low / scale).clip(0, 15)
    integers = np.round(cut / scale + zero).clip(0, 15).astype(np.uint8)
    return Blocks(
        integers.reshape(rows, -1),
        scale[:, :, 0].astype(np.float32),
        zero[:, :, 0].astype(np.uint8),
    )


def packed(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Two of the last axis in a byte, the first in its lower half; an odd last one beside 0."""
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros((*values.shape[:-1], 1), np.uint8)], axis=-1)
    return np.asarray(values[..., ::2] | (values[..., 1::2] << 4), np.uint8)


class _Weights:
    """Initializers of a graph: which can be quantised, and what stands for them then."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._by_name = {tensor.name: tensor for tensor in graph.initializer}
        # An input that has a default may be fed by a caller.
        for entry in (*graph.input, *graph.output):
            self._by_name.pop(entry.name, None)
        self.done: dict[tuple[str, str], list[onnx.TensorProto]] = {}

    def matrix(self, name: str) -> npt.NDArray[np.float32] | None:
        """The values, if they are a constant matrix of float32, large enough to matter."""
        tensor = self._by_name.get(name)
        if tensor is None or tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2:
            return None
        rows, columns = tensor.dims
        if rows * columns < _LEAST_VALUES or min(rows, columns) < 2:
            return None
        values = numpy_helper.to_array(tensor)
        return values if np.isfinite(values).all() else None

    def product(self, name: str, matrix: npt.NDArray[np.float32]) -> list[str]:
        """Names of what MatMulNBits takes; `matrix` is [columns of the product, summed]."""
        if ("product", name) not in self.done:
            blocks = blocks_of(matrix)
            rows, count = blocks.scales.shape
            weights = packed(blocks.integers).reshape(rows, count, BLOCK // 2)
            self.done["product", name] = [
                numpy_helper.from_array(weights, f"{name}_4bit"),
                numpy_helper.from_array(blocks.scales, f"{name}_4bit_scales"),
                numpy_helper.from_array(packed(blocks.zeros), f"{name}_4bit_zeros"),
            ]
        return [tensor.name for tensor in self.done["product", name]]

    def table(self, name: str, matrix: npt.NDArray[np.float32]) -> list[str]:
        """Names of what GatherBlockQuantized takes."""
        if ("table", name) not in self.done:
            blocks = blocks_of(matrix)
            integers = blocks.integers[:, : matrix.shape[1]]
            self.done["table", name] = [
                _of_4_bits(f"{name}_4bit_rows", integers),
                numpy_helper.from_array(blocks.scales, f"{name}_4bit_row_scales"),
                _of_4_bits(f"{name}_4bit_row_zeros", blocks.zeros),
            ]
        return [tensor.name for tensor in self.done["table", name]]

    def store(self) -> None:
        """Into the graph, in the place of tensors that no node reads any more."""
        graphs = _graphs(self._graph)
        used = {name for graph in graphs for node in graph.node for name in node.input}
        used |= {entry.name for graph in graphs for entry in (*graph.input, *graph.output)}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)
        for tensors in self.done.values():
            self._graph.initializer.extend(tensors)


def _quantised(node: onnx.NodeProto, weights: _Weights) -> list[onnx.NodeProto]:
    """What stands for a node: itself where nothing of it can be quantised."""
    if node.domain not in _ONNX:
        return [node]
    if node.op_type == "MatMul":
        matrix = weights.matrix(node.input[1])
        return [node] if matrix is None else [_product(node, weights, matrix.T, node.output[0])]
    if node.op_type == "Gemm":
        return _gemm(node, weights)
    if node.op_type == "Gather" and _attribute(node, "axis", 0) == 0:
        table = weights.matrix(node.input[0])
        # Packed over the ends of rows, two columns a byte.
        if table is not None and table.shape[1] % 2 == 0:
            return [_lookup(node, weights, table)]
    return [node]


def _product(
    node: onnx.NodeProto,
    weights: _Weights,
    matrix: npt.NDArray[np.float32],
    output: str,
) -> onnx.NodeProto:
    columns, summed = matrix.shape
    inputs = [node.input[0], *weights.product(node.input[1], matrix)]
    return helper.make_node(
        "MatMulNBits",
        inputs,
        [output],
        name=node.name,
        domain=_DOMAIN,
        K=summed,
        N=columns,
        bits=4,
        block_size=BLOCK,
    )


def _gemm(node: onnx.NodeProto, weights: _Weights) -> list[onnx.NodeProto]:
    """A product and an addition, as layers of networks are exported."""
    plain = _attribute(node, "alpha", 1.0) == 1 and _attribute(node, "beta", 1.0) == 1
    matrix = weights.matrix(node.input[1])
    if not plain or _attribute(node, "transA", 0) or matrix is None:
        return [node]
    if not _attribute(node, "transB", 0):
        matrix = matrix.T
    if len(node.input) < 3 or not node.input[2]:
        return [_product(node, weights, matrix, node.output[0])]
    between = f"{node.output[0]}_4bit_product"
    added = helper.make_node("Add", [between, node.input[2]], [node.output[0]])
    return [_product(node, weights, matrix, between), added]


def _lookup(
    node: onnx.NodeProto, weights: _Weights, table: npt.NDArray[np.float32]
) -> onnx.NodeProto:
    rows, scales, zeros = weights.table(node.input[0], table)
    return helper.make_node(
        "GatherBlockQuantized",
        [rows, node.input[1], scales, zeros],
        [node.output[0]],
        name=node.name,
        domain=_DOMAIN,
        gather_axis=0,
        quantize_axis=1,
        block_size=BLOCK,
    )


def _of_4_bits(name: str, values: npt.NDArray[np.uint8]) -> onnx.TensorProto:
    data = packed(values.reshape(-1)).tobytes()
    return helper.make_tensor(name, TensorProto.UINT4, values.shape, data, raw=True)


def _attribute(node: onnx.NodeProto, name: str, usual: float) -> float:
    for attribute in node.attribute:
        if attribute.name == name:
            return float(helper.get_attribute_value(attribute))
    return usual


def _true_constants(graph: onnx.GraphProto) -> set[str]:
    """Names of truth values that are known before a run, and true."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                tensors[node.output[0]] = attribute.t
    return {
        name
        for name, tensor in tensors.items()
        if tensor.data_type == TensorProto.BOOL and numpy_helper.to_array(tensor).any()
    }


def _graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """It and the graphs inside of its nodes."""
    found = [graph]
    for node in graph.node:
        for attribute in node.attribute:
            inner = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
            found += [deeper for one in inner for deeper in _graphs(one)]
    return found
