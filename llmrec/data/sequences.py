"""Interactions in order of time, and their split into training sequences, validation and test targets.

Everything works on flat arrays of interactions sorted by user, then time: `users` and `items` are numbers from 0 on,
`labels` say 0 = train, 1 = valid, 2 = test. No Python loop runs over interactions.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.data.prepared import SEQUENCES, schema_of
from llmrec.data.rows import flatten_lists, list_array, numbered, offsets_of, ragged_arange, target_rows, with_columns

TIES = ("input_order", "item_id")
REPEATS = ("keep", "drop_duplicates", "drop_consecutive", "first")
LABELS = ("train", "valid", "test")
_SORTED = 2**18  # interactions that are sorted at a time


def parts_of_users(users: np.ndarray, size: int) -> list[slice]:
    """Slices of some users' interactions, about `size` at a time; all of a user stand in one."""
    starts = [0]
    while starts[-1] < len(users):
        last = users[min(starts[-1] + size, len(users)) - 1]
        starts.append(int(np.searchsorted(users, last, side="right")))
    return [slice(start, stop) for start, stop in zip(starts, starts[1:])]


def in_order(users: np.ndarray, *keys: np.ndarray) -> np.ndarray:
    """int64 [n]: rows by user (numbers, in any order), then by the keys, the first of which counts most, then as they
    stand. Some users at a time, whose keys fit the processor's cache."""
    order = np.argsort(users, kind="stable")
    sorted_users = users[order]
    for part in parts_of_users(sorted_users, _SORTED) if keys else ():
        rows = order[part]
        order[part] = rows[np.lexsort([*(key[rows] for key in reversed(keys)), sorted_users[part]])]
    return order


def duplicates(users: np.ndarray, items: np.ndarray, times: np.ndarray) -> np.ndarray:
    """bool [n]: which interactions have the user, the item and the moment of an earlier one."""
    again = np.zeros(len(users), bool)
    for part in parts_of_users(users, _SORTED):
        rows = part.start + np.lexsort((items[part], times[part], users[part]))  # stable: the earlier of equals first
        same = [values[rows[1:]] == values[rows[:-1]] for values in (users, items, times)]
        again[rows[1:][np.logical_and.reduce(same)]] = True
    return again


def repeats_kept(users: np.ndarray, items: np.ndarray, rule: str, again: np.ndarray | None = None) -> np.ndarray:
    """bool [n]: which interactions a rule for repeated items keeps.

    "keep" keeps all, "drop_duplicates" drops those that `duplicates` says (`again`), "drop_consecutive" drops an item
    that follows itself, "first" keeps a user's first of each item.
    """
    kept = np.full(len(users), rule != "first")
    if rule == "drop_duplicates":
        return ~again
    if rule == "drop_consecutive":
        kept[1:] = (users[1:] != users[:-1]) | (items[1:] != items[:-1])
    elif rule == "first":
        pairs = users.astype(np.int64) * (int(items.max(initial=0)) + 1) + items
        kept[np.unique(pairs, return_index=True)[1]] = True
    return kept


def last_of_users(users: np.ndarray, count: int | None) -> np.ndarray:
    """bool [n]: the last `count` interactions of every user, all without one."""
    if count is None:
        return np.full(len(users), True)
    counts = np.bincount(users)
    place = np.arange(len(users)) - offsets_of(counts)[:-1][users]
    return place >= counts[users] - count


def label_leave_one_out(users: np.ndarray) -> np.ndarray:
    """int8 [n]: a user's last interaction is test, the last but one valid; users with fewer than 3 stay in train."""
    labels = np.zeros(len(users), np.int8)
    counts = np.bincount(users)
    last = np.cumsum(counts)[counts >= 3] - 1
    labels[last], labels[last - 1] = 2, 1
    return labels


