"""`HSTU`: the network of `llmrec.recommenders.networks.hstu` as a recommender; it may be told times and behaviours."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from llmrec.catalogue.filters import Filter
from llmrec.data import PreparedData
from llmrec.data.known import known_items, numbers_of
from llmrec.data.rows import flatten_lists, offsets_of
from llmrec.data.times import UNKNOWN
from llmrec.features.network_training import adamw
from llmrec.features.next_item import train_next_item
from llmrec.features.parts.categorical import Categories
from llmrec.features.parts.part import rows_in_training
from llmrec.recommenders.network import NetworkRanker
from llmrec.recommenders.networks.hstu import HSTUConfig, HSTUModel
from llmrec.recommenders.protocol import Recommendation, item_histories, per_request


class HSTU(NetworkRanker):
    """A trained HSTU; `HSTU.fit(data)` makes one."""

    kind, config_class, network = "hstu", HSTUConfig, HSTUModel
    timed = True

    @property
    def behaviours(self) -> list[str]:
        """The kinds of interaction that it reads, the one that is wanted by default last."""
        return self.config.behaviours

    def recommend(
        self,
        histories: Sequence[Sequence],
        k: int | Sequence[int] = 10,
        filters: Filter | Sequence[Filter] | None = None,
        times: Sequence[Sequence[int | None]] | None = None,
        behaviour: str | Sequence[str] | None = None,
    ) -> list[list[Recommendation]]:
        """As `Recommender.recommend`.

        Args:
            histories: of one that reads behaviours, may hold (item id, behaviour) pairs; an id alone counts as the
                wanted behaviour.
            times: of the items of every history, in seconds, or `None` where one is unknown.
            behaviour: the wanted one, for all or one per history; by default the last of `behaviours`.

        Raises:
            ValueError: more or fewer times than items, or a behaviour that it does not know.
        """
        histories = item_histories(histories, bool(self.behaviours))
        offsets = offsets_of(np.array([len(one) for one in histories], np.int64))
        known = []
        if times is None:
            known.append(None)
        elif [len(one) for one in times] != np.diff(offsets).tolist():
            raise ValueError("times: there should be one for every item of every history, or None where it is unknown")
        else:
            flat, _ = flatten_lists(pa.array([list(one) for one in times], pa.list_(pa.int64())))
            known.append(np.asarray(flat.fill_null(UNKNOWN)))
        if behaviour is not None and not self.behaviours:
            raise ValueError(f"behaviour is {behaviour!r}, but this HSTU reads no behaviours: leave it out")
        if self.behaviours:
            wanted = per_request(behaviour or self.behaviours[-1], len(histories), "behaviour")
            wanted = [one or self.behaviours[-1] for one in wanted]
            kinds = [said if isinstance(one, str) else one[1] for said, each in zip(wanted, histories) for one in each]
            known += [numbers_of(kinds, self.behaviours), numbers_of(wanted, self.behaviours)]
        return self._ranked(item_histories(histories), k, filters, known_items(offsets, *known))

    @staticmethod
    def train(
        data: PreparedData, config: HSTUConfig, device: str | torch.device | None, folder: str | Path | None
    ) -> HSTUModel:
        """`ValueError` for a column that the catalogue does not have, or that tells nothing."""
        values = column_values(data, config.columns) if config.columns else ()
        make = partial(HSTUModel, data.items.num_rows, config, *values)
        return train_next_item(make, adamw(config), data, config, "HSTU", device, folder)

    @classmethod
    def blank(cls, num_items: int, config: HSTUConfig, arrays: dict[str, np.ndarray]) -> HSTUModel:
        values = (np.zeros_like(arrays["values"]), len(arrays["columns.weight"]) - 1) if config.columns else ()
        return HSTUModel(num_items, config, *values)


def column_values(data: PreparedData, columns: Sequence[str]) -> tuple[np.ndarray, int]:
    """What `HSTUModel` reads of categorical columns: the tokens of `Categories` (a path has one for every level, a
    number that of its quantile) that two training items or more have, as numbers, and how many there are."""
    categories = Categories(columns).fit(data.items.take(rows_in_training(data.items, data.train)))
    number = {token: place for place, token in enumerate(categories.vocabulary, 1)}
    tokens = categories.tokens(data.items)
    values = np.zeros((data.items.num_rows, len(columns), max(len(one) for each in tokens for one in each)), np.int64)
    for column, each in enumerate(tokens):
        for row, one in enumerate(each):
            values[row, column, : len(one)] = [number[token] for token in one]
    return values, len(number)
