"""Cross-entropy of Semantic IDs over the catalogue alone: the loss of an item is -log of the probability that a search
with `normalize: catalogue` ranks by.

Over the vocabulary a position multiplies every row of the head and learns which of all tokens exist where; here it
multiplies the rows of one level, and learns to tell apart what can stand there.
"""

import math
from typing import NamedTuple

import torch
from torch.nn import functional as F

from llmrec.decoding.head import LevelHeads, unwrap
from llmrec.decoding.tree_attention import unsupported
from llmrec.decoding.trie import DEAD, END, SemIDTrie
from llmrec.training.sft_arguments import SFTArguments
from llmrec.training.soft_targets import SoftTargets


class _Sample(NamedTuple):
    """Some tokens of the first level.

    Attributes:
        columns (int64 [S]): where they stand in `trie.vocab[0]`, the targets first.
        places (int64 [M]): of the label of each row, in `columns`.
        stand_for (float32 [S]): the log of how many tokens each stands for.
    """

    columns: torch.Tensor
    places: torch.Tensor
    stand_for: torch.Tensor


class CatalogueLoss:
    """Called in place of a model's output head (`llmrec.decoding.head.head_output`).

    A label that is a token of a Semantic ID is normalised over the tokens that the trie allows after those before it;
    any other (words, kinds of interaction) over the vocabulary, as ever.

    Args:
        trie: of the catalogue.
        rows: of the head.
        soft (*optional*): a teacher's part in the loss of training targets.
        sampled: other first tokens, drawn anew at every call, that stand for all in the loss of a training batch; 0:
            all. `soft` and smoothing are over all, and do not go with it.

    Raises:
        ValueError: where a Semantic ID begins cannot be told from its tokens: one of them stands at several places of
            Semantic IDs, or one Semantic ID begins another.
    """

    def __init__(self, trie: SemIDTrie, rows: int, soft: SoftTargets | None = None, sampled: int = 0):
        self.soft, self.sampled = soft, sampled
        self.trie, self.level_of, self.column_of = trie, torch.full((rows,), -1), torch.zeros(rows, dtype=torch.long)
        for level, tokens in enumerate(trie.vocab):
            columns = (tokens != END).nonzero()[:, 0]
            if trie.ends_are_scored or bool((self.level_of[tokens[columns]] >= 0).any()):
                raise ValueError(
                    "log_probs: catalogue needs Semantic IDs whose tokens stand at one place each, and none that "
                    "begins another: set log_probs: vocabulary"
                )
            self.level_of[tokens[columns]], self.column_of[tokens[columns]] = level, columns

    def __call__(
        self,
        head: torch.nn.Module,
        hidden: torch.Tensor,
        labels: torch.Tensor,
        smoothing: float = 0.0,
        first_target: torch.Tensor | None = None,
        training: bool = False,
    ) -> torch.Tensor:
        """float32 [B, T]: the loss of every label (int64 [B, T], -100 where there is none), with label smoothing over
        the tokens that it is normalised over; `hidden` (float [B, T, H]) is what the head receives. Where the first
        target of every row stands (`first_target`, int64 [B], as `SoftTargets.find` has it) the teacher has its part.
        Raises `ValueError` for a Semantic ID that is not in the trie."""
        trie = self.trie.to(hidden.device)
        self.level_of, self.column_of = self.level_of.to(hidden.device), self.column_of.to(hidden.device)
        states, shape, labels = hidden.flatten(0, 1), labels.shape, labels.flatten()
        levels = self.level_of[labels.clamp(min=0)].masked_fill(labels < 0, -2)
        before = F.pad(levels.view(shape)[:, :-1], (1, 0), value=-2).flatten()  # the level of the label before
        places, losses, targets = [], [], None
        if self.soft is not None and first_target is not None:
            number = (levels.view(shape) == 0).cumsum(1) - 1
            targets = self.soft.to(hidden.device).find(first_target[:, None], number).flatten()
        following = torch.full_like(labels, DEAD)  # the node that each label leads to
        sample = self._sample(self.column_of[labels[levels == 0]]) if training and self.sampled else None
        first = trie.head_ids[0] if sample is None else trie.head_ids[0][sample.columns]
        logits_of = LevelHeads(head, [first, *trie.head_ids[1:]])
        for level in range(trie.depth):
            here = (levels == level).nonzero()[:, 0]
            nodes = following[here - 1].masked_fill(before[here] != level - 1, DEAD) if level else here * 0
            columns = self.column_of[labels[here]]
            child = trie.child(nodes, columns, level)
            if bool((child == DEAD).any()):
                raise ValueError(
                    f"token {int(labels[here][child == DEAD][0])} continues no Semantic ID of the catalogue"
                )
            following[here] = child
            read, valid = states.index_select(0, here), None
            if level:
                children = trie.children(nodes, level)
                columns, valid = child - children.node[:, 0], children.valid
                logits = logits_of.of_children(level, read, nodes, children.column).masked_fill(~valid, -torch.inf)
            else:  # all tokens of the first level stand after the root
                logits = logits_of(level, read)
                if sample is not None:
                    logits, columns = logits + sample.stand_for, sample.places
            places.append(here)
            if targets is None:
                losses.append(_losses(logits, columns, valid, smoothing))
            else:
                losses.append(self.soft.losses(logits.log_softmax(-1), columns, child, targets[here], level))
        text = (levels == -1).nonzero()[:, 0]
        if len(text):
            places.append(text)
            losses.append(_losses(head.forward(states.index_select(0, text)).float(), labels[text], None, smoothing))
        return (
            torch.zeros(len(labels), device=hidden.device).scatter(0, torch.cat(places), torch.cat(losses)).view(shape)
        )

    def _sample(self, labels: torch.Tensor) -> _Sample | None:
        """What the labels (int64 [M], columns of the first level) name and `sampled` of the others, by which the sum
        over all is estimated without bias (its log, the loss, comes out lower); `None` where that would be all of
        them. After "On Using Very Large Target Vocabulary for Neural Machine Translation" (arXiv 1412.2007)."""
        targets, places = labels.unique(return_inverse=True)
        is_other = torch.ones(len(self.trie.vocab[0]), dtype=torch.bool, device=targets.device)
        others = is_other.index_fill(0, targets, False).nonzero()[:, 0]
        if len(others) <= self.sampled:
            return None
        drawn = others[torch.randperm(len(others), device=targets.device)[: self.sampled]]
        stand_for = torch.full((self.sampled,), math.log(len(others) / self.sampled), device=targets.device)
        return _Sample(torch.cat([targets, drawn]), places, F.pad(stand_for, (len(targets), 0)))


