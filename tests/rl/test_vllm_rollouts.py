"""vLLM's engine as the rollout engine: groups of the Hugging Face search, weights of the model to the bit, and the
rows of new tokens among them."""

import gc
import math
import random
import subprocess
import sys

import pytest
import torch
from grpo_runs import DATA, base_folder, loaded, make_trainer, settings
from serving.server_process import ServerProcess
from test_grpo_recipe import ROOT, command, curve
from trl import ModelConfig

from llmrec.rl import PolicyArguments
from llmrec.rl.rollout import engine_roll_out, roll_out
from llmrec.serving.rollouts.engine import EngineRollouts, start_rollouts
from llmrec.training import merged_weights

pytestmark = pytest.mark.vllm
LORA = ModelConfig(use_peft=True, lora_r=4, lora_target_modules=["q_proj", "v_proj"])
ATTENTION = {"head_dim": 32, "initializer_range": 0.2}  # a width that vLLM has on a CPU, and beams that matter
BIASED = {"model_type": "llama", "attention_bias": True, "tie_word_embeddings": False}
FOLDERS = {"qwen3, tied": {}, "llama, untied": BIASED}


@pytest.fixture(scope="module", params=FOLDERS)
def both(request, tmp_path_factory):
    """`(folder, engine)`; of the second the linear layers keep their weights as they are, so that they can be read."""
    import vllm._custom_ops as kernels

    folder = base_folder(tmp_path_factory.mktemp("rollouts") / "base", **ATTENTION, **FOLDERS[request.param])
    torch.manual_seed(5)
    states = torch.get_rng_state(), random.getstate(), torch.set_num_threads
    with pytest.MonkeyPatch.context() as patch:
        if "untied" in request.param:
            patch.setattr(kernels, "_supports_onednn", False)
        engine = EngineRollouts(folder, dtype="float32")
        assert torch.equal(torch.get_rng_state(), states[0]), "a run would draw other numbers than without an engine"
        assert (random.getstate(), torch.set_num_threads) == states[1:]
        yield folder, engine
    del engine
    gc.collect()


def trained(folder, output, engine=None, model_args=None, log_probs="catalogue", **changes):
    more = {} if engine is None else {"engine": lambda: engine}
    arguments = settings(output, use_vllm=engine is not None, **{"max_steps": 3, "learning_rate": 1e-2, **changes})
    trainer = make_trainer(folder, arguments, PolicyArguments(log_probs=log_probs), model_args=model_args, **more)
    trainer.train()
    return trainer


def prompts_of(trainer) -> list[list[int]]:
    rows = [trainer.train_dataset[number] for number in range(0, 80, 3)]
    return trainer.roll_out.recommender.token_ids([row["prompt"] for row in rows])


def assert_groups_equal(trainer, engine, prompts, size: int, normalize: str) -> None:
    trie = trainer.roll_out.trie
    found = engine_roll_out(engine, prompts, trie, size, normalize)
    wanted = roll_out(trainer.model, prompts, trie, size, PolicyArguments(), [0] * len(prompts), 1.0, normalize)
    assert torch.equal(found.tokens, wanted.tokens) and torch.equal(found.leaves, wanted.leaves)
    assert torch.equal(found.weights, wanted.weights)
    torch.testing.assert_close(found.mass, wanted.mass, atol=1e-5, rtol=1e-4)


def weights_of(engine: EngineRollouts) -> dict[str, torch.Tensor]:
    """The engine's own, with what vLLM fuses taken apart again."""
    (model,) = engine.engine.llm.apply_model(lambda model: model)
    found = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        config, attention = model.config, model.model.layers[0].self_attn
        sizes = {
            "qkv_proj": {"q_proj": attention.q_size, "k_proj": attention.kv_size, "v_proj": attention.kv_size},
            "gate_up_proj": dict.fromkeys(("gate_proj", "up_proj"), config.intermediate_size),
        }
        fused = next((part for part in sizes if part in name), None)
        if fused is None:
            rows = config.vocab_size if name in ("lm_head.weight", "model.embed_tokens.weight") else len(weight)
            found[name] = weight[:rows]
        else:
            parts = weight.split([rows if weight.numel() else 0 for rows in sizes[fused].values()])
            found |= {name.replace(fused, part): one for part, one in zip(sizes[fused], parts)}
    return found


@pytest.mark.parametrize("log_probs", ["catalogue", "vocabulary"])
@pytest.mark.parametrize("model_args", [None, LORA], ids=["whole", "lora"])
def test_groups_and_the_run_are_those_of_the_search_of_transformers(both, tmp_path, model_args, log_probs):
    folder, engine = both
    trainer = trained(folder, tmp_path, engine, model_args, log_probs)
    prompts = prompts_of(trainer)
    with pytest.raises(AssertionError):  # its weights are those before the last step
        assert_groups_equal(trainer, engine, prompts, 8, log_probs)
    engine.take(merged_weights(trainer.model))
    for size in (2, 8, 24):
        assert_groups_equal(trainer, engine, prompts, size, log_probs)
    plain = trained(folder, tmp_path, None, model_args, log_probs)
    pairs = zip(trainer.model.named_parameters(), plain.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for (_, a), b in pairs)


