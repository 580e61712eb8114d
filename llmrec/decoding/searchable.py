"""`SearchableCatalogue`: what a search needs of one version of a catalogue, whoever runs the model."""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from llmrec.catalogue.filters import CatalogueFilter, Filter, Limit, most_within
from llmrec.catalogue.semids import SemIDIndex
from llmrec.catalogue.views import view_rows
from llmrec.decoding.beam_search import Search
from llmrec.decoding.item_search import ScoredItem, widen
from llmrec.decoding.trie import RowFilter, SemIDTrie


class Restrictions(NamedTuple):
    """What each of N requests may return; see `RowFilter` and `widen`."""

    masks: list[np.ndarray | None]
    denied: list[np.ndarray]
    limits: list[list[Limit]]


class SearchableCatalogue:
    """The trie, the items behind it, and what filters look at.

    Args:
        index (`SemIDIndex`): the Semantic IDs.
        items (`pa.Table`): one row per row of `index`.
        tokenizer: has the tokens of the index.
        views (sequence of `str`, *optional*): those that are searched; by default the first, or `""` where there
            are none.

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
        """What filters allow after histories of item ids, within a view; `None` for everything.

        Raises:
            ValueError: a filter that does not fit the catalogue.
        """
        within = self.views[view or next(iter(self.views))]
        if within is None and all(request is None for request in requests):
            return None
        masks, denied = zip(*(self.filter(request, history) for request, history in zip(requests, histories)))
        if within is not None:  # equal masks stay one object
            both = {id(mask): within if mask is None else mask & within for mask in masks}
            masks = [both[id(mask)] for mask in masks]
        return Restrictions(list(masks), list(denied), [self.filter.limits(request) for request in requests])

    def find(
        self, search: Search, k: Sequence[int], num_beams: Sequence[int], within: Restrictions | None = None
    ) -> list[list[ScoredItem]]:
        """The best items after each of N prompts, with a search that is open over them."""
        allowed, limits = None, None
        if within is not None:
            allowed, limits = RowFilter(self.trie, within.masks, within.denied), within.limits
            k = [
                min(wanted, most_within(of_request, self._item_rows(mask, denied))) if of_request else wanted
                for wanted, mask, denied, of_request in zip(k, *within)
            ]
        beams = [max(pair) for pair in zip(k, num_beams)]
        return widen(search, self.trie, self.item_of_row, k, beams, allowed, limits)

    def _item_rows(self, mask: np.ndarray | None, denied: np.ndarray) -> np.ndarray:
        """int64: one allowed row of every item that has one."""
        rows = np.arange(len(self.index)) if mask is None else np.flatnonzero(mask)
        rows = rows[~np.isin(rows, denied)]
        if len(self.index.items) == len(self.index):
            return rows
        return rows[np.unique(self.item_of_row[rows], return_index=True)[1]]
