"""What a stage of supervised fine-tuning adds to TRL's own settings, and what is refused before it starts."""

import importlib.util
import math
from dataclasses import dataclass, field

from accelerate import PartialState
from transformers import EarlyStoppingCallback, TrainerCallback
from trl import ModelConfig, SFTConfig

from llmrec.arguments import at_least, one_of
from llmrec.training.sharding import sharded


@dataclass
class SFTArguments:
    """Fields of recipes/sft.py beside TRL's `SFTConfig` and `ModelConfig`."""

    train: str = field(
        default="all", metadata={"help": "all, or new_tokens: only the rows of new tokens learn (vocabulary warm-up)."}
    )
    hidden_dropout: float = field(default=0.0, metadata={"help": "Dropout for small models trained from scratch."})
    early_stopping_patience: int = field(
        default=0, metadata={"help": "Evaluations without a better metric_for_best_model before a run ends; 0: never."}
    )
    log_probs: str = field(
        default="vocabulary",
        metadata={"help": "The loss of Semantic IDs over the vocabulary, or over the tokens that the trie allows."},
    )
    sampled_softmax: int = field(
        default=0, metadata={"help": "Other first tokens, drawn a batch, that stand for all in its loss; 0: all."}
    )
    level_weights: list[float] = field(
        default_factory=list, metadata={"help": "Loss weight of a SemID's first, second, ... token; the last goes on."}
    )
    text_weight: float = field(default=1.0, metadata={"help": "Loss weight of answer tokens that are no SemID's."})
    value_column: str = field(default="", metadata={"help": "Column of the items that weighs their tokens: price."})
    behaviour_values: dict[str, float] | None = field(
        default=None, metadata={"help": "Loss weight of each kind of interaction: {view: 0.1, buy: 1.0}."}
    )
    distill_weight: float = field(
        default=0.0, metadata={"help": "Weight of KL(base || model) on general conversations; 0: cross-entropy."}
    )
    distill_from: str = field(default="", metadata={"help": "The model to distil from; by default the run's base."})
    soft_targets_from: str = field(
        default="", metadata={"help": "A SASRec or BSARec whose ranking is to be learned beside the targets."}
    )
    soft_targets_weight: float = field(default=0.5, metadata={"help": "Weight of that ranking, from 0 to 1."})


