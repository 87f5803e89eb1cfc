"""batchpredict.toml: what the files of a model directory cannot say themselves."""

from __future__ import annotations

import difflib
import json
import re
import string
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchpredict.errors import ConfigInvalid, Unavailable

FILE_NAME = "batchpredict.toml"
TASKS = ("single_label", "multi_label", "binary", "regression", "embedding")
ACTIVATIONS = ("softmax", "sigmoid", "none")
MISSING = ("nan", "reject")
VARIANTS = ("model", "int8", "int4")

_FIGURES = ("agreement", "largest_difference")
# Of a name that is compared with others for its likeness, which takes the square of it.
_MOST_LIKE = 200
_MOST_SHOWN = 300
_MOST_LENGTH = 2**31 - 1
# A key of more parts than a manifest has use for. tomllib takes the square of them: `a.a.a…` of
# 64 KiB half a minute.
_DEEP_KEY = re.compile(
    r"""(?:^|[\[{,])[ \t]*(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){16}""", re.MULTILINE
)


@dataclass(frozen=True)
class Template:
    """A text made of literals and columns: each part is a literal and the column after it.

    The last part's column is None where the text ends in a literal.
    """

    parts: tuple[tuple[str, str | None], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(column for _, column in self.parts if column is not None))

    @classmethod
    def of_column(cls, column: str, before: str = "") -> Template:
        return cls(((before, column),))

    @classmethod
    def parse(cls, text: str) -> Template:
        """`"query: {text}"`; braces that are meant are doubled. Raises ValueError."""
        parts = []
        for literal, column, spec, conversion in string.Formatter().parse(text):
            if column == "" or spec or conversion:
                raise ValueError(
                    "braces hold a column's name and nothing else; {{ and }} are braces"
                )
            parts.append((literal, column))
        if not any(column is not None for _, column in parts):
            raise ValueError("no column is named in braces")
        return cls(tuple(parts))

    def renamed(self, names: Mapping[str, str]) -> Template:
        """The same text with other columns."""
        return Template(
            tuple((text, None if c is None else names.get(c, c)) for text, c in self.parts)
        )


@dataclass(frozen=True)
class InputSpec:
    """How columns become one graph input. `missing`: "nan" or "reject"; None where not said.

    `fill`: the value that stands for a missing one; None where there is none.
    """

    columns: tuple[str, ...] = ()
    missing: str | None = None
    fill: bool | int | float | str | None = None


@dataclass(frozen=True)
class Golden:
    """A row and what the model must say of it; None where that is not said."""

    row: Mapping[str, Any]
    prediction: str | float | tuple[str | float, ...] | None = None
    score: float | None = None


@dataclass(frozen=True)
class MadeFrom:
    """Of a variant, which `models optimize` writes: the model it was made from, how, with what.

    `digest`: of that model's package. `agreement`: share of the `rows` of a sample for which both
    say the same. `largest_difference`: of their scores there, None where they have none.
    """

    name: str | None
    version: str | None
    digest: str | None
    precision: str
    batchpredict: str | None
    onnxruntime: str | None
    onnx: str | None
    rows: int | None = None
    agreement: float | None = None
    largest_difference: float | None = None


@dataclass(frozen=True)
class Manifest:
    """The keys of batchpredict.toml; None or empty where the file does not have them."""

    name: str | None = None
    version: str | None = None
    task: str | None = None
    labels: tuple[str, ...] | None = None
    activation: str | None = None
    threshold: float | None = None
    output: str | None = None
    text: Template | None = None
    text_pair: Template | None = None
    max_length: int | None = None
    truncate: bool = True
    missing_values: tuple[str, ...] = ()
    inputs: Mapping[str, InputSpec] = field(default_factory=dict)
    golden: tuple[Golden, ...] = ()
    made_from: MadeFrom | None = None


