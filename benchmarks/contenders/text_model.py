"""What every text contender needs: tokenizer, labels and probabilities of a model directory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


class TextModel:
    """A Hugging Face export without its session. `text(t)` is `t` with the model's prompt."""

    def __init__(self, directory: Path) -> None:
        self.graph = str(directory / "model.onnx")
        config = json.loads((directory / "config.json").read_text())
        self.labels = np.array([name for _, name in sorted(config["id2label"].items())])
        self.pad_id = config.get("pad_token_id", 0)
        limits = json.loads((directory / "tokenizer_config.json").read_text())
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(limits["model_max_length"])
        prompts = directory / "config_sentence_transformers.json"
        self._prompt = ""
        if prompts.exists():
            stated = json.loads(prompts.read_text())
            self._prompt = stated["prompts"][stated["default_prompt_name"]]

    def text(self, text: str) -> str:
        return self._prompt + text

    def encode(self, texts: list[str], names: list[str]) -> dict[str, np.ndarray]:
        """Feeds for one batch, padded to its longest text."""
        self.tokenizer.enable_padding(pad_id=self.pad_id)
        encodings = self.tokenizer.encode_batch([self.text(text) for text in texts])
        arrays = {
            "input_ids": [e.ids for e in encodings],
            "attention_mask": [e.attention_mask for e in encodings],
            "token_type_ids": [e.type_ids for e in encodings],
        }
        return {name: np.array(arrays[name], np.int64) for name in names}

    def predict(
        self, session: onnxruntime.InferenceSession, texts: list[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Labels and their probabilities of one batch."""
        names = [tensor.name for tensor in session.get_inputs()]
        return self.decide(session.run(["logits"], self.encode(texts, names))[0])

    def decide(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = powers / powers.sum(axis=1, keepdims=True)
        return self.labels[probabilities.argmax(axis=1)], probabilities.max(axis=1)
