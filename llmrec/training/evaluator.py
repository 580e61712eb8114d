"""Ranking metrics on a sample of validation rows while a model trains."""

from collections.abc import Sequence
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from tqdm.auto import tqdm

from llmrec.arrays import blocks
from llmrec.catalogue.filters import Filter
from llmrec.data import PreparedData, excludes_seen
from llmrec.data.rows import flatten_lists, ids_to_rows, lists_to_rows
from llmrec.decoding.self_check import evaluating
from llmrec.evaluation.evaluate import semid_groups
from llmrec.evaluation.metrics import first_occurrences, row_metrics, seen_items, target_ranks
from llmrec.evaluation.slices import popularity_classes
from llmrec.recommenders import LLMRecommender
from llmrec.recommenders.length import check_histories
from llmrec.recommenders.protocol import requests_of

SHOWN = 10  # places of a list that valid, coverage and head look at


class ValidationSample:
    """Fixed rows of the validation split; every evaluation of a run sees the same ones.

    A thinking model is asked with an empty thought: writing thoughts would cost more than the training between. A
    history that may be written in several ways is asked in one random one. The recommender's model is replaced at each
    evaluation; `train` says what is popular, `exclude_seen` whether lists leave out the items of the history
    (`llmrec.data.excludes_seen`). Items that share a Semantic ID count as they do in `llmrec.evaluation`: the
    expectation over a random order. Histories that the model has no positions for raise `ValueError`.
    """

    def __init__(
        self,
        recommender: LLMRecommender,
        valid: pa.Table,
        size: int = 500,
        ks: Sequence[int] = (1, 10, 50),
        train: pa.Table | None = None,
        exclude_seen: bool = False,
    ):
        rows = np.sort(np.random.default_rng(0).permutation(valid.num_rows)[:size])
        self.rows = valid.take(pa.array(rows))
        self.recommender, self.exclude_seen = recommender, exclude_seen
        histories, wishes = requests_of(recommender, self.rows)
        check_histories(recommender, histories, wishes.get("behaviour"), think=False)
        self.item_ids = pa.array(recommender.item_ids, pa.string())
        groups = semid_groups(recommender.index, self.item_ids)
        self.groups = np.append(groups, groups.max() + 1)  # the last for all targets that are in no list
        self.place = {item: number for number, item in enumerate(recommender.item_ids)}
        # A target outside the catalogue, which a new catalogue can leave behind, is never found.
        self.targets = np.array([self.place.get(item, len(self.place)) for item in self.rows["target"].to_pylist()])
        self.ks = tuple(sorted(ks))
        possible = np.full(self.rows.num_rows, len(self.place))
        if self.exclude_seen:
            possible -= np.bincount(seen_items(*self._seen(self.rows), len(self.place))[0], minlength=len(possible))
        self.possible = int(np.minimum(SHOWN, possible).sum())  # places that all lists together can fill
        self.head = None  # bool [items]: the most popular tenth of the training split
        if train is not None:
            seen = ids_to_rows(flatten_lists(train["item_ids"])[0], pa.array(list(self.place)))
            self.head = popularity_classes(np.bincount(seen, minlength=len(self.place)))[0] == "head"

    @classmethod
    def of(cls, recommender: LLMRecommender, data: PreparedData, size: int, exclude_seen: str | bool = "auto") -> Self:
        """A sample of the validation split of prepared data, ranked as `llmrec.evaluation.evaluate` ranks it."""
        return cls(recommender, data.valid, size, train=data.train, exclude_seen=excludes_seen(exclude_seen, data))

    def _seen(self, rows: pa.Table) -> tuple[np.ndarray, np.ndarray] | None:
        return lists_to_rows(rows["history"], self.item_ids) if self.exclude_seen else None

    def evaluate(self, model, accelerator, progress: bool = False) -> dict[str, float]:
        """Item-level metrics; the processes share the rows. `progress` shows a bar.

        Returns:
            `recall@k` and `ndcg@k`; `valid@10`, the share of places that hold a distinct item of the catalogue (1,
            or something is broken); `coverage@10`, the share of the catalogue that any list shows; and, where `train`
            is known, `head@10`, the share of what is shown that belongs to its most popular tenth. Nothing at all
            without rows.
        """
        if not self.rows.num_rows:
            return {}
        self.recommender.model = model
        mine = slice(accelerator.process_index, None, accelerator.num_processes)
        with torch.no_grad(), evaluating(model):
            rows, targets = self.rows.take(pa.array(range(self.rows.num_rows)[mine], pa.int64())), self.targets[mine]
            order = pc.array_sort_indices(pc.list_value_length(rows["history"]))  # batches of one length
            rows, targets = rows.take(order), targets[order.to_numpy()]
            asked = Filter(exclude_seen=True) if self.exclude_seen else None
            more = {"think": False, "variations": min(1, self.recommender.config.variations)}
            lists, hidden = [], not progress or accelerator.process_index > 0
            with tqdm(total=len(targets), desc="ranking", unit="row", leave=False, disable=hidden) as bar:
                for batch in blocks(len(targets), 4 * self.recommender.batch_size):
                    histories, wishes = requests_of(
                        self.recommender, rows.slice(batch.start, batch.stop - batch.start)
                    )
                    lists += self.recommender.recommend(histories, self.ks[-1], asked, **wishes, **more)
                    bar.update(len(histories))
        places = np.full((len(lists), max(SHOWN, self.ks[-1])), -1)
        for row, items in enumerate(lists):
            places[row, : len(items)] = [self.place[item.item_id] for item in items]
        seen = self._seen(rows)
        by_row = row_metrics(*target_ranks(places, targets, self.groups, seen), self.ks)
        names = [*(f"recall@{k}" for k in self.ks), *(f"ndcg@{k}" for k in self.ks if k > 1)]
        top = places[:, :SHOWN]
        shown = np.bincount(top[first_occurrences(top)], minlength=len(self.place))
        sums = torch.tensor([*(by_row[name].sum() for name in names), *shown], dtype=torch.float64)
        sums = accelerator.reduce(sums.to(accelerator.device), "sum").cpu().numpy()
        metrics = dict(zip(names, (sums[: len(names)] / max(len(self.targets), 1)).tolist()))
        shown = sums[len(names) :]
        metrics[f"valid@{SHOWN}"] = float(shown.sum() / max(1, self.possible))
        metrics[f"coverage@{SHOWN}"] = float((shown > 0).mean())
        if self.head is not None:
            metrics[f"head@{SHOWN}"] = float(shown[self.head].sum() / max(1.0, shown.sum()))
        return metrics
