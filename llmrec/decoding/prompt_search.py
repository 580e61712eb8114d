"""`search_prompts`: the items after any number of prompts of any length."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from llmrec.decoding.beam_search import Normalize
from llmrec.decoding.item_search import ScoredItem, search_items
from llmrec.decoding.trie import SemIDTrie


def search_prompts(
    model,
    prompts: Sequence[Sequence[int]],
    trie: SemIDTrie,
    item_of_row: torch.Tensor | np.ndarray,
    k: Sequence[int],
    num_beams: int,
    allowed: Callable[[list[int]], tuple[Sequence[np.ndarray | None], Sequence[np.ndarray]]] | None = None,
    normalize: Normalize = "vocabulary",
    pad: int = 0,
    batch_size: int = 32,
) -> list[list[ScoredItem]]:
    """`search_items` in batches; prompts of about one length share one, so that little is padded.

    Args:
        prompts (N sequences of `int`): token ids.
        k: items wanted, one number per prompt.
        allowed (callable, *optional*): numbers of the prompts of a batch → their `masks` and `denied` of
            `search_items`.
        pad (`int`): the id of the padding, which nothing sees.

    Returns:
        for each prompt what `search_items` finds.
    """
    device = next(model.parameters()).device
    trie.to(device)
    results: list[list[ScoredItem]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        width = max(len(prompts[i]) for i in batch)
        rows = [[*prompts[i], *[pad] * (width - len(prompts[i]))] for i in batch]
        lengths = torch.tensor([len(prompts[i]) for i in batch], device=device)
        masks, denied = allowed(batch) if allowed is not None else (None, None)
        found = search_items(
            model,
            torch.tensor(rows, device=device),
            (torch.arange(width, device=device) < lengths[:, None]).long(),
            trie,
            item_of_row,
            [k[i] for i in batch],
            num_beams,
            masks=masks,
            denied=denied,
            normalize=normalize,
        )
        for number, hits in zip(batch, found):
            results[number] = hits
    return results
