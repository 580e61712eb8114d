"""Content-kNN: items whose text is near that of the last items of the history, by cosine. It needs no interaction with
an item to recommend it, so it is the baseline to beat on cold items.

Notable: recent items weigh more (`content_decay`), as in item-kNN; an item is not its own neighbour, so a history is
not recommended back; an empty history gets the popular items. Whatever is learned (TF-IDF) is learned from the items
of the training sequences.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from llmrec.catalogue.filters import Filter
from llmrec.data import PreparedData
from llmrec.files import atomic_path, read_json, read_parquet, write_json, write_parquet
from llmrec.recommenders.protocol import Recommendation
from llmrec.recommenders.ranker import Catalogue, train_counts


@dataclass(frozen=True)
class ContentKNNConfig:
    """Settings of a content-kNN."""

    content_features: list[dict] = field(
        default_factory=lambda: [{"kind": "text", "encoder": "tfidf"}],
        metadata={"help": "YAML: features as in recipes/tokenize_items.py; take the same for a fair comparison."},
    )
    content_decay: float = field(default=0.6, metadata={"help": "An item n steps before the latest weighs decay**n."})
    content_cache: str = field(default="out/feature_cache", metadata={"help": "Text embeddings by content."})

    def __post_init__(self):
        if not 0 < self.content_decay <= 1:
            raise ValueError(f"content_decay must lie in (0, 1], got {self.content_decay}")


class ContentKNN:
    """Nearest items by content behind the `Recommender` protocol; `ContentKNN.fit(data)` makes one.

    Args:
        items (`pa.Table`): the catalogue.
        vectors (`np.ndarray`, float32, `[items, D]`): rows of unit length, or zero where nothing is known.
        counts (`np.ndarray`, int64 `[items]`): interactions in train, for empty histories.
    """

    def __init__(self, items: pa.Table, vectors: np.ndarray, counts: np.ndarray, config: ContentKNNConfig):
        self.catalogue = Catalogue(items)
        self.vectors = vectors
        self.counts = counts
        self.config = config

    @classmethod
    def fit(cls, data: PreparedData, config: ContentKNNConfig = ContentKNNConfig()) -> "ContentKNN":
        from llmrec.arrays import l2_normalize
        from llmrec.features import ItemFeatures

        features = ItemFeatures(config.content_features, config.content_cache).fit(data.items, data.train)
        return cls(data.items, l2_normalize(features.encode(data.items)), train_counts(data), config)

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int | Sequence[int] = 10,
        filters: Filter | Sequence[Filter] | None = None,
    ) -> list[list[Recommendation]]:
        """See `Recommender.recommend`; a score is a decayed sum of cosines."""
        return self.catalogue.recommend(self.score, histories, k, filters)

    def score(self, values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """float32 [b, items]: decayed sums of cosines to the items of each history, itself left out."""
        lengths = np.diff(offsets)
        age = np.repeat(offsets[1:], lengths) - 1 - np.arange(len(values))
        decayed = (self.config.content_decay**age).astype(np.float32)
        weights = sp.csr_array((decayed, values, offsets), (len(lengths), len(self.vectors)))
        scores = (weights @ self.vectors) @ self.vectors.T
        row = np.repeat(np.arange(len(lengths)), lengths)
        np.subtract.at(scores, (row, values), decayed * (self.vectors[values] ** 2).sum(1))
        # The last digits depend on the rows beside: rounded, equal items stay equal.
        scores = scores.round(5)
        scores[lengths == 0] = self.counts / (self.counts.max(initial=0) + 1)
        return scores

    def save_pretrained(self, folder: str | Path, info: dict | None = None) -> None:
        """Writes config.json, model.safetensors and items.parquet, whole or not at all."""
        from safetensors.numpy import save_file

        with atomic_path(folder) as temporary:
            temporary.mkdir()
            arrays = {"vectors": np.ascontiguousarray(self.vectors), "counts": self.counts}
            save_file(arrays, temporary / "model.safetensors")
            write_parquet(temporary / "items.parquet", self.catalogue.items)
            settings = {"kind": "content_knn", "settings": asdict(self.config), **(info or {})}
            write_json(temporary / "config.json", settings)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "ContentKNN":
        """Reads a folder written by `save_pretrained`."""
        from safetensors.numpy import load_file

        folder = Path(folder)
        config = ContentKNNConfig(**read_json(folder / "config.json")["settings"])
        arrays = load_file(folder / "model.safetensors")
        return cls(read_parquet(folder / "items.parquet"), arrays["vectors"], arrays["counts"], config)
