"""Sampling without replacement against its exact distribution, which a small catalogue lets one write down."""

import itertools

import numpy as np
import pytest
import torch
from decoding.reference_search import EOS, matrix, prompts, random_semids, tiny_model
from rl_small import LENGTHS, distribution
from scipy.stats import chisquare

from llmrec.decoding import SemIDTrie
from llmrec.rl import sample_without_replacement
from llmrec.rl.sampling import Sample

SEMIDS = [(20, 30), (20, 31, 40), (20, 31, 41), (20, 31), (21, 30), (21, 31, 42), (22,)]  # ragged; (20, 31) begins two
TRIE = SemIDTrie(matrix(SEMIDS), EOS)
# The order in which a sample numbers them: sorted by token, an end first.
ITEMS = sorted(SEMIDS)


def draw(model, k: int, seeds: range, temperature: float = 1.0, batch: int = 1000) -> Sample:
    """One sample for each seed, all after the same prompt."""
    ids, mask = prompts([5])
    parts = [seeds[start : start + batch] for start in range(0, len(seeds), batch)]
    found = [
        sample_without_replacement(
            model, ids.expand(len(part), -1), mask.expand(len(part), -1), TRIE, k, part, temperature
        )
        for part in parts
    ]
    return Sample(*(torch.cat(tensors) for tensors in zip(*found)))


def exact(model, temperature: float = 1.0) -> np.ndarray:
    return distribution(model, prompts([5])[0][0].tolist(), ITEMS, temperature)


def chi_square(counts: np.ndarray, p: np.ndarray) -> float:
    """The p-value; what is expected less than five times is one cell."""
    expected = p / p.sum() * counts.sum()
    rare = expected < 5
    pooled = [np.append(part[~rare], part[rare].sum()) for part in (counts, expected)]
    kept = slice(None) if rare.any() else slice(-1)
    return chisquare(pooled[0][kept], pooled[1][kept]).pvalue


@pytest.mark.parametrize(("seed", "temperature"), [(0, 1.0), (1, 2.0), (2, 0.7)])
def test_ordered_pairs_follow_their_exact_distribution(seed, temperature):
    """P(a, b) = p_a p_b / (1 - p_a): 42 ordered pairs, 12,000 draws, fixed seeds."""
    model = tiny_model(seed=seed, initializer_range=0.15)
    p = exact(model, temperature)
    assert p.sum() == pytest.approx(1, abs=1e-6) and p.max() < 0.7
    pairs = list(itertools.permutations(range(len(ITEMS)), 2))
    wanted = np.array([p[a] * p[b] / (1 - p[a]) for a, b in pairs])
    low = draw(model, 2, range(12_000), temperature).low.numpy()
    places = np.zeros((len(ITEMS), len(ITEMS)), int)
    np.add.at(places, tuple(low.T), 1)
    counts = np.array([places[pair] for pair in pairs])
    assert counts.sum() == 12_000, "nothing is drawn twice"
    assert chi_square(counts, wanted) > 1e-3
    # The test can tell: the two would not pass for draws of another order, nor of another temperature.
    independent = np.array([p[a] * p[b] for a, b in pairs])
    assert chi_square(counts, independent / independent.sum()) < 1e-6
    other = exact(model, 1.6 * temperature)
    assert chi_square(counts, np.array([other[a] * other[b] / (1 - other[a]) for a, b in pairs])) < 1e-6


def test_a_single_draw_follows_the_model():
    model = tiny_model(seed=3)
    low = draw(model, 1, range(4000)).low[:, 0]
    assert chi_square(np.bincount(low, minlength=len(ITEMS)), exact(model)) > 1e-3


@pytest.mark.parametrize("temperature", [1.0, 1.5])
@pytest.mark.parametrize("seed", range(3))
def test_a_sample_names_items_and_their_probabilities_once(seed, temperature):
    model, semids = tiny_model(seed=seed), random_semids(seed, rows=40, ragged=True)
    trie = SemIDTrie(matrix(semids), EOS)
    ids, mask = prompts(LENGTHS)
    found = sample_without_replacement(model, ids, mask, trie, 8, [4, 5, 6], temperature)
    assert [tuple(part.shape) for part in found] == [(3, 8)] * 4 + [(3, 8, trie.depth)]
    for row in range(3):
        tokens = [tuple(t for t in one if t >= 0) for one in found.tokens[row].tolist()]
        assert len(set(tokens)) == 8 and set(tokens) <= set(semids)
        assert [semids[i] for i in trie.order[found.low[row]].tolist()] == tokens
        assert found.high[row].tolist() == [low + 1 for low in found.low[row].tolist()]
        p = distribution(model, ids[row][mask[row].bool()].tolist(), semids, temperature)
        wanted = [np.log(p[semids.index(one)]) for one in tokens]
        np.testing.assert_allclose(found.log_probs[row].numpy(), wanted, atol=1e-4)


