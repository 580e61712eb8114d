"""Items that a user already has: whether targets are among them, and whether lists leave them out."""

import numpy as np
import pyarrow as pa

from llmrec.arguments import one_of
from llmrec.data.prepared import PreparedData
from llmrec.data.rows import ids_to_rows, lists_to_rows


def repeats(rows: pa.Table, item_ids: pa.ChunkedArray) -> np.ndarray:
    """bool [n]: whether the target of a row (`llmrec.data.prepared.TARGETS`) is an item of its history."""
    histories, offsets = lists_to_rows(rows["history"], item_ids)
    targets, row = ids_to_rows(rows["target"], item_ids), np.repeat(np.arange(rows.num_rows), np.diff(offsets))
    found = np.zeros(rows.num_rows, bool)
    found[row[histories == targets[row]]] = True
    return found


def excludes_seen(choice: str | bool, data: PreparedData, *more: pa.Table) -> bool:
    """Whether lists leave out the items of the history. `"auto"`: where no target of validation, test or `more` rows
    is one of these, for a place that they take can never be right there; `"true"` and `"false"` say it themselves.
    Raises `ValueError` for any other word."""
    choice = one_of(str(choice).lower(), ("auto", "true", "false"), "exclude_seen:")
    if choice != "auto":
        return choice == "true"
    return not any(repeats(rows, data.items["item_id"]).any() for rows in (data.valid, data.test, *more))
