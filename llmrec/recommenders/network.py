"""`NetworkRanker`: networks that score the catalogue after a history, trained and ranked with alike.

An empty history, which no network sees in training, is ranked by training popularity.
"""

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import nn

from llmrec.data import PreparedData
from llmrec.devices import best_device
from llmrec.features.next_item import NextItemConfig, next_item_logits
from llmrec.recommenders.ranker import CatalogueRanker, train_counts


class NetworkRanker(CatalogueRanker):
    """A trained `llmrec.features.next_item.NextItemNetwork`; `fit` makes one. A score is a log-probability over
    the catalogue.

    A subclass names its `network`, made of the number of items and the config, and says how it is trained.
    """

    network: ClassVar[type[nn.Module]]

    def __init__(self, model: nn.Module, items: pa.Table, popularity: np.ndarray, config: NextItemConfig):
        super().__init__(items, config)
        self.model, self.popularity = model.eval(), popularity

    @staticmethod
    @abstractmethod
    def train(
        data: PreparedData, config: NextItemConfig, device: str | torch.device | None, folder: str | Path | None
    ) -> nn.Module:
        """As `llmrec.features.next_item.train_next_item`."""

    @classmethod
    def fit(
        cls,
        data: PreparedData,
        config: NextItemConfig | None = None,
        device: str | torch.device | None = None,
        folder: str | Path | None = None,
    ) -> Self:
        """Trains on `data.train`, stops on validation ndcg@10, keeps the best weights. `ValueError` for no training
        target, no validation row, or an item that is not in the catalogue."""
        config = config or cls.config_class()
        return cls(cls.train(data, config, device, folder), data.items, train_counts(data), config)

    @property
    def num_parameters(self) -> int:
        return sum(weights.numel() for weights in self.model.parameters())

    @torch.no_grad()
    def score(self, values: np.ndarray, offsets: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
        scores = self.network_scores(values, offsets, known).cpu().numpy()
        empty = np.diff(offsets) == 0
        if empty.any():
            scores[empty] = np.log((self.popularity + 1) / (self.popularity + 1).sum()).astype(np.float32)
        return scores

    def network_scores(self, values, offsets, known: np.ndarray | None) -> torch.Tensor:
        """As `score`, but for empty histories, of which it says nothing."""
        return F.log_softmax(next_item_logits(self.model, values, offsets, known, self.config.max_length), -1)

    def arrays(self) -> dict[str, np.ndarray]:
        weights = {name: value.cpu().numpy() for name, value in self.model.state_dict().items()}
        return weights | {"popularity": self.popularity}

    @classmethod
    def blank(cls, num_items: int, config: NextItemConfig, arrays: dict[str, np.ndarray]) -> nn.Module:
        """A network of the shape of these arrays."""
        return cls.network(num_items, config)

    @classmethod
    def from_arrays(cls, items: pa.Table, arrays: dict[str, np.ndarray], settings: dict) -> Self:
        config, popularity = cls.config_class(**settings), arrays.pop("popularity")
        model = cls.blank(items.num_rows, config, arrays)
        model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        return cls(model, items, popularity, config)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device | None = None) -> Self:
        recommender = super().from_pretrained(folder)
        recommender.model.to(best_device(device))
        return recommender