def check_sft(sft: SFTArguments, training_args: SFTConfig, model_args: ModelConfig, normalize: str = "") -> None:
    """Refuses settings that contradict each other, before anything is loaded, with a `ValueError` that says which.
    `normalize` is what the search is to rank by; empty: what the loss is over."""
    at_least(sft, early_stopping_patience=0, hidden_dropout=0.0, sampled_softmax=0)
    if sft.hidden_dropout >= 1:
        raise ValueError(f"hidden_dropout: {sft.hidden_dropout} leaves nothing: it should be below 1")
    metric, on_cpu = training_args.metric_for_best_model, PartialState().device.type == "cpu"
    one_of(sft.train, ("all", "new_tokens"), "train:")
    one_of(sft.log_probs, ("vocabulary", "catalogue"), "log_probs:")
    one_of(normalize, ("", "vocabulary", "catalogue"), "normalize:")
    if sft.log_probs == "catalogue" and normalize == "vocabulary":
        raise ValueError(
            "log_probs: catalogue never teaches what else of the vocabulary could stand there, so normalize: "
            "vocabulary would rank by noise: leave normalize out"
        )
    if sft.log_probs == "catalogue" and training_args.loss_type != "nll":
        raise ValueError(f"log_probs: catalogue has no loss_type {training_args.loss_type}: set nll")
    smooth = training_args.label_smoothing_factor or sft.soft_targets_from
    if sft.sampled_softmax and (smooth or sft.log_probs != "catalogue"):
        raise ValueError(
            f"sampled_softmax: {sft.sampled_softmax} needs log_probs: catalogue, and neither label_smoothing_factor "
            "nor soft_targets_from, which are over all items"
        )
    if sft.train == "new_tokens" and model_args.use_peft:
        raise ValueError(
            "train: new_tokens trains the rows of new tokens alone: leave use_peft out, or set train: all"
        )
    if sft.early_stopping_patience and not (training_args.load_best_model_at_end and metric):
        raise ValueError(
            "early_stopping_patience needs load_best_model_at_end: true, metric_for_best_model: eval_ndcg@10 and "
            "eval_strategy equal to save_strategy (epoch or steps)"
        )
    if not 0 <= sft.distill_weight < math.inf or (sft.distill_from and not sft.distill_weight):
        raise ValueError(
            f"distill_weight: {sft.distill_weight} should be a number from 0 on, and above 0 with distill_from"
        )
    if sft.distill_weight and not sft.text_weight:
        raise ValueError("text_weight: 0 leaves nothing of distill_weight, whose answers are text: set one of the two")
    if sft.distill_weight and (training_args.packing or training_args.padding_free or sharded()):
        raise ValueError(
            "distill_weight needs rows of their own and a whole model: set packing and padding_free to false, and "
            "launch with ddp.yaml or deepspeed_zero2.yaml"
        )
    if sft.soft_targets_from:
        _check_soft_targets(sft, training_args)
    if training_args.max_length is None:
        raise ValueError("max_length is empty: give the most tokens that a row may have, such as 512")
    at_least(training_args, max_length=1)
    if training_args.packing and training_args.packing_strategy != "bfd":
        raise ValueError("packing_strategy: only bfd keeps every row whole; the others cut Semantic IDs in two")
    init = training_args.model_init_kwargs or {}
    if training_args.use_liger_kernel or (isinstance(init, dict) and init.get("use_kernels")):
        if on_cpu:
            raise ValueError("use_liger_kernel and use_kernels do nothing on a CPU: leave them out, or run on a GPU")
        if training_args.use_liger_kernel and importlib.util.find_spec("liger_kernel") is None:
            raise ValueError("use_liger_kernel needs the package liger-kernel: pip install 'llmrec[gpu]'")
    if model_args.load_in_4bit or model_args.load_in_8bit:
        _check_quantised(sft, training_args, model_args, on_cpu)
    if sharded() == "DeepSpeed ZeRO-3" and (model_args.use_peft or sft.train == "new_tokens"):
        raise ValueError(
            "use_peft: true and train: new_tokens train an adapter, which cannot be merged under DeepSpeed ZeRO-3: "
            "launch with fsdp2.yaml, deepspeed_zero2.yaml or ddp.yaml"
        )


def _check_soft_targets(sft: SFTArguments, training_args: SFTConfig) -> None:
    if not 0 < sft.soft_targets_weight <= 1:
        raise ValueError(f"soft_targets_weight: {sft.soft_targets_weight} should be above 0 and at most 1")
    if sft.log_probs != "catalogue":
        raise ValueError("soft_targets_from is a loss over the catalogue: set log_probs: catalogue")
    if training_args.packing or training_args.padding_free or training_args.label_smoothing_factor:
        raise ValueError(
            "soft_targets_from needs rows of their own and is a smoothing already: set packing and padding_free to "
            "false and label_smoothing_factor to 0"
        )


def _check_quantised(sft: SFTArguments, training_args: SFTConfig, model_args: ModelConfig, on_cpu: bool) -> None:
    flag = "load_in_4bit" if model_args.load_in_4bit else "load_in_8bit"
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(f"{flag} needs the package bitsandbytes: pip install 'llmrec[gpu]'")
    if not model_args.use_peft:
        raise ValueError(f"{flag} trains an adapter on a quantised model: set use_peft: true (train: {sft.train})")
    if sharded():
        raise ValueError(f"{flag} under {sharded()} is not supported: launch with ddp.yaml or deepspeed_zero2.yaml")
    if on_cpu and model_args.load_in_4bit and training_args.eval_strategy != "no":
        raise ValueError(
            "load_in_4bit on a CPU loses gradients once the model was evaluated (bitsandbytes repacks its weights): "
            'set eval_strategy: "no"; the merged model is evaluated at the end'
        )


def callbacks(sft: SFTArguments, training_args: SFTConfig) -> list[TrainerCallback]:
    """Early stopping, if asked for; `training_args` are set so that a resumed run goes on with its count."""
    if not sft.early_stopping_patience:
        return []
    training_args.restore_callback_states_from_checkpoint = True
    return [_EarlyStopping(sft.early_stopping_patience)]


class _EarlyStopping(EarlyStoppingCallback):
    """Counts where its metric is told: the loss comes without the ranking, and the ranking without the loss."""

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if f"eval_{args.metric_for_best_model.removeprefix('eval_')}" in metrics:
            super().on_evaluate(args, state, control, metrics, **kwargs)
