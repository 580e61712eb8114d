"""`RPG` (KDD 2025, arXiv:2506.05781): long unordered Semantic IDs whose digits are all predicted at once.

A score is the mean log-probability of an item's digits. `search: exhaustive` ranks the whole catalogue. `graph` scores
what a walk along a graph of similar items visits, and promises: what it returns has the exhaustive score and order; a
request gets as many items as exhaustively; one whose filter leaves no more items than a walk may visit gets the
exhaustive list.
"""

from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import torch

from llmrec.catalogue.semids import SemIDIndex
from llmrec.data import PreparedData
from llmrec.features.network_training import adamw
from llmrec.features.next_item import last_state, train_next_item
from llmrec.recommenders.network import NetworkRanker
from llmrec.recommenders.networks.decoding_graph import decoding_graph, digit_similarity, item_scores, walk
from llmrec.recommenders.networks.rpg import RPGConfig, RPGNetwork, digits_of
from llmrec.recommenders.semids import made_from_semids, semids_file


class RPG(NetworkRanker):
    """A trained RPG; `RPG.fit(data, config)` makes one.

    Args:
        graph: int32 [items, edges], neighbours of every item; made where the config searches by graph and there is
            none.
    """

    kind, config_class = "rpg", RPGConfig

    def __init__(
        self,
        model: RPGNetwork,
        items: pa.Table,
        popularity: np.ndarray,
        config: RPGConfig,
        graph: torch.Tensor | None = None,
    ):
        super().__init__(model, items, popularity, config)
        self.graph = graph
        if config.search == "graph" and graph is None:
            similarity = digit_similarity(model.digit_vectors().detach())
            self.graph = decoding_graph(similarity, model.codes, config.edges, config.seed)

    @staticmethod
    def train(
        data: PreparedData, config: RPGConfig, device: str | torch.device | None, folder: str | Path | None
    ) -> RPGNetwork:
        """`ValueError` for Semantic IDs that are not for RPG (`digits_of`)."""
        codes, codebook_size = digits_of(SemIDIndex.load(semids_file(RPG.kind, config.semids)), data.items)
        make, optimizer = partial(RPGNetwork, codes, codebook_size, config), adamw(config, betas=(0.9, 0.999))
        return train_next_item(make, optimizer, data, config, "RPG", device, folder)

    @staticmethod
    def made_from(config: RPGConfig) -> dict:
        return made_from_semids(RPG.kind, config.semids)

    def network_scores(self, values, offsets, known: np.ndarray | None) -> torch.Tensor:
        return item_scores(self._tables(values, offsets), self.model.codes)

    def best(self, requests, values, offsets, *beside: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        if self.config.search == "exhaustive":
            return super().best(requests, values, offsets, *beside)
        tables, codes = self._tables(values, offsets), self.model.codes
        walked = walk(tables, codes, self.graph, self._starts(), self.config.beam, self.config.rounds)
        reach = self.config.beam * (1 + self.config.rounds * self.graph.shape[1])
        found = []
        for number, (history, k, request) in enumerate(requests):
            allowed, (rows, scores) = self.allowed(history, request), walked[number]
            few = allowed is not None and allowed.sum() <= reach
            if few:
                rows = np.flatnonzero(allowed)
                of_rows = codes[torch.from_numpy(rows).to(codes.device)]
                scores = item_scores(tables[number : number + 1], of_rows)[0].cpu().numpy()
            picked = self.pick(rows, scores, allowed, k, request)
            first, last = offsets[number], offsets[number + 1]
            if first == last or (len(picked[0]) < k and not few):
                (picked,) = super().best(
                    requests[number : number + 1], values[first:last], np.array([0, last - first])
                )
            found.append(picked)
        return found

    @torch.no_grad()
    def _tables(self, values: np.ndarray, offsets: np.ndarray) -> torch.Tensor:
        """float32 [b, m * K] after b histories."""
        return self.model.tables(last_state(self.model, values, offsets, None, self.config.max_length))

    def _starts(self) -> torch.Tensor:
        """The same random items for all requests, so that a list does not depend on the others."""
        count = len(self.item_ids)
        starts = np.random.default_rng(self.config.seed).choice(count, min(self.config.beam, count), replace=False)
        return torch.from_numpy(starts).to(self.model.codes.device)

    def arrays(self) -> dict[str, np.ndarray]:
        return super().arrays() | ({} if self.graph is None else {"graph": self.graph.cpu().numpy()})

    @classmethod
    def from_arrays(cls, items: pa.Table, arrays: dict[str, np.ndarray], settings: dict) -> Self:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        popularity, graph = tensors.pop("popularity").numpy(), tensors.pop("graph", None)
        config, shape = RPGConfig(**settings), tensors["codes"].shape
        model = RPGNetwork(np.zeros(shape, np.int32), len(tensors["digits.weight"]) // shape[1], config)
        model.load_state_dict(tensors)
        return cls(model, items, popularity, config, graph)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device | None = None) -> Self:
        recommender = super().from_pretrained(folder, device)
        if recommender.graph is not None:
            recommender.graph = recommender.graph.to(recommender.model.codes.device)
        return recommender
