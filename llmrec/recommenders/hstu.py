"""`HSTU`: the network of `llmrec.recommenders.networks.hstu` as a recommender that may be told times."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from llmrec.catalogue.filters import Filter
from llmrec.data import PreparedData
from llmrec.data.rows import flatten_lists
from llmrec.data.times import UNKNOWN
from llmrec.features.network_training import adamw
from llmrec.features.next_item import train_next_item
from llmrec.recommenders.network import NetworkRanker
from llmrec.recommenders.networks.hstu import HSTUConfig, HSTUModel
from llmrec.recommenders.protocol import Recommendation, item_histories


class HSTU(NetworkRanker):
    """A trained HSTU; `HSTU.fit(data)` makes one."""

    kind, config_class, network = "hstu", HSTUConfig, HSTUModel
    timed = True

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int | Sequence[int] = 10,
        filters: Filter | Sequence[Filter] | None = None,
        times: Sequence[Sequence[int | None]] | None = None,
    ) -> list[list[Recommendation]]:
        """As `Recommender.recommend`. `times` are those of the items of every history, in seconds, or `None` where one
        is unknown; `ValueError` where there are more or fewer than items."""
        if times is None:
            return super().recommend(histories, k, filters)
        histories = item_histories(histories)
        if [len(one) for one in times] != [len(one) for one in histories]:
            raise ValueError("times: there should be one for every item of every history, or None where it is unknown")
        flat, _ = flatten_lists(pa.array([list(one) for one in times], pa.list_(pa.int64())))
        return self._ranked(histories, k, filters, np.asarray(flat.fill_null(UNKNOWN)))

    @staticmethod
    def train(
        data: PreparedData, config: HSTUConfig, device: str | torch.device | None, folder: str | Path | None
    ) -> HSTUModel:
        make = partial(HSTUModel, data.items.num_rows, config)
        return train_next_item(make, adamw(config), data, config, "HSTU", device, folder)
