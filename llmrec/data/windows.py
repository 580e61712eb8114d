"""Data that ships as windows (one row = a history cut to the last items, and a target), as MiniOneRec's does."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.data.prepared import SEQUENCES
from llmrec.data.rows import flatten_lists, list_array, numbered, offsets_of, ragged_arange, with_columns


def stitch_windows(rows: pa.Table, window: int | None = None) -> pa.Table:
    """Rebuilds training sequences from training windows alone.

    A row continues its user's previous row if its history is that row's history and target, cut to the last `window`
    items. Whatever continues nothing begins a new sequence, whose first history is context only. So
    `training_rows(stitch_windows(rows), window)` gives the same rows back, and each target is supervised once.

    Args:
        rows: windows with user_id, history (`list<string>`, oldest first), target, timestamp; a user's rows stand in
            order of time, but users may be interleaved.
        window: the length at which histories were cut; their longest by default. A longer one raises `ValueError`.

    Returns:
        Sequences (`llmrec.data.prepared.SEQUENCES`), by user in order of first appearance.
    """
    (users,), _ = numbered(rows["user_id"])
    by_user = np.argsort(users, kind="stable")
    rows, users = rows.take(pa.array(by_user)), users[by_user]
    flat, offsets = flatten_lists(rows["history"])
    targets = rows["target"].combine_chunks()
    lengths = np.diff(offsets)
    longest = int(lengths.max(initial=0))
    window = window or max(longest, 1)
    if longest > window:
        raise ValueError(f"a history has {longest} items, more than the window of {window}")
    codes = pa.concat_arrays([flat, targets]).dictionary_encode().indices.to_numpy()
    values, target_codes = codes[: len(flat)], codes[len(flat) :]

    # Candidate pairs (row - 1, row): same user, and a history one longer unless it was full already.
    candidate = (users[1:] == users[:-1]) & (lengths[1:] == np.minimum(lengths[:-1] + 1, window))
    row = np.flatnonzero(candidate) + 1
    shift = (lengths[row - 1] == window).astype(np.int64)
    here = ragged_arange(offsets[row], offsets[row + 1] - 1)
    before = ragged_arange(offsets[row - 1] + shift, offsets[row])
    pair = np.repeat(np.arange(len(row)), lengths[row] - 1)
    differing = np.bincount(pair, weights=values[here] != values[before], minlength=len(row))
    same = (differing == 0) & (values[offsets[row + 1] - 1] == target_codes[row - 1])
    starts = np.ones(len(users), bool)
    starts[row[same]] = False

    # Sequence = history of its first row, then the targets of all its rows.
    first = np.flatnonzero(starts)
    num_targets = np.diff(np.append(first, len(users)))
    context = lengths[first]
    out = offsets_of(context + num_targets)
    source = np.empty(out[-1], np.int64)
    source[ragged_arange(out[:-1], out[:-1] + context)] = ragged_arange(offsets[first], offsets[first] + context)
    is_target = ragged_arange(out[:-1] + context, out[1:])
    source[is_target] = len(flat) + np.arange(len(users))
    times = np.full(out[-1], -1)
    times[is_target] = np.arange(len(users))
    timestamps = rows["timestamp"].combine_chunks().take(pa.array(times, mask=times < 0))
    return pa.table(
        {
            "user_id": rows["user_id"].combine_chunks().take(pa.array(first)),
            "item_ids": list_array(pa.concat_arrays([flat, targets]).take(pa.array(source)), out),
            "timestamps": list_array(timestamps, out),
            "num_context": context.astype(np.int32),
        },
        schema=SEQUENCES,
    )


def last_items(rows: pa.Table, max_history: int | None) -> pa.Table:
    """The same targets with histories cut to their last `max_history` items."""
    flat, offsets = flatten_lists(rows["history"])
    starts = offsets[:-1] if max_history is None else np.maximum(offsets[:-1], offsets[1:] - max_history)
    cut = list_array(pc.take(flat, pa.array(ragged_arange(starts, offsets[1:]))), offsets_of(offsets[1:] - starts))
    return with_columns(rows, {"history": cut})
