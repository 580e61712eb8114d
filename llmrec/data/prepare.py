"""`prepare`: from interactions and items to `PreparedData`, by explicit rules that are recorded beside the output.

Of every interaction a few numbers are held; the tables of sequences are made and written for some users at a time
(`prepare_parts`).
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.arguments import one_of, whole_number
from llmrec.columns import as_table
from llmrec.data.cleaning import clean_items, k_core
from llmrec.data.prepared import TARGETS, PreparedData
from llmrec.data.prepared_parts import PreparedParts
from llmrec.data.rows import ids_to_rows, lists_to_rows, numbered, with_columns
from llmrec.data.sequences import (
    LABELS,
    REPEATS,
    TIES,
    build_tables,
    duplicates,
    in_order,
    label_by_time,
    label_leave_one_out,
    last_items,
    last_of_users,
    parts_of_users,
    repeats_kept,
    stitch_windows,
)
from llmrec.data.statistics import name_heavy_users
from llmrec.data.validate import items_of_interactions, standard_interactions, standard_items

_RULES = ("repeats", "max_user_interactions", "user_k_or_item_k")  # in the order in which they apply


def prepare(interactions, items, **rules) -> PreparedData:
    """`prepare_parts`, all in memory."""
    return prepare_parts(interactions, items, **rules).whole()


def prepare_parts(
    interactions,
    items,
    *,
    user_k: int = 0,
    item_k: int = 0,
    split: str = "leave_one_out",
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    valid_start: int | str | None = None,
    test_start: int | str | None = None,
    ties: str = "input_order",
    repeats: str = "keep",
    behaviours: Sequence[str] | None = None,
    min_rating: float | None = None,
    unknown_items: str = "error",
    keep_all_items: bool = False,
    clean: bool = True,
    max_history: int | None = 50,
    max_user_interactions: int | None = None,
    currency: str | None = None,
    name: str = "",
    source: str = "",
    part_size: int = 2**22,
) -> PreparedParts:
    """Validates, cleans, filters, sorts and splits; the tables follow when the parts are read.

    Args:
        interactions, items (`pa.Table`, or a data frame of pandas or polars): in the columns of
            `llmrec.data.validate`. Interactions with a `history` column are ready windows: `split` must be "given",
            their training rows are stitched into sequences, the rules for ties, repeats and k-core do not apply, and
            they have no kinds (`behaviour`).
        user_k, item_k: every user (item) keeps at least so many interactions; with `item_k` 0 items without
            interactions stay in the catalogue.
        split: "leave_one_out" (last = test, last but one = valid), "time" (two points in time for all users)
            or "given" (a column `split` with train, valid, test).
        fractions, valid_start, test_start: of the split by time, see `label_by_time`.
        ties: order of a user's interactions of one time: "input_order" or "item_id" (as text).
        repeats: "keep", "drop_duplicates" (the same item at the same time), "drop_consecutive" or "first".
        behaviours (*optional*), min_rating (*optional*): keep only these kinds, only ratings from this one on. Two
            kinds or more are written beside the items, the one to recommend last (by default the rarest); an item with
            another kind is no repeat.
        unknown_items: "error", or "drop" the interactions with items that are not in `items`.
        keep_all_items: the catalogue keeps items that did not survive.
        clean: remove HTML and surplus white space from item text.
        max_history: validation and test histories keep their last items only.
        max_user_interactions: a user with more keeps the last ones. One who has a large part of all (a shared account,
            a robot) is named in a warning.
        currency: of the prices, as prompts say it: a sign ("€") or capitals ("EUR"). It becomes a column of the items.
        part_size: about how many interactions make a part; it changes no row, nor their order.

    Raises:
        ValueError: bad input, a rule that does not exist or does not apply, or nothing left.
    """
    one_of(split, ("leave_one_out", "time", "given"), "split")
    one_of(ties, TIES, "ties")
    one_of(repeats, REPEATS, "repeats")
    for limit, given in (("max_history", max_history), ("max_user_interactions", max_user_interactions)):
        if given is not None:
            whole_number(given, limit)
    whole_number(part_size, "part_size")
    rules = {
        "split": split,
        "user_k": user_k,
        "item_k": item_k,
        "ties": ties,
        "repeats": repeats,
        "behaviours": list(behaviours) if behaviours is not None else None,
        "min_rating": min_rating,
        "unknown_items": unknown_items,
        "keep_all_items": keep_all_items,
        "clean": clean,
        "max_history": max_history,
        "max_user_interactions": max_user_interactions,
    }
    interactions = standard_interactions(as_table(interactions, "interactions"))
    items = standard_items(as_table(items, "items"))
    if currency:
        items = with_columns(items, {"currency": pa.array([currency] * len(items), pa.string())})
    given, dropped = len(interactions), {}
    if clean:
        items = clean_items(items)
    if split == "given" and "split" not in interactions.column_names:
        raise ValueError("split: given needs a column 'split' with train, valid, test in the interactions")
    if "history" in interactions.column_names:
        counts = user_k or item_k or max_user_interactions is not None
        if split != "given" or counts or repeats != "keep" or behaviours or min_rating is not None:
            raise ValueError(
                "the interactions are ready windows (a column 'history'): set split: given, and leave user_k, item_k, "
                "max_user_interactions, repeats, behaviours and min_rating alone"
            )
        if "behaviour" in interactions.column_names and pc.count_distinct(interactions["behaviour"]).as_py() > 1:
            raise ValueError("ready windows do not say the kinds of their histories: leave out the column 'behaviour'")
        rules = {"split": "windows", "clean": clean, "max_history": max_history}
        parts, kinds = iter([_windows(interactions, items, max_history)]), None
    else:
        interactions = _wanted(interactions, behaviours, min_rating)
        dropped["behaviours_or_min_rating"] = given - len(interactions)
        known, item_rows = items_of_interactions(interactions, items, unknown_items)
        dropped["unknown_items"] = len(interactions) - len(known)
        interactions = known
        kinds = _kinds(interactions, behaviours)
        kept, users, item_rows, user_ids, found = _sequence_order(
            interactions, items, item_rows, kinds, user_k, item_k, ties, repeats, max_user_interactions
        )
        dropped |= found
        if not len(users):
            raise ValueError(f"no interaction is left with user_k {user_k} and item_k {item_k}: lower them")
        times = _timestamps(interactions).take(pa.array(kept))
        if split == "leave_one_out":
            labels = label_leave_one_out(users)
        elif split == "time":
            if times.null_count:
                raise ValueError(f"split: time needs a timestamp everywhere; {times.null_count} are missing")
            labels, *points = label_by_time(times.to_numpy(), fractions, valid_start, test_start)
            rules |= {"valid_start": points[0], "test_start": points[1]}
        else:
            labels = _given_labels(interactions["split"].combine_chunks().take(pa.array(kept)))
        kind_of = None if kinds is None else kinds.take(pa.array(kept))
        del interactions, known, kept
        done = users, item_rows, times, labels, kind_of
        parts = _tables(done, user_ids, items["item_id"].combine_chunks(), max_history, rules, part_size)
        if item_k and not keep_all_items:
            items = items.filter(pa.array(np.bincount(item_rows, minlength=len(items)) > 0))
    prepared = PreparedParts(items, parts, {"name": name, "source": source, "rules": rules})
    if kinds is not None:
        prepared.info["behaviours"] = kinds.dictionary.to_pylist()
    if dropped:
        again = {name: dropped.pop(name) for name in ("duplicates", "duplicates_kept") if name in dropped}
        prepared.counted = {"given_interactions": given, **again}
        prepared.counted |= {f"dropped_{rule}": count for rule, count in dropped.items() if count}
    return prepared


def _tables(done: tuple, user_ids, item_ids, max_history, rules: dict, size: int) -> Iterator[dict[str, pa.Table]]:
    """`build_tables` of some users after the other, of which `done` are users, items, times, labels and kinds."""
    users = done[0]
    rules["targets_without_history_left_out"] = 0
    for part in parts_of_users(users, size):
        first, last = int(users[part.start]), int(users[part.stop - 1])
        some, items, times, labels, kinds = (None if column is None else column[part] for column in done)
        of_users, kinds = user_ids[first : last + 1], None if kinds is None else kinds.cast(pa.string())
        tables, left_out = build_tables(some - first, items, times, labels, of_users, item_ids, max_history, kinds)
        rules["targets_without_history_left_out"] += left_out
        yield tables


def _wanted(interactions: pa.Table, behaviours: Sequence[str] | None, min_rating: float | None) -> pa.Table:
    for column, rule, asked in (("behaviour", "behaviours", behaviours), ("rating", "min_rating", min_rating)):
        if asked is not None and column not in interactions.column_names:
            raise ValueError(f"{rule} needs a column {column!r} in the interactions")
    if behaviours is not None:
        interactions = interactions.filter(pc.is_in(interactions["behaviour"], pa.array(behaviours, pa.string())))
    if min_rating is not None:
        interactions = interactions.filter(pc.greater_equal(interactions["rating"], min_rating))
    return interactions


def _kinds(interactions: pa.Table, wanted: Sequence[str] | None) -> pa.DictionaryArray | None:
    """The kind of every interaction, the most important kind last; `None` where fewer than two kinds are left."""
    if "behaviour" not in interactions.column_names or not len(interactions):
        return None
    column = interactions["behaviour"].combine_chunks()
    if 0 < column.null_count < len(column):
        raise ValueError(
            f"interactions, column 'behaviour': {column.null_count} of {len(column)} have no value; fill them, or say "
            "with behaviours which kinds to keep"
        )
    counts = {pair["values"]: pair["counts"] for pair in column.drop_null().value_counts().to_pylist()}
    names = sorted(counts, key=lambda kind: (-counts[kind], kind))
    if wanted is not None:
        names = [kind for kind in dict.fromkeys(wanted) if kind in counts]
    if len(names) < 2:
        return None
    return pa.DictionaryArray.from_arrays(pc.index_in(column, pa.array(names)), pa.array(names))


def _sequence_order(
    interactions, items, item_rows, kinds, user_k, item_k, ties, repeats, max_user_interactions
) -> tuple[np.ndarray, np.ndarray, np.ndarray, pa.Array, dict[str, int]]:
    """`(rows of the interactions that stay, in order; their users; their items; user ids; how many duplicates there
    were, stayed, and how many interactions each rule dropped)`."""
    (users,), user_ids = numbered(interactions["user_id"])
    name_heavy_users(users, user_ids)
    ranks = None
    if ties == "item_id":
        by_text = pc.sort_indices(items["item_id"]).to_numpy()
        ranks = np.empty(len(by_text), np.int32)
        ranks[by_text] = np.arange(len(by_text), dtype=np.int32)
        ranks = ranks[item_rows]
    kept = in_order(users, *(key for key in (_time_key(interactions), ranks) if key is not None))
    users, item_rows = users[kept], item_rows[kept]
    counts = dict.fromkeys(_RULES, 0)
    again, times = None, interactions["timestamp"] if "timestamp" in interactions.column_names else None
    if times is not None and not times.null_count:
        again = duplicates(users, _done(item_rows, kinds, kept), times.to_numpy()[kept])
        counts |= {"duplicates": int(again.sum())}
    elif repeats == "drop_duplicates":
        raise ValueError("repeats: drop_duplicates compares times: give a column 'timestamp' without gaps")
    while True:
        stays = repeats_kept(users, _done(item_rows, kinds, kept), repeats, again)
        left = [len(users), int(stays.sum())]
        stays[stays] = last_of_users(users[stays], max_user_interactions)
        left.append(int(stays.sum()))
        stays[stays] = k_core(users[stays], item_rows[stays], user_k, item_k)
        left.append(int(stays.sum()))
        for rule, before, after in zip(_RULES, left, left[1:]):
            counts[rule] += before - after
        if again is not None:
            again = again[stays]
            counts["duplicates_kept"] = int(again.sum())
        if stays.all():
            return kept, users, item_rows, user_ids, counts
        kept, users, item_rows = kept[stays], users[stays], item_rows[stays]


def _done(item_rows: np.ndarray, kinds: pa.DictionaryArray | None, kept: np.ndarray) -> np.ndarray:
    """What a repeat repeats: the item, with its kind where there are kinds."""
    if kinds is None:
        return item_rows
    return item_rows.astype(np.int64) * len(kinds.dictionary) + kinds.indices.to_numpy()[kept]


def _time_key(interactions: pa.Table) -> np.ndarray | None:
    """`order` where given, else the timestamps, else nothing (the order of the input)."""
    for name in ("order", "timestamp"):
        if name not in interactions.column_names:
            continue
        column = interactions[name]
        if column.null_count == 0:
            return column.to_numpy()
        if name == "order" or column.null_count < len(column):
            row = pc.index(column.is_null(), True).as_py()
            raise ValueError(
                f"interactions, column {name!r}, row {row + 1}: no value ({column.null_count} are missing); "
                "fill them, drop those rows, or give a column 'order'"
            )
    return None


def _given_labels(column: pa.Array) -> np.ndarray:
    labels = pc.index_in(column, pa.array(LABELS))
    if labels.null_count:
        strange = column.filter(labels.is_null())[0].as_py()
        raise ValueError(f"interactions, column 'split': {strange!r} is not one of {', '.join(LABELS)}")
    return labels.to_numpy().astype(np.int8)


def _windows(interactions: pa.Table, items: pa.Table, max_history: int | None) -> dict[str, pa.Table]:
    lists_to_rows(interactions["history"], items["item_id"])  # raises where one is unknown
    ids_to_rows(interactions["item_id"], items["item_id"])
    labels = _given_labels(interactions["split"].combine_chunks())
    columns = [interactions[name] for name in ("user_id", "history", "item_id")]
    rows = pa.table([*columns, _timestamps(interactions)], schema=TARGETS)
    train, valid, test = (rows.filter(pa.array(labels == label)) for label in range(3))
    return {
        "train": stitch_windows(train),
        "valid": last_items(valid, max_history),
        "test": last_items(test, max_history),
    }


def _timestamps(interactions: pa.Table) -> pa.Array:
    if "timestamp" in interactions.column_names:
        return interactions["timestamp"].combine_chunks()
    return pa.nulls(len(interactions), pa.int64())
