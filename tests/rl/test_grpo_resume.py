"""Runs that go on: the order of rows, iterations and a moving reference are those of a run that was not stopped."""

from pathlib import Path

import pytest
import torch
from grpo_runs import DATA, base_folder, loaded, make_trainer, settings

from llmrec.rl import PolicyArguments, prompt_rows


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_folder(tmp_path_factory.mktemp("resume") / "base")


@pytest.fixture(scope="module")
def few(base):
    """10 rows, which are 5 steps of two prompts."""
    return prompt_rows(DATA, loaded(base)).select(range(10))


# 3 rollouts of 3 batches an epoch, in 5 steps of 2 batches, of which the last has one
UNEVEN = {"per_device_train_batch_size": 4, "steps_per_generation": 3, "gradient_accumulation_steps": 2}


def curve(trainer, name: str) -> dict[int, float]:
    return {log["step"]: log[name] for log in trainer.state.log_history if name in log}


@pytest.mark.parametrize(
    ("changes", "stopped"),
    [
        ({}, 3),
        ({}, 7),
        ({"num_iterations": 2, "save_steps": 2}, 4),
        ({"num_iterations": 2, "save_steps": 2, "max_steps": 16}, 12),  # an epoch has 10 steps
        (
            {"num_iterations": 2, "save_steps": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
            6,
        ),
        ({"save_strategy": "epoch", **UNEVEN}, 5),
        ({"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 2}, 5),
    ],
    ids=[
        "first epoch",
        "second epoch",
        "iterations",
        "iterations, second epoch",
        "accumulated",
        "uneven epochs",
        "moving reference",
    ],
)
def test_a_resumed_run_equals_one_that_was_not_stopped(base, few, tmp_path, changes, stopped):
    def run(resume: Path | None = None):
        fields = {"max_steps": 12, "save_strategy": "steps", "save_steps": 1, **changes}
        policy = PolicyArguments(rollout="sample")
        trainer = make_trainer(base, settings(tmp_path, **fields), policy, train_dataset=few)
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        return trainer

    whole = run()
    assert (tmp_path / f"checkpoint-{stopped}" / "reference.safetensors").exists() == ("sync_ref_model" in changes)
    resumed = run(tmp_path / f"checkpoint-{stopped}")
    assert 0 < resumed._step < whole._step  # it went on, and did not begin anew
    for name in ("reward", "grad_norm", "rollout/mass", *(["kl"] if "beta" in changes else [])):
        one, other = curve(whole, name), curve(resumed, name)
        assert one == other and len({value for step, value in one.items() if step > stopped}) > 1, name
    weights = [dict(trainer.model.named_parameters()) for trainer in (whole, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_every_epoch_has_its_own_order(base, few, tmp_path):
    trainer = make_trainer(base, settings(tmp_path, max_steps=10), train_dataset=few)
    seen, add = [], trainer._add_members
    trainer._add_members = lambda inputs, *args: (
        seen.append([row["row"] for row in inputs[::4]]),
        add(inputs, *args),
    )
    trainer.train()
    first, second = sum(seen[:5], []), sum(seen[5:], [])
    assert sorted(first) == sorted(second) == list(range(10)) and first != second


BETWEEN = [
    (
        {"num_iterations": 2, "save_strategy": "steps", "save_steps": 3},
        "save_steps: 3 means .* after step 3, .* of 2,",
    ),
    ({"num_iterations": 2, "save_strategy": "steps", "save_steps": 0.25}, "save_steps: 0.25 .* step 3, .* of 2,"),
    (
        {"num_iterations": 2, "save_strategy": "steps", "save_steps": 0.1, "max_steps": -1, "num_train_epochs": 3},
        "save_steps: 0.1 means a checkpoint after step 3,",
    ),
    (
        {**UNEVEN, "save_strategy": "steps", "save_steps": 3},
        "save_steps: 3 .* after step 6, .* set save_strategy: epoch",
    ),
    (
        {"num_iterations": 2, "save_strategy": "best", "eval_strategy": "steps", "eval_steps": 3},
        "eval_steps: 3 means a checkpoint after step 3,",
    ),
]


@pytest.mark.parametrize(("changes", "said"), BETWEEN, ids=str)
def test_checkpoints_between_iterations_are_refused(base, few, tmp_path, changes, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        make_trainer(base, settings(tmp_path, **{"max_steps": 12, **changes}), train_dataset=few)


@pytest.mark.parametrize("changes", [{"save_steps": 0.5}, {"save_steps": 0}, {"save_strategy": "epoch"}], ids=str)
def test_checkpoints_between_rollouts_are_not(base, few, tmp_path, changes):
    fields = {"num_iterations": 2, "max_steps": 12, "save_strategy": "steps", **changes}
    make_trainer(base, settings(tmp_path, **fields), train_dataset=few)


def test_fewer_rows_than_a_step_asks_for_are_refused(base, few, tmp_path):
    with pytest.raises(ValueError, match="^per_device_train_batch_size: a step rolls out for 16 prompts, .* 10 rows"):
        make_trainer(base, settings(tmp_path, per_device_train_batch_size=64), train_dataset=few)
