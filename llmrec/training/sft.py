"""TRL's `SFTTrainer` with small additions: ranking metrics, folders that recommend, weighted losses, a loss for CPUs.

It overrides public methods (`compute_loss`, `get_batch_samples`, those of `RecommenderTrainer`) and one that is not,
`_get_train_sampler`; checked against trl 1.16 and transformers 5.19.
"""

import dataclasses
from copy import copy
from functools import partial

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTConfig, SFTTrainer

from llmrec.decoding.head import head_output
from llmrec.instructions import reader_of
from llmrec.models.positions import positions_of
from llmrec.training.batches import SemIDCollator, prefix_cache, right_aligned, rows_of, shared_prefix
from llmrec.training.catalogue_loss import CatalogueLoss
from llmrec.training.distillation import Distillation
from llmrec.training.recommender_trainer import RecommenderTrainer

TINY = torch.finfo(torch.float32).tiny  # a step whose weights are all 0 has loss 0, not 0 / 0


def check_row_lengths(model: PreTrainedModel, rows: Dataset | None) -> None:
    """Raises `ValueError` where a row, by its estimated length, has more tokens than the model has positions. Where an
    estimate is too low, the row is cut as at `max_length`, and refused without a history."""
    limit, names = positions_of(model), getattr(rows, "column_names", ())
    if limit is None or not {"length", "seq_lengths"} & {*names}:
        return
    plain = rows.with_format(None)
    longest = max(plain["length"]) if "length" in names else max(map(max, plain["seq_lengths"]))
    if longest > limit:
        raise ValueError(
            f"training or validation rows have up to {longest} tokens, the model has {limit} positions: set "
            f"max_length: {limit} or less, or lower max_history"
        )
    if (reader := reader_of(rows)) is not None:
        reader.limit(limit)


