"""HSTU (Zhai et al. 2024, arXiv:2402.17152) as a ranker of the next item: pointwise aggregated attention.

A layer is `x + out(norm(A V) * U)`, where U, V, Q, K are SiLU of one linear map of `norm(x)`, and A is
SiLU(Q K^T + bias) / max_length: no softmax, so how often and how strongly something was done is not normalised away,
and no MLP. The bias has a part for how many places two items are apart and one for how much time, in logarithmic
buckets. Scores are cosines over a temperature, as in the authors' code; the loss is the full softmax, where they draw
negatives.

Notable: time is counted from the item that asks, not from the target, whose time lists that were asked for without it
cannot know. An item without a time has a bucket of its own, and some rows are trained without any (`untimed`), so
histories without times are ranked, too.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from llmrec.arguments import at_least
from llmrec.data.times import UNKNOWN
from llmrec.features.attention import Dropout, at_last
from llmrec.features.catalogue_loss import TiedNetwork
from llmrec.features.network_training import check_rate
from llmrec.features.next_item import NextItemConfig


@dataclass(frozen=True)
class HSTUConfig(NextItemConfig):
    """Shape and training of an HSTU; its optimizer is AdamW."""

    timed: ClassVar[bool] = True
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


class HSTUModel(TiedNetwork):
    def __init__(self, num_items: int, config: HSTUConfig):
        super().__init__()
        self.config = config
        self.items = nn.Embedding(num_items, config.hidden_size)
        self.positions = nn.Embedding(config.max_length, config.hidden_size)
        self.dropout = Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList([_Layer(config) for _ in range(config.num_layers)])
        for table in (self.items, self.positions):
            nn.init.trunc_normal_(table.weight, std=0.02, a=-0.04, b=0.04)

    def forward(
        self, ids_BT: torch.Tensor, lengths_B: torch.Tensor, times_BT: torch.Tensor, last: bool = False
    ) -> torch.Tensor:
        """As of `NextItemNetwork`."""
        count, length = ids_BT.shape
        embedded = self.items(ids_BT) * self.config.hidden_size**0.5
        x_BTH = self.dropout(embedded + self.positions.weight[:length])
        if self.training:
            hidden = torch.rand(count, 1, device=ids_BT.device) < self.config.untimed
            times_BT = torch.where(hidden, UNKNOWN, times_BT)
        buckets_BTT = time_buckets(times_BT, self.config.time_buckets) if self.config.time_buckets else None
        for layer in self.layers:
            x_BTH = layer(x_BTH, buckets_BTT)
        x = at_last(x_BTH, lengths_B)[:, 0] if last else x_BTH
        return F.normalize(x, dim=-1) / self.config.temperature

    def item_vectors(self) -> torch.Tensor:
        return F.normalize(self.items.weight, dim=-1)


class _Layer(nn.Module):
    def __init__(self, config: HSTUConfig):
        super().__init__()
        size, width = config.hidden_size, config.num_heads * config.head_dim
        self.num_heads, self.max_length = config.num_heads, config.max_length
        self.norm, self.attended_norm = nn.LayerNorm(size, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.uvqk, self.out = nn.Linear(size, 4 * width, bias=False), nn.Linear(width, size)
        self.dropout = Dropout(config.dropout)
        self.by_distance = nn.Parameter(torch.randn(config.max_length) * 0.02)
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
        weights = F.silu(q @ k.mT + bias) * (apart_TT >= 0) / self.max_length
        attended = (weights @ v).transpose(1, 2).flatten(2)
        return x_BTH + self.out(self.dropout(self.attended_norm(attended) * u))


def time_buckets(times_BT: torch.Tensor, count: int) -> torch.Tensor:
    """int64 [B, T, T] in [0, count]: how long before the first item the second was taken, in buckets whose width grows
    by a factor of 1.35 (e^.3); `count` where one of the two times is unknown."""
    apart = (times_BT[:, :, None] - times_BT[:, None, :]).abs().clamp(min=1)
    buckets = (apart.to(torch.float32).log() / 0.301).long().clamp(max=count - 1)
    known = times_BT != UNKNOWN
    return torch.where(known[:, :, None] & known[:, None, :], buckets, count)
