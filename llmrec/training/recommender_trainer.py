"""What every trainer of a recommender does beside TRL: it ranks a validation sample, and writes recommenders.

Two methods of transformers' `Trainer` that are not public stand around its own: `_prepare_for_training` and
`_get_grad_norm`, which also reads `_tr_loss` (checked with 5.19).
"""

import logging
import math
import time
import zlib
from collections.abc import Callable
from copy import copy

import torch
from accelerate.utils import reduce
from huggingface_hub import CommitInfo
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import HubStrategy
from transformers.training_args import TrainingArguments

from llmrec.instructions import reader_of
from llmrec.instructions.dataset import RowReader
from llmrec.models.card import share_model
from llmrec.training.estimate import Estimate
from llmrec.training.evaluator import ValidationSample
from llmrec.training.loading import not_finite
from llmrec.training.lora import is_quantised
from llmrec.training.sharding import sharded_together, whole

logger = logging.getLogger(__name__)


class FreshEpoch(TrainerCallback):
    """Tells the rows and the sampler which epoch it is, and at the end how many rows lost a part of their history.

    A sampler draws from `order`: torch's own, as transformers does, gives every process other rows as soon as one of
    them has drawn more, and other rows after a resume.
    """

    def __init__(self, reader: RowReader | None, order: torch.Generator):
        self.reader, self.order = reader, order

    def on_epoch_begin(self, args, state, control, **kwargs):
        epoch = int(state.epoch or 0)
        self.order.manual_seed(zlib.crc32(f"{args.seed}/{epoch}".encode()))
        if self.reader is not None:
            self.reader.set_epoch(epoch)

    def on_train_end(self, args, state, control, **kwargs):
        if self.reader is not None:
            counts = torch.tensor([self.reader.truncated, self.reader.read], device=args.device)
            cut, read = reduce(counts, "sum").tolist()
            said = "%d of the %d rows read lost the oldest items of their history to max_length %d"
            logger.info(said, cut, read, self.reader.max_length)


