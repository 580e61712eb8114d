"""Tasks: what a row is about. A task is two small functions, its wording is a YAML file in `prompts/`.

`rows(data, max_history)` picks identities, never text: a table with `history` (list of item ids) and `targets` (list
of item ids). `slots(catalogue, row)` turns them into the strings that templates name, as late as possible.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from llmrec.data import PreparedData, training_rows
from llmrec.data.rows import flatten_lists, list_array, offsets_of, ragged_arange
from llmrec.semids import SemIDIndex


class Catalogue:
    """What tasks may say about items: Semantic IDs and the columns of the items table."""

    def __init__(self, index: SemIDIndex, items: pa.Table):
        self.index = index
        self.titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist()))
        self._semids: dict[str, str] = {}

    def semid(self, item_id: str) -> str:
        if item_id not in self._semids:
            self._semids[item_id] = self.index.encode(item_id)
        return self._semids[item_id]

    def semids(self, item_ids: Sequence[str], separator: str) -> str:
        return separator.join(self.semid(item) for item in item_ids)


class Task(NamedTuple):
    """`rows` gives identities, `slots` (catalogue, row, separator) → strings; does the answer end with a SemID?"""

    rows: Callable[[PreparedData, int], pa.Table]
    slots: Callable[[Catalogue, dict, str], dict[str, str]]
    ends_with_item: bool


def next_item_rows(data: PreparedData, max_history: int) -> pa.Table:
    """One row per training target."""
    rows = training_rows(data.train, max_history)
    targets = list_array(rows["target"].combine_chunks(), np.arange(rows.num_rows + 1))
    return pa.table({"history": rows["history"], "targets": targets})


def next_item_slots(catalogue: Catalogue, row: dict, separator: str) -> dict[str, str]:
    target = row["targets"][0] if row["targets"] else None
    return {
        "history": catalogue.semids(row["history"], separator),
        "target": catalogue.semid(target) if target is not None else "",
    }


def stream_rows(data: PreparedData, max_history: int) -> pa.Table:
    """One row per user: every item after the context is a target (dense supervision, as SASRec has it).

    A sequence longer than `max_history + 1` is cut into windows of that length which overlap by half; an item is a
    target in one window only, the first that holds it.
    """
    window = max_history + 1
    stride = max(1, window // 2)
    values, offsets = flatten_lists(data.train["item_ids"])
    context = np.maximum(data.train["num_context"].to_numpy(), 1).astype(np.int64)
    length = np.diff(offsets)
    per_sequence = np.where(length > context, 1 + np.maximum(0, -(-(length - window) // stride)), 0)
    sequence = np.repeat(np.arange(len(length)), per_sequence)
    number = np.arange(len(sequence)) - np.repeat(np.cumsum(per_sequence) - per_sequence, per_sequence)
    start = number * stride
    end = np.minimum(start + window, length[sequence])
    first_target = np.maximum(np.where(number > 0, start - stride + window, 0), context[sequence])
    keep = first_target < end
    begin = offsets[sequence] + start
    return pa.table(
        {
            "history": _slices(values, begin[keep], (offsets[sequence] + first_target)[keep]),
            "targets": _slices(values, (offsets[sequence] + first_target)[keep], (offsets[sequence] + end)[keep]),
        }
    )


def _slices(values: pa.Array, begin: np.ndarray, end: np.ndarray) -> pa.Array:
    """values[begin_i:end_i] for every i, as one list array."""
    return list_array(values.take(pa.array(ragged_arange(begin, end))), offsets_of(end - begin))


def stream_slots(catalogue: Catalogue, row: dict, separator: str) -> dict[str, str]:
    return {
        "history": catalogue.semids(row["history"], separator),
        "targets": catalogue.semids(row["targets"], separator),
    }


def item_rows(data: PreparedData, max_history: int) -> pa.Table:
    """One row per catalogue item that has a title."""
    ids = [item for item, title in zip(data.items["item_id"].to_pylist(), data.items["title"].to_pylist()) if title]
    empty = pa.array([[]] * len(ids), pa.list_(pa.string()))
    return pa.table({"history": empty, "targets": pa.array([[item] for item in ids], pa.list_(pa.string()))})


def item_slots(catalogue: Catalogue, row: dict, separator: str) -> dict[str, str]:
    item = row["targets"][0]
    return {"item": catalogue.semid(item), "title": catalogue.titles[item]}


TASKS: dict[str, Task] = {
    "next_item": Task(next_item_rows, next_item_slots, ends_with_item=True),
    "stream": Task(stream_rows, stream_slots, ends_with_item=True),
    "item_to_title": Task(item_rows, item_slots, ends_with_item=False),
    "title_to_item": Task(item_rows, item_slots, ends_with_item=True),
}
