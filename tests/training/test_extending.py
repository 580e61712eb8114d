"""A finished run that is made longer goes on from its last step; one that is made shorter is refused."""

import json
import re
from pathlib import Path

import pytest
import torch
from tiny import tiny_data, tiny_index, write_tiny_base
from trl import ModelConfig, SFTConfig

import recipes.grpo
import recipes.sft
from llmrec.models.weights import load_model
from llmrec.rl import GRPOArguments, PolicyArguments
from llmrec.training import SFTArguments

SHARED = {
    "per_device_train_batch_size": 8, "learning_rate": 1e-3, "use_cpu": True, "bf16": False, "logging_steps": 1,
    "gradient_checkpointing": False, "report_to": "none", "disable_tqdm": True, "lr_scheduler_type": "constant",
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder, data = tmp_path_factory.mktemp("extend"), tiny_data()
    data.save(folder / "data")
    write_tiny_base(folder / "base", data, tiny_index(data))
    return folder


def sft(base: Path, name: str, **changes) -> Path:
    arguments = SFTConfig(str(base / name), max_length=128, **(SHARED | {"save_strategy": "epoch"} | changes))
    data = recipes.sft.DataArguments(str(base / "data"), validation_rows=10, num_beams=8)
    recipes.sft.main(data, SFTArguments(hidden_dropout=0.1), arguments, ModelConfig(str(base / "base")))
    return base / name


def grpo(base: Path, name: str, **changes) -> Path:
    fields = SHARED | {"num_generations": 4, "save_strategy": "steps", "save_steps": 1} | changes
    arguments = GRPOArguments(str(base / name), **fields)
    data = recipes.grpo.DataArguments(str(base / "data"), validation_rows=10)
    recipes.grpo.main(data, PolicyArguments(rollout="sample"), arguments, ModelConfig(str(base / "base")))
    return base / name


def log(folder: Path, name: str) -> dict[int, float]:
    state = json.loads((folder / "trainer_state.json").read_text())
    return {one["step"]: one[name] for one in state["log_history"] if name in one}


@pytest.mark.parametrize(
    "train, length, short, long, cut",
    [
        (sft, "num_train_epochs", 1, 3, 2),  # of 5 steps
        (sft, "max_steps", 3, 7, 6),
        (grpo, "max_steps", 2, 4, 3),
    ],
)
def test_an_extended_run_is_the_longer_one(base, capsys, train, length, short, long, cut):
    name = f"{train.__name__}-{length}"
    whole = train(base, f"{name}-whole", **{length: long})
    folder = train(base, name, **{length: short})
    before = json.loads((folder / "stage.json").read_text())
    capsys.readouterr()
    assert train(base, name, **{length: long}) == folder
    said = capsys.readouterr().out
    steps = max(log(whole, "loss"))
    done = int(re.search(r"Resuming from \S+checkpoint-(\d+)", said)[1])
    assert 0 < done < steps and f"{steps} steps with batches of " in said and f", {done} of them done" in said
    assert "The run is extended: from there the learning rate follows the longer schedule (constant)" in said
    assert log(folder, "loss") == log(whole, "loss") and len(log(folder, "loss")) == steps
    weights = [load_model(each).state_dict() for each in (folder, whole)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    after = json.loads((folder / "stage.json").read_text())
    assert before["complete"] and after["complete"] and after["settings"][length] == long
    with pytest.raises(
        ValueError, match=rf"holds a run of {length} {long}[.0]*: it can be extended, not cut to {cut}"
    ):
        train(base, name, **{length: cut})
    assert json.loads((folder / "stage.json").read_text()) == after
    train(base, name, **{length: long})
    assert "Reusing the model" in capsys.readouterr().out


def test_the_learning_rate_goes_on_where_the_longer_schedule_is(base):
    cosine = {"lr_scheduler_type": "cosine", "save_strategy": "steps", "save_steps": 1}
    whole = sft(base, "cosine-whole", max_steps=6, **cosine)
    sft(base, "cosine", max_steps=3, **cosine)
    rates, wanted = log(sft(base, "cosine", max_steps=6, **cosine), "learning_rate"), log(whole, "learning_rate")
    assert {step: rates[step] for step in (5, 6)} == {step: wanted[step] for step in (5, 6)}
    assert rates[3] < wanted[3] and rates[4] == 0 < rates[5]  # the shorter schedule had come down to 0


@pytest.mark.parametrize(
    "saves, why",
    [({"save_strategy": "no"}, "no checkpoint"), ({"save_only_model": True}, r"\S+, without the optimizer's state,")],
)
def test_what_has_no_state_to_go_on_from_is_refused_and_stays(base, saves, why):
    name = f"stateless-{len(why)}"
    folder = sft(base, name, max_steps=1, **({"save_strategy": "steps", "save_steps": 1} | saves))
    before = (folder / "stage.json").read_bytes()
    with pytest.raises(ValueError, match=f"holds a run of max_steps 1 and {why} to extend it from"):
        sft(base, name, max_steps=2, **({"save_strategy": "steps", "save_steps": 1} | saves))
    assert (folder / "stage.json").read_bytes() == before


def test_other_settings_are_no_extension(base):
    sft(base, "other", max_steps=1)
    for changes in ({"max_steps": 2, "weight_decay": 0.1}, {"num_train_epochs": 9}, {"max_steps": -1}):
        with pytest.raises(ValueError, match="holds a run with other settings"):
            sft(base, "other", **({"max_steps": 1} | changes))
