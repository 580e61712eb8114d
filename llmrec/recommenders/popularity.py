"""The most popular items, the same list for everybody: the floor that any personal recommender must beat."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from llmrec.catalogue.filters import Filter
from llmrec.data import PreparedData
from llmrec.files import atomic_path, read_json, read_parquet, write_json, write_parquet
from llmrec.recommenders.protocol import Recommendation
from llmrec.recommenders.ranker import Catalogue, train_counts


class Popularity:
    """Ranks by the number of interactions in train.

    Args:
        items (`pa.Table`): the catalogue.
        counts (`np.ndarray`, int64 [items]): interactions of every item.
    """

    def __init__(self, items: pa.Table, counts: np.ndarray):
        self.catalogue = Catalogue(items)
        self.counts = counts

    @classmethod
    def fit(cls, data: PreparedData) -> "Popularity":
        return cls(data.items, train_counts(data))

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int | Sequence[int] = 10,
        filters: Filter | Sequence[Filter] | None = None,
    ) -> list[list[Recommendation]]:
        """See `Recommender.recommend`; a score is a count."""
        return self.catalogue.recommend(self.score, histories, k, filters)

    def score(self, values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """int64 [b, items]: the counts, once per history."""
        return np.broadcast_to(self.counts, (len(offsets) - 1, len(self.counts)))

    def save_pretrained(self, folder: str | Path, info: dict | None = None) -> None:
        """Writes config.json, counts.npy and items.parquet, whole or not at all."""
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            np.save(temporary / "counts.npy", self.counts, allow_pickle=False)
            write_parquet(temporary / "items.parquet", self.catalogue.items)
            write_json(temporary / "config.json", {"kind": "popularity", "settings": {}, **(info or {})})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Popularity":
        """Reads a folder written by `save_pretrained`."""
        read_json(Path(folder) / "config.json")
        return cls(
            read_parquet(Path(folder) / "items.parquet"), np.load(Path(folder) / "counts.npy", allow_pickle=False)
        )
