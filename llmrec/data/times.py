"""When the items of histories were taken: rows of validation and test know the time of their target only."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.data.prepared import PreparedData
from llmrec.data.rows import events_of, flatten_beside, flatten_lists, list_array, numbered

UNKNOWN = -1


def training_times(train: pa.Table) -> np.ndarray:
    """int64 [n]: seconds, of the flat items of training sequences; `UNKNOWN` where none is known."""
    _, offsets = flatten_lists(train["item_ids"])
    return pc.fill_null(flatten_beside(train, "timestamps", offsets), UNKNOWN).to_numpy()


def history_times(rows: pa.Table, data: PreparedData) -> pa.ListArray:
    """list<int64>: seconds, of the items of histories (`llmrec.data.prepared.TARGETS`), as the training sequences and
    the validation targets of the same user say; of an item that was taken several times the last time before the row's
    own. `UNKNOWN` where they say nothing. No target of test is read."""
    items, offsets = flatten_lists(rows["history"])
    row = np.repeat(np.arange(rows.num_rows), np.diff(offsets))
    names = ["user_id", "item_id", "timestamp"]
    known = pa.concat_tables([events_of(part).select(names) for part in (data.train, data.valid)])
    known = known.filter(pc.is_valid(known["timestamp"]))
    asked = pa.table({"user_id": rows["user_id"].take(pa.array(row)), "item_id": items})
    users, _ = numbered(known["user_id"], asked["user_id"])
    numbers, catalogue = numbered(known["item_id"], asked["item_id"])
    pair, wanted = (user.astype(np.int64) * len(catalogue) + item for user, item in zip(users, numbers))

    own = pc.fill_null(rows["timestamp"], np.iinfo(np.int64).max).to_numpy()[row]
    # Known and asked pairs in order of time, a known one behind an asked one of the same second: each asked one finds
    # the known one before it.
    is_asked = np.arange(len(pair) + len(wanted)) >= len(pair)
    pairs, when = np.concatenate([pair, wanted]), np.concatenate([known["timestamp"].to_numpy(), own])
    order = np.lexsort((~is_asked, when, pairs))
    place = np.maximum.accumulate(np.where(is_asked[order], -1, np.arange(len(order))))
    before = order[place]
    found = np.where((place >= 0) & (pairs[before] == pairs[order]), when[before], UNKNOWN)
    times = np.empty(len(order), np.int64)
    times[order] = found
    return list_array(pa.array(times[len(pair) :]), offsets)
