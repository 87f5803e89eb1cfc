"""Train a linear text classifier and export it as an ONNX graph that reads raw strings.

TF-IDF over character n-grams and a calibrated linear support vector machine, in one
scikit-learn pipeline. The graph splits and counts by itself, so it needs no tokenizer files:

    python examples/train_linear_model.py --input_file=descriptions.parquet \
        --label_column=relevant --label=0=other --label=1=game

Needs click, pandas, pyarrow, scikit-learn, skl2onnx (with protobuf < 7) and onnxruntime.
"""

import json
from pathlib import Path

import click
import numpy as np
import onnx
import onnxruntime as ort
import pandas as pd
from skl2onnx import to_onnx
from skl2onnx.common.data_types import StringTensorType
from sklearn.calibration import CalibratedClassifierCV
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import accuracy_score, f1_score
from sklearn.pipeline import Pipeline
from sklearn.svm import LinearSVC

SHORTEST, LONGEST = 2, 5  # characters in an n-gram
OPSET = {"": 18, "ai.onnx.ml": 3}

# What the model must answer, checked whenever it is loaded. Texts it is not too sure about: a
# score of 1.000000 would hide most changes.
GOLDEN_TEXTS = [
    "Learn to type: letters fall from the sky and you have to hit them in time.",
    "Ein Programm, das die Ergebnisse von Schachturnieren verwaltet und Paarungen auslost.",
    "Entraînez votre mémoire en retrouvant les paires de cartes cachées.",
    "Программа для записи шахматных партий и их разбора.",
]


def ngrams(text: str) -> list[str]:
    """Every n-gram of the lower-case text, white space as it is.

    scikit-learn's own `char` analyzer folds runs of white space into one blank and lowers a
    word at a time (a final sigma, a dotted I), which no ONNX operator does. This one splits
    exactly as the exported graph does.
    """
    text = "".join(character.lower()[0] for character in text)
    return [
        text[start : start + length]
        for length in range(SHORTEST, LONGEST + 1)
        for start in range(len(text) - length + 1)
    ]


def vectorizer(vocabulary: list[str] | None = None, min_texts: int = 1) -> TfidfVectorizer:
    """Plain counts: skl2onnx turns `sublinear_tf`, which is 1 + log(n), into log(1 + n)."""
    return TfidfVectorizer(
        analyzer=ngrams, vocabulary=vocabulary, min_df=min_texts, dtype=np.float32
    )


def choose_ngrams(
    texts: pd.Series, labels: pd.Series, count: int, min_texts: int, seed: int
) -> list[str]:
    """The n-grams to which a classifier over all of them gives the largest weights.

    The frequent ones (scikit-learn's `max_features`) are worse by a point at the same size.
    """
    everything = vectorizer(min_texts=min_texts)
    classifier = LinearSVC(random_state=seed).fit(everything.fit_transform(texts), labels)
    weights = np.abs(classifier.coef_).max(axis=0)
    best = np.argsort(-weights, kind="stable")[:count]
    return sorted(everything.get_feature_names_out()[best])


def build_pipeline(vocabulary: list[str], seed: int) -> Pipeline:
    classifier = CalibratedClassifierCV(LinearSVC(random_state=seed), ensemble=False, cv=5)
    return Pipeline([("tfidf", vectorizer(vocabulary)), ("classifier", classifier)])


def export(pipeline: Pipeline, locale: str) -> bytes:
    """A graph with the input `text` and the outputs `label` and `probabilities`.

    The exporter pads short texts with "#", which n-grams can hold: a text's score would then
    depend on the longest text beside it. No token is longer than one character, so a longer
    pad value is never counted. The range of n-grams is for the exporter alone; scikit-learn
    calls `ngrams`.
    """
    pipeline.named_steps["tfidf"].set_params(ngram_range=(SHORTEST, LONGEST))
    model = to_onnx(
        pipeline,
        initial_types=[("text", StringTensorType([None, 1]))],
        options={
            TfidfVectorizer: {"tokenexp": "(?s).", "locale": locale},
            id(pipeline): {"zipmap": False},
        },
        target_opset=OPSET,
        name="relevance-linear",
    )
    (tokenizer,) = (node for node in model.graph.node if node.op_type == "Tokenizer")
    for attribute in tokenizer.attribute:
        if attribute.name == "pad_value":
            attribute.s = b"<pad>"
    onnx.checker.check_model(model)
    return bytes(in_order(model).SerializeToString())


