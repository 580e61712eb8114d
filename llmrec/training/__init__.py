"""Training with TRL: what SFT on Semantic IDs needs beside the stock trainer, and what every run of a recipe does."""

from llmrec.training.batches import SemIDCollator, packed
from llmrec.training.evaluator import ValidationSample
from llmrec.training.loading import add_dropout, load_model, reload_model, without_dropout
from llmrec.training.lora import lora_config, merged, save_final_model
from llmrec.training.loss_weights import LossWeights, loss_weights
from llmrec.training.plots import plot_training
from llmrec.training.recommender_trainer import RecommenderTrainer
from llmrec.training.run import TrainingRun, last_complete_checkpoint
from llmrec.training.sft import SemIDSFTTrainer
from llmrec.training.sft_arguments import SFTArguments, callbacks, check_sft

__all__ = [
    "LossWeights",
    "RecommenderTrainer",
    "SFTArguments",
    "SemIDCollator",
    "SemIDSFTTrainer",
    "TrainingRun",
    "ValidationSample",
    "add_dropout",
    "callbacks",
    "check_sft",
    "last_complete_checkpoint",
    "load_model",
    "lora_config",
    "loss_weights",
    "merged",
    "packed",
    "plot_training",
    "reload_model",
    "save_final_model",
    "without_dropout",
]
