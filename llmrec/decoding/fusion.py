"""Fuses the lists that one request gets in several ways: several views of Semantic IDs, or of writing the history."""

from collections.abc import Sequence

import numpy as np


def fuse(lists: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """Items by the mean of their probabilities in the lists: the log-sum-exp of their scores.

    An item that one list does not hold counts there with that list's floor, its lowest score: an upper bound
    of what it would have had, so the longer the lists, the closer to the exact mixture. An empty list has no say.

    Returns:
        (item, score) of every item of any list, by falling score, equal scores by item.
    """
    items = np.unique([item for pairs in lists for item, _ in pairs]).astype(np.int64)
    totals = np.full(len(items), -np.inf)
    for pairs in lists:
        if len(pairs):
            scores = np.full(len(items), min(score for _, score in pairs))
            scores[np.searchsorted(items, [item for item, _ in pairs])] = [score for _, score in pairs]
            totals = np.logaddexp(totals, scores + np.log(1 / len(lists)))
    order = np.lexsort((items, -totals))
    return [(int(items[i]), float(totals[i])) for i in order]
