"""`BSARec`: the network of `llmrec.recommenders.networks.bsarec` as a recommender."""

from functools import partial
from pathlib import Path

import torch

from llmrec.data import PreparedData
from llmrec.features.next_item import train_next_item
from llmrec.recommenders.network import NetworkRanker
from llmrec.recommenders.networks.bsarec import BSARecConfig, BSARecModel


class BSARec(NetworkRanker):
    """A trained BSARec; `BSARec.fit(data)` makes one."""

    kind, config_class, network = "bsarec", BSARecConfig, BSARecModel

    @staticmethod
    def train(
        data: PreparedData, config: BSARecConfig, device: str | torch.device | None, folder: str | Path | None
    ) -> BSARecModel:
        def optimizer(model: BSARecModel) -> torch.optim.Optimizer:
            rates = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
            return torch.optim.Adam(model.parameters(), **rates, fused=True)

        make = partial(BSARecModel, data.items.num_rows, config)
        return train_next_item(make, optimizer, data, config, "BSARec", device, folder)
