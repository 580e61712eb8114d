"""What a run says of its time: its steps, then how long they take and what would halve that."""

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from llmrec.training import estimate
from llmrec.training.estimate import Estimate


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: now[0])
    return now


def run(clock, tmp_path, began=0, seconds=2.0, evaluation=0.0, **settings):
    """10 epochs of 100 steps of two seconds, the first two of which take a minute; an evaluation after each epoch."""
    settings = {"per_device_train_batch_size": 8, "num_train_epochs": 10, "use_cpu": True} | settings
    args = TrainingArguments(str(tmp_path), bf16=False, gradient_accumulation_steps=2, **settings)
    steps = args.max_steps if args.max_steps > 0 else 1000
    state = TrainerState(max_steps=steps, num_train_epochs=10, global_step=began, is_world_process_zero=True)
    callback, control = Estimate(), TrainerControl()
    callback.on_train_begin(args, state, control)
    while state.global_step < state.max_steps:
        state.global_step += 1
        clock[0] += 60.0 if state.global_step - began <= 2 else seconds
        control.should_evaluate = state.global_step % 100 == 0
        callback.on_step_end(args, state, control)
        if control.should_evaluate and evaluation:
            clock[0] += evaluation
            state.log_history.append({"eval_runtime": evaluation / 4})
            callback.on_log(args, state, control, logs={"eval_ranking_seconds": evaluation * 3 / 4})


def test_steps_time_and_what_halves_it(clock, tmp_path, capsys):
    run(clock, tmp_path, eval_strategy="epoch", evaluation=40.0)
    assert capsys.readouterr().out.splitlines() == [
        "1,000 steps with batches of 16, 10 epochs.",
        "About 33 minutes for 995 steps (2 s each), and 10 evaluations; num_train_epochs: 5 takes half as long.",
        "An evaluation takes 40 seconds: 9 more take 6 minutes.",
    ]


def test_steps_are_halved_where_steps_are_given_and_a_resumed_run_counts_what_is_left(clock, tmp_path, capsys):
    run(clock, tmp_path, max_steps=400)
    run(clock, tmp_path, max_steps=400, began=300)
    assert capsys.readouterr().out.splitlines() == [
        "400 steps with batches of 16.",
        "About 13 minutes for 395 steps (2 s each); max_steps: 200 takes half as long.",
        "400 steps with batches of 16, 300 of them done.",
        "About 3 minutes for 95 steps (2 s each).",
    ]


def test_evaluations_are_no_part_of_a_step_and_short_runs_say_their_steps_alone(clock, tmp_path, capsys):
    run(clock, tmp_path, seconds=0.04, max_steps=1200, eval_strategy="steps", eval_steps=100, evaluation=1.0)
    assert capsys.readouterr().out.splitlines() == ["1,200 steps with batches of 16."]
