"""item2vec (Barkan & Koenigstein 2016, arXiv:1603.04259): skip-gram with negative sampling over item sequences.

Notable: all pairs of a batch share their negatives, drawn by count to the power 0.75 and weighted to `negatives` per
pair, so a step is two matrix products; pairs within a fixed window, as sequences have an order (the paper takes sets);
frequent items are not subsampled.
"""

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F

from llmrec.data.rows import lists_to_rows
from llmrec.features.cooccurrence import pairs_within

_SHARED = 128  # negatives that the pairs of a batch share


def item2vec_embeddings(
    item_ids: list[str],
    train: pa.Table,
    dim: int = 64,
    window: int = 5,
    negatives: int = 10,
    epochs: int = 20,
    batch_size: int = 4096,
    learning_rate: float = 0.01,
    seed: int = 0,
) -> np.ndarray:
    """Embeddings of items that stand near each other.

    Args:
        item_ids (list of `str`, length N): the items of the training sequences.
        train (`pa.Table`): has `item_ids: list<string>`.
        window (`int`): items at most this far apart in a sequence count as a pair.
        negatives (`int`): weight of what is not a pair, in draws per pair.

    Returns:
        `np.ndarray`, float32, `[N, dim]`; zero for an item without neighbours.

    Raises:
        ValueError: no pairs at all.
    """
    items, offsets = lists_to_rows(train["item_ids"], item_ids)
    left, right = (np.concatenate(side) for side in zip(*pairs_within(items, offsets, window)))
    if not len(left):
        raise ValueError("no training sequence holds two different items: there is nothing to learn neighbours from")
    pairs = torch.from_numpy(np.stack([np.concatenate([left, right]), np.concatenate([right, left])]).astype(np.int64))
    generator = torch.Generator().manual_seed(seed)
    chances = torch.from_numpy(np.bincount(items, minlength=len(item_ids)) ** 0.75).cumsum(0)
    centres = (torch.randn(len(item_ids), dim, generator=generator) * dim**-0.5).requires_grad_()
    contexts = torch.zeros(len(item_ids), dim, requires_grad=True)
    optimizer = torch.optim.SparseAdam([centres, contexts], lr=learning_rate)
    for _ in range(epochs):
        for batch in torch.randperm(pairs.shape[1], generator=generator).split(batch_size):
            centre = F.embedding(pairs[0, batch], centres, sparse=True)
            near = F.embedding(pairs[1, batch], contexts, sparse=True)
            draws = torch.rand(_SHARED, generator=generator, dtype=torch.float64) * chances[-1]
            far = F.embedding(torch.searchsorted(chances, draws), contexts, sparse=True)
            attract = F.logsigmoid((centre * near).sum(1)).mean()
            repel = F.logsigmoid(-centre @ far.T).mean() * negatives
            optimizer.zero_grad()
            (-attract - repel).backward()
            optimizer.step()
    vectors = centres.detach().numpy()
    vectors[np.setdiff1d(np.arange(len(item_ids)), pairs[0].numpy())] = 0
    return vectors
