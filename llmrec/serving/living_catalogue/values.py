"""Values of the catalogue's columns as JSON: checked against the column's type, written to a record, read from it."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as types

from llmrec.data.cleaning import TEXT_COLUMNS, clean_text

_WRITTEN_AS_TEXT = (types.is_timestamp, types.is_date, types.is_decimal)
_TEXTS = (types.is_string, types.is_large_string)
_WRITTEN_AS_IS = (*_TEXTS, types.is_boolean, types.is_integer, types.is_floating)
_LISTS = (types.is_list, types.is_large_list)


def checked_values(pairs: Sequence[tuple[str, Any]], name: str, kind: pa.DataType) -> list:
    """The JSON values of one column of several items; raises `ValueError` naming the item that does not fit."""
    if not _can_be_written(kind):
        raise ValueError(f"item {pairs[0][0]!r}, column {name!r}: values of type {kind} cannot be given; leave it out")
    try:
        array = _strict([value for _, value in pairs], name, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        for item, value in pairs:
            try:
                _strict([value], name, kind)
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                raise ValueError(f"item {item!r}, column {name!r}: {value!r:.80} is not {kind}: {error}") from error
        raise
    if name in TEXT_COLUMNS and any(is_kind(kind) for is_kind in _TEXTS):
        array = clean_text(array)
    return to_json(array, name)


def _strict(values: list, name: str, kind: pa.DataType) -> pa.Array:
    """As `to_array`, without its friendliness: no 1.5 as 1, "ab" as ["a", "b"], true as 1.0, NaN or null title."""
    array = to_array(values, kind)
    if name == "title" and array.null_count:
        raise ValueError("every item has a title")
    flat = array
    while any(is_kind(flat.type) for is_kind in _LISTS):
        flat = flat.flatten()
    if types.is_floating(flat.type):
        if any(isinstance(value, bool) for value in values):
            raise ValueError("no number")
        if pc.any(pc.invert(pc.is_finite(flat))).as_py():
            raise ValueError("not finite; give null where there is no value")
    elif not any(is_kind(kind) for is_kind in _WRITTEN_AS_TEXT) and array.to_pylist() != values:
        raise ValueError(f"it would become {array.to_pylist()!r:.80}")
    return array


def to_array(values: list, kind: pa.DataType) -> pa.Array:
    if any(is_kind(kind) for is_kind in _WRITTEN_AS_TEXT):
        return pa.array(values, pa.string()).cast(kind)
    return pa.array(values, kind)


def to_json(array: pa.Array | pa.ChunkedArray, name: str) -> list:
    """The JSON values of an array: what `to_array` reads."""
    if any(is_kind(array.type) for is_kind in _WRITTEN_AS_TEXT):
        return array.cast(pa.string()).to_pylist()
    if not _can_be_written(array.type) and array.null_count < len(array):
        raise ValueError(f"column {name!r} of type {array.type} cannot be written to the catalogue's log")
    return array.to_pylist()


def _can_be_written(kind: pa.DataType) -> bool:
    while any(is_kind(kind) for is_kind in _LISTS):
        kind = kind.value_type
        if any(is_kind(kind) for is_kind in _WRITTEN_AS_TEXT):
            return False
    return any(is_kind(kind) for is_kind in (*_WRITTEN_AS_IS, *_WRITTEN_AS_TEXT))
