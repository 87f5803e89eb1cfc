"""The limit for tabular data: Arrow's parser, the session and little else, block by block.

python tabular_limit.py strings|raw MODEL_DIR INPUT.csv OUTPUT.csv

`strings` reads every column as Arrow strings and writes them back; `raw` parses only what the
model reads and splices the score onto the lines as they came. Blocks are worked on side by side
and written in order. Both rely on what they know of the file: no quotes, NA for a missing value.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

BLOCK = 4 << 20
CALLERS = 2


def blocks(file: BinaryIO) -> Iterator[bytes]:
    """Whole lines, about BLOCK bytes each."""
    rest = b""
    while data := file.read(BLOCK):
        end = data.rfind(b"\n") + 1
        yield rest + data[:end]
        rest = data[end:]
    if rest:
        yield rest + b"\n"


class Pipeline:
    """Scores a block of lines; safe to be called from several threads."""

    def __init__(self, way: str, graph: Path, header: list[str]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(graph), options, providers=["CPUExecutionProvider"]
        )
        self.is_text = {t.name: t.type == "tensor(string)" for t in self.session.get_inputs()}
        self.header, self.is_raw = header, way == "raw"

    def __call__(self, block: bytes) -> memoryview:
        """The block's lines with label and score, each beginning with its line end."""
        table = self.parse(block)
        feeds = {name: self.feed(table[name], text) for name, text in self.is_text.items()}
        label, probabilities = self.session.run(["label", "probabilities"], feeds)
        added = [pa.array(label, pa.string()), pa.array(probabilities.max(axis=1)).cast("string")]
        if self.is_raw:
            kept = [whole_lines(block)]
        else:
            first, *others = (table[name] for name in self.header)
            kept = [pc.binary_join_element_wise("\n", first, ""), *others]
        joined = pc.binary_join_element_wise(*kept, *added, ",")
        start, end = np.frombuffer(joined.buffers()[1], np.int32)[[0, len(joined)]]
        return memoryview(joined.buffers()[2])[start:end]

    def parse(self, block: bytes) -> pa.RecordBatch:
        if self.is_raw:
            types = {n: pa.string() if text else pa.float32() for n, text in self.is_text.items()}
        else:
            types = dict.fromkeys(self.header, pa.string())
        table = csv.read_csv(
            pa.py_buffer(block),
            csv.ReadOptions(column_names=self.header, use_threads=False, block_size=len(block)),
            csv.ParseOptions(quote_char=False),
            csv.ConvertOptions(column_types=types, include_columns=list(types), null_values=["NA"]),
        )
        return table.combine_chunks().to_batches()[0]

    def feed(self, column: pa.Array, text: bool) -> np.ndarray:
        """[rows, 1], a missing number as NaN."""
        if not text and column.type == pa.string():
            missing = pc.equal(column, "NA")
            column = pc.if_else(missing, pa.scalar(None, pa.string()), column).cast(pa.float32())
        return column.to_numpy(zero_copy_only=False).reshape(-1, 1)


def whole_lines(block: bytes) -> pa.Array:
    """Line by line, each beginning with the line end of the one before it."""
    data = b"\n" + block[:-1]
    starts = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
    offsets = np.append(starts, len(data)).astype(np.int32)
    return pa.StringArray.from_buffers(len(starts), pa.py_buffer(offsets), pa.py_buffer(data))


def main(way: str, directory: Path, source: Path, target: Path) -> None:
    with source.open("rb") as file, target.open("wb") as output:
        header = file.readline().rstrip(b"\n")
        pipeline = Pipeline(way, directory / "model.onnx", header.decode().split(","))
        output.write(header + b",prediction,score")
        pending: deque[Future[memoryview]] = deque()
        with ThreadPoolExecutor(CALLERS) as pool:
            for block in blocks(file):
                pending.append(pool.submit(pipeline, block))
                if len(pending) > 2 * CALLERS:
                    output.write(pending.popleft().result())
            for scored in pending:
                output.write(scored.result())
        output.write(b"\n")


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
