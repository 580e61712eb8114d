"""Controls that must lose: the same recommender and rows, with the information in the histories destroyed."""

import numpy as np
import pyarrow as pa

from llmrec.data.rows import flatten_lists, list_array, with_columns


def shuffle_histories(rows: pa.Table, seed: int = 0) -> pa.Table:
    """Gives every row the history of another row (a random cycle, so none keeps its own).

    What can be left is popularity: a personal recommender must fall to that level or below. Raises `ValueError`: fewer
    than two rows.
    """
    if rows.num_rows < 2:
        raise ValueError("histories can be exchanged only between at least two rows")
    order = np.random.default_rng(seed).permutation(rows.num_rows)
    source = np.empty_like(order)
    source[order] = np.roll(order, 1)
    return with_columns(rows, {name: rows[name].take(pa.array(source)) for name in _histories(rows)})


def shuffle_order(rows: pa.Table, seed: int = 0) -> pa.Table:
    """Shuffles the items inside every history: what is lost is what the order of the items tells."""
    items, offsets = flatten_lists(rows["history"])
    row = np.repeat(np.arange(rows.num_rows), np.diff(offsets))
    order = np.lexsort((np.random.default_rng(seed).random(len(items)), row))
    lists = {name: flatten_lists(rows[name])[0].take(pa.array(order)) for name in _histories(rows)}
    return with_columns(rows, {name: list_array(values, offsets) for name, values in lists.items()})


def _histories(rows: pa.Table) -> list[str]:
    return [name for name in ("history", "behaviours") if name in rows.column_names]


CONTROLS = {"shuffled histories": shuffle_histories, "shuffled order": shuffle_order}
