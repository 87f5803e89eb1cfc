#!/usr/bin/env python3
"""Train a small multilingual text classifier and export it as a model directory.

The input is a CSV or Parquet file with a text and a label per row; the output is a directory
that `batchpredict` scores as it is: `model.onnx`, `tokenizer.json`, `tokenizer_config.json`,
`config.json` and, with `--golden`, `batchpredict.toml`. The figures printed at the end are those
of the exported graph, run one batch at a time by ONNX Runtime.

The product never imports what this needs: `pip install torch onnx onnxscript` beside it. The
bundled example took about fourteen minutes of CPU time. The same rows, settings (with the number of
threads), versions and kind of CPU give the same model.
"""

import argparse
import json
import math
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]  # [PAD] is id 0
TEST = "test"
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。\uff01\uff1f])")
RARE_WORD = re.compile(r"[a-z][a-z0-9+._-]{3,}")

Ids = list[list[int]]


@dataclass(frozen=True)
class Settings:
    """What shapes the model and its training, beside the data."""

    vocabulary: int = 12_000
    alphabet: int = 3_500
    max_length: int = 128
    embedding: int = 64
    width: int = 128
    heads: int = 4
    feed_forward: int = 512
    layers: int = 2
    dropout: float = 0.1
    epochs: int = 5
    batch_tokens: int = 4096
    learning_rate: float = 2e-3
    smoothing: float = 0.05
    subword_dropout: float = 0.1
    shorten: float = 0.6
    balance: float = 0.5
    auxiliary_weight: float = 0.3
    validation: float = 0.025
    precision: str = "float32"  # or bfloat16: of the training only, faster on a CPU with AMX
    threads: int = 1
    seed: int = 7


@dataclass(frozen=True)
class Rows:
    """Texts, their label numbers and, for the auxiliary task, a second label number."""

    texts: list[str]
    labels: np.ndarray
    auxiliary: np.ndarray

    def take(self, index: np.ndarray) -> "Rows":
        return Rows([self.texts[i] for i in index], self.labels[index], self.auxiliary[index])


# --- data -------------------------------------------------------------------------------------


def read_table(path: Path, needed: list[str]) -> pd.DataFrame:
    """Columns are kept as text, so that a label `1` is the same in CSV and Parquet."""
    parquet = path.suffix == ".parquet"
    table = pd.read_parquet(path) if parquet else pd.read_csv(path, dtype=str, na_filter=False)
    missing = [name for name in needed if name not in table.columns]
    if missing:
        raise SystemExit(f"{path}: no column {missing}; there are {list(table.columns)}")
    return table[needed].astype(str).reset_index(drop=True)


