"""Hugging Face's pipeline over ONNX Runtime.

python huggingface_pipeline.py sweep MODEL_DIR INPUT.csv BEST.json
python huggingface_pipeline.py BATCH_SIZE|BEST.json MODEL_DIR INPUT.csv OUTPUT.csv
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pandas as pd
from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import AutoTokenizer, pipeline

SWEEP_ROWS = 150
BATCH_SIZES = (1, 2, 4, 8, 32)


def open_pipeline(directory: str):
    model = ORTModelForSequenceClassification.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")


def sweep(directory: str, source: str, best: str) -> None:
    texts = pd.read_csv(source, nrows=SWEEP_ROWS)["text"].tolist()
    classify = open_pipeline(directory)
    seconds = dict.fromkeys(BATCH_SIZES, 0.0)
    for size in BATCH_SIZES * 2:
        begin = time.perf_counter()
        classify(texts, batch_size=size, truncation=True)
        seconds[size] += time.perf_counter() - begin
    speeds = {size: round(2 * SWEEP_ROWS / spent, 1) for size, spent in seconds.items()}
    print("batch size: rows per second", speeds)
    size = max(speeds, key=lambda size: speeds[size])
    Path(best).write_text(json.dumps({"batch_size": size, "rows_per_second": speeds}))


def score(size: str, directory: str, source: str, target: str) -> None:
    batch_size = int(size) if size.isdigit() else json.loads(Path(size).read_text())["batch_size"]
    frame = pd.read_csv(source)
    classify = open_pipeline(directory)
    results = classify(frame["text"].tolist(), batch_size=batch_size, truncation=True)
    frame["prediction"] = [result["label"] for result in results]
    frame["score"] = [result["score"] for result in results]
    frame.to_csv(target, index=False)


if __name__ == "__main__":
    if sys.argv[1] == "sweep":
        sweep(*sys.argv[2:])
    else:
        score(*sys.argv[1:])
