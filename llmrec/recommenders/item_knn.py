"""Item-kNN: items that occur in the same training sequences, by cosine (Sarwar et al. 2001; Deshpande & Karypis 2004).

Notable: a history is summed with recent items weighing more (`decay`), as session-based kNN does; an item is its own
neighbour as often as sequences that hold it hold it again, so repeat purchases are recommended where they happen;
items without a neighbour in the history rank behind all others, by popularity.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from llmrec.catalogue.filters import Filter
from llmrec.data import PreparedData, lists_to_rows
from llmrec.files import atomic_path, read_json, read_parquet, write_json, write_parquet
from llmrec.recommenders.protocol import Recommendation
from llmrec.recommenders.ranker import Catalogue, train_counts

_CHUNK = 4096  # items whose co-occurrences are held at once


@dataclass(frozen=True)
class ItemKNNConfig:
    """Settings of an item-kNN."""

    neighbours: int = field(default=200, metadata={"help": "Neighbours kept per item."})
    decay: float = field(default=0.6, metadata={"help": "An item n steps before the latest weighs decay**n."})

    def __post_init__(self):
        if self.neighbours < 1:
            raise ValueError(f"neighbours must be at least 1, got {self.neighbours}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay must lie in (0, 1], got {self.decay}")


class ItemKNN:
    """Sparse item-to-item similarities behind the `Recommender` protocol; `ItemKNN.fit(data)` makes one."""

    def __init__(self, items: pa.Table, similarity: sp.csr_array, counts: np.ndarray, config: ItemKNNConfig):
        self.catalogue = Catalogue(items)
        self.similarity = similarity
        self.counts = counts
        self.config = config

    @classmethod
    def fit(cls, data: PreparedData, config: ItemKNNConfig = ItemKNNConfig()) -> "ItemKNN":
        """Counts co-occurrences in `data.train`: no loop over interactions, memory of one chunk of items."""
        values, offsets = lists_to_rows(data.train["item_ids"], data.items["item_id"])
        shape = (len(offsets) - 1, data.items.num_rows)
        # Building a CSR matrix keeps an item's repeats in a sequence apart until they are summed.
        occurrences = sp.csr_array((np.ones(len(values), np.float32), values, offsets), shape)
        occurrences.sum_duplicates()
        again = np.bincount(occurrences.indices[occurrences.data > 1], minlength=shape[1])
        occurrences.data[:] = 1.0
        occurring = np.bincount(occurrences.indices, minlength=shape[1])
        held = np.maximum(occurring, 1)
        columns = (occurrences @ sp.diags_array(held.astype(np.float32) ** -0.5)).tocsc()
        chunks = []
        for start in range(0, shape[1], _CHUNK):
            stop = min(start + _CHUNK, shape[1])
            itself = np.arange(start, stop)
            cosine_to_itself = (again / held)[itself] - (occurring[itself] > 0)
            correction = sp.csr_array((cosine_to_itself, (itself - start, itself)), (len(itself), shape[1]))
            chunks.append(_top_per_row(columns[:, start:stop].T @ columns + correction, config.neighbours))
        return cls(data.items, sp.vstack(chunks, "csr"), train_counts(data), config)

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int | Sequence[int] = 10,
        filters: Filter | Sequence[Filter] | None = None,
    ) -> list[list[Recommendation]]:
        """See `Recommender.recommend`; a positive score is a similarity, one below zero only reflects popularity."""
        return self.catalogue.recommend(self.score, histories, k, filters)

    def score(self, values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """float32 [b, items]: decayed sums of similarities."""
        age = np.repeat(offsets[1:], np.diff(offsets)) - 1 - np.arange(len(values))
        shape = (len(offsets) - 1, len(self.counts))
        weights = sp.csr_array(((self.config.decay**age).astype(np.float32), values, offsets), shape)
        scores = (weights @ self.similarity).toarray()
        fallback = self.counts / (self.counts.max(initial=0) + 1) - 1
        return np.where(scores > 0, scores, fallback.astype(np.float32))

    def save_pretrained(self, folder: str | Path, info: dict | None = None) -> None:
        """Writes config.json, model.safetensors and items.parquet, whole or not at all."""
        from safetensors.numpy import save_file

        with atomic_path(folder) as temporary:
            temporary.mkdir()
            parts = {name: getattr(self.similarity, name) for name in ("data", "indices", "indptr")}
            save_file(parts | {"counts": self.counts}, temporary / "model.safetensors")
            write_parquet(temporary / "items.parquet", self.catalogue.items)
            write_json(
                temporary / "config.json", {"kind": "item_knn", "settings": asdict(self.config), **(info or {})}
            )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "ItemKNN":
        """Reads a folder written by `save_pretrained`."""
        from safetensors.numpy import load_file

        folder = Path(folder)
        config = ItemKNNConfig(**read_json(folder / "config.json")["settings"])
        parts = load_file(folder / "model.safetensors")
        size = len(parts["counts"])
        similarity = sp.csr_array((parts["data"], parts["indices"], parts["indptr"]), (size, size))
        return cls(read_parquet(folder / "items.parquet"), similarity, parts["counts"], config)


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
