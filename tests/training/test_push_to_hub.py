"""Runs that push to a Hub, which a folder stands for: what they leave, here and there, is the merged model alone."""

import shutil
from concurrent.futures import Future
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi
from small_runs import base_folder, make_trainer, settings
from transformers import AutoModelForCausalLM
from trl import ModelConfig

from llmrec.training import save_final_model
from llmrec.training.loading import reload_base
from llmrec.training.lora import push_final_model

LORA = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0, "lora_target_modules": ["q_proj", "v_proj"]}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The folder, and in `.commits` what it held after each upload."""
    folder = tmp_path / "hub"
    folder.mkdir()
    commits = []

    def upload_folder(self, *, repo_id, folder_path, ignore_patterns, delete_patterns="", **kwargs):
        assert repo_id == "shop/model"
        for file in folder.iterdir():
            if fnmatch(file.name, delete_patterns):
                file.unlink()
        for file in Path(folder_path).rglob("*"):
            name = str(file.relative_to(folder_path))
            if file.is_file() and not any(fnmatch(name, pattern) for pattern in ignore_patterns):
                (folder / name).parent.mkdir(exist_ok=True)
                shutil.copy(file, folder / name)
        commits.append({str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()})
        done = Future()
        done.set_result(None)
        return done

    monkeypatch.setattr(HfApi, "create_repo", lambda *args, **kwargs: SimpleNamespace(repo_id="shop/model"))
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return SimpleNamespace(folder=folder, commits=commits)


@pytest.mark.parametrize("bits", [{}, {"load_in_8bit": True}])
def test_no_adapter_is_left_beside_the_merged_model(tmp_path, hub, bits):
    if bits:
        pytest.importorskip("bitsandbytes")
    base, out = base_folder(tmp_path / "base"), tmp_path / "out"
    model_args = ModelConfig(model_name_or_path=str(base), **LORA, **bits)
    trainer = make_trainer(base, settings(out, push_to_hub=True, save_strategy="steps", save_steps=1), model_args)
    trainer.train()
    adapter = {"adapter_config.json", "adapter_model.safetensors"}
    assert all((out / name).exists() for name in adapter) and len(hub.commits) == 3  # transformers pushed checkpoints
    save_final_model(trainer, lambda: reload_base(str(base), model_args))
    assert not any((out / name).exists() for name in adapter) and len(hub.commits) == 3
    (out / "README.md").write_text("the card")
    push_final_model(trainer)
    assert len(hub.commits) == 4 and not adapter & hub.commits[-1]
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= hub.commits[-1]
    assert not any("/" in name for name in hub.commits[-1])  # neither checkpoints nor the adapter's folder
    ids = torch.tensor([trainer.train_dataset[0]["input_ids"]])
    with torch.no_grad():
        merged = trainer.model.eval()(ids).logits
        for folder in (out, hub.folder):
            final = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
            torch.testing.assert_close(final(ids).logits, merged.float(), atol=1e-5, rtol=1e-5)


def test_a_run_that_is_not_to_push_uploads_nothing(tmp_path, hub):
    trainer = make_trainer(base_folder(tmp_path / "base"), settings(tmp_path / "out", max_steps=1))
    trainer.train()
    save_final_model(trainer, lambda: None)
    push_final_model(trainer)
    assert not hub.commits
