"""A loss, a gradient or weights that are not finite stop a run at that step, and nothing is written as finished."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import DATA, INDEX, base_folder, make_trainer, settings
from tiny import tiny_data
from transformers import AutoModelForCausalLM
from trl import ModelConfig

from llmrec.features.parts.collaborative import item2vec_embeddings
from llmrec.files import save_state
from llmrec.item_tokenizers import make_item_tokenizer
from llmrec.recommenders.sasrec import SASRec, SASRecConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_folder(tmp_path_factory.mktemp("not_finite") / "base")


@pytest.mark.parametrize(
    "changes", [{}, {"max_grad_norm": 0}, {"gradient_accumulation_steps": 2}, {"logging_steps": 100}], ids=str
)
def test_a_step_that_is_not_finite_is_not_taken(base, tmp_path, changes):
    """The first step drives the weights out of range, so the second has no loss: it is named, with what to try."""
    trainer = make_trainer(base, settings(tmp_path, learning_rate=1e38, max_steps=3, **changes))
    with pytest.raises(FloatingPointError, match=r"^step 2: loss nan.*learning_rate \(it is 1e\+38\)"):
        trainer.train()
    assert trainer.state.global_step == 1 and all(log.get("loss") != 0 for log in trainer.state.log_history)


def test_a_gradient_alone_is_enough(base, tmp_path):
    trainer = make_trainer(base, settings(tmp_path, max_steps=3))
    head = trainer.model.get_input_embeddings().weight
    head.register_hook(lambda gradient: gradient * torch.inf if trainer.state.global_step == 1 else gradient)
    with pytest.raises(FloatingPointError, match="^step 2: loss [0-9.]*, norm of the gradient (nan|inf): not finite"):
        trainer.train()
    assert all(weight.isfinite().all() for weight in trainer.model.parameters())


def test_weights_that_are_not_finite_are_never_saved(base, tmp_path):
    arguments = settings(tmp_path, learning_rate=1e38, max_steps=3, save_strategy="steps", save_steps=1)
    with pytest.raises(FloatingPointError, match="^weights after step 1: "):
        make_trainer(base, arguments).train()
    assert not list(tmp_path.glob("checkpoint-*"))
    trainer = make_trainer(base, settings(tmp_path, learning_rate=1e38, max_steps=1))
    trainer.train()
    with pytest.raises(FloatingPointError, match="^weights after step 1: "):
        trainer.save_model()
    with pytest.raises(FloatingPointError, match="^evaluation after step 1: loss nan"):
        trainer.evaluate()


def test_a_base_with_weights_that_are_not_finite_is_refused_before_it_is_trained(base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = torch.inf
    shutil.copytree(base, tmp_path / "broken")
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(ValueError, match=r"broken: model.layers.1.mlp.up_proj.weight holds NaN or inf"):
        make_trainer(tmp_path / "broken", settings(tmp_path))


@pytest.mark.parametrize("adapter", [False, True])
def test_training_in_float16_is_refused_by_name(base, tmp_path, adapter):
    lora = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"]} if adapter else {}
    model_args = ModelConfig(model_name_or_path=str(base), dtype="float16", **lora)
    if adapter:  # PEFT trains in float32 beside weights of float16
        make_trainer(base, settings(tmp_path), model_args)
    else:
        with pytest.raises(ValueError, match="would be trained in float16.*set dtype: float32"):
            make_trainer(base, settings(tmp_path), model_args)


@pytest.mark.parametrize("recipe", ["sft", "dpo", "grpo"])
def test_a_recipe_that_diverged_leaves_nothing_finished(base, tmp_path, monkeypatch, recipe):
    """Without evaluation and without validation rows, where nothing else would say so; nor does it go on."""
    data = tiny_data()
    data.valid = data.valid.slice(0, 0)
    data.save(tmp_path / "data")
    size = {"num_generations": 4, "per_device_eval_batch_size": 4} if recipe == "grpo" else {}
    flags = {
        "model_name_or_path": base,
        "data_dir": tmp_path / "data",
        "output_dir": tmp_path / "out",
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e38,
        "max_grad_norm": 0,
        "eval_strategy": "no",
        "save_steps": 2,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        **size,
    }
    parts = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *parts])
    for _ in range(2):
        with pytest.raises((FloatingPointError, ValueError), match="^step 2: |logits are not numbers"):
            runpy.run_path(str(ROOT / "recipes" / f"{recipe}.py"), run_name="__main__")
        assert not json.loads((tmp_path / "out" / "stage.json").read_text())["complete"]
        assert not list((tmp_path / "out").glob("*.safetensors")) and not list((tmp_path / "out").glob("checkpoint-*"))


# What is trained without TRL


def test_a_sasrec_that_diverged_is_not_kept(tmp_path):
    with pytest.raises(FloatingPointError, match="^SASRec: the loss is nan"):
        SASRec.fit(DATA, SASRecConfig(learning_rate=1e38, max_epochs=3, hidden_size=8))
    last = SASRec.fit(DATA, SASRecConfig(learning_rate=1e38, max_epochs=1, hidden_size=8, batch_size=64))
    with pytest.raises(FloatingPointError, match="items.weight holds NaN or inf"):
        last.save_pretrained(tmp_path / "sasrec")
    assert not (tmp_path / "sasrec").exists()


def test_item_vectors_that_diverged_are_not_kept():
    with pytest.raises(FloatingPointError, match="^item2vec: the loss is"):
        item2vec_embeddings(INDEX.items, DATA.train, dim=4, epochs=20, learning_rate=1e38)


LEARNED = {
    "rq_vae": {"epochs": 3, "batch_size": 8, "learning_rate": 1e30},
    "rvq": {"steps": 30, "learning_rate": 1e30},
    "mbgen": {"epochs": 3, "batch_size": 8, "learning_rate": 1e30},
}


@pytest.mark.parametrize("name", LEARNED)
def test_item_tokenizers_that_diverged_are_not_kept(name):
    features = np.random.default_rng(0).normal(size=(24, 16)).astype(np.float32)
    tokenizer = make_item_tokenizer(name, {"codebook_sizes": [4, 4, 8], **LEARNED[name]}, "keep")
    with pytest.raises(FloatingPointError, match="the loss is"):
        tokenizer.fit(features, DATA.items, DATA.train, seed=0)


def test_arrays_that_are_not_finite_are_not_written(tmp_path):
    with pytest.raises(FloatingPointError, match="book holds NaN or inf"):
        save_state(tmp_path / "folder", {}, {"whole": np.arange(3), "book": np.array([1.0, np.nan])})
    assert not (tmp_path / "folder").exists()
