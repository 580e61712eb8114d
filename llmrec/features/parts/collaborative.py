"""Features of kinds `collaborative` and `cooccurrence`: vectors of items learned from training sequences alone.

`sasrec` trains the network of `llmrec.features.sasrec_network` and takes its item embeddings. It stops early on the
last items of some training sequences, so no row of validation or test is read. `item2vec` and `svd` know neighbours
only.
"""

import inspect
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from llmrec.arguments import one_of
from llmrec.arrays import check_loss
from llmrec.data import PreparedData
from llmrec.data.rows import flatten_lists, list_array, lists_to_rows, offsets_of, ragged_arange
from llmrec.features.cooccurrence import cooccurrence_embeddings, pairs_within
from llmrec.features.parts.part import ItemVectors, rows_in_training
from llmrec.features.sasrec_network import SASRecConfig, SASRecModel, train_sasrec

_VALIDATION = 1000  # sequences that give their last item to early stopping; at most a tenth of all
_SHARED = 128  # negatives that the pairs of a batch share


def sasrec_embeddings(
    item_ids: list[str], train: pa.Table, dim: int = 64, epochs: int = 20, patience: int = 3, seed: int = 0
) -> np.ndarray:
    """float32 `[N, dim]`: the item embeddings of `train_sasrec_on`; `dim` is even, for SASRec has two heads."""
    config = SASRecConfig(hidden_size=dim, max_epochs=epochs, patience=patience, seed=seed)
    return train_sasrec_on(item_ids, train, config).items.weight.detach().cpu().numpy()


def train_sasrec_on(item_ids: list[str], train: pa.Table, config: SASRecConfig) -> SASRecModel:
    """A SASRec of training sequences alone: a tenth of them, 1000 at most, give their last item to early stopping.

    `item_ids` are the items of the sequences; the embedding is zero of one that no sequence it was trained on holds.
    Raises `ValueError` where no sequence is long enough to give away its last item.
    """
    flat, offsets = flatten_lists(train["item_ids"])
    context = train["num_context"].to_numpy() if "num_context" in train.column_names else np.ones(len(train), np.int32)
    long = np.flatnonzero(np.diff(offsets) > np.maximum(context, 1) + 1)
    if not len(long):
        raise ValueError("method 'sasrec' needs training sequences with two targets: one to learn, one to stop early")
    rng = np.random.default_rng(config.seed)
    chosen = np.sort(rng.choice(long, max(1, min(_VALIDATION, len(long) // 10)), replace=False))
    stops = offsets[1:].copy()
    stops[chosen] -= 1
    kept = flat.take(pa.array(ragged_arange(offsets[:-1], stops)))
    lists = list_array(kept, offsets_of(stops - offsets[:-1]))
    sequences = pa.table({"item_ids": lists, "num_context": context})
    valid = pa.table({"history": lists.take(pa.array(chosen)), "target": flat.take(pa.array(stops[chosen]))})
    items = pa.table({"item_id": item_ids})
    data = PreparedData(items, sequences, valid, valid.slice(0, 0))
    with torch.random.fork_rng():
        model = train_sasrec(data, config)
    unseen = np.setdiff1d(np.arange(len(item_ids)), rows_in_training(items, sequences))
    with torch.no_grad():
        model.items.weight[torch.from_numpy(unseen).to(model.items.weight.device)] = 0
    return model


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
    """float32 `[N, dim]` by item2vec (Barkan & Koenigstein 2016, arXiv:1603.04259): skip-gram with negative sampling;
    zero for an item without neighbours. Raises `ValueError` where there are no pairs at all.

    Notable: all pairs of a batch share their negatives, drawn by count to the power 0.75 and weighted to `negatives`
    per pair, so a step is two matrix products; pairs within a fixed window, as sequences have an order (the paper
    takes sets); frequent items are not subsampled.
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
    for _ in tqdm(range(epochs), desc="item2vec", unit="epoch", delay=2):
        for batch in torch.randperm(pairs.shape[1], generator=generator).split(batch_size):
            centre = F.embedding(pairs[0, batch], centres, sparse=True)
            near = F.embedding(pairs[1, batch], contexts, sparse=True)
            draws = torch.rand(_SHARED, generator=generator, dtype=torch.float64) * chances[-1]
            far = F.embedding(torch.searchsorted(chances, draws), contexts, sparse=True)
            attract = F.logsigmoid((centre * near).sum(1)).mean()
            repel = F.logsigmoid(-centre @ far.T).mean() * negatives
            loss = -attract - repel
            check_loss(loss.detach(), "item2vec")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    vectors = centres.detach().numpy()
    vectors[np.setdiff1d(np.arange(len(item_ids)), pairs[0].numpy())] = 0
    return vectors


METHODS = {"sasrec": sasrec_embeddings, "item2vec": item2vec_embeddings, "svd": cooccurrence_embeddings}


class CollaborativeFeatures(ItemVectors):
    """Vectors learned by one of `METHODS`, with its arguments, such as `dim` and `epochs`."""

    def __init__(self, method: str = "sasrec", cache_dir: str | Path | None = None, **kwargs):
        one_of(method, METHODS, "method")
        given_by_fit = ("item_ids", "train", "seed")
        parameters = inspect.signature(METHODS[method]).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.name not in given_by_fit}
        for name in kwargs:
            if name not in defaults:
                raise ValueError(f"method {method!r} has no argument {name!r}; it has {', '.join(defaults)}")
        self.method, self.arguments = method, defaults | kwargs
        self.config = {"method": method, **self.arguments}

    def learn(self, items: pa.Table, seen: pa.Table, train: pa.Table, seed: int) -> np.ndarray:
        return METHODS[self.method](self.item_ids, train, **self.arguments, seed=seed)


class CooccurrenceFeatures(CollaborativeFeatures):
    """`cooccurrence_embeddings` of the training sequences; an item that was not there gets zeros."""

    def __init__(self, dim: int = 64, window: int = 5, cache_dir: str | Path | None = None):
        super().__init__("svd", dim=dim, window=window)
        self.config = self.arguments
