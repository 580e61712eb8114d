"""Tasks: what a row is about. A task is two small functions, its wording is a YAML file in `prompts/`.

`rows(data, max_history)` picks identities, never text: a table with `history` (list of item ids) and `targets` (list
of item ids). `slots(catalogue, row)` turns them into the strings that templates name, as late as possible. Where
interactions have kinds, `behaviours` and `target_behaviours` are parallel to these, and every item is written after
the token of its kind (MBGen, arXiv 2405.16871).
"""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from llmrec.data import PreparedData, training_rows
from llmrec.data.rows import flatten_lists, list_array, offsets_of, ragged_arange
from llmrec.item_tokenizers.sequence_tokenizer import SequenceTokenizer
from llmrec.item_tokenizers.streams import stream_rows as rows_of_stream
from llmrec.semids import SemIDIndex


class Catalogue:
    """What tasks may say about items: Semantic IDs and the columns of the items table.

    Args:
        index (`SemIDIndex`), items (`pa.Table`).
        sequence_tokenizer (`SequenceTokenizer`, *optional*): where an item's tokens depend on what stands before it.
    """

    def __init__(self, index: SemIDIndex, items: pa.Table, sequence_tokenizer: SequenceTokenizer | None = None):
        if sequence_tokenizer is not None and index.behaviours:
            raise ValueError(f"item tokenizer {sequence_tokenizer.name!r} cannot write behaviours between items")
        self.index = index
        self.sequence_tokenizer = sequence_tokenizer
        self.titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist()))
        self._semids: dict[str, str] = {}
        self._streams: dict[str, Catalogue] = {}

    def stream(self, name: str) -> "Catalogue":
        """The same items in the Semantic IDs of one stream; `""` is the primary one. Unknown: `ValueError`."""
        if not name:
            return self
        if name not in self._streams:
            other = self._streams[name] = copy.copy(self)
            other.index, other._semids = self.index.rows_at(rows_of_stream(self.index, name)), {}
        return self._streams[name]

    def semid(self, item_id: str) -> str:
        if item_id not in self._semids:
            self._semids[item_id] = self.index.encode(item_id)
        return self._semids[item_id]

    def semids(
        self,
        item_ids: Sequence[str],
        separator: str,
        behaviours: Sequence[str] | None = None,
        variation: int | None = None,
    ) -> str:
        """Items in order, each after the token of its behaviour where the index has tokens for them.

        `variation` is the seed of a `SequenceTokenizer`, which may write a history in several ways.
        """
        if self.sequence_tokenizer is not None:
            return "".join(self.sequence_tokenizer.encode_history([item_ids], variation)[0])
        if behaviours is None or not self.index.behaviours:
            return separator.join(map(self.semid, item_ids))
        pairs = zip(behaviours, item_ids, strict=True)
        return separator.join(self.index.behaviour_token(kind) + self.semid(item) for kind, item in pairs)

    def following(self, history: Sequence[str], row: dict, separator: str) -> str:
        """The targets of a row, as they read after a history."""
        targets = row["targets"]
        if self.sequence_tokenizer is None:
            return self.semids(targets, separator, row.get("target_behaviours"))
        before = [[*history, *targets[:place]] for place in range(len(targets))]
        tokens = self.sequence_tokenizer.encode_target(before, targets, row.get("variation")) if targets else []
        return "".join(token for target in tokens for token in target)


class Task(NamedTuple):
    """`rows` gives identities, `slots` (catalogue, row, separator) → strings; does the answer end with a SemID?"""

    rows: Callable[[PreparedData, int], pa.Table]
    slots: Callable[[Catalogue, dict, str], dict[str, str]]
    ends_with_item: bool


def next_item_rows(data: PreparedData, max_history: int) -> pa.Table:
    """One row per training target."""
    rows = training_rows(data.train, max_history)
    targets = list_array(rows["target"].combine_chunks(), np.arange(rows.num_rows + 1))
    table = pa.table({"history": rows["history"], "targets": targets})
    if "behaviours" in rows.column_names:
        kinds = list_array(rows["target_behaviour"].combine_chunks(), np.arange(rows.num_rows + 1))
        table = table.append_column("behaviours", rows["behaviours"]).append_column("target_behaviours", kinds)
    return table


def next_item_slots(catalogue: Catalogue, row: dict, separator: str) -> dict[str, str]:
    return {
        "history": catalogue.semids(row["history"], separator, row.get("behaviours"), row.get("variation")),
        "target": catalogue.following(row["history"], row | {"targets": row["targets"][:1]}, separator),
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
    begin, middle, stop = ((offsets[sequence] + place)[keep] for place in (start, first_target, end))
    table = {"history": _slices(values, begin, middle), "targets": _slices(values, middle, stop)}
    if "behaviours" in data.train.column_names:
        kinds, _ = flatten_lists(data.train["behaviours"])
        table |= {"behaviours": _slices(kinds, begin, middle), "target_behaviours": _slices(kinds, middle, stop)}
    return pa.table(table)


def _slices(values: pa.Array, begin: np.ndarray, end: np.ndarray) -> pa.Array:
    """values[begin_i:end_i] for every i, as one list array."""
    return list_array(values.take(pa.array(ragged_arange(begin, end))), offsets_of(end - begin))


def stream_slots(catalogue: Catalogue, row: dict, separator: str) -> dict[str, str]:
    slots = {
        "history": catalogue.semids(row["history"], separator, row.get("behaviours"), row.get("variation")),
        "targets": catalogue.following(row["history"], row, separator),
    }
    if catalogue.sequence_tokenizer is not None:
        name, history, plain = catalogue.sequence_tokenizer.name, row["history"], row | {"variation": None}
        if separator:
            raise ValueError(f"item tokenizer {name!r} leaves no gaps between items: the separator must be empty")
        apart = catalogue.semids(history, "") + catalogue.following(history, plain, "")
        if catalogue.semids([*history, *row["targets"]], "") != apart:
            raise ValueError(
                f"item tokenizer {name!r} merges neighbouring items, so a history is no list of targets: use a prompt "
                "of task next_item instead of stream"
            )
    return slots


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
