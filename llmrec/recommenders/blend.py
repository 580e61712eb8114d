"""`BlendedRecommender`: several recommenders in one, as every shop does it.

Each is asked for its best items; an item gets the weighted sum of what the lists say of it. Notable: weights are
chosen on validation by greedy ensemble selection (Caruana et al. 2004): again and again the recommender is added that
makes ndcg@10 best, and how often each was added is its weight. The folder holds its members, so it needs nothing else.
"""

import logging
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import torch

from llmrec.arguments import at_least, one_of
from llmrec.catalogue.filters import CatalogueFilter, Filter, within_limits
from llmrec.data import PreparedData, excludes_seen, ids_to_rows
from llmrec.features.network_training import validation_rows
from llmrec.files import atomic_path, read_json, read_parquet, write_json, write_parquet
from llmrec.recommenders.protocol import (
    Recommendation,
    Recommender,
    asked_for,
    item_histories,
    requests_of,
    with_times,
)

logger = logging.getLogger(__name__)
_ROUNDS = 20
_READ = {"times": "timed", "behaviour": "behaviours"}  # what may be said of histories, and who reads it


@dataclass(frozen=True)
class BlendConfig:
    """What is blended, and how."""

    recommenders: dict = field(default_factory=dict, metadata={"help": "Name -> folder of two or more recommenders."})
    weights: dict = field(default_factory=dict, metadata={"help": "Name -> weight; by default chosen on validation."})
    scores: str = field(
        default="reciprocal_ranks",
        metadata={"help": "reciprocal_ranks: 1 / (offset + place); standardized: scores in standard deviations."},
    )
    offset: int = field(default=10, metadata={"help": "Of reciprocal ranks: the greater, the flatter."})
    depth: int = field(default=100, metadata={"help": "Items that each recommender is asked for, at least."})
    validation_rows: int = field(default=4000, metadata={"help": "Weights are chosen on so many random rows."})
    seed: int = field(default=0, metadata={"help": "Of the random rows."})
    exclude_seen: str = field(
        default="auto", metadata={"help": "Choose without items of the history: auto, true, false."}
    )

    def __post_init__(self):
        at_least(self, offset=0, depth=10, validation_rows=1)
        one_of(self.scores, ("reciprocal_ranks", "standardized"), "scores")
        if len(self.recommenders) < 2:
            raise ValueError("recommenders: a blend has two or more, each a name and a folder")
        for name in self.weights:
            one_of(name, self.recommenders, "weights:")
        if self.weights and not (self.weights.keys() == self.recommenders.keys() and min(self.weights.values()) >= 0):
            raise ValueError("weights: there should be one for every recommender, none below 0")


class Fused(NamedTuple):
    """What the lists of all recommenders say: a row of the catalogue (int64 [n]) once for each history that it is
    listed for, float [members, n] of what each member says, and int64 [histories + 1] offsets."""

    rows: np.ndarray
    said: np.ndarray
    offsets: np.ndarray


