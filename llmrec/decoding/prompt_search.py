"""`search_prompts`: the items after any number of prompts of any length."""

from collections.abc import Sequence

import torch

from llmrec.catalogue.filters import Filter
from llmrec.decoding.beam_search import Normalize, open_search
from llmrec.decoding.item_search import ScoredItem
from llmrec.decoding.searchable import SearchableCatalogue


@torch.no_grad()
def search_prompts(
    model,
    prompts: Sequence[Sequence[int]],
    catalogue: SearchableCatalogue,
    k: Sequence[int],
    num_beams: int,
    requests: Sequence[Filter | None],
    histories: Sequence[Sequence[str]],
    view: str = "",
    normalize: Normalize = "vocabulary",
    pad: int = 0,
    batch_size: int = 32,
) -> list[list[ScoredItem]]:
    """The best distinct items after each prompt, as `search_items` finds them.

    Prompts of about one length share a batch, so that little is padded.

    Args:
        prompts (N sequences of `int`): token ids.
        k: items wanted, one number per prompt.
        requests, histories: the filters, and the item ids that they look at, one per prompt.
        view (`str`): the Semantic IDs that are searched; by default the first of the catalogue's.
        pad (`int`): the id of the padding, which nothing sees.
    """
    device = next(model.parameters()).device
    catalogue.trie.to(device)
    results: list[list[ScoredItem]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        width = max(len(prompts[i]) for i in batch)
        rows = torch.tensor([[*prompts[i], *[pad] * (width - len(prompts[i]))] for i in batch], device=device)
        lengths = torch.tensor([len(prompts[i]) for i in batch], device=device)
        held = (torch.arange(width, device=device) < lengths[:, None]).long()
        within = catalogue.restrictions([requests[i] for i in batch], [histories[i] for i in batch], view)
        search = open_search(model, rows, held, catalogue.trie, normalize)
        found = catalogue.find(search, [k[i] for i in batch], [num_beams] * len(batch), within)
        for number, hits in zip(batch, found):
            results[number] = hits
    return results
