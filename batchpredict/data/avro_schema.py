"""Avro schemas (Avro 1.11 and 1.12 specification): read, cut to some fields, from and to Arrow."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from batchpredict.data.arrow_types import (
    JSON,
    children,
    has_list_view,
    is_bytes,
    is_json,
    is_list,
    is_string,
    value_type,
)

PRIMITIVES = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})
_NAMED = frozenset({"record", "error", "enum", "fixed"})
_STRUCTURE = frozenset({"type", "name", "namespace", "symbols", "size"})
_MOST_DECIMAL_DIGITS = 76  # of Arrow's decimal256
# What honest schemas stay far below: levels of types in types, and values in one row when every
# named type is written out where it is used (a few that use each other twice make 2^n of them).
_MOST_LEVELS = 64
_MOST_CELLS = 1 << 16
_MOST_FIXED_BYTES = 1 << 30
# Longer ones are bytes of any length: in a column of fixed ones even a null takes the space.
_LONGEST_FIXED_COLUMN = 1024

_ARROW: dict[str, pa.DataType] = {
    "null": pa.null(),
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "bytes": pa.binary(),
    "string": pa.string(),
    "enum": pa.string(),
}
_LOGICAL: dict[tuple[str, str], pa.DataType] = {
    ("int", "date"): pa.date32(),
    ("int", "time-millis"): pa.time32("ms"),
    ("long", "time-micros"): pa.time64("us"),
    ("long", "timestamp-millis"): pa.timestamp("ms", "UTC"),
    ("long", "timestamp-micros"): pa.timestamp("us", "UTC"),
    ("long", "timestamp-nanos"): pa.timestamp("ns", "UTC"),
    ("long", "local-timestamp-millis"): pa.timestamp("ms"),
    ("long", "local-timestamp-micros"): pa.timestamp("us"),
    ("long", "local-timestamp-nanos"): pa.timestamp("ns"),
}
_TIMESTAMPS = {"s": "millis", "ms": "millis", "us": "micros", "ns": "nanos"}


class SchemaInvalid(ValueError):
    """A schema that breaks the specification, or whose rows are not records."""


@dataclass(frozen=True)
class RecordSchema:
    """The schema of a file.

    `declared`: as it stands in the file. `fields`: with every name in full. `definitions`: the
    named types by full name. `cells`: values of one row, those of nested types among them; one
    for each list, map and type that contains itself.
    """

    declared: Mapping[str, Any]
    top: Mapping[str, Any]
    definitions: Mapping[str, Any]
    cells: int

    @property
    def fields(self) -> Sequence[Mapping[str, Any]]:
        return self.top["fields"]  # type: ignore[no-any-return]

    def restricted(self, names: Iterable[str]) -> dict[str, Any]:
        """With only these fields, in this order; a type is defined where it is first used."""
        by_name = {field["name"]: field for field in self.fields}
        top = {**self.top, "fields": [by_name[name] for name in names]}
        return _self_contained(top, self.definitions, set())  # type: ignore[no-any-return]

    def structure(self, node: Any) -> Any:
        """A type by itself as its encoding needs it: no logical types, defaults or docs."""
        return _bare(_self_contained(node, self.definitions, set()))


def parse(text: bytes) -> RecordSchema:
    """The schema in a file's header. Raises SchemaInvalid."""
    definitions: dict[str, Any] = {}
    try:
        declared = json.loads(text)
        json.dumps(declared, ensure_ascii=False).encode()  # half a surrogate pair is no text
        top = _canonical(declared, "", definitions)
        levels, cells = _Sizes(definitions).of(top)
    except SchemaInvalid:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SchemaInvalid(f"its schema is not valid ({_short(repr(error))})") from error
    if levels > _MOST_LEVELS or cells > _MOST_CELLS:
        raise SchemaInvalid(
            f"its schema has more than {_MOST_LEVELS} levels or {_MOST_CELLS} values in a row"
        )
    if not isinstance(top, dict) or top["type"] not in ("record", "error"):
        kind = "union" if isinstance(top, list) else top if isinstance(top, str) else top["type"]
        raise SchemaInvalid(f"its rows are of type {kind}, not records")
    names = [field["name"] for field in top["fields"]]
    if len(set(names)) < len(names):
        raise SchemaInvalid("its schema names a field twice")
    return RecordSchema(declared, top, definitions, cells)


