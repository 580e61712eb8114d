"""`CatalogueRanker`: what scores a whole catalogue at once becomes a `Recommender` that is saved and loaded.

A subclass says what it is called (`kind`), how it scores, and which arrays and settings make it again.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import pyarrow as pa
import torch

from llmrec.arrays import blocks
from llmrec.catalogue.filters import CatalogueFilter, Filter, within_limits
from llmrec.data import PreparedData, lists_to_rows
from llmrec.files import atomic_path, load_state, read_parquet, save_state, write_parquet
from llmrec.recommenders.protocol import Recommendation, asked_for, item_histories


@dataclass(frozen=True)
class NoSettings:
    """Of what has nothing to set."""


class CatalogueRanker(ABC):
    """Ranks by a score of every item; equal scores stand in the order of the catalogue.

    Args:
        items: has `item_id` (distinct); `title` and the columns of predicates are optional.
        config: a dataclass of settings.
    """

    kind: ClassVar[str]
    config_class: ClassVar[type] = NoSettings
    num_parameters = 0

    def __init__(self, items: pa.Table, config=NoSettings()):
        self.items, self.config = items, config
        self.item_ids: list[str] = items["item_id"].to_pylist()
        self.titles = items["title"].to_pylist() if "title" in items.column_names else [""] * len(self.item_ids)
        self.filter = CatalogueFilter(items)

    @classmethod
    @abstractmethod
    def fit(
        cls,
        data: PreparedData,
        config=None,
        device: str | torch.device | None = None,
        folder: str | Path | None = None,
    ) -> Self:
        """Learns from `data.train`; as `TrainableRecommender.fit`."""

    @staticmethod
    def made_from(config) -> dict:
        """As `TrainableRecommender.made_from`."""
        return {}

    @abstractmethod
    def score(self, values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Float `[b, items]` after b histories: rows of the catalogue (int32 `[n]`), int64 `[b + 1]` offsets."""

    @abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """What `from_arrays` needs beside the items and the settings."""

    @classmethod
    @abstractmethod
    def from_arrays(cls, items: pa.Table, arrays: dict[str, np.ndarray], settings: dict) -> Self:
        """The ranker again, from what was saved."""

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int | Sequence[int] = 10,
        filters: Filter | Sequence[Filter] | None = None,
    ) -> list[list[Recommendation]]:
        return self._ranked(histories, k, filters)

    def _ranked(self, histories, k, filters, *beside: np.ndarray) -> list[list[Recommendation]]:
        """As `recommend`; `score` gets its part of what stands beside the items of all histories, too."""
        histories = item_histories(histories)
        ks, requests = asked_for(k, filters, len(histories))
        of_users = pa.array([list(history) for history in histories], pa.list_(pa.string()))
        values, offsets = lists_to_rows(of_users, self.items["item_id"])
        lists = []
        size = len(self.item_ids)
        for batch in blocks(len(histories), max(1, min(256, 2**26 // max(1, size)))):  # scores held at once
            bounds = offsets[batch.start : batch.stop + 1]
            known = (one[bounds[0] : bounds[-1]] for one in (values, *beside))
            asked = list(zip(histories[batch], ks[batch], requests[batch]))
            for rows, scores in self.best(asked, next(known), bounds - bounds[0], *known):
                places = zip(rows.tolist(), scores.tolist())
                lists.append([Recommendation(self.item_ids[i], score, self.titles[i] or "") for i, score in places])
        return lists

    def best(self, requests, values, offsets, *beside: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """The best items (rows of the catalogue, best first) and their scores for each of b requests, `(history, k,
        filter)`; the rest as `score` takes it."""
        everyone = np.arange(len(self.item_ids))
        return [
            self.pick(everyone, scores, self.allowed(history, request), k, request)
            for scores, (history, k, request) in zip(self.score(values, offsets, *beside), requests)
        ]

    def allowed(self, history: Sequence[str], request: Filter | None) -> np.ndarray | None:
        """bool [items]; `None` allows all."""
        return None if request is None else self.filter.allowed(request, history)

    def pick(self, rows, scores, allowed, k: int, request: Filter | None) -> tuple[np.ndarray, np.ndarray]:
        """The best `k` of some rows (int64 [n], ascending) by their scores (float [n]): of those allowed (bool
        [items]) and within the request's limits."""
        limits = self.filter.limits(request)
        best = top_rows(scores, len(rows) if limits else k, None if allowed is None else allowed[rows])
        if limits:
            best = best[within_limits(rows[best], limits)][:k]
        return rows[best], scores[best]

    def save_pretrained(self, folder: str | Path, info: dict | None = None) -> None:
        """Writes config.json (`info` in it), the arrays and items.parquet, whole or not at all."""
        with atomic_path(folder) as temporary:
            config = {"kind": self.kind, "settings": asdict(self.config), **(info or {})}
            self._save(temporary, config, self.arrays())
            write_parquet(temporary / "items.parquet", self.items)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device | None = None) -> Self:
        """Reads a folder written by `save_pretrained`; `ValueError` names a file that is missing or damaged. Only a
        network has a `device`, by default the GPU where there is one."""
        config, arrays = cls._load(folder)
        return cls.from_arrays(read_parquet(Path(folder) / "items.parquet"), arrays, config["settings"])

    _save = staticmethod(save_state)
    _load = staticmethod(load_state)


def train_counts(data: PreparedData) -> np.ndarray:
    """int64 [items]: how often every item of the catalogue occurs in train, as context or as target."""
    values, _ = lists_to_rows(data.train["item_ids"], data.items["item_id"])
    return np.bincount(values, minlength=data.items.num_rows).astype(np.int64)


def top_rows(scores: np.ndarray, k: int, allowed: np.ndarray | None = None) -> np.ndarray:
    """int64 [<= k]: rows of the highest scores (float [items]) of those allowed (bool [items]), best first; equal
    scores stand in the catalogue's order."""
    rows = np.arange(len(scores)) if allowed is None else np.flatnonzero(allowed)
    if k < len(rows):
        # argpartition alone would pick arbitrary rows among those that tie with the k-th.
        kth = np.partition(scores[rows], len(rows) - k)[len(rows) - k]
        rows = rows[scores[rows] >= kth]
    return rows[np.argsort(-scores[rows], kind="stable")][:k]
