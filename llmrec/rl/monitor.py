"""What RL must not lose: recall far down the list, coverage, and its reference where that moves."""

import logging
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from llmrec.training import plot_training

logger = logging.getLogger(__name__)


class Guard(TrainerCallback):
    """Warns, or stops the run, when recall@50 or coverage@10 falls too far below the start.

    GRPO tends to raise recall@1 and to lower recall@10 to @50 (docs/grpo.md); a mean reward does not show it. `drop`
    is how much of the first value may be lost, 0.1 = a tenth; `stops` ends the run.
    """

    def __init__(self, drop: float, stops: bool):
        self.drop, self.stops = drop, stops
        self.first: dict[str, float] = {}

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        values = {
            name: metrics[f"eval_{name}"] for name in ("recall@50", "coverage@10") if f"eval_{name}" in (metrics or {})
        }
        if not self.first:
            logs = [log for log in state.log_history if all(f"eval_{name}" in log for name in values)]
            self.first = {name: logs[0][f"eval_{name}"] for name in values} if logs else values
        for name, value in values.items():
            if value < (1 - self.drop) * self.first[name]:
                what = "stopping" if self.stops else "go on with care: lower the learning rate or raise beta"
                said = f"{name} fell from {self.first[name]:.4f} to {value:.4f} at step {state.global_step}: {what}"
                logger.log(logging.WARNING if state.is_world_process_zero else logging.DEBUG, said)
                control.should_training_stop = control.should_training_stop or self.stops


class KeptReference(TrainerCallback):
    """Keeps a reference that follows the policy (`sync_ref_model`) beside every checkpoint; TRL would begin anew."""

    def __init__(self, reference):
        self.reference = reference

    @staticmethod
    def _file(args, step: int) -> Path:
        return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}" / "reference.safetensors"

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            weights = {name: one.detach().contiguous() for name, one in self.reference.named_parameters()}
            save_file(weights, self._file(args, state.global_step))

    def on_train_begin(self, args, state, control, **kwargs):
        file = self._file(args, state.global_step)
        if state.global_step and file.exists():
            self.reference.load_state_dict(load_file(file), strict=False)  # tied weights stand there twice


def plot_grpo(history: Sequence[dict], path: str | Path) -> None:
    """Draws rewards, dead groups, entropy, KL and the validation sample over steps; see `plot_training`."""
    rewards = sorted({name for log in history for name in log if name.startswith("rewards/") and "mean" in name})
    panels = {
        "rewards": ["reward", *rewards],
        "share of dead groups": ["groups/dead"],
        "probability of a group": ["rollout/mass"],
        "entropy of a completion": ["entropy/completion"],
        "KL to the reference": ["kl"],
        "validation: recall": ["eval_recall@1", "eval_recall@10", "eval_recall@50"],
        "validation: ndcg": ["eval_ndcg@10"],
        "validation: what is shown": ["eval_coverage@10", "eval_head@10", "eval_valid@10"],
    }
    plot_training(history, path, panels, columns=4)
