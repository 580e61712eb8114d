"""Ranking metrics of one target per row, from the target's rank alone.

With one target recall@k is the hit rate. ndcg@k is 1 / log2(rank + 1) and mrr@k is 1 / rank, both 0 beyond k.

**Items that share a Semantic ID.** A model that decodes SemIDs cannot tell such items apart, so their order in its
list means nothing. Item-level metrics are therefore the expectation over a random order inside the target's group:
the group has `g` items in the catalogue and starts at rank `p` (the first recommended item of the group), so the
target stands at p, p + 1, …, p + g - 1 with equal chance. SemID-level metrics rank distinct SemIDs, and every item
of the group counts as the target: higher, and comparable only with other SemID-level figures.
"""

from collections.abc import Sequence

import numpy as np

KS = (1, 3, 5, 10, 20, 50)


def row_metrics(ranks: np.ndarray, groups: np.ndarray | None = None, ks: Sequence[int] = KS) -> dict[str, np.ndarray]:
    """recall@k, ndcg@k and mrr@k of every row: `{"recall@1": float64 [n], ...}`.

    Args:
        ranks: int [n], the rank of the target (from 1) or where its group starts; 0 = not in the list.
        groups (*optional*): int [n], how many items share the target's SemID; 1 by default.

    Raises:
        ValueError: a negative rank, a group smaller than 1, or a k smaller than 1.
    """
    ranks = np.asarray(ranks, np.int64)
    groups = np.ones_like(ranks) if groups is None else np.asarray(groups, np.int64)
    if len(ranks) and (ranks.min() < 0 or groups.min() < 1):
        raise ValueError("ranks count from 1 (0 = absent) and a group has at least one item")
    if min(ks) < 1:
        raise ValueError(f"k must be at least 1, got {min(ks)}")
    gains = 1 / np.arange(1, max(ks) + 1)
    discounts = 1 / np.log2(np.arange(2, max(ks) + 2))
    cumulative = {
        "recall": np.arange(max(ks) + 1.0),
        "ndcg": np.concatenate([[0.0], np.cumsum(discounts)]),
        "mrr": np.concatenate([[0.0], np.cumsum(gains)]),
    }
    values = {}
    for name, total in cumulative.items():
        for k in ks:
            first = np.minimum(np.where(ranks > 0, ranks - 1, k), k)
            last = np.minimum(first + groups, k)
            values[f"{name}@{k}"] = (total[last] - total[first]) / groups
    return values


def seen_items(values: np.ndarray, offsets: np.ndarray, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """`(row, item)`, int64 each: every different item of every history (`lists_to_rows`) once."""
    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return np.divmod(np.unique(row * num_items + values), num_items)


def target_ranks(
    lists: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
    seen: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """What `row_metrics` takes: `(ranks, sizes)`, int64 [n] each.

    Args:
        lists: int [n, K], rows of the catalogue, negative where there is none.
        targets: int [n], rows of the catalogue.
        groups: int [items], equal for items that share a Semantic ID.
        seen (*optional*): items that each list leaves out, `(values, offsets)` as from `lists_to_rows`. They are no
            part of the target's group, and a target among them is in no list.
    """
    wanted = groups[targets]
    ranks = first_positions(np.where(lists >= 0, groups[lists], -1), wanted)
    sizes = np.bincount(groups)[wanted]
    if seen is not None:
        row, item = seen_items(*seen, len(groups))
        sizes = sizes - np.bincount(row[groups[item] == wanted[row]], minlength=len(targets))
        gone = row[item == targets[row]]
        ranks[gone], sizes[gone] = 0, 1
    return ranks, sizes


def first_positions(lists: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """int64 [n]: where (from 1) `targets` [n] first occurs in the rows of `lists` [n, K]; 0 = nowhere."""
    hits = lists == targets[:, None]
    return np.where(hits.any(1), hits.argmax(1) + 1, 0).astype(np.int64)


def first_occurrences(lists: np.ndarray) -> np.ndarray:
    """bool [n, K]: True where a value >= 0 occurs in its row for the first time (negative values are padding)."""
    order = np.argsort(lists, axis=1, kind="stable")
    ordered = np.take_along_axis(lists, order, 1)
    fresh = np.ones(lists.shape, bool)
    fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    result = np.empty_like(fresh)
    np.put_along_axis(result, order, fresh & (ordered >= 0), 1)
    return result


def list_metrics(
    lists: np.ndarray, num_items: int, ks: Sequence[int] = KS, left_out: np.ndarray | int = 0
) -> dict[str, float]:
    """valid@k and coverage@k of all lists (int [n, K]: catalogue rows, negative where there is none) together.

    valid@k is the share of the `min(k, num_items - left_out)` places that hold an item of the catalogue not named
    before in the same list (`left_out`: int [n], how many items each list may not hold), coverage@k the share of the
    catalogue that stands in the first k places of any list.
    """
    possible = np.broadcast_to(num_items - np.asarray(left_out), len(lists))
    fresh = first_occurrences(lists)
    values = {}
    for k in ks:
        shown = lists[:, :k][fresh[:, :k]]
        values[f"valid@{k}"] = len(shown) / max(1, int(np.minimum(k, possible).sum()))
        values[f"coverage@{k}"] = len(np.unique(shown)) / max(1, num_items)
    return values
