"""What is known of the items of histories beside which they are: when each was taken, as what (a view, a purchase),
and what the next interaction is to be. Networks that read actions get it as one matrix beside the flat items."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from llmrec.arguments import one_of
from llmrec.data.prepared import PreparedData
from llmrec.data.rows import flatten_beside, flatten_lists
from llmrec.data.times import UNKNOWN, history_times, training_times

TIME, BEHAVIOUR, NEXT = range(3)  # columns: seconds, the number of a kind of interaction, that of the one after it


def known_items(
    offsets: np.ndarray,
    times: np.ndarray | None = None,
    behaviours: np.ndarray | None = None,
    wanted: np.ndarray | None = None,
) -> np.ndarray:
    """int64 [n, 3], `UNKNOWN` where nothing is known, of the flat items of m lists (int64 [m + 1]): their times and
    kinds (int [n]), and the kind that is to follow each list (int [m])."""
    known = np.full((offsets[-1], 3), UNKNOWN, np.int64)
    if times is not None:
        known[:, TIME] = times
    if behaviours is not None:
        known[:, BEHAVIOUR] = behaviours
        known[:-1, NEXT] = behaviours[1:]
        filled = np.diff(offsets) > 0
        known[offsets[1:][filled] - 1, NEXT] = UNKNOWN if wanted is None else wanted[filled]
    return known


def training_known(train: pa.Table, timed: bool, behaviours: Sequence[str]) -> np.ndarray:
    """As `known_items`, of training sequences. `behaviours`: the kinds that are read, none or all of the data's."""
    _, offsets = flatten_lists(train["item_ids"])
    kinds = numbers_of(flatten_beside(train, "behaviours", offsets), behaviours) if behaviours else None
    return known_items(offsets, training_times(train) if timed else None, kinds)


def history_known(rows: pa.Table, data: PreparedData, timed: bool, behaviours: Sequence[str]) -> np.ndarray:
    """As `known_items`, of histories (`llmrec.data.prepared.TARGETS`); each is to be followed by the target's kind."""
    _, offsets = flatten_lists(rows["history"])
    times = history_times(rows, data).values.to_numpy() if timed else None
    if not behaviours:
        return known_items(offsets, times)
    kinds = numbers_of(flatten_beside(rows, "behaviours", offsets, "histories"), behaviours)
    return known_items(offsets, times, kinds, numbers_of(rows["target_behaviour"], behaviours))


def numbers_of(kinds: pa.Array | pa.ChunkedArray | Sequence[str], behaviours: Sequence[str]) -> np.ndarray:
    """int64 [n]: the places of kinds of interaction among `behaviours`; raises `ValueError` for another word."""
    kinds = kinds.to_pylist() if isinstance(kinds, (pa.Array, pa.ChunkedArray)) else kinds
    number = {one: list(behaviours).index(one_of(one, behaviours, "behaviour")) for one in dict.fromkeys(kinds)}
    return np.array([number[one] for one in kinds], np.int64)


def check_behaviours(behaviours: Sequence[str], data: PreparedData, name: str) -> None:
    """Raises `ValueError` where these are not the kinds of interaction that data has (in any order)."""
    if behaviours and "behaviours" not in data.train.column_names:
        raise ValueError(
            f"{name}: behaviours is {list(behaviours)}, but the data does not say what an interaction was (no column "
            "behaviours in train.parquet): leave the setting out, or prepare a log that has a column behaviour"
        )
    if behaviours and set(behaviours) != set(data.behaviours):
        raise ValueError(f"{name}: behaviours is {list(behaviours)}, but the data has {data.behaviours}: name these")