class BlendedRecommender(ABC):
    """Two or more recommenders of one catalogue in one. A score is a weighted sum."""

    kind, config_class = "blend", BlendConfig

    def __init__(self, members: Mapping[str, Recommender], items: pa.Table, config: BlendConfig):
        self.members, self.items, self.config = dict(members), items, config
        self.item_ids: list[str] = items["item_id"].to_pylist()
        self.titles = items["title"].to_pylist() if "title" in items.column_names else [""] * len(self.item_ids)
        self.filter = CatalogueFilter(items)
        self._row = {item: row for row, item in enumerate(self.item_ids)}

    @staticmethod
    @abstractmethod
    def load(
        folder: str | Path, device: str | torch.device | None = None, data: PreparedData | None = None
    ) -> Recommender:
        """A member; `ValueError` where it was trained on other than this data."""

    @classmethod
    def fit(
        cls,
        data: PreparedData,
        config: BlendConfig,
        device: str | torch.device | None = None,
        folder: str | Path | None = None,
    ) -> Self:
        """Loads the members and, where none are given, chooses weights on `data.valid`."""
        members = {name: cls.load(path, device, data) for name, path in config.recommenders.items()}
        blend = cls(members, data.items, config)
        if not config.weights:
            blend.config = replace(config, weights=blend._best_weights(data))
        return blend

    @property
    def num_parameters(self) -> int:
        return sum(one.num_parameters for one in self.members.values())

    @property
    def timed(self) -> bool:
        """Whether a member may be told when items were taken."""
        return any(getattr(member, "timed", False) for member in self.members.values())

    @property
    def behaviours(self) -> list[str]:
        """The kinds of interaction that its members read, those of the first that reads any."""
        return next((kinds for one in self.members.values() if (kinds := getattr(one, "behaviours", []))), [])

    def recommend(
        self,
        histories: Sequence[Sequence],
        k: int | Sequence[int] = 10,
        filters: Filter | Sequence[Filter] | None = None,
        times: Sequence[Sequence[int | None]] | None = None,
        behaviour: str | Sequence[str] | None = None,
    ) -> list[list[Recommendation]]:
        """As `Recommender.recommend`. Members that are `timed` are told the `times` of items, and those with
        `behaviours` the kinds of (item id, behaviour) pairs and the wanted one (see `HSTU.recommend`); `ValueError`
        where they are said and no member reads them."""
        histories = item_histories(histories, pairs=True)
        ks, requests = asked_for(k, filters, len(histories))
        known = {name: said for name, said in (("times", times), ("behaviour", behaviour)) if said is not None}
        if unread := [name for name in known if not getattr(self, _READ[name])]:
            raise ValueError(f"{unread[0]}: no member of this blend reads them, leave them out")
        fused = self._fused(histories, ks, requests, known)
        scores = np.asarray([self.config.weights[name] for name in self.members]) @ fused.said
        lists = []
        for start, end, number, request in zip(fused.offsets[:-1], fused.offsets[1:], ks, requests):
            order = np.lexsort((fused.rows[start:end], -scores[start:end])) + start
            limits = self.filter.limits(request)
            best = order[within_limits(fused.rows[order], limits)] if limits else order
            found = ((int(fused.rows[one]), float(scores[one])) for one in best[:number])
            lists.append([Recommendation(self.item_ids[row], score, self.titles[row] or "") for row, score in found])
        return lists

    def _fused(self, histories: list, ks: list[int], requests: list, known: Mapping) -> Fused:
        depths = [max(self.config.depth, number) for number in ks]
        asked = {} if all(request is None for request in requests) else {"filters": requests}
        keys, said, least = [], [], []
        for member in self.members.values():
            told = {name: said for name, said in known.items() if getattr(member, _READ[name], ())}
            lists = member.recommend(histories, k=depths, **asked, **told)
            lengths = np.asarray([len(one) for one in lists], np.int64)
            of_list = np.repeat(np.arange(len(lists)), lengths)
            rows = np.asarray([self._row[item.item_id] for one in lists for item in one], np.int64)
            keys.append(of_list * len(self.item_ids) + rows)
            if self.config.scores == "reciprocal_ranks":
                place = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
                said.append(1 / (self.config.offset + place + 1))
                least.append(np.zeros(len(lists)))
            else:
                values = [_standardized(np.asarray([item.score for item in one])) for one in lists]
                said.append(np.concatenate([*values, np.zeros(0)]))
                least.append(np.asarray([one.min(initial=0) for one in values]))
        union = np.unique(np.concatenate(keys))
        of_list = union // len(self.item_ids)
        table = np.stack([of_member[of_list] for of_member in least])
        for member, (one, value) in enumerate(zip(keys, said)):
            table[member, np.searchsorted(union, one)] = value
        offsets = np.searchsorted(of_list, np.arange(len(histories) + 1))
        return Fused(union % len(self.item_ids), table, offsets)

    def _best_weights(self, data: PreparedData) -> dict[str, float]:
        rows = validation_rows(data, self.config, "a blend")
        excluded = excludes_seen(self.config.exclude_seen, data)
        count = rows.num_rows
        histories, known = requests_of(self, with_times(self, rows, data))
        fused = self._fused(histories, [10] * count, [Filter(exclude_seen=excluded)] * count, known)
        targets = ids_to_rows(rows["target"], data.items["item_id"]).astype(np.int64)
        of_list = np.repeat(np.arange(count), np.diff(fused.offsets))
        is_target = fused.rows == targets[of_list]

        def ndcg(counts: np.ndarray) -> float:
            scores = counts @ fused.said
            wanted = np.full(count, np.inf)
            wanted[of_list[is_target]] = scores[is_target]
            before = (scores > wanted[of_list]) | ((scores == wanted[of_list]) & (fused.rows < targets[of_list]))
            rank = np.bincount(of_list[before], minlength=count)
            return float(np.where(np.isfinite(wanted) & (rank < 10), 1 / np.log2(rank + 2), 0).mean())

        counts, tried = np.zeros(len(self.members)), {}
        for _ in range(_ROUNDS):
            more = {member: ndcg(counts + one) for member, one in enumerate(np.eye(len(self.members)))}
            counts[max(more, key=more.get)] += 1
            tried[tuple(counts)] = max(more.values())
        best = max(tried, key=tried.get)
        weights = {name: round(float(number / sum(best)), 4) for name, number in zip(self.members, best)}
        alone = {name: round(float(ndcg(one)), 4) for name, one in zip(self.members, np.eye(len(self.members)))}
        logger.info("blend: %s, validation ndcg@10 %.4f; alone %s", weights, tried[best], alone)
        return weights

    def save_pretrained(self, folder: str | Path, info: dict | None = None) -> None:
        """Writes config.json, items.parquet and, in a folder of its name, each member: files are linked where the
        file system can, and copied where it cannot."""
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            for name, source in self.config.recommenders.items():
                unwanted = shutil.ignore_patterns(".*", "checkpoint*")
                shutil.copytree(source, temporary / "members" / name, ignore=unwanted, copy_function=_link)
            write_parquet(temporary / "items.parquet", self.items)
            write_json(temporary / "config.json", {"kind": self.kind, "settings": asdict(self.config), **(info or {})})

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device | None = None) -> Self:
        """Reads a folder written by `save_pretrained`; `ValueError` names a file that is missing or damaged."""
        settings = read_json(Path(folder) / "config.json")["settings"]
        inside = {name: str(Path(folder) / "members" / name) for name in settings["recommenders"]}
        config = BlendConfig(**{**settings, "recommenders": inside})
        members = {name: cls.load(path, device) for name, path in inside.items()}
        return cls(members, read_parquet(Path(folder) / "items.parquet"), config)


def _standardized(scores: np.ndarray) -> np.ndarray:
    return (scores - scores.mean()) / (scores.std() or 1) if len(scores) else scores


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