@pytest.mark.parametrize("ragged", [True, False])
def test_as_many_as_there_are_is_everything(ragged):
    model, semids = tiny_model(seed=1), random_semids(1, rows=30, ragged=ragged)
    trie = SemIDTrie(matrix(semids), EOS)
    found = sample_without_replacement(model, *prompts(LENGTHS), trie, trie.num_leaves, [0, 1, 2])
    assert found.low.sort(1).values.equal(torch.arange(len(semids)).expand(3, -1))
    # Everything is certain to be there, so the weights are the probabilities themselves.
    torch.testing.assert_close(found.weights, found.log_probs.exp(), atol=1e-5, rtol=0)


def test_rows_with_one_semantic_id_are_one_item():
    trie = SemIDTrie(matrix([(20, 21), (20, 22), (20, 21), (23, 21)]), EOS)
    assert trie.num_leaves == 3
    found = sample_without_replacement(tiny_model(), *prompts([4]), trie, 3, [0])
    ranges = sorted(zip(found.low[0].tolist(), found.high[0].tolist()))
    assert ranges == [(0, 2), (2, 3), (3, 4)]


@pytest.mark.parametrize("k", [3, 6])
def test_weights_turn_a_sample_into_an_expectation(k):
    """Over 6,000 seeds the weighted estimates average to the expectation.

    The weights are normalised, as in Kool et al. (2020), so that an estimate is consistent and has a bias that
    vanishes with k: allowed are four standard errors of the average and, for that bias, 2 % of the values' range.
    A plain mean over the samples is further away than that.
    """
    model = tiny_model(seed=0, initializer_range=0.15)
    p = exact(model)
    values = np.linspace(0, 1, len(ITEMS))[np.argsort(np.argsort(p))]  # likely items are worth most
    found = draw(model, k, range(6000))
    torch.testing.assert_close(found.weights.sum(1), torch.ones(6000))
    assert (found.weights > 0).all()
    own = values[found.low.numpy()]
    estimates = (found.weights.numpy() * own).sum(1)
    tolerance = 4 * estimates.std() / np.sqrt(len(estimates)) + 0.02
    assert abs(estimates.mean() - p @ values) < tolerance
    assert abs(own.mean() - p @ values) > 2 * tolerance


def test_a_draw_follows_from_its_seed_alone():
    model, semids = tiny_model(seed=2), random_semids(2, rows=60, ragged=True)
    trie = SemIDTrie(matrix(semids), EOS)
    ids, mask = prompts(LENGTHS)
    together = sample_without_replacement(model, ids, mask, trie, 6, [7, 8, 9])
    order = [2, 0]
    fewer = sample_without_replacement(model, ids[order], mask[order], trie, 6, [9, 7])
    assert fewer.tokens.equal(together.tokens[order])
    alone = sample_without_replacement(model, ids[1:2, -3:], mask[1:2, -3:], trie, 6, [8])
    assert alone.tokens.equal(together.tokens[1:2])
    torch.testing.assert_close(alone.weights, together.weights[1:2], atol=1e-4, rtol=1e-3)
    other = sample_without_replacement(model, ids, mask, trie, 6, [7, 8, 10])
    assert other.tokens[:2].equal(together.tokens[:2]) and not other.tokens[2].equal(together.tokens[2])


def test_a_low_temperature_draws_the_best_first():
    model = tiny_model(seed=1)
    best = int(exact(model).argmax())
    assert (draw(model, 3, range(50), temperature=1e-3).low[:, 0] == best).all()
    assert len(draw(model, 3, range(50), temperature=100.0).low[:, 0].unique()) == len(ITEMS)


@pytest.mark.parametrize(
    ("k", "temperature", "said"),
    [
        (8, 1.0, "8 distinct samples of a catalogue of 7 Semantic IDs"),
        (0, 1.0, "0 distinct samples"),
        (2, 0.0, "temperature is 0.0; sampling needs one above 0"),
        (2, -1.0, "temperature is -1.0"),
    ],
)
def test_bad_input(k, temperature, said):
    with pytest.raises(ValueError, match=said):
        sample_without_replacement(tiny_model(), *prompts([4]), TRIE, k, [0], temperature)
