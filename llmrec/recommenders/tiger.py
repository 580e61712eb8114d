"""`TIGER`: an encoder-decoder from scratch over Semantic IDs, searched as our language model is.

The network is `llmrec.recommenders.networks.tiger`. An empty history, which it never sees, is ranked by training
popularity. A folder is one of transformers, which `T5ForConditionalGeneration.from_pretrained` reads; its
`config.json` has `kind` and `settings` besides.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from transformers import T5ForConditionalGeneration

from llmrec.arguments import construct
from llmrec.catalogue.filters import Filter
from llmrec.catalogue.semids import SemIDIndex
from llmrec.data import PreparedData, lists_to_rows
from llmrec.decoding.search import open_search
from llmrec.decoding.searchable import SearchableCatalogue
from llmrec.devices import best_device
from llmrec.files import atomic_path, check_whole, read_json, read_parquet, write_json
from llmrec.models.folder import SEMIDS
from llmrec.recommenders.networks.tiger import CodeVocabulary, TIGERConfig, check_index, make_t5, reads_forward
from llmrec.recommenders.networks.tiger_training import train_tiger
from llmrec.recommenders.popularity import Popularity
from llmrec.recommenders.protocol import Recommendation, asked_for, item_histories, per_request
from llmrec.recommenders.ranker import train_counts
from llmrec.recommenders.semids import made_from_semids, semids_file

COUNTS = "counts.npy"


class TIGER:
    """A trained TIGER; `TIGER.fit(data, config)` makes one. A score is the log-probability of the Semantic ID, over
    the whole vocabulary.

    Args:
        items: the catalogue, in its order; `index` has a Semantic ID for every item (`SemIDIndex.aligned`).
        counts: int64 [items], of every item in train.
        batch_size: histories that are searched together.
    """

    kind, config_class = "tiger", TIGERConfig

    def __init__(
        self,
        model: T5ForConditionalGeneration,
        index: SemIDIndex,
        items: pa.Table,
        counts: np.ndarray,
        config: TIGERConfig,
        batch_size: int = 64,
    ):
        self.model, self.index, self.config, self.batch_size = model.eval(), index, config, batch_size
        self.vocabulary = CodeVocabulary(index, config)
        self.popularity = Popularity(items, counts)
        rows = pc.index_in(pa.array(index.item_ids, pa.string()), items["item_id"].combine_chunks())
        self.catalogue = SearchableCatalogue(index, items.take(rows), self.vocabulary)

    @classmethod
    def fit(
        cls,
        data: PreparedData,
        config: TIGERConfig | None = None,
        device: str | torch.device | None = None,
        folder: str | Path | None = None,
    ) -> Self:
        """Trains on `data.train`, stops on validation ndcg@10, keeps the best weights; `folder` gets the checkpoints.

        Raises:
            ValueError: no `semids`, Semantic IDs that TIGER cannot write (`networks.tiger.check_index`) or of another
                catalogue, no training target, or no validation row.
        """
        config = config or TIGERConfig()
        index = SemIDIndex.load(semids_file(cls.kind, config.semids)).aligned(data.items)
        if not index.adds_tokens:  # words of a language are tokens like any other here
            given = index.codebook_sizes, index.pattern, index.info, index.level_tokens
            index = SemIDIndex(index.item_ids, index.codes, *given)
        check_index(index)
        torch.manual_seed(config.seed)
        model = make_t5(config, CodeVocabulary(index, config).size).to(device := best_device(device))
        recommender = cls(model, index, data.items, train_counts(data), config)
        with tempfile.TemporaryDirectory() as scratch:
            train_tiger(recommender, data, device, Path(folder or scratch))
        model.eval()
        return recommender

    @staticmethod
    def made_from(config: TIGERConfig) -> dict:
        return made_from_semids(TIGER.kind, config.semids)

    @property
    def num_parameters(self) -> int:
        return self.model.num_parameters()

    @torch.no_grad()
    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int | Sequence[int] = 10,
        filters: Filter | Sequence[Filter] | None = None,
        users: Sequence[str | None] | None = None,
    ) -> list[list[Recommendation]]:
        """See `Recommender.recommend`. `users` are ids, where the model has tokens of users; they may be left out."""
        histories = item_histories(histories)
        ks, requests = asked_for(k, filters, len(histories))
        users = per_request(users, len(histories), "users")
        values, offsets = lists_to_rows(
            pa.array(histories, pa.list_(pa.string())), pa.array(self.index.items, pa.string())
        )
        starts = np.maximum(offsets[:-1], offsets[1:] - self.config.max_length)
        tokens = np.array([-1 if user is None else self._user(user) for user in users], np.int64)
        lists: list[list[Recommendation]] = [[] for _ in histories]
        empty = [number for number, history in enumerate(histories) if not history]
        asked = [[ks[number] for number in empty], [requests[number] for number in empty]]
        for number, items in zip(empty, self.popularity.recommend([[]] * len(empty), *asked)):
            lists[number] = items
        order = np.argsort(offsets[1:] - starts, kind="stable")[len(empty) :]  # neighbours in length share a batch
        titles, trie = self.popularity.titles, self.catalogue.trie.to(self.model.device)
        for batch in np.split(order, range(self.batch_size, len(order), self.batch_size)) if len(order) else ():
            read = self.vocabulary.prompts(values, starts[batch], offsets[1:][batch], tokens[batch])
            ids, mask = (part.to(self.model.device) for part in read.values())
            within = self.catalogue.restrictions([requests[i] for i in batch], [histories[i] for i in batch])
            search = open_search(self.model, ids, mask, trie, "vocabulary")
            beams = [self.config.num_beams] * len(batch)
            for number, hits in zip(batch, self.catalogue.find(search, [ks[i] for i in batch], beams, within)):
                lists[number] = [
                    Recommendation(self.index.items[hit.item], hit.score, titles[hit.item] or "") for hit in hits
                ]
        return lists

    def _user(self, user_id: str) -> int:
        if not self.config.user_tokens:
            raise ValueError("this TIGER knows no users (user_tokens: 0): leave users out")
        return self.vocabulary.user(user_id)

    def save_pretrained(self, folder: str | Path, info: dict | None = None) -> None:
        """Writes weights, config.json (`info` in it), semids.parquet with the items, and counts.npy, whole or not at
        all. Raises `FloatingPointError` where weights are NaN or inf."""
        bad = next((name for name, weights in self.model.named_parameters() if not weights.isfinite().all()), None)
        if bad is not None:
            raise FloatingPointError(f"{folder}: {bad} holds NaN or inf, so nothing is written: lower learning_rate")
        with atomic_path(folder) as temporary:
            self.model.save_pretrained(temporary)
            told = read_json(temporary / "config.json")
            kind = {"kind": self.kind, "settings": asdict(self.config), **(info or {})}
            write_json(temporary / "config.json", told | kind)
            self.index.save(temporary / SEMIDS, self.popularity.items)
            np.save(temporary / COUNTS, self.popularity.counts, allow_pickle=False)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device | None = None) -> Self:
        """Reads a folder written by `save_pretrained`; `ValueError` names a file that is missing or damaged."""
        check_whole(folder := Path(folder))
        config = construct(TIGERConfig, read_json(folder / "config.json")["settings"], f"{folder / 'config.json'}")
        index, table = SemIDIndex.load(folder / SEMIDS), read_parquet(folder / SEMIDS)
        first = pa.array(list(index.rows_of_items.first.values()), pa.int64())
        items = table.take(first).drop_columns(["semid", "codes"])
        model = reads_forward(T5ForConditionalGeneration.from_pretrained(folder), config).to(best_device(device))
        return cls(model, index, items, np.load(folder / COUNTS, allow_pickle=False), config)
