"""`SemIDGRPOTrainer` beside its defaults: checkpointed gradients, streams, kinds of interaction, tasks, YAML."""

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from grpo_runs import DATA, INDEX, base_folder, batch_of, loaded, make_trainer, settings
from tiny import tiny_data, tiny_index, write_tiny_base
from trl import GRPOConfig, ModelConfig, TrlParser

from llmrec.item_tokenizers.streams import join_streams
from llmrec.recommender import LLMRecommender
from llmrec.rl import REWARDS, Facts, PolicyArguments, RollOut, prompt_rows, searched_index
from llmrec.semids import SemIDIndex

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(ROOT.glob("recipes/configs/**/grpo.yaml")) + sorted(ROOT.glob("recipes/configs/**/*rec_grpo.yaml"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_folder(tmp_path_factory.mktemp("kinds") / "base")


@pytest.mark.parametrize("lora", [False, True])
def test_checkpointed_gradients_are_the_gradients(base, tmp_path, lora):
    model_args = ModelConfig(use_peft=True, lora_r=4, lora_target_modules=["q_proj", "v_proj"]) if lora else None

    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        arguments = settings(tmp_path, beta=0.1, gradient_checkpointing=checkpointing)
        trainer = make_trainer(base, arguments, model_args=model_args)
        trainer._compute_loss(trainer.model, batch_of(trainer)).backward()
        return {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys() and any(value.abs().max() > 0 for value in plain.values())
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, atol=1e-6, rtol=1e-4)


def test_of_several_streams_the_searched_one_is_drawn_and_rewarded(tmp_path):
    users = SemIDIndex(INDEX.item_ids, np.stack([np.arange(24) // 5, np.arange(24) % 5], 1), [5, 5])
    index = join_streams({"meaning": INDEX, "users": users})
    whole = LLMRecommender.from_pretrained(write_tiny_base(tmp_path, DATA, index))
    shares = {}
    for stream in ("meaning", "users"):
        whole.config.fuse = [stream]
        recommender = LLMRecommender(whole.model, whole.tokenizer, index, DATA.items, whole.config)
        roll_out = RollOut(recommender, PolicyArguments(), 24, 1.0)
        drawn = roll_out(whole.model, [prompt_rows(DATA, recommender)[0]], (0,))
        assert {one["item"] for one in drawn} == set(INDEX.items)
        for one in drawn:
            assert one["draw"].completion == roll_out.tokens(one["item"])
        match = REWARDS["prefix_match"](Facts(searched_index(recommender), DATA.items, DATA.train))
        shares[stream] = match(item=["item-00", "item-01", "item-12"], target=["item-12"] * 3)
    assert shares == {"meaning": [0.5, 0, 1], "users": [0, 0, 1]}  # 0 and 12 share a first code in one of them


def test_prompts_ask_for_the_kind_of_interaction_that_followed(tmp_path):
    data = tiny_data()
    kinds = [["view", "buy"] * (len(items) // 2) for items in data.train["item_ids"].to_pylist()]
    data.train = data.train.append_column("behaviours", [kinds])
    write_tiny_base(tmp_path / "base", data, tiny_index(data).with_behaviours(["view", "buy"]))
    recommender = loaded(tmp_path / "base")
    rows = prompt_rows(data, recommender)
    for row in rows.select(range(5)):
        shown = kinds[0][: len(row["history"]) + 1]
        pairs = list(zip(row["history"], shown))
        assert row["prompt"] == recommender.prompts([pairs], behaviour=[shown[-1]])[0]
    trainer = make_trainer(tmp_path / "base", settings(tmp_path), train_dataset=rows)
    drawn = trainer.roll_out(trainer.model, [rows[0]], (0,))
    assert len({one["item"] for one in drawn}) == 4


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_dead_groups_are_counted_exactly(base, tmp_path, scale):
    arguments = settings(tmp_path, num_generations=16, per_device_train_batch_size=64, scale_rewards=scale)
    arguments.per_device_eval_batch_size = 16
    trainer = make_trainer(base, arguments, rewards=("exact_hit",))
    live = [0.0] * 15 + [1.0]
    trainer.reward_funcs = [lambda prompts, **kwargs: [1 / 3] * 16 + live + [0.7] * 16 + [0.0] * 16]
    batch_of(trainer)
    assert trainer._metrics["train"]["groups/dead"] == [0.75]


def test_an_item_is_not_blamed_for_its_second_semantic_id(tmp_path):
    codes = np.concatenate([INDEX.codes, [[5, 5, 3]]])
    index = SemIDIndex([*INDEX.item_ids, "item-00"], codes, [6, 6, 4])
    assert len(index.items) == 24
    trainer = make_trainer(write_tiny_base(tmp_path / "base", DATA, index), settings(tmp_path))
    (first, *_), second = trainer.roll_out.tokens("item-00"), [1, 2, 3]
    draw = type("Draw", (), {"completion": second})
    assert trainer._right_tokens({"item": "item-00", "target": "item-00", "draw": draw}) == second
    assert trainer._right_tokens({"item": "item-01", "target": "item-00", "draw": draw})[0] == first
    assert trainer._right_tokens({"item": "item-01", "target": None, "draw": draw}) is None


def test_rows_of_a_mixture(base, tmp_path):
    recommender = loaded(base)
    titles = prompt_rows(DATA, recommender, ["title_to_item"])
    by_title = dict(zip(DATA.items["title"].to_pylist(), DATA.items["item_id"].to_pylist()))
    assert len(titles) == 24
    for row in titles:
        assert row["target"] == row["about"] and any(
            title in row["prompt"] and item == row["target"] for title, item in by_title.items()
        )
    half = [prompt_rows(DATA, recommender, ["title_to_item:0.5"], seed=seed)["target"][:] for seed in (0, 0, 1)]
    assert len(half[0]) == 12 and half[0] == half[1] != half[2]
    sequences = DATA.train["item_ids"].to_pylist()
    place = 0
    for row in prompt_rows(DATA, recommender, following=3):
        items, number = sequences[place // 5], place % 5 + 1
        assert [*row["history"], row["target"]] == items[: number + 1]
        assert row["following"] == items[number + 1 : number + 4]
        place += 1
    assert place == 5 * len(sequences)


def test_tasks_that_cannot_be_rolled_out_are_refused(base, tmp_path):
    with pytest.raises(ValueError, match="^tasks: 'item_to_title' is answered in words"):
        prompt_rows(DATA, loaded(base), ["item_to_title"])
    with pytest.raises(ValueError, match="^tasks: 'think_next_item' does not think as"):
        prompt_rows(DATA, loaded(base), ["think_next_item"])
    thinking = loaded(base_folder(tmp_path / "thinking", "think_next_item"))
    with pytest.raises(ValueError, match="^tasks: 'title_to_item' does not think as"):
        prompt_rows(DATA, thinking, ["title_to_item"])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: "/".join(path.parts[-2:]))
def test_shipped_settings_are_read(path):
    recipe = runpy.run_path(str(ROOT / "recipes" / "grpo.py"))
    parser = TrlParser((recipe["DataArguments"], PolicyArguments, GRPOConfig, ModelConfig))
    args, _, arguments, _ = parser.parse_args_and_config(["--config", str(path)])
    assert {entry.partition(":")[0] for entry in args.rewards} <= REWARDS.keys()
    assert arguments.per_device_train_batch_size % arguments.num_generations == 0


def test_the_published_settings_of_minionerec_run(tmp_path):
    """As they are, but for paths and the number of steps: 64 prompts a step, groups of 16."""
    data = tiny_data()
    described = [f"A {title} of the shop" for title in data.items["title"].to_pylist()]
    data.items = data.items.append_column("description", [described])
    data.save(tmp_path / "data")
    write_tiny_base(tmp_path / "base", data, tiny_index(data))
    where = ["--model_name_or_path", str(tmp_path / "base"), "--data_dir", str(tmp_path / "data")]
    where += ["--output_dir", str(tmp_path / "out"), "--max_steps", "2", "--disable_tqdm", "true"]
    config = "recipes/configs/mixtures/minionerec_grpo.yaml"
    command = [sys.executable, "recipes/grpo.py", "--config", config, *where]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(LLMRecommender.from_pretrained(tmp_path / "out").recommend([["item-03"]], k=10)[0]) == 10