@pytest.mark.parametrize("model_args", [None, LORA], ids=["whole", "lora"])
def test_weights_after_a_step_are_equal_to_the_bit(both, tmp_path, model_args):
    folder, engine = both
    trainer = trained(folder, tmp_path, engine, model_args, max_steps=1)
    engine.take(merged_weights(trainer.model))
    wanted, found = dict(merged_weights(trainer.model)), weights_of(engine)
    readable = {name for name, weight in found.items() if weight.numel()}  # oneDNN's are packed
    assert found.keys() == wanted.keys() and {"lm_head.weight", "model.norm.weight"} <= readable
    assert readable == found.keys() or loaded(folder).model.config.tie_word_embeddings
    assert all(torch.equal(found[name], wanted[name]) for name in readable)
    before = loaded(folder).model.state_dict()
    moved = {name for name in readable if not torch.equal(found[name], before[name])}
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= moved


def test_a_new_token_row_that_training_changed_is_seen(both, tmp_path):
    """And a synchronisation that leaves these rows out would be found out here."""
    folder, engine = both
    trainer = trained(folder, tmp_path, engine, LORA)
    weights, before = dict(merged_weights(trainer.model)), loaded(folder).model.state_dict()
    ids = trainer.roll_out.recommender.tokenizer.convert_tokens_to_ids(trainer.roll_out.index.tokens)
    prompts = prompts_of(trainer)

    def assert_seen() -> None:
        for name in ("lm_head.weight", "model.embed_tokens.weight"):
            assert torch.equal(weights_of(engine)[name][ids], weights[name][ids])
            assert (weights[name][ids] != before[name][ids]).any(1).sum() > 3
        assert_groups_equal(trainer, engine, prompts, 8, "catalogue")

    engine.take(weights.items())
    assert_seen()
    engine.take((name, before[name] if name[:-7] in ("lm_head", "model.embed_tokens") else one)
                for name, one in weights.items())  # fmt: skip
    with pytest.raises(AssertionError):
        assert_seen()
    with pytest.raises(AssertionError):
        assert_groups_equal(trainer, engine, prompts, 8, "catalogue")


def test_a_prompt_without_room_is_refused(both):
    with pytest.raises(ValueError, match="a prompt of 256 tokens, but the engine has room for 256: raise vllm_max"):
        both[1].search([[1], [1] * 256], 2, "catalogue")


@pytest.mark.slow
def test_a_run_through_a_server_in_a_process_of_its_own(tmp_path):
    folder = base_folder(tmp_path / "base", **ATTENTION)
    server = ServerProcess(["-m", "llmrec.serving.rollouts", str(folder)], tmp_path / "log", ready="/v1/rollouts")
    try:
        url = {"vllm_mode": "server", "vllm_server_base_url": str(server.http.base_url)}
        arguments = settings(tmp_path, use_vllm=True, max_steps=3, learning_rate=1e-2, **url)
        engine = start_rollouts(folder, torch.float32, arguments)
        trainer = trained(folder, tmp_path, engine, LORA, **url)
        plain = trained(folder, tmp_path, None, LORA)
        pairs = zip(trainer.model.named_parameters(), plain.model.parameters(), strict=True)
        assert all(torch.equal(a, b) for (_, a), b in pairs)
    finally:
        server.stop()


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "lora"), [("one", True), ("two", False), ("sharded", True)])
def test_the_recipe_through_vllm_is_the_recipe(tmp_path, processes, lora):
    DATA.save(tmp_path / "data")
    base_folder(tmp_path / "base", **ATTENTION)
    flags = ["--max_steps", "5", "--save_steps", "5", "--eval_strategy", "no", "--rollout", "beam"]
    flags += ["--learning_rate", "1e-2"]
    flags += ["--use_peft", "true", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj"] if lora else []
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    launch += ["--config_file", str(ROOT / "recipes/accelerate/cpu2.yaml")]
    launch += [str(ROOT / "tests/fsdp_on_cpu.py")] if processes == "sharded" else []
    vllm = command(tmp_path, "vllm", *flags, "--use_vllm", "true")
    if processes != "one":
        vllm = [*launch, *vllm[1:], "--per_device_train_batch_size", "16"]
    for program in (command(tmp_path, "plain", *flags), vllm):
        result = subprocess.run(program, capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stderr[-3000:]
    assert curve(tmp_path / "vllm", "rollout/staleness") == dict.fromkeys(range(1, 6), 0)
    for name in ("reward", "grad_norm", "kl"):
        wanted, found = curve(tmp_path / "plain", name), curve(tmp_path / "vllm", name)
        assert wanted.keys() == found.keys() and len(set(wanted.values())) > 3
        for step, value in wanted.items():
            assert math.isclose(value, found[step], rel_tol=1e-3, abs_tol=1e-6), (name, step)
