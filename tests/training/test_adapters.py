"""Adapters through the real trainer: warm-up to the bit, checkpoints, the merge, quantised bases."""

from copy import deepcopy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from small_runs import INDEX, base_folder, make_trainer, settings
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig

from llmrec.catalogue.semids import SemIDIndex
from llmrec.training import lora_config, merged_weights, save_final_model
from llmrec.training.loading import reload_base
from llmrec.training.lora import merged

LORA = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0, "lora_target_modules": ["q_proj", "v_proj"]}


def is_tied(model) -> bool:
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


@pytest.mark.parametrize("tied", [True, False])
def test_warm_up_changes_the_new_rows_and_nothing_else_to_the_bit(tmp_path, tied):
    base = base_folder(tmp_path / "base", tied)
    # A strong weight decay would move every row that the optimizer holds.
    trainer = make_trainer(base, settings(tmp_path / "out", weight_decay=0.5), train="new_tokens")
    trainer.train()
    save_final_model(trainer, lambda: None)
    before = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="float32")
    assert is_tied(after) == tied and not (tmp_path / "out" / "adapter_config.json").exists()
    new = torch.zeros(before.get_input_embeddings().weight.shape[0], dtype=torch.bool)
    new[AutoTokenizer.from_pretrained(base).convert_tokens_to_ids(INDEX.tokens)] = True
    old, learned = dict(before.named_parameters()), dict(after.named_parameters())
    assert old.keys() == learned.keys()
    for name in old:
        if "embed_tokens" in name or "lm_head" in name:
            changed = (old[name] != learned[name]).any(1)
            assert not changed[~new].any() and changed[new].sum() > 10, name
        else:
            assert torch.equal(old[name], learned[name]), name


def test_warm_up_without_new_tokens_is_refused(tmp_path):
    base = base_folder(tmp_path / "base")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    words = [[" red", " green"], [" blue", " gadget"]]
    index = SemIDIndex(["x", "y"], [[0, 0], [1, 1]], [2, 2], level_tokens=words, adds_tokens=False)
    with pytest.raises(ValueError, match="words that the model knows"):
        lora_config(ModelConfig(), model, tokenizer, index, "new_tokens")


@pytest.mark.parametrize("tied", [True, False])
def test_checkpoint_reload_and_merge_give_equal_logits(tmp_path, tied):
    base = base_folder(tmp_path / "base", tied)
    arguments = settings(tmp_path / "out", save_strategy="steps", save_steps=1)
    trainer = make_trainer(base, arguments, ModelConfig(model_name_or_path=str(base), **LORA))
    trainer.train()
    for step in (1, 2, 3):
        assert (tmp_path / "out" / f"checkpoint-{step}" / "adapter_model.safetensors").exists()
    ids = torch.tensor([trainer.train_dataset[0]["input_ids"]])
    with torch.no_grad():
        trained = trainer.model.eval()(ids).logits
        loaded = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
        reloaded = PeftModel.from_pretrained(loaded, tmp_path / "out" / "checkpoint-3").eval()
        torch.testing.assert_close(reloaded(ids).logits, trained, atol=1e-5, rtol=1e-5)
        plain = merged(reloaded)
        torch.testing.assert_close(plain(ids).logits, trained, atol=1e-5, rtol=1e-5)
        assert is_tied(plain) == tied
        save_final_model(trainer, lambda: None)
        final = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="float32")
        torch.testing.assert_close(final(ids).logits, trained, atol=1e-5, rtol=1e-5)
        assert is_tied(final) == tied
        assert (final(ids).logits - AutoModelForCausalLM.from_pretrained(base)(ids).logits).abs().max() > 1e-2


WEIGHTS = {
    "whole": {},
    "all linear": {**LORA, "lora_target_modules": ["all-linear"]},
    "DoRA": {**LORA, "use_dora": True},
    "new tokens": "new_tokens",
}


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("tied", [True, False])
def test_merged_weights_are_those_of_the_merge_to_the_bit_and_leave_the_model_as_it_is(tmp_path, tied, kind):
    base = base_folder(tmp_path / "base", tied)
    asked = WEIGHTS[kind]
    more = {"train": asked} if isinstance(asked, str) else {"model_args": ModelConfig(str(base), **asked)}
    trainer = make_trainer(base, settings(tmp_path / "out"), **more)
    trainer.train()
    before = {name: one.clone() for name, one in trainer.model.state_dict().items()}
    found = dict(merged_weights(trainer.model))
    assert all(torch.equal(before[name], one) for name, one in trainer.model.state_dict().items())
    wanted = merged(deepcopy(trainer.model)).state_dict()
    assert found.keys() == wanted.keys() and "lm_head.weight" in found
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    untrained = AutoModelForCausalLM.from_pretrained(base, dtype="float32").state_dict()
    assert not torch.equal(found["lm_head.weight"], untrained["lm_head.weight"])
    assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"]) == tied


