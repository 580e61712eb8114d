"""Controls that must lose: the same recommender and rows, with the information in the histories destroyed."""

import numpy as np
import pyarrow as pa

from llmrec.data.rows import flatten_lists, list_array


def shuffle_histories(rows: pa.Table, seed: int = 0) -> pa.Table:
    """Gives every row the history of another row (a random cycle, so none keeps its own).

    What can be left is popularity: a personal recommender must fall to that level or below.

    Raises:
        ValueError: fewer than two rows.
    """
    if rows.num_rows < 2:
        raise ValueError("histories can be exchanged only between at least two rows")
    order = np.random.default_rng(seed).permutation(rows.num_rows)
    source = np.empty_like(order)
    source[order] = np.roll(order, 1)
    return rows.set_column(
        rows.schema.get_field_index("history"), rows.schema.field("history"), rows["history"].take(pa.array(source))
    )


def shuffle_order(rows: pa.Table, seed: int = 0) -> pa.Table:
    """Shuffles the items inside every history: what is lost is what the order of the items tells."""
    items, offsets = flatten_lists(rows["history"])
    row = np.repeat(np.arange(rows.num_rows), np.diff(offsets))
    order = np.lexsort((np.random.default_rng(seed).random(len(items)), row))
    history = list_array(items.take(pa.array(order)), offsets)
    return rows.set_column(rows.schema.get_field_index("history"), rows.schema.field("history"), history)
