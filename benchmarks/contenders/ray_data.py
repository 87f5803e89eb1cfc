"""Ray Data: read_csv, map_batches with one actor per core, write_csv.

python ray_data.py text|tabular MODEL_DIR INPUT.csv OUTPUT_DIR
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import ray
from pyarrow import csv
from text_model import TextModel

BATCH_ROWS = {"text": 32, "tabular": 4096}


class Predictor:
    """An actor: one session with one thread."""

    def __init__(self, way: str, directory: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(directory / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.text = TextModel(directory) if way == "text" else None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        label, score = self.score(batch)
        return {**batch, "prediction": label.astype(str), "score": score}

    def score(self, batch: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        if self.text:
            return self.text.predict(self.session, batch["text"].tolist())
        feeds = {}
        for tensor in self.session.get_inputs():
            dtype = object if tensor.type == "tensor(string)" else np.float32
            feeds[tensor.name] = batch[tensor.name].astype(dtype).reshape(-1, 1)
        label, probabilities = self.session.run(["label", "probabilities"], feeds)
        return label, probabilities.max(axis=1)


def main(way: str, directory: Path, source: Path, target: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    # Reading and writing are tasks of their own and never start where the actors hold all slots.
    ray.init(num_cpus=cores + 1, include_dashboard=False, logging_level="warning")
    # Without it the rows come out in any order.
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    rows = ray.data.read_csv(
        str(source),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(null_values=["NA"], strings_can_be_null=False),
    )
    scored = rows.map_batches(
        Predictor,
        fn_constructor_args=(way, directory),
        batch_size=BATCH_ROWS[way],
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=cores),
    )
    scored.write_csv(str(target))
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