def _losses(logits: torch.Tensor, target: torch.Tensor, valid: torch.Tensor | None, smoothing: float) -> torch.Tensor:
    if valid is None or not smoothing:
        return F.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)
    steps = logits.log_softmax(-1)
    even = steps.masked_fill(~valid, 0).sum(-1) / valid.sum(-1)
    return -(1 - smoothing) * steps.gather(-1, target[:, None])[:, 0] - smoothing * even


def catalogue_loss(
    sft: SFTArguments, model: torch.nn.Module, trie: SemIDTrie, soft: SoftTargets | None = None
) -> CatalogueLoss | None:
    """What `log_probs` asks for; `None` for the vocabulary. Raises `ValueError` for a model that does not return its
    head's output as it is, and a sample of more first tokens than there are."""
    if sft.log_probs == "vocabulary":
        return None
    if (reason := unsupported(model)) is not None:
        raise ValueError(f"log_probs: catalogue does not fit this model: {reason}: set log_probs: vocabulary")
    if sft.sampled_softmax >= (first := len(trie.vocab[0])):
        raise ValueError(
            f"sampled_softmax: {sft.sampled_softmax}, but Semantic IDs begin with one of {first} tokens: leave it out"
        )
    return CatalogueLoss(trie, unwrap(model).get_output_embeddings().weight.shape[0], soft, sft.sampled_softmax)
