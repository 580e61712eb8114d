"""Brings raw tables into the standard columns and rejects bad input, naming file, column and row.

Rows are counted from 1 without a CSV's header. `where` is the file's name (or "interactions" for a table in memory).
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.arguments import one_of

TEXT = pa.string()
INTERACTION_TYPES = {
    "user_id": TEXT,
    "item_id": TEXT,
    "timestamp": pa.int64(),
    "order": pa.int64(),
    "rating": pa.float64(),
    "behaviour": TEXT,
    "split": TEXT,
    "history": pa.list_(TEXT),
}
ITEM_TYPES = {
    "item_id": TEXT,
    "title": TEXT,
    "description": TEXT,
    "brand": TEXT,
    "categories": TEXT,
    "price": pa.float64(),
    "image": TEXT,
}
UNITS_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
# How a lost id looks once some earlier step has turned it into text.
_MISSING_IDS = pa.array(["", "nan", "NaN", "None", "null", "<NA>"])


def standard_interactions(
    raw: pa.Table, where: str = "interactions", columns: Mapping | None = None, timestamp_unit: str = "s"
) -> pa.Table:
    """Interactions with the columns of `INTERACTION_TYPES` that the table has, in these types.

    Args:
        columns: standard name → the table's own name, e.g. `{"user_id": "reviewerID"}`.
        timestamp_unit: of numeric timestamps: s, ms, us or ns. Dates and ISO 8601 text need none.

    Raises:
        ValueError: no rows, a missing column, a value of the wrong type, a missing id, or broken UTF-8.
    """
    columns = dict(columns or {})
    for name in columns:
        if name not in INTERACTION_TYPES:
            raise ValueError(f"columns names {name!r}; interactions have {', '.join(INTERACTION_TYPES)}")
    one_of(timestamp_unit, UNITS_PER_SECOND, "timestamp_unit")
    selected = _select(raw, where, columns, INTERACTION_TYPES, required=("user_id", "item_id"))
    for name, column in selected.items():
        source = columns.get(name, name)
        if name == "timestamp":
            selected[name] = _seconds(column, timestamp_unit, where, source)
        elif name in ("user_id", "item_id"):
            selected[name] = _ids(column, where, source)
        else:
            selected[name] = cast_column(column, INTERACTION_TYPES[name], where, source)
    return pa.table(selected)


def standard_items(raw: pa.Table, where: str = "items", columns: Mapping | None = None) -> pa.Table:
    """Items with item_id and title first, known columns in the types of `ITEM_TYPES`, the user's own ones untouched.

    Missing text becomes the empty string. A list of categories is joined by " > " (lists of lists, besides, by " | ").
    Raises `ValueError` on no rows, a missing column, a value of the wrong type, a missing or repeated id, or broken
    UTF-8.
    """
    columns = dict(columns or {})
    selected = _select(raw, where, columns, dict.fromkeys([*ITEM_TYPES, *columns]), required=("item_id", "title"))
    taken = set(columns.values())
    selected.update({n: raw[n] for n in raw.column_names if n not in selected and n not in taken})
    table = {}
    for name, column in selected.items():
        source = columns.get(name, name)
        if name == "item_id":
            table[name] = _ids(column, where, source)
        elif name in ITEM_TYPES:
            column = _join_lists(column, " > " if name == "categories" else " ")
            column = cast_column(column, ITEM_TYPES[name], where, source)
            table[name] = pc.fill_null(column, "") if ITEM_TYPES[name] == TEXT else column
        else:
            table[name] = cast_column(column, TEXT, where, source) if pa.types.is_string(column.type) else column
    codes = table["item_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    repeats = np.flatnonzero(codes[1:] <= np.maximum.accumulate(codes)[:-1]) + 1
    if len(repeats):
        item, source = table["item_id"][repeats[0]].as_py(), columns.get("item_id", "item_id")
        raise ValueError(f"{where}, column {source!r}, row {repeats[0] + 1}: item {item!r} repeats")
    return pa.table(table)


def items_without_text(interactions: pa.Table) -> pa.Table:
    """A catalogue for interactions that come alone: the items that occur, with empty titles."""
    ids = interactions["item_id"].unique()
    return pa.table({"item_id": ids, "title": pa.array([""] * len(ids))})


def items_of_interactions(interactions: pa.Table, items: pa.Table, unknown_items: str) -> tuple[pa.Table, np.ndarray]:
    """`(interactions, rows)`: the catalogue row (int32) of every interaction.

    Those with items that are not in `items` raise `ValueError`, or are left out (`unknown_items="drop"`).
    """
    one_of(unknown_items, ("error", "drop"), "unknown_items")
    rows = pc.index_in(interactions["item_id"], items["item_id"].combine_chunks()).combine_chunks()
    if rows.null_count:
        unknown = rows.is_null()
        if unknown_items == "error":
            row = pc.index(unknown, True).as_py()
            item = interactions["item_id"][row].as_py()
            raise ValueError(
                f"interactions, column 'item_id', row {row + 1}: item {item!r} is not among the items, as in "
                f"{rows.null_count} of {len(rows)} interactions; add them, or set unknown_items: drop"
            )
        interactions, rows = interactions.filter(pc.invert(unknown)), rows.drop_null()
    return interactions, rows.to_numpy(zero_copy_only=False)


def _select(raw: pa.Table, where: str, columns: Mapping, names: Iterable[str], required: tuple) -> dict:
    selected = {}
    for name in names:
        source = columns.get(name, name)
        if source in raw.column_names:
            selected[name] = raw[source]
        elif name in required or name in columns:
            hint = "" if name in columns else f"; map it, e.g. columns: {{{name}: your_column}}"
            raise ValueError(f"{where}: no column {source!r}; it has {', '.join(map(str, raw.column_names))}{hint}")
    if not raw.num_rows:
        raise ValueError(f"{where}: the table has no rows")
    return selected


def _ids(column: pa.ChunkedArray, where: str, name: str) -> pa.ChunkedArray:
    missing, ids = column.is_null(nan_is_null=True), column
    if pa.types.is_floating(column.type):
        # An integer column with gaps comes as floats from pandas: 12.0 is the id "12".
        ids = cast_column(pc.if_else(missing, None, column), pa.int64(), where, name)
    ids = cast_column(ids, TEXT, where, name)
    missing = pc.or_(missing, pc.is_in(ids, _MISSING_IDS))
    row = pc.index(missing, True).as_py()
    if row >= 0:
        raise ValueError(f"{where}, column {name!r}, row {row + 1}: the id is missing ({column[row].as_py()!r})")
    return ids


def _seconds(column: pa.ChunkedArray, unit: str, where: str, name: str) -> pa.ChunkedArray:
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        try:
            column = column.cast(pa.int64())
        except pa.ArrowInvalid:
            column = cast_column(column, pa.timestamp("us"), where, name)
    if pa.types.is_temporal(column.type):
        moments = cast_column(column, pa.timestamp("us"), where, name)
        return moments.cast(pa.timestamp("s"), safe=False).cast(pa.int64())
    if pa.types.is_floating(column.type):
        column = pc.floor(pc.if_else(pc.is_nan(column), None, column))
    seconds = pc.divide(cast_column(column, pa.int64(), where, name), UNITS_PER_SECOND[unit])
    row = pc.index(pc.greater(seconds, 10**11), True).as_py()
    if row >= 0:
        value = column[row].as_py()
        raise ValueError(
            f"{where}, column {name!r}, row {row + 1}: {value} {unit} lies past the year 5000; set timestamp_unit: ms?"
        )
    return seconds


def cast_column(column: pa.ChunkedArray, kind: pa.DataType, where: str, name: str) -> pa.ChunkedArray:
    """A column in another type; raises `ValueError` naming the first row that does not fit, or is not UTF-8."""

    def attempt(part: pa.ChunkedArray) -> pa.ChunkedArray:
        done = part.cast(kind)
        if kind == TEXT:
            done.validate(full=True)
        return done

    try:
        return attempt(column)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        row = _first_failure(column, attempt)
        value = column[row]
        try:
            shown = repr(value.as_py())
        except UnicodeDecodeError:
            shown = repr(value.cast(pa.binary()).as_py())
        problem = f"({column.type}) is not {kind}"
        if "invalid utf8" in str(error).lower():
            problem = "is not valid UTF-8; for a CSV say what it is, e.g. encoding: latin-1"
        raise ValueError(f"{where}, column {name!r}, row {row + 1}: {shown[:80]} {problem}") from error


def _first_failure(column: pa.ChunkedArray, attempt: Callable) -> int:
    """The first row at which `attempt` fails, by bisection; 0 if no single row is to blame."""
    low, high = 0, len(column)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            attempt(pa.chunked_array([column.slice(low, middle - low).combine_chunks()], column.type))
            low = middle
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            high = middle
    return low


def _join_lists(column: pa.ChunkedArray, separator: str) -> pa.ChunkedArray:
    if not pa.types.is_list(column.type) and not pa.types.is_large_list(column.type):
        return column
    lists = column.combine_chunks()
    if pa.types.is_list(lists.type.value_type) or pa.types.is_large_list(lists.type.value_type):
        paths = pc.binary_join(lists.values.cast(pa.list_(TEXT)), separator)
        lists = pa.ListArray.from_arrays(lists.offsets.cast(pa.int32()), paths, mask=lists.is_null())
        separator = " | "
    return pa.chunked_array([pc.binary_join(lists.cast(pa.list_(TEXT)), separator)])
