"""Lists of item ids as flat numpy arrays with offsets, and training sequences as one row per target.

`values[offsets[i] : offsets[i + 1]]` is list `i`; everything is vectorised over all lists.
"""

from collections.abc import Sequence

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


def flatten_lists(column: pa.ChunkedArray | pa.Array) -> tuple[pa.Array, np.ndarray]:
    """`(flat values, offsets int64 [m + 1])` of a list column; raises `ValueError` on a null list."""
    if column.null_count:
        raise ValueError(f"row {pc.index(column.is_null(), True).as_py()} has no list (null); use an empty list")
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    values = [chunk.flatten() for chunk in chunks]
    lengths = [np.diff(chunk.offsets.to_numpy()) for chunk in chunks]
    flat = pa.concat_arrays(values) if values else pa.array([], column.type.value_type)
    return flat, offsets_of(np.concatenate([*lengths, np.zeros(0, np.int64)]))


def lists_to_rows(
    column: pa.ChunkedArray | pa.Array, item_ids: Sequence[str] | pa.ChunkedArray | pa.Array
) -> tuple[np.ndarray, np.ndarray]:
    """Turns lists of item ids into rows of a catalogue.

    Args:
        column: a `list<string>` column, such as `item_ids` of train or `history` of valid.
        item_ids: the catalogue's item ids in order; row numbers count from 0 in it.

    Returns:
        `(values, offsets)`: `values` int32 [n] are rows, those of list `i` at `offsets[i]` to `offsets[i + 1]`
        (int64 [m + 1]).

    Raises:
        ValueError: an item that is not in `item_ids`, or a null list.
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
    return rows.to_numpy(zero_copy_only=False) if isinstance(rows, pa.Array) else rows.to_numpy()


def training_rows(train: pa.Table, max_history: int | None = None) -> pa.Table:
    """One row per training target, in the order of the sequences.

    Args:
        train: training sequences (`llmrec.data.prepared.SEQUENCES`).
        max_history: keep only the last items of a history (all by default).

    Returns:
        A table with user_id, history (`list<string>`, oldest first), target, timestamp (of the target), and, where
        train has them, behaviours (of the history) and target_behaviour.
    """
    if max_history is not None and max_history < 1:
        raise ValueError(f"max_history must be at least 1, got {max_history}")
    items, offsets = flatten_lists(train["item_ids"])
    times, time_offsets = flatten_lists(train["timestamps"])
    if not np.array_equal(offsets, time_offsets):
        raise ValueError("train: item_ids and timestamps differ in length")
    context = np.minimum(train["num_context"].to_numpy(), np.diff(offsets))
    targets = ragged_arange(offsets[:-1] + context, offsets[1:])
    sequence = np.repeat(np.arange(train.num_rows), np.diff(offsets) - context)
    starts = offsets[:-1][sequence]
    if max_history is not None:
        starts = np.maximum(starts, targets - max_history)
    before, lengths = pa.array(ragged_arange(starts, targets)), offsets_of(targets - starts)
    rows = {
        "user_id": train["user_id"].take(pa.array(sequence)),
        "history": list_array(items.take(before), lengths),
        "target": items.take(pa.array(targets)),
        "timestamp": times.take(pa.array(targets)),
    }
    if "behaviours" in train.column_names:
        kinds, kind_offsets = flatten_lists(train["behaviours"])
        if not np.array_equal(offsets, kind_offsets):
            raise ValueError("train: item_ids and behaviours differ in length")
        rows |= {"behaviours": list_array(kinds.take(before), lengths), "target_behaviour": kinds.take(targets)}
    return pa.table(rows)
