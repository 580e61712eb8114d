"""Cross-entropy over the whole catalogue, which is most of what small networks that rank cost."""

import torch
from torch import nn
from torch.autograd.function import once_differentiable

_LOGITS = 2**19  # made at once: they stay in the cache until their gradients are made of them
_STATES = 32  # at least, however many items there are


class TiedNetwork(nn.Module):
    """A `llmrec.features.next_item.NextItemNetwork` but for `forward`: the items that it reads are what it scores."""

    items: nn.Embedding

    def item_vectors(self) -> torch.Tensor:
        """float [items, hidden]: their products with a state are the logits after it."""
        return self.items.weight

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.item_vectors().T

    def loss(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return item_cross_entropy(states, self.item_vectors(), targets)


def item_cross_entropy(states: torch.Tensor, items: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of targets (int64 [n]) after states (float [n, hidden]), over items (float [items, hidden]).

    It is that of `F.cross_entropy(states @ items.T, targets)`, in parts whose gradients are made with them: of [n,
    items] numbers only a part exists, once, and nothing is made twice. (A chance below 1e-38 counts as that.)
    """
    return _ItemCrossEntropy.apply(states, items, targets)


class _ItemCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states: torch.Tensor, items: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        by_states, by_items, total = torch.empty_like(states), torch.zeros_like(items), states.new_zeros(())
        smallest = torch.finfo(items.dtype).tiny
        size = max(_STATES, _LOGITS // len(items))
        for part, wanted, by_part in zip(states.split(size), targets[:, None].split(size), by_states.split(size)):
            chances = (part @ items.T).softmax(-1)
            chance = chances.gather(1, wanted)
            total -= chance.clamp(min=smallest).log().sum()
            chances.scatter_(1, wanted, chance - 1)
            torch.mm(chances, items, out=by_part)
            by_items.addmm_(chances.T, part)
        ctx.save_for_backward(by_states, by_items)
        return total / len(targets)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        by_states, by_items = ctx.saved_tensors
        grad = grad / len(by_states)
        return by_states * grad, by_items * grad, None
