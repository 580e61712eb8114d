"""Dense retrieval beside the search: what the model knows at the end of a prompt, compared with every item at once.

The beams hold items whose tokens the model has learned to write. A dense score needs no token of an item, so it finds
items that nobody had touched in training. LIGER (arXiv:2411.18814) ranks what the beams hold and all cold items by it.

Scores are log-probabilities of items: where p is the beams' (0 of an item that they do not hold) and q the dense one,
a softmax over the whole catalogue, a fused list has log((1 - weight) p + weight q). Filters remove items and leave the
scores of the others as they are; limits (`at_most`) hold in the fused list.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from llmrec.catalogue.filters import within_limits
from llmrec.decoding.beam_search import Search
from llmrec.decoding.head import head_replaced
from llmrec.decoding.searchable import Restrictions, ScoredItem, SearchableCatalogue
from llmrec.decoding.tree_attention import padded_right

# What a recommender may do with dense scores: rank the items of the beams, rank them and all cold items, or all items.
RANK, COLD, ALONE = MODES = ("rank", "cold", "alone")


class DenseScorer(Protocol):
    """Scores every item of a catalogue after a state; `llmrec.models.dense.DenseHead` is the one.

    Attributes:
        weight: of the dense probabilities in a fused list.
        cold (bool [I]): items that training did not hold.
    """

    weight: float
    cold: np.ndarray

    def log_probs(self, states: torch.Tensor) -> torch.Tensor:
        """float32 [N, I] of states (float [N, H]), on their device."""
        ...


@torch.no_grad()
def prompt_states(
    model, input_ids: torch.Tensor, attention_mask: torch.Tensor, search: Search | None = None
) -> torch.Tensor:
    """float32 [N, H]: what the head of a causal model receives after the last token of each prompt (int64 [N, P],
    padded on either side). A search that is open over the prompts may have it already; otherwise they run with their
    padding on the right, where no causal model sees it."""
    if getattr(search, "states", None) is not None:
        return search.states
    padded = padded_right(input_ids, attention_mask)
    with head_replaced(model, lambda head, hidden: hidden[padded.last].float()) as results:
        model(input_ids=padded.ids, use_cache=False)
    return results[0]


def find_densely(
    mode: str,
    scorer: DenseScorer | None,
    states: torch.Tensor | None,
    catalogue: SearchableCatalogue,
    search: Search | None,
    k: Sequence[int],
    num_beams: Sequence[int],
    within: Restrictions | None = None,
) -> list[list[ScoredItem]]:
    """`SearchableCatalogue.find` with dense scores, in one of `MODES`; with mode `""`, which needs none, without.

    Args:
        states (float [N, H]): of the prompts, as the head receives them.
        search: open over the same prompts; `"alone"` needs none.

    Returns:
        for each prompt at most k items by falling score, equal scores by row.
    """
    if not mode:
        return catalogue.find(search, k, num_beams, within)
    beams = [max(pair) for pair in zip(k, num_beams)]
    generated = [[] for _ in k] if mode == ALONE else catalogue.find(search, beams, num_beams, within)
    dense = scorer.log_probs(states).cpu().numpy().astype(np.float64)
    within = within or Restrictions([None] * len(k), [np.empty(0, np.int64)] * len(k), [[]] * len(k))
    lists = []
    for wanted, hits, scores, mask, denied, limits in zip(k, generated, dense, *within):
        rows = np.full(len(scores), -1)  # of every item that may be returned
        if mode != RANK:
            allowed = catalogue.item_rows(mask, denied)
            allowed = allowed[(mode == ALONE) | scorer.cold[catalogue.item_of_row[allowed]]]
            rows[catalogue.item_of_row[allowed]] = allowed
        if mode != ALONE:
            beam = np.full(len(scores), -np.inf)
            items = [hit.item for hit in hits]
            rows[items], beam[items] = [hit.row for hit in hits], [hit.score for hit in hits]
            with np.errstate(divide="ignore"):  # a weight of 0 or 1 leaves one side out
                scores = np.logaddexp(np.log(1 - scorer.weight) + beam, np.log(scorer.weight) + scores)
        lists.append(_best(rows, scores, wanted, limits))
    return lists


def _best(rows: np.ndarray, scores: np.ndarray, k: int, limits) -> list[ScoredItem]:
    items = np.flatnonzero((rows >= 0) & (scores > -np.inf))
    if not limits and k < len(items):  # the k best, and what ties with the last of them
        items = items[scores[items] >= np.partition(scores[items], len(items) - k)[len(items) - k]]
    items = items[np.lexsort((rows[items], -scores[items]))]
    if limits:
        items = items[within_limits(rows[items], limits)]
    return [ScoredItem(int(item), float(scores[item]), int(rows[item])) for item in items[:k]]
