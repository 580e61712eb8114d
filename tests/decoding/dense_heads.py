"""Dense heads for tests: fitted ones cost an epoch, these have random weights and real features."""

import numpy as np
import torch

from llmrec.arrays import l2_normalize
from llmrec.data import PreparedData
from llmrec.features import ItemFeatures
from llmrec.models.dense import DenseHead, StateHead

DIM = 8


def random_head(data: PreparedData, hidden_size: int, cold: list[str] = (), weight: float = 0.5) -> DenseHead:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    features = ItemFeatures([{"kind": "text", "encoder": "tfidf", "dim": 6}]).fit(data.items, data.train)
    matrix, item_ids = features.encode(data.items), data.items["item_id"].to_pylist()
    project = rng.normal(size=(matrix.shape[1], DIM)).astype(np.float32)
    own = rng.normal(size=(len(matrix), DIM)).astype(np.float32)
    is_cold = np.isin(item_ids, list(cold))
    own[is_cold] = 0
    vectors = l2_normalize(matrix @ project + own).astype(np.float32)
    settings = {"temperature": 0.2, "weight": weight}
    return DenseHead(StateHead(hidden_size, DIM), project, item_ids, vectors, is_cold, settings, features)
