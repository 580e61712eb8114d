"""The most popular items, the same list for everybody: the floor that any personal recommender must beat."""

from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa

from llmrec.data import PreparedData
from llmrec.files import read_json, write_json
from llmrec.recommenders.ranker import CatalogueRanker, train_counts


class Popularity(CatalogueRanker):
    """Ranks by the number of interactions in train: `counts`, int64 [items]. A score is a count."""

    kind = "popularity"

    def __init__(self, items: pa.Table, counts: np.ndarray):
        super().__init__(items)
        self.counts = counts

    @classmethod
    def fit(cls, data: PreparedData, config=None, device=None, folder=None) -> Self:
        return cls(data.items, train_counts(data))

    def score(self, values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        return np.broadcast_to(self.counts, (len(offsets) - 1, len(self.counts)))

    def arrays(self) -> dict[str, np.ndarray]:
        return {"counts": self.counts}

    @classmethod
    def from_arrays(cls, items: pa.Table, arrays: dict[str, np.ndarray], settings: dict) -> Self:
        return cls(items, arrays["counts"])

    @staticmethod
    def _save(folder: Path, config: dict, arrays: dict[str, np.ndarray]) -> None:
        folder.mkdir()
        np.save(folder / "counts.npy", arrays["counts"], allow_pickle=False)
        write_json(folder / "config.json", config)

    @staticmethod
    def _load(folder: str | Path) -> tuple[dict, dict[str, np.ndarray]]:
        config = read_json(Path(folder) / "config.json")
        return config, {"counts": np.load(Path(folder) / "counts.npy", allow_pickle=False)}
