"""From SemIDs to items, whoever runs the model: `SearchableCatalogue` is what a search needs of one version of a
catalogue; `widen` runs a search with more and more beams until every request has its distinct items."""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from llmrec.catalogue.filters import CatalogueFilter, Filter, Limit, full_groups, most_within, within_limits
from llmrec.catalogue.semids import SemIDIndex
from llmrec.catalogue.views import view_rows
from llmrec.decoding.beam_search import BeamOutput, Search, check_scores
from llmrec.decoding.semid_states import CatalogueTokens
from llmrec.decoding.trie import RowFilter, SemIDTrie


class ScoredItem(NamedTuple):
    """An item, its score and the row of the index behind its best SemID."""

    item: int
    score: float
    row: int


class Restrictions(NamedTuple):
    """What each of N requests may return; see `RowFilter` and `widen`."""

    masks: list[np.ndarray | None]
    denied: list[np.ndarray]
    limits: list[list[Limit]]


class SearchableCatalogue:
    """The trie, the items behind it, and what filters look at.

    Args:
        items: one row per row of `index`.
        tokenizer: has the tokens of the index.
        views: those that are searched; by default the first, or `""` where there are none.

    Attributes:
        views (`dict`): name → bool [R], the rows of the view; `None` for all.
    """

    def __init__(self, index: SemIDIndex, items: pa.Table, tokenizer, views: Sequence[str] = ()):
        self.index, self._tokenizer = index, tokenizer
        self.filter = CatalogueFilter(items, index.rows_of_items)
        self.views: dict[str, np.ndarray | None] = {}
        for name in views or [next(iter(index.views), "")]:
            self.views[name] = np.isin(np.arange(len(index)), view_rows(index, name)) if name else None

    @cached_property
    def trie(self) -> SemIDTrie:
        """Built when it is first needed: who only checks filters needs none."""
        return SemIDTrie.from_index(self.index, self._tokenizer)

    @cached_property
    def tokens(self) -> CatalogueTokens:
        """What free text needs to know, of the spare codes too."""
        levels = self.index.level_tokens if self.index.adds_tokens else []
        return CatalogueTokens(self.trie, [self._tokenizer.convert_tokens_to_ids(tokens) for tokens in levels])

    @cached_property
    def item_of_row(self) -> np.ndarray:
        """int64 [R]: the number of every row's item in `index.items`."""
        index = self.index
        if len(index.items) == len(index):
            return np.arange(len(index))
        number = {item: number for number, item in enumerate(index.items)}
        return np.fromiter(map(number.__getitem__, index.item_ids), np.int64, len(index))

    def restrictions(
        self, requests: Sequence[Filter | None], histories: Sequence[Sequence[str]], view: str = ""
    ) -> Restrictions | None:
        """What filters allow after histories of item ids, within a view; `None` for everything. Raises `ValueError`
        for a filter that does not fit the catalogue."""
        within = self.views[view or next(iter(self.views))]
        if within is None and all(request is None for request in requests):
            return None
        masks, denied = zip(*(self.filter(request, history) for request, history in zip(requests, histories)))
        if within is not None:  # equal masks stay one object
            both = {id(mask): within if mask is None else mask & within for mask in masks}
            masks = [both[id(mask)] for mask in masks]
        return Restrictions(list(masks), list(denied), [self.filter.limits(request) for request in requests])

    def within_limits(self, request: Filter | None, pairs: list[tuple[int, float]]) -> list[tuple[int, float]]:
        """What the limits of a filter leave of (item, score) pairs, a list that was made of several."""
        limits = self.filter.limits(request)
        if not limits:
            return pairs
        rows = [self.index.row(self.index.items[item]) for item, _ in pairs]
        return [pairs[place] for place in within_limits(rows, limits)]

    def find(
        self, search: Search, k: Sequence[int], num_beams: Sequence[int], within: Restrictions | None = None
    ) -> list[list[ScoredItem]]:
        """The best items after each of N prompts, with a search that is open over them."""
        allowed, limits = None, None
        if within is not None:
            allowed, limits = RowFilter(self.trie, within.masks, within.denied), within.limits
            k = [
                min(wanted, most_within(of_request, self.item_rows(mask, denied))) if of_request else wanted
                for wanted, mask, denied, of_request in zip(k, *within)
            ]
        beams = [max(pair) for pair in zip(k, num_beams)]
        return widen(search, self.trie, self.item_of_row, k, beams, allowed, limits)

    def semids(self, output: BeamOutput) -> list[list[ScoredItem]]:
        """What a search found, by Semantic ID: of the items that share one, the first stands for it."""
        scores, low, _, _ = _read(output)
        rows = self.trie.host_order[low]
        found = zip(self.item_of_row[rows].tolist(), scores.tolist(), rows.tolist())
        return [[*map(ScoredItem, *group)] for group in found]

    def item_rows(self, mask: np.ndarray | None, denied: np.ndarray) -> np.ndarray:
        """int64: one allowed row of every item that has one."""
        rows = np.arange(len(self.index)) if mask is None else np.flatnonzero(mask)
        rows = rows[~np.isin(rows, denied)]
        if len(self.index.items) == len(self.index):
            return rows
        return rows[np.unique(self.item_of_row[rows], return_index=True)[1]]


