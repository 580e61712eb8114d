"""What every baseline shares: item ids to rows, and a dense score matrix to filtered, deterministic lists."""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from llmrec.catalogue.filters import CatalogueFilter, Filter, within_limits
from llmrec.data import PreparedData, lists_to_rows
from llmrec.recommenders.protocol import Recommendation, per_request

_SCORES = 2**26  # scores held at once


class Catalogue:
    """The items a baseline ranks, in the order that breaks ties.

    Args:
        items (`pa.Table`): has `item_id` (distinct); `title` and the columns of predicates are optional.
    """

    def __init__(self, items: pa.Table):
        self.items = items
        self.item_ids = items["item_id"].to_pylist()
        self.titles = items["title"].to_pylist() if "title" in items.column_names else [""] * len(self.item_ids)
        self.filter = CatalogueFilter(items)

    def __len__(self) -> int:
        return len(self.item_ids)

    def rows(self, histories: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
        """`(values int32 [n], offsets int64 [m + 1])` of the histories; an unknown item raises `ValueError`."""
        return lists_to_rows(pa.array([list(h) for h in histories], pa.list_(pa.string())), self.items["item_id"])

    def recommend(
        self,
        score: Callable[[np.ndarray, np.ndarray], np.ndarray],
        histories: Sequence[Sequence[str]],
        k: int | Sequence[int],
        filters: Filter | Sequence[Filter] | None,
    ) -> list[list[Recommendation]]:
        """`Recommender.recommend` for anything that scores the whole catalogue.

        Args:
            score: called with `(values, offsets)` of b histories (so many that 2**26 scores hold them), returns float
                `[b, items]`.
        """
        ks = per_request(k, len(histories), "k")
        requests = per_request(filters, len(histories), "filters")
        if any(number < 1 for number in ks):
            raise ValueError(f"k must be at least 1, got {min(ks)}")
        values, offsets = self.rows(histories)
        lists = []
        batch_size = max(1, min(256, _SCORES // max(1, len(self))))
        for start in range(0, len(histories), batch_size):
            chosen = slice(start, min(start + batch_size, len(histories)))
            bounds = offsets[chosen.start : chosen.stop + 1]
            scores = score(values[bounds[0] : bounds[-1]], bounds - bounds[0])
            for row, history, number, request in zip(scores, histories[chosen], ks[chosen], requests[chosen]):
                allowed = None if request is None else self.filter.allowed(request, history)
                limits = self.filter.limits(request)
                best = top_rows(row, len(self) if limits else number, allowed)
                if limits:
                    best = best[within_limits(best, limits)][:number]
                lists.append([Recommendation(self.item_ids[i], float(row[i]), self.titles[i] or "") for i in best])
        return lists


def train_counts(data: PreparedData) -> np.ndarray:
    """int64 [items]: how often every item of the catalogue occurs in train, as context or as target."""
    values, _ = lists_to_rows(data.train["item_ids"], data.items["item_id"])
    return np.bincount(values, minlength=data.items.num_rows).astype(np.int64)


def top_rows(scores: np.ndarray, k: int, allowed: np.ndarray | None = None) -> np.ndarray:
    """int64 [<= k]: rows of the highest scores, best first; equal scores stand in the catalogue's order.

    Args:
        scores: float [items].
        allowed (*optional*): bool [items]; the others are left out.
    """
    rows = np.arange(len(scores)) if allowed is None else np.flatnonzero(allowed)
    if k < len(rows):
        # argpartition alone would pick arbitrary rows among those that tie with the k-th.
        kth = np.partition(scores[rows], len(rows) - k)[len(rows) - k]
        rows = rows[scores[rows] >= kth]
    return rows[np.argsort(-scores[rows], kind="stable")][:k]
