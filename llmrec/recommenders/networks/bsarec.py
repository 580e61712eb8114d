"""BSARec (Shin et al. 2024, arXiv:2312.10325): self-attention mixed with a filter of the sequence's spectrum.

Every layer adds `alpha` times a filter, which takes the sequence apart into its `cutoff // 2 + 1` lowest frequencies
and the rest and weighs the rest anew, to `1 - alpha` times causal self-attention; blocks are post-norm. Notable:

- The filter over `max_length` places is written as its impulse response, a matrix of places, so short rows cost what
  they hold. Padding is zero in it; in the authors' code it has the embeddings of its positions.
- The filter sees the whole row, so a row has one target, its last item (`rows: prefix`), and positions are counted
  from the end, as in rows that are padded on the left. With `rows: dense` each place sees its past alone: it gets what
  the filter gives at the end of the prefix, and deeper blocks do not see earlier places with later ones in view.
"""

from dataclasses import dataclass, field

import torch
from torch import nn

from llmrec.arguments import at_least
from llmrec.features.attention import Dropout, at_last, causal_attention, places_from_end
from llmrec.features.item_softmax import TiedNetwork
from llmrec.features.network_training import check_rate
from llmrec.features.next_item import NextItemConfig


@dataclass(frozen=True)
class BSARecConfig(NextItemConfig):
    """Shape and training of a BSARec, those of its Beauty; its optimizer is Adam."""

    rows: str = field(default="prefix", metadata={"help": "prefix: the paper's; dense: see networks/bsarec.py."})
    num_layers: int = field(default=2, metadata={"help": "Blocks."})
    num_heads: int = field(default=1, metadata={"help": "Attention heads; hidden_size is a multiple of it."})
    alpha: float = field(default=0.7, metadata={"help": "Weight of the filter; attention has the rest."})
    cutoff: int = field(default=5, metadata={"help": "The paper's c: cutoff // 2 + 1 frequencies are low."})
    dropout: float = field(default=0.5, metadata={"help": "Of embeddings and blocks."})
    attention_dropout: float = field(default=0.0, metadata={"help": "Of attention."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Constant."})
    weight_decay: float = field(default=1e-4, metadata={"help": "On all parameters, as Adam has it (L2)."})

    def __post_init__(self):
        super().__post_init__()
        at_least(self, num_layers=1, num_heads=1, alpha=0.0, cutoff=1)
        check_rate(self, "dropout", "attention_dropout")
        if self.alpha > 1:
            raise ValueError(f"alpha is {self.alpha}, it should lie in [0, 1]")
        if self.cutoff // 2 + 1 > self.max_length // 2:
            raise ValueError(f"cutoff {self.cutoff} leaves no high frequency of {self.max_length} places: lower it")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")


class BSARecModel(TiedNetwork):
    def __init__(self, num_items: int, config: BSARecConfig):
        super().__init__()
        self.from_the_end, size = config.rows == "prefix", config.hidden_size
        self.items, self.positions = nn.Embedding(num_items, size), nn.Embedding(config.max_length, size)
        self.norm, self.dropout = nn.LayerNorm(size, eps=1e-12), Dropout(config.dropout)
        self.blocks = nn.ModuleList([_Block(config) for _ in range(config.num_layers)])
        response = low_pass(config.max_length, config.cutoff)
        self.register_buffer("filter", response if self.from_the_end else response.tril(), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(
        self, ids_BT: torch.Tensor, lengths_B: torch.Tensor, known_BTK: torch.Tensor | None = None, last: bool = False
    ) -> torch.Tensor:
        """As of `NextItemNetwork`; times are not read."""
        places = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        filled_BT1 = (places < lengths_B[:, None])[..., None]
        positions = places_from_end(lengths_B, len(places), len(self.filter)) if self.from_the_end else places
        x_BTH = self.dropout(self.norm(self.items(ids_BT) + self.positions(positions)))
        low_TT = self.filter[: len(places), : len(places)]
        for block in self.blocks[:-1]:
            x_BTH = block(x_BTH * filled_BT1, low_TT)
        x_BTH = self.blocks[-1](x_BTH * filled_BT1, low_TT, lengths_B if last else None)
        return x_BTH[:, 0] if last else x_BTH


class _Block(nn.Module):
    def __init__(self, config: BSARecConfig):
        super().__init__()
        size = config.hidden_size
        self.alpha, self.num_heads = config.alpha, config.num_heads
        self.sqrt_beta = nn.Parameter(torch.randn(size))
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.mlp = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))
        self.dropout, self.attention_dropout = Dropout(config.dropout), Dropout(config.attention_dropout)
        self.filter_norm, self.attention_norm, self.norm = (nn.LayerNorm(size, eps=1e-12) for _ in range(3))

    def forward(
        self, x_BTH: torch.Tensor, low_TT: torch.Tensor, lengths_B: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Padding, on the right, is zero: so the filter does not hear it, and the causal mask hides it. Given lengths,
        the last item of every row alone, float [B, 1, hidden]."""
        mixed = causal_attention(self.qkv, x_BTH, self.num_heads, self.attention_dropout, lengths_B)
        low = (low_TT if lengths_B is None else low_TT[lengths_B - 1, None]) @ x_BTH
        if lengths_B is not None:
            x_BTH = at_last(x_BTH, lengths_B)
        filtered = self.filter_norm(x_BTH + self.dropout(low + self.sqrt_beta**2 * (x_BTH - low)))
        attended = self.attention_norm(x_BTH + self.dropout(self.out(mixed)))
        x_BTH = self.alpha * filtered + (1 - self.alpha) * attended
        return self.norm(x_BTH + self.dropout(self.mlp(x_BTH)))


def low_pass(length: int, cutoff: int) -> torch.Tensor:
    """float [length, length]: keeping the `cutoff // 2 + 1` lowest frequencies of `length` places, as a matrix."""
    spectrum = torch.fft.rfft(torch.eye(length), dim=0)
    spectrum[cutoff // 2 + 1 :] = 0
    return torch.fft.irfft(spectrum, n=length, dim=0)