def widen(
    search: Search,
    trie: SemIDTrie,
    item_of_row: np.ndarray,
    k: Sequence[int],
    num_beams: Sequence[int],
    allowed: RowFilter | None = None,
    limits: Sequence[Sequence[Limit]] | None = None,
) -> list[list[ScoredItem]]:
    """Runs a search over N prompts until every request has its items; see `llmrec.decoding.search_items`.

    Args:
        num_beams: what each request starts with.
        allowed: needed where there are limits.
        limits: of each request; items beyond them are passed over, the best of a group first. Where the beams must
            widen, groups that are full leave the search.
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
        scores, low, high, exhausted = _read(output)
        for number, i in enumerate(batch):
            items = _items(scores[number], low[number], high[number], trie, item_of_row, allowed, i)
            of_request = limits[i] if limits is not None else ()
            if of_request:
                items = [items[place] for place in within_limits([item.row for item in items], of_request)]
            # As many beams as there are SemIDs leave nothing out, whatever the search says of itself.
            if len(items) >= k[i] or exhausted[number] or width >= trie.num_leaves:
                lists[i] = items[: k[i]]
                pending.remove(i)
            elif of_request:  # what can no longer be taken gives up its beams
                full = full_groups(of_request, np.array([item.row for item in items], np.int64))
                mask = allowed.masks[i]
                allowed.masks[i], narrowed = ~full if mask is None else mask & ~full, True
            beams[i] *= 2
    return lists


def _read(output: BeamOutput) -> tuple[np.ndarray, ...]:
    """Scores, low, high and exhausted of a search, copied from its device at once, as float64 and int64."""
    parts = output.scores, output.low, output.high, output.exhausted[:, None]
    numbers = torch.cat([part.double() for part in parts], 1).cpu().numpy()
    scores, low, high, exhausted = np.split(numbers, np.cumsum([part.shape[1] for part in parts[:-1]]), 1)
    check_scores(scores)
    return scores, low.astype(np.int64), high.astype(np.int64), exhausted[:, 0] > 0


def _items(
    scores, low, high, trie: SemIDTrie, item_of_row, allowed: RowFilter | None, request: int
) -> list[ScoredItem]:
    alive = scores > -np.inf
    scores, low, high = scores[alive], low[alive], high[alive]
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
    best = np.lexsort((rows[first], -totals))
    rows = rows[first[best]]
    return list(map(ScoredItem, item_of_row[rows].tolist(), totals[best].tolist(), rows.tolist()))
