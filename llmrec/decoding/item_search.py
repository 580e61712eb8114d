"""From SemIDs to items: `search_items` widens the beams until every request has its distinct items."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from llmrec.catalogue.filters import Limit, full_groups, within_limits
from llmrec.decoding.beam_search import Normalize, Search, open_search
from llmrec.decoding.trie import RowFilter, SemIDTrie


class ScoredItem(NamedTuple):
    """An item, its score and the row of the index behind its best SemID."""

    item: int
    score: float
    row: int


@torch.no_grad()
def search_items(
    model,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    trie: SemIDTrie,
    item_of_row: torch.Tensor | np.ndarray,
    k: Sequence[int],
    num_beams: int,
    masks: Sequence[np.ndarray | None] | None = None,
    denied: Sequence[np.ndarray] | None = None,
    normalize: Normalize = "vocabulary",
    limits: Sequence[Sequence[Limit]] | None = None,
) -> list[list[ScoredItem]]:
    """The best distinct items after each prompt; call `model.eval()` first.

    A request starts with `max(num_beams, k)` beams, and doubles them until it has k items or no allowed SemID is
    left. The score of an item with several SemIDs is the log-sum-exp over those that the beams hold. Items that share
    a SemID all get its score.

    Args:
        input_ids (int64 [N, P]), attention_mask ([N, P]): prompts, padded on either side, on the trie's device.
        item_of_row (int [R]): the item of every row of the trie.
        k: items wanted, one number per prompt.
        masks (N of bool [R] or `None`): rows allowed; equal masks should be one object.
        denied (N of int64): rows to leave out besides.
        limits (N of `Limit`s): items beyond them are passed over, the best of a group first. Where the beams must
            widen, groups that are full leave the search.

    Returns:
        for each prompt at most k items by falling score, equal scores by row; fewer only where fewer are allowed.
    """
    k = [int(wanted) for wanted in k]
    if len(k) != len(input_ids) or min(k, default=1) < 1 or num_beams < 1:
        raise ValueError(f"k must be {len(input_ids)} numbers of at least 1, and num_beams at least 1")
    allowed = None if masks is None and denied is None else RowFilter(trie, masks, denied)
    search = open_search(model, input_ids, attention_mask, trie, normalize)
    beams = [max(num_beams, wanted) for wanted in k]
    return widen(search, trie, torch.as_tensor(item_of_row).cpu().numpy(), k, beams, allowed, limits)


def widen(
    search: Search,
    trie: SemIDTrie,
    item_of_row: np.ndarray,
    k: Sequence[int],
    num_beams: Sequence[int],
    allowed: RowFilter | None = None,
    limits: Sequence[Sequence[Limit]] | None = None,
) -> list[list[ScoredItem]]:
    """Runs a search until every request has its items; see `search_items`.

    Args:
        search: over N prompts, whoever runs the model.
        num_beams: what each request starts with.
    """
    order = trie.order.cpu().numpy()
    if limits is not None and allowed is None:
        allowed = RowFilter(trie, [None] * len(k), None)
    narrowed = False
    found: list[list[ScoredItem]] = [[] for _ in k]
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
            items = _items(scores[number], low[number], high[number], order, item_of_row, allowed, i)
            of_request = limits[i] if limits is not None else ()
            if of_request:
                items = [items[place] for place in within_limits([item.row for item in items], of_request)]
            if len(items) >= k[i] or exhausted[number]:
                found[i] = items[: k[i]]
                pending.remove(i)
            elif of_request:  # what can no longer be taken gives up its beams
                full = full_groups(of_request, np.array([item.row for item in items], np.int64))
                mask = allowed.masks[i]
                kept = ~full if mask is None else mask & ~full
                allowed.masks[i], narrowed = kept, True
            beams[i] *= 2
    return found


def _items(scores, low, high, order, item_of_row, allowed: RowFilter | None, request: int) -> list[ScoredItem]:
    """All items of one request's beams, sorted."""
    alive = scores > -np.inf
    scores, low, high = scores[alive].astype(np.float64), low[alive], high[alive]
    counts = high - low
    starts = np.repeat(low - np.append(0, counts.cumsum()[:-1]), counts) if len(counts) else low
    rows = order[starts + np.arange(len(starts))].astype(np.int64)
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
