"""Which columns fill which inputs of a graph, decided and checked before the first row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from batchpredict.errors import ConfigInvalid, InputInvalid, UsageError
from batchpredict.model.casting import DTYPES, cast_column, castable
from batchpredict.model.columns import is_json, is_text
from batchpredict.model.contracts import Encoder, Tensor
from batchpredict.model.manifest import FILE_NAME, InputSpec, Template, nearest, shown
from batchpredict.model.package import ModelPackage
from batchpredict.model.session import Session
from batchpredict.model.tabular import BoundInput, TabularEncoder
from batchpredict.model.text import open_text_encoder

_MOST_NAMES = 30
_METADATA_KEYS = ("columns", "feature_names")


def bind(
    package: ModelPackage,
    session: Session,
    offered: pa.Schema,
    complete: bool,
    column: Mapping[str, str],
) -> Encoder:
    """The encoder that feeds `session` from an input that offers `offered`.

    `complete`: False where the input may have other columns too; then an empty `offered` allows
    any name. `column`: what --column says, input to column. Raises UsageError if `column` names
    an input or column that is not there, InputInvalid if the input lacks a column or has it in a
    type the graph cannot take, ConfigInvalid if the model is wrong.
    """
    for tensor in session.inputs:
        if tensor.shape and isinstance(tensor.shape[0], int):
            raise ConfigInvalid(
                f"{session.graph}: input {tensor.name} takes exactly {tensor.shape[0]} row(s) at a"
                " time; export the model with a dynamic batch axis"
            )
    offer = _Offer(offered, complete)
    if any(tensor.name == "input_ids" for tensor in session.inputs):
        return open_text_encoder(package, session, _texts(package, offer, column))
    return _Binder(package, session, offer, column).encoder()


@dataclass(frozen=True)
class _Offer:
    """The columns of an input."""

    schema: pa.Schema
    complete: bool

    def has(self, name: str) -> bool:
        return name in self.schema.names or not (self.complete or self.schema.names)

    def names(self) -> str:
        names = self.schema.names
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        return (", ".join(names[:_MOST_NAMES]) + more) or "none"

    def kind(self, name: str) -> pa.DataType | None:
        """The column's type; None where it is not known before the rows are."""
        places = self.schema.get_all_field_indices(name)
        return self.schema.field(places[0]).type if places else None

    def need(self, name: str, by: str, key: str, asked: bool) -> None:
        """`by`: what needs the column, for the message; `key`: its name for --column."""
        if self.has(name):
            return
        near = nearest(name, self.schema.names)
        if asked:
            raise UsageError(
                f"--column {key}={name}: the input has no such column{near}"
                f" (it has: {self.names()})"
            )
        raise InputInvalid(
            f"{by} needs the column {name!r}, which the input does not have{near}"
            f" (it has: {self.names()}); bind another with --column {key}=COLUMN"
        )


def _texts(package: ModelPackage, offer: _Offer, column: Mapping[str, str]) -> tuple[Template, ...]:
    manifest = package.manifest
    pair = manifest.text_pair
    if pair is None and ("text_pair" in column or "text_pair" in offer.schema.names):
        pair = Template.of_column("text_pair")
    texts = {"text": manifest.text or Template.of_column("text", package.prompt)}
    if pair is not None:
        texts["text_pair"] = pair
    known = [*texts, *(name for text in texts.values() for name in text.columns)]
    for key in column:
        if key not in known:
            raise UsageError(
                f"--column {key}=…: the model has no such input{nearest(key, known)}"
                f" (it has: {', '.join(dict.fromkeys([*known, 'text_pair']))})"
            )
    return tuple(_text(name, text, offer, column) for name, text in texts.items())


def _text(name: str, text: Template, offer: _Offer, column: Mapping[str, str]) -> Template:
    """A template with the columns that --column gives it."""
    renames = {key: column[key] for key in text.columns if key in column}
    if name in column and name not in text.columns:
        if len(text.columns) > 1:
            raise UsageError(
                f"--column {name}=…: the model's text is made of {', '.join(text.columns)};"
                " bind these by their names"
            )
        renames = {text.columns[0]: column[name]}
    for key in text.columns:
        source = renames.get(key, key)
        by = f"the model's {name} (string [rows])"
        offer.need(source, by, key, key in renames)
        kind = offer.kind(source)
        if kind is not None and not (is_text(_values(kind)) or is_json(kind) or _is_null(kind)):
            raise InputInvalid(
                f"{by} cannot be read from the column {source!r}, which is {kind};"
                f" bind a column of texts with --column {key}=COLUMN"
            )
    return text.renamed(renames)


