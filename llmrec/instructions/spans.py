"""Rows as spans of the training sequences: four numbers each, whatever the length of a history.

`start`, `middle`, `stop` are places in all sequences laid end to end: the history is `[start, middle)`, the targets
are `[middle, stop)`. A log of 20 million interactions is 600 MB of spans; as lists of ids it would be many times that.
Items come back where a row is read (`Sequences.rows`).
"""

from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.data import PreparedData
from llmrec.data.rows import flatten_lists, offsets_of, ragged_arange

SPAN = ("sequence", "start", "middle", "stop")


def span_table(*columns: np.ndarray) -> pa.Table:
    """int64 columns `SPAN`, one row per task row."""
    return pa.table({name: np.asarray(column, np.int64) for name, column in zip(SPAN, columns, strict=True)})


def target_spans(data: PreparedData, max_history: int, rng: np.random.Generator | None = None) -> pa.Table:
    """One row per training target, after at most `max_history` items, in the order of the sequences."""
    train = data.train
    length = pc.list_value_length(train["item_ids"]).to_numpy().astype(np.int64)
    offsets = offsets_of(length)
    context = np.minimum(train["num_context"].to_numpy(), length)
    target = ragged_arange(offsets[:-1] + context, offsets[1:])
    sequence = np.repeat(np.arange(len(length)), length - context)
    return span_table(sequence, np.maximum(offsets[:-1][sequence], target - max_history), target, target + 1)


def preceded_spans(data: PreparedData, max_history: int, rng: np.random.Generator | None = None) -> pa.Table:
    """One row per training target that has a history."""
    spans = target_spans(data, max_history)
    return spans.filter(pc.greater(spans["middle"], spans["start"]))


def last_target_spans(data: PreparedData, max_history: int, rng: np.random.Generator | None = None) -> pa.Table:
    """One row per user, for the last training target that has a history."""
    spans = preceded_spans(data, max_history)
    return spans.filter(pa.array(np.diff(spans["sequence"].to_numpy(), append=-1) != 0))


class Sequences:
    """The training sequences laid end to end, and the rows that spans of them stand for."""

    def __init__(self, train: pa.Table):
        self.items, _ = flatten_lists(train["item_ids"])
        self.kinds = flatten_lists(train["behaviours"])[0] if "behaviours" in train.column_names else None
        self.users = train["user_id"].combine_chunks()

    def targets(self, spans: pa.Table) -> pa.Array:
        """The first target of each span, without copies of their ids: a dictionary array."""
        return self._codes.take(spans["middle"].combine_chunks())

    @cached_property
    def _codes(self) -> pa.DictionaryArray:
        return self.items.dictionary_encode()

    def rows(self, table: pa.Table) -> list[dict]:
        """Rows of a task with `history` and `targets`; columns other than `SPAN` stay as they are."""
        rest = [name for name in table.column_names if name not in SPAN]
        rows = table.select(rest).to_pylist() if rest else [{} for _ in range(table.num_rows)]
        if "start" not in table.column_names:
            return rows
        for row, sequence, start, middle, stop in zip(rows, *(table[name].to_pylist() for name in SPAN)):
            items = self.items.slice(start, stop - start).to_pylist()
            row |= {"user_id": self.users[sequence].as_py()}
            row |= {"history": items[: middle - start], "targets": row.get("targets", items[middle - start :])}
            if self.kinds is not None:
                kinds = self.kinds.slice(start, stop - start).to_pylist()
                row |= {"behaviours": kinds[: middle - start], "target_behaviours": kinds[middle - start :]}
        return rows