def _short(text: str) -> str:
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 100 else f"{text[:100]}..."


class _Sizes:
    """How deep types are nested and how many values they hold, all references followed.

    A type inside itself counts as one value.
    """

    def __init__(self, definitions: Mapping[str, Any]) -> None:
        self._definitions = definitions
        self._known: dict[str, tuple[int, int]] = {}

    def of(self, node: Any) -> tuple[int, int]:
        """Levels and values."""
        if isinstance(node, str):
            return (0, 1) if node in PRIMITIVES else self._named(node)
        if isinstance(node, list):
            inner = node
        elif node["type"] in _NAMED:
            return self._named(full_name(node))
        else:
            inner = [node[key] for key in ("items", "values") if key in node]
        return self._with(inner)

    def _named(self, name: str) -> tuple[int, int]:
        if name not in self._known:
            self._known[name] = (0, 1)
            fields = self._definitions[name].get("fields", ())
            self._known[name] = self._with([field["type"] for field in fields])
        return self._known[name]

    def _with(self, inner: Sequence[Any]) -> tuple[int, int]:
        sizes = [self.of(node) for node in inner]
        levels = 1 + max((levels for levels, _ in sizes), default=0)
        return levels, max(1, sum(cells for _, cells in sizes))


def _canonical(node: Any, namespace: str, definitions: dict[str, Any]) -> Any:
    """The same schema with every name and reference in full."""
    if isinstance(node, list):
        return [_canonical(branch, namespace, definitions) for branch in node]
    if isinstance(node, str):
        return _reference(node, namespace, definitions)
    kind = node["type"]
    if not isinstance(kind, str):
        return _canonical(kind, namespace, definitions)
    if kind in _NAMED:
        return _definition(node, namespace, definitions)
    if kind == "array":
        return {**node, "items": _canonical(node["items"], namespace, definitions)}
    if kind == "map":
        return {**node, "values": _canonical(node["values"], namespace, definitions)}
    return node if kind in PRIMITIVES else _reference(kind, namespace, definitions)


def _reference(name: str, namespace: str, definitions: Mapping[str, Any]) -> str:
    if name in PRIMITIVES:
        return name
    full = f"{namespace}.{name}" if namespace and "." not in name else name
    for known in (full, name):  # some writers leave the namespace out
        if known in definitions:
            return known
    raise SchemaInvalid(f"type {_short(name)} is not defined")


def _definition(
    node: Mapping[str, Any], namespace: str, definitions: dict[str, Any]
) -> dict[str, Any]:
    space, dot, name = node["name"].rpartition(".")
    namespace = space if dot else node.get("namespace", namespace) or ""
    result = {**node, "name": name, "namespace": namespace}
    if full_name(result) in definitions:
        raise SchemaInvalid(f"type {_short(full_name(result))} is defined twice")
    definitions[full_name(result)] = result
    if result["type"] == "enum":
        result["symbols"] = [str(symbol) for symbol in node["symbols"]]
    elif result["type"] == "fixed":
        if type(node["size"]) is not int or not 0 <= node["size"] <= _MOST_FIXED_BYTES:
            raise SchemaInvalid(f"type {_short(name)} has no size")
    else:
        result["fields"] = [
            {**field, "type": _canonical(field["type"], namespace, definitions)}
            for field in node["fields"]
        ]
        if not all(isinstance(field["name"], str) for field in result["fields"]):
            raise SchemaInvalid(f"a field of {_short(name)} has no name")
    return result


def full_name(node: Mapping[str, Any]) -> str:
    """The name of a named type with its namespace."""
    return f"{node['namespace']}.{node['name']}" if node["namespace"] else str(node["name"])


def _self_contained(node: Any, definitions: Mapping[str, Any], seen: set[str]) -> Any:
    """`node` with each named type defined where it is first used, and only there."""
    if isinstance(node, str):
        if node in PRIMITIVES or node in seen:
            return node
        return _self_contained(definitions[node], definitions, seen)
    if isinstance(node, list):
        return [_self_contained(branch, definitions, seen) for branch in node]
    if node["type"] in _NAMED:
        if full_name(node) in seen:
            return full_name(node)
        seen.add(full_name(node))
    result = dict(node)
    for key in ("items", "values"):
        if key in node:
            result[key] = _self_contained(node[key], definitions, seen)
    if "fields" in node:
        result["fields"] = [
            {**field, "type": _self_contained(field["type"], definitions, seen)}
            for field in node["fields"]
        ]
    return result


