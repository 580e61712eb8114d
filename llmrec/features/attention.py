"""Parts of small transformers over rows of items that are fast on a CPU: attention, after every item or after the last
alone, and dropout."""

import torch
import torch.nn.functional as F
from torch import nn


def dropout(x: torch.Tensor, rate: float) -> torch.Tensor:
    """As `F.dropout`. On a CPU 16 random bits say what is kept, so the rate is the nearest multiple of 2^-16, below 1:
    PyTorch draws a number of 53 bits for each element there, which takes five times as long."""
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    dropped = min(round(rate * 2**16), 2**16 - 1)
    drawn = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = drawn.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 2**15
    return x * kept.to(x.dtype).mul_(2**16 / (2**16 - dropped))


class Dropout(nn.Module):
    """As `nn.Dropout`, by `dropout`."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return dropout(x, self.rate) if self.training and self.rate else x


def causal_attention(
    qkv: nn.Linear, x_BTH: torch.Tensor, num_heads: int, dropout: nn.Module, lengths_B: torch.Tensor | None = None
) -> torch.Tensor:
    """What attention gathers, before its last linear map: float [B, T, hidden]; or, given how many items of a row are
    none of the padding on its right (int64 [B]), after its last one alone, [B, 1, hidden].

    Args:
        qkv: one linear map to queries, keys and values.
        dropout: of the weights.
    """
    places = torch.arange(x_BTH.shape[1], device=x_BTH.device)
    if lengths_B is None:
        q, k, v = qkv(x_BTH).unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
        # Padding stands on the right, so the causal mask hides it from every real place.
        later_TT = places > places[:, None]
        weights = (q * q.shape[-1] ** -0.5 @ k.mT).masked_fill(later_TT, -torch.inf).softmax(-1)
        return (dropout(weights) @ v).transpose(1, 2).flatten(2)
    # One query a row: its map of keys is applied to it, and that of values to what it gathers, not to every place.
    (wq, wk, wv), (bq, _, bv) = (part.unflatten(0, (3, num_heads, -1)) for part in (qkv.weight, qkv.bias))
    q_Bnd = torch.einsum("bh,ndh->bnd", at_last(x_BTH, lengths_B)[:, 0], wq) + bq
    asked_BnH = torch.einsum("bnd,ndh->bnh", q_Bnd * q_Bnd.shape[-1] ** -0.5, wk)  # keys' bias is that of all places
    later_BT = places >= lengths_B[:, None]
    weights_BnT = dropout((asked_BnH @ x_BTH.mT).masked_fill(later_BT[:, None], -torch.inf).softmax(-1))
    mixed_Bnd = torch.einsum("bnh,ndh->bnd", weights_BnT @ x_BTH, wv) + weights_BnT.sum(-1, keepdim=True) * bv
    return mixed_Bnd.flatten(1)[:, None]


def places_from_end(lengths_B: torch.Tensor, width: int, max_length: int) -> torch.Tensor:
    """int64 [B, width]: places of rows that are padded on the right, as if they were padded on the left to
    `max_length`: the last of the `lengths_B` (int64 [B]) items of a row stands at `max_length - 1`; so does padding.
    """
    places = torch.arange(width, device=lengths_B.device)
    return (max_length - lengths_B[:, None] + places).clamp(max=max_length - 1)


def at_last(x_BTH: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """float [B, 1, hidden] at the last item of every row."""
    return x_BTH[torch.arange(len(x_BTH), device=x_BTH.device), lengths_B - 1][:, None]
