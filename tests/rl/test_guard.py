"""What watches recall and coverage while a policy learns, and the picture of a run."""

import logging

import pytest
from matplotlib.image import imread
from transformers import TrainerControl, TrainerState, TrainingArguments

from llmrec.rl import Guard, plot_grpo


class Run:
    """A trainer's state through its evaluations; `evaluate` returns whether the run is to stop."""

    def __init__(self, folder, guard: Guard):
        self.arguments, self.guard = TrainingArguments(str(folder)), guard
        self.state = TrainerState()

    def evaluate(self, step: int, **metrics: float) -> bool:
        metrics = {f"eval_{name.replace('_at_', '@')}": value for name, value in metrics.items()}
        self.state.global_step = step
        self.state.log_history.append({**metrics, "step": step})
        control = TrainerControl()
        self.guard.on_evaluate(self.arguments, self.state, control, metrics=metrics)
        return control.should_training_stop


@pytest.fixture(autouse=True)
def warnings(caplog):
    caplog.set_level(logging.WARNING, "llmrec.rl.monitor")
    return caplog


def test_a_fall_is_said_with_what_to_do(tmp_path, warnings):
    run = Run(tmp_path, Guard(drop=0.1, stops=False))
    assert not run.evaluate(0, recall_at_50=0.40, coverage_at_10=0.50)
    assert not run.evaluate(10, recall_at_50=0.37, coverage_at_10=0.60)  # less than a tenth, and a rise
    assert not run.evaluate(20, recall_at_50=0.361, coverage_at_10=0.451)
    assert not warnings.records
    assert not run.evaluate(30, recall_at_50=0.35, coverage_at_10=0.50)
    assert [record.getMessage() for record in warnings.records] == [
        "recall@50 fell from 0.4000 to 0.3500 at step 30: go on with care: lower the learning rate or raise beta"
    ]


@pytest.mark.parametrize("fallen", ["recall@50", "coverage@10"])
def test_a_fall_of_either_ends_the_run_where_that_is_asked(tmp_path, warnings, fallen):
    run = Run(tmp_path, Guard(drop=0.2, stops=True))
    values = {"recall_at_50": 0.4, "coverage_at_10": 0.4}
    assert not run.evaluate(0, **values)
    assert not run.evaluate(5, **values)
    assert run.evaluate(10, **{**values, fallen.replace("@", "_at_"): 0.31})
    assert [record.getMessage() for record in warnings.records] == [
        f"{fallen} fell from 0.4000 to 0.3100 at step 10: stopping"
    ]


def test_a_resumed_run_remembers_its_first_evaluation(tmp_path, warnings):
    before = Run(tmp_path, Guard(drop=0.1, stops=True))
    before.evaluate(0, recall_at_50=0.40, coverage_at_10=0.5)
    before.evaluate(10, recall_at_50=0.37, coverage_at_10=0.5)
    before.state.save_to_json(str(tmp_path / "trainer_state.json"))
    after = Run(tmp_path, Guard(drop=0.1, stops=True))
    after.state = TrainerState.load_from_json(str(tmp_path / "trainer_state.json"))
    after.state.log_history.insert(0, {"loss": 1.0, "step": 0})  # training figures stand among them
    assert not after.evaluate(20, recall_at_50=0.365, coverage_at_10=0.5)
    assert after.evaluate(30, recall_at_50=0.355, coverage_at_10=0.5)
    assert "recall@50 fell from 0.4000 to 0.3550" in warnings.text


def test_other_metrics_are_not_watched(tmp_path, warnings):
    run = Run(tmp_path, Guard(drop=0.1, stops=True))
    assert not run.evaluate(0, recall_at_1=0.4, coverage_at_10=0.4)
    assert not run.evaluate(10, recall_at_1=0.1, coverage_at_10=0.4)
    assert not Run(tmp_path, Guard(drop=0.1, stops=True)).evaluate(0, loss=1.0)
    assert not warnings.records


def test_the_picture_has_a_panel_for_what_there_is(tmp_path):
    history = [
        {"step": step, "reward": 0.1 * step, "rewards/exact_hit/mean": 0.2, "frac_reward_zero_std": 0.5, "kl": 0.01}
        for step in range(4)
    ]
    plot_grpo(history, tmp_path / "few.png")
    few = imread(tmp_path / "few.png")
    validation = {f"eval_{name}": 0.3 for name in ("recall@1", "recall@50", "ndcg@10", "coverage@10", "head@10")}
    plot_grpo([*history, {"step": 4, **validation}], tmp_path / "more.png")
    more = imread(tmp_path / "more.png")
    assert more.shape[0] == 2 * few.shape[0] and more.shape[1] > few.shape[1]  # three panels; six in two rows of four
