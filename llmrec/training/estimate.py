"""How long a run takes: its steps at the start, and the time as soon as some of them are timed."""

import time

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

_UNTIMED, _TIMED_S, _LEAST_S = 2, 5.0, 60.0  # first steps; how long is timed; what is worth a line


class Estimate(TrainerCallback):
    """Says how many steps a run has, then about how long they take and what would halve that, and after the first
    evaluation how long those take. Runs of less than a minute say no more than their steps."""

    def __init__(self):
        self.began = self.mark = self.seconds = self.timed = 0
        self.said = self.said_evaluations = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.began, self.mark = state.global_step, None
        rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        done = f", {state.global_step:,} of them done" if state.global_step else ""
        epochs = "" if args.max_steps > 0 else f", {args.num_train_epochs:g} epochs"
        _say(state, f"{state.max_steps:,} steps with batches of {rows:,}{epochs}{done}.")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self.said:
            return
        now = time.perf_counter()
        if self.mark is not None and state.global_step - self.began > _UNTIMED:
            self.seconds, self.timed = self.seconds + now - self.mark, self.timed + 1
        self.mark = None if control.should_evaluate or control.should_save else now  # that is no part of a step
        if self.seconds < _TIMED_S:
            return
        self.said = True
        each, left = self.seconds / self.timed, state.max_steps - state.global_step
        if left * each >= _LEAST_S:
            evaluations = _evaluations_left(args, state)
            beside = f", and {evaluations:,} evaluations" if evaluations else ""
            half = "" if self.began else f"; {_half(args)} takes half as long"
            _say(state, f"About {_duration(left * each)} for {left:,} steps ({each:.2g} s each){beside}{half}.")

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs=None, **kwargs):
        """The ranking's time is logged after that of the loss. Before training there is nothing to estimate."""
        if self.said_evaluations or not state.max_steps or "eval_ranking_seconds" not in (logs or {}):
            return
        self.said_evaluations = True
        one = logs["eval_ranking_seconds"] + max(
            (log.get("eval_runtime", 0) for log in state.log_history[-3:]), default=0
        )
        if (left := _evaluations_left(args, state)) * one >= _LEAST_S:
            _say(state, f"An evaluation takes {_duration(one)}: {left:,} more take {_duration(left * one)}.")


def _evaluations_left(args: TrainingArguments, state: TrainerState) -> int:
    left = state.max_steps - state.global_step
    if args.eval_strategy == "steps":
        return left // max(1, state.eval_steps)
    steps = state.max_steps / state.num_train_epochs  # of an epoch
    return round(left / steps) if args.eval_strategy == "epoch" else 0


def _half(args: TrainingArguments) -> str:
    return (
        f"max_steps: {args.max_steps // 2}"
        if args.max_steps > 0
        else f"num_train_epochs: {args.num_train_epochs / 2:g}"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _say(state: TrainerState, text: str) -> None:
    if state.is_world_process_zero:
        tqdm.write(text)  # above the bar