def _bare(node: Any) -> Any:
    if isinstance(node, str):
        return node
    if isinstance(node, list):
        return [_bare(branch) for branch in node]
    result = {key: value for key, value in node.items() if key in _STRUCTURE}
    for key in ("items", "values"):
        if key in node:
            result[key] = _bare(node[key])
    if "fields" in node:
        result["fields"] = [
            {"name": field["name"], "type": _bare(field["type"])} for field in node["fields"]
        ]
    return result


def branches(node: Any) -> list[Any]:
    """The branches of a union that are not null; of any other type itself."""
    nodes = node if isinstance(node, list) else [node]
    return [branch for branch in nodes if kind_of(branch) != "null"]


def kind_of(node: Any) -> str:
    """The name of a type: "union", "record", a primitive, or the full name of a reference."""
    if isinstance(node, list):
        return "union"
    return str(node if isinstance(node, str) else node["type"])


def arrow_type(node: Any, definitions: Mapping[str, Any]) -> pa.DataType:
    """The Arrow type that holds every value of an Avro type exactly.

    `arrow.json` for a column that holds, anywhere, a union of several types, a type that
    contains itself, or a record without fields.
    """
    fitting = _fitting(node, definitions, ())
    return JSON if fitting is None else fitting


def _fitting(node: Any, definitions: Mapping[str, Any], within: tuple[str, ...]) -> Any:
    several = branches(node)
    if len(several) != 1:
        return None if several else pa.null()
    node = several[0]
    kind = kind_of(node)
    if isinstance(node, str) and node not in PRIMITIVES:
        return None if node in within else _fitting(definitions[node], definitions, within)
    if kind == "union":
        return None
    if kind == "array":
        items = _fitting(node["items"], definitions, within)
        return None if items is None else pa.list_(items)
    if kind == "map":
        values = _fitting(node["values"], definitions, within)
        return None if values is None else pa.map_(pa.string(), values)
    if kind in ("record", "error"):
        inner = [
            (field["name"], _fitting(field["type"], definitions, (*within, full_name(node))))
            for field in node["fields"]
        ]
        if not inner or any(kind is None for _, kind in inner):
            return None
        return pa.struct(inner)
    return _scalar(node, kind)


def _scalar(node: Any, kind: str) -> pa.DataType:
    logical = node.get("logicalType") if isinstance(node, dict) else None
    digits = decimal_digits(node)
    if digits is not None:
        return pa.decimal128(*digits) if digits[0] <= 38 else pa.decimal256(*digits)
    if kind == "fixed":
        is_short = 0 < node["size"] <= _LONGEST_FIXED_COLUMN
        return pa.binary(node["size"]) if is_short else pa.binary()
    return _LOGICAL.get((kind, str(logical)), _ARROW[kind])


def decimal_digits(node: Any) -> tuple[int, int] | None:
    """Precision and scale of a decimal; None for other types and invalid attributes."""
    if not isinstance(node, dict) or node.get("logicalType") != "decimal":
        return None
    precision, scale = node.get("precision"), node.get("scale", 0)
    if node["type"] not in ("bytes", "fixed") or not isinstance(precision, int):
        return None
    if not isinstance(scale, int) or not 0 <= scale <= precision <= _MOST_DECIMAL_DIGITS:
        return None
    return (precision, scale) if precision else None


def legal_names(names: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """For each name the one Avro allows, all different and none of `taken`."""
    names = list(names)
    used = {*taken, *(name for name in names if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name))}
    result = {}
    for name in names:
        legal = re.sub(r"[^A-Za-z0-9_]", "_", name)
        legal = f"_{legal}" if not legal or legal[0].isdigit() else legal
        if legal != name:
            choices = (legal if n == 1 else f"{legal}_{n}" for n in range(1, len(used) + 3))
            legal = next(choice for choice in choices if choice not in used)
            used.add(legal)
        result[name] = legal
    return result


