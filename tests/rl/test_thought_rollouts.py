"""Groups of thoughts: what is drawn, which tokens are learned, what they are rewarded for."""

import json

import pytest
import torch
from grpo_runs import DATA, INDEX, base_folder, batch_of, make_trainer, settings

from llmrec.rl import REWARDS, Facts, PolicyArguments

LIMIT = 12


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = base_folder(tmp_path_factory.mktemp("thoughts") / "base", "think_next_item")
    config = json.loads((folder / "llmrec_config.json").read_text())
    (folder / "llmrec_config.json").write_text(json.dumps(config | {"max_thought_tokens": LIMIT}))
    return folder


def thinking(base, folder, rewards=("beam_match", "thought_format", "thought_length:0.1"), **changes):
    return make_trainer(base, settings(folder, **changes), PolicyArguments(thought_beams=5), rewards)


def test_a_group_is_of_thoughts_and_the_items_after_them(base, tmp_path):
    trainer = thinking(base, tmp_path)
    recommender, rows = trainer.roll_out.recommender, [trainer.train_dataset[n] for n in (0, 7)]
    drawn = trainer.roll_out(trainer.model, rows, (0, 0, 0))
    again = trainer.roll_out(trainer.model, rows[1:], (0, 0, 0))
    assert [one["thought"] for one in drawn[4:]] == [one["thought"] for one in again]
    assert len({one["thought"] for one in drawn}) > 4
    for number, one in enumerate(drawn):
        prompt = recommender.prompts([rows[number // 4]["history"]])[0]
        text = recommender.block.text(one["thought"])
        ids = recommender.tokenizer([prompt, text], add_special_tokens=False)["input_ids"]
        assert one["member"].prompt == ids[0] and one["member"].completion == ids[1]
        found = recommender.search([ids[0] + ids[1]], [5])[0]
        assert one["beams"] == [recommender.item_ids[hit.item] for hit in found] and one["item"] == one["beams"][0]


def test_only_tokens_that_the_policy_chose_are_learned(base, tmp_path):
    trainer = thinking(base, tmp_path)
    tokenizer, block = trainer.processing_class, trainer.roll_out.recommender.block
    opening, closing = (len(tokenizer(text)["input_ids"]) for text in (block.opening, block.closing))
    row = trainer.train_dataset[0]
    for one in trainer.roll_out(trainer.model, [row], (0, 0, 0)):
        mask = one["member"].mask
        assert len(mask) == len(one["member"].completion)
        assert mask[:opening] == [0] * opening and set(mask[opening : len(mask) - closing]) <= {1}
        assert mask[len(mask) - closing :] == [int(one["closed"])] * closing
    inputs = batch_of(trainer)
    assert inputs["tool_mask"].shape == inputs["completion_ids"].shape
    # Changing the log-probability of a masked token changes no gradient.
    inputs["advantages"] = torch.ones_like(inputs["advantages"])
    logps, _, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model,
        torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
        torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1),
        inputs["completion_ids"].shape[1],
    )
    held = []
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (
        held.append(logps.detach().requires_grad_()) or (held[0], torch.zeros_like(logps), None)
    )
    trainer._compute_loss(trainer.model, inputs).backward()
    learned = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    assert (held[0].grad[learned] != 0).all() and (held[0].grad[~learned] == 0).all()


def test_thoughts_train(base, tmp_path):
    trainer = thinking(base, tmp_path, beta=0.05, num_iterations=2)
    # An untrained model closes no thought and hits nothing, so a reward that differs stands in for the length.
    trainer.reward_funcs[2] = lambda thought, **kwargs: [len(set(text)) / 100 for text in thought]
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["frac_reward_zero_std"] < 1 and log["grad_norm"] > 0
    assert {"rewards/beam_match/mean", "rewards/thought_format/mean", "rewards/thought_length/mean"} <= log.keys()


def test_rewards_of_thoughts():
    facts = Facts(INDEX, DATA.items, DATA.train)
    # Semantic IDs of the tiny catalogue: number modulo 6, then number // 6; odd items have a third token.
    target, first, both = "item-09", "item-03", "item-15"
    match = REWARDS["beam_match"](facts)
    beams = [["item-01", "item-02"], ["item-01", target], [first, "item-01"], ["item-02", both]]
    assert match(item=[held[0] for held in beams], target=[target] * 4, beams=beams) == [0, 1, 1 / 3, 1 / 3]
    assert match(item=["item-01"], target=[None], beams=[[target]]) == [None]
    assert match(item=["item-01"], target=[target]) == [None]
    said = REWARDS["thought_format"](facts)
    thoughts = ["They like drills.", "", "It is", "Tools."]
    assert said(item=thoughts, thought=thoughts, closed=[True, True, False, True]) == [1, 0, 0, 1]
    assert said(item=["item-01"]) == [None]
    length = REWARDS["thought_length"](facts)
    assert length(item=thoughts, thought_share=[0.25, 0.0, 1.0, 0.5]) == [0.75, 1, 0, 0.5]
    assert length(item=["item-01"]) == [None]


def test_settings_of_item_groups_are_refused(base, tmp_path):
    with pytest.raises(ValueError, match="group is of sampled thoughts: leave out rollout"):
        make_trainer(base, settings(tmp_path), PolicyArguments(rollout="sample"))
    with pytest.raises(ValueError, match="^thought_beams: 100 of a catalogue of 24"):
        make_trainer(base, settings(tmp_path), PolicyArguments(thought_beams=100))
