"""Settings that contradict each other are refused before anything is loaded; early stopping stops; the plot."""

import subprocess
import sys

import pytest
from small_runs import base_folder, make_trainer, settings
from trl import ModelConfig

from llmrec.training import StageArguments, callbacks, check_stage, plot_training

LORA = {"use_peft": True}
BEST = {"metric_for_best_model": "eval_ndcg@10", "load_best_model_at_end": True}
BEST |= {"eval_strategy": "epoch", "save_strategy": "epoch"}


@pytest.mark.parametrize(
    ("stage", "training", "model", "message"),
    [
        ({"train": "embeddings"}, {}, {}, "train: 'embeddings' is not one of all, new_tokens"),
        ({"train": "new_tokens"}, {}, LORA, "leave use_peft out"),
        ({"early_stopping_patience": 2}, {}, {}, "needs load_best_model_at_end"),
        ({}, {"max_length": None}, {}, "max_length is empty"),
        ({}, {"packing": True, "packing_strategy": "wrapped"}, {}, "only bfd"),
        ({}, {"use_liger_kernel": True}, {}, "do nothing on a CPU"),
        ({}, {"model_init_kwargs": {"use_kernels": True}}, {}, "do nothing on a CPU"),
        ({}, {}, {"load_in_8bit": True}, "set use_peft: true"),
        ({}, {"eval_strategy": "steps", "eval_steps": 1}, {**LORA, "load_in_4bit": True}, 'set eval_strategy: "no"'),
    ],
)
def test_contradictions_are_refused(tmp_path, stage, training, model, message):
    with pytest.raises(ValueError, match=message):
        check_stage(StageArguments(**stage), settings(tmp_path, **training), ModelConfig(**model))


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "DeepSpeed ZeRO-3"),
    ],
)
def test_ranking_metrics_of_a_sharded_model_are_refused(tmp_path, monkeypatch, environment, name):
    arguments, plain = settings(tmp_path, **BEST), settings(tmp_path)
    check_stage(StageArguments(early_stopping_patience=2), arguments, ModelConfig())
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ValueError, match=f"cannot be measured while training under {name}"):
        check_stage(StageArguments(), arguments, ModelConfig())
    with pytest.raises(ValueError, match=f"load_in_8bit under {name}"):
        check_stage(StageArguments(), plain, ModelConfig(**LORA, load_in_8bit=True))


def test_without_bitsandbytes_the_extra_is_named(tmp_path):
    """In a process of its own, whose import system finds no bitsandbytes."""
    program = (
        "import sys; sys.path[:0] = ['tests', 'tests/training']; sys.modules['bitsandbytes'] = None\n"
        "from small_runs import settings\n"
        "from trl import ModelConfig\n"
        "from llmrec.training import StageArguments, check_stage\n"
        f"check_stage(StageArguments(), settings({str(tmp_path)!r}), ModelConfig(use_peft=True, load_in_4bit=True))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert "needs the package bitsandbytes: pip install 'llmrec[gpu]'" in result.stderr


def test_early_stopping_ends_a_run_that_gets_worse(tmp_path):
    base = base_folder(tmp_path / "base")
    arguments = settings(
        tmp_path / "out",
        max_steps=12,
        learning_rate=3.0,  # every evaluation is worse than the first
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    stage = StageArguments(early_stopping_patience=2)
    check_stage(stage, arguments, ModelConfig())
    trainer = make_trainer(base, arguments, callbacks=callbacks(stage))
    trainer.train()
    assert trainer.state.global_step < 12
    plot_training(trainer.state.log_history, tmp_path / "training.png")
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
    plot_training([{"step": 1, "epoch": 1.0}], tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()
