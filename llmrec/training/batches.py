"""Rows → batches: weights beside the labels, and rows packed into longer ones."""

import logging
from dataclasses import dataclass

import torch
from datasets import Dataset
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from trl import pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import pad

from llmrec.instructions import reader_of
from llmrec.instructions.mixture import CHAT

logger = logging.getLogger(__name__)
_SHORTEST_PREFIX = 4


@dataclass
class SemIDCollator(DataCollatorForLanguageModeling):
    """TRL's collator, which also carries `weights` (float, the shape of `labels`) where rows have them, and, where it
    is to tell them, `general` (bool [B]: which rows are general conversations) and `first_target` (int64 [B]: where
    the first target of each row stands in the training sequences; -1 where that is not known)."""

    tells_general: bool = False
    tells_targets: bool = False

    def torch_call(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        filling = {"input_ids": self.pad_token_id, "labels": -100}
        filling |= {"weights": 0.0} if "weights" in examples[0] else {}
        if self.padding_free or self.return_position_ids or self.pad_to_multiple_of:
            batch = super().torch_call(examples)
            if "weights" in filling:
                weights = [torch.tensor(example["weights"], dtype=torch.float32) for example in examples]
                weights = [torch.cat(weights)] if self.padding_free else weights
                batch["weights"] = pad(
                    weights, padding_value=0.0, padding_side="right", pad_to_multiple_of=self.pad_to_multiple_of
                )
        else:  # the same at once, where TRL makes three tensors of every row
            lengths = torch.tensor([len(example["input_ids"]) for example in examples])
            mask = torch.arange(int(lengths.max())) < lengths[:, None]
            batch = {"attention_mask": mask.long()}
            for name, value in filling.items():
                values = [each for example in examples for each in example.get(name, example["input_ids"])]
                batch[name] = torch.full(mask.shape, value).masked_scatter_(mask, torch.tensor(values))
        if self.tells_general:
            if any("task" not in example for example in examples):
                raise ValueError(
                    f"distillation tells general conversations by the column 'task' ({CHAT!r}), which a row lacks: "
                    "take rows of build_dataset, or add it"
                )
            batch["general"] = torch.tensor([example["task"] == CHAT for example in examples])
        if self.tells_targets:
            first = (example.get("first_target") for example in examples)
            batch["first_target"] = torch.tensor([-1 if place is None else place for place in first])
        return batch


def rows_of(inputs: dict[str, torch.Tensor], chosen: torch.Tensor) -> dict[str, torch.Tensor]:
    """The chosen rows (bool [B]) of a batch that is padded on the right, as wide as the longest of them."""
    width = int(inputs["attention_mask"][chosen].sum(1).max())
    return {name: columns[chosen, :width] for name, columns in inputs.items()}


def right_aligned(inputs: dict[str, torch.Tensor], before: int = 0) -> dict[str, torch.Tensor]:
    """The same batch with its padding on the left: answers end in one column, so few columns hold any label.

    Given are `input_ids`, `labels`, `attention_mask` and any `weights`: [B, T], padded on the right. `position_ids`,
    which count a row's own tokens after the `before` that all rows share, come with them, and the mask covers those.
    """
    mask = inputs["attention_mask"]
    width = mask.size(1)
    source = (torch.arange(width, device=mask.device) - (width - mask.sum(1, keepdim=True))) % width
    names = [name for name in ("input_ids", "labels", "attention_mask", "weights") if name in inputs]
    moved = {name: inputs[name].gather(1, source) for name in names}
    moved["position_ids"] = before + (moved["attention_mask"].cumsum(1) - 1).clamp(min=0)
    moved["attention_mask"] = torch.cat([mask.new_ones(len(mask), before), moved["attention_mask"]], 1)
    return moved


def shared_prefix(inputs: dict[str, torch.Tensor]) -> int:
    """How many tokens all rows of a batch, padded on the right, begin with, less what predicts a label: the system
    text and the question, where rows ask the same. 0 where sharing them saves less than two passes cost."""
    ids, whole = inputs["input_ids"], inputs["attention_mask"].bool().all(0)
    asked = whole & (inputs["labels"] == -100).all(0)
    prefix = int(((ids == ids[:1]).all(0) & asked).long().cumprod(0).sum())
    prefix -= prefix == ids.size(1) or not asked[prefix]  # what stands before a label, or at the end of a row
    return prefix if len(ids) > 1 and prefix >= _SHORTEST_PREFIX else 0


def prefix_cache(model: torch.nn.Module, ids: torch.Tensor) -> DynamicCache | None:
    """Keys and values (with gradients) of a prefix that all rows of a batch share, computed once: `ids` is int64
    [B, P]. So dropout, if any, is drawn once for the prefix of a batch. `None` for a model whose layers keep anything
    but the keys and values of all tokens."""
    cache = model(input_ids=ids[:1], use_cache=True, logits_to_keep=1).get("past_key_values")  # Mamba has none
    if type(cache) is not DynamicCache or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    cache.batch_repeat_interleave(len(ids))
    return cache


def packed(rows: Dataset, max_length: int) -> Dataset:
    """Rows of up to `max_length` tokens, each made of whole rows (best fit decreasing, arXiv 2404.10830).

    Packing needs all lengths, so every row of `build_dataset` is read once: templates and whatever else varies by
    epoch stay those of the first.
    Columns are `input_ids`, `labels`, `seq_lengths` (the rows inside), and `weights` if the rows have them.
    """
    if max_length is None:
        raise ValueError("packing needs max_length, the length to pack to")
    reader = reader_of(rows)
    names = [name for name in ("input_ids", "labels", "weights") if name in rows[0]]
    read = lambda batch: {name: batch[name] for name in names}  # noqa: E731
    whole = rows.map(read, batched=True, remove_columns=rows.column_names).with_format(None)
    dense = pack_dataset(whole, max_length, "bfd")
    logger.info(
        "packing: %d rows became %d; the templates of the first epoch are those of all; %d had lost the oldest items "
        "of their history to max_length %d",
        *(len(whole), len(dense), reader.truncated, max_length),
    )
    return dense
