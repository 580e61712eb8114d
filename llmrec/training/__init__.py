"""Training with TRL: what SFT on Semantic IDs needs beside the stock trainer."""

from llmrec.training.evaluator import ValidationSample
from llmrec.training.lora import lora_config, merged
from llmrec.training.regularise import add_dropout
from llmrec.training.resume import last_complete_checkpoint
from llmrec.training.settings import begin_run, run_inputs
from llmrec.training.sft import SemIDSFTTrainer

__all__ = [
    "SemIDSFTTrainer",
    "ValidationSample",
    "add_dropout",
    "begin_run",
    "last_complete_checkpoint",
    "lora_config",
    "merged",
    "run_inputs",
]
