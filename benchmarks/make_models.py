"""Make the models; runs in the `huggingface` environment.

python make_models.py WORK_DIR [MODELS_DIR]

The transformers have the exact shape of a real one and random weights: speed does not depend on
what the weights are. `optimum` exports them, so that graph and folder are what users have.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from optimum.exporters.onnx import onnx_export_from_model
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LABELS = {0: "other", 1: "game"}
MAX_LENGTH = 128
LINEAR_COLUMNS = (
    "month", "day", "sched_dep_time", "dep_delay", "sched_arr_time", "distance", "hour", "minute",
)  # fmt: skip


def distilbert() -> PreTrainedModel:
    """distilbert-base-multilingual-cased: 542 MB of float32."""
    return DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=119_547, id2label=LABELS, label2id=flipped(LABELS))
    )


def minilm() -> PreTrainedModel:
    """all-MiniLM-L6-v2: 6 layers, 384 wide."""
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=30_522,
            hidden_size=384,
            num_hidden_layers=6,
            intermediate_size=1536,
            id2label=LABELS,
            label2id=flipped(LABELS),
        )
    )


def flipped(labels: dict[int, str]) -> dict[str, int]:
    return {name: index for index, name in labels.items()}


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=30_000, special_tokens=SPECIAL)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_LENGTH,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def export(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: list[str], target: Path
) -> None:
    balance(model.eval(), tokenizer, texts)
    onnx_export_from_model(model, target, task="text-classification", do_validation=False)
    tokenizer.save_pretrained(target)


def balance(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> None:
    """Random weights answer every text alike; shift and stretch the logits so that half differ."""
    names = ["input_ids", "attention_mask"]
    with torch.no_grad():
        encoded = tokenizer(texts[:64], return_tensors="pt", padding=True, truncation=True)
        logits = model(**{name: encoded[name] for name in names}).logits
        margin = logits[:, 1] - logits[:, 0]
        stretch = 3 / margin.std()
        model.classifier.weight *= stretch
        model.classifier.bias *= stretch
        model.classifier.bias[1] -= margin.median() * stretch


def linear() -> onnx.ModelProto:
    """What skl2onnx makes of imputer, scaler and logistic regression, one input per column."""
    chance = np.random.default_rng(2013)
    count = len(LINEAR_COLUMNS)
    means = [6.5, 15.7, 1344.0, 12.6, 1536.0, 1040.0, 13.2, 26.2]
    spread = [3.4, 8.8, 467.0, 40.2, 497.0, 733.0, 4.7, 19.3]
    weights = chance.normal(size=count).tolist()
    nodes = [
        helper.make_node("Concat", LINEAR_COLUMNS, ["matrix"], axis=1),
        helper.make_node(
            "Imputer", ["matrix"], ["filled"], domain="ai.onnx.ml",
            imputed_value_floats=means, replaced_value_float=float("nan"),
        ),
        helper.make_node(
            "Scaler", ["filled"], ["scaled"], domain="ai.onnx.ml",
            offset=means, scale=[1 / s for s in spread],
        ),
        helper.make_node(
            "LinearClassifier", ["scaled"], ["label", "probabilities"], domain="ai.onnx.ml",
            classlabels_strings=["late", "on_time"],
            coefficients=[-w for w in weights] + weights,
            intercepts=[0.1, -0.1], multi_class=0, post_transform="LOGISTIC",
        ),
    ]  # fmt: skip
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, 1]) for n in LINEAR_COLUMNS
    ]
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.STRING, [None]),
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2]),
    ]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    graph = helper.make_graph(nodes, "linear", inputs, outputs)
    made = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(made)
    return made


def main(work: Path, given: Path | None) -> None:
    folder = work / "models"
    folder.mkdir(exist_ok=True)
    (folder / "linear").mkdir(exist_ok=True)
    onnx.save(linear(), folder / "linear" / "model.onnx")
    (folder / "linear" / "batchpredict.toml").write_text(
        'name = "linear"\nmissing_values = ["NA"]\n'
    )
    with (work / "inputs" / "text-3000.csv").open(newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    tokenizer = train_tokenizer(texts)
    torch.manual_seed(2013)
    for name, make in (("distilbert", distilbert), ("minilm-random", minilm)):
        export(make(), tokenizer, texts, folder / name)
    links = {"minilm": given / "relevance-minilm" if given else folder / "minilm-random"}
    if given:
        links["e5"] = given / "relevance-e5"
    for name, directory in links.items():
        (folder / name).unlink(missing_ok=True)
        if directory.is_dir():
            (folder / name).symlink_to(directory.resolve())
    (folder / "made.json").write_text(json.dumps({"real": bool(given)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2:] else None)
