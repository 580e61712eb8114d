"""Training with TRL: what SFT on Semantic IDs needs beside the stock trainer."""

from llmrec.training.batches import SemIDCollator, packed
from llmrec.training.evaluator import ValidationSample
from llmrec.training.finish import finish_run
from llmrec.training.loading import load_model, reload_model
from llmrec.training.lora import lora_config, merged, merged_onto, push_final_model, save_final_model
from llmrec.training.loss_weights import LossWeights, loss_weights
from llmrec.training.plots import plot_training
from llmrec.training.ranking import RecommenderTrainer
from llmrec.training.regularise import add_dropout, without_dropout
from llmrec.training.resume import last_complete_checkpoint
from llmrec.training.settings import begin_run, run_inputs
from llmrec.training.sft import SemIDSFTTrainer
from llmrec.training.stage import StageArguments, callbacks, check_stage

__all__ = [
    "LossWeights",
    "RecommenderTrainer",
    "SemIDCollator",
    "SemIDSFTTrainer",
    "StageArguments",
    "ValidationSample",
    "add_dropout",
    "begin_run",
    "callbacks",
    "check_stage",
    "finish_run",
    "last_complete_checkpoint",
    "load_model",
    "lora_config",
    "loss_weights",
    "merged",
    "merged_onto",
    "packed",
    "plot_training",
    "push_final_model",
    "reload_model",
    "run_inputs",
    "save_final_model",
    "without_dropout",
]
