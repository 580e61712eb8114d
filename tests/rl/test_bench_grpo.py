"""`scripts/bench_grpo.py` on sizes of seconds: every figure is there, and the peers do what they stand for."""

import pytest
import torch

from llmrec.decoding import tree_beam_search
from scripts.bench_grpo import bench, make_trainer, random_setting

SIZES = {"group": 4, "items": 60, "size": 8, "history": (3, 5), "num_hidden_layers": 2, "hidden_size": 64}
RATIOS = {"rollout_speedup", "policy_step_speedup", "whole_step_speedup"}
UNFUSED = {"policy_step_speedup_vs_unfused", "whole_step_speedup_vs_unfused"}


def test_all_figures_and_equal_gradients_of_every_loss(capsys):
    figures = bench(1, prompts=2, **SIZES)
    assert set(figures) == RATIOS | UNFUSED | {"gradient_max_rel_error"}
    assert all(value > 0 for value in figures.values())
    assert figures["gradient_max_rel_error"] < 1e-3
    table = capsys.readouterr().out
    errors = next(line for line in table.splitlines() if line.startswith("gradient error"))
    assert all(f"{name} " in errors for name in ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "gspo"))
    assert "prefill" in table and "levels" in table and "optimizer" in table


@pytest.mark.parametrize(("peer", "named"), [("TRL", RATIOS | {"gradient_max_rel_error"}), ("unfused", UNFUSED)])
def test_a_wide_vocabulary_is_timed_against_one_peer(peer, named):
    figures = bench(1, [peer], prompts=1, vocabulary=3_000, **SIZES)
    assert set(figures) == named | {"rollout_speedup"}


@pytest.mark.vllm
def test_rollouts_through_vllm_are_timed_beside_ours():
    figures = bench(1, ["unfused"], vllm=True, prompts=2, **SIZES)
    assert set(figures) == UNFUSED | {"rollout_speedup", "rollout_vs_vllm", "whole_step_vs_vllm"}


def test_the_rollout_of_the_peer_finds_our_beams():
    """Over the vocabulary, which is what `generate` scores."""
    recommender, rows = random_setting(prompts=3, **SIZES)
    trainer = make_trainer("TRL", recommender, rows)
    prompts = [row["prompt"] for row in rows]
    found = trainer.rollout_func(prompts, trainer)
    asked = recommender.tokenizer(prompts[::4], padding=True, return_tensors="pt")
    model = trainer.model.eval()
    beams = tree_beam_search(model, asked["input_ids"], asked["attention_mask"], recommender.trie, 4)
    assert torch.equal(torch.tensor(found["completion_ids"]).view(3, 4, 3), beams.tokens)
    assert [recommender.index.item_ids.index(item) for item in found["item"]] == (
        recommender.trie.order[beams.low.flatten()].tolist()
    )


def test_the_peers_score_alike():
    recommender, rows = random_setting(prompts=2, **SIZES)
    stock, unfused = (make_trainer(name, recommender, rows) for name in ("TRL", "unfused"))
    inputs = stock._prepare_inputs([dict(row) for row in rows])
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    expected, found = (
        trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, 3, compute_entropy=True)[:2]
        for trainer in (stock, unfused)
    )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
