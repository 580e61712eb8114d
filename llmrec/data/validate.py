"""Brings raw tables into the standard columns and rejects bad input, naming file, column and row.

Rows are counted from 1 without a CSV's header. `where` is the file's name (or "interactions" for a table in memory).
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmrec.arguments import one_of
from llmrec.columns import plain_column
from llmrec.data.convert import (
    TEXT,
    UNITS_PER_SECOND,
    as_id_lists,
    as_ids,
    as_number,
    as_seconds,
    as_text,
    cast_column,
)

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


def standard_interactions(
    raw: pa.Table, where: str = "interactions", columns: Mapping | None = None, timestamp_unit: str = "s"
) -> pa.Table:
    """Interactions with the columns of `INTERACTION_TYPES` that the table has, in these types.

    Args:
        columns: standard name → the table's own name, e.g. `{"user_id": "reviewerID"}`.
        timestamp_unit: of numeric timestamps: s, ms, us or ns. Dates and ISO 8601 text need none, text in another form
            says it as `strptime` does: `"%d.%m.%Y %H:%M"` (UTC).

    Raises:
        ValueError: no rows, a missing column, a value of the wrong type, a missing id, or broken UTF-8.
    """
    columns = dict(columns or {})
    for name in columns:
        if name not in INTERACTION_TYPES:
            raise ValueError(f"columns names {name!r}; interactions have {', '.join(INTERACTION_TYPES)}")
    if "%" not in timestamp_unit:
        one_of(timestamp_unit, UNITS_PER_SECOND, "timestamp_unit")
    selected = _select(raw, where, columns, INTERACTION_TYPES, required=("user_id", "item_id"))
    for name, column in selected.items():
        source = columns.get(name, name)
        if name == "timestamp":
            selected[name] = as_seconds(column, timestamp_unit, where, source)
        elif name in ("user_id", "item_id"):
            selected[name] = as_ids(column, where, source)
        elif name == "history":
            selected[name] = as_id_lists(column, where, source)
        elif INTERACTION_TYPES[name] == TEXT:
            text = as_text(column, where, source)
            selected[name] = pc.if_else(pc.equal(text, ""), None, text)
        else:
            selected[name] = as_number(column, INTERACTION_TYPES[name], where, source)
    return pa.table(selected)


def standard_items(raw: pa.Table, where: str = "items", columns: Mapping | None = None) -> pa.Table:
    """Items with item_id and title first, known columns in the types of `ITEM_TYPES`, the user's own ones in plain
    types (`llmrec.columns`).

    Missing text becomes the empty string. A list of categories is joined by " > " (lists of lists, besides, by " | "),
    other lists by a space; what is missing in them, and objects, are left out. A column `currency` is that of the
    prices, one for all.
    Raises `ValueError` on no rows, a missing column, a value of the wrong type, a missing or repeated id, or broken
    UTF-8.
    """
    columns = dict(columns or {})
    selected = _select(raw, where, columns, dict.fromkeys([*ITEM_TYPES, *columns]), required=("item_id", "title"))
    own = [name for name in raw.column_names if name not in {*selected, *columns.values()}]
    selected |= _select(raw, where, {}, own, required=())
    table = {}
    for name, column in selected.items():
        source = columns.get(name, name)
        if name == "item_id":
            table[name] = as_ids(column, where, source)
        elif name == "price":
            try:
                table[name] = as_number(column, ITEM_TYPES[name], where, source)
            except ValueError as error:
                advice = price_advice(column) if column.type == TEXT else ""
                raise ValueError(f"{error}{advice}") from error
        elif name in ITEM_TYPES:
            separators = (" > ", " | ") if name == "categories" else (" ", " ")
            table[name] = pc.fill_null(as_text(column, where, source, separators), "")
        else:
            column = plain_column(column)
            _check_storable(column, where, source)
            table[name] = cast_column(column, TEXT, where, source) if column.type == TEXT else column
    codes = table["item_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    repeats = np.flatnonzero(codes[1:] <= np.maximum.accumulate(codes)[:-1]) + 1
    if len(repeats):
        item, source = table["item_id"][repeats[0]].as_py(), columns.get("item_id", "item_id")
        raise ValueError(f"{where}, column {source!r}, row {repeats[0] + 1}: item {item!r} repeats")
    check_currency(pa.table(table), where)
    return pa.table(table)


def check_currency(items: pa.Table, where: str) -> None:
    """Raises `ValueError` where a column `currency` has several: prices are compared."""
    if "currency" not in items.column_names or items["currency"].type != TEXT:
        return
    several = [value for value in items["currency"].unique().to_pylist() if value and value.strip()][:2]
    if len(several) > 1:
        raise ValueError(
            f"{where}, column 'currency': {several[0]!r} and {several[1]!r}; prices are compared: convert them"
        )


def price_advice(column: pa.ChunkedArray, row: int | None = None) -> str:
    """How to have a price as text read, from the first that is no number, or that of a row; empty where none is."""
    for value in column.drop_null().to_pylist() if row is None else [column[row].as_py()]:
        found = re.fullmatch(r"(\D*)(\d(?:[\d.,\s]*\d)?)(\D*)", value.strip())
        if found and (found[1] or found[3] or "," in value):
            advice = f"; for prices like this set price_format: '{found[1]}{{}}{found[3]}'"
            return advice + (" and decimal: ',' (or '.')" if "," in found[2] or "." in found[2] else "")
    return ""


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


def _check_storable(column: pa.ChunkedArray, where: str, name: str) -> None:
    try:
        pq.write_table(pa.table({name: column.slice(0, 0)}), pa.BufferOutputStream())
    except pa.ArrowNotImplementedError as error:
        raise ValueError(
            f"{where}, column {name!r}: parquet files cannot hold its type ({column.type}); leave it out, or give text"
        ) from error


def _select(raw: pa.Table, where: str, columns: Mapping, names: Iterable[str], required: tuple) -> dict:
    counts, selected = Counter(raw.column_names), {}
    for name in names:
        source = columns.get(name, name)
        if counts[source] == 1:
            selected[name] = raw[source]
        elif counts[source]:
            raise ValueError(f"{where}: {counts[source]} columns are called {source!r}; each needs a name of its own")
        elif name in required or name in columns:
            hint = f"; map it, e.g. columns: {{{name}: your_column}}" if name not in columns else ""
            if hint:
                hint += "; if a text file has no header, give column_names (item_column_names for the items)"
            raise ValueError(f"{where}: no column {source!r}; it has {', '.join(map(str, raw.column_names))}{hint}")
    if not raw.num_rows:
        raise ValueError(f"{where}: the table has no rows")
    return selected