def fields_of(schema: pa.Schema, taken: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Avro fields, all nullable, for the columns of an Arrow schema."""
    legal = legal_names(schema.names, taken)
    result = []
    for field in schema:
        node = avro_type(field.type, f"Row_{legal[field.name]}") or "string"
        nullable = node if node == "null" else ["null", node]
        avro = {"name": legal[field.name], "type": nullable, "default": None}
        result.append(avro if avro["name"] == field.name else {**avro, "doc": field.name})
    return result


def avro_type(kind: pa.DataType, path: str) -> Any:
    """The Avro type that holds every value of an Arrow type; None where only text does.

    `path`: for the names of records inside.
    """
    kind = value_type(kind)
    if is_json(kind):
        return None
    if is_string(kind) or is_bytes(kind):
        return "string" if is_string(kind) else "bytes"
    if is_list(kind) or pt.is_map(kind) or pt.is_struct(kind):
        return _nested_type(kind, path)
    if pt.is_temporal(kind):
        return _temporal_type(kind)
    if pt.is_decimal(kind) or pt.is_uint64(kind):
        precision, scale = (20, 0) if pt.is_uint64(kind) else (kind.precision, kind.scale)
        fits = 0 <= scale <= precision
        logical = {"logicalType": "decimal", "precision": precision, "scale": scale}
        return {"type": "bytes", **logical} if fits else None
    if pt.is_integer(kind):
        return "long" if kind.bit_width == 64 or pt.is_uint32(kind) else "int"
    if pt.is_floating(kind):
        return "double" if kind.bit_width == 64 else "float"
    return {pa.bool_(): "boolean", pa.null(): "null"}.get(kind)


def _nested_type(kind: pa.DataType, path: str) -> Any:
    if pt.is_map(kind) and not is_string(value_type(kind.key_type)):
        return None
    if pt.is_struct(kind):
        if any(has_list_view(child) for child in children(kind)):
            return None
        legal = legal_names(field.name for field in kind)
        fields = [
            {"name": legal[f.name], "type": _nullable(avro_type(f.type, f"{path}_{legal[f.name]}"))}
            for f in kind
        ]
        unfit = any(field["type"] is None for field in fields)
        if unfit or len(legal) < kind.num_fields:
            return None
        return {"type": "record", "name": path, "fields": fields}
    inner = value_type(kind.item_type if pt.is_map(kind) else kind.value_type)
    if has_list_view(inner):
        return None
    node = _nullable(avro_type(inner, f"{path}_item"))
    if node is None:
        return None
    return {"type": "map", "values": node} if pt.is_map(kind) else {"type": "array", "items": node}


def _nullable(node: Any) -> Any:
    return node if node is None or node == "null" else ["null", node]


def _temporal_type(kind: pa.DataType) -> Any:
    if pt.is_date(kind):
        return {"type": "int", "logicalType": "date"}
    if pt.is_timestamp(kind):
        prefix = "local-" if kind.tz is None else ""
        return {"type": "long", "logicalType": f"{prefix}timestamp-{_TIMESTAMPS[kind.unit]}"}
    if pt.is_time32(kind):
        return {"type": "int", "logicalType": "time-millis"}
    if pt.is_time64(kind) and kind.unit == "us":
        return {"type": "long", "logicalType": "time-micros"}
    return None


def losses(schema: pa.Schema) -> list[str]:
    """One line per column that Avro cannot keep as it is."""
    legal = legal_names(schema.names)
    lines = []
    for field in schema:
        remarks = [_lost(value_type(field.type))]
        if legal[field.name] != field.name:
            remarks.append(f"Avro forbids the name, written as {legal[field.name]}")
        remark = "; ".join(filter(None, remarks))
        if remark:
            lines.append(f"column '{field.name}': {remark}")
    return lines


def _lost(kind: pa.DataType) -> str:
    if is_json(kind):
        return "values that are not text are written as JSON text"
    if avro_type(kind, "Row") is None:
        return f"values are written as {'JSON ' if pt.is_nested(kind) else ''}text"
    if pt.is_uint64(kind):
        return "unsigned 64-bit numbers are written as decimals"
    if pt.is_timestamp(kind) and kind.tz not in (None, "UTC"):
        return f"the instants are kept, the time zone {kind.tz} is not"
    inner = {_lost(value_type(child)) for child in children(kind)} - {""}
    return ", ".join(sorted(inner))
