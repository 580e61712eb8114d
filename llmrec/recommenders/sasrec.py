"""`SASRec`: the network of `llmrec.features.sasrec_network` as a recommender.

An empty history, which the network never sees, is ranked by training popularity.
"""

from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F

from llmrec.data import PreparedData
from llmrec.devices import best_device
from llmrec.features.sasrec_network import SASRecConfig, SASRecModel, sasrec_logits, train_sasrec
from llmrec.recommenders.ranker import CatalogueRanker, train_counts


class SASRec(CatalogueRanker):
    """A trained SASRec; `SASRec.fit(data)` makes one. A score is a log-probability over the catalogue."""

    kind = "sasrec"

    def __init__(self, model: SASRecModel, items: pa.Table, popularity: np.ndarray, config: SASRecConfig):
        super().__init__(items, config)
        self.model, self.popularity = model.eval(), popularity

    @classmethod
    def fit(
        cls, data: PreparedData, config: SASRecConfig | None = None, device: str | torch.device | None = None
    ) -> Self:
        """Trains on `data.train`, stops on validation ndcg@10, keeps the best weights. `ValueError` for no training
        target, no validation row, or an item that is not in the catalogue."""
        config = config or SASRecConfig()
        return cls(train_sasrec(data, config, device), data.items, train_counts(data), config)

    @torch.no_grad()
    def score(self, values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        logits = sasrec_logits(self.model, values, offsets, self.config.max_length)
        scores = F.log_softmax(logits, -1).cpu().numpy()
        empty = np.diff(offsets) == 0
        if empty.any():
            scores[empty] = np.log((self.popularity + 1) / (self.popularity + 1).sum()).astype(np.float32)
        return scores

    def arrays(self) -> dict[str, np.ndarray]:
        weights = {name: value.cpu().numpy() for name, value in self.model.state_dict().items()}
        return weights | {"popularity": self.popularity}

    @classmethod
    def from_arrays(cls, items: pa.Table, arrays: dict[str, np.ndarray], settings: dict) -> Self:
        config, popularity = SASRecConfig(**settings), arrays.pop("popularity")
        model = SASRecModel(items.num_rows, config)
        model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        return cls(model, items, popularity, config)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device | None = None) -> Self:
        recommender = super().from_pretrained(folder)
        recommender.model.to(best_device(device))
        return recommender