def in_order(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with its operator sets sorted; skl2onnx lists them in the order of a set."""
    imports = sorted(model.opset_import, key=lambda imported: imported.domain)
    del model.opset_import[:]
    model.opset_import.extend(imports)
    return model


def score(session: ort.InferenceSession, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities. The counts are dense, so a large batch is a large matrix."""
    batches = [texts[start : start + 64] for start in range(0, len(texts), 64)]
    answers = [
        session.run(["label", "probabilities"], {"text": np.array(batch, dtype=object)[:, None]})
        for batch in batches
    ]
    return (
        np.concatenate([label for label, _ in answers]),
        np.concatenate([probabilities for _, probabilities in answers]),
    )


def measure(truth: pd.Series, predicted: pd.Series, positive: str) -> dict[str, float | int]:
    f1 = f1_score(truth, predicted, pos_label=positive, zero_division=np.nan)
    return {
        "rows": len(truth),
        "accuracy": round(float(accuracy_score(truth, predicted)), 4),
        "f1": round(float(f1), 4),
    }


def report(
    pipeline: Pipeline, session: ort.InferenceSession, test: pd.DataFrame, group: str, positive: str
) -> dict[str, object]:
    """Figures of the graph on the test rows, and how far it is from scikit-learn."""
    label, probabilities = score(session, test["text"].tolist())
    test = test.assign(predicted=label)
    groups = list(test.groupby(group)) if group in test else []
    difference = np.abs(probabilities - pipeline.predict_proba(test["text"])).max()
    return {
        "test": measure(test["label"], test["predicted"], positive),
        "by_" + group: {
            str(name): measure(rows["label"], rows["predicted"], positive) for name, rows in groups
        },
        "against_scikit_learn": {
            "different_labels": int((label != pipeline.predict(test["text"])).sum()),
            "largest_difference": float(difference),
        },
    }


def manifest(session: ort.InferenceSession, name: str) -> str:
    """batchpredict.toml, with what this very graph answers to GOLDEN_TEXTS."""
    parts = [f'name = {json.dumps(name)}\nversion = "1"\n']
    for text, label, chances in zip(GOLDEN_TEXTS, *score(session, GOLDEN_TEXTS), strict=True):
        parts.append(
            f"\n[[golden]]\nrow = {{ text = {json.dumps(text, ensure_ascii=False)} }}\n"
            f"prediction = {json.dumps(label)}\nscore = {chances.max():.6f}\n"
        )
    return "".join(parts)


def read_table(
    path: Path, text_column: str, label_column: str, names: dict[str, str]
) -> pd.DataFrame:
    """The table with the columns `text` and `label`; labels become strings, renamed if told."""
    table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    labels = table[label_column].astype(str).replace(names)
    return table.assign(text=table[text_column], label=labels)


@click.command()
@click.option("--input_file", required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--output_dir",
    default=Path(__file__).parent / "models" / "relevance-linear",
    type=click.Path(path_type=Path),
)
@click.option("--text_column", default="text", show_default=True)
@click.option("--label_column", default="label", show_default=True)
@click.option("--split_column", default="split", show_default=True, help="Holds train or test.")
@click.option("--group_column", default="lang", show_default=True, help="For figures per group.")
@click.option("--label", "names", multiple=True, help="VALUE=NAME: a value's name as a label.")
@click.option("--positive", default="game", show_default=True, help="The label F1 is about.")
@click.option("--ngrams", "count", default=20_000, show_default=True, help="Size of the model.")
@click.option("--min_texts", default=20, show_default=True, help="Ignore rarer n-grams.")
@click.option("--locale", default="C.UTF-8", show_default=True, help="For lower case.")
@click.option("--seed", default=0, show_default=True)
def main(
    input_file: Path, output_dir: Path, text_column: str, label_column: str, split_column: str,
    group_column: str, names: tuple[str, ...], positive: str, count: int, min_texts: int,
    locale: str, seed: int,
) -> None:  # fmt: skip
    """Train, export, check against scikit-learn and write model.onnx and batchpredict.toml."""
    renamed = dict(name.split("=", 1) for name in names)
    table = read_table(input_file, text_column, label_column, renamed)
    train, test = (table[table[split_column] == side] for side in ("train", "test"))
    vocabulary = choose_ngrams(train["text"], train["label"], count, min_texts, seed)
    pipeline = build_pipeline(vocabulary, seed).fit(train["text"], train["label"])

    model = export(pipeline, locale)
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "model.onnx").write_bytes(model)
    (output_dir / "batchpredict.toml").write_text(
        manifest(session, output_dir.name), encoding="utf-8"
    )
    figures = report(pipeline, session, test, group_column, positive)
    click.echo(json.dumps({"bytes": len(model), **figures}, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