def _values(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_null(kind: pa.DataType) -> bool:
    return bool(pa.types.is_null(kind))


@dataclass(frozen=True)
class _Binder:
    """Binds the inputs of a graph that takes columns as they are."""

    package: ModelPackage
    session: Session
    offer: _Offer
    column: Mapping[str, str]

    def encoder(self) -> TabularEncoder:
        names = [tensor.name for tensor in self.session.inputs]
        known = [*names, *(["text"] if self._only_string() else [])]
        for key in self.column:
            if key not in known:
                raise UsageError(
                    f"--column {key}=…: the model has no such input{nearest(key, known)}"
                    f" (it has: {', '.join(names)})"
                )
        for key in self.package.manifest.inputs:
            if key not in names:
                raise self._wrong(f"[inputs.{key}]: no such input{nearest(key, names)}")
        inputs = tuple(self._bound(tensor) for tensor in self.session.inputs)
        return TabularEncoder(inputs, self.package.manifest.missing_values)

    def _wrong(self, what: str) -> ConfigInvalid:
        return ConfigInvalid(f"{self.package.directory / FILE_NAME}: {what}")

    def _only_string(self) -> bool:
        """A graph of one text, as scikit-learn's vectorizers make: its column is `text`."""
        inputs = self.session.inputs
        return len(inputs) == 1 and inputs[0].dtype == "string" and _width(inputs[0]) == 1

    def _bound(self, tensor: Tensor) -> BoundInput:
        if tensor.dtype not in DTYPES or len(tensor.shape) > 2:
            raise ConfigInvalid(
                f"{self.session.graph}: input {tensor.name} ({_described(tensor)}) cannot be filled"
                " from columns; inputs of [rows] or [rows, columns] can"
            )
        columns, asked = self._columns(tensor)
        by = f"input {tensor.name} ({_described(tensor)})"
        for name in columns:
            self.offer.need(name, by, tensor.name, asked)
            kind = self.offer.kind(name)
            if kind is not None and not castable(kind, tensor.dtype):
                raise InputInvalid(
                    f"{by} cannot be read from the column {name!r}, which is {kind};"
                    f" bind another with --column {tensor.name}=COLUMN"
                )
        width = _width(tensor)
        if width is not None and width != len(columns):
            raise ConfigInvalid(
                f"{self.session.graph}: {by} takes {width} column(s), {len(columns)} are named:"
                f" {', '.join(columns)}"
            )
        missing, fill = self._missing(tensor)
        flat = len(tensor.shape) == 1
        return BoundInput(tensor.name, tensor.dtype, columns, flat, missing, fill)

    def _columns(self, tensor: Tensor) -> tuple[tuple[str, ...], bool]:
        """The columns of an input, and whether --column named them."""
        asked = self.column.get(tensor.name)
        if asked is None and self._only_string():
            asked = self.column.get("text")
        width = _width(tensor)
        if asked is not None:
            listed = tuple(part.strip() for part in asked.split(","))
            return (asked,) if width == 1 or asked in self.offer.schema.names else listed, True
        declared = self._declared(tensor)
        if declared:
            return declared, False
        names = tuple(self.offer.schema.names)
        if width == 1 and tensor.name in names:
            return (tensor.name,), False
        if self._only_string() and self.offer.has("text"):
            return ("text",), False
        sole = len(self.session.inputs) == 1
        if sole and width == len(names):
            return names, False
        if width == 1:
            return (tensor.name,), False
        raise self._unbound(tensor)

    def _declared(self, tensor: Tensor) -> tuple[str, ...]:
        """By the manifest, else by the graph's metadata."""
        spec = self.package.manifest.inputs.get(tensor.name, InputSpec())
        if spec.columns:
            return spec.columns
        text = self.package.manifest.text
        if text is not None and self._only_string():
            if text.parts != (("", text.columns[0]),):
                raise self._wrong('text: a graph of strings takes one column as it is: "{column}"')
            return text.columns
        if len(self.session.inputs) > 1 or _width(tensor) == 1:
            return ()
        for key in _METADATA_KEYS:
            if value := self.session.metadata.get(key):
                return _listed(value)
        return ()

    def _unbound(self, tensor: Tensor) -> InputInvalid:
        count = len(self.offer.schema.names)
        return InputInvalid(
            f"input {tensor.name} ({_described(tensor)}) is bound to no columns, and the input's"
            f" {count} ({self.offer.names()}) are not exactly as many; name them in"
            f" {FILE_NAME} ([inputs.{tensor.name}] columns = […]) or with"
            f" --column {tensor.name}=COLUMN,COLUMN,…"
        )

    def _missing(self, tensor: Tensor) -> tuple[str, bool | int | float | str | None]:
        spec = self.package.manifest.inputs.get(tensor.name, InputSpec())
        is_float = tensor.dtype.startswith("float")
        if spec.fill is not None:
            return "fill", self._fill(tensor, spec.fill)
        if spec.missing == "nan" and not is_float:
            raise self._wrong(
                f'[inputs.{tensor.name}]: missing: {tensor.dtype} has no NaN; use "reject" or fill'
            )
        return spec.missing or ("nan" if is_float else "reject"), None

    def _fill(self, tensor: Tensor, fill: bool | int | float | str) -> bool | int | float | str:
        wrong = self._wrong(f"[inputs.{tensor.name}]: fill: {shown(fill)} is not {tensor.dtype}")
        if isinstance(fill, str) != (tensor.dtype == "string"):
            raise wrong
        cast = cast_column(pa.array([fill]), tensor.dtype, ())
        if cast.bad.any():
            raise wrong
        value: bool | int | float | str = cast.values.tolist()[0]
        return value


def _width(tensor: Tensor) -> int | None:
    """Columns of an input; None where the graph does not say."""
    if len(tensor.shape) == 1:
        return 1
    size = tensor.shape[1] if len(tensor.shape) == 2 else None
    return size if isinstance(size, int) else None


def _described(tensor: Tensor) -> str:
    sizes = [
        "rows",
        *("?" if isinstance(s, str) or s is None else str(s) for s in tensor.shape[1:]),
    ]
    return f"{tensor.dtype} [{', '.join(sizes)}]"


def _listed(value: str) -> tuple[str, ...]:
    """A JSON list, or names with commas between."""
    try:
        names = json.loads(value)
    except ValueError:
        names = None
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return tuple(names)
    return tuple(name.strip() for name in value.split(",") if name.strip())
