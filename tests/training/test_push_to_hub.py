"""Runs that push to a Hub, which a folder stands for: what they leave, here and there, is the merged model alone."""

import pytest
import torch
from small_runs import base_folder, make_trainer, settings
from transformers import AutoModelForCausalLM
from trl import ModelConfig

from llmrec.training import save_final_model
from llmrec.training.loading import reload_base

LORA = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0, "lora_target_modules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize("bits", [{}, {"load_in_8bit": True}])
def test_the_hub_gets_the_merged_model_and_nothing_of_the_run(tmp_path, hub, bits):
    if bits:
        pytest.importorskip("bitsandbytes")
    base, out = base_folder(tmp_path / "base"), tmp_path / "out"
    model_args = ModelConfig(model_name_or_path=str(base), **LORA, **bits)
    pushes = {"push_to_hub": True, "hub_model_id": "shop/model", "save_strategy": "steps", "save_steps": 1}
    left = hub.at("shop/model")  # of a version that pushed checkpoints
    (left / "runs").mkdir(parents=True)
    for name in ("stage.json", "training_args.bin", "adapter_model.safetensors", "runs/events", ".gitattributes"):
        (left / name).write_text("old")
    trainer = make_trainer(base, settings(out, **pushes), model_args)
    trainer.train()
    save_final_model(trainer, lambda: reload_base(str(base), model_args))
    assert not hub.commits and not list(out.glob("adapter*"))
    (out / "stage.json").write_text('{"settings": {}, "complete": false}')
    (out / "llmrec_config.json").write_bytes((base / "llmrec_config.json").read_bytes())
    (out / "semids.parquet").write_bytes((base / "semids.parquet").read_bytes())
    trainer.push_to_hub()
    assert [commit.message for commit in hub.commits] == ["End of training"]
    assert hub.commits[0].removed == {"stage.json", "training_args.bin", "adapter_model.safetensors", "runs/events"}
    files = hub.files("shop/model")
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "semids.parquet"} <= files
    assert not any("/" in name or name.endswith(".bin") for name in files) and "stage.json" not in files
    ids = torch.tensor([trainer.train_dataset[0]["input_ids"]])
    with torch.no_grad():
        merged = trainer.model.eval()(ids).logits
        for folder in (out, hub.at("shop/model")):
            final = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
            torch.testing.assert_close(final(ids).logits, merged.float(), atol=1e-5, rtol=1e-5)


def test_checkpoints_are_not_for_the_hub(tmp_path, hub):
    arguments = settings(tmp_path / "out", push_to_hub=True, hub_strategy="all_checkpoints")
    with pytest.raises(ValueError, match="^hub_strategy: all_checkpoints uploads the optimizer"):
        make_trainer(base_folder(tmp_path / "base"), arguments)


def test_a_run_that_is_not_to_push_uploads_nothing(tmp_path, hub):
    trainer = make_trainer(base_folder(tmp_path / "base"), settings(tmp_path / "out", max_steps=1))
    trainer.train()
    save_final_model(trainer, lambda: None)
    assert not hub.commits