class RecommenderTrainer:
    """Stands before a trainer of TRL among the bases of a class.

    Args:
        sample (*optional*): adds `eval_recall@10`, `eval_ndcg@10`, ... to every evaluation, so that
            `metric_for_best_model="eval_ndcg@10"` selects by what counts.
        write_sidecars (*optional*): called with every folder that receives weights, so that each checkpoint is a
            recommender.

    Of `args`, which stay as they are, the trainer has a copy. A sampler may draw from `order` (`torch.Generator`),
    which follows from seed and epoch alone.
    """

    def __init__(
        self,
        model,
        args: TrainingArguments,
        *,
        sample: ValidationSample | None = None,
        write_sidecars: Callable[[str], None] | None = None,
        **kwargs,
    ):
        if args.push_to_hub and args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            raise ValueError(
                f"hub_strategy: {args.hub_strategy.value} uploads the optimizer and paths of this machine: leave it "
                "out, the Hub gets the finished model (docs/sharing.md)"
            )
        args = copy(args)
        args.hub_strategy = HubStrategy.END
        args.remove_unused_columns = False
        args.logging_nan_inf_filter = False  # it logs NaN as the loss before, and goes on
        reader = reader_of(kwargs.get("train_dataset"))
        super().__init__(model, args=args, **kwargs)
        half = next(
            (name for name, p in self.model.named_parameters() if p.requires_grad and p.dtype == torch.half), ""
        )
        if half:
            raise ValueError(
                f"{half} would be trained in float16, where AdamW's steps round to 0 or NaN: set dtype: float32 (with "
                "fp16: true or bf16: true on a GPU) or dtype: bfloat16"
            )
        self.sample, self.write_sidecars, self.order = sample, write_sidecars, torch.Generator()
        self.add_callback(FreshEpoch(reader, self.order))
        self.add_callback(Estimate())
        if is_quantised(self.model):
            # TRL casts all that is trained to bfloat16, where small updates of whole embedding rows are rounded away.
            for name, parameter in self.model.named_parameters():
                if "trainable_tokens_delta" in name:
                    parameter.data = parameter.data.float()
        # TRL reads `.bias` of the output head, which PEFT's wrapper of new token rows does not have.
        head = self.accelerator.unwrap_model(self.model).get_output_embeddings()
        if head is not None and not hasattr(head, "bias"):
            head.bias = None

    def _prepare_for_training(self, *args, **kwargs):
        with sharded_together(self.model):
            return super()._prepare_for_training(*args, **kwargs)

    def _get_grad_norm(self, model, grad_norm=None):
        """Stops the run before the optimizer's step where the loss or the gradient is not finite.

        One look at both, on the device, in place of the one a micro-batch of transformers' own filter. With fp16: true
        a gradient may overflow: its scaler leaves such a step out.
        """
        grad_norm = super()._get_grad_norm(model, grad_norm)
        figures = {"loss": self._tr_loss}
        if grad_norm is not None and self.accelerator.mixed_precision != "fp16":
            norm = grad_norm.full_tensor() if hasattr(grad_norm, "full_tensor") else grad_norm  # sharded
            figures["norm of the gradient"] = torch.as_tensor(norm, device=self._tr_loss.device)
        if not torch.stack([figure.float() for figure in figures.values()]).isfinite().all():
            self._stop(figures, f"step {self.state.global_step + 1}")
        return grad_norm

    def _stop(self, figures: dict, where: str) -> None:
        said = ", ".join(f"{name} {float(value)}" for name, value in figures.items())
        args = self.args
        raise FloatingPointError(
            f"{where}: {said}: not finite, so the run stops and nothing is written as finished. Try a lower "
            f"learning_rate (it is {args.learning_rate:g}), warmup_steps, max_grad_norm: 1.0 (it is "
            f"{args.max_grad_norm:g}) or dtype: float32, with --overwrite true"
        )

    def evaluate(self, *args, metric_key_prefix: str = "eval", **kwargs) -> dict[str, float]:
        """What TRL measures on the evaluation rows, and recall@k and ndcg@k on the validation sample.

        Callbacks are told of both, one after the other.
        """
        metrics = super().evaluate(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        loss = {"loss": metrics.get(f"{metric_key_prefix}_loss", 0.0)}
        if not math.isfinite(loss["loss"]):
            self._stop(loss, f"evaluation after step {self.state.global_step}")
        if self.sample is not None:
            metrics.update(self.rank_and_tell(metric_key_prefix))
        return metrics

    def rank_and_tell(self, metric_key_prefix: str) -> dict[str, float]:
        """`rank`, and callbacks are told."""
        metrics = self.rank(metric_key_prefix)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def rank(self, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The metrics of the model as it is on the validation sample and the seconds that they took, logged."""
        start = time.perf_counter()
        with whole(self.model_wrapped, self.accelerator) as model:
            metrics = self.sample.evaluate(model, self.accelerator, progress=not self.args.disable_tqdm)
        metrics["ranking_seconds"] = time.perf_counter() - start
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        Trainer.log(self, metrics)  # TRL's own would add the training figures since its last time, and forget them
        return metrics

    def push_to_hub(
        self, commit_message: str = "End of training", token: str | None = None, revision: str | None = None
    ) -> CommitInfo | None:
        """Uploads the output folder as it is on disk, without what a run keeps for itself, with the repository's name
        in the card (`llmrec.models.card.share_model`)."""
        if not self.is_world_process_zero():
            return None
        if self.hub_model_id is None:
            self.init_hf_repo(token=token)
        where = {"token": token or self.args.hub_token, "revision": revision or self.args.hub_revision}
        return share_model(self.args.output_dir, self.hub_model_id, commit_message=commit_message, **where)

    def create_model_card(self, *args, **kwargs) -> None:
        """The recipe writes the card (`llmrec.models.card`); TRL's would replace it."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if (name := not_finite(self.model)) is not None:
            self._stop({name: math.nan}, f"weights after step {self.state.global_step}")
        super().save_model(output_dir, _internal_call)
        if self.write_sidecars is not None and self.args.should_save:
            self.write_sidecars(output_dir or self.args.output_dir)
