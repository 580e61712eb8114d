"""Settings that contradict each other are refused before anything is loaded; early stopping stops; the plot."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from small_runs import DATA, base_folder, make_trainer, settings
from transformers.integrations import deepspeed
from trl import ModelConfig

from llmrec.recommenders import LLMRecommender
from llmrec.training import SFTArguments, TrainingRun, ValidationSample, callbacks, check_sft, plot_training

LORA, CATALOGUE = {"use_peft": True}, {"log_probs": "catalogue"}
BEST = {"metric_for_best_model": "eval_ndcg@10", "load_best_model_at_end": True}
BEST |= {"eval_strategy": "epoch", "save_strategy": "epoch"}


@pytest.mark.parametrize(
    ("stage", "training", "model", "message"),
    [
        ({"train": "embeddings"}, {}, {}, "train: 'embeddings' is not one of all, new_tokens"),
        ({"train": "new_tokens"}, {}, LORA, "leave use_peft out"),
        ({"early_stopping_patience": 2}, {}, {}, "needs load_best_model_at_end"),
        ({"sampled_softmax": 9}, {}, {}, "needs log_probs: catalogue"),
        ({"sampled_softmax": 9, **CATALOGUE}, {"label_smoothing_factor": 0.1}, {}, "neither label_smoothing_factor"),
        ({"sampled_softmax": 9, **CATALOGUE, "soft_targets_from": "bsarec"}, {}, {}, "nor soft_targets_from"),
        ({"sampled_softmax": -1}, {}, {}, "sampled_softmax is -1"),
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
        check_sft(SFTArguments(**stage), settings(tmp_path, **training), ModelConfig(**model))


@pytest.mark.parametrize("fields", [{"max_steps": 0}, {"num_train_epochs": 0, "max_steps": -1}])
def test_a_run_of_no_steps_is_refused(tmp_path, fields):
    with pytest.raises(ValueError, match="^num_train_epochs is .* and max_steps .* trains nothing"):
        TrainingRun(None, settings(tmp_path, **fields), ModelConfig())


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "DeepSpeed ZeRO-3"),
    ],
)
def test_a_quantised_model_that_is_sharded_is_refused(tmp_path, monkeypatch, environment, name):
    plain, best = settings(tmp_path), settings(tmp_path, **BEST)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    check_sft(SFTArguments(early_stopping_patience=2), best, ModelConfig())
    with pytest.raises(ValueError, match=f"load_in_8bit under {name}"):
        check_sft(SFTArguments(), plain, ModelConfig(**LORA, load_in_8bit=True))


@pytest.mark.parametrize(("stage", "model"), [({"train": "new_tokens"}, {}), ({}, LORA)])
def test_adapters_under_zero_3_are_refused(tmp_path, monkeypatch, stage, model):
    stage, arguments, model_args = SFTArguments(**stage), settings(tmp_path), ModelConfig(**model)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    check_sft(stage, arguments, model_args)
    with monkeypatch.context() as patch:
        patch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
        with pytest.raises(ValueError, match="use_peft: true and train: new_tokens .* DeepSpeed ZeRO-3"):
            check_sft(stage, arguments, model_args)
        check_sft(SFTArguments(), arguments, ModelConfig())
    # A stage that only DeepSpeed's own configuration file names; transformers keeps a weak reference to it.
    configuration = SimpleNamespace(is_zero3=lambda: True)
    monkeypatch.setattr(deepspeed, "_hf_deepspeed_config_weak_ref", lambda: configuration)
    with pytest.raises(ValueError, match="use_peft: true and train: new_tokens .* DeepSpeed ZeRO-3"):
        check_sft(stage, arguments, model_args)


def test_without_bitsandbytes_the_extra_is_named(tmp_path):
    """In a process of its own, whose import system finds no bitsandbytes."""
    program = (
        "import sys; sys.path[:0] = ['tests', 'tests/training']; sys.modules['bitsandbytes'] = None\n"
        "from small_runs import settings\n"
        "from trl import ModelConfig\n"
        "from llmrec.training import SFTArguments, check_sft\n"
        f"check_sft(SFTArguments(), settings({str(tmp_path)!r}), ModelConfig(use_peft=True, load_in_4bit=True))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert "needs the package bitsandbytes: pip install 'llmrec[gpu]'" in result.stderr


def never_better(folder, patience: int, metric: str, **changes):
    """A trainer that learns nothing, so that no evaluation is better than the first."""
    base = base_folder(folder / "base")
    arguments = settings(
        folder,
        learning_rate=0.0,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        **changes,
    )
    stage = SFTArguments(early_stopping_patience=patience)
    check_sft(stage, arguments, ModelConfig())
    sample = ValidationSample(LLMRecommender.from_pretrained(base), DATA.valid, 5)
    return make_trainer(base, arguments, callbacks=callbacks(stage, arguments), sample=sample)


METRICS = pytest.mark.parametrize("metric", ["eval_loss", "eval_ndcg@10", "ndcg@10"])


@METRICS
def test_early_stopping_ends_a_run_that_gets_no_better(tmp_path, metric):
    trainer = never_better(tmp_path / "out", 2, metric, max_steps=12)
    trainer.train()
    assert trainer.state.global_step == 3
    plot_training(trainer.state.log_history, tmp_path / "training.png")
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
    plot_training([{"step": 1, "epoch": 1.0}], tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()


@METRICS
def test_a_resumed_run_goes_on_with_the_count_of_early_stopping(tmp_path, metric):
    """Evaluations 2 and 3 are no better, and the run is cut; the fourth uses up a patience of 3."""
    folder = tmp_path / "out"
    never_better(folder, 3, metric, max_steps=3).train()
    resumed = never_better(folder, 3, metric, max_steps=12)
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    assert resumed.state.global_step == 4
