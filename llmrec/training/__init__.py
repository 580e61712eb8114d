"""Training with TRL: what SFT on Semantic IDs needs beside the stock trainer, and what every run of a recipe does."""

from llmrec.training.batches import packed
from llmrec.training.catalogue_loss import CatalogueLoss, catalogue_loss
from llmrec.training.defaults import sft_defaults
from llmrec.training.distillation import Distillation, distillation
from llmrec.training.evaluator import ValidationSample
from llmrec.training.loading import add_dropout, without_dropout
from llmrec.training.lora import is_quantised, lora_config, merged_weights, save_final_model
from llmrec.training.loss_weights import loss_weights
from llmrec.training.recommender_trainer import RecommenderTrainer
from llmrec.training.run import TrainingRun, plot_training
from llmrec.training.sft import SemIDSFTTrainer
from llmrec.training.sft_arguments import SFTArguments, callbacks, check_sft
from llmrec.training.soft_targets import SoftTargets, soft_targets, teacher_of

__all__ = [
    "CatalogueLoss",
    "Distillation",
    "RecommenderTrainer",
    "SFTArguments",
    "SemIDSFTTrainer",
    "SoftTargets",
    "TrainingRun",
    "ValidationSample",
    "add_dropout",
    "callbacks",
    "catalogue_loss",
    "check_sft",
    "distillation",
    "is_quantised",
    "lora_config",
    "loss_weights",
    "merged_weights",
    "packed",
    "plot_training",
    "save_final_model",
    "sft_defaults",
    "soft_targets",
    "teacher_of",
    "without_dropout",
]