def test_an_adapter_that_unties_the_head_has_no_merged_weights(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base_folder(tmp_path / "base"))
    model = get_peft_model(model, LoraConfig(target_modules=["lm_head"], init_lora_weights=False))
    with pytest.raises(ValueError, match="^lm_head: its adapter unties the head from the embedding: leave both out"):
        dict(merged_weights(model))


class Engine(torch.nn.Module):
    """As DeepSpeed's does, it names parameters as the model that it wraps does, also once that has been merged."""

    config: dict = {}

    def __init__(self, module):
        super().__init__()
        self.module = module

    def state_dict(self):
        return self.module.state_dict()

    def save_checkpoint(self, save_dir): ...


@pytest.mark.parametrize("train", ["all", "new_tokens"])
def test_a_model_that_deepspeed_wraps_is_merged_from_its_adapter_on_disk(tmp_path, train):
    """ZeRO-2 emulated: the trainer saves what its engine holds."""
    base = base_folder(tmp_path / "base")
    model_args = ModelConfig(model_name_or_path=str(base), **(LORA if train == "all" else {}))
    trainer = make_trainer(base, settings(tmp_path / "out"), model_args, train)
    trainer.train()
    ids = torch.tensor([trainer.train_dataset[0]["input_ids"]])
    with torch.no_grad():
        trained = trainer.model.eval()(ids).logits
    trainer.deepspeed = trainer.model_wrapped = Engine(trainer.model)
    trainer.is_deepspeed_enabled = True
    save_final_model(trainer, lambda: reload_base(str(base), model_args))
    final = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="float32")
    with torch.no_grad():
        torch.testing.assert_close(final(ids).logits, trained, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("bits", "tolerance"), [("load_in_8bit", 0.02), ("load_in_4bit", 0.15)])
def test_qlora_merges_onto_the_unquantised_base(tmp_path, bits, tolerance):
    """What is left is the rounding of the quantised base: measured 0.4 % (8 bits) and 5 % (4 bits) of the spread."""
    pytest.importorskip("bitsandbytes")
    base = base_folder(tmp_path / "base")
    model_args = ModelConfig(model_name_or_path=str(base), **LORA, **{bits: True})
    trainer = make_trainer(base, settings(tmp_path / "out"), model_args)
    deltas = [p for name, p in trainer.model.named_parameters() if "trainable_tokens_delta" in name]
    assert deltas and all(p.dtype == torch.float32 for p in deltas)
    trainer.train()
    ids = torch.tensor([trainer.train_dataset[0]["input_ids"]])
    with torch.no_grad():
        trained = trainer.model.train()(ids).logits.float()  # lora_dropout is 0
    save_final_model(trainer, lambda: reload_base(str(base), model_args))
    final = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="float32")
    assert not getattr(final, "quantization_method", None) and is_tied(final)
    assert not (tmp_path / "out" / "adapter").exists()
    plain = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    with torch.no_grad():
        apart = (final(ids).logits - trained).std() / trained.std()
        learned = (final(ids).logits - plain(ids).logits).std() / trained.std()
    assert apart < tolerance < learned
    # No rounding of the quantised base reached the folder: untrained weights are the base's.
    norm = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(final.state_dict()[norm], plain.state_dict()[norm])


@pytest.mark.parametrize("tied", [True, False])
def test_the_fused_head_of_gpus_teaches_the_new_rows_alike(tmp_path, tied):
    """TRL multiplies by the head's weight itself; an adapter around it must not be passed by."""
    trainer = make_trainer(base_folder(tmp_path / "base", tied), settings(tmp_path / "out"), train="new_tokens")
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    gradients = []
    for loss in (trainer._labelled_losses(trainer.model, batch, None)[0], trainer._fused_losses(trainer.model, batch)):
        trainer.model.zero_grad()
        loss.sum().backward()
        gradients.append([p.grad.clone() for p in trainer.model.parameters() if p.requires_grad])
    assert len(gradients[0]) == (1 if tied else 2)
    for one, other in zip(*gradients):
        assert one.abs().max() > 1e-2
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
