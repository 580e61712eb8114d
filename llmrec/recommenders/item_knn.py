"""Item-kNN: items that occur in the same training sequences, by cosine (Sarwar et al. 2001; Deshpande & Karypis 2004).

Notable: a history is summed with recent items weighing more (`decay`), as session-based kNN does; an item is its own
neighbour as often as sequences that hold it hold it again, so repeat purchases are recommended where they happen; with
a `window` two items of a sequence count each time that they stand near each other;
items without a neighbour in the history rank behind all others, by popularity.
"""

from dataclasses import dataclass, field
from typing import Self

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from tqdm.auto import tqdm

from llmrec.arguments import at_least
from llmrec.arrays import blocks
from llmrec.data import PreparedData, lists_to_rows
from llmrec.features.cooccurrence import pairs_within
from llmrec.recommenders.ranker import CatalogueRanker, train_counts


@dataclass(frozen=True)
class ItemKNNConfig:
    """Settings of an item-kNN."""

    neighbours: int = field(default=200, metadata={"help": "Neighbours kept per item."})
    decay: float = field(default=0.6, metadata={"help": "An item n steps before the latest weighs decay**n."})
    window: int | None = field(
        default=None,
        metadata={"help": "Neighbours are at most so many places apart; by default in one sequence."},
    )

    def __post_init__(self):
        at_least(self, neighbours=1, window=1)
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay must lie in (0, 1], got {self.decay}")


class ItemKNN(CatalogueRanker):
    """Sparse item-to-item similarities; `ItemKNN.fit(data)` makes one.

    A positive score is a decayed sum of similarities, one below zero only reflects popularity.
    """

    kind, config_class = "item_knn", ItemKNNConfig

    def __init__(self, items: pa.Table, similarity: sp.csr_array, counts: np.ndarray, config: ItemKNNConfig):
        super().__init__(items, config)
        self.similarity, self.counts = similarity, counts

    @classmethod
    def fit(cls, data: PreparedData, config: ItemKNNConfig | None = None, device=None, folder=None) -> Self:
        """Counts co-occurrences in `data.train`: no loop over interactions, memory of one chunk of items."""
        config = config or ItemKNNConfig()
        values, offsets = lists_to_rows(data.train["item_ids"], data.items["item_id"])
        shape = (len(offsets) - 1, data.items.num_rows)
        pairs = [np.concatenate(side) for side in zip(*pairs_within(values, offsets, config.window or 1))]
        # Building a CSR matrix keeps an item's repeats in a sequence apart until they are summed, in place.
        occurrences = sp.csr_array((np.ones(len(values), np.float32), values, offsets), shape)
        occurrences.sum_duplicates()
        again = np.bincount(occurrences.indices[occurrences.data > 1], minlength=shape[1])
        occurrences.data[:] = 1.0
        occurring = np.bincount(occurrences.indices, minlength=shape[1])
        norm = np.maximum(occurring, 1)
        scale = sp.diags_array(norm.astype(np.float32) ** -0.5)
        if config.window:
            near = sp.csr_array((np.ones(len(pairs[0]), np.float32), tuple(pairs)), (shape[1], shape[1]))
            near = (scale @ (near + near.T) @ scale).tocsr()
        columns = (occurrences @ scale).tocsc()
        chunks = []
        for chunk in tqdm(blocks(shape[1], 4096), desc="item-kNN", delay=2):  # items held at once
            itself = np.arange(chunk.start, chunk.stop)
            again_there = (again / norm)[itself]
            if config.window:
                cosines = near[chunk]
            else:
                cosines, again_there = columns[:, chunk].T @ columns, again_there - (occurring[itself] > 0)
            to_itself = sp.csr_array((again_there, (itself - chunk.start, itself)), (len(itself), shape[1]))
            chunks.append(_top_per_row(cosines + to_itself, config.neighbours))
        return cls(data.items, sp.vstack(chunks, "csr"), train_counts(data), config)

    def score(self, values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        age = np.repeat(offsets[1:], np.diff(offsets)) - 1 - np.arange(len(values))
        shape = (len(offsets) - 1, len(self.counts))
        weights = sp.csr_array(((self.config.decay**age).astype(np.float32), values, offsets), shape)
        scores = (weights @ self.similarity).toarray()
        fallback = self.counts / (self.counts.max(initial=0) + 1) - 1
        return np.where(scores > 0, scores, fallback.astype(np.float32))

    def arrays(self) -> dict[str, np.ndarray]:
        parts = self.similarity
        return {"data": parts.data, "indices": parts.indices, "indptr": parts.indptr, "counts": self.counts}

    @classmethod
    def from_arrays(cls, items: pa.Table, arrays: dict[str, np.ndarray], settings: dict) -> Self:
        shape = (items.num_rows, items.num_rows)
        similarity = sp.csr_array((arrays["data"], arrays["indices"], arrays["indptr"]), shape)
        return cls(items, similarity, arrays["counts"], ItemKNNConfig(**settings))


def _top_per_row(matrix: sp.csr_array, count: int) -> sp.csr_array:
    """Keeps the `count` largest positive values of every row; of equal ones those with the lower column."""
    coo = matrix.tocoo()
    kept = coo.data > 0
    row, column, data = coo.row[kept], coo.col[kept], coo.data[kept].astype(np.float32)
    order = np.lexsort((column, -data, row))
    row, column, data = row[order], column[order], data[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    kept = place < count
    return sp.csr_array((data[kept], (row[kept], column[kept])), matrix.shape)
