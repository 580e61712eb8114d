"""Reinforcement learning over the items of a catalogue, with TRL's GRPO."""

from llmrec.rl.groups import searched_index
from llmrec.rl.log_probs import Groups, log_probs
from llmrec.rl.monitor import Guard, plot_grpo
from llmrec.rl.policy import GRPOArguments, PolicyArguments
from llmrec.rl.rewards import REWARDS, Facts, load_rewards
from llmrec.rl.rows import prompt_rows
from llmrec.rl.sampling import sample_without_replacement
from llmrec.rl.trainer import SemIDGRPOTrainer

__all__ = [
    "REWARDS",
    "Facts",
    "GRPOArguments",
    "Groups",
    "Guard",
    "PolicyArguments",
    "SemIDGRPOTrainer",
    "load_rewards",
    "log_probs",
    "plot_grpo",
    "prompt_rows",
    "sample_without_replacement",
    "searched_index",
]
