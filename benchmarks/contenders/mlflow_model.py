"""A pyfunc model around an ONNX graph, which `mlflow models predict` then serves.

python mlflow_model.py MODEL_DIR SAVED_MODEL_DIR
"""

from __future__ import annotations

import sys
from pathlib import Path

import mlflow
import numpy as np
import onnxruntime
import pandas as pd
from text_model import TextModel

BATCH_ROWS = 32


class Predictor(mlflow.pyfunc.PythonModel):
    def load_context(self, context) -> None:
        directory = Path(context.artifacts["model"])
        self.session = onnxruntime.InferenceSession(
            str(directory / "model.onnx"), providers=["CPUExecutionProvider"]
        )
        names = [tensor.name for tensor in self.session.get_inputs()]
        self.text = TextModel(directory) if "input_ids" in names else None

    def predict(self, context, model_input: pd.DataFrame, params=None) -> pd.DataFrame:  # noqa: ARG002
        label, score = self.score(model_input)
        return pd.DataFrame({"prediction": label, "score": score})

    def score(self, frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        if self.text:
            texts = frame["text"].tolist()
            parts = [
                self.text.predict(self.session, texts[start : start + BATCH_ROWS])
                for start in range(0, len(texts), BATCH_ROWS)
            ]
            labels, scores = zip(*parts, strict=True)
            return np.concatenate(labels), np.concatenate(scores)
        feeds = {}
        for tensor in self.session.get_inputs():
            dtype = object if tensor.type == "tensor(string)" else np.float32
            feeds[tensor.name] = frame[tensor.name].to_numpy().astype(dtype).reshape(-1, 1)
        label, probabilities = self.session.run(["label", "probabilities"], feeds)
        return label, probabilities.max(axis=1)


if __name__ == "__main__":
    model, target = sys.argv[1:]
    here = Path(__file__).resolve()
    mlflow.pyfunc.save_model(
        target,
        python_model=Predictor(),
        artifacts={"model": str(Path(model).resolve())},
        code_paths=[str(here.parent / "text_model.py")],
    )
