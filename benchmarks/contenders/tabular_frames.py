"""By hand: pandas chunks, or polars at once; both with the default session.

python tabular_frames.py pandas|polars MODEL_DIR INPUT.csv OUTPUT.csv
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime

CHUNK_ROWS = 50_000


def score(session: onnxruntime.InferenceSession, frame) -> tuple[np.ndarray, np.ndarray]:
    feeds = {}
    for tensor in session.get_inputs():
        dtype = object if tensor.type == "tensor(string)" else np.float32
        feeds[tensor.name] = frame[tensor.name].to_numpy().astype(dtype).reshape(-1, 1)
    label, probabilities = session.run(["label", "probabilities"], feeds)
    return label, probabilities.max(axis=1)


def with_pandas(session: onnxruntime.InferenceSession, source: Path, target: Path) -> None:
    import pandas as pd

    for number, chunk in enumerate(pd.read_csv(source, chunksize=CHUNK_ROWS)):
        chunk["prediction"], chunk["score"] = score(session, chunk)
        chunk.to_csv(target, mode="a" if number else "w", header=number == 0, index=False)


def with_polars(session: onnxruntime.InferenceSession, source: Path, target: Path) -> None:
    import polars as pl

    frame = pl.read_csv(source, null_values="NA", infer_schema_length=10_000)
    label, score_ = score(session, frame)
    added = [pl.Series("prediction", label.tolist(), dtype=pl.String), pl.Series("score", score_)]
    frame.with_columns(added).write_csv(target, null_value="NA")


if __name__ == "__main__":
    way, directory, source, target = sys.argv[1], *map(Path, sys.argv[2:])
    session = onnxruntime.InferenceSession(
        str(directory / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    (with_pandas if way == "pandas" else with_polars)(session, source, target)
