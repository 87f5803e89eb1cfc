"""The limit for text: tokens ready, sorted over the whole file, nothing but the session.

python text_limit.py tokenize MODEL_DIR INPUT.csv TOKENS.npz
python text_limit.py sweep MODEL_DIR TOKENS.npz BEST.json
python text_limit.py score MODEL_DIR TOKENS.npz BEST.json OUTPUT.npz

`sweep` scores the first rows at each setting, interleaved, and keeps the one with the most rows
per CPU second. `score` writes labels, and beside them a receipt with its callers' CPU seconds.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
from text_model import TextModel

SWEEP_ROWS = 200
SWEEP_PASSES = 2
# Padded tokens in a batch, callers side by side, the session's threads for each.
SETTINGS = [(tokens, 2, 1) for tokens in (128, 192, 256, 384, 512, 1024)] + [(256, 1, 2)]


def open_session(graph: str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def batches_of(lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Longest first; a batch is as wide as its first row."""
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        rows = max(1, tokens // int(lengths[order[start]]))
        batches.append(order[start : start + rows])
        start += rows
    return batches


class Limit:
    """Token ids [rows, widest] and their lengths, and a session per number of threads."""

    def __init__(self, directory: Path, tokens: Path, rows: int | None = None) -> None:
        self.model = TextModel(directory)
        with np.load(tokens) as stored:
            self.ids, self.lengths = stored["ids"][:rows], stored["lengths"][:rows]
        self.sessions: dict[int, onnxruntime.InferenceSession] = {}

    def score(self, tokens: int, callers: int, threads: int) -> tuple[np.ndarray, float]:
        """Logits [rows, labels], and CPU seconds from cutting batches to scattering scores.

        With one thread per caller that is the callers' own; else the process's.
        """
        if threads not in self.sessions:
            self.sessions[threads] = open_session(self.model.graph, threads)
        session = self.sessions[threads]
        names = [tensor.name for tensor in session.get_inputs()]
        clock = time.thread_time if threads == 1 else time.process_time
        begin = clock()
        logits = np.empty((len(self.lengths), len(self.model.labels)), np.float32)
        batches = batches_of(self.lengths, tokens)

        def run(rows: np.ndarray) -> float:
            began = clock()
            lengths = self.lengths[rows]
            width = int(lengths[0])
            real = (np.arange(width) < lengths[:, None]).astype(np.int64)
            ids = self.ids[rows, :width]
            arrays = {"input_ids": ids, "attention_mask": real}
            if "token_type_ids" in names:
                arrays["token_type_ids"] = np.zeros_like(ids)
            logits[rows] = session.run(["logits"], {n: arrays[n] for n in names})[0]
            return clock() - began

        planning = clock() - begin
        with ThreadPoolExecutor(callers) as pool:
            seconds = sum(pool.map(run, batches)) + planning
        return logits, seconds if threads == 1 else clock() - begin


def tokenize(directory: Path, source: Path, target: Path) -> None:
    model = TextModel(directory)
    with source.open(newline="") as file:
        texts = [model.text(row["text"]) for row in csv.DictReader(file)]
    encodings = model.tokenizer.encode_batch(texts)
    lengths = np.array([len(e.ids) for e in encodings])
    ids = np.full((len(texts), lengths.max()), model.pad_id, np.int64)
    for row, encoding in enumerate(encodings):
        ids[row, : lengths[row]] = encoding.ids
    np.savez(target, ids=ids, lengths=lengths)


def sweep(directory: Path, tokens: Path, best: Path) -> None:
    limit = Limit(directory, tokens, SWEEP_ROWS)
    seconds = dict.fromkeys(SETTINGS, 0.0)
    for _ in range(SWEEP_PASSES):
        for setting in SETTINGS:
            seconds[setting] += limit.score(*setting)[1]
    rows = SWEEP_ROWS * SWEEP_PASSES
    speeds = {",".join(map(str, s)): round(rows / t, 1) for s, t in seconds.items()}
    print("tokens,callers,threads: rows per CPU second", speeds)
    winner = min(SETTINGS, key=lambda setting: seconds[setting])
    best.write_text(json.dumps({"setting": winner, "rows_per_cpu_second": speeds}))


def score(directory: Path, tokens: Path, best: Path, target: Path) -> None:
    setting = json.loads(best.read_text())["setting"]
    limit = Limit(directory, tokens)
    began = time.perf_counter()
    logits, seconds = limit.score(*setting)
    wall = time.perf_counter() - began
    labels, _ = limit.model.decide(logits)
    np.savez(target, prediction=labels)
    receipt = {"cpu_seconds": {"infer": seconds}, "stages": {"infer": wall}}
    Path(f"{target}.receipt.json").write_text(json.dumps(receipt))


if __name__ == "__main__":
    {"tokenize": tokenize, "sweep": sweep, "score": score}[sys.argv[1]](*map(Path, sys.argv[2:]))