class SemIDSFTTrainer(RecommenderTrainer, SFTTrainer):
    """`SFTTrainer` for rows that `llmrec.instructions.build_dataset` wrote; they come tokenised.

    Rows with `weights` (float, one per label) are trained on the weighted mean sum(w · nll) / sum(w), over all
    micro-batches and processes of a step. Without them nothing differs from TRL.

    Rows with more tokens than the model has positions raise `ValueError`.

    Every log says how many tokens training has seen (`num_input_tokens_seen`: prompts and answers without padding, of
    all processes, from the first step on where a run was resumed). TRL's `num_tokens` begins anew then.

    Arguments are those of `SFTTrainer` and `RecommenderTrainer`, `distillation`, which takes the place of the
    cross-entropy in general conversations (logged as `general_kl`, without its weight), and `catalogue_loss`, which
    takes its place for Semantic IDs (`llmrec.training.catalogue_loss`). In the trainer's copy of `args`
    `dataset_kwargs` is set, and `max_length` where batches are padding-free: TRL refuses that, and no row is longer
    anyway.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: SFTConfig,
        *,
        distillation: Distillation | None = None,
        catalogue_loss: CatalogueLoss | None = None,
        **kwargs,
    ):
        args = copy(args)
        args.dataset_kwargs = {**(args.dataset_kwargs or {}), "skip_prepare_dataset": True}
        # Without padding there is no mask, and rows hold the pad token where it ends turns.
        args.include_num_input_tokens_seen = "all" if args.padding_free or args.packing else "non_padding"
        if args.padding_free and not args.packing:
            args.max_length = None
        if distillation is not None:
            args.ddp_broadcast_buffers = False  # at every call of the model, and processes call it unequally often
        for rows in (kwargs.get("train_dataset"), kwargs.get("eval_dataset")):
            check_row_lengths(model, rows)
        super().__init__(model, args, **kwargs)
        fields = dataclasses.fields(self.data_collator)  # TRL takes no collator of ours beside padding_free
        known = {field.name: getattr(self.data_collator, field.name) for field in fields}
        self.distillation, self.catalogue_loss = distillation, catalogue_loss
        taught = catalogue_loss is not None and catalogue_loss.soft is not None
        tells = {"tells_general": distillation is not None, "tells_targets": taught}
        self.data_collator = SemIDCollator(**known, **tells)

    def _get_train_sampler(self, *args, **kwargs):
        sampler = super()._get_train_sampler(*args, **kwargs)
        if isinstance(sampler, LengthGroupedSampler):
            sampler.generator = self.order
            if (name := self.args.length_column_name) in self.train_dataset.column_names:
                sampler.lengths = self.train_dataset.with_format(None)[name][:]  # estimates: no row is rendered
        return sampler

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Of general conversations what `distillation` says, if there is any; see `_row_loss` for all others."""
        inputs = dict(inputs)
        general, first_target = inputs.pop("general", None), inputs.pop("first_target", None)
        if general is None or return_outputs or not general.any():
            return self._row_loss(model, inputs, return_outputs, num_items_in_batch, first_target)
        processes = self.accelerator.num_processes
        shares = processes if self.args.average_tokens_across_devices else 1
        if num_items_in_batch is None:
            counted = inputs["weights"][:, 1:] if "weights" in inputs else inputs["labels"][:, 1:] != -100
            num_items_in_batch = shares * counted.sum().clamp(min=TINY)  # of this process alone
        rows = rows_of(inputs, general)
        weights, labelled = rows.pop("weights", None), rows["labels"][:, 1:] != -100
        losses = self.distillation.losses(model, rows, self.accelerator.unwrap_model(model))
        self._metrics["train" if self.model.training else "eval"]["general_kl"].append(losses.mean().item())
        loss = losses.sum() if weights is None else (losses * weights[:, 1:][labelled]).sum()
        loss = self.distillation.weight * loss * shares / num_items_in_batch
        others = ~general
        if general.all():
            if processes == 1:
                return loss
            # TRL's loss gathers figures from all processes: each of them calls it, if for a row without labels.
            others[0], inputs["labels"] = True, torch.full_like(inputs["labels"], -100)
        first_target = None if first_target is None else first_target[others]
        return loss + self._row_loss(model, rows_of(inputs, others), False, num_items_in_batch, first_target)

    def _row_loss(self, model, inputs, return_outputs, num_items_in_batch, first_target):
        """On a CPU, and over the catalogue, the loss of the labelled positions alone; else TRL's fused head.

        TRL's fused head needs Triton; without it every position is projected, twice. The losses are equal.
        """
        weights = inputs.pop("weights", None)
        fast = inputs["input_ids"].device.type == "cpu" and self.args.loss_type == "nll" and not self.aux_loss_enabled
        fast = fast or self.catalogue_loss is not None
        if return_outputs or (weights is None and not fast):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if fast:
            losses, weights = self._labelled_losses(model, inputs, weights, first_target)
        else:
            losses, weights = self._fused_losses(model, inputs), weights[:, 1:]
        loss = losses.sum() if weights is None else (losses * weights).sum()
        if num_items_in_batch is None:
            if weights is None:
                return loss / (inputs["labels"][:, 1:] != -100).sum().clamp(min=1)
            return loss / weights.sum().clamp(min=TINY)
        if self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return loss / num_items_in_batch

    def _labelled_losses(self, model, inputs, weights, first_target=None):
        """The losses of the columns that any row labels and, where there are any, their weights: float [B, C]."""
        inputs = inputs if weights is None else {**inputs, "weights": weights}
        inputs, cache = self._without_repeats(model, inputs)
        # What follows the last token is not asked for. Padding-free rows follow each other in one: positions without
        # a mask keep them apart.
        known = {name: inputs[name][:, :-1] for name in ("attention_mask", "position_ids") if name in inputs}
        known |= {"use_cache": False} if cache is None else {"past_key_values": cache}
        ids, labels, weights = inputs["input_ids"][:, :-1], inputs["labels"][:, 1:], inputs.get("weights")
        weights = None if weights is None else weights[:, 1:]
        smoothing = self.args.label_smoothing_factor if model.training else 0.0
        if self.catalogue_loss is not None:
            told = {"labels": labels, "smoothing": smoothing, "first_target": first_target, "training": model.training}
            with head_output(model, partial(self.catalogue_loss, **told)):
                return model(input_ids=ids, **known).logits, weights
        # `logits_to_keep` keeps columns, so the columns that no row labels are dropped first.
        columns = (labels != -100).any(0).nonzero().squeeze(1)
        labels = labels[:, columns]
        logits = model(input_ids=ids, logits_to_keep=columns, **known).logits.flatten(0, 1).float()
        losses = nn.functional.cross_entropy(logits, labels.flatten(), reduction="none", label_smoothing=smoothing)
        return losses.view(labels.shape), None if weights is None else weights[:, columns]

    def _without_repeats(self, model, inputs):
        """On a CPU, a batch without the tokens that all its rows begin with, whose keys and values come with it, and
        with its padding on the left; elsewhere, and without padding, the batch as it is."""
        if inputs["input_ids"].device.type != "cpu" or "position_ids" in inputs:
            return inputs, None
        prefix, cache = 0, None
        if self.accelerator.num_processes == 1 and not getattr(model, "is_gradient_checkpointing", False):
            prefix = shared_prefix(inputs)
        if prefix:
            cache = prefix_cache(model, inputs["input_ids"][:, :prefix])
            prefix = prefix if cache is not None else 0
        return right_aligned({name: columns[:, prefix:] for name, columns in inputs.items()}, prefix), cache

    def _fused_losses(self, model, inputs) -> torch.Tensor:
        """Losses by TRL's fused head, float [B, T - 1], 0 where there is no label."""
        if self.args.label_smoothing_factor or self.aux_loss_enabled:
            raise ValueError(
                "weighted losses go with neither label_smoothing_factor nor router_aux_loss_coef: set both to 0"
            )
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        losses = -outputs.log_probs
        return losses * outputs.log_probs.exp().detach() if self.args.loss_type == "dft" else losses

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """With weights a step is divided by the sum of its weights instead of the number of its labels."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if count is not None and "weights" in batches[0]:
            count = sum(
                (batch["weights"] * (batch["labels"] != -100))[:, 1:].sum(dtype=torch.float32) for batch in batches
            ).to(device)
            if self.args.average_tokens_across_devices and self.args.world_size > 1:
                count = self.accelerator.gather(count).sum()
            count = count.clamp(min=TINY)
        return batches, count