def related_rows(texts: list[str], most: int = 32, rarest: int = 8) -> np.ndarray:
    """A group number per row: rows that share two rare Latin words belong together.

    Stands in for a group column. Translations of one description keep its names and its
    technical words, and those rare words are what a leak into a validation set would be.
    """
    words = [set(RARE_WORD.findall(text.lower())) for text in texts]
    seen_in = Counter(word for row in words for word in row)
    parent = list(range(len(texts)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first: dict[tuple[str, ...], int] = {}
    for row, found in enumerate(words):
        rare = sorted((seen_in[word], word) for word in found if 1 < seen_in[word] <= most)
        for pair in combinations(sorted(word for _, word in rare[:rarest]), 2):
            parent[root(row)] = root(first.setdefault(pair, row))
    return np.array([root(row) for row in range(len(texts))])


def cut_validation(groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    """True for validation rows; a group is never on both sides. Very large groups stay out."""
    names, sizes = np.unique(groups, return_counts=True)
    small = names[sizes <= max(len(groups) // 200, 1)]
    np.random.default_rng(seed).shuffle(small)
    size_of = dict(zip(names.tolist(), sizes.tolist(), strict=True))
    total = np.cumsum([size_of[name] for name in small.tolist()])
    return np.isin(groups, small[total <= share * len(groups)])


def shortened(text: str, draw: random.Random) -> str:
    """The first line, the first sentence after it, or both: what a short description looks like."""
    head, _, body = text.partition("\n")
    sentence = SENTENCE_END.split(body.strip(), maxsplit=1)[0]
    choice = draw.random()
    if choice < 0.5 or len(sentence) < 20:
        return head if body else SENTENCE_END.split(head, maxsplit=1)[0]
    return sentence if choice < 0.7 else f"{head}\n{sentence}"


def draw_epoch(labels: np.ndarray, balance: float, draw: np.random.Generator) -> np.ndarray:
    """Row numbers of one epoch: the rarest class whole, a fresh sample of the others.

    A class of n rows keeps (rarest / n) ** balance of them: 0 keeps the shares found in the
    data, 1 makes all classes equally frequent, 0.5 lies half way.
    """
    counts = np.bincount(labels)
    keep = (counts[counts > 0].min() / np.maximum(counts, 1)) ** balance
    return np.flatnonzero(draw.random(len(labels)) < keep[labels])


# --- tokenizer --------------------------------------------------------------------------------


def alphabet(texts: list[str], normalizer: normalizers.Normalizer, size: int) -> list[str]:
    """The most frequent characters. The trainer's own limit breaks ties at random."""
    seen = Counter(char for text in texts for char in normalizer.normalize_str(text))
    seen["\u2581"] = seen.pop(" ", 0)  # what Metaspace puts in a space's place
    return [
        char for char, _ in sorted(seen.items(), key=lambda found: (-found[1], found[0]))[:size]
    ]


def train_tokenizer(texts: list[str], settings: Settings) -> Tokenizer:
    """A lower-casing BPE whose every encoding has at least [CLS] and [SEP], even of no text."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        initial_alphabet=alphabet(texts, tokenizer.normalizer, settings.alphabet),
        limit_alphabet=settings.alphabet,
        special_tokens=SPECIAL,
        max_token_length=16,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, SPECIAL.index(name)) for name in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str], max_length: int) -> Ids:
    """Truncation is switched off again, so that it is never saved with the tokenizer."""
    tokenizer.enable_truncation(max_length)
    found = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
    tokenizer.no_truncation()
    return found


def merged_from(tokenizer: Tokenizer) -> dict[int, tuple[int, int]]:
    """The two word pieces that each piece was merged from."""
    model = json.loads(tokenizer.to_str())["model"]
    number = model["vocab"]
    return {number[left + right]: (number[left], number[right]) for left, right in model["merges"]}


def taken_apart(
    ids: Ids, parts: dict[int, tuple[int, int]], share: float, draw: random.Random
) -> Ids:
    """Some pieces replaced by the two they were merged from: other spellings of the same words.

    The effect of BPE dropout, which the tokenizers library cannot do from a seed.
    """
    return [
        [
            part
            for piece in row
            for part in (parts[piece] if piece in parts and draw.random() < share else (piece,))
        ]
        for row in ids
    ]


def batches(ids: Ids, tokens: int, draw: np.random.Generator | None = None) -> Iterator[np.ndarray]:
    """Row numbers of rows of similar length, at most `tokens` with padding; shuffled by `draw`."""
    lengths = np.array([len(row) for row in ids])
    order = np.argsort(lengths if draw is None else lengths + draw.random(len(ids)), kind="stable")
    cuts, start = [], 0
    for end in range(1, len(order) + 1):
        if end == len(order) or lengths[order[end]] * (end + 1 - start) > tokens:
            cuts.append(order[start:end])
            start = end
    if draw is not None:
        draw.shuffle(cuts)
    yield from cuts


def padded(ids: Ids) -> tuple[np.ndarray, np.ndarray]:
    """`input_ids` and `attention_mask`, padded to the longest of these rows."""
    longest = max(len(row) for row in ids)
    tokens = np.zeros((len(ids), longest), dtype=np.int64)
    mask = np.zeros_like(tokens)
    for number, row in enumerate(ids):
        tokens[number, : len(row)] = row
        mask[number, : len(row)] = 1
    return tokens, mask


# --- model ------------------------------------------------------------------------------------


class Block(nn.Module):  # type: ignore[misc]
    """Attention and a feed-forward part, each normalised before and added to what came in."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        width = settings.width
        self.heads = settings.heads
        self.before_attention, self.before_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.widen = nn.Linear(width, settings.feed_forward)
        self.narrow = nn.Linear(settings.feed_forward, width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """`bias` [batch, 1, 1, sequence] is 0 for tokens and hugely negative for padding."""
        joint = self.query_key_value(self.before_attention(x))
        query, key, value = joint.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + bias
        attended = (weights.softmax(-1) @ value).transpose(1, 2).flatten(2)
        x = x + self.mix(attended)
        return x + self.narrow(functional.relu(self.widen(self.before_forward(x))))


class TextClassifier(nn.Module):  # type: ignore[misc]
    """Narrow token embeddings widened once, a few blocks, mean and maximum over the tokens.

    Padding has weight zero in the attention, the mean and the maximum, so a row's logits do not
    depend on how far it was padded: with ONNX Runtime to the bit, since the mean ends a running
    sum, whose order of additions is fixed; a plain sum groups them by the padded length.
    """

    def __init__(self, settings: Settings, labels: int, auxiliary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(settings.vocabulary, settings.embedding, padding_idx=0)
        self.positions = nn.Parameter(torch.randn(settings.max_length, settings.width) * 0.02)
        self.widen = nn.Linear(settings.embedding, settings.width, bias=False)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(settings.width)
        self.dropout = nn.Dropout(settings.dropout)
        self.head = nn.Linear(2 * settings.width, labels)
        self.auxiliary = nn.Linear(2 * settings.width, auxiliary)
        nn.init.normal_(self.tokens.weight, std=settings.embedding**-0.5)

    def features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask.to(torch.float32)
        bias = ((mask - 1.0) * 1e9)[:, None, None, :]
        x = self.widen(self.tokens(input_ids)) + self.positions[: input_ids.shape[1]]
        if self.training:  # whole tokens drop out
            x = x * self.dropout(torch.ones_like(mask)).unsqueeze(-1)
        for block in self.blocks:
            x = block(x, bias)
        x, column = self.norm(x), mask.unsqueeze(-1)
        mean = (x * column).cumsum(1)[:, -1] / column.sum(1).clamp(min=1.0)
        return torch.cat([mean, (x + (column - 1.0) * 1e9).amax(1)], dim=-1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.features(input_ids, attention_mask))


# --- training ---------------------------------------------------------------------------------


def learning_rate(done: float) -> float:
    """Share of the highest rate after `done` of the training: up for 8 %, then a cosine to 0."""
    return done / 0.08 if done < 0.08 else 0.5 * (1 + math.cos(math.pi * (done - 0.08) / 0.92))


def loss_of(model: TextClassifier, ids: Ids, rows: Rows, settings: Settings) -> Tensor:
    features = model.dropout(model.features(*(torch.from_numpy(part) for part in padded(ids))))
    smoothing = settings.smoothing
    loss = functional.cross_entropy(
        model.head(features), torch.from_numpy(rows.labels), label_smoothing=smoothing
    )
    if model.auxiliary.out_features < 2:
        return loss
    other = functional.cross_entropy(
        model.auxiliary(features), torch.from_numpy(rows.auxiliary), label_smoothing=smoothing
    )
    return loss + settings.auxiliary_weight * other


def train_epoch(
    model: TextClassifier,
    optimizer: torch.optim.Optimizer,
    tokenizer: Tokenizer,
    rows: Rows,
    epoch: int,
    settings: Settings,
) -> float:
    """The mean loss. Each epoch draws other rows, other short versions and other word pieces."""
    draw, text_draw = (
        np.random.default_rng([settings.seed, epoch]),
        random.Random(settings.seed + epoch),
    )
    drawn = rows.take(draw_epoch(rows.labels, settings.balance, draw))
    texts = [
        shortened(text, text_draw) if text_draw.random() < settings.shorten else text
        for text in drawn.texts
    ]
    ids, parts = encode(tokenizer, texts, settings.max_length), merged_from(tokenizer)
    for _ in range(2):
        ids = taken_apart(ids, parts, settings.subword_dropout, text_draw)
    ids = [row[: settings.max_length] for row in ids]
    plan, total = list(batches(ids, settings.batch_tokens, draw)), 0.0
    model.train()
    for number, index in enumerate(plan):
        for group in optimizer.param_groups:
            share = learning_rate((epoch + number / len(plan)) / settings.epochs)
            group["lr"] = settings.learning_rate * share
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bfloat16"):
            loss = loss_of(model, [ids[i] for i in index], drawn.take(index), settings)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += loss.item() * len(index)
    return total / len(drawn.texts)


def train(rows: Rows, held_out: Rows, tokenizer: Tokenizer, settings: Settings) -> TextClassifier:
    """The weights of the epoch that does best on the rows held out."""
    classes = [int(part.max()) + 1 for part in (rows.labels, rows.auxiliary)]
    model = TextClassifier(settings, classes[0], classes[1])
    optimizer = torch.optim.AdamW(
        model.parameters(), weight_decay=0.02, betas=(0.9, 0.98), fused=True
    )
    ids = encode(tokenizer, held_out.texts, settings.max_length)
    best, kept, started = -1.0, model.state_dict(), time.monotonic()
    for epoch in range(settings.epochs):
        loss = train_epoch(model, optimizer, tokenizer, rows, epoch, settings)
        found = torch_logits(model, ids).argmax(1)
        accuracy, f1 = scores(held_out.labels, found)
        print(
            f"epoch {epoch + 1:2}  loss {loss:.4f}  held out: accuracy {accuracy:.4f}, F1 {f1:.4f}"
            f"  {time.monotonic() - started:.0f} s",
            flush=True,
        )
        if f1 >= best:
            best = f1
            kept = {name: part.clone() for name, part in model.state_dict().items()}
    model.load_state_dict(kept)
    return model


def torch_logits(model: TextClassifier, ids: Ids) -> np.ndarray:
    model.eval()
    rows: list[np.ndarray] = [np.empty(0)] * len(ids)
    with torch.inference_mode():
        for index in batches(ids, 8192):
            feeds = (torch.from_numpy(part) for part in padded([ids[i] for i in index]))
            for row, logits in zip(index, model(*feeds).numpy(), strict=True):
                rows[row] = logits
    return np.array(rows)


def scores(truth: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """Accuracy and F1: of label 1 if there are two labels, else the mean over the labels."""
    labels = [1] if max(truth.max(initial=1), found.max(initial=1)) < 2 else np.unique(truth)
    f1 = []
    for label in labels:
        hits = np.sum((truth == label) & (found == label))
        f1.append(2 * hits / max(np.sum(truth == label) + np.sum(found == label), 1))
    return float(np.mean(truth == found)), float(np.mean(f1))


# --- export -----------------------------------------------------------------------------------


def export(model: TextClassifier, path: Path) -> None:
    """One file, fp32, both axes of both inputs free, without the exporter's stack traces."""
    model.eval()
    example = {  # two tensors: given one twice, the exporter takes both inputs for the same
        "input_ids": torch.randint(len(SPECIAL), 1000, (2, 8)),
        "attention_mask": torch.tensor([[1] * 8, [1] * 5 + [0] * 3]),
    }
    axes = {0: "batch", 1: "sequence"}
    program = torch.onnx.export(
        model,
        kwargs=example,
        input_names=list(example),
        output_names=["logits"],
        dynamic_shapes=dict.fromkeys(example, axes),
        opset_version=18,
        dynamo=True,
        external_data=False,
    )
    assert program is not None
    graph = program.model_proto
    graph.ir_version = min(graph.ir_version, 10)
    for part in (graph, graph.graph, *graph.graph.node, *graph.graph.value_info):
        del part.metadata_props[:]
    onnx.checker.check_model(graph, full_check=True)
    onnx.save_model(graph, path)


def write_directory(
    model: TextClassifier, tokenizer: Tokenizer, labels: list[str], settings: Settings, out: Path
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    export(model, out / "model.onnx")
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    config = {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "problem_type": "single_label_classification",
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": settings.width,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "intermediate_size": settings.feed_forward,
        "max_position_embeddings": settings.max_length,
        "pad_token_id": 0,
    }
    tokens = dict(zip(["pad_token", "unk_token", "cls_token", "sep_token"], SPECIAL, strict=True))
    tokenizer_config = {"model_max_length": settings.max_length, "padding_side": "right", **tokens}
    for name, content in (("config.json", config), ("tokenizer_config.json", tokenizer_config)):
        (out / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


# --- what was exported ------------------------------------------------------------------------


class Exported:
    """The directory as a user of it sees it: no PyTorch, only its files."""

    def __init__(self, directory: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(directory / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        config = json.loads((directory / "tokenizer_config.json").read_text("utf-8"))
        self.max_length = int(config["model_max_length"])

    def probabilities(self, texts: list[str], tokens: int = 512) -> np.ndarray:
        """One row per text; `tokens` bounds a batch with its padding, 0 runs row by row."""
        ids = encode(self.tokenizer, texts, self.max_length)
        rows: list[np.ndarray] = [np.empty(0)] * len(ids)
        for index in batches(ids, tokens):
            names, arrays = ("input_ids", "attention_mask"), padded([ids[i] for i in index])
            (logits,) = self.session.run(["logits"], dict(zip(names, arrays, strict=True)))
            for row, values in zip(index, np.asarray(logits, dtype=np.float64), strict=True):
                rows[row] = np.exp(values - values.max())
        return np.array([row / row.sum() for row in rows])


def report(
    exported: Exported, table: pd.DataFrame, labels: np.ndarray, text: str, lang: str
) -> None:
    """A Markdown table: all rows, each language, and all rows cut to their first line."""
    started = time.process_time()
    found = exported.probabilities(table[text].tolist()).argmax(1)
    rate = len(table) / (time.process_time() - started)
    first_lines = [value.partition("\n")[0] for value in table[text]]
    short = exported.probabilities(first_lines).argmax(1)
    parts = [("all", np.full(len(table), True), found), ("first line only", labels >= 0, short)]
    if lang:
        counts = table[lang].value_counts()
        parts += [(str(name), (table[lang] == name).to_numpy(), found) for name in counts.index]
    print(f"\n{rate:.0f} rows per CPU second\n\n| rows | n | accuracy | F1 |\n|---|--:|--:|--:|")
    for name, chosen, answers in parts:
        accuracy, f1 = scores(labels[chosen], answers[chosen])
        print(f"| {name} | {chosen.sum()} | {accuracy:.3f} | {f1:.3f} |")


def write_manifest(exported: Exported, labels: list[str], golden: list[str], out: Path) -> None:
    """Golden rows: scored once after loading, a row at a time, so that a swapped file is seen."""
    lines = [f"name = {json.dumps(out.resolve().name)}", 'version = "1"']
    if golden:
        lines += ["", "# rows scored once after loading; a difference above 1e-4 stops the run"]
    for text, row in zip(golden, exported.probabilities(golden, tokens=0), strict=True):
        lines += [
            "[[golden]]",
            f"row = {{ text = {json.dumps(text, ensure_ascii=False)} }}",
            f"prediction = {json.dumps(labels[int(row.argmax())], ensure_ascii=False)}",
            f"score = {row.max():.6f}",
            "",
        ]
    (out / "batchpredict.toml").write_text("\n".join(lines).rstrip() + "\n", "utf-8")


def check_padding(exported: Exported, texts: list[str]) -> float:
    """The largest difference between a row scored alone and in a padded batch."""
    texts = ["", *texts]
    alone, together = (exported.probabilities(texts, tokens) for tokens in (0, 128 * len(texts)))
    return float(np.abs(alone - together).max())


def check_export(exported: Exported, model: TextClassifier, texts: list[str]) -> None:
    """Stops where the graph and the trained model answer differently."""
    logits = torch_logits(model, encode(exported.tokenizer, texts, exported.max_length))
    trained = torch.from_numpy(logits).softmax(-1).numpy()
    apart = float(np.abs(trained - exported.probabilities(texts)).max())
    if apart > 1e-4:
        raise SystemExit(f"the exported graph is {apart:.1e} from the trained model")


# --- command line -----------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    add = parser.add_argument
    add("--input_file", type=Path, required=True, help="CSV or Parquet")
    add("--output_dir", type=Path, required=True, help="the model directory; its name names it")
    add("--text_column", default="text")
    add("--label_column", default="label")
    add("--labels", help="names for the sorted label values, e.g. other,game")
    add("--split_column", default="", help=f"rows with `{TEST}` are for the figures only")
    add("--lang_column", default="", help="figures for each of its values")
    add("--group_column", default="", help="rows of a group are never on both sides of a cut")
    add("--auxiliary_column", default="", help="a finer label, learnt beside the label")
    add("--golden", action="append", default=[], help="a text for a golden row; repeatable")
    for name, value in vars(Settings()).items():
        add(f"--{name}", type=type(value), default=value, help=f"default {value}")
    return parser.parse_args()


def numbered(values: pd.Series) -> tuple[np.ndarray, list[str]]:
    codes, names = pd.factorize(values, sort=True)
    return codes.astype(np.int64), [str(name) for name in names]


def split(table: pd.DataFrame, options: argparse.Namespace) -> tuple[np.ndarray, ...]:
    """Row numbers to fit, to choose the epoch by, and to report on."""
    test = np.full(len(table), False)
    if options.split_column:
        test = (table[options.split_column] == TEST).to_numpy()
    rest = np.flatnonzero(~test)
    if options.group_column:
        groups, _ = numbered(table[options.group_column].iloc[rest])
    else:
        groups = related_rows(table[options.text_column].iloc[rest].tolist())
    chosen = cut_validation(groups, options.validation, options.seed)
    held_out = rest[chosen]
    return rest[~chosen], held_out, np.flatnonzero(test) if test.any() else held_out


def load(options: argparse.Namespace) -> tuple[pd.DataFrame, Rows, list[str]]:
    columns = [value for name, value in vars(options).items() if name.endswith("_column") and value]
    table = read_table(options.input_file, sorted(set(columns)))
    numbers, labels = numbered(table[options.label_column])
    auxiliary = np.zeros_like(numbers)
    if options.auxiliary_column:
        auxiliary, _ = numbered(table[options.auxiliary_column])
    if options.labels and len(options.labels.split(",")) != len(labels):
        raise SystemExit(f"--labels: the column has {len(labels)} values: {labels}")
    named = options.labels.split(",") if options.labels else labels
    return table, Rows(table[options.text_column].tolist(), numbers, auxiliary), named


def main() -> None:
    options = arguments()
    settings = Settings(**{name: getattr(options, name) for name in vars(Settings())})
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads)
    table, rows, labels = load(options)
    fit, held_out, test = split(table, options)
    print(f"{len(fit)} rows to fit, {len(held_out)} held out, {len(test)} to report on", flush=True)
    tokenizer = train_tokenizer([rows.texts[i] for i in fit], settings)
    model = train(rows.take(fit), rows.take(held_out), tokenizer, settings)
    write_directory(model, tokenizer, labels, settings, options.output_dir)
    exported = Exported(options.output_dir)
    write_manifest(exported, labels, options.golden, options.output_dir)
    texts = [rows.texts[i] for i in test[:200]]
    check_export(exported, model, texts)
    print(f"alone or in a padded batch: at most {check_padding(exported, texts):.1e} apart")
    reported = table.iloc[test]
    report(exported, reported, rows.labels[test], options.text_column, options.lang_column)


if __name__ == "__main__":
    main()
