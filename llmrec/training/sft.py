"""TRL's `SFTTrainer` with three small additions: ranking metrics, folders that recommend, and a loss for the CPU.

It overrides public methods only (`compute_loss`, `evaluate`, `save_model`); checked against trl 1.16 and
transformers 5.19.
"""

from collections.abc import Callable

from torch import nn
from trl import SFTTrainer

from llmrec.training.evaluator import ValidationSample


class SemIDSFTTrainer(SFTTrainer):
    """`SFTTrainer` for rows that `llmrec.instructions.build_dataset` wrote.

    Args:
        sample (`ValidationSample`, *optional*): adds `eval_recall@10`, `eval_ndcg@10`, ... to every evaluation, so
            that `metric_for_best_model="eval_ndcg@10"` selects by what counts.
        write_sidecars (callable, *optional*): called with every folder that receives weights, so that each
            checkpoint is a recommender.
    """

    def __init__(
        self,
        *args,
        sample: ValidationSample | None = None,
        write_sidecars: Callable[[str], None] | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.sample = sample
        self.write_sidecars = write_sidecars
        # TRL reads `.bias` of the output head, which PEFT's wrapper of new token rows does not have.
        head = self.model.get_output_embeddings()
        if head is not None and not isinstance(head, nn.Linear) and not hasattr(head, "bias"):
            head.bias = None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """On a CPU the cross-entropy of the labelled positions alone; elsewhere TRL's fused head.

        TRL's fused head needs Triton; without it every position is projected, twice. The losses are equal.
        """
        if inputs["input_ids"].device.type != "cpu" or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"]
        # `logits_to_keep` keeps columns, so the columns that no row labels are dropped first.
        columns = (labels[:, 1:] != -100).any(0).nonzero().squeeze(1)
        outputs = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs.get("attention_mask"),
            logits_to_keep=columns,
            use_cache=False,
        )
        targets = labels[:, columns + 1]
        loss = nn.functional.cross_entropy(
            outputs.logits.flatten(0, 1).float(),
            targets.flatten(),
            ignore_index=-100,
            reduction="sum",
            label_smoothing=self.args.label_smoothing_factor if model.training else 0.0,
        )
        if num_items_in_batch is None:
            return loss / (targets != -100).sum().clamp(min=1)
        if self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return loss / num_items_in_batch

    def evaluate(self, *args, metric_key_prefix: str = "eval", **kwargs):
        """The loss, and recall@k and ndcg@k on the validation sample."""
        metrics = super().evaluate(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self.sample is not None:
            ranking = self.sample.evaluate(self.model, self.accelerator)
            ranking = {f"{metric_key_prefix}_{name}": value for name, value in ranking.items()}
            self.log(ranking)
            metrics.update(ranking)
        return metrics

    def create_model_card(self, *args, **kwargs) -> None:
        """The recipe writes the card (`llmrec.model_card`); TRL's would replace it."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the weights and what makes the folder a recommender."""
        super().save_model(output_dir, _internal_call)
        if self.write_sidecars is not None and self.args.should_save:
            self.write_sidecars(output_dir or self.args.output_dir)
