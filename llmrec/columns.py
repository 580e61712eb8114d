"""Arrow columns in plain types: what tables hold, however they were encoded.

Text is `string`, bytes are `binary`, lists are `list`, and a column without any value is text; inside lists and
structs too. No views, large or fixed-size variants, dictionaries, run ends or extensions, which not all of Arrow's
functions take.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as types

_LISTS = (
    types.is_list,
    types.is_large_list,
    types.is_fixed_size_list,
    types.is_list_view,
    types.is_large_list_view,
)
_TEXTS = (types.is_large_string, types.is_string_view, types.is_null)
_BYTES = (types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)


def as_table(frame, where: str) -> pa.Table:
    """A table of whatever hands out Arrow's columns (`__arrow_c_stream__`), such as data frames of pandas (without
    their index) and polars. `ValueError` naming what cannot be a column, or is no such thing."""
    if isinstance(frame, pa.Table):
        return frame
    if not hasattr(frame, "__arrow_c_stream__"):
        raise ValueError(f"{where} is a {type(frame).__name__}: give a pyarrow table or a data frame")
    try:
        table = pa.table(frame)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"{where}: {' '.join(map(str, error.args))}; give every column values of one kind") from error
    index = [name for name in table.column_names if name.startswith("__index_level_")]
    return plain_table(table.drop_columns(index).replace_schema_metadata(None))


def plain_table(table: pa.Table) -> pa.Table:
    """The table with `plain_column`s, and its metadata."""
    columns = [plain_column(column) for column in table.columns]
    fields = [field.with_type(column.type) for field, column in zip(table.schema, columns)]
    return pa.table(columns, schema=pa.schema(fields, table.schema.metadata))


def plain_column(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """The same values in a plain type, without a copy where they have one; a UUID becomes its text."""
    if isinstance(column, pa.ChunkedArray):
        chunks = [plain_column(chunk) for chunk in column.chunks or [pa.array([], column.type)]]
        return pa.chunked_array(chunks)
    kind = column.type
    if isinstance(kind, pa.UuidType):
        return pa.array([value and str(value) for value in column.to_pylist()], pa.string())
    if isinstance(kind, pa.BaseExtensionType):
        plain = plain_column(column.storage)
        return plain.cast(pa.bool_()) if isinstance(kind, pa.Bool8Type) else plain
    if types.is_dictionary(kind):
        return plain_column(column.dictionary).take(column.indices)
    if types.is_run_end_encoded(kind):
        places = np.arange(column.offset, column.offset + len(column))
        runs = np.searchsorted(column.run_ends.to_numpy(), places, side="right")
        return plain_column(column.values).take(pa.array(runs))
    if _any(_TEXTS, kind):
        return column.cast(pa.string())
    if _any(_BYTES, kind):
        return column.cast(pa.binary())
    if is_list(kind):
        flat, offsets = _flat(column)
        values = plain_column(flat)
        if types.is_list(kind) and values.type == kind.value_type:
            return column
        return pa.ListArray.from_arrays(offsets, values, mask=column.is_null())
    if types.is_struct(kind):
        fields = [plain_column(field) for field in column.flatten()]
        if all(field.type == part.type for field, part in zip(fields, kind)):
            return column
        names = [part.name for part in kind]
        return pa.StructArray.from_arrays(fields, names, mask=column.is_null()) if fields else column
    return column


def is_list(kind: pa.DataType) -> bool:
    """Whether values of this type are lists, of whatever kind; a map is none."""
    return _any(_LISTS, kind)


def _any(kinds: tuple[Callable, ...], kind: pa.DataType) -> bool:
    return any(is_kind(kind) for is_kind in kinds)


def _flat(lists: pa.Array) -> tuple[pa.Array, pa.Array]:
    """`(values, int32 offsets)`; a list that is null has none. Arrow's cast of list views to lists loses values."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).cast(pa.int64()).to_numpy()
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return lists.flatten(), pa.array(offsets).cast(pa.int32())
