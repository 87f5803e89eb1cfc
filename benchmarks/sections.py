"""The contenders of each benchmark: commands that are run as whole processes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SMALL_MODEL = ROOT / "examples" / "models" / "relevance"
FLIGHTS_ROWS = 336_776
MILLION = 1_000_000


@dataclass(frozen=True)
class Contender:
    """`rows`: how many rows it is given. `missing`: why it cannot run here."""

    name: str
    command: tuple[str, ...]
    rows: int
    output: Path | None = None
    missing: str | None = None


@dataclass(frozen=True)
class Section:
    """Contenders that are compared; the first's labels are what the others' must agree with.

    `before`: commands run once, unmeasured. `repeat`: runs per round, for short commands.
    `least_agreement`: a contender whose labels agree less does not count.
    """

    name: str
    title: str
    contenders: tuple[Contender, ...]
    before: tuple[tuple[str, ...], ...] = ()
    repeat: int = 1
    least_agreement: float = 0.99


@dataclass(frozen=True)
class Workshop:
    """Where a section finds and leaves things.

    `python`: the interpreter that runs batchpredict. `quick`: few rows.
    """

    work: Path
    section: str
    python: str
    quick: bool = False

    @property
    def outputs(self) -> Path:
        return self.work / "outputs" / self.section

    def model(self, name: str) -> Path:
        return self.work / "models" / name

    def input(self, name: str) -> Path:
        return self.work / "inputs" / name

    def long(self, suffix: str) -> tuple[Path, int]:
        """A million flights, or a few thousand when quick."""
        name, rows = ("thousands", 20_000) if self.quick else ("million", MILLION)
        return self.input(f"{name}.{suffix}"), rows

    def texts(self, rows: int) -> tuple[Path, int]:
        """The text table with so many rows; a tenth of them, 100 or more, when quick."""
        rows = max(100, rows // 10) if self.quick else rows
        return self.input(f"text-{rows}.csv"), rows

    def ours(
        self, name: str, model: Path, given: tuple[Path, int], options: Sequence[str] = ()
    ) -> Contender:
        """batchpredict, with the receipt beside the output."""
        source, rows = given
        output = self.outputs / f"{name.replace(' ', '-')}{source.suffix}"
        command = (
            self.python, "-P", "-m", "batchpredict", f"--input_file={source}",
            f"--output_file={output}", f"--model={model}", "--quiet", *options,
        )  # fmt: skip
        return Contender(name, command, rows, output)

    def peer(self, name: str, script: str, arguments: Sequence[str | Path], rows: int) -> Contender:
        """`script`: its file in contenders/ with its environment, `ray:ray_data.py`.

        The last of `arguments` is the file it writes, relative to the outputs' folder.
        """
        group, file = script.split(":")
        output = self.outputs / str(arguments[-1])
        command = (
            str(self.work / "venvs" / group / "bin" / "python"),
            str(HERE / "contenders" / file), *map(str, arguments[:-1]), str(output),
        )  # fmt: skip
        return Contender(name, command, rows, output, self.missing(group))

    def mlflow(self, model: str, given: tuple[Path, int]) -> Contender:
        source, rows = given
        output = self.outputs / f"mlflow-{model}.json"
        command = (
            str(self.work / "venvs" / "mlflow" / "bin" / "mlflow"), "models", "predict",
            "--model-uri", str(self.model(f"mlflow-{model}")), "--input-path", str(source),
            "--output-path", str(output), "--content-type", "csv", "--env-manager", "local",
        )  # fmt: skip
        return Contender("mlflow", command, rows, output, self.missing("mlflow"))

    def missing(self, group: str) -> str | None:
        failed = self.work / "venvs" / f"{group}.failed"
        return f"did not install: {failed.read_text()}" if failed.exists() else None

    def environment(self) -> dict[str, str]:
        """Of every contender alike: no telemetry, no hub, caches in the work directory."""
        scripts = self.work / "venvs"
        return dict(os.environ) | {
            "PYTHONPATH": str(ROOT),
            "XDG_CACHE_HOME": str(self.work / "cache"),
            "XDG_STATE_HOME": str(self.work / "state"),
            "ORT_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_TRACKING_URI": f"sqlite:///{scripts}/mlflow.db",
        }


def _limit(shop: Workshop, model: str, rows: int) -> tuple[tuple[tuple[str, ...], ...], Contender]:
    """The limit for text, and its preparation: tokens, and the best of its sweep."""
    source, rows = shop.texts(rows)
    tokens, best = shop.outputs / f"{model}-{rows}.npz", shop.outputs / f"{model}-best.json"
    directory = shop.model(model)

    def limit(*arguments: str | Path) -> Contender:
        return shop.peer("limit", "scripts:text_limit.py", arguments, rows)

    before = (
        limit("tokenize", directory, source, tokens).command,
        limit("sweep", directory, tokens, best).command,
    )
    return before, limit("score", directory, tokens, best, f"limit-{model}.npz")


def text(shop: Workshop) -> Section:
    model, few = shop.model("minilm"), shop.texts(1000)
    before, limit = _limit(shop, "minilm", 3000)
    source, rows = few
    best = shop.outputs / "huggingface-best.json"
    pipeline = "huggingface:huggingface_pipeline.py"
    sweep = shop.peer("", pipeline, ["sweep", model, source, best], rows)
    contenders = (
        shop.ours("batchpredict", model, shop.texts(3000)),
        limit,
        shop.peer("pandas", "scripts:text_pandas.py", [model, source, "pandas.csv"], rows),
        shop.peer("huggingface", pipeline, [best, model, source, "hf.csv"], rows),
        shop.peer("huggingface 32", pipeline, ["32", model, source, "hf32.csv"], rows),
        shop.peer("ray", "ray:ray_data.py", ["text", model, source, "ray"], rows),
        shop.mlflow("minilm", few),
    )
    before = before if sweep.missing else (*before, sweep.command)
    title = "Text: 6-layer MiniLM, float32, CSV to CSV"
    return Section("text", title, contenders, before)


def text_4bit(shop: Workshop) -> Section:
    before, limit = _limit(shop, "e5", 1000)
    ours = shop.ours("batchpredict", shop.model("e5"), shop.texts(1000))
    return Section("text_4bit", "Text: 12-layer E5, 4-bit weights", (ours, limit), before)


def _flights(shop: Workshop) -> tuple[Path, int]:
    if shop.quick:
        return shop.input("flights-20000.csv"), 20_000
    return shop.input("flights.csv"), FLIGHTS_ROWS


def tabular(shop: Workshop) -> Section:
    model, given = shop.model("trees"), _flights(shop)
    source, rows = given
    limit, frames = "scripts:tabular_limit.py", "scripts:tabular_frames.py"
    contenders = (
        shop.ours("batchpredict", model, given),
        shop.peer("limit strings", limit, ["strings", model, source, "strings.csv"], rows),
        shop.peer("limit raw", limit, ["raw", model, source, "raw.csv"], rows),
        shop.peer("pandas", frames, ["pandas", model, source, "pandas.csv"], rows),
        shop.peer("polars", frames, ["polars", model, source, "polars.csv"], rows),
        shop.peer("ray", "ray:ray_data.py", ["tabular", model, source, "ray"], rows),
        shop.mlflow("trees", given),
    )
    return Section("tabular", "Tabular: flights x 19 columns, 100 trees, CSV to CSV", contenders)


def linear(shop: Workshop) -> Section:
    model, given = shop.model("linear"), shop.long("csv")
    source, rows = given
    limit, frames = "scripts:tabular_limit.py", "scripts:tabular_frames.py"
    contenders = (
        shop.ours("batchpredict", model, given),
        shop.peer("limit strings", limit, ["strings", model, source, "strings.csv"], rows),
        shop.peer("limit raw", limit, ["raw", model, source, "raw.csv"], rows),
        shop.peer("pandas", frames, ["pandas", model, source, "pandas.csv"], rows),
        shop.peer("polars", frames, ["polars", model, source, "polars.csv"], rows),
    )
    return Section("linear", "Tabular: 1,000,000 rows x 18 columns, linear model", contenders)


def _records(name: str, title: str, suffix: str, way: str) -> Callable[[Workshop], Section]:
    def section(shop: Workshop) -> Section:
        model, given = shop.model("linear"), shop.long(suffix)
        source, rows = given
        loop = "scripts:record_loop.py"
        sessions = {f"{way} loop": way, f"{way} loop default": f"{way}:default"}
        if way == "fastavro":  # its loop spends so long on records that the session is no matter
            del sessions["fastavro loop default"]
        contenders = (
            shop.ours("batchpredict", model, given),
            *(
                shop.peer(title, loop, [kind, model, source, f"{title}-{source.name}"], rows)
                for title, kind in sessions.items()
            ),
        )
        return Section(name, title, contenders)

    return section


def _precisions(name: str, model: str, rows: int, title: str) -> Callable[[Workshop], Section]:
    def section(shop: Workshop) -> Section:
        directory, given = shop.model(model), shop.texts(rows)
        contenders = tuple(
            shop.ours(precision, directory, given, [f"--precision={precision}"])
            for precision in ("model", "int8", "bf16")
        )
        # The int8 graph is made once and kept; that is not part of a run.
        before = (*contenders[1].command, "--limit=2")
        return Section(name, title, contenders, (before,), least_agreement=0.0)

    return section


def callers(shop: Workshop) -> Section:
    contenders = tuple(
        shop.ours(name, shop.model("minilm"), shop.texts(1000), [f"--workers={count}"])
        for name, count in (("2 callers", 2), ("1 caller", 1))
    )
    return Section("callers", "Two callers of the session, and one", contenders)


def memory(shop: Workshop) -> Section:
    """Ten million rows are made when they are first wanted."""
    given, (source, rows) = shop.long("csv"), shop.long("csv")
    ten = source.with_stem(f"ten_{source.stem}")
    if source.exists() and not ten.exists():
        part = ten.with_suffix(".part")
        with part.open("wb") as file, source.open("rb") as one:
            file.write(one.readline())
            for _ in range(10):
                one.seek(0)
                one.readline()
                shutil.copyfileobj(one, file, 16 << 20)
        part.rename(ten)
    model = shop.model("linear")
    contenders = (
        shop.ours("1 million rows", model, given),
        shop.ours("10 million rows", model, (ten, 10 * rows)),
    )
    return Section("memory", "Memory: rows of a tabular job", contenders)


def memory_text(shop: Workshop) -> Section:
    contender = shop.ours("batchpredict", shop.model("distilbert"), shop.texts(300))
    return Section("memory_text", "Memory: text job on a 542 MB DistilBERT", (contender,))


def startup(shop: Workshop) -> Section:
    (imports,) = ("import onnxruntime, pyarrow, tokenizers",)
    one = shop.outputs / "one.csv"
    one.write_text("text\nA game of chess for two players.\n")
    contenders = (
        shop.ours("batchpredict", SMALL_MODEL, (one, 1)),
        Contender("imports", (shop.python, "-c", imports), 1),
    )
    return Section("startup", "Start to first scored row, small model", contenders, repeat=5)


def duplicates(shop: Workshop) -> Section:
    """Inputs without equal rows, and a clock around the search for them."""
    script = str(HERE / "contenders" / "timed_duplicates.py")
    contenders = tuple(
        replace(entry, command=(shop.python, script, *entry.command[4:]))
        for entry in (
            shop.ours("text", shop.model("minilm"), shop.texts(1000)),
            shop.ours("tabular", shop.model("linear"), shop.long("csv")),
        )
    )
    return Section("duplicates", "Looking for duplicates", contenders, least_agreement=0.0)


def commits(shop: Workshop) -> Section:
    """The same jobs with the journal's `add` left out."""
    without = str(HERE / "contenders" / "without_commits.py")
    jobs = (
        ("tabular", shop.model("trees"), shop.long("csv")),
        ("text", shop.model("minilm"), shop.texts(1000)),
    )
    contenders = []
    for name, model, given in jobs:
        ours = shop.ours(name, model, given)
        bare = shop.ours(f"{name} without", model, given)
        contenders += [ours, replace(bare, command=(shop.python, without, *bare.command[4:]))]
    return Section("commits", "Commits", tuple(contenders), least_agreement=0.0)


_JSONL = "JSON Lines: 1,000,000 rows, linear model"
_AVRO = "Avro ({}): 1,000,000 rows, linear model"
SECTIONS: dict[str, Callable[[Workshop], Section]] = {
    "text": text,
    "text_4bit": text_4bit,
    "precision": _precisions("precision", "minilm", 3000, "Precision: 6-layer MiniLM"),
    "precision_wide": _precisions(
        "precision_wide", "distilbert", 300, "Precision: DistilBERT shape, random weights"
    ),
    "callers": callers,
    "tabular": tabular,
    "linear": linear,
    "jsonl": _records("jsonl", _JSONL, "jsonl", "orjson"),
    "avro": _records("avro", _AVRO.format("null codec"), "null.avro", "fastavro"),
    "avro_deflate": _records("avro_deflate", _AVRO.format("deflate"), "deflate.avro", "fastavro"),
    "memory": memory,
    "memory_text": memory_text,
    "duplicates": duplicates,
    "commits": commits,
    "startup": startup,
}
