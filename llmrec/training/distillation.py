"""Against forgetting: on general conversations a model learns to answer as its base does, word for word.

Cross-entropy knows one answer, the base's distribution all of them. OpenOneRec distils from its original model in a
stage of its own, on the student's samples (on-policy); here it is a loss beside that of the other rows, on the answers
that the rows hold ("Learning without Forgetting", arXiv 1606.09282), so a run needs no second stage.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrec.catalogue.semids import SemIDIndex
from llmrec.decoding.self_check import evaluating
from llmrec.instructions.mixture import TaskMix
from llmrec.models.weights import load_model, load_tokenizer
from llmrec.tokens import words_without
from llmrec.training.batches import right_aligned
from llmrec.training.sft_arguments import SFTArguments


class Distillation:
    """weight x KL(base || model) at every answer token of some rows, in nats.

    The base's distribution is over the tokens that it knew, without those of Semantic IDs; the model's over its whole
    vocabulary, so what it gives to a Semantic ID in a general answer counts against it.

    Args:
        new: token ids of Semantic IDs.
        base (*optional*): a frozen model with the same tokens, and no others but `new`; by default the model without
            its adapter.
    """

    def __init__(self, weight: float, new: Sequence[int], base: PreTrainedModel | None = None):
        self.weight, self.new, self.base = weight, torch.tensor(list(new), dtype=torch.long), base

    def losses(self, model: nn.Module, inputs: dict[str, torch.Tensor], plain: nn.Module) -> torch.Tensor:
        """The divergence at every labelled position, row by row, float32 [M].

        `inputs` has `input_ids`, `labels` and `attention_mask`, [B, T], padded on the right; `plain` is the model
        without what wraps it (DDP).
        """
        aligned = right_aligned(inputs)
        labels = aligned["labels"][:, 1:]
        columns = (labels != -100).any(0).nonzero().squeeze(1)
        read = {name: aligned[name] for name in ("input_ids", "attention_mask", "position_ids")}
        read |= {"logits_to_keep": columns, "use_cache": False}
        labelled = labels[:, columns] != -100
        with torch.no_grad(), self._speaking(plain) as base:
            known = base(**read).logits[labelled].float()
        said = model(**read).logits[labelled].float().log_softmax(1)
        size = min(known.size(1), said.size(1))  # a base that was never extended has fewer rows
        new = self.new[self.new < size].to(known.device)
        known = known[:, :size].index_fill(1, new, -torch.inf).softmax(1)
        return nn.functional.kl_div(said[:, :size], known, reduction="none").sum(1)

    @contextmanager
    def _speaking(self, plain: nn.Module) -> Iterator[nn.Module]:
        """The base: without an adapter, and without dropout."""
        if self.base is not None:
            yield self.base.to(next(plain.parameters()).device)
            return
        with plain.disable_adapter(), evaluating(plain):
            yield plain


def distillation(
    sft: SFTArguments,
    mixture: Sequence[TaskMix],
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    index: SemIDIndex,
    base: str,
    adapter: bool,
) -> Distillation | None:
    """What a stage's settings ask for; `None` without `distill_weight`.

    `base` is the folder that the run starts from, and the model to distil from where `distill_from` names no other. A
    run that trains an `adapter` has it already; others load it once more. Raises `ValueError`: the mixture has no
    general conversations, or `distill_from` other tokens, or is no model.
    """
    if not sft.distill_weight:
        return None
    if not any(mix.chat is not None for mix in mixture):
        raise ValueError(
            "distill_weight is for general conversations, and tasks has none: add {chat: <file or data set>}, such as "
            "what recipes/general_chat.py writes"
        )
    copy, source = None, sft.distill_from or base
    if sft.distill_from or not adapter:
        new = {*index.tokens}
        try:
            if words_without(load_tokenizer(source), new) == words_without(tokenizer, new):
                copy = load_model(source, dtype=model.dtype).requires_grad_(False)
        except ValueError as error:
            raise ValueError(f"distill_from: {error}") from error
        if copy is None:
            raise ValueError(f"distill_from: {source} has other tokens: name the model that this one was made from")
    return Distillation(sft.distill_weight, tokenizer.convert_tokens_to_ids(index.tokens), copy)
