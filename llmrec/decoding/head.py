"""The output head, read through LoRA and trainable-token wrappers, and run on a few of its rows."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.nn import functional as F

_READ = 4  # reading a row of the head costs about as much as multiplying it so often


def unwrap(model: torch.nn.Module) -> torch.nn.Module:
    """The `PreTrainedModel` inside DDP and PEFT wrappers; for looking at, not for calling."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def head_rows(head: torch.nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """Rows (int64 [T]) of an output head as its model applies them, adapters included.

    Slicing the base weight would silently ignore adapters; merging it whole would copy the vocabulary.

    Returns:
        `(weight [T, H], bias [T] or None)`, differentiable; `None` for a kind of head not known here (DoRA,
        quantised, ...), which must be run whole.
    """
    if type(head) is torch.nn.Linear:
        return head.weight[ids], None if head.bias is None else head.bias[ids]
    if "peft" not in sys.modules:
        return None
    from peft.tuners import lora
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    if isinstance(head, TrainableTokensWrapper):
        return head_rows(head.token_adapter, ids)
    if isinstance(head, ModulesToSaveWrapper):
        adapters = [] if head.disable_adapters else head.active_adapters
        return head_rows(head.modules_to_save[adapters[0]] if adapters else head.original_module, ids)
    if not isinstance(head, (lora.Linear, TrainableTokensLayer)):
        return None
    rows = head_rows(head.get_base_layer(), ids)
    if rows is None or head.merged or head.disable_adapters:
        return rows
    weight, bias = rows
    for adapter in head.active_adapters:
        if isinstance(head, TrainableTokensLayer):
            trained = torch.as_tensor(head.token_indices[adapter], device=ids.device)
            hit = ids[:, None] == trained
            delta = head.trainable_tokens_delta[adapter][hit.int().argmax(1)].to(weight)
            weight = torch.where(hit.any(1)[:, None], delta, weight)
            bias = None  # as PEFT applies it
        elif adapter in head.lora_A:
            if adapter in head.lora_variant or head.lora_bias[adapter] or head.fan_in_fan_out:
                return None
            down, up = head.lora_A[adapter].weight, head.lora_B[adapter].weight[ids]
            weight = weight + (up @ down) * head.scaling[adapter]
    return weight, bias


class LevelHeads:
    """The rows of an output head for the tokens of each level (int64 [T] in `ids`).

    Rows of all levels are read at once: the gradient of a read is a matrix of the whole vocabulary.
    """

    def __init__(self, head: torch.nn.Module, ids: Sequence[torch.Tensor]):
        self.head, self.ids, rows = head, ids, head_rows(head, torch.cat(list(ids)))
        self._weights, self._biases = None, None
        if rows is not None:
            self._weights, self._biases = (part if part is None else part.split(list(map(len, ids))) for part in rows)

    def __call__(self, level: int, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [M, T]: logits of the level's tokens after states (float [M, H])."""
        if self._weights is None:
            return token_scores(self.head, hidden[:, None], self.ids[level], False)[0][:, 0]
        weight, bias = self._weights[level], None if self._biases is None else self._biases[level]
        return F.linear(hidden.to(weight.dtype), weight, bias).float()

    def of_children(self, level: int, hidden: torch.Tensor, nodes: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        """float32 [M, W]: logits of a few tokens of the level after each state, those that `column` (int64 [M, W])
        names; states whose `nodes` (int64 [M]) are equal name the same.

        They are multiplied node by node where that is less work than all tokens of the level.
        """
        kinds, group, count = nodes.unique(return_inverse=True, return_counts=True)
        width, work = int(count.max()) if len(count) else 0, len(nodes) * len(self.ids[level])
        if self._weights is None or len(kinds) * column.shape[1] * (width + _READ) >= work:
            return self(level, hidden).gather(-1, column)
        order = group.argsort(stable=True)
        place = torch.empty_like(group)
        place[order] = torch.arange(len(group), device=group.device) - (count.cumsum(0) - count)[group[order]]
        slots = group * width + place
        column = column.new_empty(len(kinds), column.shape[1]).index_copy(0, group, column)  # of each node once
        states = hidden.new_zeros(len(kinds) * width, hidden.shape[1]).index_copy(0, slots, hidden)
        weight = F.embedding(column, self._weights[level])  # [G, W, H]
        logits = states.view(len(kinds), width, -1).to(weight.dtype) @ weight.mT
        if self._biases is not None:
            logits = logits + self._biases[level][column][:, None]
        return logits.flatten(0, 1)[slots].float()


def token_scores(
    head: torch.nn.Module, hidden: torch.Tensor, ids: torch.Tensor, vocabulary: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits of a few tokens, and the log-normaliser over the whole vocabulary if it is asked for.

    A log-probability is `logits - log_z[..., None]`: the vocabulary-wide logits exist in chunks only.

    Args:
        hidden (float [N, B, H]): what the head receives.
        ids (int64 [T]): tokens.

    Returns:
        `(logits float32 [N, B, T], log_z float32 [N, B] or None)`.
    """
    if not vocabulary:
        rows = head_rows(head, ids)
        if rows is None:
            return head.forward(hidden)[..., ids].float(), None
        weight, bias = rows
        return F.linear(hidden.to(weight.dtype), weight, bias).float(), None
    flat = hidden.reshape(-1, hidden.shape[-1])
    step = max(1, 2**24 // getattr(head, "out_features", 2**17))
    logits, log_z = [], []
    for chunk in flat.split(step):
        # `forward`, not a call: this runs inside a hook of the head
        full = head.forward(chunk).float()
        logits.append(full.index_select(1, ids))
        log_z.append(full.logsumexp(-1))
    return torch.cat(logits).view(*hidden.shape[:-1], -1), torch.cat(log_z).view(hidden.shape[:-1])


@contextmanager
def head_replaced(model: torch.nn.Module, function: Callable) -> Iterator[list]:
    """While open, a call of `model` runs `function(head, hidden)` where its head would run; the head sees no position.

    It runs inside the model's forward pass, where sharded parameters are gathered, so `model` can be any wrapper.

    Yields:
        a list to which each call appends what `function` returned.
    """
    results = []

    def hook(head, args):
        results.append(function(head, args[0]))
        return (args[0][:, :0],)

    handle = unwrap(model).get_output_embeddings().register_forward_pre_hook(hook)
    try:
        yield results
    finally:
        handle.remove()


@contextmanager
def head_output(model: torch.nn.Module, function: Callable) -> Iterator[None]:
    """While open, `function(head, hidden)` stands for the head: what it returns is `model(...).logits`.

    So gradients flow through the model's own output, which is what DDP and FSDP watch. For models that return the
    head's output as it is (`tree_attention.unsupported` names the others).
    """
    head, hidden = unwrap(model).get_output_embeddings(), []

    def before(module, args):
        hidden.append(args[0])
        return (args[0][:, :0],)

    def after(module, args, output):
        return function(module, hidden.pop())

    handles = [head.register_forward_pre_hook(before), head.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
