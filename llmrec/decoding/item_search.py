"""From SemIDs to items: `widen` runs a search with more and more beams until every request has its distinct items."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from llmrec.catalogue.filters import Limit, full_groups, within_limits
from llmrec.decoding.beam_search import Search
from llmrec.decoding.trie import RowFilter, SemIDTrie


class ScoredItem(NamedTuple):
    """An item, its score and the row of the index behind its best SemID."""

    item: int
    score: float
    row: int


def widen(
    search: Search,
    trie: SemIDTrie,
    item_of_row: np.ndarray,
    k: Sequence[int],
    num_beams: Sequence[int],
    allowed: RowFilter | None = None,
    limits: Sequence[Sequence[Limit]] | None = None,
) -> list[list[ScoredItem]]:
    """Runs a search until every request has its items; see `llmrec.decoding.search_items`.

    Args:
        search: over N prompts, whoever runs the model.
        num_beams: what each request starts with.
        allowed (*optional*): needed where there are limits.
        limits (N of `Limit`s, *optional*): items beyond them are passed over, the best of a group first. Where the
            beams must widen, groups that are full leave the search.
    """
    narrowed = False
    lists: list[list[ScoredItem]] = [[] for _ in k]
    beams = list(num_beams)
    pending = list(range(len(k)))
    while pending:
        width = min(beams[i] for i in pending)
        batch = [i for i in pending if beams[i] == width]
        everything = len(batch) == len(k) and not narrowed
        output = search(
            None if len(batch) == len(k) else torch.tensor(batch, device=trie.device),
            min(width, trie.num_leaves),
            allowed if allowed is None or everything else allowed.select(batch),
        )
        scores, low, high, exhausted = (
            part.cpu().numpy() for part in (output.scores, output.low, output.high, output.exhausted)
        )
        for number, i in enumerate(batch):
            items = _items(scores[number], low[number], high[number], trie, item_of_row, allowed, i)
            of_request = limits[i] if limits is not None else ()
            if of_request:
                items = [items[place] for place in within_limits([item.row for item in items], of_request)]
            if len(items) >= k[i] or exhausted[number]:
                lists[i] = items[: k[i]]
                pending.remove(i)
            elif of_request:  # what can no longer be taken gives up its beams
                full = full_groups(of_request, np.array([item.row for item in items], np.int64))
                mask = allowed.masks[i]
                kept = ~full if mask is None else mask & ~full
                allowed.masks[i], narrowed = kept, True
            beams[i] *= 2
    return lists


def _items(
    scores, low, high, trie: SemIDTrie, item_of_row, allowed: RowFilter | None, request: int
) -> list[ScoredItem]:
    """All items of one request's beams, sorted."""
    alive = scores > -np.inf
    scores, low, high = scores[alive].astype(np.float64), low[alive], high[alive]
    counts = high - low
    starts = np.repeat(low - np.append(0, counts.cumsum()[:-1]), counts) if len(counts) else low
    rows = trie.host_order[starts + np.arange(len(starts))].astype(np.int64)
    row_scores = np.repeat(scores, counts)
    if allowed is not None:
        kept = allowed.keep(request, rows)
        rows, row_scores = rows[kept], row_scores[kept]
    by_score = np.lexsort((rows, -row_scores))
    rows, row_scores = rows[by_score], row_scores[by_score]
    _, first, place = np.unique(item_of_row[rows], return_index=True, return_inverse=True)
    totals = np.full(len(first), -np.inf)
    np.logaddexp.at(totals, place, row_scores)
    return [
        ScoredItem(int(item_of_row[rows[first[i]]]), float(totals[i]), int(rows[first[i]]))
        for i in np.lexsort((rows[first], -totals))
    ]