def shown(value: object) -> str:
    """`repr`, short: a stranger's file may hold anything in the place of what belongs there."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, nested lists
        return f"a {type(value).__name__}"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def nearest(name: str, known: Iterable[str]) -> str:
    """ ", did you mean X?" for the known name that is most like `name`, or nothing."""
    by_case = {other.casefold(): other for other in known if len(other) <= _MOST_LIKE}
    found = difflib.get_close_matches(name.casefold(), by_case, n=1, cutoff=0.6)
    return f", did you mean {by_case[found[0]]!r}?" if found else ""


def read_manifest(path: Path) -> Manifest:
    """Raises ConfigInvalid naming the file and the line or key; Unavailable if not readable."""
    try:
        text = path.read_bytes().decode()
        if found := _DEEP_KEY.search(text):
            line = text.count("\n", 0, found.end()) + 1
            raise ConfigInvalid(f"{path}:{line}: a key of more than 16 parts; remove it")
        document = tomllib.loads(text)
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigInvalid(f"{path}: not UTF-8 (byte {error.start})") from error
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"^(.*) \(at line (\d+), column \d+\)$", str(error))
        where = f"{path}:{found[2]}" if found else f"{path}"
        raise ConfigInvalid(f"{where}: not TOML: {found[1] if found else error}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigInvalid(f"{path}: not TOML: {reason}") from error
    return _Keys(f"{path}", document).manifest()


class _Keys:
    """One table of the document; errors name `where` and the key."""

    def __init__(self, where: str, table: Mapping[str, Any]) -> None:
        self.where = where
        self.table = table

    def error(self, key: str, what: str) -> ConfigInvalid:
        return ConfigInvalid(f"{self.where}: {key}: {what}")

    def only(self, *known: str) -> None:
        for key in self.table:
            if key not in known:
                raise self.error(key, f"unknown key{nearest(key, known)}")

    def get(self, key: str, kinds: type | tuple[type, ...], what: str) -> Any:
        """The value, or None where the key is absent. bool does not pass for a number."""
        value = self.table.get(key)
        allowed = kinds if isinstance(kinds, tuple) else (kinds,)
        stray = isinstance(value, bool) and bool not in allowed
        if value is not None and (stray or not isinstance(value, allowed)):
            raise self.error(key, f"must be {what}, not {shown(value)}")
        if isinstance(value, int) and abs(value) >> 63:
            raise self.error(key, "the number is too large")
        return value

    def text(self, key: str) -> str | None:
        value = self.get(key, str, "a text in quotes")
        if value == "":
            raise self.error(key, "must not be empty")
        return value if value is None else str(value)

    def choice(self, key: str, known: tuple[str, ...]) -> str | None:
        value = self.text(key)
        if value is not None and value not in known:
            options = ", ".join(known)
            raise self.error(key, f"{shown(value)} is not one of {options}{nearest(value, known)}")
        return value

    def texts(self, key: str, *, one: bool = False) -> tuple[str, ...] | None:
        kinds: tuple[type, ...] = (list, str) if one else (list,)
        what = "a text or a list of texts" if one else "a list of texts"
        value = self.get(key, kinds, what)
        if value is None:
            return None
        listed = [value] if isinstance(value, str) else value
        if not all(isinstance(item, str) for item in listed):
            raise self.error(key, f"must be {what}, not {shown(value)}")
        return tuple(listed)

    def template(self, key: str) -> Template | None:
        value = self.text(key)
        try:
            return None if value is None else Template.parse(value)
        except ValueError as error:
            raise self.error(key, f"{shown(value)}: {error}") from error

    def labels(self) -> tuple[str, ...] | None:
        labels = self.texts("labels")
        if labels is not None and (len(labels) < 2 or len(set(labels)) < len(labels)):
            raise self.error(
                "labels", f"needs two or more different labels, not {shown(list(labels))}"
            )
        return labels

    def threshold(self) -> float | None:
        value = self.get("threshold", (int, float), "a number from 0 to 1")
        if value is not None and not 0 <= value <= 1:
            raise self.error("threshold", f"must be a number from 0 to 1, not {value}")
        return None if value is None else float(value)

    def max_length(self) -> int | None:
        value = self.get("max_length", int, "a whole number of tokens")
        if value is not None and not 1 <= value <= _MOST_LENGTH:
            raise self.error("max_length", f"must be 1 or more, at most {_MOST_LENGTH}")
        return None if value is None else int(value)

    def version(self) -> str | None:
        value = self.get("version", (str, int), "a text or a whole number")
        return None if value is None else str(value)

    def inputs(self) -> dict[str, InputSpec]:
        tables = self.get("inputs", dict, "a table: [inputs.NAME]") or {}
        for name, table in tables.items():
            if not isinstance(table, dict):
                raise self.error(f"inputs.{name}", f"must be a table: [inputs.{name}]")
        return {
            name: _Keys(f"{self.where}: [inputs.{name}]", table).input_spec()
            for name, table in tables.items()
        }

    def input_spec(self) -> InputSpec:
        self.only("columns", "missing", "fill")
        missing = self.choice("missing", MISSING)
        fill = self.get("fill", (str, int, float, bool), "a number, a text or a bool")
        if missing is not None and fill is not None:
            raise self.error("fill", "cannot stand beside `missing`: keep one of the two")
        columns = self.texts("columns", one=True)
        if columns == ():
            raise self.error("columns", "must name a column")
        return InputSpec(columns or (), missing, fill)

    def goldens(self) -> tuple[Golden, ...]:
        tables = self.get("golden", list, "a list of tables: [[golden]]") or []
        return tuple(
            _Keys(f"{self.where}: [[golden]] {number}", table).golden()
            for number, table in enumerate(tables, 1)
        )

    def golden(self) -> Golden:
        if not isinstance(self.table, dict):
            raise ConfigInvalid(f"{self.where}: must be a table: [[golden]]")
        self.only("row", "prediction", "score")
        row = self.get("row", dict, "a table of columns and values")
        if not row:
            raise self.error("row", "must name at least one column")
        try:
            json.dumps(row)
        except (TypeError, ValueError, RecursionError) as error:
            raise self.error("row", "may hold texts, numbers, true and false") from error
        prediction = self.get("prediction", (str, int, float, list), "a label, a number or a list")
        score = self.get("score", (int, float), "a number")
        if prediction is None and score is None:
            raise self.error("prediction", "a golden row needs `prediction`, `score` or both")
        listed = tuple(prediction) if isinstance(prediction, list) else prediction
        for item in listed if isinstance(listed, tuple) else ():
            if not isinstance(item, str | float) and (type(item) is not int or abs(item) >> 63):
                raise self.error("prediction", f"lists labels or numbers, not {shown(item)}")
        return Golden(row, listed, None if score is None else float(score))

    def made_from(self) -> MadeFrom | None:
        table = self.get("made_from", dict, "a table: [made_from]")
        return None if table is None else _Keys(f"{self.where}: [made_from]", table).origin()

    def origin(self) -> MadeFrom:
        self.only(*MadeFrom.__dataclass_fields__)
        numbers = {name: self.get(name, (int, float), "a number") for name in _FIGURES}
        return MadeFrom(
            name=self.text("name"),
            version=self.version(),
            digest=self.text("digest"),
            precision=self.choice("precision", VARIANTS) or "model",
            batchpredict=self.text("batchpredict"),
            onnxruntime=self.text("onnxruntime"),
            onnx=self.text("onnx"),
            rows=self.get("rows", int, "a whole number"),
            **{name: None if n is None else float(n) for name, n in numbers.items()},
        )

    def manifest(self) -> Manifest:
        self.only(*Manifest.__dataclass_fields__)
        truncate = self.get("truncate", bool, "true or false")
        return Manifest(
            name=self.text("name"),
            version=self.version(),
            task=self.choice("task", TASKS),
            labels=self.labels(),
            activation=self.choice("activation", ACTIVATIONS),
            threshold=self.threshold(),
            output=self.text("output"),
            text=self.template("text"),
            text_pair=self.template("text_pair"),
            max_length=self.max_length(),
            truncate=True if truncate is None else truncate,
            missing_values=self.texts("missing_values") or (),
            inputs=self.inputs(),
            golden=self.goldens(),
            made_from=self.made_from(),
        )