def label_by_time(
    times: np.ndarray,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    valid_start: int | str | date | None = None,
    test_start: int | str | date | None = None,
) -> tuple[np.ndarray, int, int]:
    """Labels int8 [n] by two points in time: train < `valid_start` <= valid < `test_start` <= test; and the points.

    Args:
        times: int64 [n], seconds.
        fractions: shares of all interactions from which the two points are found if they are not given. Interactions
            of one second stay together, so the shares are met only as closely as the clock allows.
        valid_start, test_start: seconds or ISO 8601 text (UTC); both or none.

    Raises:
        ValueError: fractions that do not sum to 1, one point without the other, or a part without interactions.
    """
    if (valid_start is None) != (test_start is None):
        raise ValueError("a split by time takes both valid_start and test_start, or neither")
    if valid_start is None:
        if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
            raise ValueError(f"fractions must be three positive shares that sum to 1, got {list(fractions)}")
        ranks = [int(len(times) * fractions[0]), int(len(times) * (fractions[0] + fractions[1]) + 1e-9)]
        valid_start, test_start = (int(t) for t in np.partition(times, ranks)[ranks])
    else:
        valid_start, test_start = _seconds(valid_start), _seconds(test_start)
    labels = (times >= valid_start).astype(np.int8) + (times >= test_start)
    counts = np.bincount(labels, minlength=3)
    if counts.min() == 0:
        empty = LABELS[int(counts.argmin())]
        raise ValueError(
            f"the split by time at {_iso(valid_start)} and {_iso(test_start)} leaves no {empty} interactions; "
            f"timestamps run from {_iso(times.min())} to {_iso(times.max())}"
        )
    return labels, valid_start, test_start


def build_tables(
    users: np.ndarray,
    items: np.ndarray,
    times: pa.Array,
    labels: np.ndarray,
    user_ids: pa.Array,
    item_ids: pa.Array,
    max_history: int | None,
    behaviours: pa.Array | None,
) -> tuple[dict[str, pa.Table], int]:
    """`({"train": …, "valid": …, "test": …}, number of targets left out)`, see `llmrec.data.prepared`.

    The history of a target is everything the user did before it, whatever its label, cut to its last `max_history`
    items. A target without any history is left out. `user_ids` and `item_ids` are the ids behind the numbers.
    Raises `ValueError` on a user whose labels go back, e.g. from valid to train.
    """
    back = np.flatnonzero((users[1:] == users[:-1]) & (labels[1:] < labels[:-1]))
    if len(back):
        row = int(back[0])
        user, later, earlier = user_ids[int(users[row])].as_py(), LABELS[labels[row + 1]], LABELS[labels[row]]
        raise ValueError(f"user {user!r} has a {later} interaction after a {earlier} one: a split follows the time")
    starts = offsets_of(np.bincount(users, minlength=len(user_ids)))[:-1]
    train = labels == 0
    counts = np.bincount(users[train], minlength=len(user_ids))
    trained = np.flatnonzero(counts)
    offsets = offsets_of(counts[trained])
    typed = behaviours is not None
    sequences = {
        "user_id": user_ids.take(pa.array(trained)),
        "item_ids": list_array(item_ids.take(pa.array(items[train])), offsets),
        "timestamps": list_array(times.filter(pa.array(train)), offsets),
        "num_context": np.ones(len(trained), np.int32),
    }
    if typed:
        sequences["behaviours"] = list_array(behaviours.filter(pa.array(train)), offsets)
    tables = {"train": pa.table(sequences, schema=schema_of("train", typed))}
    left_out, ids = 0, item_ids.take(pa.array(items))
    for label, name in ((1, "valid"), (2, "test")):
        rows = np.flatnonzero(labels == label)
        first = starts[users[rows]]
        left_out += int((rows == first).sum())
        rows, first = rows[rows > first], first[rows > first]
        of_users = user_ids.take(pa.array(users[rows]))
        table = target_rows(of_users, ids, times, behaviours, first, rows, max_history)
        tables[name] = table.cast(schema_of(name, typed))
    return tables, left_out


def stitch_windows(rows: pa.Table, window: int | None = None) -> pa.Table:
    """Rebuilds training sequences from training windows alone (one row = a history cut to the last items, and a
    target), as MiniOneRec ships them.

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


def _seconds(moment: int | str | date) -> int:
    if isinstance(moment, (int, np.integer)):
        return int(moment)
    try:
        parsed = datetime.fromisoformat(str(moment))
    except ValueError as error:
        raise ValueError(f"{moment!r} is neither seconds nor an ISO 8601 date such as 2017-05-19") from error
    return int((parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp())


def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).isoformat().replace("+00:00", "Z")
