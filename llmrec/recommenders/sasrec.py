"""`SASRec`: the network of `llmrec.features.sasrec_network` behind the `Recommender` protocol.

An empty history, which the network never sees, is ranked by training popularity.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from llmrec.catalogue.filters import Filter
from llmrec.data import PreparedData
from llmrec.features.sasrec_network import SASRecConfig, SASRecModel, sasrec_logits, train_sasrec
from llmrec.files import atomic_path, read_json, read_parquet, write_json, write_parquet
from llmrec.recommenders.protocol import Recommendation
from llmrec.recommenders.ranker import Catalogue, train_counts


class SASRec:
    """A trained SASRec behind the `Recommender` protocol; `SASRec.fit(data)` makes one."""

    def __init__(self, model: SASRecModel, items: pa.Table, popularity: np.ndarray, config: SASRecConfig):
        self.model = model.eval()
        self.catalogue = Catalogue(items)
        self.popularity = popularity
        self.config = config

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int | Sequence[int] = 10,
        filters: Filter | Sequence[Filter] | None = None,
    ) -> list[list[Recommendation]]:
        """See `Recommender.recommend`; a score is a log-probability over the catalogue."""
        return self.catalogue.recommend(self.score, histories, k, filters)

    def score(self, values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """float32 [b, items]: log-probabilities after histories given as `(values, offsets)` of catalogue rows."""
        device = self.model.items.weight.device
        scores = (
            F.log_softmax(sasrec_logits(self.model, values, offsets, self.config.max_length, device), -1).cpu().numpy()
        )
        empty = np.diff(offsets) == 0
        if empty.any():
            scores[empty] = np.log((self.popularity + 1) / (self.popularity + 1).sum()).astype(np.float32)
        return scores

    @classmethod
    def fit(cls, data: PreparedData, config: SASRecConfig | None = None, device: str | None = None) -> "SASRec":
        """Trains on `data.train`, stops on validation ndcg@10, keeps the best weights.

        Args:
            device (*optional*): defaults to CUDA where there is one.

        Raises:
            ValueError: no training target, no validation row, or an item that is not in the catalogue.
        """
        config = config or SASRecConfig()
        return cls(train_sasrec(data, config, device), data.items, train_counts(data), config)

    def save_pretrained(self, folder: str | Path, info: dict | None = None) -> None:
        """Writes config.json, model.safetensors and items.parquet, whole or not at all."""
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            tensors = {name: value.contiguous().cpu() for name, value in self.model.state_dict().items()}
            save_file(tensors | {"popularity": torch.from_numpy(self.popularity)}, temporary / "model.safetensors")
            write_parquet(temporary / "items.parquet", self.catalogue.items)
            write_json(temporary / "config.json", {"kind": "sasrec", "settings": asdict(self.config), **(info or {})})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "SASRec":
        """Reads a folder written by `save_pretrained`."""
        folder = Path(folder)
        config = SASRecConfig(**read_json(folder / "config.json")["settings"])
        items = read_parquet(folder / "items.parquet")
        tensors = load_file(folder / "model.safetensors")
        popularity = tensors.pop("popularity").numpy()
        model = SASRecModel(items.num_rows, config)
        model.load_state_dict(tensors)
        return cls(model, items, popularity, config)
