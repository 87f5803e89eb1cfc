"""What an Arrow type holds, whatever its layout."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

JSON = pa.json_(pa.string())


def is_json(kind: pa.DataType) -> bool:
    """Whether values of this type are JSON texts (`arrow.json`)."""
    return isinstance(kind, pa.BaseExtensionType) and kind.extension_name == "arrow.json"


def is_string(kind: pa.DataType) -> bool:
    """Whether values of this type are Unicode text."""
    return bool(pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Whether values of this type are bytes, of fixed length or not."""
    return bool(
        pt.is_binary(kind)
        or pt.is_large_binary(kind)
        or pt.is_binary_view(kind)
        or pt.is_fixed_size_binary(kind)
    )


def is_list(kind: pa.DataType) -> bool:
    """Whether values of this type are lists, of fixed length or not (maps are not)."""
    return bool(
        pt.is_list(kind)
        or pt.is_large_list(kind)
        or pt.is_list_view(kind)
        or pt.is_large_list_view(kind)
        or pt.is_fixed_size_list(kind)
    )


def children(kind: pa.DataType) -> list[pa.DataType]:
    """The types a nested type is made of; none for others."""
    if not pt.is_nested(kind):
        return []
    return [kind.field(index).type for index in range(kind.num_fields)]


def holds_text(kind: pa.DataType) -> bool:
    """Whether there is Unicode text anywhere."""
    kind = value_type(kind)
    return is_string(kind) or any(holds_text(child) for child in children(kind))


def has_list_view(kind: pa.DataType) -> bool:
    """Whether there is a list view anywhere, which pyarrow 26 casts wrongly."""
    kind = value_type(kind)
    is_view = pt.is_list_view(kind) or pt.is_large_list_view(kind)
    return bool(is_view or any(has_list_view(child) for child in children(kind)))


def without_views(kind: pa.DataType) -> pa.DataType:
    """The type with text and bytes in a layout that pyarrow can select rows of.

    It cannot (`take`, `filter`) for string and binary views, which polars writes.
    """
    if pt.is_string_view(kind):
        return pa.large_string()
    if pt.is_binary_view(kind):
        return pa.large_binary()
    if pt.is_struct(kind):
        return pa.struct([field.with_type(without_views(field.type)) for field in kind])
    if pt.is_map(kind):
        item = kind.item_field
        key = kind.key_field
        return pa.map_(
            key.with_type(without_views(key.type)), item.with_type(without_views(item.type))
        )
    if pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind):
        item = kind.value_field.with_type(without_views(kind.value_type))
        if pt.is_fixed_size_list(kind):
            return pa.list_(item, kind.list_size)
        return pa.list_(item) if pt.is_list(kind) else pa.large_list(item)
    return kind


def cast_to(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """`array.cast(kind)`, but for a cast to the same type.

    pyarrow 26 shortens the nulls of a list or map that is cast to its own type, also inside of
    other types, and what reads them reads other memory.
    """
    return array if array.type == kind else array.cast(kind)


def value_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values themselves: without dictionary, runs and (but for JSON) extension."""
    while True:
        if pt.is_dictionary(kind) or pt.is_run_end_encoded(kind):
            kind = kind.value_type
        elif isinstance(kind, pa.BaseExtensionType) and not is_json(kind):
            kind = kind.storage_type
        else:
            return kind


def values_of(array: pa.Array) -> pa.Array:
    """The values themselves; see `value_type`."""
    while array.type != value_type(array.type):
        if pt.is_dictionary(array.type):
            array = array.dictionary_decode()
        elif pt.is_run_end_encoded(array.type):
            array = pc.run_end_decode(array)
        else:
            array = array.storage
    return array
