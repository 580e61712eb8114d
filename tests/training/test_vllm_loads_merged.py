"""A LoRA run's final folder is a plain model: vLLM answers as transformers does."""

import pytest
import torch
from small_runs import base_folder, make_trainer, settings
from transformers import AutoModelForCausalLM
from trl import ModelConfig

from llmrec.training import save_final_model


@pytest.mark.vllm
@pytest.mark.parametrize("tied", [True, False])
def test_vllm_gives_the_greedy_answer_of_transformers(tmp_path, tied):
    from vllm import LLM, SamplingParams

    # Heads of a width that vLLM's attention has on a CPU.
    base = base_folder(tmp_path / "base", tied, head_dim=32)
    lora = {"use_peft": True, "lora_r": 8, "lora_target_modules": ["all-linear"]}
    arguments = settings(tmp_path / "out", max_steps=150)
    trainer = make_trainer(base, arguments, ModelConfig(model_name_or_path=str(base), **lora))
    trainer.train()
    save_final_model(trainer, lambda: None)
    prompts = []
    for number in range(4):
        row = trainer.train_dataset[number]
        prompts.append(row["input_ids"][: row["labels"].count(-100) + 2])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="float32").eval()
    expected = []
    for ids in prompts:
        with torch.no_grad():
            answer = model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False, eos_token_id=None)
        expected.append(answer[0, len(ids) :].tolist())
    engine = LLM(
        str(tmp_path / "out"),
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        distributed_executor_backend="uni",
    )
    greedy = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, detokenize=False)
    answers = engine.generate([{"prompt_token_ids": ids} for ids in prompts], greedy)
    assert [list(answer.outputs[0].token_ids) for answer in answers] == expected
    assert len({tuple(answer) for answer in expected}) > 1
