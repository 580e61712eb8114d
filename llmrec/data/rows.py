"""Lists of item ids as flat numpy arrays with offsets, and training sequences as one row per target.

`values[offsets[i] : offsets[i + 1]]` is list `i`; everything is vectorised over all lists.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def ragged_arange(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """int64 `[sum(stops - starts)]`: `arange(starts[0], stops[0])`, `arange(starts[1], stops[1])`, … in one array."""
    lengths = np.asarray(stops, np.int64) - np.asarray(starts, np.int64)
    firsts = np.cumsum(lengths) - lengths
    return np.repeat(np.asarray(starts, np.int64) - firsts, lengths) + np.arange(lengths.sum(), dtype=np.int64)


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """int64 `[len(lengths) + 1]`: the offsets of lists of these lengths."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def list_array(values: pa.Array, offsets: np.ndarray) -> pa.Array:
    """A `list` column from flat values and offsets; raises `ValueError` past 2³¹ values, arrow's limit for one."""
    if offsets[-1] > np.iinfo(np.int32).max:
        raise ValueError(f"{offsets[-1]} list elements do not fit one arrow column: lower max_history")
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)


def with_columns(table: pa.Table, columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> pa.Table:
    """The table with these columns in place of its own, or after them."""
    for name, column in columns.items():
        place = table.schema.get_field_index(name)
        table = table.append_column(name, column) if place < 0 else table.set_column(place, name, column)
    return table


def flatten_lists(column: pa.ChunkedArray | pa.Array) -> tuple[pa.Array, np.ndarray]:
    """`(flat values, offsets int64 [m + 1])` of a list column; raises `ValueError` on a null list."""
    if column.null_count:
        raise ValueError(f"row {pc.index(column.is_null(), True).as_py()} has no list (null); use an empty list")
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    lengths = [np.diff(chunk.offsets.to_numpy()) for chunk in chunks]
    flat = pa.concat_arrays([chunk.flatten() for chunk in chunks]) if chunks else pa.array([], column.type.value_type)
    return flat, offsets_of(np.concatenate([*lengths, np.zeros(0, np.int64)]))


def flatten_beside(table: pa.Table, name: str, offsets: np.ndarray, where: str = "train") -> pa.Array:
    """The flat values of a list column; raises `ValueError` where its lists have other offsets than those of the
    items beside it."""
    values, list_offsets = flatten_lists(table[name])
    if not np.array_equal(offsets, list_offsets):
        raise ValueError(f"{where}: items and {name} differ in length")
    return values


def numbered(*columns: pa.ChunkedArray | pa.Array) -> tuple[list[np.ndarray], pa.Array]:
    """Integers for the values of some text columns, from 0 on in order of appearance, a vector per column; and the
    values that they stand for."""
    columns = [pa.chunked_array([each]) if isinstance(each, pa.Array) else each for each in columns]
    chunks = [chunk for column in columns for chunk in column.chunks]
    codes = pa.chunked_array(chunks, pa.string()).dictionary_encode().combine_chunks()
    return np.split(codes.indices.to_numpy(), np.cumsum([len(c) for c in columns])[:-1]), codes.dictionary


def lists_to_rows(
    column: pa.ChunkedArray | pa.Array, item_ids: Sequence[str] | pa.ChunkedArray | pa.Array
) -> tuple[np.ndarray, np.ndarray]:
    """`(values int32 [n], offsets int64 [m + 1])`: lists of item ids (such as `item_ids` of train or `history` of
    valid) as rows of a catalogue, counted from 0; raises `ValueError` on an item that is not in it, or a null list.
    """
    flat, offsets = flatten_lists(column)
    return ids_to_rows(flat, item_ids), offsets


def ids_to_rows(ids: pa.ChunkedArray | pa.Array, item_ids: Sequence[str] | pa.ChunkedArray | pa.Array) -> np.ndarray:
    """int32 [n]: the catalogue row of every item id; an id that is not in `item_ids` raises `ValueError`."""
    catalogue = item_ids if isinstance(item_ids, (pa.Array, pa.ChunkedArray)) else pa.array(item_ids, pa.string())
    if isinstance(catalogue, pa.ChunkedArray):
        catalogue = catalogue.combine_chunks()
    rows = pc.index_in(ids, catalogue.cast(ids.type))
    if rows.null_count:
        missing = pc.filter(ids, rows.is_null())
        raise ValueError(f"item {missing[0].as_py()!r} is not in the catalogue ({len(missing)} such entries)")
    return np.asarray(rows)


def training_rows(train: pa.Table, max_history: int | None = None) -> pa.Table:
    """One row per target of training sequences (`llmrec.data.prepared.SEQUENCES`), in their order.

    A table with user_id, history (`list<string>`, oldest first, its last `max_history` items only), target, timestamp
    (of the target), and, where train has them, behaviours (of the history) and target_behaviour.
    """
    if max_history is not None and max_history < 1:
        raise ValueError(f"max_history must be at least 1, got {max_history}")
    items, offsets = flatten_lists(train["item_ids"])
    times = flatten_beside(train, "timestamps", offsets)
    kinds = flatten_beside(train, "behaviours", offsets) if "behaviours" in train.column_names else None
    context = np.minimum(train["num_context"].to_numpy(), np.diff(offsets))
    targets = ragged_arange(offsets[:-1] + context, offsets[1:])
    sequence = np.repeat(np.arange(train.num_rows), np.diff(offsets) - context)
    users = train["user_id"].take(pa.array(sequence))
    return target_rows(users, items, times, kinds, offsets[:-1][sequence], targets, max_history)


def target_rows(
    users: pa.Array | pa.ChunkedArray,
    items: pa.Array,
    times: pa.Array,
    kinds: pa.Array | None,
    starts: np.ndarray,
    targets: np.ndarray,
    max_history: int | None,
) -> pa.Table:
    """One row per target, as `training_rows` returns them.

    `users` are those of the targets; `items`, `times` and `kinds` of all interactions, by user and time; `starts` and
    `targets` (int64) the places in these of the first item of every history, and of every target.
    """
    if max_history is not None:
        starts = np.maximum(starts, targets - max_history)
    before, lengths = pa.array(ragged_arange(starts, targets)), offsets_of(targets - starts)
    rows = {
        "user_id": users,
        "history": list_array(items.take(before), lengths),
        "target": items.take(pa.array(targets)),
        "timestamp": times.take(pa.array(targets)),
    }
    if kinds is not None:
        rows["behaviours"] = list_array(kinds.take(before), lengths)
        rows["target_behaviour"] = kinds.take(pa.array(targets))
    return pa.table(rows)


def events_of(rows: pa.Table) -> pa.Table:
    """Training sequences or targets as interactions: user_id, item_id, timestamp and, where there are kinds,
    behaviour."""
    if "target" in rows.column_names:
        names = {"user_id": "user_id", "target": "item_id", "timestamp": "timestamp", "target_behaviour": "behaviour"}
        return pa.table({new: rows[old] for old, new in names.items() if old in rows.column_names})
    names = {"item_ids": "item_id", "timestamps": "timestamp", "behaviours": "behaviour"}
    flat = {new: flatten_lists(rows[old])[0] for old, new in names.items() if old in rows.column_names}
    of_event = pc.list_parent_indices(rows["item_ids"].combine_chunks())
    return pa.table({"user_id": rows["user_id"].take(of_event), **flat})
