"""Importance weights, dead groups and blame by token, on cases whose answers are known."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from decoding.reference_search import EOS, matrix, random_semids, tiny_model
from rl_small import grouped, written

from llmrec.decoding import SemIDTrie
from llmrec.rl import Groups, log_probs, sample_without_replacement
from llmrec.rl.credit import first_difference, skip_dead, weighted


def random_groups(seed: int, size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards and importance weights (float32 [4, size] each)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(4, size, generator=generator), torch.randn(4, size, generator=generator).softmax(1)


def centred(rewards: torch.Tensor) -> torch.Tensor:
    return rewards - rewards.mean(1, keepdim=True)


@pytest.mark.parametrize("seed", range(5))
def test_weighted_advantages_are_those_of_a_weighted_mean(seed):
    """The plain mean of f times the advantages is the weighted covariance of f with the rewards."""
    rewards, weights = random_groups(seed)
    values = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
    found = (weighted(centred(rewards), weights) * values).mean(1)
    mean = (weights * rewards).sum(1, keepdim=True)
    torch.testing.assert_close(found, (weights * (rewards - mean) * values).sum(1))
    torch.testing.assert_close(weighted(centred(rewards), weights).sum(1), torch.zeros(4), atol=1e-6, rtol=0)
    # Whatever the advantages were centred on; and equal weights change nothing.
    torch.testing.assert_close(weighted(rewards + 5, weights), weighted(rewards, weights), atol=1e-5, rtol=0)
    equal = torch.full((4, 6), 1 / 6)
    torch.testing.assert_close(weighted(centred(rewards), equal), centred(rewards), atol=1e-6, rtol=0)


def policy_gradient(model, trie, groups: Groups, rewards, weights) -> torch.Tensor:
    """The gradient of the mean of advantage times log-probability, as one vector."""
    model.zero_grad()
    logps, _ = log_probs(model, groups, trie)
    (weighted(centred(rewards), weights) * logps.sum(-1)).mean().backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_the_gradient_is_that_of_the_expected_reward():
    """With the whole catalogue as a sample it is exact; small samples come close, which they do not unweighted."""
    semids, count = random_semids(0, rows=8, ragged=True), 400
    trie, model = SemIDTrie(matrix(semids), EOS), tiny_model(initializer_range=0.15)
    ways = [written(semid, semids) for semid in semids]
    reward_of = torch.rand(len(semids), generator=torch.Generator().manual_seed(0))

    everything = grouped([ways], [5])
    p = log_probs(model, everything, trie)[0].sum(-1).exp()
    (p @ reward_of).sum().backward()
    exact = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    whole = policy_gradient(model, trie, everything, reward_of[None], p.detach())
    torch.testing.assert_close(whole, exact, atol=1e-6, rtol=1e-4)

    prompt, held = everything.prompts.expand(count, -1), everything.prompt_mask.expand(count, -1)
    drawn = sample_without_replacement(model, prompt, held, trie, 5, range(count))
    items = trie.order[drawn.low].long()
    groups = Groups(prompt, held, everything.completions[0][items], everything.completion_mask[0][items])

    def error(weights: torch.Tensor) -> float:
        found = policy_gradient(model, trie, groups, reward_of[items], weights)
        return float((found - exact).norm() / exact.norm())

    assert error(drawn.weights) < 0.05
    assert error(torch.full((count, 5), 1 / 5)) > 0.1


@pytest.mark.parametrize("loss", ["plain", "weighted"])
@pytest.mark.parametrize("seed", range(4))
def test_skipped_groups_are_as_if_they_were_not_there(seed, loss):
    """The mean over the batch is that over its live groups."""
    generator = torch.Generator().manual_seed(seed)
    rewards, weights = torch.rand(8, 6, generator=generator), torch.randn(8, 6, generator=generator).softmax(1)
    dead = torch.tensor([True, False, True, True, False, False, True, False])
    advantages = centred(rewards) / (rewards.std(1, keepdim=True) + 1e-4)
    advantages[dead] = 6e-4  # the mean of equal rewards can be rounded: TRL's advantages are then not quite 0
    if loss == "weighted":
        advantages = weighted(advantages, weights)
    values = torch.randn(8, 6, generator=generator)
    found = skip_dead(advantages, Accelerator(cpu=True))
    assert (found[dead] == 0).all()
    torch.testing.assert_close((found * values).mean(), (advantages * values)[~dead].mean())


def test_a_batch_without_a_live_group_stays_zero():
    assert skip_dead(torch.zeros(3, 4), Accelerator(cpu=True)).equal(torch.zeros(3, 4))
    assert skip_dead(torch.full((3, 4), 1e-8), Accelerator(cpu=True)).equal(torch.zeros(3, 4))


# The target is (3, 4, 5). Tokens, and which are blamed; which are praised.
CASES = {
    "the target": ((3, 4, 5), [1, 1, 1], [1, 1, 1]),
    "wrong at once": ((1, 4, 5), [1, 0, 0], [1, 0, 0]),
    "wrong in the middle": ((3, 1, 5), [0, 1, 0], [1, 1, 0]),
    "wrong at the end": ((3, 4, 1), [0, 0, 1], [1, 1, 1]),
    "ends too early, which is said by EOS": ((3, 4, EOS), [0, 0, 1], [1, 1, 1]),
    "ends after one token and EOS": ((3, EOS), [0, 1, 0], [1, 1, 0]),
    "wrong, and over": ((1,), [1, 0, 0], [1, 0, 0]),
    "a level less": ((3, 5), [0, 1, 0], [1, 1, 0]),
}


@pytest.mark.parametrize("case", CASES)
def test_blame_begins_where_an_item_leaves_the_target(case):
    tokens, blamed, praised = CASES[case]
    mask = torch.arange(3) < torch.tensor([[len(tokens)]] * 2)
    found = first_difference(torch.tensor([-0.5, 2.0]), [tokens] * 2, [[(3, 4, 5)]] * 2, mask)
    np.testing.assert_array_equal(found.numpy(), [[-0.5 * one for one in blamed], [2.0 * one for one in praised]])


def test_an_item_that_goes_on_after_the_target_is_blamed_for_it():
    mask = torch.ones(1, 3)
    found = first_difference(torch.tensor([-1.0]), [(3, 4, 5)], [[(3, 4, 1)]], mask)
    assert found.tolist() == [[0, 0, -1]]
    hit = first_difference(torch.tensor([1.0]), [(3, 4, 1)], [[(3, 4, 1)]], mask)  # two tokens and EOS
    assert hit.tolist() == [[1, 1, 1]]


def test_an_item_that_ends_too_early_is_blamed_for_its_end():
    found = first_difference(torch.tensor([-1.0]), [(3, 4)], [[(3, 4, 5)]], torch.tensor([[1, 1, 0]]))
    assert found.tolist() == [[0, -1, 0]]


@pytest.mark.parametrize("order", [1, -1])
def test_of_several_semantic_ids_the_one_counts_that_is_followed_longest(order):
    right, mask = [(3, 4, 5), (1, 4, 5), (3, 9, 9)][::order], torch.ones(4, 3)
    said = [(3, 4, 1), (1, 4, 1), (3, 9, 9), (7, 4, 5)]
    found = first_difference(torch.tensor([-1.0, -1.0, 2.0, -1.0]), said, [right] * 4, mask)
    assert found.tolist() == [[0, 0, -1], [0, 0, -1], [2, 2, 2], [-1, 0, 0]]


def test_without_a_target_every_token_counts():
    found = first_difference(torch.tensor([-1.0]), [(3, 4)], [None], torch.tensor([[1, 1, 0]]))
    assert found.tolist() == [[-1, -1, 0]]


def test_rows_have_their_own_targets_and_padding_gets_nothing():
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0]])
    codes, targets = [(3, 4), (3, 4), (1, 0)], [[(3, 4)], [(3, 9)], [(1, 0)]]
    found = first_difference(torch.tensor([1.0, -1.0, 0.0]), codes, targets, mask)
    assert found.tolist() == [[1, 1, 0], [0, -1, 0], [0, 0, 0]]
