"""HSTU (Zhai et al. 2024, arXiv:2402.17152) as a ranker of the next item: pointwise aggregated attention.

A layer is `x + out(norm(A V) * U)`, where U, V, Q, K are SiLU of one linear map of `norm(x)`, and A is
SiLU(Q K^T + bias) / max_length: no softmax, so how often and how strongly something was done is not normalised away,
and no MLP. The bias has a part for how many places two items are apart and one for how much time, in logarithmic
buckets. Scores are cosines over a temperature, as in the authors' code; the loss is the full softmax, where they draw
negatives.

An interaction is the item and, where the config names them, what is known of it: a token for each of some categorical
columns of the catalogue, and one for its behaviour (the paper's action). `tokens: merged` sums them into one row, as
the paper does for retrieval; `interleaved` gives each a row, columns, item, behaviour, as it does for ranking.

Notable: time is counted from the item that asks, not from the target, whose time lists that were asked for without it
cannot know. An item without a time has a bucket of its own, and some rows are trained without any (`untimed`), so
histories without times are ranked, too. Positions are counted from the end of a row, in dense rows too: a place is
told how many items follow, as where rows are padded on the left. Where behaviours are read, the last row of an
interaction is told the next one (the wanted one, where lists are asked for): the paper leaves out what was not liked
instead. The columns' vectors are part of an item's in the head, too.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from llmrec.arguments import at_least, one_of
from llmrec.data.known import BEHAVIOUR, NEXT, TIME
from llmrec.data.times import UNKNOWN
from llmrec.features.attention import Dropout, at_last, places_from_end
from llmrec.features.item_softmax import TiedNetwork
from llmrec.features.network_training import check_rate
from llmrec.features.next_item import NextItemConfig


@dataclass(frozen=True)
class HSTUConfig(NextItemConfig):
    """Shape and training of an HSTU; its optimizer is AdamW."""

    timed: ClassVar[bool] = True
    columns: list = field(default_factory=list, metadata={"help": "Categorical columns of items that are read, too."})
    behaviours: list = field(
        default_factory=list, metadata={"help": "The data's kinds of interaction, to read them; the wanted one last."}
    )
    tokens: str = field(
        default="merged", metadata={"help": "merged: an interaction is one row; interleaved: each token is a row."}
    )
    num_layers: int = field(default=4, metadata={"help": "Layers."})
    num_heads: int = field(default=2, metadata={"help": "Attention heads."})
    head_dim: int = field(default=16, metadata={"help": "Width of U, V, Q and K of a head."})
    time_buckets: int = field(default=64, metadata={"help": "Of logarithmic width; 0: times are not read."})
    untimed: float = field(default=0.1, metadata={"help": "Share of training rows that are read without times."})
    temperature: float = field(default=0.1, metadata={"help": "Scores are cosines divided by it."})
    embedding_dropout: float = field(default=0.4, metadata={"help": "Of embeddings."})
    dropout: float = field(default=0.2, metadata={"help": "Of what a layer adds."})
    weight_decay: float = field(default=1e-3, metadata={"help": "On all parameters."})

    def __post_init__(self):
        super().__post_init__()
        at_least(self, num_layers=1, num_heads=1, head_dim=1, time_buckets=0, temperature=1e-4)
        check_rate(self, "dropout", "embedding_dropout", "untimed")
        one_of(self.tokens, ("merged", "interleaved"), "tokens")
        for name in ("columns", "behaviours"):
            names = getattr(self, name)
            if not isinstance(names, list) or len({*names}) < len(names):
                raise ValueError(f"{name} is {names!r}, it should be a list of names, each once")
        if self.tokens == "interleaved" and not (self.columns or self.behaviours):
            raise ValueError("tokens is 'interleaved', but an interaction is one token: name columns or behaviours")
        if len(self.behaviours) == 1:
            raise ValueError(f"behaviours is {self.behaviours}: one kind of interaction says nothing, leave it out")

    @property
    def rows_each(self) -> int:
        """Rows of an interaction."""
        return 1 if self.tokens == "merged" else len(self.columns) + 1 + bool(self.behaviours)


class HSTUModel(TiedNetwork):
    """A `llmrec.features.next_item.NextItemNetwork`; the head is the item embedding (tied).

    Args:
        values: int64 [items, columns, M], numbers of each item's values in `config.columns`, from 1 on; 0 is none.
        num_values: the greatest of them.
    """

    def __init__(self, num_items: int, config: HSTUConfig, values: np.ndarray | None = None, num_values: int = 0):
        super().__init__()
        self.config = config
        self.items = nn.Embedding(num_items, config.hidden_size)
        self.positions = nn.Embedding(config.max_length, config.hidden_size)
        self.dropout = Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList([_Layer(config) for _ in range(config.num_layers)])
        tables = [self.items, self.positions]
        if config.columns:
            self.register_buffer("values", torch.from_numpy(values))
            self.columns = nn.EmbeddingBag(1 + num_values, config.hidden_size, mode="mean", padding_idx=0)
            tables.append(self.columns)
        if config.behaviours:
            self.behaviours, self.next_behaviours = (
                nn.Embedding(len(config.behaviours), config.hidden_size) for _ in range(2)
            )
            tables += [self.behaviours, self.next_behaviours]
        for table in tables:
            nn.init.trunc_normal_(table.weight, std=0.02, a=-0.04, b=0.04)

    def forward(
        self, ids_BT: torch.Tensor, lengths_B: torch.Tensor, known_BTK: torch.Tensor, last: bool = False
    ) -> torch.Tensor:
        """As of `NextItemNetwork`."""
        times_BT, config = known_BTK[..., TIME], self.config
        rows = [*self.column_vectors(ids_BT.flatten()).unflatten(0, ids_BT.shape).unbind(2), self.items(ids_BT)]
        if config.behaviours:
            kinds_BTK = known_BTK.clamp(min=0)  # unknown in padding only, and after the last item of a sequence
            rows.append(self.behaviours(kinds_BTK[..., BEHAVIOUR]))
            rows[-1] = rows[-1] + self.next_behaviours(kinds_BTK[..., NEXT])
        if config.tokens == "merged":
            rows = [sum(rows)]
        positions_BTH = self.positions(places_from_end(lengths_B, ids_BT.shape[1], config.max_length))
        embedded_BTRH = torch.stack(rows, 2) * config.hidden_size**0.5 + positions_BTH[:, :, None]
        x_BTH = self.dropout(embedded_BTRH.flatten(1, 2))
        if self.training:
            hidden = torch.rand(len(ids_BT), 1, device=ids_BT.device) < config.untimed
            times_BT = torch.where(hidden, UNKNOWN, times_BT)
        times_BT = times_BT.repeat_interleave(len(rows), 1)
        buckets_BTT = time_buckets(times_BT, config.time_buckets) if config.time_buckets else None
        for layer in self.layers:
            x_BTH = layer(x_BTH, buckets_BTT)
        x = x_BTH[:, len(rows) - 1 :: len(rows)]
        return F.normalize(at_last(x, lengths_B)[:, 0] if last else x, dim=-1) / config.temperature

    def column_vectors(self, ids: torch.Tensor) -> torch.Tensor:
        """float [n, columns, hidden] of items, the mean of their values'; zeros where an item has none."""
        if not self.config.columns:
            return self.items.weight.new_zeros(len(ids), 0, self.config.hidden_size)
        values = self.values[ids]
        return self.columns(values.flatten(0, 1)).unflatten(0, values.shape[:2])

    def item_vectors(self) -> torch.Tensor:
        vectors = self.items.weight
        if self.config.columns:
            vectors = vectors + self.column_vectors(torch.arange(len(vectors), device=vectors.device)).sum(1)
        return F.normalize(vectors, dim=-1)


