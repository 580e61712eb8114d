"""recipes/import_gguf.py: GGUF files that the gguf package writes here, and the real one of SmolLM2."""

import json
import logging
import sys
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from llmrec.files import read_json
from llmrec.models.from_gguf import load_gguf
from llmrec.models.from_scratch import model_from_config, train_tokenizer
from recipes.import_gguf import ImportArguments, main

TEXT = "red gadget number 7 <|end|> for 25 dollars"
CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """A projection in the order of rotated pairs that llama.cpp keeps for Llama: the halves of a head take turns."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def write_gguf(path: Path, architecture: str, quantized: bool = False, template: bool = True, **changes):
    """A model with random weights as a GGUF file; returns it and its tokenizer."""
    tokenizer = train_tokenizer(["red gadget number 1", "green gadget number 2"], 400)
    width = changes.get("head_dim", {"llama": 16, "qwen3": 128}[architecture])
    model = model_from_config({"model_type": architecture, **CONFIG, "head_dim": width}, tokenizer).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(weight, 1, 0.1)
    writer = gguf.GGUFWriter(path, changes.get("named", architecture))
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(width)
    writer.add_rope_freq_base(model.config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(1e-5)
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    control = {token["id"] for token in described["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    writer.add_token_types([gguf.TokenType.CONTROL if i in control else gguf.TokenType.NORMAL for i in range(400)])
    writer.add_token_merges([" ".join(pair) for pair in described["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    if template:
        writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map({"llama": gguf.MODEL_ARCH.LLAMA, "qwen3": gguf.MODEL_ARCH.QWEN3}[architecture], 2)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" or name.endswith(changes.get("without", "-")):
            continue
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            weight = interleaved(weight, 4 if "q_proj" in name else 2)
        name = names.get_name(name, (".weight",))
        if quantized and weight.dim() == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(weight.numpy(), kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, weight.numpy())
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    return model, tokenizer


def logits(model: PreTrainedModel, tokenizer) -> torch.Tensor:
    with torch.no_grad():
        return model(**tokenizer(TEXT, return_tensors="pt", return_token_type_ids=False)).logits


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_a_file_gives_the_model_that_was_written(tmp_path, architecture):
    written, tokenizer = write_gguf(tmp_path / "tiny.gguf", architecture)
    model, read = load_gguf(tmp_path / "tiny.gguf", torch.float32)
    torch.testing.assert_close(logits(model, read), logits(written, tokenizer), rtol=0, atol=1e-5)
    assert read(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert read.chat_template == tokenizer.chat_template and read.eos_token == tokenizer.eos_token
    assert model.config.rms_norm_eps == 1e-5 and not hasattr(model.config, "quantization_config")


def test_the_recipe_writes_a_plain_folder_and_reuses_it(tmp_path, capsys):
    written, tokenizer = write_gguf(tmp_path / "tiny.gguf", "llama", quantized=True)
    for said in ("Wrote", "Reusing"):
        main(ImportArguments(str(tmp_path / "tiny.gguf"), str(tmp_path / "model")))
        assert said in capsys.readouterr().out
    assert "quantization_config" not in read_json(tmp_path / "model/config.json")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.dtype == torch.bfloat16
    read = AutoTokenizer.from_pretrained(tmp_path / "model")
    inside, _ = load_gguf(tmp_path / "tiny.gguf")
    torch.testing.assert_close(logits(model, read), logits(inside, tokenizer), rtol=0, atol=0)
    difference = logits(model.float(), read) - logits(written, tokenizer)
    assert 0 < difference.abs().max() < 0.05 * logits(written, tokenizer).std()  # 8 bits, then bfloat16


def test_files_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    file = tmp_path / "tiny.gguf"
    with pytest.raises(ValueError, match="nothing.gguf is not there"):
        load_gguf(tmp_path / "nothing.gguf")
    with pytest.raises(ValueError, match="is no file"):
        load_gguf(tmp_path)
    file.write_bytes(b"PK\x03\x04 a zip, say" * 100)
    with pytest.raises(ValueError, match=r"tiny.gguf is no GGUF that transformers [\d.]+ can read"):
        load_gguf(file)
    write_gguf(file, "llama")
    file.write_bytes(file.read_bytes()[:-50_000])
    with pytest.raises(ValueError, match="tiny.gguf is no GGUF"):
        load_gguf(file)
    write_gguf(file, "llama", named="retnet")
    with pytest.raises(ValueError, match="tiny.gguf is no GGUF.*retnet"):
        load_gguf(file)
    write_gguf(file, "qwen3", head_dim=16)  # transformers takes it for 128
    with pytest.raises(ValueError, match="tiny.gguf is no GGUF.*size mismatch"):
        load_gguf(file)
    write_gguf(file, "llama", without="1.mlp.up_proj.weight")
    with pytest.raises(ValueError, match="tiny.gguf lacks 1 weights of a llama, such as .*layers.1.mlp.up_proj"):
        load_gguf(file)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r"package gguf: pip install 'llmrec\[gguf\]'"):
        load_gguf(file)


def test_a_missing_chat_template_is_said(tmp_path, caplog):
    write_gguf(tmp_path / "tiny.gguf", "llama", template=False)
    with caplog.at_level(logging.WARNING):
        load_gguf(tmp_path / "tiny.gguf")
    assert "has no chat template" in caplog.text


@pytest.mark.pretrained
def test_smollm2_answers_in_words(smollm2):
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert model.num_parameters() == 134_515_008 and model.config.rms_norm_eps == 1e-5
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    answer = model.generate(prompt, max_new_tokens=12, do_sample=False)[0, prompt.shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
