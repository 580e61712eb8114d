"""Fuses the lists that several views of Semantic IDs give for one request."""

from collections.abc import Sequence

import numpy as np


def fuse(
    lists: Sequence[Sequence[tuple[int, float]]], weights: Sequence[float] | None = None
) -> list[tuple[int, float]]:
    """Items by the mixture of the views' probabilities: the log-sum-exp of their scores.

    An item that one view's list does not hold counts there with that list's floor, its lowest score: an upper bound
    of what it would have had, so the longer the lists, the closer to the exact mixture. A view with an empty list
    has no say.

    Args:
        lists: per view (item, log-probability) pairs.
        weights (*optional*): positive, one per view; they are brought to a sum of 1, and are equal by default.

    Returns:
        (item, score) of every item of any list, by falling score, equal scores by item.

    Raises:
        ValueError: weights that are not positive, or not one per view.
    """
    weights = np.ones(len(lists)) if weights is None else np.asarray(weights, np.float64)
    if len(weights) != len(lists) or not (weights > 0).all():
        raise ValueError(f"{len(lists)} lists need as many positive weights, not {weights.tolist()}")
    shares = np.log(weights / weights.sum())
    items = np.unique([item for pairs in lists for item, _ in pairs]).astype(np.int64)
    totals = np.full(len(items), -np.inf)
    for pairs, share in zip(lists, shares):
        if len(pairs):
            scores = np.full(len(items), min(score for _, score in pairs))
            scores[np.searchsorted(items, [item for item, _ in pairs])] = [score for _, score in pairs]
            totals = np.logaddexp(totals, scores + share)
    order = np.lexsort((items, -totals))
    return [(int(items[i]), float(totals[i])) for i in order]
