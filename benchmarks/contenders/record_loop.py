"""A plain loop over records: parse, score 4,096 at a time, write.

python record_loop.py orjson|fastavro[:default] MODEL_DIR INPUT OUTPUT

The session is as batchpredict's; with `:default` as onnxruntime makes it, with spinning threads.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import fastavro
import numpy as np
import onnxruntime
import orjson

BATCH_ROWS = 4096


def scored(session: onnxruntime.InferenceSession, records: Iterable[dict]) -> Iterator[dict]:
    """The records with `prediction` and `score`; a missing number is NaN to the graph."""
    names = [tensor.name for tensor in session.get_inputs()]
    records = iter(records)
    while batch := list(islice(records, BATCH_ROWS)):
        feeds = {n: np.array([[record[n]] for record in batch], np.float32) for n in names}
        labels, probabilities = session.run(["label", "probabilities"], feeds)
        scores = probabilities.max(axis=1).tolist()
        for record, label, score in zip(batch, labels, scores, strict=True):
            record["prediction"], record["score"] = label, score
            yield record


def over_orjson(session: onnxruntime.InferenceSession, source: Path, target: Path) -> None:
    with source.open("rb") as file, target.open("wb") as output:
        for record in scored(session, map(orjson.loads, file)):
            output.write(orjson.dumps(record) + b"\n")


def over_fastavro(session: onnxruntime.InferenceSession, source: Path, target: Path) -> None:
    with source.open("rb") as file, target.open("wb") as output:
        reader = fastavro.reader(file)
        schema = reader.writer_schema
        added = [{"name": "prediction", "type": "string"}, {"name": "score", "type": "float"}]
        schema = {**schema, "fields": [*schema["fields"], *added]}
        fastavro.writer(output, schema, scored(session, reader), codec=reader.codec)


if __name__ == "__main__":
    way, _, kind = sys.argv[1].partition(":")
    directory, source, target = map(Path, sys.argv[2:])
    options = onnxruntime.SessionOptions()
    if kind != "default":
        options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(directory / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    (over_orjson if way == "orjson" else over_fastavro)(session, source, target)
