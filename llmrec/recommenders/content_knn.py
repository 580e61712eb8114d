"""Content-kNN: items whose text is near that of the last items of the history, by cosine. It needs no interaction with
an item to recommend it, so it is the baseline to beat on cold items.

Notable: recent items weigh more (`content_decay`), as in item-kNN; an item is not its own neighbour, so a history is
not recommended back; an empty history gets the popular items. Whatever is learned (TF-IDF) is learned from the items
of the training sequences.
"""

from dataclasses import dataclass, field
from typing import Self

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from llmrec.arrays import l2_normalize
from llmrec.data import PreparedData
from llmrec.features import ItemFeatures
from llmrec.recommenders.ranker import CatalogueRanker, train_counts


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


class ContentKNN(CatalogueRanker):
    """Nearest items by content; `ContentKNN.fit(data)` makes one. A score is a decayed sum of cosines.

    Args:
        vectors: float32 `[items, D]`, rows of unit length, or zero where nothing is known.
        counts: int64 `[items]`, interactions in train, for empty histories.
    """

    kind, config_class = "content_knn", ContentKNNConfig

    def __init__(self, items: pa.Table, vectors: np.ndarray, counts: np.ndarray, config: ContentKNNConfig):
        super().__init__(items, config)
        self.vectors, self.counts = vectors, counts

    @classmethod
    def fit(cls, data: PreparedData, config: ContentKNNConfig | None = None, device=None, folder=None) -> Self:
        config = config or ContentKNNConfig()
        features = ItemFeatures(config.content_features, config.content_cache).fit(data.items, data.train)
        return cls(data.items, l2_normalize(features.encode(data.items)), train_counts(data), config)

    @staticmethod
    def made_from(config: ContentKNNConfig) -> dict:
        return {"content_inputs": ItemFeatures(config.content_features, config.content_cache).inputs_fingerprint()}

    def score(self, values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
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

    def arrays(self) -> dict[str, np.ndarray]:
        return {"vectors": self.vectors, "counts": self.counts}

    @classmethod
    def from_arrays(cls, items: pa.Table, arrays: dict[str, np.ndarray], settings: dict) -> Self:
        return cls(items, arrays["vectors"], arrays["counts"], ContentKNNConfig(**settings))
