"""Features of kind `graph`: other features, spread over the bipartite graph of users and items.

After MMGRec (Liu et al., 2404.16555), which learns a graph network; here nothing is learned: LightGCN's propagation
(He et al., SIGIR 2020) alone, as products of sparse matrices. One layer goes from items to their users and back.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy import sparse

from llmrec.data.rows import lists_to_rows
from llmrec.features.parts.part import ItemVectors
from llmrec.files import part_of


class GraphFeatures(ItemVectors):
    """Mean of an item's own features and of `layers` propagations; an item nobody has consumed keeps its own.

    `of` (`ItemFeatures`; in a spec, one nested part or a list of them) is what is spread. One layer reaches items of
    the same users, two their neighbours.
    """

    def __init__(self, of, layers: int = 2, cache_dir: str | Path | None = None):
        if layers < 1:
            raise ValueError(f"layers={layers} must be at least 1")
        self.of, self.layers = of, layers

    @property
    def config(self) -> dict:
        return {"of": self.of.config, "layers": self.layers}

    @property
    def inputs(self) -> tuple[Path, ...]:
        return tuple(self.of.inputs())

    @property
    def models(self) -> tuple:
        return self.of.models

    def learn(self, items: pa.Table, seen: pa.Table, train: pa.Table, seed: int) -> np.ndarray:
        """The sum of what the layers bring."""
        x = self.of.fit(items, train, seed).encode(seen)
        rows, offsets = lists_to_rows(train["item_ids"], self.item_ids)
        consumed = sparse.csr_matrix((np.ones(len(rows)), rows.copy(), offsets), (train.num_rows, seen.num_rows))
        consumed.sum_duplicates()
        consumed.data[:] = 1
        of_user, of_item = (np.maximum(np.asarray(consumed.sum(axis)).ravel(), 1) ** -0.5 for axis in (1, 0))
        adjacency = (sparse.diags(of_user) @ consumed @ sparse.diags(of_item)).tocsr().astype(np.float32)
        neighbourhood = np.zeros_like(x)
        for _ in range(self.layers):
            x = adjacency.T @ (adjacency @ x)
            neighbourhood += x
        return neighbourhood

    def encode(self, items: pa.Table) -> np.ndarray:
        return (self.of.encode(items) + super().encode(items)) / (self.layers + 1)

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        values, arrays = self.of.state()
        arrays = {f"of.{name}": array for name, array in arrays.items()}
        return {"item_ids": self.item_ids, "of": values}, {"neighbourhood": self.vectors, **arrays}

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        self.item_ids, self.vectors = values["item_ids"], arrays["neighbourhood"]
        self.of.restore(values["of"], part_of(arrays, "of."))
