"""SASRec (Kang & McAuley 2018, arXiv:1808.09781) trained with cross-entropy over the whole catalogue: the network.

Its item embeddings are features of items; `llmrec.recommenders.sasrec` recommends with it. Notable: the loss is the
full softmax (Klenitskiy & Vasilev 2023, arXiv:2309.07602: with it SASRec beats BERT4Rec), not the paper's one sampled
negative; blocks are pre-norm; early stopping reads validation ndcg@10 only (`llmrec.features.next_item`).
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn

from llmrec.arguments import at_least
from llmrec.data import PreparedData
from llmrec.features.attention import Dropout, at_last, causal_attention
from llmrec.features.item_softmax import TiedNetwork
from llmrec.features.network_training import adamw, check_rate
from llmrec.features.next_item import NextItemConfig, train_next_item


@dataclass(frozen=True)
class SASRecConfig(NextItemConfig):
    """Shape and training of a SASRec; its optimizer is AdamW."""

    num_layers: int = field(default=1, metadata={"help": "Transformer blocks."})
    num_heads: int = field(default=2, metadata={"help": "Attention heads; hidden_size is a multiple of it."})
    dropout: float = field(default=0.4, metadata={"help": "Of embeddings and blocks."})
    attention_dropout: float | None = field(default=None, metadata={"help": "Of attention; by default as dropout."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Constant."})
    weight_decay: float = field(default=0.01, metadata={"help": "On all parameters."})
    batch_size: int = field(default=64, metadata={"help": "Training sequences (or prefixes of them) per step."})

    def __post_init__(self):
        super().__post_init__()
        at_least(self, num_layers=1, num_heads=1)
        check_rate(self, "dropout", *(["attention_dropout"] if self.attention_dropout is not None else []))


class SASRecModel(TiedNetwork):
    """Causal transformer over items."""

    def __init__(self, num_items: int, config: SASRecConfig):
        super().__init__()
        if config.hidden_size % config.num_heads:
            raise ValueError(f"hidden_size {config.hidden_size} is not a multiple of num_heads {config.num_heads}")
        self.items = nn.Embedding(num_items, config.hidden_size)
        self.positions = nn.Embedding(config.max_length, config.hidden_size)
        for table in (self.items, self.positions):
            nn.init.normal_(table.weight, std=config.hidden_size**-0.5)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList([_Block(config) for _ in range(config.num_layers)])
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(
        self,
        ids_BT: torch.Tensor,
        lengths_B: torch.Tensor | None = None,
        known_BTK: torch.Tensor | None = None,
        last: bool = False,
    ) -> torch.Tensor:
        """As of `NextItemNetwork`; what else is known is not read, and lengths for the last items alone."""
        positions = self.positions.weight[: ids_BT.shape[1]]
        x_BTH = self.dropout(self.items(ids_BT) + positions)
        for block in self.blocks[:-1]:
            x_BTH = block(x_BTH)
        x_BTH = self.norm(self.blocks[-1](x_BTH, lengths_B if last else None))
        return x_BTH[:, 0] if last else x_BTH


class _Block(nn.Module):
    def __init__(self, config: SASRecConfig):
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_heads
        rate = config.dropout if config.attention_dropout is None else config.attention_dropout
        self.attention_dropout = Dropout(rate)
        self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.mlp = nn.Sequential(
            nn.Linear(size, 4 * size), nn.GELU(), Dropout(config.dropout), nn.Linear(4 * size, size)
        )
        self.dropout = Dropout(config.dropout)

    def forward(self, x_BTH: torch.Tensor, lengths_B: torch.Tensor | None = None) -> torch.Tensor:
        mixed = causal_attention(self.qkv, self.norm1(x_BTH), self.num_heads, self.attention_dropout, lengths_B)
        if lengths_B is not None:
            x_BTH = at_last(x_BTH, lengths_B)
        x_BTH = x_BTH + self.dropout(self.out(mixed))
        return x_BTH + self.dropout(self.mlp(self.norm2(x_BTH)))


def train_sasrec(
    data: PreparedData,
    config: SASRecConfig = SASRecConfig(),
    device: str | torch.device | None = None,
    folder: str | Path | None = None,
) -> SASRecModel:
    """As `train_next_item` says."""
    make = partial(SASRecModel, data.items.num_rows, config)
    return train_next_item(make, adamw(config), data, config, "SASRec", device, folder)
