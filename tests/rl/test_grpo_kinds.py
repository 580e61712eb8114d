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

from llmrec.catalogue.semids import SemIDIndex
from llmrec.catalogue.views import join_views
from llmrec.instructions import TASKS
from llmrec.instructions.mixture import TaskMix
from llmrec.recommenders import LLMRecommender
from llmrec.rl import REWARDS, Facts, PolicyArguments, prompt_rows, searched_index
from llmrec.rl.groups import RollOut
from llmrec.rl.rewards import checked

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes" / "configs"
SHIPPED = sorted(CONFIGS.glob("**/grpo*.yaml")) + [CONFIGS / "mixtures" / "minionerec_grpo.yaml"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_folder(tmp_path_factory.mktemp("kinds") / "base")


@pytest.mark.parametrize("lora", [False, True])
def test_checkpointed_gradients_are_the_gradients(base, tmp_path, lora):
    model_args = ModelConfig(use_peft=True, lora_r=4, lora_target_modules=["q_proj", "v_proj"]) if lora else None

    def gradients(checkpointing: bool) -> tuple[float, dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        arguments = settings(tmp_path, beta=0.1, gradient_checkpointing=checkpointing)
        trainer = make_trainer(base, arguments, model_args=model_args)
        if checkpointing:  # `train` is what switches it on
            trainer.model.gradient_checkpointing_enable(arguments.gradient_checkpointing_kwargs)
        inputs = batch_of(trainer)
        assert trainer.model.is_gradient_checkpointing == checkpointing
        with torch.no_grad():  # the loss of a policy that did not move is 0
            generator = torch.Generator().manual_seed(0)
            for parameter in trainer.model.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
        return loss.item(), {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}

    (loss, plain), (other, checkpointed) = gradients(False), gradients(True)
    assert other == pytest.approx(loss, rel=1e-5) and abs(loss) > 1e-4
    assert plain.keys() == checkpointed.keys() and any(value.abs().max() > 0 for value in plain.values())
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, atol=1e-6, rtol=1e-4)


def test_of_several_views_the_searched_one_is_drawn_and_rewarded(tmp_path):
    users = SemIDIndex(INDEX.item_ids, np.stack([np.arange(24) // 5, np.arange(24) % 5], 1), [5, 5])
    index = join_views({"meaning": INDEX, "users": users})
    whole = LLMRecommender.from_pretrained(write_tiny_base(tmp_path, DATA, index))
    shares = {}
    for view in ("meaning", "users"):
        whole.config.fuse = [view]
        recommender = LLMRecommender(whole.model, whole.tokenizer, index, DATA.items, whole.config)
        roll_out = RollOut(recommender, PolicyArguments(), 24, 1.0)
        drawn = roll_out(whole.model, [prompt_rows(DATA, recommender)[0]], (0,))
        assert {one["item"] for one in drawn} == set(INDEX.items)
        first, last = index.views[view]
        known = {token for level in index.level_tokens[first:last] for token in level}
        known.add(recommender.tokenizer.eos_token)  # the end of a Semantic ID that others go on from
        for one in drawn:
            assert [one["member"].completion] == roll_out.tokens(one["item"])
            assert list(one["semid"]) == roll_out.index.tokens_of_row(roll_out.index.row(one["item"]))
            assert set(recommender.tokenizer.convert_ids_to_tokens(one["member"].completion)) <= known
        match = REWARDS["prefix_match"](Facts(searched_index(recommender), DATA.items, DATA.train))
        shares[view] = match(item=["item-00", "item-01", "item-12"], target=["item-12"] * 3)
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
        assert row["prompt"].endswith(recommender.index.behaviour_token(shown[-1]))
    trainer = make_trainer(tmp_path / "base", settings(tmp_path), train_dataset=rows)
    drawn = trainer.roll_out(trainer.model, [rows[0]], (0,))
    assert len({one["item"] for one in drawn}) == 4
    tokens = [recommender.index.behaviour_token(kind) for kind in ("view", "buy")]
    rows_of_kinds = recommender.tokenizer.convert_tokens_to_ids(tokens)
    embeddings = trainer.model.get_input_embeddings().weight
    before = embeddings[rows_of_kinds].detach().clone()
    trainer.train()
    assert (embeddings[rows_of_kinds] != before).any(1).all()


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_dead_groups_are_counted_exactly(base, tmp_path, scale):
    arguments = settings(tmp_path, num_generations=16, per_device_train_batch_size=64, scale_rewards=scale)
    arguments.per_device_eval_batch_size = 16
    trainer = make_trainer(base, arguments, rewards=("exact_hit",))
    live = [0.0] * 15 + [1.0]
    values = [1 / 3] * 16 + live + [0.7] * 16 + [0.0] * 16
    trainer.reward_funcs = [checked(lambda prompts, **kwargs: values, "mine")]
    batch_of(trainer)
    assert trainer._metrics["train"]["groups/dead"] == [0.75]


def test_an_item_is_not_blamed_for_its_second_semantic_id(tmp_path):
    """A group holds the whole catalogue, and with it both Semantic IDs of the target."""
    index = SemIDIndex([*INDEX.item_ids, "item-00"], np.concatenate([INDEX.codes, [[5, 5, 3]]]), [6, 6, 4])
    folder = write_tiny_base(tmp_path / "base", DATA, index)
    rows = prompt_rows(DATA, loaded(folder), ["title_to_item"]).filter(lambda row: row["target"] == "item-00")
    group = {"num_generations": 25, "per_device_train_batch_size": 25, "per_device_eval_batch_size": 25}
    policy = PolicyArguments(credit="first_difference")
    trainer = make_trainer(folder, settings(tmp_path, **group), policy, ("exact_hit",), train_dataset=rows)
    inputs = batch_of(trainer)
    mask, advantages = inputs["completion_mask"].bool(), inputs["advantages"]
    praised = [(advantages[n] > 0).equal(mask[n]) for n in range(25) if (advantages[n] > 0).any()]
    assert praised == [True, True]
    texts = trainer.processing_class.batch_decode(inputs["completion_ids"][(advantages > 0).any(1)])
    assert any("a_5" in text and "b_5" in text for text in texts)
    # Every other item is blamed for one token.
    assert [int((row < 0).sum()) for row in advantages if not (row > 0).any()] == [1] * 23


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
    assert all(TASKS[TaskMix.parse(entry).prompt.task].ends_with_item for entry in args.tasks)
    assert arguments.per_device_train_batch_size % arguments.num_generations == 0


def test_the_published_settings_of_minionerec_run(tmp_path):
    """As they are, but for paths and the number of steps: 64 prompts a step, groups of 16."""
    data = tiny_data()
    described = [f"A {title} of the shop" for title in data.items["title"].to_pylist()]
    data.items = data.items.append_column("description", [described])
    data.save(tmp_path / "data")
    write_tiny_base(tmp_path / "base", data, tiny_index(data), max_position_embeddings=512)
    where = ["--model_name_or_path", str(tmp_path / "base"), "--data_dir", str(tmp_path / "data")]
    where += ["--output_dir", str(tmp_path / "out"), "--max_steps", "2", "--disable_tqdm", "true"]
    config = "recipes/configs/mixtures/minionerec_grpo.yaml"
    command = [sys.executable, "recipes/grpo.py", "--config", config, *where]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(LLMRecommender.from_pretrained(tmp_path / "out").recommend([["item-03"]], k=10)[0]) == 10