class _Layer(nn.Module):
    def __init__(self, config: HSTUConfig):
        super().__init__()
        size, width = config.hidden_size, config.num_heads * config.head_dim
        self.num_heads, self.num_places = config.num_heads, config.max_length * config.rows_each
        self.norm, self.attended_norm = nn.LayerNorm(size, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.uvqk, self.out = nn.Linear(size, 4 * width, bias=False), nn.Linear(width, size)
        self.dropout = Dropout(config.dropout)
        self.by_distance = nn.Parameter(torch.randn(self.num_places) * 0.02)
        self.by_time = nn.Parameter(torch.randn(config.time_buckets + 1) * 0.02) if config.time_buckets else None

    def forward(self, x_BTH: torch.Tensor, buckets_BTT: torch.Tensor | None) -> torch.Tensor:
        """Padding stands on the right, so the causal mask hides it from every real place."""
        u, v, q, k = F.silu(self.uvqk(self.norm(x_BTH))).chunk(4, -1)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
        places = torch.arange(x_BTH.shape[1], device=x_BTH.device)
        apart_TT = places[:, None] - places
        bias = self.by_distance[apart_TT.clamp(min=0)]
        if buckets_BTT is not None:
            bias = (bias + self.by_time[buckets_BTT])[:, None]
        weights = F.silu(q @ k.mT + bias) * (apart_TT >= 0) / self.num_places
        attended = (weights @ v).transpose(1, 2).flatten(2)
        return x_BTH + self.out(self.dropout(self.attended_norm(attended) * u))


def time_buckets(times_BT: torch.Tensor, count: int) -> torch.Tensor:
    """int64 [B, T, T] in [0, count]: how long before the first item the second was taken, in buckets whose width grows
    by a factor of 1.35 (e^.3); `count` where one of the two times is unknown."""
    apart = (times_BT[:, :, None] - times_BT[:, None, :]).abs().clamp(min=1)
    buckets = (apart.to(torch.float32).log() / 0.301).long().clamp(max=count - 1)
    known = times_BT != UNKNOWN
    return torch.where(known[:, :, None] & known[:, None, :], buckets, count)
