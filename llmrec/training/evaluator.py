"""Ranking metrics on a sample of validation rows while a model trains."""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from llmrec.recommender import LLMRecommender, requests_of


class ValidationSample:
    """Fixed rows of the validation split; every evaluation of a run sees the same ones.

    A thinking model is asked with an empty thought: writing thoughts would cost more than the training between.

    Args:
        recommender (`LLMRecommender`): tokenizer, catalogue and settings; its model is replaced at each evaluation.
        valid (`pa.Table`): `history`, `target`.
        size (`int`): how many rows, drawn with `seed`.
        ks (sequence of `int`): cut-offs.
    """

    def __init__(
        self,
        recommender: LLMRecommender,
        valid: pa.Table,
        size: int = 500,
        ks: Sequence[int] = (1, 10, 50),
        seed: int = 0,
    ):
        rows = np.sort(np.random.default_rng(seed).permutation(valid.num_rows)[:size])
        self.rows = valid.take(pa.array(rows))
        self.recommender = recommender
        self.targets = self.rows["target"].to_pylist()
        self.ks = tuple(sorted(ks))

    def evaluate(self, model, accelerator) -> dict[str, float]:
        """`{"recall@1": ..., "ndcg@10": ...}` at item level; the processes share the rows."""
        was_training = model.training
        model.eval()
        self.recommender.model = model
        mine = slice(accelerator.process_index, None, accelerator.num_processes)
        with torch.no_grad():
            rows = self.rows.take(pa.array(range(self.rows.num_rows)[mine], pa.int64()))
            histories, wishes = requests_of(self.recommender, rows)
            lists = self.recommender.recommend(histories, k=self.ks[-1], think=False, **wishes)
        sums = torch.zeros(2, len(self.ks), dtype=torch.float64)
        for items, target in zip(lists, self.targets[mine]):
            rank = next((rank for rank, item in enumerate(items) if item.item_id == target), None)
            for column, k in enumerate(self.ks):
                if rank is not None and rank < k:
                    sums[0, column] += 1
                    sums[1, column] += 1 / math.log2(rank + 2)
        sums = accelerator.reduce(sums.to(accelerator.device), "sum").cpu() / max(len(self.targets), 1)
        model.train(was_training)
        recall = {f"recall@{k}": float(value) for k, value in zip(self.ks, sums[0])}
        return recall | {f"ndcg@{k}": float(value) for k, value in zip(self.ks, sums[1]) if k > 1}
