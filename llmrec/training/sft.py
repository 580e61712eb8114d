"""TRL's `SFTTrainer` with small additions: ranking metrics, folders that recommend, weighted losses, a loss for CPUs.

It overrides public methods (`compute_loss`, `get_batch_samples`, `evaluate`, `save_model`) and one that is not,
`_get_train_sampler`; checked against trl 1.16 and transformers 5.19.
"""

import dataclasses
import logging
import zlib
from collections.abc import Callable

import torch
from accelerate.utils import reduce
from torch import nn
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTConfig, SFTTrainer

from llmrec.instructions import InstructionDataset
from llmrec.training.batches import SemIDCollator, right_aligned
from llmrec.training.evaluator import ValidationSample
from llmrec.training.lora import is_quantised, rows_in_float32
from llmrec.training.ranking import RecommenderTrainer
from llmrec.training.stage import sharded

logger = logging.getLogger(__name__)
TINY = torch.finfo(torch.float32).tiny  # a step whose weights are all 0 has loss 0, not 0 / 0


class FreshEpoch(TrainerCallback):
    """Tells the rows and the sampler which epoch it is, and at the end how many rows lost a part of their history.

    Args:
        rows (`InstructionDataset`, *optional*): none where rows are packed.
        order (`torch.Generator`): what a sampler draws from. Drawing from torch's own, as transformers does, gives
            every process other rows as soon as one of them has drawn more, and other rows after a resume.
    """

    def __init__(self, rows: InstructionDataset | None, order: torch.Generator):
        self.rows, self.order = rows, order

    def on_epoch_begin(self, args, state, control, **kwargs):
        epoch = int(state.epoch or 0)
        self.order.manual_seed(zlib.crc32(f"{args.seed}/{epoch}".encode()))
        if self.rows is not None:
            self.rows.set_epoch(epoch)

    def on_train_end(self, args, state, control, **kwargs):
        if self.rows is not None:
            counts = torch.tensor([self.rows.truncated, self.rows.read], device=args.device)
            cut, read = reduce(counts, "sum").tolist()
            logger.info(
                "%d of the %d rows read lost the oldest items of their history to max_length %d",
                cut,
                read,
                self.rows.max_length,
            )


class SemIDSFTTrainer(RecommenderTrainer, SFTTrainer):
    """`SFTTrainer` for rows that `llmrec.instructions.build_dataset` wrote; they come tokenised.

    Rows with `weights` (float, one per label) are trained on the weighted mean sum(w · nll) / sum(w), over all
    micro-batches and processes of a step. Without them nothing differs from TRL.

    Args:
        model, args: see `SFTTrainer`; of `args`, `remove_unused_columns` and `dataset_kwargs` are set here, and
            `max_length` where batches are padding-free: TRL refuses that, and no row is longer anyway.
        sample (`ValidationSample`, *optional*): adds `eval_recall@10`, `eval_ndcg@10`, ... to every evaluation, so
            that `metric_for_best_model="eval_ndcg@10"` selects by what counts. Left out where processes hold parts of
            the weights only (FSDP, ZeRO-3).
        write_sidecars (callable, *optional*): called with every folder that receives weights, so that each
            checkpoint is a recommender.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: SFTConfig,
        *,
        sample: ValidationSample | None = None,
        write_sidecars: Callable[[str], None] | None = None,
        **kwargs,
    ):
        args.remove_unused_columns = False
        args.dataset_kwargs = {**(args.dataset_kwargs or {}), "skip_prepare_dataset": True}
        if args.padding_free and not args.packing:
            args.max_length = None
        self.order = torch.Generator()
        super().__init__(model, args, **kwargs)
        rows = self.train_dataset if isinstance(self.train_dataset, InstructionDataset) else None
        self.add_callback(FreshEpoch(rows, self.order))
        if sample is not None and sharded():
            logger.warning("no recall and ndcg while training: under %s no process has the whole model", sharded())
            sample = None
        self.sample = sample
        self.write_sidecars = write_sidecars
        fields = dataclasses.fields(self.data_collator)  # TRL takes no collator of ours beside padding_free
        self.data_collator = SemIDCollator(**{field.name: getattr(self.data_collator, field.name) for field in fields})
        if is_quantised(self.model):
            rows_in_float32(self.model)
        # TRL reads `.bias` of the output head, which PEFT's wrapper of new token rows does not have.
        head = self.model.get_output_embeddings()
        if head is not None and not isinstance(head, nn.Linear) and not hasattr(head, "bias"):
            head.bias = None

    def _get_train_sampler(self, *args, **kwargs):
        sampler = super()._get_train_sampler(*args, **kwargs)
        if isinstance(sampler, LengthGroupedSampler):
            sampler.generator = self.order
        return sampler

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """On a CPU the cross-entropy of the labelled positions alone; elsewhere TRL's fused head.

        TRL's fused head needs Triton; without it every position is projected, twice. The losses are equal.
        """
        inputs = dict(inputs)
        weights = inputs.pop("weights", None)
        fast = inputs["input_ids"].device.type == "cpu" and self.args.loss_type == "nll" and not self.aux_loss_enabled
        if return_outputs or (weights is None and not fast):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if fast:
            losses, weights = self._labelled_losses(model, inputs, weights)
        else:
            losses, weights = self._fused_losses(model, inputs), weights[:, 1:]
        loss = losses if weights is None else (losses * weights).sum()
        if num_items_in_batch is None:
            if weights is None:
                return loss / (inputs["labels"][:, 1:] != -100).sum().clamp(min=1)
            return loss / weights.sum().clamp(min=TINY)
        if self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return loss / num_items_in_batch

    def _labelled_losses(self, model, inputs, weights):
        """The summed loss; with weights those of the columns that any row labels, and their losses: float [B, C]."""
        if "position_ids" not in inputs:
            inputs = right_aligned(inputs if weights is None else {**inputs, "weights": weights})
            weights = inputs.get("weights")
        labels = inputs["labels"]
        # `logits_to_keep` keeps columns, so the columns that no row labels are dropped first.
        columns = (labels[:, 1:] != -100).any(0).nonzero().squeeze(1)
        # Padding-free rows follow each other in one: positions without a mask keep them apart.
        known = {name: inputs[name] for name in ("attention_mask", "position_ids") if name in inputs}
        outputs = model(input_ids=inputs["input_ids"], logits_to_keep=columns, use_cache=False, **known)
        targets = labels[:, columns + 1]
        losses = nn.functional.cross_entropy(
            outputs.logits.flatten(0, 1).float(),
            targets.flatten(),
            ignore_index=-100,
            reduction="sum" if weights is None else "none",
            label_smoothing=self.args.label_smoothing_factor if model.training else 0.0,
        )
        return (losses, None) if weights is None else (losses.view(targets.shape), weights[:, columns + 1])

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

    def evaluate(self, *args, metric_key_prefix: str = "eval", **kwargs):
        """The loss, and recall@k and ndcg@k on the validation sample."""
        metrics = super().evaluate(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self.sample is not None:
            metrics.update(self.rank(metric_key_prefix))
        return metrics
