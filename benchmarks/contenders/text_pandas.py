"""By hand: pandas chunks of 32 rows, padded to the longest, default session.

python text_pandas.py MODEL_DIR INPUT.csv OUTPUT.csv
"""

import sys
from pathlib import Path

import onnxruntime
import pandas as pd
from text_model import TextModel

directory, source, target = map(Path, sys.argv[1:])
model = TextModel(directory)
session = onnxruntime.InferenceSession(model.graph, providers=["CPUExecutionProvider"])
for number, chunk in enumerate(pd.read_csv(source, chunksize=32)):
    chunk["prediction"], chunk["score"] = model.predict(session, chunk["text"].tolist())
    chunk.to_csv(target, mode="a" if number else "w", header=number == 0, index=False)
